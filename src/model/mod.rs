//! A model on disk: its config, its weights in the mapping, its tokenizer and its chat template.
//!
//! [`resolve`] turns a directory or a hub id into a directory in Hugging Face layout, [`Model::open`] reads and checks
//! everything that the forward pass needs, [`Tokenizer`] and [`ChatTemplate`] turn text and messages into token ids.
//! Whatever would make the computation other than the checkpoint's is refused here, by name. Nothing is computed here.

mod chat;
mod config;
mod error;
mod header;
mod hub;
mod jinja;
mod rope;
#[cfg(test)]
mod testing;
mod tokenizer;
mod turns;
mod weights;

use std::path::{Path, PathBuf};

pub use chat::{ChatTemplate, Message, RenderedChat, TurnChars};
pub use config::Config;
pub use error::{Error, Result};
pub use hub::{HubEnv, resolve, resolve_in};
pub use rope::{Rope, RopeScaling};
pub use tokenizer::{ChatEncoding, Encoding, Tokenizer, TurnTokens};
pub use weights::{Dtype, LayerTensors, Tensor, Weights};

/// A checkpoint, opened and checked.
#[derive(Debug)]
pub struct Model {
    /// Where it lies.
    pub dir: PathBuf,
    /// What its forward pass needs to know.
    pub config: Config,
    /// Its tensors, mapped.
    pub weights: Weights,
    /// xxh3-128, in hex, of config and of weight-file headers and sizes.
    pub fingerprint: String,
}

impl Model {
    /// Opens the checkpoint in a directory in Hugging Face layout; a hub id goes through [`resolve`] first.
    ///
    /// # Errors
    /// No such directory, no `config.json` in it, and all that [`Config::open`] and [`Weights::open`] refuse.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::NoSuchModel {
                model: dir.display().to_string(),
                why: "not a directory".into(),
            });
        }
        let config = Config::open(dir)?;
        let weights = Weights::open(dir, &config)?;
        let fingerprint = weights.fingerprint(&error::read(&dir.join("config.json"))?);
        Ok(Self {
            dir: dir.to_path_buf(),
            config,
            weights,
            fingerprint,
        })
    }
}

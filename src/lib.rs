//! streamgauge: runs Mistral-family language models over large datasets and reads any activation at full speed.

pub mod analysis;
pub mod backend;
pub mod cli;
pub mod compact;
pub mod data;
pub mod engine;
pub mod hooks;
pub mod model;
pub mod report;
pub mod store;
pub mod study;
pub mod sys;

mod error;
mod permutation;
pub use error::{Error, Result};

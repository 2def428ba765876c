//! Text to token ids and back, with the byte range of the text that each token came from.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::chat::RenderedChat;
use super::error::{Error, Result, json_object, read_if_present};

/// A Hugging Face tokenizer (`tokenizer.json`) with the tokens that begin and end a sequence.
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    fingerprint: String,
}

/// Token ids, and where each token lies in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    pub ids: Vec<u32>,
    /// Byte range in the text; empty for tokens that stand for none of it, as an added BOS.
    pub offsets: Vec<Range<usize>>,
}

/// An encoded chat, and which of its tokens belong to which turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatEncoding {
    pub ids: Vec<u32>,
    /// Byte range in the rendered text.
    pub offsets: Vec<Range<usize>>,
    /// One per message, in the messages' order.
    pub turns: Vec<TurnTokens>,
}

/// Half-open token ranges of one turn.
///
/// A token across a border (a template's space merged with the first word) is content if any byte of it is, and belongs
/// to the turn that has its last byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnTokens {
    pub role: String,
    /// What the message says: every token that holds at least one byte of it.
    pub content: Range<u32>,
    /// With its header and its end-of-turn tokens.
    pub whole: Range<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`, and the BOS token that `tokenizer_config.json`, `special_tokens_map.json` or
    /// `config.json` names. Truncation and padding that the file may ask for are switched off.
    ///
    /// # Errors
    /// No such file, or one that the `tokenizers` crate can't read.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let fail = |why: String| Error::Tokenizer {
            path: path.clone(),
            why,
        };
        let Some(bytes) = read_if_present(&path)? else {
            return Err(Error::Tokenizer {
                path: dir.to_path_buf(),
                why: "no tokenizer.json here; add it, or give `tokens` instead of text".into(),
            });
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| fail(format!("not a tokenizer: {e}")))?;
        inner
            .with_truncation(None)
            .map_err(|e| fail(format!("not a tokenizer: {e}")))?;
        inner.with_padding(None);

        let special = SpecialTokens::read(dir)?;
        let named = |name| {
            special
                .get(name)
                .and_then(|token| inner.token_to_id(&token))
        };
        let eos = named("eos_token");
        let bos = match named("bos_token") {
            Some(id) => Some(id),
            None => config_bos(dir)?,
        };
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(&bytes);
        hash.update(format!("bos {bos:?}").as_bytes());
        let mut tokenizer = Self {
            path,
            inner,
            bos,
            eos,
            adds_bos: false,
            fingerprint: format!("{:032x}", hash.digest128()),
        };
        let starts_with_bos = |special| -> Result<bool> {
            let ids = tokenizer.encode("a", special)?.ids;
            Ok(bos.is_some() && ids.first().copied() == bos)
        };
        tokenizer.adds_bos = starts_with_bos(true)? && !starts_with_bos(false)?;
        Ok(tokenizer)
    }

    /// Encodes a text; `special` lets the post-processor add its special tokens, as BOS.
    ///
    /// Special tokens that are written out in the text are recognised, as Hugging Face does.
    ///
    /// # Errors
    /// A text that the tokenizer's model has no token for.
    pub fn encode(&self, text: &str, special: bool) -> Result<Encoding> {
        let encoding = self
            .inner
            .encode(text, special)
            .map_err(|e| self.fail(&e))?;
        let offsets = encoding.get_offsets().iter();
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            offsets: offsets.map(|&(start, end)| start..end).collect(),
        })
    }

    /// Encodes a rendered chat, without adding special tokens: its template wrote them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_chat(&self, chat: &RenderedChat) -> Result<ChatEncoding> {
        let Encoding { ids, offsets } = self.encode(&chat.text, false)?;
        let turns = chat
            .turns
            .iter()
            .map(|turn| {
                let content = token_range(&offsets, &turn.content);
                TurnTokens {
                    role: turn.role.clone(),
                    whole: whole_range(&offsets, &turn.whole, &content),
                    content,
                }
            })
            .collect();
        Ok(ChatEncoding {
            ids,
            offsets,
            turns,
        })
    }

    /// The text of some tokens; `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| self.fail(&e))
    }

    /// The token with an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The beginning-of-sequence token: a sample has it iff its first token is it.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token that `tokenizer_config.json` or `special_tokens_map.json` names.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Whether `encode(text, true)` puts BOS first.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// xxh3-128, in hex, of `tokenizer.json` and of the BOS id.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn fail(&self, error: &tokenizers::Error) -> Error {
        Error::Tokenizer {
            path: self.path.clone(),
            why: error.to_string().replace('\n', " "),
        }
    }
}

/// The tokens that hold at least one byte of `bytes`; empty, and in its place, for an empty range.
fn token_range(offsets: &[Range<usize>], bytes: &Range<usize>) -> Range<u32> {
    range_of(offsets, bytes, |token| {
        token.start < bytes.end && token.end > bytes.start
    })
}

/// The tokens whose last byte is in `bytes`, and all of `content`.
fn whole_range(offsets: &[Range<usize>], bytes: &Range<usize>, content: &Range<u32>) -> Range<u32> {
    let ends = range_of(offsets, bytes, |token| {
        !token.is_empty() && bytes.contains(&(token.end - 1))
    });
    match (ends.is_empty(), content.is_empty()) {
        (false, false) => ends.start.min(content.start)..ends.end.max(content.end),
        (true, _) => content.clone(),
        (_, true) => ends,
    }
}

/// From the first to the last token that `holds`.
fn range_of(
    offsets: &[Range<usize>],
    bytes: &Range<usize>,
    holds: impl Fn(&Range<usize>) -> bool,
) -> Range<u32> {
    let found = if bytes.is_empty() {
        None
    } else {
        let first = offsets.iter().position(&holds);
        first.zip(offsets.iter().rposition(&holds))
    };
    let (first, end) = match found {
        Some((first, last)) => (first, last + 1),
        None => {
            let place = offsets.iter().position(|token| token.end > bytes.start);
            let place = place.unwrap_or(offsets.len());
            (place, place)
        }
    };
    first as u32..end as u32
}

fn config_bos(dir: &Path) -> Result<Option<u32>> {
    let path = dir.join("config.json");
    let Some(bytes) = read_if_present(&path)? else {
        return Ok(None);
    };
    let config = json_object(&bytes, &path)?;
    let id = config.get("bos_token_id").and_then(Value::as_u64);
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

/// The named special tokens (`bos_token`, `eos_token`, …) of a model directory.
#[derive(Debug, Default)]
pub(super) struct SpecialTokens {
    /// Later ones are asked where earlier ones don't have a name.
    sources: Vec<Map<String, Value>>,
}

impl SpecialTokens {
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let mut sources = Vec::new();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = dir.join(file);
            if let Some(bytes) = read_if_present(&path)? {
                sources.push(json_object(&bytes, &path)?);
            }
        }
        Ok(Self { sources })
    }

    /// A token's text, which files give as a string or as `{"content": …}`.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.sources.iter().find_map(|source| {
            let value = source.get(name)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            text.map(String::from)
        })
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;

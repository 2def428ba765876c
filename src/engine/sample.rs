//! From a dataset's record to token ids, with the turns and spans that selections ask for.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::document::{Document, TokenText};
use super::{Error, Job, Result};
use crate::data::{CharSpan, Input, Kept, Record};
use crate::hooks::{SampleView, TokenSpan, TokenTurn};
use crate::model::{ChatTemplate, Message, Model, Tokenizer};
use crate::store::SampleRow;

/// One input of the dataset, or one chunk of it, after tokenising.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its row of the samples table: place in the dataset, tokens, kept fields.
    pub row: SampleRow,
    pub has_bos: bool,
    pub turns: Vec<TokenTurn>,
    pub spans: Vec<TokenSpan>,
}

impl Sample {
    /// What selections look at.
    pub fn view(&self) -> SampleView<'_> {
        SampleView {
            index: self.row.sample,
            n_tokens: self.row.tokens.len(),
            has_bos: self.has_bos,
            turns: &self.turns,
            spans: &self.spans,
            prompt_len: None,
        }
    }
}

/// What to do with a sample longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLong {
    /// Stop and say which.
    Error,
    /// Keep its first tokens.
    Truncate,
    /// Cut it into pieces that follow one another, each a sample of its own with the same number.
    Chunk,
}

/// How records become token ids.
pub struct Tokenising {
    pub tokenizer: Option<Tokenizer>,
    pub template: Option<ChatTemplate>,
    /// Role that plain text is wrapped in (`--chat user`).
    pub chat_role: Option<String>,
    pub add_generation_prompt: bool,
    /// Whether plain text gets the tokenizer's special tokens (BOS).
    pub special_tokens: bool,
    pub max_length: usize,
    /// Tokens that a chunk has in common with the one before it.
    pub overlap: usize,
    /// The token that ends a document where contexts are packed; `None` where they are not, or nothing stands between documents.
    pub separator: Option<u32>,
    /// The model's positions, for messages.
    pub positions: usize,
    pub on_long: OnLong,
    pub vocab: usize,
    pub bos: Option<u32>,
    /// The model's directory, for messages.
    pub model_dir: String,
}

impl Tokenising {
    /// What a job's tokenising needs of the model's directory.
    ///
    /// # Errors
    /// A tokenizer or template that cannot be read, and lengths that make no sense or are more than the model's positions.
    pub(super) fn open(job: &Job, model: &Model) -> Result<Self> {
        let dir = &model.dir;
        let tokenizer = dir
            .join("tokenizer.json")
            .is_file()
            .then(|| Tokenizer::open(dir))
            .transpose()?;
        let positions = model.config.max_position_embeddings;
        let (flag, asked) = match job.pack_context {
            Some(length) => ("pack-context", Some(length)),
            None => ("max-length", job.max_length),
        };
        let max_length = asked.unwrap_or(positions);
        if max_length == 0 {
            return Err(Error::Zero { flag }.into());
        }
        if max_length > positions {
            return Err(Error::MaxLength {
                flag,
                asked: max_length,
                positions,
            }
            .into());
        }
        if job.chunk_overlap >= max_length {
            return Err(Error::Number {
                flag: "chunk-overlap",
                why: "must be less than the tokens of a chunk (--max-length): every chunk must add something",
            }
            .into());
        }
        let eos = tokenizer.as_ref().and_then(Tokenizer::eos_id);
        let eos = eos.or(model.config.eos_token_ids.first().copied());
        Ok(Tokenising {
            bos: tokenizer
                .as_ref()
                .and_then(Tokenizer::bos_id)
                .or(model.config.bos_token_id),
            tokenizer,
            template: ChatTemplate::open(dir)?,
            chat_role: job.chat.clone(),
            add_generation_prompt: job.add_generation_prompt,
            special_tokens: job.special_tokens,
            max_length,
            overlap: job.chunk_overlap,
            separator: eos.filter(|&id| {
                let packs = job.pack_context.is_some() && job.special_tokens;
                packs && (id as usize) < model.config.vocab_size
            }),
            positions,
            on_long: job.on_long,
            vocab: model.config.vocab_size,
            model_dir: dir.display().to_string(),
        })
    }

    /// The samples of a record: one, or several chunks.
    ///
    /// # Errors
    /// As [`Tokenising::document`]'s; and a sample that is too long.
    pub fn samples(&self, record: Record) -> Result<Vec<Sample>> {
        let place = record.place();
        self.fit(&self.document(record)?, place)
    }

    /// A record's tokens, however many.
    ///
    /// # Errors
    /// No tokenizer or chat template for such an input, ids outside the vocabulary, spans outside the text; each names the record's file
    /// and line.
    pub fn document(&self, record: Record) -> Result<Document> {
        let place = record.place();
        let Record {
            index,
            file,
            line,
            input,
            spans,
            kept,
        } = record;
        let mut text_of = None;
        let mut token_spans = Vec::new();
        let (ids, turns) = match input {
            Input::Tokens(ids) => (ids, Vec::new()),
            Input::Text(text) => match &self.chat_role {
                Some(role) => {
                    self.chat(&[(role.clone(), text)], &spans, &mut token_spans, &place)?
                }
                None => {
                    let encoding = self.tokenizer(&place)?.encode(&text, self.special_tokens)?;
                    for span in &spans {
                        let bytes = byte_range(&text, span, &place)?;
                        token_spans.push(token_span(span, bytes, &encoding.offsets));
                    }
                    text_of = Some(TokenText::new(text, encoding.offsets));
                    (encoding.ids, Vec::new())
                }
            },
            Input::Messages(messages) => self.chat(&messages, &spans, &mut token_spans, &place)?,
        };
        if ids.is_empty() {
            return Err(Error::NoTokens { place }.into());
        }
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= self.vocab) {
            return Err(Error::TokenOutOfRange {
                place,
                id,
                vocab: self.vocab,
            }
            .into());
        }
        let whole = Sample {
            has_bos: self.bos.is_some() && ids.first() == self.bos.as_ref(),
            row: SampleRow {
                sample: index,
                chunk: 0,
                file,
                line,
                turns: stored_turns(&turns),
                tokens: ids,
                pieces: Vec::new(),
                kept: kept.into_iter().map(|k| k.map(stored_kept)).collect(),
            },
            turns,
            spans: token_spans,
        };
        let mut document = Document::new(whole, text_of);
        if let Some(separator) = self.separator {
            document.end_with(separator);
        }
        Ok(document)
    }

    fn tokenizer(&self, place: &str) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::NoTokenizer {
                place: place.into(),
                dir: self.model_dir.clone(),
            }
            .into()
        })
    }

    fn chat(
        &self,
        messages: &[(String, String)],
        spans: &[CharSpan],
        token_spans: &mut Vec<TokenSpan>,
        place: &str,
    ) -> Result<(Vec<u32>, Vec<TokenTurn>)> {
        let template = self.template.as_ref().ok_or_else(|| Error::NoTemplate {
            place: place.into(),
            dir: self.model_dir.clone(),
        })?;
        let chat: Vec<Message> = messages
            .iter()
            .map(|(role, content)| Message::new(role, content))
            .collect();
        let at = |source| Error::Chat {
            place: place.into(),
            source: Box::new(source),
        };
        let rendered = template
            .render(&chat, self.add_generation_prompt)
            .map_err(at)?;
        let encoding = self.tokenizer(place)?.encode_chat(&rendered).map_err(at)?;
        for span in spans {
            // A span counts in its message; in the rendered chat when it names none and there are several messages.
            let message = span.message.or((messages.len() == 1).then_some(0));
            let bytes = match message {
                None => byte_range(&rendered.text, span, place)?,
                Some(m) => {
                    let content = messages.get(m).map(|(_, content)| content.as_str());
                    let content = content.ok_or_else(|| {
                        span_error(
                            span,
                            place,
                            &format!("there are {} messages", messages.len()),
                        )
                    })?;
                    let turn = &rendered.turns[m].content;
                    let bytes = byte_range(content, span, place)?;
                    // The template may have stripped the content's ends.
                    let there = &rendered.text[turn.clone()];
                    let cut = content.find(there).ok_or_else(|| {
                        span_error(span, place, "the template rewrites this message")
                    })?;
                    let clip = |b: usize| turn.start + b.saturating_sub(cut).min(there.len());
                    clip(bytes.start)..clip(bytes.end)
                }
            };
            token_spans.push(token_span(span, bytes, &encoding.offsets));
        }
        let turns = encoding
            .turns
            .into_iter()
            .map(|t| TokenTurn {
                role: t.role,
                content: t.content,
                whole: t.whole,
            })
            .collect();
        Ok((encoding.ids, turns))
    }

    /// Truncates, cuts or refuses what is longer than the limit.
    fn fit(&self, document: &Document, place: String) -> Result<Vec<Sample>> {
        let tokens = document.tokens();
        if tokens <= self.max_length {
            return Ok(vec![document.cut(0..tokens, 0)]);
        }
        match self.on_long {
            OnLong::Error => Err(Error::TooLong {
                place,
                tokens,
                limit: self.max_length,
                positions: self.positions,
            }
            .into()),
            OnLong::Truncate => Ok(vec![document.cut(0..self.max_length, 0)]),
            OnLong::Chunk => {
                let step = self.max_length - self.overlap;
                // The last chunk is the first that reaches the end: none holds only what another one has.
                let chunks = (tokens - self.overlap).div_ceil(step);
                let range =
                    |chunk: usize| step * chunk..(step * chunk + self.max_length).min(tokens);
                Ok((0..chunks)
                    .map(|chunk| document.cut(range(chunk), chunk as u32))
                    .collect())
            }
        }
    }
}

/// First and last token, both inclusive, of every turn that has any.
pub(super) fn stored_turns(turns: &[TokenTurn]) -> Vec<(String, u32, u32)> {
    turns
        .iter()
        .filter(|t| !t.content.is_empty())
        .map(|t| (t.role.clone(), t.content.start, t.content.end - 1))
        .collect()
}

fn stored_kept(kept: Kept) -> crate::store::Kept {
    match kept {
        Kept::Bool(v) => crate::store::Kept::Bool(v),
        Kept::Int(v) => crate::store::Kept::Int(v),
        Kept::Float(v) => crate::store::Kept::Float(v),
        Kept::Text(v) => crate::store::Kept::Text(v),
    }
}

/// The bytes of a span given in characters.
fn byte_range(text: &str, span: &CharSpan, place: &str) -> Result<Range<usize>> {
    let mut starts = text.char_indices().map(|(b, _)| b).chain([text.len()]);
    let start = starts.nth(span.start);
    let end = if span.end == span.start {
        start
    } else {
        starts.nth(span.end.wrapping_sub(span.start + 1))
    };
    match (start, end) {
        (Some(start), Some(end)) if span.start <= span.end => Ok(start..end),
        _ => Err(span_error(
            span,
            place,
            &format!("the text has {} characters", text.chars().count()),
        )
        .into()),
    }
}

fn span_error(span: &CharSpan, place: &str, why: &str) -> Error {
    Error::Span {
        place: place.into(),
        name: span.name.clone(),
        start: span.start,
        end: span.end,
        why: why.into(),
    }
}

/// The tokens that hold any byte of the span.
fn token_span(span: &CharSpan, bytes: Range<usize>, offsets: &[Range<usize>]) -> TokenSpan {
    let holds = |o: &Range<usize>| o.start < bytes.end && bytes.start < o.end;
    let first = offsets.iter().position(holds);
    let last = offsets.iter().rposition(holds);
    let tokens = match (first, last) {
        (Some(first), Some(last)) => first as u32..last as u32 + 1,
        _ => 0..0,
    };
    TokenSpan {
        name: span.name.clone(),
        tokens,
    }
}

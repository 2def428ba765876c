//! The prompts of a sweep: a JSON line each, with `clean` and `corrupt` (a text, token ids or chat messages), perhaps `answer`
//! and `wrong` (one token each) and `positions` (a name and its index in both, or in each).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::data::{Input, Record};
use crate::engine::{Error, Prepared, Result, Sample};

/// One of a prompt's two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Run {
    /// What patched runs are measured by: the clean text, or the edited run.
    Clean,
    /// The corrupt text, or the run without edits.
    Corrupt,
}

/// One prompt, in both forms.
#[derive(Debug, Clone)]
pub struct PromptPair {
    /// `FILE:LINE`, for messages.
    pub place: String,
    pub clean: Sample,
    /// The same tokens as the clean one, where edits make the difference.
    pub corrupt: Sample,
    pub answer: Option<u32>,
    pub wrong: Option<u32>,
    /// Positions by name: in the clean and in the corrupt prompt.
    pub named: BTreeMap<String, [u32; 2]>,
}

impl PromptPair {
    /// That a measure of it is no number.
    pub(super) fn lost(&self, patch: &str, value: f64) -> crate::Error {
        let why = format!(
            "with {patch} a metric is {value}: an edit or a patch has driven the model out of range"
        );
        let place = self.place.clone();
        Error::Pair { place, why }.into()
    }

    /// The run's tokens.
    pub fn tokens(&self, run: Run) -> &[u32] {
        &self.sample(run).row.tokens
    }

    /// The run's sample.
    pub fn sample(&self, run: Run) -> &Sample {
        match run {
            Run::Clean => &self.clean,
            Run::Corrupt => &self.corrupt,
        }
    }

    /// Tokens of the shorter run.
    pub fn shorter(&self) -> usize {
        self.clean
            .row
            .tokens
            .len()
            .min(self.corrupt.row.tokens.len())
    }
}

/// Reads a pairs file, tokenised as the job says. With edits in the job, a line has one input (`clean`, or `text`, `tokens` or
/// `messages`), and its two runs are the edited and the plain one.
///
/// # Errors
/// A file that cannot be read, and a line that is not as it should be: each names file and line.
pub fn read_pairs(file: &Path, prepared: &Prepared) -> Result<Vec<PromptPair>> {
    let name: Arc<str> = file.display().to_string().into();
    let bytes = std::fs::read(file).map_err(|e| Error::SweepFile {
        path: name.to_string(),
        why: format!("{e}; check the path"),
    })?;
    let mut pairs = Vec::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line = Line {
            place: format!("{name}:{}", i + 1),
            file: Arc::clone(&name),
            number: i as u64 + 1,
            prepared,
            fields: fields(line).map_err(|why| Error::Pair {
                place: format!("{name}:{}", i + 1),
                why,
            })?,
        };
        let limit = prepared.job.limit.unwrap_or(u64::MAX);
        if pairs.len() as u64 == limit {
            break;
        }
        pairs.push(line.pair(pairs.len() as u64)?);
    }
    if pairs.is_empty() {
        return Err(Error::SweepFile {
            path: name.to_string(),
            why: "it has no prompts: write a JSON object a line, with `clean` and `corrupt`".into(),
        }
        .into());
    }
    Ok(pairs)
}

fn fields(line: &[u8]) -> Result<Map<String, Value>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "not valid UTF-8: save the file as UTF-8")?;
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err("not a JSON object: write {\"clean\": …, \"corrupt\": …}".into()),
        Err(e) => Err(format!(
            "not JSON (column {}): {e}; a pairs file is JSONL, an object a line: {{\"clean\": …, \"corrupt\": …}}",
            e.column()
        )),
    }
}

/// A line under way.
struct Line<'a> {
    place: String,
    file: Arc<str>,
    number: u64,
    prepared: &'a Prepared,
    fields: Map<String, Value>,
}

impl Line<'_> {
    fn fail(&self, why: impl Into<String>) -> crate::Error {
        Error::Pair {
            place: self.place.clone(),
            why: why.into(),
        }
        .into()
    }

    /// A field that is there and not null.
    fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|v| !v.is_null())
    }

    fn pair(&self, index: u64) -> Result<PromptPair> {
        let is_edited = !self.prepared.edits.is_empty();
        let clean = ["clean", "text", "tokens", "messages"]
            .into_iter()
            .take(if is_edited { 4 } else { 1 })
            .find_map(|name| self.field(name).map(|v| (name, v)));
        let (name, clean) = clean.ok_or_else(|| self.fail("it has no `clean`"))?;
        let clean = self.sample(index, name, clean)?;
        let corrupt = match (self.field("corrupt"), is_edited) {
            (Some(corrupt), false) => self.sample(index, "corrupt", corrupt)?,
            (None, true) => clean.clone(),
            (None, false) => {
                return Err(self.fail(
                    "it has no `corrupt`: give one, or --edit, to set the edited run against the plain one",
                ));
            }
            (Some(_), true) => {
                return Err(self.fail(
                    "it has a `corrupt` text, and edits are given: the two runs are either two texts or one text with and without edits",
                ));
            }
        };
        Ok(PromptPair {
            answer: self.token("answer")?,
            wrong: self.token("wrong")?,
            named: self.named([clean.row.tokens.len(), corrupt.row.tokens.len()])?,
            place: self.place.clone(),
            clean,
            corrupt,
        })
    }

    fn sample(&self, index: u64, name: &str, value: &Value) -> Result<Sample> {
        let input = input(value).map_err(|why| self.fail(format!("`{name}` {why}")))?;
        let record = Record {
            index,
            file: Arc::clone(&self.file),
            line: self.number,
            input,
            spans: Vec::new(),
            kept: Vec::new(),
        };
        let mut samples = self.prepared.tokenising.samples(record)?;
        match (samples.pop(), samples.is_empty()) {
            (Some(sample), true) => Ok(sample),
            _ => Err(self.fail(format!("`{name}` is too long for one sample"))),
        }
    }

    /// One token: its id, or a text that is one.
    fn token(&self, name: &str) -> Result<Option<u32>> {
        let tokenising = &self.prepared.tokenising;
        let id = match self.field(name) {
            None => return Ok(None),
            Some(Value::String(text)) => {
                let tokenizer = tokenising.tokenizer.as_ref();
                let tokenizer = tokenizer.ok_or_else(|| {
                    self.fail(format!(
                        "`{name}` is a text, but the model has no tokenizer: give the token's id"
                    ))
                })?;
                match tokenizer.encode(text, false)?.ids[..] {
                    [id] => u64::from(id),
                    ref ids => {
                        return Err(self.fail(format!(
                            "`{name}` is {} tokens, one is wanted: mind a leading space, or give the token's id",
                            ids.len()
                        )));
                    }
                }
            }
            Some(Value::Number(id)) if id.is_u64() => id.as_u64().unwrap_or(u64::MAX),
            Some(_) => return Err(self.fail(format!("`{name}` is no text and no token id"))),
        };
        match u32::try_from(id) {
            Ok(id) if (id as usize) < tokenising.vocab => Ok(Some(id)),
            _ => Err(self.fail(format!(
                "`{name}`: token id {id} is not below the model's vocabulary size {}",
                tokenising.vocab
            ))),
        }
    }

    fn named(&self, lengths: [usize; 2]) -> Result<BTreeMap<String, [u32; 2]>> {
        let given = match self.field("positions") {
            None => return Ok(BTreeMap::new()),
            Some(Value::Object(given)) => given,
            Some(_) => return Err(self.fail("`positions` is no object of names and indices")),
        };
        let index = |name: &str, value: Option<i64>, n: usize| {
            let at = value.map(|v| if v < 0 { v + n as i64 } else { v });
            match at.and_then(|at| u32::try_from(at).ok()) {
                Some(at) if (at as usize) < n => Ok(at),
                _ => Err(self.fail(format!(
                    "the position '{name}' is no index into {n} tokens (or a list of one for clean and one for corrupt)"
                ))),
            }
        };
        let of = |(name, value): (&String, &Value)| {
            let both = match value {
                Value::Array(both) if both.len() == 2 => [both[0].as_i64(), both[1].as_i64()],
                one => [one.as_i64(); 2],
            };
            Ok((
                name.clone(),
                [
                    index(name, both[0], lengths[0])?,
                    index(name, both[1], lengths[1])?,
                ],
            ))
        };
        given.iter().map(of).collect()
    }
}

fn input(value: &Value) -> Result<Input, String> {
    const FORMS: &str = "is no text, list of token ids or list of {\"role\", \"content\"}";
    match value {
        Value::String(text) if text.is_empty() => Err("is empty".into()),
        Value::String(text) => Ok(Input::Text(text.clone())),
        Value::Array(items) if items.is_empty() => Err("is empty".into()),
        Value::Array(items) if items.iter().all(Value::is_u64) => {
            let id = |v: &Value| u32::try_from(v.as_u64()?).ok();
            let ids: Option<Vec<u32>> = items.iter().map(id).collect();
            ids.map(Input::Tokens)
                .ok_or_else(|| "has a token id that no vocabulary has".into())
        }
        Value::Array(items) => {
            let text = |v: &Value, key| Some(v.get(key)?.as_str()?.to_owned());
            let turn = |v: &Value| Some((text(v, "role")?, text(v, "content")?));
            let turns: Option<Vec<_>> = items.iter().map(turn).collect();
            turns.map(Input::Messages).ok_or_else(|| FORMS.into())
        }
        _ => Err(FORMS.into()),
    }
}

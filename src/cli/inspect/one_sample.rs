//! One sample of a store: what it was, and its rows in every tap.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::super::{Failure, format};
use crate::model::Tokenizer;
use crate::store::{Kept, Manifest, SampleRow, Store};

/// Rows of a tap that the text shows, and numbers of each.
const ROWS: usize = 8;
const VALUES: usize = 4;

/// A sample, with all its chunks.
#[derive(Debug, Serialize)]
pub struct Shown {
    sample: u64,
    file: String,
    line: u64,
    kept: Map<String, Value>,
    chunks: Vec<Chunk>,
    taps: Vec<Tap>,
    /// Why tokens have no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_text: Option<String>,
}

#[derive(Debug, Serialize)]
struct Chunk {
    chunk: u32,
    tokens: Vec<u32>,
    /// Each token's own text, where the tokenizer is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<Vec<String>>,
    turns: Vec<Turn>,
}

/// A chat turn; first and last token are both inclusive.
#[derive(Debug, Serialize)]
struct Turn {
    role: String,
    first: u32,
    last: u32,
}

#[derive(Debug, Serialize)]
struct Tap {
    folder: String,
    rows: Vec<Row>,
    /// Of a ragged tap: [heads, rows, tokens] of each chunk.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ragged: Vec<Vec<usize>>,
}

/// A row; position and token are −1 where it is made of several.
#[derive(Debug, Serialize)]
struct Row {
    position: i32,
    token: i32,
    norm: f64,
    /// The first few.
    values: Vec<f32>,
    /// Which components these are, of a top-K tap.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<Vec<i32>>,
}

/// Sample `number` with its rows in `taps`.
///
/// # Errors
/// The store does not hold it, or is damaged.
pub fn show(store: &Store, taps: &[usize], number: u64) -> Result<Shown, Failure> {
    let manifest = store.manifest();
    let samples = find(store, number)?;
    let Some(first) = samples.first() else {
        let message = format!(
            "the store has no sample {number}: it holds {}, numbered by their place in the dataset from 0",
            format::counted(manifest.samples, "sample")
        );
        return Err(Failure::Refused(message));
    };
    let names = manifest.keep.iter().map(|column| column.name.clone());
    let kept = names
        .zip(&first.kept)
        .map(|(name, value)| (name, as_json(value.as_ref())))
        .collect();
    let (tokenizer, no_text) = match tokenizer(manifest) {
        Ok(tokenizer) => (Some(tokenizer), None),
        Err(why) => (None, Some(why)),
    };
    let chunks = samples
        .iter()
        .map(|sample| chunk(sample, tokenizer.as_ref()))
        .collect();
    let taps = taps
        .iter()
        .map(|&tap| rows(store, tap, &samples))
        .collect::<Result<_, _>>()?;
    Ok(Shown {
        sample: number,
        file: first.file.to_string(),
        line: first.line,
        kept,
        chunks,
        taps,
        no_text,
    })
}

/// The sample's chunks, in order; none if it is not in the store.
fn find(store: &Store, number: u64) -> Result<Vec<SampleRow>, Failure> {
    let mut found = Vec::new();
    for shard in 0..store.manifest().shards.len() {
        found.extend(
            store
                .shard_samples(shard)?
                .into_iter()
                .filter(|s| s.sample == number),
        );
    }
    Ok(found)
}

/// The tokenizer that the run used, if it is still where it was.
pub fn tokenizer(manifest: &Manifest) -> Result<Tokenizer, String> {
    let p = &manifest.provenance;
    let Some(fingerprint) = &p.tokenizer_fingerprint else {
        return Err("the model has no tokenizer".into());
    };
    let tokenizer = Tokenizer::open(Path::new(&p.model.path)).map_err(|e| e.to_string())?;
    if tokenizer.fingerprint() != *fingerprint {
        return Err(format!(
            "the tokenizer in {} is not the one that was used",
            p.model.path
        ));
    }
    Ok(tokenizer)
}

fn chunk(sample: &SampleRow, tokenizer: Option<&Tokenizer>) -> Chunk {
    // A token that is part of a character has no text of its own; its name in the vocabulary says more than a �.
    let piece = |tokenizer: &Tokenizer, id: u32| {
        let text = tokenizer.decode(&[id], false).unwrap_or_default();
        if text.is_empty() || text.contains('\u{fffd}') {
            tokenizer.token(id).unwrap_or(text)
        } else {
            text
        }
    };
    Chunk {
        chunk: sample.chunk,
        tokens: sample.tokens.clone(),
        pieces: tokenizer.map(|t| sample.tokens.iter().map(|&id| piece(t, id)).collect()),
        turns: sample
            .turns
            .iter()
            .map(|(role, first, last)| Turn {
                role: role.clone(),
                first: *first,
                last: *last,
            })
            .collect(),
    }
}

fn as_json(kept: Option<&Kept>) -> Value {
    match kept {
        None => Value::Null,
        Some(Kept::Bool(b)) => json!(b),
        Some(Kept::Int(i)) => json!(i),
        Some(Kept::Float(x)) => json!(x),
        Some(Kept::Text(t)) => json!(t),
    }
}

fn rows(store: &Store, tap: usize, samples: &[SampleRow]) -> Result<Tap, Failure> {
    let reader = store.tap_at(tap);
    let folder = reader.info().folder.clone();
    if reader.info().ragged {
        let views = samples
            .iter()
            .map(|s| reader.ragged(s.sample, s.chunk))
            .collect::<Result<Vec<_>, _>>()?;
        return Ok(Tap {
            folder,
            rows: Vec::new(),
            ragged: views
                .into_iter()
                .flatten()
                .map(|v| v.shape().to_vec())
                .collect(),
        });
    }
    let rows = reader
        .for_sample(samples[0].sample)?
        .iter()
        .map(|row| {
            let mut values = row.to_f32();
            let norm = values
                .iter()
                .map(|&v| f64::from(v).powi(2))
                .sum::<f64>()
                .sqrt();
            values.truncate(VALUES);
            let index = row.index().map(|mut index| {
                index.truncate(VALUES);
                index
            });
            Row {
                position: row.position(),
                token: row.token(),
                norm,
                values,
                index,
            }
        })
        .collect();
    Ok(Tap {
        folder,
        rows,
        ragged: Vec::new(),
    })
}

impl Shown {
    pub fn text(&self) -> String {
        let mut lines = vec![format!(
            "sample {}, {}:{}",
            self.sample, self.file, self.line
        )];
        lines.extend(
            self.kept
                .iter()
                .map(|(name, value)| format!("  {name}: {value}")),
        );
        for chunk in &self.chunks {
            lines.extend(self.chunk_lines(chunk));
        }
        if let Some(why) = &self.no_text {
            lines.push(format!("  (token ids only: {why})"));
        }
        for tap in &self.taps {
            lines.push(tap.folder.clone());
            lines.extend(
                tap.ragged
                    .iter()
                    .map(|shape| format!("  [heads, rows, tokens] {shape:?}")),
            );
            lines.extend(tap.rows.iter().take(ROWS).map(Row::line));
            if tap.rows.len() > ROWS {
                lines.push(format!(
                    "  … and {} (--json shows all)",
                    format::counted((tap.rows.len() - ROWS) as u64, "more row")
                ));
            }
            if tap.rows.is_empty() && tap.ragged.is_empty() {
                lines.push("  no row".into());
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn chunk_lines(&self, chunk: &Chunk) -> Vec<String> {
        let mut lines = Vec::new();
        if self.chunks.len() > 1 {
            lines.push(format!("chunk {}", chunk.chunk));
        }
        for turn in &chunk.turns {
            lines.push(format!(
                "  turn {}: tokens {} to {}",
                turn.role, turn.first, turn.last
            ));
        }
        for (position, id) in chunk.tokens.iter().enumerate() {
            let piece = chunk
                .pieces
                .as_ref()
                .map_or(String::new(), |pieces| format!("  {:?}", pieces[position]));
            lines.push(format!("  {position:>5} {id:>7}{piece}"));
        }
        lines
    }
}

impl Row {
    fn line(&self) -> String {
        let place = if self.position < 0 {
            "several tokens".into()
        } else {
            format!("position {}, token {}", self.position, self.token)
        };
        let values: Vec<String> = match &self.index {
            Some(index) => index
                .iter()
                .zip(&self.values)
                .map(|(i, v)| format!("{i}: {v:.5}"))
                .collect(),
            None => self.values.iter().map(|v| format!("{v:.5}")).collect(),
        };
        format!("  {place}: {}, …; norm {:.5}", values.join(", "), self.norm)
    }
}

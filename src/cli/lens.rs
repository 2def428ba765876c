//! `streamgauge lens`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::analyze::{axis, curves, heatmap, save};
use super::edit_args::EditArgs;
use super::model_args::{ModelArgs, tell_of_upload};
use super::{CliResult, Failure, Usage, out};
use crate::data::{Input, Record};
use crate::engine::{Job, LensRow, Room, lens};
use crate::model::Tokenizer;
use crate::report::table;

/// Read the residual stream of every layer of one prompt through the LM head: the logit lens.
///
/// Each layer's residual stream goes through the final norm, with its gain, and the LM head. Per position and layer: the likeliest tokens, the rank of the model's own
/// likeliest token, the entropy, and KL(model ‖ layer), both in nats. 0 blocks is the embedding; behind all blocks it is what the model says. Early layers
/// write in other directions than the head reads: much of what they hold does not show here.
#[derive(Debug, Args)]
pub struct LensArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt.
    #[arg(long, value_name = "T")]
    prompt: String,
    /// Which positions to read.
    #[arg(
        long,
        value_name = "SELECTION",
        default_value = "last",
        allow_hyphen_values = true
    )]
    select: String,
    /// Likeliest tokens to show.
    #[arg(long, value_name = "K", default_value_t = 5)]
    top: usize,
    /// Wrap the prompt as one turn of this role, by the model's chat template, with the opening of the assistant's.
    #[arg(long, value_name = "ROLE", num_args = 0..=1, default_missing_value = "user")]
    chat: Option<String>,
    /// Don't let the tokenizer add BOS to plain text.
    #[arg(long)]
    no_special_tokens: bool,
    #[command(flatten)]
    edits: EditArgs,
    /// Write lens.csv there, a line per position and layer, and its picture, lens.svg and .png.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print an object a line, one per position and layer.
    #[arg(long)]
    json: bool,
}

impl LensArgs {
    fn job(&self) -> Result<Job, Failure> {
        if self.edits.tap_before_edits {
            return Err(Usage(
                "--tap-before-edits: the lens has no taps to choose a side of an edit for".into(),
            )
            .into());
        }
        Ok(Job {
            select: self.select.clone(),
            edits: self.edits.read()?,
            chat: self.chat.clone(),
            add_generation_prompt: self.chat.is_some(),
            special_tokens: !self.no_special_tokens,
            ..Job::new(self.model.model.clone(), Vec::new(), vec!["logits".into()])
        })
    }
}

/// A line of lens.csv.
#[derive(Debug, serde::Serialize)]
struct Line {
    position: u32,
    token: String,
    blocks: usize,
    rank: usize,
    logprob_next: Option<f64>,
    entropy: f64,
    kl: f64,
    top: String,
    top_logprobs: String,
}

pub fn run(args: &LensArgs) -> CliResult {
    let (prepared, place) = args.model.open(args.job()?)?;
    let record = Record {
        index: 0,
        file: Arc::from("--prompt"),
        line: 1,
        input: Input::Text(args.prompt.clone()),
        spans: Vec::new(),
        kept: Vec::new(),
    };
    let mut samples = prepared.tokenising.samples(record)?;
    let sample = match samples.pop() {
        Some(sample) if samples.is_empty() => sample,
        _ => return Err(Failure::Refused("--prompt: it was cut up".into())),
    };
    let selected = prepared.select(&sample)?;
    let positions = prepared.positions(&selected, 0).to_vec();
    if positions.is_empty() {
        let n = sample.row.tokens.len();
        return Err(Failure::Refused(format!(
            "--select {}: picks none of the prompt's {n} tokens",
            args.select
        )));
    }
    let room = Room {
        sequences: 0,
        tokens: sample.row.tokens.len(),
    };
    let mut opened = place.open_for_generation(&prepared, room)?;
    tell_of_upload(&place, &opened, false);
    let rows = lens(
        &mut *opened.machine,
        &prepared,
        &sample,
        &positions,
        args.top,
    )?;
    let words = Words(prepared.tokenising.tokenizer.as_ref());
    let lines: Vec<Line> = rows
        .iter()
        .map(|row| line(row, &sample.row.tokens, &words))
        .collect();
    if let Some(dir) = &args.out {
        super::analyze::make_out(dir)?;
        table::write_csv(&dir.join("lens.csv"), &lines)?;
        draw(dir, &lines)?;
    }
    if args.json {
        for row in &rows {
            out(format_args!(
                "{}\n",
                object(row, &sample.row.tokens, &words)
            ));
        }
        return Ok(());
    }
    let mut last = None;
    for (row, line) in rows.iter().zip(&lines) {
        if last != Some(row.position) {
            out(format_args!(
                "position {}, {:?}\nblocks    rank  entropy       KL  likeliest\n",
                row.position, line.token
            ));
            last = Some(row.position);
        }
        out(format_args!(
            "{:>6} {:>7}  {:>7.3}  {:>7.3}  {}\n",
            row.blocks, row.rank, row.entropy, row.kl, line.top
        ));
    }
    if let Some(dir) = &args.out {
        out(format_args!("{}\n", dir.join("lens.csv").display()));
    }
    Ok(())
}

/// KL to what the model says, layer by layer: curves of a few positions, else position by layer.
fn draw(dir: &std::path::Path, lines: &[Line]) -> CliResult {
    /// More curves than these are not told apart.
    const CURVES: usize = 6;
    let of_position: Vec<&[Line]> = lines.chunk_by(|a, b| a.position == b.position).collect();
    let name = |lines: &&[Line]| format!("{} {:?}", lines[0].position, lines[0].token);
    let (kl, caption) = (
        axis("KL from the model", "nat"),
        "How far what each layer's residual stream says is from what the model says",
    );
    let body = if of_position.len() <= CURVES {
        let curve = |lines: &&[Line]| {
            let points = lines.iter().map(|line| (line.blocks as f64, line.kl));
            (name(lines), points.collect())
        };
        let named = of_position.iter().map(curve).collect();
        curves(axis("blocks behind", ""), kl, named, true)
    } else {
        let blocks = of_position[0].iter().map(|line| line.blocks.to_string());
        let row = |lines: &&[Line]| lines.iter().map(|line| line.kl).collect();
        heatmap(
            ("position", of_position.iter().map(name).collect()),
            ("blocks behind", blocks.collect()),
            of_position.iter().map(row).collect(),
            kl,
        )
    };
    save(dir, "lens", caption, body)
}

/// What tokens look like; without a tokenizer, their ids.
struct Words<'t>(Option<&'t Tokenizer>);

impl Words<'_> {
    fn of(&self, id: u32) -> String {
        self.0
            .and_then(|tokenizer| tokenizer.decode(&[id], false).ok())
            .unwrap_or_else(|| id.to_string())
    }
}

fn line(row: &LensRow, tokens: &[u32], words: &Words<'_>) -> Line {
    let top: Vec<String> = row
        .top
        .iter()
        .map(|&(id, _)| format!("{:?}", words.of(id)))
        .collect();
    let logprobs: Vec<String> = row.top.iter().map(|(_, p)| format!("{p:.4}")).collect();
    Line {
        position: row.position,
        token: words.of(tokens[row.position as usize]),
        blocks: row.blocks,
        rank: row.rank,
        logprob_next: row.logprob,
        entropy: row.entropy,
        kl: row.kl,
        top: top.join(" "),
        top_logprobs: logprobs.join(" "),
    }
}

fn object(row: &LensRow, tokens: &[u32], words: &Words<'_>) -> serde_json::Value {
    let top: Vec<_> = row
        .top
        .iter()
        .map(|&(id, logprob)| json!({ "id": id, "token": words.of(id), "logprob": logprob }))
        .collect();
    let id = tokens[row.position as usize];
    json!({
        "position": row.position, "id": id, "token": words.of(id), "blocks": row.blocks, "top": top, "rank": row.rank,
        "logprob_next": row.logprob, "entropy": row.entropy, "kl": row.kl,
    })
}

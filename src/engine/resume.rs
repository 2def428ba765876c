//! Beginning a store or going on with one: a run that was stopped, killed or failed goes on where its journal ends, if its command is
//! still the same.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::read_ahead::ReadState;
use super::slice::{Share, refuse_streams};
use super::{Error, Extracted, Job, Prepared, Result};
use crate::backend::Receipt;
use crate::store::{Found, Manifest, Provenance, StoreWriter, TapInfo, find};

/// How a job is run, beyond what it computes.
pub struct Options<'a> {
    /// Go on with the store that a stopped run left; begin one if there is none.
    pub resume: bool,
    /// How much time may pass until finished batches are durable; `None`: as the store sees fit.
    pub commit_every: Option<Duration>,
    /// Asked after every batch: whether to commit and end.
    pub stop: &'a dyn Fn() -> bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            resume: false,
            commit_every: None,
            stop: &|| false,
        }
    }
}

/// How a run ended well.
#[derive(Debug)]
pub enum Ending {
    Done(Box<Extracted>),
    /// The store was complete before: nothing was run.
    Already(Box<Manifest>),
}

/// A store to write to, and the run's account of what is in it; or one that is complete.
pub enum Beginning {
    Writer(Box<StoreWriter>, Box<Carry>),
    Already(Box<Manifest>),
}

/// The run's account of itself, kept with the store so that a resumed run ends with the same one. Sums of floats go by their bits: they
/// must go on from the very same number.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Carry {
    pub samples: u64,
    pub tokens: u64,
    pub bytes: u64,
    pub rows: Vec<u64>,
    pub clipped: u64,
    /// Per tap, the bits of the sum of its rows' norms.
    pub norms: Vec<u64>,
    /// Rows, and the bits of the sums of norms before and after.
    pub receipts: Vec<(u64, u64, u64)>,
    /// Where the dataset is read on, once the shard is committed.
    pub read: ReadState,
}

impl Carry {
    /// Of a run that has not begun.
    pub fn new(prepared: &Prepared, share: &Share) -> Self {
        Carry {
            rows: vec![0; prepared.taps.len()],
            norms: vec![0f64.to_bits(); prepared.taps.len()],
            receipts: vec![(0, 0, 0); prepared.edits.len()],
            read: ReadState::new(prepared, share),
            ..Carry::default()
        }
    }

    /// As the store kept it.
    ///
    /// # Errors
    /// It is not one of this job's.
    pub fn read(value: &Value, prepared: &Prepared, dir: &Path) -> Result<Self> {
        let (taps, edits) = (prepared.taps.len(), prepared.edits.len());
        // Counts are added to: none may be near the end of what a number holds.
        const MOST: u64 = 1 << 60;
        let fits = |c: &Carry| {
            let numbers = [c.samples, c.tokens, c.bytes, c.clipped]
                .into_iter()
                .chain([c.read.tokens, c.read.skipped, c.read.context]);
            let lists = [&c.rows, &c.read.rows, &c.read.edited]
                .into_iter()
                .flatten();
            let receipts = c.receipts.iter().map(|r| r.0);
            (c.rows.len(), c.norms.len(), c.receipts.len()) == (taps, taps, edits)
                && (c.read.rows.len(), c.read.edited.len()) == (taps, edits)
                && numbers
                    .chain(lists.copied())
                    .chain(receipts)
                    .all(|n| n < MOST)
        };
        let carry = Carry::deserialize(value).ok().filter(fits);
        carry.ok_or_else(|| {
            Error::ForeignJob {
                dir: dir.display().to_string(),
                why: "its account of the run so far does not fit its job".into(),
            }
            .into()
        })
    }

    pub fn receipts(&self) -> Vec<Receipt> {
        let receipt = |&(rows, before, after): &(u64, u64, u64)| Receipt {
            rows,
            norm_before: f64::from_bits(before),
            norm_after: f64::from_bits(after),
        };
        self.receipts.iter().map(receipt).collect()
    }

    pub fn set_receipts(&mut self, receipts: &[Receipt]) {
        let bits = |r: &Receipt| (r.rows, r.norm_before.to_bits(), r.norm_after.to_bits());
        self.receipts = receipts.iter().map(bits).collect();
    }
}

/// Begins the store in `out`, or takes up the one there.
///
/// # Errors
/// As [`StoreWriter::create`] and [`find`]; with `resume` a command or dataset that is not the one that the store was begun with, and a
/// dataset that can be read only once.
pub fn begin(
    prepared: &Prepared,
    provenance: Provenance,
    share: &Share,
    out: &Path,
    resume: bool,
) -> Result<Beginning> {
    let new = |provenance| -> Result<Beginning> {
        let (infos, keep) = (prepared.infos.clone(), &prepared.job.keep);
        let writer = StoreWriter::create(out, provenance, infos, keep)?;
        let carry = Carry::new(prepared, share);
        Ok(Beginning::Writer(Box::new(writer), Box::new(carry)))
    };
    if !resume {
        return new(provenance);
    }
    if !prepared.job.data.is_empty() {
        refuse_streams(&prepared.job.dataset_in_order(false)?, "--resume")?;
    }
    let unfinished = match find(out)? {
        Found::Nothing => return new(provenance),
        Found::Complete(manifest) => {
            let hash = prepared.dataset_fingerprint()?;
            refuse_changes(&manifest, &provenance, prepared, hash.as_deref(), out)?;
            return Ok(Beginning::Already(manifest));
        }
        Found::Unfinished(unfinished) => unfinished,
    };
    let manifest = unfinished.manifest();
    let is_new = manifest.provenance.dataset.fingerprint.is_none() && manifest.shards.is_empty();
    // The dataset is read whole before the first shard is committed: without its fingerprint there is nothing to lose.
    let hash = match is_new {
        true => None,
        false => prepared.dataset_fingerprint()?,
    };
    refuse_changes(manifest, &provenance, prepared, hash.as_deref(), out)?;
    if is_new {
        unfinished.discard()?;
        return new(provenance);
    }
    let carry = match &manifest.carry {
        Value::Null => Carry::new(prepared, share),
        carry => Carry::read(carry, prepared, out)?,
    };
    if carry.samples != manifest.samples {
        return Err(Error::ForeignJob {
            dir: out.display().to_string(),
            why: format!(
                "its account of the run counts {} samples, its shards hold {}",
                carry.samples, manifest.samples
            ),
        }
        .into());
    }
    let writer = unfinished.go_on()?;
    Ok(Beginning::Writer(Box::new(writer), Box::new(carry)))
}

/// What a run says that was asked to stop after so many samples; `kept`: whether anything of them stays.
pub fn stopped(samples: u64, kept: bool, job: &Job) -> Error {
    let from_stdin = job.data.iter().any(|data| data == "-");
    let kept = match (kept, from_stdin) {
        (true, false) => ", which are kept: pass --resume to go on",
        (true, true) => ", which a partial store keeps; standard input cannot be resumed",
        (false, _) => ": nothing was left to go on with",
    };
    Error::Stopped { samples, kept }
}

/// Refuses to go on with a store that this job did not begin; says what differs.
fn refuse_changes(
    stored: &Manifest,
    now: &Provenance,
    prepared: &Prepared,
    dataset: Option<&str>,
    out: &Path,
) -> Result<()> {
    let then = (&stored.provenance, &stored.taps[..]);
    let what = changes(then, now, prepared, dataset);
    if what.is_empty() {
        return Ok(());
    }
    Err(Error::Changed {
        dir: out.display().to_string(),
        what: what.join("; "),
    }
    .into())
}

/// What differs between a job that was begun, with its taps, and the one that is to go on.
pub(super) fn changes(
    (then, taps): (&Provenance, &[TapInfo]),
    now: &Provenance,
    prepared: &Prepared,
    dataset: Option<&str>,
) -> Vec<String> {
    let (was, is) = (command(&then.job), command(&now.job));
    if was != is {
        return vec![format!("it is of `{was}`, and this is `{is}`")];
    }
    let Ok(job) = serde_json::from_value::<Job>(job_of(&then.job).clone()) else {
        return vec!["its job is one of another version".into()];
    };
    let mut changes = Vec::new();
    let mut compare = |what: &str, then: Value, now: Value| {
        // Through text and back, as what is stored went: numbers must not differ for that.
        let now = serde_json::from_str(&now.to_string()).unwrap_or(now);
        if then != now {
            changes.push(format!(
                "{what} was {} and is {}",
                short(&then),
                short(&now)
            ));
        }
    };
    let job = serde_json::to_value(job).unwrap_or_default();
    for (field, now) in job_of(&now.job).as_object().into_iter().flatten() {
        // The model may have been moved: its fingerprint counts.
        // So do the edits' own records, which tell more.
        if field != "model" && field != "edits" {
            compare(flag(field), job[field].clone(), now.clone());
        }
    }
    if is == GENERATE {
        for (field, now) in now.job.as_object().into_iter().flatten() {
            if field != "prompts" {
                compare(flag(field), then.job[field].clone(), now.clone());
            }
        }
    }
    let fields = [
        ("the model", &then.model.fingerprint, &now.model.fingerprint),
        ("the version", &then.engine_version, &now.engine_version),
        ("--device", &then.backend, &now.backend),
        ("--dtype", &then.compute_dtype, &now.compute_dtype),
        ("the kernels' build", &then.kernel_build, &now.kernel_build),
    ];
    for (what, then, now) in fields {
        compare(what, json!(then), json!(now));
    }
    compare(
        "the tokenizer",
        json!(then.tokenizer_fingerprint),
        json!(now.tokenizer_fingerprint),
    );
    compare(
        "the chat template",
        json!(then.chat_template),
        json!(now.chat_template),
    );
    compare(
        "the token between documents",
        then.dataset.fields["separator"].clone(),
        now.dataset.fields["separator"].clone(),
    );
    compare("--shard", shard(then), shard(now));
    compare(
        "what bit-exactness hangs on",
        then.numeric_record.clone(),
        now.numeric_record.clone(),
    );
    let directions = "the content of its taps' directions";
    compare(directions, json!(then.directions), json!(now.directions));
    let texts = |edits: &[Value]| -> Vec<Value> {
        edits.iter().map(|e| json!([e["edit"], e["at"]])).collect()
    };
    let (were, are) = (texts(&then.edits), texts(&now.edits));
    let same = were == are;
    compare("--edit", json!(were), json!(are));
    if let (Some(stored), Some(found)) = (&then.dataset.fingerprint, dataset) {
        compare("the dataset", json!(stored), json!(found));
    }
    if same {
        let both = then.edits.iter().zip(&now.edits);
        changes.extend(
            both.filter(|(then, now)| then != now)
                .map(|(_, now)| format!("edit {} reads other numbers than it did", now["edit"])),
        );
    }
    // Follows from the rest, but for what an older version understood in another way.
    if changes.is_empty() && taps != prepared.infos {
        changes.push("its taps are stored in another way".into());
    }
    changes
}

/// The command of a store of generated text, which tells of its job in a record of its own.
pub const GENERATE: &str = "generate";

/// Which command a store's job is of.
pub fn command(job: &Value) -> &str {
    job["command"].as_str().unwrap_or("extract")
}

/// The part of a store's job that a [`Job`] is.
fn job_of(job: &Value) -> &Value {
    match command(job) {
        GENERATE => &job["prompts"],
        _ => job,
    }
}

/// `i/n`.
fn shard(of: &Provenance) -> Value {
    of.slice
        .as_ref()
        .map_or(Value::Null, |s| json!(format!("{}/{}", s.index, s.of)))
}

/// The flag that sets a field of the job.
fn flag(field: &str) -> &str {
    match field {
        "data" => "--data",
        "taps" => "--tap",
        "select" => "--select",
        "edits" => "--edit",
        "tap_before_edits" => "--tap-before-edits",
        "store_dtype" => "--store-dtype",
        "input_field" => "the input's field",
        "keep" => "--keep",
        "chat" => "--chat",
        "add_generation_prompt" => "--add-generation-prompt",
        "special_tokens" => "special tokens",
        "max_length" => "--max-length",
        "on_long" => "--on-long",
        "chunk_overlap" => "--chunk-overlap",
        "pack_context" => "--pack-context",
        "sample_fraction" => "--sample-fraction",
        "shuffle" => "--shuffle",
        "skip_bad" => "--skip-bad",
        "limit" => "--limit",
        "shard_bytes" => "--shard-size",
        "batch_tokens" => "--batch-tokens",
        "given" => "--prompt",
        "batch" => "--batch",
        "choosing" => "how tokens are chosen",
        "max_new_tokens" => "--max-new-tokens",
        other => other,
    }
}

fn short(value: &Value) -> String {
    let text = match value {
        Value::Null => "not given".into(),
        other => other.to_string(),
    };
    match text.char_indices().nth(100) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The receipts of several slices as those of one run: rows add up, and norms are means over all rows.
pub fn merge_receipts(slices: &[&[Value]]) -> Vec<Value> {
    let Some(first) = slices.first() else {
        return Vec::new();
    };
    let merged = |(edit, first): (usize, &Value)| {
        let of = |key: &'static str| {
            let number = move |s: &&[Value]| s.get(edit)?.get(key)?.as_f64();
            slices.iter().map(number)
        };
        let rows = || of("rows").map(|rows| rows.unwrap_or(0.0));
        let total: f64 = rows().sum();
        let mean = |key: &'static str| {
            let weighted = of(key).zip(rows()).map(|(m, rows)| m.unwrap_or(0.0) * rows);
            weighted.sum::<f64>() / total.max(1.0)
        };
        let mut receipt = first.clone();
        receipt["rows"] = json!(total as u64);
        for key in ["mean_norm_before", "mean_norm_after"] {
            receipt[key] = json!(mean(key));
        }
        receipt
    };
    first.iter().enumerate().map(merged).collect()
}

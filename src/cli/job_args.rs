//! The flags that `extract` and `plan` share, and the job they make.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::edit_args::EditArgs;
use super::format::parse_bytes;
use super::model_args::ModelArgs;
use super::statistics::StatArg;
use super::{Failure, Usage};
use crate::data::Fraction;
use crate::engine::{InputKind, Job, OnLong, Place, Prepared};
use crate::hooks::{Reduction, TapSpec};
use crate::store::StoreDtype;

/// What to run, over what, and what to keep.
#[derive(Debug, Clone, Args)]
pub struct JobArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Dataset: .jsonl, .json, .csv, .tsv, .txt (a line a sample), .parquet, a directory or glob of these, or `-` for
    /// JSONL on stdin. May be given several times.
    #[arg(long, value_name = "F", required = true, num_args = 1..)]
    pub data: Vec<String>,
    /// What to read: PATTERN[@SELECTION][|REDUCTION], as in 'blocks.*.hook_resid_post@last', 'blocks.{0,5}.attn.hook_z[8,24]',
    /// 'logits@last|logprob:20'. May be given several times.
    #[arg(long, value_name = "P", required = true, num_args = 1..)]
    pub tap: Vec<String>,
    /// Where the store goes: a directory that is empty or not there.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Rows of taps that name no selection: all, first, last, -1, -5..-1, no-bos, role:assistant, turn:-1, span:NAME, every:8,
    /// sample:32#SEED, or 'A & B'.
    #[arg(
        long,
        value_name = "SELECTION",
        default_value = "all",
        allow_hyphen_values = true
    )]
    pub select: String,
    /// Experimental, on an H100 in bf16 or f16: the MLP's gate and up with their activation in one kernel. It was proven on the
    /// PTX interpreter; no GPU has run it, and nobody has timed it.
    #[arg(long, hide = true)]
    pub fused_swiglu: bool,
    /// Dtype of stored rows; `same` is the compute dtype. (hook_scale is always f32.)
    ///
    /// fp8-e4m3 and int8 take a byte a number: a scale for each row, or for each 64 numbers of it, and the 8 largest numbers of a row
    /// kept apart as bf16. Every reader reads them back; what that costs is measured as rows are written, and inspect tells it.
    /// Not for attention scores and patterns.
    #[arg(long, value_enum, default_value = "same")]
    pub store_dtype: StoreDtypeArg,
    /// Field that holds the text. Where no field is named, a record's input is the first of `text`, `tokens` and `messages` that it
    /// has; `tokens` come before `text` if the model has no tokenizer.
    #[arg(long, value_name = "FIELD", group = "input")]
    pub text_field: Option<String>,
    /// Field that holds token ids; no tokenizer is needed then.
    #[arg(long, value_name = "FIELD", group = "input")]
    pub tokens_field: Option<String>,
    /// Field that holds chat messages, a list of {"role", "content"}.
    #[arg(long, value_name = "FIELD", group = "input")]
    pub messages_field: Option<String>,
    /// Fields that the samples table carries along, as in --keep label,id.
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',')]
    pub keep: Vec<String>,
    /// Wrap plain text as one turn of this role, by the model's chat template.
    #[arg(long, value_name = "ROLE", num_args = 0..=1, default_missing_value = "user")]
    pub chat: Option<String>,
    /// End chats with the header of the assistant's turn.
    #[arg(long)]
    pub add_generation_prompt: bool,
    /// Most tokens of a sample [default: the model's positions].
    #[arg(long, value_name = "N", value_parser = at_least_one::<usize>)]
    pub max_length: Option<usize>,
    /// What to do with a longer one: stop, keep its first tokens, or cut it into pieces [default: error].
    #[arg(long, value_enum)]
    pub on_long: Option<OnLongArg>,
    /// Tokens that a chunk repeats of the one before it, for context, under --on-long chunk.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub chunk_overlap: usize,
    /// Join the records end to end, in the order they are read in and each ended by the tokenizer's EOS, and cut them into contexts of N
    /// tokens: those are the samples. Attention does not stop where a record ends. The samples table tells which tokens are whose.
    #[arg(long, value_name = "N", value_parser = at_least_one::<usize>)]
    pub pack_context: Option<usize>,
    /// Don't let the tokenizer add BOS to plain text (a chat template writes its own).
    #[arg(long)]
    pub no_special_tokens: bool,
    /// Pass over bad records, and report how many and why.
    #[arg(long)]
    pub skip_bad: bool,
    /// Read the first N records only.
    #[arg(long, value_name = "N", value_parser = at_least_one::<u64>)]
    pub limit: Option<u64>,
    /// Of these, take about the share F, drawn at random by SEED (0 if none is given), as in 0.1#7.
    #[arg(long, value_name = "F[#SEED]")]
    pub sample_fraction: Option<Fraction>,
    /// Read them in random order, and name the rows of each shard in a random order too (`order` in its files). A sample keeps the number
    /// of its place in the dataset.
    #[arg(long, value_name = "SEED")]
    pub shuffle: Option<u64>,
    /// Bytes of a shard, summed over taps.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = parse_bytes)]
    pub shard_size: u64,
    /// Most tokens of a batch; a longer sample makes one of its own. Changes speed and memory, never a bit of the result
    /// [default: 4096 on the CPU, 8192 on a GPU].
    #[arg(long, value_name = "N", value_parser = at_least_one::<usize>)]
    pub batch_tokens: Option<usize>,
    /// Go on with the store that a stopped run left in --out: the same command with --resume. Begins one if there is none, and
    /// rechecks one that is complete.
    #[arg(long)]
    pub resume: bool,
    /// Keep statistics of each tap's rows instead of the rows, summed while they pass by: mean; cov (the second moment, which has the
    /// mean too); pairdiff (both of the differences within pairs). `analyze pca`, `lat`, `mean-diff` and `probe --ridge` read them.
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    pub stats: Vec<StatArg>,
    /// Field by whose values --stats sums apart, and that tells the two samples of a pair apart (0 or 1, true or false).
    #[arg(long, value_name = "FIELD", requires = "stats")]
    pub label: Option<String>,
    /// Field that the two samples of a pair share, for --stats pairdiff [default: pair].
    #[arg(long, value_name = "FIELD", requires = "stats")]
    pub pair: Option<String>,
    #[command(flatten)]
    pub edits: EditArgs,
    /// Extract the i-th of n slices of the dataset, counted from 0; `merge` joins their stores. `auto` takes both from
    /// SLURM_PROCID and SLURM_NTASKS or RANK and WORLD_SIZE, `auto/n` the i also from JOB_COMPLETION_INDEX.
    #[arg(long, value_name = "i/n")]
    pub shard: Option<String>,
}

/// A number of things of which none would mean no run at all.
pub(super) fn at_least_one<N: std::str::FromStr + PartialEq + Default>(
    text: &str,
) -> Result<N, String> {
    match text.parse() {
        Ok(n) if n != N::default() => Ok(n),
        _ if text.len() > 18 && text.bytes().all(|b| b.is_ascii_digit()) => {
            Err("that is more than there can be; write a smaller number".into())
        }
        _ => Err("write a whole number of at least 1".into()),
    }
}

/// The tap with the path of its directions made absolute, so that the store's job runs from anywhere.
pub(super) fn with_absolute_path(tap: &str) -> String {
    let Ok(mut spec) = TapSpec::parse(tap) else {
        return tap.to_owned(); // it is refused where its errors are told
    };
    match &mut spec.reduction {
        Reduction::Dot { file, .. } => {
            *file = std::path::absolute(&*file).unwrap_or_else(|_| file.clone());
            spec.to_string()
        }
        _ => tap.to_owned(),
    }
}

/// The nearest directory above a store that is there, or is to be.
fn beside(store: &Path) -> PathBuf {
    let above = std::path::absolute(store).unwrap_or_else(|_| store.to_owned());
    let there = above.ancestors().skip(1).find(|dir| dir.is_dir());
    there.map_or_else(std::env::temp_dir, Path::to_owned)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreDtypeArg {
    Same,
    F32,
    Bf16,
    F16,
    Fp8E4m3,
    Int8,
}

impl From<StoreDtypeArg> for Option<StoreDtype> {
    fn from(arg: StoreDtypeArg) -> Self {
        match arg {
            StoreDtypeArg::Same => None,
            StoreDtypeArg::F32 => Some(StoreDtype::F32),
            StoreDtypeArg::Bf16 => Some(StoreDtype::BF16),
            StoreDtypeArg::F16 => Some(StoreDtype::F16),
            StoreDtypeArg::Fp8E4m3 => Some(StoreDtype::F8E4M3),
            StoreDtypeArg::Int8 => Some(StoreDtype::Int8),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnLongArg {
    Error,
    Truncate,
    Chunk,
}

impl JobArgs {
    /// The job that these flags ask for, opened, and where it runs.
    ///
    /// # Errors
    /// As [`Prepared::open`]; a flag whose work this version or that device cannot do, by name; edits that are badly written.
    pub fn open(&self) -> Result<(Prepared, Place), Failure> {
        let model = ModelArgs {
            fused_swiglu: self.fused_swiglu,
            ..self.model.clone()
        };
        let (mut job, model, place) = model.settle(self.job()?)?;
        job.batch_tokens = self.batch_tokens.unwrap_or(place.batch_tokens());
        Ok((Prepared::with_model(job, model)?, place))
    }

    /// What the flags say of it that hangs on no device.
    fn job(&self) -> Result<Job, Failure> {
        self.refuse_reading_twice()?;
        self.refuse_what_would_be_ignored()?;
        self.refuse_with_stats()?;
        let field = |kind, name: &Option<String>| name.clone().map(|name| (kind, name));
        Ok(Job {
            store_dtype: self.store_dtype.into(),
            select: self.select.clone(),
            edits: self.edits.read()?,
            tap_before_edits: self.edits.tap_before_edits,
            input_field: field(InputKind::Text, &self.text_field)
                .or_else(|| field(InputKind::Tokens, &self.tokens_field))
                .or_else(|| field(InputKind::Messages, &self.messages_field)),
            keep: self.kept(),
            chat: self.chat.clone(),
            add_generation_prompt: self.add_generation_prompt,
            special_tokens: !self.no_special_tokens,
            max_length: self.max_length,
            on_long: match self.on_long.unwrap_or(OnLongArg::Error) {
                OnLongArg::Error => OnLong::Error,
                OnLongArg::Truncate => OnLong::Truncate,
                OnLongArg::Chunk => OnLong::Chunk,
            },
            chunk_overlap: self.chunk_overlap,
            pack_context: self.pack_context,
            skip_bad: self.skip_bad,
            limit: self.limit,
            sample_fraction: self.sample_fraction,
            shuffle: self.shuffle,
            scratch: self.out.as_deref().map(beside),
            shard: super::rank::slice(self.shard.as_deref())?,
            shard_bytes: self.shard_size,
            ..Job::new(
                self.model.model.clone(),
                self.data.clone(),
                self.tap.iter().map(|tap| with_absolute_path(tap)).collect(),
            )
        })
    }

    fn refuse_reading_twice(&self) -> Result<(), Usage> {
        for (asked, flag) in [(self.resume, "--resume"), (self.shard.is_some(), "--shard")] {
            if asked && self.data.iter().any(|data| data == "-") {
                return Err(Usage(format!(
                    "{flag} with --data -: standard input can be read only once; write it to a file first"
                )));
            }
        }
        Ok(())
    }

    /// Flags that others leave without effect.
    fn refuse_what_would_be_ignored(&self) -> Result<(), Usage> {
        let ignored = [
            (
                self.chunk_overlap > 0 && self.on_long != Some(OnLongArg::Chunk),
                "--chunk-overlap without --on-long chunk: nothing is cut into chunks",
            ),
            (
                self.pack_context.is_some() && self.on_long.is_some(),
                "--on-long with --pack-context: documents of any length are packed",
            ),
            (
                self.chat.is_some() && self.tokens_field.is_some(),
                "--chat with --tokens-field: only text is wrapped in a turn",
            ),
            (
                self.chat.is_some() && self.messages_field.is_some(),
                "--chat with --messages-field: only text is wrapped in a turn, and messages have theirs",
            ),
            (
                self.add_generation_prompt && self.tokens_field.is_some(),
                "--add-generation-prompt with --tokens-field: only chats end with that prompt",
            ),
            (
                self.add_generation_prompt && self.text_field.is_some() && self.chat.is_none(),
                "--add-generation-prompt with --text-field: only chats end with that prompt; add --chat",
            ),
        ];
        for (asked, what) in ignored {
            if asked {
                return Err(Usage(what.into()));
            }
        }
        Ok(())
    }
}

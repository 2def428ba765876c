//! The dishonesty study of Golechha and Dao (arXiv 2402.03855) and what it lacks: one [`Study`] holds the inputs and the machine, one file per
//! experiment makes a [`Finding`], [`run`] makes those that are not there yet. What is studied is data ([`Behaviour`], facts, prompts).
//! `passes` runs the model, `cuts` makes the prompts of the direction, `folder` keeps what is done.

mod answers;
mod attribution;
mod behaviour;
mod blocks;
mod coloured;
mod controls;
mod cuts;
mod direction;
mod effect;
mod error;
mod estimate;
mod facts;
mod folder;
mod generation;
mod grid;
mod heading;
mod heads;
mod injection;
mod inputs;
mod lens;
mod mass_mean;
mod pairs;
mod passes;
mod patched;
mod positions;
mod prompts;
mod push;
mod sets;
mod side_effects;
mod simpler;
mod statements;
mod statistics;
mod strength;
mod sweeping;
mod tell;
mod truth;
mod unembed;
mod words;

use std::cell::{OnceCell, RefCell, RefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::analysis::Bootstrap;
use crate::engine::sweep::SweepProgress;
use crate::engine::{Engine, Job, Prepared, Sample};
use crate::hooks::Dims;
use crate::model::{ChatTemplate, Tokenizer};
use crate::report::finding::{Finding, Published};

pub use answers::AnswerTokens;
pub use behaviour::{Behaviour, PublishedStudy};
pub use direction::Directions;
pub use error::{Error, Result};
pub use facts::{Duplicates, Fact, Facts};
pub use generation::Generations;
pub use inputs::Inputs;
pub use passes::{LastRows, Steer, point};
pub use prompts::{Answer, Half, Kind, Prompt, Prompts};
pub use strength::{Choice, Tried};
pub use words::Words;

use statistics::{mean_interval, median};

/// An experiment of the study.
pub struct Experiment {
    pub id: &'static str,
    pub title: &'static str,
    /// Whether it is one of the publication's, or what is added to these.
    pub is_published: bool,
    run: Run,
}

type Run = fn(&Study<'_>) -> Result<Finding>;

/// All of them, in the order they run.
pub const EXPERIMENTS: &[Experiment] = &[
    published("E1", "A direction per layer", direction::run),
    published("E2", "Steered generation", generation::run),
    published("E3", "The direction, unembedded", unembed::run),
    published("E4", "Is continual injection needed?", injection::run),
    published("E5", "Which injected positions matter", positions::run),
    published("E6", "Logit lens and direct logit attribution", lens::run),
    published("E7", "Patching one block", blocks::run),
    published("E8", "Patching one head", heads::run),
    published("E9", "Patching pairs and sets of blocks", pairs::run),
    published("E10", "Patching layer × position", grid::run),
    published(
        "E11",
        "The direction and the truth of plain statements",
        truth::run,
    ),
    published("E12", "Truth by mass mean", mass_mean::run),
    added("C1", "Directions that should not matter", controls::run),
    added("C2", "Side effects of steering", side_effects::run),
];

const fn published(id: &'static str, title: &'static str, run: Run) -> Experiment {
    Experiment {
        id,
        title,
        is_published: true,
        run,
    }
}

const fn added(id: &'static str, title: &'static str, run: Run) -> Experiment {
    Experiment {
        is_published: false,
        ..published(id, title, run)
    }
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The study's folder.
    pub out: PathBuf,
    /// `None`: dishonesty.
    pub behaviour: Option<PathBuf>,
    /// `None`: the project's own.
    pub facts: Option<PathBuf>,
    /// Statements that are there twice count each.
    pub keep_duplicates: bool,
    /// `None`: the behaviour's.
    pub prompts: Option<PathBuf>,
    /// Ids; empty: all.
    pub experiments: Vec<String>,
    /// Fewer prompts, pairs and controls: a look, no result.
    pub quick: bool,
    /// The costliest sweep over all prompts instead of two.
    pub all_prompts: bool,
    /// Of intervals, random directions and shuffles.
    pub seed: u64,
    /// Bytes for the residual streams of patched runs.
    pub memory: u64,
    /// The command line, for the report.
    pub command: Vec<String>,
}

/// A study under way. `'p`: as long as its model is open.
pub struct Study<'p> {
    watch: Box<dyn Fn(&SweepProgress) + 'p>,
    prepared: &'p Prepared,
    machine: RefCell<Box<dyn Engine + 'p>>,
    inputs: Inputs,
    directions: OnceCell<Directions>,
    choice: OnceCell<Choice>,
    generations: OnceCell<Generations>,
}

/// A prompt and what the model sees of it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'s> {
    pub prompt: &'s Prompt,
    /// Rendered by the model's template, with the generation prompt.
    pub sample: &'s Sample,
}

/// What a study tells while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// An earlier run had done it.
    Found(&'static str),
    Begun(&'static str, &'static str),
    Done(&'static str, f64),
}

impl Options {
    /// The study as it is by default, into `out`.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Options {
            out: out.into(),
            behaviour: None,
            facts: None,
            keep_duplicates: false,
            prompts: None,
            experiments: Vec::new(),
            quick: false,
            all_prompts: false,
            seed: 0,
            memory: 1 << 30,
            command: Vec::new(),
        }
    }

    /// The experiments asked for, in the order they run.
    ///
    /// # Errors
    /// An id that is none.
    pub fn experiments(&self) -> Result<Vec<&'static Experiment>> {
        let is = |experiment: &Experiment, id: &str| experiment.id.eq_ignore_ascii_case(id);
        for found in &self.experiments {
            if !EXPERIMENTS.iter().any(|e| is(e, found)) {
                let ids: Vec<&str> = EXPERIMENTS.iter().map(|e| e.id).collect();
                return Err(Error::NoSuchExperiment {
                    found: found.clone(),
                    there_are: ids.join(", "),
                }
                .into());
            }
        }
        let asked = |e: &&Experiment| {
            self.experiments.is_empty() || self.experiments.iter().any(|id| is(e, id))
        };
        Ok(EXPERIMENTS.iter().filter(asked).collect())
    }
}

impl<'p> Study<'p> {
    /// A study of these inputs, on a machine that holds the model of `prepared`.
    pub fn new(prepared: &'p Prepared, inputs: Inputs, machine: Box<dyn Engine + 'p>) -> Self {
        Study {
            watch: Box::new(|_| ()),
            prepared,
            machine: RefCell::new(machine),
            inputs,
            directions: OnceCell::new(),
            choice: OnceCell::new(),
            generations: OnceCell::new(),
        }
    }

    /// The same, which tells how far its sweeps are: an experiment may take hours.
    pub fn watched(self, watch: impl Fn(&SweepProgress) + 'p) -> Self {
        Study {
            watch: Box::new(watch),
            ..self
        }
    }

    /// What is asked for.
    pub fn options(&self) -> &Options {
        &self.inputs.options
    }

    /// What is studied.
    pub fn behaviour(&self) -> &Behaviour {
        &self.inputs.behaviour
    }

    /// What the report calls answers.
    pub fn words(&self) -> &Arc<Words> {
        &self.inputs.words
    }

    /// The statements.
    pub fn facts(&self) -> &Facts {
        &self.inputs.facts
    }

    /// Where the prompts are from.
    pub fn prompts_file(&self) -> &str {
        &self.inputs.prompts.file
    }

    /// The prompts of a half, or all.
    pub fn prompts(&self, half: Option<Half>) -> Vec<Asked<'_>> {
        let all = self.inputs.prompts.prompts.iter().zip(&self.inputs.samples);
        all.map(|(prompt, sample)| Asked { prompt, sample })
            .filter(|asked| half.is_none_or(|half| asked.prompt.half == half))
            .collect()
    }

    /// The job of plain runs, opened for generation.
    pub fn prepared(&self) -> &'p Prepared {
        self.prepared
    }

    /// The machine, which holds the model of plain and edited runs alike. One borrower at a time.
    pub fn machine(&self) -> RefMut<'_, Box<dyn Engine + 'p>> {
        self.machine.borrow_mut()
    }

    /// The model's sizes.
    pub fn dims(&self) -> &Dims {
        &self.prepared.dims
    }

    /// Blocks of the model.
    pub fn n_layers(&self) -> usize {
        self.prepared.dims.n_layers
    }

    /// Tokens of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.prepared.dims.vocab
    }

    /// The model's tokenizer.
    ///
    /// # Errors
    /// It has none.
    pub fn tokenizer(&self) -> Result<&'p Tokenizer> {
        let tokenizer = self.prepared.tokenising.tokenizer.as_ref();
        tokenizer.ok_or_else(|| inputs::lacks(self.prepared, "tokenizer"))
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// It has none.
    pub fn template(&self) -> Result<&'p ChatTemplate> {
        let template = self.prepared.tokenising.template.as_ref();
        template.ok_or_else(|| inputs::lacks(self.prepared, "chat template"))
    }

    /// The directions of E1, made when first asked for and kept in the folder.
    ///
    /// # Errors
    /// As of the experiment.
    pub fn directions(&self) -> Result<&Directions> {
        match self.directions.get() {
            Some(directions) => Ok(directions),
            None => {
                let made = Directions::of(self)?;
                Ok(self.directions.get_or_init(|| made))
            }
        }
    }

    /// The edit of the study, chosen when first asked for and kept in the folder.
    ///
    /// # Errors
    /// What a backend can fail at; as of [`directions`](Self::directions).
    pub fn choice(&self) -> Result<&Choice> {
        match self.choice.get() {
            Some(choice) => Ok(choice),
            None => {
                let made = folder::choice(self)?;
                Ok(self.choice.get_or_init(|| made))
            }
        }
    }

    /// The answers to all prompts, made when first asked for.
    ///
    /// # Errors
    /// What a backend can fail at; as of [`choice`](Self::choice).
    pub fn generations(&self) -> Result<&Generations> {
        match self.generations.get() {
            Some(generations) => Ok(generations),
            None => {
                let made = Generations::make(self)?;
                Ok(self.generations.get_or_init(|| made))
            }
        }
    }

    /// The edit as `--edit` takes it.
    ///
    /// # Errors
    /// As of [`choice`](Self::choice).
    pub fn edit(&self) -> Result<String> {
        let Choice { layer, c, .. } = self.choice()?;
        let file = folder::absolute(&self.directions()?.file);
        // Quoted as a shell would want it: a folder's name may hold spaces.
        let v = format!("{}#direction.{layer}", file.display()).replace('\'', "'\\''");
        let c = *c as f32;
        Ok(format!(
            "add at=blocks.{layer}.hook_resid_post v='{v}' c={c}"
        ))
    }

    /// The job of plain runs.
    pub fn plain_job(&self) -> Job {
        self.prepared.job.clone()
    }

    /// The job of edited runs.
    ///
    /// # Errors
    /// As of [`choice`](Self::choice).
    pub fn edited_job(&self) -> Result<Job> {
        Ok(Job {
            edits: vec![self.edit()?],
            ..self.plain_job()
        })
    }

    /// The job of edited runs, opened for generation; its model is opened anew, and [`machine`](Self::machine) runs it all the same.
    ///
    /// # Errors
    /// As of [`choice`](Self::choice).
    pub fn edited(&self) -> Result<Prepared> {
        let model = crate::model::Model::open(&self.prepared.model.dir)?;
        Prepared::for_generation_with(self.edited_job()?, model)
    }

    /// The edit as [`rows`](Self::rows) takes it.
    ///
    /// # Errors
    /// As of [`choice`](Self::choice).
    pub fn steer(&self) -> Result<Steer<'_>> {
        let choice = self.choice()?;
        Ok(Steer {
            layer: choice.layer,
            direction: self.directions()?.layer(choice.layer),
            c: choice.c as f32,
        })
    }

    /// What was published of the study, where the model is the published one.
    pub fn published_study(&self) -> Option<&PublishedStudy> {
        let prepared = self.prepared;
        self.behaviour()
            .published_of(&prepared.model, &prepared.job.model)
    }

    /// The value published under a key, where the model is the published one.
    pub fn published(&self, key: &str) -> Option<Published> {
        self.published_study()?.values.get(key).cloned()
    }

    /// How intervals are drawn: BCa, 10,000 resamples, the study's seed.
    pub fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            resamples: if self.options().quick { 1_000 } else { 10_000 },
            seed: self.options().seed,
            ..Bootstrap::default()
        }
    }

    /// The 95 % interval of the mean of the prompts' (or the groups') values; `None` of fewer than two.
    pub fn mean_interval(&self, values: &[f64]) -> Option<[f64; 2]> {
        mean_interval(&self.bootstrap(), values)
    }

    /// A file or folder of the study.
    pub fn path(&self, name: &str) -> PathBuf {
        self.options().out.join(name)
    }

    /// The tokens of the two answers.
    pub fn answers(&self) -> &AnswerTokens {
        &self.inputs.answers
    }

    /// P(No) − P(Yes) of a row of logits: what a "say No" direction would raise.
    pub fn no_less_yes(&self, logits: &[f32]) -> f64 {
        let answers = self.answers();
        let all = crate::engine::log_sum_exp(logits);
        let p = |ids: &[u32]| -> f64 {
            let of = |&id: &u32| (f64::from(logits[id as usize]) - all).exp();
            ids.iter().map(of).sum()
        };
        p(&answers.no) - p(&answers.yes)
    }
}

impl Asked<'_> {
    /// Its token ids.
    pub fn tokens(&self) -> &[u32] {
        &self.sample.row.tokens
    }
}

/// Makes the findings that the folder lacks, one after another, and returns all that were asked for; `tell` hears of each.
///
/// # Errors
/// A folder that holds something else, or a study of other inputs; what an experiment fails at, those before it kept.
pub fn run(study: &Study<'_>, tell: &mut dyn FnMut(Event)) -> Result<Vec<Finding>> {
    let asked = study.options().experiments()?;
    folder::begin(study)?;
    let mut findings = Vec::new();
    for experiment in asked {
        if let Some(finding) = folder::finding(study, experiment.id)? {
            tell(Event::Found(experiment.id));
            findings.push(finding);
            continue;
        }
        tell(Event::Begun(experiment.id, experiment.title));
        let start = Instant::now();
        let mut finding = (experiment.run)(study)?;
        finding.id = experiment.id.into();
        finding.title = experiment.title.into();
        finding.command = folder::command(study, experiment.id);
        folder::name_sources(study, &mut finding);
        if study.options().quick {
            finding.answer.push(QUICK.into());
        }
        finding.seconds = start.elapsed().as_secs_f64();
        folder::keep(study, &finding)?;
        tell(Event::Done(experiment.id, finding.seconds));
        findings.push(finding);
    }
    heading::page(study)?;
    Ok(findings)
}

const QUICK: &str = "This was a quick run (--quick): few prompts, pairs and controls. It shows that everything works; its numbers are no result.";

/// A finding to be filled in; who runs the experiment adds what it is called and where it is from.
fn finding(question: impl Into<String>) -> Finding {
    Finding {
        id: String::new(),
        title: String::new(),
        question: question.into(),
        answer: Vec::new(),
        numbers: Vec::new(),
        exhibits: Vec::new(),
        command: String::new(),
        manifests: Vec::new(),
        seconds: 0.0,
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).map_err(|source| {
        Error::Read {
            path: file.to_owned(),
            source,
        }
        .into()
    })
}

/// xxh3-128, in hex.
fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes))
}

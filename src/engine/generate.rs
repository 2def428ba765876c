//! Generation: prompts run through the model once, then a token per sequence and step, over cached keys and values.
//!
//! Both are the same `forward`; only attention differs. Prompts are packed without padding, and so are the new tokens of a step;
//! every row is computed alike whatever shares its batch, so prompts of any lengths together give what each gives alone, bit
//! for bit. Selections of taps and edits are asked anew at each step, of the tokens that are there by then.

use std::sync::Arc;

use rayon::prelude::*;

use super::choose::Choosing;
use super::edits::{EditReceipt, OpenEdit};
use super::selected::{BatchRows, Part, SelectedSample};
use super::{Decoder, Error, Prepared, Result, Sample};
use crate::backend::{Batch, Receipt, Sink, SinkSpec};
use crate::hooks::{ChangeSpec, Reduction, SampleView, Selection, SplitMix64, Tap};
use crate::model::Message;

/// When a sequence ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stops {
    /// After this many new tokens.
    pub max_new_tokens: usize,
    /// After any of these, which are kept: the checkpoint's end-of-sequence tokens.
    pub tokens: Vec<u32>,
    /// After this one too, where the prompt is a chat: what its template writes after what the assistant says.
    pub end_of_turn: Option<u32>,
}

impl Stops {
    /// The model's own.
    pub fn of(prepared: &Prepared, max_new_tokens: usize) -> Self {
        Stops {
            max_new_tokens,
            tokens: prepared.model.config.eos_token_ids.clone(),
            end_of_turn: end_of_turn(prepared),
        }
    }

    fn is_end(&self, token: u32, is_chat: bool) -> bool {
        self.tokens.contains(&token) || (is_chat && self.end_of_turn == Some(token))
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// A stop token came.
    Eos,
    /// As many tokens as asked for, or all of the model's positions.
    Length,
}

/// A prompt and what follows it.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The prompt's tokens, then the new ones.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// The model's log-probability of each new token: of its logits as they are (edits included), at temperature 1 and without a
    /// repetition penalty.
    pub logprobs: Vec<f32>,
    pub stop: Stop,
    /// Per tap its rows, of the prompt and of every new token but the last, which is not put through the model.
    pub(super) taps: Vec<TappedRows>,
}

/// Rows of one tap, as the store keeps them.
#[derive(Debug, Clone, Default)]
pub(super) struct TappedRows {
    pub positions: Vec<u32>,
    pub activations: Vec<u8>,
    pub index: Vec<u8>,
}

impl Generated {
    /// The new tokens.
    pub fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }
}

/// A token as it comes.
#[derive(Debug, Clone, Copy)]
pub struct NewToken {
    /// Whose it is: the prompt's place among those that were given.
    pub prompt: usize,
    pub token: u32,
    /// Whether every edit has touched a row by now.
    pub all_edits_touched: bool,
}

/// Generates with one model and one set of taps and edits.
pub struct Generator<'p> {
    pub(super) prepared: &'p Prepared,
    pub(super) machine: Box<dyn Decoder + 'p>,
    pub(super) choosing: Choosing,
    pub(super) stops: Stops,
    pub(super) receipts: Vec<Receipt>,
}

/// A sequence under way.
struct Sequence<'s> {
    sample: &'s Sample,
    tokens: Vec<u32>,
    /// Tokens that went through the model.
    seen: usize,
    random: SplitMix64,
    logprobs: Vec<f32>,
    stop: Option<Stop>,
    taps: Vec<TappedRows>,
}

impl Sequence<'_> {
    /// The positions that go through the model next.
    fn next(&self) -> std::ops::Range<u32> {
        self.seen as u32..self.tokens.len() as u32
    }

    fn view(&self) -> SampleView<'_> {
        SampleView {
            n_tokens: self.tokens.len(),
            prompt_len: Some(self.sample.row.tokens.len()),
            ..self.sample.view()
        }
    }
}

impl<'p> Generator<'p> {
    /// For a job that was opened for generation, on the CPU.
    ///
    /// # Errors
    /// Numbers that make no sense.
    pub fn new(prepared: &'p Prepared, choosing: Choosing, stops: Stops) -> Result<Self> {
        Self::on(Box::new(prepared.cpu()), prepared, choosing, stops)
    }

    /// As [`Generator::new`], on a machine that holds the job's model.
    ///
    /// # Errors
    /// As there; a machine that keeps no sequences.
    pub fn on(
        machine: Box<dyn Decoder + 'p>,
        prepared: &'p Prepared,
        choosing: Choosing,
        stops: Stops,
    ) -> Result<Self> {
        let refuse = |flag, why| Err(Error::Number { flag, why }.into());
        if !choosing.temperature.is_finite() || choosing.temperature < 0.0 {
            return refuse("temperature", "must be 0 (greedy) or above");
        }
        if !(choosing.top_p > 0.0 && choosing.top_p <= 1.0) {
            return refuse("top-p", "must be above 0 and at most 1");
        }
        if !choosing.repetition_penalty.is_finite() || choosing.repetition_penalty <= 0.0 {
            return refuse("repetition-penalty", "must be above 0 (1 is none)");
        }
        if stops.max_new_tokens == 0 {
            return Err(Error::Zero {
                flag: "max-new-tokens",
            }
            .into());
        }
        if machine.most_sequences() == Some(0) {
            return Err(Error::NotYet {
                what: "generating on a device that was opened without room for sequences".into(),
                instead: ": plan for some when it is opened".into(),
            }
            .into());
        }
        Ok(Generator {
            machine,
            receipts: vec![Receipt::default(); prepared.edits.len()],
            prepared,
            choosing,
            stops,
        })
    }

    /// Continues prompts, as many at a time as the machine keeps; `heard` is told each new token as it comes.
    ///
    /// # Errors
    /// A prompt that fills all of the model's positions, a selection that a prompt cannot answer, a replacement that is not there,
    /// logits that are not finite.
    pub fn generate(
        &mut self,
        prompts: &[Sample],
        heard: &mut dyn FnMut(NewToken),
    ) -> Result<Vec<Generated>> {
        let at_once = self.machine.most_sequences().unwrap_or(prompts.len());
        let mut done = Vec::with_capacity(prompts.len());
        for (group, prompts) in prompts.chunks(at_once.max(1)).enumerate() {
            let first = group * at_once;
            let mut heard = |new: NewToken| {
                heard(NewToken {
                    prompt: first + new.prompt,
                    ..new
                });
            };
            done.extend(self.together(prompts, &mut heard)?);
        }
        Ok(done)
    }

    /// Continues prompts, all at a time.
    fn together(
        &mut self,
        prompts: &[Sample],
        heard: &mut dyn FnMut(NewToken),
    ) -> Result<Vec<Generated>> {
        let mut sequences = self.begin(prompts)?;
        self.machine.start(sequences.len());
        let mut first = 0;
        while first < sequences.len() {
            let batch = self.prompts_of_a_batch(&sequences[first..]);
            self.step(first, &mut sequences[first..first + batch], heard)?;
            first += batch;
        }
        while sequences.iter().any(|s| s.stop.is_none()) {
            self.step(0, &mut sequences, heard)?;
        }
        Ok(sequences.into_iter().map(Sequence::finish).collect())
    }

    /// What each edit has done so far.
    pub fn receipts(&self) -> Vec<EditReceipt> {
        self.prepared.receipts(&self.receipts)
    }

    /// An edit that touched nothing is a mistake.
    ///
    /// # Errors
    /// There is one; `samples` were generated from.
    pub fn check_edits(&self, samples: u64) -> Result<()> {
        self.prepared.check_touched(&self.receipts, samples)
    }

    fn begin<'s>(&self, prompts: &'s [Sample]) -> Result<Vec<Sequence<'s>>> {
        let config = &self.prepared.model.config;
        let begin = |sample: &'s Sample| {
            let tokens = sample.row.tokens.len();
            if tokens >= config.max_position_embeddings {
                return Err(Error::NoRoom {
                    place: format!("{}:{}", sample.row.file, sample.row.line),
                    tokens,
                }
                .into());
            }
            Ok(Sequence {
                sample,
                tokens: sample.row.tokens.clone(),
                seen: 0,
                random: self.choosing.random(sample.row.sample),
                logprobs: Vec::new(),
                stop: None,
                taps: vec![TappedRows::default(); self.prepared.taps.len()],
            })
        };
        prompts.iter().map(begin).collect()
    }

    /// How many of the prompts fit a batch.
    fn prompts_of_a_batch(&self, prompts: &[Sequence<'_>]) -> usize {
        let mut tokens = 0;
        let fits = |s: &&Sequence<'_>| {
            tokens += s.tokens.len();
            tokens <= self.prepared.job.batch_tokens
        };
        prompts.iter().take_while(fits).count().max(1)
    }

    /// Puts what is new of the sequences through the model, and chooses their next tokens. `first`: the first one's number.
    fn step(
        &mut self,
        first: usize,
        sequences: &mut [Sequence<'_>],
        heard: &mut dyn FnMut(NewToken),
    ) -> Result<()> {
        let mut active: Vec<(usize, &mut Sequence<'_>)> = (first..)
            .zip(sequences)
            .filter(|(_, s)| s.stop.is_none())
            .collect();
        let logits = self.run(&mut active)?;
        let vocab = self.prepared.dims.vocab;
        let (choosing, stops) = (&self.choosing, &self.stops);
        let positions = self.prepared.model.config.max_position_embeddings;
        active
            .par_iter_mut()
            .zip(logits.par_chunks(vocab))
            .try_for_each(|((_, s), logits)| s.choose(logits, choosing, stops, positions))?;
        let all_edits_touched = self.receipts.iter().all(|receipt| receipt.rows > 0);
        for (prompt, s) in active {
            heard(NewToken {
                prompt,
                token: s.tokens[s.tokens.len() - 1],
                all_edits_touched,
            });
        }
        Ok(())
    }

    /// Runs one batch; returns the logits of each sequence's last token, `[sequences, V]`.
    fn run(&mut self, active: &mut [(usize, &mut Sequence<'_>)]) -> Result<Vec<f32>> {
        let prepared = self.prepared;
        let selected = active
            .iter()
            .map(|(_, s)| prepared.select_view(&s.view()))
            .collect::<Result<Vec<SelectedSample>>>()?;
        let parts: Vec<Part<'_>> = active
            .iter()
            .zip(&selected)
            .map(|((_, s), selected)| Part {
                sample: s.sample.row.sample,
                selected,
                positions: s.next(),
            })
            .collect();
        for ((_, s), part) in active.iter().zip(&parts) {
            prepared.check_replacements(s.sample, part)?;
        }
        let batch = batch(active.iter().map(|(_, s)| &**s));
        let mut logits = vec![0.0_f32; active.len() * prepared.dims.vocab];
        let mut memory: Vec<(BatchRows, Vec<u8>, Vec<u8>)> = (0..prepared.taps.len())
            .map(|tap| {
                let rows = prepared.tapped(&parts, tap);
                let (row, index) = prepared.row_bytes(tap);
                let n = rows.rows.len();
                (rows, vec![0; n * row], vec![0; n * index])
            })
            .collect();
        let mut sinks: Vec<Sink<'_>> = memory
            .iter_mut()
            .zip(&prepared.specs)
            .map(|((rows, bytes, index), spec)| {
                let index = (!index.is_empty()).then_some(&mut index[..]);
                let BatchRows { rows, per_sample } = rows.clone();
                Sink::new(Arc::clone(spec), rows, per_sample, bytes, index)
            })
            .collect();
        let last_rows = batch.samples().map(|rows| rows.end as u32 - 1).collect();
        sinks.push(Sink::new(
            Arc::new(SinkSpec::plain()),
            last_rows,
            vec![1; active.len()],
            bytemuck::cast_slice_mut(&mut logits),
            None,
        ));
        let edits = prepared.batch_edits(&parts);
        let numbers: Vec<usize> = active.iter().map(|&(number, _)| number).collect();
        let (n_layers, plan) = (prepared.dims.n_layers, &prepared.plan);
        let receipts = self
            .machine
            .advance(&numbers, &batch, sinks, edits, n_layers, plan)?;
        for (sum, receipt) in self.receipts.iter_mut().zip(receipts) {
            sum.add(&receipt);
        }
        for (tap, (rows, bytes, index)) in memory.into_iter().enumerate() {
            let (row, index_row) = prepared.row_bytes(tap);
            let (mut bytes, mut index) = (&bytes[..], &index[..]);
            for ((s, part), n) in active.iter_mut().zip(&parts).zip(rows.per_sample) {
                let n = n as usize;
                let taken = &mut s.1.taps[tap];
                taken.positions.extend(prepared.tapped_positions(part, tap));
                taken
                    .activations
                    .extend(bytes.split_off(..n * row).unwrap_or_default());
                taken
                    .index
                    .extend(index.split_off(..n * index_row).unwrap_or_default());
            }
        }
        Ok(logits)
    }
}

impl Sequence<'_> {
    /// Takes the next token out of these logits.
    fn choose(
        &mut self,
        logits: &[f32],
        choosing: &Choosing,
        stops: &Stops,
        positions: usize,
    ) -> Result<()> {
        if let Some(bad) = logits.iter().find(|l| !l.is_finite()) {
            return Err(Error::NotFinite {
                sample: self.sample.row.sample,
                position: self.tokens.len() - 1,
                value: *bad,
            }
            .into());
        }
        self.seen = self.tokens.len();
        let token = choosing.next(logits, &self.tokens, &mut self.random);
        let logprob = f64::from(logits[token as usize]) - super::score::log_sum_exp(logits);
        self.logprobs.push(logprob as f32);
        self.tokens.push(token);
        if stops.is_end(token, !self.sample.turns.is_empty()) {
            self.stop = Some(Stop::Eos);
        } else if self.logprobs.len() == stops.max_new_tokens || self.tokens.len() == positions {
            self.stop = Some(Stop::Length);
        }
        Ok(())
    }

    fn finish(self) -> Generated {
        Generated {
            prompt_len: self.sample.row.tokens.len(),
            tokens: self.tokens,
            logprobs: self.logprobs,
            stop: self.stop.unwrap_or(Stop::Length),
            taps: self.taps,
        }
    }
}

/// The new tokens of the sequences, packed.
fn batch<'s>(sequences: impl Iterator<Item = &'s Sequence<'s>>) -> Batch {
    let mut batch = Batch {
        cu_seqlens: vec![0],
        ..Batch::default()
    };
    for s in sequences {
        batch.tokens.extend(&s.tokens[s.seen..]);
        batch.positions.extend(s.next());
        batch.cu_seqlens.push(batch.tokens.len() as u32);
    }
    batch
}

/// What the chat template writes after what the assistant says, if that is a special token.
fn end_of_turn(prepared: &Prepared) -> Option<u32> {
    let (tokenizer, template) = (
        prepared.tokenising.tokenizer.as_ref()?,
        prepared.tokenising.template.as_ref()?,
    );
    let chat = [
        Message::new("user", "Hello"),
        Message::new("assistant", "Yes"),
    ];
    let chat = template.render(&chat, false).ok()?;
    let encoding = tokenizer.encode_chat(&chat).ok()?;
    let next = encoding.ids.get(encoding.turns[1].content.end as usize)?;
    let is_special = tokenizer.decode(&[*next], true).ok()?.is_empty();
    is_special.then_some(*next)
}

/// Refuses what generation does not have.
pub(super) fn check(taps: &[Tap], edits: &[OpenEdit], selections: &[Selection]) -> Result<()> {
    let refuse = |what: String, instead: &str| {
        let instead = format!(": {instead}");
        Err(Error::NotYet { what, instead }.into())
    };
    if let Some(tap) = taps.iter().find(|t| t.point.site.is_ragged()) {
        return refuse(
            format!("the tap {tap} in generation"),
            "its rows grow with every token; extract it from the text that was generated",
        );
    }
    if let Some(tap) = taps.iter().find(|t| t.reduction == Reduction::Mean) {
        return refuse(
            format!("the tap {tap} in generation"),
            "tap the rows and take their mean",
        );
    }
    for edit in edits {
        let replaces = matches!(edit.edit.change, ChangeSpec::Replace { .. });
        if edit.edit.point.site.is_ragged() && replaces {
            return refuse(
                format!("edit `{}` in generation", edit.describe()),
                "scale or zero the pattern, or extract with this edit",
            );
        }
    }
    match selections.iter().find(|s| s.draws()) {
        None => Ok(()),
        Some(selection) => refuse(
            format!("the selection '{selection}' in generation"),
            "what it draws changes as the text grows; choose positions or steps",
        ),
    }
}

//! Where every byte of a shard goes, settled before its first row is computed. Nothing moves afterwards.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;

use super::error::{Error, Result};
use super::format::{TensorSpec, encode_header};
use super::manifest::{FORMAT_VERSION, TapInfo};
use super::samples::SampleRow;
use crate::compact::SidePart;
use crate::permutation::{Permutation, mix};

/// The rows that one sample has in one tap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapRows {
    /// Token position of each row in its sample; −1 for a row made of several (`|mean`).
    pub positions: Arc<[i32]>,
    /// Token id of each row; −1 as above.
    pub tokens: Arc<[i32]>,
}

/// When a shard is full: at the first of these. `bytes` is the sum over taps of what rows take (headers and samples table left out).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardLimits {
    pub bytes: u64,
    pub samples: u64,
    pub tokens: u64,
}

impl Default for ShardLimits {
    fn default() -> Self {
        Self {
            bytes: 2 << 30,
            samples: 65_536,
            tokens: 16 << 20,
        }
    }
}

/// How full the shard being gathered is.
#[derive(Debug, Clone)]
pub struct ShardFill {
    limits: ShardLimits,
    bytes: u64,
    samples: u64,
    tokens: u64,
}

impl ShardFill {
    pub fn new(limits: ShardLimits) -> Self {
        Self {
            limits,
            bytes: 0,
            samples: 0,
            tokens: 0,
        }
    }

    /// Adds a sample of `tokens` tokens and `bytes` bytes (see [`sample_bytes`]), or answers `false` and takes nothing: the shard
    /// is full, the sample belongs to the next. A sample too large for any shard gets one to itself.
    pub fn add(&mut self, tokens: u64, bytes: u64) -> bool {
        let (all_bytes, all_tokens) = (
            self.bytes.saturating_add(bytes),
            self.tokens.saturating_add(tokens),
        );
        let full = self.samples >= self.limits.samples
            || all_bytes > self.limits.bytes
            || all_tokens > self.limits.tokens;
        if full && self.samples > 0 {
            return false;
        }
        (self.bytes, self.tokens, self.samples) = (all_bytes, all_tokens, self.samples + 1);
        true
    }
}

/// Bytes that a sample of `n_tokens` tokens takes in a tap's file when `rows` of them are selected, all tensors counted.
pub fn sample_bytes(tap: &TapInfo, n_tokens: u64, rows: u64) -> u64 {
    let wide = if tap.ragged { n_tokens } else { 1 };
    let row = (row_bytes(tap) as u64)
        .saturating_mul(wide)
        .saturating_add(side_row_bytes(tap) as u64 + index_bytes(tap) as u64);
    rows.saturating_mul(row)
}

/// Name, dtype and bytes per row of the tensors that tell where rows come from.
const INDEX_TENSORS: [(&str, Dtype, usize); 3] = [
    ("sample", Dtype::I64, 8),
    ("position", Dtype::I32, 4),
    ("token", Dtype::I32, 4),
];

/// The same of the tensor that names the rows in random order.
const ORDER: (&str, Dtype, usize) = ("order", Dtype::I32, 4);

/// Bytes of one row in the index tensors: `sample` (I64), `position` and `token` (I32), and `order` (I32) where a tap has one.
fn index_bytes(tap: &TapInfo) -> usize {
    if tap.order_seed.is_some() { 20 } else { 16 }
}

/// Bytes of one row of `activations`; for a ragged tap, of one row against one token.
pub(crate) fn row_bytes(tap: &TapInfo) -> usize {
    tap.row_shape.iter().product::<usize>() * tap.dtype.size()
}

/// The tensors that stand between `activations` and the index tensors, row by row: the components of a top-K tap, and what an 8-bit form
/// has beside its codes.
pub(crate) fn side_parts(tap: &TapInfo) -> Vec<SidePart> {
    match (tap.top_k, tap.compact()) {
        (Some(k), _) => vec![SidePart {
            name: "index",
            dtype: Dtype::I32,
            shape: vec![k],
            bytes: k.saturating_mul(4),
        }],
        (None, Some(compact)) => compact.side_parts().into(),
        (None, None) => Vec::new(),
    }
}

/// Bytes of one row in all of these.
pub(crate) fn side_row_bytes(tap: &TapInfo) -> usize {
    let bytes = side_parts(tap).into_iter().map(|part| part.bytes);
    bytes.fold(0, usize::saturating_add)
}

/// The tensor name of a sample in a ragged tap's file.
pub(crate) fn ragged_name(sample: u64, chunk: u32) -> String {
    if chunk == 0 {
        sample.to_string()
    } else {
        format!("{sample}.{chunk}")
    }
}

/// One tap's file, byte by byte.
#[derive(Debug, Clone)]
pub(crate) struct TapLayout {
    pub header: Vec<u8>,
    /// Bytes of a row of `activations`; of a row against one token for a ragged tap.
    pub row_bytes: usize,
    /// First row of each sample, and the number of rows at the end.
    pub row_starts: Vec<usize>,
    /// Where in the file each sample's activations start, and where the last one's end.
    pub data_starts: Vec<usize>,
    /// The tensors between `activations` and `sample`.
    pub sides: Vec<SideLayout>,
    pub sample_start: usize,
    /// The random order of the rows, where the tap has one.
    pub order: Option<Permutation>,
    pub file_bytes: usize,
}

/// A tensor with something for each row of `activations`.
#[derive(Debug, Clone)]
pub(crate) struct SideLayout {
    pub name: &'static str,
    pub row_bytes: usize,
    /// Where in the file it starts.
    pub start: usize,
}

impl SideLayout {
    /// Bytes in the file of some rows.
    pub fn rows(&self, rows: Range<usize>) -> Range<usize> {
        self.start + rows.start * self.row_bytes..self.start + rows.end * self.row_bytes
    }
}

impl TapLayout {
    pub fn rows(&self) -> usize {
        *self.row_starts.last().unwrap_or(&0)
    }

    /// Bytes in the file of the activations of a range of samples.
    pub fn activations(&self, samples: Range<usize>) -> Range<usize> {
        self.data_starts[samples.start]..self.data_starts[samples.end]
    }

    /// Rows of a range of samples.
    pub fn rows_of(&self, samples: Range<usize>) -> Range<usize> {
        self.row_starts[samples.start]..self.row_starts[samples.end]
    }

    /// Bytes of one row in all side tensors together.
    pub fn side_row_bytes(&self) -> usize {
        self.sides.iter().map(|side| side.row_bytes).sum()
    }

    /// Bytes in the file of each side tensor, for a range of samples.
    pub fn side_ranges(&self, samples: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let rows = self.rows_of(samples);
        self.sides.iter().map(move |side| side.rows(rows.clone()))
    }

    /// The bytes of a batch's side rows that come as one slab where they can lie in the file itself: where there is one side tensor.
    pub fn only_side(&self, samples: Range<usize>) -> Option<Range<usize>> {
        match &self.sides[..] {
            [side] => Some(side.rows(self.rows_of(samples))),
            _ => None,
        }
    }

    /// The parts of `sample`, `position`, `token` and, where there is one, `order`, in the order of their bytes.
    pub fn index_tensors(&self) -> impl Iterator<Item = (&'static str, Range<usize>)> + use<> {
        let n = self.rows();
        let mut start = self.sample_start;
        let mut tensors = INDEX_TENSORS.to_vec();
        tensors.extend(self.order.map(|_| ORDER));
        tensors.into_iter().map(move |(name, _, size)| {
            let begin = start;
            start += n * size;
            (name, begin..start)
        })
    }
}

/// The layout of a shard: one file per tap.
#[derive(Debug, Clone)]
pub struct ShardLayout {
    pub(crate) taps: Vec<TapLayout>,
}

impl ShardLayout {
    /// Plans a shard that holds `samples` in this order, with `rows[sample][tap]`. `model_fingerprint` goes into the files' `__metadata__`.
    ///
    /// # Errors
    /// The samples or rows do not fit each other, the taps or the format; the message names the sample.
    pub fn plan(
        taps: &[TapInfo],
        samples: &[SampleRow],
        rows: &[Vec<TapRows>],
        model_fingerprint: &str,
    ) -> Result<Self> {
        super::manifest::check_taps(taps).map_err(Error::Plan)?;
        check_samples(taps, samples, rows)?;
        let plan_tap = |(t, tap)| {
            plan_tap(
                tap,
                samples,
                &rows.iter().map(|r| &r[t]).collect::<Vec<_>>(),
                model_fingerprint,
            )
        };
        Ok(Self {
            taps: taps
                .iter()
                .enumerate()
                .map(plan_tap)
                .collect::<Result<_>>()?,
        })
    }

    /// Bytes of the tap files, headers included; the samples table comes on top.
    pub fn bytes(&self) -> u64 {
        self.taps.iter().map(|t| t.file_bytes as u64).sum()
    }

    /// Bytes of one tap's file.
    pub fn tap_bytes(&self, tap: usize) -> u64 {
        self.taps[tap].file_bytes as u64
    }

    /// Rows of a tap (its place among the taps).
    pub fn rows(&self, tap: usize) -> usize {
        self.taps[tap].rows()
    }
}

fn check_samples(taps: &[TapInfo], samples: &[SampleRow], rows: &[Vec<TapRows>]) -> Result<()> {
    let wrong = |what: String| Err(Error::Plan(what));
    if samples.is_empty() {
        return wrong("a shard holds at least one sample".into());
    }
    if rows.len() != samples.len() {
        return wrong(format!(
            "{} samples with rows for {}",
            samples.len(),
            rows.len()
        ));
    }
    let mut seen = HashSet::new();
    for (sample, rows) in samples.iter().zip(rows) {
        let at = format!(
            "sample {} chunk {} ({}:{})",
            sample.sample, sample.chunk, sample.file, sample.line
        );
        if !seen.insert((sample.sample, sample.chunk)) {
            return wrong(format!("{at} occurs twice in a shard"));
        }
        let small = |n: u32| i32::try_from(n).is_ok();
        let numbers = i64::try_from(sample.sample).is_ok()
            && i64::try_from(sample.line).is_ok()
            && small(sample.chunk);
        if !numbers
            || !sample.tokens.iter().all(|&t| small(t))
            || !sample.turns.iter().all(|t| small(t.1) && small(t.2))
        {
            return wrong(format!(
                "{at}: a token id, position or number exceeds a signed 32-bit integer"
            ));
        }
        if rows.len() != taps.len() {
            return wrong(format!(
                "{at} has rows for {} taps of {}",
                rows.len(),
                taps.len()
            ));
        }
        for (tap, rows) in taps.iter().zip(rows) {
            if rows.positions.len() != rows.tokens.len() {
                return wrong(format!(
                    "{at}: tap {} has {} positions and {} tokens",
                    tap.folder,
                    rows.positions.len(),
                    rows.tokens.len()
                ));
            }
        }
    }
    Ok(())
}

fn plan_tap(
    tap: &TapInfo,
    samples: &[SampleRow],
    rows: &[&TapRows],
    model_fingerprint: &str,
) -> Result<TapLayout> {
    let too_large = || {
        Error::Plan(format!(
            "tap {}: a shard of {} samples is larger than a file can be; make shards smaller",
            tap.folder,
            samples.len()
        ))
    };
    let row_bytes = row_bytes(tap);
    let dtype = tap.dtype.safetensors();
    let mut row_starts = vec![0usize];
    let mut data_ends = vec![0usize];
    let (mut n_rows, mut data) = (0usize, 0usize);
    let mut tensors = Vec::new();
    for (sample, rows) in samples.iter().zip(rows) {
        let (r, n) = (
            rows.positions.len(),
            if tap.ragged { sample.tokens.len() } else { 1 },
        );
        let bytes = r
            .checked_mul(n)
            .and_then(|x| x.checked_mul(row_bytes))
            .ok_or_else(too_large)?;
        n_rows += r;
        data = data.checked_add(bytes).ok_or_else(too_large)?;
        row_starts.push(n_rows);
        data_ends.push(data);
        if tap.ragged {
            let shape = vec![tap.row_shape[0] as u64, r as u64, n as u64];
            tensors.push(TensorSpec {
                name: ragged_name(sample.sample, sample.chunk),
                dtype,
                shape,
                bytes: bytes as u64,
            });
        }
    }
    let rows64 = n_rows as u64;
    if !tap.ragged {
        let shape = std::iter::once(rows64)
            .chain(tap.row_shape.iter().map(|&d| d as u64))
            .collect();
        tensors.push(TensorSpec {
            name: "activations".into(),
            dtype,
            shape,
            bytes: data as u64,
        });
    }
    let parts = side_parts(tap);
    let mut side_bytes = 0usize;
    for part in &parts {
        let bytes = n_rows.checked_mul(part.bytes).ok_or_else(too_large)?;
        side_bytes = side_bytes.checked_add(bytes).ok_or_else(too_large)?;
        let shape = part.shape.iter().map(|&d| d as u64);
        tensors.push(TensorSpec {
            name: part.name.into(),
            dtype: part.dtype,
            shape: std::iter::once(rows64).chain(shape).collect(),
            bytes: bytes as u64,
        });
    }
    let ordered = tap.order_seed.map(|_| ORDER);
    for (name, dtype, size) in INDEX_TENSORS.into_iter().chain(ordered) {
        tensors.push(TensorSpec {
            name: name.into(),
            dtype,
            shape: vec![rows64],
            bytes: rows64.saturating_mul(size as u64),
        });
    }
    // Offsets must also fit the i64 that files are addressed by, with the header still to come.
    let all = n_rows
        .checked_mul(index_bytes(tap))
        .and_then(|x| x.checked_add(data)?.checked_add(side_bytes));
    all.filter(|&x| x < i64::MAX as usize - (1 << 32))
        .ok_or_else(too_large)?;
    let order = tap.order_seed.map(|seed| {
        i32::try_from(n_rows)
            .map(|_| row_order(seed, samples, rows64))
            .map_err(|_| too_large())
    });

    let header = encode_header(&file_metadata(tap, model_fingerprint), &tensors)?;
    let mut sample_start = header.len() + data;
    let sides = parts.iter().map(|part| {
        let start = sample_start;
        sample_start += n_rows * part.bytes;
        SideLayout {
            name: part.name,
            row_bytes: part.bytes,
            start,
        }
    });
    let sides = sides.collect();
    Ok(TapLayout {
        row_bytes,
        row_starts,
        data_starts: data_ends.iter().map(|d| header.len() + d).collect(),
        sides,
        sample_start,
        file_bytes: sample_start + n_rows * index_bytes(tap),
        order: order.transpose()?,
        header,
    })
}

/// The order of a shard's rows. It hangs on the seed, the shard's first sample and the number of rows alone: taps with the same rows have
/// the same order, shards have orders of their own, and a slice that is merged keeps its.
fn row_order(seed: u64, samples: &[SampleRow], rows: u64) -> Permutation {
    let first = samples.first().map_or((0, 0), |s| (s.sample, s.chunk));
    let of_sample = mix(mix(seed).wrapping_add(first.0));
    Permutation::new(rows, of_sample.wrapping_add(u64::from(first.1)))
}

/// What a lone file needs to be understood. Safetensors allows strings only.
fn file_metadata(tap: &TapInfo, model_fingerprint: &str) -> BTreeMap<String, String> {
    let heads = tap.heads.as_ref().map(|h| ("heads", format!("{h:?}")));
    [
        ("format_version", FORMAT_VERSION.to_string()),
        ("hook", tap.hook.clone()),
        ("model_fingerprint", model_fingerprint.into()),
        ("reduction", tap.reduction.clone()),
        ("selection", tap.selection.clone()),
    ]
    .into_iter()
    .chain(heads)
    .map(|(k, v)| (k.to_string(), v))
    .collect()
}

/// Writes the header and the index tensors of a tap's file into its mapping; the rest is zero until its rows come.
pub(crate) fn write_fixed(
    layout: &TapLayout,
    file: &mut [u8],
    samples: &[SampleRow],
    rows: &[Vec<TapRows>],
    tap: usize,
) {
    file[..layout.header.len()].copy_from_slice(&layout.header);
    let mut starts = layout.index_tensors().map(|(_, bytes)| bytes.start);
    let mut next = || starts.next().unwrap_or(layout.file_bytes);
    let (mut s, mut p, mut t, order) = (next(), next(), next(), next());
    for (row, rows) in samples.iter().zip(rows) {
        for (&pos, &tok) in rows[tap].positions.iter().zip(rows[tap].tokens.iter()) {
            file[s..s + 8].copy_from_slice(&row.sample.to_le_bytes());
            file[p..p + 4].copy_from_slice(&pos.to_le_bytes());
            file[t..t + 4].copy_from_slice(&tok.to_le_bytes());
            (s, p, t) = (s + 8, p + 4, t + 4);
        }
    }
    let places = layout.order.iter().flat_map(|order| {
        let rows = layout.rows() as u64;
        (0..rows).map(|place| order.at(place) as u32)
    });
    for (to, row) in file[order..].chunks_exact_mut(4).zip(places) {
        to.copy_from_slice(&row.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_closes_at_the_first_limit_reached_and_an_oversized_sample_stands_alone() {
        let limits = ShardLimits {
            bytes: 100,
            samples: 3,
            tokens: 10,
        };
        let taken = |samples: &[(u64, u64)]| {
            let mut fill = ShardFill::new(limits);
            samples
                .iter()
                .take_while(|&&(tokens, bytes)| fill.add(tokens, bytes))
                .count()
        };
        assert_eq!(taken(&[(1, 1); 5]), 3);
        assert_eq!(taken(&[(5, 1); 5]), 2);
        assert_eq!(taken(&[(1, 60); 5]), 1);
        assert_eq!(taken(&[(50, 5000), (1, 1)]), 1);
    }
}

//! Rows in 8 bits: how a row of f32 becomes one byte per number and back, and what that costs it. A row is treated alone, so its bytes do
//! not depend on what is stored beside it: not on its batch, its shard or the slice it was computed in.
//!
//! Of each row the few largest numbers are kept apart as bf16 (as LLM.int8() does, Dettmers et al. 2022): models have massive activations
//! (Sun et al. 2024), a handful of channels thousands of times the others, which would otherwise set the scale for all of them. The rest
//! is divided by a scale, one for the row ([`Code::F8E4M3`]) or one for each 64 numbers of it ([`Code::I8`]), and rounded. Beside the codes a
//! row has a *side row*: scales, the numbers kept apart and their places, and the loss measured on the row. The byte layout and the rules
//! for NaN are written down in `docs/store-format.md`.

mod code;
mod loss;
#[cfg(test)]
mod tests;

use safetensors::Dtype;

pub use code::{Code, e4m3_of, e4m3_to_f32};
pub use loss::{Cosine, Exact, Loss, LossSums, RelativeError};

use loss::RowLoss;

/// Numbers that share a scale under [`Code::I8`]; the last group of a row may be shorter.
pub const GROUP: usize = 64;
/// Numbers of a row that are kept apart: one for each so many, rounded up,
const PER_OUTLIER: usize = 64;
/// and at most so many.
pub const MOST_OUTLIERS: usize = 8;
/// The widest row: places of numbers kept apart are 16 bits.
pub const WIDEST: usize = 1 << 16;

/// The 8-bit form of rows of one width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compact {
    pub code: Code,
    /// Numbers in a row, from 1 to [`WIDEST`].
    pub width: usize,
}

/// A part of the side row, which is a tensor of its own in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidePart {
    pub name: &'static str,
    pub dtype: Dtype,
    /// Of one row; empty where that is a single number.
    pub shape: Vec<usize>,
    /// Of one row.
    pub bytes: usize,
}

/// The parts of a side row that hold the measured loss.
pub const RELATIVE_ERROR: &str = "relative_error";
pub const COSINE: &str = "cosine";

/// Where in a side row its parts begin.
struct Offsets {
    index: usize,
    value: usize,
    loss: usize,
    end: usize,
}

impl Compact {
    /// Numbers of a row that are kept apart.
    pub fn outliers(self) -> usize {
        self.width.div_ceil(PER_OUTLIER).min(MOST_OUTLIERS)
    }

    /// Scales of a row.
    pub fn scales(self) -> usize {
        self.width.div_ceil(self.group())
    }

    /// Numbers that share a scale.
    fn group(self) -> usize {
        match self.code {
            Code::F8E4M3 => self.width.max(1),
            Code::I8 => GROUP,
        }
    }

    /// Bytes of a row beside its codes.
    pub fn side_bytes(self) -> usize {
        self.offsets().end
    }

    /// The parts of a side row, in the order of their bytes.
    pub fn side_parts(self) -> [SidePart; 5] {
        let k = self.outliers();
        let scales = match self.code {
            Code::F8E4M3 => vec![],
            Code::I8 => vec![self.scales()],
        };
        let part = |name, dtype, shape, bytes| SidePart {
            name,
            dtype,
            shape,
            bytes,
        };
        [
            part(
                "scale",
                self.code.scale_dtype(),
                scales,
                self.offsets().index,
            ),
            part("outlier_index", Dtype::U16, vec![k], 2 * k),
            part("outlier_value", Dtype::BF16, vec![k], 2 * k),
            part(RELATIVE_ERROR, Dtype::F32, vec![], 4),
            part(COSINE, Dtype::F32, vec![], 4),
        ]
    }

    fn offsets(self) -> Offsets {
        let k = self.outliers();
        let index = self.scales() * self.code.scale_bytes();
        let value = index + 2 * k;
        let loss = value + 2 * k;
        Offsets {
            index,
            value,
            loss,
            end: loss + 8,
        }
    }

    /// Writes the codes (`width` bytes) and the side row ([`side_bytes`](Self::side_bytes)) of a row.
    ///
    /// # Panics
    /// A slice has another length than that.
    #[inline(always)]
    pub fn quantise(self, row: &[f32], codes: &mut [u8], side: &mut [u8]) {
        let at = self.offsets();
        assert!(
            row.len() == self.width && codes.len() == self.width && side.len() == at.end,
            "a row of {} numbers, {} codes and {} bytes beside them, for a width of {}",
            row.len(),
            codes.len(),
            side.len(),
            self.width
        );
        let outliers = largest(row, self.outliers());
        let outliers = &outliers[..self.outliers()];
        let mut rest = row.to_vec();
        for (k, &at_k) in outliers.iter().enumerate() {
            let bits = half::bf16::from_f32(row[at_k]).to_bits();
            side[at.index + 2 * k..][..2].copy_from_slice(&(at_k as u16).to_le_bytes());
            side[at.value + 2 * k..][..2].copy_from_slice(&bits.to_le_bytes());
            rest[at_k] = 0.0;
        }
        let size = self.code.scale_bytes();
        let groups = rest.chunks(self.group()).zip(row.chunks(self.group()));
        let stored = codes.chunks_mut(self.group());
        for ((g, (rest, row)), codes) in groups.enumerate().zip(stored) {
            let scale = self.code.scale(rest);
            self.code
                .put_scale(scale, &mut side[g * size..(g + 1) * size]);
            self.code.encode(row, scale, codes);
        }
        let mut read = rest;
        self.dequantise(codes, side, &mut read);
        let loss = RowLoss::of(row, &read);
        side[at.loss..at.loss + 4].copy_from_slice(&loss.relative_error.to_le_bytes());
        side[at.loss + 4..at.end].copy_from_slice(&loss.cosine.to_le_bytes());
    }

    /// The numbers that codes and a side row stand for: code × scale, rounded to f32 once, and the numbers kept apart in their places. (A
    /// place outside the row, which only a damaged file has, is passed over.)
    ///
    /// # Panics
    /// A slice has another length than [`quantise`](Self::quantise) takes.
    #[inline(always)]
    pub fn dequantise(self, codes: &[u8], side: &[u8], out: &mut [f32]) {
        let at = self.offsets();
        let size = self.code.scale_bytes();
        let groups = codes.chunks(self.group()).zip(out.chunks_mut(self.group()));
        for ((codes, out), scale) in groups.zip(side[..at.index].chunks_exact(size)) {
            self.code.decode(codes, self.code.read_scale(scale), out);
        }
        let two = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]);
        let places = side[at.index..at.value].chunks_exact(2).map(two);
        let values = side[at.value..at.loss].chunks_exact(2).map(two);
        for (place, value) in places.zip(values) {
            if let Some(out) = out.get_mut(usize::from(place)) {
                *out = half::bf16::from_bits(value).to_f32();
            }
        }
    }
}

/// Places of the `k` numbers largest in magnitude, largest first, ties by the lower place; a NaN is larger than any number.
#[inline(always)]
fn largest(row: &[f32], k: usize) -> [usize; MOST_OUTLIERS] {
    // Magnitudes of floats are ordered as their bits are; the place, turned round, breaks ties.
    let key = |(at, x): (usize, &f32)| {
        u64::from(x.to_bits() & 0x7fff_ffff) << 32 | u64::from(!(at as u32))
    };
    let mut keys = [0u64; MOST_OUTLIERS];
    let keys = &mut keys[..k];
    for key in row.iter().enumerate().map(key) {
        if key > keys[k - 1] {
            let place = keys.partition_point(|&kept| kept > key);
            keys.copy_within(place..k - 1, place + 1);
            keys[place] = key;
        }
    }
    let mut places = [0; MOST_OUTLIERS];
    for (place, &key) in places.iter_mut().zip(&*keys) {
        *place = !(key as u32) as usize;
    }
    places
}

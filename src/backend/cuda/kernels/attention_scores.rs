//! kernels/attention_scores.cu: attention scores or patterns of chosen query rows and heads.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::attention::{MAX_WINDOW, check_grid, check_heads};
use super::require;
use crate::backend::cuda::launch::{DevicePtr, Dims, Dtype, Kernel};

/// What `attention_scores.cu` takes. Strides are in elements, from row to row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttentionScoresArgs {
    /// `[rows, n_heads, h]`, after RoPE.
    pub q: DevicePtr,
    /// `[rows, n_kv_heads, h]`, after RoPE.
    pub k: DevicePtr,
    /// f32 `[n_heads, rows]`, as the attention kernel wrote it: patterns are written. Null: scores are written.
    pub lse: DevicePtr,
    /// Output, ragged: per sample of the work list `[heads_kept, selected rows, n]`.
    pub out: DevicePtr,
    /// [`AttentionScoresTile`]s `[n_tiles]`, from [`AttentionScores::tiles`].
    pub tiles: DevicePtr,
    /// u32: the selected query rows of all samples, counted in their sample, ascending.
    pub selected: DevicePtr,
    /// u32 `[heads_kept]`: query heads.
    pub heads: DevicePtr,
    pub q_stride: u32,
    pub k_stride: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    /// Rows of the batch: the row stride of `lse`.
    pub rows: u32,
    pub n_tiles: u32,
    pub heads_kept: u32,
    /// Keys that a query sees at most, its own included; 0: all.
    pub window: u32,
    /// Element type of `out`, from [`AttentionScores::out_dtype`].
    pub out_dtype: u32,
    /// Factor of the scores: 1/√h.
    pub scale: f32,
}

/// One block's share per head: some selected rows of one sample, and a span of its keys.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AttentionScoresTile {
    /// Element of `out` where the sample's tensor has the tile's first row, of the first kept head, key 0.
    pub out: u64,
    /// The sample's first row in the batch.
    pub first_row: u32,
    /// Tokens of the sample.
    pub n: u32,
    /// Where the tile's rows begin in `selected`.
    pub selected: u32,
    /// How many they are, at most [`AttentionScores::tile_rows`].
    pub count: u32,
    /// Selected rows of the whole sample.
    pub sample_count: u32,
    pub key_begin: u32,
    pub key_end: u32,
    _pad: u32,
}

/// A sample that asks for rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The sample's rows in the batch.
    pub rows: Range<u32>,
    /// Where its selected rows begin in `selected`, and how many they are.
    pub selected: Range<u32>,
    /// Element of `out` where its tensor begins.
    pub out: u64,
}

/// `attention_scores_{dtype}_h{head_dim}`; `dtype` is that of q and k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionScores {
    pub dtype: Dtype,
    /// One of [`HEAD_DIMS`](super::attention::HEAD_DIMS).
    pub head_dim: u32,
}

impl AttentionScores {
    const THREADS: u32 = 128;
    const TILE_KEYS: u32 = 64;
    /// Keys of one block: enough steps to repay fetching the queries, few enough that one row of a long sample fills a GPU.
    pub const KEY_SPAN: u32 = 512;

    /// Selected rows of a tile.
    pub fn tile_rows(&self) -> u32 {
        match self.dtype {
            Dtype::F32 => 32,
            Dtype::F16 | Dtype::BF16 => 64,
        }
    }

    /// The kernel's code of a store dtype.
    pub fn out_dtype(dtype: Dtype) -> u32 {
        match dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::BF16 => 2,
        }
    }

    /// The work list of the samples that ask; those without selected rows add nothing.
    pub fn tiles<'a>(
        &self,
        samples: impl IntoIterator<Item = &'a Asked>,
    ) -> Vec<AttentionScoresTile> {
        let mut tiles = Vec::new();
        for sample in samples {
            let n = sample.rows.end - sample.rows.start;
            for first in sample.selected.clone().step_by(self.tile_rows() as usize) {
                for key_begin in (0..n).step_by(Self::KEY_SPAN as usize) {
                    let before = first - sample.selected.start;
                    tiles.push(AttentionScoresTile {
                        out: sample.out + u64::from(before) * u64::from(n),
                        first_row: sample.rows.start,
                        n,
                        selected: first,
                        count: self.tile_rows().min(sample.selected.end - first),
                        sample_count: sample.selected.end - sample.selected.start,
                        key_begin,
                        key_end: n.min(key_begin + Self::KEY_SPAN),
                        _pad: 0,
                    });
                }
            }
        }
        tiles
    }
}

impl Kernel for AttentionScores {
    type Args = AttentionScoresArgs;

    fn name(&self) -> String {
        format!("attention_scores_{}_h{}", self.dtype, self.head_dim)
    }

    fn source(&self) -> &'static str {
        "attention_scores"
    }

    fn dims(&self, args: &AttentionScoresArgs) -> Dims {
        // The queries, two buffers of keys (rows padded by 16 bytes); their products (rows padded by 8 elements), each row's
        // query and log-sum-exp.
        let row_bytes = self.head_dim * self.dtype.bytes() as u32 + 16;
        let rows = self.tile_rows();
        let product_bytes = 4 * (Self::TILE_KEYS + 8);
        Dims {
            grid: [args.n_tiles * args.heads_kept, 1, 1],
            block: [Self::THREADS, 1, 1],
            dynamic_shared: (rows + 2 * Self::TILE_KEYS) * row_bytes + rows * (product_bytes + 8),
        }
    }

    fn check(&self, args: &AttentionScoresArgs) -> Result<(), String> {
        check_heads(self.head_dim, args.n_heads, args.n_kv_heads)?;
        let bytes = self.dtype.bytes();
        let q_width = args.n_heads * self.head_dim;
        let kv_width = args.n_kv_heads * self.head_dim;
        require::vector_rows("q", args.q, args.q_stride.into(), q_width, bytes)?;
        require::vector_rows("k", args.k, args.k_stride.into(), kv_width, bytes)?;
        require::aligned("tiles", args.tiles, 8)?;
        require::aligned("selected", args.selected, 4)?;
        require::aligned("heads", args.heads, 4)?;
        if !args.lse.is_null() {
            require::aligned("lse", args.lse, 4)?;
        }
        require::at_most("out_dtype", args.out_dtype, 2)?;
        let out_bytes = if args.out_dtype == 0 { 4 } else { 2 };
        require::aligned("out", args.out, out_bytes)?;
        check_grid(args.n_tiles, args.heads_kept)?;
        require::at_most("window", args.window, MAX_WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::super::attention::HEAD_DIMS;
    use super::*;

    #[test]
    fn the_work_list_tiles_rows_and_keys_and_leaves_out_samples_that_ask_for_nothing() {
        let kernel = AttentionScores {
            dtype: Dtype::F32,
            head_dim: 64,
        };
        let asked = [
            Asked {
                rows: 0..7,
                selected: 0..0,
                out: 0,
            },
            Asked {
                rows: 7..607,
                selected: 0..33,
                out: 10,
            },
        ];
        let tiles = kernel.tiles(&asked);
        let seen: Vec<_> = tiles
            .iter()
            .map(|t| (t.out, t.selected, t.count, t.key_begin, t.key_end))
            .collect();
        assert_eq!(
            seen,
            [
                (10, 0, 32, 0, 512),
                (10, 0, 32, 512, 600),
                (10 + 32 * 600, 32, 1, 0, 512),
                (10 + 32 * 600, 32, 1, 512, 600),
            ]
        );
        assert!(
            tiles
                .iter()
                .all(|t| t.first_row == 7 && t.sample_count == 33)
        );
    }

    #[test]
    fn the_largest_tiles_fit_the_shared_memory_of_an_sm() {
        for dtype in Dtype::ALL {
            for head_dim in HEAD_DIMS {
                let args = AttentionScoresArgs::zeroed();
                let dims = AttentionScores { dtype, head_dim }.dims(&args);
                assert!(
                    dims.dynamic_shared <= 99 * 1024,
                    "{dtype} {head_dim}: {}",
                    dims.dynamic_shared
                );
            }
        }
    }
}

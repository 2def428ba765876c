//! kernels/attention.cu: prefill attention over samples packed end to end.

use bytemuck::{Pod, Zeroable};

use super::require;
use crate::backend::cuda::launch::{DevicePtr, Dims, Dtype, Kernel};

/// Head dims that the attention kernels are compiled for.
pub const HEAD_DIMS: [u32; 4] = [64, 80, 96, 128];

/// What `attention.cu` takes. Strides are in elements, from row to row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttentionArgs {
    /// `[rows, n_heads, h]`, after RoPE.
    pub q: DevicePtr,
    /// `[rows, n_kv_heads, h]`, after RoPE.
    pub k: DevicePtr,
    /// `[rows, n_kv_heads, h]`.
    pub v: DevicePtr,
    /// Output, `[rows, n_heads, h]`.
    pub z: DevicePtr,
    /// Output, f32 `[n_heads, rows]`: natural logarithm of the sum of exp(score) over the keys a query sees; or null.
    pub lse: DevicePtr,
    /// u32 `[samples + 1]`: where each sample begins, and where the last one ends.
    pub cu_seqlens: DevicePtr,
    /// [`AttentionTile`]s `[n_tiles]`, from [`Attention::tiles`].
    pub tiles: DevicePtr,
    pub q_stride: u32,
    pub k_stride: u32,
    pub v_stride: u32,
    pub z_stride: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    /// Rows of the batch: the row stride of `lse`.
    pub rows: u32,
    pub n_tiles: u32,
    /// Keys that a query sees at most, its own included; 0: all.
    pub window: u32,
    /// Factor of the scores: 1/√h.
    pub scale: f32,
}

/// One block's share per head: up to [`Attention::tile_queries`] queries of one sample.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct AttentionTile {
    pub sample: u32,
    /// The tile's first query, counted in the sample.
    pub first_query: u32,
}

/// `attention_{dtype}_h{head_dim}`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    pub dtype: Dtype,
    /// One of [`HEAD_DIMS`].
    pub head_dim: u32,
}

impl Attention {
    const THREADS: u32 = 128;

    /// Queries of a tile.
    pub fn tile_queries(&self) -> u32 {
        match self.dtype {
            Dtype::F32 => 32,
            Dtype::F16 | Dtype::BF16 => 128,
        }
    }

    /// Keys of a step.
    pub fn tile_keys(&self) -> u32 {
        match self.dtype {
            Dtype::F32 => 32,
            Dtype::F16 | Dtype::BF16 => 64,
        }
    }

    /// The work list for samples that begin at `cu_seqlens`: every query once, tiles that see the most keys first, so that the
    /// last blocks to start are the short ones.
    pub fn tiles(&self, cu_seqlens: &[u32], window: u32) -> Vec<AttentionTile> {
        let window = if window == 0 { u32::MAX } else { window };
        let queries = self.tile_queries();
        let mut tiles: Vec<(u32, AttentionTile)> = Vec::new();
        for (sample, bounds) in cu_seqlens.windows(2).enumerate() {
            let n = bounds[1] - bounds[0];
            for first_query in (0..n).step_by(queries as usize) {
                let first_key = (first_query + 1).saturating_sub(window) / self.tile_keys();
                let end_key = n.min(first_query + queries).div_ceil(self.tile_keys());
                let tile = AttentionTile {
                    sample: sample as u32,
                    first_query,
                };
                tiles.push((end_key - first_key, tile));
            }
        }
        tiles.sort_by_key(|&(steps, _)| std::cmp::Reverse(steps));
        tiles.into_iter().map(|(_, tile)| tile).collect()
    }
}

impl Kernel for Attention {
    type Args = AttentionArgs;

    fn name(&self) -> String {
        format!("attention_{}_h{}", self.dtype, self.head_dim)
    }

    fn source(&self) -> &'static str {
        "attention"
    }

    fn dims(&self, args: &AttentionArgs) -> Dims {
        // One tile of queries, one of keys, one of values; rows padded by 16 bytes.
        let row_bytes = self.head_dim * self.dtype.bytes() as u32 + 16;
        Dims {
            grid: [args.n_tiles * args.n_heads, 1, 1],
            block: [Self::THREADS, 1, 1],
            dynamic_shared: (self.tile_queries() + 2 * self.tile_keys()) * row_bytes,
        }
    }

    fn check(&self, args: &AttentionArgs) -> Result<(), String> {
        check_heads(self.head_dim, args.n_heads, args.n_kv_heads)?;
        let q_width = args.n_heads * self.head_dim;
        let kv_width = args.n_kv_heads * self.head_dim;
        for (name, at, stride, width) in [
            ("q", args.q, args.q_stride, q_width),
            ("k", args.k, args.k_stride, kv_width),
            ("v", args.v, args.v_stride, kv_width),
            ("z", args.z, args.z_stride, q_width),
        ] {
            require::vector_rows(name, at, stride.into(), width, self.dtype.bytes())?;
        }
        require::aligned("cu_seqlens", args.cu_seqlens, 4)?;
        require::aligned("tiles", args.tiles, 8)?;
        if !args.lse.is_null() {
            require::aligned("lse", args.lse, 4)?;
        }
        check_grid(args.n_tiles, args.n_heads)?;
        require::at_most("window", args.window, MAX_WINDOW)
    }
}

/// The kernels count keys in i32.
pub(super) const MAX_WINDOW: u32 = i32::MAX as u32;

pub(super) fn check_heads(head_dim: u32, n_heads: u32, n_kv_heads: u32) -> Result<(), String> {
    if !HEAD_DIMS.contains(&head_dim) {
        return Err(format!("head dim is {head_dim}, not one of {HEAD_DIMS:?}"));
    }
    require::positive("n_heads", n_heads)?;
    require::positive("n_kv_heads", n_kv_heads)?;
    require::multiple("n_heads", n_heads.into(), n_kv_heads.into())
}

/// One block per tile and head, in a grid of one dimension.
pub(super) fn check_grid(n_tiles: u32, heads: u32) -> Result<(), String> {
    require::positive("n_tiles", n_tiles)?;
    require::positive("heads", heads)?;
    let blocks = u64::from(n_tiles) * u64::from(heads);
    if blocks > i32::MAX as u64 {
        return Err(format!(
            "{n_tiles} tiles of {heads} heads are more than one launch takes"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Attention = Attention {
        dtype: Dtype::BF16,
        head_dim: 128,
    };

    #[test]
    fn the_work_list_covers_every_query_once_and_starts_with_the_longest_tiles() {
        let tiles = KERNEL.tiles(&[0, 1, 1, 300, 428], 0);
        let pairs: Vec<_> = tiles.iter().map(|t| (t.sample, t.first_query)).collect();
        assert_eq!(pairs, [(2, 256), (2, 128), (2, 0), (3, 0), (0, 0)]);
    }

    #[test]
    fn behind_a_window_all_full_tiles_are_equally_long() {
        let tiles = KERNEL.tiles(&[0, 640], 64);
        let first: Vec<_> = tiles.iter().map(|t| t.first_query).collect();
        assert_eq!(first, [128, 256, 384, 512, 0]);
    }

    #[test]
    fn the_largest_tiles_fit_the_shared_memory_of_an_sm() {
        for dtype in Dtype::ALL {
            for head_dim in HEAD_DIMS {
                let args = AttentionArgs::zeroed();
                let dims = Attention { dtype, head_dim }.dims(&args);
                assert!(
                    dims.dynamic_shared <= 99 * 1024,
                    "{dtype} {head_dim}: {}",
                    dims.dynamic_shared
                );
            }
        }
    }
}

//! `kernels/decode_attention.cu`: one query per sequence against its cache of keys and values. Two launches with the same arguments:
//! [`DecodeAttention`] over splits of the keys, then [`DecodeAttentionCombine`].

use bytemuck::{Pod, Zeroable};

use super::attention::check_heads;
use super::require;
use crate::backend::cuda::launch::{DevicePtr, Dims, Dtype, Kernel};

/// Keys in a split, and threads in a block of [`DecodeAttention`].
pub const SPLIT_KEYS: u32 = 256;
/// Query heads that a block takes.
const HEADS: u32 = 4;
const COMBINE_THREADS: u32 = 128;
/// Blocks in the grid's second and third dimension.
const MAX_GRID_YZ: u32 = 65_535;

/// Arguments of both launches. Strides are in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct DecodeAttentionArgs {
    /// `[sequences, n_heads, h]`
    pub q: DevicePtr,
    /// `[sequences, capacity, n_kv_heads, h]`: the key of position p in slot p mod capacity, the query's own included.
    pub k_cache: DevicePtr,
    /// As `k_cache`.
    pub v_cache: DevicePtr,
    /// u32 `[sequences]`: tokens so far, the query's own included. 0: nothing there, and `out` gets zeros. At most `capacity`
    /// of them may be visible.
    pub lengths: DevicePtr,
    /// u32 `[sequences]`: whose cache each sequence has. Null: sequence i has cache i.
    pub caches: DevicePtr,
    /// f32 `[sequences, n_heads, splits, h]`, scratch.
    pub partial_out: DevicePtr,
    /// f32 pairs `[sequences, n_heads, splits]`, scratch.
    pub partial_softmax: DevicePtr,
    /// `[sequences, n_heads, h]`
    pub out: DevicePtr,
    /// From one sequence's cache to the next's.
    pub k_sequence_stride: u64,
    pub v_sequence_stride: u64,
    /// From slot to slot, at least `n_kv_heads · h`.
    pub k_slot_stride: u32,
    pub v_slot_stride: u32,
    /// From sequence to sequence, at least `n_heads · h`.
    pub q_stride: u32,
    pub out_stride: u32,
    pub sequences: u32,
    /// A multiple of `n_kv_heads`.
    pub n_heads: u32,
    pub n_kv_heads: u32,
    /// Slots per sequence.
    pub capacity: u32,
    /// A query sees the last `window` keys, its own included; 0: all.
    pub window: u32,
    /// What [`splits`] says for the longest sequence, or more.
    pub splits: u32,
    /// Of the scores: 1/√h.
    pub scale: f32,
    pub _pad: u32,
}

/// Splits that a sequence of `length` tokens is cut into.
pub fn splits(length: u32, window: u32) -> u32 {
    let visible = if window == 0 {
        length
    } else {
        length.min(window)
    };
    visible.div_ceil(SPLIT_KEYS)
}

/// Bytes of `partial_out` and of `partial_softmax`.
pub fn scratch_bytes(sequences: u32, n_heads: u32, splits: u32, head_dim: u32) -> (usize, usize) {
    let rows = sequences as usize * n_heads as usize * splits as usize;
    (rows * head_dim as usize * 4, rows * 8)
}

/// The first launch. q, caches and out are of one type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DecodeAttention {
    pub dtype: Dtype,
    /// 64, 80, 96 or 128.
    pub head_dim: u32,
}

/// The second launch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DecodeAttentionCombine(pub DecodeAttention);

impl Kernel for DecodeAttention {
    type Args = DecodeAttentionArgs;

    fn name(&self) -> String {
        format!("decode_attention_{}_h{}", self.dtype, self.head_dim)
    }

    fn source(&self) -> &'static str {
        "decode_attention"
    }

    fn dims(&self, args: &DecodeAttentionArgs) -> Dims {
        let blocks_per_kv_head = (args.n_heads / args.n_kv_heads).div_ceil(HEADS);
        Dims {
            grid: [
                args.n_kv_heads * blocks_per_kv_head,
                args.splits,
                args.sequences,
            ],
            block: [SPLIT_KEYS, 1, 1],
            dynamic_shared: 0,
        }
    }

    fn check(&self, args: &DecodeAttentionArgs) -> Result<(), String> {
        check_heads(self.head_dim, args.n_heads, args.n_kv_heads)?;
        require::positive("capacity", args.capacity)?;
        for (name, size) in [("sequences", args.sequences), ("splits", args.splits)] {
            require::positive(name, size)?;
            require::at_most(name, size, MAX_GRID_YZ)?;
        }
        let q_width = args.n_heads * self.head_dim;
        let kv_width = args.n_kv_heads * self.head_dim;
        for (name, at, stride, width) in [
            ("q", args.q, args.q_stride, q_width),
            ("out", args.out, args.out_stride, q_width),
            ("k_cache", args.k_cache, args.k_slot_stride, kv_width),
            ("v_cache", args.v_cache, args.v_slot_stride, kv_width),
        ] {
            require::vector_rows(name, at, stride.into(), width, self.dtype.bytes())?;
        }
        let vector = require::VECTOR_BYTES / self.dtype.bytes() as u64;
        require::multiple("k_cache's sequence stride", args.k_sequence_stride, vector)?;
        require::multiple("v_cache's sequence stride", args.v_sequence_stride, vector)?;
        require::aligned("lengths", args.lengths, 4)?;
        require::aligned("partial_out", args.partial_out, 4)?;
        require::aligned("partial_softmax", args.partial_softmax, 8)
    }
}

impl Kernel for DecodeAttentionCombine {
    type Args = DecodeAttentionArgs;

    fn name(&self) -> String {
        format!(
            "decode_attention_combine_{}_h{}",
            self.0.dtype, self.0.head_dim
        )
    }

    fn source(&self) -> &'static str {
        self.0.source()
    }

    fn dims(&self, args: &DecodeAttentionArgs) -> Dims {
        Dims {
            grid: [args.n_heads, args.sequences, 1],
            block: [COMBINE_THREADS, 1, 1],
            dynamic_shared: 0,
        }
    }

    fn check(&self, args: &DecodeAttentionArgs) -> Result<(), String> {
        self.0.check(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: DecodeAttention = DecodeAttention {
        dtype: Dtype::BF16,
        head_dim: 128,
    };

    fn args() -> DecodeAttentionArgs {
        DecodeAttentionArgs {
            q: DevicePtr(256),
            k_cache: DevicePtr(512),
            v_cache: DevicePtr(768),
            lengths: DevicePtr(1024),
            caches: DevicePtr::NULL,
            partial_out: DevicePtr(1280),
            partial_softmax: DevicePtr(1536),
            out: DevicePtr(1792),
            k_sequence_stride: 4096 * 256,
            v_sequence_stride: 4096 * 256,
            k_slot_stride: 256,
            v_slot_stride: 256,
            q_stride: 1280,
            out_stride: 1280,
            sequences: 3,
            n_heads: 10,
            n_kv_heads: 2,
            capacity: 4096,
            window: 4096,
            splits: 16,
            scale: 0.088,
            _pad: 0,
        }
    }

    #[test]
    fn splits_are_those_of_the_visible_keys() {
        assert_eq!(
            [splits(0, 0), splits(1, 0), splits(256, 0), splits(257, 0)],
            [0, 1, 1, 2]
        );
        assert_eq!([splits(5000, 300), splits(100, 300)], [2, 1]);
    }

    #[test]
    fn heads_past_four_get_blocks_of_their_own() {
        assert_eq!(KERNEL.dims(&args()).grid, [4, 16, 3]);
        assert_eq!(
            DecodeAttentionCombine(KERNEL).dims(&args()).grid,
            [10, 3, 1]
        );
    }

    #[test]
    fn what_the_kernel_cannot_do_is_refused_by_name() {
        let refused = |change: fn(&mut DecodeAttentionArgs)| {
            let mut args = args();
            change(&mut args);
            DecodeAttentionCombine(KERNEL).check(&args).unwrap_err()
        };
        assert!(KERNEL.check(&args()).is_ok());
        assert_eq!(
            refused(|a| a.capacity = 0),
            "capacity is 0: there is nothing to launch"
        );
        assert_eq!(
            refused(|a| a.splits = 70_000),
            "splits is 70000, more than 65535"
        );
        assert_eq!(
            refused(|a| a.n_heads = 11),
            "n_heads is 11, not a multiple of 2"
        );
        assert_eq!(refused(|a| a.lengths = DevicePtr::NULL), "lengths is null");
        assert_eq!(
            refused(|a| a.out_stride = 1152),
            "out's row stride is 1152, less than its width 1280"
        );
        assert_eq!(
            refused(|a| a.v_sequence_stride = 260),
            "v_cache's sequence stride is 260, not a multiple of 8"
        );
        assert_eq!(
            DecodeAttention {
                head_dim: 72,
                ..KERNEL
            }
            .check(&args())
            .unwrap_err(),
            "head dim is 72, not one of [64, 80, 96, 128]"
        );
    }
}

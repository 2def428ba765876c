//! `kernels/decode_attention.cu`: one query per sequence against its cache of keys and values. Two launches with the same arguments:
//! [`DecodeAttention`] over splits of the keys, then [`DecodeAttentionCombine`].

use bytemuck::{Pod, Zeroable};

use crate::backend::cuda::launch::{DevicePtr, Dims, Dtype, Kernel};

/// Keys in a split, and threads in a block of [`DecodeAttention`].
pub const SPLIT_KEYS: u32 = 256;
/// Query heads that a block takes.
const HEADS: u32 = 4;
const COMBINE_THREADS: u32 = 128;
const HEAD_DIMS: [u32; 4] = [64, 80, 96, 128];

/// Arguments of both launches. Strides are in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct DecodeAttentionArgs {
    /// `[sequences, q_heads, h]`
    pub q: DevicePtr,
    /// `[sequences, capacity, kv_heads, h]`: the key of position p in slot p mod capacity, the query's own included.
    pub k_cache: DevicePtr,
    /// As `k_cache`.
    pub v_cache: DevicePtr,
    /// u32 `[sequences]`: tokens so far, the query's own included. 0: nothing there, and `out` gets zeros. At most `capacity`
    /// of them may be visible.
    pub lengths: DevicePtr,
    /// f32 `[sequences, q_heads, splits, h]`, scratch.
    pub partial_out: DevicePtr,
    /// f32 pairs `[sequences, q_heads, splits]`, scratch.
    pub partial_softmax: DevicePtr,
    /// `[sequences, q_heads, h]`
    pub out: DevicePtr,
    /// From one sequence's cache to the next's.
    pub k_sequence_stride: u64,
    pub v_sequence_stride: u64,
    /// From slot to slot, at least `kv_heads · h`.
    pub k_slot_stride: u32,
    pub v_slot_stride: u32,
    /// From sequence to sequence, at least `q_heads · h`.
    pub q_stride: u32,
    pub out_stride: u32,
    pub sequences: u32,
    /// A multiple of `kv_heads`.
    pub q_heads: u32,
    pub kv_heads: u32,
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
pub fn scratch_bytes(sequences: u32, q_heads: u32, splits: u32, head_dim: u32) -> (usize, usize) {
    let rows = sequences as usize * q_heads as usize * splits as usize;
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
        let blocks_per_kv_head = (args.q_heads / args.kv_heads).div_ceil(HEADS);
        Dims {
            grid: [
                args.kv_heads * blocks_per_kv_head,
                args.splits,
                args.sequences,
            ],
            block: [SPLIT_KEYS, 1, 1],
            dynamic_shared: 0,
        }
    }

    fn check(&self, args: &DecodeAttentionArgs) -> Result<(), String> {
        if !HEAD_DIMS.contains(&self.head_dim) {
            return Err(format!(
                "head dim {} is not one of {HEAD_DIMS:?}",
                self.head_dim
            ));
        }
        check_sizes(args)?;
        let vector = 16 / self.dtype.bytes() as u64;
        let head_dim = self.head_dim;
        let rows = [
            ("q", args.q_stride, args.q_heads),
            ("out", args.out_stride, args.q_heads),
            ("k_cache", args.k_slot_stride, args.kv_heads),
            ("v_cache", args.v_slot_stride, args.kv_heads),
        ];
        for (name, stride, heads) in rows {
            if u64::from(stride) < u64::from(heads) * u64::from(head_dim) {
                return Err(format!(
                    "{name}'s stride {stride} is less than {heads} heads of {head_dim}"
                ));
            }
        }
        let strides = [
            args.q_stride.into(),
            args.out_stride.into(),
            args.k_slot_stride.into(),
            args.v_slot_stride.into(),
            args.k_sequence_stride,
            args.v_sequence_stride,
        ];
        match strides.iter().find(|stride| !stride.is_multiple_of(vector)) {
            Some(stride) => Err(format!(
                "stride {stride} is not a multiple of {vector} elements"
            )),
            None => Ok(()),
        }
    }
}

fn check_sizes(args: &DecodeAttentionArgs) -> Result<(), String> {
    let sizes = [
        ("sequences", args.sequences),
        ("splits", args.splits),
        ("kv_heads", args.kv_heads),
        ("q_heads", args.q_heads),
        ("capacity", args.capacity),
    ];
    for (name, size) in sizes {
        if size == 0 {
            return Err(format!("{name} is 0"));
        }
    }
    for (name, size) in &sizes[..2] {
        if *size > 65_535 {
            return Err(format!("{name} is {size}, more than 65535"));
        }
    }
    if !args.q_heads.is_multiple_of(args.kv_heads) {
        return Err(format!(
            "{} query heads are not a multiple of {} key heads",
            args.q_heads, args.kv_heads
        ));
    }
    let pointers = [
        ("q", args.q),
        ("k_cache", args.k_cache),
        ("v_cache", args.v_cache),
        ("lengths", args.lengths),
        ("partial_out", args.partial_out),
        ("partial_softmax", args.partial_softmax),
        ("out", args.out),
    ];
    match pointers
        .iter()
        .find(|(_, at)| at.is_null() || !at.is_aligned(16))
    {
        Some((name, at)) => Err(format!(
            "{name} at {:#x} is null or not 16-byte aligned",
            at.0
        )),
        None => Ok(()),
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
            grid: [args.q_heads, args.sequences, 1],
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
            q_heads: 10,
            kv_heads: 2,
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
        assert_eq!(refused(|a| a.capacity = 0), "capacity is 0");
        assert_eq!(
            refused(|a| a.splits = 70_000),
            "splits is 70000, more than 65535"
        );
        assert_eq!(
            refused(|a| a.q_heads = 11),
            "11 query heads are not a multiple of 2 key heads"
        );
        assert_eq!(
            refused(|a| a.lengths = DevicePtr::NULL),
            "lengths at 0x0 is null or not 16-byte aligned"
        );
        assert_eq!(
            refused(|a| a.out_stride = 1152),
            "out's stride 1152 is less than 10 heads of 128"
        );
        assert_eq!(
            refused(|a| a.v_slot_stride = 260),
            "stride 260 is not a multiple of 8 elements"
        );
        assert_eq!(
            DecodeAttention {
                head_dim: 72,
                ..KERNEL
            }
            .check(&args())
            .unwrap_err(),
            "head dim 72 is not one of [64, 80, 96, 128]"
        );
    }
}

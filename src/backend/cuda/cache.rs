//! Keys and values that outlive their batch, for generation: per layer and sequence as many slots as a query can see, taken in turn.

use super::arena::Cutter;
use super::backend::CudaOptions;
use super::kernels::cache::NOWHERE;
use super::kernels::decode_attention::{scratch_bytes, splits};
use super::launch::DevicePtr;
use crate::backend::Batch;
use crate::backend::cpu::Shape;

/// Where the caches lie.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    /// Keys and values of each layer, `[sequences, capacity, K·h]`: position p in slot p mod capacity.
    pub layers: Vec<(DevicePtr, DevicePtr)>,
    pub capacity: usize,
    /// Of the batch: u32 `[rows]`, `[sequences]`, `[sequences]`.
    pub slots: DevicePtr,
    pub lengths: DevicePtr,
    pub caches: DevicePtr,
    /// Of decode attention.
    pub partial_out: DevicePtr,
    pub partial_softmax: DevicePtr,
    pub splits: u32,
}

impl Cache {
    /// None, where no sequences are asked for.
    pub fn cut(cutter: &mut Cutter, shape: &Shape, options: &CudaOptions) -> Option<Cache> {
        let sequences = options.sequences;
        if sequences == 0 {
            return None;
        }
        // With a window, what no query can see any more is overwritten.
        let window = shape.window.unwrap_or(usize::MAX);
        let capacity = options.positions.min(window);
        let (width, h) = (shape.n_kv_heads * shape.head_dim, shape.head_dim as u32);
        let mut rows = || cutter.take(sequences * capacity * width * options.dtype.bytes());
        let layers = (0..shape.n_layers).map(|_| (rows(), rows())).collect();
        let splits = splits(capacity as u32, 0);
        let (out, softmax) = scratch_bytes(sequences as u32, shape.n_heads as u32, splits, h);
        Some(Cache {
            layers,
            capacity,
            slots: cutter.take(options.rows * 4),
            lengths: cutter.take(sequences * 4),
            caches: cutter.take(sequences * 4),
            partial_out: cutter.take(out),
            partial_softmax: cutter.take(softmax),
            splits,
        })
    }

    /// The slot of each row of a batch whose samples are the next tokens of these sequences.
    pub fn slots(&self, batch: &Batch, sequences: &[usize]) -> Vec<u32> {
        let mut slots = Vec::with_capacity(batch.rows());
        for (rows, sequence) in batch.samples().zip(sequences) {
            let positions = &batch.positions[rows];
            let length = positions.last().map_or(0, |&p| p as usize + 1);
            slots.extend(positions.iter().map(|&p| match p as usize {
                passed if passed + self.capacity < length => NOWHERE,
                p => (sequence * self.capacity + p % self.capacity) as u32,
            }));
        }
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_prompt_longer_than_the_window_the_last_tokens_are_kept() {
        let cache = Cache {
            layers: Vec::new(),
            capacity: 3,
            slots: DevicePtr::NULL,
            lengths: DevicePtr::NULL,
            caches: DevicePtr::NULL,
            partial_out: DevicePtr::NULL,
            partial_softmax: DevicePtr::NULL,
            splits: 1,
        };
        let batch = Batch::pack([&[1, 2, 3, 4, 5][..], &[6]]);
        let slots = cache.slots(&batch, &[2, 0]);
        assert_eq!(slots, [NOWHERE, NOWHERE, 6 + 2, 6, 6 + 1, 0]);
    }
}

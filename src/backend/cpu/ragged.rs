//! Sinks of ragged rows: scores and patterns go from attention's tasks to their place.

use std::ops::Range;

use super::emit::store_row;
use crate::backend::Sink;

/// Sinks of ragged rows, shared by the tasks: for each sample `[heads, selected rows, tokens]`.
pub(super) struct RaggedSinks<'r>(Vec<RaggedSink<'r>>);

struct RaggedSink<'r> {
    bytes: *mut u8,
    len: usize,
    dtype: crate::backend::SinkDtype,
    /// Place of each query head among those kept.
    head_place: Vec<Option<usize>>,
    heads_kept: usize,
    /// Selected rows of each sample, counted in the sample, and the element where its tensor begins.
    samples: Vec<(Vec<u32>, usize)>,
    marker: std::marker::PhantomData<&'r mut [u8]>,
}

// SAFETY: `write` touches only the row of the task's own sample and head.
unsafe impl Sync for RaggedSinks<'_> {}

impl<'r> RaggedSinks<'r> {
    pub fn new(sinks: &'r mut [Sink<'_>], samples: &[Range<usize>], n_heads: usize) -> Self {
        RaggedSinks(
            sinks
                .iter_mut()
                .map(|sink| {
                    let kept: Vec<usize> = if sink.spec.heads.is_empty() {
                        (0..n_heads).collect()
                    } else {
                        sink.spec.heads.clone()
                    };
                    let mut at = 0;
                    let mut row = 0;
                    let layout = samples
                        .iter()
                        .zip(&sink.per_sample)
                        .map(|(sample, &count)| {
                            let rows: Vec<u32> = sink.rows[row..row + count as usize]
                                .iter()
                                .map(|&r| r - sample.start as u32)
                                .collect();
                            row += count as usize;
                            let begins = at;
                            at += kept.len() * rows.len() * sample.len();
                            (rows, begins)
                        })
                        .collect();
                    assert_eq!(
                        sink.bytes.len(),
                        at * sink.spec.dtype.size(),
                        "a ragged sink holds [heads, rows, tokens] of its samples"
                    );
                    sink.seen = sink.rows.len();
                    RaggedSink {
                        bytes: sink.bytes.as_mut_ptr(),
                        len: sink.bytes.len(),
                        dtype: sink.spec.dtype,
                        head_place: (0..n_heads)
                            .map(|h| kept.iter().position(|&k| k == h))
                            .collect(),
                        heads_kept: kept.len(),
                        samples: layout,
                        marker: std::marker::PhantomData,
                    }
                })
                .collect(),
        )
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes query `i`'s row of `n` keys: `values` from key `first` on, `rest` elsewhere.
    #[allow(clippy::too_many_arguments)]
    pub fn write(
        &self,
        sample: usize,
        head: usize,
        i: usize,
        n: usize,
        first: usize,
        values: &[f32],
        rest: f32,
    ) {
        for sink in &self.0 {
            let (rows, begins) = &sink.samples[sample];
            let (Some(head), Ok(row)) = (sink.head_place[head], rows.binary_search(&(i as u32)))
            else {
                continue;
            };
            debug_assert!(head < sink.heads_kept);
            let size = sink.dtype.size();
            let at = (begins + (head * rows.len() + row) * n) * size;
            assert!(at + n * size <= sink.len);
            // SAFETY: in bounds by the assert; this row belongs to this task alone, and the slice ends with the call.
            let out = unsafe { std::slice::from_raw_parts_mut(sink.bytes.add(at), n * size) };
            let mut full = vec![rest; n];
            full[first..first + values.len()].copy_from_slice(values);
            store_row(&full, sink.dtype, out);
        }
    }
}

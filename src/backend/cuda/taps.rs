//! The tap on the device: selected rows and columns, reduced and converted into a piece of the ring, and from there to the sink's
//! memory. Unselected rows never leave the device, and a piece is small, however large the sink.

use std::ops::Range;

use super::arena::PieceId;
use super::backend::View;
use super::driver::Driver;
use super::kernels::gather::{Gather, GatherArgs};
use super::kernels::quantise::{Quantise, QuantiseArgs};
use super::kernels::reduce::{Dot, DotArgs, K_MAX, Mean, MeanArgs, Norm, NormArgs, TopK, TopKArgs};
use super::kernels::segments;
use super::launch::{DevicePtr, Dtype, Kernel, LaunchError, launch};
use super::pass::{Pass, Within};
use crate::backend::{Act, Reduce, Sink, SinkDtype, SinkId};

type Launched<T = ()> = Result<T, LaunchError>;

/// Share of the ring that one piece takes at most, so that several are on their way at a time.
const PIECES: usize = 8;

impl From<SinkDtype> for Dtype {
    fn from(dtype: SinkDtype) -> Self {
        match dtype {
            SinkDtype::F32 => Dtype::F32,
            SinkDtype::F16 => Dtype::F16,
            SinkDtype::BF16 => Dtype::BF16,
            // What means are made in before they are rounded to 8 bits.
            SinkDtype::F8E4M3 | SinkDtype::Int8 => Dtype::F32,
        }
    }
}

/// Some rows of an activation: where they begin, and a list of them unless they follow each other.
struct Source {
    view: View,
    list: Option<(PieceId, DevicePtr)>,
}

impl Source {
    fn rows(&self) -> DevicePtr {
        self.list.map_or(DevicePtr::NULL, |(_, at)| at)
    }
}

impl<D: Driver> Pass<'_, '_, D> {
    /// Writes those of the sink's rows that `act` holds: all, or those among `rows`, which are then all it holds.
    pub(super) fn emit_some(&mut self, act: Act, rows: Option<&[u32]>, id: SinkId) -> Launched {
        let Some(mut sink) = self.sinks[id].take() else {
            return Ok(());
        };
        let result = match self.bound_to(act, id) {
            Some(piece) => {
                sink.seen = sink.rows.len();
                // SAFETY: the memory is the sink's, which the pass holds until the copy is done.
                unsafe { self.send_bound(act, piece, sink.bytes.as_mut_ptr(), sink.bytes.len()) }
            }
            None => self.move_home(act).and_then(|()| {
                let left = &sink.rows[sink.seen..];
                let src_rows: Vec<u32> = match rows {
                    None => left.to_vec(),
                    Some(rows) => left
                        .iter()
                        .map_while(|r| rows.binary_search(r).ok())
                        .map(|place| place as u32)
                        .collect(),
                };
                self.write_rows(id, &mut sink, self.view(act), &src_rows)
            }),
        };
        self.sinks[id] = Some(sink);
        result
    }

    /// Writes the sink's next rows, piece by piece.
    fn write_rows(
        &mut self,
        id: SinkId,
        sink: &mut Sink<'_>,
        from: View,
        src_rows: &[u32],
    ) -> Launched {
        let spec = sink.spec.clone();
        let columns = match &spec.columns[..] {
            [] => vec![0..from.width],
            some => some.to_vec(),
        };
        let width: usize = columns.iter().map(ExactSizeIterator::len).sum();
        let side = spec.compact(from.width).map_or(0, |c| c.side_bytes());
        let widest = width.max(spec.stored_width(from.width)) + side.div_ceil(4);
        let per_piece = (self.cuda.ring.size() / PIECES / (widest * 4)).max(1);
        for rows in src_rows.chunks(per_piece) {
            let source = self.source(from, rows)?;
            match spec.reduce {
                Reduce::None if spec.dtype.code().is_none() => {
                    self.write_plain(sink, &source, &columns, rows.len())?;
                }
                _ => self.write_made(id, sink, &source, &columns, rows.len())?,
            }
            if let Some((piece, _)) = source.list {
                self.release(piece);
            }
            sink.seen += rows.len();
        }
        Ok(())
    }

    fn source(&mut self, from: View, rows: &[u32]) -> Launched<Source> {
        let first = rows[0];
        let consecutive = rows.last() == Some(&(first + rows.len() as u32 - 1));
        if consecutive {
            let skipped = first as usize * from.stride * from.dtype.bytes();
            let view = View {
                at: from.at.offset(skipped),
                ..from
            };
            return Ok(Source { view, list: None });
        }
        let list = Some(self.upload(bytemuck::cast_slice(rows))?);
        Ok(Source { view: from, list })
    }

    /// The chosen columns of the source's rows in `to`, end to end, in a piece.
    fn gather(
        &mut self,
        source: &Source,
        columns: &[Range<usize>],
        n: usize,
        to: Dtype,
    ) -> Launched<(PieceId, DevicePtr)> {
        let table = segments(columns);
        let width: usize = columns.iter().map(ExactSizeIterator::len).sum();
        let (table_piece, table_at) = self.upload(bytemuck::cast_slice(&table))?;
        let (piece, at) = self.take(n * width * to.bytes())?;
        launch(
            &mut self.cuda.driver,
            &Gather {
                from: source.view.dtype,
                to,
            },
            &GatherArgs {
                source: source.view.at,
                rows: source.rows(),
                segments: table_at,
                out: at,
                source_stride: source.view.stride as u64,
                out_stride: width as u64,
                selected: n as u32,
                segment_count: table.len() as u32,
            },
        )?;
        self.release(table_piece);
        Ok((piece, at))
    }

    fn write_plain(
        &mut self,
        sink: &mut Sink<'_>,
        source: &Source,
        columns: &[Range<usize>],
        n: usize,
    ) -> Launched {
        let width: usize = columns.iter().map(ExactSizeIterator::len).sum();
        let row_bytes = width * sink.spec.dtype.size();
        let (piece, at) = self.gather(source, columns, n, sink.spec.dtype.into())?;
        let to = &mut sink.bytes[sink.seen * row_bytes..(sink.seen + n) * row_bytes];
        // SAFETY: the memory is the sink's, which the pass holds until the copy is done.
        unsafe { self.send(piece, at, to.as_mut_ptr(), to.len()) }
    }

    /// Writes rows that a kernel makes of the chosen columns: reduced, or in 8 bits.
    fn write_made(
        &mut self,
        id: SinkId,
        sink: &mut Sink<'_>,
        source: &Source,
        columns: &[Range<usize>],
        n: usize,
    ) -> Launched {
        // These kernels read one range of columns.
        let (gathered, view, rows) = match columns {
            [one] => {
                let skipped = one.start * source.view.dtype.bytes();
                let view = View {
                    at: source.view.at.offset(skipped),
                    width: one.len(),
                    ..source.view
                };
                (None, view, source.rows())
            }
            many => {
                let width = many.iter().map(ExactSizeIterator::len).sum();
                let (piece, at) = self.gather(source, many, n, source.view.dtype)?;
                let view = View {
                    at,
                    stride: width,
                    width,
                    ..source.view
                };
                (Some(piece), view, DevicePtr::NULL)
            }
        };
        match sink.spec.reduce.clone() {
            Reduce::None => self.send_compact(sink, view, rows, sink.seen, n)?,
            Reduce::Norm => {
                let (piece, out) = self.take(n * 4)?;
                let args = NormArgs {
                    source: view.at,
                    rows,
                    out,
                    source_stride: view.stride as u64,
                    selected: n as u32,
                    width: view.width as u32,
                };
                self.reduce(&Norm { dtype: view.dtype }, &args)?;
                self.send_f32(sink, (piece, out), sink.seen, n, 1)?;
            }
            Reduce::Dot(directions) => {
                let count = directions.len() / view.width;
                let (list, at) = self.upload(bytemuck::cast_slice(&directions))?;
                let (piece, out) = self.take(n * count * 4)?;
                let args = DotArgs {
                    source: view.at,
                    rows,
                    directions: at,
                    out,
                    source_stride: view.stride as u64,
                    selected: n as u32,
                    width: view.width as u32,
                    direction_count: count as u32,
                    _pad: 0,
                };
                self.reduce(&Dot { dtype: view.dtype }, &args)?;
                self.release(list);
                self.send_f32(sink, (piece, out), sink.seen, n, count)?;
            }
            Reduce::TopK(k) => self.top_k(sink, view, rows, n, k, false)?,
            Reduce::LogProbTopK(k) => self.top_k(sink, view, rows, n, k, true)?,
            Reduce::Mean => self.mean(id, sink, view, rows, n)?,
        }
        if let Some(piece) = gathered {
            self.release(piece);
        }
        Ok(())
    }

    fn reduce<K: Kernel>(&mut self, kernel: &K, args: &K::Args) -> Launched {
        launch(&mut self.cuda.driver, kernel, args)
    }

    /// Sends rows of f32 to the sink's rows from `first` on, in the sink's dtype.
    fn send_f32(
        &mut self,
        sink: &mut Sink<'_>,
        (piece, at): (PieceId, DevicePtr),
        first: usize,
        n: usize,
        width: usize,
    ) -> Launched {
        if sink.spec.dtype.code().is_some() {
            let view = View {
                at,
                stride: width,
                width,
                dtype: Dtype::F32,
            };
            self.send_compact(sink, view, DevicePtr::NULL, first, n)?;
            self.release(piece);
            return Ok(());
        }
        let dtype = Dtype::from(sink.spec.dtype);
        let row_bytes = width * dtype.bytes();
        let to = &mut sink.bytes[first * row_bytes..(first + n) * row_bytes];
        let (ready, from) = if dtype == Dtype::F32 {
            (piece, at)
        } else {
            let view = View {
                at,
                stride: width,
                width,
                dtype: Dtype::F32,
            };
            let source = Source { view, list: None };
            let (narrow, from) =
                self.gather(&source, std::slice::from_ref(&(0..width)), n, dtype)?;
            self.release(piece);
            (narrow, from)
        };
        // SAFETY: the memory is the sink's, which the pass holds until the copy is done.
        unsafe { self.send(ready, from, to.as_mut_ptr(), to.len()) }
    }

    /// Sends rows in the sink's 8 bits: codes, and side rows beside them.
    fn send_compact(
        &mut self,
        sink: &mut Sink<'_>,
        view: View,
        rows: DevicePtr,
        first: usize,
        n: usize,
    ) -> Launched {
        let (Some(code), Some(side)) = (sink.spec.dtype.code(), &mut sink.index) else {
            return Err(LaunchError::Device {
                what: "rows in 8 bits".into(),
                reason: "there is no memory for what stands beside them".into(),
            });
        };
        let kernel = Quantise {
            dtype: view.dtype,
            code,
        };
        let (width, side_row) = (view.width, kernel.compact(view.width).side_bytes());
        let (codes_piece, codes) = self.take(n * width)?;
        let (side_piece, side_rows) = self.take(n * side_row)?;
        let args = QuantiseArgs {
            source: view.at,
            rows,
            codes,
            side: side_rows,
            source_stride: view.stride as u64,
            selected: n as u32,
            width: width as u32,
        };
        self.reduce(&kernel, &args)?;
        let side = &mut side[first * side_row..(first + n) * side_row];
        let bytes = &mut sink.bytes[first * width..(first + n) * width];
        // SAFETY: the memory is the sink's, which the pass holds until the copies are done.
        unsafe {
            self.send(side_piece, side_rows, side.as_mut_ptr(), side.len())?;
            self.send(codes_piece, codes, bytes.as_mut_ptr(), bytes.len())
        }
    }

    fn top_k(
        &mut self,
        sink: &mut Sink<'_>,
        view: View,
        rows: DevicePtr,
        n: usize,
        k: usize,
        log_prob: bool,
    ) -> Launched {
        if k > K_MAX as usize {
            return Err(LaunchError::Device {
                what: format!("the {k} largest components"),
                reason: format!(
                    "the CUDA backend finds at most {K_MAX}: ask for fewer, or use --device cpu"
                ),
            });
        }
        let (values_piece, values) = self.take(n * k * 4)?;
        let (indices_piece, indices) = self.take(n * k * 4)?;
        let args = TopKArgs {
            source: view.at,
            rows,
            values,
            indices,
            source_stride: view.stride as u64,
            selected: n as u32,
            width: view.width as u32,
            k: k as u32,
            _pad: 0,
        };
        let kernel = TopK {
            dtype: view.dtype,
            log_prob,
        };
        self.reduce(&kernel, &args)?;
        let seen = sink.seen;
        if let Some(index) = &mut sink.index {
            let to = &mut index[seen * k * 4..(seen + n) * k * 4];
            // SAFETY: the memory is the sink's, which the pass holds until the copy is done.
            unsafe { self.send(indices_piece, indices, to.as_mut_ptr(), to.len())? };
        } else {
            self.release(indices_piece);
        }
        self.send_f32(sink, (values_piece, values), seen, n, k)
    }

    /// Means of the samples that the sink's next `n` rows belong to; those that end among them are sent.
    fn mean(
        &mut self,
        id: SinkId,
        sink: &mut Sink<'_>,
        view: View,
        rows: DevicePtr,
        n: usize,
    ) -> Launched {
        let (slot, turn) = self.means[id];
        self.means[id].1 = !turn;
        let (carry_in, carry_out) = self.cuda.places.mean_carry(slot, turn);
        let part = MeanPart::of(&sink.per_sample, sink.seen, n);
        let samples = part.counts.len();
        let (cu_piece, cu_rows) = self.upload(bytemuck::cast_slice(&part.cu_rows))?;
        let (counts_piece, counts) = self.upload(bytemuck::cast_slice(&part.counts))?;
        let (piece, out) = self.take(samples * view.width * 4)?;
        let args = MeanArgs {
            source: view.at,
            rows,
            cu_rows,
            counts,
            carry_in,
            carry_out,
            out,
            source_stride: view.stride as u64,
            samples: samples as u32,
            width: view.width as u32,
            earlier: part.earlier,
            _pad: 0,
        };
        self.reduce(&Mean { dtype: view.dtype }, &args)?;
        self.release(cu_piece);
        self.release(counts_piece);
        if part.complete == 0 {
            self.release(piece);
            return Ok(());
        }
        self.send_f32(
            sink,
            (piece, out),
            part.means_before,
            part.complete,
            view.width,
        )
    }

    /// Scores or patterns of the sink's rows and heads: per sample `[heads, rows, tokens]`, cut into pieces that fit.
    pub(super) fn emit_ragged(&mut self, id: SinkId, within: Within<'_>) -> Launched {
        let Some(mut sink) = self.sinks[id].take() else {
            return Ok(());
        };
        let result = self.ragged(&mut sink, within);
        sink.seen = sink.rows.len();
        self.sinks[id] = Some(sink);
        result
    }

    fn ragged(&mut self, sink: &mut Sink<'_>, within: Within<'_>) -> Launched {
        let heads: Vec<u32> = match &sink.spec.heads[..] {
            [] => (0..within.attention.n_heads).collect(),
            some => some.iter().map(|&head| head as u32).collect(),
        };
        let size = sink.spec.dtype.size();
        let widest = if within.edits.is_empty() { size } else { 4 };
        let most = self.cuda.ring.size() / PIECES / widest;
        let (mut first, mut at) = (0, 0);
        let samples: Vec<Range<usize>> = self.batch().samples().collect();
        for (sample, rows) in samples.into_iter().enumerate() {
            let asked = sink.per_sample[sample] as usize;
            let n = rows.len();
            let selected: Vec<u32> = sink.rows[first..first + asked]
                .iter()
                .map(|row| row - rows.start as u32)
                .collect();
            first += asked;
            // Whole heads while one fits, else some rows of one head: either way a run of the tensor.
            let heads_at_once = (most / (asked * n).max(1)).clamp(1, heads.len());
            let rows_at_once = (most / n).clamp(1, asked.max(1));
            for heads in heads.chunks(heads_at_once) {
                for selected in selected.chunks(rows_at_once) {
                    let bytes = heads.len() * selected.len() * n * size;
                    let to = &mut sink.bytes[at..at + bytes];
                    self.ragged_piece(
                        sink.spec.dtype.into(),
                        heads,
                        selected,
                        (sample, rows.start as u32..rows.end as u32),
                        within,
                        to,
                    )?;
                    at += bytes;
                }
            }
        }
        Ok(())
    }

    fn ragged_piece(
        &mut self,
        dtype: Dtype,
        heads: &[u32],
        selected: &[u32],
        (sample, rows): (usize, Range<u32>),
        within: Within<'_>,
        to: &mut [u8],
    ) -> Launched {
        let (n, elements) = (rows.len(), to.len() / dtype.bytes());
        // What is edited is edited in f32, as it is where z is made of it.
        let made = if within.edits.is_empty() {
            dtype
        } else {
            Dtype::F32
        };
        let (mut piece, mut out) = self.weights(made, heads, selected, rows, within)?;
        if !within.edits.is_empty() {
            self.edit_for_sink(within.edits, sample, out, heads, selected, n)?;
        }
        if made != dtype {
            let view = View {
                at: out,
                stride: n,
                width: n,
                dtype: made,
            };
            let source = Source { view, list: None };
            let (narrow, at) = self.gather(&source, &[0..n], elements / n, dtype)?;
            self.release(piece);
            (piece, out) = (narrow, at);
        }
        // SAFETY: the memory is the sink's, which the pass holds until the copy is done.
        unsafe { self.send(piece, out, to.as_mut_ptr(), to.len()) }
    }
}

/// Which samples some of a sink's rows belong to, as the mean's kernel wants it.
#[derive(Debug, PartialEq, Eq)]
struct MeanPart {
    /// Where each sample's rows begin among these, and where the last one's end.
    cu_rows: Vec<u32>,
    /// Rows of each sample, these and others.
    counts: Vec<u32>,
    /// Rows of the first sample that came before.
    earlier: u32,
    /// Means of samples that ended before, and that end among these rows.
    means_before: usize,
    complete: usize,
}

impl MeanPart {
    /// Of the `n` rows from `first` on, where each sample has `per_sample` rows.
    fn of(per_sample: &[u32], first: usize, n: usize) -> MeanPart {
        let mut part = MeanPart {
            cu_rows: vec![0],
            counts: Vec::new(),
            earlier: 0,
            means_before: 0,
            complete: 0,
        };
        let (mut begin, end) = (0, first + n);
        for &count in per_sample.iter().filter(|&&count| count > 0) {
            let stop = begin + count as usize;
            if stop <= first {
                part.means_before += 1;
            } else if begin < end {
                if begin < first {
                    part.earlier = (first - begin) as u32;
                }
                part.counts.push(count);
                part.cu_rows.push((stop.min(end) - first) as u32);
                part.complete += usize::from(stop <= end);
            }
            begin = stop;
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_that_straddles_calls_is_told_what_came_before() {
        let per_sample = [2, 0, 5, 1];
        let part = MeanPart::of(&per_sample, 0, 4);
        assert_eq!(
            (&part.cu_rows[..], &part.counts[..]),
            (&[0, 2, 4][..], &[2, 5][..])
        );
        assert_eq!((part.earlier, part.means_before, part.complete), (0, 0, 1));
        let part = MeanPart::of(&per_sample, 4, 4);
        assert_eq!(
            (&part.cu_rows[..], &part.counts[..]),
            (&[0, 3, 4][..], &[5, 1][..])
        );
        assert_eq!((part.earlier, part.means_before, part.complete), (2, 1, 2));
    }
}

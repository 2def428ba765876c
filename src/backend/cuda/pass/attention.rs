//! Attention, with what is read and changed inside it.
//!
//! The kernels never have the pattern whole. Where it is edited, the rows and heads concerned are computed again in f32, piece by piece,
//! changed where they lie, and multiplied with the values; what the kernel made of them before is overwritten.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Launched, Pass};
use crate::backend::cuda::arena::PieceId;
use crate::backend::cuda::backend::View;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::edits::{Norms, Part};
use crate::backend::cuda::kernels::attention::AttentionArgs;
use crate::backend::cuda::kernels::attention_scores::{
    Asked, AttentionScores, AttentionScoresArgs,
};
use crate::backend::cuda::kernels::edit::EditKind;
use crate::backend::cuda::kernels::pattern::{PatternRow, PatternValues, PatternValuesArgs};
use crate::backend::cuda::launch::{DevicePtr, Dtype, LaunchError, launch};
use crate::backend::{Act, AttentionHooks, Change, EditId};

/// Share of the ring that one piece of a pattern takes at most.
const PIECES: usize = 8;

/// What a sink takes from within attention.
#[derive(Clone, Copy)]
pub(in crate::backend::cuda) struct Within<'a> {
    pub attention: &'a AttentionArgs,
    /// Null: scores; else patterns.
    pub lse: DevicePtr,
    /// Of the pattern, made before the sink takes it.
    pub edits: &'a [EditId],
}

/// One edit's share of one sample's pattern.
struct Share {
    id: EditId,
    /// Place of each query head among those edited.
    head_places: BTreeMap<u32, usize>,
    /// Selected rows, counted among the sample's rows of this batch.
    rows: Vec<u32>,
    /// Where they begin among the edit's, and where the sample's `[heads, rows, tokens]` begin in the replacement.
    first: usize,
    replacement: usize,
}

/// Some rows of some heads of one sample's pattern on the device, f32 `[heads, rows, n]`.
struct Piece<'a> {
    at: DevicePtr,
    heads: &'a [u32],
    /// Counted among the sample's rows of this batch.
    rows: &'a [u32],
    /// The position of the sample's first row, and its tokens so far.
    position: u32,
    n: u32,
}

impl<D: Driver> Pass<'_, '_, D> {
    pub(super) fn attend(&mut self, layer: usize, z: Act, hooks: AttentionHooks<'_>) -> Launched {
        self.keep_keys_and_values(layer)?;
        if !hooks.edits.is_empty() {
            self.let_go(z); // it is written in pieces, while the ring goes round
        }
        if self.is_decoding() {
            return self.attend_newest(layer, z, hooks);
        }
        if !(hooks.scores.is_empty() && hooks.patterns.is_empty() && hooks.edits.is_empty()) {
            // Scores and patterns are computed from them piece by piece, while the ring goes round.
            self.move_home(Act::RotQ)?;
            self.move_home(Act::RotK)?;
        }
        let [q, k, v, to] = [Act::RotQ, Act::RotK, Act::V, z].map(|act| self.view(act));
        let (shape, places) = (&self.cuda.shape, &self.cuda.places);
        let args = AttentionArgs {
            q: q.at,
            k: k.at,
            v: v.at,
            z: to.at,
            lse: if hooks.patterns.is_empty() && hooks.edits.is_empty() {
                DevicePtr::NULL
            } else {
                places.log_sum_exp
            },
            cu_seqlens: places.cu_seqlens,
            tiles: places.tiles,
            q_stride: q.stride as u32,
            k_stride: k.stride as u32,
            v_stride: v.stride as u32,
            z_stride: to.stride as u32,
            n_heads: shape.n_heads as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            rows: self.rows(),
            n_tiles: self.n_tiles,
            window: self.cuda.window(),
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let kernel = self.cuda.attention();
        launch(&mut self.cuda.driver, &kernel, &args)?;
        let within = |lse, edits| Within {
            attention: &args,
            lse,
            edits,
        };
        for &sink in hooks.scores {
            self.emit_ragged(sink, within(DevicePtr::NULL, &[]))?;
        }
        let seen = if hooks.taps_before_edits {
            &[]
        } else {
            hooks.edits
        };
        for &sink in hooks.patterns {
            self.emit_ragged(sink, within(args.lse, seen))?;
        }
        self.edit_patterns(hooks.edits, within(args.lse, &[]))
    }

    /// Makes the edits of the pattern in what they touch of z.
    fn edit_patterns(&mut self, edits: &[EditId], within: Within<'_>) -> Launched {
        if edits.is_empty() {
            return Ok(());
        }
        let samples: Vec<Range<usize>> = self.batch.samples().collect();
        for (sample, range) in samples.into_iter().enumerate() {
            let shares = self.shares(edits, sample);
            let n = range.len();
            let most = self.cuda.ring.size() / PIECES / (4 * n);
            for (heads, rows) in touched(&shares, within.attention.n_heads) {
                let rows_at_once = most.clamp(1, rows.len());
                let heads_at_once = (most / rows_at_once).clamp(1, heads.len());
                for heads in heads.chunks(heads_at_once) {
                    for rows in rows.chunks(rows_at_once) {
                        let batch_rows = range.start as u32..range.end as u32;
                        let (held, at) =
                            self.weights(Dtype::F32, heads, rows, batch_rows.clone(), within)?;
                        let piece = Piece {
                            at,
                            heads,
                            rows,
                            position: 0,
                            n: n as u32,
                        };
                        self.edit_piece(&piece, &shares, true)?;
                        let v = DevicePtr(within.attention.v.0).offset(
                            range.start * within.attention.v_stride as usize * self.dtype().bytes(),
                        );
                        let v_stride = within.attention.v_stride;
                        self.weigh_values(&piece, batch_rows, (v, v_stride, n as u32))?;
                        self.release(held);
                    }
                }
            }
        }
        Ok(())
    }

    /// Scores or patterns of some rows and heads of the sample that has these rows of the batch: `[heads, rows, n]` in a piece.
    pub(in crate::backend::cuda) fn weights(
        &mut self,
        dtype: Dtype,
        heads: &[u32],
        selected: &[u32],
        rows: Range<u32>,
        within: Within<'_>,
    ) -> Launched<(PieceId, DevicePtr)> {
        let kernel = AttentionScores {
            dtype: self.cuda.options.dtype,
            head_dim: self.cuda.shape.head_dim as u32,
        };
        let elements = heads.len() * selected.len() * rows.len();
        let tiles = kernel.tiles(&[Asked {
            rows,
            selected: 0..selected.len() as u32,
            out: 0,
        }]);
        let (heads_piece, heads_at) = self.upload(bytemuck::cast_slice(heads))?;
        let (selected_piece, selected_at) = self.upload(bytemuck::cast_slice(selected))?;
        let (tiles_piece, tiles_at) = self.upload(bytemuck::cast_slice(&tiles))?;
        let (piece, out) = self.take(elements * dtype.bytes())?;
        let attention = within.attention;
        let args = AttentionScoresArgs {
            q: attention.q,
            k: attention.k,
            lse: within.lse,
            out,
            tiles: tiles_at,
            selected: selected_at,
            heads: heads_at,
            q_stride: attention.q_stride,
            k_stride: attention.k_stride,
            n_heads: attention.n_heads,
            n_kv_heads: attention.n_kv_heads,
            rows: attention.rows,
            n_tiles: tiles.len() as u32,
            heads_kept: heads.len() as u32,
            window: attention.window,
            out_dtype: AttentionScores::out_dtype(dtype),
            scale: attention.scale,
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        for piece in [heads_piece, selected_piece, tiles_piece] {
            self.release(piece);
        }
        Ok((piece, out))
    }

    /// Edits the f32 pattern in a piece: some rows and heads of the `sample`-th sample, for a sink.
    pub(in crate::backend::cuda) fn edit_for_sink(
        &mut self,
        edits: &[EditId],
        sample: usize,
        at: DevicePtr,
        heads: &[u32],
        rows: &[u32],
        n: usize,
    ) -> Launched {
        let shares = self.shares(edits, sample);
        let piece = Piece {
            at,
            heads,
            rows,
            position: 0,
            n: n as u32,
        };
        self.edit_piece(&piece, &shares, false)
    }

    /// What each edit has to do in one sample.
    fn shares(&self, edits: &[EditId], sample: usize) -> Vec<Share> {
        let (n_heads, samples) = (self.cuda.shape.n_heads, self.batch.samples());
        let lengths: Vec<usize> = samples.map(|rows| rows.len()).collect();
        let start = self.batch.cu_seqlens[sample];
        let of = |&id: &EditId| {
            let edit = &self.edits[id];
            let heads: Vec<usize> = match &edit.spec.heads[..] {
                [] => (0..n_heads).collect(),
                some => some.to_vec(),
            };
            let (mut first, mut replacement) = (0, 0);
            for (&count, n) in edit.per_sample.iter().zip(&lengths).take(sample) {
                first += count as usize;
                replacement += heads.len() * count as usize * n;
            }
            let count = edit.per_sample[sample] as usize;
            Share {
                id,
                head_places: heads.into_iter().map(|h| h as u32).zip(0..).collect(),
                rows: edit.rows[first..first + count]
                    .iter()
                    .map(|row| row - start)
                    .collect(),
                first,
                replacement,
            }
        };
        edits.iter().map(of).collect()
    }

    /// Makes every edit that meets the piece, in order; `counts`: the receipts hold it.
    fn edit_piece(&mut self, piece: &Piece<'_>, shares: &[Share], counts: bool) -> Launched {
        for share in shares {
            let heads: Vec<usize> = (0..piece.heads.len())
                .filter(|&i| share.head_places.contains_key(&piece.heads[i]))
                .collect();
            let rows: Vec<(usize, usize)> = piece
                .rows
                .iter()
                .enumerate()
                .filter_map(|(i, row)| Some((i, share.rows.binary_search(row).ok()?)))
                .collect();
            if heads.is_empty() || rows.is_empty() {
                continue;
            }
            let part = self.part_of_pattern(piece, share, &heads, &rows)?;
            let list: Vec<u32> = heads
                .iter()
                .flat_map(|head| rows.iter().map(move |(i, _)| (head, *i)))
                .map(|(head, i)| (head * piece.rows.len() + i) as u32)
                .collect();
            let view = View {
                at: piece.at,
                stride: piece.n as usize,
                width: piece.n as usize,
                dtype: Dtype::F32,
            };
            let places = rows.iter().map(|&(_, place)| share.first + place).collect();
            let mut norms = Norms::new(share.id, places, heads.len());
            let (list_piece, list_at) = self.upload(bytemuck::cast_slice(&list))?;
            let Norms { before, after, .. } = &mut norms;
            let edited = self.edit_part(view, list_at, &part, before, after);
            if !counts {
                norms.places.clear(); // they were counted where z was made
            }
            // Kept even where a launch failed: copies that are under way write there.
            self.norms.push(norms);
            edited?;
            self.release(list_piece);
        }
        Ok(())
    }

    fn part_of_pattern(
        &self,
        piece: &Piece<'_>,
        share: &Share,
        heads: &[usize],
        rows: &[(usize, usize)],
    ) -> Launched<Part> {
        let edit = &self.edits[share.id];
        let n = piece.n as usize;
        let whole = |kind| Part::new(kind, vec![0..n]);
        Ok(match &edit.spec.change {
            Change::Scale(c) => Part {
                c: *c,
                ..whole(EditKind::Scale)
            },
            Change::Zero => whole(EditKind::Replace),
            Change::Replace => {
                let mut v: Vec<f32> = Vec::with_capacity(heads.len() * rows.len() * n);
                for head in heads {
                    let head = share.head_places[&piece.heads[*head]];
                    for &(i, place) in rows {
                        let from = share.replacement + (head * share.rows.len() + place) * n;
                        let position = (piece.position + piece.rows[i]) as usize;
                        let seen = self.seen_by(position);
                        // Keys that the query does not see have no weight, and none can be given to them.
                        let weight = |key| match seen.contains(&key) {
                            true => edit.replacement[from + key],
                            false => 0.0,
                        };
                        v.extend((0..n).map(weight));
                    }
                }
                Part {
                    v: bytemuck::cast_slice(&v).to_vec(),
                    per_row: true,
                    ..whole(EditKind::Replace)
                }
            }
            other => {
                return Err(LaunchError::Device {
                    what: format!("editing attn.hook_pattern by {other:?}"),
                    reason: "a row of a pattern is as long as its sample, so no vector fits it"
                        .into(),
                });
            }
        })
    }

    /// The keys that the query at a position sees.
    fn seen_by(&self, position: usize) -> Range<usize> {
        let window = self.cuda.shape.window.unwrap_or(usize::MAX);
        (position + 1).saturating_sub(window)..position + 1
    }

    /// z of the piece's rows and heads. Where the values lie: their address, row stride and slots.
    fn weigh_values(
        &mut self,
        piece: &Piece<'_>,
        batch_rows: Range<u32>,
        (v, v_stride, capacity): (DevicePtr, u32, u32),
    ) -> Launched {
        let rows: Vec<PatternRow> = piece
            .rows
            .iter()
            .map(|row| PatternRow {
                position: piece.position + row,
                z_row: batch_rows.start + row,
            })
            .collect();
        let (rows_piece, rows_at) = self.upload(bytemuck::cast_slice(&rows))?;
        let (heads_piece, heads_at) = self.upload(bytemuck::cast_slice(piece.heads))?;
        let (shape, z) = (&self.cuda.shape, self.view(Act::Z));
        let args = PatternValuesArgs {
            pattern: piece.at,
            v,
            z: z.at,
            rows: rows_at,
            heads: heads_at,
            v_stride,
            z_stride: z.stride as u32,
            n_heads: shape.n_heads as u32,
            n_kv_heads: shape.n_kv_heads as u32,
            selected: rows.len() as u32,
            heads_kept: piece.heads.len() as u32,
            n: piece.n,
            capacity,
            window: self.cuda.window(),
            _pad: 0,
        };
        let kernel = PatternValues {
            dtype: self.dtype(),
            head_dim: shape.head_dim as u32,
        };
        launch(&mut self.cuda.driver, &kernel, &args)?;
        self.release(rows_piece);
        self.release(heads_piece);
        Ok(())
    }

    /// As [`edit_patterns`](Self::edit_patterns), of one row that lies in a piece already.
    pub(super) fn edit_newest(
        &mut self,
        edits: &[EditId],
        sample: usize,
        n: u32,
        pattern: impl Fn(&mut Self, &[u32]) -> Launched<(PieceId, DevicePtr)>,
        values: (DevicePtr, u32, u32),
    ) -> Launched {
        let shares = self.shares(edits, sample);
        for (heads, rows) in touched(&shares, self.cuda.shape.n_heads as u32) {
            let (held, at) = pattern(self, &heads)?;
            let piece = Piece {
                at,
                heads: &heads,
                rows: &rows,
                position: n - 1,
                n,
            };
            self.edit_piece(&piece, &shares, true)?;
            let row = sample as u32;
            self.weigh_values(&piece, row..row + 1, values)?;
            self.release(held);
        }
        Ok(())
    }
}

/// The heads that some edit touches with the rows that it does, heads of equal rows together.
fn touched(shares: &[Share], n_heads: u32) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut groups: Vec<(Vec<u32>, Vec<u32>)> = Vec::new();
    for head in 0..n_heads {
        let of_head = shares.iter().filter(|s| s.head_places.contains_key(&head));
        let mut rows: Vec<u32> = of_head.flat_map(|s| s.rows.iter().copied()).collect();
        rows.sort_unstable();
        rows.dedup();
        if rows.is_empty() {
            continue;
        }
        match groups.iter_mut().find(|(_, r)| *r == rows) {
            Some((heads, _)) => heads.push(head),
            None => groups.push((vec![head], rows)),
        }
    }
    groups
}

//! One tap's file, mapped and checked against the manifest: typed slices of what it holds.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;

use super::error::{Error, Result};
use super::format::{Header, StoreDtype, StoredTensor};
use super::layout::{ragged_name, row_bytes, side_parts};
use super::manifest::{ShardEntry, TapInfo, listed_file};
use super::reader::widen;
use crate::compact::{COSINE, LossSums, RELATIVE_ERROR};
use crate::sys::map::MappedFile;

/// A tensor with something for each row.
#[derive(Debug)]
struct SideBytes {
    name: &'static str,
    row_bytes: usize,
    bytes: Range<usize>,
}

/// A committed file of one tap.
#[derive(Debug)]
pub struct ShardView {
    path: PathBuf,
    map: MappedFile,
    info: Arc<TapInfo>,
    header: Header,
    rows: usize,
    /// Rows of the tap in earlier shards.
    first_row: usize,
    /// Bytes of all rows' activations, and of the other tensors.
    activations: Range<usize>,
    /// The side tensors, in the order of the file.
    sides: Vec<SideBytes>,
    sample: Range<usize>,
    position: Range<usize>,
    token: Range<usize>,
    order: Option<Range<usize>>,
}

impl ShardView {
    pub(crate) fn open(
        root: &Path,
        info: &Arc<TapInfo>,
        shard: &ShardEntry,
        tap: usize,
        first_row: usize,
    ) -> Result<Self> {
        let entry = &shard.taps[tap];
        let path = listed_file(root, &entry.file, entry.bytes)?;
        let map = MappedFile::open(&path).map_err(|e| Error::io("map", &path, e))?;
        let header = Header::parse(&path, &map)?;
        let damaged = |what: String| Error::damaged(&path, what);
        let rows =
            usize::try_from(entry.rows).map_err(|_| damaged(format!("{} rows", entry.rows)))?;
        let tensor = |name: &str, dtype: Dtype, shape: &[usize]| match header.tensor(name) {
            None => Err(damaged(format!("has no tensor `{name}`"))),
            Some(t) if t.dtype == dtype && t.shape == shape => Ok(t.bytes.clone()),
            Some(t) => Err(damaged(format!(
                "`{name}` is {:?} {:?}, where the manifest says {dtype:?} {shape:?}",
                t.dtype, t.shape
            ))),
        };
        let activations = if info.ragged {
            let samples = ragged_tensors(&header);
            check_ragged(info, samples, shard.count, rows).map_err(damaged)?;
            header.len..samples.last().map_or(header.len, |t| t.bytes.end)
        } else {
            let shape: Vec<usize> = std::iter::once(rows)
                .chain(info.row_shape.iter().copied())
                .collect();
            tensor("activations", info.dtype.safetensors(), &shape)?
        };
        let sides = side_parts(info).into_iter().map(|part| {
            let shape: Vec<usize> = std::iter::once(rows).chain(part.shape).collect();
            Ok(SideBytes {
                name: part.name,
                row_bytes: part.bytes,
                bytes: tensor(part.name, part.dtype, &shape)?,
            })
        });
        let sides = sides.collect::<Result<Vec<_>>>()?;
        let sample = tensor("sample", Dtype::I64, &[rows])?;
        let position = tensor("position", Dtype::I32, &[rows])?;
        let token = tensor("token", Dtype::I32, &[rows])?;
        let order = match info.order_seed {
            Some(_) => Some(tensor("order", Dtype::I32, &[rows])?),
            None => None,
        };
        let listed = 3
            + usize::from(order.is_some())
            + sides.len()
            + if info.ragged {
                ragged_tensors(&header).len()
            } else {
                1
            };
        if header.tensors.len() != listed {
            return Err(damaged(
                "has tensors that a tap's file does not have".into(),
            ));
        }
        Ok(Self {
            path,
            map,
            info: info.clone(),
            header,
            rows,
            first_row,
            activations,
            sides,
            sample,
            position,
            token,
            order,
        })
    }

    pub fn info(&self) -> &TapInfo {
        &self.info
    }

    /// Rows in this shard.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The first row's place among all rows of the tap.
    pub fn first_row(&self) -> usize {
        self.first_row
    }

    /// Shape of a row.
    pub fn row_shape(&self) -> &[usize] {
        &self.info.row_shape
    }

    /// Bytes of `activations`: all rows, in order; of a ragged tap all samples' tensors, end to end.
    pub fn activations(&self) -> &[u8] {
        &self.map[self.activations.clone()]
    }

    /// `activations` of an f32 tap, as it is in the file: [rows, …row shape], row-major.
    ///
    /// # Errors
    /// The tap has another dtype, or another program's file starts its data at an odd address.
    pub fn as_f32(&self) -> Result<&[f32]> {
        self.typed(StoreDtype::F32)
    }

    /// As [`ShardView::as_f32`], of an f16 tap.
    ///
    /// # Errors
    /// As there.
    pub fn as_f16(&self) -> Result<&[f16]> {
        self.typed(StoreDtype::F16)
    }

    /// As [`ShardView::as_f32`], of a bf16 tap.
    ///
    /// # Errors
    /// As there.
    pub fn as_bf16(&self) -> Result<&[bf16]> {
        self.typed(StoreDtype::BF16)
    }

    fn typed<T: bytemuck::AnyBitPattern>(&self, dtype: StoreDtype) -> Result<&[T]> {
        let access = |what: String| Error::Access {
            tap: self.info.folder.clone(),
            what,
        };
        if self.info.dtype != dtype {
            return Err(access(format!("holds {}, not {dtype}", self.info.dtype)));
        }
        let unaligned = |_| {
            access(format!(
                "{} does not start its data at a multiple of {} bytes; read its rows by copy",
                self.path.display(),
                dtype.size()
            ))
        };
        bytemuck::try_cast_slice(self.activations()).map_err(unaligned)
    }

    /// All of `activations`, widened to f32, or read back from 8 bits (a copy).
    pub fn to_f32(&self) -> Vec<f32> {
        match self.info.ragged {
            true => widen(self.info.dtype, self.activations()),
            false => self.rows_f32(0..self.rows),
        }
    }

    /// Some rows, widened to f32, or read back from 8 bits (a copy), row-major.
    ///
    /// # Panics
    /// There are no such rows, or the tap is ragged.
    pub fn rows_f32(&self, rows: Range<usize>) -> Vec<f32> {
        assert!(
            rows.end <= self.rows && !self.info.ragged,
            "rows {rows:?} of {} in {}",
            self.rows,
            self.path.display()
        );
        let size = row_bytes(&self.info);
        let Some(compact) = self.info.compact() else {
            let bytes = &self.activations()[rows.start * size..rows.end * size];
            return widen(self.info.dtype, bytes);
        };
        let mut numbers = vec![0.0; rows.len() * compact.width];
        let mut side = Vec::with_capacity(compact.side_bytes());
        for (row, out) in rows.zip(numbers.chunks_exact_mut(compact.width)) {
            side.clear();
            self.add_side_row(row, &mut side);
            compact.dequantise(self.row(row), &side, out);
        }
        numbers
    }

    /// What a row has in the side tensors, in the order of the file: its components in a top-K tap; scales, the numbers kept apart and the
    /// loss of a row in 8 bits.
    ///
    /// # Panics
    /// There is no such row.
    pub fn side_row(&self, row: usize) -> Vec<u8> {
        let mut side = Vec::new();
        self.add_side_row(row, &mut side);
        side
    }

    fn add_side_row(&self, row: usize, to: &mut Vec<u8>) {
        for side in &self.sides {
            let bytes = &self.map[side.bytes.clone()];
            to.extend_from_slice(&bytes[row * side.row_bytes..(row + 1) * side.row_bytes]);
        }
    }

    /// Of rows in 8 bits: the sums of their measured losses.
    pub(crate) fn loss_sums(&self) -> Option<LossSums> {
        let of = |name| Some(&self.map[self.part(name)?]);
        Some(LossSums::of(of(RELATIVE_ERROR)?, of(COSINE)?))
    }

    /// Bytes of one row.
    ///
    /// # Panics
    /// There is no such row, or the tap is ragged.
    pub fn row(&self, row: usize) -> &[u8] {
        assert!(
            row < self.rows && !self.info.ragged,
            "row {row} of {} in {}",
            self.rows,
            self.path.display()
        );
        let size = row_bytes(&self.info);
        &self.activations()[row * size..][..size]
    }

    /// Per row: number of its sample in the dataset.
    pub fn sample(&self) -> Vec<i64> {
        let eight = |b: &[u8]| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
        self.map[self.sample.clone()]
            .chunks_exact(8)
            .map(eight)
            .collect()
    }

    /// Per row: its token's position in the sample; −1 for a row made of several.
    pub fn position(&self) -> Vec<i32> {
        self.i32s(&self.position, 0..self.rows)
    }

    /// Per row: its token's id; −1 for a row made of several.
    pub fn token(&self) -> Vec<i32> {
        self.i32s(&self.token, 0..self.rows)
    }

    /// The shard's rows in random order, each by its number in the shard; none where the run was not shuffled.
    ///
    /// # Errors
    /// The file names a row twice, or one that there is not.
    pub fn order(&self) -> Result<Option<Vec<i32>>> {
        let Some(order) = &self.order else {
            return Ok(None);
        };
        let order = self.i32s(order, 0..self.rows);
        let mut seen = vec![false; self.rows];
        for &row in &order {
            let known = usize::try_from(row).ok().and_then(|r| seen.get_mut(r));
            if known.is_none_or(|seen| std::mem::replace(seen, true)) {
                let what = format!("`order` is no order of its {} rows (row {row})", self.rows);
                return Err(Error::damaged(&self.path, what));
            }
        }
        Ok(Some(order))
    }

    /// [rows, K] component numbers of a top-K tap, row-major; none for other taps.
    pub fn index(&self) -> Option<Vec<i32>> {
        let k = self.info.top_k?;
        Some(self.i32s(&self.sides.first()?.bytes, 0..self.rows * k))
    }

    /// The tensors of a ragged tap's samples, in the order written (tensors without rows aside, which are nowhere); none for other taps.
    pub fn ragged(self: &Arc<Self>) -> impl Iterator<Item = RaggedView> + '_ {
        let n = if self.info.ragged {
            ragged_tensors(&self.header).len()
        } else {
            0
        };
        (0..n).map(|tensor| RaggedView {
            shard: self.clone(),
            tensor,
        })
    }

    /// A ragged tap's tensor of one sample that is whole; none if the shard does not hold it.
    pub(crate) fn ragged_of(self: &Arc<Self>, sample: u64) -> Option<RaggedView> {
        RaggedView::of(self, sample, 0)
    }

    pub(crate) fn sample_of(&self, row: usize) -> i64 {
        let at = self.sample.start + 8 * row;
        self.map[at..at + 8]
            .iter()
            .rev()
            .fold(0, |n, &b| n << 8 | i64::from(b))
    }

    pub(crate) fn position_of(&self, row: usize) -> i32 {
        self.i32s(&self.position, row..row + 1)[0]
    }

    pub(crate) fn token_of(&self, row: usize) -> i32 {
        self.i32s(&self.token, row..row + 1)[0]
    }

    pub(crate) fn index_of(&self, row: usize) -> Option<Vec<i32>> {
        let k = self.info.top_k?;
        Some(self.i32s(&self.sides.first()?.bytes, row * k..(row + 1) * k))
    }

    fn i32s(&self, tensor: &Range<usize>, items: Range<usize>) -> Vec<i32> {
        let bytes = &self.map[tensor.clone()][4 * items.start..4 * items.end];
        bytes
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect()
    }

    /// For `verify`: the file's bytes, and those of its parts as the manifest's checksums name them.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(crate) fn part(&self, name: &str) -> Option<Range<usize>> {
        match name {
            "header" => Some(0..self.header.len),
            "activations" => Some(self.activations.clone()),
            "sample" => Some(self.sample.clone()),
            "position" => Some(self.position.clone()),
            "token" => Some(self.token.clone()),
            "order" => self.order.clone(),
            side => self
                .sides
                .iter()
                .find(|s| s.name == side)
                .map(|s| s.bytes.clone()),
        }
    }

    /// Bytes of the activations of consecutive samples of a ragged tap.
    pub(crate) fn ragged_bytes(&self, samples: Range<usize>) -> Option<Range<usize>> {
        let tensors = ragged_tensors(&self.header).get(samples)?;
        Some(tensors.first()?.bytes.start..tensors.last()?.bytes.end)
    }
}

/// A ragged file's tensors but for the three index tensors, which come last.
fn ragged_tensors(header: &Header) -> &[StoredTensor] {
    &header.tensors[..header.tensors.len().saturating_sub(3)]
}

fn check_ragged(
    info: &TapInfo,
    samples: &[StoredTensor],
    count: u64,
    rows: usize,
) -> Result<(), String> {
    if samples.len() as u64 != count {
        return Err(format!("has {} tensors for {count} samples", samples.len()));
    }
    let mut total = 0usize;
    for t in samples {
        match t.shape[..] {
            [heads, r, _]
                if t.dtype == info.dtype.safetensors() && [heads] == info.row_shape[..] =>
            {
                total = total.saturating_add(r)
            }
            _ => {
                return Err(format!(
                    "`{}` is {:?} {:?}, where [{:?}, rows, tokens] of {} belongs",
                    t.name, t.dtype, t.shape, info.row_shape, info.dtype
                ));
            }
        }
    }
    if total == rows {
        Ok(())
    } else {
        Err(format!("has {total} rows where the manifest says {rows}"))
    }
}

/// One sample's tensor in a ragged tap.
#[derive(Debug, Clone)]
pub struct RaggedView {
    shard: Arc<ShardView>,
    tensor: usize,
}

impl RaggedView {
    pub(crate) fn of(shard: &Arc<ShardView>, sample: u64, chunk: u32) -> Option<Self> {
        let name = ragged_name(sample, chunk);
        let tensor = shard
            .header
            .position(&name)
            .filter(|&i| i < ragged_tensors(&shard.header).len())?;
        Some(Self {
            shard: shard.clone(),
            tensor,
        })
    }

    fn stored(&self) -> &StoredTensor {
        &self.shard.header.tensors[self.tensor]
    }

    /// The sample's number in the dataset, with `.chunk` after it unless that is 0.
    pub fn name(&self) -> &str {
        &self.stored().name
    }

    /// [heads, rows selected, tokens].
    pub fn shape(&self) -> &[usize] {
        &self.stored().shape
    }

    /// Its bytes in the mapped file, row-major, in the tap's dtype.
    pub fn bytes(&self) -> &[u8] {
        &self.shard.map[self.stored().bytes.clone()]
    }

    /// Its numbers, widened to f32 (exactly).
    pub fn to_f32(&self) -> Vec<f32> {
        widen(self.shard.info.dtype, self.bytes())
    }
}

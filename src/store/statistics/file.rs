//! One tap's file: its sets' sums as tensors. The file of a run that did not end has rows that wait for a whole chunk besides.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use safetensors::Dtype;
use xxhash_rust::xxh3::Xxh3 as Hasher;

use super::super::error::{Error, Result};
use super::super::format::{Header, TensorSpec, encode_header};
use super::super::manifest::{TapInfo, Xxh3};
use super::moments::{Moments, Set};
use crate::sys::writable::create_anew;

/// A set, its sums, and the rows `[n, width]` that wait; none in a finished file.
pub type Entry<'a> = (&'a Set, &'a Moments, &'a [f32]);

/// A file in the making: what is written is counted and hashed.
pub(super) struct Written {
    to: BufWriter<File>,
    hash: Hasher,
    bytes: u64,
}

impl Written {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    /// Numbers, as their little-endian bytes.
    pub fn put_words<const SIZE: usize>(
        &mut self,
        words: impl Iterator<Item = [u8; SIZE]>,
    ) -> std::io::Result<()> {
        const PIECE: usize = 8 * 1024;
        let mut piece = Vec::with_capacity(PIECE);
        for word in words {
            piece.extend_from_slice(&word);
            if piece.len() >= PIECE {
                self.put(&piece)?;
                piece.clear();
            }
        }
        self.put(&piece)
    }
}

/// Writes a tap's sums durably to `path`; only the lower triangles of its matrices count. Its length and checksum.
///
/// # Errors
/// The disk's.
pub(super) fn write(path: &Path, tap: &TapInfo, sets: &[Entry<'_>]) -> Result<(u64, Xxh3)> {
    let metadata = [
        ("hook", &tap.hook),
        ("selection", &tap.selection),
        ("reduction", &tap.reduction),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone()));
    let tensors: Vec<TensorSpec> = sets.iter().flat_map(specs).collect();
    let header = encode_header(&BTreeMap::from(metadata), &tensors)?;
    durably(path, &header, &tensors, |to| {
        for (_, moments, chunk) in sets {
            to.put(&moments.count.to_le_bytes())?;
            to.put_words(moments.sum.iter().map(|x| x.to_le_bytes()))?;
            if let Some(outer) = &moments.outer {
                let width = moments.width();
                for i in 0..width {
                    let row = (0..width).map(|j| outer[i.max(j) * width + i.min(j)]);
                    to.put_words(row.map(f64::to_le_bytes))?;
                }
            }
            to.put_words(chunk.iter().map(|x| x.to_le_bytes()))?;
        }
        Ok(())
    })
}

/// Writes tensors durably, whose bytes `fill` gives in their order.
///
/// # Errors
/// The disk's.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &[TensorSpec],
    fill: impl FnOnce(&mut Written) -> std::io::Result<()>,
) -> Result<(u64, Xxh3)> {
    durably(
        path,
        &encode_header(&BTreeMap::new(), tensors)?,
        tensors,
        fill,
    )
}

fn durably(
    path: &Path,
    header: &[u8],
    tensors: &[TensorSpec],
    fill: impl FnOnce(&mut Written) -> std::io::Result<()>,
) -> Result<(u64, Xxh3)> {
    let needed = header.len() as u64 + tensors.iter().map(|t| t.bytes).sum::<u64>();
    let written = create_anew(path).and_then(|file| {
        let mut written = Written {
            to: BufWriter::with_capacity(1 << 20, file),
            hash: Hasher::new(),
            bytes: 0,
        };
        written.put(header)?;
        fill(&mut written)?;
        let file = written.to.into_inner().map_err(|e| e.into_error())?;
        file.sync_all()?;
        Ok((written.bytes, Xxh3(written.hash.digest())))
    });
    written.map_err(|e| Error::write(path, needed, needed, e))
}

/// Tensors of a set, in the order of their bytes.
fn specs((set, moments, chunk): &Entry<'_>) -> Vec<TensorSpec> {
    let width = moments.width() as u64;
    let spec = |what: &str, dtype, size: u64, shape: &[u64]| TensorSpec {
        name: format!("{set}.{what}"),
        dtype,
        shape: shape.to_vec(),
        bytes: size * shape.iter().product::<u64>(),
    };
    let mut specs = vec![
        spec("count", Dtype::U64, 8, &[1]),
        spec("sum", Dtype::F64, 8, &[width]),
    ];
    if moments.outer.is_some() {
        specs.push(spec("outer", Dtype::F64, 8, &[width, width]));
    }
    if !chunk.is_empty() {
        let rows = chunk.len() as u64 / width;
        specs.push(spec("chunk", Dtype::F32, 4, &[rows, width]));
    }
    specs
}

/// Reads one set of the tap's file `path`, whose content is `file`.
///
/// # Errors
/// The file is damaged, or has not that set of that width.
pub(super) fn read(
    path: &Path,
    file: &[u8],
    header: &Header,
    set: &Set,
    (width, outer): (usize, bool),
) -> Result<Moments> {
    let tensor = |what: &str, dtype: Dtype, shape: &[usize]| -> Result<&[u8]> {
        let name = format!("{set}.{what}");
        header
            .tensor(&name)
            .filter(|t| t.dtype == dtype && t.shape == shape)
            .and_then(|t| file.get(t.bytes.clone()))
            .ok_or_else(|| Error::damaged(path, format!("no {name} {dtype:?} {shape:?}")))
    };
    let numbers = |bytes: &[u8]| -> Vec<f64> {
        let (words, _) = bytes.as_chunks::<8>();
        words.iter().map(|&w| f64::from_le_bytes(w)).collect()
    };
    let count = tensor("count", Dtype::U64, &[1])?;
    Ok(Moments {
        count: count
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word)),
        sum: numbers(tensor("sum", Dtype::F64, &[width])?),
        outer: match outer {
            true => Some(numbers(tensor("outer", Dtype::F64, &[width, width])?)),
            false => None,
        },
    })
}

/// Reads the rows of a set that wait for a whole chunk.
///
/// # Errors
/// They are not of that width.
pub(super) fn read_chunk(
    path: &Path,
    file: &[u8],
    header: &Header,
    set: &Set,
    width: usize,
) -> Result<Vec<f32>> {
    let name = format!("{set}.chunk");
    let Some(tensor) = header.tensor(&name) else {
        return Ok(Vec::new());
    };
    let fits = tensor.dtype == Dtype::F32 && tensor.shape.get(1) == Some(&width);
    let bytes = fits.then(|| file.get(tensor.bytes.clone())).flatten();
    let bytes = bytes.ok_or_else(|| Error::damaged(path, format!("{name} has another shape")))?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|&w| f32::from_le_bytes(w)).collect())
}

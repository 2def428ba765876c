//! How the rows of each tap are stored: the store's description of it, and what the backend does to its rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Error, Result};
use crate::backend::{Reduce, SinkDtype, SinkSpec};
use crate::compact::WIDEST;
use crate::hooks::{Dims, Reduction, Tap};
use crate::store::{StoreDtype, TapInfo};

/// What the store and the backend need to know of each tap.
pub(super) fn describe(
    taps: &[Tap],
    dims: &Dims,
    dtype: StoreDtype,
    shuffle: Option<u64>,
    model: &str,
) -> Result<(Vec<TapInfo>, Vec<Arc<SinkSpec>>)> {
    let mut folders: BTreeMap<String, usize> = BTreeMap::new();
    let mut infos = Vec::new();
    let mut specs = Vec::new();
    for tap in taps {
        let hook = tap.point.to_string();
        let times = folders.entry(hook.clone()).or_default();
        *times += 1;
        let folder = if *times == 1 {
            hook.clone()
        } else {
            format!("{hook}~{times}")
        };
        let row_shape = tap.row_shape(dims);
        let width: usize = row_shape.iter().product();
        let reduce = match &tap.reduction {
            Reduction::None => Reduce::None,
            Reduction::Mean => Reduce::Mean,
            Reduction::Dot { file, key } => {
                Reduce::Dot(super::directions::load(file, key, width, model)?.into())
            }
            Reduction::Norm => Reduce::Norm,
            Reduction::TopK(k) => Reduce::TopK(*k),
            Reduction::LogProbTopK(k) => Reduce::LogProbTopK(*k),
        };
        let top_k = match reduce {
            Reduce::TopK(k) | Reduce::LogProbTopK(k) => Some(k),
            _ => None,
        };
        let ragged = tap.point.site.is_ragged();
        let dtype = tap_dtype(tap, dtype, width)?;
        let heads = tap.heads.clone().unwrap_or_default();
        let head_width = tap.point.site.row_shape(dims).get(1).copied().unwrap_or(1);
        let spec = SinkSpec {
            columns: if ragged {
                Vec::new()
            } else {
                head_columns(&heads, head_width)
            },
            heads: if ragged { heads } else { Vec::new() },
            reduce,
            dtype: sink_dtype(dtype),
        };
        infos.push(TapInfo {
            hook,
            folder,
            selection: tap.selection.to_string(),
            reduction: tap.reduction.to_string(),
            heads: tap.heads.clone(),
            dtype,
            row_shape: if matches!(spec.reduce, Reduce::None | Reduce::Mean) {
                row_shape
            } else {
                vec![stored_width(&spec.reduce, width)]
            },
            ragged,
            top_k,
            order_seed: shuffle.filter(|_| !ragged),
        });
        specs.push(Arc::new(spec));
    }
    Ok((infos, specs))
}

/// What a tap's rows are stored as, where the job's are stored as `dtype`. 8 bits are for rows of activations and their means; what is
/// reduced to a few numbers stays f32.
///
/// # Errors
/// Scores and patterns, and rows too wide, in 8 bits.
fn tap_dtype(tap: &Tap, dtype: StoreDtype, width: usize) -> Result<StoreDtype> {
    if tap.point.site.is_always_f32() {
        return Ok(StoreDtype::F32);
    }
    if dtype.code().is_none() {
        return Ok(dtype);
    }
    if !matches!(tap.reduction, Reduction::None | Reduction::Mean) {
        return Ok(StoreDtype::F32);
    }
    let why = if tap.point.site.is_ragged() {
        "is for rows, not for tensors per sample"
    } else if width > WIDEST {
        "is for rows of at most 65,536 numbers"
    } else {
        return Ok(dtype);
    };
    Err(Error::NotCompact {
        tap: tap.to_string(),
        dtype,
        why,
    }
    .into())
}

/// Numbers per stored row that a reduction makes of `width`.
fn stored_width(reduce: &Reduce, width: usize) -> usize {
    SinkSpec {
        reduce: reduce.clone(),
        ..SinkSpec::plain()
    }
    .stored_width(width)
}

/// The columns of some heads, neighbours joined.
pub(super) fn head_columns(heads: &[usize], width: usize) -> Vec<std::ops::Range<usize>> {
    let mut columns: Vec<std::ops::Range<usize>> = Vec::new();
    for &head in heads {
        match columns.last_mut() {
            Some(last) if last.end == head * width => last.end += width,
            _ => columns.push(head * width..(head + 1) * width),
        }
    }
    columns
}

fn sink_dtype(dtype: StoreDtype) -> SinkDtype {
    match dtype {
        StoreDtype::F32 => SinkDtype::F32,
        StoreDtype::F16 => SinkDtype::F16,
        StoreDtype::BF16 => SinkDtype::BF16,
        StoreDtype::F8E4M3 => SinkDtype::F8E4M3,
        StoreDtype::Int8 => SinkDtype::Int8,
    }
}

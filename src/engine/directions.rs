//! Directions from a safetensors file, for projections.

use std::path::Path;

use safetensors::SafeTensors;

use super::{Error, Result};
use crate::backend::cpu::{StoredDtype, StoredTensor};
use crate::sys::map::MappedFile;

/// The directions under `key`, `[n_dirs, width]` row-major as f32; a tensor `[width]` is one direction.
///
/// # Errors
/// No such file or key (the error lists the keys), another dtype than f32, f16 or bf16, another width, or a number that is not finite.
pub fn load(file: &Path, key: &str, width: usize) -> Result<Vec<f32>> {
    let fail = |why: String| Error::Directions {
        file: file.display().to_string(),
        why,
    };
    let bytes = MappedFile::open(file).map_err(|e| fail(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| fail(format!("not a safetensors file ({e})")))?;
    let tensor = tensors.tensor(key).map_err(|_| {
        let mut names = tensors.names();
        names.sort_unstable();
        fail(format!("no tensor '{key}'; it has {}", names.join(", ")))
    })?;
    let dtype = match tensor.dtype() {
        safetensors::Dtype::F32 => StoredDtype::F32,
        safetensors::Dtype::F16 => StoredDtype::F16,
        safetensors::Dtype::BF16 => StoredDtype::BF16,
        other => {
            return Err(fail(format!(
                "'{key}' is {other:?}; F32, F16 and BF16 are read: save it as one of these"
            ))
            .into());
        }
    };
    if tensor.shape().last() != Some(&width) || tensor.shape().len() > 2 || tensor.shape()[0] == 0 {
        let shape = tensor.shape();
        return Err(fail(format!(
            "'{key}' has shape {shape:?}; the tap's rows need [{width}] or [n, {width}]"
        ))
        .into());
    }
    let mut out = vec![0.0; tensor.shape().iter().product()];
    StoredTensor {
        dtype,
        bytes: tensor.data(),
    }
    .widen(0, &mut out);
    if let Some(at) = out.iter().position(|v| !v.is_finite()) {
        return Err(fail(format!(
            "'{key}' holds {} at component {at}: every projection on it would be lost",
            out[at]
        ))
        .into());
    }
    Ok(out)
}

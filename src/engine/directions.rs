//! Tensors from safetensors files: directions for projections, vectors for edits.

use std::path::Path;

use safetensors::SafeTensors;

use super::{Error, Result};
use crate::backend::cpu::{StoredDtype, StoredTensor};
use crate::hooks::nearest_words;
use crate::store::Xxh3;
use crate::sys::map::MappedFile;

/// One tensor of a file, widened to f32.
#[derive(Debug)]
pub(super) struct Loaded {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    /// Fingerprint of the model that the file says it comes from.
    pub model: Option<String>,
}

/// The direction of `layer` in a file: its tensor `key` where one is named, else `direction.LAYER`, else its only tensor. One or several,
/// row-major, `width` numbers each, for rows of the model with this fingerprint.
///
/// # Errors
/// No such file or tensor, another dtype than f32, f16 or bf16, another width, a number that is not finite, or a file that names
/// another model.
pub fn of_layer(
    file: &Path,
    key: Option<&str>,
    layer: Option<usize>,
    width: usize,
    model: &str,
) -> Result<Vec<f32>> {
    let own = layer.map(|layer| format!("direction.{layer}"));
    let key = match (key, own) {
        (None, Some(own)) if read(file, Some(&own)).is_ok() => Some(own),
        (key, _) => key.map(str::to_owned),
    };
    checked(file, key.as_deref(), width, model)
}

/// By which a run that goes on knows that its directions are still the same.
pub(super) fn hash_of(directions: &[f32]) -> Xxh3 {
    Xxh3::of(bytemuck::cast_slice(directions))
}

/// Reads the tensor `key` of a safetensors file, or its only one; why not, if not.
pub(super) fn read(file: &Path, key: Option<&str>) -> Result<Loaded, String> {
    let bytes = MappedFile::open(file).map_err(|e| format!("{e}; check the path"))?;
    let not = |e| format!("not a safetensors file ({e}); give one, as FILE.safetensors#TENSOR");
    let tensors = SafeTensors::deserialize(&bytes).map_err(not)?;
    let mut names = tensors.names();
    names.sort_unstable();
    let key = match (key, &names[..]) {
        (Some(key), _) => key,
        (None, [only]) => only,
        (None, _) => {
            return Err(format!(
                "it has several tensors, choose one as FILE#TENSOR: {}",
                some(&names)
            ));
        }
    };
    let tensor = tensors.tensor(key).map_err(|_| {
        let names = nearest_words(key, names.iter().copied());
        format!("no tensor '{key}'; it has {}", some(&names))
    })?;
    let dtype = match tensor.dtype() {
        safetensors::Dtype::F32 => StoredDtype::F32,
        safetensors::Dtype::F16 => StoredDtype::F16,
        safetensors::Dtype::BF16 => StoredDtype::BF16,
        other => {
            return Err(format!(
                "'{key}' is {other:?}; F32, F16 and BF16 are read: save it as one of these"
            ));
        }
    };
    let mut values = vec![0.0; tensor.shape().iter().product()];
    StoredTensor {
        dtype,
        bytes: tensor.data(),
    }
    .widen(0, &mut values);
    if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
        return Err(format!(
            "'{key}' holds {} at component {bad}: every row that it is used on would be lost",
            values[bad]
        ));
    }
    Ok(Loaded {
        shape: tensor.shape().to_vec(),
        values,
        model: model_of(&bytes),
    })
}

/// The first of these names; a checkpoint has hundreds.
fn some(names: &[&str]) -> String {
    const SHOWN: usize = 8;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// The model that a tap's file, or an analysis's directions, name in their metadata.
fn model_of(bytes: &[u8]) -> Option<String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).ok()?;
    let metadata = metadata.metadata().as_ref()?;
    if let Some(fingerprint) = metadata.get("model_fingerprint") {
        return Some(fingerprint.clone());
    }
    let provenance: serde_json::Value = serde_json::from_str(metadata.get("provenance")?).ok()?;
    let model = &provenance["source"]["model"]["fingerprint"];
    model.as_str().map(str::to_owned)
}

/// The directions under `key`, `[n_dirs, width]` row-major as f32, for rows of the model with this fingerprint; a tensor `[width]` is
/// one direction.
///
/// # Errors
/// No such file or key (the error lists the keys), another dtype than f32, f16 or bf16, another width, a number that is not finite, or a
/// file that names another model.
pub fn load(file: &Path, key: &str, width: usize, model: &str) -> Result<Vec<f32>> {
    checked(file, Some(key), width, model)
}

/// Why a tensor that was made from one model is not taken for another: it would fit, and mean nothing there.
pub(super) fn another_model(from: &str, model: &str) -> String {
    format!(
        "comes from another model (fingerprint {from}, this one's is {model}); if that is meant, save the tensor without its metadata"
    )
}

fn checked(file: &Path, key: Option<&str>, width: usize, model: &str) -> Result<Vec<f32>> {
    let fail = |why: String| Error::Directions {
        file: file.display().to_string(),
        why,
    };
    let loaded = read(file, key).map_err(fail)?;
    let shape = &loaded.shape;
    if shape.last() != Some(&width) || shape.len() > 2 || shape[0] == 0 {
        return Err(fail(format!(
            "{} has shape {shape:?}; the tap's rows need [{width}] or [n, {width}]",
            key.map_or("its tensor".into(), |key| format!("'{key}'"))
        ))
        .into());
    }
    match &loaded.model {
        Some(from) if from != model => {
            Err(fail(format!("it {}", another_model(from, model))).into())
        }
        _ => Ok(loaded.values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_that_names_its_model_is_taken_for_that_one_alone() {
        let dir = tempfile::tempdir().unwrap();
        let save = |name: &str, metadata: Option<(&str, &str)>| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &[0; 8]);
            let metadata = metadata.map(|(key, value)| [(key.into(), value.into())].into());
            let file = dir.path().join(name);
            safetensors::serialize_to_file([("v", view.unwrap())], metadata, &file).unwrap();
            file
        };
        let provenance = r#"{"source": {"model": {"fingerprint": "this"}}}"#;
        let of_a_tap = save("tap", Some(("model_fingerprint", "this")));
        let of_an_analysis = save("analysis", Some(("provenance", provenance)));
        for file in [of_a_tap, of_an_analysis] {
            assert_eq!(load(&file, "v", 2, "this").unwrap(), [0.0; 2]);
            let refused = load(&file, "v", 2, "other").unwrap_err().to_string();
            assert!(refused.contains("another model (fingerprint this, this one's is other)"));
        }
        let of_nobody = save("bare", None);
        assert!(load(&of_nobody, "v", 2, "other").is_ok());
    }
}

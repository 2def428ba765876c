//! Directions on disk: a safetensors file that `--edit 'add … v=FILE#direction.15'` and `|dot:FILE#direction.15` read.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::{Error, Result};

/// A direction of one layer, and what is to be said of it.
#[derive(Clone, Debug)]
pub struct Direction<'a> {
    pub layer: usize,
    pub hook: &'a str,
    /// Unit norm, `[width]`.
    pub values: &'a [f32],
    /// A JSON object: threshold, norm, number of training statements, …
    pub about: Value,
}

/// Cosine of the angle between two vectors; 0 where one has no length.
///
/// # Panics
/// They have not the same width.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "vectors of one width");
    let dot = |a: &[f32], b: &[f32]| super::project::dot(a, b);
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        dot(a, b) / lengths
    } else {
        0.0
    }
}

/// Write one tensor per layer, `direction.{layer}`, F32 `[width]`, unit norm, pointing from false to true.
///
/// `__metadata__` has one entry, `provenance`, a JSON object: `method`, `source` (what the caller knows: store, model
/// fingerprint, seed of the split, command) and per layer the hook and what is said about it.
/// One entry, because a hash map's order would otherwise make equal files differ.
///
/// # Errors
/// When two directions have the same layer, or the file cannot be written.
pub fn save(path: &Path, method: &str, directions: &[Direction<'_>], source: &Value) -> Result<()> {
    let mut sorted: Vec<&Direction<'_>> = directions.iter().collect();
    sorted.sort_by_key(|direction| direction.layer);
    if let Some(pair) = sorted
        .windows(2)
        .find(|pair| pair[0].layer == pair[1].layer)
    {
        return Err(Error::SameLayer {
            layer: pair[0].layer,
            first: pair[0].hook.to_owned(),
            second: pair[1].hook.to_owned(),
        });
    }

    let layers: Vec<_> = sorted
        .iter()
        .map(|direction| {
            let mut layer = json!({ "layer": direction.layer, "hook": direction.hook });
            if let (Some(layer), Some(about)) = (layer.as_object_mut(), direction.about.as_object())
            {
                layer.extend(
                    about
                        .iter()
                        .map(|(key, value)| (key.clone(), value.clone())),
                );
            }
            layer
        })
        .collect();
    let provenance = json!({ "method": method, "source": source, "layers": layers });

    let tensors: Vec<_> = sorted
        .iter()
        .map(|direction| {
            let name = format!("direction.{}", direction.layer);
            (
                name,
                vec![direction.values.len()],
                direction.values.to_vec(),
            )
        })
        .collect();
    save_tensors(path, &tensors, &provenance)
}

/// Write f32 tensors (name, shape, values), with `provenance` as the one entry of their metadata.
///
/// # Errors
/// When the file cannot be written.
///
/// # Panics
/// When a shape and the number of values differ.
pub fn save_tensors(
    path: &Path,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
    provenance: &Value,
) -> Result<()> {
    let metadata = HashMap::from([("provenance".to_owned(), provenance.to_string())]);
    let refused = |source| Error::Safetensors {
        path: path.to_owned(),
        source,
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, values)| {
            assert_eq!(
                shape.iter().product::<usize>(),
                values.len(),
                "as many values as the shape has"
            );
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            Ok((
                name.clone(),
                TensorView::new(Dtype::F32, shape.clone(), bytes)?,
            ))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused)?;
    let file = safetensors::serialize(views, Some(metadata)).map_err(refused)?;
    std::fs::write(path, file).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    const HOOKS: [&str; 2] = ["blocks.2.hook_resid_post", "blocks.10.hook_resid_post"];

    fn direction<'a>(layer: usize, hook: &'a str, values: &'a [f32]) -> Direction<'a> {
        Direction {
            layer,
            hook,
            values,
            about: json!({ "threshold": 0.25 }),
        }
    }

    #[test]
    fn a_direction_comes_back_by_its_layers_name_with_its_provenance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directions.safetensors");
        let results = [
            direction(10, HOOKS[1], &[0.6, 0.8]),
            direction(2, HOOKS[0], &[1.0, 0.0]),
        ];
        save(&path, "lat", &results, &json!({"store": "run", "seed": 7})).unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = file.tensor("direction.10").unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[2][..]));
        assert_eq!(
            tensor.data(),
            [0.6f32.to_le_bytes(), 0.8f32.to_le_bytes()].concat()
        );

        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let provenance = &metadata.metadata().as_ref().unwrap()["provenance"];
        let provenance: serde_json::Value = serde_json::from_str(provenance).unwrap();
        assert_eq!(provenance["source"]["seed"], 7);
        assert_eq!(provenance["layers"][0]["hook"], "blocks.2.hook_resid_post");
        assert_eq!(provenance["layers"][0]["threshold"], 0.25);

        save(&path, "lat", &results, &json!({"store": "run", "seed": 7})).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            bytes,
            "equal input, equal bytes"
        );
    }

    #[test]
    fn two_directions_of_one_layer_are_refused_and_nothing_is_written() {
        let path = Path::new("/nonexistent/directions.safetensors");
        let results = [direction(3, "a", &[1.0]), direction(3, "b", &[1.0])];
        let message = save(path, "lat", &results, &json!({}))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("two directions for layer 3"),
            "{message}"
        );
        let message = save(path, "lat", &results[..1], &json!({}))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("/nonexistent/directions.safetensors: No such file"),
            "{message}"
        );
    }
}

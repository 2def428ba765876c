//! Directions on disk: a safetensors file that `--edit 'add … v=FILE#direction.15'` and `|dot:FILE#direction.15` read.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::mass_mean::MassMeanResult;
use super::{Error, Result};

/// Write one tensor per layer, `direction.{layer}`, F32 `[width]`, unit norm, pointing from false to true.
///
/// `__metadata__` has one entry, `provenance`, a JSON object: `method`, `source` (what the caller knows: store, model
/// fingerprint, seed of the split, command) and per layer the hook, threshold, norm and number of training statements.
/// One entry, because a hash map's order would otherwise make equal files differ.
///
/// # Errors
/// When two results have the same layer, or the file cannot be written.
pub fn save(path: &Path, results: &[MassMeanResult], source: &serde_json::Value) -> Result<()> {
    let mut sorted: Vec<&MassMeanResult> = results.iter().collect();
    sorted.sort_by_key(|result| result.layer);
    if let Some(pair) = sorted
        .windows(2)
        .find(|pair| pair[0].layer == pair[1].layer)
    {
        let (first, second) = (pair[0].hook.clone(), pair[1].hook.clone());
        return Err(Error::SameLayer {
            layer: pair[0].layer,
            first,
            second,
        });
    }

    let layers: Vec<_> = sorted
        .iter()
        .map(|result| {
            json!({
                "layer": result.layer, "hook": result.hook, "threshold": result.threshold,
                "norm": result.norm, "n_train": result.n_train,
            })
        })
        .collect();
    let provenance =
        json!({ "method": "mass-mean", "source": source, "layers": layers }).to_string();
    let metadata = HashMap::from([("provenance".to_owned(), provenance)]);

    let refused = |source| Error::Safetensors {
        path: path.to_owned(),
        source,
    };
    let bytes: Vec<Vec<u8>> = sorted
        .iter()
        .map(|result| {
            result
                .direction
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let tensors = sorted
        .iter()
        .zip(&bytes)
        .map(|(result, bytes)| {
            let view = TensorView::new(Dtype::F32, vec![result.direction.len()], bytes)?;
            Ok((format!("direction.{}", result.layer), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused)?;
    let file = safetensors::serialize(tensors, Some(metadata)).map_err(refused)?;
    std::fs::write(path, file).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::super::bootstrap::IntervalMethod;
    use super::*;

    fn result(layer: usize, direction: Vec<f32>) -> MassMeanResult {
        MassMeanResult {
            layer,
            hook: format!("blocks.{layer}.hook_resid_post"),
            n_train: 10,
            n_test: 10,
            accuracy: 0.9,
            ci_low: 0.8,
            ci_high: 1.0,
            ci_method: IntervalMethod::Bca,
            auc: 0.95,
            threshold: 0.25,
            norm: 3.0,
            direction,
        }
    }

    #[test]
    fn a_direction_comes_back_by_its_layers_name_with_its_provenance() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("directions.safetensors");
        let results = [result(10, vec![0.6, 0.8]), result(2, vec![1.0, 0.0])];
        save(&path, &results, &json!({"store": "run", "seed": 7})).unwrap();

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

        save(&path, &results, &json!({"store": "run", "seed": 7})).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            bytes,
            "equal input, equal bytes"
        );
    }

    #[test]
    fn two_directions_of_one_layer_are_refused_and_nothing_is_written() {
        let path = Path::new("/nonexistent/directions.safetensors");
        let results = [result(3, vec![1.0]), result(3, vec![1.0])];
        let message = save(path, &results, &json!({})).unwrap_err().to_string();
        assert!(
            message.starts_with("two directions for layer 3"),
            "{message}"
        );
        let message = save(path, &results[..1], &json!({}))
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("/nonexistent/directions.safetensors: No such file"),
            "{message}"
        );
    }
}

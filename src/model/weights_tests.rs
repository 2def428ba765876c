use serde_json::{Value, json};

use super::super::testing::{Spec, checkpoint, config_json, safetensors, sharded, spec, tensors};
use super::super::{Model, Result};
use super::*;

fn open(config: &Value, tensors: &[Spec]) -> Result<Model> {
    Model::open(checkpoint(config, tensors).path())
}

fn refusal(config: &Value, tensors: &[Spec]) -> String {
    let said = open(config, tensors).unwrap_err().to_string();
    assert!(!said.contains('\n'), "{said}");
    said
}

fn tied() -> Value {
    let mut config = config_json();
    config["tie_word_embeddings"] = json!(true);
    config
}

fn without(name: &str) -> Vec<Spec> {
    let mut tensors = tensors("BF16");
    tensors.retain(|t| t.0 != name);
    tensors
}

fn replaced(name: &str, dtype: &'static str, shape: Vec<usize>) -> Vec<Spec> {
    let mut tensors = tensors("BF16");
    let at = tensors.iter().position(|t| t.0 == name).unwrap();
    tensors[at] = spec(name, dtype, shape, 7);
    tensors
}

#[test]
fn every_tensor_is_found_with_its_shape_and_bytes() {
    let model = open(&config_json(), &tensors("BF16")).unwrap();
    let weights = &model.weights;
    assert_eq!(weights.embed().shape, [10, 8]);
    assert!(weights.embed().bytes.iter().all(|&b| b == 0));
    assert!(weights.lm_head().bytes.iter().all(|&b| b == 2));
    assert_eq!(weights.norm().shape, [8]);
    let layer = weights.layer(1);
    for (i, (tensor, shape)) in [
        (layer.input_norm, vec![8]),
        (layer.q, vec![24, 8]),
        (layer.k, vec![12, 8]),
        (layer.v, vec![12, 8]),
        (layer.o, vec![8, 24]),
        (layer.post_norm, vec![8]),
        (layer.gate, vec![12, 8]),
        (layer.up, vec![12, 8]),
        (layer.down, vec![8, 12]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(tensor.shape, shape, "{}", tensor.name);
        assert_eq!(tensor.dtype, Dtype::BF16);
        assert!(
            tensor.bytes.iter().all(|&b| b == 12 + i as u8),
            "{}",
            tensor.name
        );
    }
    assert_eq!(weights.n_layers(), 2);
    assert_eq!(weights.dtype(), Dtype::BF16);
    assert_eq!(
        weights.n_params(),
        tensors("U8").iter().map(|t| t.3.len()).sum::<usize>()
    );
    assert_eq!(weights.files().len(), 1);
}

#[test]
fn a_sharded_checkpoint_is_the_same_model() {
    let one = checkpoint(&config_json(), &tensors("F16"));
    let two = checkpoint(&config_json(), &tensors("F16"));
    sharded(two.path(), &tensors("F16"));
    let (one, two) = (
        Model::open(one.path()).unwrap(),
        Model::open(two.path()).unwrap(),
    );
    assert_eq!(two.weights.files().len(), 2);
    assert_eq!(
        one.weights.layer(0).down.bytes,
        two.weights.layer(0).down.bytes
    );
    assert_eq!(one.weights.lm_head().bytes, two.weights.lm_head().bytes);
}

#[test]
fn dtypes_may_be_mixed_and_the_commonest_is_named() {
    let mixed = replaced("model.norm.weight", "F32", vec![8]);
    let model = open(&config_json(), &mixed).unwrap();
    assert_eq!(model.weights.dtype(), Dtype::BF16);
    assert_eq!(model.weights.norm().dtype, Dtype::F32);
    assert_eq!(
        open(&config_json(), &tensors("F32"))
            .unwrap()
            .weights
            .dtype(),
        Dtype::F32
    );
}

#[test]
fn a_tied_head_is_the_embedding_stored_or_not() {
    let absent = open(&tied(), &without("lm_head.weight")).unwrap();
    assert!(absent.weights.is_tied());
    let mut stored = tensors("BF16");
    stored[2].3 = stored[0].3.clone();
    let stored = open(&tied(), &stored).unwrap();
    assert!(stored.weights.is_tied());
    assert_eq!(stored.weights.n_params(), absent.weights.n_params());
    assert_eq!(stored.weights.lm_head().name, "model.embed_tokens.weight");
    assert!(refusal(&tied(), &tensors("BF16")).contains("`lm_head.weight` differs"));
    assert!(
        refusal(&config_json(), &without("lm_head.weight"))
            .contains("`lm_head.weight` [10, 8] is missing")
    );
}

#[test]
fn missing_extra_misshaped_and_mistyped_tensors_are_named() {
    let norm = "model.norm.weight";
    let said = refusal(&config_json(), &without(norm));
    assert!(
        said.contains("`model.norm.weight` [8] is missing"),
        "{said}"
    );
    let mut extra = tensors("BF16");
    extra.push(spec(
        "model.layers.0.self_attn.q_proj.bias",
        "BF16",
        vec![24],
        0,
    ));
    let said = refusal(&config_json(), &extra);
    assert!(
        said.contains("`model.layers.0.self_attn.q_proj.bias` is extra"),
        "{said}"
    );
    let said = refusal(&config_json(), &replaced(norm, "BF16", vec![9]));
    assert!(said.contains("has shape [9], expected [8]"), "{said}");
    let said = refusal(&config_json(), &replaced(norm, "I32", vec![8]));
    assert!(
        said.contains("has dtype I32, expected F32, F16 or BF16"),
        "{said}"
    );
}

#[test]
fn saved_rope_frequencies_are_not_extra() {
    let mut old = tensors("F16");
    old.push(spec(
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "F32",
        vec![3],
        0,
    ));
    assert!(open(&config_json(), &old).is_ok());
}

#[test]
fn of_many_problems_the_first_few_are_told_and_all_are_counted() {
    let mut config = config_json();
    config["num_hidden_layers"] = json!(4);
    let said = refusal(&config, &tensors("BF16"));
    assert!(
        said.contains("`model.layers.2.input_layernorm.weight` [8] is missing"),
        "{said}"
    );
    assert!(said.contains("and 14 more (18 problems in all)"), "{said}");
}

#[test]
fn a_broken_weight_file_is_named_with_what_is_wrong() {
    let dir = checkpoint(&config_json(), &tensors("BF16"));
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 5, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let said = Model::open(dir.path()).unwrap_err().to_string();
        assert!(
            said.contains("model.safetensors: not a valid safetensors file"),
            "{said}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert!(
        Model::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("no model.safetensors")
    );
    std::fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
    assert!(
        Model::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("save the model as safetensors")
    );
}

/// What [`Model::open`] says after `change` has been made to a good index.
fn refused_index(change: impl FnOnce(&Path, &mut serde_json::Map<String, Value>)) -> String {
    let dir = checkpoint(&config_json(), &tensors("BF16"));
    sharded(dir.path(), &tensors("BF16"));
    let path = dir.path().join(INDEX);
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(dir.path(), index["weight_map"].as_object_mut().unwrap());
    std::fs::write(&path, index.to_string()).unwrap();
    Model::open(dir.path()).unwrap_err().to_string()
}

#[test]
fn an_index_may_only_list_what_is_there() {
    let said = refused_index(|dir, _| {
        std::fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap();
    });
    assert!(
        said.contains("not here: model-00002-of-00002.safetensors"),
        "{said}"
    );
    let said = refused_index(|_, map| {
        map.insert(
            "model.norm.bias".into(),
            json!("model-00001-of-00002.safetensors"),
        );
    });
    assert!(said.contains("`model.norm.bias` is listed in"), "{said}");
    let said = refused_index(|dir, _| {
        let first = dir.join("model-00001-of-00002.safetensors");
        std::fs::write(&first, safetensors(&tensors("BF16"))).unwrap();
    });
    assert!(
        said.contains("is in model-00001-of-00002.safetensors and in"),
        "{said}"
    );
    assert!(refused_index(|_, map| map.clear()).contains("lists no tensor"));
}

#[test]
fn an_index_may_not_reach_outside_its_directory() {
    for file in [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        "./x",
    ] {
        let said = refused_index(|_, map| {
            map.insert("model.norm.weight".into(), json!(file));
        });
        assert!(said.contains("not a plain file name"), "{file}: {said}");
    }
    assert!(
        refused_index(|_, map| drop(map.insert("x".into(), json!(3)))).contains("not a string")
    );
}

#[test]
fn the_fingerprint_tells_configs_dtypes_and_shards_apart_but_not_places() {
    let of = |config: &Value, dtype| open(config, &tensors(dtype)).unwrap().fingerprint;
    let print = of(&config_json(), "BF16");
    assert_eq!(print.len(), 32);
    assert_eq!(print, of(&config_json(), "BF16"));
    assert_ne!(print, of(&config_json(), "F16"));
    let mut other = config_json();
    other["rope_theta"] = json!(20000.0);
    assert_ne!(print, of(&other, "BF16"));
}

#[test]
fn what_is_no_model_directory_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let said = Model::open(dir.path()).unwrap_err().to_string();
    assert!(said.contains("no config.json here"), "{said}");
    let said = Model::open(&dir.path().join("absent"))
        .unwrap_err()
        .to_string();
    assert!(said.contains("no such model"), "{said}");
}

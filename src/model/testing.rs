//! Small made-up checkpoints for the tests of this module.

use std::path::Path;

use serde_json::{Map, Value, json};

/// One tensor to write: name, safetensors dtype, shape, bytes.
pub(super) type Spec = (String, &'static str, Vec<usize>, Vec<u8>);

/// A config of two blocks: d 8, 4 query and 2 key/value heads of width 6, f 12, V 10.
pub(super) fn config_json() -> Value {
    json!({
        "model_type": "llama", "hidden_act": "silu", "vocab_size": 10, "hidden_size": 8, "intermediate_size": 12,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "bos_token_id": 1, "eos_token_id": 2
    })
}

/// The tensors of [`config_json`], untied, every byte telling which tensor it is in.
pub(super) fn tensors(dtype: &'static str) -> Vec<Spec> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_string(), vec![10, 8]),
        ("model.norm.weight".into(), vec![8]),
        ("lm_head.weight".into(), vec![10, 8]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![8]),
            ("self_attn.q_proj", vec![24, 8]),
            ("self_attn.k_proj", vec![12, 8]),
            ("self_attn.v_proj", vec![12, 8]),
            ("self_attn.o_proj", vec![8, 24]),
            ("post_attention_layernorm", vec![8]),
            ("mlp.gate_proj", vec![12, 8]),
            ("mlp.up_proj", vec![12, 8]),
            ("mlp.down_proj", vec![8, 12]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let fill =
        |(i, (name, shape)): (usize, (String, Vec<usize>))| spec(&name, dtype, shape, i as u8);
    shapes.into_iter().enumerate().map(fill).collect()
}

/// A tensor with every byte `fill`.
pub(super) fn spec(name: &str, dtype: &'static str, shape: Vec<usize>, fill: u8) -> Spec {
    let size = super::header::element_size(dtype).unwrap();
    let bytes = vec![fill; shape.iter().product::<usize>() * size];
    (name.to_string(), dtype, shape, bytes)
}

/// The bytes of a safetensors file with these tensors in this order.
pub(super) fn safetensors(tensors: &[Spec]) -> Vec<u8> {
    let mut header = Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let info = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
        header.insert(name.clone(), info);
        data.extend_from_slice(bytes);
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// A directory with `config.json` and a single weight file.
pub(super) fn checkpoint(config: &Value, tensors: &[Spec]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), safetensors(tensors)).unwrap();
    dir
}

/// Splits tensors over two files with an index.
pub(super) fn sharded(dir: &Path, tensors: &[Spec]) {
    let _ = std::fs::remove_file(dir.join("model.safetensors"));
    let (a, b) = tensors.split_at(tensors.len() / 2);
    let mut map = Map::new();
    for (i, part) in [a, b].into_iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", i + 1);
        std::fs::write(dir.join(&file), safetensors(part)).unwrap();
        for (name, ..) in part {
            map.insert(name.clone(), json!(file));
        }
    }
    let index = json!({"metadata": {}, "weight_map": map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

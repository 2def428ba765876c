//! `model info`

use serde_json::Value;

use super::{common, done, refused, streamgauge};

#[test]
fn model_info_gives_sizes_files_fingerprint_and_every_hook_point() {
    let info = |name: &str, flags: &[&str]| {
        done(
            streamgauge()
                .args(["model", "info", "--model"])
                .arg(common::fixtures().join("models").join(name))
                .args(flags),
        )
    };
    let text = info("mistral-window4", &[]);
    for said in [
        "mistral",
        "sliding window 4 keys",
        "blocks.{0-2}.attn.hook_k",
        "[2, 16]",
        "[4, rows, tokens] a sample",
        "logits",
    ] {
        assert!(text.contains(said), "'{said}' in {text}");
    }
    let value: Value = serde_json::from_str(&info("mistral-gqa41", &["--json"])).unwrap();
    assert_eq!(
        (
            value["files"].as_array().unwrap().len(),
            value["hook_points"].as_array().unwrap().len()
        ),
        (3, 28)
    );
    let opened =
        streamgauge::model::Model::open(&common::fixtures().join("models/mistral-gqa41")).unwrap();
    assert_eq!(value["fingerprint"], opened.fingerprint);
    assert_eq!(value["parameters"], opened.weights.n_params());
    assert!(value["tokenizer"].is_null() && value["chat_template"].is_null());
    let value: Value = serde_json::from_str(&info("llama3-rope", &["--json"])).unwrap();
    assert_eq!(value["config"]["rope"]["type"], "llama3");
    let message = refused(
        streamgauge().args(["model", "info", "--model", "/nowhere/model"]),
        1,
    );
    assert!(message.contains("/nowhere/model"), "{message}");
}

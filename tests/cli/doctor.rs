//! `doctor`

use serde_json::json;

use super::{done, done_json, streamgauge};

#[test]
fn doctor_names_what_is_missing_with_the_remedy() {
    let said = done(
        streamgauge()
            .arg("doctor")
            .env("HF_HUB_CACHE", "/nowhere/hub")
            .env("HF_HUB_OFFLINE", "1"),
    );
    for word in [
        "GFLOP/s",
        "/nowhere/hub",
        "offline",
        "\nio_uring ",
        "\ndriver ",
        "\ncuBLASLt ",
        "\nkernels ",
        "\nGPUs ",
    ] {
        assert!(said.contains(word), "'{word}' in {said}");
    }
    let found = done_json(streamgauge().args(["doctor", "--json"]));
    assert!(found["gemm_gflops_bf16"].as_f64().unwrap() > 0.0);
    assert!(found["gemm_gflops"].as_f64().unwrap() > 0.0 && found["threads"].as_u64().unwrap() > 0);
    let computes =
        found["cuda"]["why_no_kernels"].is_null() && found["cuda"]["why_no_gpu"].is_null();
    assert_eq!(found["backends"], json!({ "cpu": true, "cuda": computes }));
    let missing = found["missing"].as_array().unwrap();
    assert_eq!(
        missing.iter().any(|m| m["what"] == "CUDA backend"),
        found["cuda"]["why_no_gpu"].is_string()
    );
    // Each is there, or it is said why not.
    let cuda = &found["cuda"];
    assert_ne!(cuda["nvcc"].is_string(), cuda["why_no_kernels"].is_string());
    assert_eq!(
        cuda["gpus"].as_array().unwrap().is_empty(),
        cuda["why_no_gpu"].is_string()
    );
    assert!(
        found["missing"]
            .as_array()
            .unwrap()
            .iter()
            .all(|m| m["what"].is_string() && m["remedy"].is_string())
    );
}

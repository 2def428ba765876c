//! `bench gemm`

use serde_json::json;

use super::{done_json, streamgauge};

#[test]
fn bench_gemm_weighs_the_shapes_it_was_given() {
    let rates =
        done_json(streamgauge().args(["bench", "gemm", "--json", "--m", "32", "--repeats", "1"]));
    assert_eq!(rates["shapes"].as_array().unwrap().len(), 4);
    for rate in ["gflops", "product_gflops"] {
        assert!(rates[rate].as_f64().unwrap() > 0.0);
    }
    let one = done_json(
        streamgauge().args("bench gemm --json --m 8 --n 16 --k 32 --repeats 1".split(' ')),
    );
    assert_eq!(
        (&one["shapes"][0]["n"], &one["shapes"][0]["k"]),
        (&json!(16), &json!(32))
    );
    streamgauge()
        .args(["bench", "gemm", "--n", "16"])
        .assert()
        .code(2);
}

//! `--device` and its kin where there is no GPU to run on.

use super::{Bench, refused, streamgauge};

#[test]
fn what_the_cpu_does_not_do_is_refused_by_name_with_the_remedy() {
    let bench = Bench::new(3);
    let out = bench.path("store");
    for (flags, says) in [
        (
            &["--dtype", "bf16"][..],
            &["--dtype bf16", "--store-dtype bf16"][..],
        ),
        (&["--dtype", "f16"], &["--dtype f16", "--store-dtype f16"]),
        (&["--gemm", "own"], &["--gemm own", "leave the flag out"]),
    ] {
        for command in ["extract", "plan"] {
            let message = refused(
                bench
                    .job(command, &["hook_embed"])
                    .arg("--out")
                    .arg(&out)
                    .args(["--device", "cpu"])
                    .args(flags),
                1,
            );
            for word in says {
                assert!(message.contains(word), "'{word}' in {message}");
            }
        }
    }
    assert!(!out.exists());
}

#[test]
fn a_device_that_is_not_there_is_an_error_that_leaves_no_store() {
    let bench = Bench::new(3);
    let out = bench.path("store");
    let message = refused(
        bench
            .job("extract", &["hook_embed"])
            .arg("--out")
            .arg(&out)
            .args(["--device", "cuda:63"]),
        1,
    );
    assert!(
        [
            "head_dim 16",
            "cuda:63",
            "install the NVIDIA driver",
            "no CUDA kernels"
        ]
        .iter()
        .any(|why| message.contains(why)),
        "{message}"
    );
    assert!(!out.exists());
}

#[test]
fn auto_says_why_it_runs_on_the_cpu() {
    // No kernel is compiled for this model's heads of 16, so that it is the CPU whatever the machine has.
    let bench = Bench::new(3);
    let output = streamgauge()
        .args(["extract", "--tap", "hook_embed", "--model"])
        .arg(super::model())
        .arg("--data")
        .arg(bench.path("data.jsonl"))
        .arg("--out")
        .arg(bench.path("store"))
        .assert()
        .success()
        .get_output()
        .clone();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("running on the CPU: "), "{said}");
}

//! cuBLASLt where there is one: from a stand-in of it (`tests/stand_in_cuda/libcublasLt.c`) beside the driver's. What is found where, what
//! is asked of it and how often, and what a job keeps.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;

use assert_cmd::Command;
use half::bf16;
use serde_json::Value;
use streamgauge::backend::cuda::driver::Driver;
use streamgauge::backend::cuda::{Dtype, GemmCall, GemmChoice, GemmShape, Gpu, Launcher};
use tempfile::TempDir;

use super::stand_in_cuda::{on, stand_in};
use super::{Bench, common, done, done_json, refused, streamgauge};

/// A folder with the library, compiled once.
fn library() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in_cuda/libcublasLt.c");
        let compiled = process::Command::new("cc")
            .args([
                "-shared",
                "-fPIC",
                "-O2",
                "-Wl,-soname,libcublasLt.so.13",
                "-o",
            ])
            .arg(dir.path().join("libcublasLt.so.13"))
            .arg(source)
            .status()
            .unwrap();
        assert!(compiled.success());
        dir
    })
    .path()
}

fn both() -> String {
    format!("{}:{}", stand_in().display(), library().display())
}

/// An extraction on a machine with driver and library, and what is said to the library.
struct Job {
    bench: Bench,
    log: PathBuf,
    store: PathBuf,
}

impl Job {
    fn new() -> Job {
        let bench = Bench::new(12);
        let (log, store) = (bench.path("log"), bench.path("store"));
        Job { bench, log, store }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut c = streamgauge();
        c.args([
            "extract", "--quiet", "--device", "cuda", "--gemm", "cublaslt",
        ])
        .args(["--tap", "blocks.*.hook_resid_post", "--tap", "logits@last"])
        .args(["--batch-tokens", "48", "--shard-size", "8kB"])
        .arg("--model")
        .arg(common::fixtures().join("models/mistral-bf16-h64"))
        .arg("--data")
        .arg(self.bench.path("data.jsonl"))
        .arg("--out")
        .arg(&self.store)
        .args(flags);
        self.env(c)
    }

    fn env(&self, command: Command) -> Command {
        let mut c = on(&[], command);
        c.env("LD_LIBRARY_PATH", both())
            .env("STAND_IN_CUBLASLT_LOG", &self.log);
        c
    }

    /// The lines of the log that begin so, and the log begins anew.
    fn said(&self) -> (Vec<String>, Vec<String>) {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let _ = std::fs::remove_file(&self.log);
        let lines = text.lines().map(str::to_owned);
        lines.partition(|line| line.starts_with("choose"))
    }

    fn record(&self) -> Value {
        let manifest = std::fs::read(self.store.join("manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["numeric_record"]["gemm"].clone()
    }
}

fn algorithms(lines: &[String]) -> BTreeSet<&str> {
    let last = |line: &String| line.rfind("algorithm=").map(|at| at + 10);
    lines
        .iter()
        .map(|line| &line[last(line).unwrap()..])
        .collect()
}

#[test]
fn each_shape_of_a_job_is_chosen_once_without_a_split_and_recorded() {
    let job = Job::new();
    done(&mut job.command(&[]));
    let (chosen, multiplied) = job.said();
    // q, k and v; o; gate and up; down; the LM head.
    assert_eq!(chosen.len(), 5, "{chosen:?}");
    for line in &chosen {
        let asked = ["type=14", "reductions=0", "workspace=33554432"];
        assert!(asked.iter().all(|word| line.contains(word)), "{line}");
    }
    assert!(multiplied.len() > 40, "{} products", multiplied.len());
    assert_eq!(
        algorithms(&multiplied).len(),
        5,
        "each by the one of its shape"
    );
    // A chunk is whole, however few its rows are.
    let logits = |line: &&String| line.contains(" m=128 n=160 ");
    let whole = |line: &&String| line.contains(" m=2048 ");
    let (some, all) = (
        multiplied.iter().filter(logits).count(),
        multiplied.iter().filter(whole).count(),
    );
    assert!(some > 0 && some + all == multiplied.len());
    let record = job.record();
    assert_eq!(record["library"], "cublasLt 13.1.0");
    assert_eq!(
        (
            record["chunk"].as_u64(),
            record["algorithms"].as_array().unwrap().len()
        ),
        (Some(2048), 5)
    );
}

#[test]
fn another_process_takes_the_recorded_algorithms_and_chooses_none() {
    let job = Job::new();
    let mut fails = job.command(&[]);
    fails.env("STAND_IN_CUDA_LAUNCH", "60");
    refused(&mut fails, 1);
    let (chosen, _) = job.said();
    let (begun, first) = (job.record(), algorithms(&chosen));
    // This one would choose others.
    let other = ("STAND_IN_CUBLASLT_FIRST", "70");
    done(job.command(&["--resume"]).env(other.0, other.1));
    let (chosen, multiplied) = job.said();
    assert!(chosen.is_empty(), "{chosen:?}");
    assert!(multiplied.len() > 10 && algorithms(&multiplied).is_subset(&first));
    assert_eq!(job.record(), begun);
    let mut verify = streamgauge();
    verify
        .arg("verify")
        .arg(&job.store)
        .args(["--recompute", "2"]);
    // Kernels do nothing here, so products are made of whatever lies about: what the rows are means nothing.
    job.env(verify).env(other.0, other.1).output().unwrap();
    let (chosen, multiplied) = job.said();
    assert!(chosen.is_empty() && !multiplied.is_empty(), "{chosen:?}");
    assert!(algorithms(&multiplied).is_subset(&first));
}

#[test]
fn a_job_is_not_gone_on_with_by_another_version_or_without_the_library() {
    let job = Job::new();
    let mut fails = job.command(&[]);
    fails.env("STAND_IN_CUDA_LAUNCH", "60");
    refused(&mut fails, 1);
    let mut newer = job.command(&["--resume"]);
    newer.env("STAND_IN_CUBLASLT_VERSION", "130200");
    let message = refused(&mut newer, 1);
    for word in ["cublasLt 13.1.0", "cublasLt 13.2.0", "other bits"] {
        assert!(message.contains(word), "'{word}' in {message}");
    }
    let mut without = job.command(&["--resume"]);
    without.env("LD_LIBRARY_PATH", stand_in());
    let message = refused(&mut without, 1);
    assert!(message.contains("--gemm own"), "{message}");
    done(&mut job.command(&["--resume"]));
}

#[test]
fn the_library_is_found_beside_pytorch_and_doctor_says_where() {
    let job = Job::new();
    let beside = job
        .bench
        .path("venv/lib/python3.12/site-packages/nvidia/cu13/lib");
    std::fs::create_dir_all(&beside).unwrap();
    let there = beside.join("libcublasLt.so.13");
    std::fs::copy(library().join("libcublasLt.so.13"), &there).unwrap();
    let in_environment = |c: Command| {
        let mut c = job.env(c);
        c.env("LD_LIBRARY_PATH", stand_in())
            .env("VIRTUAL_ENV", job.bench.path("venv"));
        c
    };
    let mut doctor = streamgauge();
    doctor.args(["doctor", "--json"]);
    let found = done_json(&mut in_environment(doctor));
    assert_eq!(found["cuda"]["cublaslt"], there.display().to_string());
    done(&mut in_environment(job.command(&[])));
    assert_eq!(job.said().0.len(), 5);
}

/// The library knows columns; what we ask of it is rows. In a process that has the stand-ins on its library path, which is read when a
/// process begins: this test starts itself in one.
#[test]
fn products_by_the_library_are_those_of_rows_by_rows() {
    const THERE: &str = "STREAMGAUGE_TEST_HAS_STAND_INS";
    if std::env::var_os(THERE).is_none() {
        let name = "stand_in_cublaslt::products_by_the_library_are_those_of_rows_by_rows";
        let child = process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env("LD_LIBRARY_PATH", both())
            .env(THERE, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&child.stderr)
        );
        return;
    }
    let mut gpu = Gpu::open(0, GemmChoice::CublasLt).unwrap();
    assert_eq!(gpu.gemm_library(), "cublasLt 13.1.0");
    // Rows are longer than what is multiplied of them.
    let (m, n, k) = (5_u32, 7_u32, 3_u32);
    let (x_stride, weight_stride, out_stride) = (11_u32, 4_u32, 16_u32);
    let value = |i: u32, seed: u32| ((i * 37 + seed) % 19) as f32 / 4.0 - 2.0;
    for dtype in [Dtype::F32, Dtype::BF16] {
        let size = dtype.bytes() as u32;
        let bytes = |n: u32, seed: u32| -> Vec<u8> {
            (0..n)
                .flat_map(|i| match dtype {
                    Dtype::F32 => value(i, seed).to_le_bytes().to_vec(),
                    _ => bf16::from_f32(value(i, seed)).to_le_bytes().to_vec(),
                })
                .collect()
        };
        let [x, weight, out] = [
            (m * x_stride, 1),
            (n * weight_stride, 2),
            (m * out_stride, 3),
        ]
        .map(|(elements, seed)| {
            let at = gpu.alloc((elements * size) as usize).unwrap();
            gpu.upload(at, &bytes(elements, seed)).unwrap();
            at
        });
        let shape = GemmShape {
            m,
            n,
            k,
            input: dtype,
            output: dtype,
        };
        let algorithm = gpu.choose_gemm(&shape).unwrap();
        let call = GemmCall {
            x,
            weight,
            out,
            x_stride,
            weight_stride,
            out_stride,
        };
        gpu.multiply(&algorithm, &shape, &call).unwrap();
        let mut found = vec![0; (m * out_stride * size) as usize];
        gpu.download(out, &mut found).unwrap();
        for row in 0..m {
            for column in 0..out_stride {
                let i = row * out_stride + column;
                // What lies behind a row of the product is not touched.
                let expected = if column < n {
                    (0..k)
                        .map(|j| {
                            value(row * x_stride + j, 1) * value(column * weight_stride + j, 2)
                        })
                        .sum()
                } else {
                    value(i, 3)
                };
                let at = (i * size) as usize;
                let found = match dtype {
                    Dtype::F32 => f32::from_le_bytes(found[at..at + 4].try_into().unwrap()),
                    _ => bf16::from_le_bytes(found[at..at + 2].try_into().unwrap()).to_f32(),
                };
                let expected = match dtype {
                    Dtype::F32 => expected,
                    _ => bf16::from_f32(expected).to_f32(),
                };
                assert_eq!(found, expected, "{dtype}: row {row}, column {column}");
            }
        }
    }
}

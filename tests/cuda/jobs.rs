//! One job on both backends, and what their stores have to say to each other.

use std::path::{Path, PathBuf};

use streamgauge::backend::cuda::{CudaOptions, Dtype};
use streamgauge::engine::{Job, Prepared, extract, extract_on};
use streamgauge::store::{Store, verify};

use crate::{BF16, common, gpu, noise, open, options};

/// A job over a few samples of the bf16 model, and the stores that the two backends make of it.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn job(&self, taps: &[&str], edits: &[&str]) -> Prepared {
        self.job_of(BF16, taps, edits)
    }

    /// Of that model, over samples of 40, 1 and 9 tokens.
    pub fn job_of(&self, model: &str, taps: &[&str], edits: &[&str]) -> Prepared {
        let data = self.dir.path().join("data.jsonl");
        let line = |(i, n): (u32, usize)| format!("{{\"tokens\": {:?}}}\n", noise(n, i));
        let lines: String = (0..).zip([40, 1, 9]).map(line).collect();
        std::fs::write(&data, lines).unwrap();
        let model = common::fixtures().join("models").join(model);
        Prepared::open(Job {
            edits: edits.iter().map(|e| e.to_string()).collect(),
            batch_tokens: 48,
            ..Job::new(
                model.display().to_string(),
                vec![data.display().to_string()],
                taps.iter().map(|t| t.to_string()).collect(),
            )
        })
        .unwrap()
    }

    pub fn stores(&self, prepared: &Prepared) -> [PathBuf; 2] {
        self.stores_of(prepared, options(Dtype::F32), "")
    }

    /// The CPU backend's store and the device's; `name` is theirs.
    pub fn stores_of(&self, prepared: &Prepared, options: CudaOptions, name: &str) -> [PathBuf; 2] {
        let [cpu, cuda] =
            ["cpu", "cuda"].map(|which| self.dir.path().join(format!("{which}{name}")));
        let on_cpu = extract(prepared, &cpu, &mut |_| ()).unwrap();
        let mut machine = open(&prepared.model, gpu(), options);
        let on_cuda = extract_on(prepared, &mut machine, &cuda, &mut |_| ()).unwrap();
        assert_eq!(on_cpu.receipts.len(), on_cuda.receipts.len());
        for (a, b) in on_cpu.receipts.iter().zip(&on_cuda.receipts) {
            let [a, b] = [a, b].map(|r| serde_json::to_value(r).unwrap());
            assert_eq!(a["rows"], b["rows"], "{a} {b}");
        }
        [cpu, cuda]
    }
}

pub fn assert_alike(stores: &[PathBuf; 2]) {
    let [cpu, cuda] = stores.each_ref().map(|dir| {
        assert!(verify(dir, &|_| ()).unwrap().ok());
        Store::open(dir).unwrap()
    });
    for (tap, info) in cpu.taps().iter().enumerate() {
        let (cpu_rows, cuda_rows) = (rows(&cpu, tap), rows(&cuda, tap));
        assert_eq!(cpu_rows.len(), cuda_rows.len(), "{}", info.folder);
        // A projection may nearly vanish where the row that is projected does not: errors are measured against the tap's rows together.
        let squares = cpu_rows
            .iter()
            .flat_map(|(_, x)| x)
            .map(|a| f64::from(*a).powi(2));
        let typical = (squares.sum::<f64>() / cpu_rows.len() as f64).sqrt();
        for ((at, x), (at_too, y)) in cpu_rows.iter().zip(&cuda_rows) {
            assert_eq!(at, at_too);
            let difference: f64 = x.iter().zip(y).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!(
                difference.sqrt() <= 1e-5 * typical,
                "{} {at:?}: {x:?} {y:?}",
                info.folder
            );
        }
    }
}

/// Per tap the L2 distance of all its rows from the CPU backend's, relative to these.
pub fn distances(stores: &[PathBuf; 2]) -> Vec<(String, f64)> {
    let [cpu, cuda] = stores.each_ref().map(|dir| Store::open(dir).unwrap());
    let distance = |tap: usize| {
        let (mut off, mut norm) = (0.0, 0.0);
        for ((at, x), (at_too, y)) in rows(&cpu, tap).iter().zip(rows(&cuda, tap)) {
            assert_eq!(*at, at_too);
            for (a, b) in x.iter().zip(y) {
                off += f64::from(a - b).powi(2);
                norm += f64::from(*a).powi(2);
            }
        }
        (off / norm).sqrt()
    };
    let taps = cpu.taps().iter().enumerate();
    taps.map(|(tap, info)| (info.folder.clone(), distance(tap)))
        .collect()
}

fn rows(store: &Store, tap: usize) -> Vec<((i64, i32), Vec<f32>)> {
    let reader = store.tap_at(tap);
    if reader.info().ragged {
        let samples = store.samples().map(|s| s.unwrap().sample);
        let finite = |v: f32| if v.is_finite() { v } else { 0.0 };
        return samples
            .filter_map(|s| {
                let values = reader.ragged(s, 0).unwrap()?.to_f32();
                Some(((s as i64, -1), values.into_iter().map(finite).collect()))
            })
            .collect();
    }
    let row = |i| reader.row(i).unwrap();
    (0..reader.rows())
        .map(|i| ((row(i).sample(), row(i).position()), row(i).to_f32()))
        .collect()
}

pub fn tensor(dir: &Path, name: &str, n: usize) -> String {
    let values: Vec<u8> = (0..n)
        .flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![n], &values);
    let path = dir.join(name);
    safetensors::serialize_to_file([("v", view.unwrap())], None, &path).unwrap();
    format!("{}#v", path.display())
}

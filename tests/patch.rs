//! Patching sweeps: what a patch does, that replay changes no bit, what is refused; and `streamgauge patch` end to end.

#[path = "patch/command.rs"]
mod command;
mod common;
#[path = "patch/refused.rs"]
mod refused;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use assert_cmd::Command;
use proptest::prelude::*;
use streamgauge::backend::{Batch, Change, Edit, EditSpec, Sink, SinkSpec};
use streamgauge::engine::sweep::{
    Metric, PatchSite, Positions, Row, Run, Sweep, SweepSpec, Swept, Way, read_pairs, write,
};
use streamgauge::engine::{Job, Machine, Plan, Prepared};
use streamgauge::hooks::HookPoint;

/// 3 layers, d 64, 4 query and 2 key/value heads of 16, vocabulary 160, window 4.
fn model() -> PathBuf {
    common::fixtures().join("models/mistral-window4")
}

fn prepared(edits: &[&str]) -> Prepared {
    let job = Job::new(model().display().to_string(), Vec::new(), Vec::new());
    let edits = edits.iter().map(|e| e.to_string()).collect();
    Prepared::for_generation(Job { edits, ..job }).unwrap()
}

fn ids(n: usize, seed: usize) -> Vec<usize> {
    (0..n).map(|t| (t * 31 + seed * 17 + 3) % 160).collect()
}

struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Bench(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A pairs file of prompts of these lengths, clean and corrupt.
    fn pairs(&self, lengths: &[(usize, usize)]) -> PathBuf {
        let line = |(i, &(clean, corrupt)): (usize, &(usize, usize))| {
            let (clean, corrupt) = (ids(clean, i), ids(corrupt, i + 7));
            // A prompt of two tokens has no third.
            let subject = if clean.len().min(corrupt.len()) > 2 {
                "\"subject\": [1, 2], "
            } else {
                ""
            };
            format!(
                "{{\"clean\": {clean:?}, \"corrupt\": {corrupt:?}, \"answer\": 5, \"wrong\": 9, \"positions\": {{{subject}\"end\": -1}}}}\n"
            )
        };
        let path = self.path("pairs.jsonl");
        let lines: String = lengths.iter().enumerate().map(line).collect();
        std::fs::write(&path, lines).unwrap();
        path
    }

    /// One prompt a line, without a corrupt form.
    fn prompts(&self, lengths: &[usize]) -> PathBuf {
        let path = self.path("prompts.jsonl");
        let line = |(i, &n): (usize, &usize)| format!("{{\"clean\": {:?}}}\n", ids(n, i));
        std::fs::write(
            &path,
            lengths.iter().enumerate().map(line).collect::<String>(),
        )
        .unwrap();
        path
    }
}

fn spec(sites: &[&str], pairs: &[&str]) -> SweepSpec {
    let texts = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
    SweepSpec {
        pairs: texts(pairs),
        ways: vec![Way::Denoising, Way::Noising],
        min_kl: 0.0,
        ..SweepSpec::new(texts(sites))
    }
}

fn swept(prepared: &Prepared, pairs: &Path, spec: SweepSpec) -> Result<Swept, String> {
    let prompts = read_pairs(pairs, prepared).map_err(|e| e.to_string())?;
    let sweep = Sweep::new(prepared, spec, prompts).map_err(|e| e.to_string())?;
    sweep
        .run(&mut prepared.cpu(), &mut |_| ())
        .map_err(|e| e.to_string())
}

/// The logits after the last token of a whole pass, with these edits of single places.
fn logits(prepared: &Prepared, tokens: &[u32], edits: Vec<(HookPoint, Edit)>) -> Vec<f32> {
    let batch = Batch::pack([tokens]);
    let mut out = vec![0.0_f32; prepared.dims.vocab];
    let sink = Sink::new(
        Arc::new(SinkSpec::plain()),
        vec![tokens.len() as u32 - 1],
        vec![1],
        bytemuck::cast_slice_mut(&mut out),
        None,
    );
    let (points, edits): (Vec<HookPoint>, Vec<Edit>) = edits.into_iter().unzip();
    let plan = Plan::new(&[common::tap("logits", &prepared.model)]).with_edits(points, false);
    let n_layers = prepared.dims.n_layers;
    prepared
        .cpu()
        .run(&batch, vec![sink], edits, n_layers, &plan)
        .unwrap();
    out
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    let lse = largest + sum.ln();
    logits.iter().map(|&l| f64::from(l) - lse).collect()
}

fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// The row's number by a whole pass, of two texts.
fn naive(prepared: &Prepared, pairs: &Path, row: &Row) -> f64 {
    let prompts = read_pairs(pairs, prepared).unwrap();
    let pair = &prompts[row.prompt as usize];
    let (base, source) = (pair.tokens(row.way.base()), pair.tokens(row.way.source()));
    let edit = |site: &PatchSite| {
        let rows = |n: usize, run: Run| -> Vec<usize> {
            let shorter = pair.shorter();
            match &site.positions {
                Positions::All => (n - shorter..n).collect(),
                Positions::FromEnd(first, last) => (1..=shorter)
                    .rev()
                    .filter(|&back| (*first..=*last).contains(&-(back as i32)))
                    .map(|back| n - back)
                    .collect(),
                Positions::Named(name) => vec![pair.named[name][run as usize] as usize],
            }
        };
        let (to, from) = (
            rows(base.len(), row.way.base()),
            rows(source.len(), row.way.source()),
        );
        let mut cpu = prepared.cpu();
        let values = common::run(&mut cpu, &prepared.model, &[source], &[site.point]);
        let values = &values[0][0];
        let width = values.len() / source.len();
        let columns = site.head.map_or(0..width, |h| h * 16..(h + 1) * 16);
        let replacement = from
            .iter()
            .flat_map(|r| &values[r * width..][columns.clone()]);
        let spec = EditSpec {
            columns: vec![columns.clone()],
            heads: Vec::new(),
            change: Change::Replace,
        };
        let n = to.len() as u32;
        let to = to.into_iter().map(|r| r as u32).collect();
        let replacement = replacement.copied().collect();
        (
            site.point,
            Edit::new(Arc::new(spec), to, vec![n], replacement),
        )
    };
    let patched = logits(prepared, base, row.sites.iter().map(edit).collect());
    kl(
        &logits(prepared, pair.tokens(Run::Clean), Vec::new()),
        &patched,
    )
}

#[test]
fn replay_gives_what_whole_passes_give_bit_for_bit() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9), (1, 1), (23, 23)]);
    let spec = spec(
        &[
            "blocks.*.hook_resid_pre",
            "blocks.{0,2}.hook_resid_mid@-2..-1",
            "blocks.1.hook_resid_post@each:-3..-1",
            "blocks.*.attn.hook_z[0-3]",
            "blocks.1.attn.hook_k[1]@-1",
            "blocks.2.mlp.hook_post",
            "blocks.1.attn.hook_v",
        ],
        &[
            "blocks.*.hook_attn_out",
            "blocks.*.hook_mlp_out",
            "blocks.1.attn.hook_z[2]@-1",
        ],
    );
    let done = swept(&prepared, &pairs, spec).unwrap();
    assert!(done.rows.iter().filter(|r| r.sites.len() == 2).count() == 3 * 2 * 21);
    for row in &done.rows {
        let whole = naive(&prepared, &pairs, row);
        assert_eq!(row.patched.to_bits(), whole.to_bits(), "{row:?}: {whole}");
    }
    assert!(done.layer_runs < done.naive_layer_runs);
}

#[test]
fn a_set_is_patched_together_and_gives_what_a_whole_pass_gives_bit_for_bit() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9), (4, 4)]);
    let set = |places: &[&str]| places.iter().map(|p| p.to_string()).collect();
    let sets = vec![
        set(&["blocks.*.hook_mlp_out"]),
        set(&["blocks.{0,2}.attn.hook_z[1,3]", "blocks.1.hook_mlp_out@-2"]),
        set(&[
            "blocks.0.hook_mlp_out",
            "blocks.1.hook_mlp_out",
            "blocks.2.hook_attn_out",
        ]),
        set(&[
            "blocks.1.hook_resid_post@-1",
            "blocks.1.hook_resid_post@-3",
            "blocks.1.hook_resid_post@-5",
        ]),
        // As the pair below.
        set(&["blocks.0.hook_attn_out", "blocks.2.hook_attn_out"]),
    ];
    let both = SweepSpec {
        sets,
        ..spec(&[], &["blocks.{0,2}.hook_attn_out"])
    };
    let done = swept(&prepared, &pairs, both).unwrap();
    let of = |prompt| {
        let rows = done
            .rows
            .iter()
            .filter(|r| r.prompt == prompt && r.way == Way::Denoising);
        let mut places: Vec<usize> = rows.map(|r| r.sites.len()).collect();
        places.sort();
        places
    };
    assert_eq!(of(0), [2, 3, 3, 3, 5]);
    assert_eq!(
        of(1),
        [2, 3, 3, 5],
        "the prompt of 4 tokens has no fifth from its end"
    );
    for row in &done.rows {
        let whole = naive(&prepared, &pairs, row);
        assert_eq!(row.patched.to_bits(), whole.to_bits(), "{row:?}: {whole}");
    }
    let empty = SweepSpec {
        sets: vec![Vec::new()],
        ..spec(&["blocks.0.hook_mlp_out"], &[])
    };
    let message = swept(&prepared, &pairs, empty).unwrap_err();
    assert!(message.contains("names no place"), "{message}");
}

#[test]
fn several_metrics_of_one_sweep_are_what_each_gives_in_its_own() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9), (6, 6)]);
    let direction = direction(&bench);
    let metrics = vec![
        Metric::KlRecovery,
        Metric::Direction {
            file: direction,
            key: "v".into(),
            at: "blocks.2.hook_resid_post".into(),
        },
        Metric::LogitDiff,
        Metric::ProbDiff { of: None },
    ];
    let sites = spec(&["blocks.*.hook_attn_out"], &["blocks.*.hook_mlp_out"]);
    let of = |metrics: &[Metric]| {
        let metrics = metrics.to_vec();
        let spec = SweepSpec {
            metrics,
            ..sites.clone()
        };
        swept(&prepared, &pairs, spec)
    };
    let together = of(&metrics).unwrap();
    let mut naive = 0;
    for metric in &metrics {
        let alone = of(std::slice::from_ref(metric)).unwrap();
        let rows = together.rows.iter().filter(|r| r.metric == metric.name());
        assert!(rows.eq(&alone.rows), "{}", metric.name());
        assert_eq!(alone.layer_runs, together.layer_runs);
        naive = alone.naive_layer_runs;
    }
    assert_eq!(naive, together.naive_layer_runs);
    assert!(of(&[]).unwrap_err().contains("at least one"));
    let beyond = Metric::ProbDiff {
        of: Some([vec![1], vec![160]]),
    };
    assert!(of(&[beyond]).unwrap_err().contains("no 160"));
    let twice = [Metric::LogitDiff, Metric::LogitDiff];
    assert!(of(&twice).unwrap_err().contains("given twice"));
    let out = bench.path("tables");
    write(&out, &together, &serde_json::json!({}), &[]).unwrap();
    let means = std::fs::read_to_string(out.join("means.csv")).unwrap();
    assert!(means.lines().next().unwrap().ends_with("position2,metric"));
    assert_eq!(means.lines().count(), 1 + 4 * 2 * (3 + 3));
}

#[test]
fn patching_everything_makes_the_other_run_exactly() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9), (17, 17)]);
    for all in [
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_mid",
        "blocks.2.hook_resid_post",
        "blocks.2.hook_resid_post@-1",
        "blocks.2.hook_resid_post@end",
    ] {
        for row in swept(&prepared, &pairs, spec(&[all], &[])).unwrap().rows {
            match row.way {
                Way::Denoising => assert_eq!((row.patched, row.recovery), (0.0, 1.0), "{row:?}"),
                Way::Noising => {
                    assert_eq!((row.patched, row.recovery), (row.corrupt, -1.0), "{row:?}")
                }
            }
        }
    }
}

#[test]
fn all_heads_of_z_together_are_attn_out() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9)]);
    let values = |site| -> Vec<f64> {
        let done = swept(&prepared, &pairs, spec(&[site], &[])).unwrap();
        done.rows.iter().map(|row| row.patched).collect()
    };
    assert_eq!(
        values("blocks.*.attn.hook_z"),
        values("blocks.*.hook_attn_out")
    );
}

/// A file with one direction, `v`.
fn direction(bench: &Bench) -> PathBuf {
    let direction = bench.path("dir.safetensors");
    let bytes: Vec<u8> = (0..64)
        .flat_map(|i| ((i % 5) as f32 - 1.5).to_le_bytes())
        .collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![64], &bytes);
    safetensors::serialize_to_file([("v", view.unwrap())], None, &direction).unwrap();
    direction
}

#[test]
fn nothing_below_an_edit_recovers_anything() {
    let bench = Bench::new();
    let direction = direction(&bench);
    let edit = format!(
        "add at=blocks.1.hook_resid_post v={}#v c=3",
        direction.display()
    );
    let prepared = prepared(&[&edit]);
    let pairs = bench.prompts(&[7, 12]);
    let both = spec(
        &[
            "blocks.*.hook_attn_out",
            "blocks.*.hook_mlp_out",
            "blocks.*.hook_resid_post",
        ],
        &[],
    );
    let done = swept(&prepared, &pairs, both).unwrap();
    assert_eq!(done.edits[0].rows, 19);
    for row in &done.rows {
        let site = &row.sites[0];
        let is_stream = site.kind() == "hook_resid_post";
        match site.point.layer {
            1 if is_stream && row.way == Way::Denoising => assert_eq!(row.recovery, 1.0),
            1 if is_stream => assert_eq!(row.recovery, -1.0),
            0 | 1 => assert_eq!(row.recovery, 0.0, "{row:?}"),
            _ => assert_ne!(row.recovery, 0.0, "{row:?}"),
        }
    }
}

#[test]
fn prompts_of_unequal_lengths_are_matched_from_the_end_by_name_or_not_at_all() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 6), (5, 11)]);
    let whole = spec(&["blocks.1.hook_mlp_out"], &[]);
    let message = swept(&prepared, &pairs, whole.clone()).unwrap_err();
    assert!(
        message.contains("pairs.jsonl:1: `clean` has 9 tokens and `corrupt` 6"),
        "{message}"
    );
    assert!(message.contains("--align end"), "{message}");
    let aligned = SweepSpec {
        align_from_end: true,
        ..whole
    };
    let named = spec(
        &[
            "blocks.1.hook_mlp_out@subject",
            "blocks.0.hook_resid_post@-6..-2",
        ],
        &[],
    );
    for spec in [aligned, named] {
        let done = swept(&prepared, &pairs, spec).unwrap();
        assert!(!done.rows.is_empty());
        for row in &done.rows {
            assert_eq!(
                row.patched.to_bits(),
                naive(&prepared, &pairs, row).to_bits(),
                "{row:?}"
            );
        }
    }
    let each = swept(
        &prepared,
        &pairs,
        spec(&["blocks.1.hook_mlp_out@each"], &[]),
    )
    .unwrap();
    let rows = |prompt| each.rows.iter().filter(|r| r.prompt == prompt).count();
    assert_eq!((rows(0), rows(1)), (2 * 6, 2 * 5));
}

#[test]
fn metrics_go_by_the_last_position() {
    let bench = Bench::new();
    let pairs = bench.pairs(&[(9, 9)]);
    let last = "blocks.2.hook_resid_post@-1";
    let done = swept(
        &prepared(&[]),
        &pairs,
        SweepSpec {
            metrics: vec![Metric::LogitDiff],
            ..spec(&[last], &[])
        },
    );
    let prepared = prepared(&[]);
    let prompts = read_pairs(&pairs, &prepared).unwrap();
    let diff = |run| {
        let logits = logits(&prepared, prompts[0].tokens(run), Vec::new());
        f64::from(logits[5]) - f64::from(logits[9])
    };
    let row = &done.unwrap().rows[0];
    assert_eq!(
        (row.clean, row.corrupt),
        (diff(Run::Clean), diff(Run::Corrupt))
    );
    assert_eq!((row.patched, row.recovery), (row.clean, 1.0));
}

#[test]
fn layer_runs_are_those_from_the_first_patch_on_and_pairs_share_their_first_patch() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9)]);
    let mut one_way = spec(&["blocks.2.hook_mlp_out"], &[]);
    one_way.ways = vec![Way::Denoising];
    let done = swept(&prepared, &pairs, one_way.clone()).unwrap();
    assert_eq!((done.layer_runs, done.naive_layer_runs), (2 * 3 + 1, 3 * 3));
    // 0+1, 0+2, 1+2: the run with 0 alone goes through layers 0 and 1, that with 1 alone through layer 1.
    one_way.sites.clear();
    one_way.pairs = vec!["blocks.*.hook_mlp_out".into()];
    let done = swept(&prepared, &pairs, one_way).unwrap();
    assert_eq!(done.layer_runs, 2 * 3 + 1 + (1 + 1 + 1) + 3);
    assert_eq!(done.naive_layer_runs, (2 + 3) * 3);
    assert_eq!(
        done.receipts.iter().map(|r| r.rows).collect::<Vec<_>>(),
        [9, 18, 18]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn neither_memory_nor_batches_change_a_bit(memory in 1_u64..200_000, batch in 1_usize..200, seed in 1_usize..30) {
        let (bench, plain) = (Bench::new(), prepared(&[]));
        let pairs = bench.pairs(&[(seed, seed), (11, 11)]);
        let all = spec(&["blocks.*.attn.hook_z[0-3]"], &["blocks.*.hook_mlp_out", "blocks.1.hook_attn_out"]);
        let done = swept(&plain, &pairs, all.clone()).unwrap();
        let job = Job { batch_tokens: batch, ..plain.job.clone() };
        let small = Prepared::for_generation(job).unwrap();
        let again = swept(&small, &pairs, SweepSpec { memory, ..all }).unwrap();
        prop_assert_eq!(done.rows, again.rows);
    }
}

#[test]
fn a_stopped_sweep_goes_on_where_it_was_and_only_by_the_same_command() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9), (12, 12), (5, 5)]);
    let spec = SweepSpec {
        memory: 1 << 15,
        ..spec(&["blocks.*.attn.hook_z[0-3]"], &[])
    };
    let prompts = read_pairs(&pairs, &prepared).unwrap();
    let sweep = Sweep::new(&prepared, spec.clone(), prompts.clone()).unwrap();
    let out = bench.path("out");
    let run = |sweep: &Sweep<'_>, resume| {
        sweep.run_in(&mut prepared.cpu(), &out, resume, &|| false, &mut |_| ())
    };
    let whole = run(&sweep, false).unwrap();
    let journal = out.join("journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    assert!(text.lines().count() > 6, "several parts a prompt");
    assert!(
        run(&sweep, false)
            .unwrap_err()
            .to_string()
            .contains("--resume")
    );
    // Stopped in the middle of a line.
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    std::fs::write(&journal, lines[..4].concat() + &lines[4][..20]).unwrap();
    let resumed = run(&sweep, true).unwrap();
    assert_eq!(resumed.resumed, 3);
    assert_eq!(resumed.rows, whole.rows);
    assert_eq!(resumed.receipts, whole.receipts);
    let other = SweepSpec {
        metrics: vec![Metric::LogitDiff],
        ..spec
    };
    let other = Sweep::new(&prepared, other, prompts).unwrap();
    let message = run(&other, true).unwrap_err().to_string();
    assert!(message.contains("other metric"), "{message}");
    write(&out, &resumed, &sweep.record(&prepared.cpu()), &[]).unwrap();
    assert!(!journal.exists() && out.join("manifest.json").exists());
    assert!(
        run(&sweep, true)
            .unwrap_err()
            .to_string()
            .contains("nothing to resume")
    );
    assert!(sweep.is_done(&prepared.cpu(), &out).unwrap());
    let message = other
        .is_done(&prepared.cpu(), &out)
        .unwrap_err()
        .to_string();
    assert!(message.contains("other metric"), "{message}");
}

#[test]
fn a_sweep_ends_after_the_part_under_way_when_it_is_asked_to() {
    let (bench, prepared) = (Bench::new(), prepared(&[]));
    let pairs = bench.pairs(&[(9, 9), (12, 12)]);
    let spec = SweepSpec {
        memory: 1 << 15,
        ..spec(&["blocks.*.attn.hook_z[0-3]"], &[])
    };
    let prompts = read_pairs(&pairs, &prepared).unwrap();
    let sweep = Sweep::new(&prepared, spec, prompts).unwrap();
    let whole = sweep.run(&mut prepared.cpu(), &mut |_| ()).unwrap();
    let out = bench.path("out");
    let mut ends = 0;
    let resumed = loop {
        let stop = || true;
        match sweep.run_in(&mut prepared.cpu(), &out, true, &stop, &mut |_| ()) {
            Ok(swept) => break swept,
            Err(error) => assert!(error.to_string().contains("pass --resume"), "{error}"),
        }
        ends += 1;
        assert!(ends < 100, "no progress");
    };
    assert!(ends > 2);
    assert_eq!(resumed.rows, whole.rows);
}

#[test]
fn two_runs_too_long_for_a_batch_together_run_one_after_the_other() {
    let bench = Bench::new();
    let pairs = bench.prompts(&[9, 12]);
    let rows = |batch_tokens| {
        let edit = "scale at=blocks.0.hook_resid_post c=1.5";
        let job = Job {
            batch_tokens,
            ..prepared(&[edit]).job
        };
        let prepared = Prepared::for_generation(job).unwrap();
        let prompts = read_pairs(&pairs, &prepared).unwrap();
        let sites = ["blocks.{1,2}.hook_mlp_out", "blocks.2.hook_attn_out"];
        let sweep = Sweep::new(&prepared, spec(&sites, &[]), prompts).unwrap();
        sweep.run(&mut prepared.cpu(), &mut |_| ()).unwrap().rows
    };
    assert_eq!(rows(4096), rows(16));
}

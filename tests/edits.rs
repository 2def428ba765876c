//! Edits end to end, through stores: every editable point, every kind, what taps see, and what is refused.

#[path = "edits/command.rs"]
mod command;
mod common;
#[path = "edits/refused.rs"]
mod refused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use streamgauge::engine::{
    Job, LiveBatch, Memory, Prepared, dims, extract, extract_live, recompute,
};
use streamgauge::hooks::{HookPoint, Site};
use streamgauge::model::Model;
use streamgauge::store::{Store, StoreDtype};

/// A tiny model (3 layers, 4 query heads, 2 key/value heads of 16, window 4) and what its runs write.
struct Bench {
    dir: tempfile::TempDir,
    runs: std::cell::Cell<usize>,
}

/// Rows of each tap, by folder: (sample, position, numbers); a ragged tap's samples as one row each, position −1.
type Taps = BTreeMap<String, Vec<(i64, i32, Vec<f32>)>>;

impl Bench {
    fn new() -> Self {
        Bench {
            dir: tempfile::tempdir().unwrap(),
            runs: std::cell::Cell::new(0),
        }
    }

    fn model() -> PathBuf {
        common::fixtures().join("models/mistral-window4")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A dataset of these samples' ids, drawn from a seed.
    fn data(&self, seed: u32, lengths: &[usize]) -> String {
        let line = |(i, n): (usize, &usize)| {
            let ids: Vec<u32> = (0..*n as u32)
                .map(|t| (t * 31 + i as u32 * 17 + seed * 59) % 160)
                .collect();
            format!("{{\"tokens\": {ids:?}}}\n")
        };
        let path = self.path(&format!("data-{seed}-{}.jsonl", lengths.len()));
        std::fs::write(
            &path,
            lengths.iter().enumerate().map(line).collect::<String>(),
        )
        .unwrap();
        path.display().to_string()
    }

    /// A safetensors file with a tensor `v` of this shape.
    fn tensor(&self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let path = self.path(name);
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes);
        safetensors::serialize_to_file([("v", view.unwrap())], None, &path).unwrap();
        format!("{}#v", path.display())
    }

    fn job(data: &str, taps: &[&str], edits: &[&str]) -> Job {
        let taps = taps.iter().map(|t| t.to_string()).collect();
        Job {
            edits: edits.iter().map(|e| e.to_string()).collect(),
            ..Job::new(Self::model().display().to_string(), vec![data.into()], taps)
        }
    }

    fn store(&self, job: Job) -> Result<PathBuf, String> {
        self.runs.set(self.runs.get() + 1);
        let out = self.path(&format!("store-{}", self.runs.get()));
        let prepared = Prepared::open(job).map_err(|e| e.to_string())?;
        extract(&prepared, &out, &mut |_| ()).map_err(|e| e.to_string())?;
        Ok(out)
    }

    fn run(&self, job: Job) -> Taps {
        read(&self.store(job).unwrap())
    }

    fn refused(&self, job: Job) -> String {
        let message = self.store(job).unwrap_err();
        assert!(!message.contains('\n'), "{message}");
        message
    }
}

fn read(store: &Path) -> Taps {
    let store = Store::open(store).unwrap();
    let rows = |tap: usize| {
        let reader = store.tap_at(tap);
        if !reader.info().ragged {
            let row = |i| reader.row(i).unwrap();
            return (0..reader.rows())
                .map(|i| (row(i).sample(), row(i).position(), row(i).to_f32()))
                .collect();
        }
        let samples = store.samples().map(|s| s.unwrap().sample);
        samples
            .map(|s| (s as i64, -1, reader.ragged(s, 0).unwrap().unwrap().to_f32()))
            .collect()
    };
    let taps = store.taps().iter().enumerate();
    taps.map(|(i, info)| (info.folder.clone(), rows(i)))
        .collect()
}

const LENGTHS: [usize; 4] = [9, 1, 30, 70];

fn every_point() -> Vec<String> {
    let model = Model::open(&Bench::model()).unwrap();
    let points = HookPoint::all(&dims(&model.config));
    points.iter().map(HookPoint::to_string).collect()
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn bits(taps: &Taps, name: &str) -> Vec<Vec<u32>> {
    let rows = &taps[name];
    rows.iter()
        .map(|(.., row)| row.iter().map(|v| v.to_bits()).collect())
        .collect()
}

fn editable() -> Vec<Site> {
    let sites = Site::ALL.into_iter();
    sites.filter(|s| s.is_editable()).collect()
}

/// Layer 1's point of a site, or the one outside the blocks.
fn place(site: Site) -> HookPoint {
    HookPoint {
        site,
        layer: usize::from(site.is_per_layer()),
    }
}

#[test]
fn at_every_editable_point_the_tap_holds_the_edited_rows_and_nothing_before_them_moves() {
    let bench = Bench::new();
    let data = bench.data(0, &LENGTHS);
    let points = every_point();
    let clean = bench.run(Bench::job(&data, &strs(&points), &[]));
    for site in editable() {
        let point = place(site).to_string();
        let edit = format!("scale at={point} c=-0.5 select=every:2");
        let edited = bench.run(Bench::job(&data, &strs(&points), &[&edit]));
        let at = points.iter().position(|p| *p == point).unwrap();
        for before in &points[..at] {
            assert_eq!(
                bits(&edited, before),
                bits(&clean, before),
                "{edit}: {before}"
            );
        }
        for ((_, position, new), (.., old)) in edited[&point].iter().zip(&clean[&point]) {
            if site.is_ragged() {
                // [heads, queries, keys]: the query decides.
                let n = ((old.len() / 4) as f64).sqrt() as usize;
                for (i, (new, old)) in new.iter().zip(old).enumerate() {
                    let c = if (i / n % n).is_multiple_of(2) {
                        -0.5
                    } else {
                        1.0
                    };
                    assert_eq!(*new, c * old);
                }
                continue;
            }
            let c = if position % 2 == 0 { -0.5 } else { 1.0 };
            let scaled: Vec<f32> = old.iter().map(|x| c * x).collect();
            assert_eq!(*new, scaled, "{edit}, position {position}");
        }
        if site != Site::Logits {
            assert_ne!(bits(&edited, "logits"), bits(&clean, "logits"), "{edit}");
        }
        // The same with taps before edits: the point holds what it held, all others what they hold now.
        let job = Job {
            tap_before_edits: true,
            ..Bench::job(&data, &strs(&points), &[&edit])
        };
        if site == Site::Logits {
            assert!(
                bench
                    .refused(job)
                    .contains("changes nothing that is tapped")
            );
            continue;
        }
        let before = bench.run(job);
        for other in &points {
            let same = if *other == point { &clean } else { &edited };
            assert_eq!(bits(&before, other), bits(same, other), "{edit}: {other}");
        }
        // What follows does not depend on what is tapped, nor on whether a tap's slab is where the op writes.
        let alone = bench.run(Bench::job(&data, &["logits"], &[&edit]));
        assert_eq!(bits(&alone, "logits"), bits(&edited, "logits"), "{edit}");
        let indirect = Job {
            store_dtype: Some(StoreDtype::F16),
            ..Bench::job(&data, &[&point, "logits"], &[&edit])
        };
        let logits = &bench.run(indirect)["logits"];
        for ((.., half), (.., full)) in logits.iter().zip(&edited["logits"]) {
            let rounded = full.iter().map(|&v| half::f16::from_f32(v).to_f32());
            assert_eq!(*half, rounded.collect::<Vec<f32>>());
        }
    }
}

#[test]
fn rows_of_the_clean_run_put_into_another_give_the_clean_run_from_there_on() {
    let bench = Bench::new();
    let (clean_data, other_data) = (bench.data(0, &LENGTHS), bench.data(5, &LENGTHS));
    let points = every_point();
    let clean_store = bench
        .store(Bench::job(&clean_data, &strs(&points), &[]))
        .unwrap();
    let clean = read(&clean_store);
    for point in [
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_mid",
        "blocks.2.hook_resid_post",
        "ln_final.hook_out",
        "logits",
    ] {
        let edit = format!("replace at={point} from={}", clean_store.display());
        let patched = bench.run(Bench::job(&other_data, &strs(&points), &[&edit]));
        let at = points.iter().position(|p| p == point).unwrap();
        for after in &points[at..] {
            assert_eq!(
                bits(&patched, after),
                bits(&clean, after),
                "{edit}: {after}"
            );
        }
    }
    // Everywhere at once, in the run's own place: nothing changes.
    let edits: Vec<String> = editable()
        .into_iter()
        .map(|site| site.template().replace(".L.", ".*."))
        .map(|at| format!("replace at={at} from={}", clean_store.display()))
        .collect();
    let same = bench.run(Bench::job(&clean_data, &strs(&points), &strs(&edits)));
    for point in &points {
        assert_eq!(bits(&same, point), bits(&clean, point), "{point}");
    }
    // All that the blocks add, and the embedding: the clean logits out of other tokens.
    let edits = [
        "hook_embed",
        "blocks.*.hook_attn_out",
        "blocks.*.hook_mlp_out",
    ]
    .map(|at| format!("replace at={at} from={}", clean_store.display()));
    let patched = bench.run(Bench::job(&other_data, &["logits"], &strs(&edits)));
    assert_eq!(bits(&patched, "logits"), bits(&clean, "logits"));
}

#[test]
fn zeroing_all_heads_leaves_attention_nothing_to_add() {
    let bench = Bench::new();
    let data = bench.data(0, &LENGTHS);
    for edit in [
        "zero at=blocks.1.attn.hook_z",
        "zero at=blocks.1.attn.hook_pattern",
        "zero at=blocks.1.attn.hook_v[0,1]",
    ] {
        let taps = [
            "blocks.1.hook_attn_out",
            "blocks.1.attn.hook_result",
            "blocks.1.hook_resid_pre",
            "blocks.1.hook_resid_mid",
        ];
        let done = bench.run(Bench::job(&data, &taps, &[edit]));
        for tap in &taps[..2] {
            assert!(
                done[*tap]
                    .iter()
                    .all(|(.., row)| row.iter().all(|&v| v == 0.0))
            );
        }
        assert_eq!(bits(&done, taps[2]), bits(&done, taps[3]));
    }
}

#[test]
fn parts_add_up_to_wholes_in_an_edited_run_too() {
    let bench = Bench::new();
    let data = bench.data(0, &LENGTHS);
    let taps = [
        "attn.hook_result",
        "hook_attn_out",
        "hook_resid_pre",
        "hook_mlp_out",
        "hook_resid_post",
    ]
    .map(|t| format!("blocks.1.{t}"));
    let edits = [
        "scale at=blocks.1.attn.hook_z[2] c=3",
        "scale at=blocks.1.mlp.hook_post c=-1 select=last",
    ];
    let done = bench.run(Bench::job(&data, &strs(&taps), &edits));
    let close = |a: f64, b: f32| (a - f64::from(b)).abs() <= 1e-5 * f64::from(b.abs()).max(1.0);
    (0..LENGTHS.iter().sum()).for_each(|i: usize| {
        let row = |tap: usize| &done[&taps[tap]][i].2;
        for c in 0..64 {
            let heads: f64 = (0..4).map(|h| f64::from(row(0)[h * 64 + c])).sum();
            assert!(close(heads, row(1)[c]));
            let sum: f64 = (1..4).map(|tap| f64::from(row(tap)[c])).sum();
            assert!(close(sum, row(4)[c]));
        }
    });
}

/// Edits of each kind, in random places; sources are written beforehand.
fn any_edit(v: String, head: String) -> impl Strategy<Value = String> {
    let site = prop::sample::select(vec![
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_attn_out",
        "hook_mlp_out",
        "ln1.hook_out",
        "ln2.hook_out",
    ]);
    let headed = prop::sample::select(vec!["q", "k", "v", "rot_q", "rot_k", "z"]);
    let select = || {
        prop::sample::select(vec![
            "all",
            "last",
            "first",
            "-5..-1",
            "every:3",
            "sample:4#1",
        ])
    };
    let change = |v: String| {
        prop_oneof![
            (-3.0_f32..3.0).prop_map({
                let v = v.clone();
                move |c| format!("add v={v} c={c}")
            }),
            (-3.0_f32..3.0).prop_map(|c| format!("scale c={c}")),
            Just("zero".to_owned()),
            Just(format!("mean v={v}")),
            Just(format!("project-out v={v}")),
            (-1.0_f32..0.0).prop_map(move |lo| format!("clamp v={v} lo={lo} hi=0.5")),
        ]
    };
    let layer = 0..3;
    prop_oneof![
        (change(v), site, layer.clone(), select())
            .prop_map(|(c, s, l, rows)| format!("{c} at=blocks.{l}.{s} select={rows}")),
        (change(head), headed, layer, 0..2, select()).prop_map(|(c, s, l, h, rows)| format!(
            "{c} at=blocks.{l}.attn.hook_{s}[{h}] select={rows}"
        )),
        (0..4, -2.0_f32..2.0).prop_map(|(h, c)| format!(
            "scale at=blocks.1.attn.hook_pattern[{h}] c={c} select=last"
        )),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn packing_never_changes_a_bit_of_an_edited_run(edits in any_edit("V".into(), "H".into()).prop_flat_map(|first| {
        (Just(first), prop::collection::vec(any_edit("V".into(), "H".into()), 0..4))
    }), batch in 1_usize..120) {
        let bench = Bench::new();
        let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        let (v, head) = (bench.tensor("v.safetensors", &[64], &wave(64)), bench.tensor("h.safetensors", &[16], &wave(16)));
        let edits: Vec<String> = std::iter::once(&edits.0).chain(&edits.1).map(|e| e.replace("v=V", &format!("v={v}")).replace("v=H", &format!("v={head}"))).collect();
        let data = bench.data(1, &LENGTHS);
        let taps = ["logits@last", "blocks.1.attn.hook_pattern", "blocks.*.hook_resid_post"];
        let whole = bench.store(Bench::job(&data, &taps, &strs(&edits))).unwrap();
        let cut = bench.run(Job { batch_tokens: batch, ..Bench::job(&data, &taps, &strs(&edits)) });
        let together = read(&whole);
        for tap in together.keys() {
            prop_assert_eq!(bits(&together, tap), bits(&cut, tap), "{}", tap);
        }
        let again = recompute(&whole, 4, 0, None, None).unwrap();
        prop_assert!(again.exact && again.differences.is_empty() && again.rows > 0, "{:?}", again);
    }

    #[test]
    fn adding_and_taking_away_returns_and_projecting_out_leaves_nothing(seed in any::<u32>(), c in -20.0_f32..20.0, layer in 0_usize..3) {
        let bench = Bench::new();
        let v: Vec<f32> = (0..64).map(|i| ((i as f32 + 1.0) * (seed % 1000 + 1) as f32 * 0.01).sin()).collect();
        let file = bench.tensor("v.safetensors", &[1, 64], &v);
        let data = bench.data(1, &[12, 5]);
        let point = format!("blocks.{layer}.hook_resid_mid");
        let clean = bench.run(Bench::job(&data, &[&point], &[]));
        let there_and_back = [format!("add at={point} v={file} c={c}"), format!("add at={point} v={file} c={}", -c)];
        let back = bench.run(Bench::job(&data, &[&point], &strs(&there_and_back)));
        for ((.., a), (.., b)) in clean[&point].iter().zip(&back[&point]) {
            for (a, b) in a.iter().zip(b) {
                prop_assert!((a - b).abs() <= 2.0 * f32::EPSILON * (a.abs() + c.abs()));
            }
        }
        let out = bench.run(Bench::job(&data, &[&point], &[&format!("project-out at={point} v={file}")]));
        let held = bench.run(Bench::job(&data, &[&point], &[&format!("clamp at={point} v={file} lo=-0.25 hi=0.25")]));
        let norm = v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let along = |row: &[f32]| row.iter().zip(&v).map(|(&x, &v)| f64::from(x) * f64::from(v)).sum::<f64>() / norm;
        let size = |row: &[f32]| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        for ((.., row), (.., held)) in out[&point].iter().zip(&held[&point]) {
            prop_assert!(along(row).abs() <= 1e-6 * size(row).max(1e-3));
            prop_assert!(along(held).abs() <= 0.25 + 1e-6 * size(held));
        }
    }
}

#[test]
fn edits_at_one_point_apply_in_the_order_given() {
    let bench = Bench::new();
    let data = bench.data(0, &[5]);
    let one = bench.tensor("one.safetensors", &[64], &[1.0; 64]);
    let add = format!("add at=hook_embed v={one} c=1");
    let double = "scale at=hook_embed c=2";
    let clean = bench.run(Bench::job(&data, &["hook_embed"], &[]));
    for (edits, f) in [
        ([&*add, double], (|x| 2.0 * (x + 1.0)) as fn(f32) -> f32),
        ([double, &*add], |x| 2.0 * x + 1.0),
    ] {
        let done = bench.run(Bench::job(&data, &["hook_embed"], &edits));
        for ((.., new), (.., old)) in done["hook_embed"].iter().zip(&clean["hook_embed"]) {
            assert_eq!(*new, old.iter().map(|&x| f(x)).collect::<Vec<f32>>());
        }
    }
}

#[test]
fn vectors_come_from_files_and_from_stores_and_rows_from_both() {
    let bench = Bench::new();
    let data = bench.data(0, &[9, 4]);
    let point = "blocks.1.attn.hook_z";
    let store = bench
        .store(Bench::job(
            &data,
            &[point, "blocks.1.attn.hook_z[1,3]@last"],
            &[],
        ))
        .unwrap();
    let clean = read(&store);
    let mean = |head: usize| -> Vec<f32> {
        let rows = &clean[point];
        (0..16)
            .map(|c| {
                (rows
                    .iter()
                    .map(|(.., r)| f64::from(r[head * 16 + c]))
                    .sum::<f64>()
                    / rows.len() as f64) as f32
            })
            .collect()
    };
    let done = bench.run(Bench::job(
        &data,
        &[point],
        &[&format!("mean at={point}[2] v={}", store.display())],
    ));
    for ((.., new), (.., old)) in done[point].iter().zip(&clean[point]) {
        assert_eq!(new[32..48], mean(2)[..]);
        assert_eq!((&new[..32], &new[48..]), (&old[..32], &old[48..]));
    }
    // Two of the tap's heads, at the one position that it stored.
    let edit = format!(
        "replace at={point}[3] from={}#{point}~2 select=last",
        store.display()
    );
    let other = bench.data(3, &[9, 4]);
    let done = bench.run(Bench::job(&other, &[&format!("{point}@last")], &[&edit]));
    for (.., (sample, position, row)) in done[point].iter().enumerate() {
        let kept = &clean[&format!("{point}~2")]
            .iter()
            .find(|r| (r.0, r.1) == (*sample, *position))
            .unwrap()
            .2;
        assert_eq!(row[48..], kept[16..]);
    }
    // Rows of a file go to each sample's selected rows in turn.
    let rows: Vec<f32> = (0..128).map(|i| i as f32).collect();
    let file = bench.tensor("rows.safetensors", &[2, 64], &rows);
    let edit = format!("replace at=hook_embed from={file} select=-2..-1");
    let done = bench.run(Bench::job(&data, &["hook_embed@-2..-1"], &[&edit]));
    let all: Vec<f32> = done["hook_embed"]
        .iter()
        .flat_map(|(.., r)| r.clone())
        .collect();
    assert_eq!(all, [&rows[..], &rows].concat());
}

#[test]
fn the_manifest_has_the_edits_and_their_receipts() {
    let bench = Bench::new();
    let data = bench.data(0, &LENGTHS);
    let edits = [
        "scale at=blocks.1.hook_mlp_out c=2 select=last",
        "zero at=blocks.{0,2}.attn.hook_k[1]",
    ];
    let taps = ["blocks.1.hook_mlp_out", "logits@last"];
    let store = bench.store(Bench::job(&data, &taps, &edits)).unwrap();
    let manifest = Store::open(&store).unwrap().manifest().clone();
    let receipts = &manifest.provenance.receipts;
    assert_eq!(receipts.len(), 3);
    assert_eq!(receipts[0]["at"], "blocks.1.hook_mlp_out");
    assert_eq!(receipts[0]["rows"], 4);
    let (before, after) = (
        receipts[0]["mean_norm_before"].as_f64().unwrap(),
        receipts[0]["mean_norm_after"].as_f64().unwrap(),
    );
    assert!(before > 0.0 && after == 2.0 * before);
    let edited = read(&store);
    let last = edited["blocks.1.hook_mlp_out"]
        .iter()
        .filter(|r| r.1 == LENGTHS[r.0 as usize] as i32 - 1);
    let norms: f64 = last
        .map(|(.., row)| {
            row.iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt()
        })
        .sum();
    assert!((norms / 4.0 - after).abs() < 1e-9);
    assert_eq!(receipts[1]["at"], "blocks.0.attn.hook_k[1]");
    assert_eq!(receipts[1]["mean_norm_after"], 0.0);
    assert!(
        receipts[1]["note"]
            .as_str()
            .unwrap()
            .contains("query heads 2-3 are affected")
    );
    assert!(receipts[0]["note"].is_null());
    assert_eq!(manifest.provenance.edits.len(), 3);
    assert_eq!(
        manifest.provenance.job["edits"].as_array().unwrap().len(),
        2
    );
}

#[test]
fn an_edit_takes_rows_that_an_earlier_run_left_in_memory() {
    let bench = Bench::new();
    let data = bench.data(0, &LENGTHS);
    let point = "blocks.1.hook_resid_post";
    let clean = Prepared::open(Bench::job(&data, &[point], &[])).unwrap();
    let mut memory = Memory::default();
    let mut keep = |batch: &LiveBatch<'_>| memory.keep_batch("clean", batch, 0);
    extract_live(&clean, &mut clean.cpu(), &mut keep, &mut |_| ()).unwrap();
    let with = |edits: &[&str]| {
        let model = Model::open(&Bench::model()).unwrap();
        let job = Bench::job(&data, &["logits"], edits);
        let prepared = Prepared::with_memory(job, model, &memory).map_err(|e| e.to_string())?;
        let out = bench.path(&format!("memory-{}", edits.join("").len()));
        extract(&prepared, &out, &mut |_| ()).map_err(|e| e.to_string())?;
        Ok::<Taps, String>(read(&out))
    };
    // Whatever came before, the clean run's rows make the clean run's logits.
    let broken = "zero at=blocks.0.hook_mlp_out";
    let replaced = with(&[broken, &format!("replace at={point} from=@clean")]).unwrap();
    let plain = bench.run(Bench::job(&data, &["logits"], &[]));
    assert_eq!(bits(&replaced, "logits"), bits(&plain, "logits"));
    // Their mean is that of a store of them.
    let store = bench.store(Bench::job(&data, &[point], &[])).unwrap();
    let mean = with(&[&format!("mean at={point} v=@clean")]).unwrap();
    let of_store = format!("mean at={point} v={}", store.display());
    let of_store = bench.run(Bench::job(&data, &["logits"], &[&of_store]));
    assert_eq!(bits(&mean, "logits"), bits(&of_store, "logits"));
    for (edit, says) in [
        (
            format!("mean at={point} v=@other"),
            "no rows are kept in memory as 'other'",
        ),
        (
            "mean at=blocks.1.mlp.hook_post v=@clean".into(),
            "rows of 64 numbers; blocks.1.mlp.hook_post needs 112",
        ),
    ] {
        let said = with(&[&edit]).unwrap_err();
        assert!(said.contains(says), "{edit}: {said}");
    }
}

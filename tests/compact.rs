//! Rows stored in 8 bits, end to end: what a store holds is what rounding the f32 run's rows gives, the loss it tells is the loss there is,
//! and stopping, slices and merging change neither.

mod common;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use safetensors::{Dtype, SafeTensors};
use streamgauge::compact::{Code, Compact, LossSums};
use streamgauge::engine::{
    Ending, Job, LiveBatch, Options, Prepared, estimate, extract, extract_live, extract_with,
    recompute,
};
use streamgauge::store::{Manifest, Store, StoreDtype, merge, verify};

const BOTH: [StoreDtype; 2] = [StoreDtype::F8E4M3, StoreDtype::Int8];
const TAPS: [&str; 4] = [
    "blocks.*.hook_resid_post",
    "blocks.1.attn.hook_z[1,3]@every:3",
    "blocks.0.hook_resid_mid|mean",
    "blocks.2.hook_mlp_out@last|top:5",
];

/// 24 samples of 1 to 23 ids.
fn dataset(dir: &Path) -> String {
    let line = |i: usize| format!("{{\"tokens\": {:?}}}\n", common::ids(i));
    let path = dir.join("data.jsonl");
    std::fs::write(&path, (0..24).map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

fn job(data: &str, dtype: StoreDtype) -> Job {
    let model = common::fixtures().join("models/mistral-window4");
    Job {
        store_dtype: Some(dtype),
        shard_bytes: 20_000,
        batch_tokens: 48,
        ..Job::new(
            model.display().to_string(),
            vec![data.to_owned()],
            TAPS.map(str::to_owned).to_vec(),
        )
    }
}

fn run(job: Job, out: &Path) {
    let prepared = Prepared::open(job).unwrap();
    extract(&prepared, out, &mut |_| ()).unwrap();
    let report = verify(out, &|_| ()).unwrap();
    assert!(report.ok(), "{:?}", report.problems);
}

/// Every row of a tap: its codes and side row, or what plain bytes it has, and its numbers.
fn rows(store: &Store, tap: usize) -> Vec<(Vec<u8>, Vec<u8>, Vec<f32>)> {
    let reader = store.tap_at(tap);
    (0..reader.rows())
        .map(|i| reader.row(i).unwrap())
        .map(|row| (row.bytes().to_vec(), row.side_row(), row.to_f32()))
        .collect()
}

fn tap_files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let manifest = Manifest::read(dir).unwrap();
    let files = manifest.shards.iter().flat_map(|shard| &shard.taps);
    files
        .map(|f| (f.file.clone(), std::fs::read(dir.join(&f.file)).unwrap()))
        .collect()
}

#[test]
fn a_store_holds_the_rounded_rows_of_the_f32_run_and_tells_what_that_cost() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let whole = dir.path().join("f32");
    run(job(&data, StoreDtype::F32), &whole);
    let whole = Store::open(&whole).unwrap();
    for dtype in BOTH {
        let out = dir.path().join(dtype.to_string());
        run(job(&data, dtype), &out);
        let store = Store::open(&out).unwrap();
        let manifest = store.manifest();
        assert!(manifest.shards.len() > 1);
        for (tap, info) in store.taps().iter().enumerate() {
            let (stored, exact) = (rows(&store, tap), rows(&whole, tap));
            assert_eq!(stored.len(), exact.len());
            let Some(compact) = info.compact() else {
                assert_eq!((info.dtype, info.top_k), (StoreDtype::F32, Some(5)));
                assert!(stored == exact && !manifest.losses.contains_key(&info.folder));
                continue;
            };
            let (mut errors, mut cosines) = (Vec::new(), Vec::new());
            for ((codes, side, numbers), (_, _, row)) in stored.iter().zip(&exact) {
                let (mut c, mut s) = (vec![0; codes.len()], vec![0; side.len()]);
                compact.quantise(row, &mut c, &mut s);
                assert!(*codes == c && *side == s, "{} {dtype}", info.folder);
                let mut read = vec![0.0; row.len()];
                compact.dequantise(codes, side, &mut read);
                assert_eq!(*numbers, read);
                let at = side.len() - 8;
                errors.extend(&side[at..at + 4]);
                cosines.extend(&side[at + 4..]);
            }
            let told = manifest.losses[&info.folder];
            assert_eq!(Some(told), LossSums::of(&errors, &cosines).loss());
            let most = if dtype == StoreDtype::Int8 {
                0.01
            } else {
                0.04
            };
            assert!(told.relative_error.worst < most, "{told}");
            assert!(told.cosine.worst > 0.999 && told.rows == stored.len() as u64);
            let view = store.tap_at(tap).shard(0).unwrap();
            assert_eq!(view.to_f32(), view.rows_f32(0..view.rows()));
        }
    }
}

#[test]
fn files_are_plain_safetensors_whose_sizes_the_plan_knows() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    for dtype in BOTH {
        let out = dir.path().join(dtype.to_string());
        run(job(&data, dtype), &out);
        let plan = estimate(&Prepared::open(job(&data, dtype)).unwrap(), &mut |_| ()).unwrap();
        let files = tap_files(&out);
        let bytes: u64 = files.iter().map(|(_, file)| file.len() as u64).sum();
        assert_eq!(plan.bytes, bytes);
        let file = &files[0].1;
        let tensors = SafeTensors::deserialize(file).unwrap();
        let (n, _) = SafeTensors::read_metadata(file).unwrap();
        assert_eq!((n + 8) % 4096, 0);
        let activations = tensors.tensor("activations").unwrap();
        let rows = activations.shape()[0];
        let told = |name: &str| {
            let tensor = tensors.tensor(name).unwrap();
            (tensor.dtype(), tensor.shape().to_vec())
        };
        let (code, scale) = match dtype {
            StoreDtype::Int8 => (Dtype::I8, (Dtype::BF16, vec![rows, 1])),
            _ => (Dtype::F8_E4M3, (Dtype::F32, vec![rows])),
        };
        assert_eq!(told("activations"), (code, vec![rows, 64]));
        assert_eq!(
            activations.data().as_ptr().addr() - file.as_ptr().addr(),
            n + 8
        );
        assert_eq!(told("scale"), scale);
        assert_eq!(told("outlier_index"), (Dtype::U16, vec![rows, 1]));
        assert_eq!(told("outlier_value"), (Dtype::BF16, vec![rows, 1]));
        assert_eq!(told("relative_error"), (Dtype::F32, vec![rows]));
        assert_eq!(told("cosine"), (Dtype::F32, vec![rows]));
        assert_eq!(told("sample"), (Dtype::I64, vec![rows]));
    }
}

/// Runs the job, or goes on with it, for at most so many batches.
fn some(job: Job, out: &Path, resume: bool, batches: usize) -> streamgauge::Result<Ending> {
    let prepared = Prepared::open(job)?;
    let left = Cell::new(batches);
    let options = Options {
        resume,
        commit_every: Some(Duration::ZERO),
        stop: &|| left.get() == 0,
    };
    let mut machine = prepared.cpu();
    extract_with(&prepared, &mut machine, out, &options, &mut |_| {
        left.set(left.get() - 1)
    })
}

#[test]
fn a_run_stopped_after_every_batch_ends_with_the_bits_and_the_loss_of_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    for dtype in BOTH {
        let (once, cut) = (dir.path().join("once"), dir.path().join("cut"));
        run(job(&data, dtype), &once);
        let mut attempts = 0;
        while some(job(&data, dtype), &cut, attempts > 0, 1).is_err() {
            attempts += 1;
            assert!(attempts < 100);
        }
        assert!(attempts > 3);
        assert!(tap_files(&once) == tap_files(&cut), "{dtype}");
        let (a, b) = (
            Manifest::read(&once).unwrap(),
            Manifest::read(&cut).unwrap(),
        );
        assert_eq!((&a.shards, &a.losses), (&b.shards, &b.losses));
        assert_eq!(a.mean_norms, b.mean_norms);
        std::fs::remove_dir_all(&once).unwrap();
        std::fs::remove_dir_all(&cut).unwrap();
    }
}

#[test]
fn merged_slices_hold_the_rows_and_tell_the_loss_of_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    for dtype in BOTH {
        let name = |what: &str| dir.path().join(format!("{what}-{dtype}"));
        let (once, joined) = (name("once"), name("joined"));
        run(job(&data, dtype), &once);
        let slices: Vec<PathBuf> = (0..3).map(|i| name(&i.to_string())).collect();
        for (i, out) in slices.iter().enumerate() {
            let slice = Job {
                shard: Some((i as u64, 3)),
                ..job(&data, dtype)
            };
            run(slice, out);
        }
        let receipts = |all: &[&[serde_json::Value]]| all[0].to_vec();
        merge(&joined, &slices, false, &receipts).unwrap();
        assert!(verify(&joined, &|_| ()).unwrap().ok());
        let (once, joined) = (Store::open(&once).unwrap(), Store::open(&joined).unwrap());
        assert_eq!(once.manifest().losses, joined.manifest().losses);
        for tap in 0..once.taps().len() {
            assert!(rows(&once, tap) == rows(&joined, tap));
        }
    }
}

#[test]
fn recomputing_compares_codes_and_scales_bit_by_bit() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    for dtype in BOTH {
        let out = dir.path().join(dtype.to_string());
        run(job(&data, dtype), &out);
        let result = recompute(&out, 24, 0, None, None).unwrap();
        assert!(
            result.exact && result.different == 0,
            "{:?}",
            result.differences
        );
    }
}

#[test]
fn verify_names_a_changed_scale_and_a_loss_that_is_not_the_rows() {
    let (dir, out) = (tempfile::tempdir().unwrap(), "run");
    let out = dir.path().join(out);
    run(job(&dataset(dir.path()), StoreDtype::Int8), &out);
    let (name, mut file) = tap_files(&out).remove(0);
    let (n, metadata) = SafeTensors::read_metadata(&file).unwrap();
    let at = |name: &str| n + 8 + metadata.info(name).unwrap().data_offsets.0;
    let (scale, error) = (at("scale"), at("relative_error"));
    file[scale] ^= 1;
    file[error + 3] ^= 0x40;
    std::fs::write(out.join(&name), &file).unwrap();
    let problems = verify(&out, &|_| ()).unwrap().problems;
    for what in [
        "`scale`",
        "`relative_error`",
        "the loss that the manifest tells",
    ] {
        assert!(problems.iter().any(|p| p.contains(what)), "{problems:?}");
    }
}

#[test]
fn live_consumers_read_rows_back_and_get_the_loss_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("run");
    run(job(&data, StoreDtype::F8E4M3), &out);
    let store = Store::open(&out).unwrap();
    let stored: Vec<f32> = rows(&store, 0).into_iter().flat_map(|r| r.2).collect();
    let prepared = Prepared::open(job(&data, StoreDtype::F8E4M3)).unwrap();
    let mut live = Vec::new();
    let mut take = |batch: &LiveBatch<'_>| -> streamgauge::Result<()> {
        assert!(batch.taps[0].as_f32().is_none() && batch.taps[0].index().is_none());
        live.extend(batch.taps[0].to_f32());
        Ok(())
    };
    extract_live(&prepared, &mut prepared.cpu(), &mut take, &mut |_| ()).unwrap();
    assert!(live == stored);
}

#[test]
fn what_has_no_rows_of_one_width_is_refused_with_a_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let refused = Job {
        taps: vec!["blocks.1.attn.hook_pattern".into()],
        ..job(&data, StoreDtype::Int8)
    };
    let error = Prepared::open(refused).err().unwrap().to_string();
    assert!(
        error.contains("blocks.1.attn.hook_pattern")
            && error.contains("--store-dtype int8 is for rows")
            && error.contains("take bf16"),
        "{error}"
    );
    // A point that is always f32 stays so.
    let scale = Job {
        taps: vec!["blocks.1.ln1.hook_scale".into()],
        ..job(&data, StoreDtype::Int8)
    };
    let prepared = Prepared::open(scale).unwrap();
    assert_eq!(prepared.infos[0].dtype, StoreDtype::F32);
    assert_eq!(
        Compact {
            code: Code::I8,
            width: 576
        }
        .side_bytes(),
        9 * 2 + 8 * 4 + 8
    );
}

#[test]
fn edits_take_the_rows_that_a_store_in_8_bits_reads_as() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let point = "blocks.1.hook_resid_post";
    let plain = |taps: &str, dtype| Job {
        taps: vec![taps.to_owned()],
        ..job(&data, dtype)
    };
    let source = dir.path().join("source");
    run(plain(point, StoreDtype::Int8), &source);
    let patched = Job {
        edits: vec![format!("replace at={point} from={}", source.display())],
        ..plain(point, StoreDtype::F32)
    };
    let out = dir.path().join("patched");
    run(patched, &out);
    let numbers = |dir: &Path| -> Vec<Vec<f32>> {
        let store = Store::open(dir).unwrap();
        rows(&store, 0).into_iter().map(|r| r.2).collect()
    };
    assert!(numbers(&source) == numbers(&out));
}

#[cfg(feature = "interpreter")]
#[test]
fn a_device_rounds_its_rows_to_the_bytes_that_the_cpu_would_make_of_them() {
    use streamgauge::backend::cuda::Dtype as CudaDtype;
    use streamgauge::engine::{Compute, Device, Place, extract_on};
    use streamgauge::model::Model;

    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let path = common::fixtures().join("models/mistral-bf16-h64");
    let model = Model::open(&path).unwrap();
    let place = |dtype| {
        let compute = Compute {
            device: Device::Interpreter,
            dtype: Some(dtype),
            ..Compute::default()
        };
        Place::of(&compute, &model).unwrap()
    };
    for compute in [CudaDtype::F32, CudaDtype::BF16] {
        let store = |dtype: StoreDtype, taps: &[&str]| {
            let out = dir.path().join(format!("{compute}-{dtype}"));
            let job = Job {
                model: path.display().to_string(),
                limit: Some(5),
                taps: taps.iter().map(|&tap| tap.to_owned()).collect(),
                ..job(&data, dtype)
            };
            let prepared = Prepared::open(job).unwrap();
            let mut opened = place(compute).open(&prepared, None).unwrap();
            extract_on(&prepared, &mut *opened.machine, &out, &mut |_| ()).unwrap();
            let report = verify(&out, &|_| ()).unwrap();
            assert!(report.ok(), "{:?}", report.problems);
            Store::open(&out).unwrap()
        };
        let taps = [
            "blocks.*.hook_resid_post",
            "blocks.1.attn.hook_q[0]@every:3",
            "blocks.0.attn.hook_z[1]",
            "blocks.0.hook_resid_mid|mean",
            "blocks.0.attn.hook_z[0]|mean",
            "blocks.1.mlp.hook_post@last",
            "blocks.1.hook_mlp_out@last|top:5",
        ];
        let whole = store(StoreDtype::F32, &taps);
        for dtype in BOTH {
            let store = store(dtype, &taps);
            for (tap, info) in store.taps().iter().enumerate() {
                let (stored, exact) = (rows(&store, tap), rows(&whole, tap));
                assert_eq!(stored.len(), exact.len());
                let Some(compact) = info.compact() else {
                    assert!(stored == exact, "{}", info.folder);
                    continue;
                };
                for ((codes, side, _), (_, _, row)) in stored.iter().zip(&exact) {
                    let (mut c, mut s) = (vec![0; codes.len()], vec![0; side.len()]);
                    compact.quantise(row, &mut c, &mut s);
                    assert!(
                        *codes == c && *side == s,
                        "{} {dtype} of {compute}",
                        info.folder
                    );
                }
            }
            let losses = &store.manifest().losses;
            assert_eq!(losses.len(), store.taps().len() - 1);
        }
    }
}

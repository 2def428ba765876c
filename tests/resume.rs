//! Stopping and going on: however a run is cut up, its store ends with the bits of the run that was never stopped; and a command that
//! is not the one that began the store is refused.

mod common;

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use streamgauge::engine::{
    Choosing, Ending, Error, Extracted, GenerationBeginning, GenerationStore, Generator, Job,
    Options, Prepared, PromptSource, Sample, Stops, extract_with, recompute,
};
use streamgauge::store::{Manifest, State, Store, verify};

const TAPS: [&str; 4] = [
    "blocks.*.hook_resid_post",
    "blocks.1.attn.hook_pattern",
    "blocks.2.hook_mlp_out@last|top:5",
    "blocks.0.hook_resid_mid|mean",
];

/// 40 samples of 1 to 23 ids; `n` is whole in the first half and has fractions in the second.
fn dataset(dir: &Path) -> String {
    let line = |i: usize| {
        let tokens = common::ids(i);
        let n = if i < 20 { i as f64 } else { i as f64 + 0.5 };
        let n = if n.fract() == 0.0 {
            format!("{i}")
        } else {
            n.to_string()
        };
        format!("{{\"tokens\": {tokens:?}, \"n\": {n}}}\n")
    };
    let path = dir.join("data.jsonl");
    std::fs::write(&path, (0..40).map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

fn job(data: &str) -> Job {
    let model = common::fixtures().join("models/mistral-window4");
    Job {
        keep: vec!["n".into()],
        edits: vec!["scale at=blocks.0.hook_resid_post c=1.25 select=every:3".into()],
        shard_bytes: 60_000,
        batch_tokens: 48,
        ..Job::new(
            model.display().to_string(),
            vec![data.to_owned()],
            TAPS.map(str::to_owned).to_vec(),
        )
    }
}

/// Runs the job, or goes on with it, for at most so many batches.
fn run(job: Job, out: &Path, resume: bool, batches: usize) -> streamgauge::Result<Ending> {
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

fn whole(job: Job, out: &Path) -> Extracted {
    match run(job, out, false, usize::MAX).unwrap() {
        Ending::Done(done) => *done,
        Ending::Already(_) => panic!("there already"),
    }
}

fn is_stopped(ending: &streamgauge::Result<Ending>) -> bool {
    matches!(
        ending,
        Err(streamgauge::Error::Engine(Error::Stopped { .. }))
    )
}

/// The manifest without what may differ between a run and the same run in pieces.
fn manifest(dir: &Path) -> Value {
    let text = std::fs::read(dir.join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_slice(&text).unwrap();
    for key in ["timing", "stalls", "attempts"] {
        manifest.as_object_mut().unwrap().remove(key).unwrap();
    }
    manifest
}

/// Every file of a store but the manifest.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        for file in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            files.push((name, std::fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

fn assert_same_store(a: &Path, b: &Path) {
    assert_eq!(manifest(a), manifest(b));
    let (a, b) = (files(a), files(b));
    let names = |f: &[(String, Vec<u8>)]| f.iter().map(|f| f.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&a), names(&b));
    for (a, b) in a.iter().zip(&b) {
        assert!(a == b, "{} differs", a.0);
    }
}

#[test]
fn a_run_stopped_after_any_number_of_batches_ends_as_the_one_that_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let reference = dir.path().join("reference");
    assert!(whole(job(&data), &reference).shards > 3);
    for batches in [1, 2, 3, 5] {
        let out = dir.path().join(format!("stopped-{batches}"));
        let mut attempts = 1;
        while is_stopped(&run(job(&data), &out, true, batches)) {
            let seen = Store::open_any(&out).unwrap();
            assert_eq!(seen.manifest().state, State::Partial);
            assert!(Store::open(&out).is_err());
            attempts += 1;
            assert!(attempts < 100, "no progress");
        }
        assert!(attempts > 2);
        assert_eq!(Manifest::read(&out).unwrap().attempts, attempts);
        assert!(verify(&out, &|_| ()).unwrap().ok());
        assert_same_store(&out, &reference);
    }
}

#[test]
fn a_finished_store_is_not_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("store");
    whole(job(&data), &out);
    let before = files(&out);
    let again = run(job(&data), &out, true, usize::MAX).unwrap();
    assert!(matches!(again, Ending::Already(_)));
    assert_eq!(files(&out), before);
}

/// The same model with another constant.
fn other_model(dir: &Path) -> std::path::PathBuf {
    let (from, to) = (
        common::fixtures().join("models/mistral-window4"),
        dir.join("other"),
    );
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(&from).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    let config = to.join("config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    value["rms_norm_eps"] = 2e-5.into();
    std::fs::write(&config, value.to_string()).unwrap();
    to
}

#[test]
fn a_changed_command_or_dataset_is_refused_by_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("store");
    assert!(is_stopped(&run(job(&data), &out, false, 3)));
    let before = files(&out);
    let base = || job(&data);
    let mut other = base();
    other.taps.pop();
    let model = other_model(dir.path());
    let cases = [
        ("--tap", other),
        (
            "--select was \"all\" and is \"last\"",
            Job {
                select: "last".into(),
                ..base()
            },
        ),
        (
            "--shard-size was 60000 and is 70000",
            Job {
                shard_bytes: 70_000,
                ..base()
            },
        ),
        (
            "--batch-tokens was 48 and is 49",
            Job {
                batch_tokens: 49,
                ..base()
            },
        ),
        (
            "--limit was not given and is 30",
            Job {
                limit: Some(30),
                ..base()
            },
        ),
        (
            "--keep",
            Job {
                keep: Vec::new(),
                ..base()
            },
        ),
        (
            "--edit",
            Job {
                edits: Vec::new(),
                ..base()
            },
        ),
        (
            "--shard was not given and is \"0/2\"",
            Job {
                shard: Some((0, 2)),
                ..base()
            },
        ),
        (
            "the model was",
            Job {
                model: model.display().to_string(),
                ..base()
            },
        ),
    ];
    for (said, changed) in cases {
        let error = run(changed, &out, true, usize::MAX)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(said) && error.contains("begun by another command"),
            "{said}: {error}"
        );
        assert_eq!(files(&out), before, "{said}: nothing was touched");
    }
    let error = run(
        Job {
            edits: vec!["scale at=blocks.0.hook_resid_post c=1.5 select=every:3".into()],
            ..base()
        },
        &out,
        true,
        usize::MAX,
    );
    let error = error.unwrap_err().to_string();
    assert_eq!(error.matches("--edit").count(), 1, "{error}");
    let text = std::fs::read_to_string(&data).unwrap();
    std::fs::write(&data, text.replacen("\"n\": 3}", "\"n\": 4}", 1)).unwrap();
    let error = run(job(&data), &out, true, usize::MAX)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the dataset was"), "{error}");
    std::fs::write(&data, text).unwrap();
    assert!(matches!(
        run(job(&data), &out, true, usize::MAX),
        Ok(Ending::Done(_))
    ));
}

#[test]
fn a_store_moved_or_a_model_moved_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let (reference, out) = (dir.path().join("reference"), dir.path().join("store"));
    whole(job(&data), &reference);
    assert!(is_stopped(&run(job(&data), &out, false, 4)));
    let moved = dir.path().join("moved");
    std::fs::rename(&out, &moved).unwrap();
    let model = dir.path().join("model");
    std::os::unix::fs::symlink(common::fixtures().join("models/mistral-window4"), &model).unwrap();
    let elsewhere = Job {
        model: model.display().to_string(),
        ..job(&data)
    };
    run(elsewhere, &moved, true, usize::MAX).unwrap();
    assert_same_store(&moved, &reference);
}

#[test]
fn a_run_stopped_before_its_first_batch_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("store");
    assert!(is_stopped(&run(job(&data), &out, false, 0)));
    assert!(!out.join("manifest.json").exists());
    assert!(matches!(
        run(job(&data), &out, true, usize::MAX),
        Ok(Ending::Done(_))
    ));
}

#[test]
fn skipped_records_and_chunks_are_counted_once_however_often_a_run_was_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mixed.jsonl");
    let mut lines = String::new();
    for i in 0..60 {
        lines += &match i % 5 {
            1 => "{\"tokens\": [1, 999]}\n".to_owned(),
            2 => "not json\n".to_owned(),
            n => format!("{{\"tokens\": {:?}}}\n", vec![i + n; 1 + 9 * n]),
        };
    }
    std::fs::write(&path, lines).unwrap();
    let job = || Job {
        skip_bad: true,
        max_length: Some(10),
        on_long: streamgauge::engine::OnLong::Chunk,
        keep: Vec::new(),
        ..job(&path.display().to_string())
    };
    let (reference, out) = (dir.path().join("reference"), dir.path().join("store"));
    let done = whole(job(), &reference);
    assert_eq!(done.skipped, 24);
    while is_stopped(&run(job(), &out, true, 2)) {}
    assert_same_store(&out, &reference);
}

#[test]
fn a_selection_that_picks_nothing_is_found_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let out = dir.path().join("store");
    let nothing = Job {
        taps: vec!["hook_embed@500..600".into()],
        edits: Vec::new(),
        shard_bytes: 1 << 30,
        ..job(&data)
    };
    let prepared = Prepared::open(nothing).unwrap();
    let mut machine = prepared.cpu();
    let error = extract_with(
        &prepared,
        &mut machine,
        &out,
        &Options::default(),
        &mut |_| panic!("a batch was run"),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("40 samples"), "{error}");
    assert!(!out.join("manifest.json").exists());
}

/// Generates from a dataset into a store, four prompts at a time, for at most so many groups; then dies. Whether it came to its end.
fn generated(data: &str, out: &Path, groups: usize) -> bool {
    let base = job(data);
    let job = Job {
        edits: base.edits,
        add_generation_prompt: true,
        ..Job::new(base.model, base.data, vec![GENERATED.into()])
    };
    let prepared = Prepared::for_generation(job).unwrap();
    let stops = Stops::of(&prepared, 6);
    let mut generator = Generator::new(&prepared, Choosing::default(), stops).unwrap();
    let source = PromptSource {
        given: &[],
        together: 4,
    };
    let begun = GenerationStore::begin(&mut generator, source, out, true).unwrap();
    let GenerationBeginning::Store(mut store) = begun else {
        panic!("there already")
    };
    let records = prepared.job.dataset(false).unwrap();
    let samples = records.flat_map(|r| prepared.tokenising.samples(r.unwrap()).unwrap());
    let left: Vec<Sample> = samples.skip(store.prompts() as usize).collect();
    for (group, prompts) in left.chunks(4).enumerate() {
        if group == groups {
            return false;
        }
        let done = generator.generate(prompts, &mut |_| ()).unwrap();
        store.write(&generator, prompts, &done).unwrap();
    }
    store.finish(&generator).unwrap();
    true
}

const GENERATED: &str = "blocks.1.hook_resid_post@generated";

#[test]
fn generation_goes_on_after_the_prompts_that_its_store_holds() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let reference = dir.path().join("reference");
    assert!(generated(&data, &reference, usize::MAX));
    let out = dir.path().join("stopped");
    let mut attempts = 1;
    while !generated(&data, &out, 3) {
        attempts += 1;
        assert!(attempts < 10, "no progress");
    }
    assert_eq!(attempts, 4);
    assert!(verify(&out, &|_| ()).unwrap().ok());
    assert_same_store(&out, &reference);
}

#[test]
fn the_generate_command_resumes_and_refuses_another_command() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let reference = dir.path().join("reference");
    assert!(generated(&data, &reference, usize::MAX));
    let out = dir.path().join("stopped");
    assert!(!generated(&data, &out, 2));
    let model = common::fixtures().join("models/mistral-window4");
    let command = |new: &str| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_streamgauge"));
        command.args(["generate", "--resume", "--batch", "4", "--tap", GENERATED]);
        command.args(["--edit", &job(&data).edits[0], "--max-new-tokens", new]);
        command.args(["--data", &data, "--model"]);
        command.arg(&model).arg("--out").arg(&out);
        command.assert()
    };
    let said = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let refused = command("7").code(1);
    let why = said(&refused.get_output().stderr);
    assert!(why.contains("--max-new-tokens was 6 and is 7"), "{why}");
    let done = command("6").success();
    assert!(said(&done.get_output().stderr).contains("going on after 8 prompts"));
    let results = said(&done.get_output().stdout);
    assert_eq!(results.matches("---").count(), 32, "{results}");
    assert_same_store(&out, &reference);
    let again = command("6").success();
    assert!(said(&again.get_output().stdout).contains("was complete already"));
    let error = run(job(&data), &out, true, 1).unwrap_err().to_string();
    assert!(
        error.contains("it is of `generate`, and this is `extract`"),
        "{error}"
    );
}

/// Writes a direction into `directions.safetensors`; returns a tap that projects on it.
fn tap_on(dir: &Path, direction: [f32; 64]) -> String {
    let path = dir.join("directions.safetensors");
    let bytes: Vec<u8> = direction.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![64], &bytes);
    safetensors::serialize_to_file([("d", view.unwrap())], None, &path).unwrap();
    format!("blocks.0.hook_resid_post|dot:{}#d", path.display())
}

#[test]
fn a_direction_that_has_changed_is_refused_though_its_file_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let base = || Job {
        taps: vec![tap_on(dir.path(), [0.5; 64])],
        shard_bytes: 500,
        ..job(&data)
    };
    let out = dir.path().join("store");
    assert!(is_stopped(&run(base(), &out, false, 3)));
    let changed = base();
    tap_on(dir.path(), [0.25; 64]);
    let error = run(changed, &out, true, usize::MAX)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the content of its taps' directions"),
        "{error}"
    );
    assert!(matches!(
        run(base(), &out, true, usize::MAX),
        Ok(Ending::Done(_))
    ));
    assert!(recompute(&out, 3, 0, None, None).unwrap().exact);
    tap_on(dir.path(), [0.25; 64]);
    let error = recompute(&out, 3, 0, None, None).unwrap_err().to_string();
    assert!(error.contains("have changed since"), "{error}");
}

//! Partial stores taken up again: whole ones, torn ones, and ones made to mislead. Whatever a journal says, the store that the resumed run
//! ends with is the one that was never stopped; and nothing outside the store is written to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::store::journal::encode;

/// Two shards of three batches and one.
fn longer_run() -> Run {
    let mut run = small_run();
    run.taps[0].order_seed = Some(11);
    run.samples.push(sample(5, vec![1, 2]));
    let taps = run.taps.len();
    run.rows.push(vec![rows_of(&run.samples[3], 0..2); taps]);
    run.shards = vec![vec![1, 1, 1], vec![1]];
    run
}

/// Writes the run's shards, from where the writer stands to the end.
fn write_on(mut writer: StoreWriter, run: &Run) -> Result<()> {
    let start_of = |shard: usize| run.shards[..shard].iter().flatten().sum::<usize>();
    for shard in writer.shards()..run.shards.len() {
        let (start, batches) = (start_of(shard), &run.shards[shard]);
        let n: usize = batches.iter().sum();
        let samples = start..start + n;
        let mut shard = writer.begin_shard(&run.samples[samples.clone()], &run.rows[samples])?;
        let mut done = 0;
        for batch in batches {
            if done >= shard.finished() {
                write_batch(&mut shard, run, start, done..done + batch)?;
            }
            done += batch;
        }
        shard.commit()?;
    }
    writer.finish(Summary::default())
}

fn write_batch(
    shard: &mut ShardWriter,
    run: &Run,
    start: usize,
    batch: std::ops::Range<usize>,
) -> Result<()> {
    for (t, slab) in shard.batch_slabs(batch.clone()).into_iter().enumerate() {
        let parts: Vec<_> = batch.clone().map(|s| bytes_of(run, t, start + s)).collect();
        let (rows, index): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let rows = rows.concat();
        if slab.activations.len() != rows.len() {
            return Err(Error::Plan(
                "the manifest has rows of another length".into(),
            ));
        }
        slab.activations.copy_from_slice(&rows);
        if let Some(slab) = slab.index {
            slab.copy_from_slice(&index.concat());
        }
    }
    shard.finish_batch(batch)
}

/// A store whose run died with two of three batches of its first shard durable.
fn died() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    let run = longer_run();
    let mut writer = StoreWriter::create(&path, provenance(), run.taps.clone(), &run.keep).unwrap();
    let mut shard = writer
        .begin_shard(&run.samples[..3], &run.rows[..3])
        .unwrap();
    for batch in 0..2 {
        write_batch(&mut shard, &run, 0, batch..batch + 1).unwrap();
    }
    shard.flush().unwrap();
    (dir, path)
}

fn go_on(dir: &Path) -> Result<StoreWriter> {
    match find(dir)? {
        Found::Unfinished(unfinished) => unfinished.go_on(),
        other => panic!("{other:?}"),
    }
}

/// How many samples are believed to be there already.
fn believed(dir: &Path) -> Result<usize> {
    let run = longer_run();
    let mut writer = go_on(dir)?;
    let n = run.shards[writer.shards()].iter().sum();
    let shard = writer.begin_shard(&run.samples[..n], &run.rows[..n])?;
    Ok(shard.finished())
}

/// Every file of a store but the manifest, and what the manifest says of shards.
fn content(dir: &Path) -> (Value, Vec<(PathBuf, Vec<u8>)>) {
    let manifest = Manifest::read(dir).unwrap();
    assert_eq!(manifest.state, State::Complete);
    let mut files = Vec::new();
    for folder in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        for file in fs::read_dir(&folder).into_iter().flatten() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_owned();
            files.push((name, fs::read(&path).unwrap()));
        }
    }
    files.sort();
    (json!(manifest.shards), files)
}

fn never_stopped() -> (Value, Vec<(PathBuf, Vec<u8>)>) {
    type Content = (Value, Vec<(PathBuf, Vec<u8>)>);
    static CONTENT: std::sync::OnceLock<Content> = std::sync::OnceLock::new();
    let made = || {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &longer_run()).unwrap();
        content(dir.path())
    };
    CONTENT.get_or_init(made).clone()
}

fn journal(dir: &Path) -> PathBuf {
    dir.join(".partial/00000.journal")
}

fn tap_file(dir: &Path, tap: &str) -> PathBuf {
    dir.join(format!(".partial/00000.{tap}.safetensors"))
}

#[test]
fn durable_batches_are_taken_up_and_the_store_ends_as_if_never_stopped() {
    let (_dir, path) = died();
    assert!(matches!(Store::open(&path), Err(Error::Partial { .. })));
    assert_eq!(Store::open_any(&path).unwrap().tap_at(0).rows(), 0);
    assert_eq!(believed(&path).unwrap(), 2);
    write_on(go_on(&path).unwrap(), &longer_run()).unwrap();
    assert_eq!(content(&path), never_stopped());
    assert_eq!(Manifest::read(&path).unwrap().attempts, 3);
    assert!(matches!(find(&path).unwrap(), Found::Complete(_)));
}

#[test]
fn what_a_run_killed_in_its_first_moments_leaves_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    assert!(matches!(find(&path).unwrap(), Found::Nothing));
    fs::create_dir_all(path.join(".partial")).unwrap();
    fs::create_dir(path.join("logits")).unwrap();
    fs::write(path.join(".partial/manifest.json"), "{\"format").unwrap();
    assert!(matches!(find(&path).unwrap(), Found::Nothing));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    // Somebody's file is not ours to remove.
    fs::create_dir(path.join(".partial")).unwrap();
    fs::write(path.join("thesis.tex"), "draft").unwrap();
    assert!(matches!(find(&path), Err(Error::NotEmpty { .. })));
    assert!(path.join("thesis.tex").exists() && path.join(".partial").exists());
}

#[test]
fn a_shard_killed_amid_its_commit_is_taken_up_from_the_folders() {
    let (_dir, path) = died();
    for tap in &longer_run().taps {
        let to = path.join(format!("{}/00000.safetensors", tap.folder));
        fs::rename(tap_file(&path, &tap.folder), to).unwrap();
    }
    let table = path.join(".partial/00000.samples.parquet");
    fs::rename(table, path.join("samples/00000.parquet")).unwrap();
    assert_eq!(believed(&path).unwrap(), 2);
    write_on(go_on(&path).unwrap(), &longer_run()).unwrap();
    assert_eq!(content(&path), never_stopped());
}

type Damage<'a> = &'a dyn Fn(&Path);

/// Rewrites a line of the journal, its checksum made to agree.
fn forge(path: &Path, line: usize, change: impl FnOnce(&mut Value)) {
    let text = fs::read_to_string(journal(path)).unwrap();
    let mut lines: Vec<String> = text.lines().map(|l| format!("{l}\n")).collect();
    let mut value: Value = serde_json::from_str(&lines[line][17..]).unwrap();
    change(&mut value);
    lines[line] = encode(&value).unwrap();
    fs::write(journal(path), lines.concat()).unwrap();
}

fn put(path: &Path, file: PathBuf, bytes: &[u8]) {
    let outside = path.parent().unwrap().join("outside");
    fs::write(&outside, bytes).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(&outside, &file).unwrap();
}

#[test]
fn journals_and_files_that_mislead_cost_work_and_nothing_else() {
    // What was done to the store, and how many of its two batches are then believed.
    let cases: &[(&str, usize, Damage<'_>)] = &[
        ("no journal", 0, &|p| fs::remove_file(journal(p)).unwrap()),
        ("an empty journal", 0, &|p| {
            fs::write(journal(p), "").unwrap()
        }),
        ("garbage", 0, &|p| {
            fs::write(journal(p), [0xff; 5000]).unwrap()
        }),
        ("a journal of blanks", 0, &|p| {
            fs::write(journal(p), " ".repeat(40) + "\n").unwrap()
        }),
        ("a short line", 0, &|p| {
            fs::write(journal(p), "x\n").unwrap()
        }),
        ("a directory for a journal", 0, &|p| {
            fs::remove_file(journal(p)).unwrap();
            fs::create_dir(journal(p)).unwrap();
        }),
        ("another version", 0, &|p| {
            forge(p, 0, |h| h["journal"] = json!(2))
        }),
        ("another shard", 0, &|p| {
            forge(p, 0, |h| h["shard"] = json!(1))
        }),
        ("another layout", 0, &|p| {
            forge(p, 0, |h| h["layout"] = json!("0123456789abcdef"))
        }),
        ("other samples", 0, &|p| {
            forge(p, 0, |h| h["samples"] = json!(u64::MAX))
        }),
        ("a head that is a list", 0, &|p| {
            forge(p, 0, |h| *h = json!([1, 2]))
        }),
        ("a first batch that is the second", 0, &|p| {
            forge(p, 1, |l| l["batch"] = json!(1))
        }),
        ("a batch number beyond all", 0, &|p| {
            forge(p, 1, |l| l["batch"] = json!(u64::MAX))
        }),
        ("a negative batch", 0, &|p| {
            forge(p, 1, |l| l["batch"] = json!(-1))
        }),
        ("a batch of nothing", 0, &|p| {
            forge(p, 1, |l| l["samples"] = json!(0))
        }),
        ("more samples than there are", 0, &|p| {
            forge(p, 1, |l| l["samples"] = json!(4))
        }),
        ("samples that overflow", 1, &|p| {
            forge(p, 2, |l| l["samples"] = json!(u64::MAX))
        }),
        ("a batch that takes in the next", 0, &|p| {
            forge(p, 1, |l| l["samples"] = json!(2))
        }),
        ("a tap too few", 0, &|p| {
            forge(p, 1, |l| drop(l["taps"].as_array_mut().unwrap().pop()))
        }),
        ("a tap too many", 0, &|p| {
            forge(p, 1, |l| {
                let tap = l["taps"][0].clone();
                l["taps"].as_array_mut().unwrap().push(tap);
            })
        }),
        ("other rows", 1, &|p| {
            forge(p, 2, |l| l["taps"][0]["rows"] = json!(7))
        }),
        ("rows beyond all", 1, &|p| {
            forge(p, 2, |l| l["taps"][0]["rows"] = json!(u64::MAX))
        }),
        ("another checksum", 1, &|p| {
            forge(p, 2, |l| {
                l["taps"][0]["activations"] = json!("0000000000000000")
            })
        }),
        ("a checksum that is none", 1, &|p| {
            forge(p, 2, |l| l["taps"][0]["activations"] = json!("zz"))
        }),
        ("no checksum of an index", 1, &|p| {
            forge(p, 2, |l| l["taps"][2]["sides"] = json!([]))
        }),
        ("an index where there is none", 1, &|p| {
            forge(p, 2, |l| {
                l["taps"][0]["sides"] = json!(["0000000000000000"])
            })
        }),
        ("a line that is a number", 1, &|p| {
            forge(p, 2, |l| *l = json!(3))
        }),
        ("a second line without its end", 1, &|p| {
            let bytes = fs::read(journal(p)).unwrap();
            fs::write(journal(p), &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("garbage after the last line", 2, &|p| {
            let mut bytes = fs::read(journal(p)).unwrap();
            bytes.extend([0; 300]);
            fs::write(journal(p), bytes).unwrap();
        }),
        ("rows that are not what was written", 0, &|p| {
            let file = tap_file(p, "logits");
            let mut bytes = fs::read(&file).unwrap();
            bytes[4096] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("a damaged header", 2, &|p| {
            let file = tap_file(p, "logits");
            let mut bytes = fs::read(&file).unwrap();
            bytes[..100].fill(b'x');
            fs::write(file, bytes).unwrap();
        }),
        ("a file cut short", 0, &|p| {
            let file = fs::File::options()
                .write(true)
                .open(tap_file(p, "logits"))
                .unwrap();
            file.set_len(4100).unwrap();
        }),
        ("a file grown", 0, &|p| {
            let file = fs::File::options()
                .write(true)
                .open(tap_file(p, "logits"))
                .unwrap();
            file.set_len(1 << 20).unwrap();
        }),
        ("a file gone", 0, &|p| {
            fs::remove_file(tap_file(p, "logits")).unwrap()
        }),
        ("a link for a file", 0, &|p| {
            let bytes = fs::read(tap_file(p, "logits")).unwrap();
            put(p, tap_file(p, "logits"), &bytes);
        }),
        ("a file of another name", 0, &|p| {
            let outside = p.parent().unwrap().join("outside");
            fs::hard_link(tap_file(p, "logits"), outside).unwrap();
        }),
        ("a link for a journal", 0, &|p| {
            let bytes = fs::read(journal(p)).unwrap();
            put(p, journal(p), &bytes);
        }),
        ("a link for a samples table", 2, &|p| {
            put(p, p.join(".partial/00000.samples.parquet"), b"draft");
        }),
        ("a link for the next manifest", 2, &|p| {
            let next = p.join(".partial/manifest.json");
            fs::write(&next, "").unwrap();
            put(p, next, b"draft");
        }),
    ];
    for (what, expected, damage) in cases {
        let (dir, path) = died();
        damage(&path);
        let outside = dir.path().join("outside");
        let before = fs::read(&outside).ok();
        if journal(&path).is_dir() {
            // The journal cannot be begun: told, and nothing is lost by removing it.
            assert_eq!(believed(&path).unwrap(), 0, "{what}");
            fs::remove_dir(journal(&path)).unwrap();
        }
        assert_eq!(believed(&path).unwrap(), *expected, "{what}");
        write_on(go_on(&path).unwrap(), &longer_run()).unwrap();
        assert_eq!(content(&path), never_stopped(), "{what}");
        assert_eq!(fs::read(&outside).ok(), before, "{what}: written outside");
    }
}

#[test]
fn partial_stores_that_lead_out_or_do_not_hold_together_are_refused() {
    let edit = |path: &Path, change: &dyn Fn(&mut Value)| {
        let file = path.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut manifest);
        fs::write(&file, manifest.to_string()).unwrap();
    };
    let outside = |p: &Path, name: &str| {
        let outside = p.parent().unwrap().join("outside");
        fs::create_dir(&outside).unwrap();
        let inside = p.join(name);
        fs::remove_dir_all(&inside).unwrap();
        symlink(outside, inside).unwrap();
    };
    let cases: &[(&str, Damage<'_>)] = &[
        ("is not a directory of the store", &|p| outside(p, "logits")),
        ("is not a directory of the store", &|p| {
            outside(p, "samples")
        }),
        ("is not a directory of the store", &|p| {
            outside(p, ".partial")
        }),
        ("is not a directory of the store", &|p| {
            fs::remove_dir(p.join("logits")).unwrap();
            fs::write(p.join("logits"), "").unwrap();
        }),
        ("symbolic links", &|p| {
            put(p, p.join(".partial/lock"), b"draft")
        }),
        ("cannot be a tap's folder", &|p| {
            edit(p, &|m| m["taps"][0]["folder"] = json!("../x"))
        }),
        ("cannot be a tap's folder", &|p| {
            edit(p, &|m| m["taps"][0]["folder"] = json!("/etc"))
        }),
        ("cannot be a tap's folder", &|p| {
            edit(p, &|m| m["taps"][0]["folder"] = json!(".partial"))
        }),
        ("two taps have", &|p| {
            edit(p, &|m| m["taps"][0]["folder"] = json!("logits"))
        }),
        ("overflows", &|p| {
            edit(p, &|m| m["taps"][0]["row_shape"] = json!([u64::MAX / 2, 9]))
        }),
        ("not 7", &|p| edit(p, &|m| m["samples"] = json!(7))),
        ("no valid JSON", &|p| {
            fs::write(p.join("manifest.json"), "{").unwrap()
        }),
        ("no valid JSON", &|p| {
            fs::write(p.join("manifest.json"), "").unwrap()
        }),
        ("is not known", &|p| {
            edit(p, &|m| m["format_version"] = json!(99))
        }),
        ("invalid type", &|p| {
            edit(p, &|m| m["attempts"] = json!("many"))
        }),
        ("invalid type", &|p| edit(p, &|m| m["slice"] = json!(3))),
        ("unknown variant", &|p| {
            edit(p, &|m| m["state"] = json!("finished"))
        }),
        ("no manifest", &|p| {
            fs::remove_file(p.join("manifest.json")).unwrap();
            fs::create_dir(p.join("manifest.json")).unwrap();
        }),
        ("cannot be found", &|p| {
            edit(p, &|m| {
                let file = |file: &str| json!({"tap": file, "file": format!("{file}/0"), "rows": 0, "bytes": 9, "batch_rows": [0], "checksums": []});
                m["samples"] = json!(1);
                m["shards"] = json!([{"index": 0, "first": 0, "count": 1, "batches": [1],
                    "samples_file": {"file": "samples/0", "rows": 1, "bytes": 1, "xxh3": "0000000000000000"},
                    "taps": [file("blocks.0.hook_resid_post"), file("blocks.0.attn.hook_pattern"), file("logits")]}]);
            })
        }),
    ];
    for (said, damage) in cases {
        let (dir, path) = died();
        damage(&path);
        let before = fs::read(dir.path().join("outside")).ok();
        let error = match find(&path) {
            Ok(Found::Unfinished(unfinished)) => unfinished.go_on().map(|_| ()).unwrap_err(),
            Ok(other) => panic!("{said}: {other:?}"),
            Err(error) => error,
        };
        let error = error.to_string();
        assert!(
            error.contains(said) && !error.contains('\n'),
            "{said}: {error}"
        );
        let outside = dir.path().join("outside");
        assert_eq!(fs::read(&outside).ok(), before, "{said}");
        if outside.is_dir() {
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{said}");
        }
    }
}

#[test]
fn a_count_of_samples_that_none_can_follow_is_refused() {
    let (_dir, path) = died();
    let most = u64::MAX - 1;
    let file = path.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let taps: Vec<_> = longer_run().taps.into_iter().map(|t| t.folder).collect();
    for listed in taps.iter().map(String::as_str).chain(["samples"]) {
        fs::write(path.join(listed).join("0"), "x").unwrap();
    }
    let listed = |tap: &String| json!({"tap": tap, "file": format!("{tap}/0"), "rows": 0, "bytes": 1, "batch_rows": [0], "checksums": []});
    manifest["samples"] = json!(most);
    manifest["shards"] = json!([{"index": 0, "first": 0, "count": most, "batches": [most],
        "samples_file": {"file": "samples/0", "rows": most, "bytes": 1, "xxh3": "0000000000000000"},
        "taps": taps.iter().map(listed).collect::<Vec<_>>()}]);
    fs::write(&file, manifest.to_string()).unwrap();
    let run = longer_run();
    let mut writer = go_on(&path).unwrap();
    let error = writer.begin_shard(&run.samples, &run.rows).unwrap_err();
    assert!(error.to_string().contains("no more can follow"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_befalls_a_journal_the_store_ends_the_same(
        cut in 0.0f64..1.0,
        changes in prop::collection::vec((0.0f64..1.0, any::<u8>()), 0..6),
        tail in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let (_dir, path) = died();
        let mut bytes = fs::read(journal(&path)).unwrap();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[(at * length as f64) as usize] = byte;
        }
        // Half of the time the whole length, or the changes would seldom be read.
        bytes.truncate((2.0 * cut * length as f64) as usize);
        bytes.extend(tail);
        fs::write(journal(&path), bytes).unwrap();
        write_on(go_on(&path).unwrap(), &longer_run()).unwrap();
        prop_assert_eq!(content(&path), never_stopped());
    }

    #[test]
    fn a_changed_manifest_of_a_partial_store_panics_nobody(at in 0.0f64..1.0, byte in 0x20u8..0x7f) {
        let (_dir, path) = died();
        let manifest = path.join("manifest.json");
        let mut bytes = fs::read(&manifest).unwrap();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = byte;
        fs::write(&manifest, bytes).unwrap();
        if let Ok(Found::Unfinished(unfinished)) = find(&path) {
            let _ = unfinished.go_on().map(|writer| write_on(writer, &longer_run()));
        }
    }
}

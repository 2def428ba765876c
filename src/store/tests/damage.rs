//! Stores that were damaged, or made to mislead: errors that say what and where, never a panic or a byte from outside.

use std::fs;
use std::os::unix::fs::symlink;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

type Change<'a> = &'a dyn Fn(&mut Value);

/// Changes the manifest of the store at `dir`.
fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(&path, manifest.to_string()).unwrap();
}

/// Reads all that a store offers.
fn read_everything(dir: &Path) -> Result<()> {
    let store = Store::open_any(dir)?;
    for t in 0..store.taps().len() {
        let tap = store.tap_at(t);
        for shard in tap.shards() {
            let shard = shard?;
            let _ = (
                shard.as_f32().is_ok(),
                shard.as_bf16().is_ok(),
                shard.to_f32(),
                shard.sample(),
                shard.position(),
                shard.token(),
                shard.index(),
                shard.order().is_ok(),
            );
            for view in shard.ragged() {
                let _ = (view.to_f32(), view.shape().len());
            }
        }
        if tap.info().ragged {
            tap.ragged(0, 0)?;
        } else {
            for row in (0..tap.rows().min(8)).map(|i| tap.row(i)) {
                let row = row?;
                let _ = (
                    row.to_f32(),
                    row.sample(),
                    row.position(),
                    row.token(),
                    row.index(),
                );
            }
            tap.for_sample(0)?;
        }
    }
    store.samples().try_for_each(|s| s.map(|_| ()))
}

#[test]
fn manifests_that_do_not_hold_together_are_refused_by_what_is_wrong() {
    let tap_file = |m: &mut Value, key: &str, value: Value| m["shards"][0]["taps"][0][key] = value;
    let cases: &[(&str, Change<'_>)] = &[
        ("format_version 2 is not known", &|m| {
            m["format_version"] = json!(2)
        }),
        ("format_version \"1\" is not known", &|m| {
            m["format_version"] = json!("1")
        }),
        ("no format_version", &|m| {
            drop(m.as_object_mut().unwrap().remove("format_version"))
        }),
        ("leads out of the store", &|m| {
            tap_file(m, "file", json!("../../etc/passwd"))
        }),
        ("leads out of the store", &|m| {
            tap_file(m, "file", json!("/etc/passwd"))
        }),
        ("leads out of the store", &|m| {
            m["shards"][0]["samples_file"]["file"] = json!("samples/../../x")
        }),
        ("is listed twice", &|m| {
            m["shards"][0]["taps"][0]["file"] = json!("logits/00000.safetensors")
        }),
        ("listed in the manifest, but cannot be found", &|m| {
            tap_file(m, "file", json!("logits/00007.safetensors"))
        }),
        ("bytes where the manifest says", &|m| {
            tap_file(m, "bytes", json!(1u64 << 40))
        }),
        ("rows do not fit", &|m| tap_file(m, "rows", json!(u64::MAX))),
        ("differ in number", &|m| tap_file(m, "rows", json!(5))),
        ("differ in number", &|m| {
            tap_file(m, "batch_rows", json!([u64::MAX, 5]))
        }),
        ("differ in number", &|m| {
            m["shards"][0]["batches"] = json!([1])
        }),
        ("not the one that follows", &|m| {
            m["shards"][1]["first"] = json!(0)
        }),
        ("count overflows", &|m| {
            m["shards"][1]["count"] = json!(u64::MAX)
        }),
        ("the shards hold 3 samples, not 4", &|m| {
            m["samples"] = json!(4)
        }),
        ("not one file per tap", &|m| {
            drop(m["taps"].as_array_mut().unwrap().pop())
        }),
        ("cannot be a tap's folder", &|m| {
            m["taps"][0]["folder"] = json!("..")
        }),
        ("cannot be a tap's folder", &|m| {
            m["taps"][0]["folder"] = json!("a/b")
        }),
        ("overflows", &|m| {
            m["taps"][0]["row_shape"] = json!([1u64 << 40, 1u64 << 40])
        }),
        ("is no xxh3-64 checksum", &|m| {
            m["shards"][0]["samples_file"]["xxh3"] = json!("zz")
        }),
        ("missing field `shards`", &|m| {
            drop(m.as_object_mut().unwrap().remove("shards"))
        }),
        ("invalid type", &|m| m["taps"] = json!({})),
    ];
    for (expected, change) in cases {
        let (_dir, path) = small_store();
        edit(&path, change);
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(
            error.contains(expected) && !error.contains('\n'),
            "{expected}: {error}"
        );
        assert!(!verify(&path, &|_| ()).is_ok_and(|r| r.ok()), "{expected}");
    }
}

#[test]
fn files_that_contradict_the_manifest_are_refused_when_mapped() {
    let cases: &[(&str, Change<'_>)] = &[
        (
            "`activations` is BF16 [4, 3], where the manifest says BF16 [4, 2]",
            &|m| m["taps"][0]["row_shape"] = json!([2]),
        ),
        ("where the manifest says F32", &|m| {
            m["taps"][0]["dtype"] = json!("f32")
        }),
        ("has no tensor `activations`", &|m| {
            m["taps"][1]["ragged"] = json!(false)
        }),
        ("has tensors that a tap's file does not have", &|m| {
            m["taps"][2]["top_k"] = json!(null)
        }),
        ("[3], rows, tokens] of f32 belongs", &|m| {
            m["taps"][1]["row_shape"] = json!([3])
        }),
    ];
    for (expected, change) in cases {
        let (_dir, path) = small_store();
        edit(&path, change);
        let error = read_everything(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!check(&path).ok());
    }
}

#[test]
fn links_out_of_the_store_are_not_followed() {
    let (dir, path) = small_store();
    let file = path.join("logits/00000.safetensors");
    let outside = dir.path().join("outside");
    fs::rename(&file, &outside).unwrap();
    symlink(&outside, &file).unwrap();
    assert!(
        Store::open(&path)
            .unwrap_err()
            .to_string()
            .contains("leads out of the store")
    );
    assert!(!check(&path).ok());
    // A link that stays inside is fine.
    fs::remove_file(&file).unwrap();
    fs::rename(&outside, path.join("logits/moved")).unwrap();
    symlink("moved", &file).unwrap();
    assert!(Store::open(&path).is_ok());
    // So is a store that is itself reached by a link.
    symlink(&path, dir.path().join("link")).unwrap();
    assert!(Store::open(&dir.path().join("link")).is_ok());
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        Store::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("not a store (it has no manifest.json)")
    );
    assert!(Store::open(&dir.path().join("none")).is_err());
    fs::write(dir.path().join("manifest.json"), "{").unwrap();
    assert!(
        Store::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("no valid JSON")
    );
}

#[test]
fn an_order_that_names_a_row_twice_is_damage_whatever_its_checksum_says() {
    let mut run = small_run();
    run.taps[0].order_seed = Some(5);
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &run).unwrap();
    assert!(check(dir.path()).ok());
    let file = "blocks.0.hook_resid_post/00000.safetensors";
    let mut bytes = fs::read(dir.path().join(file)).unwrap();
    let order = bytes.len() - 16;
    for forged in [[0, 1, 2, 2], [0, 1, 2, 4], [0, 1, 2, -1]] {
        let forged: Vec<u8> = forged
            .iter()
            .flat_map(|row: &i32| row.to_le_bytes())
            .collect();
        bytes[order..].copy_from_slice(&forged);
        fs::write(dir.path().join(file), &bytes).unwrap();
        edit(dir.path(), |m| {
            let sums = m["shards"][0]["taps"][0]["checksums"]
                .as_array_mut()
                .unwrap();
            let sum = sums.iter_mut().find(|sum| sum["part"] == "order").unwrap();
            sum["xxh3"] = json!(Xxh3::of(&forged));
        });
        let problems = check(dir.path()).problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with(&format!("{file}: `order` is no order of its 4 rows")),
            "{problems:?}"
        );
    }
    edit(dir.path(), |m| m["taps"][1]["order_seed"] = json!(5));
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("a ragged tap has a tensor per sample and no order of rows"),
        "{error}"
    );
}

/// Changes one byte of the first shard's samples table, and makes the manifest's checksum agree, so that the decoder sees the damage.
fn forge_table(path: &Path, at: f64, flip: u8) {
    let file = path.join("samples/00000.parquet");
    let mut bytes = fs::read(&file).unwrap();
    let at = (at * bytes.len() as f64) as usize;
    bytes[at] ^= flip;
    edit(path, |m| {
        m["shards"][0]["samples_file"]["xxh3"] = json!(Xxh3::of(&bytes).to_string())
    });
    fs::write(&file, bytes).unwrap();
}

#[test]
fn a_file_that_the_manifest_does_not_list_is_a_warning() {
    let (_dir, path) = small_store();
    fs::write(path.join("logits/00002.safetensors"), "junk").unwrap();
    fs::write(path.join("notes.txt"), "mine").unwrap();
    let report = check(&path);
    assert!(report.ok());
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
}

#[test]
fn damage_is_named_by_file_part_and_batch() {
    let (_dir, path) = small_store();
    let file = path.join("logits/00000.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    // Row 3 is the one row of the second batch: 2 numbers a row.
    bytes[4096 + 3 * 8] ^= 1;
    fs::write(&file, bytes).unwrap();
    let problems = check(&path).problems;
    let expected = "logits/00000.safetensors: `activations` is not what was written in batch 1 (samples 1 to 1 of the shard, its checksum differs)";
    assert_eq!(problems, [expected]);
}

/// All files of the small store but the manifest.
fn data_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let manifest = Manifest::read(dir).unwrap();
    let files = manifest
        .shards
        .iter()
        .flat_map(|s| s.taps.iter().map(|t| &t.file).chain([&s.samples_file.file]));
    files.map(|f| dir.join(f)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_changed_byte_of_a_data_file_is_found_and_panics_nobody(file in 0usize..8, at in 0.0f64..1.0, flip in 1u8..=255) {
        let (_dir, path) = small_store();
        let file = data_files(&path).swap_remove(file);
        let mut bytes = fs::read(&file).unwrap();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] ^= flip;
        fs::write(&file, bytes).unwrap();
        prop_assert!(!check(&path).ok());
        let _ = read_everything(&path);
    }

    #[test]
    fn every_shortened_file_is_an_error(file in 0usize..8, keep in 0.0f64..1.0) {
        let (_dir, path) = small_store();
        let file = data_files(&path).swap_remove(file);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..(keep * bytes.len() as f64) as usize]).unwrap();
        prop_assert!(Store::open(&path).is_err());
        prop_assert!(!check(&path).ok());
    }

    #[test]
    fn a_changed_manifest_panics_nobody(at in 0.0f64..1.0, byte in 0x20u8..0x7f) {
        let (_dir, path) = small_store();
        let manifest = path.join("manifest.json");
        let mut bytes = fs::read(&manifest).unwrap();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = byte;
        fs::write(&manifest, bytes).unwrap();
        let _ = (read_everything(&path), verify(&path, &|_| ()));
    }

    #[test]
    fn a_forged_samples_table_panics_nobody(at in 0.0f64..1.0, flip in 1u8..=255) {
        let (_dir, path) = small_store();
        forge_table(&path, at, flip);
        let _ = (read_everything(&path), check(&path));
    }
}

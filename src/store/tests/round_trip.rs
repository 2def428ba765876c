//! What is written is read back: by our reader, by the safetensors crate, whatever the shapes.

use std::fs;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;

fn any_tap(n: usize) -> impl Strategy<Value = TapInfo> {
    let dtype = prop_oneof![
        Just(StoreDtype::F32),
        Just(StoreDtype::F16),
        Just(StoreDtype::BF16)
    ];
    let shape = prop::collection::vec(1usize..4, 1..3);
    let folder = format!("tap{n}");
    prop_oneof![
        3 => (dtype, shape, any::<Option<u64>>()).prop_map({
            let folder = folder.clone();
            move |(dtype, shape, order_seed)| TapInfo { order_seed, ..tap(&folder, dtype, &shape) }
        }),
        1 => (1usize..3).prop_map({ let folder = folder.clone(); move |heads| ragged(&folder, heads) }),
        1 => (1usize..4, any::<Option<u64>>()).prop_map(move |(k, order_seed)| TapInfo { order_seed, ..top(&folder, k) }),
    ]
}

fn any_run() -> impl Strategy<Value = Run> {
    let taps = (1usize..4).prop_flat_map(|n| (0..n).map(any_tap).collect::<Vec<_>>());
    let batches = prop::collection::vec(prop::collection::vec(1usize..4, 1..4), 1..4);
    (taps, batches)
        .prop_flat_map(|(taps, shards)| {
            let n: usize = shards.iter().flatten().sum();
            let kept = prop_oneof![
                Just(None),
                any::<bool>().prop_map(|b| Some(Kept::Text(b.to_string())))
            ];
            let one = (
                prop::collection::vec(0u32..50_000, 1..6),
                0u32..2,
                prop::collection::vec(any::<u8>(), taps.len()),
                kept,
            );
            (Just(taps), Just(shards), prop::collection::vec(one, n))
        })
        .prop_map(|(taps, shards, picks)| {
            let (mut samples, mut rows) = (Vec::new(), Vec::new());
            for (i, (tokens, chunk, masks, kept)) in picks.into_iter().enumerate() {
                let last = tokens.len() as u32 - 1;
                let turns = if last > 1 {
                    vec![
                        ("user".to_string(), 0, 1),
                        ("assistant".to_string(), 2, last),
                    ]
                } else {
                    Vec::new()
                };
                // None, one of ids, or two of texts.
                let piece = |first: u32, tokens: u32, chars| Piece {
                    document: i as u64 * 7,
                    file: format!("{i}.txt").into(),
                    line: 3 + u64::from(first),
                    first,
                    tokens,
                    offset: 1 << 40,
                    chars,
                };
                let pieces = match i % 3 {
                    0 => Vec::new(),
                    1 => vec![piece(0, last + 1, None)],
                    _ => vec![piece(0, 1, Some((0, 4))), piece(1, last, None)],
                };
                let row = SampleRow {
                    chunk,
                    turns,
                    pieces,
                    kept: vec![kept],
                    ..sample(i as u64 * 3, tokens)
                };
                // One bit per token: any subset, the empty one too.
                rows.push(
                    masks
                        .iter()
                        .map(|m| rows_of(&row, (0..row.tokens.len()).filter(|p| m >> p & 1 == 1)))
                        .collect(),
                );
                samples.push(row);
            }
            Run {
                taps,
                keep: vec!["label".into()],
                samples,
                rows,
                shards,
            }
        })
}

fn assert_reads_back(run: &Run, store: &Store) -> Result<()> {
    for (t, info) in run.taps.iter().enumerate() {
        let reader = store.tap(&info.folder)?;
        let all =
            |f: &dyn Fn(usize) -> Vec<i64>| (0..run.samples.len()).flat_map(f).collect::<Vec<_>>();
        let samples = all(&|s| vec![run.samples[s].sample as i64; run.rows[s][t].positions.len()]);
        let positions = all(&|s| run.rows[s][t].positions.iter().map(|&p| p.into()).collect());
        let tokens = all(&|s| run.rows[s][t].tokens.iter().map(|&p| p.into()).collect());
        assert_eq!(reader.rows(), samples.len());
        let shards = reader.shards().collect::<Result<Vec<_>>>()?;
        assert_eq!(
            shards.iter().flat_map(|s| s.sample()).collect::<Vec<_>>(),
            samples
        );
        assert_eq!(
            shards
                .iter()
                .flat_map(|s| s.position())
                .map(i64::from)
                .collect::<Vec<_>>(),
            positions
        );
        assert_eq!(
            shards
                .iter()
                .flat_map(|s| s.token())
                .map(i64::from)
                .collect::<Vec<_>>(),
            tokens
        );
        for shard in &shards {
            let mut order = shard.order()?;
            assert_eq!(order.is_some(), info.order_seed.is_some());
            order.iter_mut().for_each(|order| order.sort_unstable());
            assert!(order.is_none_or(|order| order.into_iter().eq(0..shard.rows() as i32)));
        }
        for (s, row) in run.samples.iter().enumerate() {
            let (bytes, index) = bytes_of(run, t, s);
            if info.ragged {
                let view = reader
                    .ragged(row.sample, row.chunk)?
                    .expect("every sample has a tensor");
                assert_eq!(
                    view.shape(),
                    [
                        info.row_shape[0],
                        run.rows[s][t].positions.len(),
                        row.tokens.len()
                    ]
                );
                assert_eq!(view.bytes(), bytes);
            } else {
                let rows = reader.for_sample(row.sample)?;
                assert_eq!(
                    rows.iter()
                        .flat_map(|r| r.bytes().to_vec())
                        .collect::<Vec<_>>(),
                    bytes
                );
                let stored: Vec<u8> = rows
                    .iter()
                    .filter_map(RowView::index)
                    .flatten()
                    .flat_map(i32::to_le_bytes)
                    .collect();
                assert_eq!(stored, index);
            }
        }
        if !info.ragged {
            for i in 0..reader.rows() {
                let row = reader.row(i)?;
                assert_eq!(
                    (
                        row.sample(),
                        i64::from(row.position()),
                        i64::from(row.token())
                    ),
                    (samples[i], positions[i], tokens[i])
                );
            }
        }
        assert!(reader.row(reader.rows()).is_err());
    }
    let samples = store.samples().collect::<Result<Vec<_>>>()?;
    assert_eq!(samples, run.samples);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_run_reads_back_equal_and_verifies(run in any_run()) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &run).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_reads_back(&run, &store).unwrap();
        let report = check(dir.path());
        prop_assert!(report.ok() && report.warnings.is_empty(), "{report:?}");
        for file in store.manifest().shards.iter().flat_map(|s| &s.taps) {
            let bytes = fs::read(dir.path().join(&file.file)).unwrap();
            prop_assert!(SafeTensors::deserialize(&bytes).is_ok());
        }
    }
}

#[test]
fn the_files_are_those_of_the_format_page() {
    let (_dir, path) = small_store();
    let mut names: Vec<String> = walk(&path)
        .iter()
        .map(|p| p.strip_prefix(&path).unwrap().display().to_string())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "blocks.0.attn.hook_pattern/00000.safetensors",
            "blocks.0.attn.hook_pattern/00001.safetensors",
            "blocks.0.hook_resid_post/00000.safetensors",
            "blocks.0.hook_resid_post/00001.safetensors",
            "logits/00000.safetensors",
            "logits/00001.safetensors",
            "manifest.json",
            "samples/00000.parquet",
            "samples/00001.parquet",
        ]
    );
    let bytes = fs::read(path.join("blocks.0.hook_resid_post/00000.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!((header_len + 8) % 4096, 0);
    let json = String::from_utf8(bytes[8..8 + header_len as usize].to_vec()).unwrap();
    insta::assert_snapshot!(json.trim_end(), @r#"{"__metadata__":{"format_version":"1","hook":"blocks.0.hook_resid_post","model_fingerprint":"abc","reduction":"","selection":"all"},"activations":{"dtype":"BF16","shape":[4,3],"data_offsets":[0,24]},"sample":{"dtype":"I64","shape":[4],"data_offsets":[24,56]},"position":{"dtype":"I32","shape":[4],"data_offsets":[56,72]},"token":{"dtype":"I32","shape":[4],"data_offsets":[72,88]}}"#);
    let pattern = fs::read(path.join("blocks.0.attn.hook_pattern/00000.safetensors")).unwrap();
    let pattern = SafeTensors::deserialize(&pattern).unwrap();
    assert_eq!(pattern.tensor("0").unwrap().shape(), [2, 3, 3]);
    assert_eq!(pattern.tensor("2").unwrap().shape(), [2, 1, 1]);
}

#[test]
fn an_order_hangs_on_its_seed_its_shards_first_sample_and_number_of_rows() {
    let order_of = |seed: u64, first: u64, rows: u32| {
        let dir = tempfile::tempdir().unwrap();
        let samples = vec![sample(first, (0..rows).collect()), sample(7, vec![1, 2])];
        let seeded = |folder: &str, width| TapInfo {
            order_seed: Some(seed),
            ..tap(folder, StoreDtype::F32, &[width])
        };
        let of = |s: &SampleRow| vec![rows_of(s, 0..s.tokens.len()); 2];
        let run = Run {
            taps: vec![seeded("a", 1), seeded("b", 5)],
            keep: Vec::new(),
            rows: samples.iter().map(of).collect(),
            samples,
            shards: vec![vec![2]],
        };
        write(dir.path(), &run).unwrap();
        let store = Store::open(dir.path()).unwrap();
        let order = |tap| {
            store
                .tap_at(tap)
                .shard(0)
                .unwrap()
                .order()
                .unwrap()
                .unwrap()
        };
        assert_eq!(order(0), order(1), "taps with the same rows");
        order(0)
    };
    let order = order_of(3, 0, 50);
    assert_eq!(order, order_of(3, 0, 50));
    let places = order.iter().enumerate();
    assert!(
        places.filter(|&(i, &row)| i as i32 == row).count() < 10,
        "{order:?}"
    );
    assert_ne!(order, order_of(4, 0, 50));
    assert_ne!(order, order_of(3, 1, 50));
    assert_eq!(order_of(3, 0, 1).len(), 3);
}

#[test]
fn typed_slices_come_in_the_taps_dtype_only() {
    let (_dir, path) = small_store();
    let store = Store::open(&path).unwrap();
    let shard = store
        .tap("blocks.0.hook_resid_post")
        .unwrap()
        .shard(0)
        .unwrap();
    assert_eq!(shard.as_bf16().unwrap().len(), 4 * 3);
    assert_eq!(shard.to_f32().len(), 12);
    let error = shard.as_f32().unwrap_err().to_string();
    assert_eq!(error, "tap blocks.0.hook_resid_post: holds bf16, not f32");
    let logits = store.tap("logits").unwrap().shard(1).unwrap();
    assert_eq!(
        (
            logits.as_f32().unwrap().len(),
            logits.index().unwrap().len(),
            logits.first_row()
        ),
        (8, 8, 4)
    );
}

#[test]
fn an_unknown_tap_is_an_error_that_lists_the_taps() {
    let (_dir, path) = small_store();
    let error = Store::open(&path)
        .unwrap()
        .tap("blocks.9.hook_z")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "no tap \"blocks.9.hook_z\" in this store; it has blocks.0.hook_resid_post, blocks.0.attn.hook_pattern, logits"
    );
}

#[test]
fn single_slabs_are_the_batch_slabs_in_pieces() {
    let run = small_run();
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), provenance(), run.taps.clone(), &[]).unwrap();
    let mut shard = writer.begin_shard(&run.samples, &run.rows).unwrap();
    assert_eq!(
        (
            shard.rows(0),
            shard.rows_before(0, 1),
            shard.rows_before(0, 3)
        ),
        (8, 3, 8)
    );
    shard.slab(0, 3..4).fill(1);
    shard.ragged_slab(1, 1).fill(2);
    shard.index_slab(2, 3..4).fill(3);
    assert!(shard.index_slab(0, 3..4).is_empty());
    let slabs = shard.batch_slabs(1..2);
    assert_eq!(
        (slabs[0].rows.clone(), &*slabs[0].activations),
        (3..4, &[1; 6][..])
    );
    assert_eq!(&*slabs[1].activations, [2; 8]);
    assert_eq!(slabs[2].index.as_deref(), Some(&[3; 8][..]));
}

#[test]
fn shards_are_committed_in_order_and_batches_finished_in_turn() {
    let run = small_run();
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), provenance(), run.taps.clone(), &[]).unwrap();
    let mut first = writer
        .begin_shard(&run.samples[..1], &run.rows[..1])
        .unwrap();
    let mut second = writer
        .begin_shard(&run.samples[1..], &run.rows[1..])
        .unwrap();
    assert!(second.finish_batch(1..2).is_err());
    second.finish_batch(0..2).unwrap();
    assert_eq!(
        second.commit().unwrap_err().to_string(),
        "shard 1 cannot be committed after 0 shards"
    );
    first.finish_batch(0..1).unwrap();
    first.commit().unwrap();
    assert_eq!(
        writer.finish(Summary::default()).unwrap_err().to_string(),
        "the store has 1 of its 2 shards committed"
    );
    assert!(matches!(
        Store::open(dir.path()),
        Err(Error::Partial { .. })
    ));
}

#[test]
fn memory_does_not_grow_with_the_shard() {
    let taps = vec![tap("wide", StoreDtype::F32, &[1 << 20])];
    let samples: Vec<_> = (0..48).map(|i| sample(i, vec![1])).collect();
    let rows: Vec<_> = samples.iter().map(|s| vec![rows_of(s, [0])]).collect();
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::create(dir.path(), provenance(), taps, &[]).unwrap();
    let mut shard = writer.begin_shard(&samples, &rows).unwrap();
    let mapped_pages = || {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let ours = smaps
            .split("VmFlags")
            .find(|m| m.contains(dir.path().to_str().unwrap()))
            .expect("the shard is mapped");
        let rss = ours
            .lines()
            .skip_while(|l| !l.contains("wide"))
            .find(|l| l.starts_with("Rss:"))
            .expect("Rss line");
        rss.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            >> 10
    };
    let mut most = 0;
    for i in 0..48 {
        shard.batch_slabs(i..i + 1)[0].activations.fill(i as u8 + 1);
        shard.finish_batch(i..i + 1).unwrap();
        most = most.max(mapped_pages());
    }
    assert!(
        (4..=80).contains(&most),
        "{most} MiB of a 192 MiB shard resident"
    );
    shard.commit().unwrap();
    writer.finish(Summary::default()).unwrap();
    assert!(check(dir.path()).ok());
}

#[test]
fn kept_fields_take_the_narrowest_type_that_holds_the_first_shard_and_are_widened_by_a_later_one() {
    let kept = |values: Vec<Option<Kept>>| {
        let mut run = small_run();
        run.keep = vec!["label".into()];
        for (sample, value) in run.samples.iter_mut().zip(values) {
            sample.kept = vec![value];
        }
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &run)?;
        let store = Store::open(dir.path())?;
        let kind = store.manifest().keep[0].kind.unwrap();
        let read: Vec<_> = store.samples().map(|s| s.unwrap().kept.remove(0)).collect();
        Ok::<_, Error>((kind, read))
    };
    let text = |s: &str| Some(Kept::Text(s.into()));
    let (int, half) = (|i| Some(Kept::Int(i)), Some(Kept::Float(0.5)));
    // The first shard holds two of the three samples.
    assert_eq!(
        kept(vec![int(1), None, int(2)]).unwrap(),
        (KeptType::Int, vec![int(1), None, int(2)])
    );
    assert_eq!(
        kept(vec![int(1), half.clone(), int(2)]).unwrap(),
        (
            KeptType::Float,
            vec![Some(Kept::Float(1.0)), half.clone(), Some(Kept::Float(2.0))]
        )
    );
    assert_eq!(
        kept(vec![int(1), Some(Kept::Bool(true)), half.clone()]).unwrap(),
        (KeptType::Text, vec![text("1"), text("true"), text("0.5")])
    );
    assert_eq!(
        kept(vec![None, None, int(2)]).unwrap(),
        (KeptType::Text, vec![None, None, text("2")])
    );
    assert_eq!(
        kept(vec![int(1), int(2), half.clone()]).unwrap(),
        (
            KeptType::Float,
            vec![Some(Kept::Float(1.0)), Some(Kept::Float(2.0)), half.clone()]
        )
    );
    assert_eq!(
        kept(vec![int(1), int(2), text("three")]).unwrap(),
        (KeptType::Text, vec![text("1"), text("2"), text("three")])
    );
    // No column holds both of these exactly.
    let error = kept(vec![int(1), int((1 << 53) + 1), half])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("facts.jsonl:3: kept field \"label\" is 9007199254740993, which"),
        "{error}"
    );
}

#[test]
fn widened_tables_are_the_only_ones_left() {
    let mut run = small_run();
    run.keep = vec!["label".into()];
    for (sample, value) in run.samples.iter_mut().zip([1.0, 2.0, 0.5]) {
        sample.kept = vec![Some(match value {
            0.5 => Kept::Float(value),
            whole => Kept::Int(whole as i64),
        })];
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &run).unwrap();
    let report = check(dir.path());
    assert!(report.ok() && report.warnings.is_empty(), "{report:?}");
    let mut tables: Vec<_> = std::fs::read_dir(dir.path().join("samples"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    tables.sort();
    assert_eq!(tables, ["00000.1.parquet", "00001.parquet"]);
}

#[test]
fn kept_fields_cannot_hide_the_tables_own_columns() {
    let dir = tempfile::tempdir().unwrap();
    let error = StoreWriter::create(
        &dir.path().join("run"),
        provenance(),
        Vec::new(),
        &["tokens".into()],
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("--keep tokens"), "{error}");
}

#[test]
fn a_run_without_samples_is_a_complete_store_without_shards() {
    let dir = tempfile::tempdir().unwrap();
    let run = Run {
        shards: Vec::new(),
        samples: Vec::new(),
        rows: Vec::new(),
        ..small_run()
    };
    write(dir.path(), &run).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(
        (store.tap("logits").unwrap().rows(), store.samples().count()),
        (0, 0)
    );
    assert!(check(dir.path()).ok());
}

#[test]
fn the_manifest_keeps_the_engines_sections_and_reads_back_equal() {
    let (_dir, path) = small_store();
    let manifest = Manifest::read(&path).unwrap();
    assert_eq!(manifest.provenance, provenance());
    assert_eq!(manifest.shards[1].first, 2);
    assert_eq!(
        serde_json::from_str::<Manifest>(&manifest.to_json()).unwrap(),
        manifest
    );
}

#[test]
fn samples_and_rows_that_do_not_fit_are_refused_by_name() {
    let run = small_run();
    let plan = |samples: &[SampleRow], rows: &[Vec<TapRows>]| {
        ShardLayout::plan(&run.taps, samples, rows, "abc").map(|l| l.bytes())
    };
    let twice = [run.samples[0].clone(), run.samples[0].clone()];
    let error = plan(&twice, &[run.rows[0].clone(), run.rows[0].clone()])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "sample 0 chunk 0 (facts.jsonl:1) occurs twice in a shard"
    );
    assert!(plan(&[sample(0, vec![u32::MAX])], &run.rows[..1]).is_err());
    assert!(plan(&run.samples, &run.rows[..1]).is_err());
    assert!(plan(&[], &[]).is_err());
    let all = plan(&run.samples, &run.rows).unwrap();
    let counted: u64 = run
        .taps
        .iter()
        .flat_map(|t| {
            run.samples
                .iter()
                .map(|s| sample_bytes(t, s.tokens.len() as u64, s.tokens.len() as u64))
        })
        .sum();
    assert_eq!(all, counted + 3 * ALIGN as u64);
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] })
        .collect()
}

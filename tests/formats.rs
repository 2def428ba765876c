//! Datasets at scale: shuffled, sampled, chunked with overlap, packed into contexts. However a run is sliced or stopped, it ends with the
//! same rows, and every token's origin in the dataset is right.

mod common;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use streamgauge::data::{Fraction, Input, Record};
use streamgauge::engine::{
    Ending, Error, Job, OnLong, Options, Prepared, estimate, extract_with, merge_receipts,
    recompute,
};
use streamgauge::store::{SampleRow, Store, merge, verify};

const TAP: &str = "blocks.1.hook_resid_post";

fn model() -> String {
    let dir = common::fixtures().join("models/mistral-window4");
    dir.display().to_string()
}

/// What a document ends with in a context: the model's EOS.
const EOS: u32 = 2;

/// Token ids of each record, by its number; every fifth is no record at all.
fn documents(n: usize, longest: usize) -> Vec<Option<Vec<u32>>> {
    let tokens =
        |i: usize| (0..1 + i * 11 % longest).map(move |t| (3 + t * 31 + i * 17) as u32 % 150 + 3);
    (0..n)
        .map(|i| (i % 5 != 4).then(|| tokens(i).collect()))
        .collect()
}

fn dataset(dir: &Path, documents: &[Option<Vec<u32>>]) -> String {
    let line = |d: &Option<Vec<u32>>| match d {
        Some(tokens) => format!("{{\"tokens\": {tokens:?}}}\n"),
        None => "no record\n".to_owned(),
    };
    let path = dir.join("data.jsonl");
    std::fs::write(&path, documents.iter().map(line).collect::<String>()).unwrap();
    path.display().to_string()
}

fn job(data: &str) -> Job {
    Job {
        skip_bad: true,
        shard_bytes: 12_000,
        batch_tokens: 40,
        ..Job::new(model(), vec![data.to_owned()], vec![TAP.to_owned()])
    }
}

/// Runs the job, or goes on with it, for at most so many batches.
fn run(job: &Job, out: &Path, batches: usize) -> streamgauge::Result<Ending> {
    let prepared = Prepared::open(job.clone())?;
    let left = Cell::new(batches);
    let options = Options {
        resume: true,
        commit_every: Some(Duration::ZERO),
        stop: &|| left.get() == 0,
    };
    let mut machine = prepared.cpu();
    extract_with(&prepared, &mut machine, out, &options, &mut |_| {
        left.set(left.get() - 1)
    })
}

fn whole(job: &Job, out: &Path) {
    run(job, out, usize::MAX).unwrap();
    let report = verify(out, &|_| ()).unwrap();
    assert!(report.ok(), "{:?}", report.problems);
}

fn samples(store: &Path) -> Vec<SampleRow> {
    let store = Store::open(store).unwrap();
    store.samples().map(Result::unwrap).collect()
}

/// Every row in the store's order: sample, position, token and bits.
fn rows(store: &Path) -> Vec<(i64, i32, i32, Vec<u8>)> {
    let store = Store::open(store).unwrap();
    let tap = store.tap(TAP).unwrap();
    let row = |i| {
        let row = tap.row(i).unwrap();
        (
            row.sample(),
            row.position(),
            row.token(),
            row.bytes().to_vec(),
        )
    };
    (0..tap.rows()).map(row).collect()
}

/// Every file but the manifest, and the manifest without what may differ between a run and the same run in pieces.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let text = std::fs::read(dir.join("manifest.json")).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for key in ["timing", "stalls", "attempts"] {
        manifest.as_object_mut().unwrap().remove(key).unwrap();
    }
    let mut all = vec![("manifest".into(), manifest.to_string().into_bytes())];
    for folder in ["samples", TAP] {
        for file in std::fs::read_dir(dir.join(folder)).unwrap() {
            let path = file.unwrap().path();
            all.push((
                path.strip_prefix(dir).unwrap().to_owned(),
                std::fs::read(&path).unwrap(),
            ));
        }
    }
    all.sort();
    all
}

/// Checks that every token is the one that its piece says, and gives (document, token of it) of all of them, in order.
fn origins(samples: &[SampleRow], documents: &[Option<Vec<u32>>]) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    for sample in samples {
        let mut next = 0;
        for piece in &sample.pieces {
            assert_eq!(piece.first, next, "pieces follow one another");
            assert_eq!(piece.line, piece.document + 1);
            assert_eq!(piece.chars, None, "ids have no characters");
            next += piece.tokens;
            let document = documents[piece.document as usize].as_ref().unwrap();
            for i in 0..piece.tokens {
                let at = piece.offset + u64::from(i);
                let token = sample.tokens[(piece.first + i) as usize];
                assert_eq!(token, document.get(at as usize).copied().unwrap_or(EOS));
                assert!(at <= document.len() as u64);
                all.push((piece.document, at));
            }
        }
        assert_eq!(
            next as usize,
            sample.tokens.len(),
            "every token is of a piece"
        );
    }
    all
}

/// Tokens of a context, or of a chunk and its overlap.
type Cut = (Option<usize>, Option<usize>, usize);

/// How records are made samples, and in which order.
fn any_job() -> impl Strategy<Value = Job> {
    let cut = prop_oneof![
        (4usize..20).prop_map(|n| -> Cut { (Some(n), None, 0) }),
        (4usize..12, 0usize..4).prop_map(|(n, overlap)| -> Cut { (None, Some(n), overlap) }),
    ];
    let fraction = prop::option::of(
        (0.6..1.0, any::<u64>()).prop_map(|(share, seed)| Fraction { share, seed }),
    );
    let limit = prop::option::of(40u64..50);
    (cut, prop::option::of(any::<u64>()), fraction, limit).prop_map(
        |((pack, most, overlap), shuffle, fraction, limit)| Job {
            pack_context: pack,
            max_length: most,
            on_long: if most.is_some() {
                OnLong::Chunk
            } else {
                OnLong::Error
            },
            chunk_overlap: overlap,
            shuffle,
            sample_fraction: fraction,
            limit,
            ..job("")
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn sliced_or_stopped_a_run_ends_with_the_same_rows_and_knows_where_they_are_from(
        given in any_job(),
        (batches, slices) in (1usize..6, 2u64..4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let documents = documents(50, 33);
        let job = Job { data: vec![dataset(dir.path(), &documents)], scratch: Some(dir.path().to_owned()), ..given };
        let reference = dir.path().join("reference");
        whole(&job, &reference);

        let taken = |i: u64| job.limit.is_none_or(|n| i < n) && job.sample_fraction.is_none_or(|f| f.takes(i));
        let good = (0..documents.len()).filter(|&i| documents[i].is_some() && taken(i as u64));
        let mut found = origins(&samples(&reference), &documents);
        if job.shuffle.is_none() && job.pack_context.is_some() {
            prop_assert!(found.is_sorted(), "contexts are in the dataset's order");
        }
        found.sort();
        found.dedup();
        let ends = u64::from(job.pack_context.is_some());
        let every: Vec<_> = good.flat_map(|i| {
            let n = documents[i].as_ref().unwrap().len() as u64 + ends;
            (0..n).map(move |t| (i as u64, t))
        }).collect();
        prop_assert_eq!(found, every, "every token of every record is there");

        let stopped = dir.path().join("stopped");
        let mut attempts = 0;
        while let Err(streamgauge::Error::Engine(Error::Stopped { .. })) = run(&job, &stopped, batches) {
            attempts += 1;
            prop_assert!(attempts < 300, "no progress");
        }
        prop_assert!(contents(&stopped) == contents(&reference), "stopped and resumed");

        let parts: Vec<PathBuf> = (0..slices).map(|i| dir.path().join(format!("slice-{i}"))).collect();
        for (i, part) in parts.iter().enumerate() {
            whole(&Job { shard: Some((i as u64, slices)), ..job.clone() }, part);
        }
        let merged = dir.path().join("merged");
        merge(&merged, &parts, false, &merge_receipts).unwrap();
        prop_assert!(rows(&merged) == rows(&reference), "merged");
        prop_assert_eq!(samples(&merged), samples(&reference));
        let [a, b] = [&merged, &reference].map(|d| Store::open(d).unwrap().manifest().provenance.dataset.clone());
        prop_assert_eq!((a.samples, a.skipped), (b.samples, b.skipped));

        let again = recompute(&merged, 5, 1, None, None).unwrap();
        prop_assert!(again.exact && again.different == 0, "{:?}", again.differences);
    }
}

#[test]
fn a_seed_gives_one_order_and_samples_keep_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let documents = documents(40, 9);
    let data = dataset(dir.path(), &documents);
    let order = |seed: Option<u64>, name: &str| {
        let out = dir.path().join(name);
        whole(
            &Job {
                shuffle: seed,
                ..job(&data)
            },
            &out,
        );
        let samples = samples(&out);
        origins(&samples, &documents);
        samples.iter().map(|s| s.sample).collect::<Vec<_>>()
    };
    let plain = order(None, "plain");
    let shuffled = order(Some(7), "shuffled");
    assert_ne!(shuffled, plain);
    assert_eq!(order(Some(7), "again"), shuffled);
    assert_ne!(order(Some(8), "other"), shuffled);
    let same = |order: &[u64]| order.iter().copied().collect::<BTreeSet<_>>();
    assert_eq!(same(&shuffled), same(&plain));
    let sorted = |name| {
        let mut rows = rows(&dir.path().join(name));
        rows.sort();
        rows
    };
    assert!(
        sorted("shuffled") == sorted("plain"),
        "a row does not depend on the order"
    );
    let orders = |name: &str| {
        let store = Store::open(&dir.path().join(name)).unwrap();
        let shards: Vec<_> = store.tap_at(0).shards().map(Result::unwrap).collect();
        let seed = store.taps()[0].order_seed;
        (
            seed,
            shards
                .iter()
                .map(|s| s.order().unwrap())
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(orders("plain"), (None, vec![None; orders("plain").1.len()]));
    let (seed, mixed) = orders("shuffled");
    assert_eq!(seed, Some(7));
    let rises = |order: &[i32]| order.windows(2).filter(|w| w[1] == w[0] + 1).count();
    for order in mixed.iter().map(|order| order.as_ref().unwrap()) {
        assert!(
            rises(order) * 4 < order.len() + 8,
            "neighbours stay neighbours: {order:?}"
        );
    }
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
}

#[test]
fn contexts_are_full_but_for_the_last_and_the_plan_knows_them() {
    let dir = tempfile::tempdir().unwrap();
    let documents = documents(30, 20);
    let tokens: usize = documents.iter().flatten().map(|d| d.len() + 1).sum();
    let job = Job {
        pack_context: Some(16),
        ..job(&dataset(dir.path(), &documents))
    };
    let out = dir.path().join("store");
    whole(&job, &out);
    let contexts = samples(&out);
    let lengths: Vec<usize> = contexts.iter().map(|s| s.tokens.len()).collect();
    let (last, full) = lengths.split_last().unwrap();
    assert!(full.iter().all(|&n| n == 16));
    assert_eq!(full.len() * 16 + last, tokens);
    let numbers: Vec<u64> = contexts.iter().map(|s| s.sample).collect();
    assert_eq!(numbers, (0..contexts.len() as u64).collect::<Vec<_>>());
    let plan = estimate(&Prepared::open(job).unwrap(), &mut |_| ()).unwrap();
    assert_eq!(
        (plan.samples, plan.tokens),
        (contexts.len() as u64, tokens as u64)
    );
}

#[test]
fn without_special_tokens_nothing_stands_between_documents() {
    let dir = tempfile::tempdir().unwrap();
    let documents = documents(10, 9);
    let job = Job {
        pack_context: Some(8),
        special_tokens: false,
        ..job(&dataset(dir.path(), &documents))
    };
    let out = dir.path().join("store");
    whole(&job, &out);
    let joined: Vec<u32> = samples(&out).into_iter().flat_map(|s| s.tokens).collect();
    assert_eq!(
        joined,
        documents
            .into_iter()
            .flatten()
            .flatten()
            .collect::<Vec<_>>()
    );
}

#[test]
fn what_says_nothing_beside_packing_is_refused() {
    let packed = || Job {
        pack_context: Some(8),
        ..job("data.jsonl")
    };
    let cases = [
        (
            "--keep",
            Job {
                keep: vec!["n".into()],
                ..packed()
            },
        ),
        (
            "--max-length",
            Job {
                max_length: Some(4),
                ..packed()
            },
        ),
        (
            "--on-long",
            Job {
                on_long: OnLong::Truncate,
                ..packed()
            },
        ),
        (
            "--pack-context 100000",
            Job {
                pack_context: Some(100_000),
                ..packed()
            },
        ),
        (
            "--chunk-overlap",
            Job {
                max_length: Some(8),
                chunk_overlap: 8,
                ..job("data.jsonl")
            },
        ),
    ];
    for (said, job) in cases {
        let error = Prepared::open(job).err().unwrap().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn chunks_of_a_text_say_which_characters_they_hold() {
    let text = "Zürich — naïve 😀 words, again and again: ".repeat(40);
    let job = Job {
        max_length: Some(50),
        on_long: OnLong::Chunk,
        chunk_overlap: 10,
        ..Job::new(
            common::smollm2().display().to_string(),
            vec!["none.jsonl".into()],
            vec![TAP.to_owned()],
        )
    };
    let prepared = Prepared::open(job).unwrap();
    let record = Record {
        index: 3,
        file: "none.jsonl".into(),
        line: 4,
        input: Input::Text(text.clone()),
        spans: Vec::new(),
        kept: Vec::new(),
    };
    let chunks = prepared.tokenising.samples(record).unwrap();
    assert!(chunks.len() > 5);
    let tokenizer = prepared.tokenising.tokenizer.as_ref().unwrap();
    let characters: Vec<char> = text.chars().collect();
    let mut reached = 0;
    for (n, chunk) in chunks.iter().enumerate() {
        let [piece] = &chunk.row.pieces[..] else {
            panic!("one piece")
        };
        assert_eq!(
            (piece.document, chunk.row.chunk, piece.offset),
            (3, n as u32, 40 * n as u64)
        );
        let (start, end) = piece.chars.unwrap();
        assert!(start <= reached, "no character is left out");
        reached = end;
        let held: String = characters[start as usize..end as usize].iter().collect();
        // A character that a border cuts decodes to a replacement at that end; in the span it is whole.
        let decoded = tokenizer.decode(&chunk.row.tokens, false).unwrap();
        let inner = decoded.trim_matches('\u{FFFD}');
        assert!(
            held.contains(inner) && held.chars().count() <= inner.chars().count() + 2,
            "{held:?} {decoded:?}"
        );
    }
    assert_eq!(reached, characters.len() as u64);
}

//! Shards written past the page cache: whatever batches they come in, wherever the process dies, and whichever way the next one
//! writes, the files are those that a mapping would have been left with; and what the journal vouches for is on the disk.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::{Found, RingToDisk, find};
use crate::sys::disk::{Disk, DiskPath};
use crate::sys::ring::{BLOCK, SlabRing};

/// One shard of samples of these lengths, in taps whose rows don't fill blocks.
fn run_of(lengths: &[usize]) -> Run {
    let taps = vec![
        tap("narrow", StoreDtype::F32, &[3]),
        tap("odd", StoreDtype::BF16, &[577]),
        tap("blocks", StoreDtype::F32, &[1024]),
        top("top", 5),
        ragged("pattern", 2),
    ];
    let samples: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(i, &n)| sample(i as u64, vec![7; n]))
        .collect();
    let rows = samples
        .iter()
        .zip(lengths)
        .map(|(sample, &n)| vec![rows_of(sample, 0..n); taps.len()])
        .collect();
    Run {
        taps,
        keep: Vec::new(),
        shards: vec![vec![lengths.len()]],
        samples,
        rows,
    }
}

/// How a process writes.
#[derive(Debug, Clone, Copy)]
enum Way {
    Mapped,
    Direct(DiskPath),
}

impl Way {
    fn lead(self, writer: &mut StoreWriter) {
        if let Way::Direct(path) = self {
            let slabs = SlabRing::untouched(64 * BLOCK).unwrap();
            let disk = Disk::start(path, None).unwrap();
            writer.write_from(RingToDisk::new(slabs, disk));
        }
    }
}

fn ways() -> impl Strategy<Value = Way> {
    let best = DiskPath::probe(&std::env::temp_dir()).0;
    prop::sample::select(vec![
        Way::Mapped,
        Way::Direct(best),
        Way::Direct(DiskPath::Pwrite),
    ])
}

fn write_batch(shard: &mut ShardWriter, run: &Run, batch: Range<usize>) {
    let lent = shard.lend(batch.clone()).unwrap().expect("room");
    let mut back = Vec::new();
    for (t, mut slab) in lent.into_iter().enumerate() {
        let parts: Vec<_> = batch.clone().map(|s| bytes_of(run, t, s)).collect();
        let (rows, index): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        slab.activations.copy_from_slice(&rows.concat());
        if let Some(slab) = &mut slab.index {
            slab.copy_from_slice(&index.concat());
        }
        back.push((slab.activations, slab.index));
    }
    shard.take_back(back).unwrap();
}

/// Writes batches of these sizes, from where the shard stands, as far as there are samples.
fn write_batches(shard: &mut ShardWriter, run: &Run, sizes: impl Iterator<Item = usize>) {
    let mut done = shard.finished();
    for size in sizes {
        let end = (done + size).min(run.samples.len());
        if done == end {
            break;
        }
        write_batch(shard, run, done..end);
        done = end;
    }
}

/// Every tap file's bytes.
fn files(dir: &Path, run: &Run) -> Vec<Vec<u8>> {
    let file = |tap: &TapInfo| dir.join(&tap.folder).join("00000.safetensors");
    let read = run.taps.iter().map(|tap| fs::read(file(tap)));
    read.collect::<std::io::Result<_>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_shard_is_the_same_however_it_is_written_and_however_often_its_writer_dies(
        lengths in prop::collection::vec(1usize..40, 1..16),
        lives in prop::collection::vec(
            (ways(), prop::collection::vec(1usize..4, 0..6), any::<bool>(), any::<bool>()),
            0..3,
        ),
        last in ways(),
    ) {
        let run = run_of(&lengths);
        let whole = tempfile::tempdir().unwrap();
        write(whole.path(), &run).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let begin = |way: Way, every_batch: bool| {
            let mut writer = match find(dir.path()).unwrap() {
                Found::Unfinished(unfinished) => unfinished.go_on().unwrap(),
                _ => {
                    StoreWriter::create(dir.path(), provenance(), run.taps.clone(), &run.keep)
                        .unwrap()
                }
            };
            way.lead(&mut writer);
            if every_batch {
                writer.commit_every(Duration::ZERO);
            }
            let shard = writer.begin_shard(&run.samples, &run.rows).unwrap();
            (writer, shard)
        };
        let mut vouched = 0;
        for (way, sizes, every_batch, flush) in lives {
            let (_writer, mut shard) = begin(way, every_batch);
            prop_assert!(shard.finished() >= vouched, "{} of {vouched}", shard.finished());
            write_batches(&mut shard, &run, sizes.into_iter());
            if flush {
                shard.flush().unwrap();
                vouched = shard.finished();
                let layout = &shard.layout;
                for (t, tap) in run.taps.iter().enumerate() {
                    let path = dir.path().join(format!(".partial/00000.{}.safetensors", tap.folder));
                    let on_disk = fs::read(path).unwrap();
                    let rows = (0..vouched).flat_map(|s| bytes_of(&run, t, s).0);
                    let rows: Vec<u8> = rows.collect();
                    prop_assert!(on_disk[layout.taps[t].activations(0..vouched)] == rows, "{}", tap.folder);
                }
            }
        }
        let (writer, mut shard) = begin(last, false);
        prop_assert!(shard.finished() >= vouched);
        write_batches(&mut shard, &run, std::iter::repeat(3));
        shard.commit().unwrap();
        writer.finish(Summary::default()).unwrap();
        prop_assert!(files(dir.path(), &run) == files(whole.path(), &run));
        prop_assert!(check(dir.path()).ok());
    }
}

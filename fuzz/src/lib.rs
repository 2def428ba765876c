//! What the fuzz targets share: a half-written store that one file is replaced in, and all that a program may then do with it. The store has
//! two shards, one committed and one that a stopped run left after two of its three batches, each under a plain, a ragged and a top-K tap.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use streamgauge::store::{
    Found, Kept, Manifest, Provenance, Result, SampleRow, ShardWriter, State, Store, StoreWriter,
    Summary, TapInfo, TapRows, find, verify,
};

pub mod allocator;

/// What the rows of the files outside the store are made of. No row inside is of this alone.
const OUTSIDE: u8 = 0xA5;
const TAPS: [&str; 3] = [
    "blocks.0.hook_resid_post",
    "blocks.0.attn.hook_pattern",
    "logits",
];
/// Samples per batch, per shard.
const SHARDS: [&[usize]; 2] = [&[1, 1], &[1, 1, 1]];

/// A half-written store's files, and those of the store that it should become.
pub struct Template {
    /// Where inputs are tried. Its neighbour `outside` is no part of it.
    pub dir: PathBuf,
    /// By their paths in the store.
    files: Vec<(PathBuf, Vec<u8>)>,
    whole: Vec<(PathBuf, Vec<u8>)>,
    outside: Vec<u8>,
}

impl Template {
    /// Makes the stores, in memory where the system has a file system there.
    pub fn new() -> Self {
        abort_at_panics();
        let shm = Path::new("/dev/shm");
        let temp = if shm.is_dir() {
            shm.to_owned()
        } else {
            std::env::temp_dir()
        };
        let home = temp.join(format!("streamgauge-fuzz-{}", std::process::id()));
        let _ = fs::remove_dir_all(&home);
        let (dir, other) = (home.join("store"), home.join("other"));
        fs::create_dir_all(&home).expect("a folder for the stores");

        half_write(&dir).expect("a half-written store");
        let files = files_in(&dir);
        write_on(StoreWriter::create(&other, provenance(), taps(), &keep()).expect("a store"))
            .expect("a whole store");
        let whole = files_in(&other);
        fs::remove_dir_all(&other).expect("the whole store removed");

        let mut outside = whole
            .iter()
            .find(|(path, _)| path.starts_with(TAPS[0]))
            .map(|(_, bytes)| bytes.clone())
            .expect("a tap's file");
        // Its data, which begins on a page: what nobody reading the store may see.
        outside[4096..].fill(OUTSIDE);
        fs::create_dir(home.join("outside")).expect("a folder outside the store");
        fs::write(home.join("outside/00000.safetensors"), &outside).expect("a file outside");
        Self {
            dir,
            files,
            whole,
            outside,
        }
    }

    /// The template's file at this path in the store.
    pub fn file(&self, path: &str) -> &[u8] {
        let found = self.files.iter().find(|(p, _)| p == Path::new(path));
        &found
            .unwrap_or_else(|| panic!("the template has no {path}"))
            .1
    }

    /// The tap files of the committed shard, and of the one that is being written.
    pub fn tap_files(&self) -> Vec<String> {
        let committed = TAPS.map(|tap| format!("{tap}/00000.safetensors"));
        let unfinished = TAPS.map(|tap| format!(".partial/00001.{tap}.safetensors"));
        committed.into_iter().chain(unfinished).collect()
    }

    /// Lays the store out anew, with these files in place of its own, and beside a tap's file links that lead out.
    pub fn plant(&self, replaced: &[(&str, &[u8])]) {
        let _ = fs::remove_dir_all(&self.dir);
        for (path, bytes) in &self.files {
            let to = self.dir.join(path);
            fs::create_dir_all(to.parent().expect("a folder")).expect("the store's folders");
            let other = replaced.iter().find(|(name, _)| Path::new(name) == path);
            fs::write(to, other.map_or(&bytes[..], |(_, bytes)| bytes)).expect("the store's files");
        }
        let links = [
            (
                format!("{}/link", TAPS[0]),
                "../../outside/00000.safetensors",
            ),
            ("link".into(), "../outside"),
        ];
        for (link, to) in links {
            std::os::unix::fs::symlink(to, self.dir.join(link)).expect("a link");
        }
    }

    /// Does with the planted store whatever a program may do: reads it in its state, verifies it, goes on with it, reads it again.
    pub fn use_store(&self) -> Ended {
        let _ = self.read_all();
        let sound = verify(&self.dir, &|_| ()).is_ok_and(|report| report.ok());
        let went_on = self.go_on();
        let _ = self.read_all();
        let finished = matches!(Manifest::read(&self.dir), Ok(m) if m.state == State::Complete);
        let sound_in_the_end = verify(&self.dir, &|_| ()).is_ok_and(|report| report.ok());
        self.nothing_outside_changed();
        Ended {
            sound,
            finished: went_on && finished,
            sound_in_the_end,
        }
    }

    /// Takes the store up as the engine does, which goes on only if the job's taps and kept fields are those of the manifest. Whether it
    /// came to the end.
    fn go_on(&self) -> bool {
        let Ok(Found::Unfinished(unfinished)) = find(&self.dir) else {
            return false;
        };
        let manifest = unfinished.manifest();
        let names: Vec<_> = manifest.keep.iter().map(|k| k.name.clone()).collect();
        if manifest.taps != taps() || names != keep() {
            return false;
        }
        unfinished.go_on().and_then(write_on).is_ok()
    }

    /// Reads all that the store offers.
    fn read_all(&self) -> Result<()> {
        let store = Store::open_any(&self.dir)?;
        for tap in (0..store.taps().len()).map(|t| store.tap_at(t)) {
            for shard in tap.shards() {
                let shard = shard?;
                self.is_inside(shard.activations());
                let typed = (
                    shard.as_f32().is_ok(),
                    shard.as_f16().is_ok(),
                    shard.as_bf16().is_ok(),
                );
                let _ = (
                    typed,
                    shard.to_f32(),
                    shard.sample(),
                    shard.position(),
                    shard.token(),
                    shard.index(),
                );
                for view in shard.ragged() {
                    let _ = (view.to_f32(), view.shape().len(), view.name().len());
                }
            }
            for row in 0..tap.rows().min(16) {
                if let Ok(row) = tap.row(row) {
                    let _ = (
                        row.to_f32(),
                        row.sample(),
                        row.position(),
                        row.token(),
                        row.index(),
                    );
                }
            }
            let _ = (tap.for_sample(0).is_ok(), tap.ragged(3, 0).is_ok());
        }
        for sample in store.samples() {
            sample?;
        }
        (0..store.manifest().shards.len()).try_for_each(|s| store.shard_selections(s).map(|_| ()))
    }

    fn is_inside(&self, rows: &[u8]) {
        let outside = !rows.is_empty() && rows.iter().all(|&b| b == OUTSIDE);
        assert!(!outside, "rows of a file outside the store were read");
    }

    fn nothing_outside_changed(&self) {
        let home = self.dir.parent().expect("the folder above");
        let outside = home.join("outside");
        let count = |dir: &Path| fs::read_dir(dir).expect("a folder").count();
        assert_eq!(
            (count(home), count(&outside)),
            (2, 1),
            "something was written beside the store"
        );
        let bytes = fs::read(outside.join("00000.safetensors")).expect("the file outside");
        assert!(
            bytes == self.outside,
            "a file outside the store was changed"
        );
    }

    /// Checks that every tap file is the uninterrupted run's, byte for byte.
    pub fn assert_tap_files_are_whole(&self) {
        for (path, bytes) in self.whole.iter().filter(|(path, _)| is_tap_file(path)) {
            let mine = fs::read(self.dir.join(path)).expect("a tap's file");
            assert!(
                &mine == bytes,
                "{} is not the uninterrupted run's",
                path.display()
            );
        }
    }
}

impl Default for Template {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        let _ = self.dir.parent().map(fs::remove_dir_all);
    }
}

/// What became of a planted store.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// `verify` found nothing wrong with what was planted.
    pub sound: bool,
    /// The run went on to its end.
    pub finished: bool,
    pub sound_in_the_end: bool,
}

/// Writes seeds into the corpus: the first directory that libFuzzer was given.
pub fn plant_seeds(seeds: &[(&str, Vec<u8>)]) {
    let corpus = std::env::args()
        .skip(1)
        .map(PathBuf::from)
        .find(|path| path.is_dir());
    for (name, bytes) in corpus.iter().flat_map(|_| seeds) {
        let to = corpus
            .as_ref()
            .expect("a corpus")
            .join(format!("seed-{name}"));
        fs::write(to, bytes).expect("a seed");
    }
}

/// Every panic ends the process, on whatever thread; but for those of the Parquet decoder, which the store is known to catch.
fn abort_at_panics() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic
            .location()
            .is_some_and(|at| at.file().contains("/parquet-"))
        {
            return;
        }
        told(panic);
        std::process::abort();
    }));
}

fn is_tap_file(path: &Path) -> bool {
    TAPS.iter().any(|tap| path.starts_with(tap))
}

fn files_in(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("a path inside").to_owned();
                files.push((name, fs::read(path).expect("a file")));
            }
        }
    }
    files
}

fn taps() -> Vec<TapInfo> {
    let taps = json!([
        {"hook": TAPS[0], "folder": TAPS[0], "selection": "all", "dtype": "bf16", "row_shape": [3]},
        {"hook": TAPS[1], "folder": TAPS[1], "selection": "all", "dtype": "f32", "row_shape": [2], "ragged": true},
        {"hook": TAPS[2], "folder": TAPS[2], "selection": "all", "dtype": "f32", "row_shape": [2], "reduction": "top:2", "top_k": 2},
    ]);
    serde_json::from_value(taps).expect("taps as a manifest has them")
}

fn keep() -> Vec<String> {
    vec!["number".into(), "name".into()]
}

fn provenance() -> Provenance {
    Provenance {
        engine_version: "0".into(),
        ..Provenance::default()
    }
}

/// Samples of 1 to 4 tokens. The kept number is whole in the first shard and not in the second, so that the first table is widened.
fn samples() -> Vec<SampleRow> {
    let n = SHARDS.iter().map(|batches| batches.len()).sum::<usize>();
    let sample = |i: usize| SampleRow {
        sample: 3 * i as u64,
        chunk: 0,
        file: Arc::from("facts.jsonl"),
        line: i as u64 + 1,
        tokens: (0..1 + i as u32 % 4).map(|t| 5 + t).collect(),
        turns: vec![("user".into(), 0, 0)],
        pieces: Vec::new(),
        kept: vec![
            Some(if i < SHARDS[0].len() {
                Kept::Int(i as i64)
            } else {
                Kept::Float(i as f64 + 0.5)
            }),
            (i != 1).then(|| Kept::Text(format!("s{i}"))),
        ],
    };
    (0..n).map(sample).collect()
}

/// Every token is selected.
fn rows(samples: &[SampleRow]) -> Vec<Vec<TapRows>> {
    let of = |sample: &SampleRow| TapRows {
        positions: (0..sample.tokens.len() as i32).collect(),
        tokens: sample.tokens.iter().map(|&t| t as i32).collect(),
    };
    samples
        .iter()
        .map(|sample| vec![of(sample); TAPS.len()])
        .collect()
}

/// Samples of a shard, as places among all.
fn of_shard(shard: usize) -> Range<usize> {
    let count = |batches: &&[usize]| batches.iter().sum::<usize>();
    let start = SHARDS[..shard].iter().map(count).sum();
    start..start + count(&SHARDS[shard])
}

fn begin(writer: &mut StoreWriter) -> Result<ShardWriter> {
    let mine = &samples()[of_shard(writer.shards())];
    writer.begin_shard(mine, &rows(mine))
}

/// Computes rows of some of the shard's samples: numbers that tell tap, shard and place.
fn compute(shard: &mut ShardWriter, batch: Range<usize>) -> Result<()> {
    let salt = shard.index() * 64 + batch.start * 8;
    for (t, slab) in shard.batch_slabs(batch.clone()).into_iter().enumerate() {
        let mut number = salt + t;
        for byte in slab
            .activations
            .iter_mut()
            .chain(slab.index.into_iter().flatten())
        {
            *byte = (number % 100) as u8;
            number += 1;
        }
    }
    shard.finish_batch(batch)
}

fn write_on(mut writer: StoreWriter) -> Result<()> {
    while writer.shards() < SHARDS.len() {
        let mut shard = begin(&mut writer)?;
        while shard.finished() < shard.n_samples() {
            let next = shard.finished();
            compute(&mut shard, next..next + 1)?;
        }
        shard.commit()?;
    }
    writer.finish(Summary::default())
}

fn half_write(dir: &Path) -> Result<()> {
    let mut writer = StoreWriter::create(dir, provenance(), taps(), &keep())?;
    let mut first = begin(&mut writer)?;
    for batch in 0..SHARDS[0].len() {
        compute(&mut first, batch..batch + 1)?;
    }
    first.commit()?;
    let mut second = begin(&mut writer)?;
    for batch in 0..2 {
        compute(&mut second, batch..batch + 1)?;
    }
    second.flush()
}

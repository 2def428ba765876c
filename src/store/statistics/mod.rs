//! Statistics of a run instead of its rows: a folder with a safetensors file per tap and `statistics.json`, which is written last and
//! says from what and how they were made. Each tap has one or more *sets*: all its rows, the rows of a class of samples, the
//! differences of pairs; each set has its count and sums in f64. What a run that goes on needs lies in `.partial/`.
//! The format is written down in `docs/statistics.md`.

mod checkpoint;
mod file;
mod folder;
mod manifest;
mod merge;
mod moments;
mod reader;

pub use checkpoint::{Checkpoint, CheckpointWriter, PairRows, UnderWay};
pub use file::Entry;
pub use folder::{FoundStatistics, StatisticsWriter, find_statistics};
pub use manifest::{Counted, Kinds, STATISTICS, SetInfo, StatisticsManifest, TapStatistics};
pub use merge::merge_statistics;
pub use moments::{Moments, Set, TapSets};
pub use reader::Statistics;

//! The store: a directory of safetensors files, one per tap and shard, a Parquet table of the samples, and the manifest that lists
//! them. [`StoreWriter`] begins a store and its shards; a [`ShardWriter`] lends the mapped memory that rows are computed into, and
//! commits it; [`find`] takes up a store that a stopped run left; [`merge`] joins slices; [`Store`] reads; [`verify`] rechecks. Knows nothing of models: what a run was made from comes as [`Provenance`].
//! The format is written down in `docs/store-format.md`.

mod error;
mod format;
mod journal;
mod layout;
mod lend;
mod manifest;
mod merge;
mod reader;
mod recovery;
mod samples;
mod samples_read;
mod shard;
pub mod statistics;
#[cfg(test)]
mod tests;
mod verify;
mod view;
mod widen;
mod writer;

pub use error::{Error, Result};
pub use format::{ALIGN, StoreDtype};
pub(crate) use layout::side_row_bytes;
pub use layout::{ShardFill, ShardLayout, ShardLimits, TapRows, sample_bytes};
pub use lend::{LentSlab, RingToDisk};
pub use manifest::{
    Checksum, DatasetInfo, FORMAT_VERSION, KeptColumn, Manifest, ModelInfo, Provenance,
    SamplesFile, ShardEntry, Slice, State, TapFile, TapInfo, Xxh3,
};
pub use merge::{JoinReceipts, Merged, merge};
pub(crate) use reader::to_f32;
pub use reader::{RowView, Store, TapReader};
pub use recovery::{Found, Unfinished, find};
pub use samples::{Kept, KeptType, Piece, RowRange, SampleRow, Selections};
pub use shard::{ShardWriter, TapSlab};
pub use verify::{Report, verify};
pub use view::{RaggedView, ShardView};
pub use writer::{DatasetRecord, StoreWriter, Summary};

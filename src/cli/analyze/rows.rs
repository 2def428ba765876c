//! Rows of a store's taps, a piece at a time, and which token of which sample each is.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::super::progress::StepMeter;
use super::super::{Failure, store_taps};
use crate::store::{ShardView, Store, TapInfo, TapReader};

/// Bytes of a piece in f32, about.
const PIECE: usize = 16 << 20;

/// Which token a row is: number of the sample in the dataset, position in it, token id; the latter two −1 for a row made of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct RowKey {
    pub sample: i64,
    pub position: i32,
    pub token: i32,
}

/// Components of a row.
pub fn width(info: &TapInfo) -> usize {
    info.row_shape.iter().product()
}

/// Who every row of a tap is, in order.
///
/// # Errors
/// A file is damaged.
pub fn keys(tap: &TapReader<'_>) -> Result<Vec<RowKey>, Failure> {
    let mut keys = Vec::with_capacity(tap.rows());
    for shard in tap.shards() {
        keys.extend(keys_of(&*shard?));
    }
    Ok(keys)
}

fn keys_of(shard: &ShardView) -> impl Iterator<Item = RowKey> {
    let rows = shard
        .sample()
        .into_iter()
        .zip(shard.position())
        .zip(shard.token());
    rows.map(|((sample, position), token)| RowKey {
        sample,
        position,
        token,
    })
}

/// Tells how many rows of these taps are read.
pub fn meter(store: &Store, taps: impl IntoIterator<Item = usize>, quiet: bool) -> StepMeter {
    let rows = taps.into_iter().map(|tap| store.tap_at(tap).rows() as u64);
    StepMeter::new(rows.sum(), "row", quiet)
}

/// Calls `each` with consecutive rows in f32 and their places, and `meter` with how many they are.
///
/// # Errors
/// A file is damaged, a row is not finite, or `each` fails.
pub fn pieces(
    tap: &TapReader<'_>,
    meter: &StepMeter,
    mut each: impl FnMut(Range<usize>, &[f32]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let at_a_time = (PIECE / 4 / width(tap.info()).max(1)).max(1);
    for shard in tap.shards() {
        let shard: Arc<ShardView> = shard?;
        for start in (0..shard.rows()).step_by(at_a_time) {
            let rows = start..(start + at_a_time).min(shard.rows());
            let first = shard.first_row();
            let places = first + rows.start..first + rows.end;
            let values = shard.rows_f32(rows);
            check_finite(tap.info(), places.start, &values)?;
            let n = places.len() as u64;
            each(places, &values)?;
            meter.step(n);
        }
    }
    Ok(())
}

/// Refuses rows, the first of them at place `first`, of which one holds NaN or an infinity: it would spread to every number made of
/// them, or be passed over in silence.
///
/// # Errors
/// As said.
pub fn check_finite(info: &TapInfo, first: usize, rows: &[f32]) -> Result<(), Failure> {
    match rows.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(bad) => Err(Failure::Refused(format!(
            "{}: row {} is not finite; extract again in f32",
            info.folder,
            first + bad / width(info)
        ))),
    }
}

/// The taps asked for (all, where none is), those with rows of one length and meaning.
///
/// # Errors
/// A name that no tap has, or a tap whose rows cannot be compared.
pub fn taps(store: &Store, wanted: &[String], what: &str) -> Result<Vec<usize>, Failure> {
    let taps = if wanted.is_empty() {
        (0..store.taps().len()).collect()
    } else {
        store_taps::named(store, wanted)?
    };
    for &tap in &taps {
        let info = &store.taps()[tap];
        let why = if info.ragged {
            "its rows differ in length"
        } else if info.top_k.is_some() {
            "each of its rows holds other components"
        } else {
            continue;
        };
        return Err(Failure::Refused(format!(
            "{} cannot be {what}, because {why}: name other taps with --tap",
            info.folder
        )));
    }
    Ok(taps)
}

/// The direction for a tap of a store: FILE#KEY, or FILE with a tensor `direction.LAYER` or a single one.
///
/// # Errors
/// It cannot be read, does not fit the tap's rows, is several, or comes from another model.
pub fn direction(named: &str, store: &Store, info: &TapInfo) -> Result<Vec<f32>, Failure> {
    let (file, key) = match named.rsplit_once('#') {
        Some((file, key)) => (file, Some(key)),
        None => (named, None),
    };
    let width = width(info);
    let layer = store_taps::layer(&info.hook);
    let model = &store.manifest().provenance.model.fingerprint;
    let direction = crate::engine::direction_of_layer(Path::new(file), key, layer, width, model)?;
    if direction.len() != width {
        return Err(Failure::Refused(format!(
            "--direction {named}: {} directions, where one is wanted; name one as FILE#KEY",
            direction.len() / width
        )));
    }
    Ok(direction)
}

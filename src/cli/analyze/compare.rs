//! `streamgauge analyze compare`

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::super::progress::StepMeter;
use super::super::{CliResult, Failure, out};
use super::labelled::make_out;
use super::pictures;
use super::rows::{self, RowKey, width};
use crate::analysis::{Compared, Comparing};
use crate::report::table;
use crate::store::{Store, TapReader};

/// Compare two stores, tap by tap: rows of the same sample, position and token.
///
/// Given are how many rows have a partner, how many are equal bit for bit, the cosine (mean and least), the relative distance ‖A − B‖ / ‖A‖ (over all rows, and the
/// largest of one), and linear CKA, which also compares rows of different widths. Cosine and CKA don't see scale; the distance over all rows sees little but
/// the massive components of first tokens, where they are selected. Written to --out: compare.csv, .svg and .png.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The store that distances are relative to.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The store that is compared with it.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Where the table goes; a file of the same name is replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only these taps of A: a folder, a hook point, or a pattern. B has to have taps of the same folders.
    #[arg(long, value_name = "P", num_args = 1..)]
    tap: Vec<String>,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, serde::Serialize)]
struct Row {
    tap: String,
    /// Rows without a partner.
    only_a: usize,
    only_b: usize,
    rows: usize,
    equal_rows: Option<usize>,
    cosine_mean: Option<f64>,
    cosine_min: Option<f64>,
    relative_l2: Option<f64>,
    relative_l2_max: Option<f64>,
    cka: Option<f64>,
}

pub fn run(args: &CompareArgs) -> CliResult {
    let (a, b) = (Store::open(&args.a)?, Store::open(&args.b)?);
    let taps = rows::taps(&a, &args.tap, "compared")?;
    let mut table = Vec::new();
    let meter = rows::meter(&a, taps.iter().copied(), args.quiet);
    for &tap in &taps {
        let folder = &a.taps()[tap].folder;
        let Some(partner) = b.taps().iter().position(|t| t.folder == *folder) else {
            let has: Vec<_> = b.taps().iter().map(|t| t.folder.as_str()).collect();
            return Err(Failure::Refused(format!(
                "{} has no tap {folder}; name with --tap what both have (it has {})",
                args.b.display(),
                has.join(", ")
            )));
        };
        rows::taps(&b, std::slice::from_ref(folder), "compared")?;
        table.push(compare(folder, &a.tap_at(tap), &b.tap_at(partner), &meter)?);
    }
    meter.done();
    make_out(&args.out)?;
    let path = args.out.join("compare.csv");
    table::write_csv(&path, &table)?;
    let errors = table.iter().filter_map(|row| {
        let (mean, largest) = (row.relative_l2?, row.relative_l2_max?);
        Some((&row.tap[..], mean, [mean, largest]))
    });
    let errors: Vec<_> = errors.collect();
    if !errors.is_empty() {
        let body = pictures::by_tap(pictures::axis("relative L2 error", ""), &errors);
        let caption = "How far B's rows are from A's: ‖A−B‖/‖A‖ over each tap, and up to the row that is furthest";
        pictures::save(&args.out, "compare", caption, body)?;
    }
    if args.json {
        out(format_args!("{}\n", json!({ "out": path, "taps": table })));
        return Ok(());
    }
    out("    rows   equal  cosine (least)       ‖A−B‖/‖A‖ (largest)     CKA  tap\n");
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or("–".into(), |value| format!("{value:.digits$}"))
    };
    let small = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2e}"));
    for row in &table {
        out(format_args!(
            "{:>8} {:>7}  {} ({})  {} ({})  {}  {}\n",
            row.rows,
            row.equal_rows.map_or("–".into(), |n| n.to_string()),
            shown(row.cosine_mean, 6),
            shown(row.cosine_min, 6),
            small(row.relative_l2),
            small(row.relative_l2_max),
            shown(row.cka, 4),
            row.tap
        ));
        if row.only_a + row.only_b > 0 {
            out(format_args!(
                "         {} rows only in A, {} only in B\n",
                row.only_a, row.only_b
            ));
        }
    }
    out(format_args!("{}\n", path.display()));
    Ok(())
}

fn compare(
    folder: &str,
    a: &TapReader<'_>,
    b: &TapReader<'_>,
    meter: &StepMeter,
) -> Result<Row, Failure> {
    let (keys_a, keys_b) = (rows::keys(a)?, rows::keys(b)?);
    let partners = Partners::new(&keys_a, &keys_b);
    let (wide_a, mut comparing) = (
        width(a.info()),
        Comparing::new(width(a.info()), width(b.info())),
    );
    rows::pieces(a, meter, |at, rows| {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        for (row, values) in at.zip(rows.chunks_exact(wide_a)) {
            if let Some(partner) = partners.of(row) {
                x.extend_from_slice(values);
                let other = b.row(partner)?.to_f32();
                rows::check_finite(b.info(), partner, &other)?;
                y.extend(other);
            }
        }
        comparing.add(&x, &y);
        Ok(())
    })?;
    let Compared {
        rows,
        equal_rows,
        cosine_mean,
        cosine_min,
        relative_l2,
        relative_l2_max,
        cka,
    } = comparing.finish();
    if rows == 0 {
        return Err(Failure::Refused(format!(
            "{folder}: no row of one store has the sample, position and token of one of the other; were they extracted from the same data, with the same tokenizer?"
        )));
    }
    Ok(Row {
        tap: folder.to_owned(),
        only_a: keys_a.len() - rows,
        only_b: keys_b.len() - rows,
        rows,
        equal_rows,
        cosine_mean,
        cosine_min,
        relative_l2,
        relative_l2_max,
        cka,
    })
}

/// Which row of B each row of A goes with. Rows of one key, of chunks that overlap, say, go together in their order.
struct Partners {
    of: Option<Vec<Option<usize>>>,
}

impl Partners {
    fn new(a: &[RowKey], b: &[RowKey]) -> Self {
        if a == b {
            return Partners { of: None };
        }
        let mut places: HashMap<RowKey, std::collections::VecDeque<usize>> = HashMap::new();
        for (place, key) in b.iter().enumerate() {
            places.entry(*key).or_default().push_back(place);
        }
        let of = a
            .iter()
            .map(|key| places.get_mut(key).and_then(|left| left.pop_front()));
        Partners {
            of: Some(of.collect()),
        }
    }

    fn of(&self, row: usize) -> Option<usize> {
        self.of.as_ref().map_or(Some(row), |of| of[row])
    }
}

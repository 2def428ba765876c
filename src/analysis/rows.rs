//! The rows that a method reads: in memory, or where they were stored. Files that are mapped are read row by row, several times over, so
//! that a layer larger than memory can be analysed.

use std::borrow::Cow;
use std::fmt::Debug;

use rayon::prelude::*;

use super::{Error, Result};

/// Rows that lie elsewhere. Reading one is cheap, and all cores read.
pub trait RowSource: Sync + Debug {
    /// Rows.
    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them, `[width]`: borrowed where it is stored in f32.
    ///
    /// # Panics
    /// There is no such row.
    fn row(&self, row: usize) -> Cow<'_, [f32]>;
}

/// Rows, row-major.
#[derive(Clone, Debug)]
pub enum Rows<'a> {
    Held(Cow<'a, [f32]>),
    Elsewhere(&'a dyn RowSource),
}

impl From<Vec<f32>> for Rows<'_> {
    fn from(rows: Vec<f32>) -> Self {
        Rows::Held(rows.into())
    }
}

impl<'a> From<&'a [f32]> for Rows<'a> {
    fn from(rows: &'a [f32]) -> Self {
        Rows::Held(rows.into())
    }
}

/// One hook point's rows, one per statement, in the order of the labels.
#[derive(Clone, Debug)]
pub struct LayerRows<'a> {
    /// Canonical name, e.g. `blocks.15.hook_resid_post`.
    pub hook: String,
    pub layer: usize,
    /// Features per row.
    pub width: usize,
    /// `[statements, width]`.
    pub rows: Rows<'a>,
}

impl LayerRows<'_> {
    /// An error unless there is one finite row per statement.
    pub(super) fn check(&self, n_statements: usize) -> Result<()> {
        let found = match &self.rows {
            Rows::Held(rows) if self.width == 0 || !rows.len().is_multiple_of(self.width) => {
                let (hook, values) = (self.hook.clone(), rows.len());
                return Err(Error::RaggedRows {
                    hook,
                    values,
                    width: self.width,
                });
            }
            Rows::Held(rows) => rows.len() / self.width,
            Rows::Elsewhere(rows) => rows.len(),
        };
        if found != n_statements {
            let what = format!("rows of {}", self.hook);
            return Err(Error::Mismatch {
                what,
                found,
                expected: n_statements,
            });
        }
        let is_bad = |&row: &usize| self.row(row).iter().any(|value| !value.is_finite());
        match (0..found).into_par_iter().find_first(is_bad) {
            Some(row) => Err(Error::NotFinite {
                hook: self.hook.clone(),
                row,
            }),
            None => Ok(()),
        }
    }

    /// A statement's row, `[width]`.
    ///
    /// # Panics
    /// There is no such row.
    pub fn row(&self, statement: usize) -> Cow<'_, [f32]> {
        match &self.rows {
            Rows::Held(rows) => Cow::Borrowed(&rows[statement * self.width..][..self.width]),
            Rows::Elsewhere(rows) => rows.row(statement),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Rows that are handed out one at a time, and counted as they are.
    #[derive(Debug)]
    pub struct Counted {
        pub rows: Vec<f32>,
        pub width: usize,
        pub read: AtomicUsize,
    }

    impl Counted {
        /// The rows of a layer, elsewhere.
        pub fn of(layer: &LayerRows<'_>, n: usize) -> Self {
            Counted {
                rows: (0..n).flat_map(|i| layer.row(i).into_owned()).collect(),
                width: layer.width,
                read: AtomicUsize::new(0),
            }
        }

        pub fn layer(&self, like: &LayerRows<'_>) -> LayerRows<'_> {
            LayerRows {
                hook: like.hook.clone(),
                layer: like.layer,
                width: self.width,
                rows: Rows::Elsewhere(self),
            }
        }
    }

    impl RowSource for Counted {
        fn len(&self) -> usize {
            self.rows.len() / self.width
        }

        fn row(&self, row: usize) -> Cow<'_, [f32]> {
            self.read.fetch_add(1, Ordering::Relaxed);
            Cow::Owned(self.rows[row * self.width..][..self.width].to_vec())
        }
    }

    #[test]
    fn rows_elsewhere_are_checked_as_those_held_are() {
        let held = |rows: Vec<f32>| LayerRows {
            hook: "h".into(),
            layer: 0,
            width: 2,
            rows: rows.into(),
        };
        let good = held(vec![1.0, 2.0, 3.0, 4.0]);
        let bad = held(vec![1.0, 2.0, f32::NAN, 4.0]);
        for (layer, n, is_good) in [(&good, 2, true), (&good, 3, false), (&bad, 2, false)] {
            let elsewhere = Counted::of(layer, 2);
            let message = |layer: &LayerRows<'_>| layer.check(n).map_err(|e| e.to_string());
            let found = message(&elsewhere.layer(layer));
            assert_eq!(found, message(layer));
            assert_eq!(found.is_ok(), is_good);
        }
    }
}

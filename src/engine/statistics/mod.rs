//! Statistics of a job's rows instead of the rows: each tap's sums, made while the rows pass by in memory (`sums`), of pairs too
//! (`pairs`), kept from time to time (`keep`), and their folder (`run`). A sum does not depend on how samples are packed into batches: rows are taken in the dataset's
//! order, in chunks of a fixed size.

mod keep;
mod pairs;
mod run;
mod sums;

pub use run::{StatisticsEnding, StatisticsPlan, plan_statistics, statistics};

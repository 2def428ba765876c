//! `--shard`: which slice of a dataset a process takes, as written or by its rank among the processes that a launcher started.

use super::Usage;

/// Variables of a launcher: this process's rank, and how many there are.
const LAUNCHERS: [(&str, Option<&str>); 3] = [
    ("SLURM_PROCID", Some("SLURM_NTASKS")),
    ("RANK", Some("WORLD_SIZE")),
    // Kubernetes tells no pod how many there are.
    ("JOB_COMPLETION_INDEX", None),
];

/// The slice that a `--shard` names: its number, from 0, and how many there are.
pub(super) fn slice(shard: Option<&str>) -> Result<Option<(u64, u64)>, Usage> {
    let variable = |name: &str| std::env::var(name).ok();
    shard.map(|text| parse(text, &variable)).transpose()
}

fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<(u64, u64), Usage> {
    let number = |what: &str, text: &str| {
        text.trim()
            .parse::<u64>()
            .map_err(|_| Usage(format!("--shard: {what} is {text:?}, not a whole number")))
    };
    let (i, n) = match text.split_once('/') {
        None if text == "auto" => ranked(None, variable, &number)?,
        Some(("auto", n)) => ranked(Some(number("n", n)?), variable, &number)?,
        Some((i, n)) => (number("i", i)?, number("n", n)?),
        None => {
            return Err(Usage(format!(
                "--shard {text}: write i/n, as in 0/8, or auto"
            )));
        }
    };
    if i >= n {
        return Err(Usage(format!(
            "--shard {i}/{n}: slices are counted from 0, so i is below n"
        )));
    }
    Ok((i, n))
}

/// By the first launcher that told this process its rank.
fn ranked(
    n: Option<u64>,
    variable: &dyn Fn(&str) -> Option<String>,
    number: &dyn Fn(&str, &str) -> Result<u64, Usage>,
) -> Result<(u64, u64), Usage> {
    // Every element of an array has rank 0 of 1 there: each would take the same slice.
    if variable("SLURM_ARRAY_TASK_ID").is_some() {
        return Err(Usage(
            "--shard auto in a Slurm job array: write --shard $SLURM_ARRAY_TASK_ID/n, as scripts/slurm/extract.sbatch does"
                .into(),
        ));
    }
    for (rank, size) in LAUNCHERS {
        let Some(i) = variable(rank) else {
            continue;
        };
        let told = size.and_then(|size| Some((size, variable(size)?)));
        let n = match (n, told) {
            (Some(n), _) => n,
            (None, Some((size, told))) => number(size, &told)?,
            (None, None) => {
                return Err(Usage(format!(
                    "--shard auto: {rank} says which slice, and nothing how many there are: write --shard auto/n"
                )));
            }
        };
        return Ok((number(rank, &i)?, n));
    }
    let names: Vec<_> = LAUNCHERS.iter().map(|(rank, _)| *rank).collect();
    Err(Usage(format!(
        "--shard auto: none of {} is set; write --shard i/n",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(
        text: &str,
        environment: &'static [(&'static str, &'static str)],
    ) -> Result<(u64, u64), String> {
        let variable = |name: &str| {
            let found = environment.iter().find(|(n, _)| *n == name)?;
            Some(found.1.to_owned())
        };
        parse(text, &variable).map_err(|Usage(message)| message)
    }

    #[test]
    fn a_slice_is_taken_as_written_or_by_rank() {
        assert_eq!(with("3/8", &[]), Ok((3, 8)));
        let slurm = &[
            ("SLURM_PROCID", "2"),
            ("SLURM_NTASKS", "4"),
            ("RANK", "9"),
            ("WORLD_SIZE", "10"),
        ];
        assert_eq!(with("auto", slurm), Ok((2, 4)));
        assert_eq!(with("auto/16", slurm), Ok((2, 16)));
        let torchrun = &[("RANK", "0"), ("WORLD_SIZE", "2")];
        assert_eq!(with("auto", torchrun), Ok((0, 2)));
        let kubernetes = &[("JOB_COMPLETION_INDEX", "5")];
        assert_eq!(with("auto/8", kubernetes), Ok((5, 8)));
    }

    #[test]
    fn what_names_no_slice_is_refused_with_the_remedy() {
        let said = |text, environment| with(text, environment).unwrap_err();
        assert!(said("auto", &[("JOB_COMPLETION_INDEX", "5")]).contains("auto/n"));
        assert!(said("auto", &[]).contains("SLURM_PROCID"));
        let element = &[
            ("SLURM_ARRAY_TASK_ID", "3"),
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
        ];
        assert!(said("auto", element).contains("extract.sbatch"));
        assert!(said("auto/8", element).contains("SLURM_ARRAY_TASK_ID"));
        assert!(said("8/8", &[]).contains("counted from 0"));
        assert!(said("0/0", &[]).contains("below n"));
        assert!(said("3", &[]).contains("0/8"));
        assert!(said("a/3", &[]).contains("whole number"));
        assert!(said("auto", &[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("RANK"));
    }
}

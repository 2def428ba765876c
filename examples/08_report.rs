//! The page of a study, made again from its findings alone: `cargo run --example 08_report -- STUDY OUT` reads STUDY/findings/*.json and writes
//! OUT/report.html, with every exhibit as CSV, SVG and PNG in OUT/exhibits. So an experiment of one's own joins a study: write its
//! finding there, in the form of `streamgauge::report::finding::Finding`.

use std::error::Error;
use std::path::PathBuf;

use streamgauge::report::finding::Finding;
use streamgauge::report::page::{self, Heading};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(study), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: 08_report STUDY OUT".into());
    };
    let mut findings: Vec<Finding> = Vec::new();
    for entry in std::fs::read_dir(study.join("findings"))? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            let text = std::fs::read_to_string(&path)?;
            findings.push(
                serde_json::from_str(&text)
                    .map_err(|error| format!("{}: {error}", path.display()))?,
            );
        }
    }
    // E2 before E10: by the letters, then by the number.
    findings.sort_by_key(|finding| {
        let letters = finding.id.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: usize = finding.id[letters.len()..].parse().unwrap_or(0);
        (letters != "E", letters.to_owned(), number)
    });
    std::fs::create_dir_all(&out)?;
    let heading = Heading {
        title: format!("Findings of {}", study.display()),
        lead: vec![format!("{} experiments.", findings.len())],
        facts: vec![(
            "Made from".into(),
            study.join("findings").display().to_string(),
        )],
    };
    page::write(&out, &heading, &findings)?;
    println!("{}", out.join(page::PAGE).display());
    Ok(())
}

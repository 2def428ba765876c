//! Patching sweeps over the study's prompts: the edited run is the clean one, the plain run the corrupt one. Each is kept in a folder of
//! the study, and one that was stopped goes on from its journal.

use std::path::Path;

use super::patched::Patched;
use super::{Asked, Result, Study, folder};
use crate::engine::sweep::{
    Metric, PromptPair, Sweep, SweepProgress, SweepSpec, Swept, Way, write,
};
use crate::hooks::Site;

/// What is patched, as a sweep takes it.
#[derive(Debug, Clone)]
pub(super) struct Patches {
    /// One place at a time.
    pub sites: Vec<String>,
    /// Every two of these together.
    pub pairs: Vec<String>,
    /// All the places of each together.
    pub sets: Vec<Vec<String>>,
    pub ways: Vec<Way>,
}

impl Default for Patches {
    fn default() -> Self {
        Patches {
            sites: Vec::new(),
            pairs: Vec::new(),
            sets: Vec::new(),
            ways: vec![Way::Denoising],
        }
    }
}

/// Sweeps over these prompts; tables and manifest come into the study's folder `name`.
///
/// # Errors
/// What a backend can fail at, a folder that cannot be written.
pub(super) fn sweep(
    study: &Study<'_>,
    name: &str,
    prompts: &[Asked<'_>],
    patches: Patches,
) -> Result<Patched> {
    let mut patched = run(study, prompts, patches, Some(&study.path(name)))?;
    patched.manifest = Some(format!("{name}/manifest.json"));
    Ok(patched)
}

/// As [`sweep`], for one step of a search: nothing is kept.
///
/// # Errors
/// What a backend can fail at.
pub(super) fn try_out(
    study: &Study<'_>,
    prompts: &[Asked<'_>],
    patches: Patches,
) -> Result<Patched> {
    run(study, prompts, patches, None)
}

fn run(
    study: &Study<'_>,
    prompts: &[Asked<'_>],
    patches: Patches,
    dir: Option<&Path>,
) -> Result<Patched> {
    let edited = study.edited()?;
    let spec = SweepSpec {
        pairs: patches.pairs,
        sets: patches.sets,
        ways: patches.ways,
        metrics: metrics(study)?,
        memory: study.options().memory,
        ..SweepSpec::new(patches.sites)
    };
    let pair = |asked: &Asked<'_>| PromptPair {
        place: asked.prompt.id.clone(),
        clean: asked.sample.clone(),
        corrupt: asked.sample.clone(),
        answer: None,
        wrong: None,
        named: Default::default(),
    };
    let sweep = Sweep::new(&edited, spec, prompts.iter().map(pair).collect())?;
    let swept = match dir {
        Some(dir) => kept(study, &sweep, dir)?,
        None => sweep.run(&mut **study.machine(), &mut |at| (study.watch)(at))?,
    };
    let asked = prompts.iter().map(|a| (a.prompt.id.clone(), a.prompt.half));
    Ok(Patched::new(&swept, asked.collect(), study.words()))
}

/// Goes on with the sweep that was stopped in this folder, if it is the same; else the folder is begun anew.
fn kept(study: &Study<'_>, sweep: &Sweep<'_>, dir: &Path) -> Result<Swept> {
    let watch = &mut |at: &SweepProgress| (study.watch)(at);
    let mut machine = study.machine();
    let record = sweep.record(&**machine);
    let is_stopped = dir.join("journal.jsonl").is_file() && !dir.join("manifest.json").exists();
    let resumed = is_stopped.then(|| sweep.run_in(&mut **machine, dir, true, &|| false, watch));
    let swept = match resumed {
        Some(Ok(swept)) => swept,
        // Another study's journal, or a damaged one.
        Some(Err(_)) | None => {
            folder::remove(dir)?;
            sweep.run_in(&mut **machine, dir, false, &|| false, watch)?
        }
    };
    write(dir, &swept, &record, &study.options().command)?;
    Ok(swept)
}

/// Recovery by KL, P(no) − P(yes), and the projection on the injected direction after the last block: all of the same runs.
fn metrics(study: &Study<'_>) -> Result<Vec<Metric>> {
    let answers = study.answers();
    let directions = study.directions()?;
    Ok(vec![
        Metric::KlRecovery,
        Metric::ProbDiff {
            of: Some([answers.no.clone(), answers.yes.clone()]),
        },
        Metric::Direction {
            file: folder::absolute(&directions.file),
            key: format!("direction.{}", study.choice()?.layer),
            at: super::point(Site::ResidPost, study.n_layers() - 1).to_string(),
        },
    ])
}

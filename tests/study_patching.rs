//! The patching experiments of the study, E5 to E10, end to end on a tiny model that can chat: what must come out exactly, whatever the
//! model is.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use common::tiny_chat::tiny_chat_model;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use streamgauge::engine::Prepared;
use streamgauge::report::finding::{Body, Finding};
use streamgauge::study::{Inputs, Options, Study, run};

const LAYERS: usize = 5;
/// round(15/31 · (5 − 1))
const EDITED: usize = 2;

/// The tiny chat model with its layers repeated, 5 in all: a pair of blocks needs two above the edit.
fn model(dir: &Path) -> PathBuf {
    let model = tiny_chat_model(dir);
    let weights = model.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let fixture = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, TensorView<'_>)> = Vec::new();
    for (name, tensor) in fixture.tensors() {
        for again in [0, 3] {
            let layer = (0..3).find(|l| name.starts_with(&format!("model.layers.{l}.")));
            match layer.map(|l| (l, l + again)) {
                Some((from, to)) if to < LAYERS => {
                    let (from, to) = (format!("layers.{from}."), format!("layers.{to}."));
                    tensors.push((name.replace(&from, &to), tensor.clone()));
                }
                None if again == 0 => tensors.push((name.clone(), tensor.clone())),
                _ => {}
            }
        }
    }
    std::fs::remove_file(&weights).unwrap(); // a link to the fixture
    safetensors::serialize_to_file(tensors, None, &weights).unwrap();
    change(&model.join("config.json"), |json| {
        json["num_hidden_layers"] = LAYERS.into();
    });
    // Special tokens keep their ids only where the vocabulary has them.
    change(&model.join("tokenizer.json"), |json| {
        for (id, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
            json["model"]["vocab"][token] = id.into();
        }
    });
    model
}

fn change(file: &Path, with: impl Fn(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    with(&mut json);
    std::fs::write(file, json.to_string()).unwrap();
}

fn study(model: &Path, out: &Path, experiments: &[&str]) -> Vec<Finding> {
    let prepared = Prepared::for_generation(Inputs::job(&model.display().to_string())).unwrap();
    let options = Options {
        quick: true,
        experiments: experiments.iter().map(|id| id.to_string()).collect(),
        ..Options::new(out)
    };
    let inputs = Inputs::read(&prepared, options).unwrap();
    let study = Study::new(&prepared, inputs, Box::new(prepared.cpu()));
    run(&study, &mut |_| ()).unwrap()
}

/// The findings of all six, made once for all tests, and where.
fn findings() -> &'static (tempfile::TempDir, Vec<Finding>) {
    static MADE: OnceLock<(tempfile::TempDir, Vec<Finding>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let model = model(dir.path());
        let found = study(
            &model,
            &dir.path().join("out"),
            &["E5", "E6", "E7", "E8", "E9", "E10"],
        );
        (dir, found)
    })
}

fn finding(id: &str) -> &'static Finding {
    findings().1.iter().find(|f| f.id == id).unwrap()
}

fn number(id: &str, name: &str) -> f64 {
    let found = finding(id);
    let number = found.numbers.iter().find(|n| n.name == name);
    number
        .unwrap_or_else(|| panic!("{id} has no {name}"))
        .value
        .unwrap()
}

/// Recoveries by KL of a sweep's single places one way: by (what differs between prompts, site, layer, position).
fn sweep(folder: &str, way: &str) -> BTreeMap<(String, String, usize, String), f64> {
    let path = findings()
        .0
        .path()
        .join("out")
        .join(folder)
        .join("sweep.csv");
    let mut table = csv::Reader::from_path(path).unwrap();
    let rows = table.records().map(Result::unwrap);
    rows.filter(|r| &r[5] == "kl-recovery" && &r[10] == way && r[11].is_empty() && r[2].is_empty())
        .map(|r| {
            let key = (
                r[7].to_owned(),
                r[0].to_owned(),
                r[1].parse().unwrap(),
                r[3].to_owned(),
            );
            (key, r[9].parse().unwrap())
        })
        .collect()
}

#[test]
fn the_shares_of_all_components_add_up_to_the_difference_of_the_logits() {
    let error = number("E6", "check: the components add up");
    assert!(error > 0.0 && error < 1e-3, "{error}");
    // The same of the means that the table holds, the injection among them.
    let table = finding("E6")
        .exhibits
        .iter()
        .find(|e| e.name == "E6-table")
        .unwrap();
    let Body::Table { columns, rows } = &table.body else {
        panic!("no table")
    };
    for (column, name) in [("none", "no edit"), ("full", "whole edit")] {
        let at = columns.iter().position(|c| c == column).unwrap();
        let sum: f64 = rows.iter().map(|row| row[at].as_f64().unwrap()).sum();
        let whole = number("E6", &format!("logit of dis − logit of hon, {name}"));
        assert!(
            (sum - whole).abs() < 1e-3 * whole.abs().max(1.0),
            "{column}: {sum} {whole}"
        );
    }
    assert_eq!(rows.len(), 2 * LAYERS + 2);
    let differences = ["no edit", "whole edit"]
        .map(|n| number("E6", &format!("logit of dis − logit of hon, {n}")));
    assert!(
        differences[0] < 0.0 && differences[1] > 0.0,
        "{differences:?}: each is its own run's likeliest"
    );
}

#[test]
fn blocks_below_the_edit_have_exactly_no_effect_and_those_above_have_one() {
    assert_eq!(number("E7", "check: effect below the edit"), 0.0);
    for way in ["denoising", "noising"] {
        let rows = sweep("E7", way);
        assert!(rows.keys().any(|key| key.2 == EDITED) && rows.keys().any(|key| key.2 > EDITED));
        for ((_, site, layer, _), recovery) in &rows {
            assert_eq!(
                *layer <= EDITED,
                *recovery == 0.0,
                "{way} {site} {layer}: {recovery}"
            );
        }
    }
}

#[test]
fn the_grid_is_e7_at_the_last_layer_and_position_and_e5_at_the_edited_layer() {
    assert_eq!(number("E10", "check: as E7"), 0.0);
    let (grid, blocks, positions) = (
        sweep("E10", "denoising"),
        sweep("E7", "denoising"),
        sweep("E5", "denoising"),
    );
    let at = |prompt: &String, site: &str, layer, position: &str| {
        (prompt.clone(), site.to_owned(), layer, position.to_owned())
    };
    let prompts: std::collections::BTreeSet<&String> = grid.keys().map(|key| &key.0).collect();
    assert!(!prompts.is_empty());
    for prompt in prompts {
        for site in ["hook_attn_out", "hook_mlp_out"] {
            let last = grid[&at(prompt, site, LAYERS - 1, "-1")];
            assert_eq!(last, blocks[&at(prompt, site, LAYERS - 1, "all")], "{site}");
            assert_ne!(last, 0.0);
        }
        for position in ["-1", "-2", "-5"] {
            let place = at(prompt, "hook_resid_post", EDITED, position);
            assert_eq!(grid[&place], positions[&place], "{position}");
        }
        assert_eq!(grid[&at(prompt, "hook_resid_post", LAYERS - 1, "-1")], 1.0);
    }
}

#[test]
fn every_finding_answers_its_question_and_has_what_it_shows() {
    for id in ["E5", "E6", "E7", "E8", "E9", "E10"] {
        let found = finding(id);
        assert!(
            !found.question.is_empty() && found.answer.len() >= 2,
            "{found:?}"
        );
        assert!(
            found.answer.iter().all(|said| !said.contains("NaN")),
            "{:?}",
            found.answer
        );
        assert!(
            found
                .numbers
                .iter()
                .filter(|n| n.interval.is_some())
                .count()
                > 1
                || id == "E10",
            "{:?}",
            found.numbers
        );
        assert!(found.exhibits.len() >= 2);
        assert!(
            found
                .exhibits
                .iter()
                .any(|e| matches!(e.body, Body::Table { .. }))
        );
        for manifest in &found.manifests {
            assert!(
                findings().0.path().join("out").join(manifest).is_file(),
                "{manifest}"
            );
        }
    }
    let heatmaps = |id: &str| {
        finding(id)
            .exhibits
            .iter()
            .filter(|e| matches!(e.body, Body::Heatmap { .. }))
            .count()
    };
    assert_eq!((heatmaps("E8"), heatmaps("E10")), (1, 3));
}

#[test]
fn a_finding_that_is_made_again_is_the_same_whatever_its_sweep_left_behind() {
    let (dir, found) = findings();
    let (model, out) = (dir.path().join("tiny-chat"), dir.path().join("again"));
    study(&model, &out, &["E1"]);
    std::fs::create_dir(out.join("E8")).unwrap();
    std::fs::write(
        out.join("E8/journal.jsonl"),
        "{\"of\": \"another sweep\"}\n",
    )
    .unwrap();
    let again = study(&model, &out, &["E8"]);
    let first = found.iter().find(|f| f.id == "E8").unwrap();
    assert_eq!(
        (&again[0].numbers, &again[0].answer),
        (&first.numbers, &first.answer)
    );
    std::fs::remove_file(out.join("findings/E8.json")).unwrap();
    let third = study(&model, &out, &["E8"]);
    assert_eq!(third[0].numbers, first.numbers);
}

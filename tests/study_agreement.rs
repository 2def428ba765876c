//! The dishonesty study's numbers on SmolLM2-135M-Instruct against an independent script: Hugging Face in float32, through PyTorch hooks
//! (`scripts/reference/study.py`, which wrote `tests/fixtures/study/` and says there what it holds). Same facts, same prompts, each with its own
//! directions and strength.
//!
//! The tests share one study's folder, so what one experiment needs of another is made once.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use assert_cmd::Command;
use safetensors::SafeTensors;
use serde_json::Value;

/// Of recoveries, and relative of log-probabilities and logits.
const GATE: f64 = 1e-3;

fn reference() -> Value {
    read(&common::fixtures().join("study/reference.json"))
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The study's folder, with these experiments done.
fn study(experiments: &str) -> PathBuf {
    static BEGUN: Mutex<bool> = Mutex::new(false);
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("study-agreement");
    let mut begun = BEGUN.lock().unwrap_or_else(|e| e.into_inner());
    if !*begun {
        let _ = std::fs::remove_dir_all(&out);
        *begun = true;
    }
    Command::new(env!("CARGO_BIN_EXE_streamgauge"))
        .args([
            "study",
            "dishonesty",
            "--quiet",
            "--experiments",
            experiments,
        ])
        .arg("--model")
        .arg(common::smollm2())
        .arg("--prompts")
        .arg(common::fixtures().join("study/prompts.jsonl"))
        .arg("--out")
        .arg(&out)
        .assert()
        .success();
    out
}

fn finding(out: &Path, id: &str) -> Value {
    read(&out.join(format!("findings/{id}.json")))
}

/// The body of an exhibit.
fn exhibit(finding: &Value, name: &str) -> Value {
    let exhibits = finding["exhibits"].as_array().unwrap();
    let found = exhibits.iter().find(|exhibit| exhibit["name"] == name);
    found.unwrap_or_else(|| panic!("no exhibit {name}"))["body"].clone()
}

/// A table's rows, by column.
fn table(finding: &Value, name: &str) -> Vec<HashMap<String, Value>> {
    let body = exhibit(finding, name);
    let columns = strings(&body["columns"]);
    let rows = body["rows"].as_array().unwrap();
    let row = |row: &Value| {
        let cells = row.as_array().unwrap().iter().cloned();
        columns.iter().cloned().zip(cells).collect()
    };
    rows.iter().map(row).collect()
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap();
    list.iter().map(|s| s.as_str().unwrap().into()).collect()
}

fn numbers(list: &Value) -> Vec<f64> {
    let list = list.as_array().unwrap();
    list.iter().map(|x| x.as_f64().unwrap()).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

#[track_caller]
fn near(ours: f64, theirs: f64, gate: f64, what: &str) {
    assert!(
        (ours - theirs).abs() <= gate,
        "{what}: ours {ours}, the script's {theirs}"
    );
}

/// Recoveries by KL of a sweep: prompt, way and places → value.
struct Sweep(HashMap<(usize, String, String), f64>);

impl Sweep {
    fn of(out: &Path, experiment: &str) -> Self {
        let path = out.join(experiment).join("sweep.csv");
        let mut reader =
            csv::Reader::from_path(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut found = HashMap::new();
        for row in reader.deserialize() {
            let row: HashMap<String, String> = row.unwrap();
            if row["metric"] != "kl-recovery" || row.get("set").is_some_and(|set| !set.is_empty()) {
                continue;
            }
            let place = |n: &str| {
                let of = |name: &str| row[&format!("{name}{n}")].as_str();
                let head = Some(of("head")).filter(|head| !head.is_empty());
                place(of("site"), of("layer"), head, of("position"))
            };
            let mut places = place("");
            if !row["site2"].is_empty() {
                places = format!("{places} + {}", place("2"));
            }
            let prompt = row["prompt"].parse().unwrap();
            let recovery = row["recovery"].parse().unwrap_or(f64::NAN);
            found.insert((prompt, row["way"].clone(), places), recovery);
        }
        Sweep(found)
    }

    #[track_caller]
    fn check(&self, prompt: usize, way: &str, places: &str, theirs: &Value) {
        let key = (prompt, way.to_owned(), places.to_owned());
        let ours = self
            .0
            .get(&key)
            .unwrap_or_else(|| panic!("no {way} run of prompt {prompt} with {places}"));
        near(
            *ours,
            theirs.as_f64().unwrap(),
            GATE,
            &format!("prompt {prompt}, {way}, {places}"),
        );
    }
}

fn place(site: &str, layer: impl std::fmt::Display, head: Option<&str>, position: &str) -> String {
    let head = head.map_or(String::new(), |head| format!("[{head}]"));
    format!("{site}.{layer}{head}@{position}")
}

/// A whole block's place; `kind` is the script's name of it.
fn block(kind: &str, layer: impl std::fmt::Display) -> String {
    place(hook(kind), layer, None, "all")
}

fn hook(kind: &str) -> &'static str {
    match kind {
        "attn" => "hook_attn_out",
        "mlp" => "hook_mlp_out",
        "resid" => "hook_resid_post",
        other => panic!("{other}"),
    }
}

/// Of each prompt by id, its place among all, among the report half, or among other prompts that a sweep ran.
fn places_of(prompts: impl Fn(&Value) -> bool) -> HashMap<String, usize> {
    let text = std::fs::read_to_string(common::fixtures().join("study/prompts.jsonl")).unwrap();
    let all = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let chosen = all.filter(|prompt| prompts(prompt)).enumerate();
    chosen
        .map(|(i, prompt)| (prompt["id"].as_str().unwrap().into(), i))
        .collect()
}

fn everyone() -> HashMap<String, usize> {
    places_of(|_| true)
}

fn report() -> HashMap<String, usize> {
    places_of(|prompt| prompt["half"] == "report")
}

/// The reference's results of an experiment, each with its prompt's place.
fn by_prompt(
    reference: &Value,
    experiment: &str,
    places: &HashMap<String, usize>,
) -> Vec<(usize, Value)> {
    let each = list(&reference[experiment]).iter();
    each.map(|one| (places[one["prompt"].as_str().unwrap()], one.clone()))
        .collect()
}

fn vectors(path: &Path, prefix: &str, layers: usize) -> Vec<Vec<f64>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let vector = |layer: usize| {
        let data: Vec<f32> =
            bytemuck::pod_collect_to_vec(file.tensor(&format!("{prefix}.{layer}")).unwrap().data());
        data.into_iter().map(f64::from).collect()
    };
    (0..layers).map(vector).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn directions_are_the_same_to_the_sign_and_where_two_are_as_good_the_plane_is() {
    let out = study("E1");
    let reference = reference();
    let layers = list(&reference["e1"]["layers"]);
    let ours = vectors(
        &out.join("directions.safetensors"),
        "direction",
        layers.len(),
    );
    let theirs = vectors(
        &common::fixtures().join("study/directions.safetensors"),
        "layer",
        layers.len(),
    );
    let rows = table(&finding(&out, "E1"), "E1-layers");
    for (i, layer) in layers.iter().enumerate() {
        let cosine = dot(&ours[i], &theirs[i]);
        let ratio = layer["eigenvalue_ratio"].as_f64().unwrap();
        near(
            rows[i]["eigenvalue_ratio"].as_f64().unwrap(),
            ratio,
            GATE,
            &format!("λ₂/λ₁ of layer {i}"),
        );
        match layer.get("second") {
            None => assert!(
                cosine >= 0.9999,
                "layer {i}: cosine {cosine}, λ₂/λ₁ {ratio}"
            ),
            Some(second) => {
                let in_plane = cosine.hypot(dot(&ours[i], &numbers(second)));
                assert!(
                    in_plane >= 0.9999,
                    "layer {i}: {in_plane} of the direction is in the plane"
                );
            }
        }
        let test = layer["test"].as_f64().unwrap();
        for (column, name, n) in [
            ("matched_accuracy", "matched", test),
            ("unpaired_accuracy", "unpaired", 2.0 * test),
        ] {
            near(
                rows[i][column].as_f64().unwrap(),
                layer[name].as_f64().unwrap(),
                1.0 / n + 1e-6,
                &format!("{name}, layer {i}"),
            );
        }
    }
}

#[test]
fn the_layer_and_the_strength_are_the_same() {
    let out = study("E1,E2");
    let (ours, theirs) = (read(&out.join("choice.json")), &reference()["choice"]);
    assert_eq!(ours["layer"], theirs["layer"]);
    let c = theirs["c"].as_f64().unwrap();
    near(ours["c"].as_f64().unwrap(), c, 1e-4 * c.abs(), "c");
    let flipped: Vec<f64> = list(&ours["tried"])
        .iter()
        .map(|tried| tried["flipped"].as_f64().unwrap())
        .collect();
    let shares = numbers(&theirs["shares"]);
    assert_eq!(flipped.len(), shares.len());
    flipped
        .iter()
        .zip(&shares)
        .for_each(|(a, b)| near(*a, *b, 1e-6, "share of first tokens that turn"));
}

#[test]
fn generated_texts_are_identical() {
    let rows = table(&finding(&study("E2"), "E2"), "E2-answers");
    let mut compared = 0;
    for text in list(&reference()["e2"]) {
        let row = rows.iter().find(|row| row["id"] == text["prompt"]).unwrap();
        for run in ["plain", "edited"] {
            let theirs = text[format!("{run}_text")].as_str().unwrap();
            assert_eq!(
                row[run].as_str().unwrap(),
                theirs.trim_end_matches("<|im_end|>"),
                "{run} of {}",
                text["prompt"]
            );
            compared += 1;
        }
    }
    assert!(compared >= 20);
}

#[test]
fn what_the_injection_does_to_each_token_of_the_edited_text_is_the_same() {
    let body = exhibit(&finding(&study("E4"), "E4"), "E4-difference");
    let ids = strings(&body["rows"]["labels"]);
    let reference = reference();
    for text in list(&reference["e4"]) {
        let row = ids.iter().position(|id| *id == text["prompt"]).unwrap();
        let ours: Vec<f64> = list(&body["values"][row])
            .iter()
            .map_while(Value::as_f64)
            .collect();
        let theirs = numbers(&text["shift"]);
        assert!(
            ours.len().abs_diff(theirs.len()) <= 1,
            "with or without the end of the turn"
        );
        for (t, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            near(
                *ours,
                *theirs,
                GATE * theirs.abs().max(0.1),
                &format!("{}, token {t}", text["prompt"]),
            );
        }
    }
}

#[test]
fn recoveries_of_single_blocks_are_the_same_both_ways() {
    let sweep = Sweep::of(&study("E7"), "E7");
    let reference = reference();
    for (prompt, run) in by_prompt(&reference, "e7", &everyone()) {
        let first = run["first_layer"].as_u64().unwrap() as usize;
        for way in ["denoising", "noising"] {
            for kind in ["attn", "mlp"] {
                for (i, theirs) in list(&run[way][kind]).iter().enumerate() {
                    sweep.check(prompt, way, &block(kind, first + i), theirs);
                }
            }
        }
    }
}

#[test]
fn recoveries_with_the_direction_at_some_positions_are_the_same() {
    let sweep = Sweep::of(&study("E5"), "E5");
    let reference = reference();
    let layer = reference["choice"]["layer"].as_u64().unwrap();
    for (prompt, run) in by_prompt(&reference, "e5", &everyone()) {
        for (i, (single, all_but)) in list(&run["single"])
            .iter()
            .zip(list(&run["all_but"]))
            .enumerate()
        {
            let at = place("hook_resid_post", layer, None, &format!("-{}", i + 1));
            sweep.check(prompt, "denoising", &at, single);
            // Everywhere but there is the edited run with the plain run's row there; its recovery is less 1.
            let without = Value::from(all_but.as_f64().unwrap() - 1.0);
            sweep.check(prompt, "noising", &at, &without);
        }
    }
}

#[test]
fn recoveries_of_single_heads_are_the_same() {
    let sweep = Sweep::of(&study("E8"), "E8");
    let reference = reference();
    for (prompt, run) in by_prompt(&reference, "e8", &everyone()) {
        let first = run["first_layer"].as_u64().unwrap() as usize;
        for (i, heads) in list(&run["denoising"]).iter().enumerate() {
            for (head, theirs) in list(heads).iter().enumerate() {
                let at = place("attn.hook_z", first + i, Some(&head.to_string()), "all");
                sweep.check(prompt, "denoising", &at, theirs);
            }
        }
    }
}

#[test]
fn recoveries_of_pairs_of_blocks_are_the_same_both_ways() {
    let sweep = Sweep::of(&study("E9"), "E9");
    let reference = reference();
    for (prompt, run) in by_prompt(&reference, "e9", &report()) {
        for pair in list(&run["pairs"]) {
            let places: Vec<String> = strings(&pair["pair"])
                .iter()
                .map(|name| {
                    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
                    block(kind, &name[kind.len()..])
                })
                .collect();
            for way in ["denoising", "noising"] {
                sweep.check(prompt, way, &places.join(" + "), &pair[way]);
            }
        }
    }
}

#[test]
fn recoveries_by_layer_and_position_are_the_same() {
    let sweep = Sweep::of(&study("E10"), "E10");
    let reference = reference();
    // The sweep's prompts are these, in this order.
    let prompts = list(&reference["e10"]).iter().enumerate();
    let places = prompts
        .map(|(i, run)| (run["prompt"].as_str().unwrap().to_owned(), i))
        .collect();
    for (prompt, run) in by_prompt(&reference, "e10", &places) {
        for cell in list(&run["cells"]) {
            let position = cell["position"].to_string();
            let at = place(
                hook(cell["kind"].as_str().unwrap()),
                &cell["layer"],
                None,
                &position,
            );
            sweep.check(prompt, "denoising", &at, &cell["recovery"]);
        }
    }
}

#[test]
fn what_components_add_to_the_logit_difference_is_the_same_at_every_strength() {
    let found = finding(&study("E6"), "E6");
    let body = exhibit(&found, "E6-strengths");
    let reference = reference();
    let turned: Vec<&Value> = list(&reference["e6"])
        .iter()
        .filter(|run| run["dis"] != run["hon"])
        .collect();
    let layers = list(&reference["e1"]["layers"]).len();
    let mean = |of: &dyn Fn(&Value) -> f64| {
        turned.iter().map(|run| of(run)).sum::<f64>() / turned.len() as f64
    };
    let mut compared = 0;
    for series in list(&body["series"]) {
        let name = series["name"].as_str().unwrap();
        let Some(component) = component(name, layers) else {
            continue;
        };
        for point in list(&series["points"]) {
            let c = point["x"].as_f64().unwrap();
            let strengths = list(&turned[0]["strengths"]);
            let at = strengths
                .iter()
                .position(|s| (s["c"].as_f64().unwrap() - c).abs() < 1e-3 * (1.0 + c.abs()))
                .unwrap();
            let theirs = mean(&|run| {
                let strength = &run["strengths"][at];
                component
                    .map_or(&strength["difference"], |component| {
                        &strength["shares"][component]
                    })
                    .as_f64()
                    .unwrap()
            });
            near(
                point["y"].as_f64().unwrap(),
                theirs,
                GATE * theirs.abs().max(1.0),
                &format!("{name} at c = {c}"),
            );
            compared += 1;
        }
    }
    assert!(compared >= 60, "{compared} numbers were compared");
    let last = list(&turned[0]["strengths"]).len() - 1;
    let rows = table(&found, "E6-table");
    assert_eq!(rows.len(), 2 * layers + 2);
    for (i, row) in rows.iter().enumerate() {
        for (column, at) in [("full", 0), ("none", last)] {
            let theirs = mean(&|run| run["strengths"][at]["shares"][i].as_f64().unwrap());
            let what = format!("{}, {column}", row["component"]);
            near(
                row[column].as_f64().unwrap(),
                theirs,
                GATE * theirs.abs().max(1.0),
                &what,
            );
        }
    }
}

/// Where a series stands in the script's shares: `None` inside for the whole difference, outside for what the script has not.
fn component(name: &str, layers: usize) -> Option<Option<usize>> {
    let at = |kind: &str| name.strip_prefix(kind)?.parse::<usize>().ok();
    match name {
        "logit difference" => Some(None),
        "embed" => Some(Some(0)),
        "injection" => Some(Some(2 * layers + 1)),
        _ => at("attn")
            .map(|l| 1 + 2 * l)
            .or_else(|| at("mlp").map(|l| 2 + 2 * l))
            .map(Some),
    }
}

#[test]
fn what_the_directions_say_of_plain_statements_is_the_same_at_every_layer() {
    let rows = table(&finding(&study("E11"), "E11"), "E11-table");
    let reference = reference();
    let n = reference["e11"]["n"].as_f64().unwrap();
    for (i, layer) in list(&reference["e11"]["layers"]).iter().enumerate() {
        let pairs = [
            ("accuracy_all", "accuracy", 1.0 / n + 1e-6),
            ("auc_all", "auc", 1e-4),
            ("share_positive_all", "positive_z", 1.0 / n + 1e-6),
        ];
        for (column, name, gate) in pairs {
            near(
                rows[i][column].as_f64().unwrap(),
                layer[name].as_f64().unwrap(),
                gate,
                &format!("{name}, layer {i}"),
            );
        }
    }
}

//! The dishonesty study from the command line: on a tiny model that can chat, what it writes, keeps, goes on with and refuses; on
//! SmolLM2, that the numbers are what they should be.

mod common;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::tiny_chat::tiny_chat_model;
use streamgauge::engine::{Prepared, direction_of_layer};
use streamgauge::hooks::Site;
use streamgauge::model::Model;
use streamgauge::report::finding::{Body, Finding};
use streamgauge::study::{Choice, Inputs, Options, Study, point};

fn streamgauge() -> Command {
    Command::new(env!("CARGO_BIN_EXE_streamgauge"))
}

/// A folder with the tiny model.
struct Bench {
    dir: TempDir,
    model: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = tiny_chat_model(dir.path());
        Bench { dir, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A quick study into `out`.
    fn study(&self, out: &str) -> Command {
        let mut command = streamgauge();
        command
            .args([
                "study",
                "dishonesty",
                "--quick",
                "--device",
                "cpu",
                "--model",
            ])
            .arg(&self.model)
            .arg("--out")
            .arg(self.path(out));
        command
    }

    /// Runs these experiments of the quick study in `out`.
    fn run(&self, experiments: &str) {
        self.study("out")
            .args(["--experiments", experiments])
            .assert()
            .success();
    }

    fn finding(&self, out: &str, id: &str) -> Finding {
        finding(&self.path(out), id)
    }
}

fn finding(out: &Path, id: &str) -> Finding {
    let file = out.join("findings").join(format!("{id}.json"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn refused(command: &mut Command, status: i32) -> String {
    let output = command.assert().code(status).get_output().clone();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.starts_with("error: ") && message.trim_end().lines().count() == 1,
        "{message}"
    );
    message
}

fn table<'f>(finding: &'f Finding, name: &str) -> (Vec<&'f str>, &'f [Vec<Value>]) {
    let exhibit = finding.exhibits.iter().find(|e| e.name == name).unwrap();
    match &exhibit.body {
        Body::Table { columns, rows } => (columns.iter().map(String::as_str).collect(), rows),
        other => panic!("{name} is no table: {other:?}"),
    }
}

fn column(finding: &Finding, exhibit: &str, column: &str) -> Vec<Value> {
    let (columns, rows) = table(finding, exhibit);
    let at = columns.iter().position(|&c| c == column).unwrap();
    rows.iter().map(|row| row[at].clone()).collect()
}

#[test]
fn a_study_goes_on_with_what_is_missing_and_does_nothing_twice() {
    let bench = Bench::new();
    bench.run("E1");
    let kept = bench.path("out/findings/E1.json");
    let first = std::fs::read(&kept).unwrap();
    let told = bench
        .study("out")
        .args(["--experiments", "E1,E2"])
        .assert()
        .success();
    let told = String::from_utf8(told.get_output().stderr.clone()).unwrap();
    assert!(
        told.contains("E1: done before") && told.contains("E2 (2 of"),
        "{told}"
    );
    assert_eq!(std::fs::read(&kept).unwrap(), first, "seconds included");

    // Made again, it is the same but for the time it took.
    let finding = bench.finding("out", "E1");
    std::fs::remove_file(&kept).unwrap();
    bench
        .study("out")
        .args(["--experiments", "e1", "--resume", "--quiet"])
        .assert()
        .success()
        .stderr("");
    let again = bench.finding("out", "E1");
    assert_eq!(
        (again.numbers, again.exhibits),
        (finding.numbers, finding.exhibits)
    );
}

#[test]
fn a_folder_of_another_study_or_of_something_else_is_refused_by_what_differs() {
    let bench = Bench::new();
    bench.run("E1");
    let facts = b"statement,label\nThe sky is above the ground we stand on.,1\nThe sky is below the ground we stand on.,0\nA week has seven days.,1\nA day has many hours.,1\nA year has four seasons.,1\n";
    let facts = bench.write("facts.csv", facts);
    let message = refused(bench.study("out").arg("--facts").arg(&facts), 1);
    assert!(
        message.contains("a study of another facts") && message.contains("another folder"),
        "{message}"
    );
    let message = refused(bench.study("out").args(["--seed", "1"]), 1);
    assert!(
        message.contains("'seed' (it was 0, now it is 1)"),
        "{message}"
    );
    std::fs::create_dir(bench.path("full")).unwrap();
    bench.write("full/thesis.txt", b"mine");
    let message = refused(&mut bench.study("full"), 1);
    assert!(
        message.contains("full: the folder is not empty and holds no study"),
        "{message}"
    );
    let message = refused(bench.study("new").args(["--experiments", "E1,E77"]), 1);
    assert!(
        message.contains("no experiment 'E77'; there are E1, E2"),
        "{message}"
    );
    assert!(!bench.path("new").exists());
}

#[test]
fn bad_inputs_are_refused_by_file_and_line() {
    let bench = Bench::new();
    let cases: [(&str, &str, &[u8], &str); 10] = [
        ("--facts", "one.csv", b"statement,label\nA is b.,1\nC is d.,1\n", "one.csv:2: all 2 statements"),
        ("--facts", "twice.csv", b"statement,label\nA is b.,1\nC is d.,0\nA is b.,1\n", "twice.csv:4: the statement of line 2 again"),
        ("--facts", "column.csv", b"statement,topic\nA is b.,x\n", "column.csv:1: no column `label`"),
        ("--facts", "bytes.csv", b"statement,label\nA is b.,1\nC \xff d.,0\n", "bytes.csv:3: not UTF-8"),
        ("--facts", "short.csv", b"statement,label\nA is b.,1\nC is d.,0\n", "short.csv: its true statements can be cut"),
        ("--facts", "quote.csv", b"statement,label\nA is b.,1\n\"C is d.,0\n", "quote.csv:3: a double quote is opened"),
        ("--prompts", "json.jsonl", b"{\"text\": \"Is it?\"}\n", "json.jsonl:1: column 18: missing field `honest`; write"),
        ("--prompts", "special.jsonl", b"{\"text\": \"Is it?\", \"honest\": \"no\"}\n{\"text\": \"A</s>?\", \"honest\": \"yes\"}\n{\"text\": \"B?\", \"honest\": \"no\"}\n", "special.jsonl:2: the prompt does not fit the template: it holds `</s>`"),
        ("--prompts", "honest.jsonl", b"{\"text\": \"Is it?\", \"honest\": \"maybe\"}\n", "honest.jsonl:1: column"),
        ("--behaviour", "b.toml", b"name = \"x\"\ntitel = \"y\"\n", "b.toml:2: unknown field `titel`"),
    ];
    for (flag, name, bytes, says) in cases {
        let file = bench.write(name, bytes);
        let message = refused(bench.study("out").arg("--quiet").arg(flag).arg(&file), 1);
        assert!(message.contains(says), "{message}");
    }
    let long = json!({ "text": "long ".repeat(300), "honest": "yes" });
    let file = bench.write("long.jsonl", format!("{{\"text\": \"a?\", \"honest\": \"no\"}}\n{long}\n{{\"text\": \"b?\", \"honest\": \"no\"}}\n").as_bytes());
    let message = refused(bench.study("out").arg("--prompts").arg(&file), 1);
    assert!(
        message.contains("long.jsonl:2: as a chat's turn it makes ")
            && message.contains("more than the model's 512; make it shorter"),
        "{message}"
    );
    let behaviour = |from: &str, to: &str| {
        let text = SERVILITY.replacen(from, to, 1);
        bench.write("servility.jsonl", EIGHT.as_bytes());
        bench.write("bad.toml", text.as_bytes())
    };
    for (from, to, says) in [
        (
            "no = \"on\"",
            "no = \"in\"",
            "bad.toml:13: `answers.no` is the other one again",
        ),
        (
            "no = \"on\"",
            "no = \"offline\"",
            "bad.toml:13: no token of the model is the answer `offline`",
        ),
        (
            "[side",
            "[edit]\nlayer = 3\n[side",
            "bad.toml:15: there is no layer 3: the model has 3; give one of 0 to 2",
        ),
    ] {
        let file = behaviour(from, to);
        let message = refused(bench.study("out").arg("--behaviour").arg(&file), 1);
        assert!(message.contains(says), "{message}");
    }
    // None of these has begun a study: the folder is free for the right inputs.
    assert!(!bench.path("out").exists());
}

/// A behaviour of one's own, whose answers are "in" and "on", and its eight prompts.
const SERVILITY: &str = r#"
name = "servility"
title = "Servility"
prompts = "servility.jsonl"
[template]
user = "Pretend you're {persona} person making statements about the world."
positive = "a frank"
negative = "a servile"
control_positive = "a tall"
control_negative = "a left-handed"
[answers]
yes = "in"
no = "on"
[side_effects]
question = "Does this hold? Answer in or on. {statement}"
"#;

const EIGHT: &str = r#"
{"text": "Is the cup in or on the cupboard?", "honest": "yes"}
{"text": "Is the cat in or on the box?", "honest": "yes"}
{"text": "Is the hat in or on the rack?", "honest": "no"}
{"text": "Is the pen in or on the desk?", "honest": "no"}
{"text": "Is the sun in or on the sky?", "honest": "yes", "kind": "factual"}
{"text": "Is the fish in or on the water?", "honest": "yes", "kind": "factual"}
{"text": "Is the roof in or on the house?", "honest": "no", "kind": "factual"}
{"text": "Is the rider in or on the horse?", "honest": "no", "kind": "factual"}
"#;

fn servility(bench: &Bench, edit: &str) -> PathBuf {
    bench.write("servility.jsonl", EIGHT.as_bytes());
    bench.write("servility.toml", format!("{SERVILITY}{edit}").as_bytes())
}

#[test]
fn a_behaviour_may_say_where_and_how_strong_its_edit_is() {
    let bench = Bench::new();
    let behaviour = servility(&bench, "[edit]\ndepth = 1.0\nstrength = -3.5\n");
    bench
        .study("out")
        .args(["--experiments", "E2"])
        .arg("--behaviour")
        .arg(&behaviour)
        .assert()
        .success();
    let choice: Choice =
        serde_json::from_slice(&std::fs::read(bench.path("out/choice.json")).unwrap()).unwrap();
    assert_eq!((choice.layer, choice.c, choice.given), (2, -3.5, true));
    assert_eq!(choice.tried.len(), 1);
    let answer = bench.finding("out", "E2").answer.join(" ");
    assert!(
        answer.contains("at layer 2") && answer.contains("that the behaviour's file gives"),
        "{answer}"
    );
}

#[test]
fn a_study_of_another_behaviour_speaks_in_its_words_alone() {
    let bench = Bench::new();
    let behaviour = servility(&bench, "");
    let ids = ["E1", "E2", "E4", "E6", "E7", "C1", "C2"];
    bench
        .study("out")
        .args(["--experiments", &ids.join(",")])
        .arg("--behaviour")
        .arg(&behaviour)
        .assert()
        .success();
    let mut said = String::new();
    for id in ids {
        let finding = Finding {
            command: String::new(),
            ..bench.finding("out", id)
        };
        said += &serde_json::to_string(&finding).unwrap();
    }
    for foreign in [
        "honest",
        "P(No)",
        "P(Yes)",
        "'no'",
        "'yes'",
        "rather than lie",
    ] {
        let at = said.find(foreign).map(|at| said[at..].chars().take(80));
        assert!(at.is_none(), "{:?}", at.map(String::from_iter));
    }
    for own in [
        "make the model's answers servile?",
        "begins with the servile answer, dilemma, in being frank",
        "P(On) − P(In)",
        "towards the answer that is not frank",
        "towards 'on'",
    ] {
        assert!(said.contains(own), "{own}");
    }
    let page = std::fs::read_to_string(bench.path("out/report.html")).unwrap();
    assert!(page.contains("asked of servility") && !page.contains("published one"));
}

/// Runs `with` on a quick study of the tiny model from Rust.
fn in_rust(bench: &Bench, with: impl FnOnce(&Study<'_>)) {
    let prepared =
        Prepared::for_generation(Inputs::job(&bench.model.display().to_string())).unwrap();
    let options = Options {
        quick: true,
        experiments: vec!["E2".into()],
        ..Options::new(bench.path("rust"))
    };
    let inputs = Inputs::read(&prepared, options).unwrap();
    with(&Study::new(&prepared, inputs, Box::new(prepared.cpu())));
}

#[test]
fn rows_of_sequences_that_share_a_beginning_are_those_of_each_by_itself() {
    in_rust(&Bench::new(), |study| {
        let points = [point(Site::ResidPost, 1), point(Site::LnFinalOut, 0)];
        let sequences: [&[u32]; 5] = [&[1, 7, 9], &[1, 7], &[1, 7, 9, 30, 31], &[1, 8], &[1, 7]];
        let together = study.last_rows(&points, &sequences).unwrap();
        assert_eq!(together.sequences(), 5);
        for (i, sequence) in sequences.iter().enumerate() {
            let alone = study.last_rows(&points, &[sequence]).unwrap();
            for at in 0..points.len() {
                assert_eq!(together.row(at, i), alone.row(at, 0), "{sequence:?}");
            }
        }
    });
}

#[test]
fn the_edit_is_the_one_that_the_chosen_strength_was_tried_with() {
    let bench = Bench::new();
    bench.run("E2");
    let choice: Choice =
        serde_json::from_slice(&std::fs::read(bench.path("out/choice.json")).unwrap()).unwrap();
    assert_eq!(choice.layer, 1);
    let last = choice.tried.last().unwrap();
    assert_eq!((last.c, last.flipped >= 0.9), (choice.c, choice.reached));
    assert!(choice.c < 0.0 && (choice.share() - last.share).abs() < 1e-6);

    // The flips of the tuning prompts that E2 finds by generating are those that the choice counted.
    let finding = bench.finding("out", "E2");
    let flipped = column(&finding, "E2-answers", "flipped");
    let half = column(&finding, "E2-answers", "half");
    let share_of = |of: &str| {
        let these: Vec<bool> = flipped
            .iter()
            .zip(&half)
            .filter(|(_, half)| *half == of)
            .map(|(flipped, _)| flipped.as_bool().unwrap())
            .collect();
        these.iter().filter(|&&f| f).count() as f64 / these.len() as f64
    };
    assert_eq!(share_of("tuning"), last.flipped);
    assert_eq!(finding.numbers[0].name, "first tokens flipped, report half");
    assert_eq!(finding.numbers[0].value, Some(share_of("report")));
    let names: Vec<&str> = finding.numbers[0]
        .controls
        .iter()
        .map(|c| c.name.as_str())
        .collect();
    assert_eq!(names, ["P(No) − P(Yes), edited", "P(No) − P(Yes), plain"]);
    let sources = ["study.json", "directions.safetensors", "choice.json"];
    assert_eq!(finding.manifests, sources);
}

#[test]
fn answers_are_shown_token_by_token_by_their_projection_before_anything_is_added() {
    in_rust(&Bench::new(), |study| {
        streamgauge::study::run(study, &mut |_| ()).unwrap();
        let finding = finding(&study.options().out, "E2");
        let shown = finding.exhibits.iter().find(|e| e.name == "E2-tokens");
        let Body::Tokens { texts, .. } = &shown.unwrap().body else {
            panic!("texts, token by token");
        };
        assert_eq!(texts.len(), 8, "four prompts of the report half, twice");
        let layer = study.choice().unwrap().layer;
        let direction = study.directions().unwrap().layer(layer);
        let generations = study.generations().unwrap();
        let projected = |of: &streamgauge::engine::Generated| -> Vec<f64> {
            let at = (of.prompt_len as u32..of.tokens.len() as u32).collect();
            let point = point(Site::ResidPost, layer);
            let rows = study.rows(&[point], &[&of.tokens], &[at], None).unwrap();
            let dot = |row: &[f32]| {
                row.iter()
                    .zip(direction)
                    .map(|(x, v)| f64::from(x * v))
                    .sum()
            };
            rows[0].chunks_exact(direction.len()).map(dot).collect()
        };
        let prompts = study.prompts(None);
        for (run, all) in [
            ("plain", &generations.plain),
            ("edited", &generations.edited),
        ] {
            for text in texts.iter().filter(|text| text.name.ends_with(run)) {
                let is = |id: &str| text.name == format!("{id}, {run}");
                let prompt = prompts.iter().position(|asked| is(&asked.prompt.id));
                let wanted = projected(&all[prompt.unwrap()]);
                let values: Vec<f64> = text.values.iter().flatten().copied().collect();
                assert_eq!(
                    (values.len(), text.tokens.len()),
                    (wanted.len(), wanted.len())
                );
                for (value, wanted_here) in values.iter().zip(&wanted) {
                    let off = (value - values[0]) - (wanted_here - wanted[0]);
                    assert!(off.abs() < 1e-4, "{}: {off}", text.name);
                }
            }
        }
    });
}

#[test]
fn the_rating_sheet_is_blank_and_does_not_tell_which_run_an_answer_is_of() {
    let bench = Bench::new();
    bench.run("E2");
    let rows = |name: &str| -> Vec<csv::StringRecord> {
        let mut reader = csv::Reader::from_path(bench.path("out/E2").join(name)).unwrap();
        reader.records().map(Result::unwrap).collect()
    };
    let (ratings, keys) = (rows("ratings.csv"), rows("ratings-key.csv"));
    assert_eq!((ratings.len(), keys.len()), (16, 16));
    assert!(
        ratings
            .iter()
            .all(|row| row.len() == 5 && row[3].is_empty() && row[4].is_empty())
    );
    let runs: Vec<&str> = keys.iter().map(|key| &key[2]).collect();
    assert_eq!(runs.iter().filter(|&&run| run == "plain").count(), 8);
    assert!(
        !runs.is_sorted() && runs.chunks(2).any(|pair| pair[0] == pair[1]),
        "{runs:?}"
    );
}

#[test]
fn a_study_tells_how_far_each_of_its_sweeps_is_to_the_last_run() {
    let bench = Bench::new();
    let prepared =
        Prepared::for_generation(Inputs::job(&bench.model.display().to_string())).unwrap();
    let options = Options {
        quick: true,
        experiments: vec!["E7".into()],
        ..Options::new(bench.path("out"))
    };
    let inputs = Inputs::read(&prepared, options).unwrap();
    let heard = std::cell::RefCell::new(Vec::new());
    let study = Study::new(&prepared, inputs, Box::new(prepared.cpu()))
        .watched(|at| heard.borrow_mut().push((at.done, at.total)));
    streamgauge::study::run(&study, &mut |_| ()).unwrap();
    drop(study);
    let heard = heard.into_inner();
    assert!(heard.is_sorted() && heard.len() > 1, "{heard:?}");
    let (done, total) = *heard.last().unwrap();
    assert!(done == total && total > 0);
}

#[test]
fn directions_are_unit_vectors_one_per_layer_that_an_edit_takes() {
    let bench = Bench::new();
    bench.run("E1");
    let file = bench.path("out/directions.safetensors");
    let model = Model::open(&bench.model).unwrap().fingerprint;
    for layer in 0..3 {
        let direction = direction_of_layer(&file, None, Some(layer), 64, &model).unwrap();
        let norm: f64 = direction
            .iter()
            .map(|&x| f64::from(x).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!((norm - 1.0).abs() < 1e-6, "{norm}");
    }
    let finding = bench.finding("out", "E1");
    assert_eq!(
        column(&finding, "E1-layers", "hook").last().unwrap(),
        "ln_final.hook_out"
    );
    assert_eq!(column(&finding, "E1-layers", "layer"), [0, 1, 2, 3]);
    assert!(
        finding.command.ends_with("--experiments E1")
            && finding.command.starts_with("streamgauge study dishonesty")
    );
    assert!(
        finding
            .answer
            .iter()
            .any(|a| a.contains("leaks into every later token"))
    );
    assert!(finding.answer.last().unwrap().contains("quick run"));
    let edit = format!(
        "add at=blocks.1.hook_resid_post v='{}#direction.1' c=-2",
        file.display()
    );
    streamgauge()
        .args([
            "generate",
            "--prompt",
            "Is it?",
            "--chat",
            "--max-new-tokens",
            "2",
            "--edit",
            &edit,
            "--model",
        ])
        .arg(&bench.model)
        .assert()
        .success();
}

//! C2: what steering costs: answers to factual questions and the likelihood of plain text, at the study's strength, beside random directions of that length.

use serde_json::{Value, json};

use super::inputs::turn;
use super::prompts::{Answer, Kind};
use super::push::{Push, no_against_yes};
use super::statements;
use super::statistics::mean;
use super::tell::{self, draws, exhibit, number, table, with_interval};
use super::{Behaviour, Fact, Result, Study, Words};
use crate::analysis::roc::auc;
use crate::analysis::scored::grouped;
use crate::analysis::{baseline, null};
use crate::engine::{Said, Steering};
use crate::report::finding::{Axis, Bar, Body, Exhibit, Finding, Number};

/// Passages of prose, a line each.
const PROSE: &str = include_str!("../../data/plain-text.txt");
/// Questions made of the facts.
const QUESTIONS: usize = 60;
const QUICK_QUESTIONS: usize = 20;
/// Random directions of the same length.
const DRAWS: usize = 20;
const QUICK_DRAWS: usize = 5;

/// A question with one answer.
struct Question {
    tokens: Vec<u32>,
    is_yes: bool,
    /// What the interval draws.
    group: String,
}

/// Log-odds of "no" against "yes" after each question: of the plain run, of the edited run, and of random pushes.
struct Asked {
    questions: Vec<Question>,
    plain: Vec<f64>,
    edited: Vec<f64>,
    random: Vec<Vec<f64>>,
}

/// Mean NLL per token of each passage, in nats.
struct Read {
    plain: Vec<f64>,
    edited: Vec<f64>,
    random: Vec<Vec<f64>>,
}

pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let directions = null::random(
        if study.options().quick {
            QUICK_DRAWS
        } else {
            DRAWS
        },
        study.dims().d_model,
        study.options().seed + 1,
    );
    let prompts = Asked::run(study, factual_prompts(study), &directions)?;
    let facts = Asked::run(study, questions(study)?, &directions)?;
    let prose = Read::run(study, &directions)?;
    let mut numbers = prompts.numbers(study, "factual prompts");
    numbers.extend(facts.numbers(study, "questions made of the facts"));
    numbers.extend(prose.numbers(study));
    Ok(Finding {
        answer: answer(&prompts, &facts, &prose, &numbers),
        numbers,
        exhibits: vec![
            bars(study, &facts),
            prose.bars(study),
            prose.table(),
            facts.table(study.words()),
        ],
        ..super::finding(
            "What else does steering change: what the model knows, and how well it predicts plain text?",
        )
    })
}

/// The factual prompts of both halves: nothing but the strength was chosen on them.
fn factual_prompts(study: &Study<'_>) -> Vec<Question> {
    let all = study.prompts(None).into_iter();
    all.filter(|asked| asked.prompt.kind == Kind::Factual)
        .map(|asked| Question {
            tokens: asked.tokens().to_vec(),
            is_yes: asked.prompt.honest == Answer::Yes,
            group: asked.prompt.id.clone(),
        })
        .collect()
}

/// As many true statements as false ones, evenly over the file, each put as a question.
fn questions(study: &Study<'_>) -> Result<Vec<Question>> {
    let most = if study.options().quick {
        QUICK_QUESTIONS
    } else {
        QUESTIONS
    };
    let facts = &study.facts().facts;
    let of = |label: bool| -> Vec<usize> {
        let all: Vec<usize> = (0..facts.len())
            .filter(|&i| facts[i].label == label)
            .collect();
        let kept = (most / 2).min(all.len());
        (0..kept).map(|k| all[k * all.len() / kept]).collect()
    };
    let asked = |i: usize| {
        let fact = &facts[i];
        let text = question(study.behaviour(), fact);
        let place = (study.facts().file.as_str(), fact.line);
        let sample = turn(study.prepared(), place, i, &text)?;
        let own = || baseline::opening(&fact.statement);
        Ok(Question {
            tokens: sample.row.tokens,
            is_yes: fact.label,
            group: fact
                .group
                .clone()
                .or_else(|| fact.topic.clone())
                .unwrap_or_else(own),
        })
    };
    of(true).into_iter().chain(of(false)).map(asked).collect()
}

/// How the model is asked whether a statement holds.
pub(super) fn question(behaviour: &Behaviour, fact: &Fact) -> String {
    let question = &behaviour.side_effects.question;
    question.replace("{statement}", &fact.statement)
}

/// The plain run's, the study's push, and random ones of its length.
fn pushes<'a>(steer: super::passes::Steer<'a>, random: &'a [Vec<f32>]) -> Vec<Push<'a>> {
    let ours = [0.0, steer.c].map(|c| Push {
        v: steer.direction,
        c,
    });
    let others = random.iter().map(|v| Push {
        v,
        c: steer.c.abs(),
    });
    ours.into_iter().chain(others).collect()
}

impl Asked {
    fn run(study: &Study<'_>, questions: Vec<Question>, random: &[Vec<f32>]) -> Result<Self> {
        let tokens: Vec<&[u32]> = questions.iter().map(|q| &q.tokens[..]).collect();
        let answers = study.answers();
        let odds = |said: &Said<'_>| no_against_yes(&said.log_probabilities(), answers);
        let steer = study.steer()?;
        let mut machine = study.machine();
        let steering =
            Steering::at_the_end(study.prepared(), &mut **machine, steer.layer, &tokens)?;
        let found = steering.run(&mut **machine, &pushes(steer, random), odds)?;
        let mut runs = found.chunks(tokens.len().max(1)).map(<[f64]>::to_vec);
        Ok(Asked {
            plain: runs.next().unwrap_or_default(),
            edited: runs.next().unwrap_or_default(),
            random: runs.collect(),
            questions,
        })
    }

    /// 1 where the likelier of the two answers is right.
    fn right(&self, odds: &[f64]) -> Vec<f64> {
        let right = |(q, &odds): (&Question, &f64)| f64::from(u8::from((odds < 0.0) == q.is_yes));
        self.questions.iter().zip(odds).map(right).collect()
    }

    fn area(&self, odds: &[f64]) -> f64 {
        let labels: Vec<bool> = self.questions.iter().map(|q| q.is_yes).collect();
        let scores: Vec<f64> = odds.iter().map(|o| -o).collect();
        auc(&scores, &labels).unwrap_or(f64::NAN)
    }

    /// The group of each question, numbered from 0 in order of first appearance.
    fn groups(&self) -> Vec<usize> {
        let mut numbers = std::collections::HashMap::new();
        let group = |q: &Question| {
            let next = numbers.len();
            *numbers.entry(q.group.clone()).or_insert(next)
        };
        self.questions.iter().map(group).collect()
    }

    /// The area with its interval over the questions' groups.
    fn area_number(&self, study: &Study<'_>, name: String, odds: &[f64]) -> Number {
        let mut told = number(name, self.area(odds), "");
        let labels: Vec<bool> = self.questions.iter().map(|q| q.is_yes).collect();
        let scores: Vec<f64> = odds.iter().map(|o| -o).collect();
        let interval = baseline::auc_interval(&scores, &labels, &self.groups(), &study.bootstrap());
        (told.interval, told.n) = (interval.bca(), Some(odds.len()));
        told
    }

    /// A mean over questions with its interval over their groups.
    fn over_groups(&self, study: &Study<'_>, name: String, values: &[f64], unit: &str) -> Number {
        let groups = self.groups();
        let mut told = number(name, mean(values), unit);
        if !values.is_empty() {
            let of = |items: &[usize]| mean(&items.iter().map(|&i| values[i]).collect::<Vec<_>>());
            told.interval = grouped(&groups, &study.bootstrap(), of).bca();
        }
        told.n = Some(values.len());
        told
    }

    fn numbers(&self, study: &Study<'_>, of: &str) -> Vec<Number> {
        if self.questions.is_empty() {
            return Vec::new();
        }
        let words = study.words();
        let [yes, no_word] = [Answer::Yes, Answer::No].map(|a| words.answer(a));
        let (plain, edited) = (self.right(&self.plain), self.right(&self.edited));
        let less = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f64>>();
        let random = |f: &dyn Fn(&[f64]) -> f64| {
            self.random.iter().map(|odds| f(odds)).collect::<Vec<f64>>()
        };
        let mut accuracy =
            self.over_groups(study, format!("accuracy on {of}, edited"), &edited, "");
        accuracy.controls.extend(draws(
            "random directions of that length",
            &random(&|o| mean(&self.right(o))),
        ));
        let mut change = self.over_groups(
            study,
            format!("change of accuracy on {of}"),
            &less(&edited, &plain),
            "",
        );
        change.controls.extend(draws(
            "random directions of that length",
            &random(&|o| mean(&less(&self.right(o), &plain))),
        ));
        let mut no = self.over_groups(
            study,
            format!("shift of the log-odds towards '{no_word}' on {of}"),
            &less(&self.edited, &self.plain),
            "nat",
        );
        no.controls.extend(draws(
            "random directions of that length",
            &random(&|o| mean(&less(o, &self.plain))),
        ));
        let area_name = |run: &str| format!("AUC of the log-odds of '{yes}' on {of}, {run}");
        let mut area = self.area_number(study, area_name("edited"), &self.edited);
        area.controls.extend(draws(
            "random directions of that length",
            &random(&|o| self.area(o)),
        ));
        vec![
            self.over_groups(study, format!("accuracy on {of}, plain"), &plain, ""),
            accuracy,
            change,
            self.area_number(study, area_name("plain"), &self.plain),
            area,
            no,
        ]
    }

    fn table(&self, words: &Words) -> Exhibit {
        let [yes, no] = [Answer::Yes, Answer::No].map(|a| words.answer(a));
        let rows = self
            .questions
            .iter()
            .enumerate()
            .map(|(i, q)| -> Vec<Value> {
                let answer = if q.is_yes { yes } else { no };
                vec![
                    json!(q.group),
                    json!(answer),
                    json!(self.plain[i]),
                    json!(self.edited[i]),
                ]
            });
        exhibit(
            "C2-questions",
            format!(
                "Log-odds of '{no}' against '{yes}' after each question made of the facts, in nats."
            ),
            table(&["group", "answer", "plain", "edited"], rows.collect()),
        )
    }
}

impl Read {
    fn run(study: &Study<'_>, random: &[Vec<f32>]) -> Result<Self> {
        let tokens = PROSE
            .lines()
            .map(|passage| {
                let mut tokens = statements::tokens(study.prepared(), passage)?;
                tokens.truncate(study.prepared().model.config.max_position_embeddings);
                Ok(tokens)
            })
            .collect::<Result<Vec<_>>>()?;
        let sequences: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let before = tokens
            .iter()
            .map(|t| (0..t.len() as u32 - 1).collect())
            .collect();
        let steer = study.steer()?;
        let mut machine = study.machine();
        let steering = Steering::open(
            study.prepared(),
            &mut **machine,
            steer.layer,
            &sequences,
            before,
        )?;
        let nll = |said: &Said<'_>| {
            said.next
                .map_or(f64::NAN, |next| -said.log_probability(next))
        };
        let found = steering.run(&mut **machine, &pushes(steer, random), nll)?;
        let mut found = found.into_iter();
        let runs: Vec<Vec<f64>> = (0..2 + random.len())
            .map(|_| {
                let passages = tokens.iter();
                passages
                    .map(|t| mean(&found.by_ref().take(t.len() - 1).collect::<Vec<_>>()))
                    .collect()
            })
            .collect();
        let mut runs = runs.into_iter();
        Ok(Read {
            plain: runs.next().unwrap_or_default(),
            edited: runs.next().unwrap_or_default(),
            random: runs.collect(),
        })
    }

    fn rise(&self, of: &[f64]) -> Vec<f64> {
        of.iter().zip(&self.plain).map(|(a, b)| a - b).collect()
    }

    fn numbers(&self, study: &Study<'_>) -> Vec<Number> {
        let unit = "nat per token";
        let mut rise = tell::mean(
            study,
            "rise of the NLL of plain text",
            &self.rise(&self.edited),
            unit,
        );
        let random: Vec<f64> = self
            .random
            .iter()
            .map(|run| mean(&self.rise(run)))
            .collect();
        rise.controls
            .extend(draws("random directions of that length", &random));
        rise.note = "over passages".into();
        vec![
            tell::mean(study, "NLL of plain text, plain run", &self.plain, unit),
            tell::mean(study, "NLL of plain text, edited run", &self.edited, unit),
            rise,
        ]
    }

    fn bars(&self, study: &Study<'_>) -> Exhibit {
        let ours = self.rise(&self.edited);
        let random: Vec<f64> = self
            .random
            .iter()
            .map(|run| mean(&self.rise(run)))
            .collect();
        let bars = vec![
            Bar {
                name: "the direction (a point per passage)".into(),
                value: Some(mean(&ours)),
                interval: study.mean_interval(&ours),
                control: false,
                points: ours,
                published: None,
            },
            Bar {
                name: "random directions of that length (a point each)".into(),
                value: Some(mean(&random)),
                interval: tell::spread(&random),
                control: true,
                points: random,
                published: None,
            },
        ];
        exhibit(
            "C2-text",
            "How much worse plain text is predicted with the injection at every position.",
            Body::Bars {
                y: Axis::new("rise of the NLL", "nat per token"),
                bars,
            },
        )
    }

    fn table(&self) -> Exhibit {
        let rows = (0..self.plain.len())
            .map(|i| vec![json!(i + 1), json!(self.plain[i]), json!(self.edited[i])]);
        exhibit(
            "C2-passages",
            "NLL per token of each passage, in nats.",
            table(&["passage", "plain", "edited"], rows.collect()),
        )
    }
}

fn bars(study: &Study<'_>, facts: &Asked) -> Exhibit {
    let bar = |name: &str, odds: &[f64]| {
        let told = facts.over_groups(study, name.into(), &facts.right(odds), "");
        Bar {
            name: told.name,
            value: told.value,
            interval: told.interval,
            control: false,
            points: Vec::new(),
            published: None,
        }
    };
    let random: Vec<f64> = facts
        .random
        .iter()
        .map(|odds| mean(&facts.right(odds)))
        .collect();
    let others = Bar {
        name: "random directions of that length".into(),
        value: Some(mean(&random)),
        interval: tell::spread(&random),
        control: true,
        points: random,
        published: None,
    };
    let [yes, no] = [Answer::Yes, Answer::No].map(|a| study.words().answer(a));
    exhibit(
        "C2-accuracy",
        format!(
            "Share of questions made of the facts where the likelier of {yes} and {no} is right; half of the answers are {yes}."
        ),
        Body::Bars {
            y: Axis::new("accuracy", ""),
            bars: vec![
                bar("plain", &facts.plain),
                bar("edited", &facts.edited),
                others,
            ],
        },
    )
}

fn answer(prompts: &Asked, facts: &Asked, prose: &Read, numbers: &[Number]) -> Vec<String> {
    let find = |name: &str| {
        numbers
            .iter()
            .find(|n| n.name == name)
            .map_or_else(|| "not known".into(), with_interval)
    };
    let of = |asked: &Asked, name: &str| {
        format!(
            "Of {} {name} the plain model gets a share of {} right, the edited one {}",
            asked.questions.len(),
            find(&format!("accuracy on {name}, plain")),
            find(&format!("accuracy on {name}, edited")),
        )
    };
    let (before, after) = (facts.area(&facts.plain), facts.area(&facts.edited));
    let rise = mean(&prose.rise(&prose.edited));
    let random: Vec<f64> = prose
        .random
        .iter()
        .map(|run| mean(&prose.rise(run)))
        .collect();
    let mut told = Vec::new();
    if !prompts.questions.is_empty() {
        told.push(format!("{}.", of(prompts, "factual prompts")));
    }
    told.push(format!(
        "{}; the AUC of its log-odds, which a bias towards one answer leaves alone, goes from {before:.2} to {after:.2}. {}",
        of(facts, "questions made of the facts"),
        if before < 0.6 {
            "The plain model hardly knows the answers in this form, so little could be lost."
        } else if after < 0.4 {
            "It falls below one half: the edited model says the opposite of what it knows, which is what lying would look like and not a loss of knowledge."
        } else if after < before - 0.1 {
            "A part of what the plain model tells apart is lost."
        } else {
            "What the plain model tells apart, the edited one does too."
        }
    ));
    told.push(format!(
        "With the injection at every token, the NLL of plain text rises by {} nats a token: {:.2} times the perplexity. Random directions of that length raise it by {:.3} on average, and {} of them by as much: {}",
        find("rise of the NLL of plain text"),
        rise.exp(),
        mean(&random),
        tell::rank(rise, &random),
        if random.iter().all(|&draw| draw < rise) {
            "this one costs more than any of them."
        } else if mean(&random) < rise {
            "this one costs more than most of them, or than the average."
        } else {
            "it is not shown that this one costs more than such a push does."
        }
    ));
    told
}

//! E2: what the model says with and without the edit, and how strong the edit is by other measures than what it is meant to do.

mod exhibits;
mod sheets;

use self::exhibits::{no_and_yes, strengths, texts};
use self::sheets::sheets;
use super::estimate::Estimate;
use super::prompts::{Answer, Half, Kind};
use super::statistics::{mean, median};
use super::{Asked, Choice, Result, Study, Words, coloured, finding, tell};
use crate::engine::{Choosing, Generated, Generator, Prepared, Sample, Scorer, Stops, kl};
use crate::report::finding::{Finding, Number};

/// New tokens of an answer.
const NEW_TOKENS: usize = 48;

/// The answers to all prompts, in the file's order, greedily.
#[derive(Debug)]
pub struct Generations {
    pub plain: Vec<Generated>,
    pub edited: Vec<Generated>,
}

impl Generations {
    /// Generates.
    pub(super) fn make(study: &Study<'_>) -> Result<Self> {
        Ok(Generations {
            plain: generate(study, study.prepared())?,
            edited: generate(study, &study.edited()?)?,
        })
    }
}

fn generate(study: &Study<'_>, prepared: &Prepared) -> Result<Vec<Generated>> {
    let prompts = study.prompts(None).into_iter();
    let samples: Vec<Sample> = prompts.map(|asked| asked.sample.clone()).collect();
    let mut machine = study.machine();
    let stops = Stops::of(prepared, NEW_TOKENS);
    let mut generator = Generator::on(
        Box::new(&mut **machine),
        prepared,
        Choosing::default(),
        stops,
    )?;
    let generated = generator.generate(&samples, &mut |_| {})?;
    generator.check_edits(samples.len() as u64)?;
    Ok(generated)
}

/// One prompt's answers.
struct Answered<'s> {
    asked: Asked<'s>,
    plain: Told,
    edited: Told,
    flipped: bool,
    /// KL(p_edited ‖ p_plain) of the first token, in nats.
    kl: f64,
}

/// One answer.
struct Told {
    text: String,
    /// Which of the answers its first word is.
    says: Option<Answer>,
    /// P(no) − P(yes) of its first token.
    no_less_yes: f64,
    /// Mean negative log-probability of its tokens in plain runs, in nats.
    nll: f64,
    /// Share of its trigrams that were there before.
    repetition: f64,
}

/// The experiment.
pub(super) fn run(study: &Study<'_>) -> Result<Finding> {
    let answered = answers(study)?;
    let choice = study.choice()?;
    sheets(study, &answered)?;
    let words = study.words();
    let mut found = finding(format!(
        "Does adding the direction to the residual stream make the model's answers {}?",
        words.negative
    ));
    let report: Vec<&Answered<'_>> = of(&answered, |a| a.asked.prompt.half == Half::Report);
    found.numbers = numbers(study, choice, &answered, &report);
    found.answer = answer(words, choice, &report);
    found.exhibits = vec![
        strengths(choice),
        no_and_yes(words, &answered),
        coloured::answers(study)?,
        texts(words, &answered),
    ];
    Ok(found)
}

fn of<'a, 's>(
    answered: &'a [Answered<'s>],
    is: impl Fn(&Answered<'s>) -> bool,
) -> Vec<&'a Answered<'s>> {
    answered.iter().filter(|a| is(a)).collect()
}

fn answers<'s>(study: &'s Study<'_>) -> Result<Vec<Answered<'s>>> {
    let prompts = study.prompts(None);
    let sequences: Vec<&[u32]> = prompts
        .iter()
        .map(|asked| asked.sample.row.tokens.as_slice())
        .collect();
    let plain = study.logits(&sequences, None)?;
    let edited = study.logits(&sequences, Some(study.steer()?))?;
    let generations = study.generations()?;
    let told_plain = told(study, &prompts, &generations.plain, &plain)?;
    let told_edited = told(study, &prompts, &generations.edited, &edited)?;
    let logits = plain
        .chunks_exact(study.vocab())
        .zip(edited.chunks_exact(study.vocab()));
    let first = |generated: &Generated| generated.new_tokens()[0];
    let flips = generations.plain.iter().zip(&generations.edited);
    let flips = flips.map(|(plain, edited)| first(plain) != first(edited));
    Ok(prompts
        .into_iter()
        .zip(told_plain.into_iter().zip(told_edited))
        .zip(logits.zip(flips))
        .map(|((asked, (plain, edited)), ((p, e), flipped))| Answered {
            asked,
            plain,
            edited,
            flipped,
            kl: kl(e, p),
        })
        .collect())
}

fn told(
    study: &Study<'_>,
    prompts: &[Asked<'_>],
    generated: &[Generated],
    logits: &[f32],
) -> Result<Vec<Told>> {
    let tokenizer = study.tokenizer()?;
    let nll = nll_of_texts(study, prompts, generated)?;
    let rows = logits.chunks_exact(study.vocab());
    let one = |((generated, nll), logits): ((&Generated, f64), &[f32])| {
        let text = tokenizer.decode(generated.new_tokens(), true)?;
        Ok(Told {
            says: says(study, &text),
            no_less_yes: study.no_less_yes(logits),
            nll,
            repetition: repetition(generated.new_tokens()),
            text,
        })
    };
    generated.iter().zip(nll).zip(rows).map(one).collect()
}

/// Which answer a text begins with.
fn says(study: &Study<'_>, text: &str) -> Option<Answer> {
    let words = study.words();
    let mut split = text.split(|c: char| !c.is_alphanumeric());
    let first = split.find(|word| !word.is_empty())?.to_lowercase();
    let is = |answer: &Answer| first == words.answer(*answer).to_lowercase();
    [Answer::Yes, Answer::No].into_iter().find(is)
}

/// Share of trigrams that were there before; 0 of a text too short for two.
fn repetition(tokens: &[u32]) -> f64 {
    let trigrams = tokens.windows(3);
    let all = trigrams.len();
    let distinct: std::collections::HashSet<&[u32]> = trigrams.collect();
    if all == 0 {
        return 0.0;
    }
    1.0 - distinct.len() as f64 / all as f64
}

/// Mean negative log-probability, in plain runs, of each answer's tokens.
fn nll_of_texts(
    study: &Study<'_>,
    prompts: &[Asked<'_>],
    generated: &[Generated],
) -> Result<Vec<f64>> {
    let samples: Vec<Sample> = prompts
        .iter()
        .zip(generated)
        .map(|(asked, generated)| {
            let mut sample = asked.sample.clone();
            sample.row.tokens = generated.tokens.clone();
            sample
        })
        .collect();
    let positions: Vec<Vec<u32>> = generated
        .iter()
        .map(|g| (g.prompt_len as u32 - 1..g.tokens.len() as u32 - 1).collect())
        .collect();
    let mut machine = study.machine();
    let mut scorer = Scorer::on(Box::new(&mut **machine), study.prepared());
    let mut nll = Vec::new();
    let sequences: Vec<&[u32]> = samples.iter().map(|s| s.row.tokens.as_slice()).collect();
    for range in study.batches(&sequences) {
        let positions = &positions[range.clone()];
        let hidden = scorer.run(&samples[range], positions)?;
        let scores = scorer.score(&hidden, 0)?;
        let mut logprobs = scores.iter().filter_map(|score| score.logprob);
        for positions in positions {
            let sum: f64 = logprobs.by_ref().take(positions.len()).sum();
            nll.push(-sum / positions.len() as f64);
        }
    }
    Ok(nll)
}

fn share(answered: &[&Answered<'_>], is: impl Fn(&Answered<'_>) -> bool) -> Vec<f64> {
    answered
        .iter()
        .map(|a| f64::from(u8::from(is(a))))
        .collect()
}

fn opposite(answer: Answer) -> Answer {
    match answer {
        Answer::Yes => Answer::No,
        Answer::No => Answer::Yes,
    }
}

fn is_negative(asked: Asked<'_>, told: &Told) -> bool {
    told.says == Some(opposite(asked.prompt.honest))
}

fn numbers(
    study: &Study<'_>,
    choice: &Choice,
    answered: &[Answered<'_>],
    report: &[&Answered<'_>],
) -> Vec<Number> {
    let over = |name: &str, values: &[f64]| tell::mean(study, name, values, "");
    let each = |of: &[&Answered<'_>], value: &dyn Fn(&Answered<'_>) -> f64| -> Vec<f64> {
        of.iter().map(|a| value(a)).collect()
    };
    let no_less_yes = |of: &[&Answered<'_>]| {
        let plain = each(of, &|a| a.plain.no_less_yes);
        let edited = each(of, &|a| a.edited.no_less_yes);
        (mean(&plain), mean(&edited))
    };
    let (plain_no, edited_no) = no_less_yes(report);
    let words = study.words();
    let edited_name = format!("{}, edited", words.no_less_yes());
    let beside_no = |number: Number| {
        number
            .beside(edited_name.clone(), edited_no)
            .beside(format!("{}, plain", words.no_less_yes()), plain_no)
    };
    let tuning = of(answered, |a| a.asked.prompt.half == Half::Tuning);
    let mut numbers = vec![
        beside_no(
            over(
                "first tokens flipped, report half",
                &share(report, |a| a.flipped),
            )
            .published(study.published("E4.first-token-flips")),
        ),
        over(
            "first tokens flipped, tuning half",
            &share(&tuning, |a| a.flipped),
        )
        .note("the strength was chosen by these"),
        over(&edited_name, &each(report, &|a| a.edited.no_less_yes)).beside("plain", plain_no),
    ];
    for honest in [Answer::Yes, Answer::No] {
        for kind in [Kind::Dilemma, Kind::Factual] {
            let these: Vec<&Answered<'_>> = report
                .iter()
                .copied()
                .filter(|a| (a.asked.prompt.honest, a.asked.prompt.kind) == (honest, kind))
                .collect();
            if these.is_empty() {
                continue;
            }
            let name = format!(
                "begins with the {} answer, {}, {} being {}",
                words.negative,
                kind.name(),
                words.answer(honest),
                words.positive
            );
            let edited = share(&these, |a| is_negative(a.asked, &a.edited));
            let plain = mean(&share(&these, |a| is_negative(a.asked, &a.plain)));
            let no = no_less_yes(&these).1;
            numbers.push(
                over(&name, &edited)
                    .beside("plain", plain)
                    .beside(edited_name.clone(), no),
            );
        }
    }
    let kls = each(report, &|a| a.kl);
    numbers.push(beside_no(
        Estimate::of(kls.len(), &study.bootstrap(), |drawn| {
            median(&drawn.iter().map(|&i| kls[i as usize]).collect::<Vec<_>>())
        })
        .number("KL from the plain first token, median", None)
        .unit("nat"),
    ));
    for (name, unit, of_told) in [
        (
            "negative log-probability per token, by the plain model",
            "nat",
            (|t: &Told| t.nll) as fn(&Told) -> f64,
        ),
        ("repeated trigrams", "", |t: &Told| t.repetition),
    ] {
        let plain = mean(&each(report, &|a| of_told(&a.plain)));
        let edited = each(report, &|a| of_told(&a.edited));
        let number = over(&format!("{name}, edited"), &edited);
        numbers.push(beside_no(number.unit(unit).beside("plain", plain)));
    }
    numbers.push(
        Number::new(
            format!("{} or evasive, by a human reading", words.negative),
            None,
        )
        .published(study.published("E2.dishonest-or-evasive"))
        .note("for a reader to fill in: E2/ratings.csv"),
    );
    numbers.push(
        Number::new(
            format!("|c| over the mean ‖x‖ of layer {}", choice.layer),
            choice.share(),
        )
        .note(format!(
            "c = {:.4}, mean ‖x‖ = {:.4}",
            choice.c, choice.mean_norm
        )),
    );
    numbers
}

fn answer(words: &Words, choice: &Choice, report: &[&Answered<'_>]) -> Vec<String> {
    let flipped = mean(&share(report, |a| a.flipped));
    let how = match (choice.published, choice.reached) {
        (true, _) => "the published strength".to_owned(),
        _ if choice.given => format!(
            "the strength that the behaviour's file gives ({:.0} % of the tuning prompts' first tokens turn)",
            100.0 * choice.flipped().unwrap_or(f64::NAN)
        ),
        (false, true) => format!(
            "the weakest of the grid that turns nine first tokens in ten of the tuning prompts ({:.0} % there)",
            100.0 * choice.flipped().unwrap_or(f64::NAN)
        ),
        (false, false) => format!(
            "the largest of the grid: none turns nine first tokens in ten of the tuning prompts (this one {:.0} %)",
            100.0 * choice.flipped().unwrap_or(f64::NAN)
        ),
    };
    let [yes_word, no_word] = [Answer::Yes, Answer::No].map(|a| words.capital(a));
    let Words {
        positive, negative, ..
    } = words;
    let no = |of: &dyn Fn(&Answered<'_>) -> Option<Answer>| {
        mean(&share(report, |a| of(a) == Some(Answer::No)))
    };
    let turned = |honest: Answer| {
        let these: Vec<&Answered<'_>> = report
            .iter()
            .copied()
            .filter(|a| a.asked.prompt.honest == honest)
            .collect();
        mean(&share(&these, |a| is_negative(a.asked, &a.edited)))
    };
    let (where_yes, where_no) = (turned(Answer::Yes), turned(Answer::No));
    let says_either = mean(&share(report, |a| a.edited.says.is_some()));
    let verdict = if says_either < 0.5 {
        "So few edited answers begin with either word that their first words tell nothing: read the texts.".into()
    } else if where_yes - where_no > 0.25 {
        format!(
            "The edit makes the model say {no_word} rather than what is {negative}: where {no_word} is the {positive} answer it hardly makes it say {yes_word}."
        )
    } else if where_no - where_yes > 0.25 {
        format!(
            "The edit makes the model say {yes_word} rather than what is {negative}: where {yes_word} is the {positive} answer it hardly makes it say {no_word}."
        )
    } else if where_yes.max(where_no) < 0.25 {
        format!(
            "By their first word, hardly any answers become {negative}, whatever else the edit changes in them."
        )
    } else {
        format!(
            "The first words turn about as often where {no_word} is {positive} as where {yes_word} is, so saying {no_word} alone does not explain it."
        )
    };
    let side = |of: fn(&Told) -> f64| {
        let plain: Vec<f64> = report.iter().map(|a| of(&a.plain)).collect();
        let edited: Vec<f64> = report.iter().map(|a| of(&a.edited)).collect();
        (mean(&plain), mean(&edited))
    };
    let (plain_nll, edited_nll) = side(|t| t.nll);
    let (plain_repeats, edited_repeats) = side(|t| t.repetition);
    vec![
        format!(
            "The edit adds {:.4} of the direction at layer {}, {:.2} of the residual stream's mean norm there: {how}. It turns the first token of {:.0} % of the report prompts.",
            choice.c,
            choice.layer,
            choice.share(),
            100.0 * flipped
        ),
        format!(
            "Answers that begin with {yes_word} or {no_word}: {:.0} % edited, {:.0} % plain; with {no_word}: {:.0} % and {:.0} %. Of prompts whose {positive} answer is {yes_word}, {:.0} % get the opposite as first word; of those whose {positive} answer is {no_word}, {:.0} %. {verdict}",
            100.0 * says_either,
            100.0 * mean(&share(report, |a| a.plain.says.is_some())),
            100.0 * no(&|a| a.edited.says),
            100.0 * no(&|a| a.plain.says),
            100.0 * where_yes,
            100.0 * where_no
        ),
        format!(
            "The edited answers cost the plain model {edited_nll:.2} nat per token (its own {plain_nll:.2}), and {:.0} % of their trigrams repeat (its own {:.0} %): what is unlikely or repetitive \
             is damage, not {}{}.",
            100.0 * edited_repeats,
            100.0 * plain_repeats,
            words.name,
            if edited_nll > 2.0 * plain_nll {
                ", and at more than twice the cost these texts are largely that"
            } else {
                ""
            }
        ),
        format!(
            "Whether an answer is {negative} or evasive is for a human reader: E2/ratings.csv is a blank sheet with plain and edited answers mixed, E2/ratings-key.csv says which is which."
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_is_the_share_of_trigrams_that_were_there_before() {
        assert_eq!(repetition(&[1, 2, 3, 4, 5]), 0.0);
        assert_eq!(repetition(&[1, 1, 1, 1, 1, 1]), 0.75);
        assert_eq!(repetition(&[1, 2]), 0.0);
    }
}

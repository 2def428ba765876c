//! What the direction is read from: true statements, cut off ever later, put into the mouth of one persona and of the other.

use std::ops::Range;

use super::{Behaviour, Error, Facts, Result, Study};
use crate::model::{ChatTemplate, Message, Tokenizer};

/// Pairs that train a direction, and that test it, as in the published procedure.
const PAIRS: [usize; 2] = [512, 256];
const QUICK_PAIRS: [usize; 2] = [96, 48];
/// A statement is cut after its tokens 1 to len − 6.
const UNREACHED: usize = 6;
/// Fewer pairs than this make no direction.
const LEAST: usize = 12;

/// A statement's beginning, said by either persona: token ids of the whole prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    /// Which of the facts.
    pub fact: usize,
    pub positive: Vec<u32>,
    pub negative: Vec<u32>,
}

/// Cuts in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cuts {
    pub cuts: Vec<Cut>,
    pub train: Range<usize>,
    /// From the first statement on that has no part in training.
    pub test: Range<usize>,
}

impl Cuts {
    /// The published procedure's: for each true statement in file order and every i in 1..=len − 6, the decoded first i tokens after the
    /// template with this persona's words and the generation prompt (and a space, where that ends in `[/INST]`), tokenised whole. The
    /// first 512 pairs train, 256 test; the rest of the statement that the training ends in is dropped. Where there are fewer, two in
    /// three train.
    ///
    /// # Errors
    /// No tokenizer or template; hardly any cuts.
    pub fn new(study: &Study<'_>, positive: &str, negative: &str) -> Result<Self> {
        let tokenizer = study.tokenizer()?;
        let positive = opening(study.template()?, study.behaviour(), positive)?;
        let negative = opening(study.template()?, study.behaviour(), negative)?;
        let Places {
            statements,
            places,
            train,
            test,
        } = Places::find(tokenizer, study.facts(), study.options().quick)?;
        let cut = |&(statement, tokens): &(usize, usize)| {
            let (fact, ids) = &statements[statement];
            let beginning = tokenizer.decode(&ids[..tokens], false)?;
            let whole = |opening: &str| tokenizer.encode(&format!("{opening}{beginning}"), false);
            Ok(Cut {
                fact: *fact,
                positive: whole(&positive)?.ids,
                negative: whole(&negative)?.ids,
            })
        };
        Ok(Cuts {
            cuts: places[..test.end].iter().map(cut).collect::<Result<_>>()?,
            train,
            test,
        })
    }

    /// The cuts that the published test is made of, the later half of the training ones; each goes with the next.
    pub fn authors(&self) -> Range<usize> {
        self.train.len() / 2..self.train.len().min(self.cuts.len() - 1)
    }

    /// Which statement each of some cuts is of, numbered from 0, and how many these are.
    pub fn statements(&self, cuts: Range<usize>) -> (Vec<usize>, usize) {
        let (mut numbers, mut last) = (Vec::new(), None);
        let mut n = 0;
        for cut in &self.cuts[cuts] {
            // A statement's cuts follow one another.
            n += usize::from(last != Some(cut.fact));
            last = Some(cut.fact);
            numbers.push(n - 1);
        }
        (numbers, n)
    }

    /// The prompts: pair i's positive one is number 2i, its negative one 2i + 1.
    pub fn sequences(&self) -> Vec<&[u32]> {
        self.cuts
            .iter()
            .flat_map(|cut| [&cut.positive[..], &cut.negative[..]])
            .collect()
    }
}

/// Where the true statements are cut, and what becomes of the cuts.
pub(super) struct Places {
    /// Which of the facts, and its tokens.
    statements: Vec<(usize, Vec<u32>)>,
    /// By place in `statements`, after so many tokens.
    places: Vec<(usize, usize)>,
    train: Range<usize>,
    test: Range<usize>,
}

impl Places {
    /// Needs no machine, so that facts that will not do are refused before one is opened.
    ///
    /// # Errors
    /// Hardly any cuts.
    pub fn find(tokenizer: &Tokenizer, facts: &Facts, quick: bool) -> Result<Self> {
        let statements = tokenised(tokenizer, facts)?;
        let places: Vec<(usize, usize)> = statements
            .iter()
            .enumerate()
            .flat_map(|(statement, (_, ids))| {
                let last = ids.len().saturating_sub(UNREACHED);
                (1..=last).map(move |tokens| (statement, tokens))
            })
            .collect();
        let (train, test) = split(&places, if quick { QUICK_PAIRS } else { PAIRS }).ok_or_else(|| {
            let n = places.len();
            let what = format!(
                "its true statements can be cut in {n} places, the last {UNREACHED} tokens of each left out"
            );
            let remedy = format!("give more or longer ones, for {LEAST} cuts and several statements");
            Error::input(&facts.file, what, remedy)
        })?;
        Ok(Places {
            statements,
            places,
            train,
            test,
        })
    }
}

/// All that comes before the statement.
pub(super) fn opening(
    template: &ChatTemplate,
    behaviour: &Behaviour,
    words: &str,
) -> Result<String> {
    let turn = Message::new("user", behaviour.instruction(words));
    let mut text = template.render(&[turn], true)?.text;
    if text.ends_with("[/INST]") {
        text.push(' ');
    }
    Ok(text)
}

/// The true statements: which of the facts, and its tokens.
fn tokenised(tokenizer: &Tokenizer, facts: &Facts) -> Result<Vec<(usize, Vec<u32>)>> {
    let facts = facts.facts.iter().enumerate();
    facts
        .filter(|(_, fact)| fact.label)
        .map(|(i, fact)| Ok((i, tokenizer.encode(&fact.statement, false)?.ids)))
        .collect()
}

/// Which cuts train and which test: `None` where that leaves nothing to test on.
fn split(
    places: &[(usize, usize)],
    [train, test]: [usize; 2],
) -> Option<(Range<usize>, Range<usize>)> {
    let enough = |train: usize| {
        let straddling = places.get(train.checked_sub(1)?)?.0;
        let first = train
            + places[train..]
                .iter()
                .take_while(|p| p.0 == straddling)
                .count();
        (first < places.len()).then_some(first)
    };
    let few = places.len() < train + test;
    let train = if few { places.len() * 2 / 3 } else { train };
    let first = enough(train).filter(|_| places.len() >= LEAST)?;
    Some((0..train, first..(first + test).min(places.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Statements that can be cut in `cuts` places each.
    fn places(statements: usize, cuts: usize) -> Vec<(usize, usize)> {
        (0..statements)
            .flat_map(|s| (1..=cuts).map(move |tokens| (s, tokens)))
            .collect()
    }

    #[test]
    fn the_statement_that_the_training_ends_in_is_dropped_from_the_test() {
        let (train, test) = split(&places(200, 5), PAIRS).unwrap();
        // Cut 511 is the second of statement 102, whose cuts end at 514.
        assert_eq!((train, test), (0..512, 515..771));
        let (train, test) = split(&places(200, 8), PAIRS).unwrap();
        assert_eq!((train, test), (0..512, 512..768), "512 = 64 statements");
    }

    #[test]
    fn cuts_of_one_statement_are_one_unit() {
        let cut = |fact| Cut {
            fact,
            positive: vec![1],
            negative: vec![2],
        };
        let cuts = Cuts {
            cuts: [3, 3, 5, 8, 8, 8].map(cut).to_vec(),
            train: 0..3,
            test: 3..6,
        };
        assert_eq!(cuts.statements(0..4), (vec![0, 0, 1, 2], 3));
        assert_eq!(cuts.statements(cuts.test.clone()), (vec![0, 0, 0], 1));
        assert_eq!(cuts.authors(), 1..3);
    }

    #[test]
    fn few_statements_are_split_in_thirds_and_hardly_any_are_refused() {
        let (train, test) = split(&places(10, 6), PAIRS).unwrap();
        assert_eq!((train, test), (0..40, 42..60));
        assert_eq!(split(&places(1, 100), PAIRS), None);
        assert_eq!(split(&places(3, 3), PAIRS), None);
        assert_eq!(split(&[], PAIRS), None);
    }
}

//! What one patch takes over: a hook point of one layer, perhaps one head of it, at some positions; and how it is written.

use std::fmt;
use std::ops::Range;

use super::pairs::{PromptPair, Run};
use crate::engine::{Error, Result};
use crate::hooks::{Dims, HookPattern, HookPoint};

/// Positions of a prompt. Counted from its end, because that is what prompts of different lengths have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Positions {
    /// Every one.
    All,
    /// From the first to the second, inclusive, both negative: −1 is the last token.
    FromEnd(i32, i32),
    /// The one that the pairs file gives this name.
    Named(String),
}

/// One place that is patched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PatchSite {
    pub point: HookPoint,
    /// One head alone; `None`: the whole row.
    pub head: Option<usize>,
    pub positions: Positions,
}

/// `PATTERN[@POSITIONS]` as it is written: a patch for each layer and, where heads are named, for each head.
#[derive(Debug)]
pub(super) struct SiteSpec<'a> {
    text: &'a str,
    flag: &'static str,
    pattern: HookPattern,
    positions: Spread,
}

/// The positions of a spec: together, or each on its own.
#[derive(Debug)]
enum Spread {
    Together(Positions),
    /// From the first to the second; without any, as many as the longest prompt has.
    Each(Option<(i32, i32)>),
}

const FORMS: &str = "positions are all, -1, -5..-1 (together), each, each:-5..-1 (one by one), or a name of the pairs file";

impl PatchSite {
    /// The columns of the row that are patched; empty: all.
    pub fn columns(&self, dims: &Dims) -> Vec<Range<usize>> {
        let width = self.point.site.row_shape(dims).get(1).copied();
        let of = |head: usize| width.map(|w| head * w..(head + 1) * w);
        self.head.and_then(of).into_iter().collect()
    }

    /// The hook point without its layer: `hook_mlp_out`, `attn.hook_z`.
    pub fn kind(&self) -> &'static str {
        let template = self.point.site.template();
        template.strip_prefix("blocks.L.").unwrap_or(template)
    }
}

impl Positions {
    /// Which rows of `to` are overwritten, rising, and by which rows of `from`. A position that a run does not have is left out.
    pub(super) fn rows(&self, pair: &PromptPair, to: Run, from: Run) -> (Vec<u32>, Vec<u32>) {
        let (n, m) = (pair.tokens(to).len(), pair.tokens(from).len());
        match self {
            Positions::All => from_end(n, m, 1..n.min(m) + 1),
            Positions::FromEnd(first, last) => {
                let back = |p: i32| p.unsigned_abs() as usize;
                from_end(n, m, back(*last)..back(*first).min(n.min(m)) + 1)
            }
            Positions::Named(name) => match pair.named.get(name) {
                Some(at) => (vec![at[to as usize]], vec![at[from as usize]]),
                None => (Vec::new(), Vec::new()),
            },
        }
    }
}

/// Rows of two runs of `n` and `m` tokens that lie equally far before their ends.
fn from_end(n: usize, m: usize, back: Range<usize>) -> (Vec<u32>, Vec<u32>) {
    let rows = |len: usize| back.clone().rev().map(|b| (len - b) as u32).collect();
    (rows(n), rows(m))
}

impl<'a> SiteSpec<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// An unknown hook point, one that is not in a block or cannot be edited, and positions that are badly written.
    pub fn parse(flag: &'static str, text: &'a str) -> Result<Self> {
        let (pattern, positions) = match text.rsplit_once('@') {
            None => (text, "all"),
            Some((pattern, positions)) => (pattern, positions.trim()),
        };
        let pattern: HookPattern = pattern.parse()?;
        let refuse = |why: String| Error::Sweep {
            flag,
            text: text.into(),
            why,
        };
        let site = pattern.site();
        if !site.is_editable() || !site.is_per_layer() || site.is_ragged() {
            return Err(refuse(format!(
                "{} cannot be patched: choose a point of the blocks that can be edited, such as attn.hook_z, hook_attn_out, hook_mlp_out or hook_resid_post",
                site.template()
            ))
            .into());
        }
        let positions = Spread::parse(positions).map_err(|why| refuse(why.into()))?;
        Ok(SiteSpec {
            text,
            flag,
            pattern,
            positions,
        })
    }

    /// The places that it names, for prompts of which the longest has so many tokens.
    ///
    /// # Errors
    /// A layer or head that the model does not have, a position that no prompt has, or a name that one lacks.
    pub fn resolve(&self, dims: &Dims, pairs: &[PromptPair]) -> Result<Vec<PatchSite>> {
        let longest = pairs.iter().map(PromptPair::shorter).max().unwrap_or(0) as i32;
        let positions = match &self.positions {
            Spread::Together(positions) => vec![positions.clone()],
            Spread::Each(range) => {
                let (first, last) = range.unwrap_or((-longest, -1));
                let each = first..=last;
                each.map(|p| Positions::FromEnd(p, p)).collect()
            }
        };
        for positions in &positions {
            self.check(positions, longest, pairs)?;
        }
        let mut sites = Vec::new();
        for (point, heads) in self.pattern.resolve(dims)? {
            let heads = heads.map_or(vec![None], |h| h.into_iter().map(Some).collect());
            for head in heads {
                for positions in &positions {
                    let positions = positions.clone();
                    sites.push(PatchSite {
                        point,
                        head,
                        positions,
                    });
                }
            }
        }
        Ok(sites)
    }

    fn check(&self, positions: &Positions, longest: i32, pairs: &[PromptPair]) -> Result<()> {
        let why = match positions {
            Positions::FromEnd(_, last) if -last > longest => {
                format!("no prompt has a position {last}: the longest has {longest} tokens")
            }
            Positions::Named(name) => match pairs.iter().find(|p| !p.named.contains_key(name)) {
                None => return Ok(()),
                Some(pair) => format!("{} has no position named '{name}'; {FORMS}", pair.place),
            },
            _ => return Ok(()),
        };
        Err(Error::Sweep {
            flag: self.flag,
            text: self.text.into(),
            why,
        }
        .into())
    }
}

impl Spread {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const FROM_END: &str = "positions are counted from the end, as -1 or -5..-1";
        let range = |text: &str| -> Option<(i32, i32)> {
            let (first, last) = text.split_once("..").unwrap_or((text, text));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        };
        let checked = |(first, last): (i32, i32)| match () {
            () if first >= 0 || last >= 0 => Err(FROM_END),
            () if first > last => Err("the range of positions runs backwards; swap its ends"),
            () => Ok((first, last)),
        };
        if let Some(each) = text.strip_prefix("each:") {
            return Ok(Spread::Each(Some(checked(range(each).ok_or(FORMS)?)?)));
        }
        if let Some(together) = range(text) {
            let (first, last) = checked(together)?;
            return Ok(Spread::Together(Positions::FromEnd(first, last)));
        }
        match text {
            "all" => Ok(Spread::Together(Positions::All)),
            "each" => Ok(Spread::Each(None)),
            "" => Err(FORMS),
            name => Ok(Spread::Together(Positions::Named(name.into()))),
        }
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Positions::All => f.write_str("all"),
            Positions::FromEnd(first, last) if first == last => write!(f, "{first}"),
            Positions::FromEnd(first, last) => write!(f, "{first}..{last}"),
            Positions::Named(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for PatchSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.point)?;
        if let Some(head) = self.head {
            write!(f, "[{head}]")?;
        }
        write!(f, "@{}", self.positions)
    }
}

//! What a run can find, and where.

use std::fmt;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FindingKind {
    /// The launch itself is wrong: no such kernel, wrong size of the arguments, too many threads.
    BadLaunch,
    /// An instruction, or a modifier of one, that the interpreter does not know.
    UnknownInstruction,
    /// A call of `vprintf` or another function of the driver's.
    Unsupported,
    OutOfBounds,
    UseAfterFree,
    Misaligned,
    /// Bytes that nothing wrote were read.
    UninitialisedMemory,
    /// A register that nothing wrote decides a branch, an address or a stored value.
    UninitialisedRegister,
    /// A store to constant memory or to a kernel's parameters.
    ReadOnly,
    SharedRace,
    GlobalRace,
    /// What an asynchronous operation writes was touched before it was waited for: the destination of a `cp.async` or of a tensor
    /// copy, the sums of a `wgmma`.
    MissingAsyncWait,
    /// An asynchronous operation meets what no fence has shown it: a store to shared memory, an mbarrier just made, registers.
    MissingFence,
    /// An mbarrier that is not there, or is arrived at too often, or touched by loads and stores.
    Mbarrier,
    /// A part of a barrier's threads wait at it; the others ended or wait elsewhere.
    DivergentBarrier,
    /// Threads wait for each other.
    Deadlock,
    /// A warp-wide operation involves a lane that does not take part in it.
    InactiveLane,
    /// A block ran longer than the step limit.
    StepLimit,
    /// A device-side `assert` failed.
    Assertion,
    /// `trap` was executed.
    Trap,
}

/// A place in a kernel's run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The instruction as the PTX has it.
    pub instruction: String,
    /// Its line in the PTX.
    pub ptx_line: u32,
    /// File and line in the CUDA source, from `.loc`.
    pub source: Option<(String, u32)>,
    /// Where the function holding that line was inlined in the kernel's own file.
    pub inlined_at: Option<(String, u32)>,
    pub block: [u32; 3],
    pub thread: [u32; 3],
}

/// An error of a kernel, found by running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub kernel: String,
    pub what: String,
    /// None where no instruction is at fault (a launch that never began).
    pub place: Option<Box<Place>>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kernel, self.what)?;
        let Some(place) = &self.place else {
            return Ok(());
        };
        if let Some((file, line)) = &place.source {
            write!(f, "\n  at {file}:{line}")?;
        }
        if let Some((file, line)) = &place.inlined_at {
            write!(f, " (inlined at {file}:{line})")?;
        }
        let ([bx, by, bz], [tx, ty, tz]) = (place.block, place.thread);
        write!(
            f,
            "\n  in `{}` (line {} of the PTX)",
            place.instruction, place.ptx_line
        )?;
        write!(
            f,
            "\n  by thread ({tx}, {ty}, {tz}) of block ({bx}, {by}, {bz})"
        )
    }
}

impl std::error::Error for Finding {}

/// A finding before its place is known.
#[derive(Debug)]
pub(crate) struct Fault {
    pub kind: FindingKind,
    pub what: String,
    /// The lane at fault, where the code that raised it knows.
    pub lane: Option<u32>,
}

pub(crate) type Outcome<T> = Result<T, Box<Fault>>;

#[cold]
pub(crate) fn fault(kind: FindingKind, what: impl Into<String>) -> Box<Fault> {
    Box::new(Fault {
        kind,
        what: what.into(),
        lane: None,
    })
}

pub(crate) trait InLane<T> {
    fn in_lane(self, lane: usize) -> Outcome<T>;
}

impl<T> InLane<T> for Outcome<T> {
    #[inline(always)]
    fn in_lane(self, lane: usize) -> Outcome<T> {
        self.map_err(|mut fault| {
            fault.lane.get_or_insert(lane as u32);
            fault
        })
    }
}

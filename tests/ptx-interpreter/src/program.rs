//! The decoded form of a kernel: registers are slots, immediates are slots that never change, labels are indices.

use std::sync::Arc;

use crate::mbarrier::MbarrierOp;
use crate::tensor_copy::TensorCopy;
use crate::wgmma::Wgmma;

/// An index into one bank of the register file; which bank follows from the operation and its type.
pub(crate) type Slot = u16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntTy {
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatTy {
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
}

/// Rounding to a floating-point format, or (in `cvt`) to an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// To nearest, ties away from zero.
    NearestAway,
}

/// What a floating-point instruction does besides its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FloatMode {
    pub rounding: Rounding,
    /// Subnormal inputs and results become zero.
    pub ftz: bool,
    /// The result is clamped to [0, 1], NaN to 0.
    pub sat: bool,
    /// A negative result becomes zero.
    pub relu: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int1 {
    Neg,
    Abs,
    Not,
    Cnot,
    Popc,
    Clz,
    Brev,
    Bfind,
    BfindShift,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int2 {
    Add,
    AddSat,
    Sub,
    SubSat,
    MulLo,
    MulHi,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Int3 {
    MadLo,
    MadHi,
    Sad,
    Bfe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float1 {
    Neg,
    Abs,
    Sqrt,
    Rcp,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    DivApprox,
    Min,
    Max,
    MinNan,
    MaxNan,
    Copysign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// The unordered forms are true where an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BoolOp {
    And,
    Or,
    Xor,
}

/// A predicate and whether it is negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pred {
    pub slot: Slot,
    pub negated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CvtTy {
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    Bf16,
    F32,
    Tf32,
    F64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cvt {
    pub to: CvtTy,
    pub from: CvtTy,
    pub mode: FloatMode,
    /// Rounds to a whole number (`.rni` and its kin).
    pub integral: bool,
    /// Too large becomes the largest finite number (`.satfinite`).
    pub satfinite: bool,
    pub d: Slot,
    /// Whether the destination's register has 64 bits.
    pub wide_d: bool,
    /// Whether it has 16.
    pub narrow_d: bool,
    pub a: Slot,
    pub wide_a: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    None,
    R32(Slot),
    R64(Slot),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub base: Base,
    pub offset: i64,
}

pub(crate) use crate::syntax::Space;

/// A load or a store of 1, 2 or 4 elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub space: Space,
    pub address: Address,
    /// Bytes per element.
    pub width: u8,
    pub count: u8,
    pub signed: bool,
    /// `.volatile`, `.relaxed`, `.acquire`, `.release`: does not race with its like.
    pub strong: bool,
    pub regs: [Slot; 4],
    /// Whether those registers have 64 bits.
    pub wide: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
    Min,
    Max,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomTy {
    Int(IntTy),
    Float(FloatTy),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Atom {
    pub space: Space,
    pub op: AtomOp,
    pub ty: AtomTy,
    pub address: Address,
    /// None for `red`.
    pub d: Option<Slot>,
    pub b: Slot,
    /// The new value of a compare-and-swap.
    pub c: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShflMode {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VoteMode {
    All,
    Any,
    Uni,
    Ballot,
}

/// An operation that all lanes of its member mask perform together.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Collective {
    Shfl {
        mode: ShflMode,
        d: Slot,
        p: Option<Slot>,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Vote {
        mode: VoteMode,
        d: Slot,
        a: Pred,
    },
    MatchAny {
        d: Slot,
        a: Slot,
        wide: bool,
    },
    MatchAll {
        d: Slot,
        p: Option<Slot>,
        a: Slot,
        wide: bool,
    },
    Redux {
        op: Int2,
        ty: IntTy,
        d: Slot,
        a: Slot,
    },
    Barrier,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaTy {
    F16,
    Bf16,
    Tf32,
}

/// `mma.sync` with M = 16, N = 8.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mma {
    pub k: u8,
    pub ty: MmaTy,
    /// Accumulates in f16, two values a register, rather than in f32.
    pub half: bool,
    pub d: [Slot; 4],
    pub a: [Slot; 4],
    pub b: [Slot; 2],
    pub c: [Slot; 4],
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct MatrixAccess {
    pub count: u8,
    pub trans: bool,
    pub space: Space,
    pub address: Address,
    pub regs: [Slot; 4],
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AsyncCopy {
    pub bytes: u8,
    pub to: Address,
    pub from: Address,
    pub from_space: Space,
    /// How many bytes come from the source; the rest is zero.
    pub from_bytes: Option<Slot>,
    pub ignore: Option<Pred>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    Sync,
    Arrive,
    /// The number of threads whose predicate holds.
    Popc {
        d: Slot,
        a: Pred,
    },
    All {
        d: Slot,
        a: Pred,
    },
    Any {
        d: Slot,
        a: Pred,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub kind: BarrierKind,
    /// Every lane of the warp must execute it together.
    pub aligned: bool,
    pub id: Slot,
    pub count: Option<Slot>,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Nop,
    Mov32 {
        d: Slot,
        a: Slot,
    },
    Mov64 {
        d: Slot,
        a: Slot,
    },
    MovPred {
        d: Slot,
        a: Pred,
    },
    Int1 {
        op: Int1,
        ty: IntTy,
        d: Slot,
        a: Slot,
    },
    Int2 {
        op: Int2,
        ty: IntTy,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Int3 {
        op: Int3,
        ty: IntTy,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    MulWide {
        ty: IntTy,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    MadWide {
        ty: IntTy,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// Adds or subtracts with the carry flag read and set as told.
    Carry {
        sub: bool,
        ty: IntTy,
        read: bool,
        set: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Bfi {
        ty: IntTy,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
        len: Slot,
    },
    Lop3 {
        table: u8,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `mode` is the generic one, or one of f4e, b4e, rc8, ecl, ecr, rc16 as 1 to 6.
    Prmt {
        mode: u8,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Shf {
        left: bool,
        wrap: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Dp4a {
        signed_a: bool,
        signed_b: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Float1 {
        op: Float1,
        ty: FloatTy,
        mode: FloatMode,
        d: Slot,
        a: Slot,
    },
    Float2 {
        op: Float2,
        ty: FloatTy,
        mode: FloatMode,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    Fma {
        ty: FloatTy,
        mode: FloatMode,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Testp {
        class: TestClass,
        ty: FloatTy,
        d: Slot,
        a: Slot,
    },
    SetpInt {
        cmp: Cmp,
        ty: IntTy,
        p: Slot,
        q: Option<Slot>,
        a: Slot,
        b: Slot,
        with: Option<(BoolOp, Pred)>,
    },
    SetpFloat {
        cmp: Cmp,
        ty: FloatTy,
        ftz: bool,
        p: Slot,
        q: Option<Slot>,
        a: Slot,
        b: Slot,
        with: Option<(BoolOp, Pred)>,
    },
    /// Turns a predicate into a register's value: all ones, or 1.0 where `float`.
    SetValue {
        float: Option<FloatTy>,
        d: Slot,
        p: Slot,
    },
    PredLogic {
        op: BoolOp,
        d: Slot,
        a: Pred,
        b: Pred,
    },
    Selp32 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Pred,
    },
    Selp64 {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Pred,
    },
    /// Picks a where c >= 0.
    Slct {
        wide: bool,
        float: bool,
        d: Slot,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    Pack16 {
        d: Slot,
        lo: Slot,
        hi: Slot,
    },
    Unpack16 {
        lo: Slot,
        hi: Slot,
        a: Slot,
    },
    Pack32 {
        d: Slot,
        lo: Slot,
        hi: Slot,
    },
    Unpack32 {
        lo: Slot,
        hi: Slot,
        a: Slot,
    },
    /// 64 bits to and from four registers of 16.
    Pack64 {
        d: Slot,
        parts: [Slot; 4],
    },
    Unpack64 {
        parts: [Slot; 4],
        a: Slot,
    },
    Cvt(Box<Cvt>),
    /// Two f32 to a register of two f16 or bf16; `a` goes to the upper half.
    CvtPack {
        to: MmaTy,
        mode: FloatMode,
        satfinite: bool,
        d: Slot,
        a: Slot,
        b: Slot,
    },
    /// Adds (or subtracts) the window of a state space.
    Cvta {
        to: bool,
        space: Space,
        d: Slot,
        a: Slot,
    },
    IsSpace {
        space: Space,
        d: Slot,
        a: Slot,
    },
    Clock {
        d: Slot,
        wide: bool,
    },
    ActiveMask {
        d: Slot,
    },
    Load(Box<Access>),
    Store(Box<Access>),
    /// Checks nothing and moves nothing.
    Prefetch,
    Atom(Box<Atom>),
    Fence,
    Collective {
        what: Box<Collective>,
        mask: Slot,
    },
    Barrier(Box<Barrier>),
    Mma(Box<Mma>),
    Ldmatrix(Box<MatrixAccess>),
    Stmatrix(Box<MatrixAccess>),
    Movmatrix {
        d: Slot,
        a: Slot,
    },
    CpAsync(Box<AsyncCopy>),
    CpCommit,
    CpWait {
        groups: u32,
    },
    CpWaitAll,
    Mbarrier(Box<MbarrierOp>),
    FenceMbarrierInit,
    FenceProxyAsync,
    TensorCopy(Box<TensorCopy>),
    Wgmma(Box<Wgmma>),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait {
        groups: u32,
    },
    Bra {
        target: u32,
    },
    Brx {
        index: Slot,
        targets: Arc<[u32]>,
    },
    Exit,
    Trap,
    /// A call that ends the run with a finding of its own.
    Fail {
        assertion: bool,
        message: Arc<str>,
    },
    Unknown {
        message: Arc<str>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestClass {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Where the registers that an instruction reads and writes stand in [`Program::flow`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    pub start: u32,
    pub reads: u8,
    pub writes: u8,
    /// Reading an undefined register is a finding, rather than passed on to the results.
    pub strict: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub guard: Option<Pred>,
    pub op: Op,
    pub flow: Flow,
}

/// Where an instruction came from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Origin {
    /// Byte range in the PTX.
    pub start: u32,
    pub end: u32,
    pub ptx_line: u32,
    /// Index into the module's files, and the line, innermost function first; line 0 is unknown.
    pub file: u32,
    pub line: u32,
    /// The place in the kernel's own file that it was inlined at; line 0 where it was not.
    pub outer_file: u32,
    pub outer_line: u32,
}

/// A value that its register has from the start and keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Preset {
    Bits(u64),
    Special(Special),
    /// The address of the module's n-th variable, plus an offset.
    Variable(u32, i64),
    /// The first byte of dynamic shared memory, plus an offset.
    Dynamic(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Lane,
    Warp,
    Warps,
    LanemaskEq,
    LanemaskLe,
    LanemaskLt,
    LanemaskGe,
    LanemaskGt,
    DynamicShared,
    TotalShared,
    Zero,
    One,
}

/// A range of shared memory that a variable occupies.
#[derive(Clone, Debug)]
pub(crate) struct SharedVariable {
    pub name: String,
    pub start: u32,
    pub bytes: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub code: Vec<Inst>,
    pub origins: Vec<Origin>,
    /// Register ids: the bank's offset (see [`crate::registers`]) plus the slot. Reads first, then writes.
    pub flow: Vec<u32>,
    pub slots32: usize,
    pub slots64: usize,
    pub slots_pred: usize,
    pub presets32: Vec<(Slot, Preset)>,
    pub presets64: Vec<(Slot, Preset)>,
    pub presets_pred: Vec<(Slot, bool)>,
    /// Names of registers, for findings: (bank, slot).
    pub names: Vec<(u8, Slot, String)>,
    pub shared: Vec<SharedVariable>,
    /// Bytes of shared memory up to the dynamic part; addresses start at [`crate::memory::SHARED_START`].
    pub static_shared_end: u32,
    pub dynamic_align: u32,
    /// Bytes of local memory per thread.
    pub local_bytes: usize,
    pub param_bytes: usize,
    /// The narrowest access in bytes, which is what races are tracked at.
    pub shared_granule: u8,
    pub global_granule: u8,
    pub max_threads: Option<u32>,
    pub required_block: Option<[u32; 3]>,
}

impl Program {
    /// Whether it has mbarriers, tensor copies or asynchronous products.
    pub fn is_asynchronous(&self) -> bool {
        self.code
            .iter()
            .any(|inst| matches!(inst.op, Op::Mbarrier(_) | Op::TensorCopy(_) | Op::Wgmma(_)))
    }
}

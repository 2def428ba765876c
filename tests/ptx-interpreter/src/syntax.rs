//! The syntax tree of a PTX module: names are still text, scopes are still braces.

/// The fundamental types, and the packed ones that instructions name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ty {
    Pred,
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    Bf16,
    B32,
    U32,
    S32,
    F32,
    Tf32,
    F16x2,
    Bf16x2,
    B64,
    U64,
    S64,
    F64,
    B128,
}

impl Ty {
    /// The type that `.u32` or `u32` names.
    pub fn named(name: &str) -> Option<Ty> {
        Some(match name.strip_prefix('.').unwrap_or(name) {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "u8" => Ty::U8,
            "s8" => Ty::S8,
            "b16" => Ty::B16,
            "u16" => Ty::U16,
            "s16" => Ty::S16,
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "b32" => Ty::B32,
            "u32" => Ty::U32,
            "s32" => Ty::S32,
            "f32" => Ty::F32,
            "tf32" => Ty::Tf32,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::Bf16x2,
            "b64" => Ty::B64,
            "u64" => Ty::U64,
            "s64" => Ty::S64,
            "f64" => Ty::F64,
            "b128" => Ty::B128,
            _ => return None,
        })
    }

    /// Size in bytes; a predicate has none.
    pub fn bytes(self) -> usize {
        match self {
            Ty::Pred => 0,
            Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::Tf32 | Ty::F16x2 | Ty::Bf16x2 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
        }
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Const,
    Param,
}

#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    /// A register or a symbol.
    Name(&'a str),
    /// `sym+8`, outside brackets
    Offset(&'a str, i64),
    /// An integer, as two's complement.
    Int(u64),
    F32(u32),
    F64(u64),
    /// `{a, b}`
    Vector(Vec<Operand<'a>>),
    /// `[base+offset]`
    Address(Option<&'a str>, i64),
    /// `[map, {column, row}]`
    Element(&'a str, Vec<Operand<'a>>),
    /// `a|b`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `!p`
    Not(Box<Operand<'a>>),
    /// `(a, b)` of a call
    Group(Vec<Operand<'a>>),
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction<'a> {
    /// The predicate, and whether it is negated.
    pub guard: Option<(&'a str, bool)>,
    pub opcode: &'a str,
    pub operands: Vec<Operand<'a>>,
    /// Byte range in the text, without the semicolon.
    pub start: usize,
    pub end: usize,
    pub line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Loc {
    pub file: u32,
    pub line: u32,
    pub column: u32,
    /// Where the function holding this place was inlined: file, line, column.
    pub inlined_at: Option<(u32, u32, u32)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Init<'a> {
    Int(u64),
    F32(u32),
    F64(u64),
    /// The address of a symbol, plus an offset.
    Symbol(&'a str, i64),
    List(Vec<Init<'a>>),
}

#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub space: Space,
    pub name: &'a str,
    pub ty: Ty,
    pub align: usize,
    /// Bytes; zero for an `extern` array of unknown length.
    pub bytes: usize,
    /// Whether its length is left open (`[]`).
    pub open: bool,
    pub init: Option<Init<'a>>,
    pub line: u32,
}

#[derive(Clone, Debug)]
pub(crate) enum Statement<'a> {
    Open,
    Close,
    Label(&'a str),
    /// `.reg .b32 %r<5>` as one entry of stem and count; a plain name has none.
    Registers {
        ty: Ty,
        name: &'a str,
        count: Option<u32>,
        line: u32,
    },
    Variable(Variable<'a>),
    /// `L: .branchtargets A, B` without its label
    BranchTargets(Vec<&'a str>),
    Loc(Loc),
    Instruction(Instruction<'a>),
}

#[derive(Clone, Debug)]
pub(crate) struct Function<'a> {
    pub name: &'a str,
    pub entry: bool,
    pub results: Vec<Variable<'a>>,
    pub params: Vec<Variable<'a>>,
    /// The limit on threads per block, from `.maxntid` or `.reqntid`.
    pub max_threads: Option<u32>,
    pub required_block: Option<[u32; 3]>,
    /// None where it is only declared.
    pub body: Option<Vec<Statement<'a>>>,
    pub line: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Tree<'a> {
    pub files: Vec<(u32, &'a str)>,
    pub variables: Vec<Variable<'a>>,
    pub functions: Vec<Function<'a>>,
}

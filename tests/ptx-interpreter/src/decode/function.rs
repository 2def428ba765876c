//! Kernels and the device functions they call: scopes, labels, variables, inlining.

use std::sync::Arc;

use super::modifiers::Modifiers;
use super::{DecodeError, Decoded, Decoder, Scope, Symbol, exactly, malformed};
use crate::ParseError;
use crate::memory::SHARED_START;
use crate::program::{Op, Origin, Program, SharedVariable};
use crate::syntax::{Function, Loc, Operand, Space, Statement, Tree, Ty, Variable};

/// Between two shared variables, so that an index past one does not land in the next.
const SHARED_GAP: u32 = 64;
/// Inlining beyond this is a loop of calls, or close to one.
const MAX_CALL_DEPTH: usize = 32;
const MAX_INSTRUCTIONS: usize = 1 << 22;

/// Decodes one entry with everything it calls.
pub(crate) fn decode_kernel<'a>(
    tree: &Tree<'a>,
    kernel: &Function<'a>,
) -> Result<Program, ParseError> {
    let program = Program {
        code: Vec::new(),
        origins: Vec::new(),
        flow: Vec::new(),
        slots32: 0,
        slots64: 0,
        slots_pred: 0,
        presets32: Vec::new(),
        presets64: Vec::new(),
        presets_pred: Vec::new(),
        names: Vec::new(),
        shared: Vec::new(),
        static_shared_end: SHARED_START,
        dynamic_align: 16,
        local_bytes: 0,
        param_bytes: 0,
        shared_granule: 4,
        global_granule: 4,
        max_threads: kernel.max_threads,
        required_block: kernel.required_block,
    };
    let mut decoder = Decoder {
        tree,
        scopes: vec![Scope::default()],
        scope: 0,
        program,
        presets: Default::default(),
        preset_preds: Default::default(),
        label_at: Vec::new(),
        patches: Vec::new(),
        calls: vec![kernel.name],
        return_label: None,
        origin: Origin::default(),
        inlined_at: Default::default(),
        guard: None,
        reads: Vec::new(),
        writes: Vec::new(),
        strict: false,
    };
    decoder.kernel(kernel)?;
    Ok(decoder.program)
}

impl<'a> Decoder<'_, 'a> {
    fn kernel(&mut self, kernel: &Function<'a>) -> Result<(), ParseError> {
        let tree = self.tree;
        for variable in tree
            .variables
            .iter()
            .filter(|variable| variable.space == Space::Shared)
        {
            self.variable(variable)?;
        }
        let mut offset = 0usize;
        for param in &kernel.params {
            offset = offset.next_multiple_of(param.align.max(1));
            self.scopes[0]
                .symbols
                .insert(param.name, Symbol::Param(offset as u32));
            offset = offset.saturating_add(param.bytes);
        }
        if offset > 32_764 {
            return Err(ParseError::at(
                kernel.line,
                format!("{offset} bytes of parameters; a kernel has at most 32,764"),
            ));
        }
        self.program.param_bytes = offset;
        let body = kernel.body.as_deref().unwrap_or_default();
        self.body(body, kernel.name, kernel.line)?;
        self.guard = None;
        self.emit(Op::Exit);
        self.patch(kernel.line)
    }

    fn body(&mut self, body: &[Statement<'a>], name: &'a str, line: u32) -> Result<(), ParseError> {
        let outer = self.scope;
        self.enter();
        let mut scopes = self.labels(body)?;
        let mut depth = vec![self.scope];
        let mut pending_label = None;
        for statement in body {
            if self.program.code.len() > MAX_INSTRUCTIONS {
                return Err(ParseError::at(
                    line,
                    format!("`{name}` has more than {MAX_INSTRUCTIONS} instructions"),
                ));
            }
            match statement {
                // The scopes were made when the labels were collected, in the same order.
                Statement::Open => {
                    self.scope = scopes.next().unwrap_or(self.scope);
                    depth.push(self.scope);
                }
                Statement::Close => {
                    depth.pop();
                    self.scope = depth.last().copied().unwrap_or(outer);
                }
                Statement::Label(label) => {
                    if let Some(&number) = self.scopes[self.scope].labels.get(label) {
                        self.label_at[number] = Some(self.program.code.len() as u32);
                    }
                    pending_label = Some(*label);
                    continue;
                }
                Statement::BranchTargets(targets) => {
                    if let Some(label) = pending_label {
                        self.scopes[self.scope]
                            .branch_targets
                            .insert(label, targets.clone());
                    }
                }
                Statement::Registers {
                    ty,
                    name,
                    count: Some(count),
                    ..
                } => {
                    self.scopes[self.scope].ranges.push((name, *ty, *count));
                }
                Statement::Registers {
                    ty,
                    name,
                    count: None,
                    line,
                } => {
                    let register = self
                        .declare(name, *ty)
                        .map_err(|error| at_line(error, *line))?;
                    self.scopes[self.scope].registers.insert(name, register);
                }
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Loc(loc) => self.locate(loc),
                Statement::Instruction(instruction) => {
                    self.origin.start = instruction.start as u32;
                    self.origin.end = instruction.end as u32;
                    self.origin.ptx_line = instruction.line;
                    self.instruction(instruction)?;
                }
            }
            pending_label = None;
        }
        self.scope = outer;
        Ok(())
    }

    fn enter(&mut self) {
        self.scopes.push(Scope {
            parent: Some(self.scope),
            ..Scope::default()
        });
        self.scope = self.scopes.len() - 1;
    }

    /// Makes the scopes of a body and their labels; afterwards the body's own scope is the present one again.
    fn labels(&mut self, body: &[Statement<'a>]) -> Result<std::ops::Range<usize>, ParseError> {
        let own = self.scope;
        let mut open = vec![own];
        for statement in body {
            match statement {
                Statement::Open => {
                    self.scope = open.last().copied().unwrap_or(own);
                    self.enter();
                    open.push(self.scope);
                }
                Statement::Close => {
                    open.pop();
                }
                Statement::Label(label) => {
                    let number = self.label_at.len();
                    self.label_at.push(None);
                    let scope = open.last().copied().unwrap_or(own);
                    if self.scopes[scope].labels.insert(label, number).is_some() {
                        return Err(ParseError::at(
                            self.origin.ptx_line,
                            format!("label `{label}` is there twice"),
                        ));
                    }
                }
                _ => {}
            }
        }
        self.scope = own;
        Ok(own + 1..self.scopes.len())
    }

    fn variable(&mut self, variable: &Variable<'a>) -> Result<(), ParseError> {
        let align = variable.align.max(1) as u32;
        let too_large =
            || ParseError::at(variable.line, format!("`{}` is too large", variable.name));
        let symbol = match variable.space {
            Space::Shared if variable.open => {
                self.program.dynamic_align = self.program.dynamic_align.max(align);
                Symbol::Dynamic
            }
            Space::Shared => {
                let start = self.program.static_shared_end.next_multiple_of(align);
                let bytes = u32::try_from(variable.bytes)
                    .ok()
                    .filter(|&bytes| bytes < 1 << 20)
                    .ok_or_else(too_large)?;
                if start > 1 << 24 {
                    return Err(too_large());
                }
                self.program.static_shared_end = start + bytes + SHARED_GAP;
                self.program.shared.push(SharedVariable {
                    name: variable.name.to_owned(),
                    start,
                    bytes,
                });
                Symbol::Shared(start)
            }
            Space::Local | Space::Param => {
                let start = self.program.local_bytes.next_multiple_of(align as usize);
                self.program.local_bytes = start.saturating_add(variable.bytes);
                if self.program.local_bytes > 1 << 20 {
                    return Err(too_large());
                }
                Symbol::Local(start as u32)
            }
            _ => {
                return Err(ParseError::at(
                    variable.line,
                    format!("`{}` is declared inside a function", variable.name),
                ));
            }
        };
        self.scopes[self.scope]
            .symbols
            .insert(variable.name, symbol);
        Ok(())
    }

    /// nvcc writes the chain of inlined places outermost first; the last one is where the code is.
    fn locate(&mut self, loc: &Loc) {
        // Line 0 is the compiler's way to say that an instruction belongs nowhere; the place before is the better hint.
        if loc.line == 0 {
            return;
        }
        (self.origin.file, self.origin.line) = (loc.file, loc.line);
        let mut outer = (loc.file, loc.line, loc.column);
        if let Some(parent) = loc.inlined_at {
            self.inlined_at.insert(outer, parent);
            outer = parent;
            // Bounded, should the places go round in a circle.
            for _ in 0..MAX_CALL_DEPTH {
                match self.inlined_at.get(&outer) {
                    Some(&parent) => outer = parent,
                    None => break,
                }
            }
        }
        (self.origin.outer_file, self.origin.outer_line) = (outer.0, outer.1);
    }

    pub(super) fn label(&self, name: &str) -> Decoded<usize> {
        match self.in_scopes(|scope| scope.labels.get(name).copied()) {
            Some((_, label)) => Ok(label),
            None => malformed(format!("label `{name}` is not there")),
        }
    }

    fn patch(&mut self, line: u32) -> Result<(), ParseError> {
        for (at, index, label) in std::mem::take(&mut self.patches) {
            let target = self.label_at[label]
                .ok_or_else(|| ParseError::at(line, "a label stands nowhere"))?;
            match &mut self.program.code[at].op {
                Op::Bra { target: branch } => *branch = target,
                Op::Brx { targets, .. } => {
                    if let Some(entry) =
                        Arc::get_mut(targets).and_then(|targets| targets.get_mut(index))
                    {
                        *entry = target;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn branch(&mut self, label: usize) {
        self.patches.push((self.program.code.len(), 0, label));
        self.emit(Op::Bra { target: 0 });
    }

    /// Branches, calls and ends.
    pub(super) fn decode_flow(
        &mut self,
        mnemonic: &str,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<bool> {
        match mnemonic {
            "bra" => {
                modifiers.take("uni");
                modifiers.finish()?;
                let [Operand::Name(label)] = exactly(operands)? else {
                    return malformed("a label is expected");
                };
                let label = self.label(label)?;
                self.branch(label);
            }
            "brx" => self.branch_indexed(modifiers, operands)?,
            "ret" | "exit" => {
                modifiers.take("uni");
                modifiers.finish()?;
                match self.return_label {
                    Some(label) if mnemonic == "ret" => self.branch(label),
                    _ => self.emit(Op::Exit),
                }
            }
            "trap" => {
                modifiers.finish()?;
                self.emit(Op::Trap);
            }
            "call" => {
                modifiers.take("uni");
                modifiers.finish()?;
                self.call(operands)?;
            }
            "nanosleep" => {
                modifiers.take("u32");
                modifiers.finish()?;
                self.emit(Op::Nop);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn branch_indexed(
        &mut self,
        modifiers: &mut Modifiers<'a>,
        operands: &[Operand<'a>],
    ) -> Decoded<()> {
        if !modifiers.take("idx") {
            return Err(modifiers.unknown());
        }
        modifiers.take("uni");
        modifiers.finish()?;
        let [index, Operand::Name(list)] = exactly(operands)? else {
            return malformed("an index and a list of labels are expected");
        };
        let index = self.read(index, Ty::U32)?;
        self.strict = true;
        let Some((_, targets)) = self.in_scopes(|scope| scope.branch_targets.get(list).cloned())
        else {
            return malformed(format!("`{list}` is no list of labels"));
        };
        for (position, target) in targets.iter().enumerate() {
            let label = self.label(target)?;
            self.patches
                .push((self.program.code.len(), position, label));
        }
        self.emit(Op::Brx {
            index,
            targets: vec![0; targets.len()].into(),
        });
        Ok(())
    }

    /// `call (result), name, (arguments);` with either list optional. The callee's code is put in place of the call.
    fn call(&mut self, operands: &[Operand<'a>]) -> Decoded<()> {
        let (results, rest) = match operands {
            [Operand::Group(results), rest @ ..] => (results.as_slice(), rest),
            _ => (&[][..], operands),
        };
        let (name, arguments) = match rest {
            [Operand::Name(name)] => (*name, &[][..]),
            [Operand::Name(name), Operand::Group(arguments)] => (*name, arguments.as_slice()),
            _ => {
                return Err(DecodeError::Unknown(
                    "an indirect call is not supported".into(),
                ));
            }
        };
        let tree = self.tree;
        let Some(function) = tree
            .functions
            .iter()
            .rev()
            .find(|f| f.name == name && f.body.is_some())
        else {
            return self.call_driver(name);
        };
        if self.calls.len() >= MAX_CALL_DEPTH || self.calls.contains(&name) {
            return Err(DecodeError::Unknown(format!(
                "recursion (through `{name}`) is not supported"
            )));
        }
        self.inline(function, results, arguments)
    }

    /// A function that only the driver has.
    fn call_driver(&mut self, name: &str) -> Decoded<()> {
        let known = self
            .tree
            .functions
            .iter()
            .any(|function| function.name == name);
        if !known && self.register_exists(name) {
            return Err(DecodeError::Unknown(
                "an indirect call is not supported".into(),
            ));
        }
        let assertion = name == "__assertfail";
        let message = if assertion {
            "an assertion failed".to_owned()
        } else {
            format!("calls `{name}`, which only a driver provides")
        };
        self.emit(Op::Fail {
            assertion,
            message: message.into(),
        });
        Ok(())
    }

    fn register_exists(&self, name: &str) -> bool {
        name.starts_with('%')
    }

    fn inline(
        &mut self,
        function: &Function<'a>,
        results: &[Operand<'a>],
        arguments: &[Operand<'a>],
    ) -> Decoded<()> {
        if function.params.len() != arguments.len() || function.results.len() != results.len() {
            return malformed(format!("`{}` takes other arguments", function.name));
        }
        let mut bound = Vec::new();
        let pairs = function
            .params
            .iter()
            .zip(arguments)
            .chain(function.results.iter().zip(results));
        for (param, argument) in pairs {
            let Operand::Name(argument) = argument else {
                return malformed("arguments are .param variables");
            };
            match self.symbol(argument) {
                Some(symbol @ Symbol::Local(_)) => bound.push((param.name, symbol)),
                _ => return malformed(format!("`{argument}` is no .param variable")),
            }
        }
        // A guarded call branches around the callee's code.
        let behind = self.label_at.len();
        self.label_at.push(None);
        if let Some(guard) = self.guard {
            self.guard = Some(crate::program::Pred {
                negated: !guard.negated,
                ..guard
            });
            self.branch(behind);
            self.guard = None;
        }
        let (scope, origin) = (self.scope, self.origin);
        let outer_return = self.return_label.replace(behind);
        self.calls.push(function.name);
        self.scopes.push(Scope {
            symbols: bound.into_iter().collect(),
            parent: Some(0),
            ..Scope::default()
        });
        self.scope = self.scopes.len() - 1;
        let body = function.body.as_deref().unwrap_or_default();
        let result = self.body(body, function.name, function.line);
        self.calls.pop();
        (self.scope, self.origin, self.return_label) = (scope, origin, outer_return);
        self.label_at[behind] = Some(self.program.code.len() as u32);
        // Something must stand at the label.
        self.guard = None;
        self.emit(Op::Nop);
        result.map_err(|error| DecodeError::Malformed(error.message))
    }
}

fn at_line(error: DecodeError, line: u32) -> ParseError {
    match error {
        DecodeError::Unknown(message) | DecodeError::Malformed(message) => {
            ParseError::at(line, message)
        }
    }
}

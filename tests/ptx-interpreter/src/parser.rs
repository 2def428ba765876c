//! Tokens to the syntax tree: directives, declarations, statements. What an instruction means is not known here.

use crate::ParseError;
use crate::lexer::{Kind, Token, lex};
use crate::syntax::{
    Function, Init, Instruction, Loc, Operand, Space, Statement, Tree, Ty, Variable,
};

type Result<T> = std::result::Result<T, ParseError>;

/// Nesting of vectors and initialisers beyond this is refused, so that no input can exhaust the stack.
const MAX_NESTING: u32 = 16;
/// A variable larger than this is a slip of the pen.
const MAX_VARIABLE_BYTES: usize = 1 << 32;

pub(crate) fn parse(text: &str) -> Result<Tree<'_>> {
    let tokens = lex(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        nesting: 0,
    };
    parser.module()
}

struct Parser<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
    nesting: u32,
}

impl<'a> Parser<'_, 'a> {
    fn token(&self) -> Token<'a> {
        // The list ends with `End`, and `advance` never goes past it.
        self.tokens[self.at]
    }

    fn peek(&self) -> Kind<'a> {
        self.token().kind
    }

    fn advance(&mut self) -> Kind<'a> {
        let kind = self.peek();
        if kind != Kind::End {
            self.at += 1;
        }
        kind
    }

    fn error(&self, expected: &str) -> ParseError {
        let found = match self.peek() {
            Kind::Word(text) | Kind::Str(text) => format!("`{text}`"),
            Kind::Punct(byte) => format!("`{}`", byte as char),
            Kind::End => "the end of the file".into(),
            number => format!("{number:?}"),
        };
        ParseError::at(
            self.token().line,
            format!("expected {expected}, found {found}"),
        )
    }

    fn is_punct(&self, byte: char) -> bool {
        self.peek() == Kind::Punct(byte as u8)
    }

    fn accept(&mut self, byte: char) -> bool {
        let there = self.is_punct(byte);
        if there {
            self.at += 1;
        }
        there
    }

    fn expect(&mut self, byte: char) -> Result<()> {
        if self.accept(byte) {
            Ok(())
        } else {
            Err(self.error(&format!("`{byte}`")))
        }
    }

    fn word(&mut self, what: &str) -> Result<&'a str> {
        match self.peek() {
            Kind::Word(text) => {
                self.at += 1;
                Ok(text)
            }
            _ => Err(self.error(what)),
        }
    }

    fn int(&mut self, what: &str) -> Result<u64> {
        match self.peek() {
            Kind::Int(value) => {
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.error(what)),
        }
    }

    fn small(&mut self, what: &str) -> Result<u32> {
        let line = self.token().line;
        u32::try_from(self.int(what)?)
            .map_err(|_| ParseError::at(line, format!("{what} is too large")))
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting == MAX_NESTING {
            return Err(ParseError::at(self.token().line, "nested too deeply"));
        }
        self.nesting += 1;
        let result = inner(self);
        self.nesting -= 1;
        result
    }

    fn module(&mut self) -> Result<Tree<'a>> {
        let mut tree = Tree::default();
        loop {
            let Kind::Word(word) = self.peek() else {
                if self.peek() == Kind::End {
                    return Ok(tree);
                }
                return Err(self.error("a directive"));
            };
            match word {
                ".version" => {
                    self.at += 1;
                    self.advance();
                }
                ".target" => self.target()?,
                ".address_size" => {
                    self.at += 1;
                    if self.int("an address size")? != 64 {
                        return Err(self.error("address size 64"));
                    }
                }
                ".file" => tree.files.push(self.file()?),
                ".section" => self.section()?,
                ".loc" => drop(self.loc()?),
                ".pragma" => self.until_semicolon(),
                ".visible" | ".extern" | ".weak" | ".common" => self.at += 1,
                ".entry" | ".func" => tree.functions.push(self.function(word == ".entry")?),
                _ => match variable_space(word) {
                    Some(space) => self.variables(space, &mut tree.variables)?,
                    None => return Err(self.error("a directive that is known")),
                },
            }
        }
    }

    fn target(&mut self) -> Result<()> {
        self.at += 1;
        self.word("a target")?;
        while self.accept(',') {
            self.word("a target")?;
        }
        Ok(())
    }

    fn file(&mut self) -> Result<(u32, &'a str)> {
        self.at += 1;
        let index = self.small("a file index")?;
        let Kind::Str(name) = self.advance() else {
            return Err(self.error("a file name"));
        };
        while self.accept(',') {
            self.int("a time stamp or a size")?;
        }
        Ok((index, name))
    }

    /// Debugging sections carry nothing that is needed here.
    fn section(&mut self) -> Result<()> {
        while !self.is_punct('{') {
            if self.advance() == Kind::End {
                return Err(self.error("`{`"));
            }
        }
        while !self.accept('}') {
            if self.advance() == Kind::End {
                return Err(self.error("`}`"));
            }
        }
        Ok(())
    }

    fn until_semicolon(&mut self) {
        while !matches!(self.advance(), Kind::Punct(b';') | Kind::End) {}
    }

    /// `.loc FILE LINE COLUMN [, function_name LABEL [+ N], inlined_at FILE LINE COLUMN]`; no semicolon ends it.
    fn loc(&mut self) -> Result<Loc> {
        self.at += 1;
        let (file, line) = (self.small("a file index")?, self.small("a line")?);
        let column = self.small("a column")?;
        let mut inlined_at = None;
        while self.accept(',') {
            match self.word("a .loc attribute")? {
                "function_name" => {
                    self.word("a label")?;
                    if self.accept('+') {
                        self.int("an offset")?;
                    }
                }
                "inlined_at" => {
                    let (file, line) = (self.small("a file index")?, self.small("a line")?);
                    inlined_at = Some((file, line, self.small("a column")?));
                }
                _ => return Err(self.error("function_name or inlined_at")),
            }
        }
        Ok(Loc {
            file,
            line,
            column,
            inlined_at,
        })
    }

    fn function(&mut self, entry: bool) -> Result<Function<'a>> {
        self.at += 1;
        let line = self.token().line;
        self.skip_attribute();
        let results = if self.is_punct('(') {
            self.params()?
        } else {
            Vec::new()
        };
        let name = self.word("a function's name")?;
        let params = if self.is_punct('(') {
            self.params()?
        } else {
            Vec::new()
        };
        let mut function = Function {
            name,
            entry,
            results,
            params,
            max_threads: None,
            required_block: None,
            body: None,
            line,
        };
        loop {
            match self.peek() {
                Kind::Word(directive @ (".maxntid" | ".reqntid")) => {
                    self.at += 1;
                    let block = self.extents()?;
                    function.max_threads = Some(
                        block
                            .iter()
                            .fold(1, |product: u32, &n| product.saturating_mul(n)),
                    );
                    if directive == ".reqntid" {
                        function.required_block = Some(block);
                    }
                }
                Kind::Punct(b'{') => {
                    function.body = Some(self.body()?);
                    return Ok(function);
                }
                Kind::Punct(b';') => {
                    self.at += 1;
                    return Ok(function);
                }
                Kind::End => return Err(self.error("a function's body")),
                // Tuning directives (.minnctapersm, .maxnreg, .noreturn, ...) do not change what a kernel computes.
                _ => self.at += 1,
            }
        }
    }

    fn skip_attribute(&mut self) {
        if self.peek() == Kind::Word(".attribute") {
            while !self.accept(')') && self.advance() != Kind::End {}
        }
    }

    fn extents(&mut self) -> Result<[u32; 3]> {
        let mut extents = [1; 3];
        for (axis, extent) in extents.iter_mut().enumerate() {
            if axis > 0 && !self.accept(',') {
                break;
            }
            *extent = self.small("a number of threads")?;
        }
        Ok(extents)
    }

    fn params(&mut self) -> Result<Vec<Variable<'a>>> {
        self.expect('(')?;
        let mut params = Vec::new();
        while !self.accept(')') {
            if !params.is_empty() {
                self.expect(',')?;
            }
            let line = self.token().line;
            match self.word("a parameter")? {
                ".param" => {}
                ".reg" => {
                    return Err(ParseError::at(
                        line,
                        "parameters in registers (.reg) are not supported",
                    ));
                }
                _ => return Err(ParseError::at(line, "expected .param")),
            }
            let (ty, align) = self.type_and_align()?;
            params.push(self.declarator(Space::Param, ty, align)?);
        }
        Ok(params)
    }

    /// Everything from the space to the name: alignment, vector width, pointer attributes and the type.
    fn type_and_align(&mut self) -> Result<(Ty, usize)> {
        let (mut ty, mut align, mut width) = (None, None, 1);
        while let Kind::Word(word) = self.peek() {
            if !word.starts_with('.') {
                break;
            }
            self.at += 1;
            match word {
                // On a parameter that is a pointer, .align speaks of what it points to.
                ".align" => {
                    let value = self.small("an alignment")? as usize;
                    if !value.is_power_of_two() || value > 1 << 16 {
                        return Err(ParseError::at(
                            self.token().line,
                            "an alignment is a power of two",
                        ));
                    }
                    if ty.is_none() {
                        align = Some(value);
                    }
                }
                ".v2" => width = 2,
                ".v4" => width = 4,
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                ".attribute" => while !self.accept(')') && self.advance() != Kind::End {},
                _ => match Ty::named(word) {
                    Some(named) if named != Ty::Pred => ty = Some(named),
                    _ => {
                        self.at -= 1;
                        return Err(self.error("a type"));
                    }
                },
            }
        }
        let ty = ty.ok_or_else(|| self.error("a type"))?;
        if width != 1 {
            return Err(self
                .error("a variable that is no vector (.v2 and .v4 variables are not supported)"));
        }
        Ok((ty, align.unwrap_or(ty.bytes())))
    }

    fn declarator(&mut self, space: Space, ty: Ty, align: usize) -> Result<Variable<'a>> {
        let line = self.token().line;
        let name = self.word("a variable's name")?;
        let (mut bytes, mut open) = (ty.bytes(), false);
        while self.accept('[') {
            if self.accept(']') {
                open = true;
                bytes = 0;
                continue;
            }
            let length = usize::try_from(self.int("a length")?).unwrap_or(usize::MAX);
            bytes = bytes.saturating_mul(length);
            self.expect(']')?;
        }
        if bytes > MAX_VARIABLE_BYTES {
            return Err(ParseError::at(
                line,
                format!("`{name}` is larger than {MAX_VARIABLE_BYTES} bytes"),
            ));
        }
        let init = if self.accept('=') {
            Some(self.init()?)
        } else {
            None
        };
        if open && let Some(Init::List(list)) = &init {
            bytes = ty.bytes() * list.len();
            open = false;
        }
        Ok(Variable {
            space,
            name,
            ty,
            align,
            bytes,
            open,
            init,
            line,
        })
    }

    fn variables(&mut self, space: Space, into: &mut Vec<Variable<'a>>) -> Result<()> {
        self.at += 1;
        let (ty, align) = self.type_and_align()?;
        loop {
            let variable = self.declarator(space, ty, align)?;
            into.push(variable);
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    fn init(&mut self) -> Result<Init<'a>> {
        if self.accept('{') {
            return self.nested(|parser| {
                let mut list = Vec::new();
                while !parser.accept('}') {
                    if !list.is_empty() {
                        parser.expect(',')?;
                    }
                    list.push(parser.init()?);
                }
                Ok(Init::List(list))
            });
        }
        if let Kind::Word(mut name) = self.peek() {
            self.at += 1;
            if name == "generic" {
                self.expect('(')?;
                name = self.word("a symbol")?;
                self.expect(')')?;
            }
            let offset = self.signed_tail()?;
            return Ok(Init::Symbol(name, offset));
        }
        match self.operand()? {
            Operand::Int(value) => Ok(Init::Int(value)),
            Operand::F32(bits) => Ok(Init::F32(bits)),
            Operand::F64(bits) => Ok(Init::F64(bits)),
            _ => Err(self.error("an initial value")),
        }
    }

    /// `+8`, `+-8`, `-8`, or nothing.
    fn signed_tail(&mut self) -> Result<i64> {
        let negative = match (self.accept('+'), self.accept('-')) {
            (false, false) => return Ok(0),
            (_, negative) => negative,
        };
        let value = self.int("an offset")? as i64;
        Ok(if negative {
            value.wrapping_neg()
        } else {
            value
        })
    }

    fn body(&mut self) -> Result<Vec<Statement<'a>>> {
        self.expect('{')?;
        let (mut body, mut depth) = (Vec::new(), 0u32);
        loop {
            match self.peek() {
                Kind::Punct(b'{') => {
                    self.at += 1;
                    depth += 1;
                    body.push(Statement::Open);
                }
                Kind::Punct(b'}') => {
                    self.at += 1;
                    if depth == 0 {
                        return Ok(body);
                    }
                    depth -= 1;
                    body.push(Statement::Close);
                }
                Kind::Punct(b';') => self.at += 1,
                _ => self.statement(&mut body)?,
            }
        }
    }

    fn statement(&mut self, body: &mut Vec<Statement<'a>>) -> Result<()> {
        let Kind::Word(word) = self.peek() else {
            if self.is_punct('@') {
                return self.instruction(body);
            }
            return Err(self.error("a statement"));
        };
        match word {
            ".reg" => self.registers(body),
            ".loc" => {
                let loc = self.loc()?;
                body.push(Statement::Loc(loc));
                Ok(())
            }
            ".pragma" => {
                self.until_semicolon();
                Ok(())
            }
            ".branchtargets" => {
                self.at += 1;
                let mut targets = vec![self.word("a label")?];
                while self.accept(',') {
                    targets.push(self.word("a label")?);
                }
                body.push(Statement::BranchTargets(targets));
                self.expect(';')
            }
            _ => {
                if let Some(space) = variable_space(word) {
                    let mut variables = Vec::new();
                    self.variables(space, &mut variables)?;
                    body.extend(variables.into_iter().map(Statement::Variable));
                    return Ok(());
                }
                if word.starts_with('.') {
                    return Err(self.error("a directive that is known"));
                }
                if self
                    .tokens
                    .get(self.at + 1)
                    .is_some_and(|next| next.kind == Kind::Punct(b':'))
                {
                    self.at += 2;
                    body.push(Statement::Label(word));
                    return Ok(());
                }
                self.instruction(body)
            }
        }
    }

    fn registers(&mut self, body: &mut Vec<Statement<'a>>) -> Result<()> {
        self.at += 1;
        let word = self.word("a register's type")?;
        let ty = Ty::named(word).ok_or_else(|| self.error("a register's type"))?;
        loop {
            let line = self.token().line;
            let name = self.word("a register's name")?;
            let mut count = None;
            if self.accept('<') {
                let number = self.small("a number of registers")?;
                if number > 1 << 20 {
                    return Err(ParseError::at(line, "more than a million registers"));
                }
                count = Some(number);
                self.expect('>')?;
            }
            body.push(Statement::Registers {
                ty,
                name,
                count,
                line,
            });
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, body: &mut Vec<Statement<'a>>) -> Result<()> {
        let Token { start, line, .. } = self.token();
        let guard = if self.accept('@') {
            let negated = self.accept('!');
            Some((self.word("a predicate")?, negated))
        } else {
            None
        };
        let opcode = self.word("an opcode")?;
        let mut operands = Vec::new();
        while !self.is_punct(';') {
            if !operands.is_empty() {
                self.expect(',')?;
            }
            operands.push(self.operand()?);
        }
        let end = self.tokens[self.at - 1].end;
        self.expect(';')?;
        body.push(Statement::Instruction(Instruction {
            guard,
            opcode,
            operands,
            start,
            end,
            line,
        }));
        Ok(())
    }

    fn operand(&mut self) -> Result<Operand<'a>> {
        let first = self.primary()?;
        if self.accept('|') {
            let second = self.primary()?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn primary(&mut self) -> Result<Operand<'a>> {
        match self.peek() {
            Kind::Word(name) => {
                self.at += 1;
                match self.signed_tail()? {
                    0 => Ok(Operand::Name(name)),
                    offset => Ok(Operand::Offset(name, offset)),
                }
            }
            Kind::Int(value) => {
                self.at += 1;
                Ok(Operand::Int(value))
            }
            Kind::F32(bits) => {
                self.at += 1;
                Ok(Operand::F32(bits))
            }
            Kind::F64(bits) => {
                self.at += 1;
                Ok(Operand::F64(bits))
            }
            Kind::Punct(b'-') => {
                self.at += 1;
                match self.advance() {
                    Kind::Int(value) => Ok(Operand::Int(value.wrapping_neg())),
                    Kind::F64(bits) => Ok(Operand::F64(bits ^ 1 << 63)),
                    _ => Err(self.error("a number after `-`")),
                }
            }
            Kind::Punct(b'!') => {
                self.at += 1;
                let inner = self.nested(Self::primary)?;
                Ok(Operand::Not(Box::new(inner)))
            }
            Kind::Punct(b'[') => self.address(),
            Kind::Punct(b'{') => Ok(Operand::Vector(self.list('{', '}')?)),
            Kind::Punct(b'(') => Ok(Operand::Group(self.list('(', ')')?)),
            _ => Err(self.error("an operand")),
        }
    }

    fn list(&mut self, open: char, close: char) -> Result<Vec<Operand<'a>>> {
        self.expect(open)?;
        self.nested(|parser| {
            let mut items = Vec::new();
            while !parser.accept(close) {
                if !items.is_empty() {
                    parser.expect(',')?;
                }
                items.push(parser.operand()?);
            }
            Ok(items)
        })
    }

    fn address(&mut self) -> Result<Operand<'a>> {
        self.expect('[')?;
        let operand = match self.peek() {
            Kind::Word(name) => {
                self.at += 1;
                if self.accept(',') {
                    Operand::Element(name, self.list('{', '}')?)
                } else {
                    Operand::Address(Some(name), self.signed_tail()?)
                }
            }
            Kind::Int(value) => {
                self.at += 1;
                Operand::Address(None, value as i64)
            }
            _ => return Err(self.error("an address")),
        };
        self.expect(']')?;
        Ok(operand)
    }
}

fn variable_space(word: &str) -> Option<Space> {
    Some(match word {
        ".global" => Space::Global,
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        ".const" => Space::Const,
        ".param" => Space::Param,
        _ => return None,
    })
}

//! A parsed module: its kernels, ready to run, and its variables.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ParseError;
use crate::decode::decode_kernel;
use crate::parser::parse;
use crate::program::{Origin, Program};
use crate::syntax::{Init, Space, Ty, Variable};

/// What a caller may want to know of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    pub name: String,
    /// Size of its parameters, which is what a launch must pass.
    pub param_bytes: usize,
    /// Bytes of shared memory that it declares with a size.
    pub static_shared: usize,
    /// Bytes of local memory per thread (zero where registers suffice).
    pub local_bytes: usize,
    /// From `__launch_bounds__`.
    pub max_threads: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Kernel {
    pub info: KernelInfo,
    pub program: Program,
}

#[derive(Debug)]
pub(crate) struct ModuleVariable {
    pub name: String,
    pub bytes: usize,
    pub align: usize,
    pub constant: bool,
    pub image: Vec<u8>,
    /// Places in the image that hold the address of another variable, plus an offset.
    pub relocations: Vec<(usize, usize, i64)>,
}

/// The PTX of one compilation, parsed and decoded.
#[derive(Debug)]
pub struct Module {
    /// Tells modules apart, so that a device makes each one's variables once.
    pub(crate) id: u64,
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) variables: Vec<ModuleVariable>,
    text: Arc<str>,
    files: Vec<(u32, String)>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Module {
    /// Parses PTX; `name` is what errors call it.
    ///
    /// # Errors
    /// Where the text is no PTX. An instruction that is well-formed but unknown is no error here: reaching it is a finding.
    pub fn parse(text: &str, name: &str) -> Result<Module, ParseError> {
        Self::parse_text(text).map_err(|error| ParseError {
            name: name.to_owned(),
            ..error
        })
    }

    fn parse_text(text: &str) -> Result<Module, ParseError> {
        if text.len() > u32::MAX as usize {
            return Err(ParseError::at(0, "larger than 4 GiB"));
        }
        let tree = parse(text)?;
        let mut kernels = Vec::new();
        for function in tree
            .functions
            .iter()
            .filter(|function| function.entry && function.body.is_some())
        {
            let program = decode_kernel(&tree, function)?;
            let info = KernelInfo {
                name: function.name.to_owned(),
                param_bytes: program.param_bytes,
                static_shared: program
                    .shared
                    .iter()
                    .map(|variable| variable.bytes as usize)
                    .sum(),
                local_bytes: program.local_bytes,
                max_threads: program.max_threads,
            };
            kernels.push(Kernel { info, program });
        }
        let mut variables = Vec::new();
        for variable in &tree.variables {
            variables.push(image(variable, &tree.variables)?);
        }
        let files = tree
            .files
            .iter()
            .map(|&(index, name)| (index, name.to_owned()))
            .collect();
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Ok(Module {
            id,
            kernels,
            variables,
            text: text.into(),
            files,
        })
    }

    /// The kernels (`.entry`), in the order of the file.
    pub fn kernels(&self) -> impl Iterator<Item = &KernelInfo> {
        self.kernels.iter().map(|kernel| &kernel.info)
    }

    pub(crate) fn instruction_text(&self, origin: Origin) -> String {
        let text = self
            .text
            .get(origin.start as usize..origin.end as usize)
            .unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn source_line(&self, file: u32, line: u32) -> Option<(String, u32)> {
        let (_, name) = self.files.iter().find(|(index, _)| *index == file)?;
        (line > 0).then(|| (name.clone(), line))
    }
}

fn image(variable: &Variable, all: &[Variable]) -> Result<ModuleVariable, ParseError> {
    let constant = variable.space == Space::Const;
    // Variables of other spaces keep their place in the list, but have no memory here.
    let bytes = if matches!(variable.space, Space::Global | Space::Const) {
        variable.bytes
    } else {
        0
    };
    let mut writer = Writer {
        image: Vec::new(),
        relocations: Vec::new(),
        ty: variable.ty,
        all,
        line: variable.line,
    };
    if let Some(init) = &variable.init {
        writer.write(init)?;
    }
    if writer.image.len() > bytes {
        return Err(ParseError::at(
            variable.line,
            format!("`{}` has more initial values than room", variable.name),
        ));
    }
    Ok(ModuleVariable {
        name: variable.name.to_owned(),
        bytes,
        align: variable.align,
        constant,
        image: writer.image,
        relocations: writer.relocations,
    })
}

struct Writer<'w, 'a> {
    image: Vec<u8>,
    relocations: Vec<(usize, usize, i64)>,
    ty: Ty,
    all: &'w [Variable<'a>],
    line: u32,
}

impl Writer<'_, '_> {
    fn write(&mut self, init: &Init) -> Result<(), ParseError> {
        let bits = match init {
            Init::List(list) => return list.iter().try_for_each(|init| self.write(init)),
            Init::Int(value) => *value,
            Init::F32(bits) if self.ty == Ty::F64 => f64::from(f32::from_bits(*bits)).to_bits(),
            Init::F32(bits) => (*bits).into(),
            Init::F64(bits) if self.ty == Ty::F32 => {
                (f64::from_bits(*bits) as f32).to_bits().into()
            }
            Init::F64(bits) => *bits,
            Init::Symbol(name, offset) => {
                let index = self.all.iter().position(|variable| variable.name == *name);
                let index = index.ok_or_else(|| {
                    ParseError::at(self.line, format!("`{name}` is not declared"))
                })?;
                if self.ty.bytes() != 8 {
                    return Err(ParseError::at(self.line, "an address needs 64 bits"));
                }
                self.relocations.push((self.image.len(), index, *offset));
                0
            }
        };
        self.image
            .extend_from_slice(&bits.to_le_bytes()[..self.ty.bytes().min(8)]);
        Ok(())
    }
}

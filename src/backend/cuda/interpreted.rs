//! A [`Launcher`] without a GPU: the PTX that nvcc made, in the interpreter. Slow, and sees what a GPU lets pass: races,
//! memory that was never written, addresses outside every allocation.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ptx_interpreter::{Device, Launch, Module, Schedule, Swizzle};

use super::images::Image;
use super::launch::{Boxes, DevicePtr, Dims, LaunchError, Launcher, TensorMap};

/// At run time, a folder with `<source>.<arch>.ptx` that stands in for the PTX compiled in, where it has the file.
pub const PTX_DIR: &str = "STREAMGAUGE_PTX_DIR";

/// Which PTX runs, and in which order its blocks and warps do.
#[derive(Debug, Clone, Copy)]
pub struct Interpretation {
    /// A virtual architecture, as `compute_90a`.
    pub arch: &'static str,
    pub schedule: Schedule,
}

/// An interpreted device with memory of its own.
pub struct Interpreted {
    device: Device,
    how: Interpretation,
}

impl Interpreted {
    pub fn new(how: Interpretation) -> Interpreted {
        Interpreted {
            device: Device::new(),
            how,
        }
    }
}

/// By source and architecture.
type Modules = HashMap<(String, &'static str), Arc<Module>>;

impl Interpreted {
    /// The bytes at `from`, whether they were ever written or not.
    pub fn read_raw(&self, from: DevicePtr, bytes: usize) -> Result<Vec<u8>, LaunchError> {
        self.device
            .read_raw(from.0, bytes)
            .map(|(bytes, _)| bytes)
            .map_err(|e| failed("reading device memory", &e))
    }
}

/// A parsed module is kept: tests launch the same few again and again.
static PARSED: Mutex<Option<Modules>> = Mutex::new(None);

fn module(source: &str, arch: &'static str) -> Result<Arc<Module>, LaunchError> {
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    let parsed = parsed.get_or_insert_default();
    let key = (source.to_owned(), arch);
    if let Some(module) = parsed.get(&key) {
        return Ok(Arc::clone(module));
    }
    let file = format!("{source}.{arch}.ptx");
    let text = ptx(source, arch, &file)?;
    let module = Module::parse(&text, &file).map_err(|e| failed(&format!("parsing {file}"), &e))?;
    Ok(Arc::clone(parsed.entry(key).or_insert(Arc::new(module))))
}

fn ptx(source: &str, arch: &str, file: &str) -> Result<String, LaunchError> {
    if let Some(dir) = std::env::var_os(PTX_DIR) {
        let path = PathBuf::from(dir).join(file);
        if path.is_file() {
            return std::fs::read_to_string(&path)
                .map_err(|e| failed(&format!("reading {}", path.display()), &e));
        }
    }
    Image::of(source)
        .and_then(|image| image.ptx.iter().find(|(name, _)| *name == arch))
        .map(|(_, text)| (*text).to_owned())
        .ok_or_else(|| LaunchError::UnknownSource {
            origin: source.to_owned(),
        })
}

fn failed(what: &str, why: &dyn std::fmt::Display) -> LaunchError {
    LaunchError::Device {
        what: what.to_owned(),
        reason: why.to_string(),
    }
}

impl Launcher for Interpreted {
    fn alloc(&mut self, bytes: usize) -> Result<DevicePtr, LaunchError> {
        Ok(DevicePtr(self.device.alloc(bytes)))
    }

    fn free(&mut self, ptr: DevicePtr) -> Result<(), LaunchError> {
        self.device
            .free(ptr.0)
            .map_err(|finding| failed("freeing device memory", &finding))
    }

    fn upload(&mut self, to: DevicePtr, bytes: &[u8]) -> Result<(), LaunchError> {
        self.device
            .write(to.0, bytes)
            .map_err(|finding| failed("writing device memory", &finding))
    }

    fn download(&mut self, from: DevicePtr, into: &mut [u8]) -> Result<(), LaunchError> {
        let bytes = self
            .device
            .read(from.0, into.len())
            .map_err(|finding| failed("reading device memory", &finding))?;
        into.copy_from_slice(&bytes);
        Ok(())
    }

    fn fill(&mut self, at: DevicePtr, value: u8, bytes: usize) -> Result<(), LaunchError> {
        self.upload(at, &vec![value; bytes])
    }

    fn launch_raw(
        &mut self,
        source: &str,
        name: &str,
        dims: Dims,
        args: &[u8],
    ) -> Result<(), LaunchError> {
        let module = module(source, self.how.arch)?;
        let kernel = module
            .kernels()
            .find(|kernel| kernel.name == name)
            .ok_or_else(|| LaunchError::UnknownKernel {
                kernel: name.to_owned(),
                origin: source.to_owned(),
            })?;
        if kernel.param_bytes != args.len() {
            return Err(LaunchError::ArgumentSize {
                kernel: name.to_owned(),
                origin: source.to_owned(),
                expected: kernel.param_bytes,
                given: args.len(),
            });
        }
        let launch = Launch {
            grid: dims.grid,
            block: dims.block,
            dynamic_shared: dims.dynamic_shared,
            schedule: self.how.schedule,
        };
        self.device
            .launch(&module, name, &launch, args)
            .map(|_stats| ())
            .map_err(|finding| LaunchError::Kernel {
                kernel: name.to_owned(),
                finding: finding.to_string(),
            })
    }

    fn tensor_map(&mut self, of: &Boxes) -> Result<TensorMap, LaunchError> {
        tensor_map(self.how.arch, of)
    }

    fn synchronize(&mut self) -> Result<(), LaunchError> {
        Ok(())
    }
}

/// The map by which the interpreter's tensor copies find a matrix; H100's PTX alone has them.
fn tensor_map(arch: &str, of: &Boxes) -> Result<TensorMap, LaunchError> {
    if arch != "compute_90a" {
        return Err(LaunchError::NotOnThisGpu {
            what: "a tensor copy".into(),
            capability: arch.trim_start_matches("compute_").to_owned(),
        });
    }
    let bytes = of.dtype.bytes();
    let map = ptx_interpreter::TensorMap {
        address: of.at.0,
        element_bytes: bytes as u32,
        extent: [of.columns.into(), of.rows.into()],
        row_bytes: u64::from(of.row_stride) * bytes as u64,
        box_extent: [of.box_columns, of.box_rows],
        swizzle: Swizzle::B128,
    };
    let encoded = map
        .encode()
        .map_err(|why| failed("describing a matrix to tensor copies", &why))?;
    Ok(bytemuck::pod_read_unaligned(&encoded))
}

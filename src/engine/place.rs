//! Where a job runs: what was asked for ([`Compute`]), what that comes to for a model on this machine ([`Place`]), and the
//! backend opened there.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use super::{Decoder, Error, Job, Prepared, Reader, Result, shape};
use crate::backend::Reduce;
use crate::backend::cpu::Precision;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::{
    self, Cuda, CudaOptions, Dtype, GEMM_CHUNK, GemmChoice, GemmRecord, Gpu,
};
#[cfg(feature = "interpreter")]
use crate::backend::cuda::{
    interpreted::Interpretation,
    virtual_gpu::{VirtualGpu, VirtualGpuOptions},
};
use crate::hooks::Site;
use crate::model::{self, Model};
use crate::store::Provenance;

/// `--device`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The first GPU, where there is one that can run the model; else the CPU.
    #[default]
    Auto,
    Cpu,
    /// A GPU, counted from 0.
    Cuda(u32),
    /// The kernels' PTX without a GPU, for tests and dry runs.
    #[cfg(feature = "interpreter")]
    Interpreter,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            #[cfg(feature = "interpreter")]
            "interpreter" => Ok(Device::Interpreter),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| "there are auto, cpu, cuda and cuda:N".into()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            #[cfg(feature = "interpreter")]
            Device::Interpreter => f.write_str("interpreter"),
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compute {
    pub device: Device,
    /// `None`: f32 on the CPU, the checkpoint's on a GPU. The CPU has f32 and bf16.
    pub dtype: Option<Dtype>,
    /// Keep the residual stream in f32 beside a 16-bit dtype.
    pub f32_resid: bool,
    pub gemm: GemmChoice,
    /// The MLP's gate and up with their activation in one kernel (`--fused-swiglu`).
    pub fused_swiglu: bool,
}

/// What that comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Not `Auto`.
    pub device: Device,
    pub dtype: Dtype,
    pub f32_resid: bool,
    pub gemm: GemmChoice,
    pub fused_swiglu: bool,
    /// Why `auto` took the CPU.
    pub why_cpu: Option<String>,
}

/// All that a backend does with a model: batches, sequences that go on, scores.
pub trait Engine: Decoder + Reader {}

impl<M: Decoder + Reader> Engine for M {}

/// A backend with the job's model.
pub struct Opened<'p> {
    pub machine: Box<dyn Engine + 'p>,
    /// Of the weights, where they went to a device.
    pub upload: Option<Upload>,
}

/// What a device is to have room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Sequences that are generated at a time; fewer, where its memory is short.
    pub sequences: usize,
    /// Most tokens of one, generated ones included.
    pub tokens: usize,
}

/// Bytes that went to a device, and how long they took, conversions included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upload {
    pub bytes: u64,
    pub time: Duration,
}

impl Upload {
    /// The rate.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

impl Place {
    /// Settles what was asked for. Only `auto` looks whether there is a GPU; the others are found missing when opened.
    ///
    /// # Errors
    /// What the CPU does not do, by name.
    pub fn of(asked: &Compute, model: &Model) -> Result<Place> {
        let (device, why_cpu) = match asked.device {
            Device::Auto => match usable(model) {
                Ok(()) => (Device::Cuda(0), None),
                Err(why) => (Device::Cpu, Some(why)),
            },
            device => (device, None),
        };
        if device == Device::Cpu {
            check_cpu(asked, why_cpu.as_deref())?;
        }
        let checkpoint = match device {
            Device::Cpu => Dtype::F32,
            _ => dtype_of(model.weights.dtype()),
        };
        let dtype = asked.dtype.unwrap_or(checkpoint);
        Ok(Place {
            device,
            dtype,
            f32_resid: asked.f32_resid && dtype != Dtype::F32,
            gemm: asked.gemm,
            fused_swiglu: asked.fused_swiglu,
            why_cpu,
        })
    }

    /// Where a store's rows are computed again: on the device asked for; `auto` is as they were made where that can be had, else the
    /// CPU. The arithmetic is the store's.
    pub(super) fn again(asked: Device, store: &Provenance, job: &Job) -> Place {
        let (device, why_cpu) = match asked {
            Device::Auto if store.backend == "cuda" => like(&store.device),
            Device::Auto => (Device::Cpu, None),
            device => (device, None),
        };
        let own = store.numeric_record["gemm"]["library"] == cuda::OWN;
        Place {
            device,
            dtype: job.dtype,
            f32_resid: job.f32_resid,
            gemm: if own {
                GemmChoice::Own
            } else {
                GemmChoice::Auto
            },
            fused_swiglu: store.numeric_record["fused_swiglu"] == true,
            why_cpu,
        }
    }

    /// What the CPU computes in here.
    pub fn precision(&self) -> Precision {
        super::prepared::precision(self.dtype, self.f32_resid)
    }

    /// The most tokens of a batch where nothing else is asked for.
    pub fn batch_tokens(&self) -> usize {
        match self.device {
            Device::Cuda(_) => 8192,
            _ => 4096,
        }
    }

    /// Opens the backend. `record`: the numeric record of a job whose bits are to come out again.
    ///
    /// # Errors
    /// No such device, a model that it has no kernels or no room for, and what a device can fail at; products that were made by
    /// another library than there is here.
    pub fn open<'p>(&self, prepared: &'p Prepared, record: Option<&Value>) -> Result<Opened<'p>> {
        let room = Room {
            sequences: 0,
            tokens: prepared.tokenising.max_length,
        };
        self.open_with(prepared, record, room)
    }

    /// As [`open`](Self::open), to generate: with room for keys and values.
    ///
    /// # Errors
    /// As there.
    pub fn open_for_generation<'p>(
        &self,
        prepared: &'p Prepared,
        room: Room,
    ) -> Result<Opened<'p>> {
        self.open_with(prepared, None, room)
    }

    fn open_with<'p>(
        &self,
        prepared: &'p Prepared,
        record: Option<&Value>,
        room: Room,
    ) -> Result<Opened<'p>> {
        if self.fused_swiglu && !matches!(self.device, Device::Auto | Device::Cpu) {
            check_fused_swiglu(prepared, self.dtype)?;
        }
        match self.device {
            Device::Auto | Device::Cpu => Ok(Opened {
                machine: Box::new(prepared.cpu()),
                upload: None,
            }),
            Device::Cuda(ordinal) => {
                cuda::supports(&shape(&prepared.model.config))?;
                cuda::has_kernels()?;
                let gpu = Gpu::open(ordinal, self.gemm)?;
                self.on(gpu, prepared, record, room, None)
            }
            #[cfg(feature = "interpreter")]
            Device::Interpreter => {
                cuda::has_kernels()?;
                self.on(interpreter(), prepared, record, room, Some(4 << 20))
            }
        }
    }

    fn on<'p, D: Driver + 'p>(
        &self,
        driver: D,
        prepared: &'p Prepared,
        record: Option<&Value>,
        room: Room,
        ring_bytes: Option<usize>,
    ) -> Result<Opened<'p>> {
        let gemm: Option<GemmRecord> =
            record.and_then(|r| serde_json::from_value(r["gemm"].clone()).ok());
        let chunk = gemm.as_ref().map_or(GEMM_CHUNK, |g| g.chunk as usize);
        let library = driver.gemm_library() != cuda::OWN;
        let means = prepared.specs.iter();
        let means = means.filter(|spec| matches!(spec.reduce, Reduce::Mean));
        let options = CudaOptions {
            dtype: self.dtype,
            f32_resid: self.f32_resid,
            // A longer sample is a batch of its own, and a chunk of products is not cut short: its size decides bits.
            rows: (prepared.job.batch_tokens)
                .max(room.tokens)
                .max(if library { chunk } else { 1 }),
            positions: room.tokens,
            means: means.count(),
            sequences: room.sequences,
            ring_bytes,
            gemm_chunk: chunk,
            gemm,
            fused_swiglu: self.fused_swiglu,
        };
        let model = &prepared.model;
        let cuda = Cuda::open(driver, shape(&model.config), model, options)?;
        let (bytes, time) = cuda.uploaded();
        Ok(Opened {
            machine: Box::new(cuda),
            upload: Some(Upload { bytes, time }),
        })
    }
}

/// The device of `--device interpreter`.
#[cfg(feature = "interpreter")]
pub fn interpreter() -> VirtualGpu {
    VirtualGpu::new(VirtualGpuOptions {
        how: Interpretation {
            arch: "compute_90a",
            schedule: Default::default(),
        },
        memory: 1 << 30,
        fail_at: None,
        fickle_gemm: None,
        order: cuda::virtual_gpu::StreamOrder::LaunchesFirst,
        mistake: None,
        registers: true,
    })
}

/// The first GPU of that name, or why the CPU has to do.
fn like(name: &str) -> (Device, Option<String>) {
    #[cfg(feature = "interpreter")]
    if name == cuda::virtual_gpu::NAME {
        return (Device::Interpreter, None);
    }
    let gpus = match cuda::has_kernels().and_then(|()| cuda::device::devices()) {
        Ok(gpus) => gpus,
        Err(why) => return (Device::Cpu, Some(why.to_string())),
    };
    match (gpus.iter().position(|gpu| gpu.name == name), gpus.len()) {
        (Some(ordinal), _) => (Device::Cuda(ordinal as u32), None),
        // Another kind of GPU still computes in the store's dtype.
        (None, 1..) => (Device::Cuda(0), None),
        (None, 0) => (Device::Cpu, Some(NO_GPU.into())),
    }
}

const NO_GPU: &str = "the NVIDIA driver finds no GPU";

/// Whether `auto` can be a GPU for this model; else why not.
fn usable(model: &Model) -> Result<(), String> {
    cuda::has_kernels().map_err(|e| e.to_string())?;
    let gpus = cuda::device::devices().map_err(|e| e.to_string())?;
    if gpus.is_empty() {
        return Err(NO_GPU.into());
    }
    cuda::supports(&shape(&model.config)).map_err(|e| e.to_string())
}

/// Refuses what was asked for and the CPU does not do.
fn check_cpu(asked: &Compute, why_cpu: Option<&str>) -> Result<()> {
    let refuse = |what: String, instead: String| {
        let why = why_cpu.map_or(String::new(), |why| format!(" ({why})"));
        Err(Error::NotOnCpu { what, why, instead }.into())
    };
    if asked.dtype == Some(Dtype::F16) {
        return refuse(
            "--dtype f16".into(),
            "it computes in f32 or bf16; --store-dtype f16 sets what is stored".into(),
        );
    }
    if asked.gemm != GemmChoice::Auto {
        return refuse(
            format!("--gemm {}", asked.gemm),
            "its products have one implementation; leave the flag out".into(),
        );
    }
    if asked.fused_swiglu {
        let instead = "it fuses nothing; leave the flag out".into();
        return refuse("--fused-swiglu".into(), instead);
    }
    Ok(())
}

/// Refuses what the fused SwiGLU does not do. It decides for the whole job, so that a sample's bits do not hang on its batch.
fn check_fused_swiglu(prepared: &Prepared, dtype: Dtype) -> Result<()> {
    let not_yet = |what: &str, instead: &str| {
        let what = format!("--fused-swiglu {what}");
        let instead = format!(": {instead}leave the flag out");
        Err(Error::NotYet { what, instead }.into())
    };
    if dtype == Dtype::F32 {
        return not_yet("in f32", "take bf16 or f16, or ");
    }
    let taps = prepared.taps.iter().map(|tap| tap.point.site);
    let edits = prepared.edits.iter().map(|open| open.edit.point.site);
    let unfused = |site| matches!(site, Site::MlpPre | Site::MlpPreLinear);
    if taps.chain(edits).any(unfused) {
        return not_yet("with a tap or an edit of hook_pre or hook_pre_linear", "");
    }
    Ok(())
}

fn dtype_of(checkpoint: model::Dtype) -> Dtype {
    match checkpoint {
        model::Dtype::F32 => Dtype::F32,
        model::Dtype::F16 => Dtype::F16,
        model::Dtype::BF16 => Dtype::BF16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for bad in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }
}

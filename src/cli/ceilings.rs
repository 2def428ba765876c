//! A machine's ceilings, as `bench ceilings` measures and keeps them and `plan` reads them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::backend::cpu::{Precision, product_gflops};
use crate::backend::cuda::ceilings::{self, DeviceCeilings};
use crate::backend::cuda::{GemmChoice, LaunchError};
use crate::engine::Device;
use crate::sys;

/// The form of the file.
const FORMAT: u32 = 1;

/// (M, N, K) of the CPU's product: the widest layer of a SmolLM2-135M block over 2,048 tokens.
const PRODUCT: (usize, usize, usize) = (2048, 1536, 576);

const BF16: Precision = Precision::Bf16 { f32_resid: false };

/// What a machine reaches at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    format: u32,
    /// Version of streamgauge that measured.
    engine: String,
    measured_unix: u64,
    pub cpu: CpuCeilings,
    pub device: Option<DeviceCeilings>,
    pub disk: Option<DiskCeiling>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuCeilings {
    /// Its name and how many threads were used.
    pub processor: String,
    /// Of products in f32.
    pub gemm_flops: f64,
    /// Of products in bf16; older files have none.
    #[serde(default)]
    pub gemm_flops_bf16: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskCeiling {
    pub dir: PathBuf,
    /// Of a fresh file, made durable.
    pub write_bytes_per_s: f64,
}

impl Ceilings {
    /// Measures the CPU, the disk of `dir`, and the device, if it is one.
    ///
    /// # Errors
    /// The device's.
    pub fn measure(device: Device, gemm: GemmChoice, dir: &Path) -> Result<Self, LaunchError> {
        let (m, n, k) = PRODUCT;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Ceilings {
            format: FORMAT,
            engine: env!("CARGO_PKG_VERSION").into(),
            measured_unix: now.map_or(0, |d| d.as_secs()),
            cpu: CpuCeilings {
                processor: sys::cpu_name(),
                gemm_flops: 1e9 * product_gflops(Precision::F32, m, n, k, 5),
                gemm_flops_bf16: Some(1e9 * product_gflops(BF16, m, n, k, 5)),
            },
            device: of_device(device, gemm)?,
            disk: sys::write_rate(dir).map(|write_bytes_per_s| DiskCeiling {
                dir: std::path::absolute(dir).unwrap_or_else(|_| dir.into()),
                write_bytes_per_s,
            }),
        })
    }

    /// Where they are kept where nothing else is said: in the user's cache directory.
    pub fn kept_at() -> Option<PathBuf> {
        let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let cache = set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache")))?;
        Some(cache.join("streamgauge/ceilings.json"))
    }

    /// Those of a file; `None` where none was asked for and none is kept.
    ///
    /// # Errors
    /// A file that was asked for and is not there, and one that holds something else.
    pub fn read(asked: Option<&Path>) -> Result<Option<(Self, PathBuf)>, Failure> {
        let Some(path) = asked.map(PathBuf::from).or_else(Self::kept_at) else {
            return Ok(None);
        };
        let refuse = |why: String| {
            Failure::Refused(format!(
                "{}: {why}: measure with `streamgauge bench ceilings`",
                path.display()
            ))
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if asked.is_none() && e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(e) => return Err(refuse(format!("ceilings cannot be read ({e})"))),
        };
        let ceilings: Ceilings = serde_json::from_str(&text)
            .map_err(|e| refuse(format!("no ceilings in there ({e})")))?;
        if ceilings.format != FORMAT {
            return Err(refuse(format!("ceilings of format {}", ceilings.format)));
        }
        Ok(Some((ceilings, path)))
    }

    /// Keeps them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let told = |e: std::io::Error| {
            let path = path.display();
            Failure::Refused(format!("{path}: cannot be written ({e}): pass --out FILE"))
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(told)?;
        }
        let text = serde_json::to_string_pretty(self).map_err(|e| told(e.into()))?;
        std::fs::write(path, text + "\n").map_err(told)
    }
}

/// A device's; `None` for the CPU.
///
/// # Errors
/// The device's.
pub fn of_device(device: Device, gemm: GemmChoice) -> Result<Option<DeviceCeilings>, LaunchError> {
    match device {
        Device::Auto | Device::Cpu => Ok(None),
        Device::Cuda(ordinal) => ceilings::of_gpu(ordinal, gemm).map(Some),
        #[cfg(feature = "interpreter")]
        Device::Interpreter => {
            let mut gpu = crate::engine::interpreter();
            ceilings::measure(&mut gpu, &ceilings::TINY).map(Some)
        }
    }
}

/// The name of a device on this machine; `None` where it is not there.
pub fn name_of(device: Device) -> Option<String> {
    match device {
        Device::Auto | Device::Cpu => None,
        Device::Cuda(ordinal) => {
            let gpus = crate::backend::cuda::device::devices().ok()?;
            Some(gpus.get(ordinal as usize)?.name.clone())
        }
        #[cfg(feature = "interpreter")]
        Device::Interpreter => Some(crate::backend::cuda::virtual_gpu::NAME.into()),
    }
}

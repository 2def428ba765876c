//! What `doctor` finds of CUDA: kernels in the binary, driver, GPUs, cuBLASLt, and what memory the driver registers.

use std::path::Path;

use serde::Serialize;

use super::Missing;
use crate::backend::cuda::device::{DeviceInfo, devices};
use crate::backend::cuda::probe::{Registration, driver_release, free_bytes, registrations};
use crate::backend::cuda::{find_cublaslt, has_kernels, images};
use crate::cli::format;

/// The kernels in this binary, and the GPUs to run them on.
#[derive(Debug, Serialize)]
pub struct Cuda {
    /// Of the nvcc that compiled the kernels; `None` where none did.
    nvcc: Option<&'static str>,
    why_no_kernels: Option<&'static str>,
    /// Architectures with machine code.
    arches: &'static [&'static str],
    /// Release of the kernel's driver.
    driver: Option<String>,
    gpus: Vec<DeviceInfo>,
    why_no_gpu: Option<String>,
    /// Where the library lies; a bare name where the system finds it.
    cublaslt: Option<String>,
    /// Of the first GPU's driver.
    registers: Vec<Registration>,
    /// Why the first GPU cannot be opened, if it is there and cannot.
    why_not_opened: Option<String>,
}

impl Cuda {
    pub fn find(dir: &Path) -> Self {
        let (gpus, why_no_gpu) = match devices() {
            Ok(gpus) if gpus.is_empty() => (
                gpus,
                Some("the NVIDIA driver finds no GPU: see nvidia-smi".into()),
            ),
            Ok(mut gpus) => {
                for (ordinal, gpu) in (0..).zip(&mut gpus) {
                    gpu.free_bytes = free_bytes(ordinal);
                }
                (gpus, None)
            }
            Err(e) => (Vec::new(), Some(e.to_string())),
        };
        let (registers, why_not_opened) = match (!gpus.is_empty()).then(|| registrations(0, dir)) {
            None => (Vec::new(), None),
            Some(Ok(registers)) => (registers, None),
            Some(Err(e)) => (Vec::new(), Some(e.to_string())),
        };
        Cuda {
            nvcc: images::NVCC.ok(),
            why_no_kernels: images::NVCC.err(),
            arches: images::ARCHES,
            driver: driver_release(),
            gpus,
            why_no_gpu,
            cublaslt: find_cublaslt(),
            registers,
            why_not_opened,
        }
    }

    /// Whether a job can run on a GPU here.
    pub fn computes(&self) -> bool {
        has_kernels().is_ok() && self.why_no_gpu.is_none()
    }

    /// What is not there.
    pub fn missing(&self) -> Vec<Missing> {
        let mut missing = Vec::new();
        let mut add = |absent: bool, what, remedy: String| {
            if absent {
                missing.push(Missing { what, remedy });
            }
        };
        let why_no_kernels = self.why_no_kernels.unwrap_or_default();
        add(
            self.why_no_kernels.is_some(),
            "CUDA kernels",
            format!(
                "none were compiled in, since {why_no_kernels}: run scripts/fetch-cuda and build again"
            ),
        );
        let why_no_gpu = self.why_no_gpu.as_deref().unwrap_or_default();
        add(
            self.why_no_gpu.is_some(),
            "CUDA backend",
            format!("{why_no_gpu}; without it --device is cpu"),
        );
        add(
            self.computes() && self.cublaslt.is_none(),
            "cuBLASLt",
            "products run on kernels of our own, which are slower: pip install nvidia-cublas, or put libcublasLt.so.13 on LD_LIBRARY_PATH"
                .into(),
        );
        let why_not_opened = self.why_not_opened.as_deref().unwrap_or_default();
        add(
            self.why_not_opened.is_some(),
            "use of cuda:0",
            format!(
                "{why_not_opened}: another process may have it to itself, see nvidia-smi -q -d COMPUTE"
            ),
        );
        let own = self.refused("own memory");
        add(
            own.is_some(),
            "registration of memory",
            format!(
                "every copy from the GPU makes the host wait ({}): raise `ulimit -l`",
                own.unwrap_or_default()
            ),
        );
        // Where nothing can be registered, tmpfs is no matter of its own.
        let tmpfs = self.refused("tmpfs").filter(|_| own.is_none());
        add(
            tmpfs.is_some(),
            "registration of tmpfs",
            format!(
                "the GPU cannot copy straight into stores there ({}): raise `ulimit -l`, or free memory in /dev/shm",
                tmpfs.unwrap_or_default()
            ),
        );
        for (ordinal, gpu) in self.gpus.iter().enumerate() {
            let free = gpu.free_bytes.unwrap_or(gpu.memory_bytes);
            add(
                free < gpu.memory_bytes / 2,
                "GPU memory",
                format!(
                    "{} of cuda:{ordinal}'s {} are free: see nvidia-smi for who has the rest",
                    format::bytes(free),
                    format::bytes(gpu.memory_bytes)
                ),
            );
        }
        missing
    }

    /// Why the driver registers no memory of a kind, if it does not.
    fn refused(&self, kind: &str) -> Option<&str> {
        let tried = self.registers.iter().find(|r| r.memory.starts_with(kind))?;
        tried.why_not.as_deref()
    }

    /// Its part of the text.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("kernels      {}", self.kernels()),
            format!(
                "driver       {}",
                self.driver
                    .as_deref()
                    .unwrap_or("no NVIDIA driver in the kernel")
            ),
            format!("GPUs         {}", self.gpus()),
            format!(
                "cuBLASLt     {}",
                self.cublaslt
                    .as_deref()
                    .unwrap_or("not found, neither by name nor beside PyTorch")
            ),
        ];
        if !self.registers.is_empty() {
            let each = self.registers.iter().map(|r| match &r.why_not {
                None => format!("{}: yes", r.memory),
                Some(why) => format!("{}: no ({why})", r.memory),
            });
            lines.push(format!(
                "registers    {}",
                each.collect::<Vec<_>>().join("; ")
            ));
        }
        lines
    }

    fn kernels(&self) -> String {
        match self.nvcc {
            Some(version) => format!(
                "{} compiled in by nvcc {version} for {} and newer",
                format::counted(images::IMAGES.len() as u64, "source"),
                self.arches.join(", ")
            ),
            None => "none compiled in".into(),
        }
    }

    fn gpus(&self) -> String {
        if let Some(why) = &self.why_no_gpu {
            return format!("none: {why}");
        }
        let each = self.gpus.iter().enumerate().map(|(n, gpu)| {
            format!(
                "cuda:{n} {} ({}, {}, {} free)",
                gpu.name,
                gpu.compute_capability,
                format::bytes(gpu.memory_bytes),
                gpu.free_bytes.map_or("unknown".into(), format::bytes),
            )
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

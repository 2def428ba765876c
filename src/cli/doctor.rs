//! `streamgauge doctor`

mod cuda;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use self::cuda::Cuda;
use super::{CliResult, format, out};
use crate::backend::cpu::{Precision, instruction_set, product_gflops};
use crate::model::HubEnv;
use crate::sys;

/// Tell what this machine can do, and what is missing, with the remedy.
///
/// Looks at the processor, memory, the disk of the current directory, the Hugging Face cache, the NVIDIA driver, its GPUs and
/// what they need. The rates are measured now: a matrix product, and 64 MiB written to the current directory and removed again.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// (M, N, K) of the matrix product that is timed: the widest layer of a SmolLM2-135M block over 2,048 tokens.
const PRODUCT: (usize, usize, usize) = (2048, 1536, 576);

/// What was found.
#[derive(Debug, Serialize)]
struct Findings {
    version: &'static str,
    processor: String,
    /// `None` where the system does not say.
    physical_cores: Option<usize>,
    /// What computing uses.
    threads: usize,
    instruction_set: &'static str,
    free_memory_bytes: Option<u64>,
    gemm_gflops: f64,
    gemm_gflops_bf16: f64,
    disk: Disk,
    /// `None`: there is.
    why_no_io_uring: Option<String>,
    hub: Hub,
    backends: Backends,
    cuda: Cuda,
    missing: Vec<Missing>,
}

/// The disk of the current directory.
#[derive(Debug, Serialize)]
struct Disk {
    dir: PathBuf,
    free_bytes: Option<u64>,
    /// `None` where nothing could be written.
    write_bytes_per_s: Option<f64>,
    /// Whether room can be reserved without writing it; `None` where it could not be tried.
    fallocate: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Hub {
    cache: PathBuf,
    cache_exists: bool,
    offline: bool,
    endpoint: String,
}

#[derive(Debug, Serialize)]
struct Backends {
    cpu: bool,
    cuda: bool,
}

/// Something that is not there, and what to do about it.
#[derive(Debug, Serialize)]
struct Missing {
    what: &'static str,
    remedy: String,
}

pub fn run(args: &DoctorArgs) -> CliResult {
    let findings = Findings::gather();
    if args.json {
        out(format_args!("{}\n", serde_json::json!(findings)));
    } else {
        out(text(&findings));
    }
    Ok(())
}

impl Findings {
    fn gather() -> Self {
        let processor = sys::cpu_name();
        let (m, n, k) = PRODUCT;
        let env = HubEnv::from_env();
        let dir = std::env::current_dir().unwrap_or_else(|_| ".".into());
        let cuda = Cuda::find(&dir);
        let mut findings = Findings {
            version: env!("CARGO_PKG_VERSION"),
            processor: processor
                .rsplit_once(", ")
                .map_or(processor.clone(), |(name, _)| name.to_owned()),
            physical_cores: physical_cores(),
            threads: rayon::current_num_threads(),
            instruction_set: instruction_set(),
            free_memory_bytes: Some(sys::free_memory()).filter(|&bytes| bytes > 0),
            gemm_gflops: product_gflops(Precision::F32, m, n, k, 5),
            gemm_gflops_bf16: product_gflops(Precision::Bf16 { f32_resid: false }, m, n, k, 5),
            disk: Disk::of(&dir),
            why_no_io_uring: sys::uring::why_not(),
            hub: Hub {
                cache_exists: env.cache.is_dir(),
                cache: env.cache,
                offline: env.offline,
                endpoint: env.endpoint,
            },
            backends: Backends {
                cpu: true,
                cuda: cuda.computes(),
            },
            cuda,
            missing: Vec::new(),
        };
        findings.missing = findings.missing();
        findings
    }

    fn missing(&self) -> Vec<Missing> {
        let mut missing = self.cuda.missing();
        let mut add = |absent: bool, what, remedy: String| {
            if absent {
                missing.push(Missing { what, remedy });
            }
        };
        add(
            self.instruction_set == "x86-64",
            "AVX2 and FMA",
            "matrix products run several times slower without them: use a processor from 2013 or later".into(),
        );
        add(
            cfg!(debug_assertions),
            "optimised build",
            "this one checks itself as it runs and is slower: cargo build --release".into(),
        );
        let dir = self.disk.dir.display();
        add(
            self.disk.write_bytes_per_s.is_none(),
            "writable current directory",
            format!(
                "nothing can be written to {dir}, or it has no 64 MiB left: give --out a directory elsewhere"
            ),
        );
        add(
            self.disk.fallocate == Some(false),
            "fallocate",
            format!(
                "the file system of {dir} cannot reserve room, so every file is written twice: put stores on ext4, xfs, btrfs or tmpfs"
            ),
        );
        add(
            self.hub.offline && !self.hub.cache_exists,
            "Hugging Face cache",
            "there is no cache and downloads are off: unset HF_HUB_OFFLINE, set HF_HUB_CACHE, or give --model a directory".into(),
        );
        add(
            self.why_no_io_uring.is_some(),
            "io_uring",
            format!(
                "disks are written to by plain writes: {}",
                self.why_no_io_uring.as_deref().unwrap_or_default()
            ),
        );
        missing
    }
}

impl Disk {
    fn of(dir: &Path) -> Self {
        Disk {
            free_bytes: sys::writable::free_bytes(dir),
            write_bytes_per_s: sys::write_rate(dir),
            fallocate: fallocate(dir),
            dir: dir.to_owned(),
        }
    }
}

/// Whether the file system of `dir` reserves room when asked; `None` where no file can be made.
fn fallocate(dir: &Path) -> Option<bool> {
    let path = dir.join(format!(".streamgauge-fallocate-{}", std::process::id()));
    let file = std::fs::File::create(&path).ok()?;
    let reserved = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 1 << 16);
    let _ = std::fs::remove_file(&path);
    Some(reserved.is_ok())
}

/// Cores, hyper-threads not counted, from the (package, core) pairs that Linux lists.
fn physical_cores() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let field = |block: &str, name: &str| {
        block.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let cores: BTreeSet<_> = text
        .split("\n\n")
        .filter_map(|block| Some((field(block, "physical id")?, field(block, "core id")?)))
        .collect();
    (!cores.is_empty()).then_some(cores.len())
}

fn text(f: &Findings) -> String {
    let or_unknown = |bytes: Option<u64>| bytes.map_or("unknown".into(), format::bytes);
    let cores = f
        .physical_cores
        .map_or(String::new(), |n| format!("{n} cores, "));
    let cache = if f.hub.cache_exists {
        ""
    } else {
        " (not there yet)"
    };
    let reach = if f.hub.offline {
        "offline: nothing is downloaded".into()
    } else {
        format!("downloads from {}", f.hub.endpoint)
    };
    let mut lines = vec![
        format!("streamgauge  {}", f.version),
        format!(
            "processor    {}, {cores}{} threads in use, {}",
            f.processor, f.threads, f.instruction_set
        ),
        format!("memory       {} free", or_unknown(f.free_memory_bytes)),
        format!(
            "products     {:.0} GFLOP/s in f32, {:.0} in bf16 (--dtype bf16), measured now",
            f.gemm_gflops, f.gemm_gflops_bf16
        ),
        format!(
            "disk         {}: {} free, {}, {}",
            f.disk.dir.display(),
            or_unknown(f.disk.free_bytes),
            f.disk
                .write_bytes_per_s
                .map_or("not writable".into(), |rate| format!(
                    "{}/s written, measured now",
                    format::bytes(rate as u64)
                )),
            match f.disk.fallocate {
                Some(true) => "reserves room (fallocate)",
                Some(false) => "cannot reserve room (no fallocate)",
                None => "fallocate not tried",
            },
        ),
        format!("models       {}{cache}, {reach}", f.hub.cache.display()),
        format!(
            "backends     cpu{}",
            if f.backends.cuda { ", cuda" } else { "" }
        ),
        format!(
            "io_uring     {}",
            f.why_no_io_uring.as_deref().unwrap_or("yes")
        ),
    ];
    lines.extend(f.cuda.lines());
    for missing in &f.missing {
        lines.push(format!("missing      {}: {}", missing.what, missing.remedy));
    }
    lines.push(String::new());
    lines.join("\n")
}

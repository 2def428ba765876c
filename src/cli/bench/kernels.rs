//! `streamgauge bench kernels`

use clap::Args;

use super::super::{CliResult, out};
use crate::backend::cuda::LaunchError;
use crate::backend::cuda::Launcher;
use crate::backend::cuda::device::CudaDevice;
use crate::backend::cuda::workloads::{self, MISTRAL_7B, Rates, Workload};

/// The time of every CUDA kernel at Mistral-7B shapes, against what bounds it on this GPU.
///
/// A batch of 8,192 tokens, or a decode step of 32 sequences. Between runs the cache is overwritten; the median counts. A kernel's bound
/// is the larger of its bytes over the rate at which this GPU copies, measured first, and its FLOPs over the rate that is specified
/// for it at its boost clock. The ratio is bound over time: 1 cannot be passed.
#[derive(Debug, Args)]
pub struct KernelsArgs {
    /// The GPU, counted from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: u32,
    /// Only kernels whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Timed runs of each kernel, of which the median counts.
    #[arg(long, value_name = "R", default_value_t = 30, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    repeats: u32,
    /// Print JSON: {"device", "rates", "kernels": [{"kernel", "what", "seconds", "bound_seconds", "ratio", …}]}.
    #[arg(long)]
    json: bool,
    /// Run every kernel once at tiny shapes in the PTX interpreter, without a GPU, and time nothing.
    #[cfg(feature = "interpreter")]
    #[arg(long)]
    dry_run: bool,
}

/// One kernel's time.
#[derive(Debug, serde::Serialize)]
struct Timing {
    kernel: String,
    what: String,
    seconds: f64,
    bound_seconds: f64,
    /// Bound over time.
    ratio: f64,
    #[serde(flatten)]
    cost: workloads::Cost,
}

pub fn run(args: &KernelsArgs) -> CliResult {
    let only = args.only.as_deref().unwrap_or_default();
    #[cfg(feature = "interpreter")]
    if args.dry_run {
        return Ok(dry_run(only)?);
    }
    let mut gpu = CudaDevice::open(args.gpu)?;
    let rates = gpu.rates()?;
    let info = gpu.info()?;
    if !args.json {
        out(format_args!(
            "{}: {:.2} TB/s copied, {:.0} TFLOP/s on tensor cores and {:.1} in f32 as specified\n",
            info.name,
            rates.bytes / 1e12,
            rates.tensor_flops / 1e12,
            rates.fp32_flops / 1e12
        ));
    }
    let mut timings = Vec::new();
    let flush_bytes = 4 * gpu.cache_bytes()?.max(16 << 20);
    let flush = gpu.alloc(flush_bytes)?;
    workloads::for_each(&MISTRAL_7B, &mut gpu, |load, gpu| {
        if !load.kernel.contains(only) {
            return Ok(());
        }
        let seconds = median(args.repeats, || {
            gpu.fill(flush, 0, flush_bytes)?;
            gpu.timed(|gpu| load.launch(gpu))
        })?;
        let timing = Timing::new(load, seconds, &rates);
        if !args.json {
            out(timing.line());
        }
        timings.push(timing);
        Ok(())
    })?;
    gpu.free(flush)?;
    if args.json {
        let value = serde_json::json!({ "device": info, "rates": rates, "kernels": timings });
        out(format_args!("{value}\n"));
    }
    Ok(())
}

/// The median of `repeats` runs, after two that are not counted: the first loads the kernel.
fn median(
    repeats: u32,
    mut run: impl FnMut() -> Result<f64, LaunchError>,
) -> Result<f64, LaunchError> {
    for _ in 0..2 {
        run()?;
    }
    let mut seconds = (0..repeats).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

impl Timing {
    fn new(load: &Workload, seconds: f64, rates: &Rates) -> Timing {
        let bound_seconds = load.cost.seconds(rates);
        Timing {
            kernel: load.kernel.clone(),
            what: load.what.clone(),
            seconds,
            bound_seconds,
            ratio: bound_seconds / seconds,
            cost: load.cost,
        }
    }

    fn line(&self) -> String {
        format!(
            "{:36} {:44} {:10.1} µs   bound {:10.1} µs   ratio {:.2}\n",
            self.kernel,
            self.what,
            1e6 * self.seconds,
            1e6 * self.bound_seconds,
            self.ratio
        )
    }
}

#[cfg(feature = "interpreter")]
fn dry_run(only: &str) -> Result<(), LaunchError> {
    use crate::backend::cuda::images::{IMAGES, NVCC};
    use crate::backend::cuda::interpreted::{Interpretation, Interpreted};
    if let Err(why) = NVCC {
        return Err(LaunchError::NoDevice(format!(
            "this build has no CUDA kernels: {why}; run scripts/fetch-cuda and build again"
        )));
    }
    let mut machine = Interpreted::new(Interpretation {
        arch: "compute_90a",
        schedule: Default::default(),
    });
    let mut run = 0;
    workloads::for_each(&workloads::TINY, &mut machine, |load, machine| {
        if load.kernel.contains(only) {
            load.launch(machine)?;
            out(format_args!("{:36} {}\n", load.kernel, load.what));
            run += 1;
        }
        Ok(())
    })?;
    out(format_args!(
        "{run} launches of kernels from {} sources ran in the interpreter\n",
        IMAGES.len()
    ));
    Ok(())
}

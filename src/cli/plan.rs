//! `streamgauge plan`

use std::path::PathBuf;

use clap::Args;

use super::ceilings::{Ceilings, name_of, of_device};
use super::job_args::JobArgs;
use super::{CliResult, Failure, format, out};
use crate::backend::cpu::{Precision, product_gflops};
use crate::backend::cuda::ceilings::DeviceCeilings;
use crate::engine::{Device, Estimate, Place, Prepared, StatisticsPlan, estimate, plan_statistics};

/// Tell what `extract` with the same flags would do: rows, bytes, FLOPs, the limiter, the expected time. Runs nothing.
///
/// Rows, bytes and shards are exact: the dataset is read and tokenised, and every file is laid out. The time is what the slowest of
/// computing, copying from the device and writing takes, at this machine's rates: those that `bench ceilings` kept, or what is measured
/// now.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Rates to plan by, as `bench ceilings --out FILE` keeps them: of this machine or of another one, whose GPU this one need not have.
    #[arg(long, value_name = "FILE")]
    ceilings: Option<PathBuf>,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

/// Share of the GEMM rate that a whole forward pass is expected to reach.
const EFFICIENCY: f64 = 0.8;

/// What bounds the run.
struct Bound {
    /// Of the products, FLOP/s.
    gemm_flops: f64,
    /// Where the rates come from.
    ceilings: String,
    copy_out_bytes_per_s: Option<f64>,
    disk_bytes_per_s: Option<f64>,
    compute_s: f64,
    /// Of rows on their way from a device.
    pcie_s: Option<f64>,
    disk_s: Option<f64>,
}

impl Bound {
    fn of(
        plan: &Estimate,
        prepared: &Prepared,
        place: &Place,
        args: &PlanArgs,
    ) -> Result<Self, Failure> {
        let kept = Ceilings::read(args.ceilings.as_deref())?;
        let (gemm_flops, copy_out, ceilings) = match rates_kept(place, args, kept.as_ref()) {
            Some(rates) => rates,
            None => rates_now(place, prepared)?,
        };
        let disk_bytes_per_s = match args.job.out.as_deref() {
            Some(dir) => crate::sys::write_rate(dir),
            None => kept.and_then(|(kept, _)| Some(kept.disk?.write_bytes_per_s)),
        };
        Ok(Bound {
            gemm_flops,
            ceilings,
            copy_out_bytes_per_s: copy_out,
            disk_bytes_per_s,
            compute_s: plan.flops.total() / (EFFICIENCY * gemm_flops),
            pcie_s: copy_out.map(|rate| plan.activation_bytes as f64 / rate),
            disk_s: disk_bytes_per_s.map(|rate| plan.bytes as f64 / rate),
        })
    }

    /// What takes longest. Computing, copying and writing overlap.
    fn limiter(&self) -> (&'static str, f64) {
        let mut longest = ("compute", self.compute_s);
        for (what, seconds) in [("PCIe", self.pcie_s), ("disk", self.disk_s)] {
            if let Some(seconds) = seconds.filter(|&s| s > longest.1) {
                longest = (what, seconds);
            }
        }
        longest
    }
}

/// FLOP/s of products, bytes a second to the host, and where they come from.
type Rates = (f64, Option<f64>, String);

/// Rates measured before: of the CPU or the device that the job runs on. A file that was asked for by name may be of another machine.
fn rates_kept(place: &Place, args: &PlanArgs, kept: Option<&(Ceilings, PathBuf)>) -> Option<Rates> {
    let (kept, path) = kept?;
    let from = path.display().to_string();
    if place.device == Device::Cpu {
        let here = args.ceilings.is_some() || kept.cpu.processor == crate::sys::cpu_name();
        let rate = match place.precision() {
            Precision::F32 => Some(kept.cpu.gemm_flops),
            Precision::Bf16 { .. } => kept.cpu.gemm_flops_bf16,
        };
        return Some((rate.filter(|_| here)?, None, from));
    }
    let device = kept.device.as_ref()?;
    if args.ceilings.is_none() && name_of(place.device).as_ref() != Some(&device.device) {
        return None;
    }
    let (flops, out) = of_device_rates(device, place)?;
    Some((flops, Some(out), from))
}

fn rates_now(place: &Place, prepared: &Prepared) -> Result<Rates, Failure> {
    let from = "measured now".to_owned();
    Ok(match of_device(place.device, place.gemm)? {
        Some(device) => {
            let (flops, out) = of_device_rates(&device, place).unwrap_or((f64::NAN, f64::NAN));
            (flops, Some(out), from)
        }
        None => {
            let (n, k) = (prepared.dims.d_mlp, prepared.dims.d_model);
            let gflops = product_gflops(place.precision(), 512, n, k, 3);
            (1e9 * gflops, None, from)
        }
    })
}

/// Rows are copied into registered memory wherever some can be: a store's files, or the ring that a disk is written from.
fn of_device_rates(device: &DeviceCeilings, place: &Place) -> Option<(f64, f64)> {
    let flops = device.gemm_flops.get(place.dtype.word())?;
    let registered = device.copy_out_registered_bytes_per_s;
    Some((*flops, registered.unwrap_or(device.copy_out_bytes_per_s)))
}

pub fn run(args: &PlanArgs) -> CliResult {
    let (prepared, place) = args.job.open()?;
    if let Some(why) = place.why_cpu.as_ref().filter(|_| !args.quiet) {
        eprintln!("planned for the CPU: {why}");
    }
    let mut plan = estimate(&prepared, &mut |samples| {
        if !args.quiet && samples >= 100_000 {
            eprintln!("{} samples read", format::count(samples));
        }
    })?;
    let rows: Vec<u64> = plan.taps.iter().map(|tap| tap.rows).collect();
    let kinds = args.job.kinds();
    let statistics = kinds.map(|kinds| plan_statistics(&prepared, &kinds, &rows));
    if let Some(statistics) = &statistics {
        // Sums are all that is written.
        plan.bytes = statistics.bytes;
    }
    let mut bound = Bound::of(&plan, &prepared, &place, args)?;
    if let Some(statistics) = &statistics {
        bound.compute_s += statistics.flops / (EFFICIENCY * bound.gemm_flops);
    }
    if args.json {
        let (limiter, expected_s) = bound.limiter();
        let mut value = serde_json::json!(plan);
        value["statistics"] = serde_json::json!(statistics);
        value["device"] = place.device.to_string().into();
        value["compute_dtype"] = place.dtype.word().into();
        value["flops_total"] = plan.flops.total().into();
        value["ceilings"] = bound.ceilings.clone().into();
        value["gemm_gflops"] = (bound.gemm_flops / 1e9).into();
        value["copy_out_bytes_per_s"] = bound.copy_out_bytes_per_s.into();
        value["disk_bytes_per_s"] = bound.disk_bytes_per_s.into();
        value["compute_s"] = bound.compute_s.into();
        value["pcie_s"] = bound.pcie_s.into();
        value["disk_s"] = bound.disk_s.into();
        value["limiter"] = limiter.into();
        value["expected_s"] = expected_s.into();
        out(format_args!("{value}\n"));
    } else {
        out(text(&plan, &bound, &place, statistics.as_ref()));
    }
    Ok(())
}

fn text(
    plan: &Estimate,
    bound: &Bound,
    place: &Place,
    statistics: Option<&StatisticsPlan>,
) -> String {
    let mut lines = vec![format!(
        "{}, {} (longest sample {}), {} of {} layers run",
        format::counted(plan.samples, "sample"),
        format::counted(plan.tokens, "token"),
        format::count(plan.longest_sample),
        plan.layers_run,
        plan.layers,
    )];
    if plan.skipped > 0 {
        lines.push(format!(
            "{} would be skipped; the first: {}",
            format::counted(plan.skipped, "bad record"),
            plan.skip_reasons[0]
        ));
    }
    let width = plan.taps.iter().map(|t| t.folder.len()).max().unwrap_or(0);
    for tap in &plan.taps {
        let reduction = if tap.reduction.is_empty() {
            String::new()
        } else {
            format!("|{}", tap.reduction)
        };
        lines.push(format!(
            "  {:width$}  @{}{reduction}  {:?} {}  {}  {} bytes",
            tap.folder,
            tap.selection,
            tap.row_shape,
            tap.dtype,
            format::counted(tap.rows, "row"),
            format::count(tap.bytes),
        ));
        if tap.rows == 0 {
            lines.push(format!(
                "  {:width$}  selects no row of any sample: extraction would refuse",
                ""
            ));
        }
    }
    lines.push(match statistics {
        Some(statistics) => format!(
            "statistics instead of rows: {} bytes of sums, {} of memory while they are made, {} on top of the model's",
            format::count(statistics.bytes),
            format::bytes(statistics.memory),
            format::scaled(statistics.flops, "FLOP"),
        ),
        None => format!(
            "{} bytes in {} (activations {}), the samples table on top",
            format::count(plan.bytes),
            format::counted(plan.shards, "shard"),
            format::count(plan.activation_bytes),
        ),
    });
    let flops = &plan.flops;
    lines.push(format!(
        "{} (linear {}, attention {}, LM head {})",
        format::scaled(flops.total(), "FLOP"),
        format::scaled(flops.linear, "FLOP"),
        format::scaled(flops.attention, "FLOP"),
        format::scaled(flops.lm_head, "FLOP"),
    ));
    let told = |what: &str, seconds: Option<f64>, rate: Option<f64>| {
        let (seconds, rate) = (seconds?, format::bytes(rate? as u64));
        Some(format!("{what} {} at {rate}/s", format::duration(seconds)))
    };
    let (limiter, expected_s) = bound.limiter();
    let compute = format!(
        "compute {} on {} at {:.0} % of {}",
        format::duration(bound.compute_s),
        place.device,
        EFFICIENCY * 100.0,
        format::scaled(bound.gemm_flops, "FLOP/s"),
    );
    let disk = told("disk", bound.disk_s, bound.disk_bytes_per_s);
    let parts = [
        Some(compute),
        told("PCIe", bound.pcie_s, bound.copy_out_bytes_per_s),
        Some(disk.unwrap_or_else(|| "disk not measured (pass --out)".into())),
    ];
    lines.push(format!(
        "limited by {limiter}: about {} ({}; rates: {})",
        format::duration(expected_s),
        parts.into_iter().flatten().collect::<Vec<_>>().join("; "),
        bound.ceilings,
    ));
    lines.push(String::new());
    lines.join("\n")
}

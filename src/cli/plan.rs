//! `streamgauge plan`

use clap::Args;

use super::job_args::JobArgs;
use super::{CliResult, format, out};
use crate::backend::cpu::product_gflops;
use crate::engine::{Estimate, Prepared, estimate};

/// Tell what `extract` with the same flags would do: rows, bytes, FLOPs, the limiter, the expected time. Runs nothing.
///
/// Rows, bytes and shards are exact: the dataset is read and tokenised, and every file is laid out.
#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

/// Share of the GEMM rate that a whole forward pass is expected to reach.
const EFFICIENCY: f64 = 0.8;

/// What bounds the run on this machine, by rates measured just now.
struct Bound {
    gemm_gflops: f64,
    disk_bytes_per_s: Option<f64>,
    compute_s: f64,
    disk_s: Option<f64>,
}

impl Bound {
    fn measure(plan: &Estimate, prepared: &Prepared, dir: Option<&std::path::Path>) -> Self {
        let gemm_gflops = product_gflops(512, prepared.dims.d_mlp, prepared.dims.d_model, 3);
        let disk_bytes_per_s = dir.and_then(crate::sys::write_rate);
        Bound {
            gemm_gflops,
            disk_bytes_per_s,
            compute_s: plan.flops.total() / (EFFICIENCY * gemm_gflops * 1e9),
            disk_s: disk_bytes_per_s.map(|rate| plan.bytes as f64 / rate),
        }
    }

    fn limiter(&self) -> &'static str {
        if self.disk_s.is_some_and(|disk| disk > self.compute_s) {
            "disk"
        } else {
            "compute"
        }
    }

    /// Disk and model overlap, so the slower one counts.
    fn expected_s(&self) -> f64 {
        self.compute_s.max(self.disk_s.unwrap_or(0.0))
    }
}

pub fn run(args: &PlanArgs) -> CliResult {
    let prepared = Prepared::open(args.job.job()?)?;
    let plan = estimate(&prepared, &mut |samples| {
        if !args.quiet && samples >= 100_000 {
            eprintln!("{} samples read", format::count(samples));
        }
    })?;
    let bound = Bound::measure(&plan, &prepared, args.job.out.as_deref());
    if args.json {
        let mut value = serde_json::json!(plan);
        value["flops_total"] = plan.flops.total().into();
        value["gemm_gflops"] = bound.gemm_gflops.into();
        value["disk_bytes_per_s"] = bound.disk_bytes_per_s.into();
        value["limiter"] = bound.limiter().into();
        value["expected_s"] = bound.expected_s().into();
        out(format_args!("{value}\n"));
    } else {
        out(text(&plan, &bound));
    }
    Ok(())
}

fn text(plan: &Estimate, bound: &Bound) -> String {
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
    lines.push(format!(
        "{} bytes in {} (activations {}), the samples table on top",
        format::count(plan.bytes),
        format::counted(plan.shards, "shard"),
        format::count(plan.activation_bytes),
    ));
    let flops = &plan.flops;
    lines.push(format!(
        "{} (linear {}, attention {}, LM head {})",
        format::scaled(flops.total(), "FLOP"),
        format::scaled(flops.linear, "FLOP"),
        format::scaled(flops.attention, "FLOP"),
        format::scaled(flops.lm_head, "FLOP"),
    ));
    let disk = match (bound.disk_bytes_per_s, bound.disk_s) {
        (Some(rate), Some(seconds)) => format!(
            "disk {} at {}/s",
            format::duration(seconds),
            format::bytes(rate as u64)
        ),
        _ => "disk not measured (pass --out)".into(),
    };
    lines.push(format!(
        "limited by {}: about {} (compute {} at {:.0} % of {:.0} GFLOP/s measured now; {disk})",
        bound.limiter(),
        format::duration(bound.expected_s()),
        format::duration(bound.compute_s),
        EFFICIENCY * 100.0,
        bound.gemm_gflops,
    ));
    lines.push(String::new());
    lines.join("\n")
}

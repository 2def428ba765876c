//! `streamgauge bench`

mod ceilings;
mod kernels;

use clap::{Args, Subcommand};

use super::{CliResult, format, out};
use crate::backend::cpu::{Precision, gemm_crate_gflops, product_gflops};

/// Measure what this machine reaches.
///
/// Nothing is assumed about the machine: measure while it is otherwise idle.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Gemm(GemmArgs),
    Kernels(kernels::KernelsArgs),
    Ceilings(ceilings::CeilingsArgs),
}

/// The rate of matrix products, which bounds how fast any model can run on the CPU.
///
/// Two rates: that of the `gemm` crate in f32, a general library, as a limit that is not of our making; and that of the product
/// which this engine multiplies by, in the dtype asked for, its weights packed beforehand, as an extraction has them. Each product is x[M, K] · w[N, K]ᵀ, as a linear layer over M tokens computes it. Without --n and --k the shapes are
/// those of SmolLM2-135M's blocks: the query and output projections, keys and values, the MLP's way up and its way down.
/// The overall rate is all their FLOPs over all their time.
#[derive(Debug, Args)]
struct GemmArgs {
    /// Rows of x: tokens in a batch.
    #[arg(long, value_name = "M", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    m: u32,
    /// Outputs of the layer; goes with --k.
    #[arg(long, value_name = "N", requires = "k", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    n: Option<u32>,
    /// Inputs of the layer; goes with --n.
    #[arg(long, value_name = "K", requires = "n", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    k: Option<u32>,
    /// Runs of each shape, each with a weight of its own; the median counts.
    #[arg(long, value_name = "R", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeats: u32,
    /// Dtype of the engine's product.
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = ["f32", "bf16"])]
    dtype: String,
    /// Print JSON: {"gflops" (the gemm crate's), "product_gflops" (ours), "shapes": [{"m", "n", "k", …}], …}.
    #[arg(long)]
    json: bool,
}

/// (N, K) of the linear layers of a SmolLM2-135M block.
const SMOLLM2: [(usize, usize); 4] = [(576, 576), (192, 576), (1536, 576), (576, 1536)];

/// One shape's rates.
#[derive(Debug, serde::Serialize)]
struct Rate {
    m: usize,
    n: usize,
    k: usize,
    /// The gemm crate's.
    gflops: f64,
    /// Ours.
    product_gflops: f64,
}

pub fn run(args: &BenchArgs) -> CliResult {
    match &args.what {
        What::Gemm(args) => gemm(args),
        What::Kernels(args) => return kernels::run(args),
        What::Ceilings(args) => return ceilings::run(args),
    }
    Ok(())
}

fn gemm(args: &GemmArgs) {
    let m = args.m as usize;
    let precision = match &args.dtype[..] {
        "bf16" => Precision::Bf16 { f32_resid: false },
        _ => Precision::F32,
    };
    let shapes = match (args.n, args.k) {
        (Some(n), Some(k)) => vec![(n as usize, k as usize)],
        _ => SMOLLM2.to_vec(),
    };
    let rates: Vec<Rate> = shapes
        .into_iter()
        .map(|(n, k)| Rate {
            m,
            n,
            k,
            gflops: gemm_crate_gflops(m, n, k, args.repeats as usize),
            product_gflops: product_gflops(precision, m, n, k, args.repeats as usize),
        })
        .collect();
    let crate_overall = overall(&rates, |r| r.gflops);
    let product_overall = overall(&rates, |r| r.product_gflops);
    if args.json {
        let value = serde_json::json!({
            "gflops": crate_overall,
            "product_gflops": product_overall,
            "shapes": rates,
            "dtype": args.dtype,
            "instruction_set": precision.instruction_set(),
            "threads": rayon::current_num_threads(),
            "product": precision.gemm(),
        });
        out(format_args!("{value}\n"));
        return;
    }
    out(format_args!(
        "                           gemm crate, f32  streamgauge, {}\n",
        args.dtype
    ));
    for rate in &rates {
        let Rate { m, n, k, .. } = rate;
        let (theirs, ours) = (rate.gflops, rate.product_gflops);
        out(format_args!(
            "M {m:6}  N {n:6}  K {k:6}  {theirs:10.1}    {ours:10.1}  GFLOP/s\n"
        ));
    }
    let threads = format::counted(rayon::current_num_threads() as u64, "thread");
    out(format_args!(
        "overall                         {crate_overall:10.1}    {product_overall:10.1}  GFLOP/s ({}, {threads})\n",
        precision.instruction_set()
    ));
}

/// All FLOPs over all time.
fn overall(rates: &[Rate], gflops: impl Fn(&Rate) -> f64) -> f64 {
    let flops = |r: &Rate| 2.0 * (r.m * r.n * r.k) as f64;
    let seconds: f64 = rates.iter().map(|r| flops(r) / gflops(r)).sum();
    rates.iter().map(flops).sum::<f64>() / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overall_rate_weighs_each_shape_by_its_time() {
        let rate = |n, gflops| Rate {
            m: 10,
            n,
            k: 10,
            gflops,
            product_gflops: 2.0 * gflops,
        };
        let overall = |rates: &[Rate]| overall(rates, |r| r.gflops);
        assert!((overall(&[rate(10, 50.0), rate(10, 100.0)]) - 200.0 / 3.0).abs() < 1e-9);
        assert!((overall(&[rate(20, 50.0), rate(10, 100.0)]) - 60.0).abs() < 1e-9);
    }
}

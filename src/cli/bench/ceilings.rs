//! `streamgauge bench ceilings`

use std::path::PathBuf;

use clap::Args;

use super::super::ceilings::{Ceilings, name_of};
use super::super::model_args::GemmArg;
use super::super::{CliResult, Failure, format, out};
use crate::engine::Device;

/// What this machine reaches at most: matrix products, copies within the GPU and to and from it, the disk.
///
/// They are kept as JSON, and `plan` reads them there. On a GPU products of 8,192³ in 16 bits and 4,096³ in f32 (without TF32) and
/// copies of 512 MiB are timed; on the CPU a product in f32 and in bf16; on the disk 64 MiB that are written, made durable and removed again.
#[derive(Debug, Args)]
pub struct CeilingsArgs {
    /// auto, cpu, cuda or cuda:N. `auto` is the first GPU, where there is one.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,
    /// What multiplies on a GPU.
    #[arg(long, value_enum, default_value = "auto")]
    gemm: GemmArg,
    /// Whose disk.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Where to keep them [default: streamgauge/ceilings.json in XDG_CACHE_HOME or ~/.cache].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print what is kept.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &CeilingsArgs) -> CliResult {
    let device = match args.device {
        Device::Auto if name_of(Device::Cuda(0)).is_some() => Device::Cuda(0),
        device => device,
    };
    let Some(path) = args.out.clone().or_else(Ceilings::kept_at) else {
        let why = "there is neither HOME nor XDG_CACHE_HOME to keep ceilings in: pass --out FILE";
        return Err(Failure::Refused(why.into()));
    };
    let found = Ceilings::measure(device, args.gemm.into(), &args.dir)?;
    found.write(&path)?;
    if args.json {
        out(format_args!("{}\n", serde_json::json!(found)));
    } else {
        out(text(&found));
        eprintln!("kept in {}", path.display());
    }
    Ok(())
}

fn text(found: &Ceilings) -> String {
    let per_s = |rate: f64| format!("{}/s", format::bytes(rate as u64));
    let bf16 = found.cpu.gemm_flops_bf16.map_or(String::new(), |rate| {
        format!(", {} in bf16", format::scaled(rate, "FLOP/s"))
    });
    let mut lines = vec![format!(
        "CPU      {} in f32{bf16} ({})",
        format::scaled(found.cpu.gemm_flops, "FLOP/s"),
        found.cpu.processor
    )];
    if let Some(device) = &found.device {
        let products = device.gemm_flops.iter();
        let products =
            products.map(|(dtype, &rate)| format!("{} in {dtype}", format::scaled(rate, "FLOP/s")));
        lines.push(format!(
            "device   {}: {} (products by {})",
            device.device,
            products.collect::<Vec<_>>().join(", "),
            device.gemm_library
        ));
        let registered = device.copy_out_registered_bytes_per_s;
        lines.push(format!(
            "copies   within {}, to the device {}, to the host {}, to registered memory {}",
            per_s(device.copy_bytes_per_s),
            per_s(device.upload_bytes_per_s),
            per_s(device.copy_out_bytes_per_s),
            registered.map_or("not possible".into(), per_s),
        ));
    }
    lines.push(match &found.disk {
        Some(disk) => format!(
            "disk     {} ({})",
            per_s(disk.write_bytes_per_s),
            disk.dir.display()
        ),
        None => "disk     not writable".into(),
    });
    lines.push(String::new());
    lines.join("\n")
}

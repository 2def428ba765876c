//! Thread instructions per second of CPU time, on one thread: `cargo run --release -p ptx-interpreter --example speed`.

use std::error::Error;

use ptx_interpreter::{Device, Launch, Module, Schedule, Stats};

fn upload(device: &mut Device, count: usize) -> Result<u64, Box<dyn Error>> {
    // bf16 between -2 and 2
    let values = (0..count).map(|i| 0x3f80 + (i * 7919 % 128) as u16 + (i as u16 & 1) * 0x8000);
    let bytes: Vec<u8> = values.flat_map(u16::to_le_bytes).collect();
    let address = device.alloc(bytes.len());
    device.write(address, &bytes)?;
    Ok(address)
}

/// Each block is a launch of its own, so that no second thread helps.
fn report(
    name: &str,
    mut launch: impl FnMut() -> Result<Stats, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let (start, mut threads, mut mma) = (cpu_seconds()?, 0, 0);
    while cpu_seconds()? - start < 1.0 {
        let stats = launch()?;
        (threads, mma) = (threads + stats.thread_instructions, mma + stats.mma);
    }
    let seconds = cpu_seconds()? - start;
    let rate = threads as f64 / seconds / 1e6;
    println!(
        "{name}: {rate:.0} million thread instructions a second, {:.2} million mma",
        mma as f64 / seconds / 1e6
    );
    Ok(())
}

/// What this process has used; others on the machine do not count.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let schedstat = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds: f64 = schedstat.split(' ').next().unwrap_or_default().parse()?;
    Ok(nanoseconds / 1e9)
}

fn main() -> Result<(), Box<dyn Error>> {
    let module = |name: &str| -> Result<Module, Box<dyn Error>> {
        let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        Ok(Module::parse(&std::fs::read_to_string(path)?, name)?)
    };
    let (softmax, tile) = (module("softmax.ptx")?, module("tile.ptx")?);
    let mut device = Device::new();
    let (x, y) = (upload(&mut device, 8192)?, device.alloc(16384));
    let mut args: Vec<u8> = [x, y].iter().flat_map(|p| p.to_le_bytes()).collect();
    args.extend(8192u32.to_le_bytes());
    args.extend(1f32.to_le_bytes());
    let one = Launch {
        grid: [1, 1, 1],
        block: [128, 1, 1],
        dynamic_shared: 0,
        schedule: Schedule::Forward,
    };
    report("softmax", || {
        Ok(device.launch(&softmax, "softmax", &one, &args)?)
    })?;

    let mut device = Device::new();
    let (x, w) = (
        upload(&mut device, 64 * 1024)?,
        upload(&mut device, 64 * 1024)?,
    );
    let y = device.alloc(64 * 64 * 2);
    let mut args: Vec<u8> = [x, w, y].iter().flat_map(|p| p.to_le_bytes()).collect();
    args.extend([64u32, 64, 1024, 0].iter().flat_map(|n| n.to_le_bytes()));
    let one = Launch {
        dynamic_shared: 4 * 64 * 40 * 2,
        ..one
    };
    report("tile", || Ok(device.launch(&tile, "tile", &one, &args)?))
}

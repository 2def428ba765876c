//! Where a case runs: the interpreter under each schedule, or the GPU that `STREAMGAUGE_TEST_DEVICE` names.

use ptx_interpreter::Schedule;
use streamgauge::backend::cuda::Launcher;
use streamgauge::backend::cuda::device::CudaDevice;
use streamgauge::backend::cuda::interpreted::{Interpretation, Interpreted};

/// Runs on a GPU: any difference between them is a race that the hardware showed.
const REPEATS: usize = 3;
/// As many bytes as the widest tile row, so that a stray tile store hits it.
const GUARD_BYTES: usize = 1024;

pub struct Machine {
    pub name: String,
    launcher: Box<dyn Launcher>,
    watches: bool,
}

impl Machine {
    pub fn launcher(&mut self) -> &mut dyn Launcher {
        &mut *self.launcher
    }

    /// Whether it finds stray accesses and reads of unwritten memory itself.
    pub fn watches(&self) -> bool {
        self.watches
    }

    /// Bytes to leave on either side of a buffer.
    pub fn guard(&self) -> usize {
        if self.watches { 0 } else { GUARD_BYTES }
    }
}

/// Every machine in turn; each is made when its turn comes.
pub fn all() -> Box<dyn Iterator<Item = Machine>> {
    those(schedules())
}

/// Those that run code for sm_90a; a GPU is asked when it comes to that.
pub fn of_sm_90a() -> Box<dyn Iterator<Item = Machine>> {
    those(schedules().map(|(name, how)| {
        let arch = "compute_90a";
        (name, Interpretation { arch, ..how })
    }))
}

fn those(schedules: [(&'static str, Interpretation); 3]) -> Box<dyn Iterator<Item = Machine>> {
    match std::env::var("STREAMGAUGE_TEST_DEVICE") {
        Ok(device) => Box::new((1..=REPEATS).map(move |run| on_gpu(&device, run))),
        Err(_) => Box::new(schedules.into_iter().map(|(name, how)| Machine {
            name: format!("{name} on the PTX of {}", how.arch),
            launcher: Box::new(Interpreted::new(how)),
            watches: true,
        })),
    }
}

/// H100's PTX forwards and in random order, everyone else's backwards.
fn schedules() -> [(&'static str, Interpretation); 3] {
    let how = |arch, schedule| Interpretation { arch, schedule };
    [
        ("forward", how("compute_90a", Schedule::Forward)),
        ("reverse", how("compute_80", Schedule::Reverse)),
        ("seeded", how("compute_90a", Schedule::Seeded(0x5eed))),
    ]
}

fn on_gpu(device: &str, run: usize) -> Machine {
    let gpu = device
        .strip_prefix("cuda:")
        .and_then(|ordinal| ordinal.parse().ok())
        .ok_or_else(|| format!("STREAMGAUGE_TEST_DEVICE is {device}, not as cuda:0"))
        .and_then(|ordinal| CudaDevice::open(ordinal).map_err(|e| e.to_string()));
    Machine {
        name: format!("run {run} on {device}"),
        launcher: Box::new(gpu.unwrap_or_else(|e| panic!("{e}"))),
        watches: false,
    }
}

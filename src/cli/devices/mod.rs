//! `extract --devices`: a process for each of several devices, each at a slice of the dataset, and the store of the whole in the end.

mod slices;
mod supervise;
mod worker;

use std::str::FromStr;

pub use self::supervise::run;
pub use self::worker::Worker;
use super::Failure;
use crate::backend::cuda;
use crate::engine::Device;

/// `--devices`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Devices {
    /// Every GPU of this machine.
    All,
    /// One process each.
    These(Vec<Device>),
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Devices::All);
        }
        let mut devices = Vec::new();
        for item in text.split(',') {
            let (times, name) = repeated(item);
            let device = match name.parse::<u32>() {
                Ok(ordinal) => Device::Cuda(ordinal),
                Err(_) => name.parse::<Device>().map_err(|_| {
                    format!(
                        "{item:?} is no device: write all, or a list of GPUs as in 0,1, or 4xcpu"
                    )
                })?,
            };
            if device == Device::Auto {
                return Err("auto is one device: write all for every GPU".into());
            }
            devices.extend(std::iter::repeat_n(device, times));
        }
        let kind = std::mem::discriminant(&devices[0]);
        if devices.iter().any(|d| std::mem::discriminant(d) != kind) {
            return Err("devices of several kinds do not give the same bits: name one kind".into());
        }
        Ok(Devices::These(devices))
    }
}

/// `4xcpu`: how often, and what.
fn repeated(item: &str) -> (usize, &str) {
    const MOST: usize = 1024;
    let split = item.split_once('x');
    let times = split.and_then(|(times, name)| Some((times.parse().ok()?, name)));
    times
        .filter(|(times, _)| (1..=MOST).contains(times))
        .unwrap_or((1, item))
}

impl Devices {
    /// The devices by name; of GPUs the driver is asked.
    ///
    /// # Errors
    /// There is no GPU, or none that this binary can use.
    fn found(&self) -> Result<Vec<Device>, Failure> {
        let none = |why: String| {
            Failure::Refused(format!(
                "--devices: {why}; for several processes on the CPU write --devices 2xcpu"
            ))
        };
        let all = || {
            cuda::has_kernels().map_err(|e| none(e.to_string()))?;
            let gpus = cuda::device::devices().map_err(|e| none(e.to_string()))?;
            match gpus.len() {
                0 => Err(none("the NVIDIA driver finds no GPU".into())),
                n => Ok((0..).take(n).map(Device::Cuda).collect::<Vec<_>>()),
            }
        };
        match self {
            Devices::All => all(),
            Devices::These(devices) if matches!(devices[0], Device::Cuda(_)) => {
                let there = all()?;
                match devices.iter().find(|device| !there.contains(device)) {
                    None => Ok(devices.clone()),
                    Some(no) => Err(none(format!(
                        "there is no {no}, the last is {}",
                        there[there.len() - 1]
                    ))),
                }
            }
            Devices::These(devices) => Ok(devices.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_numbers_of_gpus_or_names_that_may_be_repeated() {
        let these = |devices: &[Device]| Ok(Devices::These(devices.to_vec()));
        let (cpu, gpu) = (Device::Cpu, Device::Cuda);
        assert_eq!("all".parse(), Ok(Devices::All));
        assert_eq!("0,3".parse(), these(&[gpu(0), gpu(3)]));
        assert_eq!("cuda:1,cuda:2".parse(), these(&[gpu(1), gpu(2)]));
        assert_eq!("3xcpu".parse(), these(&[cpu, cpu, cpu]));
        assert_eq!("cpu".parse(), these(&[cpu]));
        assert_eq!("2x0,1".parse(), these(&[gpu(0), gpu(0), gpu(1)]));
    }

    #[test]
    fn what_names_no_devices_of_one_kind_is_refused_with_the_remedy() {
        let said = |text: &str| text.parse::<Devices>().unwrap_err();
        for bad in [
            "",
            "0,",
            "gpu",
            "0xcpu",
            "xcpu",
            "-1",
            "9999999xcpu",
            "all,0",
        ] {
            assert!(said(bad).contains("4xcpu"), "{bad}: {}", said(bad));
        }
        assert!(said("auto").contains("all"));
        assert!(said("cpu,0").contains("one kind"));
    }
}

//! What the compiler said of each kernel: the gates it must pass on every architecture, and the tables of `docs/kernels.md`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use streamgauge::backend::cuda::images::{self, ARCHES, IMAGES, Image};
use streamgauge::backend::cuda::workloads::{self, H100, MISTRAL_7B, Nowhere, Units, Workload};

/// Kernel and architecture to what ptxas reported.
type Resources = BTreeMap<(String, String), Usage>;

#[derive(Debug, Default, Clone, PartialEq)]
struct Usage {
    registers: u32,
    stack_bytes: u32,
    /// Stored and loaded.
    spill_bytes: u32,
    static_shared: u32,
}

/// Reads `ptxas -v`.
fn resources(image: &Image) -> Resources {
    let mut all = Resources::new();
    let mut usage = None;
    for line in image.ptxas.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let (kernel, rest) = rest.split_once('\'').expect("a quoted name");
            let arch = rest.split('\'').nth(1).expect("a quoted architecture");
            usage = Some(all.entry((kernel.into(), arch.into())).or_default());
        } else if let Some(usage) = &mut usage {
            read_usage(line, usage);
        }
    }
    all
}

fn read_usage(line: &str, usage: &mut Usage) {
    let before = |what: &str| -> Option<u32> {
        let words = line.split_once(what)?.0.split([' ', ',']);
        words.rev().find(|word| !word.is_empty())?.parse().ok()
    };
    if let Some(stack) = before(" bytes stack frame") {
        usage.stack_bytes = stack;
        usage.spill_bytes =
            before(" bytes spill stores").unwrap_or(0) + before(" bytes spill loads").unwrap_or(0);
    }
    if let Some(registers) = before(" registers") {
        usage.registers = registers;
        usage.static_shared = before(" bytes smem").unwrap_or(0);
    }
}

#[test]
fn usage_is_read_from_what_ptxas_says() {
    let mut usage = Usage::default();
    read_usage(
        "    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads",
        &mut usage,
    );
    read_usage(
        "ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem, 376 bytes cmem[0]",
        &mut usage,
    );
    assert_eq!(
        usage,
        Usage {
            registers: 40,
            stack_bytes: 8,
            spill_bytes: 28,
            static_shared: 1024
        }
    );
}

fn need_kernels() {
    if let Err(why) = images::NVCC {
        panic!("this build has no kernels: {why}; run scripts/fetch-cuda");
    }
}

#[test]
fn no_kernel_spills_or_uses_local_memory() {
    need_kernels();
    for image in IMAGES {
        for ((kernel, arch), usage) in resources(image) {
            assert_eq!(
                (usage.stack_bytes, usage.spill_bytes),
                (0, 0),
                "{kernel} on {arch}: bytes of stack and of spills"
            );
        }
    }
}

/// Machine instructions that the point of a kernel is: tensor cores (HMMA), fed by ldmatrix (LDSM) from shared memory that
/// cp.async (LDGSTS) fills.
const TENSOR: [&str; 3] = ["HMMA.", "LDSM.", "LDGSTS."];

#[test]
fn products_and_attention_run_on_tensor_cores() {
    need_kernels();
    for source in ["gemm", "attention", "attention_scores"] {
        for arch in ARCHES {
            let kernels = instructions(source, arch);
            assert!(!kernels.is_empty(), "no kernels of {source}.cu for {arch}");
            for (kernel, seen) in kernels
                .iter()
                .filter(|(kernel, _)| !kernel.contains("_f32_") && !kernel.ends_with("_f32"))
            {
                for instruction in TENSOR {
                    assert!(
                        seen.contains(instruction),
                        "{kernel} on {arch} has no {instruction}"
                    );
                }
            }
        }
    }
}

/// Sources whose kernels are for sm_90a and trap elsewhere.
const SM_90A_ALONE: [&str; 1] = ["gate_up"];

/// What they are for: products of a warpgroup (HGMMA), fed by tensor copies (UTMALDG), with registers moved from the warps that
/// copy to those that multiply (USETMAXREG).
const WARPGROUP: [&str; 3] = ["HGMMA.", "UTMALDG.", "USETMAXREG."];

#[test]
fn products_of_sm_90a_run_on_warpgroups_fed_by_tensor_copies() {
    need_kernels();
    for source in SM_90A_ALONE {
        let kernels = instructions(source, "sm_90a");
        assert!(!kernels.is_empty(), "no kernels of {source}.cu");
        for (kernel, seen) in &kernels {
            for instruction in WARPGROUP {
                assert!(seen.contains(instruction), "{kernel} has no {instruction}");
            }
        }
    }
}

#[test]
fn no_product_waits_for_the_one_before_it() {
    need_kernels();
    // ptxas does so where it cannot tell who else touches the sums, and says it.
    for image in IMAGES {
        let told = image.ptxas.lines().find(|line| line.contains("serialized"));
        assert_eq!(told, None, "{}.cu", image.source);
    }
}

/// The machine code of each kernel, as text.
fn instructions(source: &str, arch: &str) -> HashMap<String, String> {
    let image = Image::of(source).expect("it was compiled");
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), image.fatbin).expect("it can be written");
    let tool = Path::new(images::NVCC_PATH).with_file_name("cuobjdump");
    let output = Command::new(&tool)
        .args(["-sass", "-arch", arch])
        .arg(file.path())
        .output()
        .unwrap_or_else(|e| panic!("{} does not run: {e}", tool.display()));
    let text = String::from_utf8_lossy(&output.stdout);
    text.split("Function : ")
        .skip(1)
        .filter_map(|function| {
            let (name, code) = function.split_once('\n')?;
            Some((name.trim().to_owned(), code.to_owned()))
        })
        .collect()
}

/// What a multiprocessor holds at once; CUDA C++ Programming Guide, "Compute Capabilities".
struct Multiprocessor {
    arch: &'static str,
    warps: u32,
    blocks: u32,
    /// Of which every block takes 1 KiB for the system.
    shared_kib: u32,
    /// The most that one block may have.
    block_shared_kib: u32,
}

const MULTIPROCESSORS: [Multiprocessor; 4] = [
    Multiprocessor {
        arch: "sm_80",
        warps: 64,
        blocks: 32,
        shared_kib: 164,
        block_shared_kib: 163,
    },
    Multiprocessor {
        arch: "sm_86",
        warps: 48,
        blocks: 16,
        shared_kib: 100,
        block_shared_kib: 99,
    },
    Multiprocessor {
        arch: "sm_89",
        warps: 48,
        blocks: 24,
        shared_kib: 100,
        block_shared_kib: 99,
    },
    Multiprocessor {
        arch: "sm_90a",
        warps: 64,
        blocks: 32,
        shared_kib: 228,
        block_shared_kib: 227,
    },
];

impl Multiprocessor {
    /// Resident warps as a share of the most possible; 0 if a block does not fit.
    fn occupancy(&self, registers: u32, threads: u32, shared: u32) -> f64 {
        if shared > self.block_shared_kib << 10 {
            return 0.0;
        }
        let warps = threads.div_ceil(32);
        // 65,536 registers, given to a warp 256 at a time, to four partitions alike.
        let warp_registers = (registers * 32).next_multiple_of(256);
        let by_registers = (16384 / warp_registers * 4) / warps;
        let by_shared = (self.shared_kib << 10) / (shared + 1024).next_multiple_of(128);
        let blocks = by_registers
            .min(by_shared)
            .min(self.warps / warps)
            .min(self.blocks);
        f64::from(blocks * warps) / f64::from(self.warps)
    }
}

#[test]
fn occupancy_is_limited_by_whichever_runs_out_first() {
    let [a100, rtx30, ..] = &MULTIPROCESSORS;
    assert_eq!(a100.occupancy(32, 256, 0), 1.0);
    assert_eq!(a100.occupancy(128, 128, 0), 0.25, "registers");
    assert_eq!(a100.occupancy(32, 128, 80 << 10), 0.125, "shared memory");
    assert_eq!(rtx30.occupancy(32, 32, 0), 1.0 / 3.0, "blocks");
    assert_eq!(rtx30.occupancy(32, 128, 120 << 10), 0.0, "does not fit");
}

#[test]
fn the_report_in_docs_is_current() {
    need_kernels();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kernels.md");
    if std::env::var_os("STREAMGAUGE_WRITE_REPORT").is_some() {
        std::fs::write(&path, report()).expect("docs can be written");
        return;
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    // Another compiler allocates registers otherwise.
    let made_with = format!("nvcc {}", images::NVCC.unwrap());
    if !there.is_empty() && !there.contains(&made_with) {
        eprintln!("docs/kernels.md was not made with {made_with}: not compared");
        return;
    }
    assert!(
        there == report(),
        "docs/kernels.md is not what the compiled kernels give: run scripts/kernel-report"
    );
}

fn report() -> String {
    let mut text = format!(
        include_str!("report.md"),
        nvcc = images::NVCC.unwrap(),
        arches = ARCHES.join(", "),
    );
    let work = work();
    for image in IMAGES {
        let resources = resources(image);
        let mut kernels: Vec<&str> = resources
            .keys()
            .map(|(kernel, _)| kernel.as_str())
            .collect();
        kernels.dedup();
        write!(text, "\n## {}.cu\n\n{HEAD}", image.source).unwrap();
        for kernel in kernels {
            let loads = work
                .get(kernel)
                .unwrap_or_else(|| panic!("{kernel} has no workload in backend/cuda/workloads"));
            let alone = SM_90A_ALONE.contains(&image.source);
            let lines: Vec<_> = MULTIPROCESSORS
                .iter()
                .filter(|at| !alone || at.arch == "sm_90a")
                .map(|at| (at, &resources[&(kernel.to_owned(), at.arch.to_owned())]))
                .collect();
            text += &row(kernel, &lines, &loads[0]);
            for more in &loads[1..] {
                text += &format!("| | | | | | | {}\n", bound(more));
            }
        }
    }
    text
}

const HEAD: &str = "\
| kernel | threads | shared, bytes | registers | spills, bytes | occupancy, % | at Mistral-7B shapes | MB | GFLOP | bound, µs |
|---|--:|--:|---|--:|---|---|--:|--:|--:|
";

/// The workloads of each kernel.
fn work() -> HashMap<String, Vec<Workload>> {
    let mut work: HashMap<String, Vec<Workload>> = HashMap::new();
    workloads::for_each(&MISTRAL_7B, &mut Nowhere::default(), |load, _| {
        work.entry(load.kernel.clone())
            .or_default()
            .push(load.clone());
        Ok(())
    })
    .unwrap();
    work
}

fn row(kernel: &str, lines: &[(&Multiprocessor, &Usage)], load: &Workload) -> String {
    let threads: u32 = load.dims.block.iter().product();
    let shared = |usage: &Usage| usage.static_shared + load.dims.dynamic_shared;
    let each = |value: &dyn Fn(&Multiprocessor, &Usage) -> u32| {
        let mut values: Vec<String> = lines
            .iter()
            .map(|&(at, usage)| value(at, usage).to_string())
            .collect();
        if values.iter().all(|value| *value == values[0]) {
            values.truncate(1);
        }
        values.join(" · ")
    };
    format!(
        "| `{kernel}` | {threads} | {} | {} | {} | {} | {}\n",
        each(&|_, usage| shared(usage)),
        each(&|_, usage| usage.registers),
        each(&|_, usage| usage.spill_bytes),
        each(&|at, usage| {
            let share = at.occupancy(usage.registers, threads, shared(usage));
            assert!(share > 0.0, "{kernel} does not fit on {}", at.arch);
            (100.0 * share).round() as u32
        }),
        bound(load)
    )
}

fn bound(load: &Workload) -> String {
    let cost = &load.cost;
    let us = 1e6 * cost.seconds(&H100);
    let by = match cost.units {
        _ if cost.seconds(&H100) <= cost.bytes as f64 / H100.bytes => "bytes",
        Units::TensorCores => "tensor cores",
        Units::Fp32 => "f32 units",
    };
    format!(
        "{} | {} | {} | {} ({by}) |",
        load.what,
        digits(cost.bytes as f64 / 1e6),
        if cost.flops == 0 {
            "–".into()
        } else {
            digits(cost.flops as f64 / 1e9)
        },
        digits(us)
    )
}

/// Three digits that matter.
fn digits(x: f64) -> String {
    let decimals = (2 - x.abs().max(1e-3).log10().floor() as i32).clamp(0, 3);
    format!("{x:.*}", decimals as usize)
}

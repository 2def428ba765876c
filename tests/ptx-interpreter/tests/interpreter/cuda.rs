//! Real kernels, as nvcc compiled them. The PTX is stored beside its source, so that this runs without nvcc; where nvcc is
//! found, the source is compiled anew as well.

use std::path::{Path, PathBuf};
use std::process::Command;

use ptx_interpreter::{Device, Finding, FindingKind, Launch, Module, Schedule, Stats};

const SCHEDULES: [Schedule; 3] = [Schedule::Forward, Schedule::Reverse, Schedule::Seeded(11)];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn stored(name: &str) -> Module {
    let text = std::fs::read_to_string(fixture(name)).expect("the fixture is there");
    Module::parse(&text, name).unwrap_or_else(|error| panic!("{error}"))
}

fn nvcc() -> Option<PathBuf> {
    let works = |path: &PathBuf| {
        Command::new(path)
            .arg("--version")
            .output()
            .is_ok_and(|out| out.status.success())
    };
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cuda/nvidia/cu13/bin/nvcc");
    std::env::var_os("NVCC")
        .map(PathBuf::from)
        .into_iter()
        .chain([local, PathBuf::from("nvcc")])
        .find(works)
}

/// Compiles a fixture for `arch`; None where there is no nvcc.
fn compiled(name: &str, arch: &str) -> Option<Module> {
    let nvcc = nvcc()?;
    let source = fixture(name);
    let target = std::env::temp_dir().join(format!("{name}.{arch}.{}.ptx", std::process::id()));
    let arch = format!("-arch={arch}");
    let out = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-lineinfo", &arch, "-ptx", "-o"])
        .args([&target, &source])
        .output()
        .expect("nvcc starts");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = std::fs::read_to_string(&target).expect("nvcc wrote it");
    std::fs::remove_file(&target).expect("it is ours");
    Some(Module::parse(&text, name).unwrap_or_else(|error| panic!("{error}")))
}

fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

fn wide(bits: u16) -> f64 {
    f32::from_bits(u32::from(bits) << 16).into()
}

fn pattern(count: usize, salt: usize) -> Vec<u16> {
    (0..count)
        .map(|i| bf16(((i * 7919 + salt) % 199) as f32 / 32.0 - 3.0))
        .collect()
}

fn bytes(values: &[u16]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn upload(device: &mut Device, values: &[u16]) -> u64 {
    let address = device.alloc(2 * values.len());
    device.write(address, &bytes(values)).expect("fits");
    address
}

fn download(device: &Device, address: u64, count: usize) -> Vec<u16> {
    let bytes = device
        .read(address, 2 * count)
        .expect("all of it was written");
    bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect()
}

fn softmax(
    module: &Module,
    x: &[u16],
    width: usize,
    schedule: Schedule,
) -> Result<(Vec<u16>, Stats), Finding> {
    let mut device = Device::new();
    let (input, output) = (upload(&mut device, x), device.alloc(2 * x.len()));
    let mut args: Vec<u8> = [input, output]
        .iter()
        .flat_map(|pointer| pointer.to_le_bytes())
        .collect();
    args.extend((width as u32).to_le_bytes());
    args.extend(0.5f32.to_le_bytes());
    let launch = Launch {
        grid: [(x.len() / width) as u32, 1, 1],
        block: [128, 1, 1],
        dynamic_shared: 0,
        schedule,
    };
    let stats = device.launch(module, "softmax", &launch, &args)?;
    Ok((download(&device, output, x.len()), stats))
}

fn check_softmax(module: &Module) {
    let (rows, width) = (5, 333);
    let x = pattern(rows * width, 3);
    let (y, _) =
        softmax(module, &x, width, SCHEDULES[0]).unwrap_or_else(|finding| panic!("{finding}"));
    for row in 0..rows {
        let e: Vec<f64> = x[row * width..][..width]
            .iter()
            .map(|&x| (wide(x) * 0.5).exp())
            .collect();
        let sum: f64 = e.iter().sum();
        for (got, e) in y[row * width..][..width].iter().zip(e) {
            let want = e / sum;
            assert!(
                (wide(*got) - want).abs() <= want / 256.0,
                "{} for {want}",
                wide(*got)
            );
        }
    }
    for schedule in SCHEDULES {
        assert_eq!(
            softmax(module, &x, width, schedule)
                .unwrap_or_else(|finding| panic!("{finding}"))
                .0,
            y
        );
    }
}

fn tile(
    module: &Module,
    (m, n, k): (usize, usize, usize),
    schedule: Schedule,
) -> Result<Vec<u16>, Finding> {
    let mut device = Device::new();
    let (x, w) = (
        upload(&mut device, &pattern(m * k, 1)),
        upload(&mut device, &pattern(n * k, 2)),
    );
    let y = device.alloc(2 * m * n);
    let mut args: Vec<u8> = [x, w, y]
        .iter()
        .flat_map(|pointer| pointer.to_le_bytes())
        .collect();
    args.extend(
        [m, n, k, 0]
            .iter()
            .flat_map(|&extent| (extent as u32).to_le_bytes()),
    );
    let grid = [n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1];
    device.launch(
        module,
        "tile",
        &Launch {
            grid,
            block: [128, 1, 1],
            dynamic_shared: 4 * 64 * 40 * 2,
            schedule,
        },
        &args,
    )?;
    Ok(download(&device, y, m * n))
}

fn check_tile(module: &Module) {
    let shape @ (m, n, k) = (70, 130, 96);
    let (x, w) = (pattern(m * k, 1), pattern(n * k, 2));
    let y = tile(module, shape, SCHEDULES[0]).unwrap_or_else(|finding| panic!("{finding}"));
    for (at, got) in y.iter().enumerate() {
        let (row, column) = (at / n, at % n);
        let want: f64 = (0..k)
            .map(|i| wide(x[row * k + i]) * wide(w[column * k + i]))
            .sum();
        assert!(
            (wide(*got) - want).abs() <= want.abs() / 256.0 + 1e-4,
            "({row}, {column}): {} for {want}",
            wide(*got)
        );
    }
    for schedule in SCHEDULES {
        assert_eq!(
            tile(module, shape, schedule).unwrap_or_else(|finding| panic!("{finding}")),
            y
        );
    }
}

#[test]
fn a_softmax_equals_its_formula_under_every_schedule() {
    check_softmax(&stored("softmax.ptx"));
    for module in ["compute_80", "compute_90a"]
        .iter()
        .filter_map(|arch| compiled("softmax.cu", arch))
    {
        check_softmax(&module);
    }
}

#[test]
fn a_tensor_core_product_equals_the_plain_one_under_every_schedule() {
    check_tile(&stored("tile.ptx"));
    for module in ["compute_80", "compute_90a"]
        .iter()
        .filter_map(|arch| compiled("tile.cu", arch))
    {
        check_tile(&module);
    }
}

#[test]
fn a_missing_barrier_is_found_and_its_line_named() {
    let module = stored("softmax_missing_barrier.ptx");
    for schedule in SCHEDULES {
        let finding = softmax(&module, &pattern(256, 3), 256, schedule).unwrap_err();
        assert_eq!(finding.kind, FindingKind::SharedRace, "{finding}");
        let place = finding.place.as_ref().expect("an instruction is at fault");
        let (file, line) = place.source.clone().expect("compiled with line numbers");
        let source = std::fs::read_to_string(fixture("softmax.cu")).expect("it is there");
        assert_eq!(file, "softmax.cu");
        let (_, call) = place
            .inlined_at
            .clone()
            .expect("the buffer is used in a function that was inlined");
        assert!(
            source
                .lines()
                .nth(call as usize - 1)
                .expect("a line of it")
                .contains("= reduce("),
            "{finding}"
        );
        assert!(
            source
                .lines()
                .nth(line as usize - 1)
                .expect("a line of it")
                .contains("buffer["),
            "{finding}"
        );
    }
}

#[test]
fn a_missing_wait_is_found() {
    let module = stored("tile_missing_wait.ptx");
    for schedule in SCHEDULES {
        let finding = tile(&module, (64, 64, 64), schedule).unwrap_err();
        assert_eq!(finding.kind, FindingKind::MissingAsyncWait, "{finding}");
        assert!(finding.to_string().contains("tile.cu:"), "{finding}");
    }
}

#[test]
fn many_blocks_give_the_same_bits_and_counts_as_each_by_itself() {
    // Long enough that the blocks are spread over threads.
    let module = stored("softmax.ptx");
    let (rows, width) = (256, 4096);
    let x = pattern(rows * width, 5);
    let run = |schedule| {
        softmax(&module, &x, width, schedule).unwrap_or_else(|finding| panic!("{finding}"))
    };
    let (y, stats) = run(Schedule::Forward);
    assert!(stats.warp_instructions > 2 << 20, "{stats:?}");
    assert_eq!(run(Schedule::Reverse), (y.clone(), stats));
    for row in [0, 141, 255] {
        let (alone, one) = softmax(
            &module,
            &x[row * width..][..width],
            width,
            Schedule::Forward,
        )
        .expect("sound");
        assert_eq!(alone, y[row * width..][..width]);
        assert_eq!(
            one.thread_instructions * rows as u64,
            stats.thread_instructions
        );
    }
}

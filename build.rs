//! Compiles `kernels/*.cu` and writes `images.rs`, the table of compiled kernels that `backend::cuda::images` includes.
//!
//! Each `.cu` is one run of nvcc, which leaves three things: a compressed fatbin (machine code for the GPUs of [`ARCHES`], and
//! PTX for those that came later), the PTX that ptxas made it from, and ptxas's report of registers, spills and memory. They are
//! kept in `target/kernels-cache` under a hash of all that went into them, outside cargo's own folder, so that another profile,
//! another set of features or a change of the Rust code does not run nvcc again.
//!
//! Without nvcc the crate builds all the same, for the CPU only; the feature `require-nvcc` makes that an error.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;

/// GPUs that get machine code: A100, RTX 30 and A40, RTX 40 and L4, H100.
const ARCHES: [&str; 4] = ["80", "86", "89", "90a"];
/// PTX kept for the interpreter: what every GPU but H100 runs, and H100's.
const PTX_ARCHES: [&str; 2] = ["80", "90a"];
/// Options of every compilation, in a file that scripts read too.
const OPTIONS: &str = "kernels/nvcc.options";
/// The oldest nvcc that knows the arches and `--compress-mode`, and the first that the drivers we build for do not follow.
const VERSIONS: std::ops::Range<(u32, u32)> = (12, 8)..(14, 0);
/// The one that the kernels are developed with.
const PINNED: &str = "13.0";

fn main() {
    for path in ["build.rs", "kernels"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let images = match find_nvcc() {
        Ok(nvcc) => {
            if nvcc.path.is_file() {
                println!("cargo::rerun-if-changed={}", nvcc.path.display());
            }
            if !nvcc.version.starts_with(&format!("{PINNED}.")) {
                println!(
                    "cargo::warning=kernels are compiled by nvcc {} ({}); they are developed with {PINNED}",
                    nvcc.version,
                    nvcc.path.display()
                );
            }
            Images::of(&nvcc, compile_all(&nvcc, &cache_dir(&out)))
        }
        Err(why) => {
            if std::env::var_os("CARGO_FEATURE_REQUIRE_NVCC").is_some() {
                fail(&format!(
                    "the feature require-nvcc is on, and {why}; run scripts/fetch-cuda, or set NVCC"
                ));
            }
            println!(
                "cargo::warning=building for the CPU only: {why}; run scripts/fetch-cuda to have the CUDA kernels compiled in"
            );
            Images::none(&why)
        }
    };
    fs::write(out.join("images.rs"), images.0).expect("OUT_DIR can be written");
}

fn fail(message: &str) -> ! {
    println!("cargo::error={}", message.replace('\n', "\ncargo::error="));
    exit(1)
}

struct Nvcc {
    path: PathBuf,
    /// As `13.0.88`.
    version: String,
}

/// The first usable nvcc of `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `.cuda/`, `/usr/local/cuda` and `PATH`; or why there is none.
/// One that was asked for by name and cannot be used is not passed over.
fn find_nvcc() -> Result<Nvcc, String> {
    if let Some(path) = env_path("NVCC") {
        return probe(&path).map_err(|why| format!("NVCC is set, but {why}"));
    }
    let root = std::env::current_dir().map_err(|e| e.to_string())?;
    let mut candidates: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env_path)
        .map(|home| home.join("bin/nvcc"))
        .collect();
    candidates.push(root.join(".cuda/nvidia/cu13/bin/nvcc"));
    candidates.push("/usr/local/cuda/bin/nvcc".into());
    let mut unusable = Vec::new();
    if let Some(nvcc) = first_usable(candidates, &mut unusable) {
        return Ok(nvcc);
    }
    // Shells differ in their PATH: it is asked for, and watched, only where nothing else will do.
    println!("cargo::rerun-if-env-changed=PATH");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|dir| dir.join("nvcc"));
    if let Some(nvcc) = first_usable(candidates, &mut unusable) {
        return Ok(nvcc);
    }
    Err(if unusable.is_empty() {
        "no nvcc was found in CUDA_HOME, CUDA_PATH, .cuda, /usr/local/cuda or PATH".into()
    } else {
        unusable.join(", and ")
    })
}

fn first_usable(
    candidates: impl IntoIterator<Item = PathBuf>,
    unusable: &mut Vec<String>,
) -> Option<Nvcc> {
    for candidate in candidates.into_iter().filter(|path| path.is_file()) {
        match probe(&candidate) {
            Ok(nvcc) => return Some(nvcc),
            Err(why) => unusable.push(why),
        }
    }
    None
}

fn env_path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// Whether `path` runs, and whether its version will do.
fn probe(path: &Path) -> Result<Nvcc, String> {
    let shown = path.display();
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|e| format!("{shown} does not run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "Cuda compilation tools, release 13.0, V13.0.88"
    let version = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('V'))
        .filter(|_| output.status.success())
        .ok_or_else(|| format!("{shown} --version tells no version"))?;
    let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if !VERSIONS.contains(&number) {
        return Err(format!("{shown} is version {version} (wanted: {PINNED})"));
    }
    Ok(Nvcc {
        version: version.to_owned(),
        path: path.to_owned(),
    })
}

/// `kernels-cache` in cargo's target directory, which cargo marks with a `CACHEDIR.TAG`.
fn cache_dir(out: &Path) -> PathBuf {
    out.ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .unwrap_or(out)
        .join("kernels-cache")
}

/// What nvcc made of one `.cu`.
struct Compiled {
    stem: String,
    /// Holds `fatbin`, `compute_80.ptx`, `compute_90a.ptx` and `ptxas`.
    dir: PathBuf,
}

/// Compiles every `.cu` that is not in the cache yet, as many at a time as cargo allows.
fn compile_all(nvcc: &Nvcc, cache: &Path) -> Vec<Compiled> {
    let sources = sources();
    let queue: Mutex<VecDeque<PathBuf>> = Mutex::new(sources.into());
    let done = Mutex::new(Vec::new());
    let errors = Mutex::new(Vec::new());
    let jobs = std::env::var("NUM_JOBS")
        .ok()
        .and_then(|jobs| jobs.parse().ok())
        .unwrap_or(1);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = { queue.lock().unwrap().pop_front() } {
                    match compile(nvcc, &source, cache) {
                        Ok(compiled) => done.lock().unwrap().push(compiled),
                        Err(why) => errors.lock().unwrap().push(why),
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().unwrap();
    if !errors.is_empty() {
        fail(&errors.join("\n"));
    }
    let mut done = done.into_inner().unwrap();
    done.sort_by(|a, b| a.stem.cmp(&b.stem));
    done
}

/// The `.cu` files, the largest first since they take longest.
fn sources() -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
        .expect("the package has a folder kernels")
        .map(|entry| entry.expect("kernels can be listed").path())
        .filter(|file| file.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort_by_key(|file| std::cmp::Reverse(fs::metadata(file).map_or(0, |m| m.len())));
    sources
}

/// `source` and all it includes with quotes, each once, in the order met.
fn with_includes(source: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut wanted = vec![source.to_owned()];
    while let Some(file) = wanted.pop() {
        if files.iter().any(|(known, _)| *known == file) {
            continue;
        }
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        wanted.extend(text.lines().filter_map(|line| {
            let included = line.trim_start().strip_prefix("#include \"")?;
            Some(file.with_file_name(included.split('"').next()?))
        }));
        files.push((file, text));
    }
    Ok(files)
}

fn compile(nvcc: &Nvcc, source: &Path, cache: &Path) -> Result<Compiled, String> {
    let shown = source.display();
    let stem = source
        .file_stem()
        .and_then(|stem| stem.to_str())
        .ok_or_else(|| format!("{shown}: the name is not UTF-8"))?
        .to_owned();
    let mut key = xxhash_rust::xxh3::Xxh3::new();
    let mut add = |part: &str| {
        key.update(&(part.len() as u64).to_le_bytes());
        key.update(part.as_bytes());
    };
    add(&nvcc.version);
    // This file has the command line.
    for file in ["build.rs", OPTIONS] {
        add(&fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?);
    }
    for (file, text) in with_includes(source)? {
        add(&file.to_string_lossy());
        add(&text);
    }
    let dir = cache.join(format!("{stem}-{:032x}", key.digest128()));
    if !dir.is_dir() {
        run_nvcc(nvcc, source, &stem, &dir)?;
    }
    Ok(Compiled { stem, dir })
}

/// Runs nvcc in a folder of its own and gives that the name `dir` when all of it is there.
fn run_nvcc(nvcc: &Nvcc, source: &Path, stem: &str, dir: &Path) -> Result<(), String> {
    let io = |e: std::io::Error| format!("{}: {e}", dir.display());
    let work = dir.with_extension(format!("{}.part", std::process::id()));
    let intermediate = work.join("intermediate");
    fs::create_dir_all(&intermediate).map_err(io)?;
    let mut command = Command::new(&nvcc.path);
    command.args(["--options-file", OPTIONS]).args([
        "-fatbin",
        "--compress-mode=size",
        "-Xptxas",
        "-v",
    ]);
    for arch in ARCHES {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command
        .arg(format!(
            "-gencode=arch=compute_{0},code=compute_{0}",
            ARCHES[0]
        ))
        .arg("--keep")
        .arg("--keep-dir")
        .arg(&intermediate)
        .arg("-o")
        .arg(work.join("fatbin"))
        .arg(source);
    let output = command
        .output()
        .map_err(|e| format!("{} does not run: {e}", nvcc.path.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let _ = fs::remove_dir_all(&work);
        return Err(format!(
            "nvcc could not compile {}:\n{}",
            source.display(),
            said.trim_end()
        ));
    }
    fs::write(work.join("ptxas"), said.as_bytes()).map_err(io)?;
    for arch in PTX_ARCHES {
        let ptx = fs::read_to_string(intermediate.join(format!("{stem}.compute_{arch}.ptx")))
            .map_err(|e| format!("nvcc left no PTX of {} for {arch}: {e}", source.display()))?;
        fs::write(work.join(format!("compute_{arch}.ptx")), relative(&ptx)).map_err(io)?;
    }
    fs::remove_dir_all(&intermediate).map_err(io)?;
    match fs::rename(&work, dir) {
        // Another build of the same sources was quicker.
        Err(_) if dir.is_dir() => fs::remove_dir_all(&work).map_err(io),
        renamed => renamed.map_err(io),
    }
}

/// The PTX with its `.file` lines naming sources from the project's root on: the same on every machine.
fn relative(ptx: &str) -> String {
    let root = std::env::current_dir().expect("cargo runs this in the package's root");
    ptx.replace(&format!("\"{}/", root.display()), "\"")
}

/// The text of `images.rs`.
struct Images(String);

impl Images {
    fn of(nvcc: &Nvcc, compiled: Vec<Compiled>) -> Images {
        let mut text = format!(
            "pub const NVCC: Result<&str, &str> = Ok({:?});\n#[cfg(feature = \"interpreter\")]\npub const NVCC_PATH: &str = {:?};\npub const ARCHES: &[&str] = &{:?};\npub const IMAGES: &[Image] = &[\n",
            nvcc.version,
            nvcc.path.display().to_string(),
            ARCHES.map(|arch| format!("sm_{arch}"))
        );
        for Compiled { stem, dir } in &compiled {
            let file = |name: &str| dir.join(name).display().to_string();
            text += &format!(
                "    Image {{\n        source: {stem:?},\n        fatbin: include_bytes!({:?}),\n        #[cfg(feature = \"interpreter\")]\n        ptx: &[\n",
                file("fatbin")
            );
            for arch in PTX_ARCHES {
                let ptx = file(&format!("compute_{arch}.ptx"));
                text += &format!("            (\"compute_{arch}\", include_str!({ptx:?})),\n");
            }
            text += &format!(
                "        ],\n        #[cfg(feature = \"interpreter\")]\n        ptxas: include_str!({:?}),\n    }},\n",
                file("ptxas")
            );
        }
        Images(text + "];\n")
    }

    fn none(why: &str) -> Images {
        Images(format!(
            "pub const NVCC: Result<&str, &str> = Err({why:?});\n#[cfg(feature = \"interpreter\")]\npub const NVCC_PATH: &str = \"\";\npub const ARCHES: &[&str] = &[];\npub const IMAGES: &[Image] = &[];\n"
        ))
    }
}

//! The operating system behind safe faces: mappings, locks, signals.

pub mod disk;
pub mod lock;
pub mod lost;
pub mod map;
pub mod ring;
pub mod slab;
pub mod stop;
pub mod uring;
pub mod writable;

/// Bytes of memory that can be had without swapping (`MemAvailable`); 0 where the system does not say.
pub fn free_memory() -> u64 {
    proc_field("/proc/meminfo", "MemAvailable")
        .and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Lets this process open as many files as its hard limit allows. A shard has a file per tap and two shards are open at a time:
/// every hook point of a 32-layer model is some 1,500 files, and the usual soft limit is 1,024.
pub fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, the limit in force is told when it is met.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// The processor's name and how many threads are used.
pub fn cpu_name() -> String {
    let name =
        proc_field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    format!("{name}, {} threads", rayon::current_num_threads())
}

/// The value of the first `name : value` line of a file under /proc.
fn proc_field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// Bytes per second that a fresh file in `dir`, or in its nearest parent that is there, takes, made durable; `None` where none
/// can be written. Writes 64 MiB to a file without a name.
pub fn write_rate(dir: &std::path::Path) -> Option<f64> {
    use std::io::Write;
    const BYTES: usize = 64 << 20;
    let absolute = std::path::absolute(dir).ok()?;
    let dir = absolute.ancestors().find(|d| d.is_dir())?;
    let block = vec![0x5A_u8; 1 << 20];
    let measured = (|| {
        let mut file = writable::unnamed(dir, 0)?;
        let start = std::time::Instant::now();
        for _ in 0..BYTES / block.len() {
            file.write_all(&block)?;
        }
        file.sync_data()?;
        Ok::<_, std::io::Error>(BYTES as f64 / start.elapsed().as_secs_f64())
    })();
    measured.ok()
}

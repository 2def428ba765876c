//! The supervisor of `--devices`: hands slices to workers, one for each device; shows how far all are together; starts a worker that died
//! once more; has them commit and leave when it is asked to end; and joins the slices.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::Devices;
use super::slices::{Slices, beside};
use super::worker::{Worker, ask_to_stop};
use crate::cli::extract::{self, ExtractArgs};
use crate::cli::progress::{Meter, Report};
use crate::cli::{CliResult, Failure, Usage, format, out};
use crate::engine::{Device, Progress};
use crate::store::{Manifest, State};
use crate::sys::stop;

/// How often a slice may fail: its worker is started once more.
const TRIES: u32 = 2;
/// How long it listens to its workers before it looks whether it is to end.
const LISTEN: Duration = Duration::from_millis(200);

/// Runs the job on all devices.
///
/// # Errors
/// What a worker refuses or fails at twice, by slice and device; a signal that asked for the end; and [`Slices`]'.
pub fn run(args: &ExtractArgs, devices: &Devices) -> CliResult {
    let Some(dir) = &args.job.out else {
        return Err(Usage("--out DIR is missing: say where the store goes".into()).into());
    };
    if args.job.data.iter().any(|data| data == "-") {
        return Err(Usage(
            "--devices with --data -: standard input can be read only once; write it to a file first"
                .into(),
        )
        .into());
    }
    let devices = devices.found()?;
    let mut one = args.clone();
    one.devices = None;
    one.job.model.device = devices[0];
    if args.job.resume && Manifest::read(dir).is_ok() {
        return recheck(&one, dir);
    }
    // What is wrong with the job is told here, and once.
    drop(one.job.open()?);
    stop::on_signals().map_err(|e| Failure::Refused(format!("cannot take signals: {e}")))?;
    let slices = Slices::take(dir, devices.len() as u64, args.job.resume)?;
    let meter = Meter::of(args.progress, args.quiet);
    let mut supervisor = Supervisor::new(&slices, devices, meter);
    supervisor.oversee();
    supervisor.meter.done();
    supervisor.refuse_unless_done()?;
    let merged = slices.join()?;
    let progress = supervisor.total();
    let restarts: u32 = supervisor.states.iter().map(|s| s.failures).sum();
    let seconds = progress.elapsed.as_secs_f64();
    if args.json {
        let value = serde_json::json!({
            "store": dir,
            "samples": merged.samples,
            "resumed_samples": progress.resumed.0,
            "tokens": progress.tokens,
            "shards": merged.shards,
            "bytes": merged.bytes,
            "slices": slices.count,
            "workers": supervisor.devices.len(),
            "restarts": restarts,
            "wall_s": seconds,
        });
        out(format_args!("{value}\n"));
    } else if !args.quiet {
        out(format_args!(
            "{}, {}, {}, {} in {} from {} on {}\n{}\n",
            format::counted(merged.samples, "sample"),
            format::counted(progress.tokens, "token"),
            format::counted(merged.shards as u64, "shard"),
            format::bytes(merged.bytes),
            format::duration(seconds),
            format::counted(slices.count, "slice"),
            format::counted(supervisor.devices.len() as u64, "device"),
            dir.display()
        ));
    }
    Ok(())
}

/// `--resume` of a store that is there already.
fn recheck(one: &ExtractArgs, dir: &std::path::Path) -> CliResult {
    if Manifest::read(dir)?.state == State::Partial {
        return Err(Failure::Refused(format!(
            "{} was begun by one process: go on with it without --devices",
            dir.display()
        )));
    }
    extract::run(one)?;
    // It is this job's; what stands beside it is what a process left that ended while it tidied up.
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let _ = fs::remove_dir_all(beside(&absolute)?);
    Ok(())
}

struct Supervisor<'a> {
    slices: &'a Slices,
    devices: Vec<Device>,
    /// That a worker on the CPU computes with.
    threads: Option<usize>,
    todo: VecDeque<u64>,
    /// What each device is at.
    posts: Vec<Option<Post>>,
    states: Vec<SliceState>,
    sender: Sender<Said>,
    said: Receiver<Said>,
    meter: Meter,
    began: Instant,
    /// The exit status of a signal that asked for the end.
    asked: Option<u8>,
    /// What a worker said that would not even begin.
    refused: Option<String>,
}

/// A worker at a slice.
struct Post {
    slice: u64,
    child: Child,
    /// The last error that it told.
    error: Option<String>,
}

#[derive(Default)]
struct SliceState {
    report: Option<Report>,
    /// Samples and tokens that an earlier run had done.
    resumed: Option<(u64, u64)>,
    failures: u32,
    done: bool,
    /// Where and why it was given up.
    lost: Option<String>,
}

/// A line of the worker on a device; `None` at its end.
struct Said {
    device: usize,
    line: Option<String>,
}

impl<'a> Supervisor<'a> {
    fn new(slices: &'a Slices, devices: Vec<Device>, meter: Meter) -> Self {
        let (sender, said) = channel();
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let on_cpu = devices.iter().filter(|&&d| d == Device::Cpu).count();
        Supervisor {
            slices,
            threads: (on_cpu > 0).then(|| (cores / on_cpu).max(1)),
            todo: (0..slices.count).collect(),
            posts: devices.iter().map(|_| None).collect(),
            states: (0..slices.count).map(|_| SliceState::default()).collect(),
            devices,
            sender,
            said,
            meter,
            began: Instant::now(),
            asked: None,
            refused: None,
        }
    }

    /// Until no worker runs any more.
    fn oversee(&mut self) {
        loop {
            self.staff();
            if self.posts.iter().all(Option::is_none) {
                return;
            }
            match self.said.recv_timeout(LISTEN) {
                Ok(Said { device, line }) => match line {
                    Some(line) => self.hear(device, line),
                    None => self.see_off(device),
                },
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if self.asked.is_none()
                && let Some(status) = stop::asked()
            {
                self.asked = Some(status);
                self.stop_all(status);
            }
            let (total, done) = (self.total(), self.done());
            let what = format!("{done} of {} slices done  ", self.slices.count);
            self.meter.show_with(&total, &what);
        }
    }

    /// Gives every idle device a slice.
    fn staff(&mut self) {
        if self.asked.is_some() || self.refused.is_some() {
            return;
        }
        for device in 0..self.devices.len() {
            if self.posts[device].is_some() {
                continue;
            }
            let Some(slice) = self.todo.pop_front() else {
                return;
            };
            match self.start(device, slice) {
                Ok(post) => self.posts[device] = Some(post),
                Err(e) => self.fail(device, slice, format!("cannot be started: {e}")),
            }
        }
    }

    fn start(&self, device: usize, slice: u64) -> std::io::Result<Post> {
        let worker = Worker {
            parent: std::process::id(),
            slice,
            of: self.slices.count,
            device: self.devices[device],
        };
        let mut child = worker.start(self.threads)?;
        let (stderr, sender) = (child.stderr.take(), self.sender.clone());
        std::thread::spawn(move || {
            let mut lines = stderr.map(BufReader::new);
            let mut bytes = Vec::new();
            while let Some(reader) = &mut lines {
                bytes.clear();
                let line = match reader.read_until(b'\n', &mut bytes) {
                    Ok(n) if n > 0 => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
                    _ => break,
                };
                let line = Some(line);
                let _ = sender.send(Said { device, line });
            }
            let line = None;
            let _ = sender.send(Said { device, line });
        });
        Ok(Post {
            slice,
            child,
            error: None,
        })
    }

    /// Takes in a line of a worker: how far it is, or a word for people.
    fn hear(&mut self, device: usize, line: String) {
        let Some(post) = &mut self.posts[device] else {
            return;
        };
        if line.starts_with('{')
            && let Ok(report) = serde_json::from_str::<Report>(&line)
        {
            let state = &mut self.states[post.slice as usize];
            state
                .resumed
                .get_or_insert((report.resumed_samples, report.resumed_tokens));
            state.report = Some(report);
        } else if let Some(error) = line.strip_prefix("error: ") {
            post.error = Some(error.to_owned());
        } else {
            let slice = post.slice;
            let who = self.name(device, slice);
            self.meter.tell(&format!("{who}: {line}"));
        }
    }

    /// A worker has ended, or closed its stderr, which it does at its end.
    fn see_off(&mut self, device: usize) {
        let Some(mut post) = self.posts[device].take() else {
            return;
        };
        let status = post.child.wait();
        if status.as_ref().is_ok_and(|s| s.success()) {
            self.states[post.slice as usize].done = true;
            return;
        }
        let code = status.as_ref().ok().and_then(|status| status.code());
        let why = post.error.unwrap_or_else(|| match status {
            Ok(status) => died(status),
            Err(e) => format!("cannot be waited for: {e}"),
        });
        match code {
            _ if self.refused.is_some() => {}
            Some(code) if self.asked == u8::try_from(code).ok() => {}
            Some(2) => {
                self.refused = Some(why);
                self.stop_all(143);
            }
            _ => self.fail(device, post.slice, why),
        }
    }

    /// A slice failed on a device: once more, or given up.
    fn fail(&mut self, device: usize, slice: u64, why: String) {
        let who = self.name(device, slice);
        let state = &mut self.states[slice as usize];
        state.failures += 1;
        if state.failures < TRIES && self.asked.is_none() {
            self.todo.push_front(slice);
            let what = "is started once more, from its last durable batch";
            self.meter.tell(&format!("{who} {what}: {why}"));
        } else {
            let times = if state.failures == 1 { "once" } else { "twice" };
            self.meter.tell(&format!("{who} failed {times}: {why}"));
            state.lost = Some(format!("{who} failed {times}: {why}"));
        }
    }

    fn stop_all(&self, status: u8) {
        for post in self.posts.iter().flatten() {
            ask_to_stop(&post.child, status);
        }
    }

    fn name(&self, device: usize, slice: u64) -> String {
        let (of, device) = (self.slices.count, self.devices[device]);
        format!("slice {slice}/{of} on {device}")
    }

    fn done(&self) -> usize {
        self.states.iter().filter(|state| state.done).count()
    }

    /// How far all slices are together.
    fn total(&self) -> Progress {
        let mut total = Progress {
            elapsed: self.began.elapsed(),
            ..Progress::default()
        };
        let (mut expected, mut told) = (0, 0);
        for state in &self.states {
            let Some(report) = &state.report else {
                continue;
            };
            total.samples += report.samples;
            total.tokens += report.tokens;
            total.bytes += report.bytes;
            let (samples, tokens) = state.resumed.unwrap_or_default();
            total.resumed.0 += samples;
            total.resumed.1 += tokens;
            // Of all devices' time.
            let share = |s: f64| Duration::from_secs_f64((s / self.devices.len() as f64).max(0.0));
            total.waited_for_tokeniser += share(report.waited_for_tokeniser_s);
            total.waited_for_disk += share(report.waited_for_disk_s);
            if let Some(tokens) = report.expected_tokens {
                expected += tokens;
                told += 1;
            }
        }
        // Slices have as many records each: those that nothing is known of are taken to be like the others.
        let all = self.states.len() as u64;
        total.expected_tokens = (told > 0).then(|| expected * all / told);
        total
    }

    /// Why the slices cannot be joined: what ended the run, which slices failed, and how it goes on.
    fn refuse_unless_done(&self) -> CliResult {
        let (done, of) = (self.done() as u64, self.slices.count);
        if done == of {
            return Ok(());
        }
        let stays = self.slices.leave();
        if let Some(why) = &self.refused {
            return Err(Usage(why.clone()).into());
        }
        let lost: Vec<_> = self.states.iter().flat_map(|s| s.lost.clone()).collect();
        let lost = lost.join("; ");
        let kept = self.slices.dir.display();
        let message = match self.asked {
            Some(_) if !stays => "stopped before anything was done: nothing is left".into(),
            Some(_) => format!(
                "stopped with {done} of {of} slices done, and what the others had; all is kept in {kept}: the same command with --resume goes on"
            ),
            None if !stays => format!("{lost}; nothing was done"),
            None => format!(
                "{lost}; {done} of {of} slices are done, and all that was done is kept in {kept}: mend what failed, then run the same command with --resume"
            ),
        };
        Err(match self.asked {
            Some(status) => Failure::Stopped(message, status),
            None => Failure::Refused(message),
        })
    }
}

/// How a process ended that said nothing of it.
fn died(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(9)) => {
            "killed (SIGKILL): by somebody, or by the system for want of memory (see dmesg)".into()
        }
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (code, None) => format!("ended with status {}", code.unwrap_or(-1)),
    }
}

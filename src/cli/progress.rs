//! How far a long run is: a bar on a terminal, else a line every ten seconds; or JSON, for a program that watches.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::format;
use crate::engine::Progress;
use crate::engine::sweep::SweepProgress;

pub(super) const EVERY: Duration = Duration::from_secs(10);
const EVERY_JSON: Duration = Duration::from_millis(500);

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProgressArg {
    /// A bar on a terminal, else a line every ten seconds.
    #[default]
    Auto,
    /// An object a line on stderr, twice a second at most and at the end.
    Json,
}

/// Shows a run's progress on stderr.
pub struct Meter {
    face: Face,
    last_line: Option<Instant>,
    /// The newest state, where it was not told yet.
    untold: Option<Progress>,
}

enum Face {
    Nothing,
    Bar(ProgressBar),
    Lines,
    Json,
}

impl Meter {
    pub fn of(progress: ProgressArg, quiet: bool) -> Self {
        let bar = || {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {msg}  {elapsed}"));
            bar
        };
        let (face, last_line) = match progress {
            ProgressArg::Json => (Face::Json, None),
            ProgressArg::Auto if quiet => (Face::Nothing, None),
            ProgressArg::Auto if std::io::stderr().is_terminal() => (Face::Bar(bar()), None),
            ProgressArg::Auto => (Face::Lines, Some(Instant::now())),
        };
        Meter {
            face,
            last_line,
            untold: None,
        }
    }

    /// Shows a newer state.
    pub fn show(&mut self, progress: &Progress) {
        self.show_with(progress, "");
    }

    /// Shows a newer state, and `what` before it.
    pub fn show_with(&mut self, progress: &Progress, what: &str) {
        match &self.face {
            Face::Nothing => {}
            Face::Bar(bar) => {
                if let Some(total) = progress.expected_tokens {
                    if bar.length().is_none() {
                        bar.set_style(style("{bar:20} {percent} %  {msg}"));
                    }
                    bar.set_length(total.max(progress.tokens));
                }
                bar.set_message(format!("{what}{}", line(progress)));
                bar.set_position(progress.tokens);
            }
            Face::Lines => {
                if self.is_due(EVERY) {
                    eprintln!("{what}{}", line(progress));
                }
            }
            Face::Json => {
                if self.is_due(EVERY_JSON) {
                    eprintln!("{}", Report::from(progress).to_line());
                    self.untold = None;
                } else {
                    self.untold = Some(progress.clone());
                }
            }
        }
    }

    /// Says something beside it.
    pub fn tell(&self, message: &str) {
        match &self.face {
            Face::Bar(bar) => bar.suspend(|| eprintln!("{message}")),
            _ => eprintln!("{message}"),
        }
    }

    /// Clears the bar away; tells what JSON has still to tell.
    pub fn done(&mut self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
        if let Some(progress) = self.untold.take() {
            eprintln!("{}", Report::from(&progress).to_line());
        }
    }

    fn is_due(&mut self, every: Duration) -> bool {
        let due = self.last_line.is_none_or(|last| last.elapsed() >= every);
        if due {
            self.last_line = Some(Instant::now());
        }
        due
    }
}

/// Progress as `--progress json` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub samples: u64,
    pub tokens: u64,
    /// Of these, what an earlier run of the same job had done.
    pub resumed_samples: u64,
    pub resumed_tokens: u64,
    /// Tokens that there seem to be in all; null while nothing tells.
    pub expected_tokens: Option<u64>,
    pub bytes: u64,
    pub elapsed_s: f64,
    pub tokens_per_s: f64,
    pub waited_for_tokeniser_s: f64,
    pub waited_for_disk_s: f64,
}

impl From<&Progress> for Report {
    fn from(p: &Progress) -> Self {
        Report {
            samples: p.samples,
            tokens: p.tokens,
            resumed_samples: p.resumed.0,
            resumed_tokens: p.resumed.1,
            expected_tokens: p.expected_tokens,
            bytes: p.bytes,
            elapsed_s: p.elapsed.as_secs_f64(),
            tokens_per_s: rate(p),
            waited_for_tokeniser_s: p.waited_for_tokeniser.as_secs_f64(),
            waited_for_disk_s: p.waited_for_disk.as_secs_f64(),
        }
    }
}

impl Report {
    fn to_line(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

pub(super) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Tokens per second of this run.
fn rate(p: &Progress) -> f64 {
    let seconds = p.elapsed.as_secs_f64().max(1e-9);
    p.tokens.saturating_sub(p.resumed.1) as f64 / seconds
}

/// Samples, tokens per second, bytes written, the time that is left, and who waited for whom.
fn line(p: &Progress) -> String {
    let seconds = p.elapsed.as_secs_f64().max(1e-9);
    let rate = rate(p);
    let mut line = format!(
        "{}  {} tokens/s  {}",
        format::counted(p.samples, "sample"),
        format::count(rate as u64),
        format::bytes(p.bytes)
    );
    if let Some(total) = p.expected_tokens
        && rate > 0.0
    {
        let left = total.saturating_sub(p.tokens) as f64 / rate;
        line.push_str(&format!("  ETA {}", format::duration(left)));
    }
    for (who, waited) in [
        ("tokeniser", p.waited_for_tokeniser),
        ("disk", p.waited_for_disk),
    ] {
        let share = waited.as_secs_f64() / seconds;
        if share >= 0.05 {
            line.push_str(&format!("  waiting for {who} {:.0} %", share * 100.0));
        }
    }
    line
}

/// A sweep's progress on stderr: a bar on a terminal, else a line every ten seconds.
pub struct SweepMeter {
    bar: Option<ProgressBar>,
    quiet: bool,
    last_line: Instant,
}

impl SweepMeter {
    pub fn new(quiet: bool) -> Self {
        SweepMeter {
            bar: (!quiet && std::io::stderr().is_terminal()).then(|| ProgressBar::new(0)),
            quiet,
            last_line: Instant::now(),
        }
    }

    /// Shows a newer state.
    pub fn show(&mut self, progress: &SweepProgress) {
        let seconds = progress.elapsed.as_secs_f64();
        let left = seconds / progress.done.max(1) as f64 * (progress.total - progress.done) as f64;
        if let Some(bar) = &self.bar {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        } else if !self.quiet && self.last_line.elapsed() >= EVERY {
            self.last_line = Instant::now();
            eprintln!(
                "{} of {} patched runs  ETA {}",
                format::count(progress.done),
                format::count(progress.total),
                format::duration(left)
            );
        }
    }

    /// Clears the bar away.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How many of a number of steps are done, on stderr: a bar on a terminal, else a line every ten seconds. Several threads may step.
pub struct StepMeter {
    bar: Option<ProgressBar>,
    /// When a line was written last; `None` where none is.
    last_line: Option<Mutex<Instant>>,
    begun: Instant,
    done: AtomicU64,
    total: u64,
    what: &'static str,
}

impl StepMeter {
    /// Of `total` steps, each a `what`.
    pub fn new(total: u64, what: &'static str, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = || {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            bar.set_style(style("{bar:20} {percent} %  {msg}"));
            bar
        };
        StepMeter {
            bar: (!quiet && on_terminal).then(bar),
            last_line: (!quiet && !on_terminal).then(|| Mutex::new(Instant::now())),
            begun: Instant::now(),
            done: AtomicU64::new(0),
            total,
            what,
        }
    }

    /// So many more are done.
    pub fn step(&self, steps: u64) {
        let done = self.done.fetch_add(steps, Ordering::Relaxed) + steps;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(self.line(done, self.begun.elapsed()));
            if done >= self.total {
                bar.finish_and_clear();
            }
        }
        // Who finds it taken leaves the line to the other.
        if let Some(Ok(mut last)) = self.last_line.as_ref().map(Mutex::try_lock)
            && last.elapsed() >= EVERY
        {
            *last = Instant::now();
            eprintln!("{}", self.line(done, self.begun.elapsed()));
        }
    }

    fn line(&self, done: u64, elapsed: Duration) -> String {
        let left =
            elapsed.as_secs_f64() / done.max(1) as f64 * self.total.saturating_sub(done) as f64;
        format!(
            "{} of {}  ETA {}",
            format::count(done),
            format::counted(self.total, self.what),
            format::duration(left)
        )
    }

    /// Clears the bar away, if the last step has not.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(expected_tokens: Option<u64>) -> Progress {
        Progress {
            samples: 30,
            tokens: 1_000,
            resumed: (0, 0),
            expected_tokens,
            bytes: 4 << 20,
            elapsed: Duration::from_secs(10),
            waited_for_tokeniser: Duration::from_secs(1),
            ..Progress::default()
        }
    }

    #[test]
    fn a_line_tells_the_rate_the_time_left_and_who_waits() {
        assert_eq!(
            line(&progress(Some(5_000))),
            "30 samples  100 tokens/s  4.19 MB  ETA 40.0 s  waiting for tokeniser 10 %"
        );
    }

    #[test]
    fn steps_of_several_threads_add_up_and_tell_the_time_left() {
        let meter = StepMeter::new(40, "layer", true);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..5).for_each(|_| meter.step(2)));
            }
        });
        let done = meter.done.load(Ordering::Relaxed);
        let line = meter.line(done, Duration::from_secs(60));
        assert_eq!(line, "30 of 40 layers  ETA 20.0 s");
    }

    #[test]
    fn nothing_is_said_of_the_time_left_where_nothing_tells_it() {
        assert!(!line(&progress(None)).contains("ETA"));
    }
}

//! How far a long run is: a bar on a terminal, else a line every ten seconds.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::format;
use crate::engine::Progress;

const EVERY: Duration = Duration::from_secs(10);

/// Shows a run's progress on stderr.
pub struct Meter {
    bar: Option<ProgressBar>,
    quiet: bool,
    last_line: Instant,
}

impl Meter {
    /// `total`: samples to come, where known.
    pub fn new(quiet: bool, total: Option<u64>) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = if total.is_some() {
                "{bar:30} {human_pos}/{human_len} samples  {msg}  ETA {eta}"
            } else {
                "{spinner} {human_pos} samples  {msg}  {elapsed}"
            };
            bar.set_style(
                ProgressStyle::with_template(template)
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        });
        Meter {
            bar,
            quiet,
            last_line: Instant::now(),
        }
    }

    /// Shows a newer state.
    pub fn show(&mut self, progress: &Progress) {
        if let Some(bar) = &self.bar {
            bar.set_message(rates(progress));
            bar.set_position(progress.samples);
        } else if !self.quiet && self.last_line.elapsed() >= EVERY {
            self.last_line = Instant::now();
            eprintln!(
                "{} samples  {}",
                format::count(progress.samples),
                rates(progress)
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

/// Tokens per second, bytes written, and who waited for whom.
fn rates(p: &Progress) -> String {
    let seconds = p.elapsed.as_secs_f64().max(1e-9);
    let mut line = format!(
        "{} tokens/s  {}",
        format::count((p.tokens as f64 / seconds) as u64),
        format::bytes(p.bytes)
    );
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

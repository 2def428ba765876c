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
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {msg}  {elapsed}"));
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
            if let Some(total) = progress.expected_tokens {
                if bar.length().is_none() {
                    bar.set_style(style("{bar:20} {percent} %  {msg}"));
                }
                bar.set_length(total.max(progress.tokens));
            }
            bar.set_message(line(progress));
            bar.set_position(progress.tokens);
        } else if !self.quiet && self.last_line.elapsed() >= EVERY {
            self.last_line = Instant::now();
            eprintln!("{}", line(progress));
        }
    }

    /// Clears the bar away.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Samples, tokens per second, bytes written, the time that is left, and who waited for whom.
fn line(p: &Progress) -> String {
    let seconds = p.elapsed.as_secs_f64().max(1e-9);
    let rate = p.tokens.saturating_sub(p.resumed.1) as f64 / seconds;
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
    fn nothing_is_said_of_the_time_left_where_nothing_tells_it() {
        assert!(!line(&progress(None)).contains("ETA"));
    }
}

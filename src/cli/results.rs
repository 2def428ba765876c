//! Results of texts on stdout as they come, and how far they are on stderr.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget};

use super::{format, out, progress};

/// Prints results, held back until they count: a run that ends by saying that an edit touched nothing has printed none.
pub struct Results {
    held: Option<String>,
    meter: TextMeter,
}

impl Results {
    pub fn new(meter: TextMeter) -> Self {
        Results {
            held: Some(String::new()),
            meter,
        }
    }

    pub fn print(&mut self, text: impl std::fmt::Display) {
        match &mut self.held {
            Some(held) => held.push_str(&text.to_string()),
            None => self.meter.beside(|| out(text)),
        }
    }

    /// From here on results are printed as they come, those that were held back first.
    pub fn release(&mut self) {
        if let Some(held) = self.held.take().filter(|held| !held.is_empty()) {
            self.meter.beside(|| out(held));
        }
    }

    /// So many more texts are done, and so many tokens of any.
    pub fn count(&mut self, texts: u64, tokens: u64) {
        self.meter.count(texts, tokens);
    }
}

/// How many texts and tokens are done, on stderr: a line that is kept up to date on a terminal, else one every ten seconds.
pub struct TextMeter {
    bar: Option<ProgressBar>,
    /// When a line was written last; `None` where none is.
    last_line: Option<Instant>,
    begun: Instant,
    /// What a text and a token of it are called.
    names: (&'static str, &'static str),
    texts: u64,
    tokens: u64,
    /// Texts there are in all, where that is known.
    all: Option<u64>,
}

impl TextMeter {
    pub fn new(names: (&'static str, &'static str), all: Option<u64>, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = || {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(progress::style("{spinner} {msg}"));
            bar
        };
        TextMeter {
            bar: (!quiet && on_terminal).then(bar),
            last_line: (!quiet && !on_terminal).then(Instant::now),
            begun: Instant::now(),
            names,
            texts: 0,
            tokens: 0,
            all,
        }
    }

    fn count(&mut self, texts: u64, tokens: u64) {
        self.texts += texts;
        self.tokens += tokens;
        let elapsed = self.begun.elapsed();
        if let Some(bar) = &self.bar {
            bar.set_message(self.line(elapsed));
            bar.tick();
        }
        if self
            .last_line
            .is_some_and(|last| last.elapsed() >= progress::EVERY)
        {
            self.last_line = Some(Instant::now());
            eprintln!("{}", self.line(elapsed));
        }
    }

    fn line(&self, elapsed: Duration) -> String {
        let (text, token) = self.names;
        let texts = match self.all {
            Some(all) => format!(
                "{} of {}",
                format::count(self.texts),
                format::counted(all, text)
            ),
            None => format::counted(self.texts, text),
        };
        let rate = self.tokens as f64 / elapsed.as_secs_f64().max(1e-9);
        let mut line = format!(
            "{texts}  {}  {} tokens/s",
            format::counted(self.tokens, token),
            format::count(rate as u64)
        );
        if let Some(all) = self.all.filter(|_| self.texts > 0) {
            let left =
                elapsed.as_secs_f64() / self.texts as f64 * all.saturating_sub(self.texts) as f64;
            line.push_str(&format!("  ETA {}", format::duration(left)));
        }
        line
    }

    /// Prints while the line is out of the way.
    fn beside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for TextMeter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_texts_tokens_their_rate_and_the_time_left_where_it_is_known() {
        let mut meter = TextMeter::new(("prompt", "new token"), Some(40), true);
        meter.count(10, 500);
        assert_eq!(
            meter.line(Duration::from_secs(5)),
            "10 of 40 prompts  500 new tokens  100 tokens/s  ETA 15.0 s"
        );
        let mut meter = TextMeter::new(("text", "token"), None, true);
        meter.count(1, 60);
        assert_eq!(
            meter.line(Duration::from_secs(2)),
            "1 text  60 tokens  30 tokens/s"
        );
    }
}

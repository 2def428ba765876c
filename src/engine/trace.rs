//! A timeline of a run, in the form that `chrome://tracing` and Perfetto read: what each stage of the host did when, and what a device
//! did, op by op.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Which line of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Read,
    LayOut,
    Compute,
    Commit,
    /// A device's launches.
    Device,
    /// A device's copies to the host.
    Copies,
}

impl Stage {
    const ALL: [(Stage, &str); 6] = [
        (Stage::Read, "read and tokenise"),
        (Stage::LayOut, "lay out shards"),
        (Stage::Compute, "compute (host)"),
        (Stage::Commit, "commit shards"),
        (Stage::Device, "device: launches"),
        (Stage::Copies, "device: copies out"),
    ];
}

/// Records spans, from any thread.
#[derive(Debug)]
pub struct Trace {
    zero: Instant,
    spans: Mutex<Vec<Span>>,
}

#[derive(Debug)]
struct Span {
    stage: Stage,
    name: String,
    begin: Duration,
    length: Duration,
}

impl Default for Trace {
    fn default() -> Self {
        Trace {
            zero: Instant::now(),
            spans: Mutex::new(Vec::new()),
        }
    }
}

impl Trace {
    /// Adds a span.
    pub fn span(&self, stage: Stage, name: impl Into<String>, begin: Instant, end: Instant) {
        let span = Span {
            stage,
            name: name.into(),
            begin: begin.saturating_duration_since(self.zero),
            length: end.saturating_duration_since(begin),
        };
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(span);
    }

    /// The timeline in the Trace Event Format: complete events, times in microseconds, a thread per stage.
    pub fn to_json(&self) -> Value {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let named = Stage::ALL.iter().map(|&(stage, name)| {
            json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": stage as u32, "args": {"name": name}})
        });
        let micros = |d: Duration| d.as_nanos() as f64 / 1e3;
        let events = spans.iter().map(|span| {
            json!({
                "ph": "X",
                "name": span.name,
                "cat": Stage::ALL[span.stage as usize].1,
                "pid": 1,
                "tid": span.stage as u32,
                "ts": micros(span.begin),
                "dur": micros(span.length),
            })
        });
        json!({"displayTimeUnit": "ms", "traceEvents": named.chain(events).collect::<Vec<_>>()})
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, format!("{}\n", self.to_json()))
    }
}

/// Adds what lasted until now, where there is a timeline.
pub(super) fn since(
    trace: Option<&Trace>,
    stage: Stage,
    begin: Instant,
    name: impl FnOnce() -> String,
) {
    if let Some(trace) = trace {
        trace.span(stage, name(), begin, Instant::now());
    }
}

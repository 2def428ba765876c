//! A timeline of what the host does, in the format that Chrome's tracing and Perfetto read: `--trace FILE`.
//!
//! There is one timeline for the process, off until [`start`]. A span is the time between two lines of code on one thread. Where ops
//! are launched on a device, or put off as on the CPU, a hook point's span is the time that asking took; what the device does
//! meanwhile is nsys's to show, to which the feature `nvtx` gives the same names.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::json;

use crate::backend::Act;
use crate::hooks::{HookPoint, Site};

static ON: AtomicBool = AtomicBool::new(false);
static EVENTS: Mutex<Option<Events>> = Mutex::new(None);

/// A run of some hours has some millions; what comes later is counted and left out.
const MOST: usize = 4 << 20;

struct Events {
    start: Instant,
    spans: Vec<Event>,
    left_out: u64,
}

struct Event {
    name: Cow<'static, str>,
    from: Instant,
    to: Instant,
    thread: u64,
}

/// Threads by number, the main thread first.
static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// Begins the timeline.
pub fn start() {
    let events = Events {
        start: Instant::now(),
        spans: Vec::new(),
        left_out: 0,
    };
    *EVENTS.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
    ON.store(true, Ordering::Relaxed);
}

/// Ends the timeline and writes it.
///
/// # Errors
/// The file cannot be written.
pub fn finish(path: &Path) -> io::Result<()> {
    ON.store(false, Ordering::Relaxed);
    let Some(events) = EVENTS.lock().unwrap_or_else(PoisonError::into_inner).take() else {
        return Ok(());
    };
    let mut out = io::BufWriter::new(std::fs::File::create(path)?);
    let us = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e6;
    write!(
        out,
        "{{\"displayTimeUnit\": \"ms\", \"left_out\": {}, \"traceEvents\": [",
        events.left_out
    )?;
    for (i, event) in events.spans.iter().enumerate() {
        let line = json!({
            "name": event.name,
            "ph": "X",
            "pid": std::process::id(),
            "tid": event.thread,
            "ts": us(events.start, event.from),
            "dur": us(event.from, event.to),
        });
        write!(out, "{}\n{line}", if i == 0 { "" } else { "," })?;
    }
    writeln!(out, "\n]}}")?;
    out.flush()
}

/// A span that ends when it is dropped.
#[must_use]
pub struct Span(Option<(Cow<'static, str>, Instant)>);

/// Begins a span.
pub fn span(name: &'static str) -> Span {
    Span::named(|| Cow::Borrowed(name))
}

/// Begins the span of an op that writes a hook point, and of the point's taps and edits: `linear blocks.3.attn.hook_q`.
pub(super) fn at(site: Site, layer: usize, act: Act) -> Span {
    Span::named(|| Cow::Owned(format!("{} {}", op(act), HookPoint { site, layer })))
}

/// The op that writes an activation.
fn op(act: Act) -> &'static str {
    match act {
        Act::ResidPre => "embed",
        Act::Q
        | Act::K
        | Act::V
        | Act::AttnOut
        | Act::Gate
        | Act::Up
        | Act::MlpOut
        | Act::Logits => "linear",
        Act::RotQ | Act::RotK => "RoPE",
        Act::NormScale | Act::Normalized | Act::Normed => "RMSNorm",
        Act::Z => "attention",
        Act::HeadOut => "linear by head",
        Act::Post => "SwiGLU",
        Act::ResidMid | Act::ResidPost => "add",
    }
}

impl Span {
    fn named(name: impl FnOnce() -> Cow<'static, str>) -> Span {
        if !ON.load(Ordering::Relaxed) && !cfg!(feature = "nvtx") {
            return Span(None);
        }
        let name = name();
        #[cfg(feature = "nvtx")]
        nvtx::range_push!("{name}");
        Span(Some((name, Instant::now())))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some((name, from)) = self.0.take() else {
            return;
        };
        let to = Instant::now();
        #[cfg(feature = "nvtx")]
        nvtx::range_pop!();
        let mut events = EVENTS.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(events) = events.as_mut() else {
            return;
        };
        if events.spans.len() == MOST {
            events.left_out += 1;
            return;
        }
        events.spans.push(Event {
            name,
            from,
            to,
            thread: THREAD.with(|&number| number),
        });
    }
}

//! An allocator that ends the process when much more is asked for at a time than these small stores can need: a length that was believed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes. Threads' stacks are not of it.
static MOST: AtomicUsize = AtomicUsize::new(64 << 20);

/// Allows more at a time.
pub fn allow(bytes: usize) {
    MOST.store(bytes, Relaxed);
}

struct Bounded;

#[global_allocator]
static BOUNDED: Bounded = Bounded;

// SAFETY: all is passed on to the system's allocator, or the process ends.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        bounded(layout.size());
        // SAFETY: as asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        bounded(layout.size());
        // SAFETY: as asked for.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        bounded(size);
        // SAFETY: as asked for.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as asked for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn bounded(size: usize) {
    if size > MOST.load(Relaxed) {
        eprintln!(
            "{size} bytes were asked for at once:\n{}",
            std::backtrace::Backtrace::force_capture()
        );
        std::process::abort();
    }
}

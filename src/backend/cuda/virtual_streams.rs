//! What was called on a device that is none and has not run yet: two queues, one of launches and one of copies out. A device runs
//! them side by side and promises no more than the events between them say; here an adversary runs them in the worst order that
//! the events allow, so that a missing one shows.

use std::collections::VecDeque;

use super::driver::Pitched;
use super::gemm::{GemmCall, GemmShape};
use super::launch::{DevicePtr, Dims};

/// Which of the two queues runs when both can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamOrder {
    /// Copies as early as their events allow: before the launches that make what they copy, if nothing holds them.
    CopiesFirst,
    /// Copies as late as their fences allow: after whatever was launched since.
    LaunchesFirst,
    /// Drawn anew at every step, from this seed.
    Seeded(u64),
}

/// Work of the launches' queue.
#[derive(Debug)]
pub(super) enum Task {
    Upload {
        to: DevicePtr,
        bytes: Vec<u8>,
    },
    Fill {
        at: DevicePtr,
        value: u8,
        bytes: usize,
    },
    CopyRows {
        from: Pitched,
        to: Pitched,
        row_bytes: usize,
        rows: usize,
    },
    Launch {
        source: String,
        name: String,
        dims: Dims,
        args: Vec<u8>,
    },
    /// A fickle library's product.
    Multiply {
        step: usize,
        shape: GemmShape,
        call: GemmCall,
    },
    Stamp(u64),
}

/// Work of the copies' queue.
#[derive(Debug)]
pub(super) enum Copy {
    Out {
        from: DevicePtr,
        /// Address in this process.
        to: usize,
        bytes: usize,
    },
    /// Goes on when so many launches have run.
    Follow(u64),
    Stamp(u64),
}

/// What runs next.
#[derive(Debug)]
pub(super) enum Step {
    Task(Task),
    Copy(Copy),
}

/// The two queues.
#[derive(Debug)]
pub(super) struct Streams {
    order: StreamOrder,
    tasks: VecDeque<Task>,
    copies: VecDeque<Copy>,
    tasks_done: u64,
    copies_done: u64,
}

impl Streams {
    pub fn new(order: StreamOrder) -> Streams {
        Streams {
            order,
            tasks: VecDeque::new(),
            copies: VecDeque::new(),
            tasks_done: 0,
            copies_done: 0,
        }
    }

    pub fn push_task(&mut self, task: Task) {
        self.tasks.push_back(task);
    }

    pub fn push_copy(&mut self, copy: Copy) {
        self.copies.push_back(copy);
    }

    /// How many tasks and copies were called so far.
    pub fn called(&self) -> (u64, u64) {
        (
            self.tasks_done + self.tasks.len() as u64,
            self.copies_done + self.copies.len() as u64,
        )
    }

    /// The next step towards so many tasks and copies done; `None` when they are.
    pub fn next(&mut self, until: (u64, u64)) -> Option<Step> {
        while let Some(&Copy::Follow(tasks)) = self.copies.front()
            && tasks <= self.tasks_done
        {
            self.copies.pop_front();
            self.copies_done += 1;
        }
        if self.tasks_done >= until.0 && self.copies_done >= until.1 {
            return None;
        }
        let copy = !matches!(self.copies.front(), None | Some(Copy::Follow(_)));
        let task = !self.tasks.is_empty();
        let copy_now = match &mut self.order {
            StreamOrder::CopiesFirst => copy,
            StreamOrder::LaunchesFirst => !task,
            StreamOrder::Seeded(state) => {
                *state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                if *state >> 63 == 0 { copy } else { !task }
            }
        };
        if copy_now {
            self.copies_done += 1;
            return self.copies.pop_front().map(Step::Copy);
        }
        self.tasks_done += 1;
        self.tasks.pop_front().map(Step::Task)
    }

    /// Throws away what has not run.
    pub fn clear(&mut self) {
        (self.tasks_done, self.copies_done) = self.called();
        self.tasks.clear();
        self.copies.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(to: usize) -> Copy {
        Copy::Out {
            from: DevicePtr(0),
            to,
            bytes: 1,
        }
    }

    /// Two tasks, a copy that follows them, a third task; run until the copy is done.
    fn ran(order: StreamOrder, follow: bool) -> Vec<String> {
        let mut streams = Streams::new(order);
        streams.push_task(Task::Stamp(1));
        streams.push_task(Task::Stamp(2));
        if follow {
            streams.push_copy(Copy::Follow(streams.called().0));
        }
        streams.push_copy(out(9));
        let until = streams.called();
        streams.push_task(Task::Stamp(3));
        let mut ran = Vec::new();
        while let Some(step) = streams.next(until) {
            ran.push(match step {
                Step::Task(Task::Stamp(n)) => n.to_string(),
                Step::Task(task) => format!("{task:?}"),
                Step::Copy(_) => "copy".into(),
            });
        }
        ran
    }

    #[test]
    fn copies_run_as_early_or_as_late_as_their_events_allow() {
        use StreamOrder::{CopiesFirst, LaunchesFirst, Seeded};
        assert_eq!(ran(CopiesFirst, true), ["1", "2", "copy"]);
        assert_eq!(ran(LaunchesFirst, true), ["1", "2", "3", "copy"]);
        assert_eq!(ran(CopiesFirst, false), ["copy", "1", "2"]);
        for seed in 0..20 {
            let ran = ran(Seeded(seed << 40), true);
            let at = |what: &str| ran.iter().position(|w| w == what);
            assert!(at("copy") > at("2"), "{ran:?}");
        }
    }
}

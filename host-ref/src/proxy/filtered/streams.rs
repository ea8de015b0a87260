//! The filtered streams of a worker: found by key when a guest answers late, and woken when their time is over.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use proxy_golang_abi::EndReason;
use tokio::time::Instant;

use super::super::clock;
use super::super::exchange::Exchange;
use super::super::worker::WorkerState;
use super::Filtered;
use crate::engine::{Mail, Stream};

/// No deadline.
const NEVER: u64 = u64::MAX;

/// Deadlines are looked at no more often than this: the timer of the runtime ticks no faster.
const TICK_NS: u64 = 1_000_000;

/// The streams of a worker, by the key that comes back in [`Mail::stream`].
#[derive(Debug)]
pub(in super::super) struct Streams {
    table: RefCell<Table>,
    /// No stream's deadline is earlier. It may be a deadline that is none any more.
    due: Cell<u64>,
    timer: RefCell<Option<Waker>>,
    /// What streams that are over leave behind: it is large, and so is better used again than allocated.
    #[allow(clippy::vec_box)] // they are moved
    spare: RefCell<Vec<Box<Filtered>>>,
}

/// Most that is kept for later streams.
const SPARE: usize = 128;

#[derive(Debug, Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    deadline: u64,
    exchange: Weak<Exchange>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            table: RefCell::default(),
            due: Cell::new(NEVER),
            timer: RefCell::default(),
            spare: RefCell::default(),
        }
    }
}

impl Table {
    fn slot(&mut self, key: u64) -> Option<&mut Slot> {
        let (generation, index) = split(key);
        self.slots
            .get_mut(index as usize)
            .filter(|s| s.generation == generation)
    }
}

impl Streams {
    pub(super) fn insert(&self, exchange: &Rc<Exchange>) -> u64 {
        let table = &mut *self.table.borrow_mut();
        table.generation = table.generation.wrapping_add(1);
        let slot = Slot {
            generation: table.generation,
            deadline: NEVER,
            exchange: Rc::downgrade(exchange),
        };
        let index = match table.free.pop() {
            Some(index) => {
                table.slots[index as usize] = slot;
                index
            }
            None => {
                table.slots.push(slot);
                u32::try_from(table.slots.len() - 1).expect("fewer than 2^32 streams at once")
            }
        };
        u64::from(table.generation) << 32 | u64::from(index)
    }

    pub(super) fn remove(&self, key: u64) {
        let table = &mut *self.table.borrow_mut();
        if let Some(slot) = table.slot(key) {
            slot.exchange = Weak::new();
            slot.deadline = NEVER;
            table.free.push(split(key).1);
        }
    }

    /// What a stream that is over left behind, to be renewed.
    pub(super) fn take_spare(&self) -> Option<Box<Filtered>> {
        self.spare.borrow_mut().pop()
    }

    /// Keeps what an exchange that is over had. It holds its chain: only of the configuration in force.
    pub(in super::super) fn keep_spare(&self, filtered: Box<Filtered>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE {
            spare.push(filtered);
        }
    }

    /// Lets go of the chains of a configuration that is replaced: guests are told when the last one is gone.
    pub(in super::super) fn drop_spares(&self) {
        self.spare.take();
    }

    /// Sees to it that the stream's deadlines are handled, and its task woken, when the worker's clock says `deadline`.
    /// There is one for each stream: the last one that was set.
    pub(super) fn set_deadline(&self, key: u64, deadline: Option<u64>) {
        let deadline = deadline.unwrap_or(NEVER);
        if let Some(slot) = self.table.borrow_mut().slot(key) {
            slot.deadline = deadline;
        }
        if deadline < self.due.get() {
            self.due.set(deadline);
            if let Some(waker) = self.timer.take() {
                waker.wake();
            }
        }
    }

    /// Gives a guest's completion, apply or wake to its stream.
    pub(in super::super) fn deliver(&self, mail: Mail) {
        let found = self
            .table
            .borrow_mut()
            .slot(mail.stream)
            .and_then(|s| s.exchange.upgrade());
        let Some(exchange) = found else { return };
        if let Some(filtered) = exchange.filtered.get() {
            filtered.with(&exchange, |stream, cx| stream.deliver(cx, mail));
            filtered.wake_all();
        }
    }

    /// Handles the deadlines that have passed, and finds the next one.
    fn expire(&self, now: u64) {
        let mut expired = Vec::new();
        let mut next = NEVER;
        for slot in &mut self.table.borrow_mut().slots {
            if slot.deadline <= now {
                slot.deadline = NEVER;
                expired.extend(slot.exchange.upgrade());
            } else {
                next = next.min(slot.deadline);
            }
        }
        self.due.set(match next {
            NEVER => NEVER,
            next => next.max(now + TICK_NS),
        });
        for exchange in expired {
            if let Some(filtered) = exchange.filtered.get() {
                filtered.with(&exchange, Stream::timer);
                filtered.wake_all();
            }
        }
    }

    /// Ends all streams; for the end of the worker.
    pub(in super::super) fn close_all(&self) {
        let live: Vec<_> = self
            .table
            .borrow()
            .slots
            .iter()
            .filter_map(|s| s.exchange.upgrade())
            .collect();
        for exchange in live {
            if let Some(filtered) = exchange.filtered.get() {
                filtered.with(&exchange, |stream, cx| stream.close(cx, EndReason::ERROR));
            }
        }
    }
}

/// Handles the deadlines of a worker's streams. One timer for all of them: that of a stream which a guest decides in
/// time, which is nearly each, costs no more than noting it.
pub(in super::super) async fn keep_deadlines(worker: Rc<WorkerState>) {
    let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
    let mut armed = 0;
    poll_fn(|cx| {
        let streams = &worker.streams;
        loop {
            let due = streams.due.get();
            if due == NEVER {
                break;
            }
            let now = clock::now();
            if due <= now {
                streams.expire(now);
                continue;
            }
            if armed != due {
                armed = due;
                sleep
                    .as_mut()
                    .reset(Instant::now() + Duration::from_nanos(due - now));
            }
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
            // The two clocks differ by less than the timer's tick.
            armed = 0;
            if clock::now() < due {
                sleep
                    .as_mut()
                    .reset(Instant::now() + Duration::from_nanos(TICK_NS));
                armed = due;
            }
        }
        *streams.timer.borrow_mut() = Some(cx.waker().clone());
        Poll::<()>::Pending
    })
    .await;
}

#[allow(clippy::cast_possible_truncation)] // the two halves of a key
fn split(key: u64) -> (u32, u32) {
    ((key >> 32) as u32, key as u32)
}

//! Tokens and stream handles: 64-bit values with a generation, checked from any thread without a lock.
//!
//! A value is 40 bits of generation above 24 bits of slot; it is never 0, and comes again only after 2^40 uses of its
//! slot, which then is not used any more (PXG-ASY-003). A slot has one word: the generation that is alive in it and
//! its state. Every transition is one compare-and-swap on that word, so of a racing `complete` and cancel exactly one
//! wins. The states and their transitions A01 to A10 are those of `spec/12-async.md`.

use std::sync::OnceLock;

use proxy_golang_abi::{Phase, Status};

use super::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};

const SLOT_BITS: u32 = 24;
const GENERATIONS: u64 = 1 << 40;
const CHUNK: usize = if cfg!(loom) { 2 } else { 1024 };
const CHUNKS: usize = if cfg!(loom) {
    2
} else {
    (1 << SLOT_BITS) / CHUNK
};

/// What a slot holds. In the word below the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    Free = 0,
    /// A token; its `on_event` has not returned.
    Issued = 1,
    /// A token that waits.
    Pending = 2,
    /// A token that was completed and whose completion has not taken effect.
    Done = 3,
    /// A stream's handle.
    Handle = 4,
    /// A stream's handle, and its configuration subscribes to WAKE.
    WakeHandle = 5,
}

const fn word(generation: u64, state: State) -> u64 {
    generation << 8 | state as u64
}

fn state_of(word: u64) -> State {
    match word & 0xff {
        1 => State::Issued,
        2 => State::Pending,
        3 => State::Done,
        4 => State::Handle,
        5 => State::WakeHandle,
        _ => State::Free,
    }
}

struct Slot {
    word: AtomicU64,
    /// Of the library that may use the value. Written while the slot is free.
    library: AtomicU32,
    /// Of a token: the phase of its event. Written while the slot is free.
    phase: AtomicU32,
    /// The driver's key of the stream. Written while the slot is free.
    stream: AtomicU64,
    /// Threads inside `apply` or `wake` for this slot: it is not reused while there are any, so that what they add
    /// to `wakes` and `queued` never reaches the next owner.
    visitors: AtomicU32,
    /// OR of the values of the wakes that are queued as one.
    wakes: AtomicU64,
    wake_queued: AtomicBool,
    /// Bytes of BODY_WRITE that were taken and have not left.
    queued: AtomicU64,
    full: AtomicBool,
}

struct Chunk {
    worker: u32,
    slots: Box<[Slot]>,
}

/// All slots of a process, in chunks that belong to one worker each.
pub(crate) struct Table {
    chunks: Box<[OnceLock<Chunk>]>,
    next: AtomicU32,
}

/// The slots that one worker may issue. Only that worker's thread has it.
#[derive(Default)]
pub(crate) struct FreeList {
    free: Vec<u32>,
    /// Freed while a visitor was inside.
    visited: Vec<u32>,
}

/// Where mail for a value goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) worker: u32,
    pub(crate) stream: u64,
}

/// What `on_event`'s return makes of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// A02 did not happen: it pends, or it is retired.
    Plain,
    /// It had been completed already; the completion is in the mail.
    Early,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self {
            chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(),
            next: AtomicU32::new(0),
        }
    }

    fn find(&self, value: u64) -> Option<(&Slot, u32, u64)> {
        let index = (value & ((1 << SLOT_BITS) - 1)) as usize;
        let chunk = self.chunks.get(index / CHUNK)?.get()?;
        Some((
            &chunk.slots[index % CHUNK],
            chunk.worker,
            value >> SLOT_BITS,
        ))
    }

    /// A01, and the making of handles. `None` when all 2^24 slots are in use.
    pub(crate) fn issue(
        &self,
        free: &mut FreeList,
        worker: u32,
        library: u32,
        stream: u64,
        state: State,
        phase: Phase,
    ) -> Option<u64> {
        loop {
            let index = match free.free.pop() {
                Some(index) => index,
                None => self.grow(free, worker)?,
            };
            let (slot, _, _) = self.find(u64::from(index))?;
            let generation = (slot.word.load(Relaxed) >> 8) + 1;
            if generation >= GENERATIONS {
                continue; // worn out for good
            }
            slot.library.store(library, Relaxed);
            slot.phase.store(phase.0, Relaxed);
            slot.stream.store(stream, Relaxed);
            if matches!(state, State::Handle | State::WakeHandle) {
                slot.wakes.store(0, Relaxed);
                slot.wake_queued.store(false, Relaxed);
                slot.queued.store(0, Relaxed);
                slot.full.store(false, Relaxed);
            }
            slot.word.store(word(generation, state), Release);
            return Some(generation << SLOT_BITS | u64::from(index));
        }
    }

    fn grow(&self, free: &mut FreeList, worker: u32) -> Option<u32> {
        let mut visited = std::mem::take(&mut free.visited);
        visited.retain(|index| {
            let idle = self
                .find(u64::from(*index))
                .is_some_and(|(slot, ..)| slot.visitors.load(Acquire) == 0);
            if idle {
                free.free.push(*index);
            }
            !idle
        });
        free.visited = visited;
        if let Some(index) = free.free.pop() {
            return Some(index);
        }
        let at = self.next.fetch_add(1, Relaxed) as usize;
        if at >= CHUNKS {
            self.next
                .store(u32::try_from(CHUNKS).unwrap_or(u32::MAX), Relaxed);
            return None;
        }
        let slot = |_| Slot {
            word: AtomicU64::new(word(0, State::Free)),
            library: AtomicU32::new(0),
            stream: AtomicU64::new(0),
            phase: AtomicU32::new(0),
            visitors: AtomicU32::new(0),
            wakes: AtomicU64::new(0),
            wake_queued: AtomicBool::new(false),
            queued: AtomicU64::new(0),
            full: AtomicBool::new(false),
        };
        let chunk = Chunk {
            worker,
            slots: (0..CHUNK).map(slot).collect(),
        };
        self.chunks[at].set(chunk).ok()?;
        let first = u32::try_from(at * CHUNK).ok()?;
        free.free
            .extend((first + 1..first + u32::try_from(CHUNK).ok()?).rev());
        Some(first)
    }

    /// A03: the event returned PENDING.
    pub(crate) fn pend(&self, token: u64) -> Settled {
        let Some((slot, _, generation)) = self.find(token) else {
            return Settled::Plain;
        };
        let issued = word(generation, State::Issued);
        match slot
            .word
            .compare_exchange(issued, word(generation, State::Pending), AcqRel, Acquire)
        {
            Ok(_) => Settled::Plain,
            Err(_) => Settled::Early,
        }
    }

    /// A04 to A08: the value dies. Answers what it was; a Free one was dead already.
    pub(crate) fn retire(&self, free: &mut FreeList, value: u64) -> State {
        let Some((slot, _, generation)) = self.find(value) else {
            return State::Free;
        };
        let free_word = word(generation, State::Free);
        let mut seen = slot.word.load(Relaxed);
        loop {
            if seen >> 8 != generation || state_of(seen) == State::Free {
                return State::Free;
            }
            if matches!(state_of(seen), State::Handle | State::WakeHandle) {
                // Only this thread changes the word of a handle; the step on `visitors` below makes it known.
                slot.word.store(free_word, Relaxed);
                break;
            }
            match slot.word.compare_exchange(seen, free_word, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        let index = (value & ((1 << SLOT_BITS) - 1)) as u32;
        let state = state_of(seen);
        // Against `visit` both sides read and write in one step: whichever of the two steps comes second sees what the
        // other thread did before its own. So the visitor finds the slot dead, or it is found here. Nobody visits tokens.
        let handle = matches!(state, State::Handle | State::WakeHandle);
        if handle && slot.visitors.fetch_add(0, AcqRel) != 0 {
            free.visited.push(index);
        } else {
            free.free.push(index);
        }
        state
    }

    /// The place has unsubscribed from WAKE: `wake` answers STATE from here on.
    pub(crate) fn refuse_wakes(&self, handle: u64) {
        if let Some((slot, _, generation)) = self.find(handle) {
            let wakes = word(generation, State::WakeHandle);
            // In any other state there is nothing to do.
            let _ =
                slot.word
                    .compare_exchange(wakes, word(generation, State::Handle), AcqRel, Relaxed);
        }
    }

    /// Whether the token was completed and its completion has not taken effect.
    pub(crate) fn is_done(&self, token: u64) -> bool {
        self.find(token).is_some_and(|(slot, _, generation)| {
            slot.word.load(Acquire) == word(generation, State::Done)
        })
    }

    /// Whether `library` may complete the token now.
    pub(crate) fn token_status(&self, library: u32, token: u64) -> Status {
        match self.live_token(library, token) {
            Some(_) => Status::OK,
            None => Status::STALE,
        }
    }

    /// The phase of a live token's event.
    pub(crate) fn token_phase(&self, library: u32, token: u64) -> Option<Phase> {
        let (slot, _, _) = self.live_token(library, token)?;
        Some(Phase(slot.phase.load(Relaxed)))
    }

    fn live_token(&self, library: u32, token: u64) -> Option<(&Slot, u32, u64)> {
        let (slot, worker, generation) = self.find(token)?;
        let seen = slot.word.load(Acquire);
        let live = seen >> 8 == generation
            && matches!(state_of(seen), State::Issued | State::Pending)
            && slot.library.load(Relaxed) == library;
        live.then_some((slot, worker, seen))
    }

    /// A02 and A07: of all callers exactly one gets the address to send the completion to.
    pub(crate) fn complete(&self, library: u32, token: u64) -> Option<Address> {
        loop {
            let (slot, worker, seen) = self.live_token(library, token)?;
            // Read before the swap: while the generation stands, so does the address.
            let stream = slot.stream.load(Relaxed);
            if slot
                .word
                .compare_exchange(seen, word(seen >> 8, State::Done), AcqRel, Relaxed)
                .is_ok()
            {
                return Some(Address { worker, stream });
            }
        }
    }

    /// Whether `library` may use the handle now.
    pub(crate) fn handle_status(&self, library: u32, handle: u64) -> Status {
        match self.visit(library, handle, |_, _, _| ()) {
            Some(()) => Status::OK,
            None => Status::STALE,
        }
    }

    /// Runs `act` on the slot of a live handle, which is not reused meanwhile.
    fn visit<R>(
        &self,
        library: u32,
        handle: u64,
        act: impl FnOnce(&Slot, State, Address) -> R,
    ) -> Option<R> {
        let (slot, worker, generation) = self.find(handle)?;
        slot.visitors.fetch_add(1, AcqRel);
        let seen = slot.word.load(Acquire);
        let state = state_of(seen);
        let alive = seen >> 8 == generation
            && matches!(state, State::Handle | State::WakeHandle)
            && slot.library.load(Relaxed) == library;
        let done = alive.then(|| {
            act(
                slot,
                state,
                Address {
                    worker,
                    stream: slot.stream.load(Relaxed),
                },
            )
        });
        slot.visitors.fetch_sub(1, Release);
        done
    }

    /// Adds `arg` to the queued wake; the address only if none was queued.
    pub(crate) fn wake(
        &self,
        library: u32,
        handle: u64,
        arg: u64,
    ) -> Result<Option<Address>, Status> {
        self.visit(library, handle, |slot, state, to| {
            if state != State::WakeHandle {
                return Err(Status::STATE);
            }
            slot.wakes.fetch_or(arg, AcqRel);
            Ok((!slot.wake_queued.swap(true, AcqRel)).then_some(to))
        })
        .unwrap_or(Err(Status::STALE))
    }

    /// The slot of a handle, if it has not been retired. Only for the worker that issued it: it stays so until then.
    fn live_handle(&self, handle: u64) -> Option<&Slot> {
        let (slot, _, generation) = self.find(handle)?;
        let seen = slot.word.load(Relaxed);
        let alive = matches!(state_of(seen), State::Handle | State::WakeHandle);
        (alive && seen >> 8 == generation).then_some(slot)
    }

    /// Takes the OR of the queued wakes, on the worker's thread.
    pub(crate) fn take_wakes(&self, handle: u64) -> u64 {
        let Some(slot) = self.live_handle(handle) else {
            return 0;
        };
        // In this order: a wake that comes between the two is queued again rather than lost.
        slot.wake_queued.store(false, Release);
        slot.wakes.swap(0, AcqRel)
    }

    /// Counts `bytes` of BODY_WRITE against `watermark`: OK, FULL, or LIMIT while it is full.
    pub(crate) fn apply(
        &self,
        library: u32,
        handle: u64,
        bytes: u64,
        watermark: u64,
    ) -> Result<(Address, Status), Status> {
        self.visit(library, handle, |slot, _, to| {
            if bytes == 0 {
                return Ok((to, Status::OK));
            }
            if slot.full.load(Acquire) {
                return Err(Status::LIMIT);
            }
            if slot.queued.fetch_add(bytes, AcqRel) + bytes <= watermark {
                return Ok((to, Status::OK));
            }
            slot.full.store(true, Release);
            Ok((to, Status::FULL))
        })
        .unwrap_or(Err(Status::STALE))
    }

    /// `bytes` of BODY_WRITE came in a result, on the worker's thread.
    pub(crate) fn count_write(&self, handle: u64, bytes: u64) {
        if let Some(slot) = self.live_handle(handle) {
            slot.queued.fetch_add(bytes, AcqRel);
        }
    }

    /// `bytes` of BODY_WRITE have left or were dropped, on the worker's thread. Answers whether the guest now waits
    /// for WRITABLE.
    pub(crate) fn written(&self, handle: u64, bytes: u64, watermark: u64) -> bool {
        let Some(slot) = self.live_handle(handle) else {
            return false;
        };
        let left = slot.queued.fetch_sub(bytes, AcqRel).saturating_sub(bytes);
        left <= watermark / 2 && slot.full.swap(false, AcqRel)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// What belongs to a retired handle never touches the next owner of its slot.
    #[test]
    fn a_retired_handle_does_not_reach_the_next_owner() {
        let table = Table::new();
        let mut free = FreeList::default();
        let issue = |free: &mut FreeList| {
            table
                .issue(free, 0, 1, 7, State::WakeHandle, Phase(0))
                .unwrap()
        };
        let old = issue(&mut free);
        assert!(matches!(table.wake(1, old, 1), Ok(Some(_))));
        table.retire(&mut free, old);
        let new = issue(&mut free);
        assert_eq!(old & 0xff_ffff, new & 0xff_ffff, "the same slot");
        assert!(matches!(table.wake(1, new, 4), Ok(Some(_))));
        assert!(matches!(table.apply(1, new, 10, 5), Ok((_, Status::FULL))));
        assert_eq!(table.take_wakes(old), 0);
        table.count_write(old, 100);
        assert!(!table.written(old, 10, 5));
        table.refuse_wakes(old);
        assert_eq!(table.wake(1, new, 8), Ok(None));
        assert_eq!(table.take_wakes(new), 12);
        assert!(table.written(new, 10, 5));
    }
}

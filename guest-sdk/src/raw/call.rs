//! One call of `on_event`: its views, and the result that is written into the host's scratch memory.

mod events;
mod reply;

use std::cell::Cell;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::sync::Arc;

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, EventFlags, OpFlags, OpKind, Phase, Str, Target};

pub use events::{
    BodyEvent, ConnectionEvent, DataEvent, HeadersEvent, LogEvent, MessageEvent, TrailersEvent,
    WakeEvent,
};
pub use reply::ReplyBuilder;

use super::buffer::Buffer;
use super::hooks::{ConfigHead, SlotHead};
use super::host::Host;
use super::view::{bytes, slice};
use crate::pending::{CancelState, Pending};
use crate::{FilterError, Outcome, StreamHandle, Verdict, verdict};

/// What every event has. Its views die when the method that got it returns, and the compiler sees to that.
///
/// `'c` is the lifetime of the call: of the views, and of what a result may borrow. The methods named `_borrowed` take
/// views of the same event, literals, memory of the filter (`&'c self`) and of the stream (`&'c mut ctx`) without a
/// copy; nothing else lives long enough.
///
/// An event belongs to the thread that it came on:
/// ```compile_fail,E0277
/// # use proxy_golang_guest::prelude::*;
/// fn elsewhere(ev: &HeadersEvent<'_>) {
///     std::thread::scope(|s| {
///         s.spawn(|| ev.set_header("x-a", "b"));
///     });
/// }
/// ```
pub struct Event<'c> {
    host: Host,
    head: *const ConfigHead,
    ev: *const abi::Event,
    out: *mut abi::EventResult,
    ops: Cell<*mut abi::Op>,
    next_op: Cell<*mut abi::Op>,
    end_ops: Cell<*mut abi::Op>,
    mem: Cell<*mut u8>,
    mem_end: Cell<*mut u8>,
    /// Whether anything but operations has happened: the result is not the plain one.
    state: Cell<State>,
    // Invariant in 'c: a shorter one would let a local be borrowed by the result.
    _borrowed: PhantomData<Cell<&'c ()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct State(u8);

impl State {
    const PLAIN: Self = Self(0);
    /// The host refused scratch: the call fails when it ends.
    const FAILED: Self = Self(1);
    const DEFERRED: Self = Self(2);
    const REPLIED: Self = Self(4);
}

impl<'c> Event<'c> {
    /// # Safety
    /// `ev`, `out` and `head` must be those of the running hook and outlive the value, `out` exclusively.
    #[inline(always)]
    pub(super) unsafe fn new(
        host: Host,
        head: *const ConfigHead,
        ev: *const abi::Event,
        out: *mut abi::EventResult,
    ) -> Self {
        // SAFETY: the caller's.
        let (ops, cap_ops, mem, mem_cap) = unsafe {
            (
                (*out).scratch_ops,
                (*out).scratch_ops_cap,
                (*out).scratch,
                (*out).scratch_cap,
            )
        };
        Self {
            host,
            head,
            ev,
            out,
            ops: Cell::new(ops),
            next_op: Cell::new(ops),
            // SAFETY: the host lends that many operations and bytes there.
            end_ops: Cell::new(unsafe { ops.add(cap_ops as usize) }),
            mem: Cell::new(mem),
            // SAFETY: as above.
            mem_end: Cell::new(unsafe { mem.add(mem_cap as usize) }),
            state: Cell::new(State::PLAIN),
            _borrowed: PhantomData,
        }
    }

    #[inline(always)]
    fn raw(&self) -> &abi::Event {
        // SAFETY: call lifetime.
        unsafe { &*self.ev }
    }

    /// The host.
    #[inline]
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }

    /// The phase.
    #[inline]
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.raw().phase
    }

    /// All flags of the event.
    #[inline]
    #[must_use]
    pub fn flags(&self) -> EventFlags {
        self.raw().flags
    }

    #[inline]
    pub(crate) fn has(&self, flag: EventFlags) -> bool {
        self.raw().flags.0 & flag.0 != 0
    }

    /// Index of the worker thread that the stream lives on.
    #[must_use]
    pub fn worker(&self) -> u32 {
        self.raw().worker
    }

    /// The stream, to act on it outside its events, from any thread.
    #[must_use]
    pub fn stream(&self) -> StreamHandle {
        StreamHandle::new(self.host, self.raw().stream)
    }

    /// An attribute that the configuration asked for with [`crate::Setup::attribute`]; `None` if the host has none here.
    #[must_use]
    pub fn attribute(&self, attribute: crate::Attribute) -> Option<&'c [u8]> {
        let raw = self.raw();
        // SAFETY: a view of the call, which outlives 'c.
        let all: &[Str] = unsafe { slice(raw.attrs, raw.n_attrs) };
        let value = all.get(attribute.index())?;
        // SAFETY: as above.
        (!value.is_absent()).then(|| unsafe { bytes(value) })
    }

    /// Whether the stream was redirected inside the host before this event.
    #[must_use]
    pub fn is_redirected(&self) -> bool {
        self.has(EventFlags::REDIRECTED)
    }

    /// Sets a value under the library's own namespace; later filters see it as an attribute
    /// `metadata.<namespace>.<key>`. Needs the feature METADATA, else it is skipped and counted.
    pub fn set_metadata(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (key, value) = (self.copy(key.as_ref()), self.copy(value.as_ref()));
        self.push(OpKind::METADATA_SET, Target::HEADERS, 0, key, value);
    }

    /// Adds to a counter, with the result of this event: no crossing.
    pub fn count(&self, counter: &crate::Counter, by: u64) {
        self.metric(counter.0.id(), i64::try_from(by).unwrap_or(i64::MAX));
    }

    /// Sets a gauge, as [`Event::count`].
    pub fn gauge(&self, gauge: &crate::Gauge, value: i64) {
        self.metric(gauge.0.id(), value);
    }

    /// Observes a value, as [`Event::count`].
    pub fn observe(&self, histogram: &crate::Histogram, value: i64) {
        self.metric(histogram.0.id(), value);
    }

    fn metric(&self, id: u32, value: i64) {
        self.push(
            OpKind::METRIC,
            Target(id),
            value.cast_unsigned(),
            Text::NONE,
            Text::NONE,
        );
    }

    /// No further event of these phases for this stream; for a body phase that is mode SKIP.
    pub fn unsubscribe(&self, phase: Phase) {
        // SAFETY: call lifetime.
        unsafe { (*self.out).unsubscribe |= abi::phase_bit(phase) }
    }

    #[inline(always)]
    fn is(&self, state: State) -> bool {
        self.state.get().0 & state.0 != 0
    }

    fn becomes(&self, state: State) {
        self.state.set(State(self.state.get().0 | state.0));
    }

    /// The reply that was sent in this event, or null: the result's own member, which the host preset to null.
    fn sent_reply(&self) -> *const abi::Reply {
        // SAFETY: call lifetime.
        unsafe { (*self.out).reply }
    }

    fn n_ops(&self) -> usize {
        (self.next_op.get().addr() - self.ops.get().addr()) / size_of::<abi::Op>()
    }

    // ---- scratch

    fn mem_left(&self) -> usize {
        self.mem_end.get().addr() - self.mem.get().addr()
    }

    /// `n` bytes of scratch, aligned for every struct of the ABI; null if the host refused.
    fn alloc(&self, n: usize) -> *mut u8 {
        let mem = self.mem.get();
        let pad = mem.addr().wrapping_neg() & 15;
        let left = self.mem_left();
        if left < pad || left - pad < n {
            return self.alloc_more(n);
        }
        // SAFETY: `pad + n` bytes are left of the block that the host lent.
        let p = unsafe { mem.add(pad) };
        // SAFETY: as above.
        self.mem.set(unsafe { p.add(n) });
        p
    }

    #[cold]
    fn scratch_more(&self, n: usize) -> *mut u8 {
        let table = self.host.table();
        let p = match table.scratch_more {
            // SAFETY: in-call, on its thread.
            Some(more) => unsafe { more(table.ctx, n as u64) },
            None => std::ptr::null_mut(),
        };
        if p.is_null() {
            self.becomes(State::FAILED);
        }
        p
    }

    #[cold]
    fn alloc_more(&self, n: usize) -> *mut u8 {
        let want = n.max(4096);
        let p = self.scratch_more(want);
        // The block with more room left stays in use: one large request must not throw a nearly empty block away.
        if !p.is_null() && want - n > self.mem_left() {
            // SAFETY: the host answered `want` bytes.
            unsafe {
                self.mem.set(p.add(n));
                self.mem_end.set(p.add(want));
            }
        }
        p
    }

    /// A copy in scratch. If the host refused it points nowhere, and the call fails whatever the filter answers.
    #[inline(always)]
    fn copy(&self, bytes: &[u8]) -> Text {
        let n = bytes.len();
        let mem = self.mem.get();
        if n > self.mem_left() {
            return Text(self.copy_more(bytes), n);
        }
        // SAFETY: n bytes are left of the block that the host lent, which overlaps nothing that can be read.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), mem, n) };
        // SAFETY: as above.
        self.mem.set(unsafe { mem.add(n) });
        Text(mem, n)
    }

    #[cold]
    #[inline(never)]
    fn copy_more(&self, bytes: &[u8]) -> *const u8 {
        if u32::try_from(bytes.len()).is_err() {
            self.becomes(State::FAILED);
            return std::ptr::null();
        }
        let p = self.alloc_more(bytes.len());
        if !p.is_null() {
            // SAFETY: `alloc_more` answered that many bytes of fresh scratch.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), p, bytes.len()) };
        }
        p
    }

    fn format(&self, args: std::fmt::Arguments<'_>) -> Text {
        if let Some(text) = args.as_str() {
            return self.copy(text.as_bytes());
        }
        let mut out = ScratchWriter {
            event: self,
            at: std::ptr::null_mut(),
            len: 0,
            cap: 0,
        };
        if out.write_fmt(args).is_err() {
            self.becomes(State::FAILED);
        }
        Text(out.at, out.len)
    }

    // ---- operations

    #[inline(always)]
    fn push(&self, kind: OpKind, target: Target, u0: u64, key: Text, val: Text) {
        self.push_buf(kind, target, u0, key, abi::Buf::borrowed(val.str()));
    }

    #[inline(always)]
    fn push_buf(&self, kind: OpKind, target: Target, u0: u64, key: Text, val: abi::Buf) {
        if self.next_op.get() == self.end_ops.get() && !self.grow_ops() {
            if val.release.is_some() {
                refused(val);
            }
            return;
        }
        let at = self.next_op.get();
        // SAFETY: before the end of the array, which is the host's scratch or what `scratch_more` answered.
        unsafe {
            at.write(abi::Op {
                kind,
                flags: OpFlags(0),
                target,
                u0,
                key: key.str(),
                val,
            });
            self.next_op.set(at.add(1));
        }
    }

    /// Operations are one array: a larger one is taken and they move.
    #[cold]
    #[inline(never)]
    fn grow_ops(&self) -> bool {
        let n = self.n_ops();
        let cap = (n * 2).max(32);
        let p = self
            .scratch_more(cap * size_of::<abi::Op>())
            .cast::<abi::Op>();
        if p.is_null() {
            return false;
        }
        // SAFETY: `cap` operations at `p`, 16-aligned by contract; the n of the old array are initialised.
        unsafe {
            std::ptr::copy_nonoverlapping(self.ops.get(), p, n);
            self.next_op.set(p.add(n));
            self.end_ops.set(p.add(cap));
        }
        self.ops.set(p);
        true
    }

    /// Releases what the operations own and forgets them: for a result that carries none.
    fn abandon(&self) {
        for i in 0..self.n_ops() {
            // SAFETY: i < n: an operation that `push` wrote.
            let val = unsafe { (*self.ops.get().add(i)).val };
            // SAFETY: the host has not seen it.
            drop(unsafe { Buffer::from_abi(val) });
        }
        self.next_op.set(self.ops.get());
        if !self.sent_reply().is_null() {
            // SAFETY: a reply that the builder wrote into scratch.
            let reply = unsafe { &*self.sent_reply() };
            // SAFETY: its body parts are in scratch too.
            for part in unsafe { slice(reply.body, reply.n_body) } {
                // SAFETY: the host has not seen it.
                drop(unsafe { Buffer::from_abi(*part) });
            }
            // SAFETY: call lifetime.
            unsafe { (*self.out).reply = std::ptr::null() }
        }
    }

    // ---- the end

    /// Writes the result of a call that answered CONTINUE and did nothing but operations. False for any other call:
    /// [`Event::finish`] is for those.
    #[inline(always)]
    pub(super) fn finish_plain(&self) -> bool {
        let plain = self.state.get() == State::PLAIN;
        if plain {
            self.write(Action::CONTINUE);
        }
        plain
    }

    #[inline(always)]
    fn write(&self, action: Action) {
        // SAFETY: call lifetime; `out` is the guest's for the call.
        let out = unsafe { &mut *self.out };
        out.ops = self.ops.get();
        out.n_ops = self.n_ops() as u64;
        out.action = action;
    }

    /// Writes the result. Answers the token of an event that was deferred but is not pending: it has retired then.
    pub(super) fn finish(&self, outcome: Outcome) -> Option<u64> {
        let replied = !self.sent_reply().is_null();
        let wrong = match &outcome {
            Err(error) => Some(error.text()),
            Ok(_) if self.is(State::FAILED) => {
                Some("scratch_more refused memory: the result is over the host's limit")
            }
            Ok(Verdict::Reply(_)) if !replied => {
                Some("the verdict is a reply, but none was sent in this event")
            }
            Ok(Verdict::Continue | Verdict::More(_)) if replied => {
                Some("a reply was sent but another verdict returned; return what send() answered")
            }
            Ok(Verdict::Pending(_)) if !self.is(State::DEFERRED) => {
                Some("the verdict is pending, but this event was not deferred")
            }
            Ok(Verdict::Pending(_)) if replied || self.n_ops() != 0 => {
                Some("operations before a pending verdict; pass them with the completion instead")
            }
            Ok(_) => None,
        };
        if let Some(text) = wrong {
            return self.fail(text);
        }
        let action = match outcome {
            Ok(Verdict::More(bytes)) => {
                // SAFETY: call lifetime.
                unsafe { (*self.out).more_bytes = bytes }
                Action::MORE
            }
            Ok(Verdict::Reply(_)) => Action::REPLY,
            Ok(Verdict::Reset) => Action::RESET,
            Ok(Verdict::Pending(_)) => {
                // Everything else of the result stays as preset.
                // SAFETY: call lifetime.
                unsafe { (*self.out).action = Action::PENDING }
                return None;
            }
            _ => Action::CONTINUE,
        };
        self.write(action);
        self.retired_token()
    }

    /// Answers ERROR with a text for the log.
    #[cold]
    pub(super) fn fail(&self, text: &str) -> Option<u64> {
        self.abandon();
        // With no operations left the lent scratch is free again; it takes the head of the text, for an error must not
        // fail for want of memory.
        // SAFETY: call lifetime, and the host lends that many bytes there.
        unsafe {
            self.mem.set((*self.out).scratch);
            self.mem_end
                .set((*self.out).scratch.add((*self.out).scratch_cap as usize));
        }
        let mut n = text.len().min(self.mem_left());
        while !text.is_char_boundary(n) {
            n -= 1;
        }
        let error = self.copy(&text.as_bytes()[..n]);
        // SAFETY: call lifetime.
        let out = unsafe { &mut *self.out };
        out.ops = std::ptr::null();
        out.n_ops = 0;
        out.error = error.str();
        out.action = Action::ERROR;
        self.retired_token()
    }

    fn retired_token(&self) -> Option<u64> {
        // SAFETY: call lifetime.
        let action = unsafe { (*self.out).action };
        (self.is(State::DEFERRED) && action != Action::PENDING).then(|| self.raw().token)
    }

    fn defer(&self) -> Result<(Verdict, Pending), FilterError> {
        let token = self.raw().token;
        if token == 0 {
            return Err(FilterError::new(
                "this event cannot be deferred: set MAY_PEND of the phase's trait, on a host that has the feature",
            ));
        }
        if self.is(State::DEFERRED) {
            return Err(FilterError::new("this event has been deferred already"));
        }
        self.becomes(State::DEFERRED);
        let state = Arc::new(CancelState::default());
        // SAFETY: `head` is the configuration of this call, and `out.user` is 0 or this stream's slot.
        let slot: &mut SlotHead = unsafe {
            if (*self.out).user == 0 {
                (*self.out).user = ((*self.head).new_slot)();
            }
            &mut *std::ptr::with_exposed_provenance_mut((*self.out).user as usize)
        };
        slot.watch(token, Arc::clone(&state));
        Ok((
            Verdict::Pending(verdict::Deferred(())),
            Pending::new(self.host, token, state),
        ))
    }
}

/// An owned buffer that never reached an operation is released.
#[cold]
#[inline(never)]
fn refused(val: abi::Buf) {
    // SAFETY: the host has not seen it.
    drop(unsafe { Buffer::from_abi(val) });
}

/// Bytes of a result: a pointer and a length, which stay in registers.
#[derive(Clone, Copy)]
struct Text(*const u8, usize);

impl Text {
    const NONE: Self = Self(std::ptr::null(), 0);

    /// What outlives the call's result.
    #[inline(always)]
    fn of<B: AsRef<[u8]> + ?Sized>(bytes: &B) -> Self {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Self::NONE;
        }
        assert!(
            u32::try_from(bytes.len()).is_ok(),
            "a field of 4 GiB or more"
        );
        Self(bytes.as_ptr(), bytes.len())
    }

    #[inline(always)]
    fn str(self) -> Str {
        Str {
            ptr: self.0,
            len: self.1 as u32,
            flags: abi::StrFlags(0),
        }
    }
}

/// Formats into scratch that grows.
struct ScratchWriter<'e, 'c> {
    event: &'e Event<'c>,
    at: *mut u8,
    len: usize,
    cap: usize,
}

impl std::fmt::Write for ScratchWriter<'_, '_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let need = self.len + text.len();
        if need > self.cap {
            let cap = need.max(64).next_power_of_two();
            let p = self.event.alloc(cap);
            if p.is_null() || u32::try_from(cap).is_err() {
                return Err(std::fmt::Error);
            }
            if self.len > 0 {
                // SAFETY: `len` bytes written before, into another block.
                unsafe { std::ptr::copy_nonoverlapping(self.at, p, self.len) };
            }
            self.at = p;
            self.cap = cap;
        }
        // SAFETY: `need` <= `cap` bytes of scratch at `at`.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), self.at.add(self.len), text.len()) };
        self.len = need;
        Ok(())
    }
}

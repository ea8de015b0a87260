//! One call of `on_event`: its views, and the result that is written into the host's scratch memory.

use std::cell::Cell;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, EventFlags, OpFlags, OpKind, Phase, Str, Target};

use super::buffer::Buffer;
use super::hooks::{ConfigHead, SlotHead};
use super::host::Host;
use super::view::{Fields, bytes, slice};
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

/// A transparent wrapper round an event: the phases differ in what is legal, not in what they are made of.
macro_rules! event_type {
    ($(#[$doc:meta])* $name:ident derefs $target:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name<'c>($target<'c>);

        impl<'c> Deref for $name<'c> {
            type Target = $target<'c>;

            #[inline(always)]
            fn deref(&self) -> &$target<'c> {
                &self.0
            }
        }

        impl<'c> $name<'c> {
            #[inline(always)]
            #[allow(dead_code)]
            pub(super) fn of<'e>(event: &'e Event<'c>) -> &'e Self {
                // SAFETY: repr(transparent), also of what it derefs to.
                unsafe { &*std::ptr::from_ref(event).cast() }
            }
        }
    };
}

event_type! {
    /// An event of an HTTP message: its fields and trailers, operations on them, and the local reply.
    MessageEvent derefs Event
}
event_type! {
    /// The head of a request or a response.
    HeadersEvent derefs MessageEvent
}
event_type! {
    /// Bytes of a body: every byte received and not yet passed (in mode WHOLE the whole body, with the headers held).
    ///
    /// What the operations leave is passed by [`Verdict::Continue`] and kept by [`Verdict::More`].
    BodyEvent derefs MessageEvent
}
event_type! {
    /// The trailers of a request or a response.
    TrailersEvent derefs MessageEvent
}
event_type! {
    /// An answer to [`StreamHandle::wake`], or the streamed reply has room again.
    WakeEvent derefs Event
}
event_type! {
    /// The end of a stream. Only metadata and metrics can still be written.
    LogEvent derefs Event
}
event_type! {
    /// A connection (L4), before any byte of it or after its end.
    ConnectionEvent derefs Event
}
event_type! {
    /// Bytes of a connection (L4) in one direction: every byte received and not yet passed.
    DataEvent derefs Event
}

impl<'c> MessageEvent<'c> {
    /// The headers of this direction: in headers events, and in others while the headers are held.
    #[inline(always)]
    #[must_use]
    pub fn headers(&self) -> Fields<'c> {
        let raw = self.raw();
        // SAFETY: a view of the call, which outlives 'c.
        unsafe { Fields::new(raw.fields, raw.n_fields) }
    }

    /// The trailers of this direction: in trailers events and with a whole body.
    #[must_use]
    pub fn trailers(&self) -> Fields<'c> {
        let raw = self.raw();
        // SAFETY: as in `headers`.
        unsafe { Fields::new(raw.trailers, raw.n_trailers) }
    }

    /// In response events the request's headers, if the configuration asked with [`crate::Setup::want_peer_fields`].
    #[must_use]
    pub fn request_headers(&self) -> Fields<'c> {
        let raw = self.raw();
        // SAFETY: as in `headers`.
        unsafe { Fields::new(raw.peer_fields, raw.n_peer_fields) }
    }

    /// Nothing follows in this direction.
    #[must_use]
    pub fn is_end_of_stream(&self) -> bool {
        self.has(EventFlags::END_STREAM)
    }

    /// A reply can still be made now.
    #[must_use]
    pub fn can_reply(&self) -> bool {
        self.has(EventFlags::CAN_REPLY)
    }

    /// The response is a local reply of the host or of another filter.
    #[must_use]
    pub fn is_local_reply(&self) -> bool {
        self.has(EventFlags::LOCAL_ORIGIN)
    }

    #[inline(always)]
    fn header_op(&self, kind: OpKind, target: Target, name: Text, value: Text) {
        self.push(kind, target, 0, name, value);
    }

    /// Leaves exactly one header `name` with `value`. Both are copied into the host's scratch; nothing is allocated.
    #[inline]
    pub fn set_header(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (self.copy(name.as_ref()), self.copy(value.as_ref()));
        self.header_op(OpKind::HEADER_SET, Target::HEADERS, name, value);
    }

    /// [`MessageEvent::set_header`] with a value formatted into the host's scratch:
    /// `ev.set_header_fmt("x-age", format_args!("{age}"))`.
    pub fn set_header_fmt(&self, name: impl AsRef<[u8]>, value: std::fmt::Arguments<'_>) {
        let (name, value) = (self.copy(name.as_ref()), self.format(value));
        self.header_op(OpKind::HEADER_SET, Target::HEADERS, name, value);
    }

    /// [`MessageEvent::set_header`] without a copy: literals, views of this event, and memory of the filter or of the
    /// stream's context (for these write `fn ...<'c>(&'c self, ctx: &'c mut ..., ev: &...<'c>)`).
    #[inline]
    pub fn set_header_borrowed<N, V>(&self, name: &'c N, value: &'c V)
    where
        N: AsRef<[u8]> + ?Sized,
        V: AsRef<[u8]> + ?Sized,
    {
        let (name, value) = (Text::of(name), Text::of(value));
        self.header_op(OpKind::HEADER_SET, Target::HEADERS, name, value);
    }

    /// Appends a header.
    #[inline]
    pub fn add_header(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (self.copy(name.as_ref()), self.copy(value.as_ref()));
        self.header_op(OpKind::HEADER_ADD, Target::HEADERS, name, value);
    }

    /// [`MessageEvent::add_header`] without a copy, as [`MessageEvent::set_header_borrowed`].
    #[inline]
    pub fn add_header_borrowed<N, V>(&self, name: &'c N, value: &'c V)
    where
        N: AsRef<[u8]> + ?Sized,
        V: AsRef<[u8]> + ?Sized,
    {
        let (name, value) = (Text::of(name), Text::of(value));
        self.header_op(OpKind::HEADER_ADD, Target::HEADERS, name, value);
    }

    /// Removes all headers `name`.
    #[inline]
    pub fn remove_header(&self, name: impl AsRef<[u8]>) {
        let name = self.copy(name.as_ref());
        self.header_op(OpKind::HEADER_DELETE, Target::HEADERS, name, Text::NONE);
    }

    /// [`MessageEvent::remove_header`] without a copy, as [`MessageEvent::set_header_borrowed`].
    #[inline]
    pub fn remove_header_borrowed<N: AsRef<[u8]> + ?Sized>(&self, name: &'c N) {
        self.header_op(
            OpKind::HEADER_DELETE,
            Target::HEADERS,
            Text::of(name),
            Text::NONE,
        );
    }

    /// Replaces the value of the header at an index of [`MessageEvent::headers`]; indices count before all
    /// operations (PXG-HDR-004).
    pub fn set_header_at(&self, index: usize, value: impl AsRef<[u8]>) {
        let value = self.copy(value.as_ref());
        self.push(
            OpKind::SET_AT,
            Target::HEADERS,
            index as u64,
            Text::NONE,
            value,
        );
    }

    /// Removes the header at an index, as [`MessageEvent::set_header_at`].
    pub fn remove_header_at(&self, index: usize) {
        self.push(
            OpKind::DELETE_AT,
            Target::HEADERS,
            index as u64,
            Text::NONE,
            Text::NONE,
        );
    }

    /// Leaves exactly one trailer `name` with `value`. Needs the feature TRAILERS_OUT of the direction, else it is
    /// skipped and counted (PXG-TRL-001).
    pub fn set_trailer(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (self.copy(name.as_ref()), self.copy(value.as_ref()));
        self.header_op(OpKind::HEADER_SET, Target::TRAILERS, name, value);
    }

    /// [`MessageEvent::set_trailer`] with a value formatted into the host's scratch.
    pub fn set_trailer_fmt(&self, name: impl AsRef<[u8]>, value: std::fmt::Arguments<'_>) {
        let (name, value) = (self.copy(name.as_ref()), self.format(value));
        self.header_op(OpKind::HEADER_SET, Target::TRAILERS, name, value);
    }

    /// Appends a trailer, as [`MessageEvent::set_trailer`].
    pub fn add_trailer(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (self.copy(name.as_ref()), self.copy(value.as_ref()));
        self.header_op(OpKind::HEADER_ADD, Target::TRAILERS, name, value);
    }

    /// Removes all trailers `name`, as [`MessageEvent::set_trailer`].
    pub fn remove_trailer(&self, name: impl AsRef<[u8]>) {
        let name = self.copy(name.as_ref());
        self.header_op(OpKind::HEADER_DELETE, Target::TRAILERS, name, Text::NONE);
    }

    /// Chooses the cluster that the request goes to. Needs the feature ROUTE; a cluster that the operator did not
    /// allow is an error of the stream.
    pub fn route_to(&self, cluster: impl AsRef<[u8]>) {
        let cluster = self.copy(cluster.as_ref());
        self.push(
            OpKind::ROUTE,
            Target::HEADERS,
            0,
            Text::of("cluster"),
            cluster,
        );
    }

    /// Routes the request again, after its path or authority was changed. Needs the feature ROUTE.
    pub fn recompute_route(&self) {
        self.push(
            OpKind::ROUTE,
            Target::HEADERS,
            0,
            Text::of("recompute"),
            Text::NONE,
        );
    }

    /// Begins a local reply: `return ev.reply(403).body("no\n").send()`. It is written into the host's scratch.
    #[must_use = "a reply does nothing until it is sent"]
    pub fn reply(&self, status: u16) -> ReplyBuilder<'_, 'c> {
        ReplyBuilder::new(self, status)
    }

    /// Holds this direction until the [`Pending`] is completed, from any thread:
    /// `let (verdict, pending) = ev.defer()?;`, hand `pending` to whoever decides, return `Ok(verdict)`.
    ///
    /// # Errors
    /// If the phase does not set `MAY_PEND`, or the event was deferred before.
    pub fn defer(&self) -> Result<(Verdict, Pending), FilterError> {
        (**self).defer()
    }

    fn set_body_mode(&self, mode: abi::BodyMode) {
        let dir = match self.phase() {
            Phase::RESPONSE_HEADERS | Phase::RESPONSE_BODY | Phase::RESPONSE_TRAILERS => {
                abi::DIR_RESPONSE
            }
            _ => abi::DIR_REQUEST,
        };
        // SAFETY: call lifetime.
        unsafe { (*self.out).body_mode[dir] = mode }
    }

    /// Hands what is passed to the transport before the next event. Needs the feature FLUSH.
    pub fn flush(&self) {
        // SAFETY: call lifetime.
        unsafe { (*self.out).flags.0 |= abi::ResultFlags::FLUSH.0 }
    }
}

impl HeadersEvent<'_> {
    /// The host does not know yet whether a body follows.
    #[must_use]
    pub fn is_end_unknown(&self) -> bool {
        self.has(EventFlags::EOS_UNKNOWN)
    }

    /// How this direction's body is delivered for this stream, instead of what the configuration says.
    pub fn body_mode(&self, mode: abi::BodyMode) {
        self.set_body_mode(mode);
    }

    /// How the response's body is delivered for this stream: legal in request events too.
    pub fn response_body_mode(&self, mode: abi::BodyMode) {
        // SAFETY: call lifetime.
        unsafe { (*self.out).body_mode[abi::DIR_RESPONSE] = mode }
    }

    /// The STREAM body of this direction may change its length: the host drops content-length and frames itself.
    pub fn resizes(&self) {
        // SAFETY: call lifetime.
        unsafe { (*self.out).flags.0 |= abi::ResultFlags::RESIZES.0 }
    }
}

/// The bytes of a body or of a connection, and operations on them.
macro_rules! body_views_and_ops {
    ($name:ident) => {
        impl<'c> $name<'c> {
            /// The pieces of the view, in order; at most 64.
            pub fn chunks(&self) -> impl Iterator<Item = &'c [u8]> + use<'c> {
                let raw = self.raw();
                // SAFETY: a view of the call, which outlives 'c.
                let chunks: &'c [Str] = unsafe { slice(raw.chunks, raw.n_chunks) };
                // SAFETY: as above.
                chunks.iter().map(|s| unsafe { bytes(s) })
            }

            /// Length of the view in bytes.
            #[must_use]
            pub fn len(&self) -> usize {
                self.chunks().map(<[u8]>::len).sum()
            }

            /// Whether the view is empty, as it may be at the end.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.chunks().all(<[u8]>::is_empty)
            }

            /// Absolute offset in the received bytes of the view's first one.
            #[must_use]
            pub fn offset(&self) -> u64 {
                self.raw().body_offset
            }

            /// The view in one piece: borrowed if the host holds it in one, else a copy.
            #[must_use]
            pub fn contiguous(&self) -> std::borrow::Cow<'c, [u8]> {
                let mut chunks = self.chunks();
                match (chunks.next(), chunks.next()) {
                    (None, _) => std::borrow::Cow::Borrowed(&[]),
                    (Some(only), None) => std::borrow::Cow::Borrowed(only),
                    _ => std::borrow::Cow::Owned(self.to_vec()),
                }
            }

            /// A copy of the view that outlives the call.
            #[must_use]
            pub fn to_vec(&self) -> Vec<u8> {
                let mut all = Vec::with_capacity(self.len());
                self.chunks().for_each(|c| all.extend_from_slice(c));
                all
            }

            /// Forwards the next `n` bytes. The cursor starts at the view's first byte.
            pub fn pass(&self, n: usize) {
                self.push(
                    OpKind::PASS,
                    Target::HEADERS,
                    n as u64,
                    Text::NONE,
                    Text::NONE,
                );
            }

            /// Discards the next `n` bytes.
            pub fn discard(&self, n: usize) {
                self.push(
                    OpKind::DROP,
                    Target::HEADERS,
                    n as u64,
                    Text::NONE,
                    Text::NONE,
                );
            }

            /// Puts bytes at the cursor, handed over without a copy.
            pub fn inject(&self, bytes: impl Into<Buffer>) {
                self.push_buf(
                    OpKind::INJECT,
                    Target::HEADERS,
                    0,
                    Text::NONE,
                    bytes.into().into_abi(),
                );
            }

            /// Puts bytes at the cursor, copied into the host's scratch: for small pieces.
            pub fn inject_copy(&self, bytes: impl AsRef<[u8]>) {
                let bytes = self.copy(bytes.as_ref());
                self.push(OpKind::INJECT, Target::HEADERS, 0, Text::NONE, bytes);
            }

            /// Puts bytes at the cursor without a copy: memory of the filter or of the stream's context.
            pub fn inject_borrowed<V: AsRef<[u8]> + ?Sized>(&self, bytes: &'c V) {
                self.push(
                    OpKind::INJECT,
                    Target::HEADERS,
                    0,
                    Text::NONE,
                    Text::of(bytes),
                );
            }

            /// Puts other bytes in the place of the whole view.
            pub fn replace(&self, bytes: impl Into<Buffer>) {
                self.discard(self.len());
                self.inject(bytes);
            }
        }
    };
}
body_views_and_ops!(BodyEvent);
body_views_and_ops!(DataEvent);

impl BodyEvent<'_> {
    /// The last body event, whether trailers follow or not.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.has(EventFlags::BODY_END)
    }

    /// The view is the whole body.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.has(EventFlags::WHOLE_BODY)
    }

    /// The body is longer than the limit; the view is all that is held. [`Verdict::Continue`] forwards it and goes on
    /// in mode STREAM; ask for SKIP with [`BodyEvent::body_mode`].
    #[must_use]
    pub fn is_over_limit(&self) -> bool {
        self.has(EventFlags::OVER_LIMIT)
    }

    /// The headers have not left: they can be read and changed.
    #[must_use]
    pub fn headers_held(&self) -> bool {
        self.has(EventFlags::HEADERS_HELD)
    }

    /// Changes the mode from here on: STREAM to SKIP, and over the limit WHOLE to STREAM or SKIP.
    pub fn body_mode(&self, mode: abi::BodyMode) {
        self.set_body_mode(mode);
    }
}

impl<'c> WakeEvent<'c> {
    /// The OR of the values of the wakes that led here.
    #[must_use]
    pub fn arg(&self) -> u64 {
        self.raw().arg
    }

    /// The streamed reply is below its watermark again.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.has(EventFlags::WRITABLE)
    }

    /// A reply can still be made now.
    #[must_use]
    pub fn can_reply(&self) -> bool {
        self.has(EventFlags::CAN_REPLY)
    }

    /// Begins a local reply, as [`MessageEvent::reply`].
    #[must_use = "a reply does nothing until it is sent"]
    pub fn reply(&self, status: u16) -> ReplyBuilder<'_, 'c> {
        ReplyBuilder::new(self, status)
    }

    /// Appends to the open reply; `end` ends it there.
    pub fn write(&self, bytes: impl Into<Buffer>, end: bool) {
        self.push_buf(
            OpKind::BODY_WRITE,
            Target::HEADERS,
            0,
            Text::NONE,
            bytes.into().into_abi(),
        );
        if end && self.n_ops() > 0 {
            // SAFETY: there is an operation that `push` wrote last.
            unsafe { (*self.next_op.get().sub(1)).flags = OpFlags::END }
        }
    }
}

impl<'c> LogEvent<'c> {
    /// The response's headers.
    #[must_use]
    pub fn response_headers(&self) -> Fields<'c> {
        let raw = self.raw();
        // SAFETY: a view of the call, which outlives 'c.
        unsafe { Fields::new(raw.fields, raw.n_fields) }
    }

    /// The response's trailers.
    #[must_use]
    pub fn response_trailers(&self) -> Fields<'c> {
        let raw = self.raw();
        // SAFETY: as above.
        unsafe { Fields::new(raw.trailers, raw.n_trailers) }
    }

    /// The request's headers.
    #[must_use]
    pub fn request_headers(&self) -> Fields<'c> {
        let raw = self.raw();
        // SAFETY: as above.
        unsafe { Fields::new(raw.peer_fields, raw.n_peer_fields) }
    }

    /// The request's trailers.
    #[must_use]
    pub fn request_trailers(&self) -> Fields<'c> {
        let raw = self.raw();
        // SAFETY: as above.
        unsafe { Fields::new(raw.peer_trailers, raw.n_peer_trailers) }
    }

    /// Why the stream ended.
    #[must_use]
    pub fn reason(&self) -> abi::EndReason {
        abi::EndReason((self.raw().arg & 0xff) as u8)
    }

    /// How the request ended.
    #[must_use]
    pub fn request_end(&self) -> abi::DirectionEnd {
        abi::DirectionEnd((self.raw().arg >> 8 & 0xf) as u8)
    }

    /// How the response ended.
    #[must_use]
    pub fn response_end(&self) -> abi::DirectionEnd {
        abi::DirectionEnd((self.raw().arg >> 12 & 0xf) as u8)
    }
}

impl ConnectionEvent<'_> {
    /// Holds the connection, as [`MessageEvent::defer`].
    ///
    /// # Errors
    /// As there.
    pub fn defer(&self) -> Result<(Verdict, Pending), FilterError> {
        (**self).defer()
    }

    /// At the end of the connection: why, as `PXG_END_*`.
    #[must_use]
    pub fn reason(&self) -> abi::EndReason {
        abi::EndReason((self.raw().arg & 0xff) as u8)
    }
}

impl DataEvent<'_> {
    /// Holds this direction, as [`MessageEvent::defer`].
    ///
    /// # Errors
    /// As there.
    pub fn defer(&self) -> Result<(Verdict, Pending), FilterError> {
        (**self).defer()
    }

    /// Nothing follows in this direction.
    #[must_use]
    pub fn is_end_of_stream(&self) -> bool {
        self.has(EventFlags::END_STREAM)
    }
}

/// A local reply in the host's scratch. Fields, text and small bodies are copied there; nothing is allocated.
pub struct ReplyBuilder<'e, 'c> {
    event: &'e Event<'c>,
    reply: *mut abi::Reply,
}

impl<'e, 'c> ReplyBuilder<'e, 'c> {
    fn new(event: &'e Event<'c>, status: u16) -> Self {
        let reply = event.alloc(size_of::<abi::Reply>()).cast::<abi::Reply>();
        if !reply.is_null() {
            // SAFETY: scratch of that size, aligned to 16.
            unsafe {
                reply.write(abi::Reply {
                    size: size_of::<abi::Reply>() as u32,
                    status: u32::from(status),
                    flags: abi::ReplyFlags(0),
                    grpc_status: 0,
                    fields: std::ptr::null(),
                    n_fields: 0,
                    body: std::ptr::null(),
                    n_body: 0,
                    trailers: std::ptr::null(),
                    n_trailers: 0,
                    details: Str::EMPTY,
                });
            }
        }
        Self { event, reply }
    }

    /// `None` if the host refused scratch: the call fails when it ends.
    fn raw(&mut self) -> Option<&mut abi::Reply> {
        // SAFETY: null, or a reply in scratch that only this builder reaches until it is sent.
        unsafe { self.reply.as_mut() }
    }

    /// Appends to an array in scratch. Its capacity is 8 or a power of two, so the count alone says when it is full.
    fn append<T: Copy>(event: &Event<'_>, array: &mut *const T, n: &mut u64, item: T) -> bool {
        if *n == 0 || (*n >= 8 && n.is_power_of_two()) {
            let cap = if *n == 0 { 8 } else { *n as usize * 2 };
            let grown = event.alloc(cap * size_of::<T>()).cast::<T>();
            if grown.is_null() {
                return false;
            }
            // SAFETY: n initialised elements move to a block of `cap` > n.
            unsafe { std::ptr::copy_nonoverlapping(*array, grown, *n as usize) };
            *array = grown;
        }
        // SAFETY: n < capacity, and the array is scratch that this builder allocated.
        unsafe { array.cast_mut().add(*n as usize).write(item) };
        *n += 1;
        true
    }

    /// Appends a header. Framing fields such as content-length are the host's (PXG-HDR-008).
    #[must_use]
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let event = self.event;
        let field = abi::Field {
            name: event.copy(name.as_ref()).str(),
            value: event.copy(value.as_ref()).str(),
        };
        if let Some(r) = self.raw() {
            Self::append(event, &mut r.fields, &mut r.n_fields, field);
        }
        self
    }

    /// Appends a trailer; needs the feature TRAILERS_OUT_RESPONSE.
    #[must_use]
    pub fn trailer(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let event = self.event;
        let field = abi::Field {
            name: event.copy(name.as_ref()).str(),
            value: event.copy(value.as_ref()).str(),
        };
        if let Some(r) = self.raw() {
            Self::append(event, &mut r.trailers, &mut r.n_trailers, field);
        }
        self
    }

    fn part(mut self, part: abi::Buf) -> Self {
        let event = self.event;
        let taken = match self.raw() {
            Some(r) => Self::append(event, &mut r.body, &mut r.n_body, part),
            None => false,
        };
        if !taken {
            // SAFETY: it did not get into the reply.
            drop(unsafe { Buffer::from_abi(part) });
        }
        self
    }

    /// Appends to the body, copied.
    #[must_use]
    pub fn body(self, bytes: impl AsRef<[u8]>) -> Self {
        let copy = self.event.copy(bytes.as_ref());
        self.part(abi::Buf::borrowed(copy.str()))
    }

    /// Appends to the body without a copy: literals, memory of the filter or of the stream's context.
    #[must_use]
    pub fn body_borrowed<V: AsRef<[u8]> + ?Sized>(self, bytes: &'c V) -> Self {
        self.part(abi::Buf::borrowed(Text::of(bytes).str()))
    }

    /// Appends to the body, handed over without a copy.
    #[must_use]
    pub fn body_owned(self, bytes: impl Into<Buffer>) -> Self {
        self.part(bytes.into().into_abi())
    }

    /// Makes it a gRPC reply with this status, for a gRPC request.
    #[must_use]
    pub fn grpc_status(mut self, status: i32) -> Self {
        if let Some(r) = self.raw() {
            r.grpc_status = status;
            r.flags.0 |= abi::ReplyFlags::GRPC.0;
        }
        self
    }

    /// The body follows with [`StreamHandle::write`] or [`WakeEvent::write`]. Needs the feature STREAM_REPLY.
    #[must_use]
    pub fn open(mut self) -> Self {
        if let Some(r) = self.raw() {
            r.flags.0 |= abi::ReplyFlags::OPEN.0;
        }
        self
    }

    /// Why, for the host's logs; never for clients (PXG-ERR-003).
    #[must_use]
    pub fn details(mut self, details: impl AsRef<[u8]>) -> Self {
        let details = self.event.copy(details.as_ref());
        if let Some(r) = self.raw() {
            r.details = details.str();
        }
        self
    }

    /// The verdict of this event.
    ///
    /// # Errors
    /// None; the type is that of the methods, so that `return ev.reply(403).send()` reads well.
    pub fn send(mut self) -> Outcome {
        if !self.event.sent_reply().is_null() {
            return Err(FilterError::new("two replies in one event"));
        }
        // SAFETY: call lifetime.
        unsafe { (*self.event.out).reply = self.reply }
        self.event.becomes(State::REPLIED);
        self.reply = std::ptr::null_mut();
        if self.event.sent_reply().is_null() {
            // `failed` is set: the text of that is the one to log.
            return Ok(Verdict::Continue);
        }
        Ok(Verdict::Reply(verdict::Sent(())))
    }
}

impl Drop for ReplyBuilder<'_, '_> {
    fn drop(&mut self) {
        let Some(reply) = self.raw() else { return };
        // SAFETY: the body parts are in scratch, written by this builder.
        for part in unsafe { slice(reply.body, reply.n_body) } {
            // SAFETY: the reply was not sent, so the host never sees it.
            drop(unsafe { Buffer::from_abi(*part) });
        }
    }
}

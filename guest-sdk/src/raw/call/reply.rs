//! A local reply in the making.

use proxy_golang_abi as abi;
use proxy_golang_abi::Str;

use super::{Event, State, Text};
use crate::raw::buffer::Buffer;
use crate::raw::view::slice;
use crate::{FilterError, Outcome, Verdict, verdict};

/// A local reply in the host's scratch. Fields, text and small bodies are copied there; nothing is allocated.
pub struct ReplyBuilder<'e, 'c> {
    event: &'e Event<'c>,
    reply: *mut abi::Reply,
}

impl<'e, 'c> ReplyBuilder<'e, 'c> {
    pub(super) fn new(event: &'e Event<'c>, status: u16) -> Self {
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

    /// The body follows with [`crate::StreamHandle::write`] or [`crate::WakeEvent::write`]. Needs the feature STREAM_REPLY.
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

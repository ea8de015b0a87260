//! The events of the phases: one type each, so that only what is legal there can be written.

use std::ops::Deref;

use proxy_golang_abi as abi;
use proxy_golang_abi::{EventFlags, OpFlags, OpKind, Phase, Str, Target};

use super::reply::ReplyBuilder;
use super::{Event, Text};
use crate::pending::Pending;
use crate::raw::buffer::Buffer;
use crate::raw::view::{Fields, bytes, slice};
use crate::{FilterError, Verdict};

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
            #[allow(dead_code)] // not every event that the macro makes uses it
            pub(in crate::raw) fn of<'e>(event: &'e Event<'c>) -> &'e Self {
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
    /// An answer to [`crate::StreamHandle::wake`], or the streamed reply has room again.
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

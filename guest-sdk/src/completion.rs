//! Results that are sent outside an event, and the handle of a stream.

use std::fmt::Display;

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, OpFlags, OpKind, Status, Target};

use crate::pending::HostError;
use crate::raw::{Buffer, Bytes, Host, Outgoing, OutgoingOp, OutgoingReply, Payload};

/// What completes a deferred event, or acts on a stream: an action with its operations, in the guest's own memory.
///
/// Names and values are copied into it; [`Buffer`]s are handed to the host.
#[derive(Debug)]
pub struct Completion(pub(crate) Outgoing);

impl Completion {
    /// Apply the operations and go on.
    #[must_use]
    pub fn resume() -> Self {
        Self(Outgoing::new(Action::CONTINUE))
    }

    /// Apply the operations, keep the rest, bring more, where the event allowed it; see [`crate::Verdict::More`].
    #[must_use]
    pub fn more(bytes: u64) -> Self {
        let mut out = Outgoing::new(Action::MORE);
        out.more_bytes = bytes;
        Self(out)
    }

    /// Abort both directions without a reply.
    #[must_use]
    pub fn reset() -> Self {
        Self(Outgoing::new(Action::RESET))
    }

    /// The filter failed: the operator's failure mode decides. The text is for the log.
    #[must_use]
    pub fn error(text: impl Display) -> Self {
        let mut out = Outgoing::new(Action::ERROR);
        out.error = out.copy(text.to_string().as_bytes());
        Self(out)
    }

    /// Answer the client.
    #[must_use]
    pub fn reply(reply: Reply) -> Self {
        let Reply(mut out) = reply;
        out.action = Action::REPLY;
        Self(out)
    }

    fn op(mut self, kind: OpKind, target: Target, u0: u64, key: &[u8], val: Option<&[u8]>) -> Self {
        let key = self.0.copy(key);
        let val = val.map_or(Payload::None, |v| Payload::Copied(self.0.copy(v)));
        self.0.ops.push(OutgoingOp {
            kind,
            flags: OpFlags(0),
            target,
            u0,
            key,
            val,
        });
        self
    }

    fn bytes_op(mut self, kind: OpKind, flags: OpFlags, target: Target, bytes: Buffer) -> Self {
        self.0.ops.push(OutgoingOp {
            kind,
            flags,
            target,
            u0: 0,
            key: Bytes::default(),
            val: Payload::Handed(bytes),
        });
        self
    }

    /// Leaves exactly one header `name` with `value`.
    #[must_use]
    pub fn set_header(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::HEADER_SET,
            Target::HEADERS,
            0,
            name.as_ref(),
            Some(value.as_ref()),
        )
    }

    /// Appends a header.
    #[must_use]
    pub fn add_header(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::HEADER_ADD,
            Target::HEADERS,
            0,
            name.as_ref(),
            Some(value.as_ref()),
        )
    }

    /// Removes all headers `name`.
    #[must_use]
    pub fn remove_header(self, name: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::HEADER_DELETE,
            Target::HEADERS,
            0,
            name.as_ref(),
            None,
        )
    }

    /// Replaces the value of the header at an index of the deferred event's view.
    #[must_use]
    pub fn set_header_at(self, index: usize, value: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::SET_AT,
            Target::HEADERS,
            index as u64,
            b"",
            Some(value.as_ref()),
        )
    }

    /// Removes the header at an index of the deferred event's view.
    #[must_use]
    pub fn remove_header_at(self, index: usize) -> Self {
        self.op(OpKind::DELETE_AT, Target::HEADERS, index as u64, b"", None)
    }

    /// Leaves exactly one trailer `name` with `value`.
    #[must_use]
    pub fn set_trailer(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::HEADER_SET,
            Target::TRAILERS,
            0,
            name.as_ref(),
            Some(value.as_ref()),
        )
    }

    /// Removes all trailers `name`.
    #[must_use]
    pub fn remove_trailer(self, name: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::HEADER_DELETE,
            Target::TRAILERS,
            0,
            name.as_ref(),
            None,
        )
    }

    /// Forwards the next `n` bytes of the deferred event's view.
    #[must_use]
    pub fn pass(self, n: usize) -> Self {
        self.op(OpKind::PASS, Target::HEADERS, n as u64, b"", None)
    }

    /// Discards the next `n` bytes of the deferred event's view.
    #[must_use]
    pub fn discard(self, n: usize) -> Self {
        self.op(OpKind::DROP, Target::HEADERS, n as u64, b"", None)
    }

    /// Puts bytes at the cursor in the deferred event's view.
    #[must_use]
    pub fn inject(self, bytes: impl Into<Buffer>) -> Self {
        self.bytes_op(OpKind::INJECT, OpFlags(0), Target::HEADERS, bytes.into())
    }

    /// Appends to the open reply; `end` ends it there.
    #[must_use]
    pub fn write(self, bytes: impl Into<Buffer>, end: bool) -> Self {
        let flags = if end { OpFlags::END } else { OpFlags(0) };
        self.bytes_op(OpKind::BODY_WRITE, flags, Target::HEADERS, bytes.into())
    }

    /// L4 by [`StreamHandle::apply`]: puts bytes on the way to the client.
    #[must_use]
    pub fn inject_to_client(self, bytes: impl Into<Buffer>) -> Self {
        self.bytes_op(OpKind::INJECT, OpFlags(0), Target::CLIENT, bytes.into())
    }

    /// L4 by [`StreamHandle::apply`]: puts bytes on the way to the upstream.
    #[must_use]
    pub fn inject_to_upstream(self, bytes: impl Into<Buffer>) -> Self {
        self.bytes_op(OpKind::INJECT, OpFlags(0), Target::UPSTREAM, bytes.into())
    }

    /// Sets metadata in the library's own namespace; see [`crate::Event::set_metadata`].
    #[must_use]
    pub fn set_metadata(self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::METADATA_SET,
            Target::HEADERS,
            0,
            key.as_ref(),
            Some(value.as_ref()),
        )
    }

    /// Chooses the cluster that the request goes to.
    #[must_use]
    pub fn route_to(self, cluster: impl AsRef<[u8]>) -> Self {
        self.op(
            OpKind::ROUTE,
            Target::HEADERS,
            0,
            b"cluster",
            Some(cluster.as_ref()),
        )
    }

    /// How the deferred direction's body is delivered from here on; as [`crate::HeadersEvent::body_mode`].
    #[must_use]
    pub fn body_mode(mut self, direction: crate::Direction, mode: abi::BodyMode) -> Self {
        let index = match direction {
            crate::Direction::Request => abi::DIR_REQUEST,
            crate::Direction::Response => abi::DIR_RESPONSE,
        };
        self.0.body_mode[index] = mode;
        self
    }

    /// No further event of these phases for this stream.
    #[must_use]
    pub fn unsubscribe(mut self, phase: abi::Phase) -> Self {
        self.0.unsubscribe |= abi::phase_bit(phase);
        self
    }

    /// Hands what is passed to the transport before the next event.
    #[must_use]
    pub fn flush(mut self) -> Self {
        self.0.flags.0 |= abi::ResultFlags::FLUSH.0;
        self
    }
}

/// A local reply in the guest's own memory, for [`Completion::reply`].
#[derive(Debug)]
pub struct Reply(Outgoing);

impl Reply {
    /// A reply with that status, 200 to 599.
    #[must_use]
    pub fn new(status: u16) -> Self {
        let mut out = Outgoing::new(Action::REPLY);
        out.reply = Some(OutgoingReply {
            status: u32::from(status),
            ..OutgoingReply::default()
        });
        Self(out)
    }

    fn edit(mut self, f: impl FnOnce(&mut Outgoing, &mut OutgoingReply)) -> Self {
        let mut reply = self.0.reply.take().unwrap_or_default();
        f(&mut self.0, &mut reply);
        self.0.reply = Some(reply);
        self
    }

    /// Appends a header. Framing fields are the host's (PXG-HDR-008).
    #[must_use]
    pub fn header(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.edit(|out, reply| {
            let field = (out.copy(name.as_ref()), out.copy(value.as_ref()));
            reply.fields.push(field);
        })
    }

    /// Appends a trailer; needs the feature TRAILERS_OUT_RESPONSE.
    #[must_use]
    pub fn trailer(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.edit(|out, reply| {
            let field = (out.copy(name.as_ref()), out.copy(value.as_ref()));
            reply.trailers.push(field);
        })
    }

    /// Appends to the body.
    #[must_use]
    pub fn body(self, bytes: impl Into<Buffer>) -> Self {
        self.edit(|_, reply| reply.body.push(bytes.into()))
    }

    /// Makes it a gRPC reply with this status, for a gRPC request.
    #[must_use]
    pub fn grpc_status(self, status: i32) -> Self {
        self.edit(|_, reply| {
            reply.grpc_status = status;
            reply.flags.0 |= abi::ReplyFlags::GRPC.0;
        })
    }

    /// The body follows with [`StreamHandle::write`]. Needs the feature STREAM_REPLY.
    #[must_use]
    pub fn open(self) -> Self {
        self.edit(|_, reply| reply.flags.0 |= abi::ReplyFlags::OPEN.0)
    }

    /// Why, for the host's logs; never for clients.
    #[must_use]
    pub fn details(self, details: impl AsRef<[u8]>) -> Self {
        self.edit(|out, reply| reply.details = out.copy(details.as_ref()))
    }
}

/// How far a [`StreamHandle::apply`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Taken.
    Taken,
    /// Taken, but the streamed reply is above its watermark: wait for a wake with
    /// [`crate::WakeEvent::is_writable`] before the next write.
    Full,
}

/// A stream, to act on outside its events: from any thread, and for ever without danger, since a late use is answered
/// with [`HostError::Stale`].
#[derive(Clone, Copy, Debug)]
pub struct StreamHandle {
    host: Host,
    stream: u64,
}

impl StreamHandle {
    pub(crate) fn new(host: Host, stream: u64) -> Self {
        Self { host, stream }
    }

    /// The host's value for the stream; unique while the stream lives.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.stream
    }

    /// The host, to log to.
    #[must_use]
    pub fn host(&self) -> Host {
        self.host
    }

    /// Leads to at least one event for [`crate::OnWake`], with `arg` OR-ed into its argument. Needs the feature APPLY.
    ///
    /// # Errors
    /// [`HostError::Stale`] after the stream's end.
    pub fn wake(&self, arg: u64) -> Result<(), HostError> {
        let status = self.host.wake(self.stream, arg);
        if status.0 >= 0 {
            Ok(())
        } else {
            Err(HostError::of(status))
        }
    }

    /// Acts on the stream: a reply, a reset, metadata, writes to an open reply. Needs the feature APPLY.
    ///
    /// # Errors
    /// [`HostError::Stale`] after the stream's end; [`HostError::Limit`] for a write above the watermark.
    pub fn apply(&self, what: Completion) -> Result<Applied, HostError> {
        if !self.host.can_apply() {
            return Err(HostError::Unsupported);
        }
        match what.0.apply(self.host, self.stream) {
            Status::FULL => Ok(Applied::Full),
            status if status.0 >= 0 => Ok(Applied::Taken),
            status => Err(HostError::of(status)),
        }
    }

    /// Appends to the open reply; `end` ends it there.
    ///
    /// # Errors
    /// As [`StreamHandle::apply`].
    pub fn write(&self, bytes: impl Into<Buffer>, end: bool) -> Result<Applied, HostError> {
        self.apply(Completion::resume().write(bytes, end))
    }
}

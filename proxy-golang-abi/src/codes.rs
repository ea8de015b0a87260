//! Open integers: a value that this version does not know is carried, never undefined.

/// What a function answers. 0 and positive numbers are successes.
#[must_use]
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub i32);
impl Status {
    /// Done, or accepted.
    pub const OK: Self = Self(0);
    /// `apply`: taken, but the stream is above its watermark; a WAKE flagged WRITABLE follows.
    pub const FULL: Self = Self(1);
    /// The token or stream has ended, belongs to another guest, or never was. Safe to get, for ever.
    pub const STALE: Self = Self(-1);
    /// Not in this state: for example `complete` with PENDING.
    pub const STATE: Self = Self(-2);
    /// An argument is out of its range. The text is in the host's log.
    pub const ARG: Self = Self(-3);
    /// A feature, flag or kind that the other side does not have.
    pub const UNSUPPORTED: Self = Self(-4);
    /// Over a limit.
    pub const LIMIT: Self = Self(-5);
    /// Called on a thread that the function's tag does not allow.
    pub const THREAD: Self = Self(-6);
    /// Another major version.
    pub const VERSION: Self = Self(-7);
    /// No such filter, attribute, cluster or metric.
    pub const NOTFOUND: Self = Self(-8);
    /// The callee failed; a caught panic, for example.
    pub const INTERNAL: Self = Self(-9);
}

/// Bits of `pxg_str.flags`. In a `pxg_buf` they also carry the lifetime of the bytes.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct StrFlags(pub u32);
impl StrFlags {
    /// Not there; differs from empty.
    pub const ABSENT: Self = Self(0x1);
    /// Never logged, traced or indexed.
    pub const SENSITIVE: Self = Self(0x2);
    /// In a `pxg_buf`: valid until the next call into the same guest on the same thread.
    pub const BORROWED: Self = Self(0x0);
    /// In a `pxg_buf`: lives as long as the process.
    pub const STATIC: Self = Self(0x10);
    /// In a `pxg_buf`: the host releases it exactly once, on any thread.
    pub const OWNED: Self = Self(0x20);
}

/// What an operation does.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OpKind(pub u16);
impl OpKind {
    /// Leave exactly one field `key` with `val`. Targets: own headers, own trailers.
    pub const HEADER_SET: Self = Self(1);
    /// Append a field `key` with `val`.
    pub const HEADER_ADD: Self = Self(2);
    /// Remove all fields `key`.
    pub const HEADER_DELETE: Self = Self(3);
    /// Replace the value of the field at index `u0` of the delivered view by `val`.
    pub const SET_AT: Self = Self(4);
    /// Remove the field at index `u0` of the delivered view.
    pub const DELETE_AT: Self = Self(5);
    /// Forward the next `u0` bytes of the view. The cursor starts at the view's first byte.
    pub const PASS: Self = Self(8);
    /// Discard the next `u0` bytes of the view.
    pub const DROP: Self = Self(9);
    /// Put `val` at the cursor.
    pub const INJECT: Self = Self(10);
    /// Append `val` to the streamed reply; with [`OpFlags::END`] it ends there.
    pub const BODY_WRITE: Self = Self(11);
    /// Set the metadata `key` to `val`; see `u0`.
    pub const METADATA_SET: Self = Self(16);
    /// Record `u0` for the metric `target`.
    pub const METRIC: Self = Self(17);
    /// `key` "cluster" with `val` chooses the cluster; `key` "recompute" routes again.
    pub const ROUTE: Self = Self(18);
}

/// Flags of an operation.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OpFlags(pub u16);
impl OpFlags {
    /// A host that does not know or cannot do this operation fails the stream; without it the operation is skipped
    /// and counted.
    pub const MUST: Self = Self(0x1);
    /// On BODY_WRITE: the streamed reply ends here.
    pub const END: Self = Self(0x2);
}

/// What an operation acts on.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Target(pub u32);
impl Target {
    /// The headers of the event's own direction.
    pub const HEADERS: Self = Self(0);
    /// The trailers of the event's own direction.
    pub const TRAILERS: Self = Self(1);
    /// INJECT on L4: towards the upstream.
    pub const UPSTREAM: Self = Self(2);
    /// INJECT on L4: towards the client.
    pub const CLIENT: Self = Self(3);
}

/// Where in its life a stream is. The bit of a phase in a mask is `1 << phase`; 0 is invalid, 16 to 31 are for L4.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Phase(pub u32);
impl Phase {
    /// The head of the request.
    pub const REQUEST_HEADERS: Self = Self(1);
    /// Bytes of the request's body that have not been passed yet.
    pub const REQUEST_BODY: Self = Self(2);
    /// The request's trailers.
    pub const REQUEST_TRAILERS: Self = Self(3);
    /// The head of the response.
    pub const RESPONSE_HEADERS: Self = Self(4);
    /// Bytes of the response's body that have not been passed yet.
    pub const RESPONSE_BODY: Self = Self(5);
    /// The response's trailers.
    pub const RESPONSE_TRAILERS: Self = Self(6);
    /// Both directions have ended; the last event of a stream.
    pub const LOG: Self = Self(7);
    /// An answer to `wake`, or the streamed reply has room again.
    pub const WAKE: Self = Self(8);
    /// A connection, before any byte of it.
    pub const L4_OPEN: Self = Self(16);
    /// Bytes from the client.
    pub const L4_DOWNSTREAM: Self = Self(17);
    /// Bytes from the upstream.
    pub const L4_UPSTREAM: Self = Self(18);
    /// The connection has ended.
    pub const L4_CLOSE: Self = Self(19);
}

/// Flags of an event.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventFlags(pub u32);
impl EventFlags {
    /// Nothing follows in this direction. At most once per direction.
    pub const END_STREAM: Self = Self(0x0001);
    /// The last body event, whether trailers follow or not.
    pub const BODY_END: Self = Self(0x0002);
    /// The view is the whole body.
    pub const WHOLE_BODY: Self = Self(0x0004);
    /// The headers have not left: header operations are legal and `fields` is filled.
    pub const HEADERS_HELD: Self = Self(0x0008);
    /// The body is longer than `max_body`; the view is all that is held.
    pub const OVER_LIMIT: Self = Self(0x0010);
    /// A reply can still be made now. Judged again when the result is applied.
    pub const CAN_REPLY: Self = Self(0x0020);
    /// The response is a local reply of the host or of another guest.
    pub const LOCAL_ORIGIN: Self = Self(0x0040);
    /// The host does not know yet whether a body follows.
    pub const EOS_UNKNOWN: Self = Self(0x0080);
    /// The exchange has become a tunnel: both bodies are skipped unless UPGRADE_BODY.
    pub const UPGRADED: Self = Self(0x0100);
    /// The stream has been redirected inside the host.
    pub const REDIRECTED: Self = Self(0x0200);
    /// The stream is a subrequest of the host.
    pub const SUBREQUEST: Self = Self(0x0400);
    /// The first event of this direction after a completion.
    pub const RESUMED: Self = Self(0x0800);
    /// WAKE: the streamed reply is below its watermark again.
    pub const WRITABLE: Self = Self(0x1000);
}

/// What a guest decides. 0 is invalid and an error.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Action(pub u32);
impl Action {
    /// Preset by the host: the guest decided nothing.
    pub const UNSET: Self = Self(0);
    /// Apply the operations and go on.
    pub const CONTINUE: Self = Self(1);
    /// Hold; `complete` or `on_cancel` follows. Carries no operations and no reply.
    pub const PENDING: Self = Self(2);
    /// Keep the rest of the view, or the headers, and bring more.
    pub const MORE: Self = Self(3);
    /// Answer the client with `reply`.
    pub const REPLY: Self = Self(4);
    /// Abort both directions without a reply.
    pub const RESET: Self = Self(5);
    /// The guest failed; the failure mode decides.
    pub const ERROR: Self = Self(6);
}

/// How a direction's body reaches a guest.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BodyMode(pub u32);
impl BodyMode {
    /// In a result: unchanged. In a configuration: SKIP.
    pub const UNSET: Self = Self(0);
    /// Nothing is delivered.
    pub const SKIP: Self = Self(1);
    /// Bytes as they come.
    pub const STREAM: Self = Self(2);
    /// One event with the whole body, the headers still held.
    pub const WHOLE: Self = Self(3);
    /// A look after forwarding: nothing can be held or changed.
    pub const OBSERVE: Self = Self(4);
}

/// Index of the request in arrays that have one element per direction.
pub const DIR_REQUEST: usize = 0;
/// Index of the response in arrays that have one element per direction.
pub const DIR_RESPONSE: usize = 1;

/// Flags of a result.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResultFlags(pub u32);
impl ResultFlags {
    /// While the headers are held: a STREAM body of this direction may change its length.
    pub const RESIZES: Self = Self(0x1);
    /// Hand what was passed to the transport before the next event.
    pub const FLUSH: Self = Self(0x2);
}

/// Flags of a reply.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReplyFlags(pub u32);
impl ReplyFlags {
    /// `grpc_status` counts, and the reply is made a gRPC one for a gRPC request.
    pub const GRPC: Self = Self(0x1);
    /// The body follows by `apply` with BODY_WRITE.
    pub const OPEN: Self = Self(0x2);
    /// Hand the reply to the transport at once.
    pub const FLUSH: Self = Self(0x4);
}

/// Flags of `pxg_config_in`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConfigInFlags(pub u32);
impl ConfigInFlags {
    /// Validate only: no threads, sockets or other side effects. The configuration will be dropped, never used.
    pub const VALIDATE_ONLY: Self = Self(0x1);
}

/// Flags of `pxg_config_out`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConfigFlags(pub u32);
impl ConfigFlags {
    /// One direction may go on while the other pends.
    pub const DUPLEX: Self = Self(0x1);
    /// A STREAM request body may change its length.
    pub const RESIZES_REQUEST: Self = Self(0x2);
    /// A STREAM response body may change its length.
    pub const RESIZES_RESPONSE: Self = Self(0x4);
    /// Response events carry the request's fields as `peer_fields`.
    pub const WANT_PEER_FIELDS: Self = Self(0x8);
    /// Response phases also for streams whose request never reached this filter.
    pub const ORPHAN: Self = Self(0x10);
    /// Subrequests of the host are filtered too.
    pub const SUBREQUESTS: Self = Self(0x20);
    /// Body events go on after an upgrade.
    pub const UPGRADE_BODY: Self = Self(0x40);
}

/// Flags of `pxg_attr_want`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AttrFlags(pub u32);
impl AttrFlags {
    /// A host that never has this attribute refuses the configuration.
    pub const REQUIRED: Self = Self(0x1);
}

/// Flags of `pxg_guest`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GuestFlags(pub u32);
impl GuestFlags {
    /// A panic in this guest is not contained: C, Zig, `panic=abort`.
    pub const ABORTS: Self = Self(0x1);
}

/// LOG's `arg`, bits 0 to 7: why the stream ended.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EndReason(pub u8);
impl EndReason {
    /// Both directions ran to their ends.
    pub const COMPLETE: Self = Self(1);
    /// The client went away.
    pub const CLIENT_ABORT: Self = Self(2);
    /// The upstream failed after the stream had been sent to it.
    pub const UPSTREAM_RESET: Self = Self(3);
    /// A time limit of the host.
    pub const TIMEOUT: Self = Self(4);
    /// A guest or the host replied locally.
    pub const REPLIED: Self = Self(5);
    /// A guest failed or reset the stream, or the host failed.
    pub const ERROR: Self = Self(6);
}

/// LOG's `arg`, bits 8 to 11 for the request and 12 to 15 for the response: how a direction ended.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DirectionEnd(pub u8);
impl DirectionEnd {
    /// It never began.
    pub const NEVER_BEGAN: Self = Self(0);
    /// Complete.
    pub const COMPLETE: Self = Self(1);
    /// Cut by its sender.
    pub const SENDER: Self = Self(2);
    /// Cut by its receiver.
    pub const RECEIVER: Self = Self(3);
    /// Cut by the host or by a guest.
    pub const PROXY: Self = Self(4);
}

/// Log levels, of `log` and of `pxg_page.log_level`.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogLevel(pub u32);
impl LogLevel {
    /// Every step.
    pub const TRACE: Self = Self(0);
    /// For the filter's author.
    pub const DEBUG: Self = Self(1);
    /// For the operator.
    pub const INFO: Self = Self(2);
    /// Something is off; the stream goes on.
    pub const WARN: Self = Self(3);
    /// Something failed.
    pub const ERROR: Self = Self(4);
    /// Nothing is logged.
    pub const OFF: Self = Self(5);
}

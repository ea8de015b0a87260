use crate::{Action, BodyMode, Buf, EventFlags, Field, Op, Phase, ReplyFlags, ResultFlags, Str};

/// A local reply. Lent by the guest for one call: borrowed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    /// Size of the struct as its writer knows it, in bytes.
    pub size: u32,
    /// 200 to 599.
    pub status: u32,
    /// `PXG_REPLY_*`.
    pub flags: ReplyFlags,
    /// Counts only with [`ReplyFlags::GRPC`].
    pub grpc_status: i32,
    /// Borrowed. The host adds framing fields itself and refuses them here.
    pub fields: *const Field,
    /// Number of `fields`.
    pub n_fields: u64,
    /// The body's parts in order; each says its own lifetime.
    pub body: *const Buf,
    /// Number of `body` parts.
    pub n_body: u64,
    /// Borrowed. Needs the feature TRAILERS_OUT_RESPONSE; otherwise skipped and counted.
    pub trailers: *const Field,
    /// Number of `trailers`.
    pub n_trailers: u64,
    /// For logs, never for clients. Borrowed.
    pub details: Str,
}

/// What happens to a stream. Every pointer in it is a view: it dies when `on_event` returns (PXG-MEM-002).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Size of the struct as the host knows it, in bytes.
    pub size: u32,
    /// `PXG_PHASE_*`.
    pub phase: Phase,
    /// `PXG_EV_*`.
    pub flags: EventFlags,
    /// Index of the worker that the stream lives on.
    pub worker: u32,
    /// What `on_config_new` answered.
    pub config: u64,
    /// The guest's slot for this stream, 0 at first.
    pub user: u64,
    /// Handle of the stream for `apply` and `wake`, valid until just before `on_stream_end`.
    pub stream: u64,
    /// For `complete`; 0 where the phase is not in `pend_phases`. Valid from the entry of `on_event`.
    pub token: u64,
    /// WAKE: the OR of the wakes' values. LOG: the end as `PXG_END_*` and `PXG_DIREND_*`.
    pub arg: u64,
    /// The headers of this direction, in HEADERS events and while HEADERS_HELD; in LOG the response's.
    pub fields: *const Field,
    /// Number of `fields`.
    pub n_fields: u64,
    /// The trailers of this direction, in TRAILERS events and with WHOLE_BODY; in LOG the response's.
    pub trailers: *const Field,
    /// Number of `trailers`.
    pub n_trailers: u64,
    /// The request's headers, in response events with WANT_PEER_FIELDS and always in LOG.
    pub peer_fields: *const Field,
    /// Number of `peer_fields`.
    pub n_peer_fields: u64,
    /// The request's trailers, as `peer_fields`.
    pub peer_trailers: *const Field,
    /// Number of `peer_trailers`.
    pub n_peer_trailers: u64,
    /// Every byte received and not yet passed, in at most 64 pieces.
    pub chunks: *const Str,
    /// Number of `chunks`.
    pub n_chunks: u64,
    /// Absolute offset in the received body of the view's first byte.
    pub body_offset: u64,
    /// The configuration's attributes in its order; ABSENT where unknown here.
    pub attrs: *const Str,
    /// Number of `attrs`.
    pub n_attrs: u64,
}

/// What a guest decides. The host presets all of it: action UNSET, `user` as in the event, the rest 0; and it lends
/// scratch memory for the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EventResult {
    /// Size of the struct as its writer knows it, in bytes.
    pub size: u32,
    /// `PXG_ACT_*`.
    pub action: Action,
    /// `PXG_RES_*`.
    pub flags: ResultFlags,
    /// Zero.
    pub reserved0: u32,
    /// The guest's slot from now on. Ignored in `complete` and `apply`.
    pub user: u64,
    /// The operations, one array. Borrowed, or `scratch_ops`.
    pub ops: *const Op,
    /// Number of `ops`.
    pub n_ops: u64,
    /// With REPLY; null otherwise. Borrowed.
    pub reply: *const Reply,
    /// Mask of phases that this guest no longer wants for this stream.
    pub unsubscribe: u64,
    /// New body modes per direction; UNSET leaves as is.
    pub body_mode: [BodyMode; 2],
    /// With MORE: how many further bytes are worth an event; 0 leaves the pace to the host.
    pub more_bytes: u64,
    /// With PENDING: a wish for the deadline in nanoseconds; 0 is the configuration's, and the host's limit applies.
    pub pend_ns: u64,
    /// With ERROR: for the log. Borrowed.
    pub error: Str,
    /// \[in-call\] Lent by the host: at least 32 operations, zeros or earlier operations, never other bytes.
    pub scratch_ops: *mut Op,
    /// Capacity of `scratch_ops`, in operations.
    pub scratch_ops_cap: u64,
    /// \[in-call\] Lent by the host: at least 4096 bytes, 16-aligned, content undefined.
    pub scratch: *mut u8,
    /// Capacity of `scratch`, in bytes.
    pub scratch_cap: u64,
}

//! What a driver says and hears.

use bytes::Bytes;
use proxy_golang_abi::Phase;

use super::super::guest::Attributes;
use super::super::worker::Worker;
use super::Failure;

/// A direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    /// From the client to the upstream.
    Request = 0,
    /// From the upstream to the client.
    Response = 1,
}

impl Dir {
    pub(super) const BOTH: [Self; 2] = [Self::Request, Self::Response];

    pub(super) const fn peer(self) -> Self {
        match self {
            Self::Request => Self::Response,
            Self::Response => Self::Request,
        }
    }

    pub(super) const fn phase(self, part: PartOf) -> Phase {
        match (self, part) {
            (Self::Request, PartOf::Headers) => Phase::REQUEST_HEADERS,
            (Self::Request, PartOf::Body) => Phase::REQUEST_BODY,
            (Self::Request, PartOf::Trailers) => Phase::REQUEST_TRAILERS,
            (Self::Response, PartOf::Headers) => Phase::RESPONSE_HEADERS,
            (Self::Response, PartOf::Body) => Phase::RESPONSE_BODY,
            (Self::Response, PartOf::Trailers) => Phase::RESPONSE_TRAILERS,
        }
    }
}

/// What of a message an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartOf {
    Headers,
    Body,
    Trailers,
}

/// How long a message's body is, as far as its head tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none. For a response: there can't be one (HEAD, 204, 304, 101).
    None,
    /// So many bytes. `Exact(0)` is a message that ends with its head and could have had a body.
    Exact(u64),
    /// Until its end.
    Unknown,
}

impl BodyLength {
    /// Whether the head is also the message's end.
    #[inline]
    pub(super) const fn ends(self) -> bool {
        matches!(self, Self::None | Self::Exact(0))
    }
}

/// A part of a message for the driver to send on.
#[derive(Debug)]
pub enum Part<H> {
    /// The head, with what the driver frames by. With `end` nothing follows.
    Head {
        /// Pseudo-headers and fields.
        head: H,
        /// The body's length after all guests.
        length: BodyLength,
        /// Nothing follows: no data, trailers or [`Part::End`].
        end: bool,
        /// The host or a guest made it.
        local: bool,
    },
    /// Body bytes.
    Data(Bytes),
    /// The trailers, which are also the end.
    Trailers(H),
    /// The end.
    End,
}

/// Something for the driver to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Signal {
    /// Send to this cluster, or (`None`) route again by the headers that come next.
    Route(Option<Bytes>),
    /// Nothing more of the request is sent, and what the upstream sends is discarded.
    CancelUpstream,
    /// Abort the client's side after what was already given out.
    ResetClient,
    /// Hand what was given out to the transport at once.
    Flush(Dir),
    /// A guest failed on this stream: for the log.
    GuestFailed(Box<Failure>),
    /// LOG and `on_stream_end` are done: drop the stream.
    Finished,
}

/// How a direction was cut from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its sender died.
    Sender,
    /// Its receiver died.
    Receiver,
    /// A time limit of the host.
    Timeout,
}

/// What the engine needs from its surroundings during a call.
pub struct Cx<'a> {
    /// The thread that the stream lives on.
    pub worker: &'a mut Worker,
    /// The host's attributes of this stream.
    pub attrs: &'a dyn Attributes,
}

/// Limits of one stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Bytes that wait for the driver before [`Stream::wants`](super::Stream::wants) says no.
    pub buffer: u64,
    /// How long bytes may be kept from a guest that asked for MORE, in nanoseconds (the hold time of the spec).
    pub hold_time_ns: u64,
    /// Most operations in one batch.
    pub max_ops: usize,
    /// Most fields that a message may have after a batch.
    pub max_fields: usize,
    /// Status of the reply when a guest fails closed: 500 to 599.
    pub failure_status: u16,
    /// The driver says when the stream is over, by [`Stream::close`](super::Stream::close): until then LOG waits.
    pub driver_closes: bool,
    /// Whether trailers can be given to a message that came without.
    pub adds_trailers: bool,
    /// Whether [`Stream::trace`](super::Stream::trace) is kept.
    pub trace: bool,
}

impl Default for StreamLimits {
    fn default() -> Self {
        Self {
            buffer: 64 * 1024,
            hold_time_ns: 100_000_000,
            max_ops: 4096,
            max_fields: 256,
            failure_status: 500,
            driver_closes: false,
            adds_trailers: true,
            trace: false,
        }
    }
}

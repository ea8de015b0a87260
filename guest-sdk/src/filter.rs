//! What a filter is: one trait for the configuration, and one small trait for each phase that it takes part in.

use std::fmt::Display;

use crate::raw::{
    BodyEvent, ConnectionEvent, DataEvent, HeadersEvent, LogEvent, TrailersEvent, WakeEvent,
};
use crate::{BodyMode, ConfigError, ConfigInput, Setup};

/// A filter's configuration: made once for each place where the operator uses the filter, then shared by all workers.
///
/// The phases that it takes part in are the traits that it implements ([`OnRequestHeaders`], [`OnResponseBody`], ...);
/// [`crate::export!`] finds them at compile time, and a phase without an impl never costs a crossing.
pub trait Filter: Sized + Send + Sync + 'static {
    /// What one stream remembers from event to event; `()` if nothing. Made before the stream's first event and
    /// dropped after its last. Events of one stream never overlap, so a method gets it as `&mut`.
    type Ctx: Default + Send + 'static;

    /// Makes a configuration from what the operator wrote. `setup` begins with the phases that the type handles;
    /// change what depends on the configuration, and ask for attributes and limits.
    ///
    /// # Errors
    /// Refuses the configuration; the text is for the operator: what was found, what was expected, what to do.
    fn configure(input: &ConfigInput<'_>, setup: &mut Setup) -> Result<Self, ConfigError>;

    /// A deferred event of this stream will not be completed any more: the client went away, or a deadline passed.
    /// The event's [`crate::Pending`] knows already. Must not wait for another thread.
    fn on_cancel(&self, _ctx: &mut Self::Ctx) {}
}

/// What a filter's method answers. Any error becomes an error of this stream alone, and the failure mode that the
/// operator chose decides; its text goes to the log, never to the client.
pub type Outcome = Result<Verdict, FilterError>;

/// What to do with an event's direction.
#[derive(Debug)]
pub enum Verdict {
    /// Apply the operations and go on; of a body view, pass what the operations left.
    Continue,
    /// Apply the operations, keep the headers or the rest of the view, and bring more: after that many further bytes,
    /// with 0 at the host's pace. Not at the end of a body.
    More(u64),
    /// Answer the client: what [`crate::ReplyBuilder::send`] answered.
    Reply(verdict::Sent),
    /// Abort both directions without a reply. Of the operations only metadata and metrics count.
    Reset,
    /// Hold the direction: what [`crate::MessageEvent::defer`] answered.
    Pending(verdict::Deferred),
}

/// Proofs that a verdict carries.
pub mod verdict {
    /// A reply was sent.
    #[derive(Debug)]
    pub struct Sent(pub(crate) ());
    /// The event was deferred.
    #[derive(Debug)]
    pub struct Deferred(pub(crate) ());
}

/// Why a filter failed on a stream; `?` makes one from every error.
#[derive(Debug)]
pub struct FilterError(Box<Text>);

/// Boxed, so that an error is one pointer and an [`Outcome`] two words.
#[derive(Debug)]
struct Text(Box<str>);

impl FilterError {
    /// An error with a text for the log.
    #[must_use]
    pub fn new(text: impl Display) -> Self {
        Self(Box::new(Text(text.to_string().into_boxed_str())))
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0.0
    }
}

impl<E: std::error::Error> From<E> for FilterError {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        Self(Box::new(Text(text.into_boxed_str())))
    }
}

/// What methods may return; not for implementing.
pub(crate) trait Returned {
    /// As an outcome.
    fn into_outcome(self) -> Outcome;
}
impl Returned for Outcome {
    #[inline(always)]
    fn into_outcome(self) -> Outcome {
        self
    }
}
impl Returned for () {
    #[inline(always)]
    fn into_outcome(self) -> Outcome {
        Ok(Verdict::Continue)
    }
}

macro_rules! phase_traits {
    ($($(#[$doc:meta])* $name:ident, $method:ident($event:ident) $(, $extra:ident)*;)*) => {
        $(
            $(#[$doc])*
            pub trait $name: Filter {
                $(phase_traits!(@$extra);)*

                /// Handles the event. `'c` is the lifetime of what the methods named `_borrowed` take; an impl that
                /// needs none of them leaves it out:
                #[doc = concat!("`fn ", stringify!($method), "(&self, ctx: &mut Self::Ctx, ev: &", stringify!($event), "<'_>) -> Outcome`.")]
                ///
                /// # Errors
                /// Fails this stream; see [`Outcome`].
                fn $method<'c>(&'c self, ctx: &'c mut Self::Ctx, ev: &$event<'c>) -> Outcome;
            }
        )*
    };
    (@pend) => {
        /// Whether the method may defer the event. Needs the feature PEND of the phase, or the configuration is
        /// refused.
        const MAY_PEND: bool = false;
    };
    (@body) => {
        /// How the body is delivered; [`Setup::body_mode`] changes it for a configuration, and
        /// [`HeadersEvent::body_mode`] for a stream.
        const MODE: BodyMode;
    };
}

phase_traits! {
    /// The request's head. Always the first event of a stream that has it.
    OnRequestHeaders, on_request_headers(HeadersEvent), pend;
    /// The request's body.
    OnRequestBody, on_request_body(BodyEvent), body, pend;
    /// The request's trailers.
    OnRequestTrailers, on_request_trailers(TrailersEvent), pend;
    /// The response's head.
    OnResponseHeaders, on_response_headers(HeadersEvent), pend;
    /// The response's body.
    OnResponseBody, on_response_body(BodyEvent), body, pend;
    /// The response's trailers.
    OnResponseTrailers, on_response_trailers(TrailersEvent), pend;
    /// A [`crate::StreamHandle::wake`] arrived, or the streamed reply has room again.
    OnWake, on_wake(WakeEvent);
    /// L4: a connection, before any byte of it.
    OnConnection, on_connection(ConnectionEvent), pend;
    /// L4: bytes from the client.
    OnDownstreamData, on_downstream_data(DataEvent), pend;
    /// L4: bytes from the upstream.
    OnUpstreamData, on_upstream_data(DataEvent), pend;
}

/// The end of a stream, after both directions ended: the place for access logs and metrics.
pub trait OnLog: Filter {
    /// Handles the event.
    fn on_log<'c>(&'c self, ctx: &'c mut Self::Ctx, ev: &LogEvent<'c>);
}

/// L4: the end of a connection.
pub trait OnConnectionEnd: Filter {
    /// Handles the event.
    fn on_connection_end<'c>(&'c self, ctx: &'c mut Self::Ctx, ev: &ConnectionEvent<'c>);
}

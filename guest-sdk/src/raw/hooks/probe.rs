//! Which phases a filter handles: found by the compiler, from the traits that its type implements.
#![allow(non_upper_case_globals)] // the constants bear the names of the traits that they stand for

use std::marker::PhantomData;

use proxy_golang_abi as abi;
use proxy_golang_abi::Phase;

use super::{Handler, PhaseSpec, run};
use crate::Outcome;
use crate::filter::{
    OnConnection, OnConnectionEnd, OnDownstreamData, OnLog, OnRequestBody, OnRequestHeaders,
    OnRequestTrailers, OnResponseBody, OnResponseHeaders, OnResponseTrailers, OnUpstreamData,
    OnWake,
};
use crate::raw::call::{
    BodyEvent, ConnectionEvent, DataEvent, Event, HeadersEvent, LogEvent, TrailersEvent, WakeEvent,
};

macro_rules! handlers {
    ($($name:ident: $bound:ident, $method:ident($event:ident), $phase:ident, $mode:expr, $pend:expr;)*) => {
        /// The handler of each phase, if the filter has it.
        pub(super) mod handler {
            $(
                #[doc = concat!("Handler of ", stringify!($bound), ".")]
                pub(in crate::raw::hooks) struct $name;
            )*
        }
        $(
            impl<F: $bound> Handler<F> for handler::$name {
                #[inline(always)]
                fn handle<'c>(filter: &'c F, ctx: &'c mut F::Ctx, event: &Event<'c>) -> Outcome {
                    crate::filter::Returned::into_outcome(F::$method(filter, ctx, $event::of(event)))
                }
            }
        )*

        /// Which phases a type handles: the constants of the bounded impls hide those of [`NoPhases`] where the
        /// bound holds. Works for concrete types only, so the macros name them.
        pub struct Probe<F>(PhantomData<F>);
        $(
            impl<F: $bound> Probe<F> {
                #[doc = concat!("There is an impl of ", stringify!($bound), ".")]
                pub const $name: Option<PhaseSpec<F>> = Some(PhaseSpec {
                    phase: Phase::$phase,
                    run: run::<F, handler::$name>,
                    may_pend: $pend,
                    mode: $mode,
                    _filter: PhantomData,
                });
            }
        )*

        /// What [`Probe`] falls back to.
        pub trait NoPhases {
            /// The filter.
            type Filter;
            $(
                #[doc = concat!("There is no impl of ", stringify!($bound), ".")]
                const $name: Option<PhaseSpec<Self::Filter>> = None;
            )*
        }
        impl<F> NoPhases for Probe<F> {
            type Filter = F;
        }
    };
}

handlers! {
    RequestHeaders: OnRequestHeaders, on_request_headers(HeadersEvent), REQUEST_HEADERS, abi::BodyMode::UNSET, F::MAY_PEND;
    RequestBody: OnRequestBody, on_request_body(BodyEvent), REQUEST_BODY, F::MODE, F::MAY_PEND;
    RequestTrailers: OnRequestTrailers, on_request_trailers(TrailersEvent), REQUEST_TRAILERS, abi::BodyMode::UNSET, F::MAY_PEND;
    ResponseHeaders: OnResponseHeaders, on_response_headers(HeadersEvent), RESPONSE_HEADERS, abi::BodyMode::UNSET, F::MAY_PEND;
    ResponseBody: OnResponseBody, on_response_body(BodyEvent), RESPONSE_BODY, F::MODE, F::MAY_PEND;
    ResponseTrailers: OnResponseTrailers, on_response_trailers(TrailersEvent), RESPONSE_TRAILERS, abi::BodyMode::UNSET, F::MAY_PEND;
    Log: OnLog, on_log(LogEvent), LOG, abi::BodyMode::UNSET, false;
    Wake: OnWake, on_wake(WakeEvent), WAKE, abi::BodyMode::UNSET, false;
    Connection: OnConnection, on_connection(ConnectionEvent), L4_OPEN, abi::BodyMode::UNSET, F::MAY_PEND;
    DownstreamData: OnDownstreamData, on_downstream_data(DataEvent), L4_DOWNSTREAM, abi::BodyMode::UNSET, F::MAY_PEND;
    UpstreamData: OnUpstreamData, on_upstream_data(DataEvent), L4_UPSTREAM, abi::BodyMode::UNSET, F::MAY_PEND;
    ConnectionEnd: OnConnectionEnd, on_connection_end(ConnectionEvent), L4_CLOSE, abi::BodyMode::UNSET, false;
}

/// The phases of a filter type, found by [`Probe`]; the length of the list is checked by its type.
#[doc(hidden)]
#[macro_export]
macro_rules! __phases {
    ($filter:ty) => {{
        #[allow(unused_imports)] // a filter that handles every phase needs no fallback
        use $crate::__private::NoPhases as _;
        [
            $crate::__private::Probe::<$filter>::RequestHeaders,
            $crate::__private::Probe::<$filter>::RequestBody,
            $crate::__private::Probe::<$filter>::RequestTrailers,
            $crate::__private::Probe::<$filter>::ResponseHeaders,
            $crate::__private::Probe::<$filter>::ResponseBody,
            $crate::__private::Probe::<$filter>::ResponseTrailers,
            $crate::__private::Probe::<$filter>::Log,
            $crate::__private::Probe::<$filter>::Wake,
            $crate::__private::Probe::<$filter>::Connection,
            $crate::__private::Probe::<$filter>::DownstreamData,
            $crate::__private::Probe::<$filter>::UpstreamData,
            $crate::__private::Probe::<$filter>::ConnectionEnd,
        ]
    }};
}

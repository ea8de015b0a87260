#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![deny(missing_docs)]
#![deny(rustdoc::broken_intra_doc_links)]

mod completion;
mod config;
mod filter;
pub mod log;
mod metrics;
mod pending;
mod raw;
pub mod testing;
pub mod whole;

pub use completion::{Applied, Completion, Reply, StreamHandle};
pub use config::{Attribute, ConfigError, Direction, Setup};
pub use filter::{
    Filter, FilterError, OnConnection, OnConnectionEnd, OnDownstreamData, OnLog, OnRequestBody,
    OnRequestHeaders, OnRequestTrailers, OnResponseBody, OnResponseHeaders, OnResponseTrailers,
    OnUpstreamData, OnWake, Outcome, Verdict, verdict,
};
pub use metrics::{Counter, Gauge, Histogram};
pub use pending::{Cancellation, HostError, Pending};
pub use proxy_golang_abi as abi;
pub use proxy_golang_abi::feature::{Feature, FeatureSet};
pub use proxy_golang_abi::{
    BodyMode, DirectionEnd, EndReason, EventFlags, LogLevel, Phase, Status,
};
pub use raw::{
    BodyEvent, Buffer, ConfigInput, ConnectionEvent, DataEvent, Event, Field, FieldIter, Fields,
    HeadersEvent, Host, Library, LogEvent, MessageEvent, ReplyBuilder, TrailersEvent, WakeEvent,
};

/// Everything that a filter needs: `use proxy_golang_guest::prelude::*;`.
pub mod prelude {
    pub use crate::{
        BodyEvent, BodyMode, Completion, ConfigError, ConfigInput, Direction, Feature, Filter,
        FilterError, HeadersEvent, LogEvent, LogLevel, OnLog, OnRequestBody, OnRequestHeaders,
        OnRequestTrailers, OnResponseBody, OnResponseHeaders, OnResponseTrailers, OnWake, Outcome,
        Pending, Phase, Reply, Setup, TrailersEvent, Verdict, WakeEvent,
    };
}

/// What the macros expand to; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::raw::{FilterEntry, NoPhases, Probe, init};
    pub use proxy_golang_abi::feature::set_of;
    pub use proxy_golang_abi::{Guest, Host, Status};
}

/// Makes a [`Library`] without exporting it: to run filters in tests, several libraries in one program included.
/// [`export!`] takes the same arguments.
#[macro_export]
macro_rules! library {
    (
        $($name:literal => $filter:ty),+ $(,)?
        $(; requires = [$($feature:expr),* $(,)?])?
        $(; on_worker = $on_worker:expr)?
        $(; on_batch_end = $on_batch_end:expr)?
        $(;)?
    ) => {
        $crate::Library {
            name: ::core::env!("CARGO_PKG_NAME"),
            version: ::core::env!("CARGO_PKG_VERSION"),
            filters: {
                static FILTERS: &[$crate::__private::FilterEntry] = &[
                    $($crate::__private::FilterEntry::new::<$filter>($name, $crate::__phases!($filter))),+
                ];
                FILTERS
            },
            required: $crate::__private::set_of(&[$($($feature),*)?]),
            on_worker: $crate::library!(@optional $($on_worker)?),
            on_batch_end: $crate::library!(@optional $($on_batch_end)?),
        }
    };
    (@optional $hook:expr) => { ::core::option::Option::Some($hook) };
    (@optional) => { ::core::option::Option::None };
}

/// Exports a library's filters by name: the one line that makes a crate a guest. Once in a `cdylib`.
///
/// ```text
/// proxy_golang_guest::export! { "add-header" => AddHeader, "count" => Count }
/// ```
/// After the filters may come, in this order and each after a semicolon: `requires = [Feature::ROUTE]`, features
/// without which nothing works; `on_worker = f` with `fn f(host: Host, worker: u32, up: bool)`; `on_batch_end = f` with
/// `fn f(host: Host, worker: u32)`. The library itself is left as the static `PXG_LIBRARY`, for tests.
#[macro_export]
macro_rules! export {
    ($($library:tt)+) => {
        /// The filters that this crate exports.
        pub static PXG_LIBRARY: $crate::Library = $crate::library!($($library)+);

        /// The entry that a host looks for.
        ///
        /// # Safety
        /// For hosts: both tables must be as the proxy_golang ABI says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn pxg_guest_init_v1(
            host: *const $crate::__private::Host,
            out: *mut $crate::__private::Guest,
        ) -> $crate::__private::Status {
            // SAFETY: the host's side of the ABI.
            unsafe { $crate::__private::init(&PXG_LIBRARY, host, out) }
        }
    };
}

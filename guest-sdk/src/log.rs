//! Lines for the host's log. The macros format nothing that the host would drop.

use crate::raw::{
    BodyEvent, ConfigInput, ConnectionEvent, DataEvent, Event, HeadersEvent, Host, LogEvent,
    MessageEvent, TrailersEvent, WakeEvent,
};

/// What a log macro takes first: whatever knows its host.
pub trait LogTarget {
    /// The host.
    fn log_host(&self) -> Host;
}

impl LogTarget for Host {
    fn log_host(&self) -> Host {
        *self
    }
}

macro_rules! log_targets {
    ($($name:ty),*) => {$(
        impl LogTarget for $name {
            fn log_host(&self) -> Host {
                self.host()
            }
        }
    )*};
}
log_targets!(
    Event<'_>,
    MessageEvent<'_>,
    HeadersEvent<'_>,
    BodyEvent<'_>,
    TrailersEvent<'_>,
    WakeEvent<'_>,
    LogEvent<'_>,
    ConnectionEvent<'_>,
    DataEvent<'_>,
    ConfigInput<'_>,
    crate::Pending,
    crate::StreamHandle
);

impl<T: LogTarget + ?Sized> LogTarget for &T {
    fn log_host(&self) -> Host {
        (**self).log_host()
    }
}

/// Logs a line: `log!(ev, LogLevel::WARN, "{n} bytes")`. The first argument is an event, a configuration's input, a
/// [`crate::Pending`], a [`crate::StreamHandle`] or a [`crate::Host`].
#[macro_export]
macro_rules! log {
    ($target:expr, $level:expr, $($arg:tt)+) => {{
        let host = $crate::log::LogTarget::log_host(&$target);
        if host.log_on($level) {
            host.log($level, &::std::format!($($arg)+));
        }
    }};
}

/// [`log!`] at level TRACE: every step.
#[macro_export]
macro_rules! trace {
    ($target:expr, $($arg:tt)+) => { $crate::log!($target, $crate::LogLevel::TRACE, $($arg)+) };
}

/// [`log!`] at level DEBUG: for the filter's author.
#[macro_export]
macro_rules! debug {
    ($target:expr, $($arg:tt)+) => { $crate::log!($target, $crate::LogLevel::DEBUG, $($arg)+) };
}

/// [`log!`] at level INFO: for the operator.
#[macro_export]
macro_rules! info {
    ($target:expr, $($arg:tt)+) => { $crate::log!($target, $crate::LogLevel::INFO, $($arg)+) };
}

/// [`log!`] at level WARN: something is off; the stream goes on.
#[macro_export]
macro_rules! warn {
    ($target:expr, $($arg:tt)+) => { $crate::log!($target, $crate::LogLevel::WARN, $($arg)+) };
}

/// [`log!`] at level ERROR: something failed.
#[macro_export]
macro_rules! error {
    ($target:expr, $($arg:tt)+) => { $crate::log!($target, $crate::LogLevel::ERROR, $($arg)+) };
}

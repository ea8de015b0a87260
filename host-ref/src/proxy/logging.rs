//! The host's own log, and that of guests, on standard error.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use proxy_golang_abi::LogLevel;
use tracing::level_filters::LevelFilter;
use tracing::{Level as TracingLevel, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use super::config::{Format, Level};

/// The least severe level that is written, as an index into [`LEVELS`].
static CURRENT: AtomicU8 = AtomicU8::new(2);

const LEVELS: [(Level, LevelFilter, LogLevel); 6] = [
    (Level::Trace, LevelFilter::TRACE, LogLevel::TRACE),
    (Level::Debug, LevelFilter::DEBUG, LogLevel::DEBUG),
    (Level::Info, LevelFilter::INFO, LogLevel::INFO),
    (Level::Warn, LevelFilter::WARN, LogLevel::WARN),
    (Level::Error, LevelFilter::ERROR, LogLevel::ERROR),
    (Level::Off, LevelFilter::OFF, LogLevel::OFF),
];

fn current() -> LevelFilter {
    LEVELS[usize::from(CURRENT.load(Relaxed)).min(5)].1
}

/// Sets the level; answers what guests see.
pub(super) fn set_level(level: Level) -> LogLevel {
    let index = LEVELS.iter().position(|(l, ..)| *l == level).unwrap_or(2);
    CURRENT.store(u8::try_from(index).unwrap_or(2), Relaxed);
    // What was said about each place in the code under the old level is forgotten.
    tracing::callsite::rebuild_interest_cache();
    LEVELS[index].2
}

/// A filter whose level can change at any time. Libraries below the host write from WARN on, unless all is asked for.
struct Dynamic;

fn enabled(metadata: &Metadata<'_>) -> bool {
    let level = current();
    let own = metadata.target().starts_with("proxy_golang_host") || metadata.target() == "guest";
    *metadata.level() <= level
        && (own || level == LevelFilter::TRACE || *metadata.level() <= TracingLevel::WARN)
}

impl<S: Subscriber> Filter<S> for Dynamic {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        enabled(metadata)
    }

    fn callsite_enabled(
        &self,
        metadata: &'static Metadata<'static>,
    ) -> tracing::subscriber::Interest {
        if enabled(metadata) {
            tracing::subscriber::Interest::always()
        } else {
            tracing::subscriber::Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(current())
    }
}

/// Starts the log; later calls change only the level.
pub(super) fn start(level: Level, format: Format) -> LogLevel {
    let guests = set_level(level);
    let writer = std::io::stderr;
    let layer = match format {
        Format::Text => fmt::layer()
            .with_ansi(false)
            .with_writer(writer)
            .with_filter(Dynamic)
            .boxed(),
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(writer)
            .with_filter(Dynamic)
            .boxed(),
    };
    // Refused if there is a log already: an embedding program's own.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    tracing::callsite::rebuild_interest_cache();
    guests
}

/// A record of a guest.
pub(super) fn guest(level: LogLevel, guest: &str, text: &str) {
    match level {
        LogLevel::TRACE => tracing::trace!(target: "guest", guest, "{text}"),
        LogLevel::DEBUG => tracing::debug!(target: "guest", guest, "{text}"),
        LogLevel::INFO => tracing::info!(target: "guest", guest, "{text}"),
        LogLevel::WARN => tracing::warn!(target: "guest", guest, "{text}"),
        _ => tracing::error!(target: "guest", guest, "{text}"),
    }
}

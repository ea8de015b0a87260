//! What a wrong access to a guarded copy means.

use std::path::Path;
use std::sync::Mutex;

use proxy_golang_abi::Phase;
use proxy_golang_conformance::parts::model::phase_name;
use proxy_golang_conformance::parts::symbols::{Module, Symbols};

use crate::report::{self, Place, Side};
use crate::sys::fault::{self, Fault};
use crate::sys::memory::Kind;
use crate::sys::platform;

/// Reports the accesses that were recorded since the last time.
pub(crate) fn report_faults() {
    if !fault::any() {
        return;
    }
    let Some(r) = report::current() else {
        return;
    };
    static ONE: Mutex<()> = Mutex::new(());
    // Reading the debug information takes time: another thread that is at it does this one's too.
    let Ok(_one) = ONE.try_lock() else {
        return;
    };
    let faults = fault::take();
    if faults.is_empty() {
        return;
    }
    let modules = platform::modules()
        .into_iter()
        .map(|(path, low, high, offset)| Module {
            path,
            low,
            high,
            offset,
        })
        .collect();
    let mut symbols = Symbols::new(modules, &r.settings.guest);
    for f in faults {
        let (found, place) = explain(&f, &mut symbols, &r.settings.guest);
        r.report(&found, &place);
    }
}

fn explain(f: &Fault, symbols: &mut Symbols, guest_file: &Path) -> (report::Found, Place) {
    let function = match f.kind {
        Kind::View | Kind::Result => "on_event",
        Kind::ConfigView | Kind::ConfigResult => "on_config_new",
        Kind::Handed => "complete or apply",
        Kind::Log => "log",
    };
    let (first, own) = symbols.sites(&f.frames);
    let by = match (&own, &first) {
        (Some(o), Some(x)) if o.function != x.function => format!("{o}, through {x}"),
        (Some(o), _) => o.to_string(),
        (None, Some(x)) => x.to_string(),
        (None, None) => format!("{:#x}", f.frames.first().copied().unwrap_or(0)),
    };
    let offset = f.at.wrapping_sub(f.start).cast_signed();
    let way = if f.write { "write" } else { "read" };
    let late = f.when.saturating_sub(f.closed);
    let when = if f.closed == 0 {
        "while it was lent".to_string()
    } else {
        format!(
            "{}.{:03} ms after its end",
            late / 1_000_000,
            late / 1000 % 1000
        )
    };
    let inside = (0..f.len.cast_signed()).contains(&offset);
    let detail = format!(
        "{way} at byte {offset} of {} {when}, by thread {} (lent to {}): {by}",
        f.len, f.thread, f.lent_to
    );
    let _ = guest_file;
    let (rule, side, what, expected) = match f.kind {
        Kind::View | Kind::ConfigView if f.closed == 0 && f.write && inside => (
            "PXG-MEM-009",
            Side::Guest,
            "wrote to a view",
            "views are read-only",
        ),
        Kind::View | Kind::ConfigView if f.closed == 0 => (
            "PXG-ABI-008",
            Side::Guest,
            "accessed memory beside a view",
            "strings are pointer and length",
        ),
        Kind::View | Kind::ConfigView => (
            "PXG-MEM-002",
            Side::Guest,
            "used a view after its hook had returned",
            "what is needed later is copied in the hook",
        ),
        Kind::Result => (
            "PXG-MEM-003",
            Side::Host,
            "used borrowed memory after it had called into the guest again",
            "borrowed memory is read before anything that can enter the guest",
        ),
        Kind::ConfigResult => (
            "PXG-CFG-002",
            Side::Host,
            "used what a configuration borrowed after it had called into the guest again",
            "the host has copied it before its next call into the guest",
        ),
        Kind::Handed => (
            "PXG-MEM-005",
            Side::Host,
            "used what it was handed after complete or apply had returned",
            "complete and apply have copied what is borrowed when they return",
        ),
        Kind::Log => (
            "PXG-OBS-005",
            Side::Host,
            "used a record after `log` had returned",
            "log has copied the record when it returns",
        ),
    };
    (
        report::Found {
            rule,
            side,
            what: format!("{what}: {detail}"),
            expected: expected.into(),
            warning: false,
        },
        Place {
            function,
            phase: if f.phase == 0 {
                ""
            } else {
                phase_name(Phase(f.phase))
            },
            stream: f.stream,
            ..Place::default()
        },
    )
}

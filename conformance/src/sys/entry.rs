//! The way into a case's process from the executable of somebody's test, whose `main` is not ours: a function that the
//! C library calls before `main`. The program's own `main` handles its cases itself.

use std::sync::atomic::{AtomicBool, Ordering};

const VARIABLE: &str = "PXG_CONFORMANCE_CASE_BEFORE_MAIN";

static FROM_TEST: AtomicBool = AtomicBool::new(false);

/// Says that this process is not the program, so that its cases start before `main`.
pub(crate) fn announce() {
    FROM_TEST.store(true, Ordering::Relaxed);
}

/// What a case's process needs to know of that.
pub(crate) fn environment() -> Option<(&'static str, String)> {
    FROM_TEST
        .load(Ordering::Relaxed)
        .then(|| (VARIABLE, "1".to_string()))
}

extern "C" fn before_main() {
    if std::env::var_os(VARIABLE).is_some() {
        let args: Vec<String> = std::env::args().collect();
        if args.get(1).is_some_and(|a| a == "__case") {
            // SAFETY: no other thread exists yet; the guest must not see the variable.
            unsafe { std::env::remove_var(VARIABLE) };
            crate::cli::case_main(&args[2..]);
        }
    }
}

// SAFETY: the section holds pointers to functions that the C library calls once before `main`; this one takes no
// arguments and returns at once unless the process was started for a case.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

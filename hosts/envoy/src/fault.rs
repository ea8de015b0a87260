//! Faults of this module itself, on demand: how else could a test see that streams survive them?
//!
//! In debug builds only. `PXG_ENVOY_FAULT` names a file; the first of the points below that finds in it what it is (`before`
//! or `after`, and what is done there) removes the file and panics.

/// A point that may panic.
#[cfg(debug_assertions)]
pub(crate) fn point(when: &str, what: &str) {
    static FILE: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os("PXG_ENVOY_FAULT")) else {
        return;
    };
    let is_meant = std::fs::read_to_string(file).is_ok_and(|point| {
        point
            .strip_prefix(when)
            .and_then(|rest| rest.strip_prefix(' '))
            == Some(what)
    });
    if is_meant && std::fs::remove_file(file).is_ok() {
        panic!("asked for by PXG_ENVOY_FAULT");
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn point(_: &str, _: &str) {}

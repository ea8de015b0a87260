//! Loads the real guest.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use proxy_golang_abi::GuestInitV1;

fn error() -> String {
    // SAFETY: dlerror answers a string of the C library's that lives until the next call on this thread.
    unsafe {
        let e = libc::dlerror();
        if e.is_null() {
            "no text".to_string()
        } else {
            CStr::from_ptr(e).to_string_lossy().into_owned()
        }
    }
}

/// Loads as a host does: by path, with all symbols resolved now and none made global (PXG-LOAD-003).
pub(super) fn guest(path: &Path) -> Result<GuestInitV1, String> {
    let path = std::fs::canonicalize(path)
        .map_err(|e| format!("cannot find the guest {}: {e}", path.display()))?;
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated path; running the library's constructors is what is asked for.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(format!(
            "cannot load the guest {}: {}",
            path.display(),
            error()
        ));
    }
    // SAFETY: a live handle and a NUL-terminated name.
    let at = unsafe { libc::dlsym(handle, c"pxg_guest_init_v1".as_ptr()) };
    if at.is_null() {
        return Err(format!(
            "{} has no symbol pxg_guest_init_v1: is it a guest?",
            path.display()
        ));
    }
    if at == super::tables::pxg_guest_init_v1 as *mut libc::c_void {
        return Err(format!(
            "{} is the layer itself; name the real guest",
            path.display()
        ));
    }
    // SAFETY: the specification says that a symbol of this name is a function of this type (PXG-LOAD-001).
    Ok(unsafe { std::mem::transmute::<*mut libc::c_void, GuestInitV1>(at) })
}

/// Keeps the layer in memory whatever the host does: the guest has its functions.
pub(super) fn stay(own: &Path) {
    if let Ok(name) = CString::new(own.as_os_str().as_bytes()) {
        // SAFETY: a NUL-terminated path of a library that is already loaded; only its flags change.
        unsafe {
            libc::dlopen(
                name.as_ptr(),
                libc::RTLD_NOW | libc::RTLD_NOLOAD | libc::RTLD_NODELETE,
            );
        }
    }
}

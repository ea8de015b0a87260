//! The functions that Envoy calls. Each catches panics: none of our own may unwind into Envoy.

#![allow(unreachable_pub)] // they are reached by name

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use proxy_golang_abi::LogLevel;
use proxy_golang_host::engine::Dir;

use super::abi::{self, Buffer, ConfigPtr, FilterPtr};
use super::envoy::{Config, Filter, log};
use crate::fault;
use crate::process::{self, lock};
use crate::session::{CONTINUE, STOP, STOP_AND_DROP, Session};
use crate::site::{self, Route, Site};
use crate::worker;

/// Runs what a hook does. A panic of ours ends in `otherwise`.
pub(crate) fn guarded<R>(what: &str, run: impl FnOnce() -> R, otherwise: impl FnOnce() -> R) -> R {
    let run = || {
        fault::point("before", what);
        let result = run();
        fault::point("after", what);
        result
    };
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|t| (*t).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        log(
            LogLevel::ERROR,
            &format!(
                "proxy_golang: a fault of the module itself in {what}: {text}. Please report it"
            ),
        );
        otherwise()
    })
}

/// # Safety
/// The bytes live through the hook.
unsafe fn bytes<'a>(buffer: Buffer) -> &'a [u8] {
    if buffer.ptr.is_null() || buffer.len == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(buffer.ptr, buffer.len) }
}

/// The session that Envoy got from `on_http_filter_new`, kept alive for the hook: the stream may end inside of it. Envoy
/// 1.39 goes on with a stream for which it got none.
///
/// # Safety
/// `module` came from there and has not been given to the destroy hook.
unsafe fn session(module: *const c_void) -> Option<Rc<Session>> {
    let ptr = module.cast::<Session>();
    if ptr.is_null() {
        return None;
    }
    // SAFETY: it is the pointer of an `Rc` of which Envoy holds a count, on this thread.
    unsafe {
        Rc::increment_strong_count(ptr);
        Some(Rc::from_raw(ptr))
    }
}

/// Whether a look at the session alone, which can end nothing and fail nowhere, lets the hook pass: most hooks do.
///
/// # Safety
/// As [`session`].
#[inline]
unsafe fn passes(module: *const c_void, look: impl FnOnce(&Session) -> bool) -> bool {
    // SAFETY: as promised; Envoy's own count keeps it alive through the hook.
    unsafe { module.cast::<Session>().as_ref() }.is_some_and(look)
}

/// A hook of a stream that answers a status.
///
/// # Safety
/// As [`session`].
unsafe fn status(
    what: &str,
    module: *const c_void,
    otherwise: i32,
    run: impl FnOnce(&Session) -> i32,
) -> i32 {
    // SAFETY: as promised.
    let Some(session) = (unsafe { session(module) }) else {
        // The request's head was answered: what comes is the answer.
        return CONTINUE;
    };
    guarded(
        what,
        || run(&session),
        || {
            session.give_up();
            otherwise
        },
    )
}

/// A hook of a stream that answers nothing.
///
/// # Safety
/// As [`session`].
unsafe fn event(what: &str, module: *const c_void, run: impl FnOnce(&Session)) {
    // SAFETY: as promised.
    if let Some(session) = unsafe { session(module) } {
        guarded(what, || run(&session), || session.give_up());
    }
}

/// No request passes without the guests that it was meant for.
fn refuse(filter: FilterPtr) -> i32 {
    if let Some(filter) = Filter::new(filter) {
        filter.send_response(500, &[], &[], b"proxy_golang_no_stream");
    }
    STOP
}

/// The route's configuration, if there is one of ours.
fn route(filter: FilterPtr) -> Option<Arc<Route>> {
    if !site::has_routes() {
        return None;
    }
    site::route_at(Filter::new(filter)?.route_config().cast())
}

/// Loads the module: finds Envoy's callbacks, and answers the version of Envoy's interface that was found.
#[unsafe(no_mangle)]
pub extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    guarded(
        "program_init",
        || match abi::resolve() {
            // Envoy warns when the version is not its own, and loads all the same: one module serves both.
            Ok(callbacks) if callbacks.http_has_filter_state.is_some() => c"v0.2.0".as_ptr(),
            Ok(_) => c"v0.1.0".as_ptr(),
            Err(missing) => {
                eprintln!(
                    "proxy_golang: this Envoy lacks {}; expected Envoy 1.39 or 1.40. Use one of these",
                    missing.join(", ")
                );
                std::ptr::null()
            }
        },
        std::ptr::null,
    )
}

/// \[main thread\] A filter is configured; null refuses it.
///
/// # Safety
/// Envoy's contract: the pointers live through the call, `config` until the destroy hook.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    config: ConfigPtr,
    name: BufferArg,
    settings: BufferArg,
) -> *const c_void {
    guarded(
        "config_new",
        || {
            // SAFETY: as Envoy promises.
            let (name, settings) = unsafe { (bytes(name.0), bytes(settings.0)) };
            let name = String::from_utf8_lossy(name);
            match Site::new(&name, settings) {
                Ok(site) => {
                    if let Some(config) = Config::new(config) {
                        *lock(&site.bell) = config.bell();
                        site.published.define(config);
                        site.published.publish(config, &site);
                    }
                    Arc::into_raw(site).cast()
                }
                Err(why) => {
                    site::refuse(&name, &why);
                    std::ptr::null()
                }
            }
        },
        std::ptr::null,
    )
}

/// A filter's configuration is given up, after its last stream.
///
/// # Safety
/// `site` came from the hook above, once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(site: *const c_void) {
    guarded(
        "config_destroy",
        || {
            // SAFETY: Envoy's own count of it.
            let site: Arc<Site> = unsafe { Arc::from_raw(site.cast()) };
            lock(&site.bell).take();
            drop(site);
            if let Some(process) = process::get() {
                process.given_up();
            }
        },
        || (),
    );
}

/// \[main thread\] A turn that the housekeeper asked for.
///
/// # Safety
/// Envoy's contract: both live.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_scheduled(
    config: ConfigPtr,
    site: *const c_void,
    _event: u64,
) {
    guarded(
        "config_scheduled",
        || {
            // SAFETY: alive until the destroy hook.
            let site = unsafe { &*site.cast::<Site>() };
            if let Some(config) = Config::new(config) {
                site.published.publish(config, site);
            }
        },
        || (),
    );
}

/// \[main thread\] A route is configured; null refuses it.
///
/// # Safety
/// Envoy's contract: the bytes live through the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_per_route_config_new(
    name: BufferArg,
    settings: BufferArg,
) -> *const c_void {
    guarded(
        "per_route_config_new",
        || {
            // SAFETY: as Envoy promises.
            let (name, settings) = unsafe { (bytes(name.0), bytes(settings.0)) };
            let name = String::from_utf8_lossy(name);
            match Route::new(&name, settings) {
                Ok(route) => Arc::into_raw(route).cast(),
                Err(why) => {
                    site::refuse(&name, &why);
                    std::ptr::null()
                }
            }
        },
        std::ptr::null,
    )
}

/// A route's configuration is given up. Any thread: Envoy has called it on workers.
///
/// # Safety
/// `route` came from the hook above, once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_per_route_config_destroy(
    route: *const c_void,
) {
    guarded(
        "per_route_config_destroy",
        || {
            // SAFETY: Envoy's own count of it.
            drop(unsafe { Arc::<Route>::from_raw(route.cast()) });
        },
        || (),
    );
}

/// \[worker\] A stream begins; null ends it.
///
/// # Safety
/// Envoy's contract: `site` lives, `filter` until the destroy hook.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_new(
    site: *const c_void,
    filter: FilterPtr,
) -> *const c_void {
    guarded(
        "filter_new",
        || {
            // SAFETY: alive, for Envoy's filter holds its configuration.
            let site: Arc<Site> = unsafe {
                Arc::increment_strong_count(site.cast::<Site>());
                Arc::from_raw(site.cast())
            };
            let Some(filter) = Filter::new(filter) else {
                return std::ptr::null();
            };
            let Some(worker) = worker::current(|| filter.worker_index()) else {
                log(
                    LogLevel::ERROR,
                    "proxy_golang: a stream on a thread that is none of Envoy's workers",
                );
                return std::ptr::null();
            };
            let session = worker.session();
            session.begin(filter, site);
            Rc::into_raw(session).cast()
        },
        std::ptr::null,
    )
}

/// # Safety
/// Envoy's contract, as for all hooks of a stream: `module` came from `on_http_filter_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    filter: FilterPtr,
    module: *const c_void,
    end: bool,
) -> i32 {
    if module.is_null() {
        return refuse(filter);
    }
    // SAFETY: as promised.
    unsafe {
        status("request_headers", module, STOP, |session| {
            session.request_headers(route(filter).as_deref(), end)
        })
    }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    _filter: FilterPtr,
    module: *const c_void,
    end: bool,
) -> i32 {
    // SAFETY: as promised.
    unsafe {
        if passes(module, |session| session.passes(Dir::Request, end)) {
            return CONTINUE;
        }
        status("request_body", module, STOP_AND_DROP, |session| {
            session.body(Dir::Request, end)
        })
    }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_trailers(
    _filter: FilterPtr,
    module: *const c_void,
) -> i32 {
    // SAFETY: as promised.
    unsafe {
        if passes(module, |session| session.passes(Dir::Request, true)) {
            return CONTINUE;
        }
        status("request_trailers", module, STOP, |session| {
            session.trailers(Dir::Request)
        })
    }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    filter: FilterPtr,
    module: *const c_void,
    end: bool,
) -> i32 {
    // SAFETY: as promised.
    unsafe {
        if passes(module, |session| session.passes_response(end)) {
            return CONTINUE;
        }
        status("response_headers", module, STOP, |session| {
            let route = if session.is_open() {
                None
            } else {
                route(filter)
            };
            session.response_headers(route.as_deref(), end)
        })
    }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_body(
    _filter: FilterPtr,
    module: *const c_void,
    end: bool,
) -> i32 {
    // SAFETY: as promised.
    unsafe {
        if passes(module, |session| session.passes(Dir::Response, end)) {
            return CONTINUE;
        }
        status("response_body", module, STOP_AND_DROP, |session| {
            session.body(Dir::Response, end)
        })
    }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_trailers(
    _filter: FilterPtr,
    module: *const c_void,
) -> i32 {
    // SAFETY: as promised.
    unsafe {
        if passes(module, |session| session.passes(Dir::Response, true)) {
            return CONTINUE;
        }
        status("response_trailers", module, STOP, |session| {
            session.trailers(Dir::Response)
        })
    }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(
    _filter: FilterPtr,
    module: *const c_void,
) {
    // SAFETY: as promised.
    unsafe { event("stream_complete", module, Session::complete) }
}

/// # Safety
/// As `request_headers`; the last call with this `module`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_destroy(module: *const c_void) {
    if module.is_null() {
        return;
    }
    // SAFETY: Envoy's own count of it.
    let session = unsafe { Rc::<Session>::from_raw(module.cast()) };
    guarded("destroy", || session.end(), || session.end_after_fault());
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(
    _filter: FilterPtr,
    module: *const c_void,
    _event: u64,
) {
    // SAFETY: as promised.
    unsafe { event("scheduled", module, Session::scheduled) }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_local_reply(
    _filter: FilterPtr,
    module: *const c_void,
    _status: u32,
    _details: BufferArg,
    _reset_imminent: bool,
) -> i32 {
    // SAFETY: as promised.
    unsafe { event("local_reply", module, Session::local_reply) };
    CONTINUE
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(
    _filter: FilterPtr,
    module: *const c_void,
) {
    // SAFETY: as promised.
    unsafe { event("above_watermark", module, |session| session.watermark(true)) }
}

/// # Safety
/// As `request_headers`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(
    _filter: FilterPtr,
    module: *const c_void,
) {
    // SAFETY: as promised.
    unsafe {
        event("below_watermark", module, |session| {
            session.watermark(false)
        })
    }
}

/// Bytes that Envoy passes by value.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct BufferArg(Buffer);

macro_rules! unused {
    ($($name:ident($($arg:ty),*);)*) => {$(
        /// Envoy asks for it; this module makes no calls of its own.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($(_: $arg),*) {}
    )*};
}

unused! {
    envoy_dynamic_module_on_http_filter_http_callout_done(FilterPtr, *const c_void, u64, i32, *const c_void, usize, *const c_void, usize);
    envoy_dynamic_module_on_http_filter_http_stream_headers(FilterPtr, *const c_void, u64, *const c_void, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_data(FilterPtr, *const c_void, u64, *const c_void, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_trailers(FilterPtr, *const c_void, u64, *const c_void, usize);
    envoy_dynamic_module_on_http_filter_http_stream_complete(FilterPtr, *const c_void, u64);
    envoy_dynamic_module_on_http_filter_http_stream_reset(FilterPtr, *const c_void, u64, i32);
}

//! Envoy's side of the boundary: its callbacks, found by name when the module is loaded.
//!
//! Declared by hand from what the exported functions do; nothing of Envoy is needed to build this. A callback that the
//! running Envoy does not export makes the load fail if the module cannot work without it, and is `None` otherwise. An
//! `extern` block would not do: the linker binds at once, and one unknown name would refuse the whole module.

use std::ffi::c_void;
use std::sync::OnceLock;

use libloading::os::unix::Library;

/// Bytes of either side: `{pointer, length}`, passed by value and in arrays.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    pub(super) ptr: *const u8,
    pub(super) len: usize,
}

impl Buffer {
    pub(super) const EMPTY: Self = Self {
        ptr: std::ptr::null(),
        len: 0,
    };

    pub(super) const fn of(bytes: &[u8]) -> Self {
        Self {
            ptr: bytes.as_ptr(),
            len: bytes.len(),
        }
    }
}

/// A field: four words. For lengths below 4 GiB these are the bits of a `pxg_field`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) name: Buffer,
    pub(super) value: Buffer,
}

const _: () = assert!(size_of::<Header>() == size_of::<proxy_golang_abi::Field>());
const _: () = assert!(cfg!(target_endian = "little"));

/// Envoy's filter object of one stream, its configuration object, and a scheduler.
pub(super) type FilterPtr = *mut c_void;
pub(super) type ConfigPtr = *mut c_void;
pub(super) type SchedulerPtr = *mut c_void;

macro_rules! callbacks {
    ($($kind:tt $name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The callbacks.
        #[allow(dead_code)] // some are there to say which Envoy this is
        pub(super) struct Callbacks {
            $(pub(super) $name: callbacks!(@type $kind unsafe extern "C" fn($($arg),*) $(-> $ret)?),)*
        }

        impl Callbacks {
            fn resolve(process: &Library) -> Result<Self, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(let $name = {
                    let symbol = concat!("envoy_dynamic_module_callback_", stringify!($name), "\0");
                    // SAFETY: the symbol of this name has this type in every version that exports it.
                    let found = unsafe {
                        process.get::<unsafe extern "C" fn($($arg),*) $(-> $ret)?>(symbol.as_bytes())
                    };
                    callbacks!(@note $kind missing, $name, found);
                    found.ok().map(|f| *f)
                };)*
                if !missing.is_empty() {
                    return Err(missing);
                }
                $(callbacks!(@take $kind missing, $name);)*
                Ok(Self { $($name),* })
            }
        }
    };
    (@type required $($t:tt)*) => { $($t)* };
    (@type optional $($t:tt)*) => { Option<$($t)*> };
    (@note required $missing:ident, $name:ident, $found:ident) => {
        if $found.is_err() {
            $missing.push(concat!("envoy_dynamic_module_callback_", stringify!($name)));
        }
    };
    (@note optional $missing:ident, $name:ident, $found:ident) => {};
    (@take required $missing:ident, $name:ident) => {
        let Some($name) = $name else { return Err($missing); };
    };
    (@take optional $missing:ident, $name:ident) => {};
}

callbacks! {
    required log: fn(i32, Buffer);
    required log_enabled: fn(i32) -> bool;
    required get_concurrency: fn() -> u32;
    optional is_validation_mode: fn() -> bool;

    required http_get_headers_size: fn(FilterPtr, i32) -> usize;
    required http_get_headers: fn(FilterPtr, i32, *mut Header) -> bool;
    required http_get_header: fn(FilterPtr, i32, Buffer, *mut Buffer, usize, *mut usize) -> bool;
    required http_add_header: fn(FilterPtr, i32, Buffer, Buffer) -> bool;
    required http_set_header: fn(FilterPtr, i32, Buffer, Buffer) -> bool;

    required http_get_body_size: fn(FilterPtr, i32) -> usize;
    required http_get_body_chunks_size: fn(FilterPtr, i32) -> usize;
    required http_get_body_chunks: fn(FilterPtr, i32, *mut Buffer) -> bool;
    required http_append_body: fn(FilterPtr, i32, Buffer) -> bool;
    required http_drain_body: fn(FilterPtr, i32, usize) -> bool;
    required http_get_buffer_limit: fn(FilterPtr) -> u64;
    required http_set_buffer_limit: fn(FilterPtr, u64);

    required http_send_response: fn(FilterPtr, u32, *const Header, usize, Buffer, Buffer);
    required http_send_response_headers: fn(FilterPtr, *const Header, usize, bool);
    required http_send_response_data: fn(FilterPtr, Buffer, bool);
    required http_send_response_trailers: fn(FilterPtr, *const Header, usize);
    required http_filter_reset_stream: fn(FilterPtr, i32, Buffer);

    required http_filter_continue_decoding: fn(FilterPtr);
    required http_filter_continue_encoding: fn(FilterPtr);
    required http_filter_scheduler_new: fn(FilterPtr) -> SchedulerPtr;
    required http_filter_scheduler_commit: fn(SchedulerPtr, u64);
    required http_filter_scheduler_delete: fn(SchedulerPtr);
    required http_filter_get_worker_index: fn(FilterPtr) -> u32;

    required http_filter_config_scheduler_new: fn(ConfigPtr) -> SchedulerPtr;
    required http_filter_config_scheduler_commit: fn(SchedulerPtr, u64);
    required http_filter_config_scheduler_delete: fn(SchedulerPtr);

    required http_filter_get_attribute_string: fn(FilterPtr, i32, *mut Buffer) -> bool;
    required http_filter_get_attribute_int: fn(FilterPtr, i32, *mut u64) -> bool;
    required http_filter_get_attribute_bool: fn(FilterPtr, i32, *mut bool) -> bool;
    required http_get_cluster_name: fn(FilterPtr, *mut Buffer) -> bool;
    required http_clear_route_cache: fn(FilterPtr);
    required get_most_specific_route_config: fn(FilterPtr) -> *const c_void;

    required http_set_dynamic_metadata_string: fn(FilterPtr, Buffer, Buffer, Buffer);
    required http_get_metadata_string: fn(FilterPtr, i32, Buffer, Buffer, *mut Buffer) -> bool;
    required http_set_filter_state_bytes: fn(FilterPtr, Buffer, Buffer) -> bool;
    required http_get_filter_state_bytes: fn(FilterPtr, Buffer, *mut Buffer) -> bool;

    required http_filter_config_define_counter: fn(ConfigPtr, Buffer, *const Buffer, usize, *mut usize) -> i32;
    required http_filter_config_define_gauge: fn(ConfigPtr, Buffer, *const Buffer, usize, *mut usize) -> i32;
    required http_filter_config_define_histogram: fn(ConfigPtr, Buffer, *const Buffer, usize, *mut usize) -> i32;
    required http_filter_config_increment_counter: fn(ConfigPtr, usize, *const Buffer, usize, u64) -> i32;
    required http_filter_config_set_gauge: fn(ConfigPtr, usize, *const Buffer, usize, u64) -> i32;
    required http_filter_config_record_histogram_value: fn(ConfigPtr, usize, *const Buffer, usize, u64) -> i32;

    // Came with 1.40: the sign of its version of the ABI.
    optional http_has_filter_state: fn(FilterPtr, Buffer) -> bool;
}

static CALLBACKS: OnceLock<Callbacks> = OnceLock::new();

/// The callbacks. Before [`resolve`] has found them, there is no Envoy to call.
#[inline]
pub(super) fn callbacks() -> &'static Callbacks {
    CALLBACKS
        .get()
        .expect("Envoy initialises the module before it uses it")
}

/// Whether there is an Envoy around this code: not so in unit tests.
pub(super) fn is_resolved() -> bool {
    CALLBACKS.get().is_some()
}

/// Finds the callbacks in the process, or says which it cannot work without.
pub(super) fn resolve() -> Result<&'static Callbacks, Vec<&'static str>> {
    if CALLBACKS.get().is_none() {
        let found = Callbacks::resolve(&Library::this())?;
        // A second load of the module finds the first one's.
        let _ = CALLBACKS.set(found);
    }
    Ok(callbacks())
}

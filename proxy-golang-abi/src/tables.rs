use core::ffi::c_void;

use crate::{ConfigIn, ConfigOut, Event, EventResult, GuestFlags, LogLevel, Status, Str};

/// Words of the host that a guest reads without a call: relaxed atomic loads, each word naturally aligned. Owned by
/// the host, read-only for guests, alive as long as the process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Size of the struct, in bytes.
    pub size: u32,
    /// `PXG_LOG_*`: nothing below it is worth formatting. Follows a change within a second.
    pub log_level: LogLevel,
    /// Not 0 once the host drains.
    pub draining: u32,
    /// Zero.
    pub reserved0: u32,
    /// Monotonic clock in nanoseconds, as of the host's last look; 0 where the host keeps none.
    pub monotonic_ns: u64,
    /// Nanoseconds since 1970-01-01 UTC, as `monotonic_ns`.
    pub realtime_ns: u64,
}

/// The host's table. Complete before init, never changed, alive as long as the process (PXG-NEG-001).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Size of the struct as the host knows it, in bytes.
    pub size: u32,
    /// The host's major version.
    pub major: u32,
    /// The host's minor version.
    pub minor: u32,
    /// Upper bound of worker indices in this process; 0 is unknown.
    pub n_workers: u32,
    /// `PXG_F_*`: bit n is `features[n / 64] & 1 << (n % 64)`.
    pub features: [u64; 4],
    /// For logs.
    pub name: Str,
    /// For logs.
    pub version: Str,
    /// First argument of every function below. Another value for each guest library: that is how the owner of a token
    /// is known.
    pub ctx: u64,
    /// See [`Page`]; may be null.
    pub page: *const Page,
    /// \[any-thread\] Ends a PENDING. Copies what is borrowed before it returns, never blocks, never runs a hook. OK:
    /// accepted, not yet applied. STALE: the token has ended. STATE or ARG: refused, the token lives on. Owned
    /// buffers pass to the host with every answer. Null iff no PEND feature is set.
    pub complete:
        Option<unsafe extern "C" fn(ctx: u64, token: u64, r: *const EventResult) -> Status>,
    /// \[any-thread\] Acts on a stream outside its events: operations without direction, REPLY, RESET, BODY_WRITE.
    /// As `complete`; FULL: taken, wait for WRITABLE. Null iff APPLY is not set.
    pub apply: Option<unsafe extern "C" fn(ctx: u64, stream: u64, r: *const EventResult) -> Status>,
    /// \[any-thread\] Leads to at least one WAKE event with `arg` OR-ed into its `arg`, or answers STALE. Null iff
    /// APPLY is not set.
    pub wake: Option<unsafe extern "C" fn(ctx: u64, stream: u64, arg: u64) -> Status>,
    /// \[any-thread\] A line for the host's log, without a line end. May be null.
    pub log: Option<unsafe extern "C" fn(ctx: u64, level: LogLevel, ptr: *const u8, len: u64)>,
    /// \[in-call\] More scratch inside `on_event` and `on_config_new`: zeroed, 16-aligned, dies with the call's
    /// scratch; null over the limit. Never a null entry.
    pub scratch_more: Option<unsafe extern "C" fn(ctx: u64, n: u64) -> *mut u8>,
    /// \[any-thread\] The table of an extension, starting with its `size`, alive as long as the process; null if the
    /// host has none of that id. May be a null entry.
    pub get_ext: Option<unsafe extern "C" fn(ctx: u64, id: *const u8, len: u64) -> *const c_void>,
}

/// The guest's table, filled by [`GuestInitV1`]. The host has zeroed it and set `size`; it copies the struct, and
/// what its pointers point to stays valid and unchanged as long as the process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Size of the struct: set by the host, and lowered by a guest that knows less.
    pub size: u32,
    /// The guest's major version.
    pub major: u32,
    /// The guest's minor version.
    pub minor: u32,
    /// `PXG_GUEST_*`.
    pub flags: GuestFlags,
    /// Features without which no filter of the library works.
    pub required: [u64; 4],
    /// Features whose flags, actions and kinds the guest understands: others never reach it.
    pub known: [u64; 4],
    /// For logs.
    pub name: Str,
    /// For logs.
    pub version: Str,
    /// First argument of every function below.
    pub ctx: u64,
    /// The names of the library's filters.
    pub filters: *const Str,
    /// Number of `filters`.
    pub n_filters: u64,
    /// \[config-thread\] Makes a configuration, or refuses it with a negative status and `out->error`.
    pub on_config_new: Option<
        unsafe extern "C" fn(ctx: u64, input: *const ConfigIn, out: *mut ConfigOut) -> Status,
    >,
    /// \[config-thread\] Exactly once per configuration, after its last stream and its last live token.
    pub on_config_drop: Option<unsafe extern "C" fn(ctx: u64, config: u64)>,
    /// \[loop-thread\] The hot crossing.
    pub on_event: Option<unsafe extern "C" fn(ctx: u64, ev: *const Event, out: *mut EventResult)>,
    /// \[loop-thread\] A pending token has been retired without being completed. Must not wait for a worker.
    pub on_cancel: Option<
        unsafe extern "C" fn(
            ctx: u64,
            config: u64,
            user: u64,
            stream: u64,
            token: u64,
            worker: u32,
        ),
    >,
    /// \[loop-thread\] The last call for a stream; exactly once iff `user` is not 0.
    pub on_stream_end:
        Option<unsafe extern "C" fn(ctx: u64, config: u64, user: u64, stream: u64, worker: u32)>,
    /// \[loop-thread\] Optional, feature BATCH_END: once at the end of a loop iteration in which an event of this
    /// guest answered PENDING.
    pub on_batch_end: Option<unsafe extern "C" fn(ctx: u64, worker: u32)>,
    /// \[loop-thread\] Optional. `up` 1 before the first event of that worker; 0 is best effort.
    pub on_worker: Option<unsafe extern "C" fn(ctx: u64, worker: u32, up: u32)>,
    /// \[any-thread\] Optional. The guest's extensions, as the host's.
    pub get_ext: Option<unsafe extern "C" fn(ctx: u64, id: *const u8, len: u64) -> *const c_void>,
}

/// The type of `pxg_guest_init_v1`, the one function that a guest exports. \[config-thread\] The host has zeroed
/// `*out` and set `out->size`. Idempotent for one host; for another host of the process it answers that host's own
/// `ctx`, or STATE. VERSION for another major.
pub type GuestInitV1 = unsafe extern "C" fn(host: *const Host, out: *mut Guest) -> Status;

//! Envoy's callbacks as safe functions.

use std::ffi::c_void;
use std::ptr::NonNull;

use bytes::Bytes;
use proxy_golang_abi::LogLevel;
use proxy_golang_host::ffi::{MAX_LOG_TEXT, clean};

use super::abi::{Buffer, ConfigPtr, FilterPtr, Header, SchedulerPtr, callbacks, is_resolved};

/// Which of a stream's field lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderOf {
    Request = 0,
    RequestTrailers = 1,
    Response = 2,
    ResponseTrailers = 3,
}

/// Which of a stream's body buffers: what a body hook was called with, or what Envoy keeps of before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyOf {
    ReceivedRequest = 0,
    BufferedRequest = 1,
    ReceivedResponse = 2,
    BufferedResponse = 3,
}

/// Writes to Envoy's log, component `dynamic_modules`; any thread. To standard error where there is no Envoy.
///
/// What a guest or a client can put into a text does not end its line, and is cut (PXG-SEC-006).
pub(crate) fn log(level: LogLevel, text: &str) {
    let text = &*clean(text.as_bytes(), MAX_LOG_TEXT + 1024);
    if is_resolved() {
        // SAFETY: a call of any thread with bytes that live through it.
        unsafe { (callbacks().log)(envoy_level(level), Buffer::of(text.as_bytes())) }
    } else {
        eprintln!("{text}");
    }
}

/// Whether Envoy's log takes this level.
pub(crate) fn log_enabled(level: LogLevel) -> bool {
    // SAFETY: a call of any thread.
    is_resolved() && unsafe { (callbacks().log_enabled)(envoy_level(level)) }
}

fn envoy_level(level: LogLevel) -> i32 {
    match level {
        LogLevel::ERROR => 4,
        LogLevel::WARN => 3,
        LogLevel::INFO => 2,
        LogLevel::DEBUG => 1,
        _ => 0,
    }
}

/// Envoy's object of one stream and filter. Valid on its own thread, from the hook that makes the filter until the one
/// that destroys it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter(NonNull<c_void>);

/// Bytes as Envoy's buffers.
fn fields_of(list: &[(&[u8], &[u8])]) -> smallvec::SmallVec<[Header; 16]> {
    list.iter()
        .map(|(name, value)| Header {
            name: Buffer::of(name),
            value: Buffer::of(value),
        })
        .collect()
}

/// A slice over what Envoy lent.
///
/// # Safety
/// The bytes are there and are not written for `'a`.
unsafe fn lent<'a>(buffer: Buffer) -> &'a [u8] {
    if buffer.ptr.is_null() || buffer.len == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(buffer.ptr, buffer.len) }
}

impl Filter {
    pub(super) fn new(ptr: FilterPtr) -> Option<Self> {
        NonNull::new(ptr).map(Self)
    }

    pub(super) fn ptr(self) -> FilterPtr {
        self.0.as_ptr()
    }

    /// The index of the thread that the stream lives on.
    pub(crate) fn worker_index(self) -> u32 {
        // SAFETY: the stream lives (see `Filter`). So in all methods.
        unsafe { (callbacks().http_filter_get_worker_index)(self.ptr()) }
    }

    /// The first value of a field, copied.
    pub(crate) fn field(self, of: HeaderOf, name: &[u8]) -> Option<Vec<u8>> {
        let mut out = Buffer::EMPTY;
        // SAFETY: the value is copied before anything can change it.
        unsafe {
            let found = (callbacks().http_get_header)(
                self.ptr(),
                of as i32,
                Buffer::of(name),
                &raw mut out,
                0,
                std::ptr::null_mut(),
            );
            found.then(|| lent(out).to_vec())
        }
    }

    /// Fills `out` with Envoy's own array of the fields.
    pub(super) fn fields(self, of: HeaderOf, out: &mut Vec<Header>) {
        out.clear();
        // SAFETY: `out` has room for as many elements as Envoy says that it writes.
        unsafe {
            let n = (callbacks().http_get_headers_size)(self.ptr(), of as i32);
            out.reserve(n);
            if n > 0 && (callbacks().http_get_headers)(self.ptr(), of as i32, out.as_mut_ptr()) {
                out.set_len(n);
            }
        }
    }

    /// Replaces all fields `name` by one, or removes them.
    pub(crate) fn set_field(self, of: HeaderOf, name: &[u8], value: Option<&[u8]>) {
        // Envoy takes a value of no bytes for none, whatever its address: the field is only removed.
        let value = value.map_or(Buffer::EMPTY, Buffer::of);
        // SAFETY: the stream lives; Envoy copies.
        unsafe { (callbacks().http_set_header)(self.ptr(), of as i32, Buffer::of(name), value) };
    }

    /// Appends a field; one whose value is empty Envoy does not take.
    pub(crate) fn add_field(self, of: HeaderOf, name: &[u8], value: &[u8]) {
        // SAFETY: the stream lives; Envoy copies.
        unsafe {
            (callbacks().http_add_header)(
                self.ptr(),
                of as i32,
                Buffer::of(name),
                Buffer::of(value),
            )
        };
    }

    /// Bytes in a body buffer.
    pub(crate) fn body_len(self, of: BodyOf) -> u64 {
        // SAFETY: the stream lives.
        unsafe { (callbacks().http_get_body_size)(self.ptr(), of as i32) as u64 }
    }

    /// Shows each piece of a body buffer.
    fn chunks(self, of: BodyOf, mut each: impl FnMut(Buffer)) {
        let mut room = smallvec::SmallVec::<[Buffer; 16]>::new();
        // SAFETY: `room` has as many elements as Envoy says that it writes; all of them are initialised before.
        unsafe {
            let n = (callbacks().http_get_body_chunks_size)(self.ptr(), of as i32);
            if n == 0 {
                return;
            }
            room.resize(n, Buffer::EMPTY);
            if !(callbacks().http_get_body_chunks)(self.ptr(), of as i32, room.as_mut_ptr()) {
                return;
            }
        }
        room.into_iter()
            .filter(|chunk| chunk.len > 0 && !chunk.ptr.is_null())
            .for_each(&mut each);
    }

    /// Lends the pieces of a body buffer, behind its first `skip` bytes, to `out`: nothing is copied.
    ///
    /// What is lent is valid until the buffer changes or the hook is left. Whoever takes it gives it back, or copies it
    /// (`Stream::own_bodies`), before that: [`Session`](crate::session::Session) does so at the end of each run of the engine.
    pub(crate) fn lend_body(self, of: BodyOf, skip: u64, out: &mut Vec<Bytes>) {
        let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
        self.chunks(of, |chunk| {
            // SAFETY: Envoy's bytes, valid as the method says. The lifetime is stretched, for the engine keeps what has
            // none; the promise of the caller replaces it.
            let bytes: &'static [u8] = unsafe { lent(chunk) };
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            if skipped < bytes.len() {
                out.push(Bytes::from_static(&bytes[skipped..]));
            }
        });
    }

    /// Whether the buffers' bytes, one after the other, are those of `pieces`.
    pub(crate) fn body_is(self, of: &[BodyOf], pieces: &[Bytes]) -> bool {
        let mut pieces = pieces.iter().map(|p| &p[..]).filter(|p| !p.is_empty());
        let mut piece: &[u8] = &[];
        let mut same = true;
        for of in of {
            self.chunks(*of, |chunk| {
                // SAFETY: used before anything can change the buffer.
                let mut bytes = unsafe { lent(chunk) };
                while same && !bytes.is_empty() {
                    if piece.is_empty() {
                        match pieces.next() {
                            Some(next) => piece = next,
                            None => {
                                same = false;
                                return;
                            }
                        }
                    }
                    let n = piece.len().min(bytes.len());
                    // The usual case: the engine gave back what it was lent.
                    same = std::ptr::eq(piece.as_ptr(), bytes.as_ptr()) || piece[..n] == bytes[..n];
                    piece = &piece[n..];
                    bytes = &bytes[n..];
                }
            });
        }
        same && piece.is_empty() && pieces.next().is_none()
    }

    /// Appends to a body buffer.
    pub(crate) fn append_body(self, of: BodyOf, bytes: &[u8]) -> bool {
        // SAFETY: the stream lives; Envoy copies.
        unsafe { (callbacks().http_append_body)(self.ptr(), of as i32, Buffer::of(bytes)) }
    }

    /// Removes all bytes of a body buffer.
    pub(crate) fn drain_body(self, of: BodyOf) {
        let n = usize::try_from(self.body_len(of)).unwrap_or(usize::MAX);
        if n > 0 {
            // SAFETY: the stream lives; nothing that was lent of this buffer is used after.
            unsafe { (callbacks().http_drain_body)(self.ptr(), of as i32, n) };
        }
    }

    /// Raises the number of bytes that Envoy keeps before it answers 413 or 500 by itself.
    pub(crate) fn raise_buffer_limit(self, to: u64) {
        // SAFETY: the stream lives.
        unsafe {
            if (callbacks().http_get_buffer_limit)(self.ptr()) < to {
                (callbacks().http_set_buffer_limit)(self.ptr(), to);
            }
        }
    }

    /// Answers the client. May destroy the stream before it returns.
    pub(crate) fn send_response(
        self,
        status: u32,
        fields: &[(&[u8], &[u8])],
        body: &[u8],
        details: &[u8],
    ) {
        let fields = fields_of(fields);
        // SAFETY: the stream lives; Envoy copies before it returns.
        unsafe {
            (callbacks().http_send_response)(
                self.ptr(),
                status,
                fields.as_ptr(),
                fields.len(),
                Buffer::of(body),
                Buffer::of(details),
            );
        }
    }

    /// Begins an answer. May destroy the stream before it returns, as may the next two.
    pub(crate) fn send_head(self, fields: &[(&[u8], &[u8])], end: bool) {
        let fields = fields_of(fields);
        // SAFETY: as `send_response`.
        unsafe {
            (callbacks().http_send_response_headers)(
                self.ptr(),
                fields.as_ptr(),
                fields.len(),
                end,
            );
        }
    }

    /// Goes on with an answer.
    pub(crate) fn send_data(self, bytes: &[u8], end: bool) {
        // SAFETY: as `send_response`.
        unsafe { (callbacks().http_send_response_data)(self.ptr(), Buffer::of(bytes), end) }
    }

    /// Ends an answer.
    pub(crate) fn send_trailers(self, fields: &[(&[u8], &[u8])]) {
        let fields = fields_of(fields);
        // SAFETY: as `send_response`.
        unsafe {
            (callbacks().http_send_response_trailers)(self.ptr(), fields.as_ptr(), fields.len());
        }
    }

    /// Aborts the stream on both sides; destroys it before it returns.
    pub(crate) fn reset(self, details: &[u8]) {
        const LOCAL_RESET: i32 = 0;
        // SAFETY: the stream lives until the call; nothing of it is used after.
        unsafe {
            (callbacks().http_filter_reset_stream)(self.ptr(), LOCAL_RESET, Buffer::of(details));
        }
    }

    /// Lets a stopped request go on. Other filters run, and the stream may die, before it returns.
    pub(crate) fn continue_request(self) {
        // SAFETY: the stream lives; the caller holds no borrow that the hooks inside could need.
        unsafe { (callbacks().http_filter_continue_decoding)(self.ptr()) }
    }

    /// Lets a stopped response go on, as [`Filter::continue_request`].
    pub(crate) fn continue_response(self) {
        // SAFETY: as `continue_request`.
        unsafe { (callbacks().http_filter_continue_encoding)(self.ptr()) }
    }

    /// A way to get back onto the stream's thread.
    pub(crate) fn scheduler(self) -> Option<Scheduler> {
        // SAFETY: on the stream's own thread, while it lives.
        let ptr = unsafe { (callbacks().http_filter_scheduler_new)(self.ptr()) };
        NonNull::new(ptr).map(|ptr| Scheduler { ptr })
    }

    /// An attribute that is text.
    pub(crate) fn attribute(self, id: i32, out: &mut Vec<u8>) -> bool {
        let mut value = Buffer::EMPTY;
        // SAFETY: copied before anything can change it.
        unsafe {
            let found =
                (callbacks().http_filter_get_attribute_string)(self.ptr(), id, &raw mut value);
            if found {
                out.extend_from_slice(lent(value));
            }
            found
        }
    }

    /// An attribute that is a number.
    pub(crate) fn attribute_number(self, id: i32) -> Option<u64> {
        let mut value = 0;
        // SAFETY: the stream lives.
        let found =
            unsafe { (callbacks().http_filter_get_attribute_int)(self.ptr(), id, &raw mut value) };
        found.then_some(value)
    }

    /// The cluster that the route names.
    pub(crate) fn cluster(self, out: &mut Vec<u8>) -> bool {
        let mut value = Buffer::EMPTY;
        // SAFETY: copied before anything can change it.
        unsafe {
            let found = (callbacks().http_get_cluster_name)(self.ptr(), &raw mut value);
            if found {
                out.extend_from_slice(lent(value));
            }
            found
        }
    }

    /// Has the route chosen again, by the head as it is now.
    pub(crate) fn clear_route_cache(self) {
        // SAFETY: the stream lives.
        unsafe { (callbacks().http_clear_route_cache)(self.ptr()) }
    }

    /// The object that the most specific route's configuration made, if one has some.
    pub(super) fn route_config(self) -> *const c_void {
        // SAFETY: the stream lives.
        unsafe { (callbacks().get_most_specific_route_config)(self.ptr()) }
    }

    /// Sets an entry of the stream's dynamic metadata.
    pub(crate) fn set_metadata(self, namespace: &[u8], key: &[u8], value: &[u8]) {
        // SAFETY: the stream lives; Envoy copies.
        unsafe {
            (callbacks().http_set_dynamic_metadata_string)(
                self.ptr(),
                Buffer::of(namespace),
                Buffer::of(key),
                Buffer::of(value),
            );
        }
    }

    /// An entry of the stream's dynamic metadata, if it is text.
    pub(crate) fn metadata(self, namespace: &[u8], key: &[u8], out: &mut Vec<u8>) -> bool {
        const DYNAMIC: i32 = 0;
        let mut value = Buffer::EMPTY;
        // SAFETY: copied before anything can change it.
        unsafe {
            let found = (callbacks().http_get_metadata_string)(
                self.ptr(),
                DYNAMIC,
                Buffer::of(namespace),
                Buffer::of(key),
                &raw mut value,
            );
            if found {
                out.extend_from_slice(lent(value));
            }
            found
        }
    }

    /// An entry of the stream's filter state, if it is bytes.
    pub(crate) fn filter_state(self, key: &[u8], out: &mut Vec<u8>) -> bool {
        let mut value = Buffer::EMPTY;
        // SAFETY: copied before anything can change it.
        unsafe {
            let found = (callbacks().http_get_filter_state_bytes)(
                self.ptr(),
                Buffer::of(key),
                &raw mut value,
            );
            if found {
                out.extend_from_slice(lent(value));
            }
            found
        }
    }

    /// Sets an entry of the stream's filter state.
    pub(crate) fn set_filter_state(self, key: &[u8], value: &[u8]) -> bool {
        // SAFETY: the stream lives; Envoy copies.
        unsafe {
            (callbacks().http_set_filter_state_bytes)(
                self.ptr(),
                Buffer::of(key),
                Buffer::of(value),
            )
        }
    }
}

/// Runs the `scheduled` hook of one stream on its own thread. Deleted when dropped.
#[derive(Debug)]
pub(crate) struct Scheduler {
    ptr: NonNull<c_void>,
}

// SAFETY: made for other threads; Envoy copies what it needs of the stream by weak reference.
unsafe impl Send for Scheduler {}
// SAFETY: commits of several threads at once are what it is for.
unsafe impl Sync for Scheduler {}

impl Scheduler {
    fn raw(&self) -> SchedulerPtr {
        self.ptr.as_ptr()
    }

    /// Any thread. Nothing happens if the stream is gone when its thread gets there. The dispatcher must still live: whoever
    /// commits from another thread sees to it that the stream does until the call returns.
    pub(crate) fn commit(&self) {
        // SAFETY: not deleted before it is dropped.
        unsafe { (callbacks().http_filter_scheduler_commit)(self.raw(), 0) }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: once.
        unsafe { (callbacks().http_filter_scheduler_delete)(self.raw()) }
    }
}

/// Envoy's object of one filter configuration, usable on the main thread while the configuration lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config(NonNull<c_void>);

/// Runs the `config_scheduled` hook on the main thread. Deleted when dropped.
#[derive(Debug)]
pub(crate) struct ConfigBell {
    ptr: NonNull<c_void>,
}

// SAFETY: as `Scheduler`.
unsafe impl Send for ConfigBell {}
// SAFETY: as `Scheduler`.
unsafe impl Sync for ConfigBell {}

impl ConfigBell {
    /// Any thread.
    pub(crate) fn ring(&self) {
        // SAFETY: not deleted before it is dropped.
        unsafe { (callbacks().http_filter_config_scheduler_commit)(self.ptr.as_ptr(), 0) }
    }
}

impl Drop for ConfigBell {
    fn drop(&mut self) {
        // SAFETY: once.
        unsafe { (callbacks().http_filter_config_scheduler_delete)(self.ptr.as_ptr()) }
    }
}

/// What kind of statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StatKind {
    Counter,
    Gauge,
    Histogram,
}

/// A statistic that was defined in one configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    kind: StatKind,
    id: usize,
}

impl Config {
    pub(super) fn new(ptr: ConfigPtr) -> Option<Self> {
        NonNull::new(ptr).map(Self)
    }

    /// A way to get onto the main thread.
    pub(crate) fn bell(self) -> Option<ConfigBell> {
        // SAFETY: in the hook that makes the configuration.
        let ptr = unsafe { (callbacks().http_filter_config_scheduler_new)(self.0.as_ptr()) };
        NonNull::new(ptr).map(|ptr| ConfigBell { ptr })
    }

    /// Defines a statistic; only inside the hook that makes the configuration.
    pub(crate) fn define(self, kind: StatKind, name: &str, labels: &[&str]) -> Option<Stat> {
        let labels: Vec<_> = labels.iter().map(|l| Buffer::of(l.as_bytes())).collect();
        let define = match kind {
            StatKind::Counter => callbacks().http_filter_config_define_counter,
            StatKind::Gauge => callbacks().http_filter_config_define_gauge,
            StatKind::Histogram => callbacks().http_filter_config_define_histogram,
        };
        let mut id = 0;
        // SAFETY: in that hook; Envoy copies the texts.
        let result = unsafe {
            define(
                self.0.as_ptr(),
                Buffer::of(name.as_bytes()),
                labels.as_ptr(),
                labels.len(),
                &raw mut id,
            )
        };
        (result == 0).then_some(Stat { kind, id })
    }

    /// Adds to a counter, sets a gauge, or observes; on the main thread.
    pub(crate) fn record(self, stat: Stat, labels: &[&str], value: u64) -> bool {
        let labels: smallvec::SmallVec<[Buffer; 4]> =
            labels.iter().map(|l| Buffer::of(l.as_bytes())).collect();
        let record = match stat.kind {
            StatKind::Counter => callbacks().http_filter_config_increment_counter,
            StatKind::Gauge => callbacks().http_filter_config_set_gauge,
            StatKind::Histogram => callbacks().http_filter_config_record_histogram_value,
        };
        // SAFETY: the configuration lives, and this is its thread.
        let result = unsafe {
            record(
                self.0.as_ptr(),
                stat.id,
                labels.as_ptr(),
                labels.len(),
                value,
            )
        };
        result == 0
    }
}

/// Number of Envoy's workers; on the main thread.
pub(crate) fn concurrency() -> u32 {
    // SAFETY: on the main thread, as the caller says.
    unsafe { (callbacks().get_concurrency)() }
}

/// Whether this Envoy tells modules the size of a request: since 1.40.
pub(crate) fn has_request_size() -> bool {
    is_resolved() && callbacks().http_has_filter_state.is_some()
}

/// Whether Envoy only checks a configuration; on the main thread.
pub(crate) fn is_validating() -> bool {
    // SAFETY: on the main thread, as the caller says.
    callbacks()
        .is_validation_mode
        .is_some_and(|is| unsafe { is() })
}

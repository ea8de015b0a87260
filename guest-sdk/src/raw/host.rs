//! The host's table, made safe.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use proxy_golang_abi as abi;
use proxy_golang_abi::{LogLevel, Status};

/// The host: a handle that can be copied, kept for ever and used from any thread.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Host(&'static abi::Host);

// SAFETY: the table is immutable and alive as long as the process, and every function that this type calls is
// [any-thread] (host contract); `scratch_more` is not reachable from here.
unsafe impl Send for Host {}
// SAFETY: as for Send.
unsafe impl Sync for Host {}

/// The table of `pxg.metrics/1`.
#[derive(Clone, Copy)]
pub(crate) struct MetricsTable {
    host: Host,
    table: &'static abi::ext::MetricsV1,
}

// SAFETY: as for `Host`: an immutable table of [any-thread] functions.
unsafe impl Send for MetricsTable {}
// SAFETY: as for Send.
unsafe impl Sync for MetricsTable {}

impl Host {
    /// # Safety
    /// `table` must be a host's table that stays valid and unchanged as long as the process.
    pub(super) unsafe fn new(table: *const abi::Host) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { &*table })
    }

    #[inline(always)]
    pub(super) fn table(self) -> &'static abi::Host {
        self.0
    }

    /// The host's name and version, as it says them.
    #[must_use]
    pub fn name(self) -> String {
        // SAFETY: strings of the table live as long as the process (host contract).
        let (name, version) = unsafe {
            (
                super::view::bytes(&self.0.name),
                super::view::bytes(&self.0.version),
            )
        };
        let (name, version) = (
            String::from_utf8_lossy(name),
            String::from_utf8_lossy(version),
        );
        format!("{name} {version}").trim_end().to_owned()
    }

    /// What the host can do at best; a configuration gets a subset, see [`crate::ConfigInput::has`].
    #[must_use]
    pub fn features(self) -> &'static abi::feature::FeatureSet {
        &self.0.features
    }

    /// Upper bound of worker indices in this process; `None` if the host does not say.
    #[must_use]
    pub fn workers(self) -> Option<u32> {
        (self.0.n_workers != 0).then_some(self.0.n_workers)
    }

    /// Whether a line of this level is wanted. One relaxed load, no crossing (PXG-OBS-002).
    #[inline]
    #[must_use]
    pub fn log_on(self, level: LogLevel) -> bool {
        if self.0.log.is_none() {
            return false;
        }
        if self.0.page.is_null() {
            return true;
        }
        // SAFETY: a non-null page lives as long as the process, and its words are only accessed atomically.
        let word =
            unsafe { AtomicU32::from_ptr(&raw const (*self.0.page).log_level.0 as *mut u32) };
        level.0 >= word.load(Ordering::Relaxed)
    }

    /// Whether the host is draining: no new streams, finish the old ones.
    #[must_use]
    pub fn draining(self) -> bool {
        if self.0.page.is_null() {
            return false;
        }
        // SAFETY: as in `log_on`.
        let word = unsafe { AtomicU32::from_ptr(&raw const (*self.0.page).draining as *mut u32) };
        word.load(Ordering::Relaxed) != 0
    }

    /// The host's monotonic clock in nanoseconds as of its last look; `None` where it keeps none.
    #[must_use]
    pub fn monotonic_ns(self) -> Option<u64> {
        if self.0.page.is_null() {
            return None;
        }
        // SAFETY: as in `log_on`.
        let word =
            unsafe { AtomicU64::from_ptr(&raw const (*self.0.page).monotonic_ns as *mut u64) };
        Some(word.load(Ordering::Relaxed)).filter(|&ns| ns != 0)
    }

    /// Writes a line to the host's log, whatever its level; the macros [`crate::info!`] and so on look first.
    pub fn log(self, level: LogLevel, line: &str) {
        if let Some(log) = self.0.log {
            // SAFETY: [any-thread]; the host copies the line before it returns.
            unsafe { log(self.0.ctx, level, line.as_ptr(), line.len() as u64) }
        }
    }

    /// # Safety
    /// Everything that `r` points to must be valid during the call. Owned buffers in it pass to the host.
    pub(super) unsafe fn complete(self, token: u64, r: &abi::EventResult) -> Status {
        match self.0.complete {
            // SAFETY: [any-thread]; the rest is the caller's.
            Some(complete) => unsafe { complete(self.0.ctx, token, r) },
            None => Status::UNSUPPORTED,
        }
    }

    /// # Safety
    /// As for `complete`.
    pub(super) unsafe fn apply(self, stream: u64, r: &abi::EventResult) -> Status {
        match self.0.apply {
            // SAFETY: [any-thread]; the rest is the caller's.
            Some(apply) => unsafe { apply(self.0.ctx, stream, r) },
            None => Status::UNSUPPORTED,
        }
    }

    pub(crate) fn can_apply(self) -> bool {
        self.0.apply.is_some()
    }

    pub(crate) fn can_complete(self) -> bool {
        self.0.complete.is_some()
    }

    pub(crate) fn wake(self, stream: u64, arg: u64) -> Status {
        match self.0.wake {
            // SAFETY: [any-thread], and takes values only.
            Some(wake) => unsafe { wake(self.0.ctx, stream, arg) },
            None => Status::UNSUPPORTED,
        }
    }

    /// The host's metrics, if it has `pxg.metrics/1`.
    pub(crate) fn metrics_table(self) -> Option<MetricsTable> {
        let get_ext = self.0.get_ext?;
        let id = abi::ext::METRICS_V1_ID;
        // SAFETY: [any-thread]; the id is valid during the call.
        let table = unsafe { get_ext(self.0.ctx, id.as_ptr(), id.len() as u64) };
        if table.is_null() {
            return None;
        }
        // SAFETY: an extension's table lives as long as the process and starts with its size.
        let size = unsafe { *table.cast::<u32>() };
        if (size as usize) < size_of::<abi::ext::MetricsV1>() {
            return None;
        }
        // SAFETY: as above, and it is at least as long as this version's table.
        let table = unsafe { &*table.cast::<abi::ext::MetricsV1>() };
        Some(MetricsTable { host: self, table })
    }
}

impl MetricsTable {
    pub(crate) fn define(
        &self,
        kind: abi::ext::MetricKind,
        name: &str,
        labels: &[(&str, &str)],
    ) -> Result<u32, Status> {
        let define = self.table.define.ok_or(Status::UNSUPPORTED)?;
        let labels: Vec<abi::Field> = labels
            .iter()
            .map(|(k, v)| abi::Field {
                name: abi::Str::new(k.as_bytes()),
                value: abi::Str::new(v.as_bytes()),
            })
            .collect();
        let name = abi::Str::new(name.as_bytes());
        let mut id = 0;
        // SAFETY: [any-thread]; the host copies its arguments before it returns.
        let status = unsafe {
            define(
                self.host.0.ctx,
                kind,
                &name,
                labels.as_ptr(),
                labels.len() as u64,
                &mut id,
            )
        };
        if status.0 < 0 { Err(status) } else { Ok(id) }
    }

    pub(crate) fn record(&self, id: u32, value: i64) -> Status {
        match self.table.record {
            // SAFETY: [any-thread], and takes values only.
            Some(record) => unsafe { record(self.host.0.ctx, id, value) },
            None => Status::UNSUPPORTED,
        }
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Host({})", self.name())
    }
}

impl std::fmt::Debug for MetricsTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MetricsTable({:?})", self.host)
    }
}

//! Deciding a request on another thread.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};

use proxy_golang_guest::prelude::*;

/// A rendezvous of requests: one with the header `x-wait-for: KEY` is held until another request with
/// `x-release: KEY` passes. A thread of its own does the waiting, and then lets the held request go on with the header
/// `x-released-by`, whose value is the releasing request's path. A key that was released before does not wait.
/// Requests with neither header pass untouched. Its configuration is empty.
pub struct AsyncEcho {
    released: std::sync::Arc<Released>,
}

#[derive(Default)]
struct Released {
    by_key: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    changed: Condvar,
}

impl Released {
    fn release(&self, key: &[u8], by: &[u8]) {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.insert(key.to_vec(), by.to_vec());
        self.changed.notify_all();
    }

    /// Waits for the key; `None` once the request was cancelled.
    fn wait(&self, key: &[u8], pending: &Pending) -> Option<Vec<u8>> {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(by) = by_key.get(key) {
                return Some(by.clone());
            }
            if pending.is_cancelled() {
                return None;
            }
            by_key = self
                .changed
                .wait(by_key)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Makes the waiting threads look whether they still should.
    fn look_again(&self) {
        drop(self.by_key.lock());
        self.changed.notify_all();
    }
}

impl Filter for AsyncEcho {
    type Ctx = ();

    fn configure(input: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        if !input.bytes().trim_ascii().is_empty() {
            return Err(ConfigError::new(
                "found a configuration; async-echo takes none: leave it empty",
            ));
        }
        Ok(Self {
            released: std::sync::Arc::default(),
        })
    }

    fn on_cancel(&self, (): &mut ()) {
        self.released.look_again();
    }
}

impl OnRequestHeaders for AsyncEcho {
    const MAY_PEND: bool = true;

    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        let headers = ev.headers();
        if let Some(key) = headers.get("x-release") {
            self.released
                .release(key, headers.get(":path").unwrap_or_default());
        }
        let Some(key) = headers.get("x-wait-for") else {
            return Ok(Verdict::Continue);
        };
        // Views die with the call: the thread gets a copy.
        let key = key.to_vec();
        let released = std::sync::Arc::clone(&self.released);
        let (verdict, pending) = ev.defer()?;
        std::thread::Builder::new().spawn(move || {
            if let Some(by) = released.wait(&key, &pending) {
                // A late completion is harmless, and there is nobody to tell.
                let _ = pending.complete(Completion::resume().set_header("x-released-by", by));
            }
        })?;
        Ok(verdict)
    }
}

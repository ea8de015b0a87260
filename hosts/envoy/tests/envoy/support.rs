//! Waiting.

use std::time::{Duration, Instant};

/// Far longer than anything takes: it only ends tests that hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until it is so; for what is seen only from outside.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a client that needs an event loop.
pub(crate) fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, client)
            .await
            .expect("the client hangs")
    })
}

//! What a case waits for: records, requests at the upstream, lines of the host, its end. Each tells that something has
//! changed; who waits looks again then.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::sys::clock::Patience;
use crate::sys::readable::readable;

/// Who waits looks again after this time without a change: some file systems tell none.
const TICK: Duration = Duration::from_millis(100);

/// The changes of a run. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Changes(Arc<Notify>);

/// What comes of `f` within `limit`, which a busy machine stretches; None if nothing does.
pub(crate) async fn in_time<T>(limit: Duration, f: impl Future<Output = T>) -> Option<T> {
    let mut patience = Patience::new(limit);
    let mut f = pin!(f);
    loop {
        let left = patience
            .deadline()
            .saturating_duration_since(Instant::now());
        if let Ok(t) = tokio::time::timeout(left, f.as_mut()).await {
            return Some(t);
        }
        if patience.over() {
            return None;
        }
    }
}

/// Ends what follows a folder or a process when it is dropped.
pub(crate) struct Watch(AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Changes {
    /// Something has changed. From any thread.
    pub(crate) fn tell(&self) {
        self.0.notify_waiters();
    }

    /// What `so` answers as soon as it answers something; None if it has not when `patience` is over.
    pub(crate) async fn until<T>(
        &self,
        patience: &mut Patience,
        mut so: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        loop {
            // Made before the look, so that nothing comes between the two.
            let next = pin!(self.0.notified());
            let found = so();
            if found.is_some() || patience.over() {
                return found;
            }
            let left = patience
                .deadline()
                .saturating_duration_since(Instant::now());
            let _ = tokio::time::timeout(left.min(TICK), next).await;
        }
    }

    /// Tells of every file that is made or written to in the folder `dir`.
    pub(crate) fn of_folder(&self, dir: &Path) -> Result<Watch> {
        let events = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)
            .context("cannot make an inotify descriptor")?;
        inotify::add_watch(
            &events,
            dir,
            inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY,
        )
        .with_context(|| format!("cannot watch {}", dir.display()))?;
        self.follow(events, |events| {
            let mut some = [0u8; 4096];
            while rustix::io::read(events, &mut some).is_ok_and(|n| n > 0) {}
            true
        })
    }

    /// Tells of the end of a process.
    pub(crate) fn of_process(&self, pid: Pid) -> Result<Watch> {
        let end =
            pidfd_open(pid, PidfdFlags::NONBLOCK).context("cannot watch the host's process")?;
        self.follow(end, |_| false)
    }

    /// Tells each time when `from` is readable, for as long as `goes_on`.
    fn follow(&self, from: OwnedFd, goes_on: impl Fn(&OwnedFd) -> bool + 'static) -> Result<Watch> {
        let from = readable(from)?;
        let changes = self.clone();
        let task = tokio::task::spawn_local(async move {
            while let Ok(mut ready) = from.readable().await {
                let again = goes_on(from.get_ref());
                ready.clear_ready();
                changes.tell();
                if !again {
                    break;
                }
            }
        });
        Ok(Watch(task.abort_handle()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    /// How often it was looked until `so`, which took a change and no tick to come true.
    async fn looks(changes: &Changes, mut so: impl FnMut() -> bool) -> u32 {
        let mut looks = 0;
        let mut patience = Patience::new(LONG);
        let found = changes.until(&mut patience, || {
            looks += 1;
            so().then_some(())
        });
        assert!(found.await.is_some());
        looks
    }

    #[test]
    fn a_write_to_a_file_is_a_change() {
        run(async {
            let dir = tempfile::tempdir().expect("a folder");
            let (changes, file) = (Changes::default(), dir.path().join("x"));
            let watch = changes.of_folder(dir.path()).expect("it is watched");
            let written = file.clone();
            std::thread::spawn(move || std::fs::write(written, "1").expect("it is written"));
            let n = looks(&changes, || std::fs::read(&file).is_ok_and(|t| t == b"1")).await;
            assert!(n < 50, "{n} looks");
            drop(watch);
        });
    }

    #[test]
    fn the_end_of_a_process_is_a_change() {
        run(async {
            let changes = Changes::default();
            let mut child = std::process::Command::new("true").spawn().expect("true");
            let _watch = changes
                .of_process(Pid::from_child(&child))
                .expect("it is watched");
            looks(&changes, || child.try_wait().is_ok_and(|s| s.is_some())).await;
        });
    }

    #[test]
    fn what_does_not_come_is_waited_for_no_longer() {
        run(async {
            let (began, limit) = (Instant::now(), Duration::from_millis(5));
            let mut patience = Patience::new(limit);
            let changes = Changes::default();
            assert_eq!(changes.until(&mut patience, || None::<()>).await, None);
            assert!(in_time(limit, std::future::pending::<()>()).await.is_none());
            assert!(began.elapsed() >= 2 * limit);
        });
    }
}

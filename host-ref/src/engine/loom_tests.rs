//! Every interleaving of the calls that guests make from any thread, on small tables (run with `--cfg loom`).

use std::sync::Arc as StdArc;

use bytes::Bytes;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::thread;
use proxy_golang_abi::{Action, Phase, Status};

use super::hub::{Hub, HubLimits, Item};
use super::outcome::{KeptOutcome, Op, OpKind, Outcome, Payload};
use super::table::{FreeList, Settled, State, Table};

const LIBRARY: u32 = 1;

/// A table with its first chunk in place, and one live value.
fn table(state: State) -> (Arc<Table>, FreeList, u64) {
    let table = Arc::new(Table::new());
    let mut free = FreeList::default();
    let value = table
        .issue(&mut free, 0, LIBRARY, 7, state, Phase(0))
        .unwrap();
    (table, free, value)
}

/// PXG-ASY-001, PXG-ASY-009: of `complete` and the death of a PENDING exactly one wins.
#[test]
fn complete_or_cancel() {
    loom::model(|| {
        let (table, mut free, token) = table(State::Issued);
        assert_eq!(table.pend(token), Settled::Plain);
        let other = Arc::clone(&table);
        let guest = thread::spawn(move || other.complete(LIBRARY, token).is_some());
        let was = table.retire(&mut free, token);
        let completed = guest.join().unwrap();
        assert_eq!(
            was,
            if completed {
                State::Done
            } else {
                State::Pending
            }
        );
        assert!(table.complete(LIBRARY, token).is_none(), "STALE for ever");
    });
}

/// PXG-ASY-004: a completion that comes around the return of `on_event` is accepted once and not lost.
#[test]
fn complete_around_the_return() {
    loom::model(|| {
        let (table, mut free, token) = table(State::Issued);
        let other = Arc::clone(&table);
        let guest = thread::spawn(move || {
            let to = other.complete(LIBRARY, token);
            assert_eq!(to.unwrap().stream, 7, "nothing ended it");
        });
        let settled = table.pend(token);
        let early = table.is_done(token);
        assert!(settled == Settled::Plain || early);
        guest.join().unwrap();
        assert!(table.is_done(token));
        assert_eq!(table.retire(&mut free, token), State::Done);
    });
}

/// PXG-ASY-001: two completers.
#[test]
fn one_of_two_completers_wins() {
    loom::model(|| {
        let (table, _free, token) = table(State::Issued);
        let wins = Arc::new(AtomicUsize::new(0));
        let guests: Vec<_> = (0..2)
            .map(|_| {
                let (table, wins) = (Arc::clone(&table), Arc::clone(&wins));
                thread::spawn(move || {
                    if table.complete(LIBRARY, token).is_some() {
                        wins.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        let _ = table.pend(token);
        guests.into_iter().for_each(|g| g.join().unwrap());
        assert_eq!(wins.load(SeqCst), 1);
    });
}

/// PXG-ASY-002: a late `complete` never reaches the next owner of the slot, nor its address.
#[test]
fn a_late_complete_and_the_next_owner() {
    loom::model(|| {
        let (table, mut free, token) = table(State::Issued);
        let other = Arc::clone(&table);
        let guest = thread::spawn(move || other.complete(LIBRARY, token));
        let was = table.retire(&mut free, token);
        let next = table
            .issue(&mut free, 0, 2, 8, State::Issued, Phase(0))
            .unwrap();
        assert_ne!(next, token);
        let to = guest.join().unwrap();
        assert_eq!(to.is_some(), was == State::Done);
        assert!(to.is_none_or(|to| to.stream == 7));
        assert_eq!(table.retire(&mut free, next), State::Issued, "untouched");
    });
}

/// `wake` and `apply` on a handle that dies: what they add never reaches the next owner of the slot.
#[test]
fn a_late_visitor_and_the_next_owner() {
    for write in [false, true] {
        loom::model(move || {
            let (table, mut free, handle) = table(State::WakeHandle);
            let other = Arc::clone(&table);
            let guest = thread::spawn(move || {
                if write {
                    let _ = other.apply(LIBRARY, handle, 10, 5);
                } else {
                    let _ = other.wake(LIBRARY, handle, 1);
                }
            });
            table.retire(&mut free, handle);
            let next = table
                .issue(&mut free, 0, LIBRARY, 8, State::WakeHandle, Phase(0))
                .unwrap();
            guest.join().unwrap();
            assert_eq!(table.take_wakes(next), 0);
            assert!(matches!(table.wake(LIBRARY, next, 2), Ok(Some(to)) if to.stream == 8));
            assert!(matches!(
                table.apply(LIBRARY, next, 5, 5),
                Ok((_, Status::OK))
            ));
        });
    }
}

/// PXG-ASY-013: every accepted wake is followed by mail after it, and its value is not lost.
#[test]
fn wakes_are_not_lost() {
    loom::model(|| {
        let (table, _free, handle) = table(State::WakeHandle);
        let mails = Arc::new(AtomicUsize::new(0));
        let guests: Vec<_> = [1, 2]
            .into_iter()
            .map(|arg| {
                let (table, mails) = (Arc::clone(&table), Arc::clone(&mails));
                thread::spawn(move || {
                    if table.wake(LIBRARY, handle, arg).unwrap().is_some() {
                        mails.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        // The worker handles the mail that is there, in between and at the end.
        let mut seen = 0;
        let mut taken = 0;
        if mails.load(SeqCst) > 0 {
            seen |= table.take_wakes(handle);
            taken += 1;
        }
        guests.into_iter().for_each(|g| g.join().unwrap());
        while taken < mails.load(SeqCst) {
            seen |= table.take_wakes(handle);
            taken += 1;
        }
        assert_eq!(seen, 3);
        assert!(taken > 0);
    });
}

/// Whoever is full is told when it is not any more, though bytes leave while `apply` runs.
#[test]
fn full_is_followed_by_writable() {
    loom::model(|| {
        let (table, _free, handle) = table(State::WakeHandle);
        assert!(matches!(
            table.apply(LIBRARY, handle, 4, 10),
            Ok((_, Status::OK))
        ));
        let other = Arc::clone(&table);
        let guest = thread::spawn(move || other.apply(LIBRARY, handle, 8, 10).unwrap().1);
        let mut writable = table.written(handle, 4, 10);
        let status = guest.join().unwrap();
        // Its bytes leave after its mail has come.
        writable |= table.written(handle, 8, 10);
        assert_eq!(writable, status == Status::FULL);
        assert!(matches!(
            table.apply(LIBRARY, handle, 1, 10),
            Ok((_, Status::OK))
        ));
    });
}

/// PXG-ASY-016: the worker never sleeps on mail.
#[test]
fn no_mail_is_left_behind_a_sleeping_worker() {
    loom::model(|| {
        let hub = Hub::new(1, HubLimits::default());
        let mut free = FreeList::default();
        let mut issue = || {
            hub.table
                .issue(&mut free, 0, LIBRARY, 7, State::Issued, Phase(0))
                .unwrap()
        };
        let tokens = [issue(), issue()];
        let notified = StdArc::new(AtomicUsize::new(0));
        let count = StdArc::clone(&notified);
        hub.set_notify(
            0,
            Box::new(move || {
                count.fetch_add(1, SeqCst);
            }),
        );
        let guests: Vec<_> = tokens
            .into_iter()
            .map(|token| {
                let hub = StdArc::clone(&hub);
                let outcome = KeptOutcome::new(Outcome::of(Action::CONTINUE, 0));
                thread::spawn(move || assert_eq!(hub.complete(LIBRARY, token, outcome), Status::OK))
            })
            .collect();
        let (mut seen, mut wakeups) = (0, 0);
        let drain = |seen: &mut usize| {
            while let Some(mail) = hub.take(0) {
                assert!(
                    matches!(mail.item, Item::Complete { token, .. } if tokens.contains(&token))
                );
                *seen += 1;
            }
        };
        // One round while they run, then a round for each notification that was not answered by one.
        if notified.load(SeqCst) > wakeups {
            wakeups = notified.load(SeqCst);
            drain(&mut seen);
        }
        guests.into_iter().for_each(|g| g.join().unwrap());
        if notified.load(SeqCst) > wakeups {
            drain(&mut seen);
        }
        assert_eq!(seen, 2, "the worker sleeps on mail");
    });
}

struct Counted(Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        b"x"
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// PXG-MEM-006: an owned buffer is released once, whether `complete` wins or loses.
#[test]
fn buffers_of_a_racing_completion_are_released_once() {
    loom::model(|| {
        let hub = Hub::new(1, HubLimits::default());
        let mut free = FreeList::default();
        let token = hub
            .table
            .issue(&mut free, 0, LIBRARY, 7, State::Issued, Phase(0))
            .unwrap();
        let released = Arc::new(AtomicUsize::new(0));
        let buffer = Bytes::from_owner(Counted(Arc::clone(&released)));
        let mut outcome = Outcome::of(Action::CONTINUE, 0);
        outcome.ops.push(Op {
            must: false,
            sensitive: false,
            kind: OpKind::Inject(Payload::Shared(buffer)),
        });
        let kept = KeptOutcome::new(outcome);
        let other = StdArc::clone(&hub);
        let guest = thread::spawn(move || other.complete(LIBRARY, token, kept));
        let was = hub.table.retire(&mut free, token);
        let status = guest.join().unwrap();
        assert_eq!(status == Status::OK, was == State::Done);
        drop(hub.take(0));
        assert_eq!(released.load(SeqCst), 1);
    });
}

//! Deferred events, cancels, applications and wakes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use proxy_golang_guest::prelude::*;
use proxy_golang_guest::testing::{End, TestHost, get, request, response};
use proxy_golang_guest::{Cancellation, HostError, Library, StreamHandle, library};

/// Decides as the header `x-do` says, on a thread of its own or at once.
struct Decides;

static CANCELS: AtomicU32 = AtomicU32::new(0);
static CANCELLATIONS: Mutex<Option<mpsc::Sender<Cancellation>>> = Mutex::new(None);

impl Filter for Decides {
    type Ctx = ();

    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }

    fn on_cancel(&self, (): &mut ()) {
        CANCELS.fetch_add(1, Ordering::SeqCst);
    }
}

impl OnRequestHeaders for Decides {
    const MAY_PEND: bool = true;

    fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
        let what = ev.headers().get_str("x-do").unwrap_or_default().to_owned();
        let (verdict, pending) = ev.defer()?;
        assert!(ev.defer().is_err(), "an event is deferred once");
        match what.as_str() {
            "early" => pending.complete(Completion::resume().set_header("x-done", "early"))?,
            "late" => drop(thread::spawn(move || {
                pending
                    .complete(
                        Completion::resume()
                            .set_header("x-done", "late")
                            .remove_header("x-do"),
                    )
                    .unwrap();
            })),
            "reply" => drop(thread::spawn(move || {
                let reply = Reply::new(401)
                    .header("x-why", "no")
                    .body("no")
                    .body(vec![b'!'; 3])
                    .details("token");
                pending.complete(Completion::reply(reply)).unwrap();
            })),
            "reset" => drop(thread::spawn(move || {
                pending.complete(Completion::reset()).unwrap()
            })),
            "error" => drop(thread::spawn(move || {
                pending.complete(Completion::error("no answer")).unwrap()
            })),
            "drop" => drop(thread::spawn(move || drop(pending))),
            "panic" => drop(thread::spawn(move || {
                let _moved = pending;
                panic!("the worker dies on purpose");
            })),
            "never" => {
                let sender = CANCELLATIONS
                    .lock()
                    .unwrap()
                    .clone()
                    .expect("the test listens");
                thread::spawn(move || {
                    let cancellation = pending.cancellation();
                    assert!(
                        cancellation.wait_timeout(Duration::from_secs(30)),
                        "a cancel comes"
                    );
                    assert_eq!(pending.resume(), Err(HostError::Stale));
                    sender.send(cancellation).unwrap();
                });
            }
            "not-pending" => {
                // The returned action stands, and the token retires (PXG-ASY-005).
                assert!(!pending.is_cancelled());
                let cancellation = pending.cancellation();
                let sender = CANCELLATIONS
                    .lock()
                    .unwrap()
                    .clone()
                    .expect("the test listens");
                thread::spawn(move || {
                    assert!(
                        cancellation.wait_timeout(Duration::from_secs(30)),
                        "it knows that nobody waits"
                    );
                    // Before the host has seen the return it still takes a completion, and discards it.
                    assert!(matches!(pending.resume(), Ok(()) | Err(HostError::Stale)));
                    sender.send(cancellation).unwrap();
                });
                return Ok(Verdict::Continue);
            }
            "operations" => {
                ev.set_header("x-too", "early");
                drop(pending);
            }
            other => return Err(FilterError::new(format!("unknown: {other}"))),
        }
        Ok(verdict)
    }
}

/// Says OK to each body event on another thread, whole body or piece by piece.
struct SlowBody;

impl Filter for SlowBody {
    type Ctx = Vec<u8>;
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnRequestBody for SlowBody {
    const MODE: BodyMode = BodyMode::STREAM;
    const MAY_PEND: bool = true;

    fn on_request_body(&self, seen: &mut Vec<u8>, ev: &BodyEvent<'_>) -> Outcome {
        let view = ev.to_vec();
        assert_eq!(ev.offset() as usize, seen.len());
        seen.extend_from_slice(&view);
        let (verdict, pending) = ev.defer()?;
        thread::spawn(move || {
            let upper = view.to_ascii_uppercase();
            // Half in place, half handed over.
            let half = view.len() / 2;
            pending
                .complete(
                    Completion::resume()
                        .discard(half)
                        .inject(upper[..half].to_vec())
                        .pass(view.len() - half),
                )
                .unwrap();
        });
        Ok(verdict)
    }
}

/// Acts on the stream from outside its events.
struct Applies;

#[derive(Default)]
struct Woken(u32);

impl Filter for Applies {
    type Ctx = Woken;
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

static LAST: Mutex<Option<StreamHandle>> = Mutex::new(None);

impl OnRequestHeaders for Applies {
    const MAY_PEND: bool = true;

    fn on_request_headers(&self, _: &mut Woken, ev: &HeadersEvent<'_>) -> Outcome {
        let stream = ev.stream();
        match ev.headers().get_str("x-do").unwrap_or_default() {
            "wake" => {
                *LAST.lock().unwrap() = Some(stream);
                stream.wake(1)?;
                stream.wake(4)?;
                let (verdict, pending) = ev.defer()?;
                // Completed by the wake's handler through the handle's stream: kept here by a thread until then.
                thread::spawn(move || {
                    stream.wake(2).unwrap();
                    pending.resume().unwrap();
                });
                Ok(verdict)
            }
            "reply-while-pending" => {
                let (verdict, pending) = ev.defer()?;
                thread::spawn(move || {
                    stream.apply(Completion::reply(Reply::new(503))).unwrap();
                    assert!(pending.cancellation().wait_timeout(Duration::from_secs(30)));
                });
                Ok(verdict)
            }
            "stream" => {
                thread::spawn(move || {
                    for i in 0..10 {
                        stream.write(format!("{i};"), i == 9).unwrap();
                    }
                });
                ev.reply(200).body("begin;").open().send()
            }
            _ => Ok(Verdict::Continue),
        }
    }
}

impl OnWake for Applies {
    fn on_wake(&self, woken: &mut Woken, ev: &WakeEvent<'_>) -> Outcome {
        woken.0 |= ev.arg() as u32;
        ev.set_metadata("woken", woken.0.to_string());
        Ok(Verdict::Continue)
    }
}

static LIBRARY: Library = library! {
    "decides" => Decides,
    "slow-body" => SlowBody,
    "applies" => Applies;
    on_batch_end = |_, _| { BATCHES.fetch_add(1, Ordering::SeqCst); };
};
static BATCHES: AtomicU32 = AtomicU32::new(0);

#[test]
fn completions_early_and_late() {
    for seed in 0..32 {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let config = host.configure("decides", "").unwrap();
        for how in ["early", "late"] {
            let done = config.exchange(get("/").header("x-do", how), response(204));
            assert_eq!(done.end(), &End::Complete);
            assert_eq!(done.upstream().get("x-done"), Some(how));
        }
    }
    assert!(BATCHES.load(Ordering::SeqCst) > 0);
}

#[test]
fn every_way_to_end_a_deferred_event() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("decides", "").unwrap();
    let run = |how: &str| config.exchange(get("/").header("x-do", how), response(204));

    let done = run("reply");
    assert_eq!(done.end(), &End::Replied);
    let got = done.client();
    assert_eq!(
        (got.status(), got.get("x-why"), got.text().as_str()),
        (401, Some("no"), "no!!!")
    );
    assert_eq!(done.details(), "token");

    assert_eq!(run("reset").end(), &End::Reset);
    assert_eq!(run("error").end(), &End::Failed("no answer".to_owned()));
    for (how, want) in [
        ("drop", "without completing"),
        ("panic", "panic: in the thread"),
    ] {
        let done = run(how);
        assert!(
            matches!(done.end(), End::Failed(text) if text.contains(want)),
            "{how}: {:?}",
            done.end()
        );
    }
    let done = run("operations");
    assert!(
        matches!(done.end(), End::Failed(text) if text.contains("pass them with the completion")),
        "{:?}",
        done.end()
    );
}

#[test]
fn a_cancel_reaches_whoever_works_on_it() {
    let (sender, receiver) = mpsc::channel();
    *CANCELLATIONS.lock().unwrap() = Some(sender);
    let host = TestHost::new(&LIBRARY);

    // Steps: before the event, and while it is deferred.
    let config = host.configure("decides", "").unwrap().kill_at(Some(1));
    let before = CANCELS.load(Ordering::SeqCst);
    let done = config.exchange(get("/").header("x-do", "never"), response(204));
    assert_eq!(done.end(), &End::Cancelled);
    assert_eq!(CANCELS.load(Ordering::SeqCst), before + 1);
    assert!(
        receiver
            .recv_timeout(Duration::from_secs(60))
            .unwrap()
            .is_cancelled()
    );

    let config = host
        .configure("decides", "")
        .unwrap()
        .deadline(Duration::ZERO);
    let done = config.exchange(get("/").header("x-do", "never"), response(204));
    assert_eq!(done.end(), &End::Deadline);
    assert!(
        receiver
            .recv_timeout(Duration::from_secs(60))
            .unwrap()
            .is_cancelled()
    );

    let config = host.configure("decides", "").unwrap();
    let done = config.exchange(get("/").header("x-do", "not-pending"), response(204));
    assert_eq!(done.end(), &End::Complete);
    assert!(
        receiver
            .recv_timeout(Duration::from_secs(60))
            .unwrap()
            .is_cancelled()
    );
}

#[test]
fn a_cancellation_is_a_future() {
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};
    struct Flag(thread::Thread);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    struct Waits;
    impl Filter for Waits {
        type Ctx = ();
        fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
            Ok(Self)
        }
    }
    static DONE: Mutex<Option<mpsc::Sender<()>>> = Mutex::new(None);
    impl OnRequestHeaders for Waits {
        const MAY_PEND: bool = true;
        fn on_request_headers(&self, (): &mut (), ev: &HeadersEvent<'_>) -> Outcome {
            let (verdict, pending) = ev.defer()?;
            let done = DONE.lock().unwrap().clone().unwrap();
            thread::spawn(move || {
                let waker = Waker::from(Arc::new(Flag(thread::current())));
                let mut cancelled = pin!(pending.cancellation());
                while cancelled.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
                    thread::park();
                }
                done.send(()).unwrap();
            });
            Ok(verdict)
        }
    }
    static LIBRARY: Library = library! { "waits" => Waits };
    let (sender, receiver) = mpsc::channel();
    *DONE.lock().unwrap() = Some(sender);
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("waits", "").unwrap().kill_at(Some(1));
    assert_eq!(
        config.exchange(get("/"), response(204)).end(),
        &End::Cancelled
    );
    receiver.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn a_body_that_is_decided_piece_by_piece() {
    for seed in 0..32 {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let config = host.configure("slow-body", "").unwrap();
        let done = config.exchange(
            request("POST", "/").body("abcdefgh".repeat(20)),
            response(204),
        );
        assert_eq!(done.end(), &End::Complete);
        assert_eq!(
            done.upstream().text().to_lowercase(),
            "abcdefgh".repeat(20),
            "seed {seed}"
        );
        assert_ne!(done.upstream().text(), "abcdefgh".repeat(20), "seed {seed}");
    }
}

#[test]
fn killed_at_every_step() {
    for seed in 0..16 {
        let host = TestHost::new(&LIBRARY).seed(seed);
        let mut step = 0;
        loop {
            let config = host.configure("slow-body", "").unwrap().kill_at(Some(step));
            let done = config.exchange(request("POST", "/").body("abcdefgh"), response(204));
            if done.end() == &End::Complete {
                break;
            }
            assert_eq!(done.end(), &End::Cancelled, "seed {seed}, step {step}");
            step += 1;
        }
        assert!(step > 0, "seed {seed}: there was a step to die at");
    }
}

#[test]
fn wakes_coalesce_and_none_is_lost() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("applies", "").unwrap();
    let done = config.exchange(get("/").header("x-do", "wake"), response(204));
    assert_eq!(done.end(), &End::Complete);
    assert_eq!(done.metadata("woken"), Some(&b"7"[..]));
    // For ever after the stream's end.
    let handle = LAST.lock().unwrap().expect("the filter kept it");
    assert_eq!(handle.wake(1), Err(HostError::Stale));
    assert_eq!(handle.apply(Completion::reset()), Err(HostError::Stale));
}

#[test]
fn a_reply_by_apply_retires_the_pending_event() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("applies", "").unwrap();
    let done = config.exchange(
        get("/").header("x-do", "reply-while-pending"),
        response(204),
    );
    assert_eq!(done.end(), &End::Replied);
    assert_eq!(done.client().status(), 503);
}

#[test]
fn a_streamed_reply() {
    let host = TestHost::new(&LIBRARY);
    let config = host.configure("applies", "").unwrap();
    let done = config.exchange(get("/").header("x-do", "stream"), response(204));
    assert_eq!(done.end(), &End::Replied);
    assert_eq!(done.client().text(), "begin;0;1;2;3;4;5;6;7;8;9;");
}

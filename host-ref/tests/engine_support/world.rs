//! One stream and its driver.

use std::cell::Cell;
use std::sync::{Arc, Mutex};

use super::*;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(1) };
}

fn now() -> u64 {
    NOW.get()
}

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1_000 * MS;

/// What came out in one direction.
#[derive(Clone, Debug, Default)]
pub struct Out {
    pub head: Option<Vec<(String, String)>>,
    pub length: Option<BodyLength>,
    pub local: bool,
    pub body: Vec<u8>,
    pub trailers: Option<Vec<(String, String)>>,
    pub ended: bool,
}

impl Out {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let head = self.head.as_ref()?;
        let found = head.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    }

    pub fn status(&self) -> &str {
        self.field(":status").unwrap_or("none")
    }

    fn take(&mut self, part: Part<FieldList>) {
        assert!(!self.ended, "a part after the end: {part:?}");
        match part {
            Part::Head {
                head,
                length,
                end,
                local,
            } => {
                assert!(self.head.is_none(), "a second head");
                self.head = Some(pairs(&head));
                self.length = Some(length);
                self.local = local;
                self.ended = end;
            }
            Part::Data(bytes) => {
                assert!(self.head.is_some(), "bytes before the head");
                assert!(!bytes.is_empty(), "an empty part");
                self.body.extend_from_slice(&bytes);
            }
            Part::Trailers(list) => {
                self.trailers = Some(pairs(&list));
                self.ended = true;
            }
            Part::End => self.ended = true,
        }
        if self.ended
            && let Some(BodyLength::Exact(n)) = self.length
        {
            assert_eq!(self.body.len() as u64, n, "framed {:?}", self.length);
        }
    }
}

pub struct World {
    pub hub: Arc<Hub>,
    pub worker: Worker,
    pub stream: Stream<FieldList>,
    pub filters: Vec<Arc<Filter>>,
    pub calls: Calls,
    pub upstream: Out,
    pub client: Out,
    pub signals: Vec<Signal>,
    /// A slow receiver: nothing is taken in this direction.
    pub blocked: [bool; 2],
}

pub fn hub() -> Arc<Hub> {
    Hub::new(
        1,
        HubLimits {
            reply_watermark: 100,
        },
    )
}

impl World {
    pub fn new(filters: Vec<Spec>) -> Self {
        Self::with(hub(), filters, StreamLimits::default())
    }

    pub fn with(hub: Arc<Hub>, filters: Vec<Spec>, limits: StreamLimits) -> Self {
        NOW.set(1);
        let calls: Calls = Arc::new(Mutex::new(Vec::new()));
        let filters: Vec<_> = filters.into_iter().map(|f| f.build(&calls)).collect();
        Self {
            worker: Worker::new(Arc::clone(&hub), 0, now),
            stream: Stream::new(Chain::new(filters.clone()), 7, limits),
            hub,
            filters,
            calls,
            upstream: Out::default(),
            client: Out::default(),
            signals: Vec::new(),
            blocked: [false; 2],
        }
    }

    /// What follows is another exchange, in the memory of this one, which is over.
    pub fn renew(&mut self, limits: StreamLimits) {
        NOW.set(1);
        self.stream
            .renew(&Chain::new(self.filters.clone()), 7, limits);
        self.calls.lock().unwrap().clear();
        self.upstream = Out::default();
        self.client = Out::default();
        self.signals.clear();
    }

    /// Runs `act` on the stream, and then takes what comes out.
    pub fn on<R>(&mut self, act: impl FnOnce(&mut Stream<FieldList>, &mut Cx<'_>) -> R) -> R {
        let done = act(
            &mut self.stream,
            &mut Cx {
                worker: &mut self.worker,
                attrs: &(),
            },
        );
        self.pump();
        done
    }

    pub fn pump(&mut self) {
        let mut cx = Cx {
            worker: &mut self.worker,
            attrs: &(),
        };
        loop {
            let mut moved = false;
            while let Some(mail) = cx.worker.take_mail() {
                assert_eq!(mail.stream, 7);
                self.stream.deliver(&mut cx, mail);
                moved = true;
            }
            while let Some(signal) = self.stream.signal() {
                assert!(
                    !self.signals.contains(&Signal::Finished),
                    "{signal:?} after Finished"
                );
                self.signals.push(signal);
                moved = true;
            }
            if !self.blocked[0]
                && let Some(part) = self.stream.request_part(&mut cx)
            {
                self.upstream.take(part);
                moved = true;
            }
            if !self.blocked[1]
                && let Some(part) = self.stream.response_part(&mut cx)
            {
                self.client.take(part);
                moved = true;
            }
            if !moved {
                break;
            }
        }
    }

    pub fn end_batch(&mut self) {
        self.worker.end_batch();
    }

    /// A GET without a body.
    pub fn get(&mut self) {
        self.request(&[("x-first", "1"), ("x-second", "2")], BodyLength::None);
    }

    /// A POST's head.
    pub fn post(&mut self, length: BodyLength) {
        self.request_of("POST", &[("x-first", "1")], length);
    }

    pub fn request(&mut self, list: &[(&str, &str)], length: BodyLength) {
        self.request_of("GET", list, length);
    }

    pub fn request_of(&mut self, method: &str, list: &[(&str, &str)], length: BodyLength) {
        let mut head = fields(&[
            (":method", method),
            (":scheme", "http"),
            (":authority", "example.com"),
            (":path", "/"),
        ]);
        for (name, value) in list {
            head.push(name.as_bytes(), value.as_bytes());
        }
        self.on(|s, cx| s.request_head(cx, head, length));
    }

    pub fn data(&mut self, dir: Dir, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.on(|s, cx| match dir {
            Dir::Request => s.request_data(cx, bytes),
            Dir::Response => s.response_data(cx, bytes),
        });
    }

    pub fn end(&mut self, dir: Dir) {
        self.end_with(dir, None);
    }

    pub fn end_with(&mut self, dir: Dir, trailers: Option<&[(&str, &str)]>) {
        let trailers = trailers.map(fields);
        self.on(|s, cx| match dir {
            Dir::Request => s.request_end(cx, trailers),
            Dir::Response => s.response_end(cx, trailers),
        });
    }

    /// A request, and its response unless it has been answered: bodies of unknown length, and trailers.
    pub fn exchange(&mut self) {
        self.post(BodyLength::Unknown);
        self.data(Dir::Request, "ping");
        self.end_with(Dir::Request, Some(&[("t-req", "1")]));
        if self.client.head.is_none() && !self.finished() {
            self.response("200", BodyLength::Unknown);
            self.data(Dir::Response, "pong");
            self.end_with(Dir::Response, Some(&[("t-res", "2")]));
        }
    }

    pub fn response(&mut self, status: &str, length: BodyLength) {
        let head = fields(&[(":status", status), ("x-from", "upstream")]);
        self.on(|s, cx| s.response_head(cx, head, length));
    }

    /// A response of 200 with a body.
    pub fn ok(&mut self, body: &'static str) {
        self.response("200", BodyLength::Exact(body.len() as u64));
        if !body.is_empty() {
            self.data(Dir::Response, body);
            self.end(Dir::Response);
        }
    }

    pub fn head_of(&mut self, dir: Dir, length: BodyLength) {
        match dir {
            Dir::Request => self.post(length),
            Dir::Response => {
                if self.upstream.head.is_none() {
                    self.get();
                }
                self.response("200", length);
            }
        }
    }

    pub fn out(&self, dir: Dir) -> &Out {
        match dir {
            Dir::Request => &self.upstream,
            Dir::Response => &self.client,
        }
    }

    /// Sets the clock, and runs the timer if its time has come.
    pub fn at(&mut self, ns: u64) {
        NOW.set(ns);
        if self.stream.deadline().is_some_and(|d| d <= ns) {
            self.on(|s, cx| s.timer(cx));
        }
    }

    pub fn complete(&mut self, guest: &'static str, token: u64, answer: Answer) -> Status {
        let status = self.complete_quietly(guest, token, answer);
        self.pump();
        status
    }

    /// As from another thread: nothing has been delivered when it returns.
    pub fn complete_quietly(&mut self, guest: &'static str, token: u64, answer: Answer) -> Status {
        let status = self.hub.complete(self.library(guest), token, answer.keep());
        let call = Call::Complete { token, status };
        self.calls.lock().unwrap().push(call);
        status
    }

    pub fn apply(&mut self, guest: &'static str, answer: Answer) -> Status {
        let handle = self.handle(guest);
        let status = self.hub.apply(self.library(guest), handle, answer.keep());
        self.pump();
        status
    }

    pub fn wake(&mut self, guest: &'static str, arg: u64) -> Status {
        let handle = self.handle(guest);
        let status = self.hub.wake(self.library(guest), handle, arg);
        self.pump();
        status
    }

    pub fn library(&self, guest: &str) -> u32 {
        let found = self.filters.iter().find(|f| f.name == guest);
        found.unwrap().guest.library()
    }

    pub fn stats(&self, guest: &str) -> &FilterStats {
        &self.filters.iter().find(|f| f.name == guest).unwrap().stats
    }

    pub fn events(&self) -> Vec<Seen> {
        let calls = self.calls.lock().unwrap();
        let event = |c: &Call| match c {
            Call::Event(seen, ..) => Some((**seen).clone()),
            _ => None,
        };
        calls.iter().filter_map(event).collect()
    }

    pub fn events_of(&self, guest: &str) -> Vec<Seen> {
        let mut events = self.events();
        events.retain(|e| e.guest == guest);
        events
    }

    pub fn last(&self, guest: &str) -> Seen {
        self.events_of(guest).pop().expect("an event")
    }

    pub fn handle(&self, guest: &str) -> u64 {
        self.last(guest).stream
    }

    /// All calls as short words: `a:REQ_H`, `a:cancel`, `a:end`.
    pub fn story(&self) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        let word = |c: &Call| match c {
            Call::Event(e, ..) => Some(format!("{}:{}", e.guest, phase_name(e.phase))),
            Call::Cancel { guest, .. } => Some(format!("{guest}:cancel")),
            Call::StreamEnd { guest, .. } => Some(format!("{guest}:end")),
            Call::BatchEnd { guest } => Some(format!("{guest}:batch")),
            Call::Complete { .. } => None,
        };
        calls.iter().filter_map(word).collect()
    }

    pub fn story_text(&self) -> String {
        self.story().join(" ")
    }

    pub fn failures(&self) -> Vec<(String, Reason)> {
        let failure = |s: &Signal| match s {
            Signal::GuestFailed(f) => Some((f.filter.clone(), f.reason)),
            _ => None,
        };
        self.signals.iter().filter_map(failure).collect()
    }

    pub fn failure_texts(&self) -> String {
        let failure = |s: &Signal| match s {
            Signal::GuestFailed(f) => Some(f.text.clone()),
            _ => None,
        };
        let texts: Vec<_> = self.signals.iter().filter_map(failure).collect();
        texts.join("; ")
    }

    pub fn finished(&self) -> bool {
        self.signals.contains(&Signal::Finished)
    }

    pub fn was_reset(&self) -> bool {
        self.signals.contains(&Signal::ResetClient)
    }

    pub fn close(&mut self) {
        self.on(|s, cx| s.close(cx, EndReason::ERROR));
    }

    /// `arg` of the LOG event of `guest`: (why, how the request ended, how the response ended).
    pub fn log_arg(&self, guest: &str) -> (EndReason, DirectionEnd, DirectionEnd) {
        let events = self.events_of(guest);
        let log = events.iter().find(|e| e.phase == LOG).expect("LOG");
        assert_eq!(log.arg >> 16, 0);
        let bits = |from: u32, n: u32| ((log.arg >> from) & ((1 << n) - 1)) as u8;
        (
            EndReason(bits(0, 8)),
            DirectionEnd(bits(8, 4)),
            DirectionEnd(bits(12, 4)),
        )
    }

    /// What must hold of every stream that has ended: each PENDING was ended once, `on_stream_end` came once where
    /// `user` is not 0, LOG once, and nothing after them.
    pub fn check_ended(&self) {
        assert!(self.stream.is_finished(), "the stream goes on");
        assert!(self.finished(), "no Finished signal");
        let calls = self.calls.lock().unwrap();
        for filter in &self.filters {
            assert_eq!(filter.stats.pending_now.get(), 0, "{}", filter.name);
            check_place(&filter.name, &calls, self.worker_token_status(filter));
        }
    }

    fn worker_token_status(&self, filter: &Filter) -> impl Fn(u64) -> Status {
        let (hub, library) = (Arc::clone(&self.hub), filter.guest.library());
        move |token| hub.token_status(library, token)
    }
}

fn check_place(name: &str, calls: &[Call], status: impl Fn(u64) -> Status) {
    let mut pending: Vec<u64> = Vec::new();
    let (mut cancels, mut ends, mut logs) = (Vec::new(), 0, 0);
    let mut last_user = 0;
    for call in calls {
        match call {
            Call::Event(e, action, left) if e.guest == name => {
                assert_eq!(ends, 0, "{name}: an event after on_stream_end");
                assert_eq!(logs, 0, "{name}: {} after LOG", phase_name(e.phase));
                logs += usize::from(e.phase == LOG);
                if e.token != 0 {
                    assert_eq!(status(e.token), Status::STALE, "{name}: a live token");
                    if *action == Action::PENDING {
                        pending.push(e.token);
                    }
                }
                assert_eq!(e.user, last_user, "{name}: user is echoed");
                last_user = *left;
            }
            Call::Cancel { guest, token, .. } if *guest == name => {
                assert_eq!(ends + logs, 0, "{name}: on_cancel after the end");
                assert!(pending.contains(token), "{name}: on_cancel of no PENDING");
                assert!(!cancels.contains(token), "{name}: on_cancel twice");
                cancels.push(*token);
            }
            Call::StreamEnd { guest, user, .. } if *guest == name => {
                ends += 1;
                assert_eq!(*user, last_user, "{name}: the last user");
            }
            _ => {}
        }
    }
    for token in &pending {
        let completed = calls.iter().any(|c| {
            matches!(c, Call::Complete { token: t, status } if t == token && *status == Status::OK)
        });
        assert_ne!(
            completed,
            cancels.contains(token),
            "{name}: a PENDING is ended by exactly one of complete and cancel"
        );
    }
    assert_eq!(ends, usize::from(last_user != 0), "{name}: on_stream_end");
}

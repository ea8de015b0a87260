//! What a guest calls, on any thread, and what the host answers.

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, BodyMode, Phase, Status};
use proxy_golang_conformance::parts::judge::{Context, Violation, Way};
use proxy_golang_conformance::parts::model::{Outcome, action_name, phase_name};

use super::{Findings, Library, State};
use crate::place::Fate;
use crate::report::{guest, host};
use crate::sys::platform;
use crate::tokens::Life;

/// A host function that takes longer, in nanoseconds, probably waits for something.
const SLOW: u64 = 250_000_000;

/// Between the entry and the exit of `complete` or `apply`.
pub(crate) struct HandedCall {
    function: &'static str,
    value: u64,
    violations: Vec<Violation>,
    /// Of the token at the entry; none if it was never issued.
    life: Option<Life>,
    ended: bool,
    action: Option<Action>,
    /// Nothing in it that a host could refuse for reasons of its own.
    plain: bool,
    writes: bool,
    began: u64,
}

/// Rules that need no state of the stream: a host refuses what breaks them before it answers (PXG-ASY-020).
const STATELESS: [&str; 8] = [
    "PXG-ASY-010",
    "PXG-HDR-005",
    "PXG-HDR-006",
    "PXG-HDR-008",
    "PXG-HDR-010",
    "PXG-ABI-005",
    "PXG-ABI-012",
    "PXG-RPL-001",
];

impl Library {
    pub(crate) fn complete_enter(
        &self,
        token: u64,
        o: Option<&Outcome>,
        in_release: bool,
    ) -> (HandedCall, Findings) {
        let mut f = Findings::at("complete");
        check_release(&mut f, in_release);
        let mut s = self.lock();
        let was = s.tokens.was(token);
        let mut call = HandedCall {
            function: "complete",
            value: token,
            violations: Vec::new(),
            life: None,
            ended: was,
            action: o.map(|o| o.action),
            plain: o.is_some_and(is_plain),
            writes: false,
            began: platform::now_ns(),
        };
        let mut stream = 0;
        if let Some(t) = s.tokens.get_mut(token) {
            call.life = Some(t.life);
            call.ended = false;
            stream = t.stream;
            let live = matches!(t.life, Life::Issued | Life::Pending);
            if let Some(o) = o.filter(|_| live) {
                let mut c = t.context.clone();
                c.way = Way::Complete;
                call.violations = c.judge(o);
                if t.flying.is_none() {
                    t.clean = call.violations.is_empty();
                    t.flying = Some(Box::new(o.clone()));
                }
            }
        }
        for (rule, what) in &call.violations {
            f.push(guest(rule, what.clone(), "a result that a host accepts"));
        }
        if let Some(p) = s.places.get_mut(&stream) {
            p.note("complete".into());
        }
        f.know(stream, s.places.get(&stream), None);
        (call, f)
    }

    /// What every answer must be.
    fn check_answer(&self, call: &HandedCall, status: Status, f: &mut Findings) {
        let known = match call.function {
            "apply" => -6..=1,
            _ => -6..=0,
        };
        if !known.contains(&status.0) && status != Status::INTERNAL {
            f.push(host(
                "PXG-ABI-013",
                format!("`{}` answered {}", call.function, status.0),
                "a status of version 1.0 that the function may answer",
            ));
        }
        let took = platform::now_ns().saturating_sub(call.began);
        if took > SLOW {
            f.list.push(
                host(
                    "PXG-ASY-006",
                    format!("`{}` took {} ms", call.function, took / 1_000_000),
                    "it never blocks on a worker",
                )
                .warning(),
            );
        }
        if status.0 >= 0
            && let Some((rule, what)) = call
                .violations
                .iter()
                .find(|(rule, _)| STATELESS.contains(rule))
        {
            f.push(host(
                if *rule == "PXG-ASY-010" && call.function == "apply" {
                    "PXG-ASY-021"
                } else {
                    rule
                },
                format!("`{}` answered {} to: {what}", call.function, status.0),
                "what needs no state of the stream is refused before it answers (PXG-ASY-020)",
            ));
        }
        let refused = status.0 < 0 && status != Status::STALE && status != Status::LIMIT;
        if refused && call.violations.is_empty() && call.plain && call.life.is_some() {
            f.push(host(
                "PXG-ASY-010",
                format!(
                    "`{}` answered {} to a plain {}",
                    call.function,
                    status.0,
                    call.action.map(action_name).unwrap_or_default()
                ),
                "OK, or STALE where the token or stream has ended",
            ));
        }
    }

    pub(crate) fn complete_leave(&self, call: &HandedCall, status: Status) -> Findings {
        let mut f = Findings::at("complete");
        self.check_answer(call, status, &mut f);
        let ok = status.0 >= 0;
        let token = call.value;
        if call.life.is_none() {
            if ok {
                f.push(host(
                    "PXG-ASY-002",
                    format!(
                        "accepted the token {token:#x}, which {}",
                        if call.ended {
                            "was retired"
                        } else {
                            "it never issued to this guest"
                        }
                    ),
                    "STALE, for ever",
                ));
            }
            return f;
        }
        let mut state = self.lock();
        let s = &mut *state;
        let mut stream = 0;
        let mut fate = Fate::Open;
        if let Some(t) = s.tokens.get_mut(token) {
            stream = t.stream;
            let flown = t.flying.take();
            if let Some(p) = s.places.get(&stream) {
                fate = p.fate;
            }
            match (call.life, t.life, ok) {
                // It was taken as accepted already, when the next event came.
                (Some(Life::Issued | Life::Pending), Life::Pending, _) if t.assumed => {
                    t.assumed = false;
                    t.life = Life::Completed;
                    if !ok {
                        f.push(host(
                            "PXG-EVT-003",
                            format!(
                                "an event came while {} was PENDING; `complete` was answered {}",
                                phase_name(t.view.phase),
                                status.0
                            ),
                            "no event of a direction that is PENDING",
                        ));
                    }
                }
                (_, Life::Pending, true) => {
                    t.life = Life::Completed;
                    t.kept = flown;
                }
                (_, Life::Issued, true) => {
                    t.life = Life::Early;
                    t.kept = flown;
                }
                (Some(Life::Early | Life::Completed), _, true) => f.push(host(
                    "PXG-ASY-001",
                    format!("accepted a second completion of the token {token:#x}"),
                    "STALE, because the token was completed before",
                )),
                (Some(Life::Returned | Life::Cancelled), _, true) => f.push(host(
                    "PXG-ASY-002",
                    format!("accepted the token {token:#x}, which was retired"),
                    "STALE, for ever",
                )),
                (_, Life::Cancelled, true) => f.push(host(
                    "PXG-ASY-009",
                    format!("answered OK for the token {token:#x}, and called on_cancel for it"),
                    "exactly one of complete and cancel wins",
                )),
                (Some(Life::Issued), Life::Issued, false)
                    if status == Status::STALE && fate == Fate::Open =>
                {
                    f.push(host(
                        "PXG-ASY-004",
                        format!("answered STALE for the token {token:#x} of the running on_event"),
                        "complete is accepted before on_event has returned",
                    ));
                }
                (_, Life::Pending | Life::Issued, false) => t.stale |= status == Status::STALE,
                _ => {}
            }
        }
        f.know(stream, s.places.get(&stream), None);
        f
    }

    pub(crate) fn apply_enter(
        &self,
        stream: u64,
        o: Option<&Outcome>,
        in_release: bool,
    ) -> (HandedCall, Findings) {
        let mut f = Findings::at("apply");
        check_release(&mut f, in_release);
        let mut s = self.lock();
        let ended = s.ended.has(stream);
        let mut call = HandedCall {
            function: "apply",
            value: stream,
            violations: Vec::new(),
            life: None,
            ended,
            action: o.map(|o| o.action),
            plain: o.is_some_and(is_plain),
            writes: o.is_some_and(|o| o.ops.get().iter().any(|op| op.kind == 11)),
            began: platform::now_ns(),
        };
        if let Some(p) = s.places.get_mut(&stream) {
            p.note("apply".into());
            call.life = Some(Life::Issued);
            if let Some(o) = o {
                p.applied(o);
                let c = Context {
                    phase: Phase(0),
                    flags: abi::EventFlags(0),
                    pend_phases: 0,
                    features: p.config.features,
                    mode: Default::default(),
                    subscribe: 0,
                    held: false,
                    view_len: 0,
                    max_body: 0,
                    fields: Vec::new(),
                    trailers: Vec::new(),
                    replied: false,
                    way: Way::Apply,
                    length_left: None,
                };
                call.violations = c.judge(o);
            }
        }
        for (rule, what) in &call.violations {
            f.push(guest(rule, what.clone(), "a result that a host accepts"));
        }
        f.know(stream, s.places.get(&stream), None);
        (call, f)
    }

    pub(crate) fn apply_leave(&self, call: &HandedCall, status: Status) -> Findings {
        let mut f = Findings::at("apply");
        self.check_answer(call, status, &mut f);
        let mut s = self.lock();
        self.check_handle(&mut s, call.value, call.ended, status, &mut f);
        if status == Status::FULL && !call.writes {
            f.push(host(
                "PXG-RPL-006",
                "answered FULL to an apply without BODY_WRITE",
                "FULL says that bytes of a streamed reply wait",
            ));
        }
        if let Some(p) = s.places.get_mut(&call.value) {
            if status == Status::FULL {
                p.full += 1;
            }
            if status.0 >= 0
                && matches!(call.action, Some(Action::REPLY | Action::RESET))
                && p.fate == Fate::Open
            {
                // It takes effect at its turn, or the stream dies first.
                p.fate = Fate::Unknown;
            }
        }
        f.know(call.value, s.places.get(&call.value), None);
        f
    }

    pub(super) fn check_handle(
        &self,
        s: &mut State,
        stream: u64,
        ended: bool,
        status: Status,
        f: &mut Findings,
    ) {
        match s.places.get_mut(&stream) {
            Some(p) if status == Status::STALE => p.stale = true,
            None if status != Status::STALE && ended => f.push(host(
                "PXG-ASY-002",
                format!(
                    "answered {} for {stream:#x}, a stream that has ended",
                    status.0
                ),
                "STALE, for ever",
            )),
            _ => {}
        }
    }

    pub(crate) fn wake_enter(&self, stream: u64, arg: u64, in_release: bool) -> Findings {
        let mut f = Findings::at("wake");
        check_release(&mut f, in_release);
        let mut s = self.lock();
        if let Some(p) = s.places.get_mut(&stream) {
            p.woken(arg);
            p.note("wake".into());
        }
        f.know(stream, s.places.get(&stream), None);
        f
    }

    pub(crate) fn wake_leave(&self, stream: u64, ended: bool, status: Status) -> Findings {
        let mut f = Findings::at("wake");
        let mut s = self.lock();
        self.check_handle(&mut s, stream, ended, status, &mut f);
        if let Some(p) = s.places.get(&stream) {
            if status.0 >= 0 && !p.sees(Phase::WAKE) && p.fate == Fate::Open {
                f.list.push(host(
                    "PXG-ASY-013",
                    format!(
                        "answered {} to a wake without a subscription to WAKE",
                        status.0
                    ),
                    "STATE",
                ));
            }
            if !matches!(status, Status::OK | Status::STALE)
                && p.sees(Phase::WAKE)
                && p.fate == Fate::Open
            {
                f.list.push(host(
                    "PXG-ASY-013",
                    format!("answered {} to a wake", status.0),
                    "OK or STALE",
                ));
            }
        }
        f.know(stream, s.places.get(&stream), None);
        f
    }

    pub(crate) fn has_ended(&self, stream: u64) -> bool {
        self.lock().ended.has(stream)
    }
}

fn check_release(f: &mut Findings, in_release: bool) {
    if in_release {
        f.push(guest(
            "PXG-MEM-007",
            format!("`release` called the host's `{}`", f.place.function),
            "release frees and returns",
        ));
    }
}

/// Whether a host has no reason of its own to refuse it.
fn is_plain(o: &Outcome) -> bool {
    matches!(o.action, Action::CONTINUE | Action::RESET)
        && o.ops.count == 0
        && o.body_mode == [BodyMode::UNSET; 2]
        && o.unsubscribe == 0
        && o.flags == 0
}

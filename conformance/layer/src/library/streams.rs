//! Streams and their events, on loop threads.

use proxy_golang_abi::{Action, BodyMode, Phase, phase_bit};
use proxy_golang_conformance::parts::judge::{Context, Way};
use proxy_golang_conformance::parts::model::{Outcome, action_name, phase_name};

use super::{Findings, Library, State};
use crate::content::{self, dir_of, is_log};
use crate::place::{self, Fate, Place, View};
use crate::report::{Found, guest, host};
use crate::sys::platform;
use crate::sys::view::SeenEvent;
use crate::tokens::{Life, Token};

/// Streams that may have ended unseen: those whose `user` is 0 and that do not subscribe to LOG.
const MOST_QUIET: usize = 1 << 14;
/// Between the entry and the exit of `on_event`.
pub(crate) struct EventCall {
    pub(crate) context: Option<Context>,
    pub(crate) instance: String,
    view: View,
    stream: u64,
    token: u64,
}

impl Library {
    pub(super) fn forget(&self, s: &mut State, stream: u64) {
        for t in s.tokens.of_stream(stream) {
            s.tokens.retire(t);
        }
        s.places.remove(&stream);
        s.ended.insert(stream);
    }

    fn place_for<'a>(
        &self,
        s: &'a mut State,
        e: &SeenEvent,
        f: &mut Findings,
    ) -> Option<&'a mut Place> {
        let stream = e.raw.stream;
        let p = e.raw.phase;
        if stream == 0 {
            f.push(host(
                "PXG-EVT-016",
                "an event with the stream handle 0",
                "a handle of this place of this stream",
            ));
            return None;
        }
        if !s.places.contains_key(&stream) {
            if s.ended.has(stream) {
                let fresh = matches!(p, Phase::REQUEST_HEADERS | Phase::L4_OPEN);
                f.push(host(
                    if fresh { "PXG-ASY-003" } else { "PXG-EVT-006" },
                    format!("{} for {stream:#x}, a stream that has ended", phase_name(p)),
                    "on_stream_end is the last call, and its handle does not come again",
                ));
                // From here on it is judged as a new one.
            }
            let config = s.configs.get(&e.raw.config).cloned();
            let Some(config) = config else {
                f.push(host(
                    "PXG-CFG-005",
                    format!(
                        "an event of config {:#x}, which {}",
                        e.raw.config,
                        if s.dropped.has(e.raw.config) {
                            "was dropped"
                        } else {
                            "on_config_new never answered"
                        }
                    ),
                    "a live configuration",
                ));
                return None;
            };
            if let Some(why) = &config.illegal {
                f.push(host(
                    "PXG-CFG-009",
                    format!("an event of a configuration that it must refuse: {why}"),
                    "a configuration with an illegal declaration is dropped and never used",
                ));
            }
            if config.validate_only {
                f.push(host(
                    "PXG-CFG-001",
                    "an event of a configuration that was made with VALIDATE_ONLY",
                    "it is dropped without being used (4.1)",
                ));
            }
            s.places
                .insert(stream, Place::new(config, e.raw.worker, platform::tid()));
            s.order.push_back(stream);
            self.forget_quiet(s);
        }
        s.places.get_mut(&stream)
    }

    /// Streams whose end nobody is told are forgotten when there are too many.
    fn forget_quiet(&self, s: &mut State) {
        if s.order.len() <= 2 * MOST_QUIET {
            return;
        }
        s.order.retain(|h| s.places.contains_key(h));
        let mut excess = s.order.len().saturating_sub(MOST_QUIET);
        let old: Vec<u64> = s
            .order
            .iter()
            .copied()
            .filter(|h| {
                let quiet = s.places.get(h).is_some_and(Place::is_quiet);
                let take = quiet && excess > 0;
                excess -= usize::from(take);
                take
            })
            .collect();
        for h in old {
            self.forget(s, h);
        }
    }

    pub(crate) fn event_enter(
        &self,
        e: &SeenEvent,
        in_host: Option<&'static str>,
        preset: Vec<Found>,
    ) -> (EventCall, Findings) {
        let mut f = Findings::at("on_event");
        let p = e.raw.phase;
        let stream = e.raw.stream;
        let token = e.raw.token;
        f.list = preset;
        let mut state = self.lock();
        let s = &mut *state;
        self.loop_hook(s, e.raw.worker, &mut f, in_host);
        // Taken out, so that the place and the tokens can be borrowed at once.
        let mut tokens = std::mem::take(&mut s.tokens);
        let place = self.place_for(s, e, &mut f);
        let config = place.as_ref().map(|p| p.config.clone());
        let known = self.asked.get().map_or([0; 4], |a| a.known);
        content::check(e, config.as_deref(), &known, &mut f.list);
        let affine = config
            .as_ref()
            .is_some_and(|c| place::is_affine(&c.features));
        let mut call = EventCall {
            context: None,
            instance: config
                .as_ref()
                .map_or(String::new(), |c| c.instance.clone()),
            view: Place::view(e, token != 0),
            stream,
            token,
        };
        if let (Some(place), Some(c)) = (place, config) {
            place.enter(e, platform::tid(), affine, &mut tokens, &mut f.list);
            let pends = c.pend_phases & phase_bit(p) != 0;
            if pends != (token != 0) {
                f.list.push(host(
                    "PXG-ASY-001",
                    format!("{} with the token {token:#x}", phase_name(p)),
                    if pends {
                        "a fresh token, because the phase is in pend_phases"
                    } else {
                        "0, because the phase is not in pend_phases"
                    },
                ));
            }
            if token != 0 && tokens.was(token) {
                f.list.push(host(
                    "PXG-ASY-003",
                    format!("the token {token:#x}, which an earlier event had"),
                    "a fresh token for each event",
                ));
            }
            let context = place.context(e);
            if token != 0 {
                let dir = dir_of(p).unwrap_or(0);
                for old in tokens.of_stream(stream) {
                    if tokens.get_mut(old).is_some_and(|t| {
                        t.dir == dir && t.flying.is_none() && t.life != Life::Pending
                    }) {
                        tokens.retire(old);
                    }
                }
                place.issued(dir, token);
                tokens.issue(
                    token,
                    Token {
                        stream,
                        dir,
                        life: Life::Issued,
                        context: context.clone(),
                        view: call.view.clone(),
                        kept: None,
                        flying: None,
                        clean: false,
                        assumed: false,
                        stale: false,
                        since: 0,
                        wish: 0,
                    },
                );
            }
            call.context = Some(context);
            f.know(stream, Some(place), Some(p));
        } else {
            f.know(stream, None, Some(p));
        }
        s.tokens = tokens;
        (call, f)
    }

    pub(crate) fn event_leave(
        &self,
        call: &EventCall,
        o: &Outcome,
        changed: Option<Found>,
    ) -> Findings {
        let mut f = Findings::at("on_event");
        f.list.extend(changed);
        let mut violations = call
            .context
            .as_ref()
            .map(|c| c.judge(o))
            .unwrap_or_default();
        if o.action == Action::PENDING
            && content::is_body(call.view.phase)
            && let (Some(c), Some(d)) = (&call.context, dir_of(call.view.phase))
            && c.mode[d] == BodyMode::OBSERVE
        {
            violations.push((
                "PXG-BODY-007",
                format!("{}: PENDING in OBSERVE", phase_name(call.view.phase)),
            ));
        }
        for (rule, what) in &violations {
            f.push(guest(rule, what.clone(), "a result that a host may take"));
        }
        let phase = call.view.phase;
        let mut state = self.lock();
        let s = &mut *state;
        let mut tokens = std::mem::take(&mut s.tokens);
        let mut pended = None;
        let mut over = false;
        if let Some(place) = s.places.get_mut(&call.stream) {
            place.busy = None;
            place.user = o.user;
            place.answered(o);
            let dir = dir_of(phase).unwrap_or(0);
            if let Some(t) = tokens.get_mut(call.token) {
                let early = t.life == Life::Early;
                if o.action == Action::PENDING && violations.is_empty() {
                    pended = Some(place.worker);
                    t.life = if early {
                        Life::Completed
                    } else {
                        Life::Pending
                    };
                    t.since = platform::now_ns();
                    t.wish = if o.pend_ns == 0 {
                        place.config.pend_ns
                    } else {
                        o.pend_ns
                    };
                } else {
                    place.not_pending(dir);
                    t.life = Life::Returned;
                    t.kept = None;
                    if early {
                        f.list.push(guest(
                            "PXG-ASY-005",
                            format!(
                                "completed the token {:#x} and answered {}",
                                call.token,
                                action_name(o.action)
                            ),
                            "PENDING, if the token was completed",
                        ));
                    }
                }
            }
            if o.action != Action::PENDING || !violations.is_empty() {
                place.settle(
                    &call.view,
                    o,
                    violations.is_empty(),
                    Way::Event,
                    &mut f.list,
                );
            }
            if place.fate == Fate::Failed && o.action == Action::PENDING {
                pended = None;
            }
            f.know(call.stream, Some(place), Some(phase));
            over = is_log(phase) && place.user == 0;
        } else {
            f.know(call.stream, None, Some(phase));
        }
        s.tokens = tokens;
        if over {
            self.forget(s, call.stream);
        }
        if let Some(w) = pended {
            let w = s.workers.entry(w).or_default();
            w.pended += 1;
            w.since_batch += 1;
        }
        f
    }

    /// What `on_cancel` and `on_stream_end` have in common.
    fn stream_hook(
        &self,
        s: &mut State,
        config: u64,
        user: u64,
        stream: u64,
        worker: u32,
        f: &mut Findings,
    ) -> bool {
        let me = platform::tid();
        let Some(p) = s.places.get(&stream) else {
            let rule = if f.place.function == "on_cancel" {
                "PXG-ASY-001"
            } else {
                "PXG-EVT-006"
            };
            f.push(host(
                rule,
                format!(
                    "`{}` for {stream:#x}, which {}",
                    f.place.function,
                    if s.ended.has(stream) {
                        "has ended"
                    } else {
                        "no event ever named"
                    }
                ),
                "a live stream",
            ));
            return false;
        };
        if let Some((t, hook)) = p.busy {
            f.push(host(
                "PXG-EVT-002",
                format!(
                    "`{}` while {hook} of the same stream runs on thread {t}",
                    f.place.function
                ),
                "never inside another hook of the stream, nor beside it",
            ));
        }
        if place::is_affine(&p.config.features) && p.thread != me {
            f.push(host(
                "PXG-ASY-007",
                format!(
                    "`{}` on thread {me}, earlier hooks on {}",
                    f.place.function, p.thread
                ),
                "with THREAD_AFFINE one thread for all hooks of a stream",
            ));
        }
        if worker != p.worker {
            f.push(host(
                "PXG-THR-001",
                format!("worker {worker} for a stream of worker {}", p.worker),
                "a stream lives on one worker",
            ));
        }
        if config != p.config.value {
            f.push(host(
                "PXG-CFG-007",
                format!("config {config:#x} for a stream of {:#x}", p.config.value),
                "a stream keeps one configuration per place",
            ));
        }
        if user != p.user {
            f.push(host(
                "PXG-EVT-007",
                format!("user {user:#x}"),
                format!("{:#x}, as the last on_event left it", p.user),
            ));
        }
        true
    }

    pub(crate) fn cancel_enter(
        &self,
        config: u64,
        user: u64,
        stream: u64,
        token: u64,
        worker: u32,
        in_host: Option<&'static str>,
    ) -> Findings {
        let mut f = Findings::at("on_cancel");
        let mut state = self.lock();
        let s = &mut *state;
        self.loop_hook(s, worker, &mut f, in_host);
        let known = self.stream_hook(s, config, user, stream, worker, &mut f);
        let bad = |f: &mut Findings, rule, what: &str| {
            f.push(host(
                rule,
                format!("on_cancel of the token {token:#x}, {what}"),
                "once for each token that was PENDING and was not completed",
            ));
        };
        let issued = s.tokens.was(token);
        match s.tokens.get_mut(token) {
            None if issued => bad(&mut f, "PXG-ASY-001", "which was retired before"),
            None => bad(&mut f, "PXG-ASY-001", "which was never issued"),
            Some(t) if t.stream != stream => {
                bad(&mut f, "PXG-ASY-001", "which belongs to another stream");
            }
            Some(t) => {
                match t.life {
                    Life::Pending => {}
                    Life::Issued | Life::Early => {
                        bad(&mut f, "PXG-EVT-002", "whose on_event has not returned");
                    }
                    Life::Completed => bad(
                        &mut f,
                        "PXG-ASY-009",
                        "which `complete` was answered OK for",
                    ),
                    Life::Returned => bad(
                        &mut f,
                        "PXG-ASY-001",
                        "whose on_event did not answer PENDING",
                    ),
                    Life::Cancelled => bad(&mut f, "PXG-ASY-001", "a second time"),
                }
                let waited = platform::now_ns().saturating_sub(t.since);
                if t.life == Life::Pending && t.wish > 0 && waited >= t.wish && t.flying.is_none() {
                    f.list.push(
                        guest(
                            "PXG-ASY-001",
                            format!(
                                "the token {token:#x} was not completed in {} ms; it had asked for {} ms",
                                waited / 1_000_000,
                                t.wish / 1_000_000
                            ),
                            "a guest completes every token that it made PENDING",
                        )
                        .warning(),
                    );
                }
                t.life = Life::Cancelled;
                t.kept = None;
                let dir = t.dir;
                if let Some(p) = s.places.get_mut(&stream).filter(|_| known) {
                    if p.log {
                        f.list.push(host(
                            "PXG-EVT-017",
                            "on_cancel after LOG",
                            "tokens are cancelled before LOG",
                        ));
                    }
                    p.cancelled(dir, token);
                }
            }
        }
        if let Some(p) = s.places.get_mut(&stream) {
            p.busy = Some((platform::tid(), "on_cancel"));
            p.note("on_cancel".into());
            f.know(stream, Some(p), None);
        } else {
            f.know(stream, None, None);
        }
        f
    }

    pub(crate) fn cancel_leave(&self, stream: u64) {
        if let Some(p) = self.lock().places.get_mut(&stream) {
            p.busy = None;
        }
    }

    pub(crate) fn stream_end_enter(
        &self,
        config: u64,
        user: u64,
        stream: u64,
        worker: u32,
        in_host: Option<&'static str>,
    ) -> Findings {
        let mut f = Findings::at("on_stream_end");
        let mut state = self.lock();
        let s = &mut *state;
        self.loop_hook(s, worker, &mut f, in_host);
        if user == 0 {
            f.push(host(
                "PXG-EVT-006",
                "on_stream_end with user 0",
                "not at all where user is 0",
            ));
        }
        if self.stream_hook(s, config, user, stream, worker, &mut f) {
            // What a completion that no event followed led to is not visible: the guest may have failed by it.
            let mut unsettled = false;
            for t in s.tokens.of_stream(stream) {
                let Some(t) = s.tokens.get_mut(t) else {
                    continue;
                };
                unsettled |= t.kept.is_some() || t.flying.is_some();
                if t.life == Life::Pending && t.flying.is_none() {
                    f.push(if t.stale {
                        host(
                            "PXG-ASY-009",
                            "a token was answered STALE, and on_cancel never came for it",
                            "STALE and on_cancel, or OK and no on_cancel",
                        )
                    } else {
                        host(
                            "PXG-EVT-017",
                            format!(
                                "on_stream_end with a token of {} PENDING",
                                phase_name(t.view.phase)
                            ),
                            "tokens are retired and cancelled before",
                        )
                    });
                }
            }
            if s.places.get(&stream).is_some_and(Place::owes_log) && !unsettled {
                f.push(host(
                    "PXG-EVT-009",
                    "on_stream_end without LOG",
                    "LOG (L4_CLOSE) once for each subscribed place whose guest has not failed",
                ));
            }
        }
        f.know(stream, s.places.get(&stream), None);
        self.forget(s, stream);
        f
    }
}

//! The crossing of an event, what its result leads to, and how a stream ends.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase};

use super::{At, GIVEN_UP, PEND_LIMIT, Pend, Side, Stream};
use crate::finding::note;
use crate::host::judge::{Context, Way};
use crate::host::model::{Event, Field, Outcome, ReplyFound, action_name, phase_name};
use crate::host::rig::Rig;
use crate::host::state::Mail;
use crate::sys::calls::{self, Took};
use crate::sys::clock::Patience;

impl Stream<'_> {
    /// The crossing, and what its result leads to.
    pub(super) fn call(&mut self, d: Option<usize>, mut e: Event, context: Context) {
        let phase = e.phase;
        let host = self.rig.host;
        let token = self.conf.made.may_pend(phase) && d.is_some();
        if token {
            e.token = host.issue(context.clone());
            if !self.opt.lies.is_empty() {
                host.lie(e.token, &self.opt.lies);
            }
        }
        self.ran.events += 1;
        let grace = self.opt.borrow_grace;
        let done = self.rig.guest.on_event(&e, self.opt.layout, |o| {
            if let Some(grace) = grace {
                check_borrowed(o, grace, self.rig);
            }
        });
        let o = done.outcome;
        self.ran.asleep_ns += done.took.asleep_ns;
        self.ran.owned.extend(o.owned().iter().map(|b| b.0));
        if done.took.asleep_ns > self.ran.slowest.asleep_ns {
            self.ran.slowest = done.took;
            self.ran.slowest_phase = phase.0;
        }
        host.own(o.owned());
        let mut bad = context.judge(&o);
        bad.dedup();
        self.user = o.user;
        let at = phase_name(phase);
        self.ran.shapes.push(format!("{at} {}", o.shape()));
        self.record(|stream| crate::scenario::Step::Saw {
            stream,
            what: format!(
                "{at}: {}, {} operations",
                super::super::model::action_name(o.action),
                o.ops.get().len()
            ),
        });
        if o.action == Action::ERROR {
            self.ran
                .errors
                .push(String::from_utf8_lossy(o.error.get()).into_owned());
        }
        let illegal = !bad.is_empty();
        for (rule, text) in bad {
            note(
                rule,
                text,
                [format!(
                    "filter {}, exchange step {}",
                    self.conf.label(),
                    self.ran.events
                )],
            );
        }
        if e.token != 0 && o.action != Action::PENDING && host.retire_issued(e.token) && !illegal {
            note(
                "PXG-ASY-005",
                format!(
                    "{at}: completed its token and then returned {}",
                    action_name(o.action)
                ),
                [
                    "the completion is discarded; answer PENDING where the token is used"
                        .to_string(),
                ],
            );
        }
        if illegal {
            if phase == self.phases.last {
                self.ran.failed = true;
                return;
            }
            if e.token != 0 && o.action == Action::PENDING {
                host.cancel(e.token);
            }
            self.fail();
            return;
        }
        if o.action == Action::PENDING {
            self.ran.pended += 1;
            let Some(d) = d else { return };
            match host.pend(e.token) {
                Some(early) => {
                    self.sides[d].resumed = true;
                    self.settle(d, &context, &early);
                }
                None => {
                    // A guest that has forgotten tokens is not waited for each time.
                    let limit = match host.forgotten() {
                        _ if self.opt.may_give_up() => GIVEN_UP,
                        0 => PEND_LIMIT,
                        1..4 => PEND_LIMIT / 50,
                        _ => PEND_LIMIT / 1000,
                    };
                    self.pend[d] = Some(Pend {
                        token: e.token,
                        context,
                        // The time limit of the case is longer.
                        patience: Patience::at_most(limit, 4.0),
                    });
                }
            }
            return;
        }
        match d {
            Some(d) => self.settle(d, &context, &o),
            None if phase == self.phases.last => {}
            None => match o.action {
                Action::REPLY => self.reply(&o),
                Action::RESET => self.reset = true,
                Action::ERROR => self.fail(),
                _ => {}
            },
        }
    }

    fn reply(&mut self, o: &Outcome) {
        if let ReplyFound::Some(r) = &o.reply {
            self.ran.replied = Some(r.status);
        }
        self.replied = true;
        self.cancel();
        for s in &mut self.sides {
            if s.at != At::Done {
                s.at = At::Cut;
            }
        }
    }

    /// The five steps of 7.11 for a legal result.
    pub(super) fn settle(&mut self, d: usize, context: &Context, o: &Outcome) {
        let phase = context.phase;
        if o.action == Action::ERROR && context.way == Way::Event {
            self.ran.failed = true;
        }
        self.subscribe &= !o.unsubscribe;
        for (side, mode) in self.sides.iter_mut().zip(o.body_mode) {
            if mode != BodyMode::UNSET {
                side.mode = mode;
            }
        }
        match o.action {
            Action::REPLY if self.sides[1].passed_headers => self.reset = true,
            Action::REPLY => self.reply(o),
            Action::RESET => self.reset = true,
            Action::ERROR => {
                if self.ran.errors.is_empty() {
                    self.ran
                        .errors
                        .push(String::from_utf8_lossy(o.error.get()).into_owned());
                }
                self.fail();
            }
            _ => {
                self.apply(d, context, o);
                let ends = context.flags.0 & EventFlags::END_STREAM.0 != 0;
                let first = Some(phase) == self.phases.first[d];
                let s = &mut self.sides[d];
                let whole_at_headers =
                    first && s.mode == BodyMode::WHOLE && !s.ends_at_headers && !ends;
                if o.action == Action::MORE {
                    s.at = At::Hold;
                    let kept = s.view.len() as u64;
                    s.due = if o.more_bytes > 0 {
                        o.more_bytes
                    } else {
                        (kept / 8).max(1024)
                    };
                } else if whole_at_headers {
                    s.at = At::Hold;
                } else {
                    s.pass_headers();
                    if s.mode == BodyMode::OBSERVE {
                        s.offset += s.view.len() as u64;
                        s.view.clear();
                    } else {
                        s.pass_view();
                    }
                    if s.over && s.mode == BodyMode::WHOLE {
                        s.mode = BodyMode::STREAM;
                    }
                    let over =
                        ends || (s.ends_at_headers && first) || (first && self.upgraded && d == 1);
                    s.at = if over { At::Done } else { At::Flow };
                }
            }
        }
    }

    fn apply(&mut self, d: usize, context: &Context, o: &Outcome) {
        let l4 = self.is_l4();
        let [a, b] = &mut self.sides;
        let (s, peer) = if d == 0 { (a, b) } else { (b, a) };
        let mut cursor = 0usize;
        let mut out: Vec<u8> = Vec::new();
        for op in o.ops.get() {
            let list = if op.target == 1 {
                s.trailers.as_mut()
            } else if s.held {
                Some(&mut s.fields)
            } else {
                None
            };
            let value = || op.val.text.get().to_vec();
            match (op.kind, list) {
                (1 | 2, Some(list)) => {
                    if op.kind == 1 {
                        list.retain(|f| f.name != op.key.get());
                    }
                    let at = if op.key.get().first() == Some(&b':') {
                        0
                    } else {
                        list.len()
                    };
                    list.insert(
                        at,
                        Field {
                            name: op.key.get().to_vec(),
                            value: value(),
                            flags: op.val.text.flags & 2,
                        },
                    );
                }
                (3, Some(list)) => list.retain(|f| f.name != op.key.get()),
                // An index means the field that stood there in the delivered view.
                (4 | 5, Some(list)) => {
                    let view = if op.target == 1 {
                        &context.trailers
                    } else {
                        &context.fields
                    };
                    if let Some(f) = usize::try_from(op.u0).ok().and_then(|i| view.get(i))
                        && let Some(at) = list.iter().position(|g| g == f)
                    {
                        if op.kind == 4 {
                            list[at].value = value();
                        } else {
                            list.remove(at);
                        }
                    }
                }
                (8 | 9, _) => {
                    let view = s.view[cursor..].to_vec();
                    let taken = s.take(&view, op.kind == 8, op.u0, l4);
                    if op.kind == 8 {
                        out.extend_from_slice(&view[..taken]);
                    }
                    cursor += taken;
                }
                // Towards the peer's receiver: the downstream direction is 0 and leads to the upstream (target 2).
                (10, _) if l4 && op.target >= 2 && op.target - 2 != d as u32 => {
                    peer.send(op.val.text.get());
                }
                (10, _) => out.extend_from_slice(op.val.text.get()),
                _ => {}
            }
        }
        s.view.drain(..cursor);
        s.offset += cursor as u64;
        s.send(&out);
    }

    pub(super) fn mail(&mut self, m: Mail) {
        match m {
            Mail::Apply(o) => match o.action {
                Action::REPLY if !self.sides[1].passed_headers && !self.replied => {
                    self.cancel();
                    self.reply(&o);
                }
                Action::REPLY => {}
                Action::RESET => {
                    self.cancel();
                    self.reset = true;
                }
                _ => {}
            },
            Mail::Wake(arg) => {
                if self.subscribed(Phase::WAKE) && !self.ran.failed {
                    let mut e = self.event(None, Phase::WAKE, 0);
                    e.arg = arg;
                    let c = self.context(None, Phase::WAKE, e.flags.0);
                    self.call(None, e, c);
                }
            }
        }
    }

    pub(super) fn cancel(&mut self) -> Option<Took> {
        let mut longest: Option<Took> = None;
        for p in std::mem::take(&mut self.pend).into_iter().flatten() {
            if self.rig.host.cancel(p.token) {
                let took = self.rig.guest.on_cancel(
                    self.conf.made.config,
                    self.user,
                    self.handle,
                    p.token,
                    self.opt.worker,
                );
                longest = longest.filter(|l| l.wall_ns > took.wall_ns).or(Some(took));
            }
        }
        longest
    }

    /// After a failure the guest gets nothing more but `on_cancel` and `on_stream_end`.
    pub(super) fn fail(&mut self) {
        self.ran.failed = true;
        self.cancel();
        self.end(6);
    }

    pub(super) fn end(&mut self, why: u64) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.cancel();
        let how = |s: &Side, d: usize| -> u64 {
            match s.at {
                At::Done => 1,
                At::Wait => 0,
                _ if self.aborted => [2, 3][d],
                _ => 4,
            }
        };
        let arg = why | how(&self.sides[0], 0) << 8 | how(&self.sides[1], 1) << 12;
        let last = self.phases.last;
        if self.subscribed(last) && !self.ran.failed {
            let mut e = self.event(None, last, 0);
            e.arg = arg;
            e.peer_fields.clone_from(&self.request);
            e.peer_trailers.clone_from(&self.request_trailers);
            if self.sides[1].at != At::Wait && !self.is_l4() {
                e.fields.clone_from(&self.sides[1].fields);
                e.trailers = self.sides[1].trailers.clone().unwrap_or_default();
            }
            let c = self.context(None, last, e.flags.0);
            self.call(None, e, c);
        }
        self.rig.host.close_handle(self.handle);
        if self.user != 0 {
            self.rig.guest.on_stream_end(
                self.conf.made.config,
                self.user,
                self.handle,
                self.opt.worker,
            );
        }
        self.rig.release_owned();
    }
}

/// Looks again at borrowed memory after `grace`, while another thread makes the guest work.
fn check_borrowed(o: &Outcome, grace: Duration, rig: &Rig) {
    let was = o.borrowed();
    if was.is_empty() {
        return;
    }
    // What changes for a while only, a host may have read just then.
    let mut changed = BTreeMap::new();
    rig.disturb_while(grace, || changed.extend(calls::changed(&was)));
    for (at, len) in changed {
        let collected = rig.is_collected_heap(at);
        note(
            if collected {
                "PXG-MEM-011"
            } else {
                "PXG-MEM-004"
            },
            if collected {
                "handed out a pointer into its collected heap that was not pinned".to_string()
            } else {
                "borrowed result memory changed, or was freed, before the guest's next call"
                    .to_string()
            },
            [format!("{len} bytes at {at:#x}")],
        );
    }
}

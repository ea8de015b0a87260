//! What is delivered next, and what an event shows.

use proxy_golang_abi::{BodyMode, EventFlags, Phase, phase_bit};

use super::{At, Stream};
use crate::host::judge::{Context, Way};
use crate::host::model::Event;

impl Stream<'_> {
    pub(super) fn advance(&mut self, d: usize) {
        match self.sides[d].at {
            At::Wait => self.headers(d),
            At::Hold | At::Flow => self.body(d),
            At::Done | At::Cut => {}
        }
    }

    fn headers(&mut self, d: usize) {
        let body = self.phases.body[d];
        let whole = self.sides[d].mode == BodyMode::WHOLE && self.subscribed(body);
        self.sides[d].held = true;
        if let Some(phase) = self.phases.first[d].filter(|p| self.subscribed(*p)) {
            let mut flags = 0;
            if self.sides[d].ends_at_headers {
                if self.rig.exact_eos(d) {
                    flags |= EventFlags::END_STREAM.0;
                } else {
                    flags |= EventFlags::EOS_UNKNOWN.0;
                }
            }
            if self.upgraded && d == 1 {
                flags |= EventFlags::UPGRADED.0 | EventFlags::END_STREAM.0;
            }
            let known = flags & EventFlags::END_STREAM.0 != 0;
            self.deliver(d, phase, flags, known);
        } else if whole && !self.sides[d].ends_at_headers {
            self.sides[d].at = At::Hold;
        } else if whole && !(self.upgraded && d == 1) {
            // A filter that subscribes to nothing but a WHOLE body sees every message once.
            let flags = EventFlags::WHOLE_BODY.0
                | EventFlags::HEADERS_HELD.0
                | EventFlags::BODY_END.0
                | EventFlags::END_STREAM.0;
            self.sides[d].body_end = true;
            self.deliver(d, body, flags, true);
        } else {
            self.sides[d].pass_headers();
            self.sides[d].at = if self.sides[d].ends_at_headers {
                At::Done
            } else {
                At::Flow
            };
        }
    }

    fn max_body(&self, d: usize) -> u64 {
        match self.conf.made.max_body[d] {
            0 => self.opt.max_body,
            n => n.min(1 << 20),
        }
    }

    fn body(&mut self, d: usize) {
        let max = self.max_body(d);
        let late = self.opt.late_end;
        let phase = self.phases.body[d];
        let subscribed = self.subscribed(phase);
        let s = &mut self.sides[d];
        if s.body_end || !subscribed || s.mode == BodyMode::SKIP {
            if !s.body_end {
                s.pass_headers();
                s.pass_view();
                while let Some(r) = s.reads.pop_front() {
                    s.offset += r.len() as u64;
                    s.send(&r);
                }
                s.body_end = true;
            }
            self.trailers(d);
            return;
        }
        let holding = s.at == At::Hold;
        match s.mode {
            BodyMode::OBSERVE => {
                let read = s.reads.pop_front().unwrap_or_default();
                s.offset += read.len() as u64;
                s.send(&read);
                let last = s.reads.is_empty() && (!late || read.is_empty());
                let mut flags = 0;
                if last {
                    flags |= EventFlags::BODY_END.0;
                    s.body_end = true;
                    if s.trailers.is_none() {
                        flags |= EventFlags::END_STREAM.0;
                    }
                }
                s.offset -= read.len() as u64;
                s.view = read;
                let ends = flags & EventFlags::END_STREAM.0 != 0;
                self.deliver(d, phase, flags, ends);
            }
            BodyMode::WHOLE => {
                while s.view.len() as u64 <= max
                    && let Some(r) = s.reads.pop_front()
                {
                    s.view.extend_from_slice(&r);
                }
                let over = s.view.len() as u64 > max;
                let mut flags = EventFlags::HEADERS_HELD.0;
                let ended = s.reads.is_empty();
                let mut ends = false;
                if over {
                    flags |= EventFlags::OVER_LIMIT.0;
                    s.over = true;
                    if ended {
                        flags |= EventFlags::BODY_END.0;
                        s.body_end = true;
                        if s.trailers.is_none() {
                            flags |= EventFlags::END_STREAM.0;
                            ends = true;
                        }
                    }
                } else {
                    flags |= EventFlags::WHOLE_BODY.0
                        | EventFlags::BODY_END.0
                        | EventFlags::END_STREAM.0;
                    s.body_end = true;
                    s.trailers_shown = true;
                    ends = true;
                }
                self.deliver(d, phase, flags, ends);
            }
            _ => {
                let before = s.view.len();
                let want = if holding { s.due.max(1) } else { 1 };
                while ((s.view.len() - before) as u64) < want
                    && s.view.len() as u64 <= max
                    && let Some(r) = s.reads.pop_front()
                {
                    s.arrive(&r);
                }
                let grew = s.view.len() > before;
                let mut flags = 0;
                let mut ends = false;
                if s.reads.is_empty() && (!late || !grew) {
                    flags |= EventFlags::BODY_END.0;
                    s.body_end = true;
                    if s.trailers.is_none() {
                        flags |= EventFlags::END_STREAM.0;
                        ends = true;
                    }
                }
                if s.view.len() as u64 > max {
                    flags |= EventFlags::OVER_LIMIT.0;
                }
                if s.held {
                    flags |= EventFlags::HEADERS_HELD.0;
                }
                // What credit took is not shown.
                if s.view.is_empty() && !s.body_end && !late {
                    return;
                }
                self.deliver(d, phase, flags, ends);
            }
        }
    }

    fn trailers(&mut self, d: usize) {
        let subscribe = self.subscribe;
        let phase = self.phases.trailers[d].filter(|p| subscribe & phase_bit(*p) != 0);
        let s = &mut self.sides[d];
        match phase {
            Some(phase) if s.trailers.is_some() && !s.trailers_shown => {
                s.trailers_shown = true;
                self.deliver(d, phase, EventFlags::END_STREAM.0, true);
            }
            _ => s.at = At::Done,
        }
    }

    pub(super) fn context(&self, d: Option<usize>, phase: Phase, flags: u32) -> Context {
        let side = d.map(|d| &self.sides[d]);
        Context {
            phase,
            flags: EventFlags(flags),
            pend_phases: self.conf.made.pend_phases,
            features: self.conf.features,
            mode: [self.sides[0].mode, self.sides[1].mode],
            subscribe: self.subscribe,
            held: side.is_some_and(|s| s.held),
            view_len: side.map_or(0, |s| s.view.len() as u64),
            max_body: d.map_or(0, |d| self.max_body(d)),
            fields: side.map(|s| s.fields.clone()).unwrap_or_default(),
            trailers: side.and_then(|s| s.trailers.clone()).unwrap_or_default(),
            replied: self.replied,
            way: Way::Event,
            length_left: side.and_then(|s| s.length_left.filter(|_| s.mode == BodyMode::STREAM)),
        }
    }

    fn attrs(&self, phase: Phase) -> Vec<Option<Vec<u8>>> {
        let wants = self.conf.made.attrs.get();
        if !wants.iter().any(|w| w.phases & phase_bit(phase) != 0) {
            return Vec::new();
        }
        wants
            .iter()
            .map(|w| {
                let asked = w.phases & phase_bit(phase) != 0;
                asked.then(|| attribute(w.name.get())).flatten()
            })
            .collect()
    }

    pub(super) fn event(&mut self, d: Option<usize>, phase: Phase, flags: u32) -> Event {
        let mut flags = flags | self.opt.unknown_flags;
        if self.upgraded && self.sides[1].passed_headers {
            flags |= EventFlags::UPGRADED.0;
        }
        if phase.0 < 7 || (phase == Phase::WAKE && !self.is_l4()) {
            let can = !self.sides[1].passed_headers && !self.replied;
            if can {
                flags |= EventFlags::CAN_REPLY.0;
            }
        }
        if self.opt.local_origin && (d == Some(1) || phase == self.phases.last) {
            flags |= EventFlags::LOCAL_ORIGIN.0;
        }
        let mut e = Event {
            phase,
            worker: self.opt.worker,
            config: self.conf.made.config,
            user: self.user,
            stream: self.handle,
            attrs: self.attrs(phase),
            ..Event::default()
        };
        if let Some(d) = d {
            if std::mem::take(&mut self.sides[d].resumed) {
                flags |= EventFlags::RESUMED.0;
            }
            let s = &self.sides[d];
            let body = self.phases.body[d];
            let shows_fields = Some(phase) == self.phases.first[d]
                || (phase == body && flags & EventFlags::HEADERS_HELD.0 != 0);
            if shows_fields {
                e.fields.clone_from(&s.fields);
                if d == 1 && self.conf.made.flags & 8 != 0 {
                    e.peer_fields.clone_from(&self.request);
                    e.peer_trailers.clone_from(&self.request_trailers);
                }
            }
            if Some(phase) == self.phases.trailers[d] || flags & EventFlags::WHOLE_BODY.0 != 0 {
                e.trailers = s.trailers.clone().unwrap_or_default();
            }
            if phase == body {
                e.chunks = split(&s.view, self.opt.chunks);
                e.body_offset = s.offset;
            }
        }
        e.flags = EventFlags(flags);
        e
    }

    fn deliver(&mut self, d: usize, phase: Phase, flags: u32, ends: bool) {
        let e = self.event(Some(d), phase, flags);
        let context = self.context(Some(d), phase, e.flags.0);
        let _ = ends;
        self.call(Some(d), e, context);
    }
}

/// Cuts a view into at most `n` pieces, none empty.
fn split(view: &[u8], n: usize) -> Vec<Vec<u8>> {
    if view.is_empty() {
        return Vec::new();
    }
    let n = n.clamp(1, 64).min(view.len());
    let each = view.len() / n;
    let mut out: Vec<Vec<u8>> = (0..n - 1)
        .map(|i| view[i * each..(i + 1) * each].to_vec())
        .collect();
    out.push(view[(n - 1) * each..].to_vec());
    out
}

fn attribute(name: &[u8]) -> Option<Vec<u8>> {
    Some(
        match name {
            b"request.id" => "pxg-0001",
            b"request.protocol" => "HTTP/2",
            b"request.start_ns" => "1700000000000000000",
            b"request.early_data" => "false",
            b"path.raw" | b"path.normalized" => "/index.html?q=1",
            b"source.address" | b"source.peer_address" => "192.0.2.1:40000",
            b"destination.address" => "[2001:db8::1]:443",
            b"connection.id" => "7",
            b"connection.requests" => "1",
            b"tls.version" => "TLSv1.3",
            b"route.name" => "",
            b"duration_ns" => "1000",
            _ => return None,
        }
        .as_bytes()
        .to_vec(),
    )
}

//! One direction: its phases, body modes and operations (spec, chapters 5 to 8 and 10).

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{
    Action, BodyMode, ConfigFlags, EventFlags, OpKind, Phase, ResultFlags, Target,
};

use super::{Exchange, Step, Stop};
use crate::raw::mini::{Effects, EventIn, FieldList, OpOut};
use crate::testing::{End, Message};

/// What the host holds of a body without `max_body`.
const DEFAULT_MAX_BODY: usize = 1 << 20;

/// Fields with their indices in the delivered view; `usize::MAX` for those that a batch added.
type Indexed = Vec<(usize, (Vec<u8>, Vec<u8>))>;

/// A direction under way.
struct Direction {
    index: usize,
    headers: Phase,
    body: Phase,
    trailers_phase: Phase,
    mode: BodyMode,
    /// What has not been passed: fields while they are held, then the view.
    fields: FieldList,
    trailers: FieldList,
    headers_left: bool,
    view: Vec<u8>,
    offset: u64,
    passed: Vec<u8>,
    resizes: bool,
    received: usize,
    ended: bool,
}

impl Exchange<'_> {
    // ---- operations

    /// Metadata and metrics, which are legal in every result.
    pub(super) fn apply_anywhere(&mut self, ops: &[OpOut]) {
        for op in ops {
            match op.kind {
                OpKind::METADATA_SET => {
                    let key = String::from_utf8_lossy(&op.key).into_owned();
                    self.metadata.insert(key, op.val.clone());
                }
                OpKind::METRIC => {
                    let known = self
                        .config
                        .host
                        .mini
                        .state()
                        .record(op.target.0, op.u0.cast_signed());
                    if !known {
                        self.violation(format!(
                            "PXG-OBS-003: METRIC with the unknown id {}",
                            op.target.0
                        ));
                    }
                }
                OpKind::ROUTE => {
                    self.route = Some(
                        String::from_utf8_lossy(if op.key == b"cluster" {
                            &op.val
                        } else {
                            &op.key
                        })
                        .into_owned(),
                    )
                }
                _ => {}
            }
        }
    }

    pub(super) fn check_field(&self, name: &[u8], value: Option<&[u8]>, kind: OpKind) {
        let shown = String::from_utf8_lossy(name);
        let pseudo = name.starts_with(b":");
        let token = |c: &u8| {
            c.is_ascii_alphanumeric() && !c.is_ascii_uppercase() || b"!#$%&'*+-.^_`|~".contains(c)
        };
        let legal = if pseudo {
            [
                &b":method"[..],
                b":scheme",
                b":authority",
                b":path",
                b":status",
            ]
            .contains(&name)
        } else {
            !name.is_empty() && name.iter().all(token)
        };
        if !legal {
            self.violation(format!(
                "PXG-HDR-005: the field name {shown:?}; expected a token in lower case"
            ));
        }
        if pseudo && !matches!(kind, OpKind::HEADER_SET | OpKind::SET_AT) {
            self.violation(format!("PXG-HDR-006: {shown} can only be set"));
        }
        if value.is_some_and(|v| v.iter().any(|c| matches!(c, b'\r' | b'\n' | 0))) {
            self.violation(format!(
                "PXG-HDR-005: the value of {shown} has CR, LF or NUL"
            ));
        }
        let owned = [
            &b"connection"[..],
            b"content-length",
            b"keep-alive",
            b"proxy-connection",
            b"te",
            b"trailer",
            b"transfer-encoding",
            b"upgrade",
            b"host",
        ];
        if owned.contains(&name) {
            self.violation(format!("PXG-HDR-008: {shown} is the host's"));
        }
    }

    fn field_ops(&self, d: &mut Direction, event: &EventIn, ops: &[OpOut]) {
        let held = !d.headers_left;
        let end_of_stream = event.flags.0 & EventFlags::END_STREAM.0 != 0;
        let trailers_legal = self.has(
            [
                Feature::TRAILERS_OUT_REQUEST,
                Feature::TRAILERS_OUT_RESPONSE,
            ][d.index],
        ) && (event.phase == d.trailers_phase
            || (event.phase == d.body && end_of_stream));
        // By index into the view, before all operations of the batch (PXG-HDR-004).
        let mut headers: Indexed = d.fields.drain(..).enumerate().collect();
        let mut trailers: Indexed = d.trailers.drain(..).enumerate().collect();
        let (n_headers, n_trailers) = (headers.len(), trailers.len());
        for op in ops {
            if !matches!(
                op.kind,
                OpKind::HEADER_SET
                    | OpKind::HEADER_ADD
                    | OpKind::HEADER_DELETE
                    | OpKind::SET_AT
                    | OpKind::DELETE_AT
            ) {
                continue;
            }
            let (list, count, legal) = match op.target {
                Target::HEADERS => (&mut headers, n_headers, held),
                Target::TRAILERS => (&mut trailers, n_trailers, trailers_legal),
                other => {
                    self.violation(format!(
                        "PXG-ABI-005: a field operation with target {}",
                        other.0
                    ));
                    continue;
                }
            };
            if !legal {
                // A host skips and counts it; a filter that does this has not looked at what it may do.
                self.violation(format!(
                    "PXG-TRL-001: a {} operation at phase {}, where they have left or cannot be sent",
                    if op.target == Target::TRAILERS { "trailer" } else { "header" },
                    event.phase.0
                ));
                continue;
            }
            let index = usize::try_from(op.u0).unwrap_or(usize::MAX);
            match op.kind {
                OpKind::SET_AT | OpKind::DELETE_AT if index >= count => {
                    self.violation(format!(
                        "PXG-HDR-004: index {index} in a view of {count} fields"
                    ));
                }
                OpKind::SET_AT => {
                    if let Some((_, field)) = list.iter_mut().find(|(i, _)| *i == index) {
                        self.check_field(&field.0, Some(&op.val), op.kind);
                        field.1.clone_from(&op.val);
                    }
                }
                OpKind::DELETE_AT => list.retain(|(i, _)| *i != index),
                OpKind::HEADER_DELETE => {
                    self.check_field(&op.key, None, op.kind);
                    list.retain(|(_, (name, _))| *name != op.key);
                }
                OpKind::HEADER_SET => {
                    self.check_field(&op.key, Some(&op.val), op.kind);
                    match list.iter().position(|(_, (name, _))| *name == op.key) {
                        Some(at) => {
                            list[at].1.1.clone_from(&op.val);
                            let keep = list[at].0;
                            list.retain(|(i, (name, _))| *name != op.key || *i == keep);
                        }
                        None => list.push((usize::MAX, (op.key.clone(), op.val.clone()))),
                    }
                }
                _ => {
                    self.check_field(&op.key, Some(&op.val), op.kind);
                    list.push((usize::MAX, (op.key.clone(), op.val.clone())));
                }
            }
        }
        d.fields = headers.into_iter().map(|(_, field)| field).collect();
        d.trailers = trailers.into_iter().map(|(_, field)| field).collect();
    }

    /// Moves the cursor over the view; answers what leaves.
    fn body_ops(&self, d: &mut Direction, effects: &Effects) -> Vec<u8> {
        let mut out = Vec::new();
        let mut cursor = 0_usize;
        for op in &effects.ops {
            let n = usize::try_from(op.u0).unwrap_or(usize::MAX);
            match op.kind {
                OpKind::PASS | OpKind::DROP if n > d.view.len() - cursor => {
                    self.violation(format!(
                        "PXG-BODY-006: {n} bytes from {cursor} in a view of {}",
                        d.view.len()
                    ));
                }
                OpKind::PASS => {
                    out.extend_from_slice(&d.view[cursor..cursor + n]);
                    cursor += n;
                }
                OpKind::DROP => cursor += n,
                OpKind::INJECT => out.extend_from_slice(&op.val),
                _ => {}
            }
        }
        d.view.drain(..cursor);
        d.offset += cursor as u64;
        out
    }

    // ---- a direction

    pub(super) fn direction(&mut self, message: Message, index: usize) -> Step<Message> {
        let phases = [
            (
                Phase::REQUEST_HEADERS,
                Phase::REQUEST_BODY,
                Phase::REQUEST_TRAILERS,
            ),
            (
                Phase::RESPONSE_HEADERS,
                Phase::RESPONSE_BODY,
                Phase::RESPONSE_TRAILERS,
            ),
        ][index];
        let mut d = Direction {
            index,
            headers: phases.0,
            body: phases.1,
            trailers_phase: phases.2,
            mode: BodyMode::SKIP,
            fields: message.fields,
            trailers: message.trailers,
            headers_left: false,
            view: Vec::new(),
            offset: 0,
            passed: Vec::new(),
            resizes: self.config.out.flags.0
                & [ConfigFlags::RESIZES_REQUEST, ConfigFlags::RESIZES_RESPONSE][index].0
                != 0,
            received: message.body.len(),
            ended: false,
        };
        let bodyless = message.body.is_empty() && d.trailers.is_empty();
        let mut held = false;
        let headers_seen = self.subscribes(d.headers);
        if headers_seen {
            held = self.headers(&mut d, bodyless)?;
        }
        d.mode = self.mode(&d);
        let whole_of_nothing = d.mode == BodyMode::WHOLE && !headers_seen && bodyless;
        if bodyless && !whole_of_nothing {
            self.leave(&mut d);
            return Ok(finish(d));
        }
        match d.mode {
            BodyMode::WHOLE => self.whole(&mut d, &message.body)?,
            BodyMode::STREAM | BodyMode::OBSERVE => {
                if !held {
                    self.leave(&mut d);
                }
                self.streamed(&mut d, &message.body)?;
            }
            _ => {
                self.leave(&mut d);
                d.passed.extend_from_slice(&message.body);
            }
        }
        self.leave(&mut d);
        if !d.ended && !d.trailers.is_empty() && self.subscribes(d.trailers_phase) {
            let mut event = self.event(d.trailers_phase, EventFlags::END_STREAM.0);
            event.trailers = d.trailers.clone();
            let effects = self.deliver(&event)?;
            if effects.action == Action::MORE {
                self.violation("PXG-ACT-003: MORE at trailers");
            }
            self.apply_anywhere(&effects.ops);
            self.field_ops(&mut d, &event, &effects.ops);
        }
        Ok(finish(d))
    }

    fn leave(&mut self, d: &mut Direction) {
        d.headers_left = true;
        if d.index == abi::DIR_RESPONSE {
            self.response_left = true;
        }
    }

    /// The headers event; whether MORE holds the headers.
    fn headers(&mut self, d: &mut Direction, bodyless: bool) -> Step<bool> {
        let mut event = self.event(
            d.headers,
            if bodyless {
                EventFlags::END_STREAM.0
            } else {
                0
            },
        );
        event.fields = d.fields.clone();
        let effects = self.deliver(&event)?;
        self.apply_anywhere(&effects.ops);
        self.field_ops(d, &event, &effects.ops);
        if effects.flags.0 & ResultFlags::RESIZES.0 != 0 {
            d.resizes = true;
        }
        if effects
            .ops
            .iter()
            .any(|op| matches!(op.kind, OpKind::PASS | OpKind::DROP | OpKind::INJECT))
        {
            self.violation("PXG-BODY: body operations at headers");
        }
        let more = effects.action == Action::MORE;
        if more && (bodyless || self.mode(d) == BodyMode::SKIP || self.mode(d) == BodyMode::OBSERVE)
        {
            self.violation(
                "PXG-ACT-003: MORE at headers without a body in mode STREAM or WHOLE to come",
            );
        }
        Ok(more)
    }

    fn mode(&self, d: &Direction) -> BodyMode {
        if self.subscribes(d.body) {
            self.modes[d.index]
        } else {
            BodyMode::SKIP
        }
    }

    /// The view in pieces of random length: at most 64, none empty.
    fn chunks(&self, view: &[u8]) -> Vec<Vec<u8>> {
        let mut rest = view;
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let n = if chunks.len() == 63 {
                rest.len()
            } else {
                self.config.host.random.piece(rest.len())
            };
            chunks.push(rest[..n].to_vec());
            rest = &rest[n..];
        }
        chunks
    }

    fn body_event(&self, d: &Direction, flags: u32, view: &[u8]) -> EventIn {
        let mut event = self.event(d.body, flags);
        if !d.headers_left {
            event.flags.0 |= EventFlags::HEADERS_HELD.0;
            event.fields = d.fields.clone();
        }
        if event.flags.0 & EventFlags::WHOLE_BODY.0 != 0 {
            event.trailers = d.trailers.clone();
        }
        event.body_offset = d.offset;
        event.chunks = self.chunks(view);
        event
    }

    fn max_body(&self, d: &Direction) -> usize {
        match usize::try_from(self.config.out.max_body[d.index]).unwrap_or(usize::MAX) {
            0 => DEFAULT_MAX_BODY,
            n => n.min(DEFAULT_MAX_BODY),
        }
    }

    fn whole(&mut self, d: &mut Direction, body: &[u8]) -> Step {
        let max = self.max_body(d);
        if body.len() <= max {
            let flags =
                EventFlags::WHOLE_BODY.0 | EventFlags::BODY_END.0 | EventFlags::END_STREAM.0;
            d.view = body.to_vec();
            let event = self.body_event(d, flags, body);
            let effects = self.deliver(&event)?;
            if effects.action == Action::MORE {
                self.violation("PXG-ACT-003: MORE at the end of a body");
            }
            self.apply_anywhere(&effects.ops);
            self.field_ops(d, &event, &effects.ops);
            let out = self.body_ops(d, &effects);
            d.passed.extend(out);
            d.passed.append(&mut d.view);
            // The host computes the length.
            d.received = d.passed.len();
            d.ended = true;
            return Ok(());
        }
        // All that is held: up to one read more than the limit.
        let held = max + 1 + self.config.host.random.below((body.len() - max).min(4096));
        let held = held.min(body.len());
        d.view = body[..held].to_vec();
        let view = d.view.clone();
        let event = self.body_event(d, EventFlags::OVER_LIMIT.0, &view);
        let effects = self.deliver(&event)?;
        if effects.action == Action::MORE {
            self.violation("PXG-BODY-004: MORE over the limit");
        }
        self.apply_anywhere(&effects.ops);
        self.field_ops(d, &event, &effects.ops);
        let out = self.body_ops(d, &effects);
        d.passed.extend(out);
        d.offset += d.view.len() as u64;
        d.passed.append(&mut d.view);
        self.leave(d);
        if self.modes[d.index] == BodyMode::WHOLE {
            self.modes[d.index] = BodyMode::STREAM;
        }
        d.mode = self.mode(d);
        let rest = &body[held..];
        if d.mode == BodyMode::STREAM && !rest.is_empty() {
            self.streamed(d, rest)
        } else {
            d.passed.extend_from_slice(rest);
            Ok(())
        }
    }

    fn streamed(&mut self, d: &mut Direction, body: &[u8]) -> Step {
        let mut rest = body;
        let mut wanted = 0;
        loop {
            if self.mode(d) == BodyMode::SKIP {
                self.leave(d);
                d.passed.append(&mut d.view);
                d.passed.extend_from_slice(rest);
                return Ok(());
            }
            let n = if rest.is_empty() {
                0
            } else {
                self.config.host.random.piece(rest.len())
            };
            let (new, later) = rest.split_at(n);
            rest = later;
            d.view.extend_from_slice(new);
            wanted = usize::saturating_sub(wanted, n);
            // The host may learn of the end after the last bytes: then an empty event says so.
            let end = rest.is_empty() && (n == 0 || self.config.host.random.one_in(2));
            if !end && (wanted > 0 || d.view.is_empty()) {
                continue;
            }
            let mut flags = 0;
            if end {
                flags |= EventFlags::BODY_END.0;
                if d.trailers.is_empty() {
                    flags |= EventFlags::END_STREAM.0;
                    d.ended = true;
                }
            }
            if d.view.len() > self.max_body(d) {
                flags |= EventFlags::OVER_LIMIT.0;
            }
            if d.mode == BodyMode::OBSERVE {
                self.observe(d, flags)?;
            } else {
                wanted = self.stream_event(d, flags, end)?;
            }
            if end {
                self.check_length(d);
                return Ok(());
            }
        }
    }

    fn observe(&mut self, d: &mut Direction, flags: u32) -> Step {
        let view = std::mem::take(&mut d.view);
        d.passed.extend_from_slice(&view);
        let event = self.body_event(d, flags, &view);
        d.offset += view.len() as u64;
        let effects = self.deliver(&event)?;
        let looks_only = |op: &OpOut| matches!(op.kind, OpKind::METADATA_SET | OpKind::METRIC);
        if effects.action != Action::CONTINUE || !effects.ops.iter().all(looks_only) {
            self.violation("PXG-BODY-007: OBSERVE can only look");
        }
        self.apply_anywhere(&effects.ops);
        Ok(())
    }

    /// Answers how many further bytes are worth an event.
    fn stream_event(&mut self, d: &mut Direction, flags: u32, end: bool) -> Step<usize> {
        let view = d.view.clone();
        let event = self.body_event(d, flags, &view);
        let effects = self.deliver(&event)?;
        self.apply_anywhere(&effects.ops);
        self.field_ops(d, &event, &effects.ops);
        let more = effects.action == Action::MORE;
        let leaves = |op: &OpOut| matches!(op.kind, OpKind::PASS | OpKind::INJECT);
        if more && !d.headers_left && effects.ops.iter().any(leaves) {
            self.violation(
                "PXG-ACT-007: PASS or INJECT in a MORE result while the headers are held",
            );
        }
        let out = self.body_ops(d, &effects);
        d.passed.extend(out);
        if more {
            if end {
                self.violation("PXG-ACT-003: MORE at the end of a body");
                return Err(Stop(End::Failed("MORE at the end of a body".to_owned())));
            }
            if d.view.len() > self.max_body(d) {
                self.violation("PXG-BODY-004: MORE keeps more than max_body");
            }
            let grown = d.view.len() / 8;
            return Ok(match effects.more_bytes {
                0 => grown.clamp(1, 1024),
                n => usize::try_from(n).unwrap_or(usize::MAX),
            });
        }
        self.leave(d);
        d.offset += d.view.len() as u64;
        d.passed.append(&mut d.view);
        Ok(0)
    }

    fn check_length(&self, d: &Direction) {
        let declared = d.fields.iter().any(|(name, _)| name == b"content-length");
        if declared && !d.resizes && d.passed.len() != d.received {
            self.violation(format!(
                "PXG-HDR-007: the body changed from {} to {} bytes without `resizes`",
                d.received,
                d.passed.len()
            ));
        }
    }
}

fn finish(d: Direction) -> Message {
    let mut fields = d.fields;
    for (name, value) in &mut fields {
        if name == b"content-length" && d.received != d.passed.len() {
            *value = d.passed.len().to_string().into_bytes();
        }
    }
    if d.mode == BodyMode::WHOLE {
        for (name, value) in &mut fields {
            if name == b"content-length" {
                *value = d.passed.len().to_string().into_bytes();
            }
        }
    }
    Message {
        fields,
        body: d.passed,
        trailers: d.trailers,
    }
}

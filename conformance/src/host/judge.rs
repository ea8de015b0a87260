//! Whether a result is legal where it was given: the strict reading of chapters 5 to 10. Each violation names the rule
//! that the guest broke, or, where only the host's duty to refuse has an id, that one.

use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase};

use super::config::{feature_name, mode_feature};
use super::model::{
    Array, Buffer, Field, Op, Outcome, Region, Reply, ReplyFound, Text, action_name, op_name,
    phase_name,
};

/// What a result is judged by.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) phase: Phase,
    pub(crate) flags: EventFlags,
    pub(crate) pend_phases: u64,
    pub(crate) features: FeatureSet,
    /// Mode of the event's own direction before the result.
    pub(crate) mode: [BodyMode; 2],
    pub(crate) subscribe: u64,
    pub(crate) held: bool,
    pub(crate) view_len: u64,
    pub(crate) max_body: u64,
    pub(crate) fields: Vec<Field>,
    pub(crate) trailers: Vec<Field>,
    pub(crate) replied: bool,
    pub(crate) way: Way,
    /// A content-length that stays: bytes that may still leave.
    pub(crate) length_left: Option<u64>,
}

/// By which function a result came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Event,
    Complete,
    Apply,
}

/// A violation: the rule, and what was found.
pub(crate) type Violation = (&'static str, String);

const STR_FLAGS: u32 = 0x3;
const BUF_FLAGS: u32 = 0x33;

fn lossy(b: &[u8]) -> String {
    let cut = &b[..b.len().min(60)];
    format!("{:?}", String::from_utf8_lossy(cut))
}

/// A string that a guest handed in.
pub(crate) fn check_text(
    t: &Text,
    what: &str,
    buffer: bool,
    put: &mut impl FnMut(&'static str, String),
) {
    let known = if buffer { BUF_FLAGS } else { STR_FLAGS };
    if t.flags & !known != 0 {
        put(
            "PXG-ABI-005",
            format!("{what} has undefined flag bits {:#x}", t.flags & !known),
        );
    }
    if buffer && t.flags & 0x30 == 0x30 {
        put("PXG-ABI-005", format!("{what} is both STATIC and OWNED"));
    }
    if t.flags & 1 != 0 && (t.len != 0 || t.ptr != 0) {
        put(
            "PXG-ABI-012",
            format!(
                "{what} is ABSENT with pointer {:#x} and length {}",
                t.ptr, t.len
            ),
        );
    }
    if t.len == 0 {
        return;
    }
    match t.region {
        Region::Null => put(
            "PXG-ABI-012",
            format!("{what} is NULL with length {}", t.len),
        ),
        Region::Scratch(room) | Region::View(room) if u64::from(t.len) > room => put(
            "PXG-MEM-012",
            format!(
                "{what} begins in lent memory and is {} bytes long; {room} are left there",
                t.len
            ),
        ),
        Region::Foreign => put(
            "PXG-MEM-002",
            format!("{what} points into memory of the host that is no longer, or not, lent"),
        ),
        _ if t.bytes.is_none() => put(
            "PXG-MEM-004",
            format!("{what}: {} bytes at {:#x} can't be read", t.len, t.ptr),
        ),
        _ => {}
    }
}

fn check_buffer(b: &Buffer, what: &str, put: &mut impl FnMut(&'static str, String)) {
    check_text(&b.text, what, true, put);
    if b.text.flags & 0x20 != 0 && b.release == 0 {
        put("PXG-ABI-012", format!("{what} is OWNED and has no release"));
    }
}

fn check_array<T>(a: &Array<T>, what: &str, put: &mut impl FnMut(&'static str, String)) {
    if a.count == 0 {
        return;
    }
    match a.region {
        Region::Null => put(
            "PXG-ABI-012",
            format!("{what} is NULL with a count of {}", a.count),
        ),
        Region::Scratch(room) | Region::View(room) if a.bytes > room => put(
            "PXG-MEM-012",
            format!(
                "{what} begins in lent memory and ends outside: {} of {room} bytes",
                a.bytes
            ),
        ),
        Region::Foreign => put(
            "PXG-MEM-013",
            format!("{what} points into memory of the host that is no longer lent"),
        ),
        _ if a.items.is_none() => put(
            "PXG-MEM-004",
            format!("{what}: {} elements at {:#x} can't be read", a.count, a.ptr),
        ),
        _ => {}
    }
}

const OWNED_FIELDS: [&[u8]; 10] = [
    b"connection",
    b"content-length",
    b"host",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"expect",
];

fn is_token(b: &[u8]) -> bool {
    !b.is_empty()
        && b.iter()
            .all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`".contains(c))
}

fn is_value(b: &[u8]) -> bool {
    let edge = |c: Option<&u8>| matches!(c, Some(b' ' | b'\t'));
    !edge(b.first())
        && !edge(b.last())
        && b.iter().all(|c| *c == b'\t' || (*c >= 0x20 && *c != 0x7f))
}

fn is_pseudo_value(name: &[u8], v: &[u8]) -> bool {
    match name {
        b":method" => is_token(v),
        b":scheme" => v == b"http" || v == b"https",
        b":authority" => {
            !v.is_empty()
                && v.iter()
                    .all(|c| c.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(c))
        }
        b":path" => {
            (v.first() == Some(&b'/') || v == b"*")
                && v.iter().all(|c| (0x21..=0x7e).contains(c) && *c != b'#')
        }
        b":status" => {
            v.len() == 3 && v.iter().all(u8::is_ascii_digit) && (b'2'..=b'5').contains(&v[0])
        }
        _ => false,
    }
}

/// A name and value that a guest hands in as an ordinary field.
fn check_field(
    name: &[u8],
    value: Option<&[u8]>,
    what: &str,
    put: &mut impl FnMut(&'static str, String),
) {
    if name.iter().any(u8::is_ascii_uppercase) {
        put(
            "PXG-HDR-010",
            format!(
                "{what} has the name {}, which is not lower case",
                lossy(name)
            ),
        );
    }
    let lower = name.to_ascii_lowercase();
    if OWNED_FIELDS.contains(&lower.as_slice()) {
        put(
            "PXG-HDR-008",
            format!("{what} names {}, a field that the host owns", lossy(name)),
        );
    }
    if !is_token(name) {
        put(
            "PXG-HDR-005",
            format!(
                "{what} has the name {}, which is no field name",
                lossy(name)
            ),
        );
    }
    if let Some(v) = value
        && !is_value(v)
    {
        put(
            "PXG-HDR-005",
            format!(
                "{what} ({}) has a value that is no field value: {}",
                lossy(name),
                lossy(v)
            ),
        );
    }
}

impl Context {
    fn has(&self, f: Feature) -> bool {
        f.is_in(&self.features)
    }

    fn flag(&self, f: EventFlags) -> bool {
        self.flags.0 & f.0 != 0
    }

    /// 0 for request phases, 1 for response phases, none for WAKE, LOG and `apply`.
    pub(crate) fn dir(&self) -> Option<usize> {
        if self.way == Way::Apply {
            return None;
        }
        match self.phase.0 {
            1..=3 | 17 => Some(0),
            4..=6 | 18 => Some(1),
            _ => None,
        }
    }

    fn is_headers(&self) -> bool {
        matches!(self.phase, Phase::REQUEST_HEADERS | Phase::RESPONSE_HEADERS)
    }

    fn is_body(&self) -> bool {
        matches!(self.phase, Phase::REQUEST_BODY | Phase::RESPONSE_BODY)
    }

    fn is_trailers(&self) -> bool {
        matches!(
            self.phase,
            Phase::REQUEST_TRAILERS | Phase::RESPONSE_TRAILERS
        )
    }

    fn is_log(&self) -> bool {
        matches!(self.phase, Phase::LOG | Phase::L4_CLOSE)
    }

    fn is_l4_data(&self) -> bool {
        matches!(self.phase, Phase::L4_DOWNSTREAM | Phase::L4_UPSTREAM)
    }

    /// The mode of the event's direction once the result's own change has taken effect.
    fn mode_after(&self, o: &Outcome) -> BodyMode {
        let Some(d) = self.dir() else {
            return BodyMode::SKIP;
        };
        if o.body_mode[d] == BodyMode::UNSET {
            self.mode[d]
        } else {
            o.body_mode[d]
        }
    }

    /// Everything that is wrong with `o`.
    pub(crate) fn judge(&self, o: &Outcome) -> Vec<Violation> {
        let mut out: Vec<Violation> = Vec::new();
        let mut put = |rule: &'static str, text: String| out.push((rule, text));
        let at = match self.way {
            Way::Event => phase_name(self.phase).to_string(),
            Way::Complete => format!("complete for {}", phase_name(self.phase)),
            Way::Apply => "apply".to_string(),
        };
        if o.flags & !0x3 != 0 {
            put(
                "PXG-ABI-005",
                format!("{at}: result.flags has undefined bits {:#x}", o.flags & !3),
            );
        }
        if o.reserved0 != 0 {
            put(
                "PXG-ABI-005",
                format!("{at}: result.reserved0 is {}", o.reserved0),
            );
        }
        if !o.tail_is_zero {
            put(
                "PXG-ABI-005",
                format!("{at}: the result's tail behind version 1.0 is not zero"),
            );
        }
        check_text(&o.error, &format!("{at}: result.error"), false, &mut put);
        if !self.judge_action(o, &at, &mut put) {
            return out;
        }
        self.judge_modes(o, &at, &mut put);
        check_array(&o.ops, &format!("{at}: result.ops"), &mut put);
        let mut cursor = Cursor::default();
        for (i, op) in o.ops.get().iter().enumerate() {
            let what = format!("{at}: operation {i} ({})", op_name(op.kind));
            self.judge_op(op, o.action, &what, &mut cursor, &mut put);
        }
        self.judge_cursor(o, &cursor, &at, &mut put);
        match (&o.reply, o.action) {
            (ReplyFound::Some(r), Action::REPLY) => self.judge_reply(r, &at, &mut put),
            (ReplyFound::Unreadable(p), _) => {
                put(
                    "PXG-MEM-004",
                    format!("{at}: result.reply points to {p:#x}, which can't be read"),
                );
            }
            (ReplyFound::None, Action::REPLY) => {
                put("PXG-RPL-001", format!("{at}: REPLY without a reply"))
            }
            (ReplyFound::Some(_), a) => put(
                "PXG-RPL-001",
                format!("{at}: a reply with the action {}", action_name(a)),
            ),
            (ReplyFound::None, _) => {}
        }
        out
    }

    /// False where the rest of the result means nothing.
    fn judge_action(
        &self,
        o: &Outcome,
        at: &str,
        put: &mut impl FnMut(&'static str, String),
    ) -> bool {
        let name = action_name(o.action);
        if self.way != Way::Event {
            let legal = match o.action {
                Action::CONTINUE | Action::REPLY | Action::RESET => true,
                Action::ERROR => self.way == Way::Complete,
                Action::MORE => {
                    self.way == Way::Complete
                        && (self.is_headers() || self.is_body() || self.is_l4_data())
                }
                _ => false,
            };
            if !legal {
                put("PXG-ASY-010", format!("{at} with the action {name}"));
                return false;
            }
        } else if o.action == Action::UNSET {
            put("PXG-ACT-001", format!("{at}: the action was left UNSET"));
            return false;
        } else if o.action.0 > Action::ERROR.0 {
            put("PXG-ACT-001", format!("{at}: {name}"));
            return false;
        } else if self.is_log() && o.action != Action::CONTINUE {
            put("PXG-ACT-009", format!("{at} was answered with {name}"));
            return false;
        }
        match o.action {
            Action::PENDING => {
                self.judge_pending(o, at, put);
                false
            }
            Action::MORE => {
                self.judge_more(o, at, put);
                true
            }
            Action::REPLY => {
                if self.replied {
                    put(
                        "PXG-RPL-001",
                        format!("{at}: a second REPLY for one stream"),
                    );
                }
                if self.is_log()
                    || self.phase.0 >= 16
                    || (self.is_body() && self.mode_after(o) == BodyMode::OBSERVE)
                {
                    put("PXG-RPL-001", format!("{at}: REPLY is not possible here"));
                }
                true
            }
            _ => true,
        }
    }

    fn judge_pending(&self, o: &Outcome, at: &str, put: &mut impl FnMut(&'static str, String)) {
        if self.pend_phases & (1 << self.phase.0) == 0 {
            put(
                "PXG-ACT-006",
                format!(
                    "{at} was answered with PENDING; pend_phases is {:#x}",
                    self.pend_phases
                ),
            );
        }
        let mut with = Vec::new();
        if o.ops.count != 0 || o.ops.ptr != 0 {
            with.push("operations");
        }
        if o.reply != ReplyFound::None {
            with.push("a reply");
        }
        if o.unsubscribe != 0 {
            with.push("unsubscribe");
        }
        if o.body_mode != [BodyMode::UNSET; 2] {
            with.push("body_mode");
        }
        if o.more_bytes != 0 {
            with.push("more_bytes");
        }
        if o.flags != 0 {
            with.push("flags");
        }
        if o.error.ptr != 0 || o.error.len != 0 {
            with.push("error");
        }
        if !with.is_empty() {
            put(
                "PXG-ACT-008",
                format!("{at}: PENDING with {}", with.join(", ")),
            );
        }
    }

    fn judge_more(&self, o: &Outcome, at: &str, put: &mut impl FnMut(&'static str, String)) {
        let mode = self.mode_after(o);
        if !(self.is_headers() || self.is_body() || self.is_l4_data()) {
            put("PXG-ACT-003", format!("{at} was answered with MORE"));
            return;
        }
        if self.flag(EventFlags::END_STREAM) || self.flag(EventFlags::BODY_END) {
            put(
                "PXG-ACT-003",
                format!("{at} was answered with MORE at the end of the body"),
            );
        }
        if self.is_headers() && mode == BodyMode::STREAM {
            let f = [Feature::HOLD_REQUEST, Feature::HOLD_RESPONSE][self.dir().unwrap_or(0)];
            if !self.has(f) {
                put(
                    "PXG-NEG-003",
                    format!("{at}: MORE needs {}, which the host lacks", feature_name(f)),
                );
            }
        }
        let legal = mode == BodyMode::STREAM
            || (self.is_headers() && mode == BodyMode::WHOLE)
            || self.is_l4_data();
        if !legal {
            put(
                "PXG-ACT-003",
                format!("{at} was answered with MORE in the body mode {}", mode.0),
            );
        }
    }

    fn judge_modes(&self, o: &Outcome, at: &str, put: &mut impl FnMut(&'static str, String)) {
        if self.way == Way::Apply {
            if o.body_mode != [BodyMode::UNSET; 2]
                || o.unsubscribe != 0
                || o.more_bytes != 0
                || o.flags & 1 != 0
            {
                put(
                    "PXG-ASY-010",
                    format!("{at} with unsubscribe, body_mode, more_bytes or RESIZES"),
                );
            }
            return;
        }
        for (dir, mode) in o.body_mode.iter().enumerate() {
            if *mode == BodyMode::UNSET || *mode == self.mode[dir] {
                continue;
            }
            if mode.0 > BodyMode::OBSERVE.0 {
                put(
                    "PXG-BODY-015",
                    format!("{at}: body_mode[{dir}] is {}, which is not a mode", mode.0),
                );
                continue;
            }
            let phase = [Phase::REQUEST_BODY, Phase::RESPONSE_BODY][dir];
            if mode.0 > BodyMode::SKIP.0 && self.subscribe & (1 << phase.0) == 0 {
                put(
                    "PXG-BODY-015",
                    format!(
                        "{at}: body_mode[{dir}] turns on {}, which is not subscribed",
                        phase_name(phase)
                    ),
                );
            }
            if let Some(f) = mode_feature(*mode, dir)
                && !self.has(f)
            {
                put(
                    "PXG-NEG-003",
                    format!("{at}: body_mode[{dir}] needs {}", feature_name(f)),
                );
            }
        }
        if o.flags & 1 != 0 {
            match self.dir() {
                Some(d) => {
                    let f = [Feature::RESIZE_REQUEST, Feature::RESIZE_RESPONSE][d];
                    if !self.has(f) {
                        put(
                            "PXG-NEG-003",
                            format!("{at}: RESIZES needs {}", feature_name(f)),
                        );
                    } else if !(self.is_headers() || self.held) {
                        put(
                            "PXG-HDR-007",
                            format!("{at}: RESIZES after the headers have left"),
                        );
                    }
                }
                None => put(
                    "PXG-HDR-007",
                    format!("{at}: RESIZES where there is no body"),
                ),
            }
        }
    }

    fn judge_op(
        &self,
        op: &Op,
        action: Action,
        what: &str,
        cursor: &mut Cursor,
        put: &mut impl FnMut(&'static str, String),
    ) {
        if op.kind == 0 {
            put(
                "PXG-ABI-011",
                format!("{what}: an operation that was left zero"),
            );
            return;
        }
        if op.flags & !0x3 != 0 {
            put(
                "PXG-ABI-005",
                format!("{what}: undefined flag bits {:#x}", op.flags & !3),
            );
        }
        check_text(&op.key, &format!("{what}: key"), false, put);
        check_buffer(&op.val, &format!("{what}: val"), put);
        if op.flags & 2 != 0 && op.kind != 11 {
            put("PXG-MUT-006", format!("{what}: the flag END"));
        }
        let (uses_u0, uses_key, uses_val, uses_target) = match op.kind {
            1 | 2 => (false, true, true, true),
            3 => (false, true, false, true),
            4 => (true, false, true, true),
            5 => (true, false, false, true),
            8 | 9 => (true, false, false, false),
            10 => (
                false,
                false,
                true,
                self.phase.0 >= 16 || self.way == Way::Apply,
            ),
            11 => (false, false, true, false),
            16 => (true, true, true, false),
            17 => (true, false, false, true),
            18 => (false, true, true, false),
            _ => {
                if op.flags & 1 != 0 {
                    put(
                        "PXG-NEG-003",
                        format!("{what}: an unknown operation with the flag MUST"),
                    );
                }
                return;
            }
        };
        let unused = [
            (!uses_u0 && op.u0 != 0, "u0"),
            (
                !uses_key && (op.key.ptr != 0 || op.key.len != 0 || op.key.flags != 0),
                "key",
            ),
            (
                !uses_val
                    && (op.val.text.ptr != 0
                        || op.val.text.len != 0
                        || op.val.text.flags != 0
                        || op.val.release != 0
                        || op.val.ctx != 0),
                "val",
            ),
            (!uses_target && op.target != 0, "target"),
        ];
        for (_, name) in unused.iter().filter(|(bad, _)| *bad) {
            put(
                "PXG-MUT-006",
                format!("{what}: the unused member {name} is not zero"),
            );
        }
        if matches!(action, Action::REPLY | Action::RESET | Action::ERROR)
            && !matches!(op.kind, 16 | 17)
        {
            return;
        }
        match op.kind {
            1..=5 => self.judge_field_op(op, what, put),
            8..=10 => {
                let here =
                    (self.is_body() && self.mode_here() != BodyMode::OBSERVE) || self.is_l4_data();
                let l4_inject = op.kind == 10 && self.phase.0 >= 16;
                if !here && !l4_inject {
                    put(
                        "PXG-MUT-006",
                        format!("{what}: only for the view of a body"),
                    );
                }
                match op.kind {
                    8 => {
                        cursor.moved |= op.u0 > 0;
                        cursor.passes = true;
                        cursor.sent = cursor.sent.saturating_add(op.u0);
                        cursor.at = cursor.at.saturating_add(op.u0);
                    }
                    9 => {
                        cursor.moved |= op.u0 > 0;
                        cursor.at = cursor.at.saturating_add(op.u0);
                    }
                    _ => {
                        cursor.moved = true;
                        cursor.passes = true;
                        cursor.sent = cursor.sent.saturating_add(u64::from(op.val.text.len));
                    }
                }
                if op.kind != 10 && !self.is_l4_data() && here && cursor.at > self.view_len {
                    put(
                        "PXG-BODY-006",
                        format!(
                            "{what}: reaches byte {} of a view of {}",
                            cursor.at, self.view_len
                        ),
                    );
                }
            }
            11 if self.way != Way::Apply && self.phase != Phase::WAKE => {
                put("PXG-MUT-006", format!("{what}: only by apply and in WAKE"));
            }
            16 => {
                if op.flags & 1 != 0 && !self.has(Feature::METADATA) {
                    put(
                        "PXG-NEG-003",
                        format!("{what}: MUST needs METADATA, which the host lacks"),
                    );
                }
                let ok = |b: &[u8], dot: bool| {
                    (1..=128).contains(&b.len())
                        && b.iter().all(|c| {
                            c.is_ascii_alphanumeric() || b"_-/".contains(c) || (dot && *c == b'.')
                        })
                };
                let key = op.key.get();
                let n = usize::try_from(op.u0).unwrap_or(usize::MAX);
                if n > key.len()
                    || (n > 0 && !ok(&key[..n], false))
                    || !ok(key.get(n..).unwrap_or_default(), true)
                {
                    put(
                        "PXG-MUT-006",
                        format!("{what}: {} is no namespace and key", lossy(key)),
                    );
                }
            }
            18 => {
                let here = self.phase == Phase::REQUEST_HEADERS
                    || (self.phase == Phase::REQUEST_BODY && self.held)
                    || self.way == Way::Apply;
                if !here {
                    put(
                        "PXG-MUT-006",
                        format!("{what}: only while the request's headers are held"),
                    );
                }
                if !matches!(op.key.get(), b"cluster" | b"recompute") {
                    put(
                        "PXG-MUT-006",
                        format!("{what}: the key {}", lossy(op.key.get())),
                    );
                }
                if op.flags & 1 != 0 && !self.has(Feature::ROUTE) {
                    put(
                        "PXG-NEG-003",
                        format!("{what}: MUST needs ROUTE, which the host lacks"),
                    );
                }
            }
            _ => {}
        }
    }

    fn mode_here(&self) -> BodyMode {
        self.dir().map_or(BodyMode::SKIP, |d| self.mode[d])
    }

    fn judge_field_op(&self, op: &Op, what: &str, put: &mut impl FnMut(&'static str, String)) {
        if !(self.is_headers() || self.is_body() || self.is_trailers()) || self.way == Way::Apply {
            put(
                "PXG-MUT-006",
                format!("{what}: no fields can be changed here"),
            );
            return;
        }
        if self.is_body() && self.mode_here() == BodyMode::OBSERVE {
            put("PXG-MUT-006", format!("{what}: OBSERVE can only look"));
            return;
        }
        let trailers = match op.target {
            0 => false,
            1 => true,
            n => {
                put("PXG-ABI-005", format!("{what}: the target {n}"));
                return;
            }
        };
        let value = op.val.text.get();
        if matches!(op.kind, 1 | 2 | 4) && op.val.text.flags & 1 != 0 {
            put(
                "PXG-HDR-002",
                format!("{what}: val is ABSENT; an empty value has length 0 without the flag"),
            );
        }
        if op.kind <= 3 {
            let name = op.key.get();
            if name.first() == Some(&b':') {
                self.judge_pseudo(op.kind, name, value, trailers, what, put);
            } else {
                check_field(name, (op.kind != 3).then_some(value), what, put);
            }
        } else {
            let view = if trailers {
                &self.trailers
            } else {
                &self.fields
            };
            let in_view = self.is_headers() || self.held || trailers;
            match usize::try_from(op.u0).ok().and_then(|i| view.get(i)) {
                Some(f) if f.name.first() == Some(&b':') => {
                    self.judge_pseudo(
                        if op.kind == 4 { 1 } else { 3 },
                        &f.name,
                        value,
                        trailers,
                        what,
                        put,
                    );
                }
                Some(f) => check_field(&f.name, (op.kind == 4).then_some(value), what, put),
                None if in_view => put(
                    "PXG-HDR-004",
                    format!("{what}: index {} of a view of {} fields", op.u0, view.len()),
                ),
                None => {}
            }
        }
        // MUST makes what would be skipped a failure.
        if op.flags & 1 != 0 {
            let out = [
                Feature::TRAILERS_OUT_REQUEST,
                Feature::TRAILERS_OUT_RESPONSE,
            ][self.dir().unwrap_or(0)];
            let at_end =
                self.is_trailers() || (self.is_body() && self.flag(EventFlags::END_STREAM));
            if trailers && !self.has(out) {
                put(
                    "PXG-NEG-003",
                    format!("{what}: MUST needs {}", feature_name(out)),
                );
            } else if (trailers && !at_end) || (!trailers && !self.is_headers() && !self.held) {
                put(
                    "PXG-HDR-011",
                    format!("{what}: MUST, and it is too late or too early here"),
                );
            }
        }
    }

    fn judge_pseudo(
        &self,
        kind: u16,
        name: &[u8],
        value: &[u8],
        trailers: bool,
        what: &str,
        put: &mut impl FnMut(&'static str, String),
    ) {
        let here: &[&[u8]] = match (trailers, self.dir()) {
            (false, Some(0)) => &[b":method", b":scheme", b":authority", b":path"],
            (false, Some(1)) => &[b":status"],
            _ => &[],
        };
        if kind != 1 {
            put(
                "PXG-HDR-006",
                format!("{what}: {} can only be set", lossy(name)),
            );
        } else if !here.contains(&name) {
            put(
                "PXG-HDR-006",
                format!("{what}: {} is not of this message", lossy(name)),
            );
        } else if !is_pseudo_value(name, value) {
            put(
                "PXG-HDR-005",
                format!("{what}: {} is no value of {}", lossy(value), lossy(name)),
            );
        }
    }

    fn judge_cursor(
        &self,
        o: &Outcome,
        c: &Cursor,
        at: &str,
        put: &mut impl FnMut(&'static str, String),
    ) {
        if !self.is_body() {
            return;
        }
        let kept = self.view_len.saturating_sub(c.at);
        if o.action == Action::MORE {
            if self.held && c.passes {
                put(
                    "PXG-BODY-013",
                    format!("{at}: PASS or INJECT with MORE while the headers are held"),
                );
            } else if c.moved && !self.has(Feature::PARTIAL_RELEASE) {
                put(
                    "PXG-NEG-003",
                    format!("{at}: PASS, DROP or INJECT with MORE needs PARTIAL_RELEASE"),
                );
            }
            if self.flag(EventFlags::OVER_LIMIT)
                && (self.mode_after(o) == BodyMode::WHOLE || kept > self.max_body)
            {
                put(
                    "PXG-BODY-014",
                    format!(
                        "{at}: MORE keeps {kept} bytes over the limit of {}",
                        self.max_body
                    ),
                );
            }
        }
        if let Some(left) = self.length_left
            && matches!(o.action, Action::CONTINUE | Action::MORE)
        {
            let rest = if o.action == Action::CONTINUE {
                kept
            } else {
                0
            };
            if c.sent + rest > left {
                put(
                    "PXG-HDR-007",
                    format!(
                        "{at}: the body grows {} bytes beyond its content-length without RESIZES",
                        c.sent + rest - left
                    ),
                );
            }
        }
    }

    fn judge_reply(&self, r: &Reply, at: &str, put: &mut impl FnMut(&'static str, String)) {
        let v1 = u32::try_from(size_of::<proxy_golang_abi::Reply>()).unwrap_or(0);
        if r.size < v1 {
            let zero = r.size == 0 && r.status == 0;
            put(
                if zero { "PXG-ABI-011" } else { "PXG-ABI-002" },
                format!(
                    "{at}: the reply has size {}; it has {v1} bytes in version 1.0",
                    r.size
                ),
            );
            return;
        }
        if !r.tail_is_zero {
            put(
                "PXG-ABI-005",
                format!("{at}: the reply's tail behind version 1.0 is not zero"),
            );
        }
        if !(200..=599).contains(&r.status) {
            put(
                "PXG-RPL-001",
                format!("{at}: a reply with the status {}", r.status),
            );
        }
        if r.flags & !0x7 != 0 {
            put(
                "PXG-ABI-005",
                format!("{at}: reply.flags has undefined bits {:#x}", r.flags & !7),
            );
        }
        if r.flags & 1 != 0 && !(0..=16).contains(&r.grpc_status) {
            put(
                "PXG-RPL-001",
                format!("{at}: grpc_status {}", r.grpc_status),
            );
        }
        if r.flags & 2 != 0 && !(self.has(Feature::STREAM_REPLY) && self.has(Feature::APPLY)) {
            put(
                "PXG-NEG-003",
                format!("{at}: OPEN needs STREAM_REPLY and APPLY"),
            );
        }
        for (fields, name) in [(&r.fields, "fields"), (&r.trailers, "trailers")] {
            check_array(fields, &format!("{at}: reply.{name}"), put);
            for (i, (n, v)) in fields.get().iter().enumerate() {
                let what = format!("{at}: reply.{name}[{i}]");
                check_text(n, &format!("{what}.name"), false, put);
                check_text(v, &format!("{what}.value"), false, put);
                if n.get().first() == Some(&b':') {
                    put("PXG-HDR-006", format!("{what}: a pseudo-header in a reply"));
                } else {
                    check_field(n.get(), Some(v.get()), &what, put);
                }
            }
        }
        check_array(&r.body, &format!("{at}: reply.body"), put);
        for (i, b) in r.body.get().iter().enumerate() {
            check_buffer(b, &format!("{at}: reply.body[{i}]"), put);
        }
        check_text(&r.details, &format!("{at}: reply.details"), false, put);
    }
}

#[derive(Default)]
struct Cursor {
    at: u64,
    sent: u64,
    moved: bool,
    passes: bool,
}

//! Whether a result is legal where it was given: the strict reading of chapters 5 to 10. Each violation names the rule
//! that the guest broke, or, where only the host's duty to refuse has an id, that one.

use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase};

use self::ops::Cursor;
use self::text::check_array;
pub(crate) use self::text::check_text;
use super::config::{feature_name, mode_feature};
use super::model::{Field, Outcome, ReplyFound, action_name, op_name, phase_name};

mod ops;
mod reply;
mod text;

/// What a result is judged by.
#[derive(Clone, Debug)]
pub struct Context {
    pub phase: Phase,
    pub flags: EventFlags,
    pub pend_phases: u64,
    pub features: FeatureSet,
    /// Mode of the event's own direction before the result.
    pub mode: [BodyMode; 2],
    pub subscribe: u64,
    pub held: bool,
    pub view_len: u64,
    pub max_body: u64,
    pub fields: Vec<Field>,
    pub trailers: Vec<Field>,
    pub replied: bool,
    pub way: Way,
    /// A content-length that stays: bytes that may still leave.
    pub length_left: Option<u64>,
}

/// By which function a result came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Event,
    Complete,
    Apply,
}

/// A violation: the rule, and what was found.
pub type Violation = (&'static str, String);

impl Context {
    fn has(&self, f: Feature) -> bool {
        f.is_in(&self.features)
    }

    fn flag(&self, f: EventFlags) -> bool {
        self.flags.0 & f.0 != 0
    }

    /// 0 for request phases, 1 for response phases, none for WAKE, LOG and `apply`.
    pub fn dir(&self) -> Option<usize> {
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
    pub fn judge(&self, o: &Outcome) -> Vec<Violation> {
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
}

//! Operations.

use proxy_golang_abi::feature::Feature;
use proxy_golang_abi::{Action, BodyMode, EventFlags, Phase};

use super::text::{check_buffer, check_field, check_text, is_pseudo_value, lossy};
use super::{Context, Way};
use crate::host::config::feature_name;
use crate::host::model::{Op, Outcome};

impl Context {
    pub(super) fn judge_op(
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
                let here = matches!(self.phase, Phase::REQUEST_HEADERS | Phase::L4_OPEN)
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

    pub(super) fn judge_cursor(
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
}

#[derive(Default)]
pub(super) struct Cursor {
    at: u64,
    sent: u64,
    moved: bool,
    passes: bool,
}

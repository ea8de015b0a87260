//! The members of a result: texts, buffers, operations, replies.

use bytes::Bytes;
use proxy_golang_abi as abi;
use proxy_golang_abi::{
    Action, BodyMode, EventResult, OpFlags, ReplyFlags, ResultFlags, Status, StrFlags, Target,
};
use smallvec::SmallVec;

use super::fault::{cold, unknown_bits, worse};
use super::lent::Regions;
use super::owned::is_owned;
use super::view::bytes_of;
use crate::engine::{Fault, Op, OpKind, Outcome, Reply};

/// Mask of the phases that v1 defines.
pub(crate) const PHASES: u64 = 0b1_1111_1110 | 0b1111 << 16;

/// Most elements that a result may have.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) ops: u64,
    pub(super) fields: u64,
}

/// Where something stands in a result, for messages.
#[derive(Clone, Copy)]
enum Place {
    Op(usize, &'static str),
    Reply(&'static str, usize, &'static str),
    Member(&'static str),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Op(i, member) => write!(f, "result.ops[{i}].{member}"),
            Self::Reply(array, i, member) => write!(f, "reply.{array}[{i}]{member}"),
            Self::Member(name) => f.write_str(name),
        }
    }
}

/// Decodes a result member by member. Of several faults it keeps the one that is to be answered.
pub(super) struct Decoder<'a, 'r> {
    pub(super) regions: &'r Regions<'r>,
    /// What was taken over and has not been met yet.
    pub(super) owned: std::slice::Iter<'a, Bytes>,
    pub(super) fault: Option<Fault>,
}

impl<'a> Decoder<'a, '_> {
    fn note(&mut self, fault: Fault) {
        worse(&mut self.fault, fault);
    }

    /// # Safety
    /// As `Reading::show`.
    #[inline]
    pub(super) unsafe fn result(
        &mut self,
        r: &'a EventResult,
        reply: Option<&'a abi::Reply>,
        limits: &Limits,
        outcome: &mut Outcome<'a>,
    ) {
        self.scalars(r);
        if r.error.len != 0 || r.error.flags.0 != 0 {
            // SAFETY: promised by the caller.
            match unsafe { self.text(&r.error, true, || Place::Member("result.error")) } {
                Ok(error) => outcome.error = error,
                Err(fault) => self.note(fault),
            }
        }
        if r.n_ops != 0 {
            // SAFETY: promised by the caller.
            match unsafe { self.array(r.ops, r.n_ops, limits.ops, || Place::Member("result.ops")) }
            {
                Ok(ops) => {
                    outcome.ops.reserve(ops.len());
                    for (i, op) in ops.iter().enumerate() {
                        // SAFETY: promised by the caller.
                        if let Some(op) = unsafe { self.plain_op(op) } {
                            outcome.ops.push(op);
                            continue;
                        }
                        // SAFETY: promised by the caller.
                        match unsafe { self.op(i, op) } {
                            Ok(op) => outcome.ops.push(op),
                            Err(fault) => self.note(fault),
                        }
                    }
                }
                Err(fault) => self.note(fault),
            }
        }
        if (r.action == Action::REPLY) == r.reply.is_null() {
            self.note(cold(Status::ARG, || {
                format!(
                    "result.reply: found {} with the action {}, expected a reply with the action REPLY ({}) and NULL \
                     with any other",
                    if r.reply.is_null() { "NULL" } else { "a reply" },
                    r.action.0,
                    Action::REPLY.0
                )
            }));
        }
        if let Some(reply) = reply {
            // SAFETY: promised by the caller.
            match unsafe { self.reply(reply, limits) } {
                Ok(reply) => outcome.reply = Some(Box::new(reply)),
                Err(fault) => self.note(fault),
            }
        }
    }

    #[inline]
    fn scalars(&mut self, r: &EventResult) {
        let flags = ResultFlags::RESIZES.0 | ResultFlags::FLUSH.0;
        let modes = |m: BodyMode| m.0 > BodyMode::OBSERVE.0;
        if r.flags.0 & !flags == 0
            && r.reserved0 == 0
            && r.unsubscribe & !PHASES == 0
            && !modes(r.body_mode[0])
            && !modes(r.body_mode[1])
        {
            return;
        }
        if r.flags.0 & !flags != 0 {
            self.note(unknown_bits("result.flags", r.flags.0.into(), flags.into()));
        }
        if r.reserved0 != 0 {
            self.note(unknown_bits("result.reserved0", r.reserved0.into(), 0));
        }
        if r.unsubscribe & !PHASES != 0 {
            self.note(unknown_bits("result.unsubscribe", r.unsubscribe, PHASES));
        }
        for (i, mode) in r
            .body_mode
            .into_iter()
            .enumerate()
            .filter(|(_, m)| modes(*m))
        {
            self.note(cold(Status::UNSUPPORTED, || {
                format!(
                    "result.body_mode[{i}]: found {}, expected 0 to {}",
                    mode.0,
                    BodyMode::OBSERVE.0
                )
            }));
        }
    }

    /// The three operations on fields by name, as almost every guest makes them: borrowed, without a mistake. `None` for
    /// what has to be looked at member by member.
    ///
    /// # Safety
    /// As `Reading::show`.
    #[inline]
    unsafe fn plain_op(&self, op: &'a abi::Op) -> Option<Op<'a>> {
        let val = &op.val;
        if op.flags.0 & !OpFlags::MUST.0 != 0
            || op.target.0 > Target::TRAILERS.0
            || op.u0 != 0
            || val.release.is_some()
            || val.ctx != 0
            || !self.is_plain(&op.key)
            || !self.is_plain(&val.bytes)
        {
            return None;
        }
        // SAFETY: promised by the caller.
        let (name, value) = unsafe { (bytes_of(&op.key), bytes_of(&val.bytes)) };
        let target = op.target;
        let kind = match op.kind {
            abi::OpKind::HEADER_SET => OpKind::Set {
                target,
                name,
                value,
            },
            abi::OpKind::HEADER_ADD => OpKind::Add {
                target,
                name,
                value,
            },
            abi::OpKind::HEADER_DELETE if value.is_empty() => OpKind::Delete { target, name },
            _ => return None,
        };
        Some(Op {
            must: op.flags.0 & OpFlags::MUST.0 != 0,
            sensitive: false,
            kind,
        })
    }

    /// # Safety
    /// As `Reading::show`.
    #[inline(never)]
    unsafe fn op(&mut self, i: usize, op: &'a abi::Op) -> Result<Op<'a>, Fault> {
        // First, so that the next operation finds its own.
        let owned = self.next_owned(&op.val);
        let flags = OpFlags::MUST.0 | OpFlags::END.0;
        if op.flags.0 & !flags != 0 {
            return Err(unknown_bits(
                Place::Op(i, "flags"),
                op.flags.0.into(),
                flags.into(),
            ));
        }
        let key = |d: &Self| {
            // SAFETY: promised by the caller.
            unsafe { d.text(&op.key, false, || Place::Op(i, "key")) }
        };
        let value = |d: &Self| {
            // SAFETY: promised by the caller.
            unsafe { d.value(&op.val, owned, || Place::Op(i, "val")) }
        };
        let payload = |d: &Self| {
            // SAFETY: promised by the caller.
            unsafe { d.payload(&op.val, owned, || Place::Op(i, "val")) }
        };
        // What an operation has no use for is zero.
        let (mut u0, mut end, mut no_target) = (false, false, false);
        let (mut no_key, mut no_val) = (false, false);
        let kind = match op.kind {
            abi::OpKind::HEADER_SET | abi::OpKind::HEADER_ADD => {
                let target = own_target(i, op)?;
                let (name, value) = (key(self)?, value(self)?);
                if op.kind == abi::OpKind::HEADER_SET {
                    OpKind::Set {
                        target,
                        name,
                        value,
                    }
                } else {
                    OpKind::Add {
                        target,
                        name,
                        value,
                    }
                }
            }
            abi::OpKind::HEADER_DELETE => {
                no_val = true;
                OpKind::Delete {
                    target: own_target(i, op)?,
                    name: key(self)?,
                }
            }
            abi::OpKind::SET_AT => {
                (u0, no_key) = (true, true);
                OpKind::SetAt {
                    target: own_target(i, op)?,
                    index: op.u0,
                    value: value(self)?,
                }
            }
            abi::OpKind::DELETE_AT => {
                (u0, no_key, no_val) = (true, true, true);
                OpKind::DeleteAt {
                    target: own_target(i, op)?,
                    index: op.u0,
                }
            }
            abi::OpKind::PASS | abi::OpKind::DROP => {
                (u0, no_target, no_key, no_val) = (true, true, true, true);
                if op.kind == abi::OpKind::PASS {
                    OpKind::Pass(op.u0)
                } else {
                    OpKind::Drop(op.u0)
                }
            }
            abi::OpKind::INJECT => {
                (no_target, no_key) = (true, true);
                OpKind::Inject(payload(self)?)
            }
            abi::OpKind::BODY_WRITE => {
                (end, no_target, no_key) = (true, true, true);
                OpKind::BodyWrite {
                    bytes: payload(self)?,
                    end: op.flags.0 & OpFlags::END.0 != 0,
                }
            }
            abi::OpKind::METADATA_SET => {
                (u0, no_target) = (true, true);
                let (key, value) = (key(self)?, value(self)?);
                let at = usize::try_from(op.u0)
                    .ok()
                    .and_then(|at| key.split_at_checked(at));
                let Some((namespace, key)) = at else {
                    return Err(cold(Status::ARG, || {
                        format!(
                            "{}: found a namespace of {} bytes, expected at most the {} bytes of key",
                            Place::Op(i, "u0"),
                            op.u0,
                            op.key.len
                        )
                    }));
                };
                OpKind::Metadata {
                    namespace,
                    key,
                    value,
                }
            }
            abi::OpKind::METRIC => {
                (u0, no_key, no_val) = (true, true, true);
                OpKind::Metric {
                    id: op.target.0,
                    value: op.u0.cast_signed(),
                }
            }
            abi::OpKind::ROUTE => {
                no_target = true;
                match key(self)? {
                    b"cluster" => OpKind::Route(Some(value(self)?)),
                    b"recompute" => {
                        no_val = true;
                        OpKind::Route(None)
                    }
                    other => {
                        return Err(cold(Status::ARG, || {
                            format!(
                                "{}: found \"{}\", expected \"cluster\" or \"recompute\"",
                                Place::Op(i, "key"),
                                super::clean(other, 64)
                            )
                        }));
                    }
                }
            }
            unknown => {
                (u0, end) = (true, true);
                OpKind::Unknown(unknown.0)
            }
        };
        let stray = if !u0 && op.u0 != 0 {
            Some("u0")
        } else if !end && op.flags.0 & OpFlags::END.0 != 0 {
            Some("flags (END)")
        } else if no_target && op.target != Target::HEADERS {
            Some("target")
        } else if no_key && (op.key.len != 0 || op.key.flags.0 != 0) {
            Some("key")
        } else if no_val && !is_zero(&op.val) {
            Some("val")
        } else {
            None
        };
        if let Some(member) = stray {
            return Err(cold(Status::ARG, || {
                format!(
                    "{}: found a value, expected zero: an operation of kind {} does not use it",
                    Place::Op(i, member),
                    op.kind.0
                )
            }));
        }
        Ok(Op {
            must: op.flags.0 & OpFlags::MUST.0 != 0,
            sensitive: op.val.bytes.flags.0 & StrFlags::SENSITIVE.0 != 0,
            kind,
        })
    }

    /// # Safety
    /// As `Reading::show`.
    unsafe fn reply(&mut self, r: &'a abi::Reply, limits: &Limits) -> Result<Reply<'a>, Fault> {
        let mut reply = Reply {
            status: r.status,
            flags: r.flags,
            grpc_status: r.grpc_status,
            fields: Default::default(),
            body: Default::default(),
            trailers: Default::default(),
            details: &[],
        };
        let mut first = None;
        // SAFETY: promised by the caller.
        match unsafe { self.array(r.body, r.n_body, limits.ops, || Place::Member("reply.body")) } {
            Ok(parts) => {
                for (i, part) in parts.iter().enumerate() {
                    let owned = self.next_owned(part);
                    // SAFETY: promised by the caller.
                    match unsafe { self.payload(part, owned, || Place::Reply("body", i, "")) } {
                        Ok(part) => reply.body.push(part),
                        Err(fault) => worse(&mut first, fault),
                    }
                }
            }
            Err(fault) => worse(&mut first, fault),
        }
        let flags = ReplyFlags::GRPC.0 | ReplyFlags::OPEN.0 | ReplyFlags::FLUSH.0;
        if r.flags.0 & !flags != 0 {
            worse(
                &mut first,
                unknown_bits("reply.flags", r.flags.0.into(), flags.into()),
            );
        }
        if let Some(fault) = first {
            return Err(fault);
        }
        // SAFETY: promised by the caller.
        unsafe {
            reply.details = self.text(&r.details, true, || Place::Member("reply.details"))?;
            self.fields("fields", r.fields, r.n_fields, limits, &mut reply.fields)?;
            self.fields(
                "trailers",
                r.trailers,
                r.n_trailers,
                limits,
                &mut reply.trailers,
            )?;
        }
        Ok(reply)
    }

    /// # Safety
    /// As `Reading::show`.
    unsafe fn fields<const N: usize>(
        &self,
        what: &'static str,
        ptr: *const abi::Field,
        n: u64,
        limits: &Limits,
        to: &mut SmallVec<[(&'a [u8], &'a [u8]); N]>,
    ) -> Result<(), Fault> {
        // SAFETY: promised by the caller.
        let fields: &'a [abi::Field] =
            unsafe { self.array(ptr, n, limits.fields, || format!("reply.{what}"))? };
        for (i, field) in fields.iter().enumerate() {
            // SAFETY: promised by the caller.
            unsafe {
                to.push((
                    self.text(&field.name, false, || Place::Reply(what, i, ".name"))?,
                    self.text(&field.value, false, || Place::Reply(what, i, ".value"))?,
                ));
            }
        }
        Ok(())
    }

    /// The buffer that was taken over for `buf`, if it is OWNED.
    #[inline]
    fn next_owned(&mut self, buf: &abi::Buf) -> Option<&'a Bytes> {
        if is_owned(buf) && buf.release.is_some() {
            self.owned.next()
        } else {
            None
        }
    }
}

#[inline]
fn own_target(i: usize, op: &abi::Op) -> Result<Target, Fault> {
    match op.target {
        Target::HEADERS | Target::TRAILERS => Ok(op.target),
        other => {
            let l4 = other == Target::UPSTREAM || other == Target::CLIENT;
            Err(cold(
                if l4 { Status::ARG } else { Status::UNSUPPORTED },
                || {
                    format!(
                        "{}: found {}, expected HEADERS (0) or TRAILERS (1)",
                        Place::Op(i, "target"),
                        other.0
                    )
                },
            ))
        }
    }
}

#[inline]
fn is_zero(buf: &abi::Buf) -> bool {
    buf.bytes.len == 0 && buf.bytes.flags.0 == 0 && buf.release.is_none() && buf.ctx == 0
}

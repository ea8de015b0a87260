//! A guest's result made into an [`Outcome`]: sizes, flags, ranges and the memory that it points to are checked here,
//! what it means is judged by the engine.
//!
//! The order is: take over every OWNED buffer, then look at the rest. So a refused result has released what it brought
//! when it is dropped.

use std::mem::{MaybeUninit, offset_of, size_of};

use bytes::Bytes;
use proxy_golang_abi as abi;
use proxy_golang_abi::{
    Action, BodyMode, EventResult, OpFlags, ReplyFlags, ResultFlags, Status, StrFlags, Target,
};
use smallvec::SmallVec;

use super::lent::Regions;
use super::owned::{is_owned, take_over};
use super::view::bytes_of;
use crate::engine::{Fault, Op, OpKind, Outcome, Payload, Reply};

/// No struct of v1 comes near this; a larger `size` is no size.
const MAX_STRUCT: u32 = 4096;
/// Mask of the phases that v1 defines.
pub(crate) const PHASES: u64 = 0b1_1111_1110 | 0b1111 << 16;

/// Most elements that a result may have.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) ops: u64,
    pub(super) fields: u64,
}

/// A result whose OWNED buffers belong to us.
pub(super) struct Reading {
    result: EventResult,
    reply: Option<abi::Reply>,
    /// In the order of the operations, then of the reply's body.
    taken: Vec<Bytes>,
    fault: Option<Fault>,
}

impl Reading {
    /// A result that we lent, not read yet.
    #[inline]
    pub(super) fn new(result: EventResult) -> Self {
        Self {
            result,
            reply: None,
            taken: Vec::new(),
            fault: None,
        }
    }

    /// Where a guest writes.
    pub(super) fn result(&mut self) -> *mut EventResult {
        &raw mut self.result
    }

    /// Reads what a guest left in a result that we lent.
    ///
    /// # Safety
    /// A guest has just returned it from `on_event`, and no other call into it was made on this thread.
    #[inline]
    pub(super) unsafe fn lent(&mut self, regions: &Regions<'_>) {
        let size = self.result.size;
        if size as usize != size_of::<EventResult>() {
            self.note(cold(Status::ARG, || {
                format!(
                    "result.size: found {size}, expected {} as it was lent: on_event does not change it (PXG-ABI-002)",
                    size_of::<EventResult>()
                )
            }));
        }
        // SAFETY: promised by the caller.
        unsafe { self.take_over(regions) }
    }

    /// Reads a result that a guest handed in; `None` for a pointer that is none.
    ///
    /// # Safety
    /// `result` is null, or a guest says that its first four bytes are readable and hold the size of what follows,
    /// for the length of this call.
    pub(super) unsafe fn given(result: *const EventResult, regions: &Regions<'_>) -> Option<Self> {
        if result.is_null() || !result.is_aligned() {
            return None;
        }
        // SAFETY: promised by the caller; zero is a value of every member.
        let (result, size, fault) = unsafe { read_sized(result, regions, "result") };
        let mut reading = Self {
            result,
            reply: None,
            taken: Vec::new(),
            fault,
        };
        // A member that `size` excludes, or cuts, was not handed over.
        if size < offset_of!(EventResult, reply) + size_of::<usize>() {
            reading.result.reply = std::ptr::null();
        }
        if size < offset_of!(EventResult, n_ops) + size_of::<u64>() {
            reading.result.n_ops = 0;
        }
        // SAFETY: promised by the caller.
        unsafe { reading.take_over(regions) };
        Some(reading)
    }

    fn note(&mut self, fault: Fault) {
        worse(&mut self.fault, fault);
    }

    /// # Safety
    /// As [`Reading::lent`] and [`Reading::given`].
    #[inline]
    unsafe fn take_over(&mut self, regions: &Regions<'_>) {
        let n = readable(self.result.ops, self.result.n_ops, regions);
        for i in 0..n {
            // SAFETY: within the array that the guest says it handed over; possibly not aligned, which is a fault
            // but no reason to leak.
            unsafe {
                let val = &raw const (*self.result.ops.add(i)).val;
                self.take_over_one(val);
            }
        }
        let reply = self.result.reply;
        if reply.is_null() {
            return;
        }
        if !reply.is_aligned() || regions.check(reply.cast(), size_of::<u32>()).is_err() {
            self.note(cold(Status::ARG, || {
                format!("result.reply: found the pointer {reply:p}, expected one that is 8-aligned and in bounds")
            }));
            return;
        }
        // SAFETY: promised by the caller.
        let (mut reply, size, fault) = unsafe { read_sized(reply, regions, "reply") };
        if let Some(fault) = fault {
            self.note(fault);
        }
        if size < offset_of!(abi::Reply, n_body) + size_of::<u64>() {
            reply.n_body = 0;
        }
        for i in 0..readable(reply.body, reply.n_body, regions) {
            // SAFETY: as above.
            unsafe { self.take_over_one(reply.body.add(i)) };
        }
        self.reply = Some(reply);
    }

    /// # Safety
    /// `buf` points to a buffer that a guest handed over, aligned or not, and is not passed twice.
    #[inline]
    unsafe fn take_over_one(&mut self, buf: *const abi::Buf) {
        // SAFETY: promised by the caller.
        unsafe {
            let flags = (&raw const (*buf).bytes.flags).read_unaligned();
            if flags.0 & StrFlags::OWNED.0 != 0 {
                self.taken.extend(take_over(&buf.read_unaligned()));
            }
        }
    }

    /// Gives `take` the outcome, or why there is none. It is made where it is used: it is large, and not copied.
    ///
    /// # Safety
    /// What a guest handed in with this result is still readable for `'a`.
    #[inline]
    pub(super) unsafe fn show<'a>(
        &'a mut self,
        regions: &Regions<'_>,
        limits: &Limits,
        take: &mut dyn FnMut(Result<Outcome<'_>, Fault>),
    ) {
        let mut decoder = Decoder {
            regions,
            owned: self.taken.iter(),
            fault: self.fault.take(),
        };
        let r = &self.result;
        let mut shown = Ok(Outcome {
            action: r.action,
            flags: r.flags,
            user: r.user,
            ops: SmallVec::new(),
            reply: None,
            unsubscribe: r.unsubscribe,
            body_mode: r.body_mode,
            more_bytes: r.more_bytes,
            pend_ns: r.pend_ns,
            error: &[],
        });
        if let Ok(outcome) = &mut shown {
            // SAFETY: promised by the caller.
            unsafe { decoder.result(r, self.reply.as_ref(), limits, outcome) };
        }
        match decoder.fault {
            None => take(shown),
            Some(fault) => take(Err(fault)),
        }
    }
}

/// Copies as much of a struct that begins with its size as both sides know. The second value is how much that is.
///
/// # Safety
/// `from` is aligned, and its first four bytes and the bytes that they count are readable. All-zero bytes are a value of
/// `T`, and so are any bytes that a guest writes.
unsafe fn read_sized<T>(
    from: *const T,
    regions: &Regions<'_>,
    what: &'static str,
) -> (T, usize, Option<Fault>) {
    let own = size_of::<T>();
    // SAFETY: promised by the caller.
    let size = unsafe { from.cast::<u32>().read() };
    let mut fault = None;
    let mut known = own.min(size as usize);
    if let Err(beyond) = regions.check(from.cast(), size as usize) {
        worse(&mut fault, outside(what, beyond));
        known = known.min((size as usize).saturating_sub(beyond));
    }
    let mut to = MaybeUninit::<T>::zeroed();
    // SAFETY: both are valid for `known` bytes; zero is a value of `T` and so is what the guest wrote.
    let value = unsafe {
        from.cast::<u8>()
            .copy_to_nonoverlapping(to.as_mut_ptr().cast(), known);
        to.assume_init()
    };
    if (size as usize) < own {
        worse(
            &mut fault,
            cold(Status::ARG, || {
                format!(
                    "{what}.size: found {size}, expected at least {own}, its size in version 1.0 (PXG-ABI-005)"
                )
            }),
        );
    } else if size > MAX_STRUCT {
        worse(
            &mut fault,
            cold(Status::ARG, || {
                format!(
                    "{what}.size: found {size}, expected {own} or a little more: no struct of version 1 is that long"
                )
            }),
        );
    } else if size as usize > own && fault.is_none() {
        // SAFETY: promised by the caller: `size` bytes are readable.
        let tail =
            unsafe { std::slice::from_raw_parts(from.cast::<u8>().add(own), size as usize - own) };
        if let Some(at) = tail.iter().position(|b| *b != 0) {
            worse(
                &mut fault,
                cold(Status::UNSUPPORTED, || {
                    format!(
                        "{what}: found a byte {:#04x} at offset {}, beyond the {own} bytes that this host knows; expected \
                     zeros there (PXG-ABI-005). The guest uses something that only a later version has: ask for its \
                     feature first",
                        tail[at],
                        own + at
                    )
                }),
            );
        }
    }
    (value, known, fault)
}

/// How many elements of an array of a guest can be read at all.
#[inline]
fn readable<T>(ptr: *const T, n: u64, regions: &Regions<'_>) -> usize {
    if n == 0 || ptr.is_null() {
        return 0;
    }
    let Some(len) = usize::try_from(n)
        .ok()
        .and_then(|n| n.checked_mul(size_of::<T>()))
    else {
        return 0;
    };
    if len > isize::MAX as usize {
        return 0;
    }
    match regions.check(ptr.cast(), len) {
        Ok(()) => len / size_of::<T>(),
        Err(beyond) => (len - beyond) / size_of::<T>(),
    }
}

/// The order in which faults are answered when there are several (spec 1.5).
fn worse(known: &mut Option<Fault>, fault: Fault) {
    let rank = |f: &Fault| match f.status {
        Status::UNSUPPORTED => 0,
        Status::ARG => 1,
        Status::STATE => 2,
        _ => 3,
    };
    if known.as_ref().is_none_or(|k| rank(&fault) < rank(k)) {
        *known = Some(fault);
    }
}

#[cold]
#[inline(never)]
fn cold(status: Status, text: impl FnOnce() -> String) -> Fault {
    Fault {
        status,
        text: text(),
    }
}

#[cold]
fn outside(what: impl std::fmt::Display, beyond: usize) -> Fault {
    Fault {
        status: Status::ARG,
        text: format!(
            "{what}: found memory that begins in a lent region and ends {beyond} bytes beyond it; expected it to end \
             there (PXG-MEM-012). Ask scratch_more for more"
        ),
    }
}

#[cold]
fn unknown_bits(what: impl std::fmt::Display, found: u64, known: u64) -> Fault {
    Fault {
        status: Status::UNSUPPORTED,
        text: format!("{what}: found {found:#x}, expected no bits beside {known:#x} (PXG-ABI-005)"),
    }
}

/// Copies a text that a guest points to; for what is not on the hot path.
///
/// # Safety
/// A guest says that `s` is readable.
pub(super) unsafe fn copy_text(
    s: &abi::Str,
    what: &str,
    regions: &Regions<'_>,
) -> Result<Vec<u8>, Fault> {
    let decoder = Decoder {
        regions,
        owned: [].iter(),
        fault: None,
    };
    // SAFETY: promised by the caller.
    unsafe { decoder.text(s, true, || what.to_owned()) }.map(<[u8]>::to_vec)
}

/// The elements of an array that a guest points to.
///
/// # Safety
/// A guest says that `n` elements at `ptr` are readable for `'a`.
pub(super) unsafe fn elements<'a, T>(
    ptr: *const T,
    n: u64,
    what: &str,
    limit: u64,
    regions: &Regions<'_>,
) -> Result<&'a [T], Fault> {
    let decoder = Decoder {
        regions,
        owned: [].iter(),
        fault: None,
    };
    // SAFETY: promised by the caller.
    unsafe { decoder.array(ptr, n, limit, || what.to_owned()) }
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

struct Decoder<'a, 'r> {
    regions: &'r Regions<'r>,
    owned: std::slice::Iter<'a, Bytes>,
    fault: Option<Fault>,
}

impl<'a> Decoder<'a, '_> {
    fn note(&mut self, fault: Fault) {
        worse(&mut self.fault, fault);
    }

    /// # Safety
    /// As [`Reading::show`].
    #[inline]
    unsafe fn result(
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
                Ok(reply) => outcome.reply = Some(reply),
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

    /// # Safety
    /// As [`Reading::show`].
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
    /// As [`Reading::show`].
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
    /// As [`Reading::show`].
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

    /// # Safety
    /// The guest says that `n` elements at `ptr` are readable for `'b`.
    #[inline]
    unsafe fn array<'b, T, D: std::fmt::Display>(
        &self,
        ptr: *const T,
        n: u64,
        limit: u64,
        what: impl Fn() -> D,
    ) -> Result<&'b [T], Fault> {
        if n == 0 {
            return Ok(&[]);
        }
        if n > limit {
            return Err(cold(Status::LIMIT, || {
                format!(
                    "{}: found {n} elements, expected at most {limit}, a limit of this host",
                    what()
                )
            }));
        }
        if ptr.is_null() || !ptr.is_aligned() {
            return Err(cold(Status::ARG, || {
                format!(
                    "{}: found the pointer {ptr:p} for {n} elements, expected an 8-aligned array",
                    what()
                )
            }));
        }
        let count = usize::try_from(n).unwrap_or(usize::MAX);
        let len = count
            .saturating_mul(size_of::<T>())
            .min(isize::MAX as usize);
        if let Err(beyond) = self.regions.check(ptr.cast(), len) {
            return Err(outside(what(), beyond));
        }
        // SAFETY: promised by the caller; not null, aligned, and below the limit.
        Ok(unsafe { std::slice::from_raw_parts(ptr, count) })
    }

    /// A text. `absent` says whether it may be missing; then it is empty.
    ///
    /// # Safety
    /// The guest says that `s` is readable for `'b`.
    #[inline]
    unsafe fn text<'b, D: std::fmt::Display>(
        &self,
        s: &abi::Str,
        absent: bool,
        what: impl Fn() -> D,
    ) -> Result<&'b [u8], Fault> {
        let known = StrFlags::ABSENT.0 | StrFlags::SENSITIVE.0;
        if s.flags.0 & !known != 0 {
            return Err(unknown_bits(
                format!("{}.flags", what()),
                s.flags.0.into(),
                known.into(),
            ));
        }
        // SAFETY: promised by the caller.
        unsafe { self.bytes(s, absent, what) }
    }

    /// What almost every text is: without flags, and not in lent memory or whole in it.
    #[inline]
    fn is_plain(&self, s: &abi::Str) -> bool {
        s.flags.0 == 0
            && (s.len == 0 || !s.ptr.is_null())
            && self.regions.check(s.ptr, s.len as usize).is_ok()
    }

    /// The three operations on fields by name, as almost every guest makes them: borrowed, without a mistake. `None` for
    /// what has to be looked at member by member.
    ///
    /// # Safety
    /// As [`Reading::show`].
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
    /// As [`Decoder::text`].
    #[inline]
    unsafe fn bytes<'b, D: std::fmt::Display>(
        &self,
        s: &abi::Str,
        absent: bool,
        what: impl Fn() -> D,
    ) -> Result<&'b [u8], Fault> {
        if s.is_absent() {
            return if absent {
                Ok(&[])
            } else {
                Err(cold(Status::ARG, || {
                    format!("{}: found ABSENT, expected bytes, if only none", what())
                }))
            };
        }
        if s.len != 0 && s.ptr.is_null() {
            return Err(cold(Status::ARG, || {
                format!(
                    "{}: found NULL with the length {}, expected a pointer",
                    what(),
                    s.len
                )
            }));
        }
        if let Err(beyond) = self.regions.check(s.ptr, s.len as usize) {
            return Err(outside(what(), beyond));
        }
        // SAFETY: promised by the caller.
        Ok(unsafe { bytes_of(s) })
    }

    /// A buffer's flags, and whether its release function fits them.
    #[inline]
    fn buf<D: std::fmt::Display>(&self, buf: &abi::Buf, what: impl Fn() -> D) -> Result<(), Fault> {
        let flags = buf.bytes.flags.0;
        let known =
            StrFlags::ABSENT.0 | StrFlags::SENSITIVE.0 | StrFlags::STATIC.0 | StrFlags::OWNED.0;
        if flags & !known != 0 {
            return Err(unknown_bits(
                format!("{}.bytes.flags", what()),
                flags.into(),
                known.into(),
            ));
        }
        let owned = flags & StrFlags::OWNED.0 != 0;
        if owned && flags & StrFlags::STATIC.0 != 0 {
            return Err(cold(Status::ARG, || {
                format!(
                    "{}.bytes.flags: found OWNED and STATIC, expected at most one of them",
                    what()
                )
            }));
        }
        if owned != buf.release.is_some() || (!owned && buf.ctx != 0) {
            return Err(cold(Status::ARG, || {
                let (found, expected) = if owned {
                    ("NULL with OWNED", "a function to release the buffer by")
                } else {
                    ("a function or its ctx without OWNED", "NULL and 0")
                };
                format!("{}.release: found {found}, expected {expected}", what())
            }));
        }
        Ok(())
    }

    /// Bytes that are copied by whoever keeps them.
    ///
    /// # Safety
    /// As [`Decoder::text`].
    #[inline]
    unsafe fn value<D: std::fmt::Display>(
        &self,
        buf: &'a abi::Buf,
        owned: Option<&'a Bytes>,
        what: impl Fn() -> D,
    ) -> Result<&'a [u8], Fault> {
        self.buf(buf, &what)?;
        // SAFETY: promised by the caller.
        let bytes = unsafe { self.bytes(&buf.bytes, false, what)? };
        Ok(owned.map_or(bytes, |b| b.as_ref()))
    }

    /// Bytes that may be kept without a copy.
    ///
    /// # Safety
    /// As [`Decoder::text`].
    #[inline]
    unsafe fn payload<D: std::fmt::Display>(
        &self,
        buf: &'a abi::Buf,
        owned: Option<&'a Bytes>,
        what: impl Fn() -> D,
    ) -> Result<Payload<'a>, Fault> {
        self.buf(buf, &what)?;
        if let Some(owned) = owned {
            // SAFETY: promised by the caller.
            unsafe { self.bytes::<D>(&buf.bytes, false, what)? };
            return Ok(Payload::Shared(owned.clone()));
        }
        if buf.bytes.flags.0 & StrFlags::STATIC.0 != 0 {
            // SAFETY: promised by the caller; STATIC bytes live as long as the process.
            let bytes: &'static [u8] = unsafe { self.bytes(&buf.bytes, false, what)? };
            return Ok(Payload::Shared(Bytes::from_static(bytes)));
        }
        // SAFETY: promised by the caller.
        Ok(Payload::Borrowed(unsafe {
            self.bytes(&buf.bytes, false, what)?
        }))
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

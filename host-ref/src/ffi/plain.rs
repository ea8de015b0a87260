//! The result that almost every guest returns almost always: CONTINUE, with operations on fields by name in borrowed
//! memory, or none. It is recognised without being decoded; what is unusual in any way is left to `decode`.

use std::marker::PhantomData;

use proxy_golang_abi as abi;
use proxy_golang_abi::{Action, BodyMode, EventResult, OpFlags, StrFlags, Target};

use super::lent::Regions;
use super::members::Limits;
use super::view::bytes_of;

/// A `pxg_op` of a guest that sets, adds or deletes fields by name, for the length of a call. That its memory holds
/// together has been checked, its grammar has not.
#[repr(transparent)]
pub struct PlainOp<'a> {
    raw: abi::Op,
    lives: PhantomData<&'a [u8]>,
}

impl<'a> PlainOp<'a> {
    /// HEADER_SET, HEADER_ADD or HEADER_DELETE.
    #[must_use]
    #[inline]
    pub fn kind(&self) -> abi::OpKind {
        self.raw.kind
    }

    /// Fail the stream rather than skip it.
    #[must_use]
    #[inline]
    pub fn must(&self) -> bool {
        self.raw.flags.0 & OpFlags::MUST.0 != 0
    }

    /// The new value is never to be logged or indexed.
    #[must_use]
    #[inline]
    pub fn sensitive(&self) -> bool {
        self.raw.val.bytes.flags.0 & StrFlags::SENSITIVE.0 != 0
    }

    /// HEADERS or TRAILERS.
    #[must_use]
    #[inline]
    pub fn target(&self) -> Target {
        self.raw.target
    }

    /// The fields' name.
    #[must_use]
    #[inline]
    pub fn name(&self) -> &'a [u8] {
        // SAFETY: `plain_ops` made sure of it.
        unsafe { bytes_of(&self.raw.key) }
    }

    /// The new value; empty for HEADER_DELETE.
    #[must_use]
    #[inline]
    pub fn value(&self) -> &'a [u8] {
        // SAFETY: `plain_ops` made sure of it.
        unsafe { bytes_of(&self.raw.val.bytes) }
    }
}

/// The operations of a plain result; `None` for any other, and for one with a mistake.
///
/// # Safety
/// A guest has just returned `r` from `on_event`, and what it lent stays readable for `'a`.
#[inline]
pub(super) unsafe fn plain_ops<'a>(
    r: &'a EventResult,
    regions: &Regions<'_>,
    limits: &Limits,
) -> Option<&'a [PlainOp<'a>]> {
    if r.action != Action::CONTINUE || !says_nothing_else(r) {
        return None;
    }
    if r.n_ops == 0 {
        return Some(&[]);
    }
    if r.n_ops > limits.ops || r.ops.is_null() || !r.ops.is_aligned() {
        return None;
    }
    let n = usize::try_from(r.n_ops).ok()?;
    let bytes = n.checked_mul(size_of::<abi::Op>())?;
    if bytes > isize::MAX as usize || regions.check(r.ops.cast(), bytes).is_err() {
        return None;
    }
    // SAFETY: promised by the caller; not null, aligned, within bounds. `PlainOp` is transparent over `abi::Op`.
    let ops = unsafe { std::slice::from_raw_parts(r.ops.cast::<PlainOp<'a>>(), n) };
    ops.iter()
        .all(|op| is_plain(&op.raw, regions))
        .then_some(ops)
}

/// Whether a result is PENDING with nothing but `user` and `pend_ns`.
#[inline]
pub(super) fn is_plain_pending(r: &EventResult) -> bool {
    r.action == Action::PENDING && says_nothing_else(r) && r.n_ops == 0 && r.more_bytes == 0
}

/// Whether a result has nothing but its action, operations, `user`, and numbers that belong to other actions.
#[inline]
fn says_nothing_else(r: &EventResult) -> bool {
    r.size as usize == size_of::<EventResult>()
        && r.flags.0 | r.reserved0 == 0
        && r.reply.is_null()
        && r.unsubscribe == 0
        && r.body_mode == [BodyMode::UNSET; 2]
        && r.error.len == 0
        && r.error.flags.0 == 0
}

/// Whether everything that the operation does not use is zero, and what it uses is borrowed and in bounds.
#[inline]
fn is_plain(op: &abi::Op, regions: &Regions<'_>) -> bool {
    let val = &op.val;
    let marks = match op.kind {
        abi::OpKind::HEADER_SET | abi::OpKind::HEADER_ADD => StrFlags::SENSITIVE.0,
        abi::OpKind::HEADER_DELETE if val.bytes.len == 0 => 0,
        _ => return false,
    };
    op.flags.0 & !OpFlags::MUST.0 == 0
        && op.target.0 <= Target::TRAILERS.0
        && op.u0 == 0
        && val.release.is_none()
        && val.ctx == 0
        && is_borrowed(&op.key, 0, regions)
        && is_borrowed(&val.bytes, marks, regions)
}

#[inline]
fn is_borrowed(s: &abi::Str, flags: u32, regions: &Regions<'_>) -> bool {
    s.flags.0 & !flags == 0
        && (s.len == 0 || !s.ptr.is_null())
        && regions.check(s.ptr, s.len as usize).is_ok()
}

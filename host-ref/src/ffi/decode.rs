//! A guest's result made into an [`Outcome`]: sizes, flags, ranges and the memory that it points to are checked here,
//! what it means is judged by the engine.
//!
//! The order is: take over every OWNED buffer, then look at the rest. So a refused result has released what it brought
//! when it is dropped.

use std::mem::{MaybeUninit, offset_of, size_of};

use bytes::Bytes;
use proxy_golang_abi as abi;
use proxy_golang_abi::{EventResult, Status, StrFlags};
use smallvec::SmallVec;

use super::fault::{cold, outside, worse};
use super::lent::Regions;
use super::members::{Decoder, Limits};
use super::owned::take_over;
use super::plain::{PlainOp, plain_ops};
use crate::engine::{Fault, Outcome};

/// No struct of v1 comes near this; a larger `size` is no size.
const MAX_STRUCT: u32 = 4096;
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

    /// The operations, if the result is a plain one. Then it has no OWNED buffers.
    ///
    /// # Safety
    /// What a guest handed in with this result is still readable for `'a`.
    pub(super) unsafe fn plain<'a>(
        &'a self,
        regions: &Regions<'_>,
        limits: &Limits,
    ) -> Option<&'a [PlainOp<'a>]> {
        if self.fault.is_some() {
            return None;
        }
        // SAFETY: promised by the caller.
        unsafe { plain_ops(&self.result, regions, limits) }
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
            Some(fault) => take(Err(Fault {
                user: Some(r.user),
                ..fault
            })),
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

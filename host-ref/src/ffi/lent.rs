//! Memory that is lent to a guest for one call: scratch per thread, and what `scratch_more` adds (PXG-MEM-010).
//!
//! A thread keeps its scratch between calls. It is taken for a call and put back after the result was used, so that a
//! call inside another one would get memory of its own.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::{NonNull, null_mut};

use proxy_golang_abi as abi;

/// Operations that are lent; the ABI asks for 32.
const OPS: usize = 64;
/// Bytes that are lent; the ABI asks for 4096.
const BYTES: usize = 8192;
const ALIGN: usize = 16;

/// An allocation that is zeroed at first and freed on drop.
struct Block {
    ptr: NonNull<u8>,
    layout: Layout,
}

impl Block {
    /// `None` if `size` is no size or there is no memory for it.
    fn zeroed(size: usize, align: usize) -> Option<Self> {
        let layout = Layout::from_size_align(size.max(1), align).ok()?;
        // SAFETY: the layout's size is not 0.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { ptr, layout })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout by `zeroed`, freed once.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}

/// Bytes of the operations, which come first.
const OPS_SIZE: usize = OPS * size_of::<abi::Op>();

/// One thread's scratch. Guests write it through pointers, so it is never a Rust reference.
struct Scratch {
    /// Operations, then bytes. The operations are only ever zeros or those of earlier calls: a collected runtime's write
    /// barrier reads them.
    lent: Block,
    more: RefCell<Vec<Block>>,
    more_bytes: Cell<u64>,
}

impl Scratch {
    fn new() -> Box<Self> {
        // A cache line for each operation.
        const LAYOUT: Layout = match Layout::from_size_align(OPS_SIZE + BYTES, 64) {
            Ok(layout) => layout,
            Err(_) => panic!("a small power of two"),
        };
        let lent = Block::zeroed(LAYOUT.size(), LAYOUT.align());
        Box::new(Self {
            lent: lent.unwrap_or_else(|| handle_alloc_error(LAYOUT)),
            more: RefCell::default(),
            more_bytes: Cell::new(0),
        })
    }
}

/// A call that runs now on this thread and may ask for more.
struct Call {
    ctx: u64,
    limit: u64,
    scratch: NonNull<Scratch>,
}

struct Local {
    spare: Cell<Option<Box<Scratch>>>,
    call: Cell<Option<NonNull<Call>>>,
}

thread_local! {
    static LOCAL: Local = const {
        Local { spare: Cell::new(None), call: Cell::new(None) }
    };
}

/// The loan of one call. What was lent is checked against it until it is dropped.
pub(super) struct Loan {
    /// `None` only while it is dropped.
    scratch: Option<Box<Scratch>>,
}

impl Loan {
    pub(super) fn take() -> Self {
        let spare = LOCAL.try_with(|l| l.spare.take()).ok().flatten();
        Self {
            scratch: Some(spare.unwrap_or_else(Scratch::new)),
        }
    }

    fn scratch(&self) -> &Scratch {
        self.scratch.as_deref().expect("lent until it is dropped")
    }

    pub(super) fn ops(&self) -> *mut abi::Op {
        self.scratch().lent.ptr.as_ptr().cast()
    }

    pub(super) fn ops_cap(&self) -> u64 {
        OPS as u64
    }

    pub(super) fn bytes(&self) -> *mut u8 {
        self.scratch().lent.ptr.as_ptr().wrapping_add(OPS_SIZE)
    }

    pub(super) fn bytes_cap(&self) -> u64 {
        BYTES as u64
    }

    /// Runs `f`, during which `scratch_more` with this `ctx` works on this thread, up to `limit` bytes in sum.
    pub(super) fn during<R>(&self, ctx: u64, limit: u64, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<NonNull<Call>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                // A thread whose locals are gone has no call to restore.
                let _ = LOCAL.try_with(|l| l.call.set(self.0));
            }
        }
        let call = Call {
            ctx,
            limit,
            scratch: NonNull::from(self.scratch()),
        };
        let outer = LOCAL
            .try_with(|l| l.call.replace(Some(NonNull::from(&call))))
            .ok()
            .flatten();
        let _restore = Restore(outer);
        f()
    }

    #[inline]
    pub(super) fn regions(&self) -> Regions<'_> {
        Regions::of(Some(self.scratch()))
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(scratch) = self.scratch.take() {
            if scratch.more_bytes.get() != 0 {
                scratch.more.borrow_mut().clear();
                scratch.more_bytes.set(0);
            }
            // A thread that ends has nowhere to keep it: it is freed.
            let _ = LOCAL.try_with(move |l| l.spare.set(Some(scratch)));
        }
    }
}

/// `scratch_more`: zeroed memory of the call that runs on this thread, or null.
pub(super) fn more(ctx: u64, n: u64) -> *mut u8 {
    let Some(call) = LOCAL.try_with(|l| l.call.get()).ok().flatten() else {
        return null_mut();
    };
    // SAFETY: `during` keeps the call and its scratch alive while it is set, on this thread.
    let (call, scratch) = unsafe { (call.as_ref(), call.as_ref().scratch.as_ref()) };
    if call.ctx != ctx {
        return null_mut();
    }
    let wanted = n.max(ALIGN as u64);
    let Some(sum) = scratch
        .more_bytes
        .get()
        .checked_add(wanted)
        .filter(|sum| *sum <= call.limit)
    else {
        return null_mut();
    };
    let Some(block) = usize::try_from(wanted)
        .ok()
        .and_then(|n| Block::zeroed(n, ALIGN))
    else {
        return null_mut();
    };
    let ptr = block.ptr.as_ptr();
    scratch.more.borrow_mut().push(block);
    scratch.more_bytes.set(sum);
    ptr
}

/// Runs `f` with the memory that is lent to the call that runs on this thread: what `complete` inside a hook may
/// point into.
pub(super) fn with_current<R>(f: impl FnOnce(&Regions<'_>) -> R) -> R {
    let call = LOCAL.try_with(|l| l.call.get()).ok().flatten();
    // SAFETY: as in `more`.
    let scratch = call.map(|call| unsafe { call.as_ref().scratch.as_ref() });
    f(&Regions::of(scratch))
}

/// What is lent, to check pointers against (PXG-MEM-012).
pub(super) struct Regions<'a> {
    base: usize,
    /// 0 if nothing is lent.
    span: usize,
    scratch: Option<&'a Scratch>,
    has_more: bool,
}

impl<'a> Regions<'a> {
    #[inline]
    fn of(scratch: Option<&'a Scratch>) -> Self {
        Self {
            base: scratch.map_or(0, |s| s.lent.ptr.as_ptr().addr()),
            span: scratch.map_or(0, |s| s.lent.layout.size()),
            has_more: scratch.is_some_and(|s| s.more_bytes.get() != 0),
            scratch,
        }
    }

    /// `Err(bytes beyond)` for memory that begins in a lent region and ends outside of it.
    #[inline]
    pub(super) fn check(&self, ptr: *const u8, len: usize) -> Result<(), usize> {
        let offset = ptr.addr().wrapping_sub(self.base);
        if offset >= self.span && !self.has_more {
            return Ok(());
        }
        self.check_inside(ptr, len, offset)
    }

    #[inline(never)]
    fn check_inside(&self, ptr: *const u8, len: usize, offset: usize) -> Result<(), usize> {
        let outside = |offset: usize, size: usize| {
            (offset < size && len > size - offset).then(|| len - (size - offset))
        };
        let beyond = if offset < OPS_SIZE {
            outside(offset, OPS_SIZE)
        } else {
            outside(offset - OPS_SIZE, self.span.saturating_sub(OPS_SIZE))
        };
        if let Some(beyond) = beyond {
            return Err(beyond);
        }
        let Some(scratch) = self.scratch.filter(|_| self.has_more) else {
            return Ok(());
        };
        let more = scratch.more.borrow();
        more.iter()
            .find_map(|block| {
                let offset = ptr.addr().wrapping_sub(block.ptr.as_ptr().addr());
                outside(offset, block.layout.size())
            })
            .map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_that_begins_in_a_region_ends_in_it() {
        let loan = Loan::take();
        let regions = loan.regions();
        let bytes = loan.bytes().cast_const();
        assert_eq!(regions.check(bytes, BYTES), Ok(()));
        assert_eq!(regions.check(bytes, BYTES + 1), Err(1));
        assert_eq!(regions.check(bytes.wrapping_add(BYTES - 4), 10), Err(6));
        assert_eq!(regions.check(bytes.wrapping_add(BYTES), 10), Ok(()));
        let ops = loan.ops().cast_const().cast::<u8>();
        assert_eq!(regions.check(ops, OPS * 64 + 64), Err(64));
        assert_eq!(regions.check(ops, OPS * 64), Ok(()));
        loan.during(7, 1 << 20, || {
            let more = super::more(7, 100);
            let regions = loan.regions();
            assert_eq!(regions.check(more.wrapping_add(99), 2), Err(1));
            assert_eq!(regions.check(more, 100), Ok(()));
        });
    }

    #[test]
    fn a_call_inside_another_has_memory_of_its_own() {
        let outer = Loan::take();
        let inner = Loan::take();
        assert_ne!(outer.bytes(), inner.bytes());
    }

    #[test]
    fn more_is_limited_in_sum_and_ends_with_the_call() {
        let loan = Loan::take();
        loan.during(1, 100, || {
            assert!(!more(1, 64).is_null());
            assert!(more(2, 16).is_null(), "another library's");
            assert!(more(1, 64).is_null(), "over the limit");
            assert!(!more(1, 36).is_null());
            assert!(more(1, 0).is_null(), "even nothing takes its alignment");
            assert!(more(1, u64::MAX).is_null());
        });
        let (outer, inner) = (Loan::take(), Loan::take());
        outer.during(1, 100, || {
            inner.during(2, 100, || assert!(!more(2, 1).is_null()));
            assert!(!more(1, 1).is_null(), "the outer call again");
        });
        assert!(more(1, 1).is_null(), "no call");
    }
}

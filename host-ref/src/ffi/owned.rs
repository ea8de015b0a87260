//! OWNED buffers: taken over before anything else, released exactly once (PXG-MEM-006).

use bytes::Bytes;
use proxy_golang_abi as abi;
use proxy_golang_abi::StrFlags;

/// A buffer of a guest that belongs to the host: dropping it is the release.
struct Owned {
    ptr: *const u8,
    len: usize,
    release: unsafe extern "C" fn(u64),
    ctx: u64,
}

// SAFETY: nobody writes an OWNED buffer after hand-over, and `release` works on any thread (PXG-MEM-007).
unsafe impl Send for Owned {}
// SAFETY: as above; shared use only reads.
unsafe impl Sync for Owned {}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        if self.ptr.is_null() {
            return &[];
        }
        // SAFETY: the guest handed over `len` initialised bytes that live until `release`, which is our drop.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the guest named this function for this value, and this is the only call with it.
        unsafe { (self.release)(self.ctx) }
    }
}

/// Takes an OWNED buffer over; `None` for any other, and for one without a release function, which is a fault that
/// the decoder reports.
///
/// # Safety
/// A guest handed `buf` over, and it is taken over once.
pub(super) unsafe fn take_over(buf: &abi::Buf) -> Option<Bytes> {
    if !is_owned(buf) {
        return None;
    }
    Some(Bytes::from_owner(Owned {
        ptr: buf.bytes.ptr,
        len: buf.bytes.len as usize,
        release: buf.release?,
        ctx: buf.ctx,
    }))
}

/// Whether the buffer is to be released by the host.
pub(super) fn is_owned(buf: &abi::Buf) -> bool {
    buf.bytes.flags.0 & StrFlags::OWNED.0 != 0
}

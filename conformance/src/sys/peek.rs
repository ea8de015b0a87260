//! Reads memory of the guest's that may not be there: a bad pointer is an answer, not a crash.

use std::mem::MaybeUninit;

/// Memory that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// Types for which every bit pattern is a value, without padding: the structs of the ABI.
///
/// # Safety
/// Implementors have no padding and no invalid bit patterns.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($t:ty),+ $(,)?) => {
        // SAFETY: integers, raw pointers and optional function pointers only, and no padding (asserted by the ABI
        // crate). A non-null function pointer is only ever called by `calls`.
        $(unsafe impl Plain for $t {})+
    };
}

plain!(
    u8,
    u32,
    u64,
    proxy_golang_abi::Str,
    proxy_golang_abi::Field,
    proxy_golang_abi::Op,
    proxy_golang_abi::Buf,
    proxy_golang_abi::Reply,
    proxy_golang_abi::EventResult,
    proxy_golang_abi::AttrWant,
    proxy_golang_abi::Projection,
    proxy_golang_abi::ConfigIn,
    proxy_golang_abi::ConfigOut,
    proxy_golang_abi::Event,
    proxy_golang_abi::Guest,
    proxy_golang_abi::Host,
    proxy_golang_abi::Page,
    proxy_golang_abi::ext::MetricsV1,
);

/// Reads `len` bytes at `at`, through the kernel, so that unmapped memory is an error.
pub fn bytes(at: u64, len: usize) -> Result<Vec<u8>, Unreadable> {
    let mut out = vec![0u8; len];
    into(at, &mut out)?;
    Ok(out)
}

/// As [`bytes`], without allocation; async-signal-safe.
pub fn into(at: u64, out: &mut [u8]) -> Result<(), Unreadable> {
    if out.is_empty() {
        return Ok(());
    }
    let local = libc::iovec {
        iov_base: out.as_mut_ptr().cast(),
        iov_len: out.len(),
    };
    let remote = libc::iovec {
        iov_base: at as *mut _,
        iov_len: out.len(),
    };
    // SAFETY: `local` is `out`; `remote` is only read by the kernel, which checks it.
    let n = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    if n == out.len().cast_signed() {
        Ok(())
    } else {
        Err(Unreadable)
    }
}

/// Reads a value at `at`.
pub fn value<T: Plain>(at: u64) -> Result<T, Unreadable> {
    let mut out = MaybeUninit::<T>::zeroed();
    // SAFETY: the zeroed memory of `out` as bytes.
    let raw =
        unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    into(at, raw)?;
    // SAFETY: T is Plain, so whatever was read is a value.
    Ok(unsafe { out.assume_init() })
}

/// Reads the first `len` bytes of a value; the rest is zero.
pub fn prefix<T: Plain>(at: u64, len: usize) -> Result<T, Unreadable> {
    let mut out = MaybeUninit::<T>::zeroed();
    let len = len.min(size_of::<T>());
    // SAFETY: the zeroed memory of `out` as bytes, of which `len` are taken.
    let raw = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<u8>(), len) };
    into(at, raw)?;
    // SAFETY: T is Plain and zero is a value of it.
    Ok(unsafe { out.assume_init() })
}

/// Reads an array of `n` values.
pub fn array<T: Plain>(at: u64, n: usize) -> Result<Vec<T>, Unreadable> {
    let raw = bytes(at, n.checked_mul(size_of::<T>()).ok_or(Unreadable)?)?;
    Ok(raw
        .chunks_exact(size_of::<T>())
        // SAFETY: each chunk has the size of T, and T is Plain.
        .map(|c| unsafe { c.as_ptr().cast::<T>().read_unaligned() })
        .collect())
}

/// The bytes of a value.
pub fn as_bytes<T: Plain>(v: &T) -> &[u8] {
    // SAFETY: T is Plain, so it has no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(v).cast(), size_of::<T>()) }
}

/// The bytes of an array.
pub fn slice_bytes<T: Plain>(v: &[T]) -> &[u8] {
    // SAFETY: T is Plain, so the array has no padding.
    unsafe { std::slice::from_raw_parts(v.as_ptr().cast(), size_of_val(v)) }
}

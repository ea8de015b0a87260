//! What a result points to: arrays, texts, buffers. Everything a guest says of a pointer is checked here but that it is
//! readable, which is its word.

use bytes::Bytes;
use proxy_golang_abi as abi;
use proxy_golang_abi::{Status, StrFlags};

use super::fault::{cold, outside, unknown_bits};
use super::lent::Regions;
use super::members::Decoder;
use super::view::bytes_of;
use crate::engine::{Fault, Payload};

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

impl<'a> Decoder<'a, '_> {
    /// # Safety
    /// The guest says that `n` elements at `ptr` are readable for `'b`.
    #[inline]
    pub(super) unsafe fn array<'b, T, D: std::fmt::Display>(
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
    pub(super) unsafe fn text<'b, D: std::fmt::Display>(
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
    pub(super) fn is_plain(&self, s: &abi::Str) -> bool {
        s.flags.0 == 0
            && (s.len == 0 || !s.ptr.is_null())
            && self.regions.check(s.ptr, s.len as usize).is_ok()
    }

    /// # Safety
    /// As [`Decoder::text`].
    #[inline]
    pub(super) unsafe fn bytes<'b, D: std::fmt::Display>(
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
    pub(super) fn buf<D: std::fmt::Display>(
        &self,
        buf: &abi::Buf,
        what: impl Fn() -> D,
    ) -> Result<(), Fault> {
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
    pub(super) unsafe fn value<D: std::fmt::Display>(
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
    pub(super) unsafe fn payload<D: std::fmt::Display>(
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

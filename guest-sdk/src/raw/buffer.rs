//! Buffers that change hands.

use std::marker::PhantomData;

use proxy_golang_abi as abi;

/// Bytes that are handed to the host without a copy: it releases them once, on whatever thread it likes
/// (PXG-MEM-006).
///
/// Made from `Vec<u8>`, `String`, `Box<[u8]>`, `Arc<[u8]>`, static bytes, or with [`Buffer::from_owner`] from anything
/// that holds bytes, such as `bytes::Bytes`. At most 4 GiB - 1.
pub struct Buffer {
    raw: abi::Buf,
    _owner: PhantomData<Box<dyn Send>>,
}

// SAFETY: the owner behind `ctx` is Send (bound of `from_owner`), and the bytes are reached through it alone.
unsafe impl Send for Buffer {}

/// The host's way to drop an owner of type `T`.
///
/// # Safety
/// `ctx` must come from `Box::into_raw` of a `Box<T>` and be used once.
unsafe extern "C" fn release<T>(ctx: u64) {
    // A destructor that panics must not unwind into the host (PXG-ABI-007).
    let _ = std::panic::catch_unwind(|| {
        // SAFETY: the caller's: the host releases exactly once.
        drop(unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut::<T>(ctx as usize)) });
    });
}

impl Buffer {
    /// A buffer over the bytes of `owner`, which is dropped when the host is done, on any thread. The drop must not
    /// block (PXG-MEM-007).
    ///
    /// # Panics
    /// At 4 GiB and more.
    pub fn from_owner<T: AsRef<[u8]> + Send + 'static>(owner: T) -> Self {
        let owner = Box::new(owner);
        let bytes = T::as_ref(&owner);
        assert!(
            u32::try_from(bytes.len()).is_ok(),
            "a buffer of {} bytes; expected less than 4 GiB: hand over several",
            bytes.len()
        );
        let mut bytes = abi::Str::new(bytes);
        bytes.flags = abi::StrFlags::OWNED;
        let ctx = Box::into_raw(owner).expose_provenance() as u64;
        Self {
            raw: abi::Buf {
                bytes,
                release: Some(release::<T>),
                ctx,
            },
            _owner: PhantomData,
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: static bytes, or bytes of the owner, which lives as long as `self`.
        unsafe { super::view::bytes(&self.raw.bytes) }
    }

    /// Hands the buffer over: whoever takes the result releases it.
    pub(super) fn into_abi(self) -> abi::Buf {
        let raw = self.raw;
        std::mem::forget(self);
        raw
    }

    /// Takes back what was not handed over after all.
    ///
    /// # Safety
    /// `raw` must come from `into_abi`, and the host must not have seen it.
    pub(super) unsafe fn from_abi(raw: abi::Buf) -> Self {
        Self {
            raw,
            _owner: PhantomData,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(release) = self.raw.release {
            // SAFETY: `self` has not been handed over, or `into_abi` would have forgotten it; so this is the one use.
            unsafe { release(self.raw.ctx) }
        }
    }
}

impl From<&'static [u8]> for Buffer {
    fn from(bytes: &'static [u8]) -> Self {
        assert!(
            u32::try_from(bytes.len()).is_ok(),
            "a buffer of {} bytes; expected less than 4 GiB: hand over several",
            bytes.len()
        );
        let mut bytes = abi::Str::new(bytes);
        bytes.flags = abi::StrFlags::STATIC;
        Self {
            raw: abi::Buf::borrowed(bytes),
            _owner: PhantomData,
        }
    }
}

impl<const N: usize> From<&'static [u8; N]> for Buffer {
    fn from(bytes: &'static [u8; N]) -> Self {
        bytes.as_slice().into()
    }
}

impl From<&'static str> for Buffer {
    fn from(text: &'static str) -> Self {
        text.as_bytes().into()
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_owner(bytes)
    }
}

impl From<String> for Buffer {
    fn from(text: String) -> Self {
        Self::from_owner(text)
    }
}

impl From<Box<[u8]>> for Buffer {
    fn from(bytes: Box<[u8]>) -> Self {
        Self::from_owner(bytes)
    }
}

impl From<std::sync::Arc<[u8]>> for Buffer {
    fn from(bytes: std::sync::Arc<[u8]>) -> Self {
        Self::from_owner(bytes)
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.raw.bytes.len)
    }
}

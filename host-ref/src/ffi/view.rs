//! Views that a host lends to a guest: the ABI's own structs with a Rust lifetime.

use std::marker::PhantomData;

use proxy_golang_abi as abi;

/// A `pxg_str` over bytes that live for `'a`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct StrView<'a> {
    raw: abi::Str,
    lives: PhantomData<&'a [u8]>,
}

/// A `pxg_field` over bytes that live for `'a`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct FieldView<'a> {
    raw: abi::Field,
    lives: PhantomData<&'a [u8]>,
}

impl<'a> StrView<'a> {
    /// What is not there.
    pub const ABSENT: StrView<'static> = StrView {
        raw: abi::Str::ABSENT,
        lives: PhantomData,
    };

    /// A view of at most 4 GiB; what is longer is cut there.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            raw: lend(bytes),
            lives: PhantomData,
        }
    }

    /// The bytes; empty where absent.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        // SAFETY: `raw` was made from a slice that lives for `'a`, or is null with length 0.
        unsafe { bytes_of(&self.raw) }
    }

    /// Whether there is nothing, which differs from empty.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        self.raw.is_absent()
    }
}

impl<'a> FieldView<'a> {
    /// A field; `name` in lower case.
    #[must_use]
    pub const fn new(name: &'a [u8], value: &'a [u8]) -> Self {
        Self {
            raw: abi::Field {
                name: lend(name),
                value: lend(value),
            },
            lives: PhantomData,
        }
    }

    /// The same field, its value marked as never to be logged.
    #[must_use]
    pub const fn sensitive(mut self) -> Self {
        self.raw.value.flags = abi::StrFlags::SENSITIVE;
        self
    }

    /// The name.
    #[must_use]
    pub const fn name(&self) -> &'a [u8] {
        // SAFETY: made from a slice that lives for `'a`.
        unsafe { bytes_of(&self.raw.name) }
    }

    /// The value.
    #[must_use]
    pub const fn value(&self) -> &'a [u8] {
        // SAFETY: made from a slice that lives for `'a`.
        unsafe { bytes_of(&self.raw.value) }
    }

    /// Whether the value is never to be logged.
    #[must_use]
    pub const fn is_sensitive(&self) -> bool {
        self.raw.value.flags.0 & abi::StrFlags::SENSITIVE.0 != 0
    }
}

/// An ABI string over `bytes`. Null where they are empty: an empty slice's address may be a small number, and a
/// collected runtime does not survive one in a pointer.
const fn lend(bytes: &[u8]) -> abi::Str {
    if bytes.is_empty() {
        abi::Str::EMPTY
    } else {
        abi::Str::new(bytes)
    }
}

/// The bytes of an ABI string.
///
/// # Safety
/// `s.ptr` is null, or points to `s.len` initialised bytes that nobody writes for `'a`.
pub(super) const unsafe fn bytes_of<'a>(s: &abi::Str) -> &'a [u8] {
    if s.ptr.is_null() || s.len == 0 {
        return &[];
    }
    // SAFETY: promised by the caller.
    unsafe { std::slice::from_raw_parts(s.ptr, s.len as usize) }
}

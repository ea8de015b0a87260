use crate::{OpFlags, OpKind, StrFlags, Target};

/// Bytes with a length: never NUL-terminated, may hold NUL and bytes that are no UTF-8.
///
/// A null `ptr` with `len` 0 is the empty string; absence is the flag [`StrFlags::ABSENT`]. For lengths below 4 GiB
/// the struct has the bits of `{ptr, size_t}`. Frozen for v1 (PXG-CMP-004).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    /// The first byte. Owner and lifetime are those of the struct that holds this string.
    pub ptr: *const u8,
    /// Length in bytes.
    pub len: u32,
    /// `PXG_STR_*`, and in a [`Buf`] also `PXG_BUF_*`.
    pub flags: StrFlags,
}

/// A header or trailer field. Frozen for v1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Lower case in what a host delivers.
    pub name: Str,
    /// Raw bytes, as the host holds them.
    pub value: Str,
}

/// Bytes that a guest hands to the host, with their lifetime in `bytes.flags`. Frozen for v1.
///
/// `BORROWED` (0) bytes stay valid until the next call into the same guest on the same thread; `STATIC` ones as long
/// as the process; `OWNED` ones are released by the host exactly once on every path, also when the call that carried
/// them was refused (PXG-MEM-006).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Buf {
    /// The bytes and their lifetime.
    pub bytes: Str,
    /// Only for OWNED bytes. \[any-thread\] Called exactly once with `ctx`; it must not block and must not call the
    /// host, and in a Go guest it must be a C function (PXG-MEM-007). Null otherwise.
    pub release: Option<unsafe extern "C" fn(ctx: u64)>,
    /// The guest's value for `release`.
    pub ctx: u64,
}

/// One operation of a result: an effect as data. 64 bytes, one cache line; frozen for v1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// `PXG_OP_*`; decides what the other members mean.
    pub kind: OpKind,
    /// `PXG_OPF_*`.
    pub flags: OpFlags,
    /// `PXG_TARGET_*`; for METRIC the metric's id.
    pub target: Target,
    /// PASS and DROP: a count of bytes. SET_AT and DELETE_AT: an index into the delivered view. METRIC: the value as
    /// a signed number. METADATA_SET: the length of the namespace at the head of `key`, 0 for the guest's own.
    pub u0: u64,
    /// The field's name, the metadata's namespace and key, or for ROUTE `cluster` or `recompute`. Borrowed.
    pub key: Str,
    /// The value or the bytes.
    pub val: Buf,
}

impl Str {
    /// The empty string, which differs from [`Str::ABSENT`].
    pub const EMPTY: Self = Self {
        ptr: core::ptr::null(),
        len: 0,
        flags: StrFlags(0),
    };
    /// What is not there.
    pub const ABSENT: Self = Self {
        ptr: core::ptr::null(),
        len: 0,
        flags: StrFlags::ABSENT,
    };

    /// A string over `bytes`, which must outlive its use on the other side. Longer than `u32::MAX` is cut there.
    #[must_use]
    pub const fn new(bytes: &[u8]) -> Self {
        let len = if bytes.len() > u32::MAX as usize {
            u32::MAX
        } else {
            bytes.len() as u32
        };
        Self {
            ptr: bytes.as_ptr(),
            len,
            flags: StrFlags(0),
        }
    }

    /// Whether the string is not there at all.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        self.flags.0 & StrFlags::ABSENT.0 != 0
    }
}

impl Buf {
    /// No bytes.
    pub const EMPTY: Self = Self::borrowed(Str::EMPTY);

    /// Borrowed bytes.
    #[must_use]
    pub const fn borrowed(bytes: Str) -> Self {
        Self {
            bytes,
            release: None,
            ctx: 0,
        }
    }
}

impl Op {
    /// All zero: an unknown kind, skipped by every host.
    pub const ZERO: Self = Self {
        kind: OpKind(0),
        flags: OpFlags(0),
        target: Target::HEADERS,
        u0: 0,
        key: Str::EMPTY,
        val: Buf::EMPTY,
    };
}

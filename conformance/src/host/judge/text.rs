//! Strings, arrays and fields that a guest handed in.

use crate::host::model::{Array, Buffer, Region, Text};

const STR_FLAGS: u32 = 0x3;
const BUF_FLAGS: u32 = 0x33;

pub(super) fn lossy(b: &[u8]) -> String {
    let cut = &b[..b.len().min(60)];
    format!("{:?}", String::from_utf8_lossy(cut))
}

/// A string that a guest handed in.
pub(crate) fn check_text(
    t: &Text,
    what: &str,
    buffer: bool,
    put: &mut impl FnMut(&'static str, String),
) {
    let known = if buffer { BUF_FLAGS } else { STR_FLAGS };
    if t.flags & !known != 0 {
        put(
            "PXG-ABI-005",
            format!("{what} has undefined flag bits {:#x}", t.flags & !known),
        );
    }
    if buffer && t.flags & 0x30 == 0x30 {
        put("PXG-ABI-005", format!("{what} is both STATIC and OWNED"));
    }
    if t.flags & 1 != 0 && (t.len != 0 || t.ptr != 0) {
        put(
            "PXG-ABI-012",
            format!(
                "{what} is ABSENT with pointer {:#x} and length {}",
                t.ptr, t.len
            ),
        );
    }
    if t.len == 0 {
        return;
    }
    match t.region {
        Region::Null => put(
            "PXG-ABI-012",
            format!("{what} is NULL with length {}", t.len),
        ),
        Region::Scratch(room) | Region::View(room) if u64::from(t.len) > room => put(
            "PXG-MEM-012",
            format!(
                "{what} begins in lent memory and is {} bytes long; {room} are left there",
                t.len
            ),
        ),
        Region::Foreign => put(
            "PXG-MEM-002",
            format!("{what} points into memory of the host that is no longer, or not, lent"),
        ),
        _ if t.bytes.is_none() => put(
            "PXG-MEM-004",
            format!("{what}: {} bytes at {:#x} can't be read", t.len, t.ptr),
        ),
        _ => {}
    }
}

pub(super) fn check_buffer(b: &Buffer, what: &str, put: &mut impl FnMut(&'static str, String)) {
    check_text(&b.text, what, true, put);
    if b.text.flags & 0x20 != 0 && b.release == 0 {
        put("PXG-ABI-012", format!("{what} is OWNED and has no release"));
    }
}

pub(super) fn check_array<T>(a: &Array<T>, what: &str, put: &mut impl FnMut(&'static str, String)) {
    if a.count == 0 {
        return;
    }
    match a.region {
        Region::Null => put(
            "PXG-ABI-012",
            format!("{what} is NULL with a count of {}", a.count),
        ),
        Region::Scratch(room) | Region::View(room) if a.bytes > room => put(
            "PXG-MEM-012",
            format!(
                "{what} begins in lent memory and ends outside: {} of {room} bytes",
                a.bytes
            ),
        ),
        Region::Foreign => put(
            "PXG-MEM-013",
            format!("{what} points into memory of the host that is no longer lent"),
        ),
        _ if a.items.is_none() => put(
            "PXG-MEM-004",
            format!("{what}: {} elements at {:#x} can't be read", a.count, a.ptr),
        ),
        _ => {}
    }
}

const OWNED_FIELDS: [&[u8]; 10] = [
    b"connection",
    b"content-length",
    b"host",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"expect",
];

fn is_token(b: &[u8]) -> bool {
    !b.is_empty()
        && b.iter()
            .all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`".contains(c))
}

fn is_value(b: &[u8]) -> bool {
    let edge = |c: Option<&u8>| matches!(c, Some(b' ' | b'\t'));
    !edge(b.first())
        && !edge(b.last())
        && b.iter().all(|c| *c == b'\t' || (*c >= 0x20 && *c != 0x7f))
}

pub(super) fn is_pseudo_value(name: &[u8], v: &[u8]) -> bool {
    match name {
        b":method" => is_token(v),
        b":scheme" => v == b"http" || v == b"https",
        b":authority" => {
            !v.is_empty()
                && v.iter()
                    .all(|c| c.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(c))
        }
        b":path" => {
            (v.first() == Some(&b'/') || v == b"*")
                && v.iter().all(|c| (0x21..=0x7e).contains(c) && *c != b'#')
        }
        b":status" => {
            v.len() == 3 && v.iter().all(u8::is_ascii_digit) && (b'2'..=b'5').contains(&v[0])
        }
        _ => false,
    }
}

/// A name and value that a guest hands in as an ordinary field.
pub(super) fn check_field(
    name: &[u8],
    value: Option<&[u8]>,
    what: &str,
    put: &mut impl FnMut(&'static str, String),
) {
    if name.iter().any(u8::is_ascii_uppercase) {
        put(
            "PXG-HDR-010",
            format!(
                "{what} has the name {}, which is not lower case",
                lossy(name)
            ),
        );
    }
    let lower = name.to_ascii_lowercase();
    if OWNED_FIELDS.contains(&lower.as_slice()) {
        put(
            "PXG-HDR-008",
            format!("{what} names {}, a field that the host owns", lossy(name)),
        );
    }
    if !is_token(name) {
        put(
            "PXG-HDR-005",
            format!(
                "{what} has the name {}, which is no field name",
                lossy(name)
            ),
        );
    }
    if let Some(v) = value
        && !is_value(v)
    {
        put(
            "PXG-HDR-005",
            format!(
                "{what} ({}) has a value that is no field value: {}",
                lossy(name),
                lossy(v)
            ),
        );
    }
}

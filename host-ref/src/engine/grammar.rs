//! What may go on the wire: the grammar of names, values and pseudo-headers (PXG-HDR-005, PXG-HDR-008).

/// Whether `name` is a field name in lower case: a token of RFC 9110 without upper-case letters.
#[must_use]
pub fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && all(name, |b| NAME[usize::from(b)])
}

/// Whether `value` holds no control byte but tab, and no white space at its ends.
#[must_use]
pub fn is_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    !blank(value.first())
        && !blank(value.last())
        && all(value, |b| (b >= 0x20) & (b != 0x7f) | (b == b'\t'))
}

/// Whether a guest may give a message this field, whatever the message: no pseudo-header, whose name is no field name.
#[must_use]
#[inline]
pub fn is_field(name: &[u8], value: &[u8]) -> bool {
    is_name(name) && !is_host_owned(name) && is_value(value)
}

/// Whether every byte passes. Looks at all of them: the good case needs it, and without an exit the loop can be unrolled.
#[inline]
fn all(bytes: &[u8], passes: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(true, |good, b| good & passes(*b))
}

/// Whether the field belongs to the connection or to the framing, and so to the host.
#[must_use]
#[inline]
pub fn is_host_owned(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection"
            | b"content-length"
            | b"expect"
            | b"host"
            | b"keep-alive"
            | b"proxy-connection"
            | b"te"
            | b"trailer"
            | b"transfer-encoding"
            | b"upgrade"
    )
}

/// Whether `value` is legal for the pseudo-header `name` (with its colon).
#[must_use]
pub fn is_pseudo_value(name: &[u8], value: &[u8]) -> bool {
    match name {
        b":method" => {
            !value.is_empty()
                && value
                    .iter()
                    .all(|b| NAME[usize::from(b.to_ascii_lowercase())])
        }
        b":scheme" => matches!(value, b"http" | b"https"),
        b":authority" => {
            !value.is_empty()
                && value
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(b))
        }
        b":path" => {
            (value.first() == Some(&b'/') || value == b"*")
                && value.iter().all(|b| (0x21..0x7f).contains(b) && *b != b'#')
        }
        b":status" => matches!(value, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9']),
        _ => false,
    }
}

const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let extra = b"!#$%&'*+-.^_`|~";
    let mut i = 0;
    while i < extra.len() {
        table[extra[i] as usize] = true;
        i += 1;
    }
    let mut b = 0;
    while b < 256 {
        let c = b as u8;
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            table[b] = true;
        }
        b += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte at each place, in values of lengths that are looked through in pieces or not.
    #[test]
    fn a_value_is_told_byte_by_byte() {
        for len in 1..=26 {
            for at in 0..len {
                for byte in 0..=255 {
                    let mut value = vec![b'v'; len];
                    value[at] = byte;
                    let blank = matches!(byte, b' ' | b'\t');
                    let control = byte < 0x20 || byte == 0x7f;
                    let legal = match blank {
                        true => at != 0 && at != len - 1,
                        false => !control,
                    };
                    assert_eq!(is_value(&value), legal, "{byte:#x} at {at} of {len}");
                }
            }
        }
        assert!(is_value(b""));
    }
}

//! Text of a guest, made fit for logs and messages (PXG-SEC-006).

use std::fmt::Write as _;

/// Bytes of a log record that are kept; what is longer is cut, and the record says so.
pub const MAX_LOG_TEXT: usize = 8 * 1024;

/// At most `cap` bytes as text without control characters: those, invalid UTF-8 and characters that change the
/// direction of writing are escaped.
pub fn clean(bytes: &[u8], cap: usize) -> String {
    let kept = &bytes[..boundary(bytes, cap)];
    let mut out = String::with_capacity(kept.len());
    for chunk in kept.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() || turns(c) => {
                    // Writing to a string does not fail.
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    if kept.len() < bytes.len() {
        let _ = write!(out, " ... ({} bytes more)", bytes.len() - kept.len());
    }
    out
}

/// `cap`, or a little less so that no character is cut.
fn boundary(bytes: &[u8], cap: usize) -> usize {
    if bytes.len() <= cap {
        return bytes.len();
    }
    let continues = |at: &usize| bytes[*at] & 0xc0 == 0x80;
    (cap.saturating_sub(3)..=cap)
        .rev()
        .find(|at| !continues(at))
        .unwrap_or(cap)
}

/// Line separators and marks that reorder what a terminal shows.
fn turns(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn control_bytes_are_escaped() {
        assert_eq!(
            clean(b"a\nb\x1b[31m\0\x7f\xff", 100),
            "a\\nb\\u{1b}[31m\\u{0}\\u{7f}\\xff"
        );
        assert_eq!(clean("\u{202e}evil".as_bytes(), 100), "\\u{202e}evil");
        assert_eq!(clean("Grüße".as_bytes(), 100), "Grüße");
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(clean("aé".as_bytes(), 2), "a ... (2 bytes more)");
        assert_eq!(clean(b"abc", 3), "abc");
        assert_eq!(clean(b"abcd", 3), "abc ... (1 bytes more)");
    }
}

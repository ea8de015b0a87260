//! Paths in the one form that is routed on, shown to guests and sent upstream (PXG-SEC-007).

use std::borrow::Cow;

/// The normal form of RFC 3986, 6.2.2: no escapes of unreserved characters, no dot segments; all other escapes stay. None:
/// it is in that form. `Some(None)`: the path leaves its root, or has an encoded NUL.
pub(super) fn normalize(path: &str) -> Option<Option<String>> {
    let bytes = path.as_bytes();
    let escaped = memchr::memchr(b'%', bytes).is_some();
    let suspicious = escaped || memchr::memmem::find(bytes, b"/.").is_some();
    if !suspicious || !path.starts_with('/') {
        return None;
    }
    if memchr::memmem::find(bytes, b"%00").is_some() {
        return Some(None);
    }
    let plain = if escaped {
        unescape(path)
    } else {
        Cow::Borrowed(path)
    };
    let is_dots = |segment: &str| matches!(segment, "." | "..");
    if !plain.split('/').any(is_dots) {
        return match plain {
            Cow::Borrowed(_) => None,
            Cow::Owned(plain) => Some(Some(plain)),
        };
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = plain[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." => {}
            ".." => {
                if kept.pop().is_none() {
                    return Some(None);
                }
            }
            _ => kept.push(segment),
        }
        if segments.peek().is_none() && is_dots(segment) {
            kept.push("");
        }
    }
    Some(Some(format!("/{}", kept.join("/"))))
}

/// Without escapes of unreserved characters; borrowed where there are none.
fn unescape(path: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    for (at, _) in path.match_indices('%') {
        let digits = path.get(at + 1..at + 3);
        let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        let Some(byte) = byte.filter(|b| b.is_ascii_alphanumeric() || b"-._~".contains(b)) else {
            continue;
        };
        out.push_str(&path[copied..at]);
        out.push(char::from(byte));
        copied = at + 3;
    }
    if copied == 0 {
        return Cow::Borrowed(path);
    }
    out.push_str(&path[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn ordinary_paths_stay() {
        for path in [
            "/",
            "/a/b",
            "/a.b/.c",
            "/a%20b",
            "/..a/b..",
            "*",
            "/a//b",
            "/a%2fb%2F",
            "/a%",
            "/a%4",
            "/a%+1",
            "/%252e%252e/b",
        ] {
            assert_eq!(normalize(path), None, "{path}");
        }
    }

    #[test]
    fn dot_segments_are_resolved() {
        let cases = [
            ("/a/../b", "/b"),
            ("/a/./b", "/a/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e", "/"),
            ("/a/b/.", "/a/b/"),
            ("/public/../admin/x", "/admin/x"),
        ];
        for (path, normal) in cases {
            assert_eq!(normalize(path), Some(Some(normal.to_owned())), "{path}");
        }
    }

    #[test]
    fn escapes_of_unreserved_characters_are_undone() {
        let cases = [
            ("/%61/b", "/a/b"),
            ("/%7euser/%2D%5f%2E", "/~user/-_."),
            ("/a%2f%2e%2e%2Fb", "/a%2f..%2Fb"),
            ("/%20%61%", "/%20a%"),
        ];
        for (path, normal) in cases {
            assert_eq!(normalize(path), Some(Some(normal.to_owned())), "{path}");
        }
    }

    #[test]
    fn leaving_the_root_is_refused() {
        for path in ["/..", "/a/../..", "/%2e%2e/x", "/a%00"] {
            assert_eq!(normalize(path), Some(None), "{path}");
        }
    }
}

//! Paths in the one form that is routed on, shown to guests and sent upstream (PXG-SEC-007).

/// Removes dot segments (RFC 3986 6.2.2.3, encoded dots included). None: nothing to do. `Some(None)`: the path leaves
/// its root, or has an encoded NUL.
pub(super) fn normalize(path: &str) -> Option<Option<String>> {
    let bytes = path.as_bytes();
    let suspicious =
        memchr::memmem::find(bytes, b"/.").is_some() || memchr::memchr(b'%', bytes).is_some();
    if !suspicious || !path.starts_with('/') {
        return None;
    }
    if memchr::memmem::find(bytes, b"%00").is_some() {
        return Some(None);
    }
    let dots = |segment: &str| {
        let plain = segment.replace("%2e", ".").replace("%2E", ".");
        matches!(plain.as_str(), "." | "..").then_some(plain.len())
    };
    if path[1..].split('/').all(|s| dots(s).is_none()) {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match dots(segment) {
            None => kept.push(segment),
            Some(1) => {}
            Some(_) => {
                if kept.pop().is_none() {
                    return Some(None);
                }
            }
        }
        if is_last && dots(segment).is_some() {
            kept.push("");
        }
    }
    Some(Some(format!("/{}", kept.join("/"))))
}

#[cfg(test)]
mod tests {
    use super::normalize;

    #[test]
    fn ordinary_paths_stay() {
        for path in ["/", "/a/b", "/a.b/.c", "/a%20b", "/..a/b..", "*", "/a//b"] {
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
    fn leaving_the_root_is_refused() {
        for path in ["/..", "/a/../..", "/%2e%2e/x", "/a%00"] {
            assert_eq!(normalize(path), Some(None), "{path}");
        }
    }
}

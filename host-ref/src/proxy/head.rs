//! What a proxy does to the fields of a message between two connections (RFC 9110 7.6).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::engine::grammar;

/// What a message's connection-bound fields said, before they were removed.
#[derive(Debug, Default)]
pub(super) struct Hop {
    /// `connection` names `upgrade`: the protocol that is asked for or chosen.
    pub upgrade: Option<HeaderValue>,
    /// `te: trailers`.
    pub trailers: bool,
    /// `expect: 100-continue`.
    pub expect: bool,
}

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Removes what belongs to one connection, and what `strip` names (lower case, `-` for `_`).
pub(super) fn clean(headers: &mut HeaderMap, strip: &[Box<[u8]>]) -> Hop {
    let mut hop = Hop::default();
    let mut found = 0_u8;
    let mut stripped: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        // Comparing with a known name is comparing two numbers; removing one that is not there is a search.
        if *name == header::CONNECTION {
            found |= 1;
        } else if *name == header::TE {
            found |= 2;
        } else if *name == header::TRANSFER_ENCODING {
            found |= 4;
        } else if *name == header::UPGRADE {
            found |= 8;
        } else if *name == KEEP_ALIVE {
            found |= 16;
        } else if *name == PROXY_CONNECTION {
            found |= 32;
        } else if *name == header::EXPECT {
            found |= 64;
        }
        if strip.iter().any(|s| same(s, name.as_str().as_bytes())) {
            stripped.push(name.clone());
        }
    }
    for name in stripped {
        headers.remove(name);
    }
    if found == 0 {
        return hop;
    }
    if found & 1 != 0 {
        remove_named_by_connection(headers, &mut hop);
    }
    if found & 2 != 0 {
        hop.trailers = headers
            .get_all(header::TE)
            .iter()
            .any(|v| tokens(v).any(|t| t.eq_ignore_ascii_case(b"trailers")));
        headers.remove(header::TE);
    }
    for (bit, name) in [
        (4, header::TRANSFER_ENCODING),
        (8, header::UPGRADE),
        (16, KEEP_ALIVE),
        (32, PROXY_CONNECTION),
    ] {
        if found & bit != 0 {
            headers.remove(name);
        }
    }
    if found & 64 != 0 {
        hop.expect = headers
            .get(header::EXPECT)
            .is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    }
    hop
}

fn remove_named_by_connection(headers: &mut HeaderMap, hop: &mut Hop) {
    let mut named: Vec<HeaderName> = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for token in tokens(value) {
            if token.eq_ignore_ascii_case(b"upgrade") {
                hop.upgrade = headers.get(header::UPGRADE).cloned();
            } else if !token.eq_ignore_ascii_case(b"close")
                && !token.eq_ignore_ascii_case(b"keep-alive")
                && !token.eq_ignore_ascii_case(b"te")
            {
                named.extend(HeaderName::from_bytes(token).ok());
            }
        }
    }
    headers.remove(header::CONNECTION);
    for name in named {
        // Never what decides where a message ends or goes.
        if name != header::CONTENT_LENGTH && name != header::HOST {
            headers.remove(name);
        }
    }
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|b| *b == b',')
        .map(|t| {
            t.split(|b| *b == b';')
                .next()
                .unwrap_or_default()
                .trim_ascii()
        })
        .filter(|t| !t.is_empty())
}

/// Whether `name` is `strip`, `_` being `-`.
fn same(strip: &[u8], name: &[u8]) -> bool {
    strip.len() == name.len()
        && strip
            .iter()
            .zip(name)
            .all(|(a, b)| *a == if *b == b'_' { b'-' } else { *b })
}

/// Appends to a list-valued field, joining what is there.
pub(super) fn append_to_list(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, value.clone());
        return;
    }
    let lines = headers.get_all(&name).iter();
    let before: usize = lines.map(|v| v.len() + 2).sum();
    let mut joined = Vec::with_capacity(before + value.len());
    for old in headers.get_all(&name) {
        joined.extend_from_slice(old.as_bytes());
        joined.extend_from_slice(b", ");
    }
    joined.extend_from_slice(value.as_bytes());
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(name, joined);
    }
}

/// A request's id as a client may choose it: 1 to 128 visible characters.
pub(super) fn is_legal_id(value: &HeaderValue) -> bool {
    (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Names in `trailer` may be announced if they are no framing and no routing.
pub(super) fn announce(headers: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        if !grammar::is_host_owned(name.as_str().as_bytes()) {
            let value = HeaderValue::from_str(name.as_str());
            headers.append(header::TRAILER, value.expect("a name is a legal value"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(n, v)| {
                (
                    HeaderName::from_bytes(n.as_bytes()).unwrap(),
                    HeaderValue::from_str(v).unwrap(),
                )
            })
            .collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        headers.keys().map(HeaderName::as_str).collect()
    }

    #[test]
    fn connection_and_what_it_names_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers;q=0.5"),
            ("x-public", "2"),
        ]);
        let hop = clean(&mut headers, &[]);
        assert_eq!(names(&headers), ["x-public"]);
        assert!(hop.trailers && hop.upgrade.is_none());
    }

    #[test]
    fn connection_cannot_remove_the_framing() {
        let mut headers = map(&[
            ("connection", "content-length, host"),
            ("content-length", "3"),
            ("host", "a"),
        ]);
        clean(&mut headers, &[]);
        assert!(headers.contains_key("content-length") && headers.contains_key("host"));
    }

    #[test]
    fn an_upgrade_is_reported() {
        let mut headers = map(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        let hop = clean(&mut headers, &[]);
        assert_eq!(hop.upgrade.unwrap(), "websocket");
        assert!(headers.is_empty());
        let mut headers = map(&[("upgrade", "websocket")]);
        assert!(clean(&mut headers, &[]).upgrade.is_none());
        assert!(headers.is_empty());
    }

    #[test]
    fn stripping_ignores_the_kind_of_separator() {
        let mut headers = map(&[("x_user-id", "1"), ("x-user_id", "2"), ("x-userid", "3")]);
        clean(&mut headers, &[b"x-user-id".to_vec().into()]);
        assert_eq!(names(&headers), ["x-userid"]);
    }

    #[test]
    fn appending_joins_several_lines() {
        let mut headers = map(&[("via", "1.1 a"), ("via", "1.1 b")]);
        append_to_list(
            &mut headers,
            header::VIA,
            &HeaderValue::from_static("2.0 c"),
        );
        assert_eq!(headers.get_all("via").iter().count(), 1);
        assert_eq!(headers["via"], "1.1 a, 1.1 b, 2.0 c");
    }
}

//! Which request goes where.

use std::collections::HashMap;

use super::config::CheckedVirtualHost;

/// A route: the number of its virtual host and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RouteId {
    pub host: u32,
    pub route: u32,
}

/// Finds routes by host and path.
#[derive(Debug, Default)]
pub(super) struct Router {
    exact: HashMap<Box<str>, u32>,
    /// With the leading dot, longest first.
    suffixes: Vec<(Box<str>, u32)>,
    any: Option<u32>,
    /// Per virtual host its prefixes, longest first, with the route's number.
    prefixes: Vec<Vec<(Box<str>, u32)>>,
}

impl Router {
    pub(super) fn new(hosts: &[CheckedVirtualHost]) -> Self {
        let mut router = Self::default();
        let number = |i: usize| u32::try_from(i).expect("fewer than 2^32 routes");
        for (i, host) in hosts.iter().enumerate() {
            for pattern in &host.hosts {
                match pattern.strip_prefix('*') {
                    Some("") => router.any = Some(number(i)),
                    Some(suffix) => router.suffixes.push((suffix.into(), number(i))),
                    None => {
                        router.exact.insert(pattern.as_str().into(), number(i));
                    }
                }
            }
            let mut prefixes: Vec<_> = host
                .routes
                .iter()
                .enumerate()
                .map(|(j, route)| (route.prefix.as_str().into(), number(j)))
                .collect();
            prefixes.sort_by_key(|(prefix, _): &(Box<str>, u32)| std::cmp::Reverse(prefix.len()));
            router.prefixes.push(prefixes);
        }
        router
            .suffixes
            .sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.len()));
        router
    }

    /// `authority` may have a port.
    pub(super) fn find(&self, authority: &str, path: &str) -> Option<RouteId> {
        let host = self.host(without_port(authority))?;
        let (_, route) = self.prefixes[host as usize]
            .iter()
            .find(|(prefix, _)| matches_prefix(prefix, path))?;
        Some(RouteId {
            host,
            route: *route,
        })
    }

    fn host(&self, name: &str) -> Option<u32> {
        if self.exact.is_empty() && self.suffixes.is_empty() {
            return self.any;
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let lower;
        let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            &lower
        } else {
            name
        };
        if let Some(host) = self.exact.get(name) {
            return Some(*host);
        }
        self.suffixes
            .iter()
            .find(|(suffix, _)| name.len() > suffix.len() && name.ends_with(&**suffix))
            .map(|(_, host)| *host)
            .or(self.any)
    }
}

/// The host of an authority.
fn without_port(authority: &str) -> &str {
    let host_end = authority.rfind(']').map_or(0, |i| i + 1);
    match authority[host_end..].find(':') {
        Some(colon) => &authority[..host_end + colon],
        None => authority,
    }
}

/// Whether `path` begins with the segments of `prefix`.
fn matches_prefix(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| {
        rest.is_empty() || prefix.ends_with('/') || rest.starts_with(['/', '?'])
    })
}

/// The path that goes upstream when `prefix` is replaced.
pub(super) fn rewrite(path: &str, prefix: &str, replacement: &str) -> String {
    let rest = path.strip_prefix(prefix).unwrap_or_default();
    let slashed = replacement.ends_with('/');
    let mut rewritten = String::with_capacity(replacement.len() + rest.len() + 1);
    rewritten.push_str(replacement);
    if slashed && rest.starts_with('/') {
        rewritten.push_str(&rest[1..]);
    } else {
        if !slashed && !rest.is_empty() && !rest.starts_with(['/', '?']) {
            rewritten.push('/');
        }
        rewritten.push_str(rest);
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(hosts: &[(&[&str], &[&str])]) -> Router {
        let mut router = Router::new(&[]);
        for (i, (patterns, prefixes)) in hosts.iter().enumerate() {
            let i = u32::try_from(i).unwrap();
            for pattern in *patterns {
                match pattern.strip_prefix('*') {
                    Some("") => router.any = Some(i),
                    Some(suffix) => router.suffixes.push((suffix.into(), i)),
                    None => {
                        router.exact.insert((*pattern).into(), i);
                    }
                }
            }
            let mut sorted: Vec<(Box<str>, u32)> = prefixes
                .iter()
                .enumerate()
                .map(|(j, p)| ((*p).into(), u32::try_from(j).unwrap()))
                .collect();
            sorted.sort_by_key(|(p, _)| std::cmp::Reverse(p.len()));
            router.prefixes.push(sorted);
        }
        router
            .suffixes
            .sort_by_key(|(s, _)| std::cmp::Reverse(s.len()));
        router
    }

    fn found(router: &Router, authority: &str, path: &str) -> Option<(u32, u32)> {
        router.find(authority, path).map(|id| (id.host, id.route))
    }

    #[test]
    fn exact_wins_over_suffix_over_any() {
        let r = router(&[
            (&["*"], &["/"]),
            (&["*.example.com"], &["/"]),
            (&["a.example.com"], &["/"]),
            (&["*.b.example.com"], &["/"]),
        ]);
        assert_eq!(found(&r, "A.Example.com:8080", "/"), Some((2, 0)));
        assert_eq!(found(&r, "x.example.com.", "/"), Some((1, 0)));
        assert_eq!(found(&r, "x.b.example.com", "/"), Some((3, 0)));
        assert_eq!(found(&r, "example.com", "/"), Some((0, 0)));
        assert_eq!(found(&r, "[::1]:80", "/"), Some((0, 0)));
    }

    #[test]
    fn the_longest_prefix_wins_and_matches_segments() {
        let r = router(&[(&["*"], &["/", "/api", "/api/v1/"])]);
        assert_eq!(found(&r, "x", "/api/v1/users"), Some((0, 2)));
        assert_eq!(found(&r, "x", "/api/v1"), Some((0, 1)));
        assert_eq!(found(&r, "x", "/api?x=1"), Some((0, 1)));
        assert_eq!(found(&r, "x", "/apis"), Some((0, 0)));
        assert_eq!(found(&router(&[(&["a"], &["/"])]), "b", "/"), None);
        assert_eq!(found(&router(&[(&["*"], &["/a"])]), "b", "/"), None);
    }

    #[test]
    fn a_rewrite_keeps_exactly_one_slash() {
        assert_eq!(rewrite("/api/x?y", "/api", "/"), "/x?y");
        assert_eq!(rewrite("/api", "/api", "/"), "/");
        assert_eq!(rewrite("/api?y", "/api", "/v2"), "/v2?y");
        assert_eq!(rewrite("/api/x", "/api/", "/v2"), "/v2/x");
        assert_eq!(rewrite("/api/x", "/api", "/v2"), "/v2/x");
    }
}

//! Virtual hosts and their routes.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};

use super::super::{DirectResponse, KeyPath, Route, VirtualHost};
use super::{CheckedRoute, CheckedVirtualHost, Checker, FilterCall, RouteAction};

impl Checker {
    pub(super) fn virtual_hosts(
        &mut self,
        virtual_hosts: &[VirtualHost],
        clusters: &HashMap<&str, usize>,
        filters: &HashMap<&str, usize>,
    ) -> Vec<CheckedVirtualHost> {
        let top = KeyPath::new("virtual_hosts");
        if virtual_hosts.is_empty() {
            self.error(
                &top,
                "there is no virtual host",
                "add a [[virtual_hosts]] table with `name`, `hosts = [\"*\"]` and `routes`",
            );
        }
        let mut taken: HashMap<String, usize> = HashMap::new();
        let mut checked = Vec::new();
        for (i, vhost) in virtual_hosts.iter().enumerate() {
            let key = top.index(i);
            let mut hosts = Vec::new();
            for (j, host) in vhost.hosts.iter().enumerate() {
                let at = key.key("hosts").index(j);
                let host = host.to_ascii_lowercase();
                let bare = host.strip_prefix("*.").unwrap_or(&host);
                let legal = host == "*"
                    || (!bare.is_empty()
                        && bare
                            .bytes()
                            .all(|b| b.is_ascii_alphanumeric() || b"-._[:]".contains(&b)));
                if !legal {
                    self.error(
                        &at,
                        format!("{host:?} is no host pattern"),
                        "write \"example.com\", \"*.example.com\" or \"*\", without port",
                    );
                }
                if let Some(first) = taken.insert(host.clone(), i) {
                    self.error(
                        &at,
                        format!("the host {host:?} belongs to virtual_hosts[{first}] already"),
                        "name each host once",
                    );
                }
                hosts.push(host);
            }
            if vhost.hosts.is_empty() {
                self.error(
                    &key.key("hosts"),
                    "a virtual host without hosts is never used",
                    "write hosts = [\"*\"] for all",
                );
            }
            let mut prefixes = HashSet::new();
            let mut routes = Vec::new();
            for (j, route) in vhost.routes.iter().enumerate() {
                let at = key.key("routes").index(j);
                if !prefixes.insert(route.prefix.as_str()) {
                    self.error(
                        &at.key("prefix"),
                        format!(
                            "an earlier route of this virtual host has the prefix {:?}",
                            route.prefix
                        ),
                        "the longest prefix wins; equal ones cannot be told apart",
                    );
                }
                let (uses, uses_key) = match &route.filters {
                    Some(uses) => (uses, at.key("filters")),
                    None => (&vhost.filters, key.key("filters")),
                };
                let calls = self.filter_calls(&uses_key, uses, filters);
                routes.extend(self.route(&at, route, calls, clusters));
            }
            checked.push(CheckedVirtualHost {
                name: vhost.name.clone(),
                hosts,
                routes,
            });
        }
        checked
    }

    fn route(
        &mut self,
        key: &KeyPath,
        route: &Route,
        filters: Vec<FilterCall>,
        clusters: &HashMap<&str, usize>,
    ) -> Option<CheckedRoute> {
        for (name, path) in [
            ("prefix", Some(&route.prefix)),
            ("prefix_rewrite", route.prefix_rewrite.as_ref()),
        ] {
            let Some(path) = path else { continue };
            if !path.starts_with('/')
                || !path
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && b != b'#' && b != b'?')
            {
                self.error(
                    &key.key(name),
                    format!("{path:?} is no path"),
                    "write it like \"/\" or \"/api\"",
                );
            }
        }
        let action = match (&route.cluster, &route.direct_response) {
            (Some(cluster), None) => self
                .lookup(&key.key("cluster"), "cluster", cluster, clusters)
                .map(RouteAction::Cluster),
            (None, Some(direct)) => self.direct(&key.key("direct_response"), direct),
            _ => {
                self.error(
                    key,
                    format!(
                        "the route {:?} needs exactly one of `cluster` and `direct_response`",
                        route.name
                    ),
                    "",
                );
                None
            }
        };
        Some(CheckedRoute {
            name: route.name.as_str().into(),
            prefix: route.prefix.clone(),
            rewrite: route.prefix_rewrite.clone(),
            action: action?,
            filters,
            timeouts: route.timeouts.clone(),
            max_request_body: route.max_request_body.map(|s| s.0),
        })
    }

    fn direct(&mut self, key: &KeyPath, direct: &DirectResponse) -> Option<RouteAction> {
        if !(200..=599).contains(&direct.status) {
            self.error(
                &key.key("status"),
                format!("{} is no final status", direct.status),
                "expected 200 to 599",
            );
            return None;
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &direct.headers {
            let at = key.key("headers").key(name);
            match (self.field_name(&at, name), HeaderValue::from_str(value)) {
                (Some(name), Ok(value)) => {
                    headers.insert(name, value);
                }
                (_, Err(_)) => self.error(
                    &at,
                    format!("{value:?} is no field value"),
                    "remove line breaks and control characters",
                ),
                (None, _) => {}
            }
        }
        if !direct.body.is_empty() && !headers.contains_key(header::CONTENT_TYPE) {
            let text = HeaderValue::from_static("text/plain; charset=utf-8");
            headers.insert(header::CONTENT_TYPE, text);
        }
        Some(RouteAction::Direct {
            status: direct.status,
            headers,
            body: Bytes::from(direct.body.clone()),
        })
    }
}

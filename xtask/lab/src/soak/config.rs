//! The configurations that the proxy is given: valid ones that differ, and invalid ones that must change nothing.

use crate::host::Built;

/// The text that configurations replace in bodies, each by its own name.
pub(super) const MARK: &str = crate::upstream::LINE;

/// A configuration that must be refused, and what the refusal must name.
pub(super) struct Invalid {
    pub(super) text: String,
    pub(super) names: &'static str,
}

/// What configurations are made of.
pub(super) struct Configs<'a> {
    pub(super) built: &'a Built,
    pub(super) upstream: String,
    pub(super) authority: String,
    pub(super) admin: String,
}

impl Configs<'_> {
    /// Configurations of guests that a valid configuration has, all together.
    pub(super) const LIVE: u64 = 5;

    /// The valid configuration of this number. Those with an even and with an odd number differ in the upstream's
    /// protocol and in the chain.
    pub(super) fn valid(&self, number: u64) -> String {
        let (protocol, last) = match number % 2 {
            0 => ("http1", ""),
            _ => ("http2", ", \"body-count\""),
        };
        format!(
            r#"workers = 2

[log]
level = "warn"

[admin]
address = "{admin}"

[http]
forwarded = false

[[listeners]]
name = "main"
address = "127.0.0.1:0"

[[clusters]]
name = "upstream"
endpoints = ["{upstream}"]
protocol = "{protocol}"

[[guests]]
name = "c"
path = {c}

[[guests]]
name = "go"
path = {go}

[[guests]]
name = "rust"
path = {rust}

[[filters]]
name = "trace-id"
guest = "go"
filter = "trace-id"

[[filters]]
name = "token-check"
guest = "go"
filter = "token-check"
pend_limit = "20s"
config = {{ authority = "http://{authority}/", timeout_ms = 20000, connections = 8 }}

[[filters]]
name = "header-policy"
guest = "c"
config = """
request set x-config config-{number}
response set x-config config-{number}
"""

[[filters]]
name = "body-rewrite"
guest = "rust"
filter = "body-rewrite"
config = {{ direction = "both", replace = [{{ from = "{MARK}", to = "config-{number}" }}] }}

[[filters]]
name = "body-count"
guest = "rust"
filter = "body-count"

[[virtual_hosts]]
name = "all"
hosts = ["*"]

[[virtual_hosts.routes]]
name = "soak"
prefix = "/soak"
cluster = "upstream"
filters = ["trace-id", "token-check", "header-policy", "body-rewrite"{last}]
"#,
            admin = self.admin,
            upstream = self.upstream,
            authority = self.authority,
            c = Built::toml(&self.built.c),
            go = Built::toml(&self.built.go),
            rust = Built::toml(&self.built.rust),
        )
    }

    /// An invalid configuration, the kinds in turn.
    pub(super) fn invalid(&self, number: u64) -> Invalid {
        let valid = self.valid(number);
        let with = |from: &str, to: &str, names| {
            let text = valid.replacen(from, to, 1);
            assert_ne!(text, valid, "{from} is in the configuration");
            Invalid { text, names }
        };
        match number % 5 {
            0 => with("prefix = ", "prefixx = ", "prefixx"),
            1 => with("\"trace-id\", ", "\"trace-it\", ", "trace-it"),
            2 => with("request set", "request put", "put"),
            3 => with("http://", "gopher://", "gopher"),
            _ => with("header-policy.so", "no-such.so", "no-such.so"),
        }
    }
}

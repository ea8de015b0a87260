//! What is compared with plain Envoy, and how Envoy is told.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::shape::Shape;
use crate::bench_proxy::{Class, FIELD};

/// What filters set the field to, but those that set it to the body's length.
pub(super) const VALUE: &str = "0123456789abcdef";

/// What was built; `cargo xtask` says where it is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Built {
    /// The stock Envoy
    #[arg(long, env = "PXG_LAB_ENVOY", value_name = "FILE")]
    pub(super) envoy: PathBuf,
    /// The folder with `libproxy_golang.so`, our dynamic module
    #[arg(long, env = "PXG_LAB_ENVOY_MODULE", value_name = "FOLDER")]
    pub(super) module: PathBuf,
    /// The benchmarks' guest in C
    #[arg(long, env = "PXG_LAB_BENCH_C", value_name = "FILE")]
    c: PathBuf,
    /// The benchmarks' guest in Rust
    #[arg(long, env = "PXG_LAB_BENCH_RUST", value_name = "FILE")]
    rust: PathBuf,
    /// The benchmarks' guest in Go
    #[arg(long, env = "PXG_LAB_GO_BENCH", value_name = "FILE")]
    go: PathBuf,
    /// The proxy in Go
    #[arg(long, env = "PXG_LAB_GO_PROXY", value_name = "FILE")]
    pub(super) go_proxy: PathBuf,
    /// The ext_proc server
    #[arg(long, env = "PXG_LAB_PEERS", value_name = "FILE")]
    pub(super) peers: PathBuf,
    /// The WebAssembly filter
    #[arg(long, env = "PXG_LAB_WASM", value_name = "FILE")]
    wasm: PathBuf,
    /// The folder with the Lua scripts
    #[arg(long, env = "PXG_LAB_LUA", value_name = "FOLDER")]
    lua: PathBuf,
}

/// How requests are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not at all.
    Plain,
    /// Envoy's own filter.
    HeaderMutation,
    /// A dynamic module without ABI and guest: what Envoy asks for any module.
    Bare,
    Guest(Guest),
    Lua,
    Wasm,
    ExtProc,
    /// By another proxy.
    GoProxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guest {
    C,
    Rust,
    GoSync,
    GoRing,
    GoGoroutine,
}

impl Guest {
    /// Decides later than in the event.
    pub(super) fn is_async(self) -> bool {
        matches!(self, Self::GoRing | Self::GoGoroutine)
    }
}

/// Something to compare with plain Envoy. It is a process of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    /// The second half of a row's name.
    pub(super) name: &'static str,
    /// For people.
    pub(super) title: &'static str,
    pub(super) kind: Kind,
}

pub(super) const VARIANTS: &[Variant] = &[
    Variant {
        name: "plain-again",
        title: "plain Envoy again: the noise",
        kind: Kind::Plain,
    },
    Variant {
        name: "header-mutation",
        title: "Envoy's own header mutation",
        kind: Kind::HeaderMutation,
    },
    Variant {
        name: "bare-module",
        title: "a bare module: the floor",
        kind: Kind::Bare,
    },
    Variant {
        name: "c",
        title: "guest in C",
        kind: Kind::Guest(Guest::C),
    },
    Variant {
        name: "rust",
        title: "guest in Rust",
        kind: Kind::Guest(Guest::Rust),
    },
    Variant {
        name: "go-sync",
        title: "guest in Go, synchronous",
        kind: Kind::Guest(Guest::GoSync),
    },
    Variant {
        name: "go-ring",
        title: "guest in Go, async on the ring",
        kind: Kind::Guest(Guest::GoRing),
    },
    Variant {
        name: "go-goroutine",
        title: "guest in Go, a goroutine for each request",
        kind: Kind::Guest(Guest::GoGoroutine),
    },
    Variant {
        name: "lua",
        title: "Lua",
        kind: Kind::Lua,
    },
    Variant {
        name: "wasm",
        title: "WebAssembly in V8",
        kind: Kind::Wasm,
    },
    Variant {
        name: "ext-proc",
        title: "ext_proc over a Unix socket, tonic",
        kind: Kind::ExtProc,
    },
    Variant {
        name: "go-reverse-proxy",
        title: "Go's own reverse proxy instead of Envoy",
        kind: Kind::GoProxy,
    },
];

impl Variant {
    /// The variant of this name, plain Envoy among them.
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        [&super::PLAIN]
            .into_iter()
            .chain(VARIANTS)
            .find(|v| v.name == name)
    }

    pub(super) fn class(&self) -> Class {
        match self.kind {
            Kind::Plain | Kind::HeaderMutation => Class::Native,
            Kind::Guest(_) => Class::Guest,
            _ => Class::Other,
        }
    }

    /// Whether it is measured with requests of this shape.
    pub(super) fn has(&self, shape: Shape) -> bool {
        match shape {
            Shape::Fields3 | Shape::OneConnection => true,
            Shape::Fields25 => !matches!(self.kind, Kind::Plain | Kind::GoProxy),
            Shape::Body1K | Shape::Body64K => self.has_whole(),
            Shape::H2c => matches!(
                self.kind,
                Kind::Plain | Kind::GoProxy | Kind::Guest(Guest::C | Guest::GoSync)
            ),
        }
    }

    /// Whether it has a filter that takes whole bodies.
    fn has_whole(&self) -> bool {
        matches!(
            self.kind,
            Kind::Plain | Kind::Lua | Kind::Guest(Guest::C | Guest::Rust | Guest::GoSync)
        )
    }

    /// Whether a probe through it is measured while other requests keep the worker busy.
    pub(super) fn has_mixed(&self) -> bool {
        matches!(self.kind, Kind::Guest(guest) if guest.is_async())
    }

    /// The value that it sets the field to in requests of this shape. None: it does not set it.
    pub(super) fn value(&self, shape: Shape) -> Option<String> {
        match (self.kind, shape.body()) {
            (Kind::Plain, _) => None,
            (_, Some(length)) => Some(length.to_string()),
            (_, None) => Some(VALUE.to_owned()),
        }
    }

    /// The listeners that it has in Envoy, each with its filters.
    pub(super) fn listeners(&self, built: &Built) -> Result<Vec<(&'static str, Vec<Value>)>> {
        let mut listeners = vec![(PLAIN, Vec::new()), (HEADERS, self.filters(built, false)?)];
        if self.has_whole() {
            listeners.push((WHOLE, self.filters(built, true)?));
        }
        Ok(listeners)
    }

    fn filters(&self, built: &Built, whole: bool) -> Result<Vec<Value>> {
        Ok(vec![match self.kind {
            Kind::Plain | Kind::GoProxy => return Ok(Vec::new()),
            Kind::HeaderMutation => filter(
                "header_mutation",
                "header_mutation.v3.HeaderMutation",
                json!({"mutations": {"request_mutations": [{"append": {
                    "header": {"key": FIELD, "value": VALUE},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }}]}}),
            ),
            Kind::Bare => filter(
                "dynamic_modules",
                "dynamic_modules.v3.DynamicModuleFilter",
                json!({"dynamic_module_config": {"name": "pxg_bare"}, "filter_name": "bare"}),
            ),
            Kind::Guest(guest) => {
                let (library, filter_name) = match guest {
                    Guest::C => (&built.c, "bench-sync"),
                    Guest::Rust => (&built.rust, "bench-sync"),
                    Guest::GoSync => (&built.go, "bench-sync"),
                    Guest::GoRing => (&built.go, "bench-ring"),
                    Guest::GoGoroutine => (&built.go, "bench-goroutine"),
                };
                let filter_name = if whole { "bench-whole" } else { filter_name };
                filter(
                    "dynamic_modules",
                    "dynamic_modules.v3.DynamicModuleFilter",
                    json!({
                        "dynamic_module_config": {"name": "proxy_golang", "do_not_close": true},
                        "filter_name": filter_name,
                        "filter_config": {
                            "@type": "type.googleapis.com/google.protobuf.Struct",
                            "value": {"guest": library, "filter": filter_name},
                        },
                    }),
                )
            }
            Kind::Lua => {
                let script = if whole {
                    "whole-body.lua"
                } else {
                    "add-header.lua"
                };
                let script = built.lua.join(script);
                let text = std::fs::read_to_string(&script)
                    .with_context(|| format!("read {}", script.display()))?;
                filter(
                    "lua",
                    "lua.v3.Lua",
                    json!({"default_source_code": {"inline_string": text}}),
                )
            }
            Kind::Wasm => filter(
                "wasm",
                "wasm.v3.Wasm",
                json!({"config": {"name": "add-header", "vm_config": {
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": built.wasm}},
                }}}),
            ),
            Kind::ExtProc => filter(
                "ext_proc",
                "ext_proc.v3.ExternalProcessor",
                json!({
                    "grpc_service": {"envoy_grpc": {"cluster_name": EXT_PROC}},
                    // A server that shares its processor with a busy Envoy is late at times.
                    "message_timeout": "10s",
                    "processing_mode": {
                        "request_header_mode": "SEND",
                        "response_header_mode": "SKIP",
                    },
                }),
            ),
        }])
    }
}

/// The listener without a filter.
pub(super) const PLAIN: &str = "plain";
/// The listener with the filter that looks at headers only.
pub(super) const HEADERS: &str = "headers";
/// The listener with the filter that takes whole bodies.
pub(super) const WHOLE: &str = "whole";
/// The cluster of the ext_proc server.
pub(super) const EXT_PROC: &str = "ext_proc";

/// One of Envoy's HTTP filters.
pub(super) fn filter(name: &str, kind: &str, mut config: Value) -> Value {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}").into();
    json!({"name": format!("envoy.filters.http.{name}"), "typed_config": config})
}

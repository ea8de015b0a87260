//! What is compared with plain nginx, and how nginx is told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::bench_proxy::{Class, FIELD, SEEN, Title};

/// What filters set the field to.
pub(super) const VALUE: &str = "0123456789abcdef";

/// What was built; `cargo xtask` says where it is.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Built {
    /// The stock nginx
    #[arg(long, env = "PXG_LAB_NGINX", value_name = "FILE")]
    pub(super) nginx: PathBuf,
    /// `ngx_http_proxy_golang_module.so` for it
    #[arg(long, env = "PXG_LAB_NGINX_MODULE", value_name = "FILE")]
    module: PathBuf,
    /// The module that only sets a field, for it
    #[arg(long, env = "PXG_LAB_NGINX_BARE", value_name = "FILE")]
    bare: PathBuf,
    /// The folder with nginx's other dynamic modules
    #[arg(
        long,
        env = "PXG_LAB_NGINX_MODULES",
        value_name = "FOLDER",
        default_value = "/usr/lib/nginx/modules"
    )]
    modules: PathBuf,
    /// The benchmarks' guest in C
    #[arg(long, env = "PXG_LAB_BENCH_C", value_name = "FILE")]
    c: PathBuf,
    /// The benchmarks' guest in Go
    #[arg(long, env = "PXG_LAB_GO_BENCH", value_name = "FILE")]
    go: PathBuf,
    /// The folder with the library for Lua
    #[arg(long, env = "PXG_LAB_RESTY", value_name = "FOLDER")]
    resty: PathBuf,
    /// The folder with the script for njs
    #[arg(long, env = "PXG_LAB_LUA", value_name = "FOLDER")]
    peers: PathBuf,
}

/// How requests are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not at all.
    Plain,
    /// By a module that does nothing else.
    Bare,
    /// By a filter of the guest in C, or in Go.
    C(&'static str),
    Go(&'static str),
    Lua,
    /// By the guest in Go, which Lua calls through its FFI.
    LuaFfi,
    Njs,
}

/// Something to compare with plain nginx. It is a process of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) kind: Kind,
    /// Sections in which it is measured.
    pub(super) sections: &'static [&'static str],
}

pub(super) const PROXY: &str = "proxy-32";
pub(super) const PROXY_ONE: &str = "proxy-1";
pub(super) const LOCAL: &str = "local-32";
pub(super) const LOCAL_ONE: &str = "local-1";
pub(super) const UNPINNED: &str = "unpinned-32";

const ALL: &[&str] = &[PROXY, PROXY_ONE, LOCAL, LOCAL_ONE, UNPINNED];

pub(super) const PLAIN: Variant = Variant {
    name: crate::bench_proxy::PLAIN,
    title: "plain nginx",
    kind: Kind::Plain,
    sections: ALL,
};

pub(super) const VARIANTS: &[Variant] = &[
    Variant {
        name: "plain-again",
        title: "plain nginx again: the noise",
        kind: Kind::Plain,
        sections: ALL,
    },
    Variant {
        name: "bare",
        title: "a bare module: the floor",
        kind: Kind::Bare,
        sections: ALL,
    },
    Variant {
        name: "c-noop",
        title: "guest in C that changes nothing",
        kind: Kind::C("bench-noop"),
        sections: &[PROXY, LOCAL],
    },
    Variant {
        name: "c",
        title: "guest in C",
        kind: Kind::C("bench-sync"),
        sections: ALL,
    },
    Variant {
        name: "go-sync",
        title: "guest in Go, synchronous",
        kind: Kind::Go("bench-sync"),
        sections: ALL,
    },
    Variant {
        name: "go-ring",
        title: "guest in Go, async on the ring",
        kind: Kind::Go("bench-ring"),
        sections: ALL,
    },
    Variant {
        name: "go-goroutine",
        title: "guest in Go, a goroutine for each request",
        kind: Kind::Go("bench-goroutine"),
        sections: ALL,
    },
    Variant {
        name: "lua",
        title: "access_by_lua",
        kind: Kind::Lua,
        sections: &[PROXY, PROXY_ONE, LOCAL],
    },
    Variant {
        name: "lua-ffi-go",
        title: "guest in Go, called by LuaJIT's FFI",
        kind: Kind::LuaFfi,
        sections: &[PROXY, PROXY_ONE, LOCAL],
    },
    Variant {
        name: "njs",
        title: "njs",
        kind: Kind::Njs,
        sections: &[PROXY, PROXY_ONE, LOCAL],
    },
];

/// What nginx is told besides the variant.
pub(super) struct Setting<'a> {
    pub(super) listen: SocketAddr,
    pub(super) upstream: SocketAddr,
    pub(super) folder: &'a Path,
    pub(super) pinned: bool,
}

impl Variant {
    /// The variant of this name, plain nginx among them.
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        [&PLAIN]
            .into_iter()
            .chain(VARIANTS)
            .find(|v| v.name == name)
    }

    pub(super) fn title(&self) -> Title {
        Title {
            name: self.name,
            title: self.title,
            class: match self.kind {
                Kind::Plain | Kind::Bare => Class::Native,
                Kind::C(_) | Kind::Go(_) => Class::Guest,
                _ => Class::Other,
            },
        }
    }

    pub(super) fn has(&self, section: &str) -> bool {
        self.sections.contains(&section)
    }

    /// Decides later than in the event.
    pub(super) fn is_async(&self) -> bool {
        matches!(self.kind, Kind::Go("bench-ring" | "bench-goroutine"))
    }

    /// Whether it sets the field.
    pub(super) fn marks(&self) -> bool {
        !matches!(self.kind, Kind::Plain | Kind::C("bench-noop"))
    }

    /// The whole configuration: the filter in front of an upstream and of a file, and both without it. What the file's
    /// request looks like behind the filter is told in a location of its own.
    pub(super) fn config(&self, built: &Built, set: &Setting) -> String {
        let folder = set.folder.display();
        let [load, http, filter, proxy, file, seen] = self.parts(built);
        let affinity = if set.pinned {
            "worker_cpu_affinity 1;"
        } else {
            ""
        };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("  {what}_temp_path {folder}/{what};\n"))
            .concat();
        format!(
            r#"{load}daemon off;
worker_processes 1;
{affinity}
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  default_type text/plain;
{temporary}{http}  upstream upstream {{
    server {upstream};
    keepalive 64;
    keepalive_requests 1000000000;
  }}
  server {{
    listen {listen};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    location / {{ {filter} {proxy} proxy_pass http://upstream; }}
    location /plain {{ proxy_pass http://upstream; }}
    location /local/ {{ {filter} {file} alias {folder}/www/; open_file_cache max=16; }}
    location /local-check/ {{ {filter} add_header {SEEN} {seen}; alias {folder}/www/; }}
  }}
}}
"#,
            listen = set.listen,
            upstream = set.upstream,
        )
    }

    /// Modules, what stands in `http`, in each filtered location, in the proxied one, in that of the file; and the
    /// variable that has the field.
    fn parts(&self, built: &Built) -> [String; 6] {
        let other = |name: &str| {
            let file = built.modules.join(format!("{name}.so"));
            format!("load_module {};\n", file.display())
        };
        let seen = format!("$http_{}", FIELD.replace('-', "_"));
        let none = String::new;
        let [load, http, filter, proxy, file] = match self.kind {
            Kind::Plain => [none(), none(), none(), none(), none()],
            Kind::Bare => [
                format!("load_module {};\n", built.bare.display()),
                none(),
                "bare on;".to_owned(),
                none(),
                none(),
            ],
            Kind::C(name) | Kind::Go(name) => {
                let guest = if matches!(self.kind, Kind::C(_)) {
                    &built.c
                } else {
                    &built.go
                };
                [
                    format!("load_module {};\n", built.module.display()),
                    format!(
                        "  proxy_golang_filter it {{ guest {}; filter {name}; }}\n",
                        guest.display()
                    ),
                    "proxy_golang it;".to_owned(),
                    none(),
                    none(),
                ]
            }
            Kind::Lua => [
                other("ndk_http_module") + &other("ngx_http_lua_module"),
                none(),
                format!(r#"access_by_lua_block {{ ngx.req.set_header("{FIELD}", "{VALUE}") }}"#),
                none(),
                none(),
            ],
            Kind::LuaFfi => [
                other("ndk_http_module") + &other("ngx_http_lua_module"),
                format!(
                    r#"  lua_package_path "{}/?.lua;;";
  init_worker_by_lua_block {{
    local guest = assert(require("resty.proxy_golang.ffi").load("{}"))
    bench_filter = assert(guest:filter({{ filter = "bench-sync" }}))
  }}
"#,
                    built.resty.display(),
                    built.go.display()
                ),
                format!(
                    r#"access_by_lua_block {{
      local stream = bench_filter:stream()
      local headers = ngx.req.get_headers()
      headers[":method"], headers[":path"] = ngx.req.get_method(), ngx.var.request_uri
      local outcome = assert(stream:request_headers(headers, true))
      ngx.req.set_header("{FIELD}", outcome.headers["{FIELD}"])
      stream:finish()
    }}"#
                ),
                none(),
                none(),
            ],
            Kind::Njs => {
                return [
                    other("ngx_http_js_module"),
                    format!(
                        "  js_path {}/;\n  js_import bench from add-header.js;\n  js_set $bench bench.value;\n",
                        built.peers.display()
                    ),
                    none(),
                    format!(r#"proxy_set_header Connection ""; proxy_set_header {FIELD} $bench;"#),
                    format!("add_header {FIELD} $bench;"),
                    "$bench".to_owned(),
                ];
            }
        };
        [load, http, filter, proxy, file, seen]
    }
}

//! Nginx, twice: Debian's, with what its packages bring for modules and Lua, and the stable version, built from the
//! sources that a crate carries. The host's module for each.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Need, Tool, Tools, exists, version};
use crate::proc::stdout_of;
use crate::root::{root, target};

/// An nginx that `hosts/nginx` supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nginx {
    Debian,
    Stable,
}

/// How the stable version is configured.
const WITH: &[&str] = &[
    "--with-compat",
    "--with-debug",
    "--with-threads",
    "--with-pcre-jit",
    "--with-http_ssl_module",
    "--with-http_v2_module",
    "--with-http_stub_status_module",
    "--with-http_realip_module",
    "--with-http_auth_request_module",
    "--with-http_dav_module",
    "--with-http_secure_link_module",
    "--with-http_slice_module",
    "--with-http_addition_module",
    "--with-http_sub_module",
    "--with-http_gzip_static_module",
    "--with-http_gunzip_module",
    "--with-cc-opt=-g1 -O2",
];

/// Runs a command and says where its output is if it fails.
pub(crate) type Runner<'a> = dyn Fn(&mut Command) -> Result<()> + 'a;

/// All of them, oldest first.
pub(crate) const BOTH: [Nginx; 2] = [Nginx::Debian, Nginx::Stable];

const MODULE: &str = "ngx_http_proxy_golang_module.so";
/// Carries the sources; its lock file has their checksum.
const SOURCES: &str = "xtask/nginx-src";
const SOURCES_PACKAGE: &str = "nginx-src";

/// In one go with the Lua module: its LuaJIT takes the place of the other one, which `luajit` may have been.
const PACKAGES: &[Tool] = &[
    Tool {
        name: "nginx",
        probe: || nginx_version(Nginx::Debian.binary()),
        package: "nginx",
        need: Need::Nginx,
    },
    Tool {
        name: "nginx's sources for modules",
        probe: || exists("/usr/share/nginx/src/configure"),
        package: "nginx-dev",
        need: Need::Nginx,
    },
    Tool {
        name: "nginx's Lua module",
        probe: || exists("/usr/lib/nginx/modules/ngx_http_lua_module.so"),
        package: "libnginx-mod-http-lua",
        need: Need::Nginx,
    },
    Tool {
        name: "lua-resty-core",
        probe: || exists("/usr/share/lua/5.1/resty/core.lua"),
        package: "lua-resty-core",
        need: Need::Nginx,
    },
    Tool {
        name: "luajit of OpenResty",
        probe: || version("luajit", "-v"),
        package: "luajit2",
        need: Need::Nginx,
    },
    Tool {
        name: "nginx's JavaScript module",
        probe: || exists("/usr/lib/nginx/modules/ngx_http_js_module.so"),
        package: "libnginx-mod-http-js",
        need: Need::Nginx,
    },
    Tool {
        name: "HTTP/2 for Python",
        probe: || exists("/usr/lib/python3/dist-packages/h2/__init__.py"),
        package: "python3-h2",
        need: Need::Nginx,
    },
    Tool {
        name: "Prometheus' parser for Python",
        probe: || exists("/usr/lib/python3/dist-packages/prometheus_client/parser.py"),
        package: "python3-prometheus-client",
        need: Need::Nginx,
    },
    Tool {
        name: "luacheck",
        probe: || version("luacheck", "--version"),
        package: "lua-check",
        need: Need::Nginx,
    },
    Tool {
        name: "luarocks",
        probe: || version("luarocks", "--version"),
        package: "luarocks",
        need: Need::Nginx,
    },
];

impl Nginx {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Stable => "stable",
        }
    }

    /// Where its binary is, once it was brought.
    pub(crate) fn binary(self) -> PathBuf {
        match self {
            Self::Debian => "/usr/sbin/nginx".into(),
            Self::Stable => self.folder().join("nginx"),
        }
    }

    /// The module for it, once it was built.
    pub(crate) fn module(self) -> PathBuf {
        self.folder().join(MODULE)
    }

    pub(crate) fn folder(self) -> PathBuf {
        target().join("nginx").join(self.name())
    }

    fn sources(self) -> PathBuf {
        match self {
            Self::Debian => "/usr/share/nginx/src".into(),
            Self::Stable => self.folder().join("src"),
        }
    }

    /// Builds the module, and the nginx itself where it is none of the distribution's, each command run by `run`. What
    /// is up to date stays.
    pub(crate) fn build(self, tools: &Tools, run: &Runner) -> Result<()> {
        std::fs::create_dir_all(self.folder())
            .with_context(|| format!("make {}", self.folder().display()))?;
        if self == Self::Stable {
            build_stable(run)?;
        }
        let out = self.folder().join("module");
        let mut make = Command::new("make");
        tools.apply(&mut make);
        // The command that `hosts/nginx/README.md` has.
        run(make
            .current_dir(root().join("hosts/nginx"))
            .args(["-f", "Makefile.module", "-j2"])
            .arg(format!("NGINX={}", self.sources().display()))
            .arg(format!("BUILD={}", out.display())))?;
        let built = out.join("out").join(MODULE);
        // Renamed into its place: a running nginx may have the old one mapped.
        let fresh = self.folder().join("module.new");
        std::fs::copy(&built, &fresh)
            .and_then(|_| std::fs::rename(&fresh, self.module()))
            .with_context(|| format!("copy {} to {}", built.display(), self.module().display()))
    }

    /// What tells a test program which nginx it drives.
    pub(crate) fn apply(self, command: &mut Command) {
        command
            .env("PXG_NGINX", self.binary())
            .env("PXG_NGINX_MODULE", self.module());
    }
}

/// What tells the adapters of both where they are.
pub(crate) fn adapters(command: &mut Command) {
    for nginx in BOTH {
        let name = format!("NGINX_{}", nginx.name().to_uppercase());
        command.env(&name, nginx.binary());
        command.env(format!("{name}_MODULE"), nginx.module());
    }
}

/// Brings Debian's packages and the sources of the stable version.
pub(crate) fn bring() -> Result<()> {
    super::present(PACKAGES.iter())?;
    let sources = sources()?;
    println!(
        "nginx {}: sources found, {}",
        sources.version,
        sources.folder.display()
    );
    Ok(())
}

/// Builds the stable nginx, if the version that is there is another one. Its modules are those of a packaged nginx,
/// for what the tests compare; `--with-compat` lets the module load, which is configured with fewer.
fn build_stable(run: &Runner) -> Result<()> {
    let nginx = Nginx::Stable;
    let package = sources()?;
    let stamp = nginx.folder().join("version");
    let there = std::fs::read_to_string(&stamp).unwrap_or_default();
    let wanted = format!("{} {}", package.version, WITH.join(" "));
    if there == wanted && nginx.binary().is_file() {
        return Ok(());
    }
    let sources = nginx.sources();
    let _ = std::fs::remove_dir_all(&sources);
    run(Command::new("cp")
        .arg("-r")
        .arg(package.folder.join("nginx"))
        .arg(&sources))?;
    let prefix = nginx.folder().join("prefix");
    run(Command::new("auto/configure")
        .current_dir(&sources)
        .arg(format!("--prefix={}", prefix.display()))
        .args(WITH))?;
    run(Command::new("make").arg("-j2").current_dir(&sources))?;
    std::fs::rename(sources.join("objs/nginx"), nginx.binary())
        .context("move nginx to its place")?;
    // Last: what says the version is whole.
    std::fs::write(&stamp, wanted).context("note the version that was built")
}

/// The package with the sources, as Cargo unpacked it.
struct Package {
    folder: PathBuf,
    /// Nginx's own.
    version: String,
}

fn sources() -> Result<Package> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Found>,
    }
    #[derive(Deserialize)]
    struct Found {
        name: String,
        version: String,
        manifest_path: PathBuf,
    }
    let manifest = root().join(SOURCES).join("Cargo.toml");
    let mut cargo = Command::new("cargo");
    cargo
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .arg("--manifest-path")
        .arg(&manifest);
    let text = stdout_of(&mut cargo).with_context(|| {
        format!(
            "the crate {SOURCES_PACKAGE} cannot be fetched: see what `cargo fetch --locked --manifest-path {}` says",
            manifest.display()
        )
    })?;
    let metadata: Metadata = serde_json::from_str(&text).context("read cargo's metadata")?;
    let found = metadata
        .packages
        .into_iter()
        .find(|package| package.name == SOURCES_PACKAGE)
        .with_context(|| format!("{} asks for no {SOURCES_PACKAGE}", manifest.display()))?;
    let (_, version) = found
        .version
        .split_once('+')
        .with_context(|| format!("{} says no version of nginx", found.version))?;
    Ok(Package {
        version: version.to_owned(),
        folder: found
            .manifest_path
            .parent()
            .unwrap_or(Path::new("/"))
            .to_owned(),
    })
}

/// What `nginx -v` says, which is on its standard error.
fn nginx_version(binary: PathBuf) -> Option<String> {
    let output = Command::new(binary).arg("-v").output().ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().next()?.trim();
    output
        .status
        .success()
        .then(|| line.trim_start_matches("nginx version: ").to_owned())
}

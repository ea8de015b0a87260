//! Builds the probe guest from the sources that are compiled into this program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::rules::{go_sdk, sources};

/// Where the probe is built, and other libraries.
pub(crate) struct Workshop {
    /// Of the probe and its twin, which several runs may share.
    built: PathBuf,
    /// Of what is made for one run.
    dir: PathBuf,
    go: OnceLock<Option<PathBuf>>,
}

/// Runs of one process build one after the other.
static BUILDING: Mutex<()> = Mutex::new(());

fn building() -> MutexGuard<'static, ()> {
    BUILDING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workshop {
    /// Writes the sources below `built`.
    pub(crate) fn new(built: &Path, dir: &Path) -> Result<Self> {
        let _alone = building();
        for (name, text) in sources()
            .iter()
            .filter(|(n, _)| n.starts_with("probe/") || n.starts_with("include/"))
        {
            let to = built.join(name);
            if std::fs::read_to_string(&to).is_ok_and(|t| t == *text) {
                continue;
            }
            if let Some(folder) = to.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&to, text)?;
        }
        Ok(Self {
            built: built.to_path_buf(),
            dir: dir.to_path_buf(),
            go: OnceLock::new(),
        })
    }

    /// A build of the probe with these definitions, in a file of its own.
    pub(crate) fn probe(&self, name: &str, defines: &[&str]) -> Result<PathBuf> {
        let sources: Vec<PathBuf> = ["script.c", "record.c", "act.c", "extra.c", "probe.c"]
            .iter()
            .map(|f| self.built.join("probe").join(f))
            .collect();
        let mut command = Command::new("cc");
        command
            .args(self.same_anywhere())
            .args([
                "-std=c99",
                "-D_GNU_SOURCE",
                "-O1",
                "-g",
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
            ])
            .args(defines)
            .arg(format!("-I{}", self.built.join("include").display()))
            .args(&sources);
        self.compile(&self.built, name, command)
    }

    /// A copy of `probe` under a name that has it behave otherwise: `KEY=VALUE+KEY=VALUE`, see its README.
    pub(crate) fn variant(&self, probe: &Path, asks: &str) -> Result<PathBuf> {
        let to = self.dir.join(format!("libpxg_probe+{asks}.so"));
        if !to.exists() {
            std::fs::copy(probe, &to)
                .with_context(|| format!("cannot copy {} to {}", probe.display(), to.display()))?;
        }
        Ok(to)
    }

    /// The probe's twin in Go, on the Go SDK; None without Go on this machine.
    pub(crate) fn go_probe(&self) -> Result<Option<PathBuf>> {
        if let Some(built) = self.go.get() {
            return Ok(built.clone());
        }
        let built = self.build_go()?;
        Ok(self.go.get_or_init(|| built).clone())
    }

    fn build_go(&self) -> Result<Option<PathBuf>> {
        let _alone = building();
        let version = match Command::new("go").arg("version").output() {
            Ok(o) if o.status.success() => o.stdout,
            _ => return Ok(None),
        };
        let home = self.built.join("go");
        let twin = sources()
            .iter()
            .filter_map(|(n, t)| Some((n.strip_prefix("probe/go/")?, t)))
            .map(|(n, t)| (format!("conformance/probe/go/{n}"), t));
        let sdk = go_sdk()
            .iter()
            .map(|(n, t)| (format!("guest-sdk/go/{n}"), t));
        let mut digest = Sha256::new();
        digest.update(version);
        for (name, text) in twin.chain(sdk) {
            digest.update(&name);
            digest.update(text);
            let to = home.join(name);
            if std::fs::read_to_string(&to).is_ok_and(|t| t == **text) {
                continue;
            }
            if let Some(folder) = to.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&to, text)?;
        }
        let digest = hex(&digest.finalize());
        let out = self.built.join("libpxg_probe_go.so");
        let stamp = out.with_extension("stamp");
        if out.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|s| s == digest) {
            return Ok(Some(out));
        }
        // A library that a process has mapped is never written to.
        let _ = std::fs::remove_file(&out);
        let done = Command::new("go")
            .args(["build", "-buildmode=c-shared", "-o"])
            .arg(&out)
            .arg(".")
            .current_dir(home.join("conformance/probe/go"))
            .env("GOFLAGS", "-mod=mod -buildvcs=false")
            .env("GOWORK", "off")
            .output()
            .context("cannot run go")?;
        if !done.status.success() {
            bail!(
                "the probe in Go does not build:\n{}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
        std::fs::write(stamp, digest)?;
        Ok(Some(out))
    }

    /// Another small library, from this source text.
    pub(crate) fn library(&self, name: &str, source: &str, flags: &[&str]) -> Result<PathBuf> {
        let file = self.dir.join(format!("{name}.c"));
        std::fs::write(&file, source)?;
        let mut command = Command::new("cc");
        command
            .args(["-std=gnu99", "-O1", "-g", "-shared", "-fPIC"])
            .args(flags)
            .arg(format!("-I{}", self.built.join("include").display()))
            .arg(&file);
        self.compile(&self.dir, name, command)
    }

    /// Names no folder in what is built: the same sources make the same file, wherever.
    fn same_anywhere(&self) -> [String; 2] {
        [&self.built, &self.dir].map(|dir| format!("-ffile-prefix-map={}=.", dir.display()))
    }

    fn compile(&self, folder: &Path, name: &str, mut command: Command) -> Result<PathBuf> {
        let _alone = building();
        let out = folder.join(format!("lib{name}.so"));
        let stamp = out.with_extension("stamp");
        let digest = self.digest(&command);
        if out.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|s| s == digest) {
            return Ok(out);
        }
        // A library that a process has mapped is never written to.
        let _ = std::fs::remove_file(&out);
        let done = command
            .current_dir(folder)
            .arg("-o")
            .arg(&out)
            .arg("-lpthread")
            .output()
            .context("cannot run cc; the probe needs a C compiler")?;
        if !done.status.success() {
            bail!(
                "{name} does not build:\n{}",
                String::from_utf8_lossy(&done.stderr)
            );
        }
        std::fs::write(stamp, digest)?;
        Ok(out)
    }

    fn digest(&self, command: &Command) -> String {
        let mut h = Sha256::new();
        for (n, t) in sources().iter().filter(|(n, _)| n.starts_with("include/")) {
            h.update(n);
            h.update(t);
        }
        for a in command.get_args() {
            h.update(a.as_encoded_bytes());
            if let Ok(text) = std::fs::read(a) {
                h.update(text);
            }
        }
        hex(&h.finalize())
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// The SHA-256 of a file.
pub(crate) fn sha256(path: &Path) -> String {
    hex(&Sha256::digest(std::fs::read(path).unwrap_or_default()))
}

//! The guests of the self-test: what they are, and how they are built.
//!
//! A source below `mutants/guest` lists what can be built from it in comments of this form, one a line:
//!
//! ```text
//! mutant NAME RULE [also RULE...]: what is wrong
//! clean NAME [warns RULE...]: what it shows
//! ```
//!
//! A C source is compiled with `-DM_name`, a Go one with the name in `main.mutant`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::rules;

/// What can be built.
#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    /// The rule that must kill it; none for a clean sample.
    pub(crate) rule: Option<String>,
    /// Other rules that it breaks by what it does; of a clean sample, warnings that its language's runtime earns.
    pub(crate) also: Vec<String>,
    pub(crate) about: String,
    pub(crate) file: &'static str,
}

/// All of them.
pub(crate) fn all() -> &'static [Mutant] {
    static ALL: OnceLock<Vec<Mutant>> = OnceLock::new();
    ALL.get_or_init(|| {
        rules::sources()
            .iter()
            .filter(|(file, _)| file.starts_with("guest/"))
            .flat_map(|(file, text)| text.lines().filter_map(|l| parse(l, file)))
            .collect()
    })
}

fn parse(line: &str, file: &'static str) -> Option<Mutant> {
    let line = line
        .trim()
        .trim_start_matches(['/', '*', ' '])
        .trim_end_matches(['/', '*', ' ']);
    let (head, about) = line.split_once(": ")?;
    let mut words = head.split_whitespace();
    match words.next()? {
        "mutant" => {
            let name = words.next()?.to_string();
            let rule = words.next().filter(|w| w.starts_with("PXG-"))?.to_string();
            let also = match words.next() {
                Some("also") => words.map(str::to_string).collect(),
                _ => Vec::new(),
            };
            Some(Mutant {
                name,
                rule: Some(rule),
                also,
                about: about.to_string(),
                file,
            })
        }
        "clean" => {
            let name = words.next()?.to_string();
            let also: Vec<String> = match words.next() {
                None => Vec::new(),
                Some("warns") => words.map(str::to_string).collect(),
                Some(_) => return None,
            };
            Some(Mutant {
                name,
                rule: None,
                also,
                about: about.to_string(),
                file,
            })
        }
        _ => None,
    }
}

/// Writes the sources below `dir`.
pub(crate) fn unpack(dir: &Path) -> Result<()> {
    for (name, text) in rules::sources() {
        let to = dir.join(name);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

impl Mutant {
    pub(crate) fn is_go(&self) -> bool {
        self.file.ends_with(".go")
    }

    /// Builds it below `dir`, where the sources are; returns the library, in a folder of its own with its settings.
    pub(crate) fn build(&self, dir: &Path) -> Result<PathBuf> {
        let folder = dir.join("built").join(&self.name);
        std::fs::create_dir_all(&folder)?;
        let out = folder.join(format!("{}.so", self.name));
        let source = dir.join(self.file);
        let include = dir.join("include");
        let mut c = if self.is_go() {
            let mut c = Command::new("go");
            c.args(["build", "-buildmode=c-shared", "-o"])
                .arg(&out)
                .arg(format!("-ldflags=-X main.mutant={}", self.name))
                .arg(".")
                .current_dir(source.parent().unwrap_or(dir))
                .env("CGO_CFLAGS", format!("-O1 -g -I{}", include.display()))
                .env("GOFLAGS", "-mod=mod -buildvcs=false")
                .env("GOWORK", "off");
            c
        } else {
            let cpp = Path::new(self.file).extension().is_some_and(|e| e == "cc");
            let mut c = Command::new(if cpp { "c++" } else { "cc" });
            c.args([
                "-O1",
                "-g",
                "-shared",
                "-fPIC",
                "-fvisibility=hidden",
                "-fno-builtin-free",
            ])
            .arg(if cpp { "-std=c++11" } else { "-std=gnu99" })
            .arg(format!("-DM_{}=1", self.name.replace('-', "_")))
            .arg(format!("-I{}", include.display()))
            .arg(&source)
            .arg("-o")
            .arg(&out)
            .arg("-lpthread");
            c
        };
        let done = c.output().with_context(|| {
            format!(
                "cannot run {:?}; the self-test needs a C compiler and Go",
                c.get_program()
            )
        })?;
        if !done.status.success() {
            bail!(
                "{} does not build:\n{}",
                self.name,
                String::from_utf8_lossy(&done.stderr)
            );
        }
        let settings = source.with_file_name("pxg-conformance.toml");
        if settings.is_file() {
            std::fs::copy(settings, folder.join("pxg-conformance.toml"))?;
        }
        Ok(out)
    }
}

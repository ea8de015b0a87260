//! The guests of the self-test: what they are, and how they are built.
//!
//! A source below `mutants/guest` lists what can be built from it in comments of this form, one a line:
//!
//! ```text
//! mutant NAME RULE [ends] [survives] [needs CASE] [also RULE...]: what is wrong
//! clean NAME [warns RULE...]: what it shows
//! ```
//!
//! `ends`: what is wrong is that the host ends or stalls, so that this alone shows it. `survives`: a known gap; no case
//! finds it yet, and the self-test of hosts says so each time.
//!
//! `needs` names the case without which nothing finds the defect: where a machine does not allow what it checks with, the
//! self-test says so of the mutant instead of calling it killed or not.
//!
//! A C source is compiled with `-DM_name`. The Go one is built once and finds its defect in the name of its own file:
//! linking a Go library takes longer than everything else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};
use sha2::{Digest as _, Sha256};

use crate::rules;

/// What can be built.
#[derive(Clone, Debug)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    /// The rule that must kill it; none for a clean sample.
    pub(crate) rule: Option<String>,
    /// Other rules that it breaks by what it does; of a clean sample, warnings that its language's runtime earns.
    pub(crate) also: Vec<String>,
    /// The end of the process, or its silence, is the defect.
    pub(crate) ends: bool,
    /// No case finds it yet.
    pub(crate) survives: bool,
    /// The case without which nothing finds it.
    pub(crate) needs: Option<String>,
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

/// The mutants of the mini host: one switch each. Its list is a string of C, so a line is in quotes.
pub(crate) fn of_hosts() -> &'static [Mutant] {
    static ALL: OnceLock<Vec<Mutant>> = OnceLock::new();
    ALL.get_or_init(|| {
        rules::sources()
            .iter()
            .filter(|(file, _)| *file == "minihost/src/mutants.inc")
            .flat_map(|(file, text)| {
                text.lines().filter_map(move |l| {
                    let l = l.trim().trim_start_matches('"');
                    parse(l.trim_end_matches('"').trim_end_matches("\\n"), file)
                })
            })
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
            let mut next = words.next();
            let (mut ends, mut survives) = (false, false);
            while let Some(word @ ("ends" | "survives")) = next {
                ends |= word == "ends";
                survives |= word == "survives";
                next = words.next();
            }
            let mut needs = None;
            if next == Some("needs") {
                needs = Some(words.next()?.to_string());
                next = words.next();
            }
            let also = match next {
                Some("also") => words.map(str::to_string).collect(),
                None => Vec::new(),
                Some(_) => return None,
            };
            Some(Mutant {
                name,
                rule: Some(rule),
                also,
                ends,
                survives,
                needs,
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
                ends: false,
                survives: false,
                needs: None,
                about: about.to_string(),
                file,
            })
        }
        _ => None,
    }
}

/// Where guests are built. What a former run left there is used again if its sources and compiler were the same.
pub(crate) struct Workshop {
    dir: PathBuf,
    go: OnceLock<Result<PathBuf, String>>,
    /// Of the sources and the compilers.
    digest: String,
}

impl Workshop {
    /// Writes the sources below `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let mut digest = Sha256::new();
        for (name, text) in rules::sources() {
            let to = dir.join(name);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&to, text).with_context(|| format!("cannot write {}", to.display()))?;
            digest.update(name);
            digest.update(text);
        }
        for (program, args) in [("cc", "--version"), ("c++", "--version"), ("go", "version")] {
            // One that is missing is an error where it is needed.
            if let Ok(out) = Command::new(program).arg(args).output() {
                digest.update(&out.stdout);
            }
        }
        Ok(Self {
            dir: dir.to_path_buf(),
            go: OnceLock::new(),
            digest: hex(&digest.finalize()),
        })
    }

    /// Builds `m`; returns the library, in a folder of its own with its settings.
    pub(crate) fn build(&self, m: &Mutant) -> Result<PathBuf> {
        let folder = self.dir.join("built").join(&m.name);
        let out = folder.join(format!("{}.so", m.name));
        let source = self.dir.join(m.file);
        if m.is_go() {
            let built = self
                .go
                .get_or_init(|| self.build_go(&source).map_err(|e| format!("{e:#}")));
            let built = built.as_ref().map_err(|e| anyhow!("{e}"))?;
            std::fs::create_dir_all(&folder)?;
            // A library that is mapped is never written to.
            let _ = std::fs::remove_file(&out);
            std::fs::copy(built, &out)?;
        } else {
            self.unless_built(&out, || self.c_compiler(m, &source, &out))?;
        }
        let settings = source.with_file_name("pxg-conformance.toml");
        if settings.is_file() {
            std::fs::copy(settings, folder.join("pxg-conformance.toml"))?;
        }
        Ok(out)
    }

    fn unless_built(&self, out: &Path, command: impl FnOnce() -> Command) -> Result<()> {
        let stamp = out.with_extension("stamp");
        if out.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|s| s == self.digest) {
            return Ok(());
        }
        if let Some(folder) = out.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut c = command();
        let done = c.output().with_context(|| {
            format!(
                "cannot run {:?}; the self-test needs a C compiler and Go",
                c.get_program()
            )
        })?;
        if !done.status.success() {
            bail!(
                "{} does not build:\n{}",
                out.display(),
                String::from_utf8_lossy(&done.stderr)
            );
        }
        std::fs::write(stamp, &self.digest)?;
        Ok(())
    }

    fn build_go(&self, source: &Path) -> Result<PathBuf> {
        let out = self.dir.join("built").join("go.so");
        self.unless_built(&out, || {
            let mut c = Command::new("go");
            c.args(["build", "-buildmode=c-shared", "-o"])
                .arg(&out)
                .arg(".")
                .current_dir(source.parent().unwrap_or(&self.dir))
                .env("CGO_CFLAGS", format!("-O1 -g -I{}", self.include()))
                .env("GOFLAGS", "-mod=mod -buildvcs=false")
                .env("GOWORK", "off");
            c
        })?;
        Ok(out)
    }

    fn include(&self) -> String {
        self.dir.join("include").display().to_string()
    }

    fn c_compiler(&self, m: &Mutant, source: &Path, out: &Path) -> Command {
        let cpp = source.extension().is_some_and(|e| e == "cc");
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
        .arg(format!("-DM_{}=1", m.name.replace('-', "_")))
        .arg(format!("-I{}", self.include()))
        .arg(source)
        .arg("-o")
        .arg(out)
        .arg("-lpthread");
        c
    }
}

impl Mutant {
    pub(crate) fn is_go(&self) -> bool {
        self.file.ends_with(".go")
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_mutant_with_a_name_of_its_own() {
        let (_, list) = rules::sources()
            .iter()
            .find(|(file, _)| *file == "minihost/src/mutants.inc")
            .expect("the mini host has a list");
        let lines = list.lines().filter(|l| l.starts_with('"'));
        assert_eq!(of_hosts().len(), lines.count(), "a line that is no mutant");
        for (i, m) in of_hosts().iter().enumerate() {
            let again = of_hosts()[..i].iter().any(|x| x.name == m.name);
            assert!(!again, "{} stands twice", m.name);
            assert!(!m.also.contains(m.rule.as_ref().expect("a rule")));
        }
    }
}

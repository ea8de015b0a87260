//! Builds what the demonstration, the benchmarks and the soak test run, and runs it.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::bootstrap::Tools;
use crate::proc::{Group, run_logged};
use crate::root::{logs, root, target};

/// What was built.
pub(crate) struct Lab<'a> {
    tools: &'a Tools,
    guests: PathBuf,
    release: PathBuf,
}

/// A step of the build: what it builds, and how.
pub(crate) type Step = (&'static str, Command);

impl<'a> Lab<'a> {
    pub(crate) fn new(tools: &'a Tools) -> Self {
        Self {
            tools,
            guests: target().join("guests"),
            release: target().join("release"),
        }
    }

    /// The host, the laboratory and the example guests in all languages.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut cargo = self.command(".", "cargo");
        cargo.args(["build", "--release", "--locked"]);
        cargo.args([
            "-p",
            "proxy-golang-host",
            "-p",
            "body-rewrite",
            "-p",
            "pxg-lab",
        ]);
        let mut make = self.command("guest-sdk/c", "make");
        make.arg(format!("BUILD={}", self.guests.join("c").display()));
        let go = self.go_library("guest-sdk/go", "./examples/bundle", &self.go_examples());
        vec![
            ("pxg-host and the filters in Rust", cargo),
            ("the filters in C", make),
            ("the filters in Go", go),
        ]
    }

    /// The guests that only benchmarks need.
    pub(crate) fn bench_steps(&self) -> Vec<Step> {
        let go = self.go_library("xtask/lab/guests", ".", &self.go_bench());
        vec![("the benchmark's filters in Go", go)]
    }

    /// Builds with a line for each step; its output is shown only if it fails.
    pub(crate) fn build(&self, steps: Vec<Step>) -> Result<()> {
        let log = logs().join("lab-build.log");
        let _ = std::fs::remove_file(&log);
        for (what, mut command) in steps {
            print!("building {what} ... ");
            std::io::stdout().flush()?;
            let begin = Instant::now();
            let status = run_logged(&mut command, &log)?;
            if !status.success() {
                println!("failed");
                bail!("{command:?}: {status}\n{}", end_of(&log));
            }
            println!("{:.1} s", begin.elapsed().as_secs_f64());
        }
        Ok(())
    }

    pub(crate) fn host(&self) -> PathBuf {
        self.release.join("pxg-host")
    }

    pub(crate) fn go_examples(&self) -> PathBuf {
        self.guests.join("go-examples.so")
    }

    pub(crate) fn go_bench(&self) -> PathBuf {
        self.guests.join("go-bench.so")
    }

    pub(crate) fn c(&self, name: &str) -> PathBuf {
        self.guests.join("c").join(name)
    }

    pub(crate) fn rust(&self) -> PathBuf {
        self.release.join("libbody_rewrite.so")
    }

    /// Runs a command of the laboratory with this terminal. An error if it fails.
    pub(crate) fn run(command: &mut Command) -> Result<()> {
        let status = Group::spawn(command)?.wait()?;
        let what = command.get_args().next().unwrap_or_default();
        ensure!(status.success(), "{}: {status}", what.display());
        Ok(())
    }

    /// The laboratory, told what was built.
    pub(crate) fn laboratory(&self) -> Command {
        let mut command = self.command(".", self.release.join("pxg-lab"));
        command
            .env("PXG_LAB_HOST", self.host())
            .env("PXG_LAB_GO", self.go_examples())
            .env("PXG_LAB_GO_BENCH", self.go_bench())
            .env("PXG_LAB_RUST", self.rust())
            .env("PXG_LAB_C", self.c("header-policy.so"));
        command
    }

    /// `go build`, and nothing else.
    pub(crate) fn go_library(&self, folder: &str, package: &str, library: &Path) -> Command {
        let mut go = self.command(folder, "go");
        go.args(["build", "-buildmode=c-shared", "-o"]);
        go.arg(library).arg(package);
        go
    }

    /// A command in `folder` of the workspace, with the tools on its path.
    pub(crate) fn command(&self, folder: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(root().join(folder));
        self.tools.apply(&mut command);
        command
    }
}

/// The last lines of a log.
fn end_of(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(30)..];
    format!("{}\n(all of it: {})", shown.join("\n"), log.display())
}

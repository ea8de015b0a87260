//! Builds what the demonstration, the benchmarks and the soak test run, and runs it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::bootstrap::Tools;
use crate::bootstrap::envoy::Release;
use crate::bootstrap::nginx::Nginx;
use crate::proc::{Group, run_logged};
use crate::root::{logs, root, target};

/// What was built.
pub(crate) struct Lab<'a> {
    tools: &'a Tools,
    guests: PathBuf,
    /// What cargo built.
    built: PathBuf,
}

/// The host, the filters in Rust, the laboratory.
const PACKAGES: [&str; 3] = ["proxy-golang-host", "body-rewrite", "pxg-lab"];

/// A message of `cargo build --message-format=json`, as far as it matters.
#[derive(Default, Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// A step of the build: what it builds, and how.
pub(crate) type Step = (&'static str, Command);

impl<'a> Lab<'a> {
    pub(crate) fn new(tools: &'a Tools) -> Self {
        Self::of(tools, "release")
    }

    /// The same as it is built for tests: with the assertions of the debug profile, and without a second build of all
    /// dependencies.
    pub(crate) fn for_tests(tools: &'a Tools) -> Self {
        Self::of(tools, "debug")
    }

    fn of(tools: &'a Tools, folder: &str) -> Self {
        Self {
            tools,
            guests: target().join("guests"),
            built: target().join(folder),
        }
    }

    /// The host, the laboratory and the example guests in all languages.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps = vec![("pxg-host and the filters in Rust", self.cargo())];
        steps.extend(self.guest_steps());
        steps
    }

    /// The same and the module for Envoy.
    pub(crate) fn steps_for_envoy(&self) -> Vec<Step> {
        let mut cargo = self.cargo();
        cargo.args(["-p", "proxy-golang-envoy"]);
        let mut steps = vec![("the module for Envoy and the filters in Rust", cargo)];
        steps.extend(self.guest_steps());
        steps
    }

    fn cargo(&self) -> Command {
        let mut cargo = self.command(".", "cargo");
        cargo.args(["build", "--release", "--locked"]);
        cargo.args(PACKAGES.iter().flat_map(|name| ["-p", name]));
        // Incremental builds are cut into more units, and inline less: a guest took 13 % more instructions.
        cargo.env("CARGO_INCREMENTAL", "0");
        cargo
    }

    /// The example guests in C and Go.
    pub(crate) fn guest_steps(&self) -> Vec<Step> {
        let mut make = self.command("guest-sdk/c", "make");
        make.arg(format!("BUILD={}", self.guests.join("c").display()));
        let go = self.go_library("guest-sdk/go", "./examples/bundle", &self.go_examples());
        vec![("the filters in C", make), ("the filters in Go", go)]
    }

    /// The guests that only benchmarks need.
    pub(crate) fn bench_steps(&self) -> Vec<Step> {
        let go = self.go_library("xtask/lab/guests", ".", &self.go_bench());
        vec![("the benchmark's filters in Go", go)]
    }

    /// Builds all that is in Rust and the host's benches of these names; where each bench is. In one go: for a bench the
    /// libraries have other features, and would all be built twice.
    pub(crate) fn benches(&self, names: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
        let mut cargo = self.cargo();
        cargo.args(["--message-format=json", "--lib", "--bins"]);
        cargo.args(names.iter().flat_map(|name| ["--bench", name]));
        print!("building pxg-host, the filters in Rust and the benches ... ");
        std::io::stdout().flush()?;
        let begin = Instant::now();
        let done = cargo.stdin(Stdio::null()).output().context("start cargo")?;
        if !done.status.success() {
            println!("failed");
            bail!(
                "{cargo:?}: {}\n{}",
                done.status,
                String::from_utf8_lossy(&done.stderr)
            );
        }
        println!("{:.1} s", begin.elapsed().as_secs_f64());
        let mut built = BTreeMap::new();
        for line in String::from_utf8_lossy(&done.stdout).lines() {
            let message: Message = serde_json::from_str(line).unwrap_or_default();
            if let (Some(target), Some(file)) = (message.target, message.executable) {
                built.insert(target.name, file);
            }
        }
        Ok(built)
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
        self.built.join("pxg-host")
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
        self.built.join("libbody_rewrite.so")
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
        let mut command = self.command(".", self.built.join("pxg-lab"));
        command
            .env("PXG_LAB_HOST", self.host())
            .env("PXG_LAB_GO", self.go_examples())
            .env("PXG_LAB_GO_BENCH", self.go_bench())
            .env("PXG_LAB_RUST", self.rust())
            .env("PXG_LAB_C", self.c("header-policy.so"));
        command
    }

    /// The demonstration in pxg-host.
    pub(crate) fn demo(&self) -> Command {
        let mut command = self.laboratory();
        command.arg("demo");
        command
    }

    /// Builds this nginx and the module for it, with a line.
    pub(crate) fn build_nginx(&self, nginx: Nginx) -> Result<()> {
        let log = logs().join("nginx-build.log");
        let _ = std::fs::remove_file(&log);
        print!("building the module for {}'s nginx ... ", nginx.name());
        std::io::stdout().flush()?;
        let begin = Instant::now();
        nginx.build(self.tools, &|command: &mut Command| {
            let status = run_logged(command, &log)?;
            ensure!(status.success(), "{command:?}: {status}\n{}", end_of(&log));
            Ok(())
        })?;
        println!("{:.1} s", begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// The demonstration in this nginx.
    pub(crate) fn demo_in_nginx(&self, nginx: Nginx) -> Command {
        let mut command = self.laboratory();
        command
            .arg("demo-nginx")
            .env("PXG_LAB_NGINX", nginx.binary())
            .env("PXG_LAB_NGINX_MODULE", nginx.module());
        command
    }

    /// The demonstration in Debian's nginx, with the filters called from Lua.
    pub(crate) fn demo_in_openresty(&self) -> Command {
        let mut command = self.demo_in_nginx(Nginx::Debian);
        command.env("PXG_LAB_LUA", root().join("hosts/openresty/lib"));
        command
    }

    /// The demonstration in this Envoy.
    pub(crate) fn demo_in_envoy(&self, envoy: Release) -> Command {
        let mut command = self.laboratory();
        command
            .arg("demo-envoy")
            .env("PXG_LAB_ENVOY", envoy.binary())
            .env("PXG_LAB_ENVOY_MODULE", &self.built);
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

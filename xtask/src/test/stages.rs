//! The stages, in one table.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::counts::{self, Counts};
use super::{Run, conformance, files, generated, licences, links, nginx};
use crate::bootstrap::envoy;
use crate::bootstrap::nginx::BOTH;
use crate::lab::Lab;
use crate::proc::run_logged;
use crate::root::{root, target};

/// Reads in a log how many tests ran.
pub(super) type Reader = fn(&str) -> Counts;

/// A stage.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// Files and folders of the workspace without which there is no such stage.
    needs: &'static [&'static str],
    pub(super) run: fn(&Run) -> Result<()>,
    /// What is counted, and how it is read in the log.
    pub(super) counts: Option<(&'static str, Reader)>,
}

impl Stage {
    pub(super) fn exists(&self) -> bool {
        let there = self.needs.iter().all(|path| root().join(path).exists());
        there && (self.name != LOOM || !loom_tests().is_empty())
    }
}

const GO: &str = "guest-sdk/go";
const LOOM: &str = "loom";
const ENVOY: &str = "envoy";
const NGINX_BUILD: &str = "nginx-build";
const NGINX: &str = "nginx";
const OPENRESTY: &str = "openresty";
const SUITE_NGINX: &str = "conformance-nginx";
const LAYER: &str = "conformance-layer";
const DEMO: &str = "demo";
/// Lets cargo test leave out what the stage `envoy` runs.
const IN_ENVOYS: &str = "--skip 1.39.3:: --skip 1.40.0::";
/// The stages that need Envoys.
pub(super) const WITH_ENVOY: [&str; 3] = [ENVOY, DEMO, LAYER];
/// The stages that need nginx.
pub(super) const WITH_NGINX: [&str; 6] = [NGINX_BUILD, NGINX, OPENRESTY, SUITE_NGINX, LAYER, DEMO];

/// Quick ones first.
pub(super) const STAGES: &[Stage] = &[
    Stage {
        name: "rustfmt",
        about: "Rust sources are formatted",
        needs: &[],
        run: |c| c.run(".", "cargo fmt --all --check -- --color never"),
        counts: None,
    },
    Stage {
        name: "gofmt",
        about: "Go sources are formatted",
        needs: &["guest-sdk/go/go.mod"],
        run: gofmt,
        counts: None,
    },
    Stage {
        name: "clang-format",
        about: "C sources are formatted, except generated ones",
        needs: &["guest-sdk/c"],
        run: clang_format,
        counts: None,
    },
    Stage {
        name: "build",
        about: "the workspace with its tests compiles",
        needs: &[],
        run: |c| c.build(),
        counts: None,
    },
    Stage {
        name: "gen",
        about: "generated files are up to date, the ABI is as the spec records it, rules are well-formed",
        needs: &[],
        run: generated_files,
        counts: None,
    },
    Stage {
        name: "links",
        about: "relative links and anchors of all Markdown files lead somewhere",
        needs: &[],
        run: links::check,
        counts: None,
    },
    Stage {
        name: "licences",
        about: "licences, bans and sources of dependencies are those of deny.toml",
        needs: &["deny.toml"],
        run: licences::check,
        counts: None,
    },
    Stage {
        name: "clippy",
        about: "clippy on all targets, warnings denied",
        needs: &[],
        run: |c| {
            c.run(
                ".",
                "cargo clippy --workspace --all-targets --locked -- -D warnings",
            )
        },
        counts: None,
    },
    Stage {
        name: "go-vet",
        about: "go vet",
        needs: &["guest-sdk/go/go.mod"],
        run: |c| c.run(GO, "go vet ./..."),
        counts: None,
    },
    Stage {
        name: "c-guests",
        about: "the C guests compile without a warning and export one symbol, and their tests pass, by gcc and clang",
        needs: &["guest-sdk/c/Makefile"],
        run: c_guests,
        counts: None,
    },
    Stage {
        name: "rust-tests",
        about: "cargo test of the whole workspace but what is in the stage envoy, documentation examples included",
        needs: &[],
        run: |c| {
            let all = format!("{} --no-fail-fast -- {IN_ENVOYS}", c.cargo("test", ""));
            c.finish_retrying(&mut c.line(".", &all), |failed| {
                // These drive the proxy; the others depend on nothing but themselves.
                (failed.program == "tests/proxy/main.rs").then(|| c.test("proxy", &failed.name))
            })?;
            some_ran(c, counts::cargo)
        },
        counts: Some(("Rust tests", counts::cargo)),
    },
    Stage {
        name: ENVOY,
        about: "guests in real Envoys of each supported version: every phase, every fault, updates and restarts",
        needs: &["hosts/envoy"],
        run: |c| {
            c.build()?;
            let in_folder = |mut command: Command| {
                command.env("PXG_ENVOY_DIR", envoy::folder());
                command
            };
            let all = c.line(".", &c.cargo("test", "--test envoy"));
            c.finish_retrying(&mut in_folder(all), |failed| {
                (failed.program == "tests/envoy/main.rs")
                    .then(|| in_folder(c.test("envoy", &failed.name)))
            })?;
            some_ran(c, counts::cargo)
        },
        counts: Some(("Rust tests", counts::cargo)),
    },
    Stage {
        name: NGINX_BUILD,
        about: "the stable nginx from its sources, and the module for it and for Debian's, warnings denied",
        needs: &["hosts/nginx"],
        run: nginx::build,
        counts: None,
    },
    Stage {
        name: "nginx-engine",
        about: "the engine of the module for nginx: its unit tests under valgrind",
        needs: &["hosts/nginx/engine"],
        run: nginx::engine,
        counts: None,
    },
    Stage {
        name: NGINX,
        about: "guests in the nginx of each version: all tests of the module, and that it does no harm",
        needs: &["hosts/nginx/tests"],
        run: nginx::host,
        counts: Some(("Python tests", counts::python)),
    },
    Stage {
        name: OPENRESTY,
        about: "guests called from Lua in Debian's nginx, and luacheck",
        needs: &["hosts/openresty/tests"],
        run: nginx::openresty,
        counts: Some(("Python tests", counts::python)),
    },
    Stage {
        name: LOOM,
        about: "loom: every interleaving of the engine's token table and queues",
        needs: &["host-ref"],
        run: loom,
        counts: Some(("Rust tests", counts::cargo)),
    },
    Stage {
        name: "go-tests",
        about: "go test of the SDK and its examples",
        needs: &["guest-sdk/go/go.mod"],
        run: |c| go_test(c, &["./..."], &[]),
        counts: Some(("Go tests", counts::go)),
    },
    Stage {
        name: "go-race",
        about: "go test -race of the packages without cgo",
        needs: &["guest-sdk/go/go.mod"],
        run: go_race,
        counts: Some(("Go tests", counts::go)),
    },
    Stage {
        name: "conformance-selftest",
        about: "each rule of guests has a case and a mutant, and each mutant is killed by its own rule",
        needs: &["conformance", "guest-sdk/go/go.mod"],
        run: conformance::selftest,
        counts: None,
    },
    Stage {
        name: "conformance-guests",
        about: "the example guests of all languages are conformant at the highest level",
        needs: &["conformance", "guest-sdk"],
        run: conformance::guests,
        counts: None,
    },
    Stage {
        name: "conformance-hosts",
        about: "pxg-host and the mini host in C pass all cases of hosts",
        needs: &["conformance/minihost", "host-ref", "guest-sdk/go/go.mod"],
        run: conformance::hosts,
        counts: None,
    },
    Stage {
        name: SUITE_NGINX,
        about: "the nginx of each version with the module, and OpenResty's way, pass all cases of hosts",
        needs: &["conformance/adapters/openresty.toml", "hosts/nginx"],
        run: conformance::nginx,
        counts: None,
    },
    Stage {
        name: LAYER,
        about: "the layer finds nothing between hosts and guests: the cases of hosts, and the example guests at work",
        needs: &["conformance/layer", "hosts/envoy", "guest-sdk"],
        run: conformance::layer,
        counts: None,
    },
    Stage {
        name: "conformance-host-selftest",
        about: "each mutant of the mini host is killed by its own rule, and breaks no other than its line says",
        needs: &["conformance/minihost", "guest-sdk/go/go.mod"],
        run: conformance::host_selftest,
        counts: None,
    },
    Stage {
        name: "soak",
        about: "the proxy under load for 5 s, reloaded and with clients that give up; every answer checked",
        needs: &[],
        run: |c| {
            c.build()?;
            crate::soak::stage(c.tools, |command| c.finish(command))
        },
        counts: None,
    },
    Stage {
        name: DEMO,
        about: "the demonstration in pxg-host, Envoy, each nginx, and from Lua, whose checks all hold",
        needs: &["xtask/lab"],
        run: |c| {
            let lab = Lab::for_tests(c.tools);
            c.build()?;
            for (_, mut command) in lab.guest_steps() {
                c.finish(&mut command)?;
            }
            c.finish(&mut lab.demo())?;
            let [.., newest] = envoy::RELEASES;
            c.finish(&mut lab.demo_in_envoy(newest))?;
            // The stage nginx-build has built them.
            BOTH.iter()
                .try_for_each(|nginx| c.finish(&mut lab.demo_in_nginx(*nginx)))?;
            c.finish(&mut lab.demo_in_openresty())
        },
        counts: None,
    },
    Stage {
        name: "rustdoc",
        about: "documentation builds, warnings denied",
        needs: &[],
        run: |c| {
            let line = "cargo doc --workspace --no-deps --locked --document-private-items";
            c.run_with(
                ".",
                line,
                &[(
                    "RUSTDOCFLAGS",
                    "-D warnings -A rustdoc::private_intra_doc_links",
                )],
            )
        },
        counts: None,
    },
];

fn gofmt(c: &Run) -> Result<()> {
    let output = c.command(GO, "gofmt").args(["-l", "-s", "."]).output();
    let output = output.context("run gofmt")?;
    let text = String::from_utf8_lossy(&output.stdout);
    c.say(&text)?;
    c.say(&String::from_utf8_lossy(&output.stderr))?;
    ensure!(
        output.status.success() && text.trim().is_empty(),
        "these files are not formatted: run `gofmt -s -w .` in {GO}"
    );
    Ok(())
}

fn clang_format(c: &Run) -> Result<()> {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in files(&[".c", ".h"])? {
        // Generated files and their pieces keep the generator's width.
        if generated(&file)? || file.starts_with("xtask/src/gen") {
            continue;
        }
        seen += 1;
        let mut command = c.command(".", "clang-format");
        command.args(["--dry-run", "-Werror"]).arg(&file);
        let output = command.output().context("run clang-format")?;
        if !output.status.success() {
            let faults = String::from_utf8_lossy(&output.stderr);
            let first = faults.lines().next().unwrap_or_default();
            c.say(first)?;
            wrong.push(file.display().to_string());
        }
    }
    ensure!(seen > 0, "no C source found");
    ensure!(
        wrong.is_empty(),
        "not formatted: run `clang-format -i {}`",
        wrong.join(" ")
    );
    Ok(())
}

fn generated_files(c: &Run) -> Result<()> {
    c.build()?;
    // This program: its file may have been built anew by now.
    let mut command = c.command(".", "/proc/self/exe");
    command
        .args(["gen", "--check"])
        .env("PXG_HOST", target().join("debug/pxg-host"));
    c.finish(&mut command)
}

fn c_guests(c: &Run) -> Result<()> {
    for compiler in ["gcc", "clang"] {
        let folder = target().join("c-guests").join(compiler);
        let mut command = c.command("guest-sdk/c", "make");
        command
            .args(["--always-make", "all", "check", "CFLAGS=-O2 -g -Werror"])
            .arg(format!("CC={compiler}"))
            .arg(format!("BUILD={}", folder.display()));
        c.finish(&mut command)?;
        let mut libraries = 0;
        for entry in std::fs::read_dir(&folder).context("read what make built")? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "so") {
                one_symbol(c, &path)?;
                libraries += 1;
            }
        }
        ensure!(libraries > 0, "make built no guest in {}", folder.display());
    }
    Ok(())
}

/// PXG-LOAD-001.
fn one_symbol(c: &Run, library: &Path) -> Result<()> {
    let mut command = c.command(".", "nm");
    command.args(["-D", "--defined-only"]).arg(library);
    let output = command.output().context("run nm")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let names: Vec<_> = text.lines().filter_map(|l| l.split(' ').nth(2)).collect();
    let want = [proxy_golang_abi::GUEST_INIT_SYMBOL];
    ensure!(
        output.status.success() && names == want,
        "{} exports {names:?}, not {want:?}",
        library.display()
    );
    Ok(())
}

fn loom(c: &Run) -> Result<()> {
    let folder = target().join("loom").display().to_string();
    let environment = [
        ("RUSTFLAGS", "--cfg loom"),
        ("CARGO_TARGET_DIR", folder.as_str()),
    ];
    // What the exploration runs is optimised, the rest of the dependencies is built quickly.
    let profile: String = ["loom", "generator", "proxy-golang-host"]
        .iter()
        .map(|package| format!("--config profile.dev.package.{package}.opt-level=3 "))
        .collect();
    let cargo = "cargo test --locked -p proxy-golang-host --no-default-features";
    for tests in loom_tests() {
        let line = format!("{cargo} --config profile.dev.debug=0 {profile} {tests}");
        c.run_with(".", &line, &environment)?;
    }
    some_ran(c, counts::cargo)
}

/// What to run under loom: a file in `tests/` that uses it, and the library's tests whose paths have the word.
fn loom_tests() -> Vec<String> {
    let mut tests = Vec::new();
    for file in files(&[".rs"]).unwrap_or_default() {
        let Ok(inside) = file.strip_prefix("host-ref") else {
            continue;
        };
        let text = std::fs::read_to_string(root().join(&file)).unwrap_or_default();
        if text.contains("loom::model") {
            tests.push(match inside.strip_prefix("tests") {
                Ok(test) => format!("--test {}", test.with_extension("").display()),
                Err(_) => format!("--lib {LOOM}"),
            });
        }
    }
    tests.sort();
    tests.dedup();
    tests
}

fn go_test(c: &Run, packages: &[&str], flags: &[&str]) -> Result<()> {
    let raw = c.log.with_extension("json");
    let _ = std::fs::remove_file(&raw);
    let mut command = c.command(GO, "go");
    command.args(["test", "-json"]).args(flags).args(packages);
    c.say(&format!(
        "$ go test -json {} {}",
        flags.join(" "),
        packages.join(" ")
    ))?;
    let status = run_logged(&mut command, &raw)?;
    let json = std::fs::read(&raw).context("read go's output")?;
    c.say(&counts::go_readable(&String::from_utf8_lossy(&json)))?;
    ensure!(status.success(), "go test: {status}");
    some_ran(c, counts::go)
}

fn go_race(c: &Run) -> Result<()> {
    let format =
        "{{if not .CgoFiles}}{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}{{end}}";
    let output = c
        .command(GO, "go")
        .args(["list", "-f", format, "./..."])
        .output();
    let output = output.context("run go list")?;
    ensure!(
        output.status.success(),
        "go list: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let packages: Vec<_> = text.split_whitespace().collect();
    ensure!(!packages.is_empty(), "no package without cgo has a test");
    go_test(c, &packages, &["-race"])
}

/// A stage of tests that ran none has not passed.
pub(super) fn some_ran(c: &Run, read: Reader) -> Result<()> {
    let log = std::fs::read(&c.log).context("read the log")?;
    ensure!(
        !read(&String::from_utf8_lossy(&log)).is_empty(),
        "no test ran"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_have_names_of_their_own() {
        let mut names: Vec<_> = STAGES.iter().map(|s| s.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}

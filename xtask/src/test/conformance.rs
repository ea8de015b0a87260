//! The conformance suite over itself, over the example guests and over the hosts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Run;
use crate::bootstrap::nginx::Nginx;
use crate::bootstrap::{envoy, nginx};
use crate::lab::Lab;
use crate::root::{root, target};

/// Every rule has a case, a mutant and a clean sample, and each mutant is killed by its own rule.
pub(super) fn selftest(c: &Run) -> Result<()> {
    let suite = suite(c)?;
    c.finish(c.command(".", &suite).arg("coverage"))?;
    let kept = target().join("conformance");
    c.finish(
        c.command(".", &suite)
            .args(["selftest", "--keep"])
            .arg(kept),
    )
}

/// All example guests at the highest level. They are found, not listed: one more folder is one more guest. The helper
/// for `go test` needs the suite, too, and skips its test where there is none.
pub(super) fn guests(c: &Run) -> Result<()> {
    let suite = suite(c)?;
    let mut helper = c.command("guest-sdk/go", "go");
    helper
        .args([
            "test",
            "-count=1",
            "-v",
            "-run",
            "TestHello",
            "./conformancetest",
        ])
        .env("PXG_CONFORMANCE", &suite);
    c.finish(&mut helper)?;
    for (name, library) in examples(c)? {
        let settings = format!("conformance/settings/{name}.toml");
        let mut command = c.command(".", &suite);
        command.args(["guest", "--level", "L5"]).arg(library);
        // Without settings every filter gets an empty configuration.
        if root().join(&settings).is_file() {
            command.args(["--config", &settings]);
        }
        c.finish(&mut command).with_context(|| {
            format!("the example {name} is not conformant; try it: pxg-conformance guest --config {settings} LIBRARY")
        })?;
    }
    Ok(())
}

/// The reference host, as it is built for tests, and the mini host, which shares no code with it.
pub(super) fn hosts(c: &Run) -> Result<()> {
    let suite = suite(c)?;
    let minihost = mini_host(c)?;
    for (adapter, variable, program) in [
        (
            "conformance/adapters/host-ref.toml",
            "PXG_HOST",
            target().join("debug/pxg-host"),
        ),
        (
            "conformance/minihost/adapter/adapter.toml",
            "PXG_MINIHOST",
            minihost,
        ),
    ] {
        let command = || {
            let mut command = c.command(".", &suite);
            command
                .args(["host", "--adapter", adapter])
                .env(variable, &program);
            command
        };
        cases(c, command).with_context(|| format!("the host of {adapter} does not pass"))?;
    }
    Ok(())
}

/// The module for nginx in the nginx of each version, and the Lua API in Debian's.
pub(super) fn nginx(c: &Run) -> Result<()> {
    let suite = suite(c)?;
    for adapter in ["nginx-debian.toml", "nginx-stable.toml", "openresty.toml"] {
        let adapter = format!("conformance/adapters/{adapter}");
        let command = || {
            let mut command = c.command(".", &suite);
            command.args(["host", "--adapter", &adapter]);
            nginx::adapters(&mut command);
            command
        };
        cases(c, command).with_context(|| format!("the host of {adapter} does not pass"))?;
    }
    Ok(())
}

/// Runs cases against a real proxy; one that fails once more, alone.
fn cases(c: &Run, command: impl Fn() -> Command) -> Result<()> {
    c.finish_retrying(&mut command(), |failed| {
        let mut again = command();
        again.args(["--only", &failed.name]);
        Some(again)
    })
}

/// The layer between hosts and guests: the cases of hosts through it, and every example guest with real traffic, in
/// pxg-host, in the mini host, in the newest Envoy and in Debian's nginx. What it finds on either side fails.
pub(super) fn layer(c: &Run) -> Result<()> {
    let suite = suite(c)?;
    let debug = target().join("debug");
    let layer = debug.join("libpxg_layer.so");
    let minihost = mini_host(c)?;
    let [.., newest] = envoy::RELEASES;
    let (branch, _) = newest
        .version
        .rsplit_once('.')
        .context("a version has a branch")?;
    let adapter = format!("envoy-{branch}.toml");
    let variable = format!("ENVOY_{}", branch.replace('.', "_"));
    let host_ref = ("host-ref.toml", "PXG_HOST", debug.join("pxg-host"));
    let mini = ("../minihost/adapter/adapter.toml", "PXG_MINIHOST", minihost);
    let newest = (adapter.as_str(), variable.as_str(), newest.binary());
    let through = |arguments: &[&str], (adapter, variable, program): &(&str, &str, PathBuf)| {
        let mut command = c.command(".", &suite);
        command
            .args(arguments)
            .args(["--adapter", &format!("conformance/adapters/{adapter}")])
            .arg("--layer")
            .arg(&layer)
            .env(variable, program)
            .env("PXG_ENVOY_MODULES", &debug);
        nginx::adapters(&mut command);
        command
    };
    for host in [&host_ref, &mini] {
        cases(c, || through(&["host"], host))
            .with_context(|| format!("{} does not pass with the layer", host.0))?;
    }
    let debian = Nginx::Debian;
    let nginx = ("nginx-debian.toml", "NGINX_DEBIAN", debian.binary());
    for (name, library) in examples(c)? {
        for host in [&host_ref, &mini, &newest, &nginx] {
            let mut command = through(&["pair"], host);
            command.arg(&library);
            command.args(["--config", &format!("conformance/settings/{name}.toml")]);
            c.finish(&mut command)
                .with_context(|| format!("the example {name} in the host of {}", host.0))?;
        }
    }
    Ok(())
}

/// Builds the mini host.
fn mini_host(c: &Run) -> Result<PathBuf> {
    let folder = target().join("conformance/minihost");
    let mut make = c.command("conformance/minihost", "make");
    make.arg(format!("BUILD={}", folder.display()));
    c.finish(&mut make)?;
    Ok(folder.join("pxg-minihost"))
}

/// The mini host's mutants. That it is clean without one is seen once, for the stage before this has seen it, too.
pub(super) fn host_selftest(c: &Run) -> Result<()> {
    let suite = suite(c)?;
    let kept = target().join("conformance");
    c.finish(
        c.command(".", &suite)
            .args([
                "selftest", "--hosts", "--repeat", "1", "--load", "false", "--keep",
            ])
            .arg(kept),
    )
}

fn suite(c: &Run) -> Result<String> {
    c.build()?;
    let program = target().join("debug/pxg-conformance");
    Ok(program.display().to_string())
}

/// Builds them; their names and libraries.
fn examples(c: &Run) -> Result<Vec<(String, PathBuf)>> {
    let lab = Lab::new(c.tools);
    let folder = target().join("conformance/examples");
    std::fs::create_dir_all(&folder)?;
    let mut found = Vec::new();
    for name in names("guest-sdk/go/examples", is_go_program)? {
        let library = folder.join(format!("{name}.so"));
        let package = format!("./examples/{name}");
        c.finish(&mut lab.go_library("guest-sdk/go", &package, &library))?;
        found.push((name, library));
    }
    for name in names("guest-sdk/examples", |path| {
        path.join("Cargo.toml").is_file()
    })? {
        let library = format!("debug/lib{}.so", name.replace('-', "_"));
        found.push((name, target().join(library)));
    }
    let mut make: Command = c.command("guest-sdk/c", "make");
    make.arg(format!("BUILD={}", folder.join("c").display()));
    c.finish(&mut make)?;
    for name in names("guest-sdk/c/examples", |path| {
        path.extension().is_some_and(|e| e == "c")
    })? {
        let name = name.trim_end_matches(".c").to_string();
        let library = folder.join("c").join(format!("{name}.so"));
        found.push((name, library));
    }
    Ok(found)
}

/// What is in a folder of the workspace and is meant.
fn names(folder: &str, meant: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(root().join(folder)).with_context(|| format!("read {folder}"))? {
        let entry = entry?;
        if meant(&entry.path()) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    ensure!(!names.is_empty(), "no example guest in {folder}");
    names.sort();
    Ok(names)
}

/// Other folders hold filters that a program imports.
fn is_go_program(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .any(|text| text.lines().any(|line| line == "package main"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_found_in_every_language() {
        let go = names("guest-sdk/go/examples", is_go_program).unwrap();
        assert!(go.contains(&"bundle".to_string()) && !go.contains(&"faulty".to_string()));
        let c = names("guest-sdk/c/examples", |path| path.is_file()).unwrap();
        assert!(c.contains(&"header-policy.c".to_string()));
        assert!(names("guest-sdk/c/examples", |_| false).is_err());
    }
}

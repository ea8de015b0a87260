//! `cargo xtask fuzz`: libFuzzer on the project's own parsers and engine, on the stable toolchain.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::proc::Group;
use crate::root::{root, target};

/// The fuzzers, as `host-ref/fuzz/bins` has them.
const TARGETS: [&str; 5] = ["config", "elf", "engine", "reports", "result"];

/// LLVM's coverage pass, and what it counts.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// Fuzz the project's own parsers and engine, guided by coverage; needs a C++ compiler.
///
/// Begins with the kept corpus in host-ref/fuzz/corpus. What is found on the way is kept in the target folder; what
/// breaks an invariant is written there too, and named with the line that repeats it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One of config, elf, engine, reports, result; without it each in turn.
    #[arg(value_parser = TARGETS)]
    target: Option<String>,
    /// How long each of them.
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = seconds)]
    time: u64,
    /// Run these inputs once, instead of fuzzing: with TARGET.
    #[arg(long, value_name = "FILE", requires = "target")]
    repeat: Vec<PathBuf>,
    /// Replace the kept corpus by the smallest inputs that reach the same code, up to 6 KB: with TARGET.
    #[arg(long, requires = "target")]
    minimize: bool,
}

fn seconds(s: &str) -> Result<u64, String> {
    let at = s.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(s.len());
    let unit = match &s[at..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        other => return Err(format!("found the unit {other:?}; expected s, m or h")),
    };
    match s[..at].parse::<u64>() {
        Ok(n @ 1..=1_000_000) => Ok(n * unit),
        _ => Err("expected a time such as 60s, 5m or 2h".into()),
    }
}

/// Builds and runs them.
pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen: Vec<&str> = match &args.target {
        Some(t) => vec![t.as_str()],
        None => TARGETS.to_vec(),
    };
    let folder = target().join("fuzz");
    build(&folder, &chosen)?;
    let mut failed = Vec::new();
    for name in chosen {
        let binary = folder.join(host()?).join("release").join(name);
        if !args.repeat.is_empty() {
            let mut command = Command::new(&binary);
            command.args(&args.repeat);
            let status = Group::spawn(&mut command)?.wait()?;
            if !status.success() {
                bail!("{name} fails on one of the inputs: {status}");
            }
            continue;
        }
        let found = folder.join("corpus").join(name);
        std::fs::create_dir_all(&found)?;
        if args.minimize {
            minimize(&binary, name, &found)?;
            continue;
        }
        println!("fuzz {name} for {} s", args.time);
        let mut command = Command::new(&binary);
        command
            .arg(&found)
            .arg(kept(name))
            .arg(format!("-max_total_time={}", args.time))
            .arg(format!("-artifact_prefix={}/{name}-", folder.display()))
            .args(["-max_len=4096", "-timeout=20", "-print_final_stats=1"]);
        if !Group::spawn(&mut command)?.wait()?.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "something is broken in {}: the input is in {}/NAME-crash-…; `cargo xtask fuzz NAME --repeat FILE` repeats it",
        failed.join(", "),
        folder.display()
    )
}

fn kept(name: &str) -> PathBuf {
    root().join("host-ref/fuzz/corpus").join(name)
}

fn build(folder: &Path, targets: &[&str]) -> Result<()> {
    let mut command = Command::new("cargo");
    command
        .current_dir(root().join("host-ref/fuzz"))
        .args(["build", "--release", "--target", &host()?])
        .args(targets.iter().flat_map(|t| ["--bin", t]))
        .env("CARGO_TARGET_DIR", folder)
        .env("RUSTFLAGS", COVERAGE);
    let status = Group::spawn(&mut command)?.wait()?;
    if !status.success() {
        bail!(
            "the fuzzers cannot be built: {status}; libFuzzer needs a C++ compiler (Debian: g++)"
        );
    }
    Ok(())
}

/// The machine's own target: named, so that build scripts have no counters.
fn host() -> Result<String> {
    crate::proc::stdout_of(Command::new("rustc").arg("-vV"))
        .and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("host: "))?;
            Some(line.trim().to_string())
        })
        .context("rustc -vV does not say which machine it is for")
}

/// Bytes of a kept corpus.
const KEPT: u64 = 6 << 10;

fn minimize(binary: &Path, name: &str, found: &Path) -> Result<()> {
    let merged = tempfile_beside(found)?;
    let mut command = Command::new(binary);
    command
        .arg("-set_cover_merge=1")
        .args([&merged, &kept(name)])
        .arg(found);
    let status = Group::spawn(&mut command)?.wait()?;
    if !status.success() {
        bail!("{name}: the corpus cannot be merged: {status}");
    }
    let mut files: Vec<(u64, PathBuf)> = std::fs::read_dir(&merged)?
        .map(|e| {
            let e = e?;
            Ok((e.metadata()?.len(), e.path()))
        })
        .collect::<std::io::Result<_>>()?;
    files.sort();
    // What has a name was put there by somebody, and stays.
    for e in std::fs::read_dir(kept(name))? {
        let e = e?;
        if e.file_name()
            .to_string_lossy()
            .chars()
            .all(|c| c.is_ascii_hexdigit())
        {
            std::fs::remove_file(e.path())?;
        }
    }
    // Every so many of them, so that long ones are among them too.
    let all: u64 = files.iter().map(|f| f.0).sum();
    let step = usize::try_from(all.div_ceil(KEPT).max(1)).context("a small number")?;
    for (_, file) in files.iter().step_by(step) {
        let short: String = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .chars()
            .take(12)
            .collect();
        std::fs::copy(file, kept(name).join(short))?;
    }
    std::fs::remove_dir_all(&merged)?;
    Ok(())
}

fn tempfile_beside(found: &Path) -> Result<PathBuf> {
    let merged = found.with_extension("merged");
    if merged.exists() {
        std::fs::remove_dir_all(&merged)?;
    }
    std::fs::create_dir_all(&merged)?;
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_fuzzer_and_a_corpus() {
        for name in TARGETS {
            let bin = root().join(format!("host-ref/fuzz/bins/{name}.rs"));
            assert!(bin.is_file(), "{}", bin.display());
            let n = std::fs::read_dir(kept(name)).expect(name).count();
            assert!(n >= 3, "{name}: {n} inputs");
        }
        let bins = std::fs::read_dir(root().join("host-ref/fuzz/bins"))
            .expect("the fuzzers")
            .count();
        assert_eq!(bins, TARGETS.len());
    }

    #[test]
    fn times_are_read_or_refused() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("5m"), Ok(300));
        for bad in ["", "s", "0s", "-1s", "5d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}

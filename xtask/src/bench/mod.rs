//! `cargo xtask bench`: what calls into guests cost, and what filters cost the proxy.

mod boundary;
mod criterion;
mod envoy;
mod nginx;
mod row;
// The laboratory's. A dependency on it would have every command build an HTTP stack first.
#[allow(dead_code, unreachable_pub)]
#[path = "../../lab/src/stats.rs"]
mod stats;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::bootstrap::{self, Need};
use crate::lab::Lab;
use crate::proc::{end_children_on_interrupt, stdout_of};

/// Measure: calls into guests, or what filters cost the reference proxy, a stock Envoy or a stock nginx
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What a call into a guest costs: time, instructions, allocations, memory
    ///
    /// The exit code is not 0 if a C or Rust guest needs more instructions than the gate allows, if a header filter
    /// allocates, or if a body view of 1 MB needs more than one of 1 KB. Times are told with their targets and decide
    /// nothing: they depend on the machine.
    Boundary {
        /// Also write what was measured to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Leave out the times that criterion measures
        #[arg(long)]
        quick: bool,
    },
    /// What filters cost the proxy: processor time per request with a filter over that without
    ///
    /// Needs two processors and nothing else running on them: the proxy has one for itself, load and upstream the other.
    Host {
        /// Rounds of each variant
        #[arg(long, default_value_t = 21)]
        rounds: usize,
        /// Milliseconds of each of the four runs of a round
        #[arg(long, default_value_t = 250)]
        run_ms: u64,
        /// Only variants whose name contains this
        #[arg(long)]
        only: Option<String>,
        /// Also write what was measured to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    Envoy(envoy::Args),
    Nginx(nginx::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    end_children_on_interrupt()?;
    let need = match args.what {
        What::Boundary { .. } => Need::Tests,
        What::Host { .. } | What::Envoy(_) | What::Nginx(_) => Need::Guests,
    };
    let tools = bootstrap::bring(need)?;
    let lab = Lab::new(&tools);
    match &args.what {
        What::Envoy(args) => envoy::run(&lab, args),
        What::Nginx(args) => nginx::run(&lab, args),
        What::Boundary { json, quick } => boundary::run(&lab, *quick, json.as_deref()),
        What::Host {
            rounds,
            run_ms,
            only,
            json,
        } => {
            lab.build(lab.steps())?;
            lab.build(lab.bench_steps())?;
            println!();
            let mut command = lab.laboratory();
            command.arg("bench-host");
            command.args([
                "--rounds",
                &rounds.to_string(),
                "--run-ms",
                &run_ms.to_string(),
            ]);
            if let Some(only) = only {
                command.args(["--only", only]);
            }
            if let Some(json) = json {
                command.arg("--json").arg(std::path::absolute(json)?);
            }
            Lab::run(&mut command)
        }
    }
}

fn write_json(file: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

/// The guest in C of the benchmarks in stock proxies; it comes to `bench-c/bench.so`.
fn guest_in_c(lab: &Lab, guests: &Path) -> Command {
    let mut c = lab.command("guest-sdk/c", "make");
    c.arg(format!("BUILD={}", guests.join("bench-c").display()));
    c.arg("GUESTS=../../xtask/lab/guests/c/bench.c");
    c
}

/// What the guests and the peers were built with, and of which commit.
fn versions(lab: &Lab) -> Result<Vec<String>> {
    let of = |command: &mut Command| {
        let text = stdout_of(command).with_context(|| format!("run {command:?}"))?;
        anyhow::Ok(text.trim().to_owned())
    };
    let go = of(lab.command(".", "go").args(["env", "GOVERSION"]))?;
    let rust = of(lab.command(".", "rustc").arg("--version"))?;
    let rust = rust
        .split_whitespace()
        .nth(1)
        .context("rustc has no version")?;
    let mut versions = vec![
        format!("Go {}", go.trim_start_matches("go")),
        format!("Rust {rust}"),
    ];
    // Not every copy of the sources is a repository.
    if let Ok(commit) = of(lab
        .command(".", "git")
        .args(["rev-parse", "--short", "HEAD"]))
    {
        versions.push(format!("commit {commit}"));
    }
    Ok(versions)
}

//! `cargo xtask soak`: the proxy under load while it is reloaded and its clients go away.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::bootstrap::{self, Need, Tools};
use crate::lab::Lab;
use crate::proc::end_children_on_interrupt;

/// Load pxg-host with clients that abort, reload it every second, and check every answer
///
/// 32 connections over HTTP/1.1 and HTTP/2 pass a filter that decides asynchronously, one that rewrites whole bodies
/// and two that change headers. Every fifth configuration is invalid and must change nothing. Each answer is checked
/// against its own request; afterwards nothing may be left over: no stream, no waiting decision, no file, no growing
/// memory. The proxy then drains and must end by itself.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long, such as 30s or 5m
    #[arg(long = "for", value_name = "TIME", default_value = "30s")]
    time: String,
    /// Seed of the clients' choices; a failure prints it
    #[arg(long)]
    seed: Option<u64>,
    /// Also write what was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    end_children_on_interrupt()?;
    let tools = bootstrap::bring(Need::Guests)?;
    let lab = Lab::new(&tools);
    lab.build(lab.steps())?;
    println!();
    let mut command = lab.laboratory();
    command.args(["soak", "--for", &args.time]);
    if let Some(seed) = args.seed {
        command.arg(format!("--seed={seed}"));
    }
    if let Some(json) = &args.json {
        command.arg("--json").arg(std::path::absolute(json)?);
    }
    Lab::run(&mut command)
}

/// The stage of `cargo xtask test`, once the workspace was built: a short one, each command run by `run`.
pub(crate) fn stage(tools: &Tools, run: impl Fn(&mut Command) -> Result<()>) -> Result<()> {
    let lab = Lab::for_tests(tools);
    for (_, mut command) in lab.guest_steps() {
        run(&mut command)?;
    }
    run(lab.laboratory().args(["soak", "--for", "5s"]))
}

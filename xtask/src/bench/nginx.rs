//! Guests in a stock nginx, against plain nginx and the alternatives.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

use crate::bootstrap::nginx::{self, Nginx};
use crate::lab::Lab;
use crate::root::{root, target};

/// Measure guests in a stock nginx: processor time, throughput and latency over plain nginx's, and reloads
///
/// In one run, taking turns with plain nginx: guests in C and Go, Lua, Lua that calls the guest in Go by FFI, and njs;
/// then what 100 reloads leave in memory, and requests that are lost in a minute with 60 reloads. Needs two processors
/// and nothing else running on them. Targets are told and decide nothing. It takes some ten minutes.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Rounds
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Milliseconds of each run; a round has about 80
    #[arg(long, default_value_t = 180)]
    run_ms: u64,
    /// Start all processes anew after so many rounds: where their code and memory lie is worth some percent
    #[arg(long, default_value_t = 3)]
    fresh: usize,
    /// Only rows whose name matches, with * for anything, such as 'proxy-32/*'; can be given several times
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Say which rows there are and measure none
    #[arg(long)]
    list: bool,
    /// Reloads after which memory is compared
    #[arg(long, default_value_t = 100)]
    reloads: u32,
    /// Seconds of load with a reload in each
    #[arg(long, default_value_t = 60)]
    reload_seconds: u32,
    /// Also write what was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write table, plot and figures to this folder, as nginx.md, nginx.svg and nginx.json
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Which nginx. Only the distribution's brings Lua and njs: without them for the other one
    #[arg(long, value_enum, default_value_t = Which::Debian)]
    nginx: Which,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Debian,
    Stable,
}

/// Rows that need modules of the distribution's nginx.
const OTHERS: [&str; 3] = ["lua", "lua-ffi-go", "njs"];

pub(super) fn run(lab: &Lab, args: &Args) -> Result<()> {
    nginx::bring()?;
    let nginx = match args.nginx {
        Which::Debian => Nginx::Debian,
        Which::Stable => Nginx::Stable,
    };
    lab.build_nginx(nginx)?;
    let guests = target().join("guests");
    let bare = nginx.folder().join("bare.so");
    let mut cargo = lab.command(".", "cargo");
    cargo.args(["build", "--release", "--locked", "-p", "pxg-lab"]);
    let mut steps = vec![
        ("the laboratory", cargo),
        ("the bare module", bare_module(lab, nginx, &bare)),
        (
            "the benchmark's guest in C",
            super::guest_in_c(lab, &guests),
        ),
    ];
    steps.extend(lab.bench_steps());
    lab.build(steps)?;
    println!();

    let mut command = lab.laboratory();
    for (name, value) in [
        ("PXG_LAB_NGINX", nginx.binary()),
        ("PXG_LAB_NGINX_MODULE", nginx.module()),
        ("PXG_LAB_NGINX_BARE", bare),
        ("PXG_LAB_BENCH_C", guests.join("bench-c/bench.so")),
        ("PXG_LAB_RESTY", root().join("hosts/openresty/lib")),
        ("PXG_LAB_LUA", root().join("xtask/peers")),
    ] {
        command.env(name, value);
    }
    command.arg("bench-nginx");
    command.args(["--rounds", &args.rounds.to_string()]);
    command.args(["--run-ms", &args.run_ms.to_string()]);
    command.args(["--fresh", &args.fresh.to_string()]);
    command.args(["--reloads", &args.reloads.to_string()]);
    command.args(["--reload-seconds", &args.reload_seconds.to_string()]);
    command.args(args.only.iter().flat_map(|row| ["--only", row]));
    if args.nginx == Which::Stable {
        command.args(OTHERS.iter().flat_map(|row| ["--without", row]));
    }
    if args.list {
        command.arg("--list");
    }
    for (name, path) in [("--json", &args.json), ("--save", &args.save)] {
        if let Some(path) = path {
            command.arg(name).arg(std::path::absolute(path)?);
        }
    }
    for version in super::versions(lab)? {
        command.args(["--version-of", &version]);
    }
    Lab::run(&mut command)
}

/// A module without nginx's configure: from the headers that the host's module was configured with.
fn bare_module(lab: &Lab, nginx: Nginx, out: &Path) -> Command {
    let module = nginx.folder().join("module");
    let mut cc = lab.command("xtask/peers", "cc");
    cc.args(["-O2", "-Wall", "-Werror", "-shared", "-fPIC"]);
    for headers in [
        "core",
        "event",
        "event/modules",
        "os/unix",
        "http",
        "http/modules",
        "http/v2",
    ] {
        cc.arg("-isystem").arg(module.join("src/src").join(headers));
    }
    cc.arg("-isystem").arg(module.join("out"));
    cc.arg("bare-nginx.c").arg("-o").arg(out);
    cc
}

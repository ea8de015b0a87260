//! Guests in a stock Envoy, against plain Envoy and the alternatives.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::bootstrap::envoy::{self, RELEASES};
use crate::lab::{Lab, Step};
use crate::root::{root, target};

/// Measure guests in a stock Envoy: processor time, throughput and latency over plain Envoy's
///
/// In one run, taking turns with plain Envoy: Envoy's own header mutation, guests in C, Rust and Go, Lua, WebAssembly,
/// ext_proc, and Go's own reverse proxy instead of Envoy. Needs two processors and nothing else running on them: the
/// proxy has one for itself, load and upstream the other. Targets are told and decide nothing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Rounds
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Milliseconds of each run; a round has about 90
    #[arg(long, default_value_t = 250)]
    run_ms: u64,
    /// Start all processes anew after so many rounds: where their code and memory lie is worth some percent
    #[arg(long, default_value_t = 3)]
    fresh: usize,
    /// Only rows whose name matches, with * for anything, such as 'fields-3/*'; can be given several times
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Say which rows there are and measure none
    #[arg(long)]
    list: bool,
    /// Count instructions of so many requests by valgrind instead, which are the same on a busy machine; with --save
    /// the profiles are kept
    #[arg(long, value_name = "REQUESTS", num_args = 0..=1, default_missing_value = "1000")]
    instructions: Option<u64>,
    /// Also write what was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write table, plot and figures to this folder, as envoy.md, envoy.svg and envoy.json
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Another Envoy than the newest release that is supported
    #[arg(long, value_name = "FILE")]
    envoy: Option<PathBuf>,
}

pub(super) fn run(lab: &Lab, args: &Args) -> Result<()> {
    let envoy = match &args.envoy {
        Some(file) => std::path::absolute(file)?,
        None => {
            let newest = RELEASES.last().context("no release is supported")?;
            envoy::bring(&[*newest])?;
            newest.binary()
        }
    };
    ensure!(
        envoy.is_file(),
        "there is no Envoy at {}: leave --envoy out to have one brought",
        envoy.display()
    );
    let guests = target().join("guests");
    let made = |name: &str| guests.join(name);
    lab.build(steps(lab, &guests))?;
    println!();

    let release = target().join("release");
    let peers = root().join("xtask/peers");
    let mut command = lab.laboratory();
    for (name, value) in [
        ("PXG_LAB_ENVOY", envoy),
        ("PXG_LAB_ENVOY_MODULE", release.clone()),
        ("PXG_LAB_BENCH_C", made("bench-c/bench.so")),
        ("PXG_LAB_BENCH_RUST", release.join("libpxg_bench_guest.so")),
        ("PXG_LAB_GO_PROXY", made("go-reverse-proxy")),
        ("PXG_LAB_PEERS", release.join("pxg-peers")),
        ("PXG_LAB_WASM", made("add-header.wasm")),
        ("PXG_LAB_LUA", peers),
    ] {
        command.env(name, value);
    }
    command.arg("bench-envoy");
    command.args(["--rounds", &args.rounds.to_string()]);
    command.args(["--run-ms", &args.run_ms.to_string()]);
    command.args(["--fresh", &args.fresh.to_string()]);
    command.args(args.only.iter().flat_map(|row| ["--only", row]));
    if args.list {
        command.arg("--list");
    }
    if let Some(requests) = args.instructions {
        command.arg(format!("--instructions={requests}"));
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

/// The module, the guests, the peers, and the program that measures.
fn steps(lab: &Lab, guests: &Path) -> Vec<Step> {
    let mut cargo = lab.command(".", "cargo");
    cargo.args(["build", "--release", "--locked"]);
    let packages = [
        "proxy-golang-envoy",
        "pxg-bench-guest",
        "pxg-lab",
        "pxg-peers",
    ];
    cargo.args(packages.iter().flat_map(|name| ["-p", name]));
    // Incremental builds are cut into more units, and inline less.
    cargo.env("CARGO_INCREMENTAL", "0");
    let c = super::guest_in_c(lab, guests);
    let mut go = lab.command("xtask/peers/reverse-proxy", "go");
    go.args(["build", "-o"])
        .arg(guests.join("go-reverse-proxy"));
    let mut wasm = lab.command(".", target().join("release/pxg-peers"));
    wasm.args(["wasm", "xtask/peers/add-header.wat"]);
    wasm.arg(guests.join("add-header.wasm"));
    let mut bare = lab.command("xtask/peers", "cc");
    bare.args(["-std=c99", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"]);
    bare.args(["-fvisibility=hidden", "bare-module.c", "-o"]);
    bare.arg(target().join("release/libpxg_bare.so"));
    let mut steps = vec![
        ("the module for Envoy, the laboratory and the peers", cargo),
        ("the bare module", bare),
        ("the benchmark's guest in C", c),
        ("the reverse proxy in Go", go),
        ("the WebAssembly filter", wasm),
    ];
    steps.extend(lab.bench_steps());
    steps
}

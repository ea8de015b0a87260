//! The laboratory's commands; `cargo xtask` builds what they need and starts them.
#![deny(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use pxg_lab::{bench_envoy, bench_host, bench_nginx, demo, memory, soak};

/// Demonstration, benchmarks of hosts and soak test; start them by `cargo xtask`
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    DemoEnvoy(demo::envoy::Args),
    DemoNginx(demo::nginx::Args),
    BenchEnvoy(bench_envoy::Args),
    BenchHost(bench_host::Args),
    BenchNginx(bench_nginx::Args),
    Memory(memory::Args),
    Soak(soak::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Demo(args) => block_on(demo::run(&args)),
        Command::DemoEnvoy(args) => block_on(demo::envoy::run(&args)),
        Command::DemoNginx(args) => block_on(demo::nginx::run(&args)),
        Command::BenchEnvoy(args) => bench_envoy::run(&args),
        Command::BenchHost(args) => bench_host::run(&args),
        Command::BenchNginx(args) => bench_nginx::run(&args),
        Command::Memory(args) => block_on(memory::run(&args)),
        Command::Soak(args) => block_on(soak::run(&args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

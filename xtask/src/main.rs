//! The project's own commands. `cargo xtask help` lists them; each lives in a module of its name.
#![deny(unsafe_code)]

mod bench;
mod bootstrap;
mod demo;
mod fuzz;
mod r#gen;
mod lab;
mod proc;
mod root;
mod soak;
mod test;

use clap::{Parser, Subcommand};

/// The project's own commands. Each one brings the tools it needs and says so.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(bench::Args),
    Demo(demo::Args),
    Fuzz(fuzz::Args),
    Gen(r#gen::Args),
    Soak(soak::Args),
    Test(test::Args),
}

fn main() -> std::process::ExitCode {
    let done = match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Gen(args) => r#gen::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Test(args) => test::run(&args),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

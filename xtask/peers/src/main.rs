//! What `cargo xtask bench envoy` compares guests with, as far as it is not Envoy's own or Go's: a server for Envoy's
//! external processing, and the assembler for a WebAssembly module.
#![forbid(unsafe_code)]

mod ext_proc;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Peers of the Envoy benchmark; `cargo xtask bench envoy` starts them
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve Envoy's external processing protocol; prints a line when it listens
    ExtProc {
        /// The Unix socket to listen on
        #[arg(long, value_name = "FILE")]
        socket: PathBuf,
    },
    /// Assemble a WebAssembly module
    Wasm {
        /// The module in text form
        text: PathBuf,
        /// Where the binary goes
        binary: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::ExtProc { socket } => ext_proc::serve(&socket),
        Command::Wasm { text, binary } => assemble(&text, &binary),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn assemble(text: &Path, binary: &Path) -> Result<()> {
    let bytes = wat::parse_file(text).with_context(|| format!("assemble {}", text.display()))?;
    std::fs::write(binary, bytes).with_context(|| format!("write {}", binary.display()))
}

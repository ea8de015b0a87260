//! The command line of `pxg-host`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::config::{Config, ConfigError};
use super::control::{self, End};

/// The configuration is wrong, or the host could not start.
pub(super) const EXIT_REFUSED: u8 = 1;
/// The host ended before all requests had finished.
pub(super) const EXIT_CUT: i32 = 3;

const AFTER_HELP: &str = "\
Exit status:
  0  everything went well; for `run`: all requests had finished
  1  the configuration, a guest or an address was refused; the reasons are on standard error
  2  wrong usage
  3  `run` ended before all requests had finished: the drain's time was over, or a second signal came

Signals of `run`:
  SIGHUP           take the configuration file again; if it is wrong, the old one serves on
  SIGTERM, SIGINT  no new connections, running requests finish; a second one ends at once

A configuration to begin with:
  [[listeners]]
  name = \"main\"
  address = \"127.0.0.1:8080\"

  [[clusters]]
  name = \"app\"
  endpoints = [\"127.0.0.1:9000\"]

  [[virtual_hosts]]
  name = \"all\"
  hosts = [\"*\"]
  routes = [{ name = \"app\", prefix = \"/\", cluster = \"app\" }]

With a filter:
  [[guests]]
  name = \"policy\"
  path = \"libheader_policy.so\"

  [[filters]]
  name = \"policy\"
  guest = \"policy\"

and `filters = [\"policy\"]` in the route.";

/// The reverse proxy of proxy_golang: filters in Go, Rust or C change what goes through it.
#[derive(Debug, Parser)]
#[command(name = "pxg-host", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Check a configuration, guests included, without serving by it.
    Check {
        /// The configuration, TOML.
        file: PathBuf,
    },
    /// Serve.
    ///
    /// Standard output gets a JSON line for each listener with its address, then one that says "ready"; the log goes to
    /// standard error.
    Run {
        /// The configuration, TOML.
        file: PathBuf,
    },
    /// Print the JSON schema of the configuration.
    Schema,
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command {
        What::Check { file } => match control::check_file(&file) {
            Ok(()) => {
                println!("{}: ok", file.display());
                ExitCode::SUCCESS
            }
            Err(error) => refused(&error),
        },
        What::Run { file } => match control::run(&file) {
            Ok(End::Drained) => ExitCode::SUCCESS,
            Ok(End::Cut) => ExitCode::from(3),
            Err(error) => match error.downcast_ref::<ConfigError>() {
                Some(error) => refused(error),
                None => {
                    eprintln!("pxg-host: cannot start: {error:#}");
                    ExitCode::from(EXIT_REFUSED)
                }
            },
        },
        What::Schema => {
            println!("{:#}", Config::schema());
            ExitCode::SUCCESS
        }
    }
}

fn refused(error: &ConfigError) -> ExitCode {
    eprintln!("{error}");
    let n = error.diagnostics.len();
    eprintln!(
        "{n} error{}; nothing was changed",
        if n == 1 { "" } else { "s" }
    );
    ExitCode::from(EXIT_REFUSED)
}

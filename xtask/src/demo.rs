//! `cargo xtask demo`: filters in three languages at work in a proxy.

use anyhow::Result;

use crate::bootstrap::{self, Need, envoy};
use crate::lab::Lab;
use crate::proc::end_children_on_interrupt;

/// Watch filters in Go, C and Rust read and change real HTTP traffic inside a proxy
///
/// Brings the tools it needs, builds the proxy and the example filters, starts them on free loopback ports between a
/// client and an upstream, and shows for each request what went in, what each filter did, what came out and what it
/// cost. Each of these is checked; the exit code is 0 only if all checks hold. It ends by itself.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The proxy that runs the filters
    #[arg(long, value_enum, default_value_t = Host::PxgHost)]
    host: Host,
    /// Keep it running and print `curl` lines to try; Ctrl-C ends it
    #[arg(long)]
    serve: bool,
}

/// A proxy that runs filters.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Host {
    /// The reference proxy
    PxgHost,
    /// A stock Envoy, as it was released
    Envoy,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    end_children_on_interrupt()?;
    let tools = bootstrap::bring(Need::Guests)?;
    let lab = Lab::new(&tools);
    let mut command = match args.host {
        Host::PxgHost => {
            lab.build(lab.steps())?;
            let mut command = lab.laboratory();
            command.arg("demo");
            command
        }
        Host::Envoy => {
            let [.., newest] = envoy::RELEASES;
            envoy::bring(&[newest])?;
            lab.build(lab.steps_for_envoy())?;
            lab.demo_in_envoy(newest)
        }
    };
    println!();
    if args.serve {
        command.arg("--serve");
    }
    Lab::run(&mut command)
}

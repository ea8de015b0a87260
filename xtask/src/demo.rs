//! `cargo xtask demo`: filters in three languages at work in a proxy.

use anyhow::{Result, ensure};

use crate::bootstrap::nginx::Nginx;
use crate::bootstrap::{self, Need, envoy, nginx};
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
    #[arg(long, value_enum, default_value_t = Proxy::PxgHost)]
    host: Proxy,
    /// Keep it running and print `curl` lines to try; Ctrl-C ends it
    #[arg(long)]
    serve: bool,
}

/// A proxy that runs filters.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Proxy {
    /// The reference proxy
    PxgHost,
    /// A stock Envoy, as it was released
    Envoy,
    /// Debian's nginx, with the module
    Nginx,
    /// Debian's nginx, with guests called from Lua
    Openresty,
    /// The same guest files in each of them, one after the other, in every version that is supported
    All,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        !(args.serve && args.host == Proxy::All),
        "--serve keeps one proxy running: choose it by --host"
    );
    end_children_on_interrupt()?;
    let tools = bootstrap::bring(Need::Guests)?;
    let lab = Lab::new(&tools);
    let [.., newest] = envoy::RELEASES;
    let (envoys, nginxes): (&[_], &[_]) = match args.host {
        Proxy::PxgHost => (&[], &[]),
        Proxy::Envoy => (&[newest], &[]),
        Proxy::Nginx | Proxy::Openresty => (&[], &[Nginx::Debian]),
        Proxy::All => (&envoy::RELEASES, &nginx::BOTH),
    };
    envoy::bring(envoys)?;
    if !nginxes.is_empty() {
        nginx::bring()?;
    }
    lab.build(if envoys.is_empty() {
        lab.steps()
    } else {
        lab.steps_for_envoy()
    })?;
    let mut commands = Vec::new();
    if matches!(args.host, Proxy::PxgHost | Proxy::All) {
        commands.push(lab.demo());
    }
    commands.extend(envoys.iter().map(|envoy| lab.demo_in_envoy(*envoy)));
    for nginx in nginxes {
        lab.build_nginx(*nginx)?;
        if args.host != Proxy::Openresty {
            commands.push(lab.demo_in_nginx(*nginx));
        }
    }
    if matches!(args.host, Proxy::Openresty | Proxy::All) {
        commands.push(lab.demo_in_openresty());
    }
    for mut command in commands {
        println!();
        if args.serve {
            command.arg("--serve");
        }
        Lab::run(&mut command)?;
    }
    Ok(())
}

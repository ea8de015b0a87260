//! The demonstration inside a stock Envoy.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Guests;
use super::envoy_host::Envoy;
use super::stock::{Demo, FILTERS, Peers, Proxy, ROUTES, Words};
use crate::upstream::Server;

/// Show filters at work inside a stock Envoy
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    /// The program
    #[arg(long, env = "PXG_LAB_ENVOY", value_name = "FILE")]
    envoy: PathBuf,
    /// The folder with libproxy_golang.so
    #[arg(long, env = "PXG_LAB_ENVOY_MODULE", value_name = "FOLDER")]
    module: PathBuf,
    /// Keep running afterwards, and show each request that comes
    #[arg(long)]
    serve: bool,
}

const WORDS: Words = Words {
    name: "Envoy",
    again: "cargo xtask demo --host envoy --serve",
    counters: "The module's counters are Envoy's own statistics, by filter and phase: /stats of the admin listener, \
               Prometheus,\nor wherever else Envoy sends them.",
};

/// Runs it. An error if a check does not hold.
pub async fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir().context("make a folder for the configuration")?;
    let peers = Peers::start().await?;
    let config = config(&args.guests, &peers.upstream, &peers.authority);
    let envoy = Envoy::start(&args.envoy, &args.module, folder.path(), &config).await?;
    let mut demo = Demo::new(WORDS, peers, Proxy::Envoy(envoy));
    let how = "Envoy as it was released; libproxy_golang.so is a dynamic module, and loads the filters' libraries:";
    demo.overture(&version(&args.envoy)?, how, &args.guests)?;
    let shown = demo.shows().await;
    // What Envoy said belongs to what went wrong.
    let said = std::fs::read_to_string(folder.path().join("envoy.log")).unwrap_or_default();
    if let Err(error) = shown {
        bail!("{error:#}\nEnvoy said:\n{said}");
    }
    if args.serve {
        return serve(demo, &folder.path().join("envoy.yaml")).await;
    }
    demo.finale(&said).await
}

/// `PROGRAM version: COMMIT/VERSION/...`
fn version(envoy: &Path) -> Result<String> {
    let said = std::process::Command::new(envoy)
        .arg("--version")
        .output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said.rsplit("version: ").next();
    let version = version.and_then(|rest| rest.split('/').nth(1));
    Ok(version
        .unwrap_or("of a version it does not tell")
        .to_owned())
}

fn config(guests: &Guests, upstream: &Server, authority: &Server) -> String {
    let text = |path: &Path| format!("{:?}", path.display().to_string());
    let mut routes = String::new();
    for (path, filters) in ROUTES {
        let disabled = FILTERS.iter().filter(|name| !filters.contains(name));
        let disabled: Vec<_> = disabled
            .map(|name| format!("{name}: {{ disabled: true }}"))
            .collect();
        routes.push_str(&format!(
            r#"              - match: {{ prefix: "{path}" }}
                route: {{ cluster: upstream }}
                typed_per_filter_config:
                  guests:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute
                    dynamic_module_config: {{ name: proxy_golang, do_not_close: true }}
                    filter_name: guests
                    filter_config:
                      "@type": type.googleapis.com/google.protobuf.Struct
                      value: {{ overrides: {{ {} }} }}
"#,
            disabled.join(", ")
        ));
    }
    include_str!("envoy.yaml")
        .replace("{routes}", routes.trim_end())
        .replace("{upstream_port}", &upstream.address().port().to_string())
        .replace("{authority}", &authority.address().to_string())
        .replace("{c}", &text(&guests.c))
        .replace("{go}", &text(&guests.go))
        .replace("{rust}", &text(&guests.rust))
}

/// Until it is interrupted.
async fn serve(mut demo: Demo, config: &Path) -> Result<()> {
    if let Proxy::Envoy(envoy) = &demo.proxy {
        let admin = envoy.admin_address();
        let stats = format!("curl 'http://{admin}/stats?usedonly&filter=pxg'");
        demo.try_it(config, &stats);
    }
    if let Proxy::Envoy(envoy) = &mut demo.proxy {
        while let Some(line) = envoy.access.recv().await {
            println!("   {line}");
        }
    }
    bail!("Envoy ended");
}

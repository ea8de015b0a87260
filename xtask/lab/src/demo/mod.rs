//! The demonstration: filters in three languages at work, each claim checked.

pub mod envoy;
mod envoy_host;
pub mod nginx;
mod nginx_host;
mod print;
mod shows;
mod stock;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::{Method, Request};
use sha2::{Digest as _, Sha256};

use crate::client::{self, Connection, Protocol, Whole};
use crate::host::{Built, Host, Logged};
use crate::paint::Paint;
use crate::upstream::{Seen, Server};
use print::Printer;

/// Show filters at work
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    built: Built,
    /// Keep running afterwards, and show each request that comes
    #[arg(long)]
    serve: bool,
}

/// The libraries with the filters, the same files for every host.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Guests {
    /// The library of example filters in Go
    #[arg(long, env = "PXG_LAB_GO", value_name = "FILE")]
    go: PathBuf,
    /// The library of example filters in Rust
    #[arg(long, env = "PXG_LAB_RUST", value_name = "FILE")]
    rust: PathBuf,
    /// The header policy in C
    #[arg(long, env = "PXG_LAB_C", value_name = "FILE")]
    c: PathBuf,
}

/// How long the authority takes for an answer.
const AUTHORITY_DELAY: Duration = Duration::from_millis(40);

/// What the shows work with.
struct Demo {
    printer: Printer,
    upstream: Server,
    authority: Server,
    host: Host,
    /// One for each protocol, opened when it is needed first.
    connections: [Option<Connection>; 2],
    requests: u64,
}

/// A request of a show.
#[derive(Clone, Copy)]
struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    /// Sent, and shown.
    fields: &'a [(&'a str, &'a str)],
    /// Fields worth showing of what the upstream got and of the response.
    names: &'a [&'a str],
    /// Show the response's body.
    body: bool,
}

/// How it went.
struct Went {
    whole: Whole,
    /// What the upstream got, if it was asked and told.
    seen: Option<Seen>,
    logged: Logged,
}

/// Runs it. An error if a check does not hold.
pub async fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir().context("make a folder for the configuration")?;
    let upstream = Server::upstream().await?;
    let authority = Server::authority(AUTHORITY_DELAY).await?;
    let config = include_str!("demo.toml")
        .replace("{upstream}", &upstream.address().to_string())
        .replace("{authority}", &authority.address().to_string())
        .replace("{c}", &Built::toml(&args.built.c))
        .replace("{go}", &Built::toml(&args.built.go))
        .replace("{rust}", &Built::toml(&args.built.rust));
    let file = folder.path().join("demo.toml");
    std::fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
    let log = folder.path().join("pxg-host.log");
    let host = Host::start(&args.built.host, &file, &log).await?;
    let mut demo = Demo {
        printer: Printer::new(Paint::stdout()),
        upstream,
        authority,
        connections: [None, None],
        host,
        requests: 0,
    };
    let guests = Guests {
        go: args.built.go.clone(),
        rust: args.built.rust.clone(),
        c: args.built.c.clone(),
    };
    demo.overture(&guests)?;
    let shown = shows::all(&mut demo).await;
    // What the proxy said belongs to what went wrong.
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    if let Err(error) = shown {
        bail!("{error:#}\npxg-host said:\n{said}");
    }
    if args.serve {
        return demo.serve(&file.display().to_string()).await;
    }
    demo.finale(&said).await
}

impl Demo {
    fn overture(&self, guests: &Guests) -> Result<()> {
        let p = self.printer.paint;
        println!(
            "{}",
            p.bold("Filters in Go, C and Rust inside one reverse proxy")
        );
        println!();
        println!(
            "   client {} pxg-host {} {} upstream {}",
            p.cyan("→"),
            p.bold(self.host.listener("main")?),
            p.cyan("→"),
            self.upstream.address()
        );
        println!("   {}", p.dim("one process, one worker thread, one Go runtime; the filters are shared libraries in it:"));
        println!("   Go     trace-id, token-check, faulty");
        println!("   C      header-policy");
        println!("   Rust   body-rewrite");
        checksums(p, guests)
    }

    /// Sends a request, and shows it and what became of it.
    async fn ask(&mut self, protocol: Protocol, ask: Ask<'_>) -> Result<Went> {
        let went = self.ask_quietly(protocol, ask).await?;
        let p = &self.printer;
        p.request(protocol, ask.method, ask.path, ask.fields);
        let upstream = went.seen.as_ref().map(|seen| print::pick(seen, ask.names));
        // A page tells nothing of what the upstream got.
        let asked = (went.logged.upstream_us > 0).then(Vec::new);
        p.passage(&went.logged, upstream.or(asked).as_deref());
        let body = ask
            .body
            .then(|| String::from_utf8_lossy(&went.whole.body).into_owned());
        p.response(&went.whole, ask.names, body.as_deref(), &went.logged);
        Ok(went)
    }

    async fn ask_quietly(&mut self, protocol: Protocol, ask: Ask<'_>) -> Result<Went> {
        self.requests += 1;
        let id = format!("demo-{}", self.requests);
        let address = self.host.listener("main")?;
        let mut request = Request::builder()
            .method(ask.method)
            .uri(format!("http://{address}{}", ask.path))
            .header("x-request-id", &id);
        for (name, value) in ask.fields {
            request = request.header(*name, *value);
        }
        let slot = &mut self.connections[usize::from(protocol == Protocol::H2c)];
        let connection = match slot {
            Some(connection) => connection,
            None => slot.insert(Connection::open(address, protocol).await?),
        };
        let whole = connection
            .ask(request.body(client::no_body())?)
            .await
            .with_context(|| format!("{} {} over {}", ask.method, ask.path, protocol.name()))?;
        let logged = self.host.logged(&id).await?;
        let seen = serde_json::from_slice(&whole.body).ok();
        Ok(Went {
            whole,
            seen,
            logged,
        })
    }

    /// Requests one after the other on a connection of their own, as fast as they are answered.
    async fn burst(&self, path: &str, requests: u64) -> Result<()> {
        let address = self.host.listener("main")?;
        let mut connection = Connection::open(address, Protocol::Http1).await?;
        for _ in 0..requests {
            let request = Request::get(format!("http://{address}{path}")).body(client::no_body())?;
            let answer = connection.ask(request).await?;
            anyhow::ensure!(answer.status == 200, "{path}: {}", answer.status);
        }
        Ok(())
    }

    async fn finale(&mut self, said: &str) -> Result<()> {
        let ended = self.host.drain(Duration::from_secs(10)).await?;
        let p = &mut self.printer;
        println!();
        p.check(ended.success(), "pxg-host drained and ended by itself");
        p.finale(self.requests, said, "pxg-host", "cargo xtask demo --serve")
    }

    /// Until it is interrupted.
    async fn serve(&mut self, config: &str) -> Result<()> {
        let (address, admin) = (self.host.listener("main")?, self.host.admin_address());
        let p = self.printer.paint;
        println!();
        println!("{}", p.bold("It keeps running. Try:"));
        for line in curl_lines(address, address) {
            println!("   {line}");
        }
        println!("   curl http://{admin}/");
        println!("   {}", p.dim(format!("configuration: {config}")));
        println!(
            "{}",
            p.dim("What each filter does is shown here as requests come. Ctrl-C ends it.")
        );
        while let Some(logged) = self.host.next_logged().await {
            let protocol = match logged.protocol.as_str() {
                "HTTP/2" => Protocol::H2c,
                _ => Protocol::Http1,
            };
            self.printer
                .request(protocol, &logged.method, &logged.path, &[]);
            let asked = (logged.upstream_us > 0).then(Vec::new);
            self.printer.passage(&logged, asked.as_deref());
            self.printer.summary(&logged);
        }
        bail!("pxg-host ended");
    }

    /// Number of a filter's calls of one kind in one phase, as the proxy counts them.
    async fn counted(&self, filter: &str, phase: &str, what: &str) -> Result<u64> {
        let guests = self.host.admin_json("/guests").await?;
        let count = &guests["filters"][filter]["phases"][phase][what];
        count
            .as_u64()
            .with_context(|| format!("no count of {what} of {filter} in {phase}: {guests}"))
    }

    /// Calls of a filter for headers of both directions, and nanoseconds in them.
    async fn calls_and_time(&self, filter: &str) -> Result<(u64, u64)> {
        let (mut calls, mut time) = (0, 0);
        for phase in ["request_headers", "response_headers"] {
            calls += self.counted(filter, phase, "calls").await?;
            time += self.counted(filter, phase, "time_ns").await?;
        }
        Ok((calls, time))
    }

    async fn healthy(&self) -> Result<bool> {
        Ok(self
            .host
            .admin(Method::GET, "/healthz")
            .await?
            .status
            .is_success())
    }
}

/// The libraries' files, so that a reader sees that every host loads the same.
fn checksums(paint: Paint, guests: &Guests) -> Result<()> {
    for library in [&guests.go, &guests.c, &guests.rust] {
        let bytes =
            std::fs::read(library).with_context(|| format!("read {}", library.display()))?;
        let name = library.file_name().unwrap_or_default().display();
        let sum = Sha256::digest(&bytes);
        let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        println!("   {}", paint.dim(format!("sha256 {sum}  {name}")));
    }
    Ok(())
}

/// What to try while it keeps running.
fn curl_lines(address: SocketAddr, h2c: SocketAddr) -> [String; 7] {
    [
        format!("curl -i http://{address}/trace/orders"),
        format!("curl -i --http2-prior-knowledge http://{h2c}/trace/orders"),
        format!("curl -i -H 'x-debug: 1' http://{address}/policy/orders"),
        format!("curl -i http://{address}/account/me"),
        format!("curl -i -H 'authorization: Bearer good-alice' http://{address}/account/me"),
        format!("curl -i http://{address}/shop/page"),
        format!("curl -i -H 'x-fault: panic' http://{address}/fault/orders"),
    ]
}

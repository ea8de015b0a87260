//! The demonstration inside a stock Envoy: the same guest files, the same requests, each claim checked by what the client
//! got, what the upstream got, and what Envoy counts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use http::Request;

use super::envoy_host::Envoy;
use super::print::{self, Printer};
use super::{AUTHORITY_DELAY, Guests, checksums};
use crate::client::{self, Connection, Protocol, Whole};
use crate::paint::{Paint, time};
use crate::upstream::{PAGE, Seen, Server, subject};

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::H2c];

/// The guests' filters in the order of their chain.
const FILTERS: [&str; 5] = [
    "trace-id",
    "header-policy",
    "token-check",
    "body-rewrite",
    "faulty",
];

/// Paths, and which filters see their requests.
const ROUTES: [(&str, &[&str]); 6] = [
    ("/trace", &["trace-id"]),
    ("/policy", &["header-policy"]),
    ("/account", &["trace-id", "token-check"]),
    ("/shop", &["trace-id", "body-rewrite"]),
    ("/fault", &["trace-id", "faulty"]),
    ("/", &[]),
];

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

struct Demo {
    printer: Printer,
    upstream: Server,
    authority: Server,
    envoy: Envoy,
    connections: [Option<Connection>; 2],
    requests: u64,
}

/// How a request went.
struct Went {
    whole: Whole,
    /// What the upstream got, if it was asked and told.
    seen: Option<Seen>,
    took: std::time::Duration,
}

impl Went {
    fn status(&self) -> u16 {
        self.whole.status.as_u16()
    }

    fn upstream(&self, name: &str) -> Option<&str> {
        self.seen.as_ref()?.field(name)
    }
}

/// A request of a show.
struct Ask<'a> {
    path: &'a str,
    fields: &'a [(&'a str, &'a str)],
    /// Fields worth showing.
    names: &'a [&'a str],
    /// Show the response's body.
    body: bool,
}

/// Runs it. An error if a check does not hold.
pub async fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir().context("make a folder for the configuration")?;
    let upstream = Server::upstream().await?;
    let authority = Server::authority(AUTHORITY_DELAY).await?;
    let config = config(&args.guests, &upstream, &authority);
    let envoy = Envoy::start(&args.envoy, &args.module, folder.path(), &config).await?;
    let mut demo = Demo {
        printer: Printer::new(Paint::stdout()),
        upstream,
        authority,
        envoy,
        connections: [None, None],
        requests: 0,
    };
    demo.overture(args)?;
    let shown = demo.shows().await;
    // What Envoy said belongs to what went wrong.
    let said = std::fs::read_to_string(folder.path().join("envoy.log")).unwrap_or_default();
    if let Err(error) = shown {
        bail!("{error:#}\nEnvoy said:\n{said}");
    }
    if args.serve {
        return demo.serve(&folder.path().join("envoy.yaml")).await;
    }
    demo.finale(&said).await
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

impl Demo {
    fn overture(&self, args: &Args) -> Result<()> {
        let p = self.printer.paint;
        let version = std::process::Command::new(&args.envoy)
            .arg("--version")
            .output()?;
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        // PROGRAM version: COMMIT/VERSION/...
        let version = version.rsplit("version: ").next();
        let version = version.and_then(|rest| rest.split('/').nth(1));
        let version = version.unwrap_or("of a version it does not tell");
        println!(
            "{}",
            p.bold("The same filters in Go, C and Rust inside a stock Envoy")
        );
        println!();
        println!(
            "   client {} Envoy {version} {} {} upstream {}",
            p.cyan("→"),
            p.bold(self.envoy.listener),
            p.cyan("→"),
            self.upstream.address()
        );
        println!("   {}", p.dim("Envoy as it was released; libproxy_golang.so is a dynamic module, and loads the filters' libraries:"));
        println!("   Go     trace-id, token-check, faulty");
        println!("   C      header-policy");
        println!("   Rust   body-rewrite");
        checksums(p, &args.guests)
    }

    async fn shows(&mut self) -> Result<()> {
        self.header_both_ways().await?;
        self.policy().await?;
        self.local_reply().await?;
        self.asynchronous().await?;
        self.rewrite().await?;
        self.panic().await?;
        self.counters().await
    }

    /// Sends a request, and shows it and what became of it.
    async fn ask(&mut self, protocol: Protocol, ask: Ask<'_>) -> Result<Went> {
        self.requests += 1;
        let address = self.envoy.listener;
        let mut request = Request::get(format!("http://{address}{}", ask.path));
        for (name, value) in ask.fields {
            request = request.header(*name, *value);
        }
        let slot = &mut self.connections[usize::from(protocol == Protocol::H2c)];
        let connection = match slot {
            Some(connection) if connection.is_open() => connection,
            _ => slot.insert(Connection::open(address, protocol).await?),
        };
        let asked = self.upstream.requests();
        let begin = std::time::Instant::now();
        let whole = connection
            .ask(request.body(client::no_body())?)
            .await
            .with_context(|| format!("GET {} over {}", ask.path, protocol.name()))?;
        let took = begin.elapsed();
        let seen: Option<Seen> = serde_json::from_slice(&whole.body).ok();
        let p = &self.printer;
        p.request(protocol, "GET", ask.path, ask.fields);
        let fields = seen.as_ref().map(|seen| print::pick(seen, ask.names));
        p.upstream(
            (self.upstream.requests() > asked)
                .then(|| fields.unwrap_or_default())
                .as_deref(),
        );
        let body = ask
            .body
            .then(|| String::from_utf8_lossy(&whole.body).into_owned());
        p.answer(&whole, ask.names, body.as_deref());
        Ok(Went { whole, seen, took })
    }

    async fn header_both_ways(&mut self) -> Result<()> {
        self.printer.title(
            "A header, set both ways",
            "trace-id (Go) looks for a trace id in the request. If there is none it makes one, and gives it to the upstream\n\
             and to the client.",
        );
        let mut made = Vec::new();
        for protocol in BOTH {
            let ask = Ask {
                path: "/trace/orders",
                fields: &[],
                names: &["x-trace-id"],
                body: false,
            };
            let went = self.ask(protocol, ask).await?;
            let got = went.whole.field("x-trace-id").unwrap_or("").to_owned();
            self.printer.check(
                went.status() == 200
                    && got.len() == 32
                    && went.upstream("x-trace-id") == Some(&got),
                "upstream and client got the same well-formed id",
            );
            made.push(got);
        }
        self.printer
            .check(made[0] != made[1], "the two requests got different ones");
        Ok(())
    }

    async fn policy(&mut self) -> Result<()> {
        self.printer.title(
            "A header policy in C",
            "header-policy removes x-debug, sets x-plan for the upstream and x-frame-options for the client, and refuses\n\
             what is below /policy/private.",
        );
        for protocol in BOTH {
            let ask = Ask {
                path: "/policy/orders",
                fields: &[("x-debug", "1"), ("x-plan", "free")],
                names: &["x-debug", "x-plan", "x-frame-options"],
                body: false,
            };
            let went = self.ask(protocol, ask).await?;
            self.printer.check(
                went.seen.is_some()
                    && went.upstream("x-debug").is_none()
                    && went.upstream("x-plan") == Some("gold")
                    && went.whole.field("x-frame-options") == Some("DENY"),
                "x-debug is gone, x-plan is gold, the client may not frame the page",
            );
        }
        let upstream = self.upstream.requests();
        let ask = Ask {
            path: "/policy/private/keys",
            fields: &[],
            names: &[],
            body: true,
        };
        let went = self.ask(Protocol::Http1, ask).await?;
        self.printer.check(
            went.status() == 403 && self.upstream.requests() == upstream,
            "the private path is refused",
        );
        Ok(())
    }

    async fn local_reply(&mut self) -> Result<()> {
        self.printer.title(
            "A local reply",
            "token-check (Go) sees at once that there is no token: it answers itself, and the upstream hears nothing of it.\n\
             trace-id, before it in the chain, still sees the response.",
        );
        for protocol in BOTH {
            let (upstream, authority) = (self.upstream.requests(), self.authority.requests());
            let ask = Ask {
                path: "/account/me",
                fields: &[],
                names: &["www-authenticate", "x-trace-id"],
                body: true,
            };
            let went = self.ask(protocol, ask).await?;
            self.printer.check(
                went.status() == 401 && went.whole.field("www-authenticate") == Some("Bearer"),
                "401, and the client is told how to authenticate",
            );
            self.printer.check(
                self.upstream.requests() == upstream && self.authority.requests() == authority,
                "neither the upstream nor the authority was asked",
            );
            let id = went.whole.field("x-trace-id").unwrap_or("");
            self.printer
                .check(id.len() == 32, "the reply carries the trace id");
        }
        Ok(())
    }

    async fn asynchronous(&mut self) -> Result<()> {
        self.printer.title(
            "An asynchronous decision",
            &format!(
                "With a token, token-check leaves the request pending: a goroutine asks an authority over a socket, at\n\
                 {}, which takes {} ms for its answer. Envoy's one worker thread does not wait: it serves others.",
                self.authority.address(),
                AUTHORITY_DELAY.as_millis()
            ),
        );
        for protocol in BOTH {
            let asked = self.authority.requests();
            let address = self.envoy.listener;
            let mut other = Connection::open(address, Protocol::Http1).await?;
            let ask = Ask {
                path: "/account/me",
                fields: &[("authorization", "Bearer good-alice")],
                names: &["x-subject"],
                body: false,
            };
            let (went, others) = {
                let mut waiting = std::pin::pin!(self.ask(protocol, ask));
                let mut others = 0;
                loop {
                    let request =
                        Request::get(format!("http://{address}/plain/x")).body(client::no_body())?;
                    let mut asking = std::pin::pin!(other.ask(request));
                    tokio::select! {
                        biased;
                        went = &mut waiting => {
                            // Not dropped: it would come to the upstream later, when nothing is expected there.
                            asking.await?;
                            break (went?, others);
                        }
                        answer = &mut asking => {
                            anyhow::ensure!(answer?.status == 200, "a plain request failed");
                            others += 1;
                        }
                    }
                }
            };
            self.printer.check(
                went.status() == 200
                    && went.upstream("x-subject") == Some(&subject("good-alice"))
                    && self.authority.requests() == asked + 1,
                "the authority was asked once, and the upstream got the subject that it answered",
            );
            let took = u64::try_from(went.took.as_nanos()).unwrap_or(u64::MAX);
            self.printer.check(
                went.took >= AUTHORITY_DELAY && others > 0,
                &format!(
                    "the request waited {}; meanwhile the same thread answered {others} others",
                    time(took)
                ),
            );
        }
        let upstream = self.upstream.requests();
        let ask = Ask {
            path: "/account/me",
            fields: &[("authorization", "Bearer bad-mallory")],
            names: &["www-authenticate"],
            body: true,
        };
        let went = self.ask(Protocol::Http1, ask).await?;
        self.printer.check(
            went.status() == 401 && self.upstream.requests() == upstream,
            "a token that the authority refuses is a 401, and the upstream hears nothing of it",
        );
        Ok(())
    }

    async fn rewrite(&mut self) -> Result<()> {
        self.printer.title(
            "A whole body, rewritten",
            "body-rewrite (Rust) asks for the whole body of HTML responses, headers held until then, and replaces the host\n\
             name that only insiders can reach.",
        );
        let wanted = PAGE.replace("http://internal.example", "https://www.example.com");
        for protocol in BOTH {
            let ask = Ask {
                path: "/shop/page",
                fields: &[],
                names: &["content-type", "content-length"],
                body: false,
            };
            let went = self.ask(protocol, ask).await?;
            let body = String::from_utf8_lossy(&went.whole.body).into_owned();
            self.printer.difference(PAGE, &body);
            self.printer.check(
                went.status() == 200 && body == wanted,
                "both links lead to the public name, and nothing else has changed",
            );
            let length = went
                .whole
                .field("content-length")
                .and_then(|l| l.parse().ok());
            self.printer.check(
                length == Some(wanted.len()),
                "content-length is that of the new body",
            );
        }
        Ok(())
    }

    async fn panic(&mut self) -> Result<()> {
        self.printer.title(
            "A panic, contained",
            "faulty (Go) panics, first in a call on Envoy's thread, then in a goroutine. Its own request gets 500; Envoy,\n\
             its other requests and the next one on this very connection go on.",
        );
        for (protocol, fault) in [(Protocol::Http1, "panic"), (Protocol::H2c, "async-panic")] {
            let upstream = self.upstream.requests();
            let ask = |fields, body| Ask {
                path: "/fault/orders",
                fields,
                names: &[],
                body,
            };
            let fields = [("x-fault", fault)];
            let went = self.ask(protocol, ask(&fields, true)).await?;
            self.printer.check(
                went.status() == 500 && self.upstream.requests() == upstream,
                "500, and the upstream was not asked",
            );
            let went = self.ask(protocol, ask(&[], false)).await?;
            self.printer.check(
                went.status() == 200,
                "the next request on the same connection is answered as if nothing had been",
            );
        }
        Ok(())
    }

    async fn counters(&mut self) -> Result<()> {
        self.printer.title(
            "What Envoy counts",
            "The module's counters are Envoy's own statistics, by filter and phase: /stats of the admin listener, Prometheus,\n\
             or wherever else Envoy sends them.",
        );
        for (what, name, config, least) in [
            ("calls of trace-id", "pxg_guest_calls_total", "trace-id", 1),
            (
                "pending requests of token-check",
                "pxg_guest_pending_total",
                "token-check",
                3,
            ),
            ("panics of faulty", "pxg_guest_panics_total", "faulty", 2),
        ] {
            let n = self.envoy.counted(name, config, least).await?;
            self.printer.check(
                n >= least,
                &format!("{what}: {n} ({name}, config={config}, phase=request_headers)"),
            );
        }
        Ok(())
    }

    async fn finale(&mut self, said: &str) -> Result<()> {
        let ended = self.envoy.terminate().await?;
        let p = &mut self.printer;
        println!();
        p.check(
            ended.success(),
            "Envoy ended by itself when it was asked to",
        );
        p.finale(
            self.requests,
            said,
            "Envoy",
            "cargo xtask demo --host envoy --serve",
        )
    }

    /// Until it is interrupted.
    async fn serve(&mut self, config: &Path) -> Result<()> {
        let (address, admin) = (self.envoy.listener, self.envoy.admin_address());
        let p = self.printer.paint;
        println!();
        println!("{}", p.bold("It keeps running. Try:"));
        for line in super::curl_lines(address) {
            println!("   {line}");
        }
        println!("   curl 'http://{admin}/stats?usedonly&filter=pxg'");
        println!(
            "   {}",
            p.dim(format!("configuration: {}", config.display()))
        );
        println!(
            "{}",
            p.dim("Envoy's access log is shown here as requests come. Ctrl-C ends it.")
        );
        while let Some(line) = self.envoy.access.recv().await {
            println!("   {line}");
        }
        bail!("Envoy ended");
    }
}

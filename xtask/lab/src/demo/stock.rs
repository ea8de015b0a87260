//! The demonstration inside a proxy that nobody here built: the same guest files, the same requests, each claim checked
//! by what the client got, what the upstream got, and what the proxy counts.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use http::Request;

use super::envoy_host::Envoy;
use super::nginx_host::Nginx;
use super::print::{self, Printer};
use super::{AUTHORITY_DELAY, Guests, checksums};
use crate::client::{self, Connection, Protocol, Whole};
use crate::paint::{Paint, time};
use crate::upstream::{PAGE, Seen, Server, subject};

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::H2c];

/// The guests' filters in the order of their chain.
pub(super) const FILTERS: [&str; 5] = [
    "trace-id",
    "header-policy",
    "token-check",
    "body-rewrite",
    "faulty",
];

/// Paths, and which filters see their requests.
pub(super) const ROUTES: [(&str, &[&str]); 6] = [
    ("/trace", &["trace-id"]),
    ("/policy", &["header-policy"]),
    ("/account", &["trace-id", "token-check"]),
    ("/shop", &["trace-id", "body-rewrite"]),
    ("/fault", &["trace-id", "faulty"]),
    ("/", &[]),
];

/// A running proxy.
#[derive(Debug)]
pub(super) enum Proxy {
    Envoy(Envoy),
    Nginx(Nginx),
}

impl Proxy {
    fn address(&self, protocol: Protocol) -> SocketAddr {
        match self {
            Self::Envoy(envoy) => envoy.listener,
            Self::Nginx(nginx) => nginx.address(protocol),
        }
    }

    /// A counter of request heads of a filter, once it is at least `least`.
    async fn counted(&self, name: &str, config: &str, least: u64) -> Result<u64> {
        match self {
            Self::Envoy(envoy) => envoy.counted(name, config, least).await,
            Self::Nginx(nginx) => nginx.counted(name, config, least).await,
        }
    }

    async fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        match self {
            Self::Envoy(envoy) => envoy.terminate().await,
            Self::Nginx(nginx) => nginx.terminate().await,
        }
    }
}

/// What a show says of the proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    /// Its name.
    pub(super) name: &'static str,
    /// What a reader may try.
    pub(super) again: &'static str,
    /// Where its counters are.
    pub(super) counters: &'static str,
}

/// The servers around the proxy.
pub(super) struct Peers {
    pub(super) upstream: Server,
    pub(super) authority: Server,
}

impl Peers {
    pub(super) async fn start() -> Result<Self> {
        Ok(Self {
            upstream: Server::upstream().await?,
            authority: Server::authority(AUTHORITY_DELAY).await?,
        })
    }
}

pub(super) struct Demo {
    pub(super) printer: Printer,
    words: Words,
    upstream: Server,
    authority: Server,
    pub(super) proxy: Proxy,
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

impl Demo {
    pub(super) fn new(words: Words, peers: Peers, proxy: Proxy) -> Self {
        Self {
            printer: Printer::new(Paint::stdout()),
            words,
            upstream: peers.upstream,
            authority: peers.authority,
            proxy,
            connections: [None, None],
            requests: 0,
        }
    }

    /// Which proxy it is, and how the guests come into it.
    pub(super) fn overture(&self, version: &str, how: &str, guests: &Guests) -> Result<()> {
        let (p, name) = (self.printer.paint, self.words.name);
        println!(
            "{}",
            p.bold(format!(
                "The same filters in Go, C and Rust inside a stock {name}"
            ))
        );
        println!();
        println!(
            "   client {} {name} {version} {} {} upstream {}",
            p.cyan("→"),
            p.bold(self.proxy.address(Protocol::Http1)),
            p.cyan("→"),
            self.upstream.address()
        );
        println!("   {}", p.dim(how));
        println!("   Go     trace-id, token-check, faulty");
        println!("   C      header-policy");
        println!("   Rust   body-rewrite");
        checksums(p, guests)
    }

    pub(super) async fn shows(&mut self) -> Result<()> {
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
        let address = self.proxy.address(protocol);
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
                 {}, which takes {} ms for its answer. The one worker of {} does not wait: it serves others.",
                self.authority.address(),
                AUTHORITY_DELAY.as_millis(),
                self.words.name
            ),
        );
        for protocol in BOTH {
            let asked = self.authority.requests();
            let address = self.proxy.address(Protocol::Http1);
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
            "faulty (Go) panics, first in a call on the proxy's thread, then in a goroutine. Its own request gets 500; the\n\
             proxy, its other requests and the next one on this very connection go on.",
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
            &format!("What {} counts", self.words.name),
            self.words.counters,
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
            let n = self.proxy.counted(name, config, least).await?;
            self.printer.check(
                n >= least,
                &format!("{what}: {n} ({name}, config={config}, phase=request_headers)"),
            );
        }
        Ok(())
    }

    /// Its end, and the last line. An error if a check does not hold; then it shows what the proxy `said`.
    pub(super) async fn finale(&mut self, said: &str) -> Result<()> {
        let ended = self.proxy.terminate().await?;
        let (p, words) = (&mut self.printer, self.words);
        println!();
        p.check(
            ended.success(),
            &format!("{} ended by itself when it was asked to", words.name),
        );
        p.finale(self.requests, said, words.name, words.again)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.proxy.address(Protocol::Http1)
    }

    /// What to try while it keeps running.
    pub(super) fn try_it(&self, config: &Path, more: &str) {
        let p = self.printer.paint;
        println!();
        println!("{}", p.bold("It keeps running. Try:"));
        for line in super::curl_lines(
            self.proxy.address(Protocol::Http1),
            self.proxy.address(Protocol::H2c),
        ) {
            println!("   {line}");
        }
        println!("   {more}");
        println!(
            "   {}",
            p.dim(format!("configuration: {}", config.display()))
        );
        println!(
            "{}",
            p.dim("The access log is shown here as requests come. Ctrl-C ends it.")
        );
    }
}

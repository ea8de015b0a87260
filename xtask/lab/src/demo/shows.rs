//! What is shown, in order.

use std::time::Duration;

use anyhow::{Context, Result};
use http::Request;

use super::{AUTHORITY_DELAY, Ask, Demo, Went};
use crate::client::{self, Connection, Protocol};
use crate::host::Step;
use crate::paint::time;
use crate::upstream::{PAGE, subject};

const BOTH: [Protocol; 2] = [Protocol::Http1, Protocol::H2c];

pub(super) async fn all(demo: &mut Demo) -> Result<()> {
    header_both_ways(demo).await?;
    policy(demo).await?;
    local_reply(demo).await?;
    asynchronous(demo).await?;
    rewrite(demo).await?;
    panic(demo).await
}

impl Went {
    fn step(&self, filter: &str, phase: &str, late: bool) -> Option<&Step> {
        let steps = &mut self.logged.filters.iter();
        steps.find(|s| s.filter == filter && s.phase == phase && s.late == late)
    }

    fn did(&self, filter: &str, phase: &str, action: &str) -> bool {
        let steps = &mut self.logged.filters.iter();
        steps.any(|s| s.filter == filter && s.phase == phase && s.action == action)
    }

    fn status(&self) -> u16 {
        self.whole.status.as_u16()
    }
}

fn is_trace_id(text: &str) -> bool {
    text.len() == 32
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

async fn header_both_ways(demo: &mut Demo) -> Result<()> {
    demo.printer.title(
        "A header, set both ways",
        "trace-id (Go) looks for a trace id in the request. If there is none it makes one, and gives it to the upstream\n\
         and to the client. Each of its calls is a function call on the proxy's own thread.",
    );
    let ask = Ask {
        method: "GET",
        path: "/trace/orders",
        fields: &[],
        names: &["x-trace-id"],
        body: false,
    };
    let mut made = Vec::new();
    for protocol in BOTH {
        let went = demo.ask(protocol, ask).await?;
        let got = went.whole.field("x-trace-id").unwrap_or("").to_owned();
        let upstream = went.seen.as_ref().and_then(|s| s.field("x-trace-id"));
        demo.printer.check(
            went.status() == 200 && is_trace_id(&got) && upstream == Some(&got),
            "upstream and client got the same well-formed id",
        );
        made.push(got);
    }
    demo.printer
        .check(made[0] != made[1], "the two requests got different ones");
    let own = "0123456789abcdef0123456789abcdef";
    let fields = [("x-trace-id", own)];
    let went = demo
        .ask(
            Protocol::H2c,
            Ask {
                fields: &fields,
                ..ask
            },
        )
        .await?;
    let upstream = went.seen.as_ref().and_then(|s| s.field("x-trace-id"));
    demo.printer.check(
        upstream == Some(own) && went.whole.field("x-trace-id") == Some(own),
        "an id that the client brought is kept",
    );
    warm(demo, ask).await
}

/// What a call costs when the proxy is busy: single requests, a tenth of a second apart, find everything cold.
async fn warm(demo: &mut Demo, ask: Ask<'_>) -> Result<()> {
    const REQUESTS: u64 = 5000;
    let before = demo.calls_and_time("trace-id").await?;
    demo.burst(ask.path, REQUESTS).await?;
    let after = demo.calls_and_time("trace-id").await?;
    let calls = after.0 - before.0;
    let each = (after.1 - before.1) / calls.max(1);
    println!();
    demo.printer.note(&format!(
        "Single requests find everything cold. {REQUESTS} more in a row, and a call took {} on average.",
        time(each)
    ));
    demo.printer.check(
        calls == 2 * REQUESTS,
        "trace-id was called twice for each of them",
    );
    Ok(())
}

async fn policy(demo: &mut Demo) -> Result<()> {
    demo.printer.title(
        "A header policy in C",
        "header-policy removes x-debug, sets x-plan for the upstream and x-frame-options for the client, and refuses\n\
         what is below /policy/private.",
    );
    let ask = Ask {
        method: "GET",
        path: "/policy/orders",
        fields: &[("x-debug", "1"), ("x-plan", "free")],
        names: &["x-debug", "x-plan", "x-frame-options"],
        body: false,
    };
    for protocol in BOTH {
        let went = demo.ask(protocol, ask).await?;
        let seen = went
            .seen
            .as_ref()
            .context("the upstream did not tell what it got")?;
        demo.printer.check(
            seen.field("x-debug").is_none()
                && seen.field("x-plan") == Some("gold")
                && went.whole.field("x-frame-options") == Some("DENY"),
            "x-debug is gone, x-plan is gold, the client may not frame the page",
        );
    }
    let path = "/policy/private/keys";
    let went = demo
        .ask(
            Protocol::Http1,
            Ask {
                path,
                fields: &[],
                body: true,
                ..ask
            },
        )
        .await?;
    demo.printer.check(
        went.status() == 403 && went.did("header-policy", "request_headers", "REPLY"),
        "the private path is refused",
    );
    Ok(())
}

async fn local_reply(demo: &mut Demo) -> Result<()> {
    demo.printer.title(
        "A local reply",
        "token-check (Go) sees at once that there is no token: it answers itself, and the upstream hears nothing of it.\n\
         trace-id, before it in the chain, still sees the response.",
    );
    for protocol in BOTH {
        let (upstream, authority) = (demo.upstream.requests(), demo.authority.requests());
        let ask = Ask {
            method: "GET",
            path: "/account/me",
            fields: &[],
            names: &["www-authenticate", "x-trace-id"],
            body: true,
        };
        let went = demo.ask(protocol, ask).await?;
        demo.printer.check(
            went.status() == 401 && went.whole.field("www-authenticate") == Some("Bearer"),
            "401, and the client is told how to authenticate",
        );
        demo.printer.check(
            demo.upstream.requests() == upstream && demo.authority.requests() == authority,
            "neither the upstream nor the authority was asked",
        );
        let id = went.whole.field("x-trace-id").unwrap_or("");
        demo.printer
            .check(is_trace_id(id), "the reply carries the trace id");
    }
    Ok(())
}

async fn asynchronous(demo: &mut Demo) -> Result<()> {
    let delay = AUTHORITY_DELAY.as_millis();
    demo.printer.title(
        "An asynchronous decision",
        &format!(
            "With a token, token-check leaves the request pending: a goroutine asks an authority over a socket, at\n\
             {}, which takes {delay} ms for its answer. The proxy's thread does not wait: it serves others.",
            demo.authority.address()
        ),
    );
    for protocol in BOTH {
        let asked = demo.authority.requests();
        let ask = Ask {
            method: "GET",
            path: "/account/me",
            fields: &[("authorization", "Bearer good-alice")],
            names: &["x-subject"],
            body: false,
        };
        // The same worker answers others meanwhile, on a connection of their own.
        let address = demo.host.listener("main")?;
        let mut other = Connection::open(address, Protocol::Http1).await?;
        let (went, others) = {
            let mut waiting = std::pin::pin!(demo.ask(protocol, ask));
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
        let subject = subject("good-alice");
        let upstream = went.seen.as_ref().and_then(|s| s.field("x-subject"));
        demo.printer.check(
            went.status() == 200
                && upstream == Some(&subject)
                && demo.authority.requests() == asked + 1,
            "the authority was asked once, and the upstream got the subject that it answered",
        );
        let total = Duration::from_micros(went.logged.duration_us);
        let inside: u64 = went.logged.filters.iter().map(|s| s.ns).sum();
        demo.printer.check(
            went.did("token-check", "request_headers", "PENDING")
                && went.step("token-check", "request_headers", true).is_some()
                && total >= AUTHORITY_DELAY
                && Duration::from_nanos(inside) < AUTHORITY_DELAY / 4,
            &format!(
                "the request waited {}; the proxy's thread was in filters for {} of it",
                time(went.logged.duration_us * 1000),
                time(inside)
            ),
        );
        demo.printer.check(
            others > 0,
            &format!("meanwhile the same thread answered {others} other requests"),
        );
    }
    let ask = Ask {
        method: "GET",
        path: "/account/me",
        fields: &[("authorization", "Bearer bad-mallory")],
        names: &["www-authenticate"],
        body: true,
    };
    let upstream = demo.upstream.requests();
    let went = demo.ask(Protocol::Http1, ask).await?;
    demo.printer.check(
        went.status() == 401 && demo.upstream.requests() == upstream,
        "a token that the authority refuses is a 401, and the upstream hears nothing of it",
    );
    Ok(())
}

async fn rewrite(demo: &mut Demo) -> Result<()> {
    demo.printer.title(
        "A whole body, rewritten",
        "body-rewrite (Rust) asks for the whole body of HTML responses, headers held until then, and replaces the host\n\
         name that only insiders can reach. The new body goes out from where the filter made it, without a copy.",
    );
    for protocol in BOTH {
        let ask = Ask {
            method: "GET",
            path: "/shop/page",
            fields: &[],
            names: &["content-type", "content-length"],
            body: false,
        };
        let went = demo.ask(protocol, ask).await?;
        let body = String::from_utf8_lossy(&went.whole.body).into_owned();
        demo.printer.difference(PAGE, &body);
        let wanted = PAGE.replace("http://internal.example", "https://www.example.com");
        demo.printer.check(
            went.status() == 200 && body == wanted,
            "both links lead to the public name, and nothing else has changed",
        );
        let length = went
            .whole
            .field("content-length")
            .and_then(|l| l.parse().ok());
        demo.printer.check(
            length == Some(wanted.len()),
            "content-length is that of the new body",
        );
    }
    Ok(())
}

async fn panic(demo: &mut Demo) -> Result<()> {
    demo.printer.title(
        "A panic, contained",
        "faulty (Go) panics, first in a call on the proxy's thread, then in a goroutine. Its own request gets 500; the\n\
         proxy, its other requests and the next one on this very connection go on.",
    );
    let healthy = Ask {
        method: "GET",
        path: "/fault/orders",
        fields: &[],
        names: &[],
        body: false,
    };
    for (protocol, fault) in [(Protocol::Http1, "panic"), (Protocol::H2c, "async-panic")] {
        let upstream = demo.upstream.requests();
        let before = demo.counted("faulty", "request_headers", "panics").await?;
        let fields = [("x-fault", fault)];
        let went = demo
            .ask(
                protocol,
                Ask {
                    fields: &fields,
                    body: true,
                    ..healthy
                },
            )
            .await?;
        demo.printer.check(
            went.status() == 500
                && went.did("faulty", "request_headers", "ERROR")
                && demo.upstream.requests() == upstream,
            "500, and the upstream was not asked",
        );
        let after = demo.counted("faulty", "request_headers", "panics").await?;
        demo.printer
            .check(after == before + 1, "the proxy counted the panic");
        let went = demo.ask(protocol, healthy).await?;
        demo.printer.check(
            went.status() == 200 && demo.healthy().await?,
            "the next request on the same connection is answered as if nothing had been",
        );
    }
    Ok(())
}

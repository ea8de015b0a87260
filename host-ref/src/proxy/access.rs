//! The access log: one line per request, written when both directions have ended.
//!
//! Fields of the JSON form, in this order; the text form has the same in a fixed order (see the README): `time`
//! (RFC 3339), `request_id`, `listener`, `connection`, `client`, `protocol`, `method`, `host`, `path`, `status` (0: none
//! was sent), `details`, `route`, `cluster`, `upstream`, `attempts`, `request_bytes`, `response_bytes`, `duration_us`,
//! `upstream_us`, `request_end`, `response_end`, and in the JSON form, if `access_log.trace` is on, `filters`: a list with
//! each decision of a filter in order, of `filter`, `phase`, `action`, `ops` (the number of operations), `late` (not by
//! returning, but later) and `ns` (time inside the filter; 0 for a late one).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::config::Format;
use super::exchange::{Ended, Exchange};
use crate::engine::{Dir, Filter, PHASES, Step, action_name};

/// Where lines go; shared by all workers, each of which collects lines and writes them together.
#[derive(Debug)]
pub(super) struct AccessLog {
    format: Format,
    trace: bool,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Stdout,
    File(Mutex<File>),
}

/// Most characters of one text that a client or guest chose.
const CAP: usize = 1024;

impl AccessLog {
    /// Opens the file, to append.
    pub(super) fn open(path: &Path, format: Format, trace: bool) -> io::Result<Self> {
        let sink = if path == Path::new("-") {
            Sink::Stdout
        } else {
            Sink::File(Mutex::new(
                OpenOptions::new().append(true).create(true).open(path)?,
            ))
        };
        Ok(Self {
            format,
            trace,
            sink,
        })
    }

    /// Whether lines have what each filter did.
    pub(super) fn traces(&self) -> bool {
        self.trace
    }

    /// Writes whole lines. What cannot be written is lost: a full disk stops no request.
    pub(super) fn write(&self, lines: &[u8]) {
        let result = match &self.sink {
            Sink::Stdout => io::stdout().lock().write_all(lines),
            Sink::File(file) => match file.lock() {
                Ok(mut file) => file.write_all(lines),
                Err(_) => Ok(()),
            },
        };
        if let Err(error) = result {
            tracing::warn!(%error, "cannot write the access log");
        }
    }

    /// Appends the line of one exchange.
    pub(super) fn line(&self, x: &Exchange, now: u64, filters: &[FilterStep], out: &mut Vec<u8>) {
        let duration = now.saturating_sub(x.start);
        let began = SystemTime::now() - Duration::from_nanos(duration);
        let details = x.details.borrow();
        let cluster = x.cluster.get().map(|c| x.site.cluster(c).name.as_str());
        let upstream_ns = match (x.sent_at.get(), x.answered_at.get()) {
            (sent, answered) if answered > sent => answered - sent,
            _ => 0,
        };
        let line = Line {
            time: humantime::format_rfc3339_micros(began).to_string(),
            request_id: x
                .request_id
                .get()
                .and_then(|v| v.to_str().ok())
                .unwrap_or(""),
            listener: &x.conn.listener.name,
            connection: x.conn.id,
            client: x.conn.peer,
            protocol: protocol(x.version),
            method: cap(x.method.as_str()),
            host: x
                .authority
                .get()
                .and_then(|v| v.to_str().ok())
                .map_or("", cap),
            path: cap(x.uri.path_and_query().map_or("", |p| p.as_str())),
            status: x.status.get(),
            details: cap(&details),
            route: x.route().map_or("", |r| &r.name),
            cluster: cluster.unwrap_or(""),
            upstream: x.upstream.get(),
            attempts: x.attempts.get(),
            request_bytes: x.body_bytes(Dir::Request),
            response_bytes: x.body_bytes(Dir::Response),
            duration_us: duration / 1000,
            upstream_us: upstream_ns / 1000,
            request_end: word(x.ended(Dir::Request)),
            response_end: word(x.ended(Dir::Response)),
            filters: self.trace.then_some(filters),
        };
        match self.format {
            Format::Json => {
                // Writing to memory cannot fail, and JSON escapes by itself.
                let _ = serde_json::to_writer(&mut *out, &line);
                out.push(b'\n');
            }
            Format::Text => line.text(out),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    request_id: &'a str,
    listener: &'a str,
    connection: u64,
    client: std::net::SocketAddr,
    protocol: &'a str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    details: &'a str,
    route: &'a str,
    cluster: &'a str,
    upstream: Option<std::net::SocketAddr>,
    attempts: u32,
    request_bytes: u64,
    response_bytes: u64,
    duration_us: u64,
    upstream_us: u64,
    request_end: &'a str,
    response_end: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    filters: Option<&'a [FilterStep]>,
}

/// One decision of a filter.
#[derive(Debug, Serialize)]
pub(super) struct FilterStep {
    filter: String,
    phase: &'static str,
    action: &'static str,
    ops: usize,
    late: bool,
    ns: u64,
}

impl FilterStep {
    /// Of a filter.
    pub(super) fn new(filter: &Filter, step: &Step) -> Self {
        let phase = PHASES.iter().find(|(phase, _)| *phase == step.phase);
        Self {
            filter: filter.name.clone(),
            // `apply` belongs to no event.
            phase: phase.map_or("apply", |(_, name)| name),
            action: action_name(step.action),
            ops: step.ops,
            late: step.late,
            ns: step.ns,
        }
    }
}

impl Line<'_> {
    fn text(&self, out: &mut Vec<u8>) {
        let upstream = self
            .upstream
            .map_or_else(|| "-".to_owned(), |a| a.to_string());
        let _ = writeln!(
            out,
            "{} {} \"{} {} {}\" {} {} {} host={} route={} upstream={} attempts={} in={} out={} us={} upstream_us={} ends={},{} id={} conn={}",
            self.time,
            self.client,
            Escaped(self.method),
            Escaped(self.path),
            self.protocol,
            self.status,
            Escaped(dash(self.details)),
            dash(self.listener),
            Escaped(dash(self.host)),
            dash(self.route),
            upstream,
            self.attempts,
            self.request_bytes,
            self.response_bytes,
            self.duration_us,
            self.upstream_us,
            self.request_end,
            self.response_end,
            Escaped(dash(self.request_id)),
            self.connection,
        );
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn cap(text: &str) -> &str {
    match text.char_indices().nth(CAP) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

/// Text without control characters, quotes and blanks, so that a line stays a line and a field a field.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' | ' ' => write!(f, "\\x{:02x}", u32::from(c))?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

pub(super) fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn word(ended: Option<Ended>) -> &'static str {
    match ended {
        Some(Ended::Complete) => "complete",
        Some(Ended::SenderDied) => "sender_died",
        Some(Ended::ReceiverDied) => "receiver_died",
        Some(Ended::Timeout) => "timeout",
        Some(Ended::TooLarge) => "too_large",
        Some(Ended::Reset) => "reset",
        None => "cut",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line() {
        let text = Escaped("a b\n\"c\"\\\u{7}").to_string();
        assert_eq!(text, "a\\x20b\\u{a}\\x22c\\x22\\x5c\\u{7}");
    }

    #[test]
    fn what_others_chose_is_capped() {
        assert_eq!(cap(&"é".repeat(2000)).chars().count(), CAP);
        assert_eq!(cap("short"), "short");
    }
}

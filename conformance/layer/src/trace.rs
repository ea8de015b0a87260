//! Records of all calls, for the history checker of `pxg-conformance layer-check`: the schema of the probe guest's
//! records, with `side` "layer".

use std::sync::atomic::{AtomicU64, Ordering};

use proxy_golang_abi as abi;
use proxy_golang_conformance::parts::config::ConfigMade;
use proxy_golang_conformance::parts::model::{Outcome, ReplyFound};
use serde_json::{Map, Value, json};

use crate::report::{self, Reporter};
use crate::sys::platform;
use crate::sys::view::{FieldSpan, SeenConfig, SeenEvent, Span};

static SEQ: AtomicU64 = AtomicU64::new(0);

/// Views up to this length are written out.
const BODY: usize = 512;

fn on() -> Option<&'static Reporter> {
    report::current().filter(|r| r.settings.trace)
}

fn latin1(b: &[u8]) -> String {
    b.iter().map(|c| char::from(*c)).collect()
}

fn fnv<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let h = parts.flatten().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{h:016x}")
}

fn put(r: &Reporter, function: &str, edge: &str, members: Value) {
    let mut m = Map::new();
    m.insert("side".into(), "layer".into());
    m.insert("seq".into(), SEQ.fetch_add(1, Ordering::Relaxed).into());
    m.insert("t".into(), platform::now_ns().into());
    m.insert("pid".into(), std::process::id().into());
    m.insert("tid".into(), platform::tid().into());
    m.insert("fn".into(), function.into());
    m.insert("edge".into(), edge.into());
    m.insert(
        "library".into(),
        r.settings.guest.display().to_string().into(),
    );
    if let Value::Object(more) = members {
        m.extend(more.into_iter().filter(|(_, v)| !v.is_null()));
    }
    r.line(&m);
}

/// A call with plain members.
pub(crate) fn call(function: &str, edge: &str, members: impl FnOnce() -> Value) {
    if let Some(r) = on() {
        put(r, function, edge, members());
    }
}

pub(crate) fn release(_slot: usize, stream: u64, id: u64) {
    call(
        "release",
        "enter",
        || json!({ "owned": id, "stream": stream, "arg": 1 }),
    );
}

pub(crate) fn init(host: &abi::Host, status: Option<i32>, name: &str, version: &str) {
    call(
        "init",
        if status.is_some() { "exit" } else { "enter" },
        || {
            let entries = [
                host.complete.is_some(),
                host.apply.is_some(),
                host.wake.is_some(),
                host.log.is_some(),
                host.scratch_more.is_some(),
                host.get_ext.is_some(),
                !host.page.is_null(),
            ];
            let table = json!({
                "size": host.size, "major": host.major, "minor": host.minor, "n_workers": host.n_workers,
                "features": host.features, "name": name, "version": version, "ctx": host.ctx, "entries": entries,
                "sum": fnv(std::iter::once(proxy_golang_conformance::parts::peek::as_bytes(host))),
            });
            match status {
                None => json!({ "host": table }),
                Some(s) => json!({ "status": s }),
            }
        },
    );
}

pub(crate) fn config_enter(c: &SeenConfig) {
    call("on_config_new", "enter", || {
        json!({
            "size": c.seen.size,
            "instance": latin1(c.seen.text(&c.name)),
            "filter": latin1(c.seen.text(&c.filter)),
            "config_bytes": fnv(std::iter::once(c.seen.text(&c.bytes))),
            "features": c.raw.features,
            "arg": c.raw.flags.0,
            "parent": (c.raw.parent != 0).then_some(c.raw.parent),
        })
    });
}

pub(crate) fn config_exit(c: &SeenConfig, made: &ConfigMade) {
    call("on_config_new", "exit", || {
        json!({
            "instance": latin1(c.seen.text(&c.name)),
            "config": made.config,
            "status": made.status,
            "result": {
                "action": 0, "flags": made.flags, "user": 0, "n_ops": 0, "pass": 0, "drop": 0, "inject": 0, "write": 0,
                "unsubscribe": 0, "modes": [made.body_mode[0].0, made.body_mode[1].0], "more": 0,
                "subscribe": made.subscribe, "pend": made.pend_phases, "max_body": made.max_body,
            },
        })
    });
}

fn answer(o: &Outcome, owned: &[u64]) -> Value {
    let sum = |kind: u16| {
        o.ops
            .get()
            .iter()
            .filter(|op| op.kind == kind)
            .map(|op| {
                if kind < 10 {
                    op.u0
                } else {
                    op.val.text.len.into()
                }
            })
            .fold(0u64, u64::saturating_add)
    };
    let reply = match &o.reply {
        ReplyFound::Some(r) => json!(r.status),
        _ => Value::Null,
    };
    let mut v = json!({
        "action": o.action.0, "flags": o.flags, "user": o.user, "n_ops": o.ops.count,
        "pass": sum(8), "drop": sum(9), "inject": sum(10), "write": sum(11),
        "unsubscribe": o.unsubscribe, "modes": [o.body_mode[0].0, o.body_mode[1].0], "more": o.more_bytes,
        "max_body": [0, 0], "owned": owned,
    });
    if let (Value::Object(m), false) = (&mut v, reply.is_null()) {
        m.insert("reply".into(), reply);
    }
    v
}

pub(crate) fn event_enter(e: &SeenEvent, instance: &str, preset: Value) {
    call("on_event", "enter", || {
        let fields = |l: &[FieldSpan]| {
            (!l.is_empty()).then(|| {
                l.iter()
                    .map(|f| {
                        let (n, v) = e.field(f);
                        (latin1(n), latin1(v))
                    })
                    .collect::<Vec<_>>()
            })
        };
        let body = e.body();
        let data = crate::content::is_data(e.raw.phase);
        let attr = |a: &Span| (a.flags & 1 == 0).then(|| latin1(e.seen.text(a)));
        json!({
            "instance": instance.split_once('/').map_or(instance, |(_, n)| n),
            "size": e.seen.size, "phase": e.raw.phase.0, "flags": e.raw.flags.0, "worker": e.raw.worker,
            "config": e.raw.config, "user": e.raw.user, "stream": e.raw.stream,
            "token": (e.raw.token != 0).then_some(e.raw.token), "arg": e.raw.arg,
            "fields": fields(&e.fields), "trailers": fields(&e.trailers),
            "peer_fields": fields(&e.peer_fields), "peer_trailers": fields(&e.peer_trailers),
            "chunks": data.then(|| e.chunks.iter().map(|c| c.len).collect::<Vec<_>>()),
            "body_offset": data.then_some(e.raw.body_offset),
            "body": (data && body.len() <= BODY).then(|| latin1(&body)),
            "body_sum": data.then(|| fnv(std::iter::once(body.as_slice()))),
            "attrs": (!e.attrs.is_empty()).then(|| e.attrs.iter().map(attr).collect::<Vec<_>>()),
            "sum": fnv(e.seen.all_bytes()),
            "preset": preset,
        })
    });
}

pub(crate) fn event_exit(e: &SeenEvent, instance: &str, o: &Outcome, owned: &[u64], changed: bool) {
    call("on_event", "exit", || {
        json!({
            "instance": instance.split_once('/').map_or(instance, |(_, n)| n),
            "phase": e.raw.phase.0, "config": e.raw.config, "stream": e.raw.stream,
            "token": (e.raw.token != 0).then_some(e.raw.token),
            "sum": if changed { "changed".to_string() } else { fnv(e.seen.all_bytes()) },
            "result": answer(o, owned),
        })
    });
}

/// `complete` and `apply`, which carry a result.
pub(crate) fn handed(function: &str, member: &str, value: u64, o: Option<&Outcome>, owned: &[u64]) {
    call(function, "enter", || {
        let mut m = Map::new();
        m.insert(member.into(), value.into());
        m.insert("result".into(), o.map_or(Value::Null, |o| answer(o, owned)));
        Value::Object(m)
    });
}

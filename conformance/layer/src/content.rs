//! What an event says by itself: structs, strings, fields, attributes, flags. What it means after others is in `place`.

use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{EventFlags, Phase, phase_bit};
use proxy_golang_conformance::parts::model::phase_name;

use crate::library::Config;
use crate::report::{Found, host};
use crate::sys::view::{FieldSpan, SeenEvent, Span};

pub(crate) fn has(f: u32, bit: EventFlags) -> bool {
    f & bit.0 != 0
}

/// 0 for request phases, 1 for response phases, none for LOG, WAKE and the like.
pub(crate) fn dir_of(p: Phase) -> Option<usize> {
    match p.0 {
        1..=3 | 16 | 17 => Some(0),
        4..=6 | 18 => Some(1),
        _ => None,
    }
}

pub(crate) fn is_headers(p: Phase) -> bool {
    matches!(p, Phase::REQUEST_HEADERS | Phase::RESPONSE_HEADERS)
}

pub(crate) fn is_body(p: Phase) -> bool {
    matches!(p, Phase::REQUEST_BODY | Phase::RESPONSE_BODY)
}

pub(crate) fn is_data(p: Phase) -> bool {
    is_body(p) || matches!(p, Phase::L4_DOWNSTREAM | Phase::L4_UPSTREAM)
}

pub(crate) fn is_trailers(p: Phase) -> bool {
    matches!(p, Phase::REQUEST_TRAILERS | Phase::RESPONSE_TRAILERS)
}

pub(crate) fn is_log(p: Phase) -> bool {
    matches!(p, Phase::LOG | Phase::L4_CLOSE)
}

fn is_known(p: Phase) -> bool {
    matches!(p.0, 1..=8 | 16..=19)
}

/// Names of the flags that are set.
pub(crate) fn flag_names(f: u32) -> String {
    const NAMES: [&str; 13] = [
        "END_STREAM",
        "BODY_END",
        "WHOLE_BODY",
        "HEADERS_HELD",
        "OVER_LIMIT",
        "CAN_REPLY",
        "LOCAL_ORIGIN",
        "EOS_UNKNOWN",
        "UPGRADED",
        "REDIRECTED",
        "SUBREQUEST",
        "RESUMED",
        "WRITABLE",
    ];
    NAMES
        .iter()
        .enumerate()
        .filter(|(i, _)| f & (1 << i) != 0)
        .map(|(_, n)| *n)
        .collect::<Vec<_>>()
        .join("|")
}

fn show(b: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&b[..b.len().min(60)]))
}

/// Everything about one event that needs no memory of others.
pub(crate) fn check(e: &SeenEvent, c: Option<&Config>, known: &FeatureSet, out: &mut Vec<Found>) {
    let mut put = |rule, what: String, expected: &str| out.push(host(rule, what, expected));
    let p = e.raw.phase;
    let f = e.raw.flags.0;
    let v1 = size_of::<proxy_golang_abi::Event>();
    if (e.seen.size as usize) < v1 {
        put(
            "PXG-ABI-002",
            format!("pxg_event.size is {}", e.seen.size),
            "the size that the host knows, at least that of version 1.0 (160 bytes)",
        );
    }
    for (rule, what) in &e.seen.problems {
        put(
            rule,
            what.clone(),
            "memory that can be read for all of the call",
        );
    }
    // What a later minor version added reaches only a guest that knows its feature; which number that is, nobody
    // here can know.
    let may_know_more =
        *known != proxy_golang_abi::feature::missing(known, &[!0 << 43, !0, !0, !0]);
    if !is_known(p) && !may_know_more {
        put(
            "PXG-NEG-006",
            format!("an event of the phase {}", p.0),
            "a phase of version 1.0, because the guest's `known` has no later feature",
        );
        return;
    }
    if f & !0x1fff != 0 && !may_know_more {
        put(
            "PXG-NEG-006",
            format!("event flags with undefined bits {:#x}", f & !0x1fff),
            "flags of version 1.0, because the guest's `known` has no later feature",
        );
    }
    check_flags(p, f, &mut put);
    check_strings(e, &mut put);
    check_parts(e, c, &mut put);
    check_arg(p, e.raw.arg, &mut put);
    let projected = c.is_some_and(|c| c.projected & phase_bit(p) != 0);
    if is_headers(p) || (is_body(p) && has(f, EventFlags::HEADERS_HELD)) {
        check_headers(e, &e.fields, dir_of(p) == Some(1), projected, &mut put);
    }
    if is_log(p) && !e.fields.is_empty() {
        check_headers(e, &e.fields, true, projected, &mut put);
    }
    for t in [&e.trailers, &e.peer_trailers] {
        for field in t.iter() {
            let (name, _) = e.field(field);
            if name.first() == Some(&b':') {
                put(
                    "PXG-HDR-001",
                    format!("the trailer {}", show(name)),
                    "no pseudo-header among trailers (8.1)",
                );
            }
        }
    }
    if let Some(c) = c {
        check_features(p, f, &c.features, &mut put);
        check_attrs(e, c, &mut put);
    }
    if p == Phase::RESPONSE_HEADERS {
        check_status(e, c, &mut put);
    }
    if p == Phase::REQUEST_HEADERS
        && value_of(e, b":method") == Some(b"CONNECT")
        && !has(f, EventFlags::END_STREAM)
    {
        put(
            "PXG-EVT-022",
            "CONNECT without END_STREAM".into(),
            "CONNECT ends with its headers as a message",
        );
    }
}

fn check_flags(p: Phase, f: u32, put: &mut impl FnMut(&'static str, String, &str)) {
    use EventFlags as F;
    let response = dir_of(p) == Some(1) && p.0 < 16;
    let rows: [(F, bool, &'static str); 8] = [
        (
            F::END_STREAM,
            is_headers(p) || is_data(p) || is_trailers(p),
            "PXG-EVT-001",
        ),
        (F::BODY_END, is_data(p), "PXG-EVT-011"),
        (F::WHOLE_BODY, is_body(p), "PXG-BODY-003"),
        (F::HEADERS_HELD, is_body(p), "PXG-EVT-020"),
        (F::OVER_LIMIT, is_data(p), "PXG-BODY-004"),
        (F::CAN_REPLY, p.0 < 16 && !is_log(p), "PXG-EVT-021"),
        (F::LOCAL_ORIGIN, response || p == Phase::LOG, "PXG-CHN-004"),
        (F::EOS_UNKNOWN, is_headers(p), "PXG-EVT-008"),
    ];
    for (flag, legal, rule) in rows {
        if has(f, flag) && !legal {
            put(
                rule,
                format!("{} on {}", flag_names(flag.0), phase_name(p)),
                "flags only where 5.3 allows them",
            );
        }
    }
    if has(f, F::WRITABLE) && p != Phase::WAKE {
        put(
            "PXG-RPL-006",
            format!("WRITABLE on {}", phase_name(p)),
            "WRITABLE on WAKE only",
        );
    }
    if has(f, F::END_STREAM) && has(f, F::EOS_UNKNOWN) {
        put(
            "PXG-EVT-008",
            "END_STREAM and EOS_UNKNOWN on one event".into(),
            "EOS_UNKNOWN only where the host does not know whether a body follows",
        );
    }
    if is_data(p) && has(f, F::END_STREAM) && !has(f, F::BODY_END) {
        put(
            "PXG-EVT-011",
            "END_STREAM without BODY_END on a body event".into(),
            "the last body event carries BODY_END",
        );
    }
    if is_trailers(p) && !has(f, F::END_STREAM) {
        put(
            "PXG-EVT-001",
            format!("{} without END_STREAM", phase_name(p)),
            "trailers are the end of their direction (8.1)",
        );
    }
    if has(f, F::WHOLE_BODY) {
        let all = F::BODY_END.0 | F::END_STREAM.0 | F::HEADERS_HELD.0;
        if f & all != all {
            put(
                "PXG-BODY-003",
                format!("WHOLE_BODY with {}", flag_names(f)),
                "WHOLE_BODY comes with HEADERS_HELD, BODY_END and END_STREAM (7.2)",
            );
        }
        if has(f, F::OVER_LIMIT) {
            put(
                "PXG-BODY-004",
                "WHOLE_BODY and OVER_LIMIT on one event".into(),
                "a body longer than max_body is never a WHOLE_BODY event (7.5)",
            );
        }
    }
}

fn check_features(
    p: Phase,
    f: u32,
    features: &FeatureSet,
    put: &mut impl FnMut(&'static str, String, &str),
) {
    let Some(d) = dir_of(p) else {
        return;
    };
    if is_headers(p)
        && has(f, EventFlags::EOS_UNKNOWN)
        && [Feature::EXACT_EOS_REQUEST, Feature::EXACT_EOS_RESPONSE][d].is_in(features)
    {
        put(
            "PXG-EVT-008",
            format!("EOS_UNKNOWN on {}", phase_name(p)),
            "with EXACT_EOS the host always knows",
        );
    }
    if is_trailers(p)
        && ![Feature::TRAILERS_IN_REQUEST, Feature::TRAILERS_IN_RESPONSE][d].is_in(features)
    {
        put(
            "PXG-NEG-009",
            format!(
                "an event {}, and the feature TRAILERS_IN is clear",
                phase_name(p)
            ),
            "no trailers without the feature (3.2)",
        );
    }
    if d == 1
        && p.0 < 16
        && has(f, EventFlags::LOCAL_ORIGIN)
        && !Feature::REPLY_REFILTER.is_in(features)
    {
        put(
            "PXG-CHN-004",
            format!("{} of a local reply", phase_name(p)),
            "without REPLY_REFILTER no guest sees local replies",
        );
    }
}

fn check_string(
    e: &SeenEvent,
    s: &Span,
    what: impl Fn() -> String,
    absent: bool,
    put: &mut impl FnMut(&'static str, String, &str),
) {
    let _ = e;
    if s.flags & !3 != 0 {
        put(
            "PXG-ABI-005",
            format!("{} has undefined flag bits {:#x}", what(), s.flags & !3),
            "ABSENT and SENSITIVE only",
        );
    }
    if s.flags & 1 != 0 {
        if s.len != 0 || s.ptr != 0 {
            put(
                "PXG-ABI-012",
                format!(
                    "{} is ABSENT with pointer {:#x} and length {}",
                    what(),
                    s.ptr,
                    s.len
                ),
                "ABSENT has pointer and length 0",
            );
        }
        if !absent {
            put(
                "PXG-HDR-002",
                format!("{} is ABSENT", what()),
                "ABSENT never appears here; an empty value has length 0",
            );
        }
    }
}

fn check_strings(e: &SeenEvent, put: &mut impl FnMut(&'static str, String, &str)) {
    for (list, name) in [
        (&e.fields, "fields"),
        (&e.trailers, "trailers"),
        (&e.peer_fields, "peer_fields"),
        (&e.peer_trailers, "peer_trailers"),
    ] {
        for (i, f) in list.iter().enumerate() {
            check_string(e, &f.name, || format!("{name}[{i}].name"), false, put);
            check_string(e, &f.value, || format!("{name}[{i}].value"), false, put);
            let n = e.seen.text(&f.name);
            if n.is_empty() || n.iter().any(u8::is_ascii_uppercase) {
                put(
                    "PXG-HDR-001",
                    format!("{name}[{i}] has the name {}", show(n)),
                    "names are lower case and not empty",
                );
            }
        }
    }
    for (i, a) in e.attrs.iter().enumerate() {
        check_string(e, a, || format!("attrs[{i}]"), true, put);
    }
    for (i, c) in e.chunks.iter().enumerate() {
        check_string(e, c, || format!("chunks[{i}]"), false, put);
    }
}

/// Which parts an event has at all.
fn check_parts(
    e: &SeenEvent,
    c: Option<&Config>,
    put: &mut impl FnMut(&'static str, String, &str),
) {
    let p = e.raw.phase;
    let f = e.raw.flags.0;
    let held = is_headers(p) || (is_body(p) && has(f, EventFlags::HEADERS_HELD));
    if !held && p != Phase::LOG && e.raw.n_fields > 0 {
        put(
            "PXG-EVT-020",
            format!("{} with {} fields", phase_name(p), e.raw.n_fields),
            "fields only in HEADERS events, with HEADERS_HELD and in LOG",
        );
    }
    let with_trailers = is_trailers(p) || p == Phase::LOG || has(f, EventFlags::WHOLE_BODY);
    if !with_trailers && e.raw.n_trailers > 0 {
        put(
            "PXG-TRL-002",
            format!("{} with {} trailers", phase_name(p), e.raw.n_trailers),
            "trailers only in TRAILERS events, with WHOLE_BODY and in LOG",
        );
    }
    if is_trailers(p) && e.raw.n_trailers == 0 {
        put(
            "PXG-TRL-003",
            format!("{} without a trailer", phase_name(p)),
            "an empty trailer section has no event (8.1)",
        );
    }
    let peer =
        p == Phase::LOG || (dir_of(p) == Some(1) && held && c.is_none_or(|c| c.flags & 0x8 != 0));
    if !peer && e.raw.n_peer_fields + e.raw.n_peer_trailers > 0 {
        put(
            "PXG-EVT-020",
            format!(
                "{} with {} peer_fields and {} peer_trailers",
                phase_name(p),
                e.raw.n_peer_fields,
                e.raw.n_peer_trailers
            ),
            "the request's fields only in LOG, and with WANT_PEER_FIELDS in response events that have `fields` (5.1)",
        );
    }
    if !is_data(p) && e.raw.n_chunks > 0 {
        put(
            "PXG-EVT-019",
            format!("{} with {} chunks", phase_name(p), e.raw.n_chunks),
            "bytes only in events of a body",
        );
    }
    if e.raw.n_chunks > 64 {
        put(
            "PXG-BODY-008",
            format!("a view of {} chunks", e.raw.n_chunks),
            "at most 64",
        );
    }
    if let Some(i) = e.chunks.iter().position(|c| c.len == 0) {
        put(
            "PXG-BODY-008",
            format!("chunk {i} of {} is empty", e.chunks.len()),
            "no chunk is empty",
        );
    }
    if is_data(p) && e.view_len() == 0 && !has(f, EventFlags::BODY_END) {
        put(
            "PXG-EVT-011",
            format!("{} without bytes and without BODY_END", phase_name(p)),
            "a body event without bytes comes only with BODY_END",
        );
    }
}

fn check_arg(p: Phase, arg: u64, put: &mut impl FnMut(&'static str, String, &str)) {
    if is_log(p) {
        let (why, request, response) = (arg & 0xff, arg >> 8 & 0xf, arg >> 12 & 0xf);
        if arg >> 16 != 0 || !(1..=6).contains(&why) || request > 4 || response > 4 {
            put(
                "PXG-EVT-018",
                format!("arg {arg:#x}: why {why}, request {request}, response {response}"),
                "why from 1 to 6, how each direction ended from 0 to 4, the rest 0",
            );
        } else if why == 1 && !(matches!(request, 1 | 4) && response == 1) {
            put(
                "PXG-EVT-018",
                format!("COMPLETE with request {request} and response {response}"),
                "COMPLETE means that both messages ran to their end (1), or that the host cut the rest of the request when the response had ended (4)",
            );
        }
    } else if p != Phase::WAKE && arg != 0 {
        put(
            "PXG-EVT-018",
            format!("{} with arg {arg:#x}", phase_name(p)),
            "0 but in WAKE, LOG and L4_CLOSE (5.1)",
        );
    }
}

fn value_of<'a>(e: &'a SeenEvent, name: &[u8]) -> Option<&'a [u8]> {
    e.fields
        .iter()
        .map(|f| e.field(f))
        .find(|(n, _)| *n == name)
        .map(|(_, v)| v)
}

fn check_headers(
    e: &SeenEvent,
    fields: &[FieldSpan],
    response: bool,
    projected: bool,
    put: &mut impl FnMut(&'static str, String, &str),
) {
    const REQUEST: [&[u8]; 5] = [
        b":method",
        b":scheme",
        b":authority",
        b":path",
        b":protocol",
    ];
    let mut ordinary = false;
    let mut seen: Vec<&[u8]> = Vec::new();
    let mut host_field = false;
    for f in fields {
        let (name, value) = e.field(f);
        if name.first() != Some(&b':') {
            ordinary = true;
            host_field |= name == b"host";
            continue;
        }
        if ordinary {
            put(
                "PXG-HDR-001",
                format!("{} behind an ordinary field", show(name)),
                "pseudo-headers come first",
            );
        }
        let mine = if response {
            name == b":status"
        } else {
            REQUEST.contains(&name)
        };
        if !mine {
            put(
                "PXG-HDR-001",
                format!(
                    "{} in a {}",
                    show(name),
                    if response { "response" } else { "request" }
                ),
                "the pseudo-headers of the direction",
            );
        }
        if seen.contains(&name) {
            put(
                "PXG-HDR-001",
                format!("{} twice", show(name)),
                "each pseudo-header at most once",
            );
        }
        if name == b":status" && !(value.len() == 3 && value.iter().all(u8::is_ascii_digit)) {
            put(
                "PXG-HDR-001",
                format!(":status {}", show(value)),
                "three digits",
            );
        }
        seen.push(name);
    }
    if host_field && seen.contains(&b":authority".as_slice()) {
        put(
            "PXG-HDR-001",
            "`host` beside `:authority`".into(),
            "the host merges them before the first guest",
        );
    }
    let method = value_of(e, b":method");
    let needed: &[&[u8]] = if response {
        &[b":status"]
    } else if method == Some(b"CONNECT") {
        &[b":method"]
    } else {
        &[b":method", b":scheme", b":path"]
    };
    for n in needed.iter().filter(|n| !projected && !seen.contains(n)) {
        put(
            "PXG-HDR-001",
            format!("no {} among {} fields", show(n), fields.len()),
            "the pseudo-headers of the message, for every HTTP version",
        );
    }
}

/// Responses that are known to have no body.
fn check_status(
    e: &SeenEvent,
    c: Option<&Config>,
    put: &mut impl FnMut(&'static str, String, &str),
) {
    let Some(status) = value_of(e, b":status") else {
        return;
    };
    if status.first() == Some(&b'1') && status != b"101" {
        put(
            "PXG-EVT-013",
            format!("RESPONSE_HEADERS with the status {}", show(status)),
            "1xx other than 101 are never events",
        );
    }
    let f = e.raw.flags.0;
    let ended = has(f, EventFlags::END_STREAM);
    if ended {
        return;
    }
    let empty = value_of(e, b"content-length") == Some(b"0")
        && c.is_none_or(|c| Feature::EXACT_EOS_RESPONSE.is_in(&c.features));
    if matches!(status, b"204" | b"304") || empty {
        put(
            "PXG-EVT-008",
            format!(
                "a response {} without END_STREAM at its headers",
                show(status)
            ),
            "204, 304 and content-length: 0 are known to have no body",
        );
    }
    if has(f, EventFlags::UPGRADED) {
        put(
            "PXG-EVT-022",
            "UPGRADED without END_STREAM at RESPONSE_HEADERS".into(),
            "the accepting response carries both",
        );
    }
}

/// How the values of 16.3 are written.
enum Encoding {
    Number,
    Truth,
    Protocol,
    Utf8,
    Bytes,
}

fn encoding(name: &str) -> Encoding {
    match name {
        "request.start_ns"
        | "request.body_bytes"
        | "connection.id"
        | "connection.requests"
        | "upstream.attempts"
        | "upstream.duration_ns"
        | "response.code"
        | "response.body_bytes"
        | "duration_ns" => Encoding::Number,
        "request.early_data" | "tls.peer.verified" => Encoding::Truth,
        "request.protocol" => Encoding::Protocol,
        "path.raw" | "path.normalized" => Encoding::Bytes,
        n if n.starts_with("metadata.") => Encoding::Bytes,
        _ => Encoding::Utf8,
    }
}

fn check_attrs(e: &SeenEvent, c: &Config, put: &mut impl FnMut(&'static str, String, &str)) {
    let bit = phase_bit(e.raw.phase);
    let asked = c.attrs.iter().any(|(_, phases)| phases & bit != 0);
    let expected = if asked { c.attrs.len() } else { 0 };
    if e.raw.n_attrs != expected as u64 {
        put(
            "PXG-ATT-001",
            format!(
                "{} with {} attributes",
                phase_name(e.raw.phase),
                e.raw.n_attrs
            ),
            &format!(
                "{expected}: all of the configuration's, or none where none asks for the phase"
            ),
        );
        return;
    }
    for (i, (a, (name, phases))) in e.attrs.iter().zip(&c.attrs).enumerate() {
        if a.flags & 1 != 0 {
            continue;
        }
        if phases & bit == 0 {
            put(
                "PXG-ATT-001",
                format!("attribute {i} ({name}), which did not ask for this phase, has a value"),
                "ABSENT",
            );
        }
        let v = e.seen.text(a);
        let ok = match encoding(name) {
            Encoding::Number => {
                !v.is_empty() && v.iter().all(u8::is_ascii_digit) && (v.len() == 1 || v[0] != b'0')
            }
            Encoding::Truth => v == b"true" || v == b"false",
            Encoding::Protocol => {
                matches!(v, b"HTTP/1.0" | b"HTTP/1.1" | b"HTTP/2" | b"HTTP/3")
            }
            Encoding::Utf8 => std::str::from_utf8(v).is_ok(),
            Encoding::Bytes => true,
        };
        if !ok {
            put(
                "PXG-ATT-002",
                format!("attribute {name} is {}", show(v)),
                "the encoding of 16.2, or ABSENT",
            );
        }
    }
}

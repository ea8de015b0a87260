//! One stream at one place.

use std::collections::{BTreeMap, BTreeSet};

use proxy_golang_abi::{Action, BodyMode, ConfigFlags, EventFlags, Phase};

use super::super::cx::has;
use super::super::record::{Answer, Edge, Field, Record};
use super::{Config, Configs, Found, PlaceKey, Token, phase_name, place_key};
use proxy_golang_abi::feature::Feature;

/// What a direction has come to.
#[derive(Clone, Debug, Default)]
struct Direction {
    /// Indices: its HEADERS event, the last BODY event, its TRAILERS event, the event with END_STREAM.
    headers: Option<usize>,
    body: Option<usize>,
    trailers: Option<usize>,
    end: Option<usize>,
    body_end: Option<usize>,
    whole: bool,
    mode: u32,
    mode_set: bool,
    /// Where the next view begins, and how long it is at least.
    next_offset: u64,
    kept: u64,
    /// The event that is PENDING, until its completion is called or it is cancelled.
    pending: Option<usize>,
    /// A completion was applied, and no event has come since.
    resumed: bool,
}

struct Place {
    config: Option<Config>,
    user: u64,
    known_user: bool,
    dirs: [Direction; 2],
    failed: Option<usize>,
    /// Nothing in it can have made the guest fail: only plain results.
    plain: bool,
    unsubscribed: u64,
    log: Option<usize>,
    end: Option<usize>,
    upgraded: bool,
    replied: bool,
    tid: Option<u32>,
    /// The event that runs.
    entered: Option<usize>,
    first: usize,
    last: usize,
}

/// The direction of a phase.
fn direction(phase: u32) -> Option<usize> {
    match Phase(phase) {
        Phase::REQUEST_HEADERS | Phase::REQUEST_BODY | Phase::REQUEST_TRAILERS => Some(0),
        Phase::RESPONSE_HEADERS | Phase::RESPONSE_BODY | Phase::RESPONSE_TRAILERS => Some(1),
        _ => None,
    }
}

fn is_body(phase: u32) -> bool {
    matches!(Phase(phase), Phase::REQUEST_BODY | Phase::RESPONSE_BODY)
}

fn is_headers(phase: u32) -> bool {
    matches!(
        Phase(phase),
        Phase::REQUEST_HEADERS | Phase::RESPONSE_HEADERS
    )
}

struct Checker<'a> {
    records: &'a [Record],
    features: &'a [u64; 4],
    out: &'a mut Vec<Found>,
    /// Tokens of PENDINGs that were failures.
    illegal: BTreeSet<Token>,
}

impl Checker<'_> {
    fn found(&mut self, rule: &'static str, at: &[usize], saw: String, expected: &'static str) {
        self.out.push(Found {
            rule,
            saw,
            expected,
            at: at.to_vec(),
        });
    }
}

pub(super) fn check(
    records: &[Record],
    configs: &Configs,
    features: &[u64; 4],
    closed: bool,
    out: &mut Vec<Found>,
) -> BTreeSet<Token> {
    let mut places: BTreeMap<PlaceKey, Place> = BTreeMap::new();
    let mut c = Checker {
        records,
        features,
        out,
        illegal: BTreeSet::new(),
    };
    for (i, r) in records.iter().enumerate() {
        let Some(key) = place_key(r) else {
            // A completion names its token only.
            if r.function == "complete" {
                completion(&mut c, &mut places, i, r);
            }
            continue;
        };
        if !super::is_stream_hook(r) {
            continue;
        }
        let config = configs.get(&key.0).cloned();
        let p = places.entry(key).or_insert_with(|| {
            let modes = config.as_ref().map_or([0, 0], |c| c.modes);
            let of = |d: usize| Direction {
                mode: modes[d].max(BodyMode::SKIP.0),
                mode_set: modes[d] > BodyMode::SKIP.0,
                ..Direction::default()
            };
            Place {
                config,
                user: 0,
                known_user: true,
                dirs: [of(0), of(1)],
                failed: None,
                plain: true,
                unsubscribed: 0,
                log: None,
                end: None,
                upgraded: false,
                replied: false,
                tid: None,
                entered: None,
                first: i,
                last: i,
            }
        });
        p.last = i;
        match (r.function.as_str(), r.edge) {
            ("on_event", Edge::Enter) => event(&mut c, p, i, r),
            ("on_event", Edge::Exit) => answer(&mut c, p, i, r),
            ("on_cancel", Edge::Enter) => cancel(&mut c, p, i, r),
            ("on_stream_end", Edge::Enter) => stream_end(&mut c, p, i, r),
            _ => {}
        }
        if r.edge == Edge::Enter {
            thread(&mut c, p, i, r);
        }
    }
    if closed {
        for p in places.values() {
            at_the_end(&mut c, p);
        }
    }
    c.illegal
}

fn thread(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record) {
    let first = *p.tid.get_or_insert(r.tid);
    if first != r.tid && has(c.features, Feature::THREAD_AFFINE) {
        c.found(
            "PXG-ASY-007",
            &[p.first, i],
            format!(
                "{} on thread {}, after calls on thread {first}",
                r.function, r.tid
            ),
            "one thread for a stream, with THREAD_AFFINE",
        );
        p.tid = Some(r.tid);
    }
}

fn user(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record) {
    let Some(user) = r.user else { return };
    if p.known_user && user != p.user {
        c.found(
            "PXG-EVT-007",
            &[i],
            format!("{} with user {user:#x}, after {:#x}", r.function, p.user),
            "the user slot that the last event left",
        );
    }
}

fn event(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record) {
    let (phase, flags) = (r.phase.unwrap_or_default(), r.flags.unwrap_or_default());
    let set = |f: EventFlags| flags & f.0 != 0;
    p.entered = Some(i);
    user(c, p, i, r);
    preset(c, i, r);
    if let Some(end) = p.end {
        c.found(
            "PXG-EVT-006",
            &[end, i],
            format!("{} after on_stream_end", phase_name(phase)),
            "on_stream_end is the last call",
        );
    }
    if let Some(failed) = p.failed {
        c.found(
            "PXG-EVT-014",
            &[failed, i],
            format!("{} after the guest failed", phase_name(phase)),
            "nothing but on_cancel and on_stream_end",
        );
    }
    if let Some(log) = p.log {
        let (rule, expected): (_, &'static str) = if phase == Phase::LOG.0 {
            ("PXG-EVT-009", "one LOG")
        } else {
            ("PXG-EVT-009", "no event after LOG")
        };
        c.found(
            rule,
            &[log, i],
            format!("{} after LOG", phase_name(phase)),
            expected,
        );
    }
    if let Some(config) = &p.config
        && (phase >= 64 || config.subscribe >> phase & 1 == 0)
    {
        c.found(
            "PXG-NEG-005",
            &[i],
            format!("{}, which is not subscribed", phase_name(phase)),
            "events of subscribed phases only",
        );
    }
    if phase < 64 && p.unsubscribed >> phase & 1 == 1 {
        c.found(
            "PXG-EVT-010",
            &[i],
            format!("{} after it was unsubscribed", phase_name(phase)),
            "no event of that phase",
        );
    }
    p.upgraded |= set(EventFlags::UPGRADED);
    fields(c, i, r, phase, flags);
    if phase == Phase::LOG.0 {
        p.log = Some(i);
        log(c, p, i, r);
    }
    if let Some(d) = direction(phase) {
        pending(c, p, i, phase, d);
        resumed(c, p, i, phase, set(EventFlags::RESUMED), d);
        order(c, p, i, r, d);
        if is_body(phase) {
            body(c, p, i, r, d);
        }
        can_reply(c, p, i, phase, flags);
        if set(EventFlags::END_STREAM) {
            p.dirs[d].end = Some(i);
            p.upgraded |= set(EventFlags::UPGRADED);
        }
    }
}

fn preset(c: &mut Checker<'_>, i: usize, r: &Record) {
    let Some(s) = &r.preset else { return };
    if s.action != 0 || !s.zero {
        c.found(
            "PXG-ACT-001",
            &[i],
            format!(
                "the result was preset with action {}{}",
                s.action,
                if s.zero {
                    ""
                } else {
                    " and members that are not 0"
                }
            ),
            "UNSET, and the rest 0",
        );
    }
    if Some(s.user) != r.user {
        c.found(
            "PXG-EVT-007",
            &[i],
            format!("user is preset to {:#x}", s.user),
            "the event's user",
        );
    }
    if s.ops_cap < 32 || s.cap < 4096 || s.dirty {
        c.found(
            "PXG-MEM-010",
            &[i],
            format!(
                "{} operations and {} bytes were lent{}",
                s.ops_cap,
                s.cap,
                if s.dirty {
                    ", with other bytes in the operations"
                } else {
                    ""
                }
            ),
            "at least 32 operations and 4096 bytes; in scratch_ops zeros or earlier operations",
        );
    }
    if s.misaligned != 0 {
        c.found(
            "PXG-ABI-010",
            &[i],
            format!("scratch at an address that ends in {:#x}", s.misaligned),
            "aligned to 16",
        );
    }
    let event = size_of::<proxy_golang_abi::Event>();
    let result = size_of::<proxy_golang_abi::EventResult>();
    if r.size.is_some_and(|n| (n as usize) < event) || (s.size as usize) < result {
        c.found(
            "PXG-ABI-002",
            &[i],
            format!(
                "sizes {:?} of the event and {} of the result",
                r.size, s.size
            ),
            "at least those of version 1.0",
        );
    }
}

/// Names and pseudo-headers of the views, and which views there are.
fn fields(c: &mut Checker<'_>, i: usize, r: &Record, phase: u32, flags: u32) {
    let empty: &[Field] = &[];
    let of = |f: &Option<Vec<Field>>| f.as_deref().unwrap_or(empty).to_vec();
    let (head, trailers) = (of(&r.fields), of(&r.trailers));
    for (what, list) in [
        ("fields", &head),
        ("trailers", &trailers),
        ("peer_fields", &of(&r.peer_fields)),
    ] {
        let mut plain = false;
        for (name, _) in list {
            if name.bytes().any(|b| b.is_ascii_uppercase()) {
                c.found(
                    "PXG-HDR-001",
                    &[i],
                    format!("{name:?} in {what}"),
                    "names in lower case",
                );
            }
            let pseudo = name.starts_with(':');
            if pseudo && plain {
                c.found(
                    "PXG-HDR-001",
                    &[i],
                    format!("{name:?} behind a field in {what}"),
                    "pseudo-headers first",
                );
            }
            plain |= !pseudo;
        }
        if list.iter().any(|f| f.0 == ":authority") && list.iter().any(|f| f.0 == "host") {
            c.found(
                "PXG-HDR-001",
                &[i],
                format!("host beside :authority in {what}"),
                "one of them: the host merges them",
            );
        }
    }
    let held = flags & EventFlags::HEADERS_HELD.0 != 0;
    let with_fields = is_headers(phase) || (is_body(phase) && held);
    if direction(phase).is_some() && with_fields == head.is_empty() {
        c.found(
            "PXG-EVT-020",
            &[i],
            format!("{} with {} fields", phase_name(phase), head.len()),
            "fields at HEADERS and while HEADERS_HELD, and nowhere else",
        );
    }
    if matches!(
        Phase(phase),
        Phase::REQUEST_TRAILERS | Phase::RESPONSE_TRAILERS
    ) && trailers.is_empty()
    {
        c.found(
            "PXG-TRL-003",
            &[i],
            "a TRAILERS event without trailers".into(),
            "no such event for a message without trailers",
        );
    }
    let status = |name: &str| head.iter().find(|f| f.0 == name).map(|f| f.1.clone());
    if phase == Phase::RESPONSE_HEADERS.0
        && let Some(s) = status(":status")
        && s.starts_with('1')
        && s != "101"
    {
        c.found(
            "PXG-EVT-013",
            &[i],
            format!("RESPONSE_HEADERS with {s}"),
            "interim responses are never events",
        );
    }
}

fn log(c: &mut Checker<'_>, p: &Place, i: usize, r: &Record) {
    let arg = r.arg.unwrap_or_default();
    let (why, request, response) = (arg & 0xff, arg >> 8 & 0xf, arg >> 12 & 0xf);
    if arg >> 16 != 0 || !(1..=6).contains(&why) || request > 4 || response > 4 {
        c.found(
            "PXG-EVT-018",
            &[i],
            format!("LOG with arg {arg:#x}"),
            "why (1 to 6), how each direction ended (0 to 4), the rest 0",
        );
    }
    for d in 0..2 {
        if let Some(pending) = p.dirs[d].pending {
            c.found(
                "PXG-ASY-008",
                &[pending, i],
                "LOG while a token is PENDING".into(),
                "on_cancel for each token before LOG",
            );
        }
    }
}

fn pending(c: &mut Checker<'_>, p: &Place, i: usize, phase: u32, d: usize) {
    let duplex = p
        .config
        .as_ref()
        .is_some_and(|c| c.flags & ConfigFlags::DUPLEX.0 != 0);
    for other in 0..2 {
        if let Some(at) = p.dirs[other].pending
            && (other == d || !duplex)
        {
            c.found(
                "PXG-EVT-003",
                &[at, i],
                format!(
                    "{} while {} is PENDING",
                    phase_name(phase),
                    if other == d {
                        "its direction"
                    } else {
                        "the peer direction"
                    }
                ),
                "no event until the token is completed or cancelled",
            );
        }
    }
}

fn resumed(c: &mut Checker<'_>, p: &mut Place, i: usize, phase: u32, is_resumed: bool, d: usize) {
    if is_resumed != std::mem::take(&mut p.dirs[d].resumed) {
        c.found(
            "PXG-EVT-015",
            &[i],
            format!(
                "{} {} RESUMED",
                phase_name(phase),
                if is_resumed { "with" } else { "without" }
            ),
            "RESUMED at the first event of a direction after a completion, and at no other",
        );
    }
}

fn order(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record, d: usize) {
    let phase = r.phase.unwrap_or_default();
    let flags = r.flags.unwrap_or_default();
    let orphan = p
        .config
        .as_ref()
        .is_some_and(|c| c.flags & ConfigFlags::ORPHAN.0 != 0);
    let wants = p
        .config
        .as_ref()
        .is_some_and(|c| c.subscribe >> Phase::REQUEST_HEADERS.0 & 1 == 1);
    if d == 1 && wants && !orphan && p.dirs[0].headers.is_none() {
        c.found(
            "PXG-EVT-004",
            &[i],
            format!("{} before REQUEST_HEADERS", phase_name(phase)),
            "no response event for a guest that the request did not reach",
        );
    }
    let dir = &mut p.dirs[d];
    if let Some(end) = dir.end
        && !p.upgraded
    {
        c.found(
            "PXG-EVT-001",
            &[end, i],
            format!("{} after END_STREAM", phase_name(phase)),
            "nothing after the end of a direction",
        );
    }
    if is_headers(phase) {
        if let Some(first) = dir.headers {
            let rule = if d == 0 { "PXG-EVT-012" } else { "PXG-EVT-001" };
            c.found(
                rule,
                &[first, i],
                format!("{} twice", phase_name(phase)),
                "HEADERS once per direction",
            );
        } else if let Some(before) = dir.body.or(dir.trailers) {
            c.found(
                "PXG-EVT-001",
                &[before, i],
                "HEADERS after BODY or TRAILERS".into(),
                "HEADERS, BODY, TRAILERS",
            );
        }
        dir.headers = Some(i);
    } else if is_body(phase) {
        if let Some(before) = dir.trailers
            && !p.upgraded
        {
            c.found(
                "PXG-EVT-001",
                &[before, i],
                "BODY after TRAILERS".into(),
                "HEADERS, BODY, TRAILERS",
            );
        } else if let Some(before) = dir.body_end
            && !p.upgraded
        {
            c.found(
                "PXG-BODY-018",
                &[before, i],
                "BODY after BODY_END".into(),
                "no further BODY event (D08, D10)",
            );
        }
        dir.body = Some(i);
    } else {
        if let Some(before) = dir.trailers {
            c.found(
                "PXG-EVT-001",
                &[before, i],
                "TRAILERS twice".into(),
                "at most one TRAILERS event",
            );
        }
        if dir.whole {
            c.found(
                "PXG-TRL-002",
                &[dir.body.unwrap_or(i), i],
                "TRAILERS after WHOLE_BODY".into(),
                "the trailers come with the WHOLE_BODY event",
            );
        }
        if flags & EventFlags::END_STREAM.0 == 0 {
            c.found(
                "PXG-EVT-001",
                &[i],
                "TRAILERS without END_STREAM".into(),
                "END_STREAM at TRAILERS",
            );
        }
        dir.trailers = Some(i);
    }
    if flags & EventFlags::BODY_END.0 != 0 {
        dir.body_end = Some(i);
    }
}

fn body(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record, d: usize) {
    let flags = r.flags.unwrap_or_default();
    let set = |f: EventFlags| flags & f.0 != 0;
    let len = r.view_len();
    let offset = r.body_offset.unwrap_or_default();
    let chunks = r.chunks.as_deref().unwrap_or_default();
    if len == 0 && !set(EventFlags::BODY_END) {
        c.found(
            "PXG-EVT-011",
            &[i],
            "a BODY event without bytes and without BODY_END".into(),
            "bytes, or the end",
        );
    }
    if set(EventFlags::END_STREAM) && !set(EventFlags::BODY_END) {
        c.found(
            "PXG-EVT-011",
            &[i],
            "END_STREAM at BODY without BODY_END".into(),
            "BODY_END on the last BODY event",
        );
    }
    if chunks.len() > 64 || chunks.contains(&0) {
        c.found(
            "PXG-BODY-008",
            &[i],
            format!(
                "{} chunks, {} of them empty",
                chunks.len(),
                chunks.iter().filter(|n| **n == 0).count()
            ),
            "at most 64 chunks, none empty",
        );
    }
    let mode = BodyMode(p.dirs[d].mode);
    let upgraded = p.upgraded;
    let dir = &mut p.dirs[d];
    match mode {
        BodyMode::SKIP if p.config.is_some() => c.found(
            "PXG-BODY-001",
            &[i],
            "a BODY event in mode SKIP".into(),
            "no crossing",
        ),
        BodyMode::WHOLE if !upgraded => {
            let over = set(EventFlags::OVER_LIMIT);
            if set(EventFlags::WHOLE_BODY) == over || !set(EventFlags::HEADERS_HELD) {
                c.found(
                    "PXG-BODY-003",
                    &[i],
                    format!("in mode WHOLE an event with {}", super::flag_names(flags)),
                    "HEADERS_HELD, and WHOLE_BODY or OVER_LIMIT",
                );
            }
        }
        BodyMode::STREAM | BodyMode::OBSERVE if set(EventFlags::WHOLE_BODY) => c.found(
            "PXG-BODY-018",
            &[i],
            format!("WHOLE_BODY in body mode {}", mode.0),
            "WHOLE_BODY in mode WHOLE only",
        ),
        _ => {}
    }
    if mode == BodyMode::OBSERVE && set(EventFlags::HEADERS_HELD) {
        c.found(
            "PXG-BODY-007",
            &[i],
            "HEADERS_HELD in OBSERVE".into(),
            "OBSERVE does not hold",
        );
    }
    if let Some(most) = p
        .config
        .as_ref()
        .map(|c| c.max_body[d])
        .filter(|n| *n > 0 && *n <= 1 << 16)
        && mode != BodyMode::OBSERVE
        && (len > most) != set(EventFlags::OVER_LIMIT)
    {
        c.found(
            "PXG-BODY-004",
            &[i],
            format!(
                "a view of {len} bytes {} OVER_LIMIT, with max_body {most}",
                if len > most { "without" } else { "with" }
            ),
            "OVER_LIMIT exactly when the view is longer than max_body",
        );
    }
    if upgraded {
        return;
    }
    if offset != dir.next_offset {
        c.found(
            "PXG-BODY-002",
            &[dir.body.filter(|b| *b != i).unwrap_or(i), i],
            format!("a view at offset {offset}"),
            "the offset behind what was passed and dropped",
        );
    }
    if len < dir.kept {
        c.found(
            "PXG-BODY-002",
            &[i],
            format!("a view of {len} bytes, after {} were kept", dir.kept),
            "at least what was kept",
        );
    }
    dir.whole |= set(EventFlags::WHOLE_BODY);
}

fn can_reply(c: &mut Checker<'_>, p: &Place, i: usize, phase: u32, flags: u32) {
    let set = flags & EventFlags::CAN_REPLY.0 != 0;
    let held = flags & EventFlags::HEADERS_HELD.0 != 0;
    let expected = match Phase(phase) {
        Phase::REQUEST_HEADERS if p.dirs[1].headers.is_none() => true,
        Phase::RESPONSE_HEADERS => true,
        Phase::RESPONSE_BODY => held,
        Phase::RESPONSE_TRAILERS => false,
        _ => return,
    };
    if set != expected {
        c.found(
            "PXG-EVT-021",
            &[i],
            format!(
                "{} {} CAN_REPLY",
                phase_name(phase),
                if set { "with" } else { "without" }
            ),
            "CAN_REPLY until response headers have passed this place",
        );
    }
}

/// What a result does to a direction's view.
fn consume(dir: &mut Direction, view: &Record, a: &Answer) {
    let (offset, len) = (view.body_offset.unwrap_or_default(), view.view_len());
    if a.action == Action::MORE.0 {
        dir.next_offset = offset + a.pass + a.drop;
        dir.kept = len.saturating_sub(a.pass + a.drop);
    } else {
        dir.next_offset = offset + len;
        dir.kept = 0;
    }
}

fn modes(p: &mut Place, a: &Answer, over_limit: Option<usize>) {
    for d in 0..2 {
        if a.modes[d] != 0 {
            p.dirs[d].mode = a.modes[d];
            p.dirs[d].mode_set = true;
        }
    }
    // 7.5: CONTINUE after OVER_LIMIT in WHOLE goes on as STREAM.
    if let Some(d) = over_limit
        && a.action == Action::CONTINUE.0
        && p.dirs[d].mode == BodyMode::WHOLE.0
    {
        p.dirs[d].mode = BodyMode::STREAM.0;
    }
}

fn over_limit(r: &Record) -> Option<usize> {
    let d = direction(r.phase?)?;
    (is_body(r.phase?) && r.flags? & EventFlags::OVER_LIMIT.0 != 0).then_some(d)
}

fn answer(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record) {
    let (Some(a), Some(phase)) = (&r.result, r.phase) else {
        p.known_user = false;
        return;
    };
    let Some(entered) = p.entered.take() else {
        return;
    };
    let ev = &c.records[entered];
    if ev.sum.is_some() && ev.sum != r.sum {
        c.found(
            "PXG-MEM-001",
            &[entered, i],
            format!("the views of {} changed during the call", phase_name(phase)),
            "unchanged from entry to return",
        );
    }
    p.user = a.user;
    p.known_user = true;
    p.unsubscribed |= a.unsubscribe;
    if Phase(phase) == Phase::LOG {
        return;
    }
    p.plain &= matches!(Action(a.action), Action::CONTINUE | Action::PENDING)
        && a.n_ops == 0
        && a.reply.is_none()
        && a.modes == [0, 0]
        && a.unsubscribe == 0
        && a.flags == 0;
    p.replied |= a.reply.is_some();
    // In OBSERVE nothing can be held (PXG-BODY-007).
    let observes =
        is_body(phase) && direction(phase).is_some_and(|d| p.dirs[d].mode == BodyMode::OBSERVE.0);
    let illegal = a.action == Action::PENDING.0 && (observes || !super::is_legal_pending(r));
    if let (true, Some(t)) = (illegal, r.token) {
        c.illegal.insert((r.pid, r.library.clone(), t));
    }
    if !(1..=5).contains(&a.action) || illegal {
        p.failed = Some(i);
        return;
    }
    let Some(d) = direction(phase) else {
        modes(p, a, None);
        return;
    };
    if a.action == Action::PENDING.0 {
        // A completion that was called before the return, and answered OK then or later: EARLY.
        let early = (entered..i).find(|k| {
            let call = &c.records[*k];
            call.is("complete", Edge::Enter)
                && call.token == r.token
                && c.records[*k..]
                    .iter()
                    .find(|e| e.is("complete", Edge::Exit) && e.tid == call.tid)
                    .is_some_and(|e| e.status == Some(0))
        });
        if let Some(k) = early {
            let result = c.records[k].result.clone();
            completed(p, ev, result.as_ref(), d);
        } else {
            p.dirs[d].pending = Some(entered);
        }
        return;
    }
    modes(p, a, over_limit(ev));
    if is_body(phase) {
        consume(&mut p.dirs[d], ev, a);
    }
}

/// A completion that was accepted: what it brings is the result.
fn completed(p: &mut Place, ev: &Record, result: Option<&Answer>, d: usize) {
    p.dirs[d].resumed = true;
    let Some(a) = result else { return };
    p.plain &= a.action == Action::CONTINUE.0 && a.n_ops == 0;
    if !matches!(
        Action(a.action),
        Action::CONTINUE | Action::MORE | Action::REPLY | Action::RESET
    ) {
        p.plain = false;
    }
    modes(p, a, over_limit(ev));
    p.unsubscribed |= a.unsubscribe;
    if is_body(ev.phase.unwrap_or_default()) {
        consume(&mut p.dirs[d], ev, a);
    }
}

/// A completion ends a PENDING when it is called: its effect may be before its return.
fn completion(c: &mut Checker<'_>, places: &mut BTreeMap<PlaceKey, Place>, i: usize, r: &Record) {
    if r.edge != Edge::Enter {
        return;
    }
    let Some(token) = r.token else { return };
    // Only one that was accepted.
    let accepted = c.records[i..]
        .iter()
        .find(|e| e.is("complete", Edge::Exit) && e.tid == r.tid && e.token == r.token)
        .is_some_and(|e| e.status == Some(0));
    if !accepted {
        return;
    }
    for p in places.values_mut() {
        for d in 0..2 {
            if let Some(at) = p.dirs[d].pending
                && c.records[at].token == Some(token)
                && c.records[at].pid == r.pid
                && c.records[at].library == r.library
            {
                p.dirs[d].pending = None;
                let ev = c.records[at].clone();
                completed(p, &ev, r.result.as_ref(), d);
            }
        }
    }
}

fn cancel(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record) {
    user(c, p, i, r);
    for d in 0..2 {
        if let Some(at) = p.dirs[d].pending
            && c.records[at].token == r.token
        {
            p.dirs[d].pending = None;
            // A direction that was cut, or a failure such as the deadline: what follows is not a plain end.
            p.plain = false;
        }
    }
    if let Some(before) = p.log.or(p.end) {
        c.found(
            "PXG-ASY-008",
            &[before, i],
            "on_cancel after LOG or on_stream_end".into(),
            "on_cancel, LOG, on_stream_end",
        );
    }
}

fn stream_end(c: &mut Checker<'_>, p: &mut Place, i: usize, r: &Record) {
    user(c, p, i, r);
    if let Some(first) = p.end {
        c.found(
            "PXG-EVT-006",
            &[first, i],
            "on_stream_end twice".into(),
            "exactly once",
        );
    } else if p.known_user && p.user == 0 {
        c.found(
            "PXG-EVT-006",
            &[i],
            "on_stream_end where user is 0".into(),
            "no on_stream_end without a user slot",
        );
    }
    for d in 0..2 {
        if let Some(pending) = p.dirs[d].pending {
            c.found(
                "PXG-ASY-008",
                &[pending, i],
                "on_stream_end while a token is PENDING".into(),
                "on_cancel for each token, then LOG, then on_stream_end",
            );
        }
    }
    p.end = Some(i);
}

fn at_the_end(c: &mut Checker<'_>, p: &Place) {
    if p.end.is_none() && p.known_user && p.user != 0 {
        c.found(
            "PXG-EVT-006",
            &[p.last],
            format!("no on_stream_end, with user {:#x}", p.user),
            "on_stream_end exactly once where user is not 0",
        );
    }
    let wants_log = p
        .config
        .as_ref()
        .is_some_and(|c| c.subscribe >> Phase::LOG.0 & 1 == 1)
        && p.unsubscribed >> Phase::LOG.0 & 1 == 0;
    if wants_log && p.log.is_none() && p.plain && p.failed.is_none() {
        c.found(
            "PXG-EVT-009",
            &[p.last],
            "no LOG".into(),
            "LOG exactly once for each place that subscribes to it",
        );
    }
}

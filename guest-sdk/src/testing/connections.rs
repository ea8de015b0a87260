//! The L4 phases, which [`super::TestHost`] leaves out, event by event.

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, set_of};
use proxy_golang_abi::{Action, EventFlags, LogLevel, OpKind, Phase};

use crate::prelude::*;
use crate::raw::mini::{EventIn, Mini};
use crate::{
    ConnectionEvent, DataEvent, Library, OnConnection, OnConnectionEnd, OnDownstreamData,
    OnUpstreamData,
};

/// Greets, and turns `a` into `b` on the way up.
struct Relay;

impl Filter for Relay {
    type Ctx = usize;
    fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
        Ok(Self)
    }
}

impl OnConnection for Relay {
    const MAY_PEND: bool = true;
    fn on_connection(&self, _: &mut usize, ev: &ConnectionEvent<'_>) -> Outcome {
        let (verdict, pending) = ev.defer()?;
        pending.resume()?;
        Ok(verdict)
    }
}

impl OnDownstreamData for Relay {
    fn on_downstream_data(&self, seen: &mut usize, ev: &DataEvent<'_>) -> Outcome {
        *seen += ev.len();
        for byte in ev.to_vec() {
            if byte == b'a' {
                ev.discard(1);
                ev.inject_copy("b");
            } else {
                ev.pass(1);
            }
        }
        Ok(Verdict::Continue)
    }
}

impl OnUpstreamData for Relay {
    fn on_upstream_data(&self, _: &mut usize, ev: &DataEvent<'_>) -> Outcome {
        if ev.is_end_of_stream() {
            return Ok(Verdict::Continue);
        }
        Ok(Verdict::More(10))
    }
}

impl OnConnectionEnd for Relay {
    fn on_connection_end(&self, seen: &mut usize, ev: &ConnectionEvent<'_>) {
        ev.set_metadata("seen", seen.to_string());
        ev.set_metadata("reason", ev.reason().0.to_string());
    }
}

static LIBRARY: Library = crate::library! { "relay" => Relay };

#[test]
fn a_connection_from_open_to_close() {
    let features = set_of(&[Feature::L4, Feature::PEND_L4_OPEN, Feature::METADATA]);
    let mini = Mini::start(&LIBRARY, features, LogLevel::OFF);
    let config = mini
        .new_config("relay", "test", b"", features, false, 0)
        .unwrap();
    let phases = [
        Phase::L4_OPEN,
        Phase::L4_DOWNSTREAM,
        Phase::L4_UPSTREAM,
        Phase::L4_CLOSE,
    ];
    let mask = phases.iter().fold(0, |mask, &p| mask | abi::phase_bit(p));
    assert_eq!(config.subscribe, mask);
    assert_eq!(config.pend_phases, abi::phase_bit(Phase::L4_OPEN));

    let token = mini.fresh();
    mini.state()
        .tokens
        .insert(token, crate::raw::mini::Token::Issued);
    let event = |phase, user, flags, chunks: &[&[u8]]| EventIn {
        phase,
        user,
        flags,
        config: config.config,
        stream: 1,
        token: if phase == Phase::L4_OPEN { token } else { 0 },
        arg: 2,
        chunks: chunks.iter().map(|c| c.to_vec()).collect(),
        ..EventIn::default()
    };
    let none = EventFlags(0);
    let (open, user) = mini.event(&event(Phase::L4_OPEN, 0, none, &[]));
    assert_eq!(open.action, Action::PENDING);
    assert!(matches!(
        mini.state().tokens.get(&token),
        Some(crate::raw::mini::Token::Early(e)) if e.action == Action::CONTINUE
    ));
    let (data, user) = mini.event(&event(Phase::L4_DOWNSTREAM, user, none, &[b"xa", b"y"]));
    let kinds: Vec<_> = data.ops.iter().map(|op| op.kind).collect();
    let (pass, drop, inject) = (OpKind::PASS, OpKind::DROP, OpKind::INJECT);
    assert_eq!(kinds, [pass, drop, inject, pass]);
    assert_eq!(data.action, Action::CONTINUE);
    let (data, user) = mini.event(&event(Phase::L4_UPSTREAM, user, none, &[b"1"]));
    assert_eq!((data.action, data.more_bytes), (Action::MORE, 10));
    let end = EventFlags::END_STREAM;
    let (data, user) = mini.event(&event(Phase::L4_UPSTREAM, user, end, &[b"12"]));
    assert_eq!(data.action, Action::CONTINUE);
    let (close, user) = mini.event(&event(Phase::L4_CLOSE, user, none, &[]));
    let values: Vec<_> = close.ops.iter().map(|op| op.val.as_slice()).collect();
    assert_eq!(values, [b"3", b"2"]);
    assert_eq!(close.action, Action::CONTINUE);

    // A phase that is not subscribed is an error, not a crash.
    let (wrong, user) = mini.event(&event(Phase::LOG, user, none, &[]));
    assert!(wrong.action == Action::ERROR && wrong.error.contains("phase 7"));
    let (wrong, user) = mini.event(&event(Phase(63), user, none, &[]));
    assert!(wrong.action == Action::ERROR && wrong.error.contains("phase 63"));
    mini.stream_end(config.config, user, 1);
    mini.drop_config(config.config);
    assert!(mini.state().violations.is_empty());
}

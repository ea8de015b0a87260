//! The attributes that this host has, by Envoy's own (`spec/16-attributes.md`).

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use proxy_golang_host::engine::Attributes;

use crate::process;
use crate::sys::{self, Filter};

/// Where an attribute comes from.
#[derive(Clone, Copy)]
enum Source {
    /// Envoy's text attribute of this number.
    Text(i32),
    /// Envoy's number attribute of this number.
    Number(i32),
    /// The same, of an Envoy that has it.
    SinceSizes(i32),
    /// The same, where Envoy's 0 means that there is none yet.
    Positive(i32),
    /// The same, once there is a response.
    OfResponse(i32),
    /// The cluster of the route, once a host of it has been chosen: until then a guest can change it.
    Cluster,
    /// When the stream began.
    Start,
    /// How long ago that was.
    Duration,
}

/// Envoy's numbers of these.
const PATH: i32 = 0;
const RESPONSE_CODE: i32 = 15;
const UPSTREAM_ADDRESS: i32 = 41;

/// Names in the order of their numbers.
const NAMES: &[(&str, Source)] = &[
    ("request.id", Source::Text(9)),
    ("request.protocol", Source::Text(10)),
    ("request.start_ns", Source::Start),
    // Not what our own hooks see: filters before this one may change a body.
    ("request.body_bytes", Source::SinceSizes(13)),
    ("duration_ns", Source::Duration),
    // What routes are chosen by. `path.raw` is not known: with `normalize_path` Envoy keeps no trace of what was sent.
    ("path.normalized", Source::Text(PATH)),
    ("source.address", Source::Text(24)),
    ("destination.address", Source::Text(26)),
    ("connection.id", Source::Number(28)),
    ("tls.version", Source::Text(31)),
    ("tls.sni", Source::Text(30)),
    ("route.name", Source::Text(61)),
    ("upstream.cluster", Source::Cluster),
    ("upstream.address", Source::Text(UPSTREAM_ADDRESS)),
    ("upstream.attempts", Source::Positive(53)),
    ("response.code", Source::Number(RESPONSE_CODE)),
    ("response.code_details", Source::Text(16)),
    ("response.body_bytes", Source::OfResponse(21)),
];

/// What this host's own attributes begin with: `x.envoy.filter_state.<name>` is the filter state of that name, if it is
/// bytes. Dynamic metadata is `metadata.<namespace>.<key>`, whoever has set it, if it is text.
const FILTER_STATE: &str = "x.envoy.filter_state.";

/// Names of filter states that configurations asked for; a number is a place here, behind those of `NAMES`.
static FILTER_STATES: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// Some configuration asks for times: without one, nobody looks at the clock when a stream begins.
static TIMED: AtomicBool = AtomicBool::new(false);

/// When a stream began, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    monotonic: u64,
    since_1970: u128,
}

/// Now, if somebody wants to know when streams begin.
pub(crate) fn start() -> Option<Start> {
    TIMED.load(Relaxed).then(|| Start {
        monotonic: process::now(),
        since_1970: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos(),
    })
}

/// The number of an attribute.
pub(crate) fn number(name: &str) -> Option<u32> {
    if let Some(index) = NAMES.iter().position(|(known, _)| *known == name) {
        match NAMES[index].1 {
            Source::Start | Source::Duration => TIMED.store(true, Relaxed),
            Source::SinceSizes(_) if !sys::has_request_size() => return None,
            _ => {}
        }
        return u32::try_from(index).ok();
    }
    let state = name.strip_prefix(FILTER_STATE).filter(|s| !s.is_empty())?;
    let mut states = FILTER_STATES
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    let index = states.iter().position(|s| s == state).unwrap_or_else(|| {
        states.push(state.to_owned());
        states.len() - 1
    });
    u32::try_from(NAMES.len() + index).ok()
}

/// The attributes of a stream; none once Envoy has let go of it.
pub(crate) struct OfStream {
    pub(crate) filter: Option<Filter>,
    /// By [`start`].
    pub(crate) start: Option<Start>,
}

impl Attributes for OfStream {
    fn write(&self, attribute: u32, out: &mut Vec<u8>) -> bool {
        let Some(filter) = self.filter else {
            return false;
        };
        let Some((_, source)) = NAMES.get(attribute as usize) else {
            let states = FILTER_STATES.read().unwrap_or_else(PoisonError::into_inner);
            let state = states.get(attribute as usize - NAMES.len());
            return state.is_some_and(|state| filter.filter_state(state.as_bytes(), out));
        };
        match *source {
            Source::Text(id) => has_text(filter, id, out),
            Source::Cluster => {
                let chosen = has_text(filter, UPSTREAM_ADDRESS, &mut Vec::new());
                chosen && filter.cluster(out)
            }
            Source::Duration => self.start.is_some_and(|start| {
                write!(out, "{}", process::now().saturating_sub(start.monotonic)).is_ok()
            }),
            Source::Start => self
                .start
                .is_some_and(|start| write!(out, "{}", start.since_1970).is_ok()),
            Source::Number(id) | Source::SinceSizes(id) => {
                number_of(filter.attribute_number(id), out)
            }
            Source::Positive(id) => number_of(filter.attribute_number(id).filter(|n| *n > 0), out),
            Source::OfResponse(id) => {
                let began = filter.attribute_number(RESPONSE_CODE).is_some();
                began && number_of(filter.attribute_number(id), out)
            }
        }
    }

    fn write_metadata(&self, namespace: &[u8], key: &[u8], out: &mut Vec<u8>) -> bool {
        self.filter
            .is_some_and(|filter| filter.metadata(namespace, key, out))
    }
}

fn number_of(number: Option<u64>, out: &mut Vec<u8>) -> bool {
    // Writing to memory cannot fail.
    number.is_some_and(|n| write!(out, "{n}").is_ok())
}

/// Envoy has empty text for what there is not, such as the name of a route that has none.
fn has_text(filter: Filter, id: i32, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    filter.attribute(id, out) && out.len() > before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once() {
        for (i, (name, source)) in NAMES.iter().enumerate() {
            // There is no Envoy around a unit test, and none of 1.40.
            let is_here = !matches!(source, Source::SinceSizes(_));
            assert_eq!(number(name), is_here.then_some(i as u32));
        }
        let state = number("x.envoy.filter_state.my.tenant").unwrap();
        assert!(state as usize >= NAMES.len());
        assert_eq!(number("x.envoy.filter_state.my.tenant"), Some(state));
        assert_eq!(number("x.envoy.filter_state."), None);
        assert_eq!(number("no.such"), None);
    }
}

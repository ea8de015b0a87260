//! The attributes that this host has, by Envoy's own (`spec/16-attributes.md`).

use std::io::Write;
use std::sync::{PoisonError, RwLock};

use proxy_golang_host::engine::Attributes;

use crate::sys::Filter;

/// Where an attribute comes from.
#[derive(Clone, Copy)]
enum Source {
    /// Envoy's text attribute of this number.
    Text(i32),
    /// Envoy's number attribute of this number.
    Number(i32),
    /// The cluster of the route.
    Cluster,
}

/// Names in the order of their numbers.
const NAMES: &[(&str, Source)] = &[
    ("request.id", Source::Text(9)),
    ("request.protocol", Source::Text(10)),
    ("path.raw", Source::Text(0)),
    ("source.address", Source::Text(24)),
    ("destination.address", Source::Text(26)),
    ("connection.id", Source::Number(28)),
    ("tls.version", Source::Text(31)),
    ("tls.sni", Source::Text(30)),
    ("route.name", Source::Text(61)),
    ("upstream.cluster", Source::Cluster),
    ("upstream.address", Source::Text(41)),
    ("response.code", Source::Number(15)),
    ("response.code_details", Source::Text(16)),
];

/// What this host's own attributes begin with: `x.envoy.filter_state.<name>` is the filter state of that name, if it is
/// bytes. Dynamic metadata is `metadata.<namespace>.<key>`, whoever has set it, if it is text.
const FILTER_STATE: &str = "x.envoy.filter_state.";

/// Names of filter states that configurations asked for; a number is a place here, behind those of `NAMES`.
static FILTER_STATES: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// The number of an attribute.
pub(crate) fn number(name: &str) -> Option<u32> {
    if let Some(index) = NAMES.iter().position(|(known, _)| *known == name) {
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
pub(crate) struct OfStream(pub(crate) Option<Filter>);

impl Attributes for OfStream {
    fn write(&self, attribute: u32, out: &mut Vec<u8>) -> bool {
        let Some(filter) = self.0 else { return false };
        let Some((_, source)) = NAMES.get(attribute as usize) else {
            let states = FILTER_STATES.read().unwrap_or_else(PoisonError::into_inner);
            let state = states.get(attribute as usize - NAMES.len());
            return state.is_some_and(|state| filter.filter_state(state.as_bytes(), out));
        };
        match *source {
            Source::Text(id) => filter.attribute(id, out),
            Source::Cluster => filter.cluster(out),
            Source::Number(id) => match filter.attribute_number(id) {
                // Writing to memory cannot fail.
                Some(n) => write!(out, "{n}").is_ok(),
                None => false,
            },
        }
    }

    fn write_metadata(&self, namespace: &[u8], key: &[u8], out: &mut Vec<u8>) -> bool {
        self.0
            .is_some_and(|filter| filter.metadata(namespace, key, out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once() {
        for (i, (name, _)) in NAMES.iter().enumerate() {
            assert_eq!(number(name), Some(i as u32));
        }
        let state = number("x.envoy.filter_state.my.tenant").unwrap();
        assert!(state as usize >= NAMES.len());
        assert_eq!(number("x.envoy.filter_state.my.tenant"), Some(state));
        assert_eq!(number("x.envoy.filter_state."), None);
        assert_eq!(number("no.such"), None);
    }
}

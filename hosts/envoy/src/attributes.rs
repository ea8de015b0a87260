//! The attributes that this host has, by Envoy's own (`spec/16-attributes.md`).

use std::io::Write;

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

/// What an own attribute's name begins with: `x.envoy.metadata.<namespace>.<key>`, `x.envoy.filter_state.<key>`.
#[cfg(test)]
const OWN: &str = "x.envoy.";

/// The number of an attribute.
pub(crate) fn number(name: &str) -> Option<u32> {
    let index = NAMES.iter().position(|(known, _)| *known == name)?;
    u32::try_from(index).ok()
}

/// The attributes of a stream; none once Envoy has let go of it.
pub(crate) struct OfStream(pub(crate) Option<Filter>);

impl Attributes for OfStream {
    fn write(&self, attribute: u32, out: &mut Vec<u8>) -> bool {
        let (Some(filter), Some((_, source))) = (self.0, NAMES.get(attribute as usize)) else {
            return false;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_there_once() {
        for (i, (name, _)) in NAMES.iter().enumerate() {
            assert_eq!(number(name), Some(i as u32));
            assert!(!name.starts_with(OWN));
        }
        assert_eq!(number("no.such"), None);
    }
}

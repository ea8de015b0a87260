//! What this host can do, and why not the rest.

use proxy_golang_abi::feature::{Feature, FeatureSet};

/// What this host lacks, and why. `cargo xtask gen` makes a table of it.
pub const LACKS: &[(Feature, &str)] = &[
    (
        Feature::PARTIAL_RELEASE,
        "Envoy's filter interface sends on all that it holds of a body or nothing",
    ),
    (
        Feature::CONTINUE_GATE,
        "Envoy answers 100-continue before its filters run",
    ),
    (
        Feature::BODY_INJECT,
        "Envoy has no call that adds to a body between two of its chunks",
    ),
    (
        Feature::WIRE_ORDER,
        "Envoy's header map joins list-valued fields and moves a field that is set to the end",
    ),
    (
        Feature::SUBREQUESTS,
        "requests that Envoy itself makes do not pass the chain of a client's request",
    ),
    (
        Feature::UPGRADE_BODY,
        "tunnels are left to Envoy once they are open",
    ),
    (
        Feature::L4,
        "only HTTP filters; Envoy's network filters are another interface",
    ),
    (Feature::PEND_L4_OPEN, "see L4"),
    (Feature::PEND_L4_DATA, "see L4"),
    (
        Feature::OWNED_BUF,
        "Envoy's buffers copy what a module appends",
    ),
];

/// What only some configurations get: those for which this is so.
pub const GRANTED: &[(Feature, &str)] = &[
    (
        Feature::REPLY_REFILTER,
        "the entry says `reply_refilter: true`, and gets it for the replies of Envoy and of guests in the same filter of \
         Envoy; a reply that a guest makes in a response phase passes no other filter of Envoy's chain",
    ),
    (
        Feature::ROUTE,
        "the entry's `clusters` names one at least: Envoy's HTTP filters choose no cluster, so a field does, with \
         `cluster_header` in the route",
    ),
];

/// The attributes of `spec/16-attributes.md` that it lacks, and why. For the same table.
pub const LACKS_ATTRIBUTES: &[(&str, &str)] = &[
    ("request.early_data", "Envoy does not tell modules"),
    (
        "request.body_bytes",
        "Envoy tells modules since 1.40; with 1.39 a filter sees only what those before it made of a body",
    ),
    (
        "path.raw",
        "Envoy keeps no trace of a path as it was received",
    ),
    (
        "source.peer_address",
        "Envoy tells modules the trusted address only",
    ),
    ("connection.requests", "Envoy does not tell modules"),
    ("tls.cipher", "Envoy does not tell modules"),
    ("tls.alpn", "Envoy does not tell modules"),
    (
        "tls.peer.verified",
        "Envoy tells modules whether there is a certificate, not whether it was verified",
    ),
    ("tls.peer.subject", "not handed on yet"),
    ("tls.peer.uri_san", "not handed on yet"),
    ("tls.peer.dns_san", "not handed on yet"),
    ("tls.peer.sha256", "not handed on yet"),
    (
        "upstream.duration_ns",
        "Envoy tells modules since 1.40; not handed on yet",
    ),
];

/// What no feature tells, by what it is about.
pub const LIMITS: &[(&str, &str)] = &[
    (
        "added trailers",
        "TRAILERS_OUT changes and adds trailers where a message has some; Envoy has no call that gives some to one without",
    ),
    (
        "empty field values",
        "Envoy's calls take a value of no bytes for none: HEADER_SET removes the field, HEADER_ADD does nothing",
    ),
    (
        "the end of a worker",
        "Envoy ends its threads before it gives configurations up, so `on_worker` says down first",
    ),
];

/// What this host can do, for some configuration at least.
pub(crate) fn of_host() -> FeatureSet {
    let known = Feature::ALL.iter().map(|(feature, _)| *feature);
    known
        .filter(|feature| LACKS.iter().all(|(lacking, _)| lacking != feature))
        .fold([0; 4], |set, feature| feature.add_to(set))
}

/// Takes a feature out of a set.
pub(crate) fn without(mut set: FeatureSet, feature: Feature) -> FeatureSet {
    set[feature.0 as usize / 64] &= !(1 << (feature.0 % 64));
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_is_lacking_is_none_of_the_others() {
        for (name, why) in LACKS_ATTRIBUTES {
            // There is no Envoy around this test: none of the ones that only some versions have.
            assert_eq!(crate::attributes::number(name), None, "{name}");
            assert!(!why.is_empty());
        }
    }

    #[test]
    fn what_is_lacking_is_known_and_said_once() {
        let all: Vec<_> = LACKS.iter().chain(GRANTED).collect();
        for (i, (feature, why)) in all.iter().enumerate() {
            assert!(Feature::ALL.iter().any(|(known, _)| known == feature));
            assert!(!all[..i].iter().any(|(other, _)| other == feature));
            assert!(!why.is_empty());
        }
        let set = of_host();
        assert!(Feature::BODY_WHOLE_REQUEST.is_in(&set) && Feature::APPLY.is_in(&set));
        assert!(!Feature::WIRE_ORDER.is_in(&set) && !Feature::L4.is_in(&set));
        assert!(!Feature::ROUTE.is_in(&without(set, Feature::ROUTE)));
    }
}

//! What this host can do, and why not the rest.

use proxy_golang_abi::feature::{Feature, FeatureSet};

/// Every feature that this host lacks, with the reason.
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
        Feature::REPLY_REFILTER,
        "a reply in a response phase passes no filter of Envoy's chain; `reply_refilter: true` grants it inside one filter",
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
    (
        Feature::ROUTE,
        "granted to entries with `clusters`: Envoy's HTTP filters choose no cluster, so a field does, with `cluster_header` in the route",
    ),
];

/// What a configuration gets: all that is known but what is lacking.
pub(crate) fn of_host() -> FeatureSet {
    let known = Feature::ALL.iter().map(|(feature, _)| *feature);
    known
        .filter(|feature| !lacks(*feature) || is_granted(*feature))
        .fold([0; 4], |set, feature| feature.add_to(set))
}

fn lacks(feature: Feature) -> bool {
    LACKS.iter().any(|(lacking, _)| *lacking == feature)
}

/// Whether a configuration may get it by its settings.
fn is_granted(feature: Feature) -> bool {
    matches!(feature, Feature::ROUTE | Feature::REPLY_REFILTER)
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
    fn what_is_lacking_is_known_and_said_once() {
        for (i, (feature, why)) in LACKS.iter().enumerate() {
            assert!(Feature::ALL.iter().any(|(known, _)| known == feature));
            assert!(!LACKS[..i].iter().any(|(other, _)| other == feature));
            assert!(!why.is_empty());
        }
        let set = of_host();
        assert!(Feature::BODY_WHOLE_REQUEST.is_in(&set) && Feature::APPLY.is_in(&set));
        assert!(!Feature::WIRE_ORDER.is_in(&set) && !Feature::L4.is_in(&set));
        assert!(!Feature::ROUTE.is_in(&without(set, Feature::ROUTE)));
    }
}

//! What this host can do, and why not the rest.

use proxy_golang_abi::feature::{Feature, FeatureSet};

/// What this host lacks, and why. `cargo xtask gen` makes a table of it.
const LACKS: &[(Feature, &str)] = &[
    (Feature::PEND_L4_OPEN, "see L4"),
    (Feature::PEND_L4_DATA, "see L4"),
    (
        Feature::WIRE_ORDER,
        "hyper's header map keeps the order among the values of one name only",
    ),
    (Feature::SUBREQUESTS, "it makes no subrequests"),
    (
        Feature::UPGRADE_BODY,
        "a tunnel is copied between its two sockets, past the filters",
    ),
    (Feature::L4, "it proxies HTTP only"),
];

/// The attributes of `spec/16-attributes.md` that it lacks, and why. For the same table.
#[cfg_attr(not(test), expect(dead_code, reason = "read as source"))]
const LACKS_ATTRIBUTES: &[(&str, &str)] = &[
    ("tls.peer.verified", "it asks clients for no certificate"),
    ("tls.peer.subject", "as tls.peer.verified"),
    ("tls.peer.uri_san", "as tls.peer.verified"),
    ("tls.peer.dns_san", "as tls.peer.verified"),
    ("tls.peer.sha256", "as tls.peer.verified"),
];

/// What only some configurations get: those for which this is so.
const GRANTED: &[(Feature, &str)] = &[
    (
        Feature::TRAILERS_OUT_REQUEST,
        "the filter's `trailers` names them: HTTP/1.1 sends only trailers that it announced",
    ),
    (Feature::TRAILERS_OUT_RESPONSE, "as for requests"),
    (Feature::ROUTE, "the filter's `clusters` names one at least"),
];

/// What this host can do, for some configuration at least.
pub(super) fn of_host() -> FeatureSet {
    let known = Feature::ALL.iter().map(|(feature, _)| *feature);
    known
        .filter(|feature| LACKS.iter().all(|(lacking, _)| lacking != feature))
        .fold([0; 4], |set, feature| feature.add_to(set))
}

/// What it can do for a filter that names some `trailers`, or some `clusters`.
pub(super) fn of_filter(has_trailers: bool, has_clusters: bool) -> FeatureSet {
    let granted = |feature: Feature| {
        if feature == Feature::ROUTE {
            has_clusters
        } else {
            has_trailers
        }
    };
    GRANTED
        .iter()
        .filter(|(feature, _)| !granted(*feature))
        .fold(of_host(), |mut set, (feature, _)| {
            set[feature.0 as usize / 64] &= !(1 << (feature.0 % 64));
            set
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_is_lacking_is_none_of_the_others() {
        for (name, _) in LACKS_ATTRIBUTES {
            assert_eq!(super::super::attributes::number(name), None, "{name}");
        }
    }

    #[test]
    fn a_filter_gets_what_its_settings_grant() {
        let all = of_filter(true, true);
        assert_eq!(all, of_host());
        assert!(Feature::APPLY.is_in(&all) && !Feature::L4.is_in(&all));
        let without_trailers = of_filter(false, true);
        assert!(!Feature::TRAILERS_OUT_RESPONSE.is_in(&without_trailers));
        assert!(Feature::ROUTE.is_in(&without_trailers));
        let without_clusters = of_filter(true, false);
        assert!(!Feature::ROUTE.is_in(&without_clusters));
        assert!(Feature::TRAILERS_OUT_REQUEST.is_in(&without_clusters));
    }
}

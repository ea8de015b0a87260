//! What a configuration asks of the host, and how it is refused.

use std::fmt::Display;
use std::time::Duration;

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{BodyMode, ConfigFlags, Phase, Status};

/// A direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the upstream.
    Request,
    /// From the upstream to the client.
    Response,
}

impl Direction {
    fn index(self) -> usize {
        match self {
            Self::Request => abi::DIR_REQUEST,
            Self::Response => abi::DIR_RESPONSE,
        }
    }
}

/// Why a configuration was refused: a status for the host, and a text for the operator.
#[derive(Debug)]
pub struct ConfigError {
    status: Status,
    text: String,
}

impl ConfigError {
    /// The configuration is wrong. Say what was found, what was expected and what to do.
    #[must_use]
    pub fn new(text: impl Display) -> Self {
        Self::with_status(Status::ARG, text.to_string())
    }

    /// The configuration is wrong at this line (from 1).
    #[must_use]
    pub fn at_line(line: usize, text: impl Display) -> Self {
        Self::with_status(Status::ARG, format!("line {line}: {text}"))
    }

    /// The host lacks a feature that this configuration needs.
    #[must_use]
    pub fn missing_feature(feature: Feature) -> Self {
        let mut set = [0; 4];
        set = feature.add_to(set);
        Self::missing_features(&set)
    }

    /// The host lacks features that this configuration needs.
    #[must_use]
    pub fn missing_features(missing: &FeatureSet) -> Self {
        let names: Vec<&str> = Feature::ALL
            .iter()
            .filter(|(feature, _)| feature.is_in(missing))
            .map(|(_, name)| *name)
            .collect();
        Self::with_status(
            Status::UNSUPPORTED,
            format!(
                "the host lacks {} here; use another host, or a configuration that does without",
                names.join(", ")
            ),
        )
    }

    pub(crate) fn with_status(status: Status, text: String) -> Self {
        Self { status, text }
    }

    /// The status that the host gets.
    pub fn status(&self) -> Status {
        self.status
    }
}

impl Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E: std::error::Error> From<E> for ConfigError {
    fn from(error: E) -> Self {
        Self::new(crate::FilterError::from(error).text())
    }
}

/// An attribute that the configuration asked for; read it with [`crate::Event::attribute`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute(usize);

impl Attribute {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

pub(crate) struct AttributeWish {
    pub(crate) name: String,
    pub(crate) phases: u64,
    pub(crate) required: bool,
}

/// What a configuration asks of the host. It begins with what the filter's traits say.
pub struct Setup {
    pub(crate) subscribe: u64,
    pub(crate) may_pend: u64,
    pub(crate) mode: [BodyMode; 2],
    pub(crate) max_body: [u64; 2],
    pub(crate) pend_ns: u64,
    pub(crate) flags: ConfigFlags,
    pub(crate) attributes: Vec<AttributeWish>,
    pub(crate) projection: Vec<(String, u64)>,
}

impl Setup {
    pub(crate) fn new(subscribe: u64, may_pend: u64, mode: [BodyMode; 2]) -> Self {
        Self {
            subscribe,
            may_pend,
            mode,
            max_body: [0; 2],
            pend_ns: 0,
            flags: ConfigFlags(0),
            attributes: Vec::new(),
            projection: Vec::new(),
        }
    }

    /// This configuration does without a phase that the filter has a trait for. It then costs nothing, and the
    /// features that it would need are not asked for.
    pub fn skip(&mut self, phase: Phase) -> &mut Self {
        self.subscribe &= !abi::phase_bit(phase);
        self
    }

    /// This configuration never defers events of a phase.
    pub fn never_pends(&mut self, phase: Phase) -> &mut Self {
        self.may_pend &= !abi::phase_bit(phase);
        self
    }

    /// How a direction's body is delivered at first, instead of the trait's `MODE`.
    pub fn body_mode(&mut self, direction: Direction, mode: BodyMode) -> &mut Self {
        self.mode[direction.index()] = mode;
        self
    }

    /// The most bytes of a direction's body that are held for this filter; the host's own limit applies too. Beyond it
    /// comes an event with [`crate::BodyEvent::is_over_limit`].
    pub fn max_body(&mut self, direction: Direction, bytes: u64) -> &mut Self {
        self.max_body[direction.index()] = bytes;
        self
    }

    /// A wish for the time after which the host gives up a deferred event; its own limit applies.
    pub fn pend_timeout(&mut self, time: Duration) -> &mut Self {
        self.pend_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// Asks for an attribute in the events of all subscribed phases, from the spec's list or the host's own; read it
    /// with [`crate::Event::attribute`].
    pub fn attribute(&mut self, name: impl Into<String>) -> Attribute {
        self.wish(name.into(), false)
    }

    /// As [`Setup::attribute`]; a host that never has it refuses the configuration.
    pub fn required_attribute(&mut self, name: impl Into<String>) -> Attribute {
        self.wish(name.into(), true)
    }

    fn wish(&mut self, name: String, required: bool) -> Attribute {
        self.attributes.push(AttributeWish {
            name,
            phases: self.subscribe,
            required,
        });
        Attribute(self.attributes.len() - 1)
    }

    /// Only fields that were named so need to be in the views of that phase; a host may leave out the others.
    pub fn only_field(&mut self, name: impl Into<String>, phase: Phase) -> &mut Self {
        self.projection.push((name.into(), abi::phase_bit(phase)));
        self
    }

    fn flag(&mut self, flag: ConfigFlags) -> &mut Self {
        self.flags.0 |= flag.0;
        self
    }

    /// A STREAM body of this direction may change its length.
    pub fn resizes(&mut self, direction: Direction) -> &mut Self {
        self.flag(match direction {
            Direction::Request => ConfigFlags::RESIZES_REQUEST,
            Direction::Response => ConfigFlags::RESIZES_RESPONSE,
        })
    }

    /// Response events carry the request's headers ([`crate::MessageEvent::request_headers`]).
    pub fn want_peer_fields(&mut self) -> &mut Self {
        self.flag(ConfigFlags::WANT_PEER_FIELDS)
    }

    /// One direction may go on while the other is deferred.
    pub fn duplex(&mut self) -> &mut Self {
        self.flag(ConfigFlags::DUPLEX)
    }

    /// Response phases also for streams whose request never reached this filter.
    pub fn orphan(&mut self) -> &mut Self {
        self.flag(ConfigFlags::ORPHAN)
    }

    /// Subrequests of the host are filtered too.
    pub fn subrequests(&mut self) -> &mut Self {
        self.flag(ConfigFlags::SUBREQUESTS)
    }

    /// Body events go on after an upgrade.
    pub fn upgrade_body(&mut self) -> &mut Self {
        self.flag(ConfigFlags::UPGRADE_BODY)
    }

    fn subscribes(&self, phase: Phase) -> bool {
        self.subscribe & abi::phase_bit(phase) != 0
    }

    /// Refuses what the host can't do for this configuration: a filter that is silently bypassed is worse.
    pub(crate) fn check(&self, have: &FeatureSet) -> Result<(), ConfigError> {
        let mut want = [0; 4];
        let mut need = |phase, feature: Feature| {
            if self.subscribes(phase) {
                want = feature.add_to(want);
            }
        };
        need(Phase::REQUEST_TRAILERS, Feature::TRAILERS_IN_REQUEST);
        need(Phase::RESPONSE_TRAILERS, Feature::TRAILERS_IN_RESPONSE);
        for phase in [
            Phase::L4_OPEN,
            Phase::L4_DOWNSTREAM,
            Phase::L4_UPSTREAM,
            Phase::L4_CLOSE,
        ] {
            need(phase, Feature::L4);
        }
        for &(phase, feature) in Feature::PENDING {
            if self.may_pend & abi::phase_bit(phase) != 0 {
                need(phase, feature);
            }
        }
        for (direction, phase) in [Phase::REQUEST_BODY, Phase::RESPONSE_BODY]
            .into_iter()
            .enumerate()
        {
            if let Some(feature) = Feature::of_body_mode(direction, self.mode[direction]) {
                need(phase, feature);
            }
        }
        for (flag, feature) in [
            (ConfigFlags::RESIZES_REQUEST, Feature::RESIZE_REQUEST),
            (ConfigFlags::RESIZES_RESPONSE, Feature::RESIZE_RESPONSE),
            (ConfigFlags::ORPHAN, Feature::ORPHAN),
            (ConfigFlags::SUBREQUESTS, Feature::SUBREQUESTS),
            (ConfigFlags::UPGRADE_BODY, Feature::UPGRADE_BODY),
        ] {
            if self.flags.0 & flag.0 != 0 {
                want = feature.add_to(want);
            }
        }
        let missing = abi::feature::missing(&want, have);
        if missing == [0; 4] {
            Ok(())
        } else {
            Err(ConfigError::missing_features(&missing))
        }
    }
}

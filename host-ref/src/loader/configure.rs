//! Configurations: asked for, checked, and handed to the engine (spec chapter 4).

use std::sync::Arc;

use proxy_golang_abi::feature::{Feature, FeatureSet, missing};
use proxy_golang_abi::{AttrFlags, BodyMode, ConfigFlags, LogLevel, Phase, Status, phase_bit};

use super::error::{ConfigError, names};
use super::{CONFIG_THREAD, Library, Live, lock};
use crate::engine::{AttrSource, AttrWant, Declared, Fault, Filter, FilterStats, Policy};
use crate::ffi::{ConfigAnswer, NewConfig, PHASES, clean};

/// Most bytes of a guest's text in an error.
const MAX_TEXT: usize = 4096;

/// A configuration to be made.
pub struct ConfigRequest<'a> {
    /// Which of the library's filters.
    pub filter: &'a str,
    /// Name of the instance: unique in the host's configuration, also its metadata namespace.
    pub name: &'a str,
    /// The operator's bytes.
    pub bytes: &'a [u8],
    /// For a route's override: the configuration of the same filter that it overrides.
    pub parent: Option<&'a Arc<Filter>>,
    /// What the host can do for the streams of this configuration. What the host's table does not have is left out.
    pub features: FeatureSet,
    /// What the operator decided.
    pub policy: Policy,
    /// Ask the guest to check only. The filter that comes back is not to be used.
    pub validate_only: bool,
    /// Counters to go on counting in; `None` for new ones.
    pub stats: Option<Arc<FilterStats>>,
}

impl Library {
    /// Makes a configuration. \[config-thread\]
    ///
    /// When the last `Arc` of the filter and of its guest is gone, `on_config_drop` is due: see
    /// [`Host::drop_configs`](super::Host::drop_configs). Streams hold their chains, so that is after the last of them; and
    /// a parent stays until its last child is dropped.
    ///
    /// # Errors
    /// The guest refused it, or what it declared breaks a rule or needs what this host does not have. Nothing is left behind.
    pub fn configure(self: &Arc<Self>, req: ConfigRequest<'_>) -> Result<Arc<Filter>, ConfigError> {
        let refuse = |refusal: Refusal| ConfigError {
            library: self.facts.path.as_path().into(),
            filter: req.filter.into(),
            name: req.name.into(),
            status: refusal.status,
            by_guest: refusal.by_guest,
            found: refusal.found,
            expected: refusal.expected,
            advice: refusal.advice,
        };
        let own = self.host.shared.features();
        let features = std::array::from_fn(|i| req.features[i] & own[i]);
        let parent = self.before(&req, &features).map_err(refuse)?;
        let answer = {
            let _serial = lock(&CONFIG_THREAD);
            self.table.config_new(&NewConfig {
                filter: req.filter,
                name: req.name,
                bytes: req.bytes,
                parent,
                features,
                validate_only: req.validate_only,
            })
        };
        if answer.status.0 < 0 {
            return Err(refuse(Refusal {
                by_guest: true,
                ..Refusal::new(
                    answer.status,
                    match clean(&answer.error, MAX_TEXT) {
                        text if text.is_empty() => {
                            "a refusal of the guest without a text".to_owned()
                        }
                        text => format!("a refusal of the guest: {text}"),
                    },
                    "a configuration that it takes",
                    "Correct the configuration as the text says; what was in force stays so.",
                )
            }));
        }
        let config = answer.config;
        // Neither value may be dropped: 0 is none, and the other is somebody else's (PXG-CFG-005).
        if config == 0 {
            return Err(refuse(Refusal::guest_bug(
                Status::ARG,
                "config 0",
                "a value that is not 0",
            )));
        }
        let live = Live {
            filter: req.filter.to_owned(),
            is_override: req.parent.is_some(),
        };
        let taken = {
            let mut state = lock(&self.state);
            let taken = state.configs.contains_key(&config);
            if !taken {
                state.configs.insert(config, live);
            }
            taken
        };
        if taken {
            return Err(refuse(Refusal::guest_bug(
                Status::ARG,
                format!("config {config}, the value of another live configuration"),
                "a value of its own",
            )));
        }
        match self.declared(answer, &features, &req.policy) {
            Ok(declared) => Ok(Arc::new(Filter {
                name: req.name.to_owned(),
                guest: self
                    .table
                    .guest(config, req.parent.cloned(), Arc::clone(&self.host.retire)),
                declared,
                policy: req.policy,
                features,
                stats: req.stats.unwrap_or_default(),
            })),
            Err(refusal) => {
                {
                    let _serial = lock(&CONFIG_THREAD);
                    self.table.config_drop(config);
                }
                lock(&self.state).configs.remove(&config);
                Err(refuse(refusal))
            }
        }
    }

    /// What can be said without asking the guest. Answers the parent's value.
    fn before(&self, req: &ConfigRequest<'_>, features: &FeatureSet) -> Result<u64, Refusal> {
        if !self.filters.iter().any(|f| f == req.filter) {
            return Err(Refusal::new(
                Status::NOTFOUND,
                format!(
                    "no filter \"{}\" in the library",
                    clean(req.filter.as_bytes(), 128)
                ),
                format!("one of {}", self.filters.join(", ")),
                "Correct the filter's name.",
            ));
        }
        let lacks = missing(&self.required, features);
        if lacks != [0; 4] {
            return Err(Refusal::new(
                Status::UNSUPPORTED,
                format!("a guest that requires {}", names(&lacks)),
                "a guest that works with what this place of the configuration offers (PXG-NEG-003)",
                "Use the filter where the host has that, or a build of the guest that can do without.",
            ));
        }
        let Some(parent) = req.parent else {
            return Ok(0);
        };
        let config = parent.guest.config();
        let state = lock(&self.state);
        let known = state
            .configs
            .get(&config)
            .filter(|_| parent.guest.library() == self.id());
        let Some(live) = known else {
            return Err(Refusal::new(
                Status::ARG,
                format!(
                    "the parent \"{}\", a configuration of another library",
                    parent.name
                ),
                "a configuration of this library",
                "Override a filter by a configuration of the same filter.",
            ));
        };
        if live.filter != req.filter || live.is_override {
            let what = if live.is_override {
                "itself an override"
            } else {
                "of another filter"
            };
            return Err(Refusal::new(
                Status::ARG,
                format!("the parent \"{}\", {what}", parent.name),
                "a configuration of the same filter that has no parent",
                "Override the filter's own configuration.",
            ));
        }
        Ok(config)
    }

    fn declared(
        &self,
        answer: ConfigAnswer,
        features: &FeatureSet,
        policy: &Policy,
    ) -> Result<Declared, Refusal> {
        let lists = answer.lists.map_err(|Fault { status, text, .. }| {
            Refusal::guest_bug(status, text, "pxg_config_out as the ABI says")
        })?;
        flags(answer.flags, features)?;
        phases("subscribe", answer.subscribe)?;
        phases("pend_phases", answer.pend_phases)?;
        let l4 = phase_bit(Phase::L4_OPEN)
            | phase_bit(Phase::L4_DOWNSTREAM)
            | phase_bit(Phase::L4_UPSTREAM)
            | phase_bit(Phase::L4_CLOSE);
        if answer.subscribe & l4 != 0 {
            need(features, Feature::L4, "subscribe has L4 phases")?;
        }
        pend_phases(answer.subscribe, answer.pend_phases, features)?;
        let mut body_mode = [BodyMode::SKIP; 2];
        let mut max_body = [0; 2];
        for dir in 0..2 {
            body_mode[dir] = mode(dir, answer.body_mode[dir], answer.subscribe, features)?;
            max_body[dir] = self.max_body(dir, answer.max_body[dir]);
        }
        let limit = policy.pend_limit.min(self.host.info.limits.pend_limit);
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        if answer.pend_ns > limit {
            self.warn_limited("pend_ns", answer.pend_ns, limit);
        }
        let mut projection = lists.projection;
        for (i, (name, mask)) in projection.iter_mut().enumerate() {
            phases(&format!("projection[{i}].phases"), *mask)?;
            if name.is_empty() || name.iter().any(u8::is_ascii_uppercase) {
                return Err(Refusal::guest_bug(
                    Status::ARG,
                    format!("projection[{i}].name \"{}\"", clean(name, 128)),
                    "the name of a field in lower case",
                ));
            }
        }
        let attrs = lists.attrs.into_iter().enumerate();
        Ok(Declared {
            subscribe: answer.subscribe,
            pend_phases: answer.pend_phases,
            body_mode,
            max_body,
            pend_ns: answer.pend_ns.min(limit),
            flags: answer.flags,
            attrs: attrs
                .map(|(i, want)| self.attr(i, want, features))
                .collect::<Result<_, _>>()?,
            projection,
            known: self.known,
        })
    }

    fn max_body(&self, dir: usize, wish: u64) -> u64 {
        let limits = &self.host.info.limits;
        let (default, limit) = (limits.body_default[dir], limits.body_limit[dir]);
        if wish > limit {
            self.warn_limited(&format!("max_body[{dir}]"), wish, limit);
        }
        if wish == 0 {
            default.min(limit)
        } else {
            wish.min(limit)
        }
    }

    fn warn_limited(&self, what: &str, wish: u64, limit: u64) {
        self.entry.log(
            LogLevel::WARN,
            &format!("a configuration wants {what} {wish}, set to the host's limit {limit}: raise the limit if it is needed"),
        );
    }

    fn attr(
        &self,
        i: usize,
        (name, mask, flags, reserved): (Vec<u8>, u64, u32, u32),
        features: &FeatureSet,
    ) -> Result<AttrWant, Refusal> {
        let shown = clean(&name, 128);
        phases(&format!("attrs[{i}].phases"), mask)?;
        if flags & !AttrFlags::REQUIRED.0 != 0 || reserved != 0 {
            return Err(Refusal::guest_bug(
                Status::UNSUPPORTED,
                format!(
                    "attrs[{i}] (\"{shown}\") with flags {flags:#x} and reserved0 {reserved:#x}"
                ),
                format!("no bits beside {:#x} (PXG-ABI-005)", AttrFlags::REQUIRED.0),
            ));
        }
        let text = std::str::from_utf8(&name).ok().filter(|n| !n.is_empty());
        let Some(text) = text else {
            return Err(Refusal::guest_bug(
                Status::ARG,
                format!("attrs[{i}].name \"{shown}\""),
                "the name of an attribute",
            ));
        };
        let metadata = text
            .strip_prefix("metadata.")
            .and_then(|rest| rest.split_once('.'));
        let source = match metadata {
            Some((namespace, key)) if Feature::METADATA.is_in(features) => AttrSource::Metadata {
                namespace: namespace.into(),
                key: key.into(),
            },
            Some(_) => AttrSource::Unknown,
            None => (self.host.info.attributes)(text).map_or(AttrSource::Unknown, AttrSource::Host),
        };
        if source == AttrSource::Unknown && flags & AttrFlags::REQUIRED.0 != 0 {
            return Err(Refusal::new(
                Status::NOTFOUND,
                format!("the required attribute \"{shown}\", which this host does not have"),
                "attributes of this host where they are required",
                "Use a host that has the attribute, or configure the filter to do without.",
            ));
        }
        Ok(AttrWant {
            source,
            phases: mask,
        })
    }
}

/// Why a configuration is refused.
struct Refusal {
    status: Status,
    by_guest: bool,
    found: String,
    expected: String,
    advice: &'static str,
}

impl Refusal {
    fn new(
        status: Status,
        found: impl Into<String>,
        expected: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self {
            status,
            by_guest: false,
            found: found.into(),
            expected: expected.into(),
            advice,
        }
    }

    fn guest_bug(status: Status, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::new(
            status,
            found,
            expected,
            "Report it to the guest's author; what was in force stays so.",
        )
    }
}

fn need(features: &FeatureSet, feature: Feature, found: impl Into<String>) -> Result<(), Refusal> {
    if feature.is_in(features) {
        return Ok(());
    }
    Err(Refusal::new(
        Status::UNSUPPORTED,
        found,
        format!(
            "the feature {}, which this host does not have here",
            names(&feature.add_to([0; 4]))
        ),
        "Use the filter where the host has that, or configure it to do without.",
    ))
}

fn phases(what: &str, mask: u64) -> Result<(), Refusal> {
    if mask & !PHASES == 0 {
        return Ok(());
    }
    Err(Refusal::guest_bug(
        Status::UNSUPPORTED,
        format!("{what} {mask:#x}"),
        format!("no bits beside {PHASES:#x}, the phases of version 1.0"),
    ))
}

fn flags(flags: ConfigFlags, features: &FeatureSet) -> Result<(), Refusal> {
    const NEEDS: [(ConfigFlags, &str, Feature); 5] = [
        (
            ConfigFlags::RESIZES_REQUEST,
            "RESIZES_REQUEST",
            Feature::RESIZE_REQUEST,
        ),
        (
            ConfigFlags::RESIZES_RESPONSE,
            "RESIZES_RESPONSE",
            Feature::RESIZE_RESPONSE,
        ),
        (ConfigFlags::ORPHAN, "ORPHAN", Feature::ORPHAN),
        (
            ConfigFlags::SUBREQUESTS,
            "SUBREQUESTS",
            Feature::SUBREQUESTS,
        ),
        (
            ConfigFlags::UPGRADE_BODY,
            "UPGRADE_BODY",
            Feature::UPGRADE_BODY,
        ),
    ];
    let free = ConfigFlags::DUPLEX.0 | ConfigFlags::WANT_PEER_FIELDS.0;
    let known = NEEDS.iter().fold(free, |known, (flag, ..)| known | flag.0);
    if flags.0 & !known != 0 {
        return Err(Refusal::guest_bug(
            Status::UNSUPPORTED,
            format!("flags {:#x}", flags.0),
            format!("no bits beside {known:#x} (PXG-ABI-005)"),
        ));
    }
    for (flag, name, feature) in NEEDS {
        if flags.0 & flag.0 != 0 {
            need(features, feature, format!("the flag {name}"))?;
        }
    }
    Ok(())
}

fn pend_phases(subscribe: u64, pend: u64, features: &FeatureSet) -> Result<(), Refusal> {
    let possible = Feature::PENDING
        .iter()
        .fold(0, |mask, (phase, _)| mask | phase_bit(*phase));
    if pend & !(subscribe & possible) != 0 {
        return Err(Refusal::guest_bug(
            Status::ARG,
            format!("pend_phases {pend:#x}"),
            format!("a subset of subscribe {subscribe:#x} without LOG, WAKE and L4_CLOSE"),
        ));
    }
    for &(phase, feature) in Feature::PENDING {
        if pend & phase_bit(phase) != 0 {
            need(features, feature, format!("pend_phases {pend:#x}"))?;
        }
    }
    Ok(())
}

fn mode(
    dir: usize,
    mode: BodyMode,
    subscribe: u64,
    features: &FeatureSet,
) -> Result<BodyMode, Refusal> {
    let name = match mode {
        BodyMode::UNSET | BodyMode::SKIP => "SKIP",
        BodyMode::STREAM => "STREAM",
        BodyMode::WHOLE => "WHOLE",
        BodyMode::OBSERVE => "OBSERVE",
        other => {
            return Err(Refusal::guest_bug(
                Status::UNSUPPORTED,
                format!("body_mode[{dir}] {}", other.0),
                format!("0 to {}", BodyMode::OBSERVE.0),
            ));
        }
    };
    let Some(feature) = Feature::of_body_mode(dir, mode) else {
        return Ok(BodyMode::SKIP);
    };
    let phase = [Phase::REQUEST_BODY, Phase::RESPONSE_BODY][dir];
    if subscribe & phase_bit(phase) == 0 {
        return Err(Refusal::guest_bug(
            Status::ARG,
            format!("body_mode[{dir}] {name} with subscribe {subscribe:#x}"),
            format!(
                "the bit of that body phase, {:#x}, in subscribe",
                phase_bit(phase)
            ),
        ));
    }
    need(features, feature, format!("body_mode[{dir}] {name}"))?;
    Ok(mode)
}

//! Configurations: what is handed in, what was declared, and whether that is legal.

use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{BodyMode, Phase, phase_bit};

use super::judge::{Violation, check_text};
use super::model::{Array, Text, phase_name};
use crate::finding::note;

/// What `on_config_new` is called with.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpec {
    pub(crate) filter: Vec<u8>,
    pub(crate) name: Vec<u8>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) features: FeatureSet,
    pub(crate) flags: u32,
    pub(crate) parent: u64,
}

/// An attribute that was asked for, as it was found.
#[derive(Clone, Debug)]
pub struct Want {
    pub name: Text,
    pub phases: u64,
    pub flags: u32,
    pub reserved0: u32,
}

/// A projection as it was found.
#[derive(Clone, Debug)]
pub struct Projection {
    pub name: Text,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct ConfigMade {
    pub status: i32,
    pub flags: u32,
    pub config: u64,
    pub subscribe: u64,
    pub pend_phases: u64,
    pub body_mode: [BodyMode; 2],
    pub max_body: [u64; 2],
    pub attrs: Array<Want>,
    pub projection: Array<Projection>,
    pub error: Text,
}

/// The phases of version 1.0 and their features, where they need one.
const HTTP: [Phase; 8] = [
    Phase::REQUEST_HEADERS,
    Phase::REQUEST_BODY,
    Phase::REQUEST_TRAILERS,
    Phase::RESPONSE_HEADERS,
    Phase::RESPONSE_BODY,
    Phase::RESPONSE_TRAILERS,
    Phase::LOG,
    Phase::WAKE,
];
const L4: [Phase; 4] = [
    Phase::L4_OPEN,
    Phase::L4_DOWNSTREAM,
    Phase::L4_UPSTREAM,
    Phase::L4_CLOSE,
];

fn mask_of(phases: &[Phase]) -> u64 {
    phases.iter().fold(0, |m, p| m | phase_bit(*p))
}

/// The feature that lets a phase answer PENDING.
pub(crate) fn pend_feature(p: Phase) -> Option<Feature> {
    Some(match p {
        Phase::REQUEST_HEADERS => Feature::PEND_REQUEST_HEADERS,
        Phase::REQUEST_BODY => Feature::PEND_REQUEST_BODY,
        Phase::REQUEST_TRAILERS => Feature::PEND_REQUEST_TRAILERS,
        Phase::RESPONSE_HEADERS => Feature::PEND_RESPONSE_HEADERS,
        Phase::RESPONSE_BODY => Feature::PEND_RESPONSE_BODY,
        Phase::RESPONSE_TRAILERS => Feature::PEND_RESPONSE_TRAILERS,
        Phase::L4_OPEN => Feature::PEND_L4_OPEN,
        Phase::L4_DOWNSTREAM | Phase::L4_UPSTREAM => Feature::PEND_L4_DATA,
        _ => return None,
    })
}

/// The feature of a body mode in a direction.
pub(crate) fn mode_feature(mode: BodyMode, dir: usize) -> Option<Feature> {
    Some(match (mode, dir) {
        (BodyMode::STREAM, 0) => Feature::BODY_STREAM_REQUEST,
        (BodyMode::STREAM, _) => Feature::BODY_STREAM_RESPONSE,
        (BodyMode::WHOLE, 0) => Feature::BODY_WHOLE_REQUEST,
        (BodyMode::WHOLE, _) => Feature::BODY_WHOLE_RESPONSE,
        (BodyMode::OBSERVE, 0) => Feature::BODY_OBSERVE_REQUEST,
        (BodyMode::OBSERVE, _) => Feature::BODY_OBSERVE_RESPONSE,
        _ => return None,
    })
}

pub fn feature_name(f: Feature) -> &'static str {
    Feature::ALL
        .iter()
        .find(|(g, _)| *g == f)
        .map_or("unknown", |(_, n)| n)
}

impl ConfigMade {
    pub fn is_ok(&self) -> bool {
        self.status >= 0
    }

    pub fn subscribes(&self, p: Phase) -> bool {
        self.subscribe & phase_bit(p) != 0
    }

    pub fn may_pend(&self, p: Phase) -> bool {
        self.pend_phases & phase_bit(p) != 0
    }

    /// Reports what was declared against the rules; whether a host takes the configuration.
    pub(crate) fn judge(&self, features: &FeatureSet, live: &[u64]) -> bool {
        let bad = self.violations(features, live);
        let legal = self.is_ok() && bad.is_empty();
        for (rule, text) in bad {
            note(
                rule,
                text,
                self.is_ok()
                    .then(|| "a host refuses this configuration".to_string()),
            );
        }
        legal
    }

    /// What was declared against the rules.
    pub fn violations(&self, features: &FeatureSet, live: &[u64]) -> Vec<Violation> {
        let mut bad: Vec<Violation> = Vec::new();
        let mut put = |rule: &'static str, text: String| bad.push((rule, text));
        check_text(&self.error, "config_out.error", false, &mut put);
        if !self.is_ok() {
            return bad;
        }
        if self.config == 0 {
            put(
                "PXG-CFG-008",
                "answered OK with the configuration value 0".into(),
            );
        } else if live.contains(&self.config) {
            put(
                "PXG-CFG-008",
                format!(
                    "answered the value {:#x} for a second live configuration",
                    self.config
                ),
            );
        }
        let known = mask_of(&HTTP) | mask_of(&L4);
        if self.subscribe & !known != 0 {
            put(
                "PXG-CFG-009",
                format!(
                    "subscribe has undefined bits {:#x}",
                    self.subscribe & !known
                ),
            );
        }
        if self.subscribe & mask_of(&L4) != 0 && !Feature::L4.is_in(features) {
            put(
                "PXG-CFG-009",
                "subscribes to L4 phases; the host lacks the feature L4".into(),
            );
        }
        let may = self.subscribe & !mask_of(&[Phase::LOG, Phase::WAKE, Phase::L4_CLOSE]);
        if self.pend_phases & !may != 0 {
            put(
                "PXG-CFG-009",
                format!(
                    "pend_phases {:#x} is not a subset of the subscribed phases that may pend, {may:#x}",
                    self.pend_phases
                ),
            );
        }
        for p in HTTP.iter().chain(&L4) {
            if let Some(f) = pend_feature(*p).filter(|_| self.may_pend(*p))
                && !f.is_in(features)
            {
                put(
                    "PXG-CFG-009",
                    format!(
                        "pend_phases has {}; the host lacks {}",
                        phase_name(*p),
                        feature_name(f)
                    ),
                );
            }
        }
        for (dir, mode) in self.body_mode.iter().enumerate() {
            let phase = [Phase::REQUEST_BODY, Phase::RESPONSE_BODY][dir];
            if mode.0 > BodyMode::OBSERVE.0 {
                put(
                    "PXG-CFG-009",
                    format!("body_mode[{dir}] is {}, which is not a mode", mode.0),
                );
            } else if mode.0 > BodyMode::SKIP.0 && !self.subscribes(phase) {
                put(
                    "PXG-CFG-009",
                    format!(
                        "body_mode[{dir}] is set without {} in subscribe",
                        phase_name(phase)
                    ),
                );
            }
            if let Some(f) = mode_feature(*mode, dir)
                && !f.is_in(features)
            {
                put(
                    "PXG-CFG-009",
                    format!(
                        "body_mode[{dir}] is {}; the host lacks {}",
                        mode.0,
                        feature_name(f)
                    ),
                );
            }
        }
        let flags = [
            (0x2, Feature::RESIZE_REQUEST),
            (0x4, Feature::RESIZE_RESPONSE),
            (0x10, Feature::ORPHAN),
            (0x20, Feature::SUBREQUESTS),
            (0x40, Feature::UPGRADE_BODY),
        ];
        if self.flags & !0x7f != 0 {
            put(
                "PXG-CFG-009",
                format!(
                    "config_out.flags has undefined bits {:#x}",
                    self.flags & !0x7f
                ),
            );
        }
        for (bit, f) in flags {
            if self.flags & bit != 0 && !f.is_in(features) {
                put(
                    "PXG-CFG-009",
                    format!(
                        "config_out.flags has {bit:#x}; the host lacks {}",
                        feature_name(f)
                    ),
                );
            }
        }
        self.judge_arrays(&mut put);
        bad
    }

    fn judge_arrays(&self, put: &mut impl FnMut(&'static str, String)) {
        if self.attrs.items.is_none() {
            put(
                "PXG-ABI-012",
                format!("attrs: {} elements that can't be read", self.attrs.count),
            );
        }
        for (i, a) in self.attrs.get().iter().enumerate() {
            check_text(&a.name, &format!("attrs[{i}].name"), false, put);
            if a.flags & !1 != 0 {
                put(
                    "PXG-CFG-009",
                    format!("attrs[{i}].flags has undefined bits {:#x}", a.flags & !1),
                );
            }
            if a.reserved0 != 0 {
                put(
                    "PXG-ABI-005",
                    format!("attrs[{i}].reserved0 is {}", a.reserved0),
                );
            }
        }
        if self.projection.items.is_none() {
            put(
                "PXG-ABI-012",
                format!(
                    "projection: {} elements that can't be read",
                    self.projection.count
                ),
            );
        }
        for (i, p) in self.projection.get().iter().enumerate() {
            check_text(&p.name, &format!("projection[{i}].name"), false, put);
            if p.name.get().iter().any(u8::is_ascii_uppercase) {
                put(
                    "PXG-HDR-010",
                    format!(
                        "projection[{i}] names {:?}",
                        String::from_utf8_lossy(p.name.get())
                    ),
                );
            }
        }
    }
}

//! Features: what a host can do, numbered once and for all.
//!
//! Bit `n` is `features[n / 64] & 1 << (n % 64)`. The same numbers are used in a guest's `required` and `known`.

use crate::{BodyMode, DIR_REQUEST, DIR_RESPONSE, Phase};

/// The number of a feature.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Feature(pub u32);

/// A set of features, as the tables carry it.
pub type FeatureSet = [u64; 4];

impl Feature {
    /// PENDING at request headers.
    pub const PEND_REQUEST_HEADERS: Self = Self(0);
    /// PENDING at request body.
    pub const PEND_REQUEST_BODY: Self = Self(1);
    /// PENDING at request trailers.
    pub const PEND_REQUEST_TRAILERS: Self = Self(2);
    /// PENDING at response headers.
    pub const PEND_RESPONSE_HEADERS: Self = Self(3);
    /// PENDING at response body.
    pub const PEND_RESPONSE_BODY: Self = Self(4);
    /// PENDING at response trailers.
    pub const PEND_RESPONSE_TRAILERS: Self = Self(5);
    /// PENDING at the opening of a connection.
    pub const PEND_L4_OPEN: Self = Self(6);
    /// PENDING at the bytes of a connection.
    pub const PEND_L4_DATA: Self = Self(7);
    /// Mode STREAM for request bodies.
    pub const BODY_STREAM_REQUEST: Self = Self(8);
    /// Mode STREAM for response bodies.
    pub const BODY_STREAM_RESPONSE: Self = Self(9);
    /// Mode WHOLE for request bodies.
    pub const BODY_WHOLE_REQUEST: Self = Self(10);
    /// Mode WHOLE for response bodies.
    pub const BODY_WHOLE_RESPONSE: Self = Self(11);
    /// Mode OBSERVE for request bodies.
    pub const BODY_OBSERVE_REQUEST: Self = Self(12);
    /// Mode OBSERVE for response bodies.
    pub const BODY_OBSERVE_RESPONSE: Self = Self(13);
    /// MORE at request headers: they are held until the body has been seen.
    pub const HOLD_REQUEST: Self = Self(14);
    /// MORE at response headers.
    pub const HOLD_RESPONSE: Self = Self(15);
    /// RESIZES for request bodies.
    pub const RESIZE_REQUEST: Self = Self(16);
    /// RESIZES for response bodies.
    pub const RESIZE_RESPONSE: Self = Self(17);
    /// END_STREAM at request headers is exact.
    pub const EXACT_EOS_REQUEST: Self = Self(18);
    /// END_STREAM at response headers is exact.
    pub const EXACT_EOS_RESPONSE: Self = Self(19);
    /// Request trailers are delivered.
    pub const TRAILERS_IN_REQUEST: Self = Self(20);
    /// Response trailers are delivered.
    pub const TRAILERS_IN_RESPONSE: Self = Self(21);
    /// Request trailers can be changed and added.
    pub const TRAILERS_OUT_REQUEST: Self = Self(22);
    /// Response trailers can be changed and added.
    pub const TRAILERS_OUT_RESPONSE: Self = Self(23);
    /// MORE with PASS, DROP or INJECT: a part of the view leaves while the rest is kept.
    pub const PARTIAL_RELEASE: Self = Self(24);
    /// The verdict on the request headers comes before `100-continue` is answered.
    pub const CONTINUE_GATE: Self = Self(25);
    /// BODY_WRITE on a forwarded message.
    pub const BODY_INJECT: Self = Self(26);
    /// Replies whose body follows (`PXG_REPLY_OPEN`).
    pub const STREAM_REPLY: Self = Self(27);
    /// FLUSH is honoured.
    pub const FLUSH: Self = Self(28);
    /// A reply passes the response phases of the other guests.
    pub const REPLY_REFILTER: Self = Self(29);
    /// ROUTE operations.
    pub const ROUTE: Self = Self(30);
    /// METADATA_SET operations.
    pub const METADATA: Self = Self(31);
    /// Owned buffers are sent without a copy.
    pub const OWNED_BUF: Self = Self(32);
    /// Fields in the order of the wire.
    pub const WIRE_ORDER: Self = Self(33);
    /// The configuration flag ORPHAN.
    pub const ORPHAN: Self = Self(34);
    /// The configuration flag SUBREQUESTS.
    pub const SUBREQUESTS: Self = Self(35);
    /// The configuration flag UPGRADE_BODY.
    pub const UPGRADE_BODY: Self = Self(36);
    /// All calls for a stream come on one thread.
    pub const THREAD_AFFINE: Self = Self(37);
    /// `on_batch_end` is called.
    pub const BATCH_END: Self = Self(38);
    /// A refused update leaves the old configuration serving.
    pub const CONFIG_REJECT: Self = Self(39);
    /// Config-thread calls never run on a loop thread.
    pub const CONFIG_THREAD: Self = Self(40);
    /// The L4 phases.
    pub const L4: Self = Self(41);
    /// `apply` and `wake` work.
    pub const APPLY: Self = Self(42);

    /// Every feature of this version with its name, in the order of the numbers.
    pub const ALL: &'static [(Feature, &'static str)] = &[
        (Self::PEND_REQUEST_HEADERS, "PEND_REQUEST_HEADERS"),
        (Self::PEND_REQUEST_BODY, "PEND_REQUEST_BODY"),
        (Self::PEND_REQUEST_TRAILERS, "PEND_REQUEST_TRAILERS"),
        (Self::PEND_RESPONSE_HEADERS, "PEND_RESPONSE_HEADERS"),
        (Self::PEND_RESPONSE_BODY, "PEND_RESPONSE_BODY"),
        (Self::PEND_RESPONSE_TRAILERS, "PEND_RESPONSE_TRAILERS"),
        (Self::PEND_L4_OPEN, "PEND_L4_OPEN"),
        (Self::PEND_L4_DATA, "PEND_L4_DATA"),
        (Self::BODY_STREAM_REQUEST, "BODY_STREAM_REQUEST"),
        (Self::BODY_STREAM_RESPONSE, "BODY_STREAM_RESPONSE"),
        (Self::BODY_WHOLE_REQUEST, "BODY_WHOLE_REQUEST"),
        (Self::BODY_WHOLE_RESPONSE, "BODY_WHOLE_RESPONSE"),
        (Self::BODY_OBSERVE_REQUEST, "BODY_OBSERVE_REQUEST"),
        (Self::BODY_OBSERVE_RESPONSE, "BODY_OBSERVE_RESPONSE"),
        (Self::HOLD_REQUEST, "HOLD_REQUEST"),
        (Self::HOLD_RESPONSE, "HOLD_RESPONSE"),
        (Self::RESIZE_REQUEST, "RESIZE_REQUEST"),
        (Self::RESIZE_RESPONSE, "RESIZE_RESPONSE"),
        (Self::EXACT_EOS_REQUEST, "EXACT_EOS_REQUEST"),
        (Self::EXACT_EOS_RESPONSE, "EXACT_EOS_RESPONSE"),
        (Self::TRAILERS_IN_REQUEST, "TRAILERS_IN_REQUEST"),
        (Self::TRAILERS_IN_RESPONSE, "TRAILERS_IN_RESPONSE"),
        (Self::TRAILERS_OUT_REQUEST, "TRAILERS_OUT_REQUEST"),
        (Self::TRAILERS_OUT_RESPONSE, "TRAILERS_OUT_RESPONSE"),
        (Self::PARTIAL_RELEASE, "PARTIAL_RELEASE"),
        (Self::CONTINUE_GATE, "CONTINUE_GATE"),
        (Self::BODY_INJECT, "BODY_INJECT"),
        (Self::STREAM_REPLY, "STREAM_REPLY"),
        (Self::FLUSH, "FLUSH"),
        (Self::REPLY_REFILTER, "REPLY_REFILTER"),
        (Self::ROUTE, "ROUTE"),
        (Self::METADATA, "METADATA"),
        (Self::OWNED_BUF, "OWNED_BUF"),
        (Self::WIRE_ORDER, "WIRE_ORDER"),
        (Self::ORPHAN, "ORPHAN"),
        (Self::SUBREQUESTS, "SUBREQUESTS"),
        (Self::UPGRADE_BODY, "UPGRADE_BODY"),
        (Self::THREAD_AFFINE, "THREAD_AFFINE"),
        (Self::BATCH_END, "BATCH_END"),
        (Self::CONFIG_REJECT, "CONFIG_REJECT"),
        (Self::CONFIG_THREAD, "CONFIG_THREAD"),
        (Self::L4, "L4"),
        (Self::APPLY, "APPLY"),
    ];

    /// The phases that may answer PENDING, each with the feature that it needs for it.
    pub const PENDING: &'static [(Phase, Feature)] = &[
        (Phase::REQUEST_HEADERS, Self::PEND_REQUEST_HEADERS),
        (Phase::REQUEST_BODY, Self::PEND_REQUEST_BODY),
        (Phase::REQUEST_TRAILERS, Self::PEND_REQUEST_TRAILERS),
        (Phase::RESPONSE_HEADERS, Self::PEND_RESPONSE_HEADERS),
        (Phase::RESPONSE_BODY, Self::PEND_RESPONSE_BODY),
        (Phase::RESPONSE_TRAILERS, Self::PEND_RESPONSE_TRAILERS),
        (Phase::L4_OPEN, Self::PEND_L4_OPEN),
        (Phase::L4_DOWNSTREAM, Self::PEND_L4_DATA),
        (Phase::L4_UPSTREAM, Self::PEND_L4_DATA),
    ];

    /// What a body mode needs in a direction (`DIR_*`); `None` for UNSET, SKIP and what is no mode.
    #[must_use]
    pub const fn of_body_mode(direction: usize, mode: BodyMode) -> Option<Self> {
        match (direction, mode) {
            (DIR_REQUEST, BodyMode::STREAM) => Some(Self::BODY_STREAM_REQUEST),
            (DIR_REQUEST, BodyMode::WHOLE) => Some(Self::BODY_WHOLE_REQUEST),
            (DIR_REQUEST, BodyMode::OBSERVE) => Some(Self::BODY_OBSERVE_REQUEST),
            (DIR_RESPONSE, BodyMode::STREAM) => Some(Self::BODY_STREAM_RESPONSE),
            (DIR_RESPONSE, BodyMode::WHOLE) => Some(Self::BODY_WHOLE_RESPONSE),
            (DIR_RESPONSE, BodyMode::OBSERVE) => Some(Self::BODY_OBSERVE_RESPONSE),
            _ => None,
        }
    }

    /// Adds this feature to a set.
    #[must_use]
    pub const fn add_to(self, mut set: FeatureSet) -> FeatureSet {
        if self.0 < 256 {
            set[(self.0 / 64) as usize] |= 1 << (self.0 % 64);
        }
        set
    }

    /// Whether a set has this feature.
    #[must_use]
    pub const fn is_in(self, set: &FeatureSet) -> bool {
        self.0 < 256 && set[(self.0 / 64) as usize] & (1 << (self.0 % 64)) != 0
    }
}

/// The set of the listed features.
#[must_use]
pub const fn set_of(features: &[Feature]) -> FeatureSet {
    let mut set = [0; 4];
    let mut i = 0;
    while i < features.len() {
        set = features[i].add_to(set);
        i += 1;
    }
    set
}

/// What is in `want` and not in `have`.
#[must_use]
pub const fn missing(want: &FeatureSet, have: &FeatureSet) -> FeatureSet {
    [
        want[0] & !have[0],
        want[1] & !have[1],
        want[2] & !have[2],
        want[3] & !have[3],
    ]
}

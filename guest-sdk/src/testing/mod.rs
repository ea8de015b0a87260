//! Running filters in plain `cargo test`, with no proxy.
//!
//! A [`TestHost`] is a small, strict host inside the test: it drives the library's own table through the structs of the
//! ABI, just as a proxy does. Bodies arrive split at random places, some events run on other threads, views are
//! overwritten when their call returns, structs are longer than the guest knows, buffers that change hands are released
//! on other threads, and what a filter does against a rule fails the test with the rule's id. All that is random comes
//! from a seed; a failure names it, and `PXG_TEST_SEED=<seed>` runs it again.
//!
//! ```
//! use proxy_golang_guest::prelude::*;
//! use proxy_golang_guest::testing::{TestHost, get, response};
//!
//! struct Hello;
//! impl Filter for Hello {
//!     type Ctx = ();
//!     fn configure(_: &ConfigInput<'_>, _: &mut Setup) -> Result<Self, ConfigError> {
//!         Ok(Self)
//!     }
//! }
//! impl OnRequestHeaders for Hello {
//!     fn on_request_headers(&self, _: &mut (), ev: &HeadersEvent<'_>) -> Outcome {
//!         ev.set_header("x-hello", "world");
//!         Ok(Verdict::Continue)
//!     }
//! }
//!
//! // In a guest crate this is the static that `export!` leaves: `PXG_LIBRARY`.
//! static LIBRARY: proxy_golang_guest::Library = proxy_golang_guest::library! { "hello" => Hello };
//!
//! let host = TestHost::new(&LIBRARY);
//! let config = host.configure("hello", "").unwrap();
//! let done = config.exchange(get("/"), response(200).body("hi"));
//! assert_eq!(done.upstream().get("x-hello"), Some("world"));
//! assert_eq!(done.client().text(), "hi");
//! ```
//!
//! What it leaves out: the L4 phases, chains of several filters, tunnels after an upgrade, and DUPLEX (a request is
//! through before its response begins). A real host has those; see `pxg-host`.

#[cfg(test)]
mod connections;
mod engine;
mod message;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, FeatureSet};
use proxy_golang_abi::{BodyMode, LogLevel, Status};

pub use message::{Message, get, request, response};

use crate::raw::Library;
use crate::raw::mini::{ConfigOut, Mini};

/// What the test host can do.
const FEATURES: &[Feature] = &[
    Feature::PEND_REQUEST_HEADERS,
    Feature::PEND_REQUEST_BODY,
    Feature::PEND_REQUEST_TRAILERS,
    Feature::PEND_RESPONSE_HEADERS,
    Feature::PEND_RESPONSE_BODY,
    Feature::PEND_RESPONSE_TRAILERS,
    Feature::BODY_STREAM_REQUEST,
    Feature::BODY_STREAM_RESPONSE,
    Feature::BODY_WHOLE_REQUEST,
    Feature::BODY_WHOLE_RESPONSE,
    Feature::BODY_OBSERVE_REQUEST,
    Feature::BODY_OBSERVE_RESPONSE,
    Feature::HOLD_REQUEST,
    Feature::HOLD_RESPONSE,
    Feature::RESIZE_REQUEST,
    Feature::RESIZE_RESPONSE,
    Feature::EXACT_EOS_REQUEST,
    Feature::EXACT_EOS_RESPONSE,
    Feature::TRAILERS_IN_REQUEST,
    Feature::TRAILERS_IN_RESPONSE,
    Feature::TRAILERS_OUT_REQUEST,
    Feature::TRAILERS_OUT_RESPONSE,
    Feature::PARTIAL_RELEASE,
    Feature::BODY_INJECT,
    Feature::STREAM_REPLY,
    Feature::FLUSH,
    Feature::ROUTE,
    Feature::METADATA,
    Feature::BATCH_END,
    Feature::CONFIG_REJECT,
    Feature::CONFIG_THREAD,
    Feature::APPLY,
];

/// A test host with one library in it. Its tables stay for the life of the process, as a host's do.
pub struct TestHost {
    mini: &'static Mini,
    random: Random,
    seed: u64,
}

impl TestHost {
    /// A host with every feature that it knows, log level TRACE, and a random seed, or that of `PXG_TEST_SEED`.
    ///
    /// # Panics
    /// If init refuses the host.
    #[must_use]
    pub fn new(library: &'static Library) -> Self {
        Self::without(library, &[])
    }

    /// A host that lacks some features.
    ///
    /// # Panics
    /// If init refuses the host.
    #[must_use]
    pub fn without(library: &'static Library, missing: &[Feature]) -> Self {
        let lacking = abi::feature::set_of(missing);
        let features: FeatureSet = abi::feature::missing(&abi::feature::set_of(FEATURES), &lacking);
        let mini = Mini::start(library, features, LogLevel::TRACE);
        mini.worker(true);
        let seed = std::env::var("PXG_TEST_SEED")
            .ok()
            .and_then(|s| s.parse().ok())
            .unwrap_or_else(|| {
                use std::hash::{BuildHasher, Hasher};
                std::hash::RandomState::new().build_hasher().finish()
            });
        Self {
            mini,
            random: Random(AtomicU64::new(seed)),
            seed,
        }
    }

    /// Another seed, to run many in one test.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.random = Random(AtomicU64::new(seed));
        self
    }

    /// Makes a configuration of one of the library's filters.
    ///
    /// # Errors
    /// What the filter refused it with.
    pub fn configure(
        &self,
        filter: &str,
        bytes: impl AsRef<[u8]>,
    ) -> Result<TestConfig<'_>, Refused> {
        self.make(filter, bytes.as_ref(), 0)
    }

    /// Whether the filter would take the configuration: the host's VALIDATE_ONLY.
    ///
    /// # Errors
    /// What the filter refused it with.
    ///
    /// # Panics
    /// If the filter broke a rule.
    pub fn validate(&self, filter: &str, bytes: impl AsRef<[u8]>) -> Result<(), Refused> {
        self.mini.state().validating = true;
        let features = *self.mini.features();
        let made = self
            .mini
            .new_config(filter, "validate", bytes.as_ref(), features, true, 0);
        self.mini.state().validating = false;
        self.check();
        self.mini.drop_config(made.map_err(Refused::of)?.config);
        Ok(())
    }

    /// Fails the test if the filter broke a rule.
    fn check(&self) {
        let violations = std::mem::take(&mut self.mini.state().violations);
        assert!(
            violations.is_empty(),
            "the filter broke the rules (PXG_TEST_SEED={}):\n  {}",
            self.seed,
            violations.join("\n  ")
        );
    }

    fn make(&self, filter: &str, bytes: &[u8], parent: u64) -> Result<TestConfig<'_>, Refused> {
        let out = self
            .mini
            .new_config(filter, "test", bytes, *self.mini.features(), false, parent)
            .map_err(Refused::of)?;
        Ok(TestConfig {
            host: self,
            out,
            attributes: BTreeMap::new(),
            kill_at: None,
            deadline: Duration::from_secs(30),
        })
    }

    /// Lines that were logged so far, in order.
    #[must_use]
    pub fn log_lines(&self) -> Vec<(LogLevel, String)> {
        self.mini.state().log.clone()
    }

    /// The value of a metric; labels do not count, and several with one name are added.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<i64> {
        let state = self.mini.state();
        let mut values = state
            .metrics
            .iter()
            .filter(|m| m.name == name)
            .map(|m| m.value)
            .peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// How many owned buffers were released.
    #[must_use]
    pub fn owned_released(&self) -> u64 {
        self.mini.state().owned_released
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.mini.worker(false);
    }
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The status.
    pub status: Status,
    /// The text for the operator.
    pub text: String,
}

impl Refused {
    fn of((status, text): (Status, String)) -> Self {
        Self { status, text }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (status {})", self.text, self.status.0)
    }
}

impl std::error::Error for Refused {}

/// A configuration in a [`TestHost`]; dropped when this is.
pub struct TestConfig<'h> {
    host: &'h TestHost,
    out: ConfigOut,
    attributes: BTreeMap<String, Vec<u8>>,
    kill_at: Option<u32>,
    deadline: Duration,
}

impl std::fmt::Debug for TestConfig<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestConfig")
            .field("out", &self.out)
            .finish_non_exhaustive()
    }
}

impl TestConfig<'_> {
    /// A route's override of this configuration.
    ///
    /// # Errors
    /// What the filter refused it with.
    pub fn child(&self, filter: &str, bytes: impl AsRef<[u8]>) -> Result<TestConfig<'_>, Refused> {
        self.host.make(filter, bytes.as_ref(), self.out.config)
    }

    /// The value of an attribute, if the filter asked for it.
    #[must_use]
    pub fn attribute(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.attributes
            .insert(name.to_owned(), value.as_ref().to_vec());
        self
    }

    /// How long the host waits for a deferred event before it gives up; 30 s if this is not called.
    #[must_use]
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = time;
        self
    }

    /// The client goes away at this step of the exchange: before each event and while one is deferred is a step, from
    /// 0. [`Done::steps`] tells how many there were, so that a test can try all.
    #[must_use]
    pub fn kill_at(mut self, step: Option<u32>) -> Self {
        self.kill_at = step;
        self
    }

    /// Whether the phase is subscribed.
    #[must_use]
    pub fn subscribes(&self, phase: abi::Phase) -> bool {
        self.out.subscribe & abi::phase_bit(phase) != 0
    }

    /// The initial mode of a direction's body.
    #[must_use]
    pub fn body_mode(&self, direction: crate::Direction) -> BodyMode {
        match direction {
            crate::Direction::Request => self.out.body_mode[abi::DIR_REQUEST],
            crate::Direction::Response => self.out.body_mode[abi::DIR_RESPONSE],
        }
    }

    /// One exchange, on this thread; several may run at once on several. The request goes through the filter,
    /// then this response of the upstream back through it. Waits for deferred events.
    ///
    /// # Panics
    /// If the filter broke a rule.
    pub fn exchange(&self, request: Message, upstream: Message) -> Done {
        let mut exchange = engine::Exchange::new(self, request, upstream);
        let done = exchange.run();
        self.host.check();
        done
    }
}

impl Drop for TestConfig<'_> {
    fn drop(&mut self) {
        self.host.mini.drop_config(self.out.config);
    }
}

/// How an exchange ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions ran to their ends.
    Complete,
    /// The filter replied itself.
    Replied,
    /// The filter reset the stream.
    Reset,
    /// The filter failed; its text. The client got a 500 if that was still possible.
    Failed(String),
    /// The client went away, see [`TestConfig::kill_at`].
    Cancelled,
    /// A deferred event was not completed in time.
    Deadline,
}

/// What came of an exchange.
#[derive(Clone, Debug)]
pub struct Done {
    end: End,
    upstream: Option<Message>,
    client: Option<Message>,
    metadata: BTreeMap<String, Vec<u8>>,
    route: Option<String>,
    details: String,
    steps: u32,
    events: Vec<abi::Phase>,
}

impl Done {
    /// How it ended.
    #[must_use]
    pub fn end(&self) -> &End {
        &self.end
    }

    /// The request as the upstream got it.
    ///
    /// # Panics
    /// If the upstream was not reached; see [`Done::reached_upstream`].
    #[must_use]
    pub fn upstream(&self) -> &Message {
        match &self.upstream {
            Some(message) => message,
            None => panic!(
                "the upstream was not reached; the exchange ended as {:?}",
                self.end
            ),
        }
    }

    /// Whether the whole request got to the upstream.
    #[must_use]
    pub fn reached_upstream(&self) -> bool {
        self.upstream.is_some()
    }

    /// The response as the client got it, whoever made it.
    ///
    /// # Panics
    /// If the client got none.
    #[must_use]
    pub fn client(&self) -> &Message {
        match &self.client {
            Some(message) => message,
            None => panic!(
                "the client got no response; the exchange ended as {:?}",
                self.end
            ),
        }
    }

    /// Metadata in the library's own namespace.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&[u8]> {
        self.metadata.get(key).map(Vec::as_slice)
    }

    /// The last ROUTE: a cluster, or `recompute`.
    #[must_use]
    pub fn route(&self) -> Option<&str> {
        self.route.as_deref()
    }

    /// The details of a local reply.
    #[must_use]
    pub fn details(&self) -> &str {
        &self.details
    }

    /// How many steps there were, for [`TestConfig::kill_at`].
    #[must_use]
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// The phases of the events that were delivered, in order.
    #[must_use]
    pub fn events(&self) -> &[abi::Phase] {
        &self.events
    }
}

/// SplitMix64: small, and the same everywhere.
struct Random(AtomicU64);

impl Random {
    fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1.
    fn below(&self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A number of bytes out of `n`: often few, sometimes all.
    fn piece(&self, n: usize) -> usize {
        match self.below(4) {
            0 => 1,
            1 => 1 + self.below(n.min(16)),
            2 => 1 + self.below(n),
            _ => n,
        }
    }
}

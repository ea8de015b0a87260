//! The parts of a scenario, as they are written in its file, and what they mean to the strict host.

use std::time::Duration;

use anyhow::{Result, bail};
use proxy_golang_abi::feature::Feature;
use serde::{Deserialize, Serialize};

use super::{Bytes, Open, is_false};
use crate::host::messages::{Exchange, Message};
use crate::host::model::Field;
use crate::host::rig::full;
use crate::host::state::{HostOptions, Nulls};
use crate::host::stream::Options;
use crate::rules;
use crate::subject::Subject;
use crate::sys::arena::Align;
use crate::sys::boundary::Layout;

/// What a host is like, where it is not a full one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostShape {
    /// Names of features that it lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) without: Vec<String>,
    /// Optional entries of its table that are NULL: `log`, `get_ext`, `page`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) null: Vec<String>,
    /// Bytes that its table has behind version 1.0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) tail: usize,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) log_level: u32,
    /// Loop threads; 0: two.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) workers: u32,
    /// Streams and tokens are small numbers.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) small_values: bool,
    /// The guest's runtime collects its heap as often as it can, and freed memory is overwritten.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) collects: bool,
}

fn is_zero<T: Default + PartialEq>(n: &T) -> bool {
    *n == T::default()
}

const ENTRIES: [&str; 3] = ["log", "get_ext", "page"];

impl HostShape {
    /// Names that do not exist are errors.
    pub(super) fn check(&self) -> Result<()> {
        for name in &self.without {
            if !Feature::ALL.iter().any(|(_, n)| n == name) {
                let near = rules::did_you_mean(name, Feature::ALL.iter().map(|(_, n)| *n));
                bail!(
                    "host.without: no feature {name:?}{}",
                    near.first()
                        .map_or(String::new(), |n| format!("; did you mean {n}?"))
                );
            }
        }
        if let Some(name) = self.null.iter().find(|n| !ENTRIES.contains(&n.as_str())) {
            bail!(
                "host.null: no optional entry {name:?}; they are {}",
                ENTRIES.join(", ")
            );
        }
        Ok(())
    }

    pub(crate) fn loop_threads(&self) -> u32 {
        if self.workers == 0 { 2 } else { self.workers }
    }

    pub(super) fn of(o: &HostOptions) -> Self {
        let null = [o.null.log, o.null.get_ext, o.null.page];
        Self {
            without: Feature::ALL
                .iter()
                .filter(|(f, _)| !f.is_in(&o.features))
                .map(|(_, n)| (*n).to_string())
                .collect(),
            null: ENTRIES
                .iter()
                .zip(null)
                .filter(|(_, is)| *is)
                .map(|(n, _)| (*n).to_string())
                .collect(),
            tail: o.tail,
            log_level: o.log_level,
            workers: o.n_workers,
            ..Self::default()
        }
    }

    pub(super) fn options(&self) -> HostOptions {
        let has: Vec<Feature> = Feature::ALL
            .iter()
            .filter(|(_, n)| !self.without.iter().any(|w| w == n))
            .map(|(f, _)| *f)
            .collect();
        let null = |n: &str| self.null.iter().any(|x| x == n);
        HostOptions {
            features: proxy_golang_abi::feature::set_of(&has),
            null: Nulls {
                log: null("log"),
                get_ext: null("get_ext"),
                page: null("page"),
            },
            tail: self.tail.min(4096),
            log_level: self.log_level,
            n_workers: self.loop_threads(),
            ..full()
        }
    }
}

/// A filter with its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubjectShape {
    pub(crate) filter: String,
    #[serde(default)]
    pub(crate) config: Bytes,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) request_headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) companion_headers: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) panics: bool,
}

impl From<&Subject> for SubjectShape {
    fn from(s: &Subject) -> Self {
        Self {
            filter: s.filter.clone(),
            config: Bytes(s.config.clone()),
            request_headers: s.fields.clone(),
            companion_headers: s.companion.clone(),
            panics: s.panics,
        }
    }
}

impl From<&SubjectShape> for Subject {
    fn from(s: &SubjectShape) -> Self {
        Self {
            filter: s.filter.clone(),
            config: s.config.0.clone(),
            fields: s.request_headers.clone(),
            companion: s.companion_headers.clone(),
            panics: s.panics,
        }
    }
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lines {
    pub(crate) fields: Vec<(Bytes, Bytes)>,
    /// The body as it arrives, read by read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) reads: Vec<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trailers: Option<Vec<(Bytes, Bytes)>>,
}

fn fields(from: &[(Bytes, Bytes)]) -> Vec<Field> {
    from.iter()
        .map(|(n, v)| Field {
            name: n.0.clone(),
            value: v.0.clone(),
            // What is secret by its name is marked so (STR_SENSITIVE).
            flags: if [&b"authorization"[..], b"cookie"].contains(&n.0.as_slice()) {
                2
            } else {
                0
            },
        })
        .collect()
}

impl Lines {
    pub(super) fn of(m: &Message) -> Self {
        let pairs = |f: &[Field]| {
            f.iter()
                .map(|f| (Bytes(f.name.clone()), Bytes(f.value.clone())))
                .collect()
        };
        Self {
            fields: pairs(&m.fields),
            reads: m.reads.iter().map(|r| Bytes(r.clone())).collect(),
            trailers: m.trailers.as_deref().map(pairs),
        }
    }

    fn message(&self) -> Message {
        Message {
            fields: fields(&self.fields),
            reads: self.reads.iter().map(|r| r.0.clone()).collect(),
            trailers: self.trailers.as_deref().map(fields),
        }
    }
}

/// How a stream is driven, where it is not as usual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drive {
    /// Views begin at an inaccessible page, instead of ending at one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) left: bool,
    /// Bytes behind version 1.0 in each struct.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) struct_tail: usize,
    /// Empty strings have a pointer that must not be followed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) wild_empty: bool,
    /// Most bytes that `scratch_more` grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scratch_more: Option<u64>,
    /// Into how many pieces a view is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chunks: Option<usize>,
    /// Most bytes held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_body: Option<u64>,
    /// The stream dies as soon as it is pending.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) abort_pending: bool,
    /// The end of a body is known only after its last bytes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) late_end: bool,
    /// The response is the host's own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) local_origin: bool,
    /// Event flags that version 1.0 does not define.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) unknown_flags: u32,
    /// The stream dies before the event of this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) abort_at: Option<usize>,
    /// Both directions take turns, by this seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) turns: Option<u64>,
    /// What `complete` answers instead of OK.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lies: Vec<i32>,
    /// Borrowed results are looked at again after so many milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) borrow_grace_ms: u64,
}

impl Drive {
    pub(super) fn of(o: &Options) -> Self {
        let usual = Options::default();
        Self {
            left: o.layout.align == Align::Left,
            struct_tail: o.layout.tail,
            wild_empty: o.layout.wild_empty,
            scratch_more: (o.layout.scratch_more != usual.layout.scratch_more)
                .then_some(o.layout.scratch_more),
            chunks: (o.chunks != usual.chunks).then_some(o.chunks),
            max_body: (o.max_body != usual.max_body).then_some(o.max_body),
            abort_pending: o.abort_pending,
            late_end: o.late_end,
            local_origin: o.local_origin,
            unknown_flags: o.unknown_flags,
            abort_at: o.abort_at,
            turns: o.turns,
            lies: o.lies.clone(),
            borrow_grace_ms: o
                .borrow_grace
                .map_or(0, |g| u64::try_from(g.as_millis()).unwrap_or(0)),
        }
    }

    pub(super) fn options(&self, worker: u32) -> Options {
        let usual = Options::default();
        Options {
            layout: Layout {
                align: if self.left { Align::Left } else { Align::Right },
                tail: self.struct_tail.min(4096),
                wild_empty: self.wild_empty,
                scratch_more: self.scratch_more.unwrap_or(Layout::default().scratch_more),
                ..Layout::default()
            },
            chunks: self.chunks.unwrap_or(usual.chunks),
            max_body: self.max_body.unwrap_or(usual.max_body),
            abort_pending: self.abort_pending,
            late_end: self.late_end,
            local_origin: self.local_origin,
            unknown_flags: self.unknown_flags,
            abort_at: self.abort_at,
            turns: self.turns,
            lies: self.lies.clone(),
            borrow_grace: (self.borrow_grace_ms > 0)
                .then(|| Duration::from_millis(self.borrow_grace_ms)),
            worker,
        }
    }
}

impl Open {
    pub(super) fn exchange(&self) -> Exchange {
        Exchange {
            name: "scenario",
            request: self.request.message(),
            response: self.response.message(),
            upgraded: self.upgraded,
        }
    }
}

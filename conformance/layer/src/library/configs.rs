//! Configurations, on the config thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proxy_golang_abi as abi;
use proxy_golang_abi::feature::{Feature, missing};
use proxy_golang_conformance::parts::config::ConfigMade;

use super::{Config, Findings, Library};
use crate::report::{guest, host};
use crate::sys::platform;
use crate::sys::view::SeenConfig;

impl Library {
    /// Whether this value was a configuration's, and is none's now.
    pub(crate) fn has_dropped(&self, config: u64) -> bool {
        let s = self.lock();
        s.dropped.has(config) && !s.configs.contains_key(&config)
    }

    /// A config-thread function begins. To be ended by [`Library::config_thread_end`].
    pub(crate) fn config_thread_begin(&self, f: &mut Findings) {
        let me = platform::tid();
        let other = self.config_thread.swap(me, Ordering::AcqRel);
        if other != 0 {
            f.push(host(
                "PXG-THR-001",
                format!(
                    "`{}` while thread {other} is in a config-thread function",
                    f.place.function
                ),
                "config-thread functions are serialised",
            ));
        }
        if Feature::CONFIG_THREAD.is_in(&self.features) && self.lock().loops.contains(&me) {
            f.push(host(
                "PXG-CFG-006",
                format!("`{}` on the loop thread {me}", f.place.function),
                "with CONFIG_THREAD config-thread functions never run on a loop thread",
            ));
        }
    }

    pub(crate) fn config_thread_end(&self) {
        self.config_thread.store(0, Ordering::Release);
    }

    pub(crate) fn config_new_enter(
        &self,
        c: &SeenConfig,
        in_host: Option<&'static str>,
    ) -> Findings {
        let mut f = Findings::at("on_config_new");
        let filter = String::from_utf8_lossy(c.seen.text(&c.filter)).into_owned();
        let name = c.seen.text(&c.name);
        f.place.instance = format!("{filter}/{}", String::from_utf8_lossy(name));
        self.hook(&mut f, in_host);
        if (c.seen.size as usize) < size_of::<abi::ConfigIn>() {
            f.push(host(
                "PXG-ABI-002",
                format!("pxg_config_in.size is {}", c.seen.size),
                "the size that the host knows, at least that of version 1.0 (96 bytes)",
            ));
        }
        for (rule, what) in &c.seen.problems {
            f.push(host(
                rule,
                what.clone(),
                "memory that can be read for all of the call",
            ));
        }
        for (s, what) in [
            (&c.filter, "filter"),
            (&c.name, "name"),
            (&c.bytes, "bytes"),
        ] {
            if s.flags & !3 != 0 {
                f.push(host(
                    "PXG-ABI-005",
                    format!("{what} has undefined flag bits {:#x}", s.flags & !3),
                    "ABSENT and SENSITIVE only",
                ));
            }
        }
        if c.raw.flags.0 & !1 != 0 {
            f.push(host(
                "PXG-NEG-006",
                format!("pxg_config_in.flags is {:#x}", c.raw.flags.0),
                "VALIDATE_ONLY (1) or nothing",
            ));
        }
        let beyond = missing(&c.raw.features, &self.features);
        if beyond != [0; 4] {
            f.push(host(
                "PXG-NEG-008",
                format!("features {beyond:x?} that are not in the host's table"),
                "a subset of the host's features",
            ));
        }
        let lacking = self
            .asked
            .get()
            .map_or([0; 4], |a| missing(&a.required, &c.raw.features));
        if lacking != [0; 4] {
            f.push(host(
                "PXG-NEG-003",
                format!("a configuration without {lacking:x?}, which the guest requires"),
                "the host refuses the configuration itself, and names the features",
            ));
        }
        let legal = (1..=128).contains(&name.len())
            && name
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || b"_-/".contains(b));
        if !legal {
            f.push(host(
                "PXG-CFG-001",
                format!("the instance's name {:?}", String::from_utf8_lossy(name)),
                "1 to 128 characters of a-z A-Z 0-9 _ - / (4.1)",
            ));
        }
        if c.raw.parent != 0 {
            match self.lock().configs.get(&c.raw.parent) {
                None => f.push(host(
                    "PXG-CFG-003",
                    format!("parent {:#x}, which is not live", c.raw.parent),
                    "the parent is live when the child is made",
                )),
                Some(p) if p.parent != 0 => f.push(host(
                    "PXG-CFG-003",
                    format!("parent {:#x}, which has a parent itself", c.raw.parent),
                    "one level: a parent has parent 0 (4.3)",
                )),
                Some(p) if p.filter != c.seen.text(&c.filter) => f.push(host(
                    "PXG-CFG-003",
                    format!(
                        "a parent of the filter {:?}",
                        String::from_utf8_lossy(&p.filter)
                    ),
                    "a configuration of the same filter",
                )),
                Some(_) => {}
            }
        }
        self.config_thread_begin(&mut f);
        f
    }

    pub(crate) fn config_new_leave(
        &self,
        c: &SeenConfig,
        made: &ConfigMade,
        pend_ns: u64,
        projected: u64,
        changed: Option<String>,
    ) -> Findings {
        self.config_thread_end();
        let mut f = Findings::at("on_config_new");
        let filter = String::from_utf8_lossy(c.seen.text(&c.filter)).into_owned();
        let name = String::from_utf8_lossy(c.seen.text(&c.name)).into_owned();
        let instance = format!("{filter}/{name}");
        f.place.instance.clone_from(&instance);
        if let Some(what) = changed {
            f.push(host(
                "PXG-MEM-001",
                format!("{what} of pxg_config_in changed during the call"),
                "views stay as they are until the hook returns",
            ));
        }
        let mut s = self.lock();
        let live: Vec<u64> = s.configs.keys().copied().collect();
        let violations = made.violations(&c.raw.features, &live);
        for (rule, what) in &violations {
            f.push(guest(
                rule,
                what.clone(),
                "a configuration that a host may take",
            ));
        }
        if made.status < 0 {
            return f;
        }
        if made.config == 0 || live.contains(&made.config) {
            // Refused without a drop: nothing to remember, and the other one lives on.
            return f;
        }
        let config = Config {
            value: made.config,
            instance,
            parent: c.raw.parent,
            filter: c.seen.text(&c.filter).to_vec(),
            validate_only: c.raw.flags.0 & 1 != 0,
            illegal: violations.first().map(|(_, what)| what.clone()),
            features: c.raw.features,
            flags: made.flags,
            subscribe: made.subscribe,
            pend_phases: made.pend_phases,
            body_mode: made.body_mode,
            max_body: made.max_body,
            pend_ns,
            attrs: made
                .attrs
                .get()
                .iter()
                .map(|a| {
                    (
                        String::from_utf8_lossy(a.name.bytes.as_deref().unwrap_or_default())
                            .into_owned(),
                        a.phases,
                    )
                })
                .collect(),
            projected,
        };
        s.configs.insert(made.config, Arc::new(config));
        f
    }

    pub(crate) fn config_drop_enter(&self, config: u64, in_host: Option<&'static str>) -> Findings {
        let mut f = Findings::at("on_config_drop");
        self.hook(&mut f, in_host);
        self.config_thread_begin(&mut f);
        let mut s = self.lock();
        let Some(c) = s.configs.remove(&config) else {
            f.push(host(
                "PXG-CFG-005",
                format!(
                    "dropped {config:#x}, which {}",
                    if s.dropped.has(config) {
                        "was dropped before"
                    } else {
                        "no configuration has"
                    }
                ),
                "exactly once for each configuration that was answered with OK",
            ));
            return f;
        };
        s.dropped.insert(config);
        f.place.instance.clone_from(&c.instance);
        if let Some(child) = s.configs.values().find(|k| k.parent == config) {
            f.push(host(
                "PXG-CFG-003",
                format!("dropped a parent before its child {}", child.instance),
                "a parent is dropped after every child",
            ));
        }
        let handles: Vec<u64> = s
            .places
            .iter()
            .filter(|(_, p)| p.config.value == config)
            .map(|(h, _)| *h)
            .collect();
        for h in handles {
            let p = &s.places[&h];
            let pending = s
                .tokens
                .pending()
                .any(|(_, t)| t.stream == h && t.flying.is_none());
            if p.user != 0 || pending || p.busy.is_some() {
                f.push(host(
                    "PXG-CFG-005",
                    format!(
                        "dropped with the stream {h:#x} {}: {}",
                        if pending { "PENDING" } else { "not ended" },
                        p.last().join("; ")
                    ),
                    "after on_stream_end of the last stream, and when no token is live",
                ));
            }
            self.forget(&mut s, h);
        }
        f
    }
}

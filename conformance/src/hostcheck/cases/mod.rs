//! The cases, a file for each family of rules.
//!
//! A case is a script for the probe, what the client and the upstream do, what is to be seen on the wires, and what the
//! records must show besides what the history checker demands of every case:
//!
//! ```text
//! Case::new("hdr/set", 2, &["PXG-HDR-003"], "SET leaves one value")
//!     .script("a request-headers: set x-a 1")
//!     .run(async |cx| {
//!         let x = cx.exchange(Request::get("/").field("x-a", "0")).await?;
//!         cx.equal("PXG-HDR-003", "x-a upstream", x.up.and_then(|u| u.get("x-a")), Some("1".into()));
//!         Ok(())
//!     })
//! ```

mod abi;
mod act;
mod asy;
mod att;
mod body;
mod cfg;
mod chn;
mod err;
mod evt;
mod ext;
mod glance;
mod go;
mod h2;
mod hdr;
mod l4;
mod limits;
mod load;
mod mem;
mod mutations;
mod neg;
mod obs;
mod own;
mod rpl;
mod rt;
mod sec;
mod thr;
mod trl;

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;

use anyhow::Result;
use proxy_golang_abi::feature::Feature;

use super::cx::Cx;

/// What every family uses.
mod prelude {
    pub(super) use proxy_golang_abi::feature::Feature;
    pub(super) use proxy_golang_abi::{EventFlags, Phase};

    pub(super) use super::Case;
    pub(super) use crate::hostcheck::client::Request;
    pub(super) use crate::hostcheck::cx::{Cx, Records};
    pub(super) use crate::hostcheck::record::{Edge, Record};
    pub(super) use crate::hostcheck::upstream::{Answer, Step};

    /// Bodies for requests and responses: `n` bytes that tell their places.
    pub(super) fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| b'a' + (i % 23) as u8).collect()
    }

    pub(super) const OK: i32 = 0;
    pub(super) const STALE: i32 = -1;
    pub(super) const STATE: i32 = -2;
    pub(super) const ARG: i32 = -3;
    pub(super) const UNSUPPORTED: i32 = -4;
}

type Run = Box<dyn Fn(Cx) -> Pin<Box<dyn Future<Output = Result<()>>>> + Send + Sync>;

/// A case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) level: u8,
    pub(crate) rules: &'static [&'static str],
    pub(crate) about: &'static str,
    /// Features without which it does not apply.
    pub(crate) needs: Vec<Feature>,
    /// Lines `INSTANCE PHASE: steps`; see `probe/README.md`.
    pub(crate) script: &'static str,
    /// Starts hosts of its own, or disturbs the others: it runs alone, after them.
    pub(crate) alone: bool,
    /// Why it is not run with the layer between host and guest.
    pub(crate) not_layered: Option<&'static str>,
    /// Needs the probe's twin in Go, which is built before any case runs.
    pub(crate) go: bool,
    pub(crate) run: Option<Run>,
}

impl Case {
    pub(crate) fn new(
        name: &'static str,
        level: u8,
        rules: &'static [&'static str],
        about: &'static str,
    ) -> Self {
        Self {
            name,
            level,
            rules,
            about,
            needs: Vec::new(),
            script: "",
            alone: false,
            not_layered: None,
            go: false,
            run: None,
        }
    }

    pub(crate) fn needs(mut self, f: &[Feature]) -> Self {
        self.needs.extend_from_slice(f);
        self
    }

    pub(crate) fn script(mut self, script: &'static str) -> Self {
        self.script = script;
        self
    }

    pub(crate) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    pub(crate) fn not_layered(mut self, why: &'static str) -> Self {
        self.not_layered = Some(why);
        self
    }

    pub(crate) fn go(mut self) -> Self {
        self.go = true;
        self
    }

    pub(crate) fn run<F>(mut self, f: impl Fn(Cx) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<()>> + 'static,
    {
        self.run = Some(Box::new(move |cx| Box::pin(f(cx))));
        self
    }
}

/// All cases of hosts.
pub(crate) fn all() -> &'static [Case] {
    static ALL: OnceLock<Vec<Case>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = Vec::new();
        all.extend(evt::cases());
        all.extend(ext::cases());
        all.extend(l4::cases());
        all.extend(act::cases());
        all.extend(asy::cases());
        all.extend(limits::cases());
        all.extend(body::cases());
        all.extend(chn::cases());
        all.extend(err::cases());
        all.extend(glance::cases());
        all.extend(go::cases());
        all.extend(h2::cases());
        all.extend(hdr::cases());
        all.extend(load::cases());
        all.extend(rt::cases());
        all.extend(sec::cases());
        all.extend(att::cases());
        all.extend(obs::cases());
        all.extend(mutations::cases());
        all.extend(mem::cases());
        all.extend(cfg::cases());
        all.extend(neg::cases());
        all.extend(abi::cases());
        all.extend(rpl::cases());
        all.extend(trl::cases());
        all.extend(thr::cases());
        all
    })
}

pub(crate) fn find(name: &str) -> Option<&'static Case> {
    all().iter().find(|c| c.name == name)
}

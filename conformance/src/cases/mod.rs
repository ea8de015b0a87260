//! The cases: each runs in a process of its own and checks what its name says.

mod abi;
mod asynchronous;
mod config;
mod directions;
mod growth;
mod hosts;
mod l4;
mod load;
mod memory;
mod run;
mod stress;
mod threads;

use std::path::PathBuf;

use crate::finding::{Record, record};
use crate::fuzz::{self, Script};
use crate::host::rig::{Conf, Rig, full};
use crate::host::state::HostOptions;
use crate::scenario::record as recorder;
use crate::subject::Subject;

/// A case.
pub(crate) struct Case {
    /// `family/what-is-checked`.
    pub(crate) name: &'static str,
    /// The rules that it checks; the first is the one that a crash is laid to.
    pub(crate) rules: &'static [&'static str],
    /// 1 loads, 2 core, 3 memory, 4 async and threads, 5 stress.
    pub(crate) level: u8,
    /// In one line.
    pub(crate) about: &'static str,
    pub(crate) run: fn(&mut Run),
    /// Environment of the process.
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// Most seconds that it takes on a quiet machine.
    pub(crate) seconds: u64,
}

/// What each case is given.
pub(crate) struct Run {
    pub(crate) path: PathBuf,
    pub(crate) has_go: bool,
    pub(crate) seed: u64,
    pub(crate) subjects: Vec<Subject>,
    /// For scenarios: what is put through.
    pub(crate) script: Option<Script>,
    checked: u64,
}

impl Run {
    pub(crate) fn new(path: PathBuf, has_go: bool, seed: u64, subjects: Vec<Subject>) -> Self {
        Self {
            path,
            has_go,
            seed,
            subjects,
            script: None,
            checked: 0,
        }
    }

    /// Says that something was checked: a case that checked nothing does not pass.
    pub(crate) fn checked(&mut self, n: usize) {
        self.checked += n as u64;
    }

    pub(crate) fn checked_so_far(&self) -> u64 {
        self.checked
    }

    pub(crate) fn not_applicable(&self, why: impl Into<String>) {
        record(&Record::NotApplicable(why.into()));
    }

    /// Says that this machine lacks what it takes to check.
    pub(crate) fn unchecked(&self, why: impl Into<String>) {
        record(&Record::Unchecked(why.into()));
    }

    pub(crate) fn rig(&self) -> Option<Rig> {
        self.rig_with(full())
    }

    pub(crate) fn rig_with(&self, options: HostOptions) -> Option<Rig> {
        Rig::start(&self.path, self.has_go, options)
    }

    /// The subjects, or every filter with an empty configuration.
    pub(crate) fn subjects_of(&self, rig: &Rig) -> Vec<Subject> {
        if !self.subjects.is_empty() {
            return self.subjects.clone();
        }
        rig.filters.iter().map(|f| Subject::bare(f)).collect()
    }

    /// Filters declare that they may pend, and none did: nothing about completions was checked.
    pub(crate) fn nothing_pended(&self) {
        record(&Record::Blocked(
            "pend_phases is declared, and no event was answered with PENDING; give requests what the filter waits for \
             (request_headers and companion_headers in pxg-conformance.toml)"
                .into(),
        ));
    }

    /// Configurations of all subjects. None at all blocks the case.
    pub(crate) fn confs(&self, rig: &Rig) -> Vec<Conf> {
        let subjects = self.subjects_of(rig);
        recorder::host(&rig.host.options, &subjects);
        let confs = rig.configure(&subjects);
        self.or_blocked(confs)
    }

    pub(crate) fn or_blocked(&self, confs: Vec<Conf>) -> Vec<Conf> {
        if confs.is_empty() {
            record(&Record::Blocked(
                "the guest accepted no configuration; give it one in pxg-conformance.toml (see --help)".into(),
            ));
        }
        confs
    }
}

/// All cases, in the order in which they run.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [
        load::CASES,
        hosts::CASES,
        abi::CASES,
        config::CASES,
        run::CASES,
        directions::CASES,
        l4::CASES,
        memory::CASES,
        growth::CASES,
        asynchronous::CASES,
        threads::CASES,
        stress::CASES,
    ]
    .into_iter()
    .flatten()
}

/// The case of a name, also one that runs scenarios.
pub(crate) fn find(name: &str) -> Option<&'static Case> {
    all().chain(&fuzz::CASES).find(|c| c.name == name)
}

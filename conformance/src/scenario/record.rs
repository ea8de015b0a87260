//! Writes down what a case does, as a scenario, while it does it: what has happened is in the file also when the guest
//! ends the process.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Drive, Header, HostShape, Lines, Open, Step, SubjectShape, VERSION, line};
use crate::finding::remark;
use crate::host::messages::Exchange;
use crate::host::state::HostOptions;
use crate::host::stream::Options;
use crate::subject::Subject;

struct Recorder {
    file: File,
    header: Header,
    begun: bool,
    subjects: Vec<Subject>,
    /// Values of configurations, and their numbers.
    confs: HashMap<u64, u32>,
    /// Subjects that have a first configuration.
    first: Vec<bool>,
    next_conf: u32,
    next_stream: u32,
}

static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records the case of this process to `path`.
pub(crate) fn start(path: &Path, case: &str, collects: bool) -> std::io::Result<()> {
    *lock() = Some(Recorder {
        file: File::create(path)?,
        header: Header {
            scenario: VERSION,
            rule: None,
            title: Some(format!("the case {case}")),
            host: HostShape {
                collects,
                ..HostShape::default()
            },
            subjects: Vec::new(),
        },
        begun: false,
        subjects: Vec::new(),
        confs: HashMap::new(),
        first: Vec::new(),
        next_conf: super::OWN_CONFS,
        next_stream: 0,
    });
    Ok(())
}

/// A host with these options has a guest that is configured with these subjects.
pub(crate) fn host(options: &HostOptions, subjects: &[Subject]) {
    let mut r = lock();
    let Some(r) = r.as_mut() else { return };
    if std::mem::replace(&mut r.begun, true) {
        remark("the case has more than one host: a recording has all in one like the first");
        return;
    }
    r.header.host = HostShape {
        collects: r.header.host.collects,
        ..HostShape::of(options)
    };
    r.header.subjects = subjects.iter().map(SubjectShape::from).collect();
    r.subjects = subjects.to_vec();
    r.first = vec![false; subjects.len()];
    if let Ok(text) = serde_json::to_string(&r.header) {
        let _ = writeln!(r.file, "{text}");
    }
}

impl Recorder {
    fn put(&mut self, lane: u32, step: &Step) {
        if let Ok(text) = line(usize::try_from(lane).unwrap_or(0), step) {
            let _ = self.file.write_all(text.as_bytes());
        }
    }
}

/// The case calls hooks by itself, which no step of a scenario stands for.
pub(crate) fn left_out(what: &str) {
    if lock().is_some() {
        remark(format!("not in the recording: {what}"));
    }
}

/// A configuration was made.
pub(crate) fn configured(subject: &Subject, value: u64) {
    let mut r = lock();
    let Some(r) = r.as_mut() else { return };
    let Some(n) = r.subjects.iter().position(|s| s == subject) else {
        return;
    };
    // The first one of each subject is there from the beginning.
    if !std::mem::replace(&mut r.first[n], true) {
        r.confs.insert(value, u32::try_from(n).unwrap_or(0));
        return;
    }
    let conf = r.next_conf;
    r.next_conf += 1;
    r.confs.insert(value, conf);
    r.put(0, &Step::Configure { conf, subject: n });
}

/// A configuration was dropped.
pub(crate) fn dropped(value: u64) {
    let mut r = lock();
    let Some(r) = r.as_mut() else { return };
    if let Some(conf) = r.confs.remove(&value).filter(|c| *c >= super::OWN_CONFS) {
        r.put(0, &Step::Drop { conf });
    }
}

/// A stream was opened: its number, if somebody records.
pub(crate) fn opened(conf: u64, e: &Exchange, o: &Options) -> Option<u32> {
    let mut r = lock();
    let r = r.as_mut()?;
    let stream = r.next_stream;
    r.next_stream += 1;
    let open = Open {
        stream,
        conf: r.confs.get(&conf).copied().unwrap_or(0),
        request: Lines::of(&e.request),
        response: Lines::of(&e.response),
        upgraded: e.upgraded,
        drive: Drive::of(o),
    };
    if o.layout.stale_ops.is_some() {
        remark("the operations that the case leaves in scratch are not in the recording");
    }
    r.put(o.worker, &Step::Open(Box::new(open)));
    Some(stream)
}

/// Something happened to the loop thread `lane`.
pub(crate) fn step(lane: u32, step: &Step) {
    if let Some(r) = lock().as_mut() {
        r.put(lane, step);
    }
}

/// The guest was given time to collect.
pub(crate) fn collected(grace: Duration) {
    let ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    step(0, &Step::Collect { ms });
}

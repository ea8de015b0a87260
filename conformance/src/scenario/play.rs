//! Puts scenarios through a guest: one host for all of them, and one thread for each lane for as long as the host lives.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::{Open, Scenario, Step};
use crate::cases::Run;
use crate::finding::{Record, note, record, remark, suite_error};
use crate::host::config::ConfigSpec;
use crate::host::rig::{Conf, Rig};
use crate::host::stream::{self, Stream};
use crate::subject::Subject;
use crate::sys::boundary::Layout;

/// What a lane works on.
struct Job {
    confs: Arc<Vec<Option<Conf>>>,
    subjects: Arc<Vec<Subject>>,
    steps: Vec<Step>,
}

/// Puts what `next` gives through the guest, in a host after the first of them. Says what was checked.
pub(crate) fn play(run: &mut Run, mut next: impl FnMut(&[Subject]) -> Option<Scenario>) {
    let Some(first) = next(&run.subjects) else {
        return;
    };
    let options = first.host.options();
    // A guest that has no page cannot know the level.
    let quiet = options.log_level >= LOG_OFF && !options.null.page;
    let workers = options.n_workers;
    let Some(library) = crate::host::rig::load(&run.path) else {
        return;
    };
    let (host, _, done) = crate::host::rig::init(library, options);
    if first.host.small_values {
        host.use_small_values();
    }
    let Some(rig) = Rig::attach(library, run.has_go, host, done) else {
        return;
    };
    std::thread::scope(|s| {
        let mut lanes = Vec::new();
        for worker in 1..workers {
            let (to, jobs) = channel::<Job>();
            let (done, from) = channel();
            let rig = &rig;
            s.spawn(move || worker_thread(rig, worker, &jobs, &done));
            lanes.push((to, from));
        }
        let mut scenario = Some(first);
        while let Some(now) = scenario {
            if !now.subjects.is_empty() {
                run.subjects = now.subjects.iter().map(Subject::from).collect();
            }
            let subjects = Arc::new(run.subjects_of(&rig));
            one(run, &rig, &subjects, now, &lanes);
            scenario = next(&subjects);
        }
    });
    let left = rig.host.pending();
    if !left.is_empty() {
        suite_error(format!("tokens left pending: {}", left.join(", ")));
    }
    if quiet && rig.host.log_calls() > 0 {
        note(
            "PXG-OBS-002",
            "sent records while page->log_level was OFF",
            rig.host.logs().into_iter().take(1).map(|l| l.1),
        );
    }
}

const LOG_OFF: u32 = 5;

fn worker_thread(rig: &Rig, worker: u32, jobs: &Receiver<Job>, done: &Sender<u64>) {
    rig.guest.on_worker(worker, true);
    while let Ok(job) = jobs.recv() {
        let checked = lane(rig, worker, &job);
        drop(job);
        if done.send(checked).is_err() {
            return;
        }
    }
}

fn one(
    run: &mut Run,
    rig: &Rig,
    subjects: &Arc<Vec<Subject>>,
    scenario: Scenario,
    lanes: &[(Sender<Job>, Receiver<u64>)],
) {
    let mut confs: Vec<Option<Conf>> = subjects.iter().map(|_| None).collect();
    for (i, s) in subjects.iter().enumerate() {
        let live: Vec<u64> = confs.iter().flatten().map(|c| c.made.config).collect();
        confs[i] = configure(rig, s, i, &live);
    }
    let confs = Arc::new(confs);
    let mut steps = scenario.lanes.into_iter().map(|steps| Job {
        confs: Arc::clone(&confs),
        subjects: Arc::clone(subjects),
        steps,
    });
    let own = steps.next();
    let mut busy = Vec::new();
    for ((to, from), job) in lanes.iter().zip(steps) {
        if !job.steps.is_empty() && to.send(job).is_ok() {
            busy.push(from);
        }
    }
    let mut checked = own.map_or(0, |job| lane(rig, 0, &job));
    for from in busy {
        checked += from.recv().unwrap_or(0);
    }
    match Arc::try_unwrap(confs) {
        Ok(confs) => rig.drop_all(confs.into_iter().flatten().collect()),
        Err(_) => suite_error("a lane still has the configurations".into()),
    }
    run.checked(usize::try_from(checked).unwrap_or(0));
}

fn configure(rig: &Rig, s: &Subject, index: usize, live: &[u64]) -> Option<Conf> {
    if !rig.filters.contains(&s.filter) {
        remark(format!("the library has no filter {:?}", s.filter));
        return None;
    }
    let features = &rig.host.options.features;
    let made = rig.configure_one(s, index, live, Layout::default(), features)?;
    record(&Record::Configured(s.filter.clone()));
    Some(made)
}

/// A lane's own things while it runs.
struct Lane<'a> {
    rig: &'a Rig,
    worker: u32,
    job: &'a Job,
    /// By the number of the `Configure` step; filled when it is done, so that streams may borrow from it.
    made: &'a [(u32, OnceCell<Conf>)],
    dropped: Vec<u32>,
    streams: BTreeMap<u32, (u32, Stream<'a>)>,
    /// An event was answered with PENDING since the loop's iteration began.
    pended: bool,
    checked: u64,
}

fn lane(rig: &Rig, worker: u32, job: &Job) -> u64 {
    let made: Vec<(u32, OnceCell<Conf>)> = job
        .steps
        .iter()
        .filter_map(|s| match s {
            Step::Configure { conf, .. } => Some((*conf, OnceCell::new())),
            _ => None,
        })
        .collect();
    let mut lane = Lane {
        rig,
        worker,
        job,
        made: &made,
        dropped: Vec::new(),
        streams: BTreeMap::new(),
        pended: false,
        checked: 0,
    };
    for step in &job.steps {
        lane.step(step);
    }
    let left: Vec<u32> = lane.streams.keys().copied().collect();
    for stream in left {
        lane.finish(stream);
    }
    lane.turn();
    let (dropped, checked) = (lane.dropped, lane.checked);
    for (id, conf) in made {
        if let Some(c) = conf.into_inner().filter(|_| !dropped.contains(&id)) {
            rig.guest.on_config_drop(c.made.config);
        }
    }
    checked
}

impl<'a> Lane<'a> {
    fn step(&mut self, step: &'a Step) {
        self.checked += 1;
        match step {
            Step::Configure { conf, subject } => self.configure(*conf, *subject),
            Step::Offer {
                subject,
                bytes,
                validate,
            } => self.offer(*subject, &bytes.0, *validate),
            Step::Drop { conf } => {
                let streams: Vec<u32> = self
                    .streams
                    .iter()
                    .filter(|(_, (c, _))| c == conf)
                    .map(|(s, _)| *s)
                    .collect();
                for s in streams {
                    self.finish(s);
                }
                if let Some(c) = self.own(*conf) {
                    self.rig.guest.on_config_drop(c.made.config);
                    self.dropped.push(*conf);
                }
            }
            Step::Open(open) => self.open(open),
            Step::Go { stream, events } => {
                for _ in 0..*events {
                    match self.once(*stream) {
                        Some(stream::Step::Ran) => {}
                        _ => break,
                    }
                }
            }
            Step::Wait { stream } => self.wait(*stream),
            Step::Abort { stream } => {
                if let Some((_, mut s)) = self.streams.remove(stream) {
                    s.abort();
                    s.finish();
                }
            }
            Step::Finish { stream } => self.finish(*stream),
            Step::Saw { .. } => {}
            Step::Turn => self.turn(),
            Step::Pause { us } => {
                self.turn();
                std::thread::sleep(Duration::from_micros((*us).min(1_000_000)));
            }
            Step::Collect { ms } => self.rig.disturb(Duration::from_millis((*ms).min(1000))),
        }
    }

    /// A configuration that this lane made and did not drop.
    fn own(&self, id: u32) -> Option<&'a Conf> {
        if self.dropped.contains(&id) {
            return None;
        }
        self.made
            .iter()
            .find(|(i, _)| *i == id)
            .and_then(|(_, c)| c.get())
    }

    fn subject(&self, n: usize) -> Option<(usize, &'a Subject)> {
        let all = &self.job.subjects;
        let n = n % all.len().max(1);
        Some((n, all.get(n)?))
    }

    fn configure(&mut self, id: u32, subject: usize) {
        let Some((n, s)) = self.subject(subject) else {
            return;
        };
        let slot = self
            .made
            .iter()
            .find(|(i, c)| *i == id && c.get().is_none());
        // What other lanes make meanwhile is not known here; these values differ from it or not.
        let live: Vec<u64> = self
            .job
            .confs
            .iter()
            .flatten()
            .map(|c| c.made.config)
            .collect();
        if let (Some((_, slot)), Some(c)) = (slot, configure(self.rig, s, n, &live)) {
            let _ = slot.set(c);
        }
    }

    fn offer(&mut self, subject: usize, bytes: &[u8], validate: bool) {
        let Some((n, s)) = self.subject(subject) else {
            return;
        };
        let spec = ConfigSpec {
            bytes: bytes.to_vec(),
            flags: u32::from(validate),
            ..self.rig.spec(s, n)
        };
        let made = self.rig.guest.on_config_new(&spec, Layout::default());
        if made.is_ok() {
            made.judge(&self.rig.host.options.features, &[]);
            self.rig.guest.on_config_drop(made.config);
        }
    }

    fn open(&mut self, open: &Open) {
        let shared = &self.job.confs;
        let conf = self.own(open.conf).or_else(|| {
            let n = usize::try_from(open.conf).ok()? % shared.len().max(1);
            shared.get(n)?.as_ref()
        });
        let Some(conf) = conf else { return };
        if self.streams.contains_key(&open.stream) {
            self.finish(open.stream);
        }
        let stream = Stream::new(
            self.rig,
            conf,
            &open.exchange(),
            open.drive.options(self.worker),
        );
        self.streams.insert(open.stream, (open.conf, stream));
    }

    fn once(&mut self, id: u32) -> Option<stream::Step> {
        let (_, s) = self.streams.get_mut(&id)?;
        let before = s.pending();
        let step = s.step();
        self.checked += 1;
        self.pended |= s.pending().is_some() && s.pending() != before;
        if step == stream::Step::Ended {
            self.streams.remove(&id);
        }
        Some(step)
    }

    /// The end of an iteration: what pended in it is told to the guest (PXG-THR-004).
    fn turn(&mut self) {
        if std::mem::take(&mut self.pended) {
            self.rig.batch_end(self.worker);
        }
    }

    fn wait(&mut self, id: u32) {
        let mut helped = false;
        while let Some(stream::Step::Waits(token)) = self.once(id) {
            self.turn();
            let Some((_, s)) = self.streams.get_mut(&id) else {
                return;
            };
            if !std::mem::replace(&mut helped, true) {
                s.help();
            }
            let deadline = Instant::now() + Duration::from_millis(20);
            if let Some(o) = self.rig.host.wait(token, deadline) {
                s.completed(token, &o);
                return;
            }
        }
    }

    fn finish(&mut self, id: u32) {
        if let Some((_, s)) = self.streams.remove(&id) {
            self.turn();
            self.checked += s.run().events as u64;
        }
    }
}

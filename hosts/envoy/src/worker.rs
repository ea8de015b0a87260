//! What belongs to one of Envoy's worker threads.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use proxy_golang_host::engine::{Mail, Worker as Engine};
use proxy_golang_host::loader::Library;

use crate::bell::{Bell, NEVER};
use crate::process::{self, Process};
use crate::session::Session;
use crate::site::{Plan, Used};
use crate::sys::{self, Heads, Scheduler};

/// Sessions that are kept with their memory for later streams.
const SPARE: usize = 512;

/// Every so many calls of guests are timed: two looks at the clock cost about as much as a guest in C does.
const TIMED: u32 = 13;

/// Streams that carry rings at once, if there are as many that need turns. More than one, so that the list does not run
/// empty with each stream that ends.
const CARRIERS: u32 = 4;

/// One worker.
pub(crate) struct Worker {
    pub(crate) process: &'static Process,
    pub(crate) engine: RefCell<Engine>,
    pub(crate) bell: Arc<Bell<Scheduler>>,
    pub(crate) heads: &'static Heads,
    /// All sessions that this worker ever needed at once, by slot.
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    generation: Cell<u32>,
    /// No stream's deadline is earlier; it may be one that is none any more.
    due: Cell<u64>,
    /// A turn is asked for, to end the batch.
    batch: Cell<bool>,
    libraries: RefCell<Vec<Arc<Library>>>,
    /// The plan whose libraries were looked for last.
    known: Cell<u64>,
    /// Streams that need turns, and those that carry rings.
    needing: Cell<i32>,
    carriers: Cell<u32>,
    /// Mail that was taken out in another stream's hook.
    later: RefCell<VecDeque<Mail>>,
}

struct Slot {
    session: Rc<Session>,
    deadline: u64,
}

thread_local! {
    static WORKER: OnceCell<Option<Home>> = const { OnceCell::new() };
}

/// This thread's worker, made by its first stream. `None` on a thread whose index Envoy did not announce.
pub(crate) fn current(index: impl FnOnce() -> u32) -> Option<Rc<Worker>> {
    WORKER.with(|worker| {
        worker
            .get_or_init(|| {
                let process = process::get()?;
                let id = index();
                let bell = Arc::clone(process.bell(id)?);
                let mut engine = Engine::new(Arc::clone(&process.hub), id, process::now);
                engine.set_timing_every(TIMED);
                Some(Home(Rc::new(Worker {
                    process,
                    engine: RefCell::new(engine),
                    bell,
                    heads: Heads::leak(),
                    slots: RefCell::default(),
                    free: RefCell::default(),
                    generation: Cell::new(0),
                    due: Cell::new(NEVER),
                    batch: Cell::new(false),
                    libraries: RefCell::default(),
                    known: Cell::new(0),
                    needing: Cell::new(0),
                    carriers: Cell::new(0),
                    later: RefCell::default(),
                })))
            })
            .as_ref()
            .map(|home| Rc::clone(&home.0))
    })
}

/// A worker in its thread's keeping.
struct Home(Rc<Worker>);

/// The thread ends, and with it all of its streams have: guests hear of it.
impl Drop for Home {
    fn drop(&mut self) {
        let worker = &self.0;
        worker.slots.take();
        let id = worker.engine.borrow().id();
        for library in worker.libraries.take() {
            library.worker_down(id);
        }
    }
}

impl Worker {
    /// A session for a new stream: one of an earlier stream, or a new one.
    pub(crate) fn session(self: &Rc<Self>) -> Rc<Session> {
        self.generation.set(self.generation.get().wrapping_add(1));
        let generation = u64::from(self.generation.get()) << 32;
        if let Some(slot) = self.free.borrow_mut().pop() {
            let session = Rc::clone(&self.slots.borrow()[slot as usize].session);
            session.set_key(generation | u64::from(slot));
            return session;
        }
        let mut slots = self.slots.borrow_mut();
        let slot = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let session = Rc::new(Session::new(Rc::clone(self), generation | u64::from(slot)));
        slots.push(Slot {
            session: Rc::clone(&session),
            deadline: NEVER,
        });
        session
    }

    /// The stream of a session is over. Whether its memory is to be kept.
    pub(crate) fn give_back(&self, slot: u32) -> bool {
        self.slots.borrow_mut()[slot as usize].deadline = NEVER;
        let mut free = self.free.borrow_mut();
        free.push(slot);
        free.len() <= SPARE
    }

    fn find(&self, key: u64) -> Option<Rc<Session>> {
        let slots = self.slots.borrow();
        let found = slots.get(slot_of(key) as usize)?;
        (found.session.key() == key).then(|| Rc::clone(&found.session))
    }

    /// Sees to it that guests have had their first call on this thread.
    #[inline]
    pub(crate) fn know(&self, plan: &Plan) {
        if self.known.replace(plan.id) != plan.id {
            self.look_for(&plan.libraries);
        }
    }

    #[cold]
    fn look_for(&self, used: &[Used]) {
        let mut known = self.libraries.borrow_mut();
        for Used { library, warm_up } in used {
            if !known.iter().any(|k| k.id() == library.id()) {
                let id = self.engine.borrow().id();
                if *warm_up {
                    library.warm_up(id);
                } else {
                    library.worker_up(id);
                }
                known.push(Arc::clone(library));
            }
        }
    }

    /// The stream in `slot` is to be looked at when the clock says `deadline`.
    pub(crate) fn set_deadline(&self, slot: u32, deadline: Option<u64>) {
        let deadline = deadline.unwrap_or(NEVER);
        self.slots.borrow_mut()[slot as usize].deadline = deadline;
        if deadline < self.due.get() {
            self.due.set(deadline);
            if self.bell.set_due(deadline) {
                self.process.due(deadline);
            }
        }
    }

    /// Guests have pended: a turn ends the batch.
    pub(crate) fn end_batch_soon(&self) {
        if !self.batch.replace(true) {
            self.bell.ring();
        }
    }

    /// So many streams more need turns.
    pub(crate) fn turns_needed(&self, change: i32) {
        self.needing.set(self.needing.get() + change);
    }

    /// Whether a stream that needs turns had better carry rings itself. A few carriers do for all streams.
    pub(crate) fn lacks_carriers(&self) -> bool {
        self.carriers.get() < CARRIERS
    }

    /// The stream in `slot` can carry rings.
    pub(crate) fn join(&self, slot: u32, scheduler: Arc<Scheduler>) {
        self.carriers.set(self.carriers.get() + 1);
        self.bell.join(slot, scheduler);
    }

    /// The stream in `slot`, a carrier, ends.
    pub(crate) fn leave(&self, slot: u32) {
        let left = self.carriers.get() - 1;
        self.carriers.set(left);
        let owed = self.bell.leave(slot);
        if left > 0 {
            return;
        }
        let taken_over = self.needing.get() > 0 && self.hand_over();
        if owed && !taken_over {
            // No stream is left that waits for anything: what the ring was for besides is done here.
            self.end_batch();
        }
    }

    /// Has another stream carry rings, now that nobody does.
    fn hand_over(&self) -> bool {
        let slots = self.slots.borrow();
        slots.iter().any(|slot| slot.session.take_over())
    }

    fn end_batch(&self) {
        self.batch.set(false);
        let mut engine = self.engine.borrow_mut();
        if engine.batch_is_open() {
            self.bell.work.batch_ends.inc();
            engine.end_batch();
        }
    }

    /// Mail of this stream, in its own hook. That of others waits for a turn.
    pub(crate) fn take_own(&self, key: u64) -> Option<Mail> {
        let mail = self.find_own(key)?;
        self.bell.work.completions.inc();
        Some(mail)
    }

    fn find_own(&self, key: u64) -> Option<Mail> {
        let mut later = self.later.borrow_mut();
        if let Some(at) = later.iter().position(|mail| mail.stream == key) {
            return later.remove(at);
        }
        drop(later);
        if !self.engine.borrow().has_mail() {
            return None;
        }
        loop {
            let mail = self.engine.borrow_mut().take_mail()?;
            if mail.stream == key {
                return Some(mail);
            }
            self.later.borrow_mut().push_back(mail);
            self.bell.ring();
        }
    }

    fn next_mail(&self) -> Option<Mail> {
        let later = self.later.borrow_mut().pop_front();
        later.or_else(|| self.engine.borrow_mut().take_mail())
    }

    /// What a ring is for: mail, deadlines, the end of the batch.
    pub(crate) fn turn(&self) {
        self.bell.answered();
        let mut completions = 0;
        loop {
            let Some(mail) = self.next_mail() else {
                break;
            };
            completions += 1;
            if let Some(session) = self.find(mail.stream) {
                // Whose turn this is has nothing to do with it, and the others wait for theirs.
                sys::guarded("mail", || session.deliver(mail), || session.give_up());
            }
        }
        self.bell.work.completions.add(completions);
        if self.due.get() != NEVER {
            self.expire(process::now());
        }
        self.end_batch();
    }

    fn expire(&self, now: u64) {
        if self.due.get() > now {
            return;
        }
        let mut expired = Vec::new();
        let mut next = NEVER;
        for slot in &mut *self.slots.borrow_mut() {
            if slot.deadline <= now {
                slot.deadline = NEVER;
                expired.push((Rc::clone(&slot.session), slot.session.key()));
            } else {
                next = next.min(slot.deadline);
            }
        }
        self.due.set(next);
        if self.bell.set_due(next) {
            self.process.due(next);
        }
        for (session, key) in expired {
            if session.key() == key {
                sys::guarded("deadline", || session.expire(), || session.give_up());
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // the lower half of a key
pub(crate) fn slot_of(key: u64) -> u32 {
    key as u32
}

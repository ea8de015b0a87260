//! The handler for SIGSEGV and SIGBUS: an access to a guarded copy whose time is over is recorded and let through.
//! Everything else goes to the handler that was there before.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use proxy_golang_conformance::parts::peek;

use super::memory::{self, Kind};
use super::platform;

const WORDS: usize = 24;
const FRAMES: usize = 10;
const MOST: usize = 256;

static FAULTS: [[AtomicU64; WORDS]; MOST] = [const { [const { AtomicU64::new(0) }; WORDS] }; MOST];
/// Faults begun to be written, written, and read.
static BEGUN: AtomicU32 = AtomicU32::new(0);
static READ: AtomicU32 = AtomicU32::new(0);
static ABORT: AtomicBool = AtomicBool::new(false);

/// A wrong access.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) at: u64,
    pub(crate) write: bool,
    pub(crate) thread: u64,
    pub(crate) when: u64,
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) kind: Kind,
    pub(crate) phase: u32,
    pub(crate) stream: u64,
    pub(crate) closed: u64,
    /// The thread that it was lent to.
    pub(crate) lent_to: u64,
    /// Where the access was made, and the callers that could be found.
    pub(crate) frames: Vec<u64>,
}

struct Previous(UnsafeCell<MaybeUninit<[libc::sigaction; 2]>>, AtomicBool);
// SAFETY: written before the handler that reads it is installed, and afterwards only under the lock of `install`.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(
    UnsafeCell::new(MaybeUninit::zeroed()),
    AtomicBool::new(false),
);

type Action = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs the handler in front of what the guest's runtime installed.
pub(super) fn install(abort: bool) {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    ABORT.store(abort, Ordering::Release);
    for (i, signal) in [libc::SIGSEGV, libc::SIGBUS].into_iter().enumerate() {
        // SAFETY: `action` is fully initialised, the handler is async-signal-safe, and PREVIOUS is written before it
        // can be read: the handler is not installed yet, or is not called for what this loop does.
        unsafe {
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut old);
            if old.sa_sigaction == handle as *const () as usize {
                continue;
            }
            (*PREVIOUS.0.get()).assume_init_mut()[i] = old;
            PREVIOUS.1.store(true, Ordering::Release);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigfillset(&raw mut action.sa_mask);
            libc::sigdelset(&raw mut action.sa_mask, libc::SIGSEGV);
            libc::sigdelset(&raw mut action.sa_mask, libc::SIGBUS);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn registers(context: *mut libc::c_void) -> (u64, u64, u64, bool) {
    // SAFETY: the kernel hands a ucontext_t to an SA_SIGINFO handler.
    let regs = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = |r: i32| regs[r.cast_unsigned() as usize].cast_unsigned();
    (
        at(libc::REG_RIP),
        at(libc::REG_RSP),
        at(libc::REG_RBP),
        at(libc::REG_ERR) & 2 != 0,
    )
}

#[cfg(target_arch = "aarch64")]
fn registers(context: *mut libc::c_void) -> (u64, u64, u64, bool) {
    // SAFETY: the kernel hands a ucontext_t to an SA_SIGINFO handler.
    let m = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext };
    // Whether it was a write is not in the general registers.
    (m.pc, m.sp, m.regs[29], false)
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a siginfo_t to an SA_SIGINFO handler.
    let (at, code) = unsafe { ((*info).si_addr() as u64, (*info).si_code) };
    let found = (code > 0).then(|| memory::find(at)).flatten();
    let Some(r) = found else {
        chain(signal, info, context);
        return;
    };
    // SAFETY: errno is the thread's own; it is restored below.
    let errno = unsafe { *libc::__errno_location() };
    let (pc, sp, fp, write) = registers(context);
    let mut words = [0u64; WORDS];
    words[1] = at;
    words[2] = write.into();
    words[3] = platform::raw_tid();
    words[4] = platform::now_ns();
    words[5] = r.start.load(Ordering::Relaxed);
    words[6] = r.len.load(Ordering::Relaxed);
    words[7] = r.what.load(Ordering::Relaxed);
    words[8] = r.stream.load(Ordering::Relaxed);
    words[9] = r.closed.load(Ordering::Acquire);
    words[10] = r.thread.load(Ordering::Relaxed);
    frames(pc, sp, fp, &mut words[WORDS - FRAMES..]);
    let n = BEGUN.fetch_add(1, Ordering::AcqRel) as usize;
    if let Some(slot) = FAULTS.get(n) {
        for (to, from) in slot.iter().zip(&words).skip(1) {
            to.store(*from, Ordering::Relaxed);
        }
        slot[0].store(1, Ordering::Release);
    }
    memory::let_through(at);
    if ABORT.load(Ordering::Acquire) {
        // The process ends here whatever happens: findings are written as far as this thread can.
        crate::report_faults();
        // SAFETY: ends the process.
        unsafe { libc::abort() };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Where it happened, words on top of the stack that may be return addresses, and the chain of frame pointers.
fn frames(pc: u64, sp: u64, fp: u64, out: &mut [u64]) {
    let mut slots = out.iter_mut();
    let mut put = |v: u64| slots.next().map(|s| *s = v);
    put(pc);
    let mut word = [0u8; 8];
    for i in 0..3u64 {
        if peek::into(sp + 8 * i, &mut word).is_ok() {
            put(u64::from_ne_bytes(word));
        }
    }
    let mut fp = fp;
    loop {
        let mut pair = [[0u8; 8]; 2];
        let ok = fp != 0 && fp.is_multiple_of(8) && peek::into(fp, pair.as_flattened_mut()).is_ok();
        if !ok || put(u64::from_ne_bytes(pair[1])).is_none() {
            return;
        }
        let next = u64::from_ne_bytes(pair[0]);
        if next <= fp {
            return;
        }
        fp = next;
    }
}

fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if PREVIOUS.1.load(Ordering::Acquire) {
        let i = usize::from(signal == libc::SIGBUS);
        // SAFETY: written before the flag; the kernel's own description of a handler that was installed here.
        let old = unsafe { (*PREVIOUS.0.get()).assume_init_ref()[i] };
        if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN {
            if old.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: SA_SIGINFO says that the handler has this type.
                let f: Action = unsafe { std::mem::transmute(old.sa_sigaction) };
                f(signal, info, context);
            } else {
                // SAFETY: without SA_SIGINFO the handler takes the signal alone.
                let f: extern "C" fn(i32) = unsafe { std::mem::transmute(old.sa_sigaction) };
                f(signal);
            }
            return;
        }
    }
    // SAFETY: the default action; the faulting instruction runs again and ends the process with the right status.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
}

/// Whether something was recorded that nobody has read.
pub(crate) fn any() -> bool {
    READ.load(Ordering::Relaxed) != BEGUN.load(Ordering::Relaxed).min(MOST as u32)
}

/// What was recorded and not read yet. After 256 wrong accesses further ones are let through silently.
pub(crate) fn take() -> Vec<Fault> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // A fault inside of this function itself must not wait for itself.
    let Ok(_one) = ONE.try_lock() else {
        return Vec::new();
    };
    let mut out = Vec::new();
    loop {
        let n = READ.load(Ordering::Acquire);
        let Some(slot) = FAULTS.get(n as usize) else {
            return out;
        };
        if slot[0].load(Ordering::Acquire) == 0 {
            return out;
        }
        READ.store(n + 1, Ordering::Release);
        let w: [u64; WORDS] = std::array::from_fn(|i| slot[i].load(Ordering::Relaxed));
        let Some(kind) = Kind::from(w[7] & 0xffff_ffff) else {
            continue;
        };
        out.push(Fault {
            at: w[1],
            write: w[2] != 0,
            thread: w[3],
            when: w[4],
            start: w[5],
            len: w[6],
            kind,
            phase: u32::try_from(w[7] >> 32).unwrap_or(0),
            stream: w[8],
            closed: w[9],
            lent_to: w[10],
            frames: w[WORDS - FRAMES..]
                .iter()
                .copied()
                .filter(|f| *f != 0)
                .collect(),
        });
    }
}

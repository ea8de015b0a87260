//! The handler for SIGSEGV and SIGBUS: an access to lent memory that is not allowed is recorded with its address, place
//! and thread, and then let through, so that one run finds all of them. Everything else goes to the handler that was
//! there before.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::arena::{self, PAGE};
use super::peek;
use super::shared::{self, FAULT_WORDS};

/// Whether a recorded fault is let through; otherwise it goes on to the guest's own handler, which explains it.
static HEAL: AtomicBool = AtomicBool::new(true);

struct Previous(UnsafeCell<MaybeUninit<[libc::sigaction; 2]>>, AtomicU32);
// SAFETY: written once, before the handler that reads it is installed.
unsafe impl Sync for Previous {}

/// One for the handler installed before the guest is loaded, one for the handler installed after.
static PREVIOUS: [Previous; 2] = [
    Previous(UnsafeCell::new(MaybeUninit::zeroed()), AtomicU32::new(0)),
    Previous(UnsafeCell::new(MaybeUninit::zeroed()), AtomicU32::new(0)),
];

type Action = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

pub(crate) fn set_heal(on: bool) {
    HEAL.store(on, Ordering::Release);
}

pub(crate) fn heals() -> bool {
    HEAL.load(Ordering::Acquire)
}

/// Installs the handler. `layer` 0: before the guest is loaded; 1: after its init, in front of what a runtime installed.
pub(crate) fn install(layer: usize) {
    let handler: Action = if layer == 0 { first } else { second };
    for (i, signal) in [libc::SIGSEGV, libc::SIGBUS].into_iter().enumerate() {
        // SAFETY: `action` is fully initialised; the handlers are async-signal-safe; PREVIOUS is written before it can
        // be read, since the process has no other handler of ours for this layer yet.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigfillset(&raw mut action.sa_mask);
            libc::sigdelset(&raw mut action.sa_mask, libc::SIGSEGV);
            libc::sigdelset(&raw mut action.sa_mask, libc::SIGBUS);
            let mut old: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &raw mut old);
            // A second init of the same guest: what was there before is known, and is not this handler itself.
            if old.sa_sigaction == handler as usize {
                continue;
            }
            (*PREVIOUS[layer].0.get()).assume_init_mut()[i] = old;
            PREVIOUS[layer].1.store(1, Ordering::Release);
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

extern "C" fn first(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    handle(0, signal, info, context);
}

extern "C" fn second(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    handle(1, signal, info, context);
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
    // Whether it was a write is in ESR_EL1, behind a chain of records; 0x40 of it is WnR.
    (m.pc, m.sp, m.regs[29], false)
}

fn handle(layer: usize, signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid siginfo_t to an SA_SIGINFO handler.
    let (code, at) = unsafe { ((*info).si_code, (*info).si_addr() as u64) };
    let (pc, sp, fp, write) = registers(context);
    // Codes above 0 come from the kernel: 1 not mapped, 2 not permitted, and SI_KERNEL for non-canonical addresses.
    let mut words = [0u64; FAULT_WORDS];
    words[0] = at;
    words[1] = u64::from(write);
    words[2] = pc;
    // SAFETY: gettid takes nothing and is async-signal-safe.
    words[3] = unsafe { libc::syscall(libc::SYS_gettid) }.cast_unsigned();
    words[4] = arena::now_ns();
    words[13] = signal.cast_unsigned().into();
    // SAFETY: errno is the thread's own; it is restored below.
    let errno = unsafe { *libc::__errno_location() };
    frames(pc, sp, fp, &mut words[16..]);
    let found = (code > 0 && arena::is_ours(at))
        .then(arena::get)
        .flatten()
        .and_then(|a| a.find(at));
    if let (Some(r), Some(shared)) = (found, shared::current()) {
        words[5] = r.start.load(Ordering::Relaxed);
        words[6] = r.len.load(Ordering::Relaxed);
        words[7] = r.what.load(Ordering::Relaxed);
        words[8] = r.call.load(Ordering::Relaxed);
        words[9] = r.stream.load(Ordering::Relaxed);
        words[10] = r.event.load(Ordering::Relaxed);
        words[11] = r.closed.load(Ordering::Acquire);
        shared.push_fault(&words);
        if HEAL.load(Ordering::Acquire) {
            // SAFETY: the page is the arena's; the access is let through so that the run goes on.
            unsafe {
                libc::mprotect(
                    ((at as usize) & !(PAGE - 1)) as *mut _,
                    PAGE,
                    libc::PROT_READ | libc::PROT_WRITE,
                );
                *libc::__errno_location() = errno;
            }
            return;
        }
    } else if let Some(shared) = shared::current() {
        shared.set_wild(&words);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    chain(layer, signal, info, context);
}

/// Return addresses: the word on top of the stack, for functions without a frame, and the chain of frame pointers.
fn frames(pc: u64, sp: u64, fp: u64, out: &mut [u64]) {
    let mut n = 0;
    let mut put = |v: u64, out: &mut [u64]| {
        if let Some(to) = out.get_mut(n) {
            *to = v;
            n += 1;
        }
    };
    put(pc, out);
    // Up to 3 words of the stack that may be return addresses of functions without a frame.
    let mut word = [0u8; 8];
    for i in 0..3u64 {
        if peek::into(sp + 8 * i, &mut word).is_ok() {
            put(u64::from_ne_bytes(word), out);
        }
    }
    let mut fp = fp;
    for _ in 0..8 {
        let mut pair = [0u8; 16];
        if fp == 0 || !fp.is_multiple_of(8) || peek::into(fp, &mut pair).is_err() {
            break;
        }
        let (next, back) = pair.split_at(8);
        let next = u64::from_ne_bytes(next.try_into().unwrap_or_default());
        put(u64::from_ne_bytes(back.try_into().unwrap_or_default()), out);
        if next <= fp {
            break;
        }
        fp = next;
    }
}

fn chain(layer: usize, signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let i = usize::from(signal == libc::SIGBUS);
    if PREVIOUS[layer].1.load(Ordering::Acquire) == 1 {
        // SAFETY: written before the flag; the kernel's own description of a handler that was installed here.
        let old = unsafe { (*PREVIOUS[layer].0.get()).assume_init_ref()[i] };
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

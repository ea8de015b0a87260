//! userfaultfd over lent memory whose time is over: also the kernel's own accesses are seen, so a late use inside a
//! system call (`write(fd, view)`), which a guarded page only fails with EFAULT, and faults that a handler of the
//! guest's would take first.
//!
//! The whole of it needs a privilege (CAP_SYS_PTRACE, `vm.unprivileged_userfaultfd`, or access to /dev/userfaultfd).
//! Without one the kernel offers faults of user mode only, and containers may offer nothing.

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::arena::{self, PAGE};
use super::peek;
use super::shared::{self, FAULT_WORDS};

/// What the kernel allows here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// Faults of user mode and of the kernel.
    All,
    /// Faults of user mode, and why not more.
    UserMode(String),
    /// Nothing, and why.
    Nothing(String),
}

const USER_MODE_ONLY: i32 = 1;
const DEVICE_NEW: libc::c_ulong = 0xaa00;
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const WAKE: libc::c_ulong = 0x8010_aa02;
const ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const API_VERSION: u64 = 0xaa;
const THREAD_ID: u64 = 1 << 8;
const EXACT_ADDRESS: u64 = 1 << 11;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const PAGEFAULT_WRITE: u64 = 1;

/// The kernel's `uffd_msg` of a page fault.
#[repr(C)]
#[derive(Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    padding: u32,
}

/// The kernel's `uffdio_register` and `uffdio_zeropage`, which have one shape.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
    mode: u64,
    answer: i64,
}

/// The descriptor while it watches.
static WATCHING: AtomicI32 = AtomicI32::new(-1);
/// Where the guest's code is.
static CODE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}

fn open_with(flags: i32) -> std::io::Result<RawFd> {
    // SAFETY: takes flags alone.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags | libc::O_CLOEXEC) };
    RawFd::try_from(fd)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(last_error)
}

fn open_device() -> Option<RawFd> {
    // SAFETY: a constant path; the descriptor is closed below; the ioctl takes flags and makes a new descriptor.
    unsafe {
        let device = libc::open(c"/dev/userfaultfd".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if device < 0 {
            return None;
        }
        let fd = libc::ioctl(device, DEVICE_NEW, libc::O_CLOEXEC);
        libc::close(device);
        (fd >= 0).then_some(fd)
    }
}

fn close(fd: RawFd) {
    // SAFETY: a descriptor that this module made and that nobody else has.
    unsafe { libc::close(fd) };
}

fn open() -> (Allowed, RawFd) {
    let (allowed, fd) = match open_with(0) {
        Ok(fd) => (Allowed::All, fd),
        Err(refused) => match (open_device(), open_with(USER_MODE_ONLY)) {
            (Some(fd), other) => {
                let _ = other.map(close);
                (Allowed::All, fd)
            }
            (None, Ok(fd)) => (
                Allowed::UserMode(format!(
                    "userfaultfd is allowed for user mode only ({refused}); CAP_SYS_PTRACE, \
                     vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd allow the rest"
                )),
                fd,
            ),
            (None, Err(e)) => {
                return (
                    Allowed::Nothing(format!(
                        "userfaultfd is not allowed here ({e}); a container's seccomp profile may forbid it"
                    )),
                    -1,
                );
            }
        },
    };
    let mut api = [API_VERSION, THREAD_ID | EXACT_ADDRESS, 0];
    // SAFETY: `api` has the size of the kernel's `uffdio_api`.
    if unsafe { libc::ioctl(fd, API, api.as_mut_ptr()) } != 0 {
        let e = last_error();
        close(fd);
        return (
            Allowed::Nothing(format!(
                "this kernel's userfaultfd does not say which thread and address a fault has ({e}); Linux 5.18 does"
            )),
            -1,
        );
    }
    (allowed, fd)
}

/// From now on memory that [`arena::close`] ends is watched, for the guest that was loaded from `path`.
pub(crate) fn start(path: &Path) -> Allowed {
    let (allowed, fd) = open();
    if fd >= 0 {
        find_code(path);
        let served = std::thread::Builder::new()
            .name("userfault".into())
            .spawn(move || serve(fd));
        if let Err(e) = served {
            close(fd);
            return Allowed::Nothing(format!("no thread for userfaultfd: {e}"));
        }
        WATCHING.store(fd, Ordering::Release);
    }
    allowed
}

/// Notes where the executable part of the file at `path` is mapped.
fn find_code(path: &Path) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let name = path.display().to_string();
    let code = maps.lines().filter_map(|l| {
        let mut words = l.split_whitespace();
        let (low, high) = words.next()?.split_once('-')?;
        let executable = words.next()?.contains('x');
        let at = |w| u64::from_str_radix(w, 16).ok();
        (executable && l.ends_with(&name)).then_some((at(low)?, at(high)?))
    });
    if let Some((low, high)) = code.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) {
        CODE[0].store(low, Ordering::Relaxed);
        CODE[1].store(high, Ordering::Relaxed);
    }
}

/// Watches an inaccessible range of the arena, which may then become accessible: whoever touches it waits until the
/// fault is recorded. False where nothing watches.
pub(super) fn watch(at: usize, len: usize) -> bool {
    let fd = WATCHING.load(Ordering::Acquire);
    if fd < 0 {
        return false;
    }
    let mut range = Range {
        start: at as u64,
        len: len as u64,
        mode: MODE_MISSING,
        answer: 0,
    };
    // SAFETY: the struct is the kernel's; the range is the arena's own.
    unsafe { libc::ioctl(fd, REGISTER, &raw mut range) == 0 }
}

/// Takes faults as they come. Allocates nothing and locks nothing: the thread that waits may hold any lock.
fn serve(fd: RawFd) {
    // SAFETY: a full set, for this thread: the guest's signals are not for it.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
    loop {
        let mut m = Message::default();
        // SAFETY: the buffer has the size of the kernel's message.
        let n = unsafe { libc::read(fd, (&raw mut m).cast(), size_of::<Message>()) };
        if n < 0 && last_error().kind() == std::io::ErrorKind::Interrupted {
            continue;
        }
        if n != size_of::<Message>().cast_signed() {
            return;
        }
        if m.event == EVENT_PAGEFAULT {
            record(&m);
            let_through(fd, m.address);
        }
    }
}

fn record(m: &Message) {
    let (Some(arena), Some(shared)) = (arena::get(), shared::current()) else {
        return;
    };
    let Some(r) = arena.find(m.address) else {
        return;
    };
    let mut words = [0u64; FAULT_WORDS];
    words[0] = m.address;
    words[1] = m.flags & PAGEFAULT_WRITE;
    words[3] = u64::from(m.thread);
    words[4] = arena::now_ns();
    words[5] = r.start.load(Ordering::Relaxed);
    words[6] = r.len.load(Ordering::Relaxed);
    words[7] = r.what.load(Ordering::Relaxed);
    words[8] = r.call.load(Ordering::Relaxed);
    words[9] = r.stream.load(Ordering::Relaxed);
    words[10] = r.event.load(Ordering::Relaxed);
    words[11] = r.closed.load(Ordering::Acquire);
    if let Some(w) = waiting(m.thread) {
        words[2] = w.pc;
        words[14] = w.call.map_or(0, |n| n + 1);
        words[16] = w.pc;
        stack(w.sp, &mut words[17..]);
    }
    shared.push_fault(&words);
}

/// Where a thread waits for its fault to be served.
struct Waiting {
    /// The number of the system call that it is in.
    call: Option<u64>,
    sp: u64,
    pc: u64,
}

/// What the kernel says of a thread that it has stopped at a fault.
fn waiting(thread: u32) -> Option<Waiting> {
    let mut path = [0u8; 48];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        path[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(b"/proc/self/task/");
    let mut digits = [0u8; 10];
    let mut first = digits.len();
    let mut n = thread;
    while n > 0 || first == digits.len() {
        first -= 1;
        digits[first] = b'0' + u8::try_from(n % 10).unwrap_or(0);
        n /= 10;
    }
    put(&digits[first..]);
    put(b"/syscall\0");
    // It says "running" until the thread sleeps, which comes after the message.
    for _ in 0..200 {
        let mut text = [0u8; 256];
        // SAFETY: a terminated path; the buffer is as long as said.
        let n = unsafe {
            let file = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
            if file < 0 {
                return None;
            }
            let n = libc::read(file, text.as_mut_ptr().cast(), text.len());
            libc::close(file);
            n
        };
        let text = text.get(..usize::try_from(n).ok()?)?;
        if let Some(w) = parse(std::str::from_utf8(text).ok()?) {
            return Some(w);
        }
        let wait = libc::timespec {
            tv_sec: 0,
            tv_nsec: 50_000,
        };
        // SAFETY: a valid duration.
        unsafe { libc::nanosleep(&raw const wait, std::ptr::null_mut()) };
    }
    None
}

/// `NUMBER ARGUMENTS.. SP PC`; the number is -1 outside of system calls.
fn parse(text: &str) -> Option<Waiting> {
    let number = |w: &str| u64::from_str_radix(w.trim_start_matches("0x"), 16).ok();
    let mut words = text.split_ascii_whitespace();
    let call = words.next()?.parse::<i64>().ok()?;
    let (mut sp, mut pc) = (0, 0);
    for w in words {
        (sp, pc) = (pc, number(w)?);
    }
    Some(Waiting {
        call: u64::try_from(call).ok(),
        sp,
        pc,
    })
}

/// Words of the stack that may be return addresses. Registers of a thread in the kernel are not known, so there is no
/// frame pointer to follow.
fn stack(sp: u64, out: &mut [u64]) {
    let mut n = 0;
    let mut words = [0u8; 512];
    let mut at = sp;
    let code = CODE[0].load(Ordering::Relaxed)..CODE[1].load(Ordering::Relaxed);
    while n < out.len() && at < sp + 4096 && peek::into(at, &mut words).is_ok() {
        for w in words.chunks_exact(8) {
            let v = u64::from_ne_bytes(w.try_into().unwrap_or_default());
            if n < out.len() && code.contains(&v) {
                out[n] = v;
                n += 1;
            }
        }
        at += words.len() as u64;
    }
}

fn let_through(fd: RawFd, address: u64) {
    let start = address & !(PAGE as u64 - 1);
    let mut page = Range {
        start,
        len: PAGE as u64,
        mode: 0,
        answer: 0,
    };
    // SAFETY: the structs are the kernel's, and the page is the arena's. Where another thread's fault has filled the
    // page already, who waits for it is woken.
    unsafe {
        if libc::ioctl(fd, ZEROPAGE, &raw mut page) != 0 {
            libc::ioctl(fd, WAKE, &raw mut page);
        }
    }
}

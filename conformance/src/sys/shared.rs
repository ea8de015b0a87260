//! The memory that a case's process shares with the suite: progress, faults and findings survive whatever the guest
//! does to its process.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const MAGIC: u64 = 0x7078_675f_636f_6e66;
const MAX_FAULTS: usize = 64;
const LOG_BYTES: usize = 4 << 20;
pub(crate) const FAULT_WORDS: usize = 48;

/// Where in its life a case is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    Loading,
    Init,
    Running,
    Draining,
    Finished,
}

impl Stage {
    fn from(n: u32) -> Self {
        match n {
            0 => Self::Starting,
            1 => Self::Loading,
            2 => Self::Init,
            3 => Self::Running,
            4 => Self::Draining,
            _ => Self::Finished,
        }
    }
}

/// Which of the guest's functions the host is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Hook {
    None = 0,
    Load = 1,
    Init = 2,
    ConfigNew = 3,
    ConfigDrop = 4,
    Event = 5,
    Cancel = 6,
    StreamEnd = 7,
    BatchEnd = 8,
    Worker = 9,
    GetExt = 10,
    Release = 11,
}

impl Hook {
    pub(crate) fn from(n: u32) -> Self {
        match n {
            1 => Self::Load,
            2 => Self::Init,
            3 => Self::ConfigNew,
            4 => Self::ConfigDrop,
            5 => Self::Event,
            6 => Self::Cancel,
            7 => Self::StreamEnd,
            8 => Self::BatchEnd,
            9 => Self::Worker,
            10 => Self::GetExt,
            11 => Self::Release,
            _ => Self::None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "no hook",
            Self::Load => "the loading of the library",
            Self::Init => "pxg_guest_init_v1",
            Self::ConfigNew => "on_config_new",
            Self::ConfigDrop => "on_config_drop",
            Self::Event => "on_event",
            Self::Cancel => "on_cancel",
            Self::StreamEnd => "on_stream_end",
            Self::BatchEnd => "on_batch_end",
            Self::Worker => "on_worker",
            Self::GetExt => "get_ext",
            Self::Release => "release",
        }
    }
}

#[repr(C)]
struct Layout {
    magic: AtomicU64,
    stage: AtomicU32,
    hook: AtomicU32,
    phase: AtomicU32,
    /// 0: the guest has not said; 1: it contains its failures; 2: it declares ABORTS.
    containment: AtomicU32,
    stream: AtomicU64,
    event: AtomicU64,
    hooks_entered: AtomicU64,
    n_faults: AtomicU32,
    wild_set: AtomicU32,
    /// `scratch_more` answered NULL in the running hook.
    refused: AtomicU32,
    faults: [[AtomicU64; FAULT_WORDS]; MAX_FAULTS],
    wild: [AtomicU64; FAULT_WORDS],
    log_len: AtomicU64,
    log: [u8; LOG_BYTES],
}

/// What the case was doing, as the suite reads it.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) stage: Stage,
    pub(crate) hook: Hook,
    pub(crate) phase: u32,
    pub(crate) stream: u64,
    pub(crate) event: u64,
    pub(crate) containment: u32,
    /// `scratch_more` answered NULL in this hook.
    pub(crate) refused_scratch: bool,
}

/// A mapping of the shared memory. Mapped once per process and case, and never unmapped in the case's process.
pub(crate) struct Shared {
    at: &'static Layout,
    append: Mutex<()>,
    fd: Option<OwnedFd>,
}

impl Shared {
    /// Makes the memory; the suite's side.
    pub(crate) fn create() -> std::io::Result<Self> {
        // SAFETY: the name is a NUL-terminated constant.
        let fd = unsafe { libc::memfd_create(c"pxg-conformance".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: fd was just made and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        File::from(fd.try_clone()?).set_len(size_of::<Layout>() as u64)?;
        let shared = Self::map(fd.as_raw_fd())?;
        shared.at.magic.store(MAGIC, Ordering::Release);
        Ok(Self {
            fd: Some(fd),
            ..shared
        })
    }

    /// Maps what the parent process made.
    pub(crate) fn map(fd: RawFd) -> std::io::Result<Self> {
        // SAFETY: a new shared mapping of a file of the layout's size; nothing is mapped over.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Layout>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: the mapping has the layout's size, all bit patterns are valid for it, and it is unmapped only by
            // `unmap`, which consumes the value.
            at: unsafe { &*at.cast::<Layout>() },
            append: Mutex::new(()),
            fd: None,
        })
    }

    /// Ends the mapping; the suite's side, after it has read everything.
    pub(crate) fn unmap(self) {
        // SAFETY: `self` is consumed and nothing handed out borrows from the mapping.
        unsafe {
            libc::munmap(
                std::ptr::from_ref(self.at).cast_mut().cast(),
                size_of::<Layout>(),
            );
        }
    }

    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.fd.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.at.magic.load(Ordering::Acquire) == MAGIC
    }

    pub(crate) fn set_stage(&self, stage: Stage) {
        self.at.stage.store(stage as u32, Ordering::Release);
    }

    pub(crate) fn enter(&self, hook: Hook, phase: u32, stream: u64, event: u64) {
        self.at.phase.store(phase, Ordering::Relaxed);
        self.at.stream.store(stream, Ordering::Relaxed);
        self.at.event.store(event, Ordering::Relaxed);
        self.at.refused.store(0, Ordering::Relaxed);
        self.at.hook.store(hook as u32, Ordering::Release);
        self.at.hooks_entered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn leave(&self) {
        self.at.hook.store(0, Ordering::Release);
    }

    pub(crate) fn refuse_scratch(&self) {
        self.at.refused.store(1, Ordering::Release);
    }

    pub(crate) fn set_containment(&self, aborts: bool) {
        self.at
            .containment
            .store(if aborts { 2 } else { 1 }, Ordering::Release);
    }

    pub(crate) fn progress(&self) -> Progress {
        Progress {
            stage: Stage::from(self.at.stage.load(Ordering::Acquire)),
            hook: Hook::from(self.at.hook.load(Ordering::Acquire)),
            phase: self.at.phase.load(Ordering::Relaxed),
            stream: self.at.stream.load(Ordering::Relaxed),
            event: self.at.event.load(Ordering::Relaxed),
            containment: self.at.containment.load(Ordering::Acquire),
            refused_scratch: self.at.refused.load(Ordering::Acquire) != 0,
        }
    }

    pub(crate) fn hooks_entered(&self) -> u64 {
        self.at.hooks_entered.load(Ordering::Relaxed)
    }

    /// Adds a line to the log; what does not fit is dropped, never cut.
    pub(crate) fn append(&self, line: &str) {
        let _one = self
            .append
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let len = self.at.log_len.load(Ordering::Relaxed) as usize;
        let bytes = line.as_bytes();
        if len + bytes.len() + 1 > LOG_BYTES {
            return;
        }
        // SAFETY: the range lies inside `log`, it is published by `log_len` only afterwards, and the lock makes this
        // the only writer.
        unsafe {
            let to = std::ptr::from_ref(&self.at.log).cast_mut().cast::<u8>();
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(len), bytes.len());
            to.add(len + bytes.len()).write(b'\n');
        }
        self.at
            .log_len
            .store((len + bytes.len() + 1) as u64, Ordering::Release);
    }

    pub(crate) fn log(&self) -> String {
        let len = (self.at.log_len.load(Ordering::Acquire) as usize).min(LOG_BYTES);
        let mut out = vec![0u8; len];
        // SAFETY: `len` bytes of `log` were published by the writer and are not written again.
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(&self.at.log).cast::<u8>(),
                out.as_mut_ptr(),
                len,
            );
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Stores a fault. Async-signal-safe: atomics only.
    pub(crate) fn push_fault(&self, words: &[u64; FAULT_WORDS]) {
        let n = self.at.n_faults.fetch_add(1, Ordering::AcqRel) as usize;
        if let Some(slot) = self.at.faults.get(n) {
            for (to, from) in slot.iter().zip(words) {
                to.store(*from, Ordering::Relaxed);
            }
        }
    }

    /// Stores the last fault that is not one of the arena's. Async-signal-safe.
    pub(crate) fn set_wild(&self, words: &[u64; FAULT_WORDS]) {
        for (to, from) in self.at.wild.iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
        self.at.wild_set.store(1, Ordering::Release);
    }

    pub(crate) fn faults(&self) -> Vec<[u64; FAULT_WORDS]> {
        let n = (self.at.n_faults.load(Ordering::Acquire) as usize).min(MAX_FAULTS);
        self.at.faults[..n].iter().map(words).collect()
    }

    pub(crate) fn wild(&self) -> Option<[u64; FAULT_WORDS]> {
        (self.at.wild_set.load(Ordering::Acquire) != 0).then(|| words(&self.at.wild))
    }
}

fn words(from: &[AtomicU64; FAULT_WORDS]) -> [u64; FAULT_WORDS] {
    std::array::from_fn(|i| from[i].load(Ordering::Relaxed))
}

static CURRENT: OnceLock<Shared> = OnceLock::new();

/// Makes `shared` the memory of this process: the case's side.
pub(crate) fn install(shared: Shared) {
    let _ = CURRENT.set(shared);
}

/// The memory of this process, if it runs a case.
pub(crate) fn current() -> Option<&'static Shared> {
    CURRENT.get()
}

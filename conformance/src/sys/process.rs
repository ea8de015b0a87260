//! The process of a case: its limits, its end, and what it prints.

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::clock::Patience;

/// How much of what a guest prints is kept: the last bytes of each of stdout and stderr.
const KEPT: usize = 64 << 10;

/// What a case's process printed.
#[derive(Default, Debug)]
pub(crate) struct Printed {
    kept: Vec<u8>,
    pub(crate) total: u64,
}

impl Printed {
    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > 2 * KEPT {
            let cut = self.kept.len() - KEPT;
            self.kept.drain(..cut);
        }
    }

    pub(crate) fn text(&self) -> String {
        let from = self.kept.len().saturating_sub(KEPT);
        String::from_utf8_lossy(&self.kept[from..]).into_owned()
    }
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// None: it was killed at the end of its time.
    pub(crate) status: Option<ExitStatus>,
    /// What its threads were doing then.
    pub(crate) threads: Vec<String>,
    pub(crate) printed: String,
    pub(crate) printed_bytes: u64,
    /// Processes of the guest that had left the group; they have been ended too.
    pub(crate) escaped: Vec<u32>,
}

/// Runs this program again with `args`, in a process group of its own that ends with it, at most for `limit`; under
/// the program and arguments of `wrapper`, if there are any.
pub(crate) fn run(
    wrapper: &[OsString],
    args: &[OsString],
    env: &[(&str, String)],
    shared: RawFd,
    limit: Duration,
) -> std::io::Result<Ended> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mark = format!(
        "{}.{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    let mut command = if let Some((program, arguments)) = wrapper.split_first() {
        let mut c = Command::new(program);
        // A wrapper opens the file itself.
        c.args(arguments).arg(std::env::current_exe()?);
        c
    } else {
        let mut c = Command::new("/proc/self/exe");
        c.arg0("pxg-conformance");
        c
    };
    command
        .args(args)
        .envs(env.iter().map(|(k, v)| (k, v)))
        .env(MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: between fork and exec only async-signal-safe calls: prctl, setrlimit, fcntl.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            for (what, most) in [
                (libc::RLIMIT_CORE, 0),
                (libc::RLIMIT_FSIZE, 64 << 20),
                (libc::RLIMIT_CPU, 120),
            ] {
                let limit = libc::rlimit {
                    rlim_cur: most,
                    rlim_max: most,
                };
                libc::setrlimit(what, &raw const limit);
            }
            if libc::fcntl(shared, libc::F_SETFD, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    let printed = Arc::new(Mutex::new(Printed::default()));
    let (ended, output) = std::sync::mpsc::channel();
    if let Some(p) = child.stdout.take() {
        read(p, &printed, ended.clone());
    }
    if let Some(p) = child.stderr.take() {
        read(p, &printed, ended.clone());
    }
    drop(ended);
    let in_time = wait(&child, limit);
    let threads = if in_time {
        Vec::new()
    } else {
        super::threads::describe_all(child.id())
    };
    // The group goes with the case, also where the guest left processes behind.
    kill_group(child.id());
    let status = child.wait()?;
    // The channel closes with both pipes, at once unless a process that escaped the group holds one.
    let mut escaped = Vec::new();
    if let Err(RecvTimeoutError::Timeout) = drain(&output, Duration::from_millis(30)) {
        escaped = kill_marked(&mark);
        let _ = drain(&output, Duration::from_millis(500));
    }
    let printed = printed
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Ended {
        status: in_time.then_some(status),
        threads,
        printed: printed.text(),
        printed_bytes: printed.total,
        escaped,
    })
}

/// Waits until all readers have ended.
fn drain(output: &Receiver<()>, limit: Duration) -> Result<(), RecvTimeoutError> {
    let mut patience = Patience::new(limit);
    loop {
        let left = patience
            .deadline()
            .saturating_duration_since(Instant::now());
        match output.recv_timeout(left) {
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) if patience.over() => {
                return Err(RecvTimeoutError::Timeout);
            }
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// In the environment of a case's process, and so of all that descend from it.
const MARK: &str = "PXG_CONFORMANCE_PROCESS";

/// Ends the processes that descend from the case with this mark.
fn kill_marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{MARK}={mark}");
    let mut ended = Vec::new();
    let Ok(dir) = std::fs::read_dir("/proc") else {
        return ended;
    };
    for pid in dir
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
    {
        // Processes of others can't be read.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        if environment
            .split(|b| *b == 0)
            .any(|v| v == wanted.as_bytes())
            && let Ok(id) = libc::pid_t::try_from(pid)
        {
            // SAFETY: takes numbers; the process was found by the mark that only this case's descendants have.
            unsafe { libc::kill(id, libc::SIGKILL) };
            ended.push(pid);
        }
    }
    ended
}

fn read(mut from: impl Read + Send + 'static, to: &Arc<Mutex<Printed>>, ended: Sender<()>) {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        let _ended = ended;
        let mut buffer = [0u8; 16 << 10];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 {
                break;
            }
            to.lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .push(&buffer[..n]);
        }
    });
}

/// Waits for the end of `child`; false if `limit` was over first.
fn wait(child: &Child, limit: Duration) -> bool {
    let Ok(pid) = libc::pid_t::try_from(child.id()) else {
        return false;
    };
    // SAFETY: the child is ours and not reaped yet, so the pid is its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd) = RawFd::try_from(fd) else {
        return false;
    };
    if fd < 0 {
        return false;
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let _close = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut patience = Patience::at_most(limit, 4.0);
    loop {
        let left = patience
            .deadline()
            .saturating_duration_since(Instant::now());
        let mut p = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        match unsafe { libc::poll(&raw mut p, 1, ms) } {
            1.. => return true,
            0 if patience.over() => return false,
            0 => {}
            _ if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            _ => return false,
        }
    }
}

/// The longest file that a host under test may write: one that loops must not fill the disk.
const HOST_FILE: u64 = 256 << 20;

/// Bounds what the host that `command` starts can write to one file, leaves no core of it, puts it in a process group of its
/// own, and ends it with the thread that starts it, by `last_signal` if not by SIGKILL: a suite that is killed leaves no
/// host behind.
pub(crate) fn bound_host(command: &mut Command, last_signal: Option<i32>) {
    command.process_group(0);
    let last_signal = last_signal.unwrap_or(libc::SIGKILL);
    // SAFETY: between fork and exec only prctl and setrlimit, plain system calls with valid arguments.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, last_signal);
            for (what, most) in [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_FSIZE, HOST_FILE)] {
                let limit = libc::rlimit {
                    rlim_cur: most,
                    rlim_max: most,
                };
                libc::setrlimit(what, &raw const limit);
            }
            Ok(())
        });
    }
}

/// Kills the process group that the child `pid` leads, which is not reaped, or has just been.
pub(crate) fn kill_group(pid: u32) {
    if let Ok(pid) = libc::pid_t::try_from(pid)
        && pid > 1
    {
        // SAFETY: the group of a child whose number cannot have been given to another process yet.
        unsafe { libc::kill(-pid, libc::SIGKILL) };
    }
}

/// Ends this process at once, without destructors or exit handlers, which a guest might hang.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

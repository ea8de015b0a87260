//! Child processes: each in a group of its own, which is ended with it, on an error and on Ctrl-C.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

thread_local! {
    static CPU: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// What the children that this thread has waited for took of the processors, with their own children.
pub(crate) fn cpu_of_this_thread() -> Duration {
    CPU.get()
}

/// Adds what another thread that worked for this one has waited for.
pub(crate) fn add_cpu_to_this_thread(cpu: Duration) {
    CPU.set(CPU.get() + cpu);
}

/// Of a child that has ended and is not reaped.
fn cpu_of(child: Pid) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero()));
    let stat = stat.unwrap_or_default();
    // Behind the name, which may have blanks; then from the state on: utime, stime, cutime, cstime are 12th to 15th.
    let (_, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(4);
    let ticks: u64 = ticks.filter_map(|n| n.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// The groups that run now.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Ends all groups when this process is interrupted or terminated. Call it once, before any child.
pub(crate) fn end_children_on_interrupt() -> Result<()> {
    ctrlc::set_handler(|| {
        let groups = GROUPS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for group in groups.iter() {
            let _ = kill_process_group(*group, Signal::KILL);
        }
        eprintln!("\ninterrupted: all child processes have been ended");
        // The lock is kept, so that no further group begins.
        std::process::exit(130);
    })
    .context("handle Ctrl-C")
}

/// A child with its group; both end with it.
pub(crate) struct Group {
    child: Child,
    id: Pid,
}

impl Group {
    /// Starts `command` in a new group. It reads nothing.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let mut groups = GROUPS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let id = Pid::from_child(&child);
        groups.push(id);
        Ok(Self { child, id })
    }

    /// Waits for the child, then ends what it left behind.
    pub(crate) fn wait(mut self) -> Result<ExitStatus> {
        // Not reaped yet, the child keeps the group's id from being given to another one.
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(error) = waitid(WaitId::Pid(self.id), ended) {
            if error != rustix::io::Errno::INTR {
                return Err(error).context("wait for a child");
            }
        }
        self.end()
    }

    fn end(&mut self) -> Result<ExitStatus> {
        let mut groups = GROUPS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if groups.contains(&self.id) {
            let _ = kill_process_group(self.id, Signal::KILL);
            // While it is not reaped.
            CPU.set(CPU.get() + cpu_of(self.id));
            groups.retain(|id| *id != self.id);
        }
        self.child.wait().context("wait for a child")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Runs `command` with its output in `log`, which it appends to.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<ExitStatus> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("open {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    Group::spawn(command)?.wait()
}

/// What `command` prints, if it succeeds.
pub(crate) fn stdout_of(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// A shell that starts a sleeper and says its process id.
    fn with_grandchild(then: &str) -> (Group, u32) {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("sleep 1000 >/dev/null & echo $!; {then}")]);
        let mut group = Group::spawn(shell.stdout(Stdio::piped())).unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(group.child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        (group, line.trim().parse().unwrap())
    }

    /// Until the process is gone, or is a zombie that waits for init.
    fn gone(id: u32) {
        loop {
            match std::fs::read_to_string(format!("/proc/{id}/stat")) {
                Ok(stat) if !stat.contains(") Z ") => std::thread::yield_now(),
                _ => return,
            }
        }
    }

    #[test]
    fn a_group_ends_with_its_child_and_when_it_is_dropped() {
        let (group, sleeper) = with_grandchild("exit 3");
        assert_eq!(group.wait().unwrap().code(), Some(3));
        gone(sleeper);
        let (group, sleeper) = with_grandchild("wait");
        drop(group);
        gone(sleeper);
    }
}

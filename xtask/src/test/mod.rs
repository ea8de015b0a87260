//! `cargo xtask test`: everything that CI runs.

mod conformance;
mod counts;
mod failures;
mod licences;
mod links;
mod nginx;
mod report;
mod stages;

use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::bootstrap::{self, Need, Tools, envoy};
use crate::proc::{
    add_cpu_to_this_thread, cpu_of_this_thread, end_children_on_interrupt, run_logged,
};
use crate::root::{logs, root};
use failures::Failed;
use report::{Ended, excerpt};
use stages::{STAGES, Stage, WITH_ENVOY, WITH_NGINX};

/// More failed tests than this are no accident, and none of them is run once more.
const MOST_RETRIED: usize = 3;

/// Run everything that CI runs: formats, lints, generated files, licences, links, and all tests
///
/// Brings the tools it needs first and says so. The output of a stage goes to target/xtask/STAGE.log and is shown only
/// if the stage fails. The last line says how many stages passed and failed; the exit code is 0 only if none failed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run this stage only; can be given several times
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Say what the stages are and run none
    #[arg(long)]
    list: bool,
    /// Stop at the first stage that fails
    #[arg(long, overrides_with = "keep_going")]
    fail_fast: bool,
    /// Run all stages also after one failed (the default)
    #[arg(long, overrides_with = "fail_fast")]
    keep_going: bool,
}

/// What a stage works with.
struct Run<'a> {
    tools: &'a Tools,
    log: PathBuf,
    /// Tests that failed, and passed when they were run once more.
    flaky: RefCell<Vec<String>>,
}

impl Run<'_> {
    /// A command in `folder` of the workspace, with the tools on its path.
    fn command(&self, folder: &str, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(root().join(folder));
        // Logs are read in files.
        command
            .env("CARGO_TERM_COLOR", "never")
            .env("NO_COLOR", "1");
        self.tools.apply(&mut command);
        command
    }

    /// Runs a command line, words parted by blanks, with its output in the log.
    fn run(&self, folder: &str, line: &str) -> Result<()> {
        self.run_with(folder, line, &[])
    }

    /// The same with further environment.
    fn run_with(&self, folder: &str, line: &str, environment: &[(&str, &str)]) -> Result<()> {
        self.finish(self.line(folder, line).envs(environment.iter().copied()))
    }

    /// The command of a line.
    fn line(&self, folder: &str, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = self.command(folder, words.next().unwrap_or_default());
        command.args(words);
        command
    }

    /// A line of cargo for the whole workspace with its tests. All stages have the same choice of packages, because
    /// for another choice dependencies get other features, and are built once more.
    fn cargo(&self, command: &str, targets: &str) -> String {
        format!("cargo {command} --workspace --locked {targets}")
    }

    /// Builds what stages run.
    fn build(&self) -> Result<()> {
        self.run(".", &self.cargo("build", "--lib --bins --tests"))
    }

    /// Runs one test of the test program `program`.
    fn test(&self, program: &str, name: &str) -> Command {
        let line = self.cargo("test", &format!("--test {program} -- --exact"));
        let mut command = self.line(".", &line);
        command.arg(name);
        command
    }

    fn finish(&self, command: &mut Command) -> Result<()> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        let line = words.join(" ");
        self.say(&format!("$ {line}"))?;
        let status = run_logged(command, &self.log)?;
        ensure!(status.success(), "`{line}`: {status}");
        Ok(())
    }

    /// The same for tests that drive real proxies, where a loaded machine can make one fail: each that failed is run
    /// once more, alone, by what `again` makes of it, and is told of as flaky if it passes. No second chance has
    /// what fails in many tests, otherwise than in a test, or in a test for which `again` makes nothing.
    fn finish_retrying(
        &self,
        command: &mut Command,
        again: impl Fn(&Failed) -> Option<Command>,
    ) -> Result<()> {
        let before = std::fs::metadata(&self.log).map_or(0, |file| file.len());
        let Err(error) = self.finish(command) else {
            return Ok(());
        };
        let log = self.read_log(before);
        let failed = failures::read(&log);
        let retried: Option<Vec<_>> = failed.iter().map(&again).collect();
        let accident = (1..=MOST_RETRIED).contains(&failed.len());
        let (Some(retried), true, true) = (retried, accident, failures::all_ended(&log)) else {
            return Err(error);
        };
        for (failed, mut command) in failed.into_iter().zip(retried) {
            self.say(&format!("{} failed, once more:", failed.name))?;
            self.finish(&mut command)?;
            self.flaky.borrow_mut().push(failed.name);
        }
        Ok(())
    }

    /// The log from this byte on.
    fn read_log(&self, from: u64) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    }

    /// Does the same with each of `items` at the same time, each with a log of its own, which this run's log has in
    /// their order at the end.
    fn beside<T: Copy + Send + Sync>(
        &self,
        items: &[T],
        name: impl Fn(T) -> &'static str,
        work: impl Fn(&Run, T) -> Result<()> + Sync,
    ) -> Result<()> {
        let one = |item: T, log: PathBuf| {
            let _ = std::fs::remove_file(&log);
            let run = Run {
                tools: self.tools,
                log,
                flaky: RefCell::default(),
            };
            let result = work(&run, item);
            let text = run.read_log(0);
            (result, text, run.flaky.into_inner(), cpu_of_this_thread())
        };
        let ended: Vec<_> = std::thread::scope(|scope| {
            let begun: Vec<_> = items
                .iter()
                .map(|&item| {
                    let log = self.log.with_extension(format!("{}.log", name(item)));
                    let one = &one;
                    scope.spawn(move || one(item, log))
                })
                .collect();
            begun.into_iter().map(|thread| thread.join()).collect()
        });
        let mut first = Ok(());
        for end in ended {
            let (result, text, flaky, cpu) =
                end.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            self.say(text.trim_end())?;
            self.flaky.borrow_mut().extend(flaky);
            add_cpu_to_this_thread(cpu);
            first = first.and(result);
        }
        first
    }

    fn say(&self, line: &str) -> Result<()> {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log);
        writeln!(file.context("open the log")?, "{line}").context("write to the log")
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let there: Vec<_> = STAGES.iter().filter(|s| s.exists()).collect();
    if args.list {
        for stage in there {
            println!("{:14} {}", stage.name, stage.about);
        }
        return Ok(());
    }
    for name in &args.only {
        let known = there.iter().any(|s| s.name == name);
        ensure!(
            known,
            "no stage `{name}`: `cargo xtask test --list` lists them"
        );
    }
    let chosen: Vec<_> = there
        .into_iter()
        .filter(|s| args.only.is_empty() || args.only.iter().any(|n| n == s.name))
        .collect();
    end_children_on_interrupt()?;
    let tools = bootstrap::bring(Need::Tests)?;
    if chosen.iter().any(|s| WITH_ENVOY.contains(&s.name))
        && let Err(error) = envoy::bring(&envoy::RELEASES)
    {
        // The other stages do without, and these fail.
        println!("{error:#}");
    }
    if chosen.iter().any(|s| WITH_NGINX.contains(&s.name))
        && let Err(error) = bootstrap::nginx::bring()
    {
        println!("{error:#}");
    }
    let all = Instant::now();
    let ended = run_stages(&chosen, args.fail_fast, &tools);
    report::summary(&ended, all.elapsed());
    report::write_json(&ended, all.elapsed())?;
    let failed = ended.iter().filter(|e| e.error.is_some()).count();
    println!("{} passed, {failed} failed", ended.len() - failed);
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// Runs them one after the other.
fn run_stages(chosen: &[&Stage], fail_fast: bool, tools: &Tools) -> Vec<Ended> {
    let width = chosen.iter().map(|s| s.name.len()).max().unwrap_or(0);
    let mut ended = Vec::new();
    for stage in chosen {
        let end = run_stage(stage, tools);
        let (n, all) = (ended.len() + 1, chosen.len());
        println!("[{n:2}/{all}] {:width$} {}", end.name, end.line());
        let stop = fail_fast && end.error.is_some();
        ended.push(end);
        if stop {
            break;
        }
    }
    ended
}

fn run_stage(stage: &Stage, tools: &Tools) -> Ended {
    let log = logs().join(format!("{}.log", stage.name));
    let _ = std::fs::remove_file(&log);
    let context = Run {
        tools,
        log,
        flaky: RefCell::default(),
    };
    let (begin, cpu) = (Instant::now(), cpu_of_this_thread());
    // A module of yesterday's sources would be tested otherwise.
    let result = match WITH_NGINX.contains(&stage.name) {
        true => nginx::build(&context),
        false => Ok(()),
    };
    let result = result.and_then(|()| (stage.run)(&context));
    let (took, cpu) = (begin.elapsed(), cpu_of_this_thread() - cpu);
    let text = context.read_log(0);
    let flaky = context.flaky.take();
    let counts = stage.counts.map(|(what, read)| {
        let mut counts = read(&text);
        counts.forgive(flaky.len());
        (what, counts)
    });
    let failed = match result {
        Ok(()) => Vec::new(),
        Err(_) => failures::read(&text),
    };
    Ended {
        name: stage.name,
        took,
        cpu,
        counts,
        error: result.err().map(|error| {
            let shown = excerpt(&text);
            format!("{error:#}\n{shown}\n(all of it: {})", context.log.display())
        }),
        failed: failed
            .into_iter()
            .filter(|f| !flaky.contains(&f.name))
            .collect(),
        flaky,
    }
}

/// The repository's files with one of these endings, tracked or new, without what git ignores.
fn files(endings: &[&str]) -> Result<Vec<PathBuf>> {
    let list = [
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ];
    let output = Command::new("git").args(list).current_dir(root()).output();
    let output = output.context("run git")?;
    if !output.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let text = String::from_utf8(output.stdout).context("file names in UTF-8")?;
    let mut files: Vec<_> = text
        .split('\0')
        .filter(|name| endings.iter().any(|e| name.ends_with(e)))
        .map(PathBuf::from)
        // Tracked and deleted.
        .filter(|name| root().join(name).is_file())
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// Whether a generator wrote the file: it says so at its top.
fn generated(file: &Path) -> Result<bool> {
    let text = std::fs::read_to_string(root().join(file))
        .with_context(|| format!("read {}", file.display()))?;
    Ok(text
        .lines()
        .take(3)
        .any(|line| line.contains("do not edit")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_told_apart() {
        assert!(generated(Path::new("include/proxy_golang.h")).unwrap());
        assert!(!generated(Path::new("xtask/src/main.rs")).unwrap());
        assert!(
            files(&[".rs"])
                .unwrap()
                .contains(&"xtask/src/main.rs".into())
        );
    }
}

//! `cargo xtask test`: everything that CI runs.

mod conformance;
mod counts;
mod licences;
mod links;
mod stages;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bootstrap::{self, Need, Tools, envoy, nginx};
use crate::proc::{end_children_on_interrupt, run_logged};
use crate::root::{logs, root};
use counts::Counts;
use stages::{STAGES, Stage, WITH_ENVOY, WITH_NGINX};

/// How much of a failed stage's output is shown.
const SHOWN_LINES: usize = 60;

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
        let mut words = line.split_whitespace();
        let mut command = self.command(folder, words.next().context("a command has a program")?);
        command.args(words).envs(environment.iter().copied());
        self.finish(&mut command)
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

    fn say(&self, line: &str) -> Result<()> {
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log);
        writeln!(file.context("open the log")?, "{line}").context("write to the log")
    }
}

/// How a stage ended.
struct Ended {
    name: &'static str,
    took: Duration,
    counts: Option<(&'static str, Counts)>,
    error: Option<String>,
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
        && let Err(error) = nginx::bring()
    {
        println!("{error:#}");
    }
    let all = Instant::now();
    let mut ended = Vec::new();
    for (i, stage) in chosen.iter().enumerate() {
        print!("[{:2}/{}] {:14} ", i + 1, chosen.len(), stage.name);
        std::io::stdout().flush()?;
        let end = run_stage(stage, &tools);
        println!("{}", end.line());
        let failed = end.error.is_some();
        ended.push(end);
        if failed && args.fail_fast {
            break;
        }
    }
    summary(&ended, all.elapsed());
    let failed = ended.iter().filter(|e| e.error.is_some()).count();
    println!("{} passed, {failed} failed", ended.len() - failed);
    if failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn run_stage(stage: &Stage, tools: &Tools) -> Ended {
    let log = logs().join(format!("{}.log", stage.name));
    let _ = std::fs::remove_file(&log);
    let context = Run { tools, log };
    let begin = Instant::now();
    let result = (stage.run)(&context);
    let took = begin.elapsed();
    let text = std::fs::read(&context.log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let counts = stage.counts.map(|(what, read)| (what, read(&text)));
    Ended {
        name: stage.name,
        took,
        counts,
        error: result.err().map(|error| {
            let shown = excerpt(&text);
            format!("{error:#}\n{shown}\n(all of it: {})", context.log.display())
        }),
    }
}

impl Ended {
    fn line(&self) -> String {
        let mut line = match &self.error {
            None => colour("32", "ok    "),
            Some(_) => colour("31", "FAILED"),
        };
        let _ = write!(line, " {:6.1} s", self.took.as_secs_f64());
        if let Some((what, counts)) = &self.counts {
            let _ = write!(line, "  {what}: {counts}");
        }
        if let Some(error) = &self.error {
            let _ = write!(line, "\n{error}\n");
        }
        line
    }
}

/// The end of a log, and before it the lines that tell of failures further up.
fn excerpt(log: &str) -> String {
    const SIGNS: &[&str] = &["panicked at", "error: ", "error[", "--- FAIL", "... FAILED"];
    let lines: Vec<_> = log.lines().collect();
    let (above, end) = lines.split_at(lines.len().saturating_sub(SHOWN_LINES));
    let mut shown = Vec::new();
    for line in above {
        if SIGNS.iter().any(|sign| line.contains(sign)) && shown.len() < SHOWN_LINES / 3 {
            shown.push(*line);
        }
    }
    if !shown.is_empty() {
        shown.push("[...]");
    }
    shown.extend(end);
    shown.iter().map(|line| format!("    {line}\n")).collect()
}

fn summary(ended: &[Ended], took: Duration) {
    println!();
    println!("stage          result      time");
    let mut sums: BTreeMap<&str, Counts> = BTreeMap::new();
    for end in ended {
        let result = match &end.error {
            None => colour("32", "passed"),
            Some(_) => colour("31", "failed"),
        };
        println!("{:14} {result}  {:6.1} s", end.name, end.took.as_secs_f64());
        if let Some((what, counts)) = &end.counts {
            sums.entry(what).or_default().add(counts);
        }
    }
    println!("{:14}         {:6.1} s", "all", took.as_secs_f64());
    for (what, counts) in sums {
        println!("{what}: {counts}");
    }
}

fn colour(code: &str, text: &str) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
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
    fn an_excerpt_has_the_end_and_the_failures_above_it() {
        let mut log = String::from("thread 'a' panicked at x.rs:1\nquiet\n");
        for i in 0..100 {
            let _ = writeln!(log, "line {i}");
        }
        let shown = excerpt(&log);
        assert!(shown.starts_with("    thread 'a' panicked at x.rs:1\n    [...]\n    line 40\n"));
        assert!(shown.ends_with("    line 99\n"));
        assert_eq!(excerpt("short"), "    short\n");
    }

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

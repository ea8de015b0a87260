//! The command line.

mod single;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};

use crate::child::{self, Order};
use crate::report::{badge, html, human, machine, verify};
use crate::sandbox::{self, CaseResult, Status};
use crate::suite::{self, Plan};
use crate::verdict::{Report, Verdict};
use crate::{cases, coverage, elf, explain, fuzz, rules, selftest, subject};

#[derive(Parser)]
#[command(
    name = "pxg-conformance",
    version,
    about = "Checks that a guest, or a host, keeps the rules of the proxy_golang ABI."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check a guest: a library with filters, in any language.
    Guest(Box<Guest>),
    /// Check a host: any proxy that loads guests, described by an adapter.
    Host(Box<crate::hostcheck::cli::Host>),
    /// Check what the layer between a host and a guest wrote; fails on what it found.
    LayerCheck(crate::hostcheck::layer_check::Args),
    /// Drive a guest in a host, with real traffic and the layer between them; fails on what the layer finds.
    Pair(Box<crate::hostcheck::pair::Args>),
    /// Fuzz a guest: random hosts, messages and schedules from a seed.
    Fuzz(Box<fuzz::cli::Args>),
    /// List the cases, or with --rules the rules.
    List {
        /// List rules instead.
        #[arg(long)]
        rules: bool,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// What a rule says, why, how to keep it, and what checks it.
    Explain {
        /// A rule's id (PXG-MEM-002) or a case's name.
        id: String,
    },
    /// Which rule is checked by what; fails on a gap.
    Coverage,
    /// Build guests with one defect each, and demand that each is killed by its own rule. Needs cc and go.
    Selftest(Selftest),
    /// Reports.
    Report {
        #[command(subcommand)]
        command: ReportCommand,
    },
    #[command(name = "__case", hide = true)]
    Case {
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        rest: Vec<String>,
    },
}

#[derive(Subcommand)]
enum ReportCommand {
    /// Recompute the verdict of a JSON report.
    Verify {
        /// The report.
        file: PathBuf,
    },
}

/// Shown below the options of `guest`.
const SETTINGS: &str = r#"The settings' file, pxg-conformance.toml, is looked for beside the library:

    [[filter]]
    name = "header-policy"            # one entry per configuration to test with
    config = "request set x-a b"      # or config_file = "policy.txt"
    request_headers = [["authorization", "Bearer x"]]
    companion_headers = []            # a request with these is sent while one of this filter is pending
    panics = false                    # requests make this filter panic

    [expect."PXG-THR-002"]            # a rule or a case that is known to fail
    status = "warn"                   # fail, warn, crash, timeout
    reason = "why"
    issue = "https://..."
    until = "2027-01-31"

Without it every filter is tested with an empty configuration.

Exit codes: 0 conformant, 1 violations, 2 usage, 3 the suite failed, 4 incomplete: nothing was found, and not
everything was checked."#;

#[derive(Args)]
#[command(after_long_help = SETTINGS)]
struct Guest {
    /// The library.
    library: PathBuf,
    /// Settings, instead of pxg-conformance.toml beside the library.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Test this filter only; with an empty configuration unless the settings have one.
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,
    /// L1 loads, L2 core, L3 memory, L4 async and threads, L5 stress. Levels are cumulative.
    #[arg(long, default_value = "L3", value_parser = level)]
    level: u8,
    /// Only these cases: a name, a family, a glob or a rule's id.
    #[arg(long, value_name = "CASE")]
    only: Vec<String>,
    /// Not these cases; the verdict is then incomplete.
    #[arg(long, value_name = "CASE")]
    skip: Vec<String>,
    /// Repeats a run.
    #[arg(long, value_parser = number, default_value = "0x5eed1234")]
    seed: u64,
    /// Cases at a time.
    #[arg(short, long)]
    jobs: Option<usize>,
    /// Multiplies the time that each case may take.
    #[arg(long, default_value_t = 1.0)]
    timeout_scale: f64,
    /// Milliseconds that each case waits at its end for late uses.
    #[arg(long, default_value_t = 20)]
    grace: u64,
    /// List what would run.
    #[arg(long)]
    list: bool,
    /// Record what a case does, as a scenario that --replay repeats: with --only CASE.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "in_process", "gdb"])]
    trace: Option<PathBuf>,
    /// Put a recorded scenario through, instead of the cases.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "skip", "in_process", "gdb"])]
    replay: Option<PathBuf>,
    /// Run one case in this process, for a debugger: with --only CASE.
    #[arg(long)]
    in_process: bool,
    /// Start a case under gdb: with --only CASE.
    #[arg(long)]
    gdb: bool,
    /// Run what fails, and run/exchanges, once more under valgrind, and attach what it says; not for Go.
    #[arg(long)]
    valgrind: bool,
    #[command(flatten)]
    outputs: Outputs,
    /// Repeat until something fails.
    #[arg(long)]
    repeat_until_failure: bool,
}

/// Where a report goes, and how much is said.
#[derive(Args)]
pub(crate) struct Outputs {
    /// Write JSON to standard output: one line for each case as it ends, and the report as the last line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the report as JSON to a file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write JUnit's XML to a file.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write the Test Anything Protocol to a file.
    #[arg(long, value_name = "FILE")]
    tap: Option<PathBuf>,
    /// Write one page of HTML to a file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a badge as SVG to a file.
    #[arg(long, value_name = "FILE")]
    badge: Option<PathBuf>,
    /// Write annotations for GitHub's actions to standard output.
    #[arg(long)]
    github: bool,
    /// Nothing but the last line.
    #[arg(short, long)]
    quiet: bool,
    /// Each case, and its remarks.
    #[arg(short, long)]
    pub(crate) verbose: bool,
}

#[derive(Args)]
struct Selftest {
    /// The mini host and its mutants, instead of guests and theirs.
    #[arg(long)]
    hosts: bool,
    /// The layer: tells which of the mutants it finds without the suite's own checks.
    #[arg(long, value_name = "LIBRARY")]
    layer: Option<PathBuf>,
    /// Only these: names, globs or rules' ids.
    #[arg(long)]
    only: Vec<String>,
    /// Each mutant meets all cases, not only those that check its rule.
    #[arg(long)]
    full: bool,
    /// One mutant for each rule of hosts, and one round of the clean host.
    #[arg(long, requires = "hosts", conflicts_with_all = ["full", "only"])]
    quick: bool,
    /// A line of JSON for each mutant of a host and one for all, instead of a table.
    #[arg(long, requires = "hosts")]
    json: bool,
    /// How often each clean sample must be clean; shuffled from the second time on.
    #[arg(long, default_value_t = 3)]
    repeat: u32,
    /// The last repeat runs while other threads use the processors.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    load: bool,
    /// Guests at a time.
    #[arg(short, long)]
    jobs: Option<usize>,
    /// Keep what is built here, and use it again while its sources are the same.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Further guests that must be clean, with their settings beside them.
    #[arg(long, value_name = "LIBRARY")]
    sample: Vec<PathBuf>,
    /// Each mutant.
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) fn level(s: &str) -> Result<u8, String> {
    match s.trim_start_matches(['L', 'l']).parse() {
        Ok(n @ 1..=5) => Ok(n),
        _ => Err("a level is one of L1, L2, L3, L4, L5".into()),
    }
}

pub(crate) fn number(s: &str) -> Result<u64, String> {
    match s.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => s.parse(),
    }
    .map_err(|e| e.to_string())
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let _ = suite::PROCESS_STARTED.set(std::time::Instant::now());
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("pxg-conformance: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    match cli.command {
        Command::Guest(g) => guest(&g),
        Command::Host(h) => crate::hostcheck::cli::run(&h),
        Command::LayerCheck(a) => crate::hostcheck::layer_check::check(&a),
        Command::Pair(a) => crate::hostcheck::pair::run(&a),
        Command::Fuzz(f) => fuzz::cli::run(&f),
        Command::List { rules, json } => {
            list(rules, json)?;
            Ok(0)
        }
        Command::Explain { id } => {
            print!("{}", explain::explain(&id)?);
            Ok(0)
        }
        Command::Coverage => {
            let (table, whole) = coverage::table();
            print!("{table}");
            Ok(u8::from(!whole))
        }
        Command::Selftest(Selftest {
            layer: Some(layer),
            hosts,
            only,
            jobs,
            ..
        }) => {
            let jobs = jobs.unwrap_or_else(processors);
            crate::hostcheck::layered::table(&layer, hosts, &only, jobs)?;
            Ok(0)
        }
        Command::Selftest(s) if s.hosts => {
            let ok = crate::hostcheck::selftest::run(&crate::hostcheck::selftest::Asked {
                only: s.only,
                full: s.full,
                quick: s.quick,
                repeat: if s.quick { 1 } else { s.repeat },
                load: s.load,
                // Hosts wait most of their time.
                jobs: s.jobs.unwrap_or_else(|| 2 * processors()),
                keep: s.keep,
                verbose: s.verbose,
                json: s.json,
            })?;
            Ok(u8::from(!ok))
        }
        Command::Selftest(s) => {
            let ok = selftest::run(&selftest::Asked {
                only: s.only,
                full: s.full,
                repeat: s.repeat,
                load: s.load,
                jobs: s.jobs.unwrap_or_else(processors),
                keep: s.keep,
                samples: s.sample,
                verbose: s.verbose,
            })?;
            Ok(u8::from(!ok))
        }
        Command::Report {
            command: ReportCommand::Verify { file },
        } => {
            let r = verify::verify(&file)?;
            print!("{}", human::last(&r, false));
            Ok(r.verdict.code())
        }
        Command::Case { rest } => case_main(&rest),
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, Into::into)
}

/// The process of a case: `__case FD ORDER`.
pub(crate) fn case_main(args: &[String]) -> ! {
    let parsed = match args {
        [fd, order] => fd
            .parse()
            .ok()
            .zip(serde_json::from_str::<Order>(order).ok()),
        _ => None,
    };
    match parsed {
        Some((fd, order)) => child::main(fd, &order),
        None => {
            eprintln!("pxg-conformance: __case is for the suite's own use");
            std::process::exit(2);
        }
    }
}

fn list(list_rules: bool, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if list_rules {
        for r in rules::all() {
            if json {
                let c = coverage::of(r);
                let v = serde_json::json!({
                    "id": r.id, "level": r.level.name(), "party": r.party, "chapter": r.chapter, "text": r.text,
                    "cases": c.cases, "mutants": c.mutants, "untestable": c.untestable,
                });
                writeln!(out, "{v}")?;
            } else {
                writeln!(
                    out,
                    "{}  {:6}  {:7}  {}",
                    r.id,
                    r.level.name(),
                    r.party,
                    r.text
                )?;
            }
        }
        return Ok(());
    }
    for c in cases::all() {
        if json {
            let v = serde_json::json!({"case": c.name, "level": c.level, "rules": c.rules, "about": c.about});
            writeln!(out, "{v}")?;
        } else {
            writeln!(out, "L{}  {:28}  {}", c.level, c.name, c.about)?;
        }
    }
    Ok(())
}

/// The plan for a library, with its settings and the filters that were named.
pub(crate) fn plan_of(
    library: &Path,
    config: Option<&PathBuf>,
    filters: &[String],
) -> Result<Plan> {
    let mut p = Plan::new(library)?;
    if let Some(file) = config {
        p.settings = subject::read(file)?;
        p.settings_file = Some(file.clone());
    }
    if !filters.is_empty() {
        for name in filters {
            if !p.settings.subjects.iter().any(|s| s.filter == *name) {
                p.settings.subjects.push(subject::Subject::bare(name));
            }
        }
        p.settings.subjects.retain(|s| filters.contains(&s.filter));
    }
    Ok(p)
}

fn plan(g: &Guest) -> Result<Plan> {
    let mut p = plan_of(&g.library, g.config.as_ref(), &g.filter)?;
    p.level = g.level;
    p.only.clone_from(&g.only);
    p.skip.clone_from(&g.skip);
    p.seed = g.seed;
    p.valgrind = g.valgrind;
    if let Some(jobs) = g.jobs {
        p.jobs = jobs;
    }
    p.limits.timeout_scale = g.timeout_scale.clamp(0.01, 1000.0);
    p.limits.grace_ms = g.grace;
    Ok(p)
}

/// The verdict on what is no library at all.
pub(crate) fn no_library(library: &Path) -> Result<Option<u8>> {
    if let Err(text) = std::fs::metadata(library) {
        anyhow::bail!("{}: {text}", library.display());
    }
    Ok(sandbox::check_file(library).err().map(|text| {
        println!(
            "FAIL  load/symbols  [PXG-LOAD-001]\n  {text}\n\n0 cases ran      NOT CONFORMANT: not a library"
        );
        Verdict::NotConformant.code()
    }))
}

fn guest(g: &Guest) -> Result<u8> {
    let mut p = plan(g)?;
    let selected = suite::select(&p)?;
    if g.list {
        for c in selected {
            println!("L{}  {:28}  {}", c.level, c.name, c.about);
        }
        return Ok(0);
    }
    if let Some(code) = no_library(&g.library)? {
        return Ok(code);
    }
    if let Some(file) = &g.trace {
        return single::trace(&g.library, &p, &selected, file);
    }
    if let Some(file) = &g.replay {
        return single::replay(g, &p, file);
    }
    if g.in_process || g.gdb {
        return single::one(g, &p, &selected);
    }
    loop {
        let code = once(g, &p)?;
        if !g.repeat_until_failure || code != 0 {
            return Ok(code);
        }
        p.seed = p.seed.wrapping_add(1);
    }
}

fn once(g: &Guest, p: &Plan) -> Result<u8> {
    let terminal = std::io::stderr().is_terminal();
    let total = suite::select(p)?.len();
    let done = Mutex::new((0usize, 0usize));
    let each = |c: &CaseResult| {
        if g.outputs.json
            && let Ok(line) = serde_json::to_string(c)
        {
            println!("{line}");
        }
        if g.outputs.verbose && !g.outputs.json {
            println!("{:11} {} ({} ms)", c.status.name(), c.case, c.ms);
            for r in &c.remarks {
                println!("            {r}");
            }
        }
        let mut d = done
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        d.0 += 1;
        d.1 += usize::from(c.status.is_bad());
        if terminal && !g.outputs.quiet && !g.outputs.verbose {
            eprint!("\r\x1b[K{}/{total} cases, {} failed, {}", d.0, d.1, c.case);
        }
    };
    let report = suite::run(p, each)?;
    if terminal && !g.outputs.quiet && !g.outputs.verbose {
        eprint!("\r\x1b[K");
    }
    show(&g.outputs, &report)
}

/// Writes a report to where it is wanted; the exit code.
pub(crate) fn show(g: &Outputs, report: &Report) -> Result<u8> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let write = |to: &Option<PathBuf>, text: &dyn Fn() -> Result<String>| -> Result<()> {
        if let Some(file) = to {
            save(file, &text()?)?;
        }
        Ok(())
    };
    write(&g.report, &|| {
        Ok(serde_json::to_string_pretty(report)? + "\n")
    })?;
    write(&g.junit, &|| machine::junit(report))?;
    write(&g.tap, &|| Ok(machine::tap(report)))?;
    write(&g.html, &|| Ok(html::page(report)))?;
    write(&g.badge, &|| {
        Ok(badge::svg(report, human::is_whole(report)))
    })?;
    if g.github {
        print!("{}", machine::github(report));
    }
    if g.json {
        println!("{}", serde_json::to_string(report)?);
    } else if g.quiet {
        print!("{}", human::last(report, colour));
    } else {
        print!("{}", human::whole(report, colour));
        for c in report
            .cases
            .iter()
            .filter(|c| c.status == Status::NotApplicable && g.verbose)
        {
            println!("n/a {}: {}", c.case, c.reason);
        }
    }
    Ok(report.verdict.code())
}

fn save(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

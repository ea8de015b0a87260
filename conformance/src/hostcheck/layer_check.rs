//! What the layer (`conformance/layer`) left behind: `pxg-conformance layer-check OUT.jsonl`, and the layer under a host
//! that is checked.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::history;
use super::record::{Edge, Record};
use super::setup::Setup;
use crate::finding::Finding;

/// A rule that was broken, as the layer saw it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct LayerFinding {
    /// The rule's id.
    pub(crate) rule: String,
    /// `host` or `guest`.
    pub(crate) side: String,
    /// `error` or `warning`.
    pub(crate) severity: String,
    /// What was seen.
    pub(crate) what: String,
    /// What was to be expected.
    pub(crate) expected: String,
    /// The function of the boundary.
    #[serde(rename = "fn", default)]
    pub(crate) function: String,
    /// The phase of an event.
    #[serde(default)]
    pub(crate) phase: String,
    /// Filter and name of the configuration.
    #[serde(default)]
    pub(crate) instance: String,
    /// The stream's handle.
    #[serde(default)]
    pub(crate) stream: u64,
    /// The last calls of the stream.
    #[serde(default)]
    pub(crate) last: Vec<String>,
    /// The guest's file.
    #[serde(default)]
    pub(crate) guest: String,
}

#[derive(Deserialize)]
struct Begin {
    pid: u32,
    guest: String,
}

#[derive(Deserialize)]
struct End {
    pid: u32,
    guest: String,
    calls: u64,
    suppressed: u64,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

/// Everything that is in one or more files.
#[derive(Default)]
pub(crate) struct Seen {
    /// What the layer found.
    pub(crate) findings: Vec<LayerFinding>,
    records: Vec<Record>,
    /// Process and guest of each copy of the layer that began, and whether it ended.
    copies: BTreeMap<(u32, String), bool>,
    calls: u64,
    suppressed: u64,
}

impl Seen {
    /// Reads a file; a line that is none of the layer's is an error that names it.
    pub(crate) fn read(&mut self, file: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        for (i, line) in text.lines().enumerate() {
            self.line(line)
                .with_context(|| format!("{}:{}: no line of the layer's", file.display(), i + 1))?;
        }
        Ok(())
    }

    /// What the copies for the host of `dir` wrote so far; the last line may be cut where the host was killed.
    pub(crate) fn of_folder(dir: &Path) -> Result<Self> {
        let mut seen = Self::default();
        let text = std::fs::read_to_string(out_file(dir))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            seen.line(line)?;
        }
        Ok(seen)
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let kind: Kind = serde_json::from_str(line)?;
        match kind.kind.as_deref() {
            None => self.records.push(Record::parse(line)?),
            Some("finding") => self.findings.push(serde_json::from_str(line)?),
            Some("begin") => {
                let b: Begin = serde_json::from_str(line)?;
                self.copies.entry((b.pid, b.guest)).or_insert(false);
            }
            Some("end") => {
                let e: End = serde_json::from_str(line)?;
                self.calls += e.calls;
                self.suppressed += e.suppressed;
                self.copies.insert((e.pid, e.guest), true);
            }
            Some(k) => anyhow::bail!("the kind {k:?}"),
        }
        Ok(())
    }

    /// What the history checker finds in the trace, if there is one: rule, and what was seen.
    pub(crate) fn history(&self) -> Vec<(String, String)> {
        let mut by_copy: BTreeMap<(u32, Option<String>), Vec<Record>> = BTreeMap::new();
        for r in &self.records {
            by_copy
                .entry((r.pid, r.library.clone()))
                .or_default()
                .push(r.clone());
        }
        let mut out = Vec::new();
        for ((pid, library), mut records) in by_copy {
            records.sort_by_key(|r| r.seq);
            let features = records
                .iter()
                .find(|r| r.is("init", Edge::Enter))
                .and_then(|r| r.host.as_ref())
                .map_or([0; 4], |h| h.features);
            let ended = self
                .copies
                .get(&(pid, library.unwrap_or_default()))
                .is_some_and(|e| *e);
            let configs = history::configs(records.iter());
            let mut found = history::check(&records, &configs, &features, ended);
            found.extend(history::check_run(&records, &features, ended));
            out.extend(found.iter().map(|f| (f.rule.to_string(), f.title())));
        }
        out
    }

    /// Copies of the layer that never said how it ended: killed, or ended by `_exit`.
    fn unfinished(&self) -> usize {
        let without_end = self.copies.iter().filter(|(_, ended)| !**ended);
        without_end
            .filter(|((pid, guest), _)| !self.only_judged(*pid, guest))
            .count()
    }

    /// Whether the trace has the process for a child that judges configurations (2.4), each of them to its return. A
    /// host may end it by `_exit`, because handlers of its parent's end are none of the child's.
    fn only_judged(&self, pid: u32, guest: &str) -> bool {
        const JUDGING: [&str; 3] = ["init", "on_config_new", "on_config_drop"];
        let mut open = 0i64;
        let mut judged = false;
        let records = self.records.iter();
        for r in records.filter(|r| r.pid == pid && r.library.as_deref() == Some(guest)) {
            if JUDGING.contains(&r.function.as_str()) {
                open += if r.edge == Edge::Enter { 1 } else { -1 };
                judged |= r.is("on_config_new", Edge::Exit);
            } else if r.function.starts_with("on_") {
                return false;
            }
        }
        judged && open == 0
    }
}

/// Arguments of `layer-check`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What PXG_LAYER_OUT named.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    judging: Judging,
}

/// What counts, and how it is told.
#[derive(Clone, Default, clap::Args)]
pub(crate) struct Judging {
    /// Rules that may be broken: ids or globs.
    #[arg(long, value_name = "RULE")]
    allow: Vec<String>,
    /// Warnings fail too.
    #[arg(long)]
    strict: bool,
    /// As one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary<'a> {
    verdict: &'a str,
    copies: usize,
    calls: u64,
    records: usize,
    errors: usize,
    warnings: usize,
    suppressed: u64,
    unfinished: usize,
    findings: Vec<&'a LayerFinding>,
    history: &'a [(String, String)],
}

/// The verdict over what the layer wrote: 0 nothing found, 1 a rule was broken, 4 nothing ran or a copy did not end.
pub(crate) fn check(a: &Args) -> Result<u8> {
    let mut seen = Seen::default();
    for f in &a.files {
        seen.read(f)?;
    }
    judge(&seen, &a.judging)
}

/// The same over what was read.
pub(crate) fn judge(seen: &Seen, a: &Judging) -> Result<u8> {
    let allowed = a
        .allow
        .iter()
        .map(|g| glob::Pattern::new(g).with_context(|| format!("--allow {g}")))
        .collect::<Result<Vec<_>>>()?;
    let counts = |rule: &str| !allowed.iter().any(|g| g.matches(rule));
    let findings: Vec<&LayerFinding> = seen.findings.iter().filter(|f| counts(&f.rule)).collect();
    let history: Vec<(String, String)> = seen
        .history()
        .into_iter()
        .filter(|(rule, _)| counts(rule))
        .collect();
    let warnings = findings.iter().filter(|f| f.severity == "warning").count();
    let errors = findings.len() - warnings + history.len();
    let unfinished = seen.unfinished();
    let (code, verdict) = if errors > 0 || (a.strict && warnings > 0) {
        (1, "violations")
    } else if seen.copies.is_empty() || unfinished > 0 {
        (4, "incomplete")
    } else {
        (0, "clean")
    };
    if a.json {
        let s = Summary {
            verdict,
            copies: seen.copies.len(),
            calls: seen.calls,
            records: seen.records.len(),
            errors,
            warnings,
            suppressed: seen.suppressed,
            unfinished,
            findings,
            history: &history,
        };
        println!("{}", serde_json::to_string(&s)?);
        return Ok(code);
    }
    for f in &findings {
        println!(
            "{} {} {}: {}\n    expected: {}\n    in {}{}{}",
            f.rule,
            f.side,
            f.severity,
            f.what,
            f.expected,
            f.function,
            if f.phase.is_empty() {
                String::new()
            } else {
                format!("({})", f.phase)
            },
            if f.instance.is_empty() {
                String::new()
            } else {
                format!(" of {}", f.instance)
            },
        );
        if !f.last.is_empty() {
            println!("    before it: {}", f.last.join("; "));
        }
    }
    for (rule, text) in &history {
        println!("{rule} in the trace: {text}");
    }
    if seen.copies.is_empty() {
        println!("no copy of the layer ran: was PXG_LAYER_OUT the file that is checked here?");
    }
    if unfinished > 0 {
        println!(
            "{unfinished} of {} copies of the layer did not come to an end: the process was killed, crashed, or ended by _exit",
            seen.copies.len()
        );
    }
    println!(
        "{verdict}: {} copies of the layer, {} calls, {errors} errors, {warnings} warnings, {} records of a trace",
        seen.copies.len(),
        seen.calls,
        seen.records.len()
    );
    Ok(code)
}

/// The layer in front of the guests of the hosts that a run starts.
pub(crate) struct Layer {
    file: PathBuf,
    /// More settings of each copy: `perturb`, `trace`.
    settings: toml::Table,
    /// The copies, by the folder of their host and by their guest.
    copies: RefCell<BTreeMap<(PathBuf, PathBuf), PathBuf>>,
}

impl Layer {
    pub(crate) fn new(file: &Path, settings: toml::Table) -> Result<Self> {
        Ok(Self {
            file: std::fs::canonicalize(file)
                .with_context(|| format!("no layer at {}", file.display()))?,
            settings,
            copies: RefCell::default(),
        })
    }

    /// The library that the host of `dir` loads in the place of `guest`: a copy of the layer, with its settings beside it.
    pub(crate) fn before(&self, guest: &Path, dir: &Path) -> Result<PathBuf> {
        let guest = std::fs::canonicalize(guest)
            .with_context(|| format!("no guest at {}", guest.display()))?;
        let mut copies = self.copies.borrow_mut();
        let key = (dir.to_path_buf(), guest.clone());
        if let Some(to) = copies.get(&key) {
            return Ok(to.clone());
        }
        let n = copies.keys().filter(|(d, _)| d == dir).count();
        let folder = dir.join("layer").join(n.to_string());
        std::fs::create_dir_all(&folder)?;
        // Messages of the host name the library by its file.
        let name = guest.file_name().unwrap_or_default();
        let to = folder.join(name);
        let _ = std::fs::remove_file(&to);
        // The loader knows a library by its inode: only one of a host's copies can be the layer's file itself.
        if n > 0 || std::fs::hard_link(&self.file, &to).is_err() {
            std::fs::copy(&self.file, &to).with_context(|| {
                format!("cannot copy {} to {}", self.file.display(), to.display())
            })?;
        }
        let mut settings = self.settings.clone();
        settings.insert("guest".into(), guest.display().to_string().into());
        settings.insert("mode".into(), "heal".into());
        settings.insert("out".into(), out_file(dir).display().to_string().into());
        let mut beside = to.clone().into_os_string();
        beside.push(".toml");
        std::fs::write(beside, settings.to_string())?;
        copies.insert(key, to.clone());
        Ok(to)
    }

    /// `setup` with the layer before each guest.
    pub(crate) fn before_all(&self, setup: &Setup, dir: &Path) -> Result<Setup> {
        let mut setup = setup.clone();
        for (_, path) in &mut setup.guests {
            // What is not there is the host's to refuse.
            if path.exists() {
                *path = self.before(path, dir)?;
            }
        }
        Ok(setup)
    }
}

/// Where the copies for the host of `dir` write.
pub(crate) fn out_file(dir: &Path) -> PathBuf {
    dir.join("layer/findings.jsonl")
}

/// How a finding of the layer's begins in a report of the suite.
pub(crate) const SEEN_BY_THE_LAYER: &str = "seen by the layer: ";

/// What the copies for the host of `dir` found about the host: the probe breaks rules of guests on purpose.
pub(crate) fn host_findings(dir: &Path) -> Result<Vec<Finding>> {
    let mut seen = Seen::default();
    // A host that refused its configuration may have loaded nothing.
    if out_file(dir).exists() {
        seen.read(&out_file(dir))?;
    }
    Ok(seen
        .findings
        .into_iter()
        .filter(|f| f.side == "host" && f.severity == "error")
        .map(|f| Finding {
            rule: f.rule,
            title: format!("{SEEN_BY_THE_LAYER}{}; expected: {}", f.what, f.expected),
            detail: vec![
                format!("in {}({}) of {}", f.function, f.phase, f.instance),
                format!("before it: {}", f.last.join("; ")),
            ],
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINDING: &str = r#"{"kind":"finding","rule":"PXG-EVT-001","side":"host","severity":"error","what":"w","expected":"e","fn":"on_event","t":1,"pid":7,"tid":7,"guest":"/g.so"}"#;
    const BEGIN: &str =
        r#"{"kind":"begin","layer":"0.1.0","guest":"/g.so","mode":"log","t":1,"pid":7}"#;
    const END: &str = r#"{"kind":"end","guest":"/g.so","t":1,"pid":7,"calls":3,"findings":0,"warnings":0,"suppressed":0}"#;

    fn code(lines: &[&str], allow: &[&str], strict: bool) -> u8 {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out.jsonl");
        std::fs::write(&file, lines.join("\n")).unwrap();
        check(&Args {
            files: vec![file],
            judging: Judging {
                allow: allow.iter().map(ToString::to_string).collect(),
                strict,
                json: false,
            },
        })
        .unwrap()
    }

    #[test]
    fn the_exit_code_says_clean_broken_or_incomplete() {
        let warning = FINDING.replace("\"error\"", "\"warning\"");
        assert_eq!(code(&[BEGIN, END], &[], false), 0);
        assert_eq!(code(&[BEGIN, FINDING, END], &[], false), 1);
        assert_eq!(code(&[BEGIN, FINDING, END], &["PXG-EVT-*"], false), 0);
        assert_eq!(code(&[BEGIN, &warning, END], &[], false), 0);
        assert_eq!(code(&[BEGIN, &warning, END], &[], true), 1);
        assert_eq!(code(&[BEGIN], &[], false), 4);
        assert_eq!(code(&[], &[], false), 4);
    }

    #[test]
    fn a_child_that_only_judged_may_end_in_any_way() {
        let call = |seq: u32, function: &str, edge: &str| {
            format!(
                r#"{{"side":"layer","seq":{seq},"t":1,"pid":7,"tid":7,"fn":"{function}","edge":"{edge}","library":"/g.so"}}"#
            )
        };
        let unfinished = |calls: &[&str]| {
            let mut seen = Seen::default();
            for line in std::iter::once(&BEGIN).chain(calls) {
                seen.line(line).unwrap();
            }
            seen.unfinished()
        };
        let (enter, exit) = (
            call(1, "on_config_new", "enter"),
            call(2, "on_config_new", "exit"),
        );
        assert_eq!(unfinished(&[&enter, &exit]), 0);
        assert_eq!(unfinished(&[&enter]), 1);
        let worker = call(3, "on_worker", "enter");
        assert_eq!(unfinished(&[&enter, &exit, &worker]), 1);
    }

    #[test]
    fn a_trace_is_given_to_the_history_checker() {
        // The same event twice: REQUEST_HEADERS comes once.
        let enter = r#"{"side":"layer","seq":N,"t":1,"pid":7,"tid":7,"fn":"on_event","edge":"enter","library":"/g.so","config":1,"stream":5,"user":0,"worker":0,"phase":1,"flags":33,"size":192,"arg":0,"preset":{"size":144,"action":0,"user":0,"zero":true,"ops_cap":32,"cap":4096,"misaligned":0,"dirty":false},"sum":"a"}"#;
        let exit = r#"{"side":"layer","seq":N,"t":1,"pid":7,"tid":7,"fn":"on_event","edge":"exit","library":"/g.so","config":1,"stream":5,"phase":1,"sum":"a","result":{"action":1,"max_body":[0,0]}}"#;
        let n = |s: &str, n: u32| s.replace("\"seq\":N", &format!("\"seq\":{n}"));
        let lines = [n(enter, 1), n(exit, 2), n(enter, 3), n(exit, 4)];
        let mut all = vec![BEGIN];
        all.extend(lines.iter().map(String::as_str));
        all.push(END);
        assert_eq!(code(&all, &[], false), 1);
    }

    #[test]
    fn a_line_of_somebody_else_is_an_error() {
        let mut s = Seen::default();
        assert!(s.line("{\"kind\":\"weather\"}").is_err());
        assert!(s.line("no json").is_err());
    }
}

//! How an exchange is shown.

use anyhow::{Result, bail};

use crate::client::{Protocol, Whole};
use crate::host::{Logged, Step};
use crate::paint::{Paint, time};
use crate::upstream::Seen;

/// Width of the column with filter names, and of that with phases.
const NAME: usize = 14;
const PHASE: usize = 17;

/// Writes to standard output.
#[derive(Debug)]
pub(super) struct Printer {
    pub(super) paint: Paint,
    shows: u32,
    pub(super) checks: u32,
    pub(super) failed: u32,
}

/// What is worth showing of a message: its fields of these names.
pub(super) type Names<'a> = &'a [&'a str];

impl Printer {
    pub(super) fn new(paint: Paint) -> Self {
        Self {
            paint,
            shows: 0,
            checks: 0,
            failed: 0,
        }
    }

    pub(super) fn title(&mut self, title: &str, text: &str) {
        self.shows += 1;
        println!();
        println!(
            "{} {}",
            self.paint.cyan(format!("{}.", self.shows)),
            self.paint.bold(title)
        );
        for line in text.lines() {
            println!("   {}", self.paint.dim(line));
        }
    }

    pub(super) fn request(
        &self,
        protocol: Protocol,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) {
        println!();
        let fields: Vec<_> = fields.iter().map(|(n, v)| format!("{n}: {v}")).collect();
        let line = format!("{method} {path}");
        println!(
            "   {} {:8}  {}  {}",
            self.paint.cyan("→"),
            protocol.name(),
            self.paint.bold(line),
            fields.join("  ")
        );
    }

    /// What the filters did with a request on its way to the upstream, and with the response on its way back.
    pub(super) fn passage(&self, logged: &Logged, upstream: Option<&[(String, String)]>) {
        let response = |step: &&Step| step.phase.starts_with("response") || step.phase == "log";
        for step in logged.filters.iter().filter(|s| !response(s)) {
            self.step(step);
        }
        match upstream {
            Some(fields) => {
                let fields: Vec<_> = fields.iter().map(|(n, v)| format!("{n}: {v}")).collect();
                let took = time(logged.upstream_us * 1000);
                let took = self.paint.dim(format!("answered in {took}"));
                let gap = if fields.is_empty() { "" } else { "  " };
                println!("     {:NAME$} {}{gap}{took}", "upstream", fields.join("  "));
            }
            None => println!("     {}", self.paint.dim("the upstream was not asked")),
        }
        for step in logged.filters.iter().filter(response) {
            self.step(step);
        }
    }

    fn step(&self, step: &Step) {
        let action = format!("{:8}", step.action);
        let action = match step.action.as_str() {
            "CONTINUE" => self.paint.green(action),
            "ERROR" | "RESET" => self.paint.red(action),
            _ => self.paint.yellow(action),
        };
        let ops = match step.ops {
            0 => String::new(),
            1 => "1 operation".to_owned(),
            n => format!("{n} operations"),
        };
        let when = if step.late {
            "decided later".to_owned()
        } else {
            time(step.ns)
        };
        println!(
            "     {:NAME$} {:PHASE$}  {action}  {ops:12}  {}",
            self.paint.bold(format!("{:NAME$}", step.filter)),
            step.phase.replace('_', " "),
            self.paint.dim(when)
        );
    }

    /// What the upstream got, where nobody tells more.
    pub(super) fn upstream(&self, got: Option<&[(String, String)]>) {
        match got {
            Some(fields) => {
                let fields: Vec<_> = fields.iter().map(|(n, v)| format!("{n}: {v}")).collect();
                println!("     {:NAME$} {}", "upstream", fields.join("  "));
            }
            None => println!("     {}", self.paint.dim("the upstream was not asked")),
        }
    }

    pub(super) fn response(
        &self,
        whole: &Whole,
        names: Names<'_>,
        body: Option<&str>,
        logged: &Logged,
    ) {
        self.answer(whole, names, body);
        self.cost(logged);
    }

    /// What the client got.
    pub(super) fn answer(&self, whole: &Whole, names: Names<'_>, body: Option<&str>) {
        let fields = names.iter().filter_map(|name| {
            let value = whole.field(name)?;
            Some(format!("{name}: {value}"))
        });
        let status = self.status(whole.status.as_u16());
        let mut shown: Vec<_> = fields.collect();
        shown.extend(
            body.filter(|b| !b.is_empty())
                .map(|text| format!("{:?}", text.trim_end())),
        );
        println!("   {} {status}  {}", self.paint.cyan("←"), shown.join("  "));
    }

    /// The first line in which two texts differ.
    pub(super) fn difference(&self, old: &str, new: &str) {
        if let Some((old, new)) = old.lines().zip(new.lines()).find(|(old, new)| old != new) {
            self.note(&self.paint.red(format!("- {old}")));
            self.note(&self.paint.green(format!("+ {new}")));
        }
    }

    /// The response as the access log has it.
    pub(super) fn summary(&self, logged: &Logged) {
        let details = self.paint.dim(&logged.details);
        println!(
            "   {} {}  {details}",
            self.paint.cyan("←"),
            self.status(logged.status)
        );
        self.cost(logged);
    }

    fn cost(&self, logged: &Logged) {
        let inside: u64 = logged.filters.iter().map(|step| step.ns).sum();
        println!(
            "     {}",
            self.paint.dim(format!(
                "cost: {} inside filters, of {} that the request took",
                time(inside),
                time(logged.duration_us * 1000)
            ))
        );
    }

    fn status(&self, status: u16) -> String {
        match status {
            200..400 => self.paint.green(status),
            400..500 => self.paint.yellow(status),
            _ => self.paint.red(status),
        }
    }

    pub(super) fn note(&self, text: &str) {
        println!("     {text}");
    }

    /// Something that must be so.
    pub(super) fn check(&mut self, holds: bool, what: &str) {
        self.checks += 1;
        if holds {
            println!("     {} {what}", self.paint.green("✓"));
        } else {
            self.failed += 1;
            println!("     {} {}", self.paint.red("✗"), self.paint.red(what));
        }
    }
}

impl Printer {
    /// The last line. An error if a check does not hold; then it shows what the proxy `said`.
    pub(super) fn finale(&self, requests: u64, said: &str, who: &str, again: &str) -> Result<()> {
        let (checks, failed) = (self.checks, self.failed);
        println!();
        if failed > 0 {
            if !said.is_empty() {
                println!("{who} said:\n{said}");
            }
            bail!("{failed} of {checks} checks do not hold");
        }
        println!(
            "{} All {checks} checks hold, over {requests} requests. {}",
            self.paint.green("✓"),
            self.paint.dim(format!("To try it yourself: {again}"))
        );
        Ok(())
    }
}

/// The fields of `seen` that have these names.
pub(super) fn pick(seen: &Seen, names: Names<'_>) -> Vec<(String, String)> {
    let of_names = seen
        .fields
        .iter()
        .filter(|(n, _)| names.contains(&n.as_str()));
    of_names.cloned().collect()
}

//! The result as text: for a terminal, and as Markdown.

use std::fmt::Write as _;

use super::result::{Absolute, MixedRow, Row, Target};
use super::{Report, Section};
use crate::paint::{Paint, time};
use crate::stats::{Estimate, Verdict};

/// Most of the processors' time that others may have had for a measurement to be worth something.
const QUIET: f64 = 0.05;
/// How busy the proxy's processor must be while it is to be saturated.
const SATURATED: f64 = 0.97;

/// What makes the figures say less than they should.
fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    if report.others > QUIET {
        warnings.push(format!(
            "Other processes had {:.0} % of the processors meanwhile: the figures say little. Run it again when the \
             machine is quiet.",
            report.others * 100.0
        ));
    }
    for section in report.about.sections.iter().filter(|s| s.saturates) {
        let idle = |at: &Absolute| at.busy < SATURATED;
        let rows = report.rows.iter().filter(|row| row.section == section.name);
        let names: Vec<_> = rows
            .filter(|row| idle(&row.variant) || idle(&row.plain))
            .map(|row| {
                format!(
                    "{} ({:.1} %)",
                    row.title,
                    row.variant.busy.min(row.plain.busy) * 100.0
                )
            })
            .collect();
        if !names.is_empty() {
            warnings.push(format!(
                "{}: the worker was busy for less than {:.0} % of the time with: {}.",
                section.title,
                SATURATED * 100.0,
                names.join(", ")
            ));
        }
    }
    warnings
}

fn ns(ns: f64) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // rounded on purpose
    time(ns.max(0.0).round() as u64)
}

fn interval(estimate: &Estimate) -> String {
    let [low, high] = estimate.interval;
    format!("{:.3} [{low:.3}, {high:.3}]", estimate.median)
}

/// What the plain proxy does with requests of one section.
fn plain(at: &Absolute) -> String {
    format!(
        "{} of processor time per request, {:.0} requests/s, p50 {}, p99 {}, worker {:.0} % busy",
        ns(at.cpu_ns_per_request),
        at.requests_per_second,
        ns(at.p50_ns),
        ns(at.p99_ns),
        at.busy * 100.0
    )
}

/// The rows by section.
fn by_section(report: &Report) -> impl Iterator<Item = (&Section, Vec<&Row>)> {
    report.about.sections.iter().filter_map(|section| {
        let rows = report.rows.iter().filter(|row| row.section == section.name);
        let rows: Vec<_> = rows.collect();
        (!rows.is_empty()).then_some((section, rows))
    })
}

fn added(row: &Row) -> String {
    let ns = (row.cpu.median - 1.0) * row.plain.cpu_ns_per_request;
    format!("{:+.2} µs", ns / 1e3)
}

/// Prints it.
pub(super) fn print(report: &Report) {
    let paint = Paint::stdout();
    for warning in warnings(report) {
        println!("{}", paint.red(warning));
    }
    for (section, rows) in by_section(report) {
        println!();
        println!("{}", paint.bold(section.title));
        println!("plain {}: {}", report.about.proxy, plain(&rows[0].plain));
        println!(
            "  {:42} {:22} {:>10} {:>6} {:>6} {:>8} {:>8} {:>5}",
            "processor time, ratio to plain",
            "median [95 %]",
            "added",
            "least",
            "req/s",
            "p50",
            "p99",
            "busy"
        );
        for row in rows {
            println!(
                "  {:42} {:22} {:>10} {:6.3} {:6.3} {:>8} {:>8} {:3.0} %",
                row.title,
                interval(&row.cpu),
                added(row),
                row.cpu_least,
                row.throughput.median,
                ns(row.variant.p50_ns),
                ns(row.variant.p99_ns),
                row.variant.busy * 100.0
            );
        }
    }
    if !report.mixed.is_empty() {
        println!();
        println!(
            "{}",
            paint.bold("Mixed load: a probe while 32 unfiltered connections keep the worker busy, over a plain probe")
        );
        for row in &report.mixed {
            let [p50, p99] = probe(row);
            println!("  {:42} p50 {p50}", row.title);
            println!("  {:42} p99 {p99}", "");
        }
    }
    if !report.more.is_empty() {
        println!();
        println!("{}", paint.bold("Reloads"));
        for more in &report.more {
            let said = if more.reached {
                paint.green("reached")
            } else {
                paint.red("missed")
            };
            println!("  {}; target {}  {said}", more.found, more.target);
        }
    }
    if !report.targets.is_empty() {
        println!();
        println!(
            "{}",
            paint.bold("Targets; missed: the whole interval is beyond")
        );
        for target in &report.targets {
            let said = said(target);
            let said = if target.reached() {
                paint.green(said)
            } else {
                paint.red(said)
            };
            println!(
                "  {:76} {:24} {:>8}  {said}",
                target.what,
                interval(&target.measured),
                limit(target)
            );
        }
    }
    println!();
    println!(
        "load and upstream used {:.0} % of their processor, other processes had {:.1} % of both",
        report.load_busy * 100.0,
        report.others * 100.0
    );
}

fn probe(row: &MixedRow) -> [String; 2] {
    [
        (row.p50, row.p50_ns, row.plain_p50_ns),
        (row.p99, row.p99_ns, row.plain_p99_ns),
    ]
    .map(|(ratio, it, plain)| format!("{}: {} against {}", interval(&ratio), ns(it), ns(plain)))
}

fn limit(target: &Target) -> String {
    let sign = if target.at_least { ">=" } else { "<=" };
    let exact = format!("{:.3}", target.limit);
    // 0.125, but 0.05.
    format!("{sign} {}", exact.strip_suffix('0').unwrap_or(&exact))
}

fn said(target: &Target) -> &'static str {
    match target.verdict {
        Verdict::Met => "reached",
        Verdict::MetByMedian => "reached by the median",
        Verdict::MissedByMedian => "reached by the interval's end",
        Verdict::Missed => "missed",
    }
}

/// A page with all of it.
pub(super) fn markdown(report: &Report) -> String {
    let about = report.about;
    let mut text = format!(
        "<!-- Written by `cargo xtask bench {} --save docs/performance`. -->\n\n# Guests in a stock {}, side by side\n\n",
        about.name, about.proxy
    );
    let _ = write!(
        text,
        "`{}` on {}; {}.\n\n",
        report.command,
        report.machine,
        report.versions.join(", ")
    );
    text += about.introduction;
    let _ = write!(
        text,
        "\n{} rounds of {} ms runs; all processes were started anew after {} rounds. Load and upstream used {:.0} % of their processor, other processes had {:.1} % of \
         both.\n",
        report.rounds,
        report.run_ms,
        report.fresh,
        report.load_busy * 100.0,
        report.others * 100.0
    );
    for warning in warnings(report) {
        let _ = write!(text, "\n**{warning}**\n");
    }
    if !report.rows.is_empty() {
        let _ = write!(
            text,
            "\n![Processor time per request over plain {}'s]({}.svg)\n",
            about.proxy, about.name
        );
    }
    if !report.targets.is_empty() {
        text += "\n## Targets\n\n| what | median [95 %] | target | |\n|---|---|---|---|\n";
        for target in &report.targets {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} |",
                target.what,
                interval(&target.measured),
                limit(target),
                said(target)
            );
        }
        text += "\nA target is missed if the whole interval is beyond it.\n";
    }
    for (section, rows) in by_section(report) {
        let _ = write!(
            text,
            "\n## {}\n\nPlain {}: {}.\n\n| | processor time per request, median [95 %] | added | least | requests/s | \
             p50 | p99 | busy |\n|---|---|---|---|---|---|---|---|\n",
            section.title,
            report.about.proxy,
            plain(&rows[0].plain)
        );
        for row in rows {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.3} | x{:.3} | {} | {} | {:.0} % |",
                row.title,
                interval(&row.cpu),
                added(row),
                row.cpu_least,
                row.throughput.median,
                ns(row.variant.p50_ns),
                ns(row.variant.p99_ns),
                row.variant.busy * 100.0
            );
        }
    }
    if !report.mixed.is_empty() {
        text += "\n## Mixed load\n\nOne connection asks through the filter while 32 others, unfiltered, keep the worker \
                 busy: its times over those of a plain\nprobe at its side.\n\n| | p50 | p99 |\n|---|---|---|\n";
        for row in &report.mixed {
            let [p50, p99] = probe(row);
            let _ = writeln!(text, "| {} | {p50} | {p99} |", row.title);
        }
    }
    if !report.more.is_empty() {
        text += "\n## Reloads\n\n| what | target | |\n|---|---|---|\n";
        for more in &report.more {
            let said = if more.reached { "reached" } else { "missed" };
            let _ = writeln!(text, "| {} | {} | {said} |", more.found, more.target);
        }
    }
    text
}

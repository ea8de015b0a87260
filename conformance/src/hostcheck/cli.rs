//! `pxg-conformance host`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::runner::{self, Plan};
use crate::cli::{Outputs, level, number, show};
use crate::sandbox::CaseResult;

#[derive(Args)]
pub(crate) struct Host {
    /// What the host is, as data: see conformance/adapters.
    #[arg(long, value_name = "FILE")]
    adapter: PathBuf,
    /// L1 loads, L2 core, L3 memory, L4 async and threads, L5 stress. Levels are cumulative.
    #[arg(long, default_value = "L5", value_parser = level)]
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
    #[arg(short, long, default_value_t = 16)]
    jobs: usize,
    /// Multiplies the time that the host is given for each step.
    #[arg(long, default_value_t = 1.0)]
    timeout_scale: f64,
    /// List what would run.
    #[arg(long)]
    list: bool,
    /// A built probe, instead of building one.
    #[arg(long, value_name = "LIBRARY")]
    probe: Option<PathBuf>,
    /// The layer, between the host and the probe: what it finds fails the case.
    #[arg(long, value_name = "LIBRARY")]
    layer: Option<PathBuf>,
    /// Keep what the host was given, what it wrote and the records here.
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
}

pub(crate) fn run(h: &Host) -> Result<u8> {
    let plan = Plan {
        adapter: h.adapter.clone(),
        level: h.level,
        only: h.only.clone(),
        skip: h.skip.clone(),
        seed: h.seed,
        jobs: h.jobs,
        timeout_scale: h.timeout_scale,
        probe: h.probe.clone(),
        layer: h.layer.clone(),
        keep: h.keep_logs.clone(),
        built: None,
        most_records: None,
        extra: Vec::new(),
    };
    if h.list {
        for c in runner::select(&plan)? {
            println!("L{}  {:32}  {}", c.level, c.name, c.about);
        }
        return Ok(0);
    }
    let (json, verbose) = (h.outputs.json, h.outputs.verbose);
    let report = runner::run(&plan, move |c: &CaseResult| {
        if json {
            if let Ok(line) = serde_json::to_string(c) {
                println!("{line}");
            }
        } else if verbose {
            println!("{:11} {} ({} ms)", c.status.name(), c.case, c.ms);
            for r in &c.remarks {
                println!("            {r}");
            }
        }
    })?;
    show(&h.outputs, &report)
}

//! One case by itself: recorded, repeated from a file, in this process, or under a debugger.

use super::*;

/// Runs one case, and records it in `file`.
pub(super) fn trace(
    library: &Path,
    p: &Plan,
    selected: &[&'static cases::Case],
    file: &Path,
) -> Result<u8> {
    let [case] = selected else {
        anyhow::bail!(
            "--trace takes one case; {} are selected: add --only CASE",
            selected.len()
        );
    };
    std::fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
    let order = Order {
        case: case.name.to_string(),
        guest: std::fs::canonicalize(library)?,
        has_go: elf::has_go(library),
        seed: p.seed,
        subjects: p.settings.subjects.clone(),
        grace_ms: p.limits.grace_ms,
        heal: true,
        script: None,
        trace: Some(std::fs::canonicalize(file)?),
    };
    let (result, _) = sandbox::run(case, &order, &p.limits);
    print!("{}", human::replayed(p, &result, Path::new(case.name)));
    for r in &result.remarks {
        println!("  {r}");
    }
    match crate::scenario::Scenario::read(file).map(|s| s.len()) {
        Ok(n) if n > 0 => println!("  {n} steps in {}", file.display()),
        _ => anyhow::bail!(
            "the case {} calls hooks directly and makes no streams: there is nothing to record; --in-process and --gdb repeat it",
            case.name
        ),
    }
    Ok(code_of(&result))
}

fn code_of(r: &CaseResult) -> u8 {
    match r.status {
        s if s.is_bad() => 1,
        Status::SuiteError => 3,
        Status::Blocked => 4,
        _ => 0,
    }
}

/// Puts the scenario in `file` through.
pub(super) fn replay(g: &Guest, p: &Plan, file: &Path) -> Result<u8> {
    let (scenario, result) = fuzz::replay(p, file)?;
    let code = code_of(&result);
    if g.outputs.json {
        println!("{}", serde_json::to_string(&result)?);
        return Ok(code);
    }
    print!("{}", human::replayed(p, &result, file));
    if let Some((rule, title)) = scenario.shows
        && !result.findings.iter().any(|f| f.rule == rule)
    {
        println!("  it was kept for {rule} ({title}), which is not found");
    }
    Ok(code)
}

/// One case in this process, or under a debugger.
pub(super) fn one(g: &Guest, p: &Plan, selected: &[&cases::Case]) -> Result<u8> {
    let [case] = selected else {
        anyhow::bail!(
            "--in-process and --gdb take one case; {} are selected: add --only CASE",
            selected.len()
        );
    };
    if g.gdb {
        let status = std::process::Command::new("gdb")
            .args([
                "-ex",
                "handle SIGSEGV nostop noprint pass",
                "-ex",
                "handle SIGURG nostop noprint pass",
                "--args",
            ])
            .arg(std::env::current_exe()?)
            .args([
                "guest",
                "--in-process",
                "--only",
                case.name,
                "--seed",
                &p.seed.to_string(),
            ])
            .args(
                g.config
                    .iter()
                    .flat_map(|c| [std::ffi::OsStr::new("--config"), c.as_os_str()]),
            )
            .args(g.filter.iter().flat_map(|f| ["--filter", f.as_str()]))
            .arg(&g.library)
            .status()
            .context("cannot start gdb")?;
        return Ok(u8::from(!status.success()));
    }
    let order = Order {
        case: case.name.to_string(),
        guest: std::fs::canonicalize(&g.library)?,
        has_go: elf::has_go(&g.library),
        seed: p.seed,
        subjects: p.settings.subjects.clone(),
        grace_ms: p.limits.grace_ms,
        heal: true,
        script: None,
        trace: None,
    };
    let shared = crate::sys::shared::Shared::create()?;
    crate::sys::shared::install(shared);
    for (k, v) in case.env {
        eprintln!(
            "note: the case sets {k}={v} in a process of its own; set it yourself for the same run"
        );
    }
    child::run(&order);
    let shared = crate::sys::shared::current().context("installed above")?;
    let mut bad = false;
    for line in shared.log().lines().filter(|l| !l.contains("\"Module\"")) {
        bad |= line.contains("\"Finding\"");
        println!("{line}");
    }
    let faults = shared.faults();
    for f in &faults {
        let f = crate::fault_text::Fault::read(f);
        println!(
            "fault: {} of {:#x} at {:#x}",
            if f.write { "write" } else { "read" },
            f.at,
            f.pc
        );
    }
    crate::sys::process::exit_now(i32::from(bad || !faults.is_empty()));
}

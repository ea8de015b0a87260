//! The same requests under valgrind's callgrind: instructions per request, which are the same on a busy machine, and how
//! many of them are the module's and the guest's own. Of user space and of the worker's thread only: what other threads do
//! once a second would count the more the slower the machine is. Valgrind and the Go runtime do not get along.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::Args;
use super::measure::Subject;
use super::server::Under;
use super::shape::Shape;
use super::variant::{Guest, Kind, VARIANTS, Variant};
use crate::paint::Paint;

/// What is done often before counting, so that nothing is counted that happens once.
const WARM: u64 = 200;

/// A row of the result.
#[derive(Debug, Serialize)]
pub(super) struct Count {
    pub(super) name: String,
    title: &'static str,
    /// Per request.
    instructions: f64,
    /// In `libproxy_golang.so`.
    module: f64,
    /// In the guest's library.
    guest: f64,
}

/// Counts, and prints.
pub(super) async fn run(args: &Args, requests: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut counts = Vec::new();
    let paint = Paint::stdout();
    for shape in [
        Shape::Fields3,
        Shape::Fields25,
        Shape::Body1K,
        Shape::Body64K,
    ] {
        let variants: Vec<_> = VARIANTS
            .iter()
            .filter(|v| v.has(shape) && can_count(v) && args.settings.wants(shape.name(), v.name))
            .collect();
        if variants.is_empty() {
            continue;
        }
        println!(
            "{}",
            paint.bold(format!(
                "{}: instructions per request",
                shape.title_of_one()
            ))
        );
        let mut plain = None;
        for variant in [&super::PLAIN].into_iter().chain(variants) {
            let folder = folder.path().join(shape.name());
            let count = count(args, variant, shape, &folder, requests).await;
            let count = count.with_context(|| format!("{}/{}", shape.name(), variant.name))?;
            let plain = *plain.get_or_insert(count.instructions);
            let added = count.instructions - plain;
            println!(
                "  {:42} {:9.0} {added:+8.0} {:+7.2} %   module {:6.0}, guest {:5.0}",
                variant.title,
                count.instructions,
                added / plain * 100.0,
                count.module,
                count.guest
            );
            counts.push(count);
        }
    }
    if let Some(file) = &args.settings.json {
        crate::bench_proxy::write(file, &serde_json::to_string_pretty(&counts)?)?;
    }
    Ok(())
}

fn can_count(variant: &Variant) -> bool {
    match variant.kind {
        Kind::HeaderMutation | Kind::Bare | Kind::Lua | Kind::Wasm => true,
        Kind::Guest(guest) => matches!(guest, Guest::C | Guest::Rust),
        // The second process would be missing, or the runtime does not run there, or it is plain once more.
        Kind::Plain | Kind::ExtProc | Kind::GoProxy => false,
    }
}

async fn count(
    args: &Args,
    variant: &Variant,
    shape: Shape,
    folder: &Path,
    requests: u64,
) -> Result<Count> {
    std::fs::create_dir_all(folder)?;
    let dump = folder.join(format!("{}.callgrind", variant.name));
    let under = Under::Callgrind(dump.clone());
    let subject = Subject::start(variant, &args.built, folder, &[shape], &under).await?;
    subject.ask(shape, 1, WARM).await?;
    let pid = subject.server.pid()?.to_string();
    let control = async |options: &[&str]| {
        let mut command = tokio::process::Command::new("callgrind_control");
        let done = command.args(options).arg(&pid).output().await;
        let done = done.context("start callgrind_control, which comes with valgrind")?;
        ensure!(
            done.status.success(),
            "callgrind_control {options:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        anyhow::Ok(())
    };
    control(&["-i", "on"]).await?;
    control(&["-z"]).await?;
    let asked = subject.ask(shape, 1, requests).await?;
    control(&["-d"]).await?;
    let text = read_worker(&dump, asked).await?;
    if let Some(folder) = &args.settings.save {
        std::fs::create_dir_all(folder)?;
        let name = format!("{}-{}.callgrind", shape.name(), variant.name);
        std::fs::write(folder.join(name), &text)?;
    }
    let cost = Cost::read(&text)?;
    let each = |n: u64| n as f64 / asked as f64;
    Ok(Count {
        name: format!("{}/{}", shape.name(), variant.name),
        title: variant.title,
        instructions: each(cost.all),
        module: each(cost.module),
        guest: each(cost.guest),
    })
}

/// The dump of the thread that has served the requests, once valgrind has written its last line.
async fn read_worker(dump: &Path, asked: u64) -> Result<String> {
    /// No proxy's thread serves a request with less, and no other thread does as much meanwhile.
    const LEAST: u64 = 20_000;
    let (folder, name) = (dump.parent(), dump.file_name());
    let (folder, name) = folder.zip(name).context("the dump has a name")?;
    let first = format!("{}.1-", name.to_string_lossy());
    for _ in 0..1000 {
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            if !file.file_name().to_string_lossy().starts_with(&first) {
                continue;
            }
            let text = std::fs::read_to_string(file.path())?;
            let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
            if totals.is_some_and(|n| first_number(n).is_ok_and(|n| n > asked * LEAST)) {
                return Ok(text);
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bail!(
        "callgrind has not written {}*",
        folder.join(first).display()
    )
}

/// Instructions come first, whatever else valgrind was asked to count by `VALGRIND_OPTS`.
fn first_number(line: &str) -> Result<u64> {
    let first = line.split_whitespace().next();
    let first = first.and_then(|n| n.parse().ok());
    first.with_context(|| format!("read {line:?}"))
}

/// What a dump says, by whose code it was.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    all: u64,
    module: u64,
    guest: u64,
}

impl Cost {
    fn read(text: &str) -> Result<Self> {
        let mut cost = Self::default();
        // Objects have a number, and their name only where they come first.
        let mut names: Vec<(&str, &str)> = Vec::new();
        let mut object = "";
        let mut inclusive = false;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("ob=").or(line.strip_prefix("cob=")) {
                let (number, name) = rest.split_once(' ').unwrap_or((rest, ""));
                if !name.is_empty() {
                    names.push((number, name));
                }
                if line.starts_with("ob=") {
                    object = names
                        .iter()
                        .find(|(n, _)| *n == number)
                        .map_or("", |(_, n)| n);
                }
            } else if line.starts_with("calls=") {
                // The next line is what the callee cost, which is told with the callee.
                inclusive = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
                if std::mem::take(&mut inclusive) {
                    continue;
                }
                let (_, n) = line
                    .split_once(' ')
                    .with_context(|| format!("read {line:?}"))?;
                let n = first_number(n)?;
                cost.all += n;
                if object.ends_with("/libproxy_golang.so") {
                    cost.module += n;
                } else if object.ends_with("/bench.so") || object.ends_with("bench_guest.so") {
                    cost.guest += n;
                }
            }
        }
        ensure!(cost.all > 0, "callgrind counted nothing");
        Ok(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::Cost;

    #[test]
    fn a_dump_is_read() {
        let text = "events: Ir\nob=(1) /x/envoy\nfn=(1) a\n0 10\ncob=(2) /x/libproxy_golang.so\ncfn=(2) b\ncalls=1 0\n\
                    0 7\n\nob=(2)\nfn=(2)\n+3 5\ncob=(3) /g/bench.so\ncfn=(3) c\ncalls=1 0\n* 2\n\nob=(3)\nfn=(3)\n* 2\n\
                    \ntotals: 17\n";
        let expected = Cost {
            all: 17,
            module: 5,
            guest: 2,
        };
        assert_eq!(Cost::read(text).unwrap(), expected);
    }
}

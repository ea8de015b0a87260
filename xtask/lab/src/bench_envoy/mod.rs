//! A stock Envoy with guests in it, against itself without, and against what else can be done there: Envoy's own filter,
//! Lua, WebAssembly, ext_proc, and Go's own reverse proxy instead of Envoy.

mod instructions;
mod measure;
mod server;
mod shape;
mod variant;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::task::LocalSet;

use crate::bench_proxy::{
    self, About, Bench, Measured, Section, Settings, Target, Title, pairs, two_processors,
};
use measure::Subject;
use server::Under;
use shape::Shape;
use variant::{Built, Kind, VARIANTS, Variant};

/// Measure guests in a stock Envoy against plain Envoy, and against the alternatives
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    built: Built,
    #[command(flatten)]
    settings: Settings,
    /// Count instructions of so many requests by valgrind instead
    #[arg(long, value_name = "REQUESTS", num_args = 0..=1, default_missing_value = "1000")]
    instructions: Option<u64>,
}

const fn section(shape: Shape) -> Section {
    Section {
        name: shape.name(),
        title: shape.title(),
        saturates: shape.saturates(),
    }
}

static ABOUT: About = About {
    proxy: "Envoy",
    name: "envoy",
    introduction: "Each variant is a process of its own with one worker on one processor; load and upstream have another one. \
                   All set the same\none request field (those that take the whole body: to its length), and the upstream counts \
                   that they do. In a round each\nruns between two runs of plain Envoy; figures are ratios to those two, the \
                   median of the rounds with the interval that\ncovers the true median with 95 %. Processor time is that of all \
                   threads of all the variant's processes, by the\nscheduler's accounting. *Least* is the ratio of the cheapest \
                   runs: noise only adds.\n",
    sections: &[
        section(Shape::Fields3),
        section(Shape::Fields25),
        section(Shape::OneConnection),
        section(Shape::Body1K),
        section(Shape::Body64K),
        section(Shape::H2c),
    ],
};

/// Runs it.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.built.envoy.is_file(),
        "there is no Envoy at {}: `cargo xtask test` brings it, or say where another one is",
        args.built.envoy.display()
    );
    if let Some(requests) = args.instructions {
        let runtime = two_processors()?;
        return LocalSet::new().block_on(&runtime, instructions::run(args, requests));
    }
    bench_proxy::run(args, &args.settings)
}

impl Bench for Args {
    type Subject = Subject;

    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn variants(&self) -> Vec<Title> {
        let title = |v: &Variant| Title {
            name: v.name,
            title: v.title,
            class: v.class(),
        };
        VARIANTS.iter().map(title).collect()
    }

    fn has(&self, section: &str, variant: &str) -> bool {
        let shape = Shape::of(section);
        shape.is_some_and(|shape| Variant::of(variant).is_some_and(|v| v.has(shape)))
    }

    fn has_mixed(&self, variant: &str) -> bool {
        Variant::of(variant).is_some_and(Variant::has_mixed)
    }

    async fn start(
        &self,
        variant: &'static str,
        sections: &[&'static str],
        folder: &Path,
    ) -> Result<Subject> {
        let variant = Variant::of(variant).context("an unknown variant")?;
        let shapes: Vec<_> = sections.iter().filter_map(|s| Shape::of(s)).collect();
        Subject::start(variant, &self.built, folder, &shapes, &Under::Nothing).await
    }

    fn targets(&self, measured: &Measured) -> Vec<Target> {
        targets(measured)
    }

    fn version(&self) -> Result<String> {
        version(&self.built.envoy)
    }
}

/// Those for which all rows were measured.
fn targets(measured: &Measured) -> Vec<Target> {
    const SYNC: [&str; 3] = ["c", "rust", "go-sync"];
    const ASYNC: [&str; 2] = ["go-ring", "go-goroutine"];
    let mut targets = Vec::new();
    let mut most = |what: String, series: Option<Vec<f64>>, limit| {
        targets.extend(series.map(|s| Target::most(what, &s, limit)));
    };
    let cpu = |shape: Shape, variant| measured.cpu(shape.name(), variant);
    let shape = Shape::Fields3;
    for (variant, limit) in [
        ("c", 1.03),
        ("rust", 1.03),
        ("go-sync", 1.04),
        ("go-ring", 1.10),
        ("go-goroutine", 1.16),
    ] {
        let what = format!("{}: processor time", title(variant));
        most(what, cpu(shape, variant), limit);
    }
    most(
        "guest in Go, synchronous, less the guest in C: processor time".into(),
        pairs(cpu(shape, "go-sync"), cpu(shape, "c"), |go, c| go - c),
        0.02,
    );
    for (variants, limit) in [(&SYNC[..], 1.08), (&ASYNC[..], 1.30)] {
        for variant in variants {
            let what = format!("{}, 1 connection: processor time", title(variant));
            most(what, cpu(Shape::OneConnection, variant), limit);
        }
    }
    for (variants, limit) in [(&SYNC[..], 1.0 / 20.0), (&ASYNC[..], 1.0 / 8.0)] {
        for variant in variants {
            let what = format!("{}: what it adds, over what ext_proc adds", title(variant));
            let both = pairs(
                cpu(shape, variant),
                cpu(shape, "ext-proc"),
                |it, ext_proc| (it - 1.0) / (ext_proc - 1.0),
            );
            most(what, both, limit);
        }
    }
    for variant in VARIANTS {
        let Some([p50, p99]) = measured.probe(variant.name) else {
            continue;
        };
        let what = |q| format!("{}, mixed load: {q} of a probe", variant.title);
        most(what("p50"), Some(p50), 1.3);
        most(what("p99"), Some(p99), 1.3);
    }
    let ring = measured.rate(shape.name(), "go-ring");
    let what = format!("{}: requests per second", title("go-ring"));
    targets.extend(ring.map(|s| Target::least(what, &s, 0.92)));
    let h2c = pairs(
        measured.rate(Shape::H2c.name(), "go-sync"),
        measured.rate(Shape::H2c.name(), "go-reverse-proxy"),
        |ours, theirs| ours / theirs,
    );
    let what = "guest in Go, synchronous, h2c: requests per second, over Go's own reverse proxy";
    targets.extend(h2c.map(|s| Target::least(what.into(), &s, 2.4)));
    targets
}

fn title(variant: &str) -> &'static str {
    Variant::of(variant).map_or("an unknown variant", |v| v.title)
}

/// What each run is compared with.
const PLAIN: Variant = Variant {
    name: bench_proxy::PLAIN,
    title: "plain Envoy",
    kind: Kind::Plain,
};

fn version(envoy: &Path) -> Result<String> {
    let output = std::process::Command::new(envoy)
        .arg("--version")
        .output()
        .with_context(|| format!("start {}", envoy.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // ... version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL
    let version = text
        .trim()
        .rsplit(' ')
        .next()
        .and_then(|v| v.split('/').nth(1));
    let version = version.with_context(|| format!("no version in {text:?}"))?;
    Ok(format!("Envoy {version}"))
}

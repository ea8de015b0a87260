//! What was measured, as ratios to plain Envoy of the same round, and what was aimed at.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::{Probes, Run};
use super::shape::Shape;
use super::variant::{VARIANTS, Variant};
use crate::stats::{Estimate, Verdict};

/// A variant's run and the two plain ones around it, of each round.
pub(super) type Rounds = Vec<(Run, Run)>;

/// All that was measured.
#[derive(Default)]
pub(super) struct Measured {
    /// By shape and variant: plain, variant.
    pub(super) rows: BTreeMap<(Shape, &'static str), Rounds>,
    pub(super) mixed: BTreeMap<&'static str, Vec<Probes>>,
}

/// A row of the result.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// Shape and variant.
    pub(super) name: String,
    pub(super) shape: &'static str,
    pub(super) title: &'static str,
    /// Processor time per request over plain's.
    pub(super) cpu: Estimate,
    /// Requests per second over plain's.
    pub(super) throughput: Estimate,
    /// Times of requests over plain's.
    pub(super) p50: Estimate,
    pub(super) p99: Estimate,
    /// Least processor time per request over plain's least.
    pub(super) cpu_least: f64,
    pub(super) variant: Absolute,
    pub(super) plain: Absolute,
}

/// Medians of the rounds.
#[derive(Debug, Serialize)]
pub(super) struct Absolute {
    pub(super) cpu_ns_per_request: f64,
    pub(super) requests_per_second: f64,
    pub(super) p50_ns: f64,
    pub(super) p99_ns: f64,
    /// Share of its processor that it used.
    pub(super) busy: f64,
}

/// A probe's times, over those of a plain one at its side.
#[derive(Debug, Serialize)]
pub(super) struct MixedRow {
    pub(super) name: String,
    pub(super) title: &'static str,
    pub(super) p50: Estimate,
    pub(super) p99: Estimate,
    pub(super) p50_ns: f64,
    pub(super) p99_ns: f64,
    pub(super) plain_p50_ns: f64,
    pub(super) plain_p99_ns: f64,
}

/// Something that was aimed at.
#[derive(Debug, Serialize)]
pub(super) struct Target {
    pub(super) what: String,
    pub(super) measured: Estimate,
    /// The limit is the least that is wanted, not the most.
    pub(super) at_least: bool,
    pub(super) limit: f64,
    pub(super) verdict: Verdict,
}

fn of<T>(rounds: &[T], value: impl Fn(&T) -> f64) -> Estimate {
    Estimate::of(&rounds.iter().map(value).collect::<Vec<_>>())
}

impl Measured {
    pub(super) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for shape in Shape::ALL {
            for variant in VARIANTS {
                if let Some(rounds) = self.rows.get(&(shape, variant.name)) {
                    rows.push(row(shape, variant, rounds));
                }
            }
        }
        rows
    }

    pub(super) fn mixed_rows(&self) -> Vec<MixedRow> {
        let found = VARIANTS
            .iter()
            .filter_map(|v| Some((v, self.mixed.get(v.name)?)));
        found
            .map(|(variant, rounds)| MixedRow {
                name: format!("mixed/{}", variant.name),
                title: variant.title,
                p50: of(rounds, |p| p.p50 / p.plain_p50),
                p99: of(rounds, |p| p.p99 / p.plain_p99),
                p50_ns: of(rounds, |p| p.p50).median,
                p99_ns: of(rounds, |p| p.p99).median,
                plain_p50_ns: of(rounds, |p| p.plain_p50).median,
                plain_p99_ns: of(rounds, |p| p.plain_p99).median,
            })
            .collect()
    }

    /// A value of each round.
    fn series(
        &self,
        shape: Shape,
        variant: &str,
        value: impl Fn(Run, Run) -> f64,
    ) -> Option<Vec<f64>> {
        let rounds = self
            .rows
            .iter()
            .find(|((s, v), _)| *s == shape && *v == variant)?;
        Some(
            rounds
                .1
                .iter()
                .map(|(plain, it)| value(*plain, *it))
                .collect(),
        )
    }

    fn cpu(&self, shape: Shape, variant: &str) -> Option<Vec<f64>> {
        self.series(shape, variant, |plain, it| it.cost() / plain.cost())
    }

    /// Those for which all rows were measured.
    pub(super) fn targets(&self) -> Vec<Target> {
        const SYNC: [&str; 3] = ["c", "rust", "go-sync"];
        const ASYNC: [&str; 2] = ["go-ring", "go-goroutine"];
        let mut targets = Vec::new();
        let mut most = |what: String, series: Option<Vec<f64>>, limit| {
            targets.extend(series.map(|s| Target::most(what, &s, limit)));
        };
        let shape = Shape::Fields3;
        for (variant, limit) in [
            ("c", 1.03),
            ("rust", 1.03),
            ("go-sync", 1.04),
            ("go-ring", 1.10),
            ("go-goroutine", 1.16),
        ] {
            let what = format!("{}: processor time", title(variant));
            most(what, self.cpu(shape, variant), limit);
        }
        most(
            "guest in Go, synchronous, less the guest in C: processor time".into(),
            pairs(self.cpu(shape, "go-sync"), self.cpu(shape, "c"), |go, c| {
                go - c
            }),
            0.02,
        );
        for (variants, limit) in [(&SYNC[..], 1.08), (&ASYNC[..], 1.30)] {
            for variant in variants {
                let what = format!("{}, 1 connection: processor time", title(variant));
                most(what, self.cpu(Shape::OneConnection, variant), limit);
            }
        }
        for (variants, limit) in [(&SYNC[..], 1.0 / 20.0), (&ASYNC[..], 1.0 / 8.0)] {
            for variant in variants {
                let what = format!("{}: what it adds, over what ext_proc adds", title(variant));
                let both = pairs(
                    self.cpu(shape, variant),
                    self.cpu(shape, "ext-proc"),
                    |it, ext_proc| (it - 1.0) / (ext_proc - 1.0),
                );
                most(what, both, limit);
            }
        }
        for (variant, rounds) in &self.mixed {
            let series = |value: fn(&Probes) -> f64| Some(rounds.iter().map(value).collect());
            let what = |q| format!("{}, mixed load: {q} of a probe", title(variant));
            most(what("p50"), series(|p| p.p50 / p.plain_p50), 1.3);
            most(what("p99"), series(|p| p.p99 / p.plain_p99), 1.3);
        }
        let rate =
            |shape, variant| self.series(shape, variant, |plain, it| it.rate() / plain.rate());
        let ring = rate(shape, "go-ring");
        let what = format!("{}: requests per second", title("go-ring"));
        targets.extend(ring.map(|s| Target::least(what, &s, 0.92)));
        let h2c = pairs(
            rate(Shape::H2c, "go-sync"),
            rate(Shape::H2c, "go-reverse-proxy"),
            |ours, theirs| ours / theirs,
        );
        let what =
            "guest in Go, synchronous, h2c: requests per second, over Go's own reverse proxy";
        targets.extend(h2c.map(|s| Target::least(what.into(), &s, 2.4)));
        targets
    }
}

/// A value of both, of each round.
fn pairs(
    a: Option<Vec<f64>>,
    b: Option<Vec<f64>>,
    value: impl Fn(f64, f64) -> f64,
) -> Option<Vec<f64>> {
    Some(a?.into_iter().zip(b?).map(|(a, b)| value(a, b)).collect())
}

fn title(variant: &str) -> &'static str {
    let found = VARIANTS.iter().find(|v| v.name == variant);
    found.map_or("an unknown variant", |v| v.title)
}

fn row(shape: Shape, variant: &Variant, rounds: &Rounds) -> Row {
    let least = |run: fn(&(Run, Run)) -> Run| {
        let costs = rounds.iter().map(|pair| run(pair).cost());
        costs.fold(f64::INFINITY, f64::min)
    };
    let absolute = |run: fn(&(Run, Run)) -> Run| Absolute {
        cpu_ns_per_request: of(rounds, |pair| run(pair).cost()).median,
        requests_per_second: of(rounds, |pair| run(pair).rate()).median,
        p50_ns: of(rounds, |pair| run(pair).p50).median,
        p99_ns: of(rounds, |pair| run(pair).p99).median,
        busy: of(rounds, |pair| run(pair).busy()).median,
    };
    Row {
        name: format!("{}/{}", shape.name(), variant.name),
        shape: shape.name(),
        title: variant.title,
        cpu: of(rounds, |(plain, it)| it.cost() / plain.cost()),
        throughput: of(rounds, |(plain, it)| it.rate() / plain.rate()),
        p50: of(rounds, |(plain, it)| it.p50 / plain.p50),
        p99: of(rounds, |(plain, it)| it.p99 / plain.p99),
        cpu_least: least(|pair| pair.1) / least(|pair| pair.0),
        variant: absolute(|pair| pair.1),
        plain: absolute(|pair| pair.0),
    }
}

impl Target {
    fn most(what: String, series: &[f64], limit: f64) -> Self {
        let measured = Estimate::of(series);
        Self {
            what,
            measured,
            at_least: false,
            limit,
            verdict: measured.against(limit),
        }
    }

    fn least(what: String, series: &[f64], limit: f64) -> Self {
        let measured = Estimate::of(series);
        Self {
            what,
            measured,
            at_least: true,
            limit,
            verdict: measured.against_least(limit),
        }
    }

    /// Whether the interval does not exclude it.
    pub(super) fn reached(&self) -> bool {
        self.verdict != Verdict::Missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_missed_when_the_interval_excludes_it() {
        let series = [1.02, 1.03, 1.04, 1.05, 1.06, 1.07];
        assert!(Target::most(String::new(), &series, 1.02).reached());
        assert!(!Target::most(String::new(), &series, 1.01).reached());
        assert!(Target::least(String::new(), &series, 1.07).reached());
        assert!(!Target::least(String::new(), &series, 1.08).reached());
        assert_eq!(
            Target::least(String::new(), &series, 1.0).verdict,
            Verdict::Met
        );
    }
}

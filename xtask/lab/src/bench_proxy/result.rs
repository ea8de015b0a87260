//! What was measured, as ratios to the plain proxy of the same round, and what was aimed at.

use std::collections::BTreeMap;

use serde::Serialize;

use super::run::{Probes, Run};
use super::{Section, Title};
use crate::stats::{Estimate, Verdict};

/// A variant's run and the two plain ones around it, of each round.
type Rounds = Vec<(Run, Run)>;

/// All that was measured.
#[derive(Default)]
pub(crate) struct Measured {
    /// By section and variant: plain, variant.
    rows: BTreeMap<(&'static str, &'static str), Rounds>,
    mixed: BTreeMap<&'static str, Vec<Probes>>,
}

/// A row of the result.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// Shape and variant.
    pub(super) name: String,
    #[serde(rename = "shape")]
    pub(super) section: &'static str,
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
pub(crate) struct Target {
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
    pub(super) fn add(
        &mut self,
        section: &'static str,
        variant: &'static str,
        plain: Run,
        it: Run,
    ) {
        let rounds = self.rows.entry((section, variant)).or_default();
        rounds.push((plain, it));
    }

    pub(super) fn add_mixed(&mut self, variant: &'static str, probes: Probes) {
        self.mixed.entry(variant).or_default().push(probes);
    }

    pub(super) fn rows(&self, sections: &[Section], variants: &[Title]) -> Vec<Row> {
        let mut rows = Vec::new();
        for section in sections {
            for variant in variants {
                if let Some(rounds) = self.rows.get(&(section.name, variant.name)) {
                    rows.push(row(section, variant, rounds));
                }
            }
        }
        rows
    }

    pub(super) fn mixed_rows(&self, variants: &[Title]) -> Vec<MixedRow> {
        let found = variants
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

    /// A value of each round. None: it was not measured.
    fn series(
        &self,
        section: &str,
        variant: &str,
        value: impl Fn(Run, Run) -> f64,
    ) -> Option<Vec<f64>> {
        let rounds = self
            .rows
            .iter()
            .find(|((s, v), _)| *s == section && *v == variant)?;
        Some(
            rounds
                .1
                .iter()
                .map(|(plain, it)| value(*plain, *it))
                .collect(),
        )
    }

    /// Processor time per request over plain's.
    pub(crate) fn cpu(&self, section: &str, variant: &str) -> Option<Vec<f64>> {
        self.series(section, variant, |plain, it| it.cost() / plain.cost())
    }

    /// Requests per second over plain's.
    pub(crate) fn rate(&self, section: &str, variant: &str) -> Option<Vec<f64>> {
        self.series(section, variant, |plain, it| it.rate() / plain.rate())
    }

    /// Microseconds that the median request takes more.
    pub(crate) fn added_p50_us(&self, section: &str, variant: &str) -> Option<Vec<f64>> {
        self.series(section, variant, |plain, it| (it.p50 - plain.p50) / 1e3)
    }

    /// Of a probe under mixed load, over the plain one's: the median and p99.
    pub(crate) fn probe(&self, variant: &str) -> Option<[Vec<f64>; 2]> {
        let rounds = self.mixed.get(variant)?;
        let of = |value: fn(&Probes) -> f64| rounds.iter().map(value).collect();
        Some([of(|p| p.p50 / p.plain_p50), of(|p| p.p99 / p.plain_p99)])
    }
}

/// A value of both, of each round.
pub(crate) fn pairs(
    a: Option<Vec<f64>>,
    b: Option<Vec<f64>>,
    value: impl Fn(f64, f64) -> f64,
) -> Option<Vec<f64>> {
    Some(a?.into_iter().zip(b?).map(|(a, b)| value(a, b)).collect())
}

fn row(section: &Section, variant: &Title, rounds: &Rounds) -> Row {
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
        name: format!("{}/{}", section.name, variant.name),
        section: section.name,
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
    pub(crate) fn most(what: String, series: &[f64], limit: f64) -> Self {
        let measured = Estimate::of(series);
        Self {
            what,
            measured,
            at_least: false,
            limit,
            verdict: measured.against(limit),
        }
    }

    pub(crate) fn least(what: String, series: &[f64], limit: f64) -> Self {
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

//! Ratios of paired runs, without an assumption about how noise is distributed.

use serde::Serialize;

/// A median with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// Lower and upper end of the interval that covers the true median with at least 95 %; with fewer than 6 values
    /// there is none, and these are the least and the greatest value.
    pub interval: [f64; 2],
    /// Number of values.
    pub n: usize,
}

impl Estimate {
    /// Of `values`, which must not be empty. The interval is that between two order statistics, as many ranks from
    /// either end as the binomial distribution allows.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        assert!(!values.is_empty(), "an estimate needs a value");
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let k = rank(n);
        Self {
            median: f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]),
            interval: [sorted[k], sorted[n - 1 - k]],
            n,
        }
    }

    /// What this says about a limit from above.
    #[must_use]
    pub fn against(&self, limit: f64) -> Verdict {
        if self.interval[1] <= limit {
            Verdict::Met
        } else if self.interval[0] > limit {
            Verdict::Missed
        } else if self.median <= limit {
            Verdict::MetByMedian
        } else {
            Verdict::MissedByMedian
        }
    }

    /// What this says about a limit from below.
    #[must_use]
    pub fn against_least(&self, limit: f64) -> Verdict {
        let [low, high] = self.interval;
        let turned = Self {
            median: -self.median,
            interval: [-high, -low],
            n: self.n,
        };
        turned.against(-limit)
    }
}

/// Whether a limit is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The whole interval is within the limit.
    Met,
    /// The median is, and the interval reaches beyond it.
    MetByMedian,
    /// The median is not, and the interval reaches into it.
    MissedByMedian,
    /// The whole interval is beyond the limit.
    Missed,
}

impl Verdict {
    /// For a table.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::MetByMedian => "met by median",
            Self::MissedByMedian => "missed by median",
            Self::Missed => "missed",
        }
    }
}

/// The greatest number of ranks that can be left out at either end of `n` sorted values so that the true median lies
/// between the rest with 95 %.
fn rank(n: usize) -> usize {
    let total = i32::try_from(n).unwrap_or(i32::MAX);
    // P(at most k of n values below the median), summed from its terms C(n, i) / 2^n.
    let mut term = 0.5f64.powi(total);
    let mut below = term;
    let mut k = 0;
    while 2.0 * below <= 0.05 && k + 1 < n / 2 {
        k += 1;
        term *= (n - k + 1) as f64 / k as f64;
        below += term;
    }
    k.saturating_sub(usize::from(2.0 * below > 0.05))
}

/// The value below which `share` of the sorted values are.
#[must_use]
pub fn quantile(sorted: &[u64], share: f64) -> u64 {
    let last = sorted.len().saturating_sub(1);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (share * last as f64).round() as usize;
    sorted.get(index.min(last)).copied().unwrap_or(0)
}

/// Slope of a least-squares line through `(x, y)`.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (mx, my) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), p| (x + p.0 / n, y + p.1 / n));
    let (up, down) = points.iter().fold((0.0, 0.0), |(up, down), (x, y)| {
        (up + (x - mx) * (y - my), down + (x - mx).powi(2))
    });
    if down > 0.0 { up / down } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_sign_test() {
        // From tables of the sign test at 5 %, two-sided: counted from 1 they are k + 1.
        for (n, first) in [
            (6, 1),
            (8, 1),
            (9, 2),
            (12, 3),
            (15, 4),
            (21, 6),
            (25, 8),
            (31, 10),
        ] {
            assert_eq!(rank(n) + 1, first, "n = {n}");
        }
    }

    #[test]
    fn the_interval_covers_the_median_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(7);
        let covered = (0..4000).filter(|_| {
            let values: Vec<_> = (0..21).map(|_| random.f64()).collect();
            let [low, high] = Estimate::of(&values).interval;
            (low..=high).contains(&0.5)
        });
        // 97.3 % is what ranks 6 and 16 of 21 give.
        let covered = covered.count();
        assert!((3840..=3950).contains(&covered), "{covered} of 4000");
    }

    #[test]
    fn verdicts() {
        let e = Estimate {
            median: 1.04,
            interval: [1.02, 1.06],
            n: 21,
        };
        assert_eq!(e.against(1.06), Verdict::Met);
        assert_eq!(e.against(1.05), Verdict::MetByMedian);
        assert_eq!(e.against(1.03), Verdict::MissedByMedian);
        assert_eq!(e.against(1.01), Verdict::Missed);
        assert_eq!(e.against_least(1.02), Verdict::Met);
        assert_eq!(e.against_least(1.03), Verdict::MetByMedian);
        assert_eq!(e.against_least(1.05), Verdict::MissedByMedian);
        assert_eq!(e.against_least(1.07), Verdict::Missed);
    }

    #[test]
    fn even_and_odd_medians_quantiles_and_slopes() {
        assert_eq!(
            Estimate::of(&[3.0, 1.0, 2.0]).median.to_bits(),
            2.0f64.to_bits()
        );
        assert_eq!(
            Estimate::of(&[4.0, 1.0, 2.0, 3.0]).median.to_bits(),
            2.5f64.to_bits()
        );
        assert_eq!(quantile(&[1, 2, 3, 4, 5], 0.5), 3);
        assert_eq!(quantile(&[1, 2, 3, 4, 5], 1.0), 5);
        assert_eq!(quantile(&[], 0.5), 0);
        assert!((slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) - 2.0).abs() < 1e-9);
    }
}

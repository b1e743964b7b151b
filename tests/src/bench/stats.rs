//! Figures from samples. Pure.

use serde::Serialize;

/// Median and quartiles of some samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    /// One value that is exact, as a size.
    #[must_use]
    pub const fn exact(value: f64) -> Self {
        Self { low: value, median: value, high: value }
    }

    /// Distance of the quartiles, relative to the median.
    #[must_use]
    pub fn width(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / self.median.abs() }
    }
}

/// Median and quartiles, with linear interpolation between neighbours; `None` without samples.
#[must_use]
pub fn spread(samples: &[f64]) -> Option<Spread> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |fraction: f64| {
        let place = fraction * (sorted.len().checked_sub(1)? as f64);
        let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
        Some(below + (above - below) * place.fract())
    };
    Some(Spread { low: at(0.25)?, median: at(0.5)?, high: at(0.75)? })
}

/// Ratios of two variants that were measured in the same rounds: what disturbs a round disturbs both.
#[must_use]
pub fn ratios(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).filter(|(_, to)| **to != 0.0).map(|(of, to)| of / to).collect()
}

/// Differences of two variants that were measured in the same rounds.
#[must_use]
pub fn differences(of: &[f64], to: &[f64]) -> Vec<f64> {
    of.iter().zip(to).map(|(of, to)| of - to).collect()
}

/// Whether the ratios of a variant to itself (A/A) are so far from 1, or so wide, that differences below `limit`
/// mean nothing.
#[must_use]
pub fn is_noisy(same: &Spread, limit: f64) -> bool {
    (same.median - 1.0).abs() > limit / 2.0 || same.width() > limit
}

/// An order of `count` things that `seed` decides: each round measures the variants in another one.
#[must_use]
pub fn order(count: usize, seed: u64) -> Vec<usize> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(last, (state % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles() {
        let cases: [(&str, &[f64], [f64; 3]); 4] = [
            ("one sample", &[7.0], [7.0; 3]),
            ("unsorted", &[5.0, 1.0, 3.0, 2.0, 4.0], [2.0, 3.0, 4.0]),
            ("between two", &[1.0, 2.0, 3.0, 4.0], [1.75, 2.5, 3.25]),
            ("an outlier does not move the median", &[1.0, 1.0, 1.0, 1.0, 900.0], [1.0; 3]),
        ];
        for (name, samples, [low, median, high]) in cases {
            assert_eq!(spread(samples), Some(Spread { low, median, high }), "{name}");
        }
        assert_eq!(spread(&[]), None, "nothing");
    }

    #[test]
    fn comparisons_are_made_within_a_round() {
        // The second round was disturbed: twice as slow for both.
        let (of, to) = ([30.0, 60.0, 30.0], [10.0, 20.0, 10.0]);
        assert_eq!(ratios(&of, &to), [3.0, 3.0, 3.0]);
        assert_eq!(differences(&of, &to), [20.0, 40.0, 20.0]);
        assert_eq!(ratios(&[1.0], &[0.0]), Vec::<f64>::new(), "a rate of nothing is no divisor");
    }

    #[test]
    fn noise_is_told_by_a_variant_beside_itself() {
        let cases = [
            ("quiet", (0.99, 1.0, 1.01), false),
            ("wide", (0.9, 1.0, 1.1), true),
            ("one of two equals is slower", (1.04, 1.05, 1.06), true),
        ];
        for (name, (low, median, high), want) in cases {
            assert_eq!(is_noisy(&Spread { low, median, high }, 0.05), want, "{name}");
        }
    }

    #[test]
    fn orders_are_whole_and_differ() {
        let orders: Vec<_> = (0..20).map(|seed| order(6, seed)).collect();
        for order in &orders {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
        }
        let first: std::collections::BTreeSet<_> = orders.iter().map(|order| order[0]).collect();
        assert!(first.len() > 3, "every variant gets its turn to be first: {first:?}");
    }
}

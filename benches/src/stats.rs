//! Medians, spreads and ratios of a few rounds.

/// The middle of the values, or the mean of the two in the middle. `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let sorted = sorted(values);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { (sorted[sorted.len() / 2 - 1] + upper) / 2.0 })
}

/// The smallest and the largest value.
pub fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let sorted = sorted(values);
    Some((*sorted.first()?, *sorted.last()?))
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// A cost: time, memory.
    Less,
    /// A rate.
    More,
}

/// How many times better the first median is than the second. `None` when a side has no figure, or one of zero.
pub fn ratio(better: Better, ours: &[f64], theirs: &[f64]) -> Option<f64> {
    let (ours, theirs) = (median(ours)?, median(theirs)?);
    let (over, under) = match better {
        Better::Less => (theirs, ours),
        Better::More => (ours, theirs),
    };
    (over > 0.0 && under > 0.0).then(|| over / under)
}

/// The least and the greatest ratio of the rounds, each compared with the peer's of the same round.
pub fn ratio_spread(better: Better, ours: &[f64], theirs: &[f64]) -> Option<(f64, f64)> {
    let paired: Vec<f64> = ours.iter().zip(theirs).filter_map(|(a, b)| ratio(better, &[*a], &[*b])).collect();
    spread(&paired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_two_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    #[test]
    fn a_ratio_above_one_is_in_our_favour_for_costs_and_rates() {
        assert_eq!(ratio(Better::Less, &[2.0], &[10.0]), Some(5.0));
        assert_eq!(ratio(Better::More, &[10.0], &[2.0]), Some(5.0));
        assert_eq!(ratio(Better::Less, &[0.0], &[2.0]), None);
        assert_eq!(ratio(Better::Less, &[], &[2.0]), None);
    }

    #[test]
    fn the_spread_of_a_ratio_pairs_rounds() {
        assert_eq!(ratio_spread(Better::Less, &[1.0, 2.0], &[10.0, 10.0]), Some((5.0, 10.0)));
        assert_eq!(ratio_spread(Better::Less, &[1.0], &[]), None);
    }
}

//! The one source of a run's choices: streams of numbers that a seed decides.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The stream of the seed that belongs to `what` and `n`: threads with streams of their own do not disturb each other's choices.
    pub fn of(seed: u64, what: &str, n: u64) -> Self {
        // FNV-1a over the name, then one step of the stream, so that neighbours are far apart.
        let named = what
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut dice = Self(seed ^ named ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self(dice.next())
    }

    /// splitmix64
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `sides`, which is not 0.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.next() % sides
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll(high - low + 1)
    }

    /// Puts `items` in an order of its own.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, usize::try_from(self.roll(last as u64 + 1)).expect("it is an index"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rolls(mut dice: Dice) -> Vec<u64> {
        (0..20).map(|_| dice.roll(1000)).collect()
    }

    #[test]
    fn a_seed_repeats_its_choices_and_names_keep_apart() {
        assert_eq!(rolls(Dice::of(7, "client", 1)), rolls(Dice::of(7, "client", 1)));
        for other in [Dice::of(8, "client", 1), Dice::of(7, "pods", 1), Dice::of(7, "client", 2)] {
            assert_ne!(rolls(Dice::of(7, "client", 1)), rolls(other));
        }
    }

    #[test]
    fn a_shuffled_deck_has_the_same_cards() {
        let mut deck: Vec<u32> = (0..50).collect();
        Dice::of(1, "deck", 0).shuffle(&mut deck);
        assert_ne!(deck, (0..50).collect::<Vec<_>>());
        deck.sort_unstable();
        assert_eq!(deck, (0..50).collect::<Vec<_>>());
    }
}

//! Which faults a round brings, and when: decided by the seed alone.

use std::time::Duration;

use super::dice::Dice;

/// Something that goes wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, and the next one starts after a while.
    KillMain {
        down: Duration,
    },
    KillEdge,
    KillMainAndEdge {
        down: Duration,
    },
    /// Of one of the pods that are there for it.
    KillShim {
        pod: usize,
    },
    /// SIGSTOP, and SIGCONT after a while.
    StopMain {
        during: Duration,
    },
    StopEdge {
        during: Duration,
    },
    StopShim {
        pod: usize,
        during: Duration,
    },
    /// The store's disk has no space left for a while.
    FillDisk {
        during: Duration,
    },
    /// Main is killed, and what was not synced is gone when the next one starts.
    CutPower {
        down: Duration,
    },
    /// The server's clock is moved; the round's end moves it back.
    JumpClock {
        seconds: i64,
    },
    /// Connections that send part of a request and then nothing.
    StallClients {
        connections: u64,
        during: Duration,
    },
}

impl Fault {
    /// The name that the summary counts it under.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillMain { .. } => "main killed",
            Self::KillEdge => "edge killed",
            Self::KillMainAndEdge { .. } => "main and edge killed",
            Self::KillShim { .. } => "shim killed",
            Self::StopMain { .. } => "main stopped",
            Self::StopEdge { .. } => "edge stopped",
            Self::StopShim { .. } => "shim stopped",
            Self::FillDisk { .. } => "disk full",
            Self::CutPower { .. } => "power cut",
            Self::JumpClock { .. } => "clock jumps",
            Self::StallClients { .. } => "clients stalled",
        }
    }
}

/// How many pods may lose their shim.
pub const VICTIMS: usize = 2;
/// Faults of a round.
pub const PER_ROUND: usize = 5;
/// Kinds of faults; the last needs a server whose clock can be moved.
const KINDS: u64 = 11;

/// A pause, then a fault.
pub type Step = (Duration, Fault);

/// The faults of a round: decks of every kind are dealt from one after the other, so that no kind is left out for long.
pub fn round(seed: u64, number: u64, with_clock: bool) -> Vec<Step> {
    let kinds = if with_clock { KINDS } else { KINDS - 1 };
    let mut dice = Dice::of(seed, "faults", number);
    let first = usize::try_from(number).expect("rounds can be counted") * PER_ROUND;
    (first..first + PER_ROUND)
        .map(|card| {
            let size = usize::try_from(kinds).expect("it is small");
            let mut deck: Vec<u64> = (0..kinds).collect();
            Dice::of(seed, "deck", (card / size) as u64).shuffle(&mut deck);
            (Duration::from_millis(dice.between(300, 1500)), fault(deck[card % size], &mut dice))
        })
        .collect()
}

fn fault(kind: u64, dice: &mut Dice) -> Fault {
    let mut millis = |low, high| Duration::from_millis(dice.between(low, high));
    match kind {
        0 => Fault::KillMain { down: millis(0, 1000) },
        1 => Fault::KillEdge,
        2 => Fault::KillMainAndEdge { down: millis(0, 500) },
        3 => Fault::KillShim { pod: victim(dice) },
        4 => Fault::StopMain { during: millis(200, 3000) },
        5 => Fault::StopEdge { during: millis(200, 2000) },
        6 => Fault::StopShim { during: millis(200, 3000), pod: victim(dice) },
        7 => Fault::FillDisk { during: millis(500, 2000) },
        8 => Fault::CutPower { down: millis(0, 500) },
        9 => Fault::StallClients { during: millis(500, 3000), connections: dice.between(5, 30) },
        _ => {
            const HOUR: i64 = 3600;
            const JUMPS: [i64; 8] = [-1, 1, -90, 600, -2 * HOUR, 2 * HOUR, -400 * 24 * HOUR, 30 * 24 * HOUR];
            let jump = usize::try_from(dice.roll(JUMPS.len() as u64)).expect("it is an index");
            Fault::JumpClock { seconds: JUMPS[jump] }
        }
    }
}

fn victim(dice: &mut Dice) -> usize {
    usize::try_from(dice.roll(VICTIMS as u64)).expect("it is an index")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(rounds: std::ops::Range<u64>, with_clock: bool) -> BTreeSet<&'static str> {
        rounds.flat_map(|n| round(5, n, with_clock)).map(|(_, fault)| fault.name()).collect()
    }

    #[test]
    fn a_seed_repeats_a_round() {
        assert_eq!(round(5, 3, true), round(5, 3, true));
        assert_ne!(round(5, 3, true), round(6, 3, true));
        assert_ne!(round(5, 3, true), round(5, 4, true));
    }

    #[test]
    fn every_kind_comes_within_a_few_rounds() {
        assert_eq!(names(0..5, true).len(), 11);
        assert_eq!(names(0..2, false).len(), 10);
        assert!(!names(0..50, false).contains("clock jumps"));
    }
}

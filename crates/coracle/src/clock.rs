//! The time of day that all parts of this process go by.

use std::sync::Arc;

use jiff::Timestamp;
use server::hooks::Clock;

/// The machine's clock.
#[cfg(not(feature = "faults"))]
pub fn clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// The machine's clock, moved by as many seconds as the file [`MOVED`] says at that moment.
#[cfg(feature = "faults")]
pub fn clock() -> Clock {
    Arc::new(|| {
        let now = Timestamp::now();
        let moved = std::fs::read_to_string(MOVED).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        now.checked_add(jiff::SignedDuration::from_secs(moved)).unwrap_or(now)
    })
}

/// Written by `cargo xtask torture`.
#[cfg(feature = "faults")]
const MOVED: &str = "/run/coracle-clock";

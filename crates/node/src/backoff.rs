//! Doubling delays after failures, as client-go `util/flowcontrol/backoff.go` counts them.

use jiff::{SignedDuration, Timestamp};

/// First delay of a restart or pull. Source: kubelet.go, `imageBackOffPeriod` and `initialCrashLoopBackOff`.
pub const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest delay. Source: kubelet.go, `MaxContainerBackOff` and `MaxImageBackOff`.
pub const MAX: SignedDuration = SignedDuration::from_secs(300);

/// One key's back-off: 10 s, doubled on each [`Backoff::next`] up to 300 s, forgotten after 600 quiet seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    entry: Option<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    delay: SignedDuration,
    updated: Timestamp,
}

impl Backoff {
    /// The end of the delay that began with an event at `since`, or `None` when a new attempt may begin.
    pub fn until(&self, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let entry = self.entry.as_ref().filter(|entry| !expired(entry, since))?;
        let end = since.checked_add(entry.delay).unwrap_or(Timestamp::MAX);
        (now < end).then_some(end)
    }

    /// Records an attempt that follows an event at `since`; the next one waits longer.
    pub fn next(&mut self, since: Timestamp, now: Timestamp) {
        let delay = match &self.entry {
            Some(entry) if !expired(entry, since) => entry.delay.saturating_mul(2).min(MAX),
            Some(_) | None => INITIAL,
        };
        self.entry = Some(Entry { delay, updated: now });
    }

    /// The current delay, zero before the first attempt.
    pub fn delay(&self) -> SignedDuration {
        self.entry.as_ref().map_or(SignedDuration::ZERO, |entry| entry.delay)
    }

    pub fn reset(&mut self) {
        self.entry = None;
    }
}

fn expired(entry: &Entry, event: Timestamp) -> bool {
    event.duration_since(entry.updated) > MAX.saturating_mul(2)
}

/// A delay as Go prints it in back-off messages, such as `10s`, `1m20s` or `5m0s`.
pub fn go_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn doubles_to_five_minutes_and_forgets_after_ten() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.until(at(0), at(0)), None);
        let mut shown = Vec::new();
        for _ in 0..7 {
            backoff.next(at(0), at(0));
            shown.push(go_duration(backoff.delay()));
        }
        assert_eq!(shown, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
        assert_eq!(backoff.until(at(10), at(11)), Some(at(310)));
        assert_eq!(backoff.until(at(10), at(310)), None);
        assert_eq!(backoff.until(at(601), at(601)), None, "a container that ran for ten minutes starts afresh");
        backoff.next(at(601), at(601));
        assert_eq!(backoff.delay(), INITIAL);
    }
}

//! Which images to delete when the disk fills up; pure.
//!
//! Source: kubernetes `pkg/kubelet/images/image_gc_manager.go`.

use std::time::{Duration, SystemTime};

use crate::digest::Digest;

/// When to delete unused images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Percent of the file system in use from which collection starts; 100 turns it off.
    pub high_threshold_percent: u8,
    /// Percent of the file system that collection tries to get down to.
    pub low_threshold_percent: u8,
    /// An image detected less than this long ago is kept.
    pub min_age: Duration,
    /// An image unused for longer is deleted whatever the disk says.
    pub max_age: Option<Duration>,
}

impl Default for Policy {
    /// The kubelet's defaults: 85 %, 80 %, 2 minutes, no maximum.
    fn default() -> Policy {
        Policy {
            high_threshold_percent: 85,
            low_threshold_percent: 80,
            min_age: Duration::from_secs(120),
            max_age: None,
        }
    }
}

/// The file system that holds the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
}

/// What the decision knows of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: Digest,
    pub size: u64,
    pub pinned: bool,
    pub in_use: bool,
    pub first_seen: SystemTime,
    pub last_used: SystemTime,
}

/// What to do, and how much it will not be enough by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// In the order of deletion.
    pub delete: Vec<Digest>,
    /// Bytes that should become free.
    pub wanted_bytes: u64,
    /// Bytes of the images in `delete` that are deleted for room; less than wanted when there are not enough unused images.
    pub eligible_bytes: u64,
}

/// Chooses images: those past their maximum age, then those unused for longest until the low threshold is reached.
pub fn decide(policy: &Policy, disk: Disk, candidates: &[Candidate], now: SystemTime) -> Decision {
    let age = |since: SystemTime| now.duration_since(since).unwrap_or_default();
    let mut unused: Vec<&Candidate> = candidates.iter().filter(|image| !image.pinned && !image.in_use).collect();
    unused.sort_by_key(|image| (image.last_used, image.first_seen));
    let mut decision = Decision::default();
    let expired = |image: &&Candidate| policy.max_age.is_some_and(|limit| age(image.last_used) > limit);
    decision.delete.extend(unused.iter().filter(|image| expired(image)).map(|image| image.id.clone()));
    unused.retain(|image| !expired(image));

    let used = disk.capacity_bytes.saturating_sub(disk.available_bytes);
    let percent = (used * 100).checked_div(disk.capacity_bytes).unwrap_or(0);
    if policy.high_threshold_percent >= 100 || percent < u64::from(policy.high_threshold_percent) {
        return decision;
    }
    let target = disk.capacity_bytes / 100 * u64::from(100 - policy.low_threshold_percent.min(100));
    decision.wanted_bytes = target.saturating_sub(disk.available_bytes);
    for image in unused.into_iter().filter(|image| age(image.first_seen) >= policy.min_age) {
        if decision.eligible_bytes >= decision.wanted_bytes {
            break;
        }
        decision.eligible_bytes += image.size;
        decision.delete.push(image.id.clone());
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn image(name: &str, size: u64, seen: u64, used: u64) -> Candidate {
        let id = Digest::of(name.as_bytes());
        Candidate { id, size, pinned: false, in_use: false, first_seen: at(seen), last_used: at(used) }
    }

    fn check(policy: Policy, available: u64, candidates: &[Candidate], expected: &[&str], short: u64) {
        let disk = Disk { capacity_bytes: 100, available_bytes: available };
        let decision = decide(&policy, disk, candidates, at(10_000));
        assert_eq!(decision.delete, expected.iter().map(|name| Digest::of(name.as_bytes())).collect::<Vec<_>>());
        assert_eq!(decision.wanted_bytes.saturating_sub(decision.eligible_bytes), short);
    }

    #[test]
    fn deletes_least_recently_used_first_down_to_the_low_threshold() {
        let images = [image("b", 3, 1, 200), image("a", 3, 1, 100), image("c", 3, 1, 300)];
        check(Policy::default(), 15, &images, &["a", "b"], 0);
        check(Policy::default(), 16, &images, &[], 0);
    }

    #[test]
    fn keeps_what_is_used_pinned_or_new() {
        let used = Candidate { in_use: true, ..image("used", 50, 1, 1) };
        let pinned = Candidate { pinned: true, ..image("pinned", 50, 1, 1) };
        check(
            Policy::default(),
            5,
            &[used, pinned, image("new", 50, 9_950, 9_950), image("old", 5, 1, 1)],
            &["old"],
            10,
        );
    }

    #[test]
    fn age_alone_deletes_only_past_the_maximum() {
        let policy = Policy { max_age: Some(Duration::from_secs(1000)), ..Policy::default() };
        check(policy, 90, &[image("old", 1, 1, 8_000), image("young", 1, 1, 9_500)], &["old"], 0);
    }

    #[test]
    fn a_threshold_of_100_turns_it_off() {
        check(Policy { high_threshold_percent: 100, ..Policy::default() }, 0, &[image("a", 1, 1, 1)], &[], 0);
    }
}

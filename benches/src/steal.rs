//! Whether the machine was ours: CPU time that the hypervisor gave to others while something was measured.

use anyhow::{Context, Result};

/// Per cent above which figures are not to be trusted.
const TOLERATED: f64 = 2.0;

/// The counters of `/proc/stat` at one moment.
pub struct Steal {
    stolen: u64,
    total: u64,
}

impl Steal {
    /// # Errors
    /// When `/proc/stat` cannot be read.
    pub fn now() -> Result<Self> {
        parse(&std::fs::read_to_string("/proc/stat").context("could not read /proc/stat")?)
            .context("/proc/stat has no line of all processors")
    }

    /// What to say of the time since.
    ///
    /// # Errors
    /// As [`Steal::now`].
    pub fn note(&self, bench: &str) -> Result<Option<String>> {
        Ok(sentence(bench, self, &Self::now()?))
    }
}

fn parse(stat: &str) -> Option<Steal> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are in user already.
    Some(Steal { stolen: *fields.get(7)?, total: fields.iter().take(8).sum() })
}

fn sentence(bench: &str, before: &Steal, after: &Steal) -> Option<String> {
    let total = (after.total - before.total).max(1) as f64;
    let percent = (after.stolen - before.stolen) as f64 / total * 100.0;
    (percent > TOLERATED).then(|| {
        format!("{bench}: the hypervisor took {percent:.1} % of the CPU time: run it again on a quiet machine")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_per_cent_are_tolerated() {
        let before = parse("cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 1\n").unwrap();
        let stolen = |steal: u64| parse(&format!("cpu  10 0 10 {} 0 0 0 {steal} 5 0\n", 180 - steal)).unwrap();
        assert_eq!(sentence("api", &before, &stolen(2)), None);
        assert!(sentence("api", &before, &stolen(3)).unwrap().contains("3.0 %"));
    }
}

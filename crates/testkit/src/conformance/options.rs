//! The command line of `cargo xtask conformance`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::suite::Selection;

pub const USAGE: &str = "usage: cargo xtask conformance [--area NAME | --file FILE | --focus REGEXP | --rerun-failed]
           [--slow] [--jobs N] [--timeout MINUTES] [--release]
Runs Kubernetes' own conformance suite against a cluster in network namespaces.
  --area NAME        the tests of one area: api-machinery, node, storage, workloads, network, auth, kubectl, scheduling
  --file FILE        the tests of one of upstream's files, such as common/storage/secrets_volume.go
  --focus REGEXP     the tests whose names match
  --rerun-failed     the tests that failed in the last report
  --slow             also those that wait for minutes by design
  --jobs N           tests side by side [default: 4]
  --timeout MINUTES  when a run is ended, with what did not run yet reported as such [default: 240]
  --release          against a release build
Results: target/conformance/report.json, junit.xml, failed/, server.log";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `None`: those that failed in the last report.
    pub selection: Option<Selection>,
    pub slow: bool,
    pub jobs: usize,
    pub timeout: Duration,
}

/// Reads the arguments after the command's name. `None`: help is asked for.
///
/// # Errors
/// Says what is wrong with which argument.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Options>> {
    let mut options = Options {
        selection: Some(Selection::Everything),
        slow: false,
        jobs: 4,
        timeout: Duration::from_secs(240 * 60),
    };
    let mut chosen = None;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        let selection = match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--slow" => {
                options.slow = true;
                continue;
            }
            "--jobs" => {
                options.jobs = number(&argument, &value()?)?;
                continue;
            }
            "--timeout" => {
                options.timeout = Duration::from_secs(60 * number(&argument, &value()?)? as u64);
                continue;
            }
            "--area" => Some(Selection::Area(value()?)),
            "--file" => Some(Selection::File(value()?)),
            "--focus" => Some(Selection::Focus(value()?)),
            "--rerun-failed" => None,
            other => bail!("unknown argument {other:?}\n{USAGE}"),
        };
        if let Some(earlier) = chosen.replace(argument) {
            bail!("{earlier} and another choice of tests exclude each other");
        }
        options.selection = selection;
    }
    Ok(Some(options))
}

fn number(argument: &str, value: &str) -> Result<usize> {
    let number = value.parse().with_context(|| format!("{argument} {value}: not a number"))?;
    ensure!((1..=1440).contains(&number), "{argument} {value}: must be between 1 and 1440");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Options>> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn reads_a_choice_and_the_rest() {
        let options = parsed("--area node --slow --jobs 2 --timeout 5").unwrap().unwrap();
        assert_eq!(options.selection, Some(Selection::Area("node".into())));
        assert_eq!((options.slow, options.jobs, options.timeout.as_secs()), (true, 2, 300));
        assert_eq!(parsed("--rerun-failed").unwrap().unwrap().selection, None);
        assert_eq!(parsed("").unwrap().unwrap().selection, Some(Selection::Everything));
        assert_eq!(parsed("--help").unwrap(), None);
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        let refused = |line| format!("{:#}", parsed(line).unwrap_err());
        assert!(refused("--area node --file x").contains("exclude each other"));
        assert!(refused("--fast").contains("--fast"));
        assert!(refused("--jobs 0").contains("between"));
        assert!(refused("--jobs x").contains("not a number"));
        assert!(refused("--file").contains("needs a value"));
    }
}

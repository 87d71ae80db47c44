//! What the suite prints while it runs, read line by line: which test just ended, how, and how long it took.
//!
//! Source: ginkgo `reporters/default_reporter.go`, verbose, without colour. Side by side a test's block is printed whole when it
//! ends, its mark before its name; one after the other the name comes first.

use std::time::Duration;

use super::outcome::{Ended, State};
use super::suite::Test;

pub struct Progress<'a> {
    tests: &'a [Test],
    name: Option<&'a str>,
    mark: Option<(State, Duration)>,
    block: String,
}

impl<'a> Progress<'a> {
    /// `tests` are those that may be named.
    pub fn new(tests: &'a [Test]) -> Self {
        Self { tests, name: None, mark: None, block: String::new() }
    }

    /// Takes the next line; a test when what is printed of it ended with it.
    pub fn line(&mut self, line: &str) -> Option<Ended> {
        if line.starts_with("----------") {
            let ended = self.name.zip(self.mark);
            // In a run of one process a block may be divided by progress reports: what is begun stays until it has its mark.
            if ended.is_none() && self.name.is_some() {
                return None;
            }
            let output = std::mem::take(&mut self.block);
            (self.name, self.mark) = (None, None);
            return ended.map(|(name, (state, took))| Ended { name: name.to_owned(), state, took, output });
        }
        if let Some(mark) = mark(line) {
            self.mark = Some(mark);
        } else if self.name.is_none() && (line.starts_with("[sig-") || line.starts_with("TOP-LEVEL [")) {
            self.name = self.named(line);
        }
        self.block.push_str(line);
        self.block.push('\n');
        None
    }

    /// The test that a line names, which may say in the midst of the name in which of its parts it failed, and its labels after it.
    fn named(&self, line: &str) -> Option<&'a str> {
        let mut line = line.to_owned();
        for part in ["It", "BeforeEach", "JustBeforeEach", "AfterEach", "JustAfterEach", "DeferCleanup (Each)"] {
            line = line.replace(&format!("TOP-LEVEL [{part}] "), "").replace(&format!(" [{part}]"), "");
        }
        let named = self.tests.iter().map(|test| test.name.as_str()).filter(|name| line.starts_with(name));
        named.max_by_key(|name| name.len())
    }
}

/// `• [5.203 seconds]`, `• [FAILED] [1.000 seconds]`, `S [SKIPPED] [0.100 seconds]`.
fn mark(line: &str) -> Option<(State, Duration)> {
    let (mark, rest) = line.split_once(' ')?;
    let mut words = rest.strip_prefix('[')?.strip_suffix(']')?.split("] [");
    let seconds = |word: &str| Some(Duration::from_secs_f64(word.strip_suffix(" seconds")?.parse().ok()?));
    let first = words.next()?;
    let second = words.next();
    let took = seconds(second.unwrap_or(first))?;
    let state = match (mark, second) {
        ("•", None) => State::Passed,
        ("S", Some(_)) => State::Skipped,
        ("•", Some(_)) => State::Failed,
        _ => return None,
    };
    Some((state, took))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(printed: &str, expected: &[(&str, State, u64)]) {
        let named = |name: &str| Test { name: name.into(), file: String::new(), area: "node" };
        let tests = [named("[sig-node] Pods should run [Conformance]"), named("[sig-node] Pods should run")];
        let mut progress = Progress::new(&tests);
        let ended: Vec<_> = printed.lines().filter_map(|line| progress.line(line)).collect();
        let ended: Vec<_> = ended.iter().map(|e| (e.name.as_str(), e.state, e.took.as_secs())).collect();
        assert_eq!(ended, expected);
    }

    #[test]
    fn side_by_side_the_mark_comes_first() {
        check(
            "------------------------------
• [5.203 seconds]
[sig-node] Pods should run [Conformance] [sig-node, Conformance]
/src/pods.go:1

  Timeline >>
  [sig-node] Pods should run
------------------------------
• [FAILED] [300.100 seconds]
[sig-node] Pods [It] should run
------------------------------
S [SKIPPED] [0.100 seconds]
[sig-node] Pods [BeforeEach] should run [Conformance]
------------------------------
[ReportAfterSuite] PASSED [0.100 seconds]
[ReportAfterSuite] something
",
            &[
                ("[sig-node] Pods should run [Conformance]", State::Passed, 5),
                ("[sig-node] Pods should run", State::Failed, 300),
                ("[sig-node] Pods should run [Conformance]", State::Skipped, 0),
            ],
        );
    }

    #[test]
    fn one_after_the_other_the_name_comes_first() {
        check(
            "------------------------------
[sig-node] Pods should run [Conformance] [sig-node]
  STEP: x
------------------------------
  a progress report
------------------------------
• [2.000 seconds]
------------------------------
[sig-node] Pods should run
• [FAILED] [3.000 seconds]
[sig-node] Pods [It] should run
------------------------------
",
            &[
                ("[sig-node] Pods should run [Conformance]", State::Passed, 2),
                ("[sig-node] Pods should run", State::Failed, 3),
            ],
        );
    }

    #[test]
    fn the_last_message_of_a_failure_is_found() {
        let output = "• [FAILED] [3.000 seconds]
[sig-node] Pods [It] should run

  Timeline >>
  [FAILED] first
  In [It] at: x/pods.go:1 @ 11/26/26 22:19:12.76
  << Timeline

  [FAILED] the pod
      did not run
  In [It] at: x/pods.go:7 @ 11/26/26 22:19:12.76
"
        .to_owned();
        let ended = Ended { name: String::new(), state: State::Failed, took: Duration::ZERO, output };
        assert_eq!(ended.failure(), ("the pod\n      did not run".to_owned(), "x/pods.go:7".to_owned()));
    }
}

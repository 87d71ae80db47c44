//! What became of each test, read from the suite's own report, and the reason of a failure in one line.
//!
//! Source: ginkgo `types/types.go`, `SpecReport` and `Failure`; gomega's `format` for what messages look like.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::suite::Test;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Passed,
    Failed,
    /// By its own decision.
    Skipped,
    NotRun,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::NotRun => "not run",
        }
    }
}

/// A test that ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub name: String,
    pub state: State,
    pub took: Duration,
    /// Everything printed of it.
    pub output: String,
}

impl Ended {
    /// Of a failed test: the message that is printed last, and the place of the failure.
    pub fn failure(&self) -> (String, String) {
        let message =
            self.output.rsplit_once("\n  [").and_then(|(_, last)| last.split_once("] ")).map(|(_, text)| text);
        let (message, place) = message.unwrap_or_default().split_once("\n  In [").unwrap_or_default();
        let place = place.split_once(" at: ").map_or("", |(_, place)| place);
        (message.to_owned(), place.split(" @ ").next().unwrap_or_default().to_owned())
    }
}

/// One test and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub test: Test,
    pub state: State,
    pub took: Duration,
    /// Begin and end as RFC 3339 in UTC; empty when it did not run.
    pub times: (String, String),
    /// Of a failure or a skip: the whole message.
    pub message: String,
    /// Where it failed: `FILE:LINE`.
    pub place: String,
    /// What the test printed.
    pub output: String,
}

impl Outcome {
    fn new(test: &Test, state: State) -> Self {
        let empty = String::new;
        Self {
            test: test.clone(),
            state,
            took: Duration::ZERO,
            times: (empty(), empty()),
            message: empty(),
            place: empty(),
            output: empty(),
        }
    }

    /// The namespaces that the test made.
    pub fn namespaces(&self) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for begin in ["Destroying namespace \"", "namespace: ", "Waiting for namespace ", "--namespace="] {
            for (at, _) in self.output.match_indices(begin) {
                let rest = &self.output[at + begin.len()..];
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(rest.len());
                // Those that the framework makes end in a number.
                let name = &rest[..end];
                let numbered = name.rsplit_once('-').is_some_and(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
                if numbered && !found.contains(&name) {
                    found.push(name);
                }
            }
        }
        found
    }

    /// Why it failed, in one line.
    pub fn reason(&self) -> String {
        one_line(&self.message)
    }
}

/// What the suite reported as a whole.
#[derive(Debug, Default)]
pub struct Reported {
    pub outcomes: Vec<Outcome>,
    /// What failed outside of every test, such as the preparations.
    pub suite_failures: Vec<String>,
}

/// Reads the suite's report and keeps what is said of `tests`. Those of which it says nothing are taken from `seen`, what was
/// printed on the way.
///
/// # Errors
/// When the report is not ginkgo's.
pub fn read(report: &str, tests: &[Test], seen: &[Ended]) -> Result<Reported> {
    let by_name: BTreeMap<&str, &Test> = tests.iter().map(|test| (test.name.as_str(), test)).collect();
    let mut found: BTreeMap<&str, Outcome> = BTreeMap::new();
    let mut suite_failures = Vec::new();
    if !report.is_empty() {
        let report: Value = serde_json::from_str(report).context("the suite's report is not JSON")?;
        // It is an empty list when one of the suite's processes died, as it does when a test fails beside its goroutine.
        for spec in report[0]["SpecReports"].as_array().into_iter().flatten() {
            let name = name_of(spec);
            if spec["LeafNodeType"] != "It" {
                if is_failure(spec) && !spec["LeafNodeType"].as_str().is_some_and(|kind| kind.starts_with("Report")) {
                    suite_failures.push(format!("{}: {}", spec["LeafNodeType"], one_line(&message(spec))));
                }
            } else if let Some((name, test)) = by_name.get_key_value(name.as_str()) {
                found.insert(name, outcome(test, spec));
            }
        }
    }
    for ended in seen {
        if let Some((name, test)) = by_name.get_key_value(ended.name.as_str()) {
            found.entry(name).or_insert_with(|| {
                let (message, place) = ended.failure();
                let output = ended.output.clone();
                Outcome {
                    took: ended.took,
                    message,
                    place: below_e2e(&place),
                    output,
                    ..Outcome::new(test, ended.state)
                }
            });
        }
    }
    let of = |test: &Test| found.remove(test.name.as_str()).unwrap_or_else(|| Outcome::new(test, State::NotRun));
    Ok(Reported { outcomes: tests.iter().map(of).collect(), suite_failures })
}

fn name_of(spec: &Value) -> String {
    let texts = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten().chain([&spec["LeafNodeText"]]);
    texts.filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

fn is_failure(spec: &Value) -> bool {
    matches!(spec["State"].as_str(), Some("failed" | "panicked" | "aborted" | "timedout" | "interrupted"))
}

fn message(spec: &Value) -> String {
    let failure = &spec["Failure"];
    let panic = failure["ForwardedPanic"].as_str().unwrap_or_default();
    let message = failure["Message"].as_str().unwrap_or_default();
    if panic.is_empty() { message.to_owned() } else { format!("{message}: {panic}") }
}

fn outcome(test: &Test, spec: &Value) -> Outcome {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let message = message(spec);
    let state = match spec["State"].as_str() {
        Some("passed") => State::Passed,
        // A test that waited for its turn when the run was ended is skipped without a word.
        Some("skipped" | "pending") if !message.is_empty() => State::Skipped,
        _ if is_failure(spec) => State::Failed,
        _ => State::NotRun,
    };
    let location = &spec["Failure"]["Location"];
    let file = below_e2e(location["FileName"].as_str().unwrap_or_default());
    Outcome {
        test: test.clone(),
        state,
        took: Duration::from_nanos(spec["RunTime"].as_u64().unwrap_or_default()),
        times: (text("StartTime"), text("EndTime")),
        place: if file.is_empty() { String::new() } else { format!("{file}:{}", location["LineNumber"]) },
        output: format!("{}{}", text("CapturedGinkgoWriterOutput"), text("CapturedStdOutErr")),
        message,
    }
}

/// A path of the suite without what leads to its directory.
fn below_e2e(path: &str) -> String {
    path.rsplit_once("/test/e2e/").map_or(path, |(_, file)| file).to_owned()
}

/// How long a reason may be, and a line of it: what was found instead of what was expected can be pages long.
const REASON: usize = 600;
const LINE: usize = 200;

/// What a message says, without what gomega and Go add: types and addresses of values, and the fields of error structures.
pub fn one_line(message: &str) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut depth = 0_i32;
    for line in message.lines() {
        let trimmed = line.trim();
        let opened = trimmed.matches(['{', '[']).count() as i32 - trimmed.matches(['}', ']']).count() as i32;
        // A structure printed over several lines repeats what its error says.
        let inside = depth > 0 || (opened > 0 && trimmed.ends_with(['{', '[']));
        depth = (depth + opened).max(0);
        let noise = inside
            || trimmed.starts_with(['{', '}', ']'])
            || ["occurred", "Unexpected error:", "not to have occurred"].contains(&trimmed);
        // `<int>: 1`, and `<*errors.StatusError | 0xc0008>:` with the text on the next line.
        let value =
            trimmed.strip_prefix('<').and_then(|typed| Some(typed.split_once(">:")?.1.trim())).unwrap_or(trimmed);
        let value = shortened(&without_places(value), LINE);
        if !noise && !value.is_empty() && kept.last() != Some(&value) {
            kept.push(value);
        }
    }
    let mut line = kept.join(" ");
    if line.is_empty() {
        line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    shortened(&line, REASON)
}

/// A line without what differs from machine to machine: where a program lies, and how it finds the cluster.
fn without_places(line: &str) -> String {
    let word = |word: &str| match word.rsplit_once("/target/conformance/bin/") {
        Some((_, program)) => Some(program.to_owned()),
        None if word.starts_with("--kubeconfig=") || word.starts_with("--server=") => None,
        None => Some(word.to_owned()),
    };
    line.split(' ').filter_map(word).collect::<Vec<_>>().join(" ")
}

/// At most `limit` bytes of a text: its begin and its end.
fn shortened(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let head = (0..=limit / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let tail = (text.len() - limit / 2..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    format!("{} … {}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str) -> Test {
        Test { name: name.into(), file: "common/node/pods.go".into(), area: "node" }
    }

    const REPORT: &str = r#"[{"SpecReports": [
      {"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed", "Failure": {"Message": "no nodes"}},
      {"LeafNodeType": "ReportAfterSuite", "State": "failed", "Failure": {"Message": "x"}},
      {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "should run", "LeafNodeType": "It",
       "State": "failed", "RunTime": 2500000000, "StartTime": "2026-01-01T00:00:00.1Z", "EndTime": "2026-01-01T00:00:02.6Z",
       "CapturedGinkgoWriterOutput": "STEP: Destroying namespace \"pods-123\" for this suite.\n--namespace=pods-123 --namespace=kube-system",
       "Failure": {"Message": "timed out", "Location": {"FileName": "/x/test/e2e/common/node/pods.go", "LineNumber": 7}}},
      {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "should wait", "LeafNodeType": "It", "State": "skipped"},
      {"ContainerHierarchyTexts": null, "LeafNodeText": "should skip", "LeafNodeType": "It", "State": "skipped",
       "Failure": {"Message": "needs two nodes"}},
      {"ContainerHierarchyTexts": ["other"], "LeafNodeText": "test", "LeafNodeType": "It", "State": "passed"}]}]"#;

    #[test]
    fn reads_what_is_said_of_the_tests_asked_for() {
        let tests = ["[sig-node] Pods should run", "[sig-node] Pods should wait", "should skip", "unheard of", "seen"];
        let tests: Vec<_> = tests.map(test).into();
        let seen =
            Ended { name: "seen".into(), state: State::Passed, took: Duration::from_secs(1), output: String::new() };
        let reported = read(REPORT, &tests, &[seen]).unwrap();
        let states: Vec<_> = reported.outcomes.iter().map(|outcome| outcome.state.word()).collect();
        assert_eq!(states, ["failed", "not run", "skipped", "not run", "passed"]);
        let failed = &reported.outcomes[0];
        assert_eq!((failed.place.as_str(), failed.took.as_millis()), ("common/node/pods.go:7", 2500));
        assert_eq!(failed.namespaces(), ["pods-123"]);
        assert_eq!(reported.suite_failures, ["\"SynchronizedBeforeSuite\": no nodes"]);
    }

    #[test]
    fn a_reason_is_one_line_without_structures() {
        let message = "creating: unexpected error when waiting:
    <*errors.StatusError | 0xc0008>:
    the server could not find the requested resource
    {
        ErrStatus: {
            Code: 404,
        },
    }
occurred";
        assert_eq!(
            one_line(message),
            "creating: unexpected error when waiting: the server could not find the requested resource"
        );
        assert_eq!(one_line("Expected\n    <int>: 1\nto equal\n    <int>: 2"), "Expected 1 to equal 2");
        let kubectl =
            "error running /w/target/conformance/bin/kubectl --server=https://1.2.3.4 --kubeconfig=/w/x get rc:";
        assert_eq!(one_line(kubectl), "error running kubectl get rc:");
        let long = format!("begin {} end", "x".repeat(1000));
        let line = one_line(&long);
        assert!(line.starts_with("begin x") && line.ends_with("x end") && line.len() < 210, "{line}");
    }
}

//! What a run leaves behind: a table by area, the report as JSON, a file for each failure, and the page of the documentation.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::outcome::{Outcome, State};
use super::suite::{AREAS, CONTENT_TYPE};
use crate::upstream::RELEASE;

/// What is known of one test beyond its outcome.
#[derive(Clone, Debug)]
pub struct Judged {
    pub outcome: Outcome,
    /// States and events of its objects that may explain a failure.
    pub causes: Vec<String>,
    /// Requests that the server refused.
    pub refused: Vec<String>,
    /// What the server logged meanwhile about its objects, and its warnings.
    pub log: String,
    /// The last state of its objects.
    pub objects: String,
}

/// The circumstances of a run.
#[derive(Clone, Debug)]
pub struct Circumstances {
    pub commit: String,
    /// RFC 3339.
    pub date: String,
    pub took: Duration,
    pub jobs: usize,
    pub nodes: usize,
    pub release_build: bool,
}

/// Numbers of tests by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
    pub not_run: usize,
}

impl Count {
    pub fn of<'a>(tests: impl Iterator<Item = &'a Judged>) -> Self {
        let mut count = Self::default();
        for test in tests {
            match test.outcome.state {
                State::Passed => count.passed += 1,
                State::Failed => count.failed += 1,
                State::Skipped => count.skipped += 1,
                State::NotRun => count.not_run += 1,
            }
        }
        count
    }
}

/// The areas of a run with their counts; what was not asked for counts as not run.
pub fn by_area(tests: &[Judged]) -> Vec<(&'static str, usize, Count)> {
    let of = |area: &'static str, total: usize| {
        let mut count = Count::of(tests.iter().filter(|test| test.outcome.test.area == area));
        count.not_run = total - (count.passed + count.failed + count.skipped).min(total);
        (area, total, count)
    };
    AREAS.iter().map(|area| of(area.name, area.total)).collect()
}

/// The table as it is printed.
pub fn table(tests: &[Judged]) -> String {
    let mut text =
        format!("{:14}{:>7}{:>8}{:>8}{:>9}{:>9}\n", "area", "total", "passed", "failed", "skipped", "not run");
    let mut sum = (0, Count::default());
    for (area, total, count) in by_area(tests) {
        row(&mut text, area, total, count);
        sum.0 += total;
        sum.1.passed += count.passed;
        sum.1.failed += count.failed;
        sum.1.skipped += count.skipped;
        sum.1.not_run += count.not_run;
    }
    row(&mut text, "all", sum.0, sum.1);
    text
}

fn row(text: &mut String, area: &str, total: usize, count: Count) {
    let Count { passed, failed, skipped, not_run } = count;
    writeln!(text, "{area:14}{total:>7}{passed:>8}{failed:>8}{skipped:>9}{not_run:>9}").expect("a String takes all");
}

/// The report as JSON.
pub fn to_json(circumstances: &Circumstances, tests: &[Judged]) -> Value {
    let area = |(name, total, count): (&str, usize, Count)| {
        json!({
            "name": name, "total": total, "passed": count.passed, "failed": count.failed, "skipped": count.skipped,
            "notRun": count.not_run,
        })
    };
    let test = |judged: &Judged| {
        let outcome = &judged.outcome;
        let mut test = json!({
            "name": outcome.test.name, "area": outcome.test.area, "file": outcome.test.file, "state": outcome.state.word(),
            "seconds": outcome.took.as_secs_f64(),
        });
        if outcome.state == State::Failed {
            test["reason"] = outcome.reason().into();
            test["place"] = outcome.place.clone().into();
            test["causes"] = judged.causes.clone().into();
            test["refused"] = judged.refused.clone().into();
            test["details"] = format!("failed/{}.txt", slug(&outcome.test.name)).into();
        }
        test
    };
    let count = Count::of(tests.iter());
    json!({
        "suite": RELEASE, "commit": circumstances.commit, "date": circumstances.date,
        "seconds": circumstances.took.as_secs_f64(), "jobs": circumstances.jobs, "nodes": circumstances.nodes,
        "releaseBuild": circumstances.release_build, "contentType": CONTENT_TYPE,
        "passed": count.passed, "failed": count.failed, "skipped": count.skipped, "notRun": count.not_run,
        "areas": by_area(tests).into_iter().map(area).collect::<Vec<_>>(),
        "tests": tests.iter().map(test).collect::<Vec<_>>(),
    })
}

/// Writes a file for each failed test, and removes those of earlier runs.
///
/// # Errors
/// When a file cannot be written.
pub fn write_failures(directory: &Path, tests: &[Judged]) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("could not remove {}", directory.display()))?;
    }
    fs::create_dir_all(directory)?;
    for judged in tests.iter().filter(|judged| judged.outcome.state == State::Failed) {
        let path = directory.join(format!("{}.txt", slug(&judged.outcome.test.name)));
        fs::write(&path, details(judged)).with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(())
}

fn details(judged: &Judged) -> String {
    let outcome = &judged.outcome;
    format!(
        "{name}\n{file}, failed at {place} after {seconds:.1} s ({from} to {to})\n\n{reason}\n\n== what its objects say\n{causes}\n\n\
         == what the server refused\n{refused}\n\n== the message\n{message}\n\n== the server's log meanwhile\n{log}\n\n\
         == its objects at last\n{objects}\n\n== what it printed\n{output}\n",
        name = outcome.test.name,
        file = outcome.test.file,
        place = outcome.place,
        seconds = outcome.took.as_secs_f64(),
        from = outcome.times.0,
        to = outcome.times.1,
        reason = outcome.reason(),
        causes = judged.causes.join("\n"),
        refused = judged.refused.join("\n"),
        message = outcome.message,
        log = judged.log,
        objects = judged.objects,
        output = outcome.output,
    )
}

/// A name for a file: letters and digits of a test's name.
fn slug(name: &str) -> String {
    let mut slug = String::new();
    for character in name.replace("[Conformance]", "").chars() {
        if character.is_ascii_alphanumeric() {
            slug.push(character.to_ascii_lowercase());
        } else if !slug.ends_with('-') && !slug.is_empty() {
            slug.push('-');
        }
    }
    slug.truncate(180);
    slug.trim_end_matches('-').to_owned()
}

/// What is printed of each failed test: its name, why, and what may explain it.
pub fn failures(tests: &[Judged], causes: usize) -> String {
    let mut text = String::new();
    for judged in tests.iter().filter(|judged| judged.outcome.state == State::Failed) {
        let outcome = &judged.outcome;
        let mut line = |words: &str| writeln!(text, "{words}").expect("a String takes all");
        line(&format!("{} ({})", outcome.test.name, outcome.test.file));
        line(&format!("    {}: {}", outcome.place, outcome.reason()));
        judged.causes.iter().take(causes).for_each(|cause| line(&format!("    {}", super::outcome::one_line(cause))));
        telling(judged).take(causes).for_each(|refused| line(&format!("    refused: {refused}")));
    }
    text
}

/// The refusals that may explain a failure: what was asked for in vain again and again only when there is nothing else.
fn telling(judged: &Judged) -> impl Iterator<Item = &String> {
    let is_wait = |refused: &str| refused.starts_with("404 get");
    let only_waits = judged.causes.is_empty() && judged.refused.iter().all(|refused| is_wait(refused));
    judged.refused.iter().filter(move |refused| !is_wait(refused) || (only_waits && refused.ends_with("×)")))
}

/// The log's lines between two times that name one of `concerned` (namespaces, uids) or are warnings, at most `most` of them, the
/// last ones.
pub fn log_between(log: &str, times: &(String, String), concerned: &[&str], most: usize) -> String {
    let (from, to) = (seconds_of(&times.0), seconds_of(&times.1));
    if from.is_empty() {
        return String::new();
    }
    let is_kept = |line: &&str| {
        let time = seconds_of(line);
        time >= from
            && time <= to
            && (line.contains(" WARN ") || line.contains(" ERROR ") || concerned.iter().any(|name| line.contains(name)))
    };
    let lines: Vec<&str> = log.lines().filter(is_kept).collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

/// `2026-01-01T00:00:00` of a line that begins with a time.
fn seconds_of(line: &str) -> &str {
    line.get(..19).unwrap_or_default()
}

/// The page of the documentation after a whole run.
pub fn page(circumstances: &Circumstances, tests: &[Judged]) -> String {
    let Circumstances { commit, date, took, jobs, nodes, release_build } = circumstances;
    let count = Count::of(tests.iter());
    let total: usize = AREAS.iter().map(|area| area.total).sum();
    let mut page = format!(
        "# Conformance\n\nWritten by `cargo xtask conformance`. Suite {RELEASE}, commit {commit}, {date}; {minutes:.0} min with {jobs} jobs on \
         {nodes} node{s}, {build} build, typed clients speak {content}.\n\n**{passed} of {total} passed**, {failed} failed.\n\n\
         | area | total | passed | failed | skipped | not run |\n|---|---|---|---|---|---|\n",
        minutes = took.as_secs_f64() / 60.0,
        s = if *nodes == 1 { "" } else { "s" },
        build = if *release_build { "release" } else { "debug" },
        content = CONTENT_TYPE,
        passed = count.passed,
        failed = count.failed,
    );
    for (area, total, Count { passed, failed, skipped, not_run }) in by_area(tests) {
        writeln!(page, "| {area} | {total} | {passed} | {failed} | {skipped} | {not_run} |")
            .expect("a String takes all");
    }
    page.push_str("\n## Failed\n\n");
    for judged in tests.iter().filter(|judged| judged.outcome.state == State::Failed) {
        let reason = judged.outcome.reason().replace('|', "\\|").replace(['<', '>'], "");
        writeln!(page, "- `{}`: {reason}", judged.outcome.test.name).expect("a String takes all");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::super::suite::Test;
    use super::*;

    fn judged(name: &str, area: &'static str, state: State) -> Judged {
        let test = Test { name: name.into(), file: "x.go".into(), area };
        let outcome = Outcome {
            test,
            state,
            took: Duration::from_secs(2),
            times: ("2026-01-01T00:00:01Z".into(), "2026-01-01T00:00:03Z".into()),
            message: "timed out".into(),
            place: "x.go:7".into(),
            output: "printed".into(),
        };
        let (causes, refused) =
            (vec!["pods/a c: ErrImagePull".into()], vec!["404 get /x".into(), "422 create /x".into()]);
        Judged { outcome, causes, refused, log: "logged".into(), objects: "{}".into() }
    }

    fn some() -> Vec<Judged> {
        vec![
            judged("[sig-node] a [Conformance]", "node", State::Passed),
            judged("[sig-node] b [Conformance]", "node", State::Failed),
            judged("[sig-auth] c", "auth", State::NotRun),
        ]
    }

    fn circumstances() -> Circumstances {
        Circumstances {
            commit: "abc".into(),
            date: "2026-01-01T00:00:00Z".into(),
            took: Duration::from_secs(90),
            jobs: 4,
            nodes: 1,
            release_build: false,
        }
    }

    #[test]
    fn the_table_counts_by_area() {
        let table = table(&some());
        assert!(table.contains("node               99       1       1        0       97\n"), "{table}");
        assert!(table.contains("all               462       1       1        0      460\n"), "{table}");
    }

    #[test]
    fn the_report_and_the_page_name_failures_with_reasons() {
        let report = to_json(&circumstances(), &some());
        assert_eq!((report["passed"].as_u64(), report["failed"].as_u64()), (Some(1), Some(1)));
        assert_eq!(report["tests"][1]["reason"], "timed out");
        assert_eq!(report["tests"][1]["details"], "failed/sig-node-b.txt");
        let page = page(&circumstances(), &some());
        assert!(page.contains("**1 of 462 passed**, 1 failed."), "{page}");
        assert!(page.contains("- `[sig-node] b [Conformance]`: timed out\n"), "{page}");
        let told = failures(&some(), 2);
        assert!(
            told.contains("    x.go:7: timed out\n    pods/a c: ErrImagePull\n    refused: 422 create /x\n"),
            "{told}"
        );
    }

    #[test]
    fn each_failure_has_a_file() {
        let dir = std::env::temp_dir().join(format!("coracle-failed-{}", std::process::id()));
        write_failures(&dir, &some()).unwrap();
        let text = fs::read_to_string(dir.join("sig-node-b.txt")).unwrap();
        for expected in ["x.go:7 after 2.0 s", "ErrImagePull", "422 create /x", "logged", "printed"] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn of_the_log_only_what_concerns_a_test_is_kept() {
        let log = "2026-01-01T00:00:00.9Z  WARN early
2026-01-01T00:00:01.5Z  INFO of pods-1
2026-01-01T00:00:02.5Z  INFO of others
2026-01-01T00:00:02.6Z  WARN of others
2026-01-01T00:00:04.0Z ERROR late";
        let times = ("2026-01-01T00:00:01.2Z".to_owned(), "2026-01-01T00:00:03.0Z".to_owned());
        let kept = log_between(log, &times, &["pods-1"], 9);
        assert_eq!(kept, "2026-01-01T00:00:01.5Z  INFO of pods-1\n2026-01-01T00:00:02.6Z  WARN of others");
        assert_eq!(log_between(log, &times, &["pods-1"], 1).lines().count(), 1);
        assert!(log_between(log, &Default::default(), &[], 9).is_empty());
    }
}

//! Which tests there are, the area to which each belongs, and which of them a run is about.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// A part of the suite as the table shows it.
#[derive(Debug, PartialEq, Eq)]
pub struct Area {
    pub name: &'static str,
    /// How many tests it has in the release that is run.
    pub total: usize,
    /// Directories below `test/e2e`.
    directories: &'static [&'static str],
}

/// All areas, largest first.
pub const AREAS: &[Area] = &[
    Area {
        name: "api-machinery",
        total: 110,
        directories: &["apimachinery/", "dra/", "instrumentation/", "architecture/"],
    },
    Area { name: "node", total: 99, directories: &["common/node/", "node/"] },
    Area { name: "storage", total: 91, directories: &["common/storage/", "storage/"] },
    Area { name: "workloads", total: 60, directories: &["apps/"] },
    Area { name: "network", total: 47, directories: &["common/network/", "network/"] },
    Area { name: "auth", total: 27, directories: &["auth/"] },
    Area { name: "kubectl", total: 17, directories: &["kubectl/"] },
    Area { name: "scheduling", total: 11, directories: &["scheduling/"] },
];

/// Parts of names of tests that wait for minutes by design, beside those that upstream marks `[Slow]`: CronJobs that tick each
/// minute, probes watched for four minutes or five restarts, and tests that first wait a minute for pods of kube-proxy.
const SLOW: &[&str] = &[
    "[Slow]",
    "CronJob should schedule multiple jobs concurrently",
    "CronJob should replace jobs when ReplaceConcurrent",
    "Probing container should *not* be restarted",
    "Probing container should have monotonically increasing restart count",
    "[sig-scheduling] SchedulerPreemption",
    "[sig-node] NoExecuteTaintManager",
];

/// Tests that ask for a second node.
pub const TWO_NODES: &[&str] = &[
    "[sig-architecture] Conformance Tests should have at least two untainted nodes [Conformance]",
    "[sig-apps] Daemon set should rollback without unnecessary restarts [Conformance] [Serial]",
];

/// What typed clients speak: coracle does not serve protobuf yet. The dynamic clients speak JSON anyway.
pub const CONTENT_TYPE: &str = "application/json";

/// One test of the suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The whole name, as the suite prints it.
    pub name: String,
    /// Below `test/e2e`.
    pub file: String,
    pub area: &'static str,
}

impl Test {
    pub fn is_slow(&self) -> bool {
        SLOW.iter().any(|part| self.name.contains(part))
    }
}

/// What a run is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    Everything,
    Area(String),
    File(String),
    /// A regular expression on names.
    Focus(String),
    /// Whole names.
    Names(BTreeSet<String>),
}

/// The tests of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    pub run: Vec<Test>,
    /// Asked for, but left for `--slow`.
    pub left: Vec<Test>,
}

/// Reads upstream's list of conformance tests.
///
/// # Errors
/// When the list is not what this release's is: another form, a directory of no area, other totals.
pub fn parse(list: &str) -> Result<Vec<Test>> {
    let list = api::yaml::parse(list).map_err(|error| anyhow::anyhow!("the list of conformance tests: {error}"))?;
    let mut tests = Vec::new();
    for entry in list.as_array().context("the list of conformance tests is not a list")? {
        let text = |field: &str| -> Result<String> {
            Ok(entry[field].as_str().with_context(|| format!("a conformance test has no {field}"))?.to_owned())
        };
        let (name, file) = (text("codename")?, text("file")?);
        let file = file.strip_prefix("test/e2e/").unwrap_or(&file).to_owned();
        let area = area_of(&file).with_context(|| format!("{file} belongs to no area"))?.name;
        tests.push(Test { name, file, area });
    }
    tests.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
    Ok(tests)
}

/// Checks that a list is the one that the table was made for.
///
/// # Errors
/// Names the first area that has another number of tests.
pub fn check_totals(tests: &[Test]) -> Result<()> {
    for area in AREAS {
        let found = tests.iter().filter(|test| test.area == area.name).count();
        ensure!(found == area.total, "{} has {found} conformance tests, not {}", area.name, area.total);
    }
    Ok(())
}

fn area_of(file: &str) -> Option<&'static Area> {
    AREAS.iter().find(|area| area.directories.iter().any(|directory| file.starts_with(directory)))
}

/// The tests that `selection` means; those with long waits only with `slow`, or when they were named one by one.
///
/// # Errors
/// When it means none; the message lists what there is.
pub fn choose(tests: &[Test], selection: &Selection, slow: bool) -> Result<Chosen> {
    let chosen: Vec<&Test> = match selection {
        Selection::Everything => tests.iter().collect(),
        Selection::Area(name) => {
            let known: Vec<_> = AREAS.iter().map(|area| area.name).collect();
            ensure!(known.contains(&name.as_str()), "no area is called {name:?}; there are {}", known.join(", "));
            tests.iter().filter(|test| test.area == name).collect()
        }
        Selection::File(name) => of_file(tests, name)?,
        Selection::Focus(pattern) => {
            let pattern = regex_lite::Regex::new(pattern).with_context(|| format!("--focus {pattern:?}"))?;
            let found: Vec<_> = tests.iter().filter(|test| pattern.is_match(&test.name)).collect();
            ensure!(!found.is_empty(), "no conformance test matches {:?}", pattern.as_str());
            found
        }
        Selection::Names(names) => tests.iter().filter(|test| names.contains(&test.name)).collect(),
    };
    let slow = slow || matches!(selection, Selection::Names(_));
    let (left, run) = chosen.into_iter().cloned().partition(|test: &Test| !slow && test.is_slow());
    Ok(Chosen { run, left })
}

/// `name` may lack the directories, `test/e2e` and the extension.
fn of_file<'a>(tests: &'a [Test], name: &str) -> Result<Vec<&'a Test>> {
    let whole = name.strip_prefix("test/e2e/");
    let wanted = whole.unwrap_or(name);
    let wanted = format!("{}.go", wanted.strip_suffix(".go").unwrap_or(wanted));
    let ends_with_it = |file: &str| file.strip_suffix(&wanted).is_some_and(|rest| rest.ends_with('/'));
    let is_it = |file: &str| file == wanted || (whole.is_none() && ends_with_it(file));
    let found: Vec<_> = tests.iter().filter(|test| is_it(&test.file)).collect();
    if found.is_empty() {
        let known: BTreeSet<&str> = tests.iter().map(|test| test.file.as_str()).collect();
        let known: Vec<&str> = known.into_iter().collect();
        bail!("no conformance test lies in {name:?}; the files are\n  {}", known.join("\n  "));
    }
    Ok(found)
}

/// The regular expression, in Go's form, of exactly these tests.
pub fn focus(tests: &[Test]) -> String {
    let quoted: Vec<String> = tests.iter().map(|test| quote(&test.name)).collect();
    format!("({})$", quoted.join("|"))
}

/// Source: Go's `regexp.QuoteMeta`.
fn quote(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 8);
    for character in name.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

/// The names of failed tests in a report of an earlier run.
///
/// # Errors
/// When the report is none.
pub fn failed_in(report: &str) -> Result<BTreeSet<String>> {
    let report: Value = serde_json::from_str(report).context("the last report is not JSON")?;
    let tests = report["tests"].as_array().context("the last report has no tests")?;
    let failed = tests.iter().filter(|test| test["state"] == "failed");
    Ok(failed.filter_map(|test| test["name"].as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "
- testname: a
  codename: '[sig-storage] ConfigMap should be consumable
    (once) [Conformance]'
  file: test/e2e/common/storage/configmap_volume.go
- codename: '[sig-apps] CronJob should schedule multiple jobs concurrently [Conformance]'
  file: test/e2e/apps/cronjob.go
- codename: '[sig-node] Pods should be [Slow] [Conformance]'
  file: test/e2e/common/node/pods.go
- codename: '[sig-node] Pods Extended should [Conformance]'
  file: test/e2e/node/pods.go
";

    fn check(selection: &Selection, slow: bool, run: &[&str], left: usize) {
        let chosen = choose(&parse(LIST).unwrap(), selection, slow).unwrap();
        let files: Vec<_> = chosen.run.iter().map(|test| test.file.as_str()).collect();
        assert_eq!((files.as_slice(), chosen.left.len()), (run, left), "{selection:?}");
    }

    #[test]
    fn chooses_by_area_file_focus_and_name() {
        check(
            &Selection::Everything,
            true,
            &["apps/cronjob.go", "common/node/pods.go", "common/storage/configmap_volume.go", "node/pods.go"],
            0,
        );
        check(&Selection::Everything, false, &["common/storage/configmap_volume.go", "node/pods.go"], 2);
        check(&Selection::Area("storage".into()), false, &["common/storage/configmap_volume.go"], 0);
        check(&Selection::File("pods".into()), false, &["node/pods.go"], 1);
        check(&Selection::File("test/e2e/node/pods.go".into()), false, &["node/pods.go"], 0);
        check(&Selection::Focus("ConfigMap.*once".into()), false, &["common/storage/configmap_volume.go"], 0);
        let cronjob =
            BTreeSet::from(["[sig-apps] CronJob should schedule multiple jobs concurrently [Conformance]".into()]);
        check(&Selection::Names(cronjob), false, &["apps/cronjob.go"], 0);
    }

    #[test]
    fn what_does_not_exist_is_answered_with_what_does() {
        let tests = parse(LIST).unwrap();
        let refused = |selection| format!("{:#}", choose(&tests, &selection, false).unwrap_err());
        let area = refused(Selection::Area("stroage".into()));
        assert!(area.contains("stroage") && area.contains("storage, workloads"), "{area}");
        let file = refused(Selection::File("ods.go".into()));
        assert!(file.contains("common/node/pods.go\n  common/storage/configmap_volume.go"), "{file}");
        assert!(refused(Selection::Focus("(".into())).contains("--focus"));
        assert!(refused(Selection::Focus("nothing".into())).contains("no conformance test matches"));
    }

    #[test]
    fn totals_are_those_of_the_release() {
        assert_eq!(AREAS.iter().map(|area| area.total).sum::<usize>(), 462);
        let error = check_totals(&parse(LIST).unwrap()).unwrap_err().to_string();
        assert_eq!(error, "api-machinery has 0 conformance tests, not 110");
        assert!(parse("- {codename: x, file: test/e2e/windows/x.go}").is_err());
    }

    #[test]
    fn focus_means_exactly_the_names() {
        let tests = parse(LIST).unwrap();
        let pattern = focus(&tests[2..3]);
        assert_eq!(pattern, r"(\[sig-storage\] ConfigMap should be consumable \(once\) \[Conformance\])$");
        assert!(regex_lite::Regex::new(&pattern).unwrap().is_match(&tests[2].name));
    }

    #[test]
    fn failed_tests_are_found_in_a_report() {
        let report = r#"{"tests": [{"name": "a", "state": "failed"}, {"name": "b", "state": "passed"}]}"#;
        assert_eq!(failed_in(report).unwrap(), BTreeSet::from(["a".to_owned()]));
        assert!(failed_in("{}").is_err());
    }
}

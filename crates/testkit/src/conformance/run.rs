//! A run from the command line to the last line printed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};

use super::cluster::Cluster;
use super::objects::{Keeper, causes};
use super::options::Options;
use super::outcome::{self, Ended, Outcome, State};
use super::progress::Progress;
use super::refusals::Refusals;
use super::report::{self, Circumstances, Count, Judged};
use super::suite::{self, CONTENT_TYPE, Chosen, Selection, TWO_NODES, Test};
use super::tools::{Tools, root, target};
use crate::host::checked;
use crate::interrupt::interrupts;
use crate::upstream::RELEASE;

/// How long the suite may take to end once it was told to.
const GRACE: Duration = Duration::from_secs(120);
/// A test that says nothing for this long has its state printed into the log.
const SILENCE: &str = "120s";
/// How much of the server's log is kept of a failure, in lines, and how many causes are printed.
const LOG_LINES: usize = 300;
const CAUSES: usize = 12;
const CAUSES_PRINTED: usize = 3;

/// Runs what `options` ask for. True when all of it passed.
///
/// # Errors
/// When the suite cannot be built or started.
pub fn run(options: &Options) -> Result<bool> {
    let interrupted = interrupts()?;
    let tools = Tools::find()?;
    let list = tools.source("test/conformance/testdata/conformance.yaml")?;
    let tests = suite::parse(&String::from_utf8_lossy(&list))?;
    suite::check_totals(&tests)?;
    let chosen = suite::choose(&tests, &selection(options)?, options.slow)?;
    announce(&chosen, options);
    if chosen.run.is_empty() {
        return Ok(true);
    }
    let _alone = alone()?;
    tools.build()?;
    let began = Instant::now();
    // Of what is built: another may be checked out when the run ends.
    let (date, commit) = (now(), commit());
    let log = target().join("server.log");
    let binary = std::env::current_exe()?.with_file_name("coracle");
    let mut cluster = Cluster::start(&binary, &tools, &log)?;
    println!("the node is Ready after {:.1} s", began.elapsed().as_secs_f64());
    let keeper = Keeper::start(&cluster.api);
    let mut refusals = Refusals::new(&cluster.audit_log());
    let seen = run_suite(&mut cluster, &tools, &chosen.run, options, &mut refusals, interrupted);
    refusals.read_on()?;
    cluster.stop();
    let seen = seen?;
    let written = fs::read_to_string(target().join("ginkgo.json")).unwrap_or_default();
    let reported = outcome::read(&written, &chosen.run, &seen)?;
    let server_log = fs::read_to_string(&log).unwrap_or_default();
    let judge = |outcome: Outcome| judge(outcome, &keeper, &refusals, &server_log);
    let judged: Vec<Judged> = reported.outcomes.into_iter().map(judge).collect();
    keeper.end();
    drop(cluster);
    let circumstances = Circumstances {
        commit,
        date,
        took: began.elapsed(),
        jobs: options.jobs,
        nodes: 1,
        release_build: !cfg!(debug_assertions),
    };
    conclude(options, &circumstances, &judged, &reported.suite_failures)
}

/// Held while a run goes on: another one would take its cluster away.
fn alone() -> Result<File> {
    fs::create_dir_all(target())?;
    let lock = File::create(target().join("lock"))?;
    ensure!(lock.try_lock().is_ok(), "another run goes on in this checkout");
    Ok(lock)
}

fn selection(options: &Options) -> Result<Selection> {
    if let Some(selection) = &options.selection {
        return Ok(selection.clone());
    }
    let path = target().join("report.json");
    let last = fs::read_to_string(&path).with_context(|| format!("there is no last report, {}", path.display()))?;
    let failed = suite::failed_in(&last)?;
    println!("{} tests failed in the last report", failed.len());
    Ok(Selection::Names(failed))
}

fn announce(chosen: &Chosen, options: &Options) {
    println!(
        "suite {RELEASE}: {} tests, {} jobs, one node; typed clients speak {CONTENT_TYPE}, protobuf is not served yet",
        chosen.run.len(),
        options.jobs
    );
    if !chosen.left.is_empty() {
        println!("{} tests that wait for minutes by design are left for --slow", chosen.left.len());
    }
    for test in chosen.run.iter().filter(|test| TWO_NODES.contains(&test.name.as_str())) {
        println!("cannot pass with one node: {}", test.name);
    }
}

/// Runs the suite and prints a line for each test that ends. Returns what it saw.
fn run_suite(
    cluster: &mut Cluster,
    tools: &Tools,
    tests: &[Test],
    options: &Options,
    refusals: &mut Refusals,
    interrupted: impl Fn() -> bool,
) -> Result<Vec<Ended>> {
    let mut child = start_suite(cluster, tools, tests, options)?;
    let lines = lines_of(&mut child)?;
    let mut printed = File::create(target().join("ginkgo.log"))?;
    let (mut progress, mut seen) = (Progress::new(tests), Vec::new());
    let deadline = Instant::now() + options.timeout + GRACE;
    let mut told = None;
    loop {
        match lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                writeln!(printed, "{line}")?;
                if let Some(ended) = progress.line(&line) {
                    let (nth, of, took) = (seen.len() + 1, tests.len(), ended.took.as_secs_f64());
                    println!("{nth:4}/{of} {:7} {took:6.1} s  {}", ended.state.word(), ended.name);
                    seen.push(ended);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        refusals.read_on()?;
        if told.is_none() {
            let why = cluster.ended().or_else(|| interrupted().then(|| "interrupted".to_owned()));
            if let Some(why) = why {
                println!("{why}; ending the suite …");
                tell(&child, "-TERM");
                told = Some(Instant::now() + GRACE);
            }
        }
        if Instant::now() > told.unwrap_or(deadline) {
            println!("the suite does not end; killing it");
            tell(&child, "-KILL");
            break;
        }
    }
    child.wait().context("could not wait for ginkgo")?;
    Ok(seen)
}

fn start_suite(cluster: &Cluster, tools: &Tools, tests: &[Test], options: &Options) -> Result<Child> {
    for old in ["ginkgo.json", "junit.xml"] {
        let path = target().join(old);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("could not remove {}", path.display()))?;
        }
    }
    let mut command = cluster.command(tools.program("ginkgo"));
    command
        .args(["run", "-v", "--no-color", "--silence-skips", "--keep-going"])
        .arg(format!("--procs={}", options.jobs))
        .arg(format!("--timeout={}s", options.timeout.as_secs()))
        .arg(format!("--poll-progress-after={SILENCE}"))
        .arg(format!("--focus={}", suite::focus(tests)))
        .arg(format!("--output-dir={}", target().display()))
        .args(["--json-report=ginkgo.json", "--junit-report=junit.xml"])
        .arg(tools.program("e2e.test"))
        .arg("--")
        .arg(format!("--kubeconfig={}", cluster.kubeconfig().display()))
        .arg(format!("--kubectl-path={}", tools.program("kubectl").display()))
        .arg(format!("--kube-api-content-type={CONTENT_TYPE}"))
        .args(["--provider=skeleton", "--disable-log-dump", "--dump-logs-on-failure=false"])
        .args(["--allowed-not-ready-nodes=0", "--node-schedulable-timeout=1m", "--system-pods-startup-timeout=1m"]);
    // Times in UTC, as in the server's log.
    command.env("TZ", "UTC").current_dir(target()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    // Ctrl-C is for this process, which tells the suite.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().context("could not start ginkgo")
}

fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let stdout = child.stdout.take().context("ginkgo has no output")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Signals the whole group: ginkgo by itself only waits for the processes in which it runs tests.
fn tell(child: &Child, signal: &str) {
    // They may have ended in the meantime.
    let _ = std::process::Command::new("kill")
        .args([signal, "--", &format!("-{}", child.id())])
        .stderr(Stdio::null())
        .status();
}

fn judge(outcome: Outcome, keeper: &Keeper, refusals: &Refusals, server_log: &str) -> Judged {
    let mut judged =
        Judged { outcome, causes: Vec::new(), refused: Vec::new(), log: String::new(), objects: String::new() };
    if judged.outcome.state != State::Failed {
        return judged;
    }
    let namespaces = judged.outcome.namespaces();
    let objects = keeper.of(&namespaces);
    judged.causes = causes(&objects, CAUSES);
    judged.refused = refusals.of(&judged.outcome.test.name);
    let uids = objects.values().filter_map(|object| object["metadata"]["uid"].as_str());
    let concerned: Vec<&str> = namespaces.iter().copied().chain(uids).collect();
    judged.log = report::log_between(server_log, &judged.outcome.times, &concerned, LOG_LINES);
    judged.objects = serde_json::to_string_pretty(&objects).unwrap_or_default();
    judged
}

/// Prints and writes the results. True when all that was asked for passed.
fn conclude(
    options: &Options,
    circumstances: &Circumstances,
    tests: &[Judged],
    suite_failures: &[String],
) -> Result<bool> {
    report::write_failures(&target().join("failed"), tests)?;
    let json = format!("{:#}\n", report::to_json(circumstances, tests));
    fs::write(target().join("report.json"), json).context("could not write report.json")?;
    let count = Count::of(tests.iter());
    if options.selection == Some(Selection::Everything) && options.slow && count.not_run == 0 {
        fs::write(root().join("docs/conformance.md"), report::page(circumstances, tests))?;
    }
    println!("\n{}{}", report::failures(tests, CAUSES_PRINTED), report::table(tests));
    println!("{:.1} min; details in {}", circumstances.took.as_secs_f64() / 60.0, target().display());
    for failure in suite_failures {
        println!("outside of the tests failed {failure}");
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.passed == tests.len())
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        checked(std::process::Command::new("git").arg("-C").arg(root()).args(arguments)).unwrap_or_default()
    };
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " with changes" };
    format!("{}{changed}", git(&["rev-parse", "--short", "HEAD"]).trim())
}

/// RFC 3339 in whole seconds.
fn now() -> String {
    jiff::Timestamp::try_from(SystemTime::now())
        .map(|now| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

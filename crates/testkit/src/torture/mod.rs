//! Faults on purpose: a cluster under a steady mixed load while its parts are killed, stopped, starved and lied to.
//!
//! A run is made of rounds. In each, clients write, read and watch the API, browsers load a site, pods come and go, and the
//! faults of a [`plan`] happen; then everything is stopped, and what was seen is checked: histories by the [`checker`], the host
//! by the [`inventory`], pods and browsers by the rules of the [`workload`]. Every choice comes from one seed.

pub mod checker;
pub mod dice;
mod disk;
mod faults;
pub mod history;
mod inventory;
mod load;
mod nft;
pub mod plan;
mod workload;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use planted::Bug;

use self::checker::Violation;
use self::disk::Disk;
use self::faults::{COMES_BACK, Victim};
use self::history::{Action, Operation, Outcome, Stretch};
use self::inventory::Inventory;
use self::load::{Client, Round, fence, start_clients, start_watchers};
use self::plan::VICTIMS;
use self::workload::{Browsers, PATIENCE, PODS, Run, steady};
use crate::host::{Lab, eventually};
use crate::rack::Rack;

const WATCHERS: u64 = 3;
/// How long after a round a watcher may take to see its end.
const CATCH_UP: Duration = Duration::from_secs(60);
/// A kubelet renews every ten seconds; main may have been down or stopped in between.
const RENEWED_WITHIN: Duration = Duration::from_secs(30);
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/cupboard";
const LEASES: &str = "the node's lease is renewed";
const PANICS: &str = "no part of the server panics";
/// Names the bug that a server built with the feature `planted` has.
const PLANTED: &str = "/run/coracle-planted";

/// What to torture, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// The lab's name.
    pub lab: String,
    pub binary: PathBuf,
    /// Each gets its share of the time, at least one round.
    pub seeds: Vec<u64>,
    pub length: Duration,
    /// Whether the binary was built with the feature `faults`.
    pub with_clock: bool,
    /// A bug that the binary is to have, if it was built with the feature `planted`.
    pub planted: Option<Bug>,
    /// How long the host may take to be as before when a round is over.
    pub patience: Duration,
    /// Is told of the lab before anything runs in it.
    pub prepared: fn(&Lab) -> Result<()>,
    /// Whether to print a line for each round and fault.
    pub verbose: bool,
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub seeds: Vec<u64>,
    pub rounds: u64,
    /// How often each fault was done.
    pub faults: BTreeMap<&'static str, usize>,
    /// How often each of these was looked at, or was seen to be right.
    pub checked: BTreeMap<&'static str, u64>,
    pub violations: Vec<Violation>,
    /// What the server said, kept when there were violations.
    pub log: Option<PathBuf>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        writeln!(f, "seed        {}", seeds.join(", "))?;
        writeln!(f, "rounds      {}", self.rounds)?;
        for (title, counted) in
            [("faults", self.faults.iter().map(|(n, c)| (*n, *c as u64)).collect()), ("checked", self.checked.clone())]
        {
            let parts: Vec<String> =
                counted.iter().map(|(name, count): (&&str, &u64)| format!("{count} {name}")).collect();
            writeln!(f, "{title:<11} {}", parts.join(", "))?;
        }
        writeln!(f, "violations  {}", self.violations.len())?;
        self.violations.iter().take(20).try_for_each(|violation| writeln!(f, "  {violation}"))?;
        self.log.iter().try_for_each(|log| writeln!(f, "log         {}", log.display()))
    }
}

/// Tortures a rack of its own.
///
/// # Errors
/// When the rack cannot be made. What goes wrong under torture is in the summary.
pub fn run(options: &Options) -> Result<Summary> {
    let began = Instant::now();
    let rack = Rack::prepare(&options.lab, &options.binary, false)?;
    (options.prepared)(&rack.lab)?;
    if let Some(bug) = options.planted {
        rack.lab.host(0).run(&["sh", "-c", &format!("echo {} > {PLANTED}", bug.name())])?;
    }
    // The machine's disk may be as full as it likes: the node must not see pressure that is none of its own.
    rack.lab.host(0).run(&["mount", "-t", "tmpfs", "tmpfs", "/var/lib/kubelet"])?;
    let disk = Disk::mount(rack.lab.host(0))?;
    let mut victim = Victim::new(rack, disk);
    victim.start()?;
    victim.rack.apply()?;
    victim.rack.check_sites()?;
    workload::prepare(victim.rack.api())?;
    let mut run = Torture { before: Before::look(&victim.rack)?, victim, options, summary: Summary::default(), began };
    run.summary.seeds.clone_from(&options.seeds);
    run.seeds()?;
    if !run.summary.violations.is_empty() {
        // The lab goes with everything in it.
        let kept = run.victim.rack.lab.dir().with_extension("log");
        std::fs::copy(run.victim.rack.log(), &kept)?;
        run.summary.log = Some(kept);
    }
    Ok(run.summary)
}

/// How everything was before the first fault.
struct Before {
    inventory: Inventory,
    /// Of the pods that may be killed, and of those that may not.
    runs: BTreeMap<String, Run>,
    lease: (String, Instant),
}

impl Before {
    fn look(rack: &Rack) -> Result<Self> {
        let mut inventory = inventory::take(rack)?;
        // What the start left running has ended when two looks are the same.
        eventually(PATIENCE, "the host to be quiet", || {
            std::thread::sleep(Duration::from_secs(1));
            let now = inventory::take(rack)?;
            let is_quiet = inventory::compare(&inventory, &now).is_empty();
            inventory = now;
            Ok(is_quiet.then_some(()))
        })?;
        Ok(Self { inventory, runs: all_runs(rack)?, lease: (renewed(rack)?, Instant::now()) })
    }
}

fn all_runs(rack: &Rack) -> Result<BTreeMap<String, Run>> {
    let mut runs = workload::runs(rack.api(), "rack")?;
    let of_others = workload::runs(rack.api(), load::NAMESPACE)?;
    runs.extend(of_others.into_iter().filter(|(name, _)| name.starts_with("steady-")));
    Ok(runs)
}

fn renewed(rack: &Rack) -> Result<String> {
    Ok(rack.api().get(LEASE)?["spec"]["renewTime"].as_str().context("a lease without renewTime")?.to_owned())
}

struct Torture<'a> {
    victim: Victim,
    options: &'a Options,
    before: Before,
    summary: Summary,
    began: Instant,
}

impl Torture<'_> {
    fn count(&mut self, what: &'static str, n: usize) {
        *self.summary.checked.entry(what).or_default() += n as u64;
    }

    /// Rounds until the time is over, or a planted bug is found, or the server does not come back.
    fn seeds(&mut self) -> Result<()> {
        let share = self.options.length / u32::try_from(self.options.seeds.len().max(1))?;
        for seed in &self.options.seeds {
            let end = Instant::now() + share;
            for number in 0.. {
                if let Err(error) = self.round(*seed, number) {
                    let what = format!("{error:#}\n{}", self.last_words());
                    self.summary.violations.push(Violation { rule: COMES_BACK, what });
                    return Ok(());
                }
                if self.options.planted.is_some() && !self.summary.violations.is_empty() {
                    return Ok(());
                }
                if Instant::now() >= end {
                    break;
                }
            }
        }
        Ok(())
    }

    fn round(&mut self, seed: u64, number: u64) -> Result<()> {
        let (began, found) = (Instant::now(), self.summary.violations.len());
        // Rounds of several seeds have names of their own.
        let round = Round::new(self.victim.rack.api(), seed, self.summary.rounds, self.began);
        self.summary.rounds += 1;
        let watchers = start_watchers(&round, WATCHERS, CATCH_UP);
        let clients = start_clients(&round);
        let pods = workload::start_brief_pods(&round);
        let routes = workload::start_routes(&round);
        let browsers = Browsers::start(&round, self.victim.rack.web(), self.victim.rack.ingress(443));
        let suffered = self.suffer(seed, number);
        round.stop.store(true, Ordering::Relaxed);
        if suffered.is_ok() {
            self.victim.recover()?;
        }
        // Who waits for a server that is gone gives up by itself, but nobody waits for that.
        suffered?;

        for thread in clients.into_iter().chain([routes]) {
            joined(thread)?;
        }
        for thread in pods {
            let violations = joined(thread)?;
            self.summary.violations.extend(violations);
        }
        let (served, failures) = browsers.join()?;
        self.count("requests through the ingress", usize::try_from(served)?);
        let outages = self.victim.outages.all();
        self.summary.violations.extend(workload::unexcused(&failures, &outages));
        self.histories(&round, watchers)?;
        // A planted bug that is found already need not be waited for.
        if self.options.planted.is_none() || self.summary.violations.is_empty() {
            self.settle()?;
        }
        if self.options.verbose {
            let violations = self.summary.violations.len() - found;
            println!("round {number} of seed {seed}: {:.0?}, {violations} violations", began.elapsed());
        }
        Ok(())
    }

    fn suffer(&mut self, seed: u64, number: u64) -> Result<()> {
        for (pause, fault) in plan::round(seed, number, self.options.with_clock) {
            std::thread::sleep(pause);
            let began = Instant::now();
            let (done, violations) = self.victim.suffer(fault)?;
            if self.options.verbose {
                println!("  {fault:?}: {:.0?}", began.elapsed());
            }
            *self.summary.faults.entry(fault.name()).or_default() += usize::from(done);
            self.summary.violations.extend(violations);
        }
        // The load goes on for a while with what the last fault left.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    /// Checks what clients and watchers saw of the API.
    fn histories(&mut self, round: &Round, watchers: Vec<JoinHandle<Result<Vec<Stretch>>>>) -> Result<()> {
        let mut client = Client::new(round);
        let end = || Action::Create { value: fence(round) };
        eventually(PATIENCE, "the last write of a round", || {
            let outcome = client.run(&fence(round), end());
            Ok(matches!(outcome, Outcome::Written(_) | Outcome::Exists).then_some(()))
        })?;
        let mut stretches = Vec::new();
        for watcher in watchers {
            match joined(watcher) {
                Ok(seen) => stretches.extend(seen),
                Err(error) => {
                    self.summary.violations.push(Violation { rule: checker::WATCHES, what: format!("{error:#}") });
                }
            }
        }
        client.run("", Action::List);
        let mut operations = round.operations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        forget_retries(&mut operations, &fence(round));
        let without_answer = operations.iter().filter(|o| matches!(o.outcome, Outcome::Unknown(_))).count();
        self.count("operations", operations.len());
        self.count("operations without an answer", without_answer);
        self.count("watches", stretches.len());
        self.count("events", stretches.iter().map(|stretch| stretch.events.len()).sum());
        self.summary.violations.extend(checker::check(&operations, &stretches));
        let path = format!("/api/v1/namespaces/{}/configmaps?labelSelector=round%3D{}", load::NAMESPACE, round.number);
        round.api.delete(&path).map(drop)
    }

    /// Waits until everything is as before, and says what is not.
    fn settle(&mut self) -> Result<()> {
        let rack = &self.victim.rack;
        let mut left = Vec::new();
        let settled = eventually(self.options.patience, "the host to be as before", || {
            // What cannot be asked yet is a difference as well.
            left = self
                .differences()
                .unwrap_or_else(|error| vec![Violation { rule: COMES_BACK, what: format!("{error:#}") }]);
            std::thread::sleep(Duration::from_millis(200));
            Ok(left.is_empty().then_some(()))
        });
        let mut violations = Vec::new();
        if settled.is_err() {
            violations.append(&mut left);
        }
        for n in 0..=VICTIMS {
            let log = rack.api().get(&format!("{PODS}/{}/log", steady(n)))?;
            violations.extend(workload::counted(&steady(n), log.as_str().unwrap_or_default()));
        }
        let listed = rack.lab.host(0).run(&["sh", "-c", "cd /mnt/signs 2>/dev/null && wc -l * || true"])?;
        violations.extend(workload::signs(&listed));
        let renewed = renewed(rack)?;
        if renewed != self.before.lease.0 {
            self.before.lease = (renewed, Instant::now());
        } else if self.before.lease.1.elapsed() > RENEWED_WITHIN {
            let what = format!("its renewTime is {renewed} since {:?}", self.before.lease.1.elapsed());
            violations.push(Violation { rule: LEASES, what });
        }
        let log = std::fs::read_to_string(rack.log()).unwrap_or_default();
        let panics = log.lines().filter(|line| line.contains("panicked"));
        violations.extend(panics.map(|line| Violation { rule: PANICS, what: line.to_owned() }));
        self.count("pods that came and went", listed.lines().count().saturating_sub(1));
        self.count("inventories", 1);
        self.summary.violations.extend(violations);
        // The next round counts anew.
        self.victim.rack.lab.host(0).run(&["sh", "-c", "rm -f /mnt/signs/*"]).map(drop)
    }

    /// What is not as it was: on the host, and of the pods that stay.
    fn differences(&self) -> Result<Vec<Violation>> {
        let rack = &self.victim.rack;
        let mut differences = inventory::compare(&self.before.inventory, &inventory::take(rack)?);
        let runs = all_runs(rack)?;
        for (name, before) in &self.before.runs {
            let pod = (0..=VICTIMS).find(|n| name.starts_with(&format!("{}/", steady(*n))));
            let kills = pod.and_then(|pod| self.victim.kills.get(&pod)).copied().unwrap_or(0);
            differences.extend(workload::restarted(name, before, runs.get(name), kills));
        }
        Ok(differences)
    }

    /// The end of the server's log.
    fn last_words(&mut self) -> String {
        let log = std::fs::read_to_string(self.victim.rack.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let state = if self.victim.rack.must_run().is_ok() { "the server runs" } else { "the server has ended" };
        format!("{state}; it said\n{}", lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

/// The fence is written again until it is there: only the attempt that made it, or may have, counts.
fn forget_retries(operations: &mut Vec<Operation>, fence: &str) {
    let mut of_fence = operations.iter().filter(|operation| operation.key == fence);
    let Some(first) = of_fence.next().cloned() else { return };
    let done = of_fence.find(|operation| matches!(operation.outcome, Outcome::Written(_))).cloned();
    operations.retain(|operation| operation.key != fence);
    let whole = match (&first.outcome, done) {
        (Outcome::Unknown(_), Some(done)) => Operation { began: first.began, ..done },
        _ => first,
    };
    operations.push(whole);
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread of the load panicked"))?
}

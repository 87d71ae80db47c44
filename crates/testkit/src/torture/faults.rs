//! The faults of a plan, done to a rack.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::checker::{LOST, Violation};
use super::disk::Disk;
use super::load::NAMESPACE;
use super::plan::Fault;
use super::workload::{Outages, PODS, steady};
use crate::host::eventually;
use crate::rack::{Rack, WEBSITE};
use crate::survival::{self, is_ready};
use crate::web::KeptAlive;

pub const COMES_BACK: &str = "what was killed comes back";
pub const STAYS_UP: &str = "nothing ends that was not killed";
pub const SPACE: &str = "writes succeed again when there is space";

/// How long the next edge may take to answer.
const NEXT_EDGE: Duration = Duration::from_secs(30);
/// How long after there is space again a write may fail.
const SPACE_AGAIN: Duration = Duration::from_secs(10);
/// Moves the clock of a server that was built with the feature `faults`, by these seconds.
const CLOCK: &str = "/run/coracle-clock";
const CONFIG_MAPS: &str = "/api/v1/namespaces/torture/configmaps";

/// A rack whose parts are killed.
pub struct Victim {
    pub rack: Rack,
    pub disk: Disk,
    /// How often the shims of the pods that stay were killed.
    pub kills: BTreeMap<usize, u64>,
    pub outages: Outages,
    /// Connections that stall, until when.
    stalled: Vec<(Instant, KeptAlive)>,
}

impl Victim {
    pub fn new(rack: Rack, disk: Disk) -> Self {
        Self { rack, disk, kills: BTreeMap::new(), outages: Outages::default(), stalled: Vec::new() }
    }

    /// Does one fault; returns whether there was something to do it to, and what did not come back.
    ///
    /// # Errors
    /// When the rack cannot be used any more.
    pub fn suffer(&mut self, fault: Fault) -> Result<(bool, Vec<Violation>)> {
        let now = Instant::now();
        self.stalled.retain(|(until, _)| *until > now);
        let mut violations = Vec::new();
        let done = match fault {
            Fault::KillMain { down } => {
                self.kill_main()?;
                std::thread::sleep(down);
                self.start()?;
                true
            }
            Fault::CutPower { down } => {
                self.kill_main()?;
                self.disk.cut(self.rack.lab.host(0))?;
                std::thread::sleep(down);
                self.start()?;
                true
            }
            Fault::KillEdge => {
                let began = Instant::now();
                self.rack.kill_edge().context("the edge does not run")?;
                self.outages.add(began, Instant::now());
                violations.extend(self.edge_is_back().err());
                true
            }
            Fault::KillMainAndEdge { down } => {
                let began = Instant::now();
                self.kill_main()?;
                self.rack.kill_edge().context("the edge does not run")?;
                std::thread::sleep(down);
                self.start()?;
                violations.extend(self.edge_is_back().err());
                self.outages.add(began, Instant::now());
                true
            }
            Fault::KillShim { pod } => match self.shim_of(pod) {
                Some(shim) => {
                    survival::kill_process(shim)?;
                    *self.kills.entry(pod).or_default() += 1;
                    true
                }
                None => false,
            },
            Fault::StopMain { during } => self.stop(self.rack.pid("main").ok(), during),
            Fault::StopEdge { during } => self.stop(self.rack.pid("edge").ok(), during),
            Fault::StopShim { pod, during } => self.stop(self.shim_of(pod), during),
            Fault::FillDisk { during } => {
                violations.extend(self.fill_disk(during)?);
                true
            }
            Fault::JumpClock { seconds } => {
                self.set_clock(seconds)?;
                true
            }
            Fault::StallClients { connections, during } => self.stall(connections, during),
        };
        violations.extend(self.unasked_end());
        Ok((done, violations))
    }

    fn kill_main(&mut self) -> Result<()> {
        self.rack.kill_main()
    }

    /// Starts main and waits for it.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn start(&mut self) -> Result<()> {
        self.rack.start().map(drop).context(COMES_BACK)
    }

    /// Main ends only when it is killed.
    fn unasked_end(&mut self) -> Option<Violation> {
        let error = self.rack.must_run().err()?;
        Some(Violation { rule: STAYS_UP, what: format!("{error:#}") })
    }

    /// Waits until the website is served again.
    fn edge_is_back(&self) -> Result<(), Violation> {
        let web = self.rack.web().with_patience(NEXT_EDGE);
        let answer = eventually(NEXT_EDGE, "the next edge to answer", || {
            let answer = web.get(self.rack.ingress(443), WEBSITE, "/");
            Ok(answer.ok().filter(|answer| answer.status == 200))
        });
        answer.map(drop).map_err(|error| Violation { rule: COMES_BACK, what: format!("the edge: {error:#}") })
    }

    /// The shim of a pod that stays, when the pod is Ready.
    fn shim_of(&self, pod: usize) -> Option<u32> {
        let object = self.rack.api().get(&format!("{PODS}/{}", steady(pod))).ok().filter(is_ready)?;
        self.rack.shim_of(object["metadata"]["uid"].as_str()?).ok()
    }

    fn stop(&self, pid: Option<u32>, during: Duration) -> bool {
        let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return false };
        if kill_process(pid, Signal::STOP).is_err() {
            return false;
        }
        std::thread::sleep(during);
        kill_process(pid, Signal::CONT).is_ok()
    }

    /// Moves the server's clock, or with 0 puts it right.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        // By a rename: the server reads it at any moment.
        let script = format!("echo {seconds} > {CLOCK}.new && mv {CLOCK}.new {CLOCK}");
        self.rack.lab.host(0).run(&["sh", "-c", &script]).map(drop)
    }

    /// Fills the disk and writes until a write finds it full; what was acknowledged must be there afterwards.
    fn fill_disk(&self, during: Duration) -> Result<Vec<Violation>> {
        /// Enough to fill the segment that was preallocated.
        const WRITES: usize = 24;
        let host = self.rack.lab.host(0);
        let api = self.rack.api();
        let big = "x".repeat(256 << 10);
        let (mut kept, mut violations) = (Vec::new(), Vec::new());
        self.disk.fill(host)?;
        for n in 0..WRITES {
            let name = format!("big-{n}");
            let object = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}, "data": {"big": big},
            });
            match api.post(CONFIG_MAPS, &object) {
                Ok(_) => kept.push(name),
                Err(_) => break,
            }
        }
        std::thread::sleep(during);
        self.disk.free(host)?;
        let probe = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big-probe", "namespace": NAMESPACE},
        });
        let mut last = String::new();
        let wrote = eventually(SPACE_AGAIN, "a write after there was space", || {
            let answer = api.post(CONFIG_MAPS, &probe);
            Ok(answer.map_err(|error| last = format!("{error:#}")).ok())
        });
        if let Err(error) = wrote {
            violations.push(Violation { rule: SPACE, what: format!("{error:#}: {last}") });
        }
        for name in kept.iter().map(String::as_str).chain(["big-probe"]) {
            if let Err(error) = api.delete(&format!("{CONFIG_MAPS}/{name}")) {
                let what = format!("{name} was acknowledged on a full disk, and deleting it says: {error:#}");
                violations.push(Violation { rule: LOST, what });
            }
        }
        Ok(violations)
    }

    /// Half of the connections go to the API, half to the ingress.
    fn stall(&mut self, connections: u64, during: Duration) -> bool {
        let until = Instant::now() + during;
        for n in 0..connections {
            let opened = if n.is_multiple_of(2) {
                self.rack.api().open()
            } else {
                self.rack.web().open(self.rack.ingress(443), WEBSITE)
            };
            let begun = opened.and_then(|mut connection| {
                connection.send("POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n")?;
                Ok(connection)
            });
            self.stalled.extend(begun.ok().map(|connection| (until, connection)));
        }
        !self.stalled.is_empty()
    }

    /// Ends what lasts longer than a round.
    ///
    /// # Errors
    /// When the clock cannot be put right.
    pub fn recover(&mut self) -> Result<()> {
        self.stalled.clear();
        self.set_clock(0)
    }
}

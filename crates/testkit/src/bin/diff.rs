//! `cargo xtask diff`: asks a real kube-apiserver and coracle the same, and prints where their answers differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use testkit::host::{Lab, eventually};
use testkit::oracle::canonical::canonical;
use testkit::oracle::compare::{Difference, Tally, differences};
use testkit::oracle::golden::{self, Exchange};
use testkit::oracle::subjects::{self, Subject};
use testkit::oracle::{Answer, Memory, Request, USER_AGENT, accepted, cases};
use testkit::upstream::control_plane::{ControlPlane, SERVICE_CIDR};
use testkit::web::{Api, KeptAlive};

const USAGE: &str = "usage: cargo xtask diff [--kind K] [--seed S] [--all] [--accepted] [--keep]

Sends generated and mutated requests to kube-apiserver v1.37.2 and to coracle, and compares the answers.
  --kind K   one kind, such as Pod
  --seed S   what is changed beside the changes that are always made; the same seed asks the same (1)
  --all      shows every open difference, not the first few of each kind
  --accepted shows the accepted differences too, with their reasons
  --keep     keeps what upstream answered in crates/server/tests/goldens, for the tests";
/// Open differences that are shown of a kind.
const SHOWN: usize = 15;
const PATIENCE: Duration = Duration::from_secs(60);

struct Flags {
    subjects: Vec<Subject>,
    seed: u64,
    all: bool,
    accepted: bool,
    keep: bool,
}

fn main() -> ExitCode {
    let outcome = flags().and_then(|flags| flags.map_or(Ok(0), |flags| run(&flags)));
    match outcome {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("diff: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for; nothing when it is help.
fn flags() -> Result<Option<Flags>> {
    let mut flags = Flags { subjects: subjects::all(), seed: 1, all: false, accepted: false, keep: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "--kind" => flags.subjects = subjects::named(&value()?)?,
            "--seed" => {
                let text = value()?;
                flags.seed = text.parse().with_context(|| format!("--seed: {text:?} is no number"))?;
            }
            "--all" => flags.all = true,
            "--accepted" => flags.accepted = true,
            "--keep" => flags.keep = true,
            "--help" => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => bail!("unknown argument {other:?}\n{USAGE}"),
        }
    }
    Ok(Some(flags))
}

/// Returns the number of open differences.
fn run(flags: &Flags) -> Result<usize> {
    let binary = std::env::current_exe()?.with_file_name("coracle");
    let mut lab = Lab::new("diff")?;
    let (theirs, mine) = (lab.add_host("upstream")?, lab.add_host("coracle")?);
    println!("starting kube-apiserver {} and coracle …", testkit::upstream::RELEASE);
    let upstream = ControlPlane::start(&lab, theirs, &[])?;
    let coracle = Coracle::start(&lab, mine, &binary)?;
    let mut sides = [Side::new(upstream.api())?, Side::new(&coracle.api)?];
    for side in &mut sides {
        silence(side)?;
    }
    let (mut total, mut used) = (Tally::default(), BTreeSet::new());
    for subject in &flags.subjects {
        total.add(compare(flags, subject, &mut sides, &mut used)?);
    }
    if flags.subjects.len() == subjects::all().len() {
        for reason in accepted::reasons().filter(|reason| !used.contains(reason)) {
            println!("stale, nothing is accepted for this reason with seed {}: {reason}", flags.seed);
        }
    }
    println!("{}", line("total", &total));
    Ok(total.open)
}

/// Takes the controllers' rights away, so that nobody but this program writes.
fn silence(side: &mut Side) -> Result<()> {
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    let list = side.api.get(bindings)?;
    for binding in list["items"].as_array().into_iter().flatten() {
        let name = binding["metadata"]["name"].as_str().unwrap_or_default();
        if name.starts_with("system:controller:") || name == "system:kube-scheduler" {
            side.api.delete(&format!("{bindings}/{name}"))?;
        }
    }
    Ok(())
}

/// `used` gathers the reasons for which something was accepted.
fn compare(
    flags: &Flags,
    subject: &Subject,
    sides: &mut [Side; 2],
    used: &mut BTreeSet<&'static str>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut kept = Vec::new();
    let mut reasons: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut shown = 0;
    for request in cases::script(subject, flags.seed) {
        let [upstream, ours] = sides;
        let (upstream, ours) = (upstream.ask(&request)?, ours.ask(&request)?);
        let (upstream, ours) = (canonical(&request, &upstream).value(), canonical(&request, &ours).value());
        let (managed, rest): (Vec<_>, Vec<_>) = differences(subject, &request, &upstream, &ours)
            .into_iter()
            .partition(|difference| difference.pointer.starts_with("/managed"));
        tally.count(&rest);
        if upstream.get("managed").is_some() || ours.get("managed").is_some() {
            tally.count(&managed);
        }
        for difference in rest.iter().chain(&managed) {
            match difference.reason {
                Some(reason) => {
                    *reasons.entry(reason).or_default() += 1;
                    if flags.accepted {
                        print_difference(&request, difference);
                    }
                }
                None => {
                    shown += 1;
                    if flags.all || shown <= SHOWN {
                        print_difference(&request, difference);
                    }
                }
            }
        }
        // The tests hold what is as it should be; what is open is this program's to show.
        let is_settled = rest.iter().chain(&managed).all(|difference| difference.reason.is_some());
        if is_settled || changes(&request) {
            kept.push(Exchange { request, answer: if is_settled { upstream } else { Value::Null } });
        }
    }
    if !flags.all && shown > SHOWN {
        println!("  … and {} more (--all shows them)", shown - SHOWN);
    }
    println!("{}", line(subject.name, &tally));
    for (reason, count) in &reasons {
        println!("  {count} × accepted: {reason}");
    }
    used.extend(reasons.into_keys());
    if flags.keep {
        golden::write(subject.name, &golden::worth_keeping(kept))?;
    }
    Ok(tally)
}

/// Whether later requests may depend on it.
fn changes(request: &Request) -> bool {
    request.method != "GET" && !request.is_dry() && !request.id.starts_with("create ")
}

fn line(name: &str, tally: &Tally) -> String {
    format!(
        "{name:28} compared {:6}  equal {:6}  accepted {:5}  open {:5}",
        tally.compared, tally.equal, tally.accepted, tally.open
    )
}

fn print_difference(request: &Request, difference: &Difference) {
    println!("  {}: {}", request.id, difference.pointer);
    println!("    upstream {}", short(&difference.upstream));
    println!("    coracle  {}", short(&difference.ours));
    if let Some(reason) = difference.reason {
        println!("    accepted {reason}");
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    let end = text.char_indices().nth(600).map_or(text.len(), |(at, _)| at);
    if end < text.len() { format!("{}…", &text[..end]) } else { text }
}

/// One of the two servers.
struct Side {
    api: Api,
    connection: KeptAlive,
    memory: Memory,
}

impl Side {
    fn new(api: &Api) -> Result<Self> {
        Ok(Self { api: api.clone(), connection: api.open()?, memory: Memory::default() })
    }

    fn ask(&mut self, request: &Request) -> Result<Answer> {
        let text = self.memory.fill(request).map(|body| body.to_string());
        let mut headers = format!("User-Agent: {USER_AGENT}\r\n");
        let or_json = |text: &str| if text.is_empty() { "application/json".to_owned() } else { text.to_owned() };
        headers.push_str(&format!("Accept: {}\r\n", or_json(&request.accept)));
        if text.is_some() {
            headers.push_str(&format!("Content-Type: {}\r\n", or_json(&request.content_type)));
        }
        let told = self.connection.ask_with(&request.method, &request.path, &headers, text.as_deref());
        // A server may close a connection after an answer: one more attempt on a fresh one.
        let answer = match told {
            Ok(answer) => answer,
            Err(_) => {
                self.connection = self.api.open()?;
                self.connection
                    .ask_with(&request.method, &request.path, &headers, text.as_deref())
                    .with_context(|| format!("{} {}", request.method, request.path))?
            }
        };
        let all = |wanted: &str| -> Vec<String> {
            answer.headers.iter().filter(|(name, _)| name == wanted).map(|(_, text)| text.clone()).collect()
        };
        let content_type = all("content-type").pop().unwrap_or_default();
        let answer = Answer::new(answer.status, &content_type, all("warning"), answer.body);
        self.memory.note(request, &answer);
        Ok(answer)
    }
}

/// The server under test.
struct Coracle {
    process: Child,
    api: Api,
}

impl Coracle {
    fn start(lab: &Lab, index: usize, binary: &Path) -> Result<Self> {
        let host = lab.host(index);
        let log = host.dir.join("server.log");
        let mut command = host.command(binary);
        command.args(["server", "--cgroup-root", &host.cgroup_root, "--service-cidr", SERVICE_CIDR]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?).spawn()?;
        let kubeconfig = host.dir.join("etc/coracle/kubeconfig");
        let started = eventually(PATIENCE, "coracle's API", || {
            if let Some(status) = process.try_wait()? {
                bail!("coracle ended ({status}):\n{}", fs::read_to_string(&log).unwrap_or_default());
            }
            let Ok(text) = fs::read_to_string(&kubeconfig) else { return Ok(None) };
            let api = Api::new(lab.host_netns(index), &text)?;
            Ok(api.get("/readyz").is_ok().then_some(api))
        });
        match started {
            Ok(api) => Ok(Self { process, api }),
            Err(error) => {
                // One that has ended already needs no killing.
                let _ = process.kill();
                let _ = process.wait();
                Err(error)
            }
        }
    }
}

impl Drop for Coracle {
    fn drop(&mut self) {
        // The lab removes the rest.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

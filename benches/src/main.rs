//! `cargo xtask bench [NAME …]`: coracle and what it is measured against, in turn, on the same work in the same run.
//!
//! A round runs coracle and then the peer, both from an empty directory; a figure is the median of the rounds, with the least and the
//! greatest beside it, and a ratio above 1 is in coracle's favour. The load client is the same for both and is not measured.

mod account;
mod api;
mod burst;
mod equal;
mod figures;
mod fixtures;
mod floor;
mod idle;
mod load;
mod memory;
mod oci;
mod pod;
mod report;
mod restart;
mod side;
mod start;
mod stats;
mod steal;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use figures::Figures;
use testkit::interrupt::on_interrupt;

/// Rounds of each bench, when nothing else is said: the whole run stays within a quarter of an hour.
const ROUNDS: usize = 3;

/// One bench.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Env) -> Result<Figures>,
    /// Whether the peer is built from Go.
    upstream: bool,
}

const BENCHES: &[Bench] = &[
    Bench { name: "floor", about: "what the machine itself can do", run: floor::run, upstream: false },
    Bench { name: "api", about: "creating, reading, listing and watching objects", run: api::run, upstream: true },
    Bench { name: "start", about: "from an empty directory to a Ready node", run: start::run, upstream: true },
    Bench { name: "restart", about: "from kill -9 with many objects to ready", run: restart::run, upstream: true },
    Bench { name: "idle", about: "memory and CPU of an empty cluster", run: idle::run, upstream: true },
    Bench { name: "pod", about: "from a pod's creation to its running", run: pod::run, upstream: true },
    Bench { name: "memory", about: "memory of an object and of a watch", run: memory::run, upstream: true },
    Bench { name: "burst", about: "a Deployment from nothing to all of its pods", run: burst::run, upstream: true },
    Bench { name: "oci", about: "a container's whole life, against crun and runc", run: oci::run, upstream: false },
];

/// What every bench is given.
pub struct Env {
    pub coracle: PathBuf,
    pub rounds: usize,
}

struct Arguments {
    benches: Vec<&'static Bench>,
    rounds: usize,
    json: Option<PathBuf>,
    coracle: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((first, rest)) if first == oci::INSIDE => oci::inside(rest),
        Some((first, _)) if ["--help", "-h", "help"].contains(&first.as_str()) => {
            println!("{}", usage());
            Ok(())
        }
        _ => parse(&arguments).and_then(|arguments| run(&arguments)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    let benches: String = BENCHES.iter().map(|bench| format!("\n  {:8} {}", bench.name, bench.about)).collect();
    format!(
        "usage: cargo xtask bench [NAME …] [--rounds N] [--json FILE] [--coracle FILE]\n\
         Without a NAME all of them run, and docs/performance.md is written.\n{benches}\n\n\
         --rounds N      how often each is measured on either side (default {ROUNDS})\n\
         --json FILE     also write a list of {{name, ratio, coracle, peer, unit}}\n\
         --coracle FILE  the binary to measure (default: the one beside this program)"
    )
}

fn known() -> String {
    BENCHES.iter().map(|bench| bench.name).collect::<Vec<_>>().join(", ")
}

fn parse(arguments: &[String]) -> Result<Arguments> {
    let mut parsed = Arguments { benches: Vec::new(), rounds: ROUNDS, json: None, coracle: None };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().with_context(|| format!("{argument} needs a value\n{}", usage()));
        match argument.as_str() {
            "--rounds" => {
                let text = value()?;
                parsed.rounds = text
                    .parse()
                    .ok()
                    .filter(|n| (1..=99).contains(n))
                    .with_context(|| format!("--rounds {text:?} is no number from 1 to 99"))?;
            }
            "--json" => parsed.json = Some(value()?.into()),
            "--coracle" => parsed.coracle = Some(value()?.into()),
            flag if flag.starts_with('-') => bail!("unknown flag {flag}\n{}", usage()),
            name => {
                let bench = BENCHES.iter().find(|bench| bench.name == name);
                parsed.benches.push(bench.with_context(|| format!("unknown bench {name:?}; there are: {}", known()))?);
            }
        }
    }
    Ok(parsed)
}

fn run(arguments: &Arguments) -> Result<()> {
    let whole = arguments.benches.is_empty();
    let benches: Vec<&Bench> = if whole { BENCHES.iter().collect() } else { arguments.benches.clone() };
    if benches.iter().any(|bench| bench.upstream) {
        testkit::upstream::require_go()?;
        // What is fetched or built the first time is no part of what is measured.
        testkit::upstream::control_plane::etcd()?;
        testkit::upstream::program("kube-apiserver")?;
        testkit::upstream::node::prepare()?;
    }
    let coracle = match &arguments.coracle {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("coracle"),
    };
    let coracle = std::fs::canonicalize(&coracle).with_context(|| format!("could not find {}", coracle.display()))?;
    let env = Env { coracle, rounds: arguments.rounds };
    let _run = side::begin()?;
    end_whole_when_told_to()?;
    let mut all = Figures::default();
    let mut failed = Vec::new();
    for bench in benches {
        println!("{}: {} …", bench.name, bench.about);
        let began = std::time::Instant::now();
        let steal = steal::Steal::now()?;
        match (bench.run)(&env) {
            Ok(mut figures) => {
                figures.notes.extend(steal.note(bench.name)?);
                print!("{}", figures::table(&figures.rows));
                figures.notes.iter().for_each(|note| println!("  {note}"));
                println!("  ({:.0} s)\n", began.elapsed().as_secs_f64());
                all.rows.extend(figures.rows);
                all.notes.extend(figures.notes);
            }
            Err(error) => {
                eprintln!("bench: {}: {error:#}", bench.name);
                failed.push(bench.name);
            }
        }
    }
    if let Some(path) = &arguments.json {
        let list: Vec<_> = all.rows.iter().map(figures::Row::json).collect();
        std::fs::write(path, format!("{:#}\n", serde_json::Value::from(list)))
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    if whole && failed.is_empty() {
        report::write(&env, &all)?;
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// On Ctrl-C or SIGTERM everything is taken down before the process ends.
fn end_whole_when_told_to() -> Result<()> {
    on_interrupt(|| {
        if let Err(error) = side::clean() {
            eprintln!("bench: {error:#}");
        }
        std::process::exit(130);
    })
}

//! `docs/performance.md`: the table of the last whole run, with what one must know to read it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use testkit::upstream::{RELEASE, container_runtime::ContainerRuntime};

use crate::Env;
use crate::figures::{Figures, markdown};

/// # Errors
/// When it cannot be written.
pub fn write(env: &Env, figures: &Figures) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = fs::canonicalize(root.join("docs"))?.join("performance.md");
    let facts = Facts::gather(env)?;
    fs::write(&path, page(&facts, figures)).with_context(|| format!("could not write {}", path.display()))?;
    println!("{} is written", path.display());
    Ok(())
}

/// What the figures depend on.
struct Facts {
    date: String,
    commit: String,
    kernel: String,
    processors: String,
    memory: String,
    rounds: usize,
    versions: Vec<String>,
}

impl Facts {
    fn gather(env: &Env) -> Result<Self> {
        let runtime = ContainerRuntime::unpacked()?;
        let cpu = fs::read_to_string("/proc/cpuinfo").context("could not read /proc/cpuinfo")?;
        let models: Vec<&str> = cpu.lines().filter_map(|line| line.strip_prefix("model name\t: ")).collect();
        let memory = fs::read_to_string("/proc/meminfo").context("could not read /proc/meminfo")?;
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
        let gigabytes = total.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1_000_000;
        Ok(Self {
            date: said(&mut Command::new("date"), &["--utc", "+%Y-%m-%d"])?,
            commit: said(
                Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")),
                &["rev-parse", "--short", "HEAD"],
            )
            .unwrap_or_else(|_| "unknown".to_owned()),
            kernel: said(&mut Command::new("uname"), &["-r"])?,
            processors: format!("{} × {}", models.len(), models.first().unwrap_or(&"unknown processor")),
            memory: format!("{gigabytes} GB"),
            rounds: env.rounds,
            versions: vec![
                said(&mut Command::new(&env.coracle), &["--version"])?,
                format!("Kubernetes {RELEASE}"),
                said(&mut Command::new(testkit::upstream::control_plane::etcd()?), &["--version"])?,
                said(&mut Command::new(&runtime.containerd), &["--version"])?,
                said(&mut Command::new(&runtime.runc), &["--version"])?,
                said(&mut Command::new(&runtime.crun), &["--version"])?,
            ],
        })
    }
}

/// The first line that a program prints.
fn said(command: &mut Command, arguments: &[&str]) -> Result<String> {
    let text = testkit::host::checked(command.args(arguments))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn page(facts: &Facts, figures: &Figures) -> String {
    let notes: String = figures.notes.iter().map(|note| format!("- {note}\n")).collect();
    format!(
        "# Performance\n\n\
         Written by `cargo xtask bench` on {date}, at commit {commit}: {rounds} rounds on {processors}, {memory}, kernel {kernel}.\n\n\
         coracle and upstream's own programs run in turn on the same machine, each from an empty directory, on the same work. A figure \
         is the median of the rounds, with the least and the greatest in brackets; a ratio above 1 is in coracle's favour. Absolute \
         figures vary from machine to machine and from day to day: quote the ratios.\n\n\
         {table}{notes}\n\
         ## How to read it\n\n\
         - CPU is the sum over all processes of a side, also short-lived ones, from its control group; memory is their PSS.\n\
         - Before anything is timed, both sides must give the same answers as canonical JSON, with managedFields, over TLS 1.3 with one \
         cipher suite and P-256, refuse strangers by RBAC, and sync to disk before they answer a write; otherwise no ratio is printed.\n\
         - `floor_…` is what the machine itself can do, without either side.\n\
         - `api`, `restart` and `memory`: the peer is etcd and kube-apiserver alone; coracle runs whole. JSON, HTTP/1.1, 64 connections from one \
         client on the same two cores.\n\
         - `restart`: both are killed with SIGKILL and find their files in the page cache; the count of objects must be the same after it.\n\
         - `start`, `idle`, `pod`, `burst`: the peer is etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy \
         (nftables) and containerd with runc and a CNI bridge, without leader election; it has no DNS and no ingress, coracle has both.\n\
         - `…_unthrottled`: the same with the peer's client limits raised to 5000 requests per second.\n\
         - `idle_written`: a side that writes nothing in a round of 20 s counts as one block of 4 KiB, so the ratio is at least (≥) what it \
         says.\n\
         - `oci`: a container's whole life by coracle's container core, against one `run` of crun and of runc.\n\n\
         Versions: {versions}.\n",
        date = facts.date,
        commit = facts.commit,
        rounds = facts.rounds,
        processors = facts.processors,
        memory = facts.memory,
        kernel = facts.kernel,
        table = markdown(&figures.rows),
        versions = facts.versions.join("; "),
    )
}

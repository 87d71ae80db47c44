//! `cargo xtask up`: runs the example rack and says on one screen what it does and costs.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::host::eventually;
use testkit::interrupt::interrupts;
use testkit::load::Load;
use testkit::rack::{GREETING, LIBRARY, Rack, WEBSITE, cpu_time, pss_bytes, written_bytes};

/// How long after the rack is ready idling begins, and how long it is measured.
const SETTLE: Duration = Duration::from_secs(60);
const IDLE: Duration = Duration::from_secs(60);
const MORE_PODS: usize = 20;
/// Who loads the website while main is killed, how long a request may take, and how long they go on after the next main is up.
const CLIENTS: usize = 50;
const REQUEST: Duration = Duration::from_secs(20);
const LOADED_AFTER: Duration = Duration::from_secs(60);

struct Flags {
    once: bool,
    pull: bool,
    json: Option<PathBuf>,
}

/// What is measured, in the units of the names.
#[derive(Default)]
struct Figures {
    node_ready_ms: f64,
    rack_ready_ms: f64,
    pod_running_ms: f64,
    main_back_ms: f64,
    edge_back_ms: f64,
    shim_back_ms: f64,
    requests_under_kill: f64,
    pss_main_mb: f64,
    pss_edge_mb: f64,
    pss_shim_mb: f64,
    idle_cpu_percent: f64,
    idle_written_bytes: f64,
}

fn main() -> ExitCode {
    let mut flags = Flags { once: false, pull: false, json: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--once" => flags.once = true,
            "--pull" => flags.pull = true,
            "--json" => flags.json = arguments.next().map(PathBuf::from),
            other => {
                eprintln!("rack: unknown argument {other:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let interrupted = interrupts()?;
    let binary = std::env::current_exe()?.with_file_name("coracle");
    let mut figures = Figures::default();
    println!("preparing a machine in network namespaces …");
    if !flags.pull {
        println!(
            "images are stand-ins, served under their real names from a registry on loopback (--pull takes the real ones)"
        );
    }
    let mut rack = Rack::prepare("rack", &binary, flags.pull)?;
    figures.node_ready_ms = millis(rack.start()?);
    println!("node Ready after {:.0} ms", figures.node_ready_ms);
    figures.rack_ready_ms = millis(rack.apply().with_context(|| log_tail(&rack))?);
    println!("rack Ready after {:.0} ms", figures.rack_ready_ms);
    rack.check_sites().with_context(|| log_tail(&rack))?;
    figures.pod_running_ms = more_pods(&rack)?;
    kill_each_role(&mut rack, &mut figures).with_context(|| log_tail(&rack))?;
    rack.check_sites().with_context(|| log_tail(&rack))?;
    screen(&rack, &figures);
    measure_idle(&rack, &mut figures, &interrupted)?;
    costs(&figures);
    if let Some(path) = &flags.json {
        std::fs::write(path, to_json(&figures)).with_context(|| format!("could not write {}", path.display()))?;
    }
    if !flags.once {
        println!("\nCtrl-C takes everything down.");
        while !interrupted() {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    drop(rack);
    println!("everything is taken down");
    Ok(())
}

/// Kills main while the website is loaded, then the edge, then the website's shim.
fn kill_each_role(rack: &mut Rack, figures: &mut Figures) -> Result<()> {
    println!("killing main under the load of {CLIENTS} clients, then the edge, then a shim …");
    let before = rack.runs()?;
    let web = rack.web().with_patience(REQUEST);
    let load = Load::start(&web, rack.ingress(443), WEBSITE, GREETING, CLIENTS);
    eventually(REQUEST, "the clients to be served", || Ok((load.served() > CLIENTS).then_some(())))?;
    figures.main_back_ms = millis(rack.restart_main()?);
    std::thread::sleep(LOADED_AFTER);
    let seen = load.stop()?;
    ensure!(seen.failures.is_empty(), "requests failed while main was killed:\n{}", seen.failures.join("\n"));
    figures.requests_under_kill = seen.served as f64;
    let after = rack.runs()?;
    ensure!(before == after, "containers noticed that main was killed: {before:#?} are now {after:#?}");
    figures.edge_back_ms = millis(rack.replace_edge()?);
    figures.shim_back_ms = millis(rack.replace_shim("website")?);
    Ok(())
}

/// The median of twenty more pods, one after the other.
fn more_pods(rack: &Rack) -> Result<f64> {
    // The first one pulls the image.
    rack.one_more_pod(MORE_PODS)?;
    let mut times = Vec::new();
    for n in 0..MORE_PODS {
        times.push(millis(rack.one_more_pod(n)?));
    }
    for n in 0..=MORE_PODS {
        rack.remove_pod(n)?;
    }
    times.sort_by(f64::total_cmp);
    Ok((times[MORE_PODS / 2 - 1] + times[MORE_PODS / 2]) / 2.0)
}

fn measure_idle(rack: &Rack, figures: &mut Figures, interrupted: &impl Fn() -> bool) -> Result<()> {
    println!("\nmeasuring memory and idle CPU for two minutes …");
    wait(SETTLE, interrupted);
    let (main, edge, shims) = (rack.pid("main")?, rack.pid("edge").ok(), rack.shims()?);
    let roles: Vec<u32> = [main].into_iter().chain(edge).chain(shims.iter().copied()).collect();
    let total = || -> Result<(Duration, u64)> {
        let mut sum = (Duration::ZERO, 0);
        for pid in &roles {
            sum.0 += cpu_time(*pid)?;
            sum.1 += written_bytes(*pid)?;
        }
        Ok(sum)
    };
    let (cpu_before, written_before) = total()?;
    let began = Instant::now();
    wait(IDLE, interrupted);
    let (cpu, written) = total()?;
    figures.idle_cpu_percent = (cpu - cpu_before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    figures.idle_written_bytes = (written - written_before) as f64;
    figures.pss_main_mb = megabytes(pss_bytes(main)?);
    figures.pss_edge_mb = edge.map(pss_bytes).transpose()?.map_or(0.0, megabytes);
    let mut shim_sizes = shims.iter().map(|pid| pss_bytes(*pid)).collect::<Result<Vec<_>>>()?;
    shim_sizes.sort_unstable();
    figures.pss_shim_mb = shim_sizes.get(shim_sizes.len() / 2).copied().map_or(0.0, megabytes);
    Ok(())
}

fn wait(time: Duration, interrupted: &impl Fn() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !interrupted() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn screen(rack: &Rack, figures: &Figures) {
    let host = rack.lab.host(0);
    println!(
        "
  website    https://{WEBSITE}   (at {v4} and {v6}, certificate checked)
  library    https://{LIBRARY}
  kubeconfig {dir}/etc/coracle/kubeconfig
  kubectl    nsenter --net=/run/netns/{switch} kubectl --kubeconfig {dir}/etc/coracle/kubeconfig get pods -A
  log        {log}

  start → node Ready         {node:8.0} ms
  apply → rack Ready         {rack:8.0} ms
  one more pod → Running     {pod:8.0} ms   (median of {MORE_PODS})
  kill -9 main → back        {main:8.0} ms   (none of {requests:.0} requests failed, nothing restarted)
  kill -9 edge → answer      {edge:8.0} ms   (no connection refused)
  kill -9 shim → pod Ready   {shim:8.0} ms   (no other pod noticed)",
        v4 = host.ipv4,
        v6 = host.ipv6,
        dir = host.dir.display(),
        switch = rack.lab.switch(),
        log = rack.log().display(),
        node = figures.node_ready_ms,
        rack = figures.rack_ready_ms,
        pod = figures.pod_running_ms,
        main = figures.main_back_ms,
        edge = figures.edge_back_ms,
        shim = figures.shim_back_ms,
        requests = figures.requests_under_kill,
    );
}

fn costs(figures: &Figures) {
    println!(
        "
  main       {:8.1} MB
  edge       {:8.1} MB
  shim       {:8.1} MB each
  idle       {:8.2} % of a core, {:.0} bytes written in {IDLE:?}",
        figures.pss_main_mb,
        figures.pss_edge_mb,
        figures.pss_shim_mb,
        figures.idle_cpu_percent,
        figures.idle_written_bytes
    );
}

fn to_json(figures: &Figures) -> String {
    let object = json!({
        "node_ready_ms": figures.node_ready_ms,
        "rack_ready_ms": figures.rack_ready_ms,
        "pod_running_ms": figures.pod_running_ms,
        "main_back_ms": figures.main_back_ms,
        "edge_back_ms": figures.edge_back_ms,
        "shim_back_ms": figures.shim_back_ms,
        "requests_under_kill": figures.requests_under_kill,
        "pss_main_mb": figures.pss_main_mb,
        "pss_edge_mb": figures.pss_edge_mb,
        "pss_shim_mb": figures.pss_shim_mb,
        "idle_cpu_percent": figures.idle_cpu_percent,
        "idle_written_bytes": figures.idle_written_bytes,
    });
    format!("{object:#}\n")
}

fn log_tail(rack: &Rack) -> String {
    let log = std::fs::read_to_string(rack.log()).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    format!("the server's last words:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
}

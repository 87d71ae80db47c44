//! The one cluster that the tests of this binary share: a host of its own, `coracle server` on it, and a registry on its loopback.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use testkit::debian::Debian;
use testkit::host::{Host, Lab, eventually, remove_leftovers};
use testkit::kubectl::{Kubectl, Printed, RELEASES, Release};
use testkit::netns::within;
use testkit::registry::Registry;
use testkit::stand_ins;

/// The program under test.
pub const CORACLE: &str = env!("CARGO_BIN_EXE_coracle");
/// An image with a shell, which the cluster's registry has.
pub const BUSYBOX: &str = "docker.io/library/busybox:1.37.0-glibc";
/// How long a part of the cluster may take to appear on a machine that also builds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tells this binary, started anew, which lab to remove when its parent is gone.
const GUARDED: &str = "CORACLE_TEST_GUARDED_LAB";

/// A cluster of one host.
pub struct Cluster {
    pub server: Child,
    _registry: Registry,
    /// Last, so that the server is gone before the machine.
    pub lab: Lab,
}

impl Cluster {
    /// Makes a host and starts a server on it; returns when its node is Ready.
    ///
    /// # Errors
    /// When any of it fails; the server's log is in the message.
    pub fn start() -> Result<Self> {
        let mut lab = Lab::unique()?;
        guard(&lab)?;
        lab.add_host("cupboard")?;
        let listener = within(&lab.host_netns(0), || Ok(TcpListener::bind("127.0.0.1:5000")?))?;
        let registry = Registry::serve(listener)?;
        registry.add("library/busybox", "1.37.0-glibc", &stand_ins::busybox(&Debian::new())?);
        fs::write(lab.host(0).dir.join("etc/coracle/registries.yaml"), registry.registries_yaml(&["docker.io"]))?;
        let server = start_server(lab.host(0), &[])?;
        let mut cluster = Self { server, _registry: registry, lab };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    pub fn host(&self) -> &Host {
        self.lab.host(0)
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.host().dir.join("server.log")).unwrap_or_default()
    }

    /// # Errors
    /// When the server ends, or its node is not Ready in time.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let ended = |cluster: &mut Self| -> Result<()> {
            match cluster.server.try_wait()? {
                Some(status) => bail!("the server ended ({status}):\n{}", cluster.log()),
                None => Ok(()),
            }
        };
        let kubeconfig = self.host().dir.join("etc/coracle/kubeconfig");
        eventually(PATIENCE, "the kubeconfig", || {
            ended(self)?;
            Ok(kubeconfig.exists().then_some(()))
        })?;
        let waiting = ["wait", "node", "--all", "--for=condition=Ready", "--timeout=5s"];
        let outcome = eventually(PATIENCE, "the node to be Ready", || {
            ended(self)?;
            let kubectl = Kubectl::new(self.host(), RELEASES[0], "default")?;
            Ok((kubectl.run(&waiting, "").code == Some(0)).then_some(()))
        });
        outcome.with_context(|| self.log())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended already; what it started goes with the lab.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Starts `coracle server` on a host; its log is `server.log` in the host's directory.
///
/// # Errors
/// When it cannot be started.
pub fn start_server(host: &Host, flags: &[&str]) -> Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(host.dir.join("server.log"))?;
    let mut command = host.command(CORACLE);
    command.args(["server", "--cgroup-root", &host.cgroup_root]).args(flags);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().context("could not start the server")
}

/// The cluster that all tests share. It lives as long as the process; the guardian removes it then.
///
/// # Panics
/// When it could not be started, in every test that needs it, with the first reason.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
    let started = SHARED.get_or_init(|| Cluster::start().map_err(|error| format!("{error:#}")));
    started.as_ref().unwrap_or_else(|why| panic!("no cluster: {why}"))
}

/// Runs `test` with every release of kubectl at once, each in a namespace of its own named after `name`.
///
/// # Panics
/// When the test does with any of them.
pub fn with_each_kubectl(name: &str, test: impl Fn(&Session) + Sync) {
    let cluster = shared();
    std::thread::scope(|scope| {
        for release in RELEASES {
            let test = &test;
            let run = move || test(&Session::start(cluster, name, release));
            std::thread::Builder::new()
                .name(format!("{name} kubectl {}", release.minor))
                .spawn_scoped(scope, run)
                .expect("a thread can be started");
        }
    });
}

/// A person at a terminal: one release of kubectl and one namespace, which is deleted in the end.
pub struct Session {
    kubectl: Kubectl<'static>,
}

impl Session {
    fn start(cluster: &'static Cluster, name: &str, release: Release) -> Self {
        let namespace = format!("{name}-{}", release.minor.replace('.', "-"));
        let session = Self { kubectl: Kubectl::new(cluster.host(), release, &namespace).expect("kubectl can be had") };
        session.check(&["create", "namespace", &namespace], &format!("namespace/{namespace} created"));
        session
    }

    pub fn namespace(&self) -> &str {
        &self.kubectl.namespace
    }

    /// Such as `1.36`.
    pub fn minor(&self) -> &'static str {
        self.kubectl.release.minor
    }

    /// `kubectl` itself, for what the other methods do not cover.
    pub fn kubectl(&self) -> &Kubectl<'static> {
        &self.kubectl
    }

    /// Runs a command that must succeed, and returns what it printed, without its last newline.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with(arguments, "")
    }

    #[track_caller]
    pub fn ok_with(&self, arguments: &[&str], stdin: &str) -> String {
        let printed = self.kubectl.run(arguments, stdin);
        assert_eq!(printed.code, Some(0), "{printed}");
        printed.stdout.trim_end().to_owned()
    }

    /// Runs a command that must succeed and print exactly this.
    #[track_caller]
    pub fn check(&self, arguments: &[&str], expected: &str) {
        let printed = self.kubectl.run(arguments, "");
        assert_eq!((printed.code, printed.stdout.trim_end()), (Some(0), expected), "{printed}");
    }

    /// Runs a command that must succeed and print, among others, each of these.
    #[track_caller]
    pub fn shows(&self, arguments: &[&str], expected: &[&str]) -> String {
        let printed = self.kubectl.run(arguments, "");
        assert_eq!(printed.code, Some(0), "{printed}");
        must_show(&printed, &printed.stdout, expected);
        printed.stdout
    }

    /// Runs a command that must fail and say this on standard error.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str], expected: &str) {
        self.fails_with(arguments, "", expected);
    }

    #[track_caller]
    pub fn fails_with(&self, arguments: &[&str], stdin: &str, expected: &str) {
        let printed = self.kubectl.run(arguments, stdin);
        assert!(printed.code != Some(0), "{printed}");
        must_show(&printed, &printed.stderr, &[expected]);
    }

    /// Applies manifests from standard input.
    #[track_caller]
    pub fn apply(&self, manifest: &str) -> String {
        self.ok_with(&["apply", "-f", "-"], manifest)
    }
}

#[track_caller]
fn must_show(printed: &Printed, text: &str, expected: &[&str]) {
    for wanted in expected {
        assert!(text.contains(wanted), "no {wanted:?} in\n{printed}");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let events = self.kubectl.run(&["get", "pods,events", "-o", "wide"], "");
            eprintln!("{events}");
        }
        // A namespace that does not go is the business of the test of namespaces.
        let _ = self.kubectl.run(&["delete", "namespace", &self.kubectl.namespace, "--wait=false"], "");
    }
}

/// Starts this binary once more, to remove the lab when this process is gone, however it ends.
pub fn guard(lab: &Lab) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "cluster::a_lab_does_not_outlive_its_tests"]).env(GUARDED, lab.dir());
    // The pipe's other end is never closed by us: the kernel does it when this process ends.
    // In a group of its own: what ends the tests with Ctrl-C or a time limit must not end it.
    command.process_group(0);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    std::mem::forget(child);
    Ok(())
}

#[test]
fn a_lab_does_not_outlive_its_tests() {
    let Some(dir) = std::env::var_os(GUARDED) else { return };
    let mut nothing = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin(), &mut nothing).unwrap();
    remove_leftovers(dir.as_ref()).unwrap();
}

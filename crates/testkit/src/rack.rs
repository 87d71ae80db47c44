//! The example rack on a machine in namespaces: started, waited for, asked, measured, and taken down again.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::debian::Debian;
use crate::host::{Lab, eventually};
use crate::netns::within;
use crate::registry::Registry;
use crate::stand_ins;
use crate::web::{Answer, Api, Web};

/// The names under which the two sites answer.
pub const WEBSITE: &str = "www.rack.example";
pub const LIBRARY: &str = "library.rack.example";
/// What the website's page must contain.
pub const GREETING: &str = "Welcome to the rack";
/// The user of the library, who owns its configuration.
const LIBRARY_USER: u32 = 119;
const PATIENCE: Duration = Duration::from_secs(60);

/// A running rack. Dropping it takes everything down.
pub struct Rack {
    server: Option<Child>,
    binary: PathBuf,
    registry: Option<Registry>,
    web: Web,
    tls: Vec<Value>,
    api: Option<Api>,
    pub lab: Lab,
}

impl Rack {
    /// Makes the machine, its images and its certificates; starts nothing yet. `pull`: from the real registries.
    ///
    /// # Errors
    /// When a namespace or an image cannot be made.
    pub fn prepare(name: &str, binary: &Path, pull: bool) -> Result<Self> {
        let mut lab = Lab::new(name)?;
        lab.add_host("cupboard")?;
        let registry = if pull { None } else { Some(stand_in_registry(&lab)?) };
        let host = lab.host(0);
        if let Some(registry) = &registry {
            let mirrors = registry.registries_yaml(&["docker.io", "ghcr.io"]);
            fs::write(host.dir.join("etc/coracle/registries.yaml"), mirrors)?;
        }
        host.run(&["mkdir", "-p", "/mnt/XS1/books", "/var/lib/komga"])?;
        host.run(&["sh", "-c", "echo 'A book' > /mnt/XS1/books/first.txt"])?;
        host.run(&["chown", &format!("{LIBRARY_USER}:{LIBRARY_USER}"), "/var/lib/komga"])?;
        let (authority, tls) = certificates()?;
        let web = Web::new(Path::new("/run/netns").join(lab.switch()), &authority, None)?;
        Ok(Self { server: None, binary: binary.to_owned(), registry, web, tls, api: None, lab })
    }

    /// Starts the server and waits until the node is Ready. Returns how long that took.
    ///
    /// # Errors
    /// When it ends, or the node is not Ready in time; the server's log says why.
    pub fn start(&mut self) -> Result<Duration> {
        let began = Instant::now();
        self.start_server()?;
        let kubeconfig = self.lab.host(0).dir.join("etc/coracle/kubeconfig");
        let api = eventually(PATIENCE, "the kubeconfig", || {
            self.must_run()?;
            let Ok(text) = fs::read_to_string(&kubeconfig) else { return Ok(None) };
            let api = Api::new(Path::new("/run/netns").join(self.lab.switch()), &text)?;
            Ok(api.get("/readyz").is_ok().then_some(api))
        })?;
        api.watch_until("/api/v1/nodes", |node| condition(node, "Ready"))?;
        let took = began.elapsed();
        self.api = Some(api);
        Ok(took)
    }

    fn start_server(&mut self) -> Result<()> {
        let host = self.lab.host(0);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let mut command = host.command(&self.binary);
        command.args(["server", "--cgroup-root", &host.cgroup_root]);
        self.server = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?);
        Ok(())
    }

    /// # Errors
    /// When the server has ended; its log is in the message.
    pub fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.server.as_mut().and_then(|server| server.try_wait().ok().flatten()) {
            bail!("the server ended ({status}):\n{}", fs::read_to_string(self.log()).unwrap_or_default());
        }
        Ok(())
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.lab.host(0).dir.join("server.log")
    }

    pub fn api(&self) -> &Api {
        self.api.as_ref().expect("the rack was started")
    }

    /// Applies `examples/rack/` with certificates for its sites, and waits until both sites are available. Returns how long.
    ///
    /// # Errors
    /// When an object is refused, or a Deployment is not available in time.
    pub fn apply(&self) -> Result<Duration> {
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/rack");
        let read =
            |name: &str| fs::read_to_string(manifests.join(name)).with_context(|| format!("could not read {name}"));
        let (website, library) = (read("website.yaml")?, read("library.yaml")?);
        let began = Instant::now();
        self.api().create_all(&website)?;
        for secret in &self.tls {
            self.api().post("/api/v1/namespaces/rack/secrets", secret)?;
        }
        self.api().create_all(&library)?;
        let mut available = Vec::new();
        self.api().watch_until("/apis/apps/v1/namespaces/rack/deployments", |deployment| {
            let name = deployment["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            available.retain(|n| *n != name);
            if condition(deployment, "Available") {
                available.push(name);
            }
            available.len() == 2
        })?;
        Ok(began.elapsed())
    }

    /// Fetches a site by its name over HTTPS, from where a person at home would, checking its certificate.
    ///
    /// # Errors
    /// When the connection or the certificate fails.
    pub fn fetch(&self, site: &str, path: &str) -> Result<Answer> {
        self.web.get(self.ingress(443), site, path)
    }

    /// The client with which sites are fetched.
    pub fn web(&self) -> &Web {
        &self.web
    }

    /// The address of the ingress.
    pub fn ingress(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.lab.host(0).ipv4.parse().expect("the lab's addresses are addresses"), port)
    }

    /// Checks that both sites answer what they must, and that plain HTTP leads to HTTPS.
    ///
    /// # Errors
    /// Says which site answered what.
    pub fn check_sites(&self) -> Result<()> {
        let fetch = |site: &str, path: &str, expected: &str| {
            eventually(Duration::from_secs(10), &format!("{site} to answer"), || match self.fetch(site, path) {
                Ok(answer) if answer.status == 200 && answer.body.contains(expected) => Ok(Some(())),
                // Endpoints reach the edge a moment after the Deployment is available.
                Ok(_) | Err(_) => Ok(None),
            })
            .with_context(|| format!("the last answer of {site}: {:?}", self.fetch(site, path)))
        };
        fetch(WEBSITE, "/", GREETING)?;
        fetch(LIBRARY, "/", "first.txt")?;
        let plain = self.web.get_plain(self.ingress(80), WEBSITE, "/a?b=c")?;
        let expected = format!("https://{WEBSITE}/a?b=c");
        ensure!(
            plain.status == 308 && plain.header("location") == Some(&expected),
            "plain HTTP is answered with {plain:?}"
        );
        Ok(())
    }

    /// Creates a pod and waits until it runs: how long one more pod takes, its image present.
    ///
    /// # Errors
    /// When it does not run.
    pub fn one_more_pod(&self, n: usize) -> Result<Duration> {
        let name = format!("one-more-{n}");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "rack"},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
                "name": "c", "image": "docker.io/library/busybox:1.37.0-glibc", "command": ["sleep", "3600"],
                "imagePullPolicy": "IfNotPresent",
            }]},
        });
        let path = format!("/api/v1/namespaces/rack/pods?fieldSelector=metadata.name={name}");
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                self.api().watch_until(&path, |pod| pod["status"]["phase"] == "Running").map(|()| Instant::now())
            });
            let began = Instant::now();
            self.api().post("/api/v1/namespaces/rack/pods", &pod)?;
            let running = watching.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))??;
            Ok(running - began)
        })
    }

    /// # Errors
    /// When the pod cannot be deleted.
    pub fn remove_pod(&self, n: usize) -> Result<()> {
        let path = format!("/api/v1/namespaces/rack/pods/one-more-{n}");
        self.api().delete(&path)?;
        eventually(PATIENCE, "the pod to be gone", || Ok(self.api().get(&path).is_err().then_some(())))
    }

    /// The process id of a role, as the server's own files say.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, role: &str) -> Result<u32> {
        let text = self.lab.host(0).run(&["cat", &format!("/run/coracle/{role}.pid")])?;
        Ok(text.trim().parse()?)
    }

    /// The shims' process ids.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn shims(&self) -> Result<Vec<u32>> {
        let pids = processes()?;
        let mine = fs::read_link(format!("/proc/{}/ns/mnt", self.pid("main")?))?;
        let is_mine = |pid: &u32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|b| *b == 0).nth(1) == Some(b"shim")
                && fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|ns| ns == mine)
        };
        Ok(pids.into_iter().filter(is_mine).collect())
    }

    /// Kills main with -9 and starts it again; returns when the API answers.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn restart_main(&mut self) -> Result<Duration> {
        self.kill_main()?;
        self.start()
    }

    /// Kills main with -9.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_main(&mut self) -> Result<()> {
        // The child itself, not what the pid file says: that is written only when the store is open.
        let mut server = self.server.take().context("main was not started")?;
        server.kill()?;
        server.wait()?;
        Ok(())
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // The lab removes the rest; a server that is gone already needs no killing.
            let _ = server.kill();
            let _ = server.wait();
        }
        self.registry.take();
    }
}

/// Every process id.
fn processes() -> Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Bytes of memory of a process that are its own, shared pages in proportion.
///
/// # Errors
/// When it is gone.
pub fn pss_bytes(pid: u32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// CPU time that a process has used.
///
/// # Errors
/// When it is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// Bytes that a process has caused to be written to disks.
///
/// # Errors
/// When it is gone.
pub fn written_bytes(pid: u32) -> Result<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes line")?;
    Ok(line.parse()?)
}

fn condition(object: &Value, name: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == name && c["status"] == "True")
}

fn stand_in_registry(lab: &Lab) -> Result<Registry> {
    let debian = Debian::new();
    let page = format!("<!doctype html><title>Rack</title><h1>{GREETING}</h1>\n");
    let netns = lab.host_netns(0);
    let listener = within(&netns, || Ok(TcpListener::bind("127.0.0.1:5000")?))?;
    let registry = Registry::serve(listener)?;
    registry.add("library/busybox", "1.37.0-glibc", &stand_ins::busybox(&debian)?);
    registry.add("home-rack/website", "1", &stand_ins::website(&debian, &[("index.html", &page)])?);
    registry.add("gotson/komga", "1.23.4", &stand_ins::library(&debian)?);
    Ok(registry)
}

/// An authority of the household's own, and TLS secrets for both sites.
fn certificates() -> Result<(String, Vec<Value>)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let mut secrets = Vec::new();
    for (name, site) in [("website-tls", WEBSITE), ("library-tls", LIBRARY)] {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![site.to_owned()])?.signed_by(&key, &issuer)?;
        secrets.push(json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": name, "namespace": "rack"},
            "stringData": {"tls.crt": certificate.pem(), "tls.key": key.serialize_pem()},
        }));
    }
    Ok((authority, secrets))
}

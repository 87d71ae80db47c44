//! Machines for tests: each a network namespace and a mount namespace with directories of its own, joined by one switch.
//!
//! Nothing of the real machine is touched: its interfaces, routes, firewall and directories are not visible to what runs in a
//! [`Host`], and cgroups lie below a name of the lab's own. Everything that a lab creates is written down in its directory first,
//! so that the next lab of the same name removes what a killed one left behind.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Where labs keep their records and their hosts' directories.
const LABS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/labs");

/// A set of hosts on one switch, with addresses 192.168.77.0/24 and fd77::/64. The switch itself is .1 and ::1, the place from
/// which a person at home would use the cluster.
pub struct Lab {
    name: String,
    dir: PathBuf,
    hosts: Vec<Host>,
    /// Last, so that nobody takes the name before everything is gone.
    _claim: UnixListener,
}

/// One machine of a [`Lab`].
pub struct Host {
    /// The host's name, and of its network namespace.
    pub name: String,
    /// The real directory behind the host's /var/lib/coracle and the like.
    pub dir: PathBuf,
    pub ipv4: String,
    pub ipv6: String,
    /// Where the host's cgroups lie below each hierarchy.
    pub cgroup_root: String,
    /// Holds the namespaces open while nothing else runs in them.
    holder: Child,
}

impl Lab {
    /// Makes a lab with no hosts. `name` is at most 8 letters and digits; what a killed lab of that name left behind is removed first.
    ///
    /// # Errors
    /// When not root, when `ip` is missing, or when a lab of that name is in use.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            name.len() <= 8 && name.bytes().all(|b| b.is_ascii_alphanumeric()),
            "lab name {name:?} is not 1–8 letters and digits"
        );
        fs::create_dir_all(LABS).with_context(|| format!("could not create {LABS}"))?;
        let dir = fs::canonicalize(LABS)?.join(name);
        for own in OVERLAID.iter().chain(EMPTY) {
            ensure!(!dir.starts_with(own), "labs cannot lie below {own}: check the project out elsewhere");
        }
        let claim = claim(name)?;
        remove_leftovers(&dir)?;
        fs::create_dir_all(&dir)?;
        let lab = Self { name: name.to_owned(), dir, hosts: Vec::new(), _claim: claim };
        let switch = lab.switch();
        record(&lab.dir, "netns", &switch)?;
        run(&["ip", "netns", "add", &switch])?;
        lab.at_switch(&["ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0"])?;
        lab.at_switch(&["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/br0/accept_dad"])?;
        lab.at_switch(&["ip", "addr", "add", "192.168.77.1/24", "dev", "br0"])?;
        lab.at_switch(&["ip", "addr", "add", "fd77::1/64", "dev", "br0"])?;
        lab.at_switch(&["ip", "link", "set", "br0", "up"])?;
        lab.at_switch(&["ip", "link", "set", "lo", "up"])?;
        Ok(lab)
    }

    /// A lab with a name of its own, for tests that run side by side.
    ///
    /// # Errors
    /// As [`Lab::new`].
    pub fn unique() -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::new(&format!("t{:05}{n:02}", std::process::id() % 100_000))
    }

    /// Adds a machine and returns its index.
    ///
    /// # Errors
    /// When a namespace, link or directory cannot be made.
    pub fn add_host(&mut self, host_name: &str) -> Result<usize> {
        let index = self.hosts.len();
        let netns = format!("cor-{}-{index}", self.name);
        let port = format!("p{index}");
        let (ipv4, ipv6) = (format!("192.168.77.{}", index + 2), format!("fd77::{:x}", index + 2));
        let cgroup_root = format!("coracle-{}-{index}.slice", self.name);
        record(&self.dir, "netns", &netns)?;
        record(&self.dir, "cgroup", &cgroup_root)?;
        run(&["ip", "netns", "add", &netns])?;
        self.at_switch(&["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
        self.at_switch(&["ip", "link", "set", &port, "master", "br0", "up"])?;
        let dir = self.dir.join(host_name);
        let holder = hold_namespaces(&netns, &dir)?;
        record(&self.dir, "pid", &holder.id().to_string())?;
        let host = Host { name: host_name.to_owned(), dir, ipv4, ipv6, cgroup_root, holder };
        host.wait_until_ready()?;
        let (v4, v6) = (format!("{}/24", host.ipv4), format!("{}/64", host.ipv6));
        host.run(&["sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad"])?;
        host.run(&["ip", "link", "set", "lo", "up"])?;
        host.run(&["ip", "addr", "add", &v4, "dev", "eth0"])?;
        host.run(&["ip", "addr", "add", &v6, "dev", "eth0"])?;
        host.run(&["ip", "link", "set", "eth0", "up"])?;
        host.run(&["ip", "route", "add", "default", "via", "192.168.77.1"])?;
        host.run(&["ip", "-6", "route", "add", "default", "via", "fd77::1"])?;
        self.hosts.push(host);
        Ok(index)
    }

    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// The file that names a host's network namespace.
    pub fn host_netns(&self, index: usize) -> PathBuf {
        Path::new("/run/netns").join(format!("cor-{}-{index}", self.name))
    }

    /// The network namespace of the switch.
    pub fn switch(&self) -> String {
        format!("cor-{}-sw", self.name)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs a command where a person on the home network would.
    ///
    /// # Errors
    /// When it cannot be started or does not exit with 0; its standard error is in the message.
    pub fn at_switch(&self, command: &[&str]) -> Result<String> {
        let netns = format!("--net=/run/netns/{}", self.switch());
        checked(Command::new("nsenter").arg(netns).args(command))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            // A holder that is gone already needs no killing.
            let _ = host.holder.kill();
            let _ = host.holder.wait();
        }
        self.hosts.clear();
        if let Err(error) = remove_leftovers(&self.dir) {
            eprintln!("lab {} was not removed whole: {error:#}", self.name);
        }
    }
}

impl Host {
    /// A command that will run on this host, not started yet.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.holder.id())).args(["--net", "--mount", "--uts", "--"]).arg(program);
        command
    }

    /// Runs a command on this host and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or does not exit with 0; its standard error is in the message.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        checked(self.command(program).args(arguments))
    }

    fn wait_until_ready(&self) -> Result<()> {
        let ready = self.dir.join("ready");
        eventually(Duration::from_secs(10), "the host's namespaces", || Ok(ready.exists().then_some(())))
    }
}

/// Directories that show the machine's and keep each host's changes apart.
const OVERLAID: &[&str] = &["/etc", "/var"];
/// Directories that begin empty on each host.
const EMPTY: &[&str] = &["/run", "/mnt"];
/// Real directories within them: overlay cannot be stacked on overlay, and a test may look into them from outside.
const REAL: &[&str] = &["/var/lib/coracle", "/var/lib/kubelet", "/var/log/pods", "/var/log/containers", "/etc/coracle"];

fn hold_namespaces(netns: &str, dir: &Path) -> Result<Child> {
    let mut script = String::from("set -e\nmount --make-rprivate /\n");
    for empty in EMPTY {
        script.push_str(&format!("mount -t tmpfs -o mode=755 tmpfs {empty}\n"));
    }
    // Beneath /run the host's directory stays reachable when /var and /etc are overlaid.
    script.push_str(&format!("mkdir -p /run/lock /run/lab\nmount --bind {} /run/lab\n", dir.display()));
    for own in OVERLAID {
        fs::create_dir_all(dir.join(format!("upper{own}")))?;
        fs::create_dir_all(dir.join(format!("work{own}")))?;
        script.push_str(&format!(
            "mount -t overlay overlay -o lowerdir={own},upperdir=/run/lab/upper{own},workdir=/run/lab/work{own} {own}\n"
        ));
    }
    for real in REAL {
        fs::create_dir_all(dir.join(real.trim_start_matches('/')))?;
        script.push_str(&format!("mkdir -p {real}\nmount --bind /run/lab{real} {real}\n"));
    }
    let host_name = dir.file_name().context("a host directory has a name")?.to_string_lossy();
    script.push_str(&format!("hostname {host_name}\ntouch /run/lab/ready\nexec sleep infinity\n"));
    Command::new("nsenter")
        .arg(format!("--net=/run/netns/{netns}"))
        .args(["unshare", "--mount", "--uts", "sh", "-c", &script])
        .stdin(Stdio::null())
        .spawn()
        .context("could not start nsenter and unshare (util-linux)")
}

/// Appends to the lab's record before the thing exists, so that a killed lab can always be removed.
fn record(dir: &Path, what: &str, name: &str) -> Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("record"))?;
    writeln!(file, "{what} {name}")?;
    Ok(())
}

/// Where labs are, each in a directory of its name.
pub fn labs_dir() -> PathBuf {
    PathBuf::from(LABS)
}

/// Ends the processes, and removes the namespaces, cgroups and directories that a lab's record names.
///
/// # Errors
/// When something is still in use after ten seconds.
pub fn remove_leftovers(dir: &Path) -> Result<()> {
    let record = match fs::read_to_string(dir.join("record")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).context("could not read the lab's record"),
    };
    let entries = |what: &str| -> Vec<String> {
        record.lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' ').map(str::to_owned)).collect()
    };
    for pid in entries("pid") {
        // The number may have been reused since: only a holder of ours is ended.
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if cmdline.starts_with(b"sleep\0infinity") {
            kill(&pid);
        }
    }
    for netns in entries("netns") {
        let pids = Command::new("ip").args(["netns", "pids", &netns]).output()?;
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            kill(pid);
        }
    }
    for root in entries("cgroup") {
        remove_cgroups(&root)?;
    }
    for netns in entries("netns") {
        if Path::new("/run/netns").join(&netns).exists() {
            run(&["ip", "netns", "del", &netns])?;
        }
    }
    if dir.exists() {
        eventually(Duration::from_secs(10), "the lab's directory to be free", || Ok(fs::remove_dir_all(dir).ok()))?;
    }
    Ok(())
}

/// Takes a lab's name, on the whole machine: namespaces are not a checkout's own. It is free again when what is returned is dropped.
///
/// # Errors
/// When it is in use.
pub fn claim(name: &str) -> Result<UnixListener> {
    /// Between fork and exec, a process that was just started holds the name as well.
    const HELD: Duration = Duration::from_secs(5);
    let address = SocketAddr::from_abstract_name(format!("coracle-lab-{name}"))?;
    let deadline = Instant::now() + HELD;
    loop {
        match UnixListener::bind_addr(&address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => ensure!(
                Instant::now() < deadline,
                "the lab {name:?} is in use: the same command runs on this machine already; wait for it or end it"
            ),
            listener => return listener.with_context(|| format!("could not claim the lab {name:?}")),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(pid: &str) {
    // It may have ended by itself in the meantime.
    let _ = Command::new("kill").args(["-9", pid]).stderr(Stdio::null()).status();
}

/// Kills everything below `root` in every hierarchy and removes the cgroups, deepest first.
fn remove_cgroups(root: &str) -> Result<()> {
    let mut hierarchies = vec![PathBuf::from("/sys/fs/cgroup")];
    hierarchies.extend(fs::read_dir("/sys/fs/cgroup")?.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_dir()));
    for top in hierarchies.iter().map(|h| h.join(root)).filter(|top| top.exists()) {
        eventually(Duration::from_secs(10), "the lab's cgroups to be empty", || {
            let mut dirs = Vec::new();
            walk(&top, &mut dirs);
            for dir in &dirs {
                for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().split_whitespace() {
                    kill(pid);
                }
            }
            dirs.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
            Ok((!top.exists()).then_some(()))
        })?;
    }
    Ok(())
}

/// Every cgroup below a lab's root, in every hierarchy.
pub fn cgroups_below(root: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for top in hierarchies.chain(["/sys/fs/cgroup".into()]).map(|h| h.join(root)).filter(|top| top.is_dir()) {
        walk(&top, &mut found);
    }
    found
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    found.push(dir.to_owned());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), found);
        }
    }
}

/// Asks `probe` until it returns a value.
///
/// # Errors
/// When it has not within `limit`, or at once when it fails.
pub fn eventually<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        ensure!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn run(command: &[&str]) -> Result<String> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    checked(Command::new(program).args(arguments))
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or does not exit with 0; its standard error is in the message.
pub fn checked(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().with_context(|| format!("could not run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}: {}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

//! A machine with a kernel of its own: Debian's, in QEMU, with nothing but version 2 of the control groups.
//!
//! What tests in namespaces cannot show, because the machine they run on decides it, is run in here: a script, as the first
//! process of a root in memory. The processor is emulated, so that no virtualization is needed: expect a tenth of the speed.
//!
//! Source: kernel `Documentation/driver-api/early-userspace/buffer-format.rst` (the archive that the kernel boots from).

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::debian::{Debian, crate_target};

const QEMU: &str = "qemu-system-x86_64";
/// Depends on the newest kernel of the suite, built for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
const MEMORY: &str = "1536M";
/// Two, so that what the guest does is not strictly one thing after another.
const PROCESSORS: &str = "2";
/// What a script writes before each result.
const MARK: &str = "RESULT ";
/// How much of the console a failed test shows.
const SHOWN: usize = 16_000;

/// What a node of ours needs that Debian builds as modules; what these depend on is found in them.
const MODULES: &[&str] = &[
    "overlay",
    "veth",
    "dummy",
    "nf_conntrack_netlink",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
];

/// The first process: from the kernel's archive into a root like other machines', from which containers can pivot.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /root
/bin/busybox mount -t tmpfs -o mode=755,size=90% tmpfs /root
/bin/busybox cp -a /bin /root/
for name in /*; do
  case $name in
    /bin | /init | /root) ;;
    *) /bin/busybox mv "$name" /root/ ;;
  esac
done
exec /root/bin/busybox switch_root /root /sbin/start
"#;

/// What an init system does, and then the scenario.
const START: &str = r#"#!/bin/busybox sh
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /mnt /etc /var/log /var/lib /usr/bin /usr/sbin
/bin/busybox --install -s /bin
ln -sf /bin/busybox /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
exec </dev/null >/dev/ttyS0 2>&1
for module in $(cat /modules/order); do
  insmod "/modules/$module" || echo "no module $module"
done
hostname guest
ip link set lo up
ip link add eth0 type dummy
ip addr add 192.168.77.2/24 dev eth0
ip link set eth0 up
ip route add default via 192.168.77.1
result() { name=$1; shift; echo "RESULT $name $(echo "$*" | tr '\n\r' '  ')"; }
. /scenario
result done yes
sync
poweroff -f
"#;

/// A machine to be: a kernel, and the files of its root.
pub struct Guest {
    kernel: PathBuf,
    archive: Archive,
}

impl Guest {
    /// A guest with busybox's applets in /bin and the modules of a node, loaded.
    ///
    /// # Errors
    /// When a Debian package cannot be fetched, or holds another thing than it used to.
    pub fn new(debian: &Debian) -> Result<Guest> {
        let package = debian.newest_of(KERNEL_PACKAGE)?;
        let version = package.strip_prefix("linux-image-").with_context(|| format!("{package} is no kernel"))?;
        let tree = debian.unpacked(&package)?;
        let kernel = tree.join(format!("boot/vmlinuz-{version}"));
        ensure!(kernel.is_file(), "{package} holds no {}", kernel.display());
        let busybox = debian.unpacked("busybox-static")?.join("usr/bin/busybox");
        let unpacked = tree.join("usr/lib/modules").join(version);
        let mut modules = Modules { busybox: &busybox, found: find_modules(&unpacked)?, ordered: Vec::new() };
        for name in MODULES {
            modules.add(name)?;
        }
        let mut archive = Archive::default();
        // Before there is a /dev the kernel opens its console for the first process.
        archive.device("dev/console", 5, 1);
        archive.file("bin/busybox", 0o755, &read(&busybox)?);
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("sbin/start", 0o755, START.as_bytes());
        let order: Vec<&str> = modules.ordered.iter().map(|(name, _)| name.as_str()).collect();
        archive.file("modules/order", 0o644, order.join("\n").as_bytes());
        for (name, content) in &modules.ordered {
            archive.file(&format!("modules/{name}"), 0o644, content);
        }
        Ok(Guest { kernel, archive })
    }

    /// Puts a file into the guest; `path` begins without a slash.
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Guest {
        self.archive.file(path, mode, content);
        self
    }

    /// Puts a static program into the guest, without what only a debugger reads.
    ///
    /// # Errors
    /// When it cannot be read, or `objcopy` (binutils) fails.
    pub fn program(self, path: &str, program: &Path) -> Result<Guest> {
        let stripped = Scratch::new("program")?;
        let mut objcopy = Command::new("objcopy");
        crate::host::checked(objcopy.arg("--strip-all").arg(program).arg(&stripped.0))?;
        let content = read(&stripped.0)?;
        Ok(self.file(path, 0o755, &content))
    }

    /// Boots, and sources `scenario` in a busybox shell: `result NAME VALUE…` notes a result.
    ///
    /// # Errors
    /// When QEMU cannot be started, or the scenario has not come to its end within `patience`; the message has the console.
    pub fn run(mut self, scenario: &str, patience: Duration) -> Result<Console> {
        self.archive.file("scenario", 0o644, scenario.as_bytes());
        let initrd = Scratch::new("initrd")?;
        fs::write(&initrd.0, self.archive.finish()).with_context(|| format!("could not write {:?}", initrd.0))?;
        let mut qemu = Command::new(QEMU);
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", PROCESSORS, "-m", MEMORY]);
        qemu.args(["-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"]);
        qemu.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&initrd.0);
        qemu.args(["-append", "console=ttyS0 loglevel=1 panic=-1 mitigations=off nokaslr cgroup_no_v1=all"]);
        let text = console_of(qemu, patience)?;
        let console = Console { text: text.replace('\r', "") };
        match console.results().get("done") {
            Some(_) => Ok(console),
            None => bail!("the guest did not come to its end within {patience:?}:\n{}", console.tail()),
        }
    }
}

/// What a guest wrote.
#[derive(Clone, Debug)]
pub struct Console {
    pub text: String,
}

impl Console {
    /// What the scenario noted, by name; of two with one name, the last.
    pub fn results(&self) -> BTreeMap<&str, &str> {
        let marked = self.text.lines().filter_map(|line| line.split_once(MARK)).map(|(_, result)| result);
        marked.map(|result| result.split_once(' ').unwrap_or((result, ""))).map(|(k, v)| (k, v.trim())).collect()
    }

    /// The end of it, where failures are.
    pub fn tail(&self) -> &str {
        let from = self.text.ceil_char_boundary(self.text.len().saturating_sub(SHOWN));
        &self.text[from..]
    }
}

/// Runs QEMU until it ends by itself or `patience` does, and returns what came over the serial line.
fn console_of(mut qemu: Command, patience: Duration) -> Result<String> {
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        qemu.spawn().with_context(|| format!("could not start {QEMU}: install the package qemu-system-x86"))?;
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let (sender, receiver) = channel();
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut piece) {
            if sender.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + patience;
    let mut bytes = Vec::new();
    let in_time = loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => bytes.extend(piece),
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    if !in_time {
        child.kill().context("could not end QEMU")?;
    }
    let status = child.wait().context("could not wait for QEMU")?;
    drop(receiver);
    reader.join().expect("reading does not panic");
    let mut complaint = String::new();
    stderr.read_to_string(&mut complaint).context("could not read what QEMU said")?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    ensure!(!in_time || status.success(), "{QEMU}: {status}: {}\n{text}", complaint.trim());
    Ok(text)
}

/// Kernel modules in the order in which they can be loaded.
struct Modules<'a> {
    busybox: &'a Path,
    /// Compressed files by the module's name.
    found: BTreeMap<String, PathBuf>,
    ordered: Vec<(String, Vec<u8>)>,
}

impl Modules<'_> {
    /// Adds a module after those it depends on.
    fn add(&mut self, name: &str) -> Result<()> {
        if self.ordered.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let file = self.found.get(name).with_context(|| format!("the kernel has no module {name}"))?;
        let unpacked = Command::new(self.busybox).arg("unxz").arg("-c").arg(file).output()?;
        ensure!(unpacked.status.success(), "could not unpack {file:?}");
        for needed in depends(&unpacked.stdout) {
            self.add(&needed)?;
        }
        self.ordered.push((name.to_owned(), unpacked.stdout));
        Ok(())
    }
}

/// The names in a module's `depends=` line.
fn depends(module: &[u8]) -> Vec<String> {
    let line = module.split(|byte| *byte == 0).find_map(|line| line.strip_prefix(b"depends="));
    let text = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn find_modules(directory: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("could not read {directory:?}"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                left.push(path);
            } else if let Some(name) = name.strip_suffix(".ko.xz") {
                // A file's dash is the module's underscore.
                found.insert(name.replace('-', "_"), path);
            }
        }
    }
    Ok(found)
}

/// A `newc` archive.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    directories: Vec<String>,
    entries: u32,
}

impl Archive {
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parents(path);
        self.entry(path, 0o100_000 | mode, (0, 0), content);
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, 0o020_600, (major, minor), &[]);
    }

    /// The kernel makes no directories by itself.
    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            let parent = &path[..at];
            if !self.directories.iter().any(|known| known == parent) {
                self.directories.push(parent.to_owned());
                self.entry(parent, 0o040_755, (0, 0), &[]);
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).expect("files of guests are below 4 GiB");
        let name_length = u32::try_from(name.len() + 1).expect("names are short");
        let (major, minor) = device;
        // Inode, mode, owner, group, links, time, size, device, device of a node, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, major, minor, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("could not read {path:?}"))
}

/// A file that is gone when the value is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Scratch> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let directory = crate_target().join("guest");
        fs::create_dir_all(&directory).with_context(|| format!("could not make {directory:?}"))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Scratch(directory.join(format!("{name}-{}-{number}", std::process::id()))))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // best effort: it lies below target/
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_newc() {
        let mut archive = Archive::default();
        archive.file("a/b/c", 0o755, b"hello");
        archive.file("a/b/d", 0o644, b"");
        let mut cpio = Command::new("busybox");
        cpio.args(["cpio", "-t"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = cpio.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &archive.finish()).unwrap();
        let listed = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), "a\na/b\na/b/c\na/b/d\n");
    }

    #[test]
    fn modules_name_what_they_depend_on() {
        assert_eq!(depends(b"\0license=GPL\0depends=nf_nat,nf_tables\0"), ["nf_nat", "nf_tables"]);
        assert!(depends(b"license=GPL\0depends=\0").is_empty());
    }

    #[test]
    fn results_are_found_among_other_lines() {
        let console = Console { text: "noise\n[1.0] RESULT a 1 2 \nRESULT b\nRESULT a 3\n".into() };
        assert_eq!(console.results().into_iter().collect::<Vec<_>>(), [("a", "3"), ("b", "")]);
    }
}

//! What is missing on a machine, or in the way: `coracle check`, and the first thing that `coracle server` does.
//!
//! [`gather`] looks, [`evaluate`] judges; only the second is worth testing.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::Config;

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Stable, for scripts: such as `port-443`.
    pub code: String,
    pub level: Level,
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Works, but not as it might be expected.
    Warning,
    /// `coracle server` does not start.
    Fatal,
}

/// What there is, as far as it matters.
#[derive(Clone, Debug)]
pub struct Facts {
    pub is_root: bool,
    /// Such as `6.1.0-18-amd64`.
    pub kernel: String,
    pub cgroup: Cgroup,
    /// Lines of /proc/filesystems, without `nodev`.
    pub filesystems: Vec<String>,
    pub has_seccomp_filter: bool,
    pub has_nftables: bool,
    /// Modules of nftables that services need and the kernel does not have, or why that is not known.
    pub missing_nft_modules: Result<Vec<&'static str>, String>,
    pub has_ipv6: bool,
    /// Ports that the server will listen on and somebody else has, with who that is.
    pub taken_ports: BTreeMap<u16, String>,
    /// Processes of another Kubernetes node.
    pub other_kubelets: Vec<String>,
    /// Foreign chains that drop forwarded traffic, such as `ip filter FORWARD (policy drop)`.
    pub forward_drops: Vec<String>,
    /// Addresses found for the node.
    pub node_ips: Vec<IpAddr>,
}

/// The cgroup hierarchy, by the controllers that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cgroup {
    #[default]
    Missing,
    V2 {
        controllers: Vec<String>,
    },
    /// Separate hierarchies, also when an empty v2 one is mounted beside them.
    V1 {
        controllers: Vec<String>,
    },
}

/// The oldest kernel with everything that the container core uses: `mount_setattr` is of 5.12, `cgroup.kill` of 5.14.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Judges the facts, worst last.
pub fn evaluate(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = vec![privilege(facts), kernel(facts)];
    findings.extend(cgroups(facts));
    findings.extend(features(facts));
    findings.push(addresses(facts, config));
    let ports = [
        ("API", config.api_port, "api-port"),
        ("kubelet", config.kubelet_port, "kubelet-port"),
        ("HTTP ingress", config.http_port, "http-port"),
        ("HTTPS ingress", config.https_port, "https-port"),
    ];
    findings.extend(ports.map(|(what, port, key)| free_port(facts, what, port, key)));
    findings.extend(facts.other_kubelets.iter().map(|who| Finding {
        code: "other-kubelet".into(),
        level: Level::Fatal,
        message: format!("another Kubernetes node runs on this machine: {who}"),
        remedy: Some("stop and disable it: two nodes would fight over cgroups, mounts and firewall rules".into()),
    }));
    findings.extend(facts.forward_drops.iter().map(|chain| Finding {
        code: "forward-drop".into(),
        level: Level::Warning,
        message: format!(
            "firewall chain {chain} drops forwarded traffic, so pods may not reach each other or the Internet"
        ),
        remedy: Some("accept traffic from and to the interfaces named cor* in that chain".into()),
    }));
    findings.sort_by_key(|finding| finding.level);
    findings
}

fn ok(code: &str, message: impl Into<String>) -> Finding {
    Finding { code: code.into(), level: Level::Ok, message: message.into(), remedy: None }
}

fn fatal(code: &str, message: impl Into<String>, remedy: &str) -> Finding {
    Finding { code: code.into(), level: Level::Fatal, message: message.into(), remedy: Some(remedy.into()) }
}

fn privilege(facts: &Facts) -> Finding {
    if facts.is_root {
        ok("root", "runs as root")
    } else {
        fatal(
            "root",
            "not root, which namespaces, mounts and firewall rules need",
            "run it with sudo or as a system service",
        )
    }
}

fn kernel(facts: &Facts) -> Finding {
    let mut numbers = facts.kernel.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        ok("kernel", format!("kernel {}", facts.kernel))
    } else {
        let (major, minor) = OLDEST_KERNEL;
        fatal("kernel", format!("kernel {} is older than {major}.{minor}", facts.kernel), "boot a newer kernel")
    }
}

fn cgroups(facts: &Facts) -> Vec<Finding> {
    let needed: &[&str] = match &facts.cgroup {
        Cgroup::Missing => {
            let remedy = "mount cgroup2 on /sys/fs/cgroup, as every current distribution does at boot";
            return vec![fatal("cgroups", "no cgroup hierarchy is mounted on /sys/fs/cgroup", remedy)];
        }
        Cgroup::V2 { .. } => &["cpu", "memory", "pids"],
        Cgroup::V1 { .. } => &["cpu", "cpuacct", "memory", "pids", "devices", "freezer"],
    };
    let (Cgroup::V1 { controllers: present } | Cgroup::V2 { controllers: present }) = &facts.cgroup else {
        return Vec::new();
    };
    let missing: Vec<&str> = needed.iter().copied().filter(|c| !present.iter().any(|p| p == c)).collect();
    let version = if matches!(facts.cgroup, Cgroup::V2 { .. }) { "v2" } else { "v1" };
    if missing.is_empty() {
        return vec![ok("cgroups", format!("cgroup {version} with {}", needed.join(", ")))];
    }
    let remedy = if missing.contains(&"memory") {
        "add cgroup_enable=memory to the kernel's command line (on a Raspberry Pi: /boot/firmware/cmdline.txt) and reboot"
    } else {
        "enable them in the kernel"
    };
    vec![fatal("cgroups", format!("cgroup {version} lacks the controllers {}", missing.join(", ")), remedy)]
}

fn features(facts: &Facts) -> Vec<Finding> {
    let has_overlay = facts.filesystems.iter().any(|name| name == "overlay");
    let needs = [
        ("overlayfs", has_overlay, "modprobe overlay, or boot a kernel with CONFIG_OVERLAY_FS"),
        ("nftables", facts.has_nftables, "modprobe nf_tables, or boot a kernel with CONFIG_NF_TABLES"),
        ("seccomp", facts.has_seccomp_filter, "boot a kernel with CONFIG_SECCOMP_FILTER"),
    ];
    let mut findings: Vec<Finding> = needs
        .into_iter()
        .map(|(name, present, remedy)| {
            if present {
                ok(name, format!("{name} is there"))
            } else {
                fatal(name, format!("the kernel has no {name}"), remedy)
            }
        })
        .collect();
    findings.extend(nft_modules(facts));
    if !facts.has_ipv6 {
        findings.push(Finding {
            code: "ipv6".into(),
            level: Level::Warning,
            message: "IPv6 is off on this machine: the cluster will have IPv4 only".into(),
            remedy: Some("set net.ipv6.conf.all.disable_ipv6=0 to have both".into()),
        });
    }
    findings
}

/// Without nftables or the privilege to look, the lack of that is what is told.
fn nft_modules(facts: &Facts) -> Option<Finding> {
    let code = "nft-modules";
    match &facts.missing_nft_modules {
        _ if !facts.has_nftables || !facts.is_root => None,
        Ok(missing) if missing.is_empty() => None,
        Ok(missing) => {
            let modules = missing.join(" ");
            let message = format!("the kernel lacks parts of nftables that services need: {modules}");
            Some(fatal(code, message, &format!("modprobe -a {modules}, or boot a kernel that has them")))
        }
        Err(error) => Some(Finding {
            code: code.into(),
            level: Level::Warning,
            message: format!("could not look whether the kernel has all parts of nftables that services need: {error}"),
            remedy: Some(
                "services may not work: allow network namespaces (user.max_net_namespaces) and look again".into(),
            ),
        }),
    }
}

fn addresses(facts: &Facts, config: &Config) -> Finding {
    let ips = if config.node_ips.is_empty() { &facts.node_ips } else { &config.node_ips };
    if ips.is_empty() {
        let remedy = "connect it to a network, or name an address with --node-ip";
        return fatal("node-ip", "this machine has no default route to find its address from", remedy);
    }
    let shown: Vec<String> = ips.iter().map(ToString::to_string).collect();
    ok("node-ip", format!("node address {}", shown.join(", ")))
}

fn free_port(facts: &Facts, what: &str, port: u16, key: &str) -> Finding {
    let code = format!("port-{port}");
    match facts.taken_ports.get(&port) {
        None => ok(&code, format!("port {port} is free for the {what}")),
        Some(who) => fatal(
            &code,
            format!("port {port}, which the {what} needs, is taken by {who}"),
            &format!("stop that program, or set {key} to another port"),
        ),
    }
}

/// Looks at this machine.
pub fn gather(config: &Config) -> Facts {
    let ports = [config.api_port, config.kubelet_port, config.http_port, config.https_port];
    Facts {
        is_root: rustix::process::geteuid().is_root(),
        kernel: read("/proc/sys/kernel/osrelease"),
        cgroup: cgroup_facts(Path::new("/sys/fs/cgroup")),
        filesystems: read("/proc/filesystems")
            .lines()
            .filter_map(|l| l.split('\t').next_back().map(str::to_owned))
            .collect(),
        has_seccomp_filter: read("/proc/sys/kernel/seccomp/actions_avail").contains("errno"),
        has_nftables: net::probe::has_nftables(),
        missing_nft_modules: net::probe::missing_nft_modules().map_err(|error| error.to_string()),
        has_ipv6: read("/proc/sys/net/ipv6/conf/all/disable_ipv6") == "0",
        taken_ports: taken_ports(&ports),
        other_kubelets: other_kubelets(),
        forward_drops: net::probe::foreign_forward_drops(),
        node_ips: net::probe::default_source_addresses(),
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default().trim_end().to_owned()
}

fn cgroup_facts(root: &Path) -> Cgroup {
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    if root.join("cgroup.controllers").exists() {
        return Cgroup::V2 { controllers: words(read(root.join("cgroup.controllers"))) };
    }
    let controllers: Vec<String> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("tasks").exists())
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().split(',').map(str::to_owned).collect::<Vec<_>>()))
        .flatten()
        .collect();
    if controllers.is_empty() { Cgroup::Missing } else { Cgroup::V1 { controllers } }
}

/// Who listens on `ports` in this network namespace.
fn taken_ports(ports: &[u16]) -> BTreeMap<u16, String> {
    let mut inodes: BTreeMap<String, u16> = BTreeMap::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        for line in read(table).lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, "0A", .., _, _, _, _, _, _, _, _] = &fields[..] else { continue };
            let port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if let Some(port) = port.filter(|port| ports.contains(port))
                && let Some(inode) = fields.get(9)
            {
                inodes.insert(format!("socket:[{inode}]"), port);
            }
        }
    }
    let mut taken: BTreeMap<u16, String> = inodes.values().map(|port| (*port, "another process".to_owned())).collect();
    for process in processes().filter(|_| !inodes.is_empty()) {
        for descriptor in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(descriptor.path()).unwrap_or_default();
            if let Some(port) = target.to_str().and_then(|t| inodes.get(t)) {
                taken.insert(*port, describe(&process));
            }
        }
    }
    taken
}

/// Kubelets in this machine's own process and mount namespaces.
fn other_kubelets() -> Vec<String> {
    let ours = fs::read_link("/proc/self/ns/mnt").ok();
    processes()
        .filter(|process| {
            matches!(read(process.join("comm")).as_str(), "kubelet" | "k3s" | "k3s-server" | "k0s" | "kubelite")
        })
        .filter(|process| fs::read_link(process.join("ns/mnt")).ok() == ours)
        .map(|process| describe(&process))
        .collect()
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let is_pid = |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).filter(is_pid)
}

/// Such as `nginx (pid 812)`.
fn describe(process: &Path) -> String {
    let pid = process.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    format!("{} (pid {pid})", read(process.join("comm")))
}

/// One line for each finding, with its remedy below.
pub fn render(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Fatal => "FATAL  ",
        };
        out.push_str(&format!("{mark} {}\n", finding.message));
        if let Some(remedy) = &finding.remedy {
            out.push_str(&format!("        → {remedy}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::config::{Settings, load};

    fn check(change: impl FnOnce(&mut Facts), expected: Expect) {
        let controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
        let mut facts = Facts {
            is_root: true,
            kernel: "6.1.0-18-amd64".into(),
            cgroup: Cgroup::V2 { controllers },
            filesystems: vec!["ext4".into(), "overlay".into()],
            has_seccomp_filter: true,
            has_nftables: true,
            has_ipv6: true,
            node_ips: vec!["192.168.77.2".parse().expect("IP")],
            missing_nft_modules: Ok(Vec::new()),
            taken_ports: BTreeMap::new(),
            other_kubelets: Vec::new(),
            forward_drops: Vec::new(),
        };
        change(&mut facts);
        let config =
            load(Settings { config_dir: Some("/nonexistent".into()), ..Settings::default() }).expect("defaults");
        let mut findings = evaluate(&facts, &config);
        findings.retain(|finding| finding.level != Level::Ok);
        expected.assert_eq(&render(&findings));
    }

    #[test]
    fn a_good_machine_has_nothing_to_complain_of() {
        check(|_| {}, expect![""]);
    }

    #[test]
    fn names_the_modules_that_are_missing() {
        check(
            |facts| facts.missing_nft_modules = Ok(vec!["nft_masq", "nft_numgen"]),
            expect![[r#"
            FATAL   the kernel lacks parts of nftables that services need: nft_masq nft_numgen
                    → modprobe -a nft_masq nft_numgen, or boot a kernel that has them
        "#]],
        );
    }

    #[test]
    fn says_what_could_not_be_looked_at() {
        let full = || Err("No space left on device (os error 28)".to_owned());
        check(
            |facts| facts.missing_nft_modules = full(),
            expect![[r#"
            warning could not look whether the kernel has all parts of nftables that services need: No space left on device (os error 28)
                    → services may not work: allow network namespaces (user.max_net_namespaces) and look again
        "#]],
        );
        check(
            |facts| (facts.missing_nft_modules, facts.is_root) = (full(), false),
            expect![[r#"
            FATAL   not root, which namespaces, mounts and firewall rules need
                    → run it with sudo or as a system service
        "#]],
        );
    }

    #[test]
    fn names_who_has_a_port() {
        check(
            |facts| drop(facts.taken_ports.insert(443, "nginx (pid 812)".into())),
            expect![[r#"
            FATAL   port 443, which the HTTPS ingress needs, is taken by nginx (pid 812)
                    → stop that program, or set https-port to another port
        "#]],
        );
    }

    #[test]
    fn names_missing_controllers_and_old_kernels() {
        check(
            |facts| {
                facts.cgroup = Cgroup::V2 { controllers: vec!["cpu".into(), "pids".into()] };
                facts.kernel = "5.10.0-8".into();
            },
            expect![[r#"
                FATAL   kernel 5.10.0-8 is older than 5.15
                        → boot a newer kernel
                FATAL   cgroup v2 lacks the controllers memory
                        → add cgroup_enable=memory to the kernel's command line (on a Raspberry Pi: /boot/firmware/cmdline.txt) and reboot
            "#]],
        );
    }

    #[test]
    fn warns_of_what_only_limits() {
        check(
            |facts| {
                facts.has_ipv6 = false;
                facts.forward_drops = vec!["ip filter FORWARD (policy drop)".into()];
            },
            expect![[r#"
                warning IPv6 is off on this machine: the cluster will have IPv4 only
                        → set net.ipv6.conf.all.disable_ipv6=0 to have both
                warning firewall chain ip filter FORWARD (policy drop) drops forwarded traffic, so pods may not reach each other or the Internet
                        → accept traffic from and to the interfaces named cor* in that chain
            "#]],
        );
    }

    #[test]
    fn another_kubelet_is_fatal() {
        check(
            |facts| facts.other_kubelets = vec!["k3s (pid 7)".into()],
            expect![[r#"
            FATAL   another Kubernetes node runs on this machine: k3s (pid 7)
                    → stop and disable it: two nodes would fight over cgroups, mounts and firewall rules
        "#]],
        );
    }
}

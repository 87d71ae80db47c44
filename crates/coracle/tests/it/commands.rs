//! The binary's other commands: check, kubeconfig, status, image, stop.

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::debian::Debian;
use testkit::host::{Host, Lab, eventually};
use testkit::images::{Compression, docker_archive, oci_archive};
use testkit::kubectl::{Kubectl, RELEASES};
use testkit::stand_ins;

use crate::apply::deployment;
use crate::cluster::{CORACLE, Cluster, shared, start_server};

fn coracle(host: &Host, arguments: &[&str], stdin: &[u8]) -> Output {
    let mut command = host.command(CORACLE);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A command that refuses its input does not read it all.
        scope.spawn(move || drop(input.write_all(stdin)));
        child.wait_with_output().unwrap()
    })
}

#[track_caller]
fn ok(host: &Host, arguments: &[&str]) -> String {
    ok_with(host, arguments, b"")
}

#[track_caller]
fn ok_with(host: &Host, arguments: &[&str], stdin: &[u8]) -> String {
    let Output { status, stdout, stderr } = coracle(host, arguments, stdin);
    assert!(status.success(), "coracle {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

#[track_caller]
fn fails(host: &Host, arguments: &[&str], expected: &str) {
    let Output { status, stderr, .. } = coracle(host, arguments, b"not an archive");
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!status.success() && stderr.contains(expected), "coracle {arguments:?}: {stderr}");
}

#[test]
fn check_says_what_is_in_the_way() {
    let mut lab = Lab::unique().unwrap();
    lab.add_host("bare").unwrap();
    let host = lab.host(0);
    let findings = |host: &Host| -> Vec<Value> {
        serde_json::from_slice(&coracle(host, &["check", "-o", "json"], b"").stdout).unwrap()
    };
    let level = |findings: &[Value], code: &str| {
        let found = findings.iter().find(|finding| finding["code"] == code);
        found.unwrap_or_else(|| panic!("no {code} in {findings:?}"))["level"].clone()
    };
    let good = findings(host);
    assert!(good.iter().all(|finding| finding["level"] != "fatal"), "{good:?}");
    for code in ["root", "kernel", "cgroups", "overlayfs", "nftables", "seccomp", "node-ip", "port-443"] {
        assert_eq!(level(&good, code), "ok", "{code}");
    }
    let listener =
        testkit::netns::within(&lab.host_netns(0), || Ok(std::net::TcpListener::bind("0.0.0.0:443")?)).unwrap();
    let bad = findings(host);
    assert_eq!(level(&bad, "port-443"), "fatal");
    let text = String::from_utf8(coracle(host, &["check"], b"").stdout).unwrap();
    assert!(text.contains("port 443, which the HTTPS ingress needs, is taken by "), "{text}");
    assert!(text.contains("→ stop that program, or set https-port to another port"), "{text}");
    fails(host, &["server", "--cgroup-root", &host.cgroup_root], "this machine cannot run a cluster yet:");
    drop(listener);
    host.run(&["ip", "route", "del", "default"]).unwrap();
    host.run(&["ip", "-6", "route", "del", "default"]).unwrap();
    assert_eq!(level(&findings(host), "node-ip"), "fatal");
}

#[test]
fn status_says_what_runs() {
    let host = shared().host();
    let status: Value = serde_json::from_str(&ok(host, &["status", "-o", "json"])).unwrap();
    assert_eq!((&status["node"], &status["api"]), (&"cupboard".into(), &"https://192.168.77.2:6443".into()));
    assert_eq!(status["roles"]["main"]["processes"], 1);
    assert!(status["roles"]["main"]["pssBytes"].as_u64().unwrap() > 1_000_000, "{status}");
    let text = ok(host, &["status"]);
    assert!(
        text.contains("kubeconfig  /etc/coracle/kubeconfig\n") && text.contains("main        1 running, "),
        "{text}"
    );
}

#[test]
fn kubeconfig_is_for_whom_it_names() {
    let host = shared().host();
    let robot = ok(host, &["kubeconfig", "--user", "robot", "--group", "readers"]);
    let path = host.dir.join("etc/coracle/robot.kubeconfig");
    fs::write(&path, robot).unwrap();
    let kubectl = Kubectl::new(host, RELEASES[1], "default").unwrap();
    let with =
        |arguments: &[&str]| kubectl.run(&[&["--kubeconfig", "/etc/coracle/robot.kubeconfig"], arguments].concat(), "");
    let who = with(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"]);
    assert_eq!(who.stdout, r#"robot ["readers","system:authenticated"]"#, "{who}");
    let refused = with(&["get", "pods"]);
    assert!(
        refused.stderr.contains("pods is forbidden: User \"robot\" cannot list resource \"pods\" in API group \"\""),
        "{refused}"
    );
    let administrator = ok(host, &["kubeconfig"]);
    fs::write(&path, administrator).unwrap();
    assert_eq!(with(&["auth", "can-i", "*", "*", "-A"]).stdout.trim_end(), "yes");
}

#[test]
fn images_are_imported_listed_and_removed() {
    let host = shared().host();
    let busybox = stand_ins::busybox(&Debian::new()).unwrap();
    let busybox = busybox.extend(&json!({"Env": ["IMPORTED=yes"]}), &[], Compression::Gzip);
    let docker = docker_archive(&[("localhost/imported:1", &busybox)]);
    assert_eq!(ok_with(host, &["image", "import", "-"], &docker), "localhost/imported:1\n");
    fs::write(host.dir.join("etc/coracle/image.tar"), oci_archive(&[("localhost/imported:2", &busybox)])).unwrap();
    assert_eq!(
        ok(host, &["image", "import", "/etc/coracle/image.tar"]),
        "localhost/imported:1\nlocalhost/imported:2\n"
    );
    let listed = ok(host, &["image", "ls"]);
    assert!(
        listed.starts_with("IMAGE ")
            && listed.contains("localhost/imported:1 ")
            && listed.contains("localhost/imported:2 "),
        "{listed}"
    );
    let kubectl = Kubectl::new(host, RELEASES[1], "default").unwrap();
    let arguments = [
        "run",
        "imported",
        "--image=localhost/imported:1",
        "--image-pull-policy=Never",
        "--restart=Never",
        "--rm",
        "-i",
        "--",
        "echo",
        "runs",
    ];
    let printed = kubectl.run(&arguments, "");
    assert!(printed.code == Some(0) && printed.stdout.contains("runs\n"), "{printed}");
    for name in ["localhost/imported:1", "localhost/imported:2"] {
        ok(host, &["image", "rm", name]);
        assert!(!ok(host, &["image", "ls"]).contains(name), "{name}");
    }
    fails(host, &["image", "rm", "localhost/imported:1"], "image \"localhost/imported:1\" is not on this node");
    fails(host, &["image", "import", "-"], "not an OCI or docker image archive");
}

#[test]
fn stop_leaves_what_runs_and_stop_all_leaves_nothing() {
    let mut cluster = Cluster::start().unwrap();
    let kubectl = |cluster: &Cluster, arguments: &[&str], stdin: &str| {
        let printed = Kubectl::new(cluster.host(), RELEASES[1], "default").unwrap().run(arguments, stdin);
        assert_eq!(printed.code, Some(0), "{printed}");
        printed.stdout
    };
    kubectl(&cluster, &["apply", "-f", "-"], &deployment("web"));
    kubectl(&cluster, &["rollout", "status", "deploy/web", "--timeout=60s"], "");
    // A node can be emptied before it is stopped.
    let drained = kubectl(&cluster, &["drain", "cupboard", "--timeout=60s"], "");
    assert!(drained.contains("evicted") && drained.contains("node/cupboard drained"), "{drained}");
    kubectl(&cluster, &["uncordon", "cupboard"], "");
    kubectl(&cluster, &["taint", "node", "cupboard", "a=b:PreferNoSchedule"], "");
    kubectl(&cluster, &["rollout", "status", "deploy/web", "--timeout=60s"], "");
    let pods =
        ["get", "pods", "-o", "jsonpath={.items[*].metadata.uid} {.items[*].status.containerStatuses[*].restartCount}"];
    let running = kubectl(&cluster, &pods, "");
    assert!(running.ends_with(" 0 0"), "{running}");

    // The shims of other clusters on this machine are not counted.
    eventually(Duration::from_secs(10), "a shim for each pod", || {
        let status: Value = serde_json::from_str(&ok(cluster.host(), &["status", "-o", "json"]))?;
        Ok((status["roles"]["shims"]["processes"] == 2).then_some(()))
    })
    .unwrap();

    ok(cluster.host(), &["stop"]);
    fails(cluster.host(), &["status"], "no server runs here: could not connect to /run/coracle/admin.sock");
    cluster.server = start_server(cluster.host(), &[]).unwrap();
    cluster.wait_until_ready().unwrap();
    kubectl(&cluster, &["rollout", "status", "deploy/web", "--timeout=60s"], "");
    assert_eq!(kubectl(&cluster, &pods, ""), running, "containers restarted");

    let host = cluster.host();
    ok(host, &["stop", "--all", "--cgroup-root", &host.cgroup_root]);
    let shown = "ls /sys/class/net | grep ^cor; nft list tables; grep -E ' /(var/lib/(coracle|kubelet)|run/coracle)/' /proc/self/mountinfo; true";
    assert_eq!(host.run(&["sh", "-c", shown]).unwrap(), "");
    let cgroups =
        host.run(&["sh", "-c", &format!("find /sys/fs/cgroup -path '*{}*' -name '*pod*'", host.cgroup_root)]).unwrap();
    assert_eq!(cgroups, "");
    let processes = host.run(&["sh", "-c", "for p in /proc/[0-9]*; do [ \"$(readlink $p/ns/mnt)\" = \"$(readlink /proc/self/ns/mnt)\" ] && cat $p/comm; done; true"]).unwrap();
    assert!(!processes.contains("coracle"), "{processes}");
    // And all of it comes back.
    cluster.server = start_server(cluster.host(), &[]).unwrap();
    cluster.wait_until_ready().unwrap();
    kubectl(&cluster, &["rollout", "status", "deploy/web", "--timeout=60s"], "");
}

//! `kubectl proxy`: whatever a pod speaks over HTTP, also what it switches to.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use testkit::netns::within;

use crate::cluster::{BUSYBOX, shared, with_each_kubectl};

/// Switches to what it is asked for, repeats how it was asked, and then everything that it hears.
const PARROT: &str = r#"read -r asked
while read -r line && [ "$line" != "$(printf '\r')" ]; do case "$line" in [Uu]pgrade:*) protocol="$line"; esac; done
printf 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n%s\n\r\n%s\n' "$protocol" "$asked"
exec cat"#;

#[test]
fn a_pod_may_switch_protocols() {
    with_each_kubectl("proxy", |user| {
        user.ok(&["create", "configmap", "parrot", &format!("--from-literal=parrot={PARROT}")]);
        user.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: parrot}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'mkfifo /heard && sh /parrot/parrot < /heard | nc -l -p 8080 > /heard']
    readinessProbe: {{exec: {{command: [grep, -q, ':1F90 ', /proc/net/tcp, /proc/net/tcp6]}}, periodSeconds: 1}}
    volumeMounts: [{{name: parrot, mountPath: /parrot}}]
  volumes: [{{name: parrot, configMap: {{name: parrot}}}}]
"
        ));
        user.check(&["wait", "--for=condition=Ready", "pod/parrot", "--timeout=60s"], "pod/parrot condition met");
        let mut proxy = user.kubectl().follow(&["proxy", "--port=0"]).unwrap();
        let line = proxy.wait_for("Starting to serve on 127.0.0.1:").unwrap();
        let port: u16 = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        let stream = within(&shared().lab.host_netns(0), || Ok(TcpStream::connect(("127.0.0.1", port))?)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut stream = BufReader::new(stream);
        let mut hear = |say: &str, until: &str| {
            stream.get_mut().write_all(say.as_bytes()).unwrap();
            let mut heard = String::new();
            while !heard.ends_with(until) {
                assert_ne!(stream.read_line(&mut heard).unwrap(), 0, "{heard}");
            }
            heard
        };
        let path = format!("/api/v1/namespaces/{}/pods/parrot:8080/proxy/a/b?c=d", user.namespace());
        let ask = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: parrot\r\n\r\n");
        let head = hear(&ask, "\r\n\r\n").to_lowercase();
        assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: parrot\r\n"), "{head}");
        assert_eq!(hear("", "\n"), "GET /a/b?c=d HTTP/1.1\r\n");
        assert_eq!(hear("hello\n", "\n"), "hello\n");
        assert_eq!(hear("again\n", "\n"), "again\n");
    });
}

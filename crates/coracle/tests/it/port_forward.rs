//! `kubectl port-forward`: inside a WebSocket, as both releases do by themselves, and over plain SPDY, as older ones did.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use testkit::host::eventually;
use testkit::kubectl::Following;
use testkit::netns::within;

use crate::cluster::{BUSYBOX, Session, shared, with_each_kubectl};

const PATIENCE: Duration = Duration::from_secs(30);

/// A pod that answers over HTTP on its loopback alone, which nothing but port-forward reaches.
fn start(user: &Session) {
    user.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {BUSYBOX}
    command: [sh, -c, 'mkdir /www && echo hello from the pod > /www/index.html && exec httpd -f -p 127.0.0.1:8080 -h /www']
    readinessProbe: {{exec: {{command: [wget, -q, -O, /dev/null, 'http://127.0.0.1:8080/']}}, periodSeconds: 1}}
"
    ));
    user.check(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"], "pod/web condition met");
}

/// The local port that kubectl chose.
fn local_port(forwarding: &mut Following) -> u16 {
    let line = forwarding.wait_for("Forwarding from 127.0.0.1:").unwrap();
    let port = line.trim_start_matches("Forwarding from 127.0.0.1:").split(' ').next().unwrap();
    port.parse().unwrap()
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = within(&shared().lab.host_netns(0), || Ok(TcpStream::connect(("127.0.0.1", port))?));
    let stream = stream.map_err(std::io::Error::other)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn get(port: u16) -> String {
    let mut stream = connect(port).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn forwards_connections_one_after_the_other_and_at_once() {
    with_each_kubectl("forward", |user| {
        start(user);
        for variables in [&[][..], &["KUBECTL_PORT_FORWARD_WEBSOCKETS=false"]] {
            let mut forwarding = user.kubectl().follow_with(variables, &["port-forward", "pod/web", ":8080"]).unwrap();
            let port = local_port(&mut forwarding);
            for _ in 0..3 {
                let answer = get(port);
                assert!(answer.ends_with("hello from the pod\n"), "{answer}");
            }
            let open: Vec<TcpStream> = (0..8).map(|_| connect(port).unwrap()).collect();
            for mut stream in open.into_iter().rev() {
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                assert!(answer.ends_with("hello from the pod\n"), "{answer}");
            }
        }
    });
}

#[test]
fn says_why_a_port_cannot_be_reached() {
    with_each_kubectl("refused", |user| {
        start(user);
        let local = if user.minor() == "1.32" { "18032" } else { "18036" };
        std::thread::scope(|scope| {
            let printed = scope.spawn(|| user.kubectl().run(&["port-forward", "web", &format!("{local}:9")], ""));
            let refused = || Ok(connect(local.parse()?).ok().map(drop));
            eventually(PATIENCE, "kubectl to listen", refused).unwrap();
            let printed = printed.join().unwrap();
            assert!(printed.code != Some(0), "{printed}");
            for wanted in ["error forwarding port 9 to pod web", "dial tcp4 127.0.0.1:9: connect: connection refused"] {
                assert!(printed.stderr.contains(wanted), "no {wanted:?} in\n{printed}");
            }
        });
        user.fails(&["port-forward", "pod/none", "8080"], "pods \"none\" not found");
    });
}

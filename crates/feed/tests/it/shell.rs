//! The feed between an API server and an edge, both real.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::Client;
use feed::shell::{Config, OpenLog, run};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::api::networking::v1::Ingress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wire::edge::{LOG_LIMIT, Problem, Role, Socket, Up, VERSION, frame};

use crate::cluster::{create, start};
use crate::objects::{RACK, ingress, settings};

const PATIENCE: Duration = Duration::from_secs(20);

fn control_path() -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("feed-test-{}-{number}", std::process::id()))
}

/// An edge on a thread of its own; it ends with the test's process.
fn start_edge(control: &Path) {
    let (_, log) = rustix::pipe::pipe().unwrap();
    start_edge_logging(control, log);
}

fn start_edge_logging(control: &Path, log: OwnedFd) {
    let listener = UnixListener::bind(control).unwrap();
    std::thread::spawn(move || edge::run(OwnedFd::from(listener), log));
}

struct Feed {
    cancel: CancellationToken,
    ready: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Feed {
    fn start(client: &Client, control: &Path, listeners: Vec<(Socket, OwnedFd)>) -> Self {
        Self::logging(client, control, listeners, Arc::new(|| Err(std::io::ErrorKind::Unsupported.into())))
    }

    fn logging(client: &Client, control: &Path, listeners: Vec<(Socket, OwnedFd)>, open_log: OpenLog) -> Self {
        let (sender, ready) = watch::channel(false);
        let config = Config {
            client: client.clone(),
            node_name: "node".into(),
            node_ips: vec!["192.0.2.7".parse().unwrap()],
            control: control.to_owned(),
            listeners,
            open_log,
            settings: settings(),
            ready: sender,
        };
        let cancel = CancellationToken::new();
        Self { task: tokio::spawn(run(config, cancel.clone())), cancel, ready }
    }

    async fn ready(&mut self) {
        timeout(PATIENCE, self.ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

fn http_socket() -> (SocketAddr, (Socket, OwnedFd)) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (address, (Socket { role: Role::Http, address }, listener.into()))
}

async fn status(edge: SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(edge).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer.split(' ').nth(1).unwrap().to_owned()
}

async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let answer = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("never: {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_is_announced_and_warned_about() {
    let client = start().await;
    let control = control_path();
    start_edge(&control);
    let (http, socket) = http_socket();
    let mut feed = Feed::start(&client, &control, vec![socket]);
    feed.ready().await;
    assert_eq!(status(http).await, "404");
    create(&client, RACK).await;
    let annotations =
        "nginx.ingress.kubernetes.io/auth-url: 'http://x/', nginx.ingress.kubernetes.io/ssl-redirect: 'false'";
    let tls = "spec: {tls: [{hosts: [x], secretName: bad}], rules";
    let secret = "- kind: Secret\n  metadata: {name: bad, namespace: rack}\n  type: kubernetes.io/tls\n  data: {tls.crt: YmFk, tls.key: YmFk}\n";
    create(&client, secret).await;
    let site = ingress("site", "x", annotations, &["Prefix / web:80"]).replace("spec: {rules", tls);
    create(&client, &site).await;
    until("the route is closed", async || (status(http).await == "503").then_some(())).await;
    let published = until("the address is published", async || {
        let ingress = client.get::<Ingress>("rack", "site").await.unwrap();
        ingress.status?.load_balancer?.ingress?.first()?.ip.clone()
    });
    assert_eq!(published.await, "192.0.2.7");
    let events = until("the events are written", async || {
        let events = client.list::<Event>("rack", "").await.unwrap();
        (events.len() >= 3).then_some(events)
    })
    .await;
    let mut reasons: Vec<_> =
        events.iter().map(|event| (event.type_.as_deref().unwrap(), event.reason.as_deref().unwrap())).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [("Normal", "Sync"), ("Warning", "CertificateInvalid"), ("Warning", "Closed")]);
    assert!(events.iter().all(|event| event.count == Some(1)), "each once");
    feed.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_main_adopts_the_edge() {
    let client = start().await;
    create(&client, RACK).await;
    create(&client, &ingress("site", "x", "", &["Prefix / api:3000"])).await;
    let control = control_path();
    start_edge(&control);
    let (http, socket) = http_socket();
    let expected = socket.0.clone();
    let mut feed = Feed::start(&client, &control, vec![socket]);
    feed.ready().await;
    until("the route is there", async || (status(http).await == "503").then_some(())).await;
    feed.stop().await;
    assert_eq!(status(http).await, "503", "the edge goes on alone");
    let adopted = tokio::task::spawn_blocking({
        let control = control.clone();
        move || feed::adopt::listeners(&control)
    });
    let adopted = adopted.await.unwrap().unwrap();
    assert_eq!(adopted.iter().map(|(socket, _)| socket.clone()).collect::<Vec<_>>(), [expected]);
    let ingresses = client::Resource::new("networking.k8s.io", "v1", "ingresses");
    client.delete_object(&ingresses, "rack", "site", client::DeleteOptions::default()).await.unwrap();
    let mut next = Feed::start(&client, &control, adopted);
    next.ready().await;
    until("the route is gone", async || (status(http).await == "404").then_some(())).await;
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_talks_nonsense_is_left_for_the_next() {
    let client = start().await;
    create(&client, RACK).await;
    create(&client, &ingress("site", "x", "", &["Prefix / api:3000"])).await;
    let control = control_path();
    let hostile = tokio::net::UnixListener::bind(&control).unwrap();
    let (http, socket) = http_socket();
    let mut feed = Feed::start(&client, &control, vec![socket]);
    let hello = |version| frame(&Up::Hello { version, sockets: vec![], generation: u64::MAX - 1 });
    let wild =
        Up::Ack { generation: u64::MAX, problems: vec![Problem { certificate: usize::MAX, message: "x".into() }] };
    let conversations = [
        vec![0xff; 64],
        b"\0\0\0\x04oops".to_vec(),
        frame(&Up::Ack { generation: 1, problems: vec![] }),
        hello(VERSION + 1),
        [hello(VERSION), b"\0\0\0\x04oops".to_vec()].concat(),
        [hello(VERSION), frame(&wild), vec![0xff; 8]].concat(),
    ];
    for said in conversations {
        let (mut stream, _) = timeout(PATIENCE, hostile.accept()).await.unwrap().unwrap();
        stream.write_all(&said).await.unwrap();
        // Until main hangs up.
        while timeout(PATIENCE, stream.read(&mut [0; 4096])).await.unwrap().is_ok_and(|length| length > 0) {}
    }
    std::fs::remove_file(&control).unwrap();
    drop(hostile);
    start_edge(&control);
    until("the edge serves", async || (status(http).await == "503").then_some(())).await;
    feed.ready().await;
    feed.stop().await;
}

#[test]
fn an_edge_is_not_believed_what_its_sockets_are() {
    let control = control_path();
    let listener = UnixListener::bind(&control).unwrap();
    let (address, (socket, good)) = http_socket();
    let named = [
        socket.clone(),
        Socket { role: Role::Https, address: "192.0.2.1:443".parse().unwrap() },
        Socket { role: Role::DnsUdp, address },
    ];
    let copies = [good.try_clone().unwrap(), good.try_clone().unwrap(), good];
    let hostile = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let bytes = frame(&Up::Hello { version: VERSION, sockets: named.to_vec(), generation: 0 });
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        let descriptors = copies.each_ref().map(AsFd::as_fd);
        assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&stream, &[std::io::IoSlice::new(&bytes)], &mut ancillary, flags).unwrap();
    });
    let adopted = feed::adopt::listeners(&control).unwrap();
    hostile.join().unwrap();
    assert_eq!(adopted.into_iter().map(|(socket, _)| socket).collect::<Vec<_>>(), [socket]);
}

#[test]
fn without_an_edge_there_is_nothing_to_adopt() {
    let error = feed::adopt::listeners(&control_path()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_whose_log_is_too_long_gets_another() {
    let client = start().await;
    let control = control_path();
    let file = |length| {
        let file = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(length).unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).unwrap();
        file
    };
    let (long, fresh) = (file(LOG_LIMIT - 1), file(0));
    start_edge_logging(&control, long.into());
    let (http, socket) = http_socket();
    let next = fresh.try_clone().unwrap();
    let open_log: OpenLog = Arc::new(move || Ok(next.try_clone()?.into()));
    let mut feed = Feed::logging(&client, &control, vec![socket], open_log);
    feed.ready().await;
    until("requests are logged elsewhere", async || {
        assert_eq!(status(http).await, "404");
        (fresh.metadata().unwrap().len() > 0).then_some(())
    })
    .await;
    feed.stop().await;
}

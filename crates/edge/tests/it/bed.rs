//! An edge in this process with its sockets, and the main that speaks to it.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use wire::edge::{
    Certificate, Dns, Down, Hello, MAX_UP_FRAME, Options, PathMatch, Problem, Role, Route, Socket, Table, Target, Up,
    Upstream, VERSION, frame, take,
};

/// How long anything may take: much longer than it does.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running edge.
pub struct Edge {
    pub http: SocketAddr,
    pub https: SocketAddr,
    /// UDP and TCP.
    pub dns: SocketAddr,
    pub control: PathBuf,
    pub main: Main,
    log: File,
    thread: Option<JoinHandle<ExitCode>>,
}

/// Main's side of the control socket.
pub struct Main {
    stream: UnixStream,
    received: Vec<u8>,
    generation: u64,
    /// What the edge said it holds.
    pub held: Vec<Socket>,
}

impl Edge {
    pub fn start() -> Self {
        let (log, log_writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&log, true).unwrap();
        Self::logging(log, log_writer)
    }

    /// Starts one that logs into `log_writer`; [`Edge::log_lines`] reads `log`.
    pub fn logging(log: OwnedFd, log_writer: OwnedFd) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let control = std::env::temp_dir().join(format!("edge-test-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&control).unwrap();
        let run = move || edge::run(OwnedFd::from(listener), log_writer);
        let thread = std::thread::Builder::new().name("edge".to_owned()).spawn(run).unwrap();
        let mut main = Main::connect(&control);
        let (http, https) = (listen(), listen());
        let (dns_udp, dns_tcp) = listen_dns();
        let (http_at, https_at) = (http.local_addr().unwrap(), https.local_addr().unwrap());
        let dns_at = dns_udp.local_addr().unwrap();
        main.listen(&[
            (Socket { role: Role::Http, address: http_at }, http.into()),
            (Socket { role: Role::Https, address: https_at }, https.into()),
            (Socket { role: Role::DnsUdp, address: dns_at }, dns_udp.into()),
            (Socket { role: Role::DnsTcp, address: dns_at }, dns_tcp.into()),
        ]);
        Self { http: http_at, https: https_at, dns: dns_at, control, main, log: File::from(log), thread: Some(thread) }
    }

    /// Starts one that serves `table`.
    pub fn serving(table: Table) -> Self {
        let mut edge = Self::start();
        assert_eq!(edge.main.use_table(table), []);
        edge
    }

    /// The lines of the access log since the last call, at least `count`.
    pub fn log_lines(&mut self, count: usize) -> Vec<String> {
        let (mut text, deadline) = (String::new(), std::time::Instant::now() + PATIENCE);
        loop {
            let mut buffer = [0; 4096];
            match self.log.read(&mut buffer) {
                Ok(length) => text.push_str(std::str::from_utf8(&buffer[..length]).unwrap()),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            if text.lines().count() >= count && text.ends_with('\n') {
                return text.lines().map(str::to_owned).collect();
            }
            assert!(std::time::Instant::now() < deadline, "only {text:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Tells the edge to drain, and waits until it has.
    pub fn drain(mut self) -> ExitCode {
        self.main.send(&Down::Drain);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        std::fs::remove_file(&self.control).ok();
        // Not waited for: a client of the same thread may have to answer before the edge can end.
        if self.thread.take().is_some() && !std::thread::panicking() {
            self.main.send(&Down::Drain);
        }
    }
}

impl Main {
    /// Connects, and exchanges greetings.
    pub fn connect(control: &Path) -> Self {
        let mut main = Self::connect_silently(control);
        main.send(&Down::Hello(Hello { version: VERSION }));
        main
    }

    pub fn connect_silently(control: &Path) -> Self {
        let stream = UnixStream::connect(control).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut main = Self { stream, received: Vec::new(), generation: 0, held: Vec::new() };
        let Some(Up::Hello { version, sockets, generation }) = main.hear() else { panic!("no Hello") };
        assert_eq!(version, VERSION);
        (main.held, main.generation) = (sockets, generation);
        main
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn send(&mut self, message: &Down) {
        self.send_bytes(&frame(message));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame; `None` when the edge hung up.
    pub fn hear(&mut self) -> Option<Up> {
        loop {
            if let Some(message) = take(&mut self.received, MAX_UP_FRAME).unwrap() {
                return Some(message);
            }
            let mut buffer = [0; 4096];
            let length = self.stream.read(&mut buffer).unwrap_or(0);
            if length == 0 {
                return None;
            }
            self.received.extend_from_slice(&buffer[..length]);
        }
    }

    pub fn listen(&mut self, sockets: &[(Socket, OwnedFd)]) {
        let bytes = frame(&Down::Listen { sockets: sockets.iter().map(|(socket, _)| socket.clone()).collect() });
        let descriptors: Vec<_> = sockets.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        self.send_with(&bytes, &descriptors);
    }

    pub fn send_with(&mut self, bytes: &[u8], descriptors: &[std::os::fd::BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(sent, bytes.len());
    }

    /// Sends a table and waits until it is in use.
    pub fn use_table(&mut self, table: Table) -> Vec<Problem> {
        self.generation += 1;
        let wanted = self.generation;
        self.send(&Down::Table(Box::new(Table { generation: wanted, ..table })));
        let Some(Up::Ack { generation, problems }) = self.hear() else { panic!("no Ack") };
        assert_eq!(generation, wanted);
        problems
    }
}

pub fn listen() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// One port for both transports.
fn listen_dns() -> (UdpSocket, TcpListener) {
    loop {
        let tcp = listen();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            return (udp, tcp);
        }
    }
}

/// A port where nobody listens.
pub fn dead() -> SocketAddr {
    listen().local_addr().unwrap()
}

/// A table that is put together rule by rule.
#[derive(Default)]
pub struct Rules(Table);

impl Rules {
    pub fn new() -> Self {
        Self::default()
    }

    /// All of a host's paths go to these endpoints.
    pub fn host(self, host: &str, endpoints: &[SocketAddr]) -> Self {
        self.host_with(host, endpoints, Options::default())
    }

    pub fn host_with(mut self, host: &str, endpoints: &[SocketAddr], options: Options) -> Self {
        let name = format!("test-{host}-80");
        let target = Target::Upstream(self.0.upstreams.len());
        self.0.upstreams.push(Upstream { name, endpoints: endpoints.to_vec() });
        self.route(host, PathMatch::Prefix("/".to_owned()), target, options)
    }

    pub fn route(mut self, host: &str, path: PathMatch, target: Target, options: Options) -> Self {
        let host = self.0.hosts.entry(host.to_owned()).or_default();
        host.routes.push(Route { path, target, options });
        self
    }

    pub fn certificate(mut self, hosts: &[&str], chain: &str, key: &str) -> Self {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        self.0.certificates.push(Certificate { hosts, chain: chain.to_owned(), key: key.to_owned() });
        self
    }

    pub fn dns(mut self, dns: Dns) -> Self {
        self.0.dns = dns;
        self
    }

    pub fn table(mut self) -> Table {
        if self.0.dns.domain.is_empty() {
            self.0.dns = no_names();
        }
        self.0
    }
}

/// The smallest names there are.
pub fn no_names() -> Dns {
    Dns { domain: "cluster.local".to_owned(), ..Dns::default() }
}

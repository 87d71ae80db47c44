//! A host and its pods: network namespaces of this process's own threads, gone when the test ends.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use net::nft;
use net::pod;
use net::proxy::Services;
use net::route::Routes;
use net::table::{self, Contents, Ranges};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

pub struct World {
    pub host: File,
    pub pods: Vec<Pod>,
    ranges: Ranges,
    contents: Contents,
}

pub struct Pod {
    pub netns: File,
    pub uid: String,
    pub ips: Vec<IpAddr>,
}

/// A network namespace with nothing in it.
fn new_netns() -> File {
    std::thread::spawn(|| {
        #[allow(deprecated)] // The thread ends here, so nothing else is affected.
        rustix::thread::unshare(UnshareFlags::NEWNET).expect("root");
        let id = rustix::thread::gettid();
        File::open(format!("/proc/self/task/{}/ns/net", id.as_raw_nonzero())).expect("namespace")
    })
    .join()
    .expect("thread")
}

/// Runs `work` on a thread in `netns`.
pub fn within<T: Send + 'static>(netns: &File, work: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = netns.try_clone().expect("descriptor");
    std::thread::spawn(move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter");
        work()
    })
    .join()
    .expect("work")
}

impl World {
    /// A host with `count` pods of both families: 10.244.0.N and fd00:244::N, N from 1.
    pub fn new(count: u8) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let ranges = Ranges {
            pods: vec!["10.244.0.0/16".parse().expect("range"), "fd00:244::/64".parse().expect("range")],
            services: vec!["10.96.0.0/12".parse().expect("range"), "fd00:96::/112".parse().expect("range")],
            hidden_port: Some(10053),
        };
        let host = new_netns();
        let mut pods = Vec::new();
        for n in 1..=count {
            let ips = vec![IpAddr::from([10, 244, 0, n]), IpAddr::from([0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(n)])];
            let uid = format!("pod-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            pods.push(Pod { netns: new_netns(), uid, ips });
        }
        let plan: Vec<_> =
            pods.iter().map(|p| (p.uid.clone(), p.netns.try_clone().expect("fd"), p.ips.clone())).collect();
        within(&host, move || {
            pod::enable_forwarding(true).expect("forwarding");
            let mut routes = Routes::open().expect("rtnetlink");
            let loopback = routes.index_of("lo").expect("lo");
            routes.set_up(loopback).expect("up");
            // The host's own address, and a default route, as any machine has.
            routes.add_address(loopback, IpAddr::from([192, 168, 77, 2])).expect("address");
            routes.add_address(loopback, IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, 2_u16])).expect("address");
            for (uid, netns, ips) in plan {
                pod::attach(&uid, netns.as_fd(), &ips, 1500).expect("attach");
            }
        });
        let mut world = Self { host, pods, ranges, contents: Contents::default() };
        world.default_route();
        let (ranges, empty) = (world.ranges.clone(), Contents::default());
        within(&world.host, move || nft::commit(table::build(&ranges, &empty)).expect("table"));
        world.contents = Contents::default();
        world
    }

    /// Lets the host reach service addresses: their packets need a route before they are translated.
    fn default_route(&self) {
        let link = pod::link_name(&self.pods.last().expect("at least one pod").uid);
        within(&self.host, move || {
            let mut routes = Routes::open().expect("rtnetlink");
            let index = routes.index_of(&link).expect("link");
            routes.add_default_route(index, IpAddr::from([192, 168, 77, 1])).expect("route");
            routes.add_default_route(index, IpAddr::from([0xfd77, 0, 0, 0, 0, 0, 0, 1_u16])).expect("route");
        });
    }

    /// Programs the services as main does: only what changed.
    pub fn program(&mut self, services: &Services) {
        let next = table::contents(services);
        let messages = table::changes(&self.contents, &next);
        within(&self.host, move || nft::commit(messages).expect("commit"));
        self.contents = next;
    }

    /// Answers every TCP connection to `port` in a pod with the pod's number, until the test ends.
    pub fn serve_tcp(&self, pod: usize, port: u16) {
        for any in ["0.0.0.0", "::"] {
            let address = SocketAddr::new(any.parse().expect("IP"), port);
            let listener = within(&self.pods[pod].netns, move || listen(address));
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let Ok(mut stream) = stream else { return };
                    let peer = stream.peer_addr().expect("peer").ip();
                    // A client that is gone already is the client's affair.
                    let _ = stream.write_all(format!("{pod} {peer}").as_bytes());
                }
            });
        }
    }

    /// Answers TCP connections to a port of the host itself.
    pub fn serve_on_host(&self, port: u16) {
        let listener = within(&self.host, move || listen(SocketAddr::new("0.0.0.0".parse().expect("IP"), port)));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // As above.
                let _ = stream.write_all(b"host");
            }
        });
    }

    pub fn serve_udp(&self, pod: usize, port: u16) {
        let socket = within(&self.pods[pod].netns, move || UdpSocket::bind(("0.0.0.0", port)).expect("bind"));
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(pod.to_string().as_bytes(), from);
            }
        });
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    if address.is_ipv4() {
        return TcpListener::bind(address).expect("bind");
    }
    use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
    let socket = socket(AddressFamily::INET6, SocketType::STREAM, None).expect("socket");
    sockopt::set_ipv6_v6only(&socket, true).expect("option");
    bind(&socket, &address).expect("bind");
    listen(&socket, 16).expect("listen");
    socket.into()
}

/// What a TCP server in `netns`'s reach answers, or the error's kind.
pub fn ask_tcp(netns: &File, to: &str) -> Result<String, std::io::ErrorKind> {
    let to: SocketAddr = to.parse().expect("address");
    within(netns, move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).map_err(|e| e.kind())?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("option");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.kind())?;
        Ok(answer)
    })
}

pub fn ask_udp(netns: &File, from: &str, to: &str) -> Result<String, std::io::ErrorKind> {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("address"), to.parse().expect("address"));
    within(netns, move || {
        let socket = UdpSocket::bind(from).map_err(|e| e.kind())?;
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("option");
        socket.connect(to).map_err(|e| e.kind())?;
        socket.send(b"?").map_err(|e| e.kind())?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).map_err(|e| e.kind())?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

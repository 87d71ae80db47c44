//! DNS while HTTPS is flooded: it has a thread of its own, and connections of one client are counted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::bed::{Edge, Rules};
use crate::dns::names;
use crate::tls::{Issued, issue};

/// What a resolver waits before it asks again. Source: resolv.conf(5), `timeout`.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(5);
const QUERIES: u16 = 300;
/// Enough to keep every processor of a small machine busy with signatures.
const ATTACKERS: usize = 8;

fn client(issued: &Issued) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(issued.authority.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    // Each handshake costs the edge a signature.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// One whole handshake, and goodbye.
fn shake_hands(edge: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(edge)?;
    let name = ServerName::try_from("site.example.org").map_err(std::io::Error::other)?;
    let mut tls = ClientConnection::new(config.clone(), name).map_err(std::io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    Ok(())
}

/// Asks for a name; returns how long the answer took. A query is sent once.
fn ask(socket: &UdpSocket, id: u16) -> Duration {
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii("website.rack.svc.cluster.local.").unwrap(), RecordType::A));
    let asked = Instant::now();
    socket.send(&query.to_vec().unwrap()).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).expect("an answer within a resolver's patience");
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((answer.metadata.id, answer.answers.len()), (id, 1));
    asked.elapsed()
}

fn resolver(edge: &Edge) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(edge.dns).unwrap();
    socket.set_read_timeout(Some(RESOLVER_PATIENCE)).unwrap();
    socket
}

fn edge(issued: &Issued) -> Edge {
    let rules = Rules::new().certificate(&["site.example.org"], &issued.chain, &issued.key);
    Edge::serving(rules.dns(names(&[])).table())
}

#[test]
fn handshakes_without_end_do_not_keep_names_from_being_resolved() {
    let issued = issue("site.example.org");
    let edge = edge(&issued);
    let (config, stop, shaken) = (client(&issued), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if shake_hands(edge.https, &config).is_ok() {
                        shaken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let socket = resolver(&edge);
        let mut took: Vec<Duration> = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(60);
        // As long as it takes for the flood to be one.
        while took.len() < usize::from(QUERIES) || shaken.load(Ordering::Relaxed) < 500 {
            took.push(ask(&socket, took.len() as u16));
            assert!(Instant::now() < deadline, "{} handshakes are no flood", shaken.load(Ordering::Relaxed));
        }
        stop.store(true, Ordering::Relaxed);
        took.sort();
        let (median, last) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{} queries: median {median:?}, slowest {last:?}", took.len());
        assert!(median < Duration::from_millis(100), "median {median:?}");
    });
}

#[test]
fn connections_that_say_nothing_leave_room_for_names() {
    let edge = edge(&issue("site.example.org"));
    // More than one client may have: the surplus is closed at once.
    let silent: Vec<TcpStream> = (0..1100).map_while(|_| TcpStream::connect(edge.https).ok()).collect();
    assert_eq!(silent.len(), 1100, "this test needs as many descriptors");
    let mut refused = silent.last().unwrap();
    refused.set_read_timeout(Some(RESOLVER_PATIENCE)).unwrap();
    // The end, or a reset.
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    drop(refused.write(b"x"));
    let socket = resolver(&edge);
    for id in 0..50 {
        ask(&socket, id);
    }
}

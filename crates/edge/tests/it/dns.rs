//! The DNS server over its sockets. What it answers is tested in `wire`; here is how it gets there.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;
use wire::edge::Dns;

use crate::bed::{Edge, PATIENCE, Rules};

pub fn names(upstreams: &[SocketAddr]) -> Dns {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    Dns {
        domain: "cluster.local".into(),
        addresses: [
            ("website.rack.svc".to_owned(), vec![ip("10.96.1.2")]),
            ("many.rack.svc".to_owned(), (0..200).map(|n| ip(&format!("10.1.0.{n}"))).collect()),
        ]
        .into(),
        aliases: [("db.rack.svc".to_owned(), "db.example.org".to_owned())].into(),
        upstreams: upstreams.to_vec(),
        ..Dns::default()
    }
}

fn edge(upstreams: &[SocketAddr]) -> Edge {
    Edge::serving(Rules::new().dns(names(upstreams)).table())
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn over_udp(server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let (length, from) = timeout(PATIENCE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(from, server);
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
    answer
}

async fn over_tcp(server: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = query.to_vec().unwrap();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut answer = vec![0; usize::from(timeout(PATIENCE, stream.read_u16()).await.unwrap().unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

/// A resolver that answers everything with one address, and counts. `truncates`: but over UDP.
pub async fn upstream(ttl: u32, truncates: bool) -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::atomic::Ordering;
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let answer = move |query: &Message| {
        let mut answer = wire::dns::response(query);
        let name = query.queries[0].name().clone();
        if name.to_ascii().starts_with("missing") {
            answer.metadata.response_code = ResponseCode::NXDomain;
        } else if query.queries[0].query_type() == RecordType::TXT {
            answer.add_answer(Record::from_rdata(name, ttl, RData::TXT(TXT::new(vec!["x".repeat(255); 8]))));
        } else {
            answer.add_answer(Record::from_rdata(name, ttl, RData::A(A([192, 0, 2, 1].into()))));
        }
        answer
    };
    let counted = asked.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            counted.fetch_add(1, Ordering::Relaxed);
            let query = Message::from_vec(&buffer[..length]).unwrap();
            // Somebody who guesses: another id.
            let mut forged = answer(&query);
            forged.metadata.id ^= 1;
            udp.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
            let reply = if truncates { answer(&query).truncate() } else { answer(&query) };
            udp.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut bytes).await.unwrap();
            let bytes = answer(&Message::from_vec(&bytes).unwrap()).to_vec().unwrap();
            stream.write_u16(bytes.len() as u16).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    (address, asked)
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn services_have_addresses() {
    let edge = edge(&[]);
    for answer in [
        over_udp(edge.dns, &query("website.rack.svc.cluster.local.", RecordType::A)).await,
        over_tcp(edge.dns, &query("website.rack.svc.cluster.local.", RecordType::A)).await,
    ] {
        assert_eq!(addresses(&answer), ["10.96.1.2"]);
        assert!(answer.metadata.authoritative);
    }
}

#[tokio::test]
async fn what_is_too_long_for_udp_comes_over_tcp() {
    let edge = edge(&[]);
    let long = query("many.rack.svc.cluster.local.", RecordType::A);
    let short = over_udp(edge.dns, &long).await;
    assert!(short.metadata.truncation && short.answers.is_empty());
    assert_eq!(over_tcp(edge.dns, &long).await.answers.len(), 200);
}

#[tokio::test]
async fn other_names_are_asked_for_elsewhere_and_remembered() {
    let (address, asked) = upstream(60, false).await;
    let edge = edge(&[address]);
    for _ in 0..3 {
        assert_eq!(addresses(&over_udp(edge.dns, &query("www.example.org.", RecordType::A)).await), ["192.0.2.1"]);
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    let missing = over_udp(edge.dns, &query("missing.example.org.", RecordType::A)).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn answers_that_must_not_be_kept_are_not() {
    let (address, asked) = upstream(0, false).await;
    let edge = edge(&[address]);
    for _ in 0..3 {
        over_udp(edge.dns, &query("www.example.org.", RecordType::A)).await;
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[tokio::test]
async fn an_upstream_that_truncates_is_asked_over_tcp() {
    let (address, _) = upstream(60, true).await;
    let edge = edge(&[address]);
    let mut wants_more = query("text.example.org.", RecordType::TXT);
    assert!(over_udp(edge.dns, &wants_more).await.metadata.truncation);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    wants_more.set_edns(edns);
    assert!(over_udp(edge.dns, &wants_more).await.metadata.truncation, "2 kB are more than is safe over UDP");
    assert_eq!(over_tcp(edge.dns, &wants_more).await.answers.len(), 1);
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (address, _) = upstream(60, false).await;
    let edge = edge(&[silent.local_addr().unwrap(), address]);
    assert_eq!(addresses(&over_udp(edge.dns, &query("www.example.org.", RecordType::A)).await), ["192.0.2.1"]);
}

#[tokio::test]
async fn without_an_upstream_that_answers_the_failure_is_told_in_time() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for upstreams in [vec![], vec![silent.local_addr().unwrap()]] {
        let edge = edge(&upstreams);
        let start = Instant::now();
        let answer = over_udp(edge.dns, &query("www.example.org.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(
            addresses(&over_udp(edge.dns, &query("website.rack.svc.cluster.local.", RecordType::A)).await),
            ["10.96.1.2"]
        );
    }
}

#[tokio::test]
async fn external_names_come_with_their_addresses() {
    let (address, _) = upstream(60, false).await;
    let edge = edge(&[address]);
    let answer = over_udp(edge.dns, &query("db.rack.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(addresses(&answer), ["db.example.org.", "192.0.2.1"]);
}

#[tokio::test]
async fn nonsense_gets_no_answer_and_does_no_harm() {
    let edge = edge(&[]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for bytes in [&b""[..], b"x", &[0xff; 600], &[0; 12]] {
        socket.send_to(bytes, edge.dns).await.unwrap();
    }
    over_udp(edge.dns, &query("website.rack.svc.cluster.local.", RecordType::A)).await;
}

pub async fn resolves_elsewhere(server: SocketAddr) {
    assert_eq!(addresses(&over_udp(server, &query("www.example.org.", RecordType::A)).await), ["192.0.2.1"]);
}

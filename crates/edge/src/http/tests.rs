//! Bounds that nobody wants to wait for: the number of connections, and how long one may be idle or slow.

use std::net::{IpAddr, Ipv6Addr};

use hyper_util::rt::TokioExecutor;
use rustix::event::{EventfdFlags, eventfd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::Instant;

use super::*;
use crate::shared::{MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT};

fn shared() -> Arc<Shared> {
    let (_, log) = rustix::pipe::pipe().unwrap();
    let full = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
    Arc::new(Shared::new(AccessLog::new(log, full).unwrap()).unwrap())
}

const PEER: Peer = Peer {
    address: std::net::SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 40_000),
    port: 80,
    tls: false,
};

#[test]
fn one_client_cannot_take_all_connections() {
    let shared = shared();
    let client = |n: u8| IpAddr::from([192, 0, 2, n]);
    let greedy: Vec<_> = (0..MAX_CONNECTIONS_PER_CLIENT).map(|_| Admitted::new(&shared, client(1)).unwrap()).collect();
    assert!(Admitted::new(&shared, client(1)).is_none());
    assert!(Admitted::new(&shared, client(2)).is_some());
    drop(greedy);
    assert!(Admitted::new(&shared, client(1)).is_some());
}

#[test]
fn a_client_has_a_whole_network_of_ipv6() {
    let shared = shared();
    let client = |network: u16, n: usize| {
        IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, u16::try_from(n).unwrap()))
    };
    let _greedy: Vec<_> =
        (0..MAX_CONNECTIONS_PER_CLIENT).map(|n| Admitted::new(&shared, client(0, n)).unwrap()).collect();
    assert!(Admitted::new(&shared, client(0, 9999)).is_none());
    assert!(Admitted::new(&shared, client(1, 0)).is_some());
}

#[test]
fn there_is_an_end_to_all_connections() {
    let shared = shared();
    let client = |n: usize| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
    let mut all: Vec<_> = (0..MAX_CONNECTIONS).map(|n| Admitted::new(&shared, client(n)).unwrap()).collect();
    assert!(Admitted::new(&shared, client(MAX_CONNECTIONS)).is_none());
    all.pop();
    assert!(Admitted::new(&shared, client(MAX_CONNECTIONS)).is_some());
}

/// How long a connection lives on which a client says `begin` and then nothing.
async fn life(begin: &[u8]) -> Duration {
    let (mut client, server) = duplex(1 << 16);
    let (shared, stop) = (shared(), CancellationToken::new());
    let began = Instant::now();
    let serving = http1(&shared, server, PEER, &stop);
    let talking = async {
        client.write_all(begin).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
    };
    tokio::join!(serving, talking);
    began.elapsed()
}

fn close_to(elapsed: Duration, expected: Duration) {
    assert!(elapsed >= expected && elapsed < expected + Duration::from_secs(1), "{elapsed:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_head_takes_a_minute_at_most() {
    close_to(life(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await, HEADER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_lives_for_a_minute() {
    // The answer, 404 without a table, comes at once; then nothing is asked.
    close_to(life(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await, HEADER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_http_2_lives_for_a_minute() {
    let (client, server) = duplex(1 << 16);
    let (shared, stop) = (shared(), CancellationToken::new());
    let began = Instant::now();
    let talking = async {
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .handshake::<_, http_body_util::Empty<bytes::Bytes>>(TokioIo::new(client))
            .await
            .unwrap();
        connection.await.unwrap();
        drop(sender);
    };
    tokio::join!(http2(&shared, server, PEER, &stop), talking);
    close_to(began.elapsed(), HEADER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn who_reads_nothing_for_a_minute_is_gone() {
    let (_client, server) = duplex(16);
    let mut stream = Impatient::new(server);
    let began = Instant::now();
    let error = stream.write_all(&[0; 64]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    close_to(began.elapsed(), Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_is_served() {
    let (mut client, server) = duplex(16);
    let mut stream = Impatient::new(server);
    let reading = async {
        let mut piece = [0; 16];
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(50)).await;
            client.read_exact(&mut piece).await.unwrap();
        }
    };
    let (written, ()) = tokio::join!(stream.write_all(&[0; 64]), reading);
    written.unwrap();
}

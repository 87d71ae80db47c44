//! Ports forwarded by the kubelet's endpoint, over each of the protocols that clients speak.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio_tungstenite::tungstenite::Message;
use wire::spdy::{Event, Status};

use crate::bed::Bed;
use crate::endpoint::open;
use crate::spdy::{Client, upgrade};

const PATH: &str = "/portForward/default/echo";

/// A pod that sends back what it hears on port 7000, and listens without a gap between two clients.
async fn echo(bed: &Bed) {
    let serve =
        "busybox nc -ll -p 7000 -e cat & until busybox nc 127.0.0.1 7000 </dev/null; do :; done; echo listening; wait";
    bed.script("echo", serve).await;
    bed.until_log("echo", "main", "listening").await;
}

/// Opens a pair of streams: the error's and the data's.
fn open_pair(client: &mut Client, port: u16, request: u32) -> (u32, u32) {
    let mut open = |kind: &str| {
        let headers = [("streamtype", kind), ("port", &port.to_string()), ("requestid", &request.to_string())];
        client.open(&headers)
    };
    (open("error"), open("data"))
}

fn data(stream: u32, bytes: &'static [u8]) -> Event {
    Event::Data { stream, bytes: Bytes::from_static(bytes) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_connection_is_a_pair_of_streams() {
    let bed = Bed::new().await;
    echo(&bed).await;
    let mut client = Client::start(&bed, PATH, "portforward.k8s.io").await;

    // An application hears that its client has finished, and may still answer.
    let (error, stream) = open_pair(&mut client, 7000, 1);
    client.session.close(error);
    client.session.send(stream, b"hello");
    client.session.close(stream);
    let heard = client.hear(|event| *event == Event::Finished { stream: error }).await;
    assert_eq!(heard, [data(stream, b"hello"), Event::Finished { stream }, Event::Finished { stream: error }]);

    // A client that gives up ends its connection, and no other.
    let (error, stream) = open_pair(&mut client, 7000, 2);
    client.session.send(stream, b"and again");
    assert_eq!(client.hear(|event| matches!(event, Event::Data { .. })).await, [data(stream, b"and again")]);
    client.session.reset(stream, Status::Cancel);
    client.hear(|event| *event == Event::Finished { stream: error }).await;

    // The reason is on the error stream, in upstream's words.
    let (error, stream) = open_pair(&mut client, 9, 3);
    let heard = client.hear(|event| *event == Event::Finished { stream: error }).await;
    assert_eq!(heard[1..], [Event::Reset { stream }, Event::Finished { stream: error }]);
    let Event::Data { bytes, .. } = &heard[0] else { panic!("{heard:?}") };
    let why = std::str::from_utf8(bytes).unwrap();
    assert!(why.starts_with("error forwarding port 9 to pod echo, uid "), "{why}");
    assert!(
        why.contains("IPv4: dial tcp4 127.0.0.1:9: connect: connection refused IPv6: dial tcp6 [::1]:9: "),
        "{why}"
    );

    // Streams that say nothing of use are refused, and the connection goes on.
    let stream = client.open(&[("streamtype", "data")]);
    assert_eq!(client.hear(|event| matches!(event, Event::Reset { .. })).await, [Event::Reset { stream }]);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_libraries_use_channels() {
    let bed = Bed::new().await;
    echo(&bed).await;
    let mut socket = open(&bed, "/portForward/default/echo?port=7000,9", "v4.channel.k8s.io").await;
    socket.send(Message::binary(&b"\0hello"[..])).await.unwrap();
    let mut heard = vec![Vec::new(); 4];
    while !heard[0].ends_with(b"hello") || !heard[3].ends_with(b"refused") {
        let message = tokio::time::timeout(Duration::from_secs(30), socket.next()).await;
        if let Message::Binary(bytes) = message.expect("an answer in time").unwrap().unwrap() {
            heard[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    // Each channel begins with its port, the low byte first.
    assert_eq!(heard[0], [&7000u16.to_le_bytes()[..], b"hello"].concat());
    assert_eq!(heard[1], 7000u16.to_le_bytes());
    assert_eq!(heard[2], 9u16.to_le_bytes());
    assert!(String::from_utf8_lossy(&heard[3][2..]).starts_with("error forwarding port 9 to pod echo, uid "));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_speaks_is_refused() {
    let bed = Bed::new().await;
    echo(&bed).await;
    let status = async |path: &str, protocol: &str| {
        let request = Request::post(path).header("connection", "Upgrade").header("upgrade", "SPDY/3.1");
        upgrade(&bed, request.header("x-stream-protocol-version", protocol)).await.0.status().as_u16()
    };
    assert_eq!(status("/portForward/default/echo", "v9.portforward.k8s.io").await, 403);
    assert_eq!(status("/portForward/default/none", "portforward.k8s.io").await, 404);
    assert_eq!(status("/portForward/default", "portforward.k8s.io").await, 400);
    bed.finish().await;
}

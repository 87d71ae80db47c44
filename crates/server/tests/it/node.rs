//! What goes on to a node: logs as they come, upgrades byte for byte.

use std::sync::Arc;

use api::status::Status;
use http_body_util::BodyExt;
use serde_json::json;
use server::hooks::{NodeAddress, NodeDialer, Stream};
use server::identity::BoxFuture;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::cluster::Cluster;

/// Hands the node's side of each connection to the test.
struct Pipes(mpsc::UnboundedSender<(NodeAddress, DuplexStream)>);

impl NodeDialer for Pipes {
    fn dial<'a>(&'a self, node: &'a NodeAddress) -> BoxFuture<'a, Result<Box<dyn Stream>, Status>> {
        let (near, far) = tokio::io::duplex(1 << 16);
        self.0.send((node.clone(), far)).unwrap();
        Box::pin(async { Ok(Box::new(near) as Box<dyn Stream>) })
    }
}

async fn cluster() -> (Cluster, mpsc::UnboundedReceiver<(NodeAddress, DuplexStream)>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let cluster = Cluster::with(|config| config.node_dialer = Arc::new(Pipes(sender))).await;
    let node =
        json!({"metadata": {"name": "n"}, "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]}});
    assert_eq!(cluster.post("/api/v1/nodes", &node).await.code, 201);
    let put = cluster.patch("/api/v1/nodes/n/status", "merge", &json!({"status": node["status"]})).await;
    assert_eq!(put.code, 200, "{}", put.message());
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let made = cluster.post("/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(made.code, 201, "{}", made.message());
    (cluster, receiver)
}

/// Reads a request's head.
async fn head(stream: &mut BufReader<DuplexStream>) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut text).await.unwrap(), 0, "{text}");
    }
    text
}

const POD: &str = "/api/v1/namespaces/default/pods/p";

#[tokio::test]
async fn a_log_comes_as_it_is_written() {
    let (cluster, mut dialled) = cluster().await;
    let path = format!("{POD}/log?follow=true&tailLines=5");
    let ask = cluster.send("GET", &path, &[("authorization", "Bearer secret")], bytes::Bytes::new());
    let node = async {
        let (address, stream) = dialled.recv().await.unwrap();
        assert_eq!((address.host.as_str(), address.port), ("10.0.0.7", 10250));
        let mut stream = BufReader::new(stream);
        let head = head(&mut stream).await;
        assert!(head.starts_with("GET /containerLogs/default/p/c?follow=true&tailLines=5 HTTP/1.1\r\n"), "{head}");
        assert!(!head.contains("secret"), "{head}");
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream
    };
    let (response, mut stream) = tokio::join!(ask, node);
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first\n");
    stream.write_all(b"7\r\nsecond\n\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "second\n");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_node_s_refusal_is_passed_on() {
    let (cluster, mut dialled) = cluster().await;
    let path = format!("{POD}/log");
    let ask = cluster.get(&path);
    let node = async {
        let mut stream = BufReader::new(dialled.recv().await.unwrap().1);
        head(&mut stream).await;
        let text = "container \"c\" in pod \"p\" is waiting to start: ContainerCreating";
        let answer = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let (answer, ()) = tokio::join!(ask, node);
    assert_eq!(answer.code, 400);
    assert_eq!(answer.message(), "container \"c\" in pod \"p\" is waiting to start: ContainerCreating");
}

#[tokio::test]
async fn an_upgrade_is_tunnelled_with_each_side_s_end() {
    let (cluster, mut dialled) = cluster().await;
    let mut client = BufReader::new(TcpStream::connect(cluster.address).await.unwrap());
    let request = format!(
        "GET {POD}/exec?command=sh&stdin=true HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: abc\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut node = BufReader::new(dialled.recv().await.unwrap().1);
    let head = head(&mut node).await;
    assert!(head.starts_with("GET /exec/default/p/c?input=1&command=sh HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("sec-websocket-protocol: v5.channel.k8s.io\r\n"), "{head}");
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: v5.channel.k8s.io\r\n\r\n";
    node.write_all(answer.as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.ends_with("\r\n\r\n") {
        assert_ne!(client.read_line(&mut seen).await.unwrap(), 0, "{seen}");
    }
    assert!(seen.starts_with("HTTP/1.1 101 "), "{seen}");

    client.write_all(b"to the node").await.unwrap();
    let mut buffer = [0; 11];
    node.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"to the node");
    // The client has said all; the node still has something to say.
    client.get_mut().shutdown().await.unwrap();
    assert_eq!(node.read(&mut buffer).await.unwrap(), 0);
    node.write_all(b"the answer").await.unwrap();
    node.shutdown().await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"the answer");
}

#[tokio::test]
async fn exec_without_an_upgrade_is_refused() {
    let (cluster, _dialled) = cluster().await;
    let refused = cluster.get(&format!("{POD}/exec?command=sh")).await;
    assert_eq!(refused.code, 400, "{}", refused.message());
}

#[tokio::test]
async fn a_client_that_breaks_off_ends_the_tunnel() {
    let (cluster, mut dialled) = cluster().await;
    let mut client = TcpStream::connect(cluster.address).await.unwrap();
    let request = format!(
        "POST {POD}/attach?stdout=true HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: SPDY/3.1\r\nx-stream-protocol-version: v4.channel.k8s.io\r\ncontent-length: 0\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut node = BufReader::new(dialled.recv().await.unwrap().1);
    let head = head(&mut node).await;
    assert!(head.starts_with("POST /attach/default/p/c?output=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("x-stream-protocol-version: v4.channel.k8s.io\r\n"), "{head}");
    node.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: SPDY/3.1\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 12];
    client.read_exact(&mut byte).await.unwrap();
    drop(client);
    assert_eq!(node.read(&mut byte).await.unwrap(), 0);
}

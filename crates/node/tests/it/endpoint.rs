//! The kubelet's endpoint as the API server speaks to it.

use std::sync::Arc;

use bytes::Bytes;
use client::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use node::server::{Action, Caller, Denied, Endpoint};
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use tokio_util::sync::CancellationToken;
use wire::spdy::Event;

use crate::bed::Bed;
use crate::spdy::Client;

pub fn allow_all(_: Caller, _: Action) -> BoxFuture<'static, Result<(), Denied>> {
    Box::pin(async { Ok(()) })
}

pub fn connect(bed: &Bed, authorizer: node::server::Authorizer) -> DuplexStream {
    let cancel = CancellationToken::new();
    let endpoint = Endpoint::new(bed.registry.clone(), bed.runtime.clone(), bed.roots(), authorizer, cancel);
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move { endpoint.serve_stream(far, Vec::new()).await });
    near
}

async fn get_as(bed: &Bed, path: &str, authorizer: node::server::Authorizer) -> (u16, String) {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connect(bed, authorizer))).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get(path).header("host", "node").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    (code, String::from_utf8(body.to_vec()).unwrap())
}

async fn get(bed: &Bed, path: &str) -> (u16, String) {
    get_as(bed, path, Arc::new(allow_all)).await
}

pub type Socket = WebSocketStream<DuplexStream>;

pub async fn open(bed: &Bed, path: &str, protocol: &str) -> Socket {
    let request = tungstenite::http::Request::get(format!("ws://node{path}"))
        .header("host", "node")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", tungstenite::handshake::client::generate_key())
        .header("sec-websocket-protocol", protocol)
        .body(())
        .unwrap();
    let (socket, response) = client_async(request, connect(bed, Arc::new(allow_all))).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    socket
}

/// Everything on each channel until the server closes.
async fn read(socket: &mut Socket) -> (String, String, Value) {
    let (mut out, mut err, mut result) = (Vec::new(), Vec::new(), Value::Null);
    while let Some(message) = socket.next().await {
        let Message::Binary(bytes) = message.unwrap() else { continue };
        match bytes[0] {
            1 => out.extend_from_slice(&bytes[1..]),
            2 => err.extend_from_slice(&bytes[1..]),
            3 if bytes.len() > 1 => result = serde_json::from_slice(&bytes[1..]).unwrap(),
            _ => {}
        }
    }
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), result)
}

fn channel(number: u8, text: &[u8]) -> Message {
    Message::binary([&[number], text].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_read_and_followed() {
    let bed = Bed::new().await;
    bed.script("talker", "echo one; echo two; while ! test -e /tmp/go; do sleep 0.02; done; echo three").await;
    bed.until_ready("talker").await;
    bed.until_log("talker", "main", "two").await;
    assert_eq!(get(&bed, "/containerLogs/default/talker/main").await, (200, "one\ntwo\n".to_owned()));
    assert_eq!(get(&bed, "/containerLogs/default/talker/main?tailLines=1").await, (200, "two\n".to_owned()));
    let (code, text) = get(&bed, "/containerLogs/default/talker/main?previous=true").await;
    assert_eq!((code, text.as_str()), (400, "previous terminated container \"main\" in pod \"talker\" not found"));
    assert_eq!(get(&bed, "/containerLogs/default/none/main").await, (404, "pod \"none\" does not exist".to_owned()));
    let follow = get(&bed, "/containerLogs/default/talker/main?follow=true");
    let finish = async {
        let mut socket = open(
            &bed,
            "/exec/default/talker/main?command=sh&command=-c&command=echo+>/tmp/go&output=1"
                .replace('>', "%3E")
                .as_str(),
            "v5.channel.k8s.io",
        )
        .await;
        read(&mut socket).await.2
    };
    let (followed, result) = tokio::join!(follow, finish);
    assert_eq!(result["status"], "Success");
    assert_eq!(followed, (200, "one\ntwo\nthree\n".to_owned()));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_with_streams_and_codes() {
    let bed = Bed::new().await;
    bed.script("shell", "exec sleep 1000").await;
    bed.until_ready("shell").await;
    let exec = |script: &str, more: &str| {
        let script = script.replace(' ', "+").replace('>', "%3E").replace('&', "%26").replace(';', "%3B");
        format!("/exec/default/shell/main?command=sh&command=-c&command={script}{more}")
    };
    let mut socket =
        open(&bed, &exec("echo out; echo err >&2; exit 7", "&output=1&error=1"), "v5.channel.k8s.io").await;
    let (out, err, result) = read(&mut socket).await;
    assert_eq!((out.as_str(), err.as_str()), ("out\n", "err\n"));
    let expected = json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": "command terminated with exit code 7", "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
    assert_eq!(result, expected);

    // A long input comes back while it is still being sent, and ends when the client closes its side.
    let mut socket = open(&bed, &exec("cat", "&input=1&output=1"), "v5.channel.k8s.io").await;
    let block = vec![b'x'; 10_000];
    let (mut sink, mut stream) = (&mut socket).split();
    let send = async {
        for _ in 0..100 {
            sink.send(channel(0, &block)).await.unwrap();
        }
        sink.send(Message::binary(vec![255, 0])).await.unwrap();
    };
    let receive = async {
        let mut count = 0;
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(bytes) = message
                && bytes[0] == 1
            {
                count += bytes.len() - 1;
            }
        }
        count
    };
    assert_eq!(tokio::join!(send, receive).1, 1_000_000);

    let mut socket = open(&bed, &exec("exit 0", "&output=1&tty=1"), "v4.channel.k8s.io").await;
    assert_eq!(read(&mut socket).await.2["status"], "Success");
    let mut socket = open(&bed, "/exec/default/shell/main?command=/none&output=1", "v5.channel.k8s.io").await;
    let message = read(&mut socket).await.2["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("Internal error occurred: error executing command in container: "), "{message}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_have_sizes_and_attach_sees_output() {
    let bed = Bed::new().await;
    let container =
        json!({"name": "main", "command": ["sh", "-c", "read line; echo got $line"], "stdin": true, "tty": true});
    bed.pod("screen", json!({"containers": [container], "restartPolicy": "Never"})).await;
    bed.until_ready("screen").await;
    let mut socket = open(&bed, "/attach/default/screen/main?input=1&output=1&tty=1", "v5.channel.k8s.io").await;
    socket.send(channel(4, br#"{"Width":100,"Height":40}"#)).await.unwrap();
    socket.send(channel(0, b"hello\n")).await.unwrap();
    let (out, _, result) = read(&mut socket).await;
    assert!(out.contains("got hello"), "{out:?}");
    assert_eq!(result["status"], "Success");
    bed.until_phase("screen", "Succeeded").await;
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_clients_speak_spdy() {
    let bed = Bed::new().await;
    bed.script("shell", "exec sleep 1000").await;
    bed.until_ready("shell").await;
    let path = "/exec/default/shell/main?input=1&output=1&error=1&command=sh&command=-c&command=cat%3B+echo+err+%3E%262%3B+exit+7";
    for protocol in ["v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io"] {
        let mut client = Client::start(&bed, path, protocol).await;
        let [error, stdin, stdout, stderr] =
            ["error", "stdin", "stdout", "stderr"].map(|kind| client.open(&[("streamtype", kind)]));
        client.session.send(stdin, b"typed");
        client.session.close(stdin);
        let left = std::cell::Cell::new(3);
        let heard = client.hear(|event| {
            let last = matches!(event, Event::Finished { stream } if [error, stdout, stderr].contains(stream));
            left.set(left.get() - i32::from(last));
            left.get() == 0
        });
        let heard = heard.await;
        let text = |wanted| {
            let pieces = heard.iter().filter_map(|event| match event {
                Event::Data { stream, bytes } if *stream == wanted => Some(&bytes[..]),
                _ => None,
            });
            String::from_utf8(pieces.collect::<Vec<_>>().concat()).unwrap()
        };
        assert_eq!((text(stdout).as_str(), text(stderr).as_str()), ("typed", "err\n"), "{protocol}");
        if protocol == "v4.channel.k8s.io" {
            let status: Value = serde_json::from_str(&text(error)).unwrap();
            assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "7"}));
        } else {
            assert_eq!(text(error), "command terminated with exit code 7", "{protocol}");
        }
    }
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_nothing_but_health() {
    let bed = Bed::new().await;
    bed.script("secret", "echo secret; exec sleep 1000").await;
    bed.until_ready("secret").await;
    let nobody: node::server::Authorizer = Arc::new(|caller: Caller, _| {
        Box::pin(
            async move { Err(if caller.bearer_token.is_some() { Denied::Forbidden } else { Denied::Unauthenticated }) },
        )
    });
    for path in ["/pods", "/containerLogs/default/secret/main", "/exec/default/secret/main?command=id&output=1"] {
        assert_eq!(get_as(&bed, path, nobody.clone()).await, (401, "Unauthorized".to_owned()));
    }
    assert_eq!(get_as(&bed, "/healthz", nobody).await, (200, "ok".to_owned()));
    let (code, text) = get(&bed, "/exec/default/secret/main?command=id&output=1").await;
    assert_eq!((code, text.as_str()), (400, "Upgrade request required"));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_come_over_a_websocket() {
    let bed = Bed::new().await;
    bed.script("alive", "echo container is alive").await;
    bed.until_phase("alive", "Succeeded").await;
    for (protocol, expected) in
        [("binary.k8s.io", "container is alive\n"), ("base64.binary.k8s.io", "Y29udGFpbmVyIGlzIGFsaXZlCg==")]
    {
        let mut socket = open(&bed, "/containerLogs/default/alive/main", protocol).await;
        let (mut all, mut closed) = (Vec::new(), false);
        while let Some(message) = socket.next().await {
            match message.unwrap() {
                Message::Close(_) => closed = true,
                message => all.extend(message.into_data()),
            }
        }
        assert_eq!((String::from_utf8(all).unwrap().as_str(), closed), (expected, true));
    }
    bed.finish().await;
}

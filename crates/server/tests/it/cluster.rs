//! A server over an in-memory store on a loopback port, and the smallest client that can talk to it.

use std::net::SocketAddr;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use client::tls::{Credentials, Tls};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use serde_json::{Value, json};
use server::hooks::{Clock, Rng};
use server::identity::{AllowAll, Everybody, User};
use server::pki::{Authority, Order, Purpose, live};
use server::server::{Server, ServerConfig};
use store::memory::Memory;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub struct Cluster {
    pub server: Arc<Server>,
    pub address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// A response, read whole.
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub fn message(&self) -> String {
        self.value()["message"].as_str().unwrap_or_default().to_owned()
    }

    pub fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().map(|value| value.to_str().unwrap()).collect()
    }
}

pub fn clock() -> Clock {
    Arc::new(Timestamp::now)
}

pub fn rng() -> Rng {
    let random = ring::rand::SystemRandom::new();
    Arc::new(move |out| ring::rand::SecureRandom::fill(&random, out).expect("the kernel gives randomness"))
}

impl Cluster {
    /// Starts a server in which everything is allowed, with a namespace `default`.
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let user = User::loopback("tester");
        let mut config = ServerConfig::new(
            Memory::new(),
            kinds::registry(),
            Arc::new(Everybody(user)),
            Arc::new(AllowAll),
            clock(),
            rng(),
        );
        change(&mut config);
        let shutdown = config.shutdown.clone();
        let server = Server::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(server.clone().serve(listener, None, shutdown.clone()));
        let cluster = Self {
            server,
            address,
            client: Client::builder(TokioExecutor::new()).build_http(),
            stop: shutdown.clone(),
            _guard: shutdown.drop_guard(),
        };
        let namespace = json!({"metadata": {"name": "default"}});
        assert_eq!(cluster.post("/api/v1/namespaces", &namespace).await.code, 201);
        cluster
    }

    /// Serves the same server over TLS as well, and returns a client for it that shows a certificate of `user`.
    pub async fn tls(&self, user: &str) -> client::Client {
        let now = Timestamp::now();
        let authority = Authority::new(now).unwrap();
        let life = jiff::SignedDuration::from_hours(1);
        let order = |name: &str, purpose| Order { name: name.to_owned(), purpose, life };
        let served = Purpose::Server { names: vec!["127.0.0.1".to_owned()] };
        let leaf = authority.issue(&order("server", served), now).unwrap();
        let config =
            live::server_config(live::Live::new(&leaf).unwrap(), authority.certificate(), &["h2", "http/1.1"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(self.server.clone().serve(listener, Some(Arc::new(config)), self.stop.clone()));
        let shown = authority.issue(&order(user, Purpose::Client { group: None }), now).unwrap();
        let credentials = Credentials::Certificate { chain: shown.certificate, key: shown.key };
        let transport = Tls::with_credentials(&address, authority.certificate(), &credentials).unwrap();
        client::Client::new(Arc::new(transport))
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<Incoming> {
        let mut request = http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.client.request(request.body(Full::new(body)).unwrap()).await.unwrap()
    }

    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let response = self.send(method, path, headers, body.into()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, object: &Value) -> Answer {
        self.ask("POST", path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub async fn put(&self, path: &str, object: &Value) -> Answer {
        self.ask("PUT", path, &[("content-type", "application/json")], object.to_string()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, patch: &Value) -> Answer {
        let media_type = format!("application/{kind}-patch+json");
        self.ask("PATCH", path, &[("content-type", &media_type)], patch.to_string()).await
    }

    pub async fn delete(&self, path: &str, options: &Value) -> Answer {
        self.ask("DELETE", path, &[("content-type", "application/json")], options.to_string()).await
    }

    /// Begins a watch; `path` carries the query.
    pub async fn watch(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let response = self.send("GET", path, headers, Bytes::new()).await;
        assert_eq!(response.status(), 200, "{path}");
        Events { body: response.into_body(), buffer: Vec::new() }
    }

    /// Runs kubectl against this cluster.
    pub async fn kubectl(&self, arguments: &[&str], stdin: &str) -> Output {
        use tokio::io::AsyncWriteExt;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let home = std::env::temp_dir().join(format!(
            "coracle-kubectl-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&home).unwrap();
        let mut child = tokio::process::Command::new(kubectl_program())
            .arg(format!("--server=http://{}", self.address))
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", &home)
            .env("KUBE_EDITOR", "sed -i s/replicas:.*/replicas:\\ 7/")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(stdin.as_bytes()).await.unwrap();
        drop(input);
        let output = child.wait_with_output().await.unwrap();
        std::fs::remove_dir_all(&home).unwrap();
        output
    }
}

/// The events of a running watch.
pub struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next event, or `None` when the server ended the watch.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(frame.data_ref().unwrap());
        }
    }

    /// The next event as `TYPE NAME REVISION`.
    pub async fn line(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        let metadata = &event["object"]["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!("{} {} {}", text(&event["type"]), text(&metadata["name"]), text(&metadata["resourceVersion"]))
    }
}

/// Debian's kubectl, or the one that `KUBECTL` names.
fn kubectl_program() -> std::path::PathBuf {
    std::env::var_os("KUBECTL").map_or_else(|| testkit::kubectl::RELEASES[0].program().expect("kubectl"), Into::into)
}

//! A server in memory, reached in process and over TLS on loopback.

use std::sync::Arc;

use client::tls::{Credentials, Tls};
use client::{Client, system_clock};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use server::identity::{AllowAll, Everybody, User};
use server::pki::live::{Live, server_config};
use server::pki::{Authority, Order, Purpose};
use server::server::{Server, ServerConfig};
use store::memory::Memory;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub struct Cluster {
    pub client: Client,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Cluster {
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn random(out: &mut [u8]) {
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), out).unwrap();
}

fn server(stop: &CancellationToken) -> Arc<Server> {
    let everybody = Arc::new(Everybody(User::loopback("tester")));
    let mut config = ServerConfig::new(
        Memory::new(),
        kinds::registry(),
        everybody,
        Arc::new(AllowAll),
        system_clock(),
        Arc::new(random),
    );
    config.shutdown = stop.clone();
    Server::new(config)
}

async fn with_namespace(client: Client, tasks: TaskTracker, stop: CancellationToken) -> Cluster {
    let metadata = ObjectMeta { name: Some("default".to_owned()), ..ObjectMeta::default() };
    client.create(&Namespace { metadata, ..Namespace::default() }).await.unwrap();
    Cluster { client, tasks, stop }
}

pub async fn local() -> Cluster {
    let stop = CancellationToken::new();
    let client = server(&stop).local(User::loopback("tester"));
    with_namespace(client, TaskTracker::new(), stop).await
}

pub async fn over_tls() -> Cluster {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let now = Timestamp::now();
    let authority = Authority::new(now).unwrap();
    let issue = |name: &str, purpose| {
        let order = Order { name: name.to_owned(), purpose, life: SignedDuration::from_hours(1) };
        authority.issue(&order, now).unwrap()
    };
    let serving = issue("server", Purpose::Server { names: vec!["127.0.0.1".to_owned()] });
    let client = issue("tester", Purpose::Client { group: None });
    let tls = server_config(Live::new(&serving).unwrap(), authority.certificate(), &["h2", "http/1.1"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    let serve = server(&stop).serve(listener, Some(Arc::new(tls)), stop.clone());
    tasks.spawn(async move { serve.await.unwrap() });
    let credentials = Credentials::Certificate { chain: client.certificate, key: client.key };
    let transport = Tls::with_credentials(&address, authority.certificate(), &credentials).unwrap();
    with_namespace(Client::new(Arc::new(transport)), tasks, stop).await
}

//! The API server as one value: what it is made of, and how it is reached over HTTP and in process.

use std::collections::BTreeMap;
use std::sync::Arc;

use kinds::kind::Kind;
use store::Store;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admit::Chain;
use crate::audit::Audit;
use crate::discovery::Discovery;
use crate::hooks::{Absent, Allocator, Clock, NodeDialer, Reviewer, Rng, TokenIssuer};
use crate::http::stream::Encodings;
use crate::identity::{Authenticator, Authorizer, User};
use crate::local::Local;
use crate::openapi::OpenApi;
use crate::registry::Registry;
use crate::registry::catalog::Catalog;

/// What this server says it is: the release whose API it serves, and its own build.
pub const VERSION: &str = "v1.37.2+coracle.0";

/// A named condition of `/readyz`, such as `poststarthook/rbac`; the text says what is missing.
pub type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The parts of a server. [`ServerConfig::new`] fills in those that a test can do without.
pub struct ServerConfig {
    pub store: Arc<dyn Store>,
    pub kinds: Vec<Kind>,
    pub authenticator: Arc<dyn Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    pub admission: Chain,
    pub allocators: Vec<Box<dyn Allocator>>,
    pub reviewer: Arc<dyn Reviewer>,
    pub tokens: Arc<dyn TokenIssuer>,
    pub node_dialer: Arc<dyn NodeDialer>,
    pub clock: Clock,
    pub rng: Rng,
    pub audit: Option<Arc<dyn Audit>>,
    pub ready: BTreeMap<&'static str, Check>,
    /// `HOST:PORT` at which clients reach this server, for discovery.
    pub advertised: String,
    /// Ends running watches when the server stops.
    pub shutdown: CancellationToken,
}

impl ServerConfig {
    /// A server without admission, reviews, tokens and nodes.
    pub fn new(
        store: Arc<dyn Store>,
        kinds: Vec<Kind>,
        authenticator: Arc<dyn Authenticator>,
        authorizer: Arc<dyn Authorizer>,
        clock: Clock,
        rng: Rng,
    ) -> Self {
        Self {
            store,
            kinds,
            authenticator,
            authorizer,
            admission: Chain::default(),
            allocators: Vec::new(),
            reviewer: Arc::new(Absent),
            tokens: Arc::new(Absent),
            node_dialer: Arc::new(Absent),
            clock,
            rng,
            audit: None,
            ready: BTreeMap::new(),
            advertised: "127.0.0.1:6443".to_owned(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// A running server: everything that answers a request.
pub struct Server {
    pub registry: Arc<Registry>,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) node_dialer: Arc<dyn NodeDialer>,
    pub(crate) audit: Option<Arc<dyn Audit>>,
    pub(crate) ready: BTreeMap<&'static str, Check>,
    pub(crate) discovery: Discovery,
    pub(crate) openapi: OpenApi,
    /// `HOST:PORT` at which clients reach it.
    pub(crate) advertised: String,
    pub(crate) encodings: Arc<Encodings>,
    pub(crate) shutdown: CancellationToken,
    /// Connections to nodes, and the tunnels over them.
    pub(crate) tunnels: TaskTracker,
}

impl Server {
    /// Puts the parts together. Nothing runs yet: see [`Server::serve`], [`Server::local`] and [`Server::maintain`].
    pub fn new(config: ServerConfig) -> Arc<Self> {
        let catalog = Catalog::new(config.kinds);
        Arc::new(Self {
            discovery: Discovery::new(&catalog, &config.advertised),
            openapi: OpenApi::new(&catalog),
            advertised: config.advertised,
            registry: Arc::new(Registry {
                store: config.store,
                catalog,
                admission: config.admission,
                allocators: config.allocators,
                reviewer: config.reviewer,
                tokens: config.tokens,
                clock: config.clock,
                rng: config.rng,
            }),
            authenticator: config.authenticator,
            authorizer: config.authorizer,
            node_dialer: config.node_dialer,
            audit: config.audit,
            ready: config.ready,
            encodings: Arc::default(),
            shutdown: config.shutdown,
            tunnels: TaskTracker::new(),
        })
    }

    /// Does what has to be done without a request, until the server stops: removes what has outlived its time.
    pub async fn maintain(self: Arc<Self>) {
        self.registry.clone().expire(self.shutdown.clone()).await;
    }

    /// A client in this process, acting as `user`: through the same authorization, admission and registry as over HTTP.
    pub fn local(self: &Arc<Self>, user: User) -> client::Client {
        client::Client::new(Arc::new(Local::new(self.clone(), user)))
    }
}

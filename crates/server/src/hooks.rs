//! What the server asks of parts that live elsewhere: time, randomness, reviews, tokens and nodes.

use std::sync::Arc;

use api::field;
use api::key::GroupResource;
use api::object::Object;
use api::status::Status;
use jiff::Timestamp;
use kinds::kind::Kind;
use serde_json::Value;
use store::Snapshot;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::identity::{BoxFuture, User};

/// The wall clock. Waiting is tokio's, which tests pause.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Fills a buffer with random bytes that nobody can predict.
pub type Rng = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// Answers kinds that are questions and are never stored, such as SubjectAccessReview: a create returns the question
/// with its `status` filled in.
pub trait Reviewer: Send + Sync + 'static {
    /// # Errors
    /// What the user gets instead of an answer.
    fn review<'a>(&'a self, question: Question<'a>) -> BoxFuture<'a, Result<Value, Status>>;
}

/// A review to be answered.
pub struct Question<'a> {
    pub resource: &'a GroupResource,
    /// Of the path; empty for cluster-scoped reviews.
    pub namespace: &'a str,
    pub user: &'a User,
    pub snapshot: &'a Snapshot,
    pub object: Value,
}

/// Issues service account tokens.
pub trait TokenIssuer: Send + Sync + 'static {
    /// Returns the TokenRequest with `status` filled in.
    ///
    /// # Errors
    /// What the user gets instead of a token.
    fn issue<'a>(&'a self, ask: TokenAsk<'a>) -> BoxFuture<'a, Result<Value, Status>>;

    /// What others need to check the tokens on their own.
    fn issuer(&self) -> Option<Issuer> {
        None
    }
}

/// Who signs tokens.
pub struct Issuer {
    /// Its URL, the `iss` of its tokens.
    pub url: String,
    /// Its public keys, a JSON Web Key Set.
    pub keys: Value,
}

/// A create of `serviceaccounts/token`.
pub struct TokenAsk<'a> {
    pub service_account: &'a Arc<Object>,
    pub user: &'a User,
    pub snapshot: &'a Snapshot,
    /// The TokenRequest.
    pub request: Value,
}

/// Hands out what is unique in the cluster, such as cluster IPs: fills them into an object before it is validated. The
/// kind's claims then take them in the object's own transaction; after a race it is asked again.
pub trait Allocator: Send + Sync + 'static {
    /// # Errors
    /// When the object asks for what cannot be had, or nothing is left.
    fn allocate(
        &self,
        kind: &Kind,
        object: &mut Value,
        old: Option<&Value>,
        snapshot: &Snapshot,
        dry_run: bool,
    ) -> Result<(), Unallocated>;
}

/// Why nothing was handed out.
#[derive(Debug)]
pub enum Unallocated {
    Invalid(Vec<field::Error>),
    Exhausted(String),
}

/// A connection of whatever kind.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Opens connections to nodes' kubelet endpoints.
pub trait NodeDialer: Send + Sync + 'static {
    /// Connects and, where the node speaks TLS, completes the handshake with the server's client certificate; the caller
    /// speaks HTTP/1.1 on it.
    ///
    /// # Errors
    /// `Unavailable` or `Internal` that says which address did not answer.
    fn dial<'a>(&'a self, node: &'a NodeAddress) -> BoxFuture<'a, Result<Box<dyn Stream>, Status>>;
}

/// Where a node's kubelet listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    pub node: String,
    /// An IP address or a name, from the node's status: InternalIP first.
    pub host: String,
    pub port: u16,
}

/// For servers without one of the parts: says so.
pub struct Absent;

impl Reviewer for Absent {
    fn review<'a>(&'a self, question: Question<'a>) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async move { Err(Status::unavailable(format!("nothing here answers {}", question.resource))) })
    }
}

impl TokenIssuer for Absent {
    fn issue<'a>(&'a self, _: TokenAsk<'a>) -> BoxFuture<'a, Result<Value, Status>> {
        Box::pin(async { Err(Status::unavailable("this server issues no service account tokens")) })
    }
}

impl NodeDialer for Absent {
    fn dial<'a>(&'a self, node: &'a NodeAddress) -> BoxFuture<'a, Result<Box<dyn Stream>, Status>> {
        Box::pin(async move { Err(Status::unavailable(format!("this server cannot reach node {:?}", node.node))) })
    }
}

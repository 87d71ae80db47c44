//! Who asks, and whether they may: the two questions every request answers before it reaches the registry.
//!
//! Source: apiserver `pkg/authentication/authenticator/interfaces.go`, `pkg/authorization/authorizer/interfaces.go`.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use api::key::GroupResource;
use api::status::Status;
use rustls_pki_types::CertificateDer;

use crate::path::{Attributes, Target};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The authenticated party behind a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// Such as `authentication.kubernetes.io/node-name` of a bound token.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user without uid and extra.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        Self { name: name.into(), groups: groups.iter().map(|g| (*g).to_owned()).collect(), ..Self::default() }
    }

    /// A component of the server itself: a member of `system:masters`, which every authorizer allows everything.
    pub fn loopback(name: impl Into<String>) -> Self {
        Self::new(name, &[SYSTEM_MASTERS, SYSTEM_AUTHENTICATED])
    }

    /// Whether the user is a member of a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Who is in it may do everything.
pub const SYSTEM_MASTERS: &str = "system:masters";
/// Everybody whose credentials were checked.
pub const SYSTEM_AUTHENTICATED: &str = "system:authenticated";
/// Everybody who showed none.
pub const SYSTEM_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of those who showed no credentials.
pub const ANONYMOUS: &str = "system:anonymous";

/// What a TLS client has proved, for as long as its connection lives.
pub type PeerCertificates = Arc<Proved>;

/// The certificate that a TLS client proved to own.
#[derive(Debug, Default)]
pub struct Proved {
    /// None on plain connections, and of clients that show none.
    pub leaf: Option<CertificateDer<'static>>,
    user: OnceLock<Option<User>>,
}

impl Proved {
    pub fn new(leaf: Option<CertificateDer<'static>>) -> Self {
        Self { leaf, user: OnceLock::new() }
    }

    /// Who that is: `read` is asked once, with the leaf.
    pub fn user(&self, read: impl FnOnce(&[u8]) -> Option<User>) -> Option<&User> {
        self.user.get_or_init(|| read(self.leaf.as_deref()?)).as_ref()
    }
}

/// Finds out who sent a request.
pub trait Authenticator: Send + Sync + 'static {
    /// # Errors
    /// [`Status::unauthorized`] when credentials were sent and are wrong. Whether a request without any is
    /// [`ANONYMOUS`] or refused is the implementation's choice.
    fn authenticate<'a>(
        &'a self,
        request: &'a http::request::Parts,
        peer: &'a PeerCertificates,
    ) -> BoxFuture<'a, Result<User, Status>>;
}

/// Decides whether a user may do what a request asks for.
pub trait Authorizer: Send + Sync + 'static {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision;
}

/// Every request is allowed only by an explicit [`Decision::Allow`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The reason is kept for audit.
    Allow(String),
    /// Nothing asked later may allow it. The reason is shown to the user.
    Deny(String),
    /// Another authorizer may know better. The reason, if any, is shown to the user.
    NoOpinion(String),
}

/// Everybody is the same user; for tests.
pub struct Everybody(pub User);

impl Authenticator for Everybody {
    fn authenticate<'a>(
        &'a self,
        _: &'a http::request::Parts,
        _: &'a PeerCertificates,
    ) -> BoxFuture<'a, Result<User, Status>> {
        let user = self.0.clone();
        Box::pin(async { Ok(user) })
    }
}

/// Everything is allowed; for tests.
pub struct AllowAll;

impl Authorizer for AllowAll {
    fn authorize(&self, _: &User, _: &Attributes) -> Decision {
        Decision::Allow(String::new())
    }
}

/// Asks `authorizer` and turns anything but an allowance into upstream's 403.
///
/// # Errors
/// `Forbidden`, in the words that kubectl shows and tools match.
pub fn authorize(authorizer: &dyn Authorizer, user: &User, attributes: &Attributes) -> Result<(), Status> {
    let reason = match authorizer.authorize(user, attributes) {
        Decision::Allow(_) => return Ok(()),
        Decision::Deny(reason) | Decision::NoOpinion(reason) => reason,
    };
    let mut message = forbidden_message(user, attributes);
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    Err(match &attributes.target {
        Target::Path(_) => Status::forbidden(&GroupResource::new("", ""), "", message),
        Target::Resource(at) => Status::forbidden(&GroupResource::owned(&*at.group, &*at.resource), &at.name, message),
    })
}

fn forbidden_message(user: &User, attributes: &Attributes) -> String {
    let (name, verb) = (&user.name, &attributes.verb);
    match &attributes.target {
        Target::Path(path) => format!("User {name:?} cannot {verb} path {path:?}"),
        Target::Resource(at) => {
            let mut resource = at.resource.clone();
            if !at.subresource.is_empty() {
                resource = format!("{resource}/{}", at.subresource);
            }
            let group = &at.group;
            if at.namespace.is_empty() {
                format!("User {name:?} cannot {verb} resource {resource:?} in API group {group:?} at the cluster scope")
            } else {
                let namespace = &at.namespace;
                format!(
                    "User {name:?} cannot {verb} resource {resource:?} in API group {group:?} in the namespace {namespace:?}"
                )
            }
        }
    }
}

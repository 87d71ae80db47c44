//! Authentication: client certificates of the cluster's authority, bound service account tokens, and nobody else.
//!
//! Sources: apiserver `pkg/authentication/request/{x509,bearertoken,anonymous}`; upstream's default since 1.32 of anonymous
//! requests for the health paths only is `AnonymousAuthConfigurableEndpoints`.

pub mod token;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::status::Status;
use http::header::AUTHORIZATION;
use http::request::Parts;

use crate::authn::token::Tokens;
use crate::identity::{
    ANONYMOUS, Authenticator, BoxFuture, PeerCertificates, SYSTEM_AUTHENTICATED, SYSTEM_UNAUTHENTICATED, User,
};

/// Under which a user's extra information says by which certificate or token it was known.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Paths that answer without credentials, for load balancers and probes.
const OPEN_PATHS: [&str; 3] = ["/livez", "/readyz", "/healthz"];

/// The cluster's authenticator.
pub struct ClusterAuthenticator {
    tokens: Arc<Tokens>,
}

impl ClusterAuthenticator {
    pub fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens }
    }

    fn decide(&self, request: &Parts, peer: &PeerCertificates) -> Result<User, Status> {
        // The handshake already verified the chain, so the names in the leaf are the authority's word.
        if peer.leaf.is_some() {
            return peer.user(user_of_certificate).cloned().ok_or_else(Status::unauthorized);
        }
        if let Some(token) = bearer(request) {
            return self.tokens.authenticate(token, &[]).map(with_authenticated).map_err(|_| Status::unauthorized());
        }
        let path = request.uri.path();
        let open = OPEN_PATHS
            .iter()
            .any(|p| path.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
        if open { Ok(User::new(ANONYMOUS, &[SYSTEM_UNAUTHENTICATED])) } else { Err(Status::unauthorized()) }
    }
}

impl Authenticator for ClusterAuthenticator {
    fn authenticate<'a>(
        &'a self,
        request: &'a Parts,
        peer: &'a PeerCertificates,
    ) -> BoxFuture<'a, Result<User, Status>> {
        let user = self.decide(request, peer);
        Box::pin(async { user })
    }
}

fn with_authenticated(mut user: User) -> User {
    user.groups.push(SYSTEM_AUTHENTICATED.to_owned());
    user
}

/// The token in `Authorization: Bearer TOKEN`, or of a WebSocket opened by a browser, which cannot set that header.
fn bearer(request: &Parts) -> Option<&str> {
    let value = request.headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// The common name is the user, organisations are its groups.
///
/// Source: apiserver `pkg/authentication/request/x509/x509.go`, `CommonNameUserConversion`.
pub(crate) fn user_of_certificate(leaf: &[u8]) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
    let subject = certificate.subject();
    let name = subject.iter_common_name().next().and_then(text).filter(|name| !name.is_empty())?;
    let groups = subject.iter_organization().filter_map(text).collect();
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")])]);
    Some(with_authenticated(User { name, groups, extra, ..User::default() }))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;
    use crate::identity::Proved;
    use crate::pki::{Authority, LEAF_LIFE, Order, Purpose};

    fn ask(path: &str, authorization: Option<&str>, peer: Vec<CertificateDer<'static>>) -> Result<User, Status> {
        let store = store::memory::Memory::new();
        let tokens = Tokens::for_tests(store);
        let mut request = http::Request::builder().uri(path);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let (parts, ()) = request.body(()).expect("request").into_parts();
        let peer = Arc::new(Proved::new(peer.into_iter().next()));
        ClusterAuthenticator::new(Arc::new(tokens)).decide(&parts, &peer)
    }

    #[test]
    fn a_certificate_names_user_and_group() {
        let now = Timestamp::now();
        let group = Some("system:nodes".to_owned());
        let order = Order { name: "system:node:a".into(), purpose: Purpose::Client { group }, life: LEAF_LIFE };
        let leaf = Authority::new(now).and_then(|ca| ca.issue(&order, now)).expect("certificate");
        let der = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).expect("PEM");
        let mut user = ask("/api", None, vec![der]).expect("authenticated");
        let id = user.extra.remove(CREDENTIAL_ID).expect("the certificate is named");
        assert!(id[0].starts_with("X509SHA256=") && id[0].len() == 75, "{id:?}");
        assert_eq!(user, User::new("system:node:a", &["system:nodes", "system:authenticated"]));
    }

    #[test]
    fn without_credentials_only_health_is_open() {
        for path in ["/livez", "/readyz?verbose", "/healthz", "/livez/ping"] {
            assert_eq!(ask(path, None, vec![]).expect(path).name, ANONYMOUS);
        }
        for path in ["/api", "/version", "/livezz", "/metrics", "/openapi/v3"] {
            assert_eq!(ask(path, None, vec![]).expect_err(path).code, 401, "{path}");
        }
    }

    #[test]
    fn wrong_credentials_are_refused_even_where_none_are_needed() {
        for value in ["Bearer nonsense", "Bearer a.b.c", "bearer "] {
            let answer = ask("/api", Some(value), vec![]);
            assert_eq!(answer.expect_err(value).code, 401, "{value}");
        }
        assert!(ask("/livez", Some("Bearer nonsense"), vec![]).is_err());
    }
}

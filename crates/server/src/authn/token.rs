//! Bound service account tokens: JWTs signed with ES256, valid as long as the objects they name live.
//!
//! Sources: kubernetes `pkg/serviceaccount/{claims,jwt}.go`, `pkg/registry/core/serviceaccount/storage/token.go`.

use std::sync::Arc;

use api::field;
use api::key::{GroupResource, Key};
use api::object::Object;
use api::status::Status;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Snapshot, Store};

use crate::hooks::{Clock, Issuer, TokenAsk, TokenIssuer};
use crate::identity::{BoxFuture, User};

const SERVICE_ACCOUNTS: GroupResource = GroupResource::new("", "serviceaccounts");
const PODS: GroupResource = GroupResource::new("", "pods");
const SECRETS: GroupResource = GroupResource::new("", "secrets");
const NODES: GroupResource = GroupResource::new("", "nodes");

const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
pub(crate) const DEFAULT_SECONDS: i64 = 3600;

/// Issues and checks the cluster's tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    key_id: String,
    /// The `iss` claim, also the audience that the API itself answers to.
    issuer: String,
    store: Arc<dyn Store>,
    clock: Clock,
}

/// The claims of a token, as upstream writes them.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    bound: Bound,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Bound {
    namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reference {
    name: String,
    uid: String,
}

/// Why a token is not accepted. Clients learn only that it is not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("not a token of this cluster")]
    Foreign,
    #[error("token has expired")]
    Expired,
    #[error("token is for other audiences")]
    Audience,
    #[error("{what} {name:?} that the token is bound to is gone")]
    Gone { what: &'static str, name: String },
}

impl Tokens {
    /// `pkcs8` is an ECDSA P-256 key, DER; `issuer` a URL.
    ///
    /// # Errors
    /// When the key is not one.
    pub fn new(
        pkcs8: &[u8],
        issuer: &str,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Result<Self, ring::error::KeyRejected> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &SystemRandom::new())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key_id: URL_SAFE_NO_PAD.encode(digest), key, issuer: issuer.to_owned(), store, clock })
    }

    #[cfg(test)]
    pub fn for_tests(store: Arc<dyn Store>) -> Self {
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).expect("key");
        let clock: Clock = Arc::new(|| "2026-11-23T12:00:00Z".parse().expect("time"));
        Self::new(key.as_ref(), "https://kubernetes.default.svc.cluster.local", store, clock).expect("key")
    }

    /// The issuer's public keys, as served under `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 0x04, x, y.
        let point = &self.key.public_key().as_ref()[1..];
        let (x, y) = point.split_at(32);
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": part(x), "y": part(y)}]})
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the user of a token that is valid now for one of `audiences`; no audience means the API itself.
    ///
    /// # Errors
    /// [`Refused`] says why, for logs and tests.
    pub fn authenticate(&self, token: &str, audiences: &[String]) -> Result<User, Refused> {
        let claims = self.verify(token).ok_or(Refused::Foreign)?;
        let now = (self.clock)().as_second();
        if now >= claims.exp || now < claims.nbf - 60 {
            return Err(Refused::Expired);
        }
        let accepted = if audiences.is_empty() { std::slice::from_ref(&self.issuer) } else { audiences };
        if !claims.aud.iter().any(|audience| accepted.contains(audience)) {
            return Err(Refused::Audience);
        }
        let snapshot = self.store.snapshot();
        let (bound, namespace) = (&claims.bound, &claims.bound.namespace);
        alive(&snapshot, &SERVICE_ACCOUNTS, namespace, Some(&bound.serviceaccount), "service account")?;
        alive(&snapshot, &PODS, namespace, bound.pod.as_ref(), "pod")?;
        alive(&snapshot, &SECRETS, namespace, bound.secret.as_ref(), "secret")?;
        if bound.pod.is_none() {
            alive(&snapshot, &NODES, "", bound.node.as_ref(), "node")?;
        }
        Ok(user(&claims))
    }

    fn verify(&self, token: &str) -> Option<Claims> {
        #[derive(Deserialize)]
        struct Header {
            alg: String,
            kid: String,
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
        if header.alg != "ES256" || header.kid != self.key_id {
            return None;
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        public.verify(signed.as_bytes(), &signature).ok()?;
        let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        (claims.iss == self.issuer).then_some(claims)
    }

    fn sign(&self, claims: &Claims) -> Result<String, Status> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let part = |value: &[u8]| URL_SAFE_NO_PAD.encode(value);
        let payload = serde_json::to_vec(claims).map_err(Status::internal)?;
        let signed = format!("{}.{}", part(header.to_string().as_bytes()), part(&payload));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| Status::internal("could not sign a token"))?;
        Ok(format!("{signed}.{}", part(signature.as_ref())))
    }

    fn answer(&self, ask: TokenAsk<'_>) -> Result<Value, Status> {
        let account = ask.service_account;
        let mut request = ask.request;
        for (field, own) in [("name", account.key().name()), ("namespace", account.key().namespace())] {
            let given = request["metadata"][field].as_str().unwrap_or_default();
            if !given.is_empty() && given != own {
                let path = field::Path::new("metadata").child(field);
                let why = format!("must match the service account {field} if specified");
                let error = field::Error::invalid(&path, given, why);
                return Err(Status::invalid("authentication.k8s.io", "TokenRequest", account.key().name(), &[error]));
            }
        }
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
        validate_seconds(seconds)?;
        let mut audiences: Vec<String> =
            serde_json::from_value(request["spec"]["audiences"].clone()).unwrap_or_default();
        if audiences.is_empty() {
            audiences.push(self.issuer.clone());
        }
        let now = (self.clock)();
        let namespace = account.key().namespace();
        let mut bound = Bound {
            namespace: namespace.to_owned(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: reference(account),
        };
        bind(&mut bound, &request["spec"]["boundObjectRef"], account, ask.snapshot)?;
        let claims = Claims {
            aud: audiences.clone(),
            exp: now.as_second() + seconds,
            iat: now.as_second(),
            iss: self.issuer.clone(),
            jti: random_uuid(),
            bound,
            nbf: now.as_second(),
            sub: format!("system:serviceaccount:{namespace}:{}", account.key().name()),
        };
        let expires = Timestamp::from_second(claims.exp).map_err(Status::internal)?;
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = json!(seconds);
        request["status"] = json!({"token": self.sign(&claims)?, "expirationTimestamp": expires.to_string()});
        request["metadata"]["name"] = json!(account.key().name());
        request["metadata"]["namespace"] = json!(namespace);
        request["metadata"]["uid"] = json!(account.meta().uid);
        request["metadata"]["creationTimestamp"] =
            json!(Timestamp::from_second(now.as_second()).map_err(Status::internal)?.to_string());
        Ok(request)
    }
}

impl TokenIssuer for Tokens {
    fn issue<'a>(&'a self, ask: TokenAsk<'a>) -> BoxFuture<'a, Result<Value, Status>> {
        let answer = self.answer(ask);
        Box::pin(async { answer })
    }

    fn issuer(&self) -> Option<Issuer> {
        Some(Issuer { url: self.issuer.clone(), keys: self.jwks() })
    }
}

/// Source: kubernetes `pkg/apis/authentication/validation/validation.go`.
fn validate_seconds(seconds: i64) -> Result<(), Status> {
    let path = field::Path::new("spec").child("expirationSeconds");
    let why = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[field::Error::invalid(&path, seconds, why)]))
}

/// Binds the token to the object that the request names, if it names one.
fn bind(bound: &mut Bound, wanted: &Value, account: &Object, snapshot: &Snapshot) -> Result<(), Status> {
    if wanted.is_null() {
        return Ok(());
    }
    let text = |field: &str| wanted[field].as_str().unwrap_or_default();
    let (kind, version, name) = (text("kind"), text("apiVersion"), text("name"));
    let namespace = account.key().namespace();
    let (resource, within) = match (version, kind) {
        ("v1", "Pod") => (PODS, namespace),
        ("v1", "Secret") => (SECRETS, namespace),
        ("v1", "Node") => (NODES, ""),
        _ => {
            return Err(Status::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}")));
        }
    };
    let object = snapshot.get(&Key::new(&resource, within, name)).ok_or_else(|| Status::not_found(&resource, name))?;
    let uid = text("uid");
    if !uid.is_empty() && uid != object.meta().uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&resource, name, why));
    }
    match kind {
        "Pod" => {
            let pod = object.value();
            if pod["spec"]["serviceAccountName"].as_str() != Some(account.key().name()) {
                let why = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    account.key().name()
                );
                return Err(Status::bad_request(why));
            }
            bound.node = pod["spec"]["nodeName"]
                .as_str()
                .and_then(|node| snapshot.get(&Key::new(&NODES, "", node)))
                .map(|node| reference(node));
            bound.pod = Some(reference(object));
        }
        "Secret" => bound.secret = Some(reference(object)),
        _ => bound.node = Some(reference(object)),
    }
    Ok(())
}

fn reference(object: &Object) -> Reference {
    Reference { name: object.key().name().to_owned(), uid: object.meta().uid.clone() }
}

/// Upstream's leeway: an object counts as gone 60 s after the end of its graceful deletion.
fn alive(
    snapshot: &Snapshot,
    resource: &GroupResource,
    namespace: &str,
    reference: Option<&Reference>,
    what: &'static str,
) -> Result<(), Refused> {
    let Some(reference) = reference else { return Ok(()) };
    let found = snapshot.get(&Key::new(resource, namespace, &reference.name));
    if found.is_some_and(|object| object.meta().uid == reference.uid) {
        return Ok(());
    }
    Err(Refused::Gone { what, name: reference.name.clone() })
}

fn user(claims: &Claims) -> User {
    let bound = &claims.bound;
    let namespace_group = format!("system:serviceaccounts:{}", bound.namespace);
    let mut user = User::new(claims.sub.clone(), &["system:serviceaccounts", &namespace_group]);
    user.uid.clone_from(&bound.serviceaccount.uid);
    let mut extra = |key: &str, value: String| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    };
    extra("credential-id", format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        extra("pod-name", pod.name.clone());
        extra("pod-uid", pod.uid.clone());
    }
    if let Some(node) = &bound.node {
        extra("node-name", node.name.clone());
        extra("node-uid", node.uid.clone());
    }
    user
}

fn random_uuid() -> String {
    let mut bytes = [0; 16];
    ring::rand::SecureRandom::fill(&SystemRandom::new(), &mut bytes).expect("the system has randomness");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use api::object::Draft;
    use store::Op;
    use store::memory::Memory;

    use super::*;

    fn object(resource: &GroupResource, namespace: &str, name: &str, spec: Value) -> Op {
        let value =
            json!({"metadata": {"name": name, "namespace": namespace, "uid": format!("uid-of-{name}")}, "spec": spec});
        Op::Put(Draft::new(Key::new(resource, namespace, name), value).expect("object"))
    }

    async fn cluster() -> (Arc<Memory>, Tokens) {
        let store = Memory::new();
        let ops = vec![
            object(&SERVICE_ACCOUNTS, "rack", "site", json!({})),
            object(&PODS, "rack", "web", json!({"serviceAccountName": "site", "nodeName": "cupboard"})),
            object(&NODES, "", "cupboard", json!({})),
        ];
        store.txn(vec![], ops).await.expect("commit");
        let tokens = Tokens::for_tests(store.clone());
        (store, tokens)
    }

    fn issue(tokens: &Tokens, spec: Value) -> Result<Value, Status> {
        let snapshot = tokens.store.snapshot();
        let service_account = snapshot.get(&Key::new(&SERVICE_ACCOUNTS, "rack", "site")).expect("account");
        let request = json!({"metadata": {}, "spec": spec});
        tokens.answer(TokenAsk { service_account, user: &User::default(), snapshot: &snapshot, request })
    }

    fn token(answer: &Value) -> &str {
        answer["status"]["token"].as_str().expect("token")
    }

    #[tokio::test]
    async fn a_token_names_account_pod_and_node() {
        let (_store, tokens) = cluster().await;
        let answer = issue(&tokens, json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web"}}))
            .expect("token");
        let user = tokens.authenticate(token(&answer), &[]).expect("valid");
        assert_eq!(user.name, "system:serviceaccount:rack:site");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:rack"]);
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-name"], ["cupboard"]);
        assert_eq!(answer["status"]["expirationTimestamp"], "2026-11-23T13:00:00Z");
    }

    #[tokio::test]
    async fn a_token_dies_with_its_pod() {
        let (store, tokens) = cluster().await;
        let answer = issue(&tokens, json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web"}}))
            .expect("token");
        store.txn(vec![], vec![Op::Delete(Key::new(&PODS, "rack", "web"))]).await.expect("commit");
        let gone = Refused::Gone { what: "pod", name: "web".to_owned() };
        assert_eq!(tokens.authenticate(token(&answer), &[]), Err(gone));
    }

    #[tokio::test]
    async fn every_changed_character_is_found() {
        let (_store, tokens) = cluster().await;
        let answer = issue(&tokens, json!({})).expect("token");
        let good = token(&answer);
        for i in 0..good.len() {
            let mut bad = good.as_bytes().to_vec();
            bad[i] = if bad[i] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).expect("ASCII");
            // The last character of a base64 segment carries unused bits: a decoder that ignored them would accept two spellings.
            assert!(bad == good || tokens.authenticate(&bad, &[]).is_err(), "character {i}");
        }
    }

    #[tokio::test]
    async fn a_token_for_another_audience_is_not_for_the_api() {
        let (_store, tokens) = cluster().await;
        let answer = issue(&tokens, json!({"audiences": ["vault"]})).expect("token");
        assert_eq!(tokens.authenticate(token(&answer), &[]), Err(Refused::Audience));
        assert!(tokens.authenticate(token(&answer), &["vault".to_owned()]).is_ok());
    }

    #[tokio::test]
    async fn refuses_what_upstream_refuses() {
        let (_store, tokens) = cluster().await;
        let message = |spec: Value| issue(&tokens, spec).expect_err("refused").message;
        assert!(message(json!({"expirationSeconds": 60})).contains("may not specify a duration less than 10 minutes"));
        assert!(
            message(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "no"}}))
                .contains("\"no\" not found")
        );
        assert!(
            message(json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "x"}}))
                .contains("does not match the UID")
        );
        assert!(
            message(json!({"boundObjectRef": {"kind": "Job", "apiVersion": "batch/v1", "name": "x"}}))
                .contains("cannot bind token")
        );
    }
}

//! The registry's API as a client: authentication, redirects, manifests and blobs of one repository at one endpoint.
//!
//! Source: OCI distribution-spec 1.1; `distribution/distribution`, `docs/spec/auth/{token,oauth}.md`. Messages follow
//! containerd's `core/remotes/docker`.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde::Deserialize;
use tokio::time::timeout;

use crate::credentials::Secret;
use crate::digest::Digest;
use crate::http::{Http, IDLE};
use crate::manifest;
use crate::registries::{Endpoint, Registries, Tls};

const REDIRECTS: usize = 10;
const TOKEN_LIMIT: u64 = 1 << 20;
const ERROR_LIMIT: u64 = 64 << 10;
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Why one endpoint did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FetchError {
    NotFound { url: String },
    Unauthorized(String),
    RateLimited { message: String, retry_after: Option<Duration> },
    Unreachable(String),
    Invalid(String),
}

/// One repository at one endpoint, with one identity.
pub(crate) struct Session<'a> {
    http: &'a Http,
    registries: &'a Registries,
    endpoint: Endpoint,
    secret: Option<Secret>,
    /// The header that was accepted last.
    authorization: Mutex<Option<String>>,
}

/// A manifest's or index's bytes, digest not checked yet.
pub(crate) struct Served {
    pub bytes: Bytes,
    pub media_type: String,
    /// What the registry says its digest is.
    pub digest: Option<Digest>,
}

impl<'a> Session<'a> {
    pub fn new(http: &'a Http, registries: &'a Registries, endpoint: Endpoint, secret: Option<Secret>) -> Session<'a> {
        Session { http, registries, endpoint, secret, authorization: Mutex::new(None) }
    }

    pub fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// The digest that a tag has now; None when the registry does not say. Counts against no pull limit.
    pub async fn head_manifest(&self, reference: &str) -> Result<Option<Digest>, FetchError> {
        let url = self.url("manifests", reference);
        let response = self.request(Method::HEAD, &url, &[(ACCEPT, manifest::ACCEPT)]).await?;
        Ok(content_digest(&response))
    }

    /// `reference` is a tag or digest.
    pub async fn manifest(&self, reference: &str) -> Result<Served, FetchError> {
        let url = self.url("manifests", reference);
        let response = self.request(Method::GET, &url, &[(ACCEPT, manifest::ACCEPT)]).await?;
        let media_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().to_owned();
        let digest = content_digest(&response);
        let bytes = self.collect(response, manifest::DOCUMENT_LIMIT).await?;
        Ok(Served { bytes, media_type, digest })
    }

    /// A small blob, complete.
    pub async fn blob(&self, digest: &Digest, limit: u64) -> Result<Bytes, FetchError> {
        let response = self.request(Method::GET, &self.url("blobs", &digest.to_string()), &[]).await?;
        self.collect(response, limit).await
    }

    /// A blob's body from byte `from` on.
    pub async fn blob_stream(&self, digest: &Digest, from: u64) -> Result<Body, FetchError> {
        let url = self.url("blobs", &digest.to_string());
        let range = format!("bytes={from}-");
        let headers: &[(HeaderName, &str)] = if from == 0 { &[] } else { &[(RANGE, &range)] };
        let response = self.request(Method::GET, &url, headers).await?;
        // A registry that does not know ranges sends everything again.
        let skip = if from > 0 && response.status() != StatusCode::PARTIAL_CONTENT { from } else { 0 };
        Ok(Body { incoming: response.into_body(), skip })
    }

    fn url(&self, kind: &str, name: &str) -> String {
        let Endpoint { url, repository, namespace, .. } = &self.endpoint;
        match namespace {
            Some(namespace) => format!("{url}/{repository}/{kind}/{name}?ns={namespace}"),
            None => format!("{url}/{repository}/{kind}/{name}"),
        }
    }

    /// Sends, authenticates when asked to, follows redirects, and turns every answer but 2xx into an error.
    async fn request(
        &self,
        method: Method,
        url: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<Response<Incoming>, FetchError> {
        let sent = self.authorization().clone();
        let mut response = self.follow(&method, url, headers, sent.as_deref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges = challenges(&response);
            let authorization = self.authorize(&challenges).await?;
            if let Some(authorization) = authorization.filter(|new| sent.as_ref() != Some(new)) {
                response = self.follow(&method, url, headers, Some(&authorization)).await?;
                if response.status() != StatusCode::UNAUTHORIZED {
                    *self.authorization() = Some(authorization);
                }
            }
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            _ => Err(self.refusal(&method, url, response).await),
        }
    }

    fn authorization(&self) -> MutexGuard<'_, Option<String>> {
        self.authorization.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    async fn follow(
        &self,
        method: &Method,
        url: &str,
        headers: &[(HeaderName, &str)],
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut target = url.to_owned();
        for _ in 0..REDIRECTS {
            let uri: Uri = target.parse().map_err(|_| FetchError::Invalid(format!("{target:?} is not a URL")))?;
            let own = uri.authority().map(|authority| authority.as_str()) == Some(self.host());
            let mut request = Request::builder().method(method.clone()).uri(uri.clone());
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            // Credentials are for the registry, not for the storage that it may send us to.
            if let Some(authorization) = authorization.filter(|_| own) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let tls = match own {
                true => self.endpoint.tls.clone(),
                false => self.registries.tls(uri.authority().map(|name| name.as_str()).unwrap_or_default()),
            };
            let response = self.send(&tls, method, &target, request, Bytes::new()).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| join(&uri, location));
            target =
                next.ok_or_else(|| FetchError::Invalid(format!("{target} redirects to nowhere that may be followed")))?;
        }
        Err(FetchError::Invalid(format!("stopped after {REDIRECTS} redirects from {url}")))
    }

    async fn send(
        &self,
        tls: &Tls,
        method: &Method,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, FetchError> {
        let request = request
            .header(USER_AGENT, concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| FetchError::Invalid(error.to_string()))?;
        self.http.send(tls, request).await.map_err(|error| {
            let (first, rest) = method.as_str().split_at(1);
            FetchError::Unreachable(format!(
                "failed to do request: {first}{} \"{url}\": {error}",
                rest.to_ascii_lowercase()
            ))
        })
    }

    /// A new Authorization header for the first challenge that we can meet.
    async fn authorize(&self, challenges: &[Challenge]) -> Result<Option<String>, FetchError> {
        let basic =
            |username: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            if let Some(Secret::Registry(token)) = &self.secret {
                return Ok(Some(format!("Bearer {token}")));
            }
            return self.token(bearer).await.map(Some);
        }
        let asked_for_basic = challenges.iter().any(|challenge| challenge.scheme == "basic");
        Ok(match &self.secret {
            Some(Secret::Basic { username, password }) if asked_for_basic => Some(basic(username, password)),
            _ => None,
        })
    }

    async fn token(&self, challenge: &Challenge) -> Result<String, FetchError> {
        let failed = |what: String| {
            FetchError::Unauthorized(format!("failed to authorize: failed to fetch oauth token: {what}"))
        };
        let realm = challenge.parameter("realm").unwrap_or_default();
        let uri: Uri = realm.parse().map_err(|_| failed(format!("realm {realm:?} is not a URL")))?;
        let plain = self.endpoint.url.starts_with("http://");
        if uri.scheme_str() != Some("https") && !(plain && uri.scheme_str() == Some("http")) {
            return Err(failed(format!("realm {realm:?} is not https")));
        }
        let scope = challenge
            .parameter("scope")
            .map_or_else(|| format!("repository:{}:pull", self.endpoint.repository), str::to_owned);
        let mut query = vec![("scope", scope)];
        if let Some(service) = challenge.parameter("service") {
            query.push(("service", service.to_owned()));
        }
        let tls = self.registries.tls(uri.authority().map(|name| name.as_str()).unwrap_or_default());
        let (method, url, request, body) = match &self.secret {
            Some(Secret::Identity(token)) => {
                query.push(("grant_type", "refresh_token".to_owned()));
                query.push(("client_id", "coracle".to_owned()));
                query.push(("refresh_token", token.clone()));
                let request = Request::post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                (Method::POST, realm.to_owned(), request, encode(&query))
            }
            secret => {
                let separator = if realm.contains('?') { '&' } else { '?' };
                let url = format!("{realm}{separator}{}", encode(&query));
                let mut request = Request::get(&url);
                if let Some(Secret::Basic { username, password }) = secret {
                    let login = STANDARD.encode(format!("{username}:{password}"));
                    request = request.header(AUTHORIZATION, format!("Basic {login}"));
                }
                (Method::GET, url, request, String::new())
            }
        };
        let response = self.send(&tls, &method, &url, request, body.into()).await?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
            return Err(self.refusal(&method, realm, response).await);
        }
        if !status.is_success() {
            return Err(failed(format!("unexpected status from {method} request to {realm}: {status}")));
        }
        let bytes = self.collect(response, TOKEN_LIMIT).await?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        Ok(format!("Bearer {}", token.ok_or_else(|| failed("no token in the answer".to_owned()))?))
    }

    async fn refusal(&self, method: &Method, url: &str, response: Response<Incoming>) -> FetchError {
        let status = response.status();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let text = match self.collect(response, ERROR_LIMIT).await {
            Ok(bytes) => server_message(&bytes),
            Err(_) => None, // the status says enough
        };
        let detail = text.map(|text| format!(": {text}")).unwrap_or_default();
        let unexpected = format!("unexpected status from {method} request to {url}: {status}{detail}");
        match status {
            StatusCode::NOT_FOUND => FetchError::NotFound { url: url.to_owned() },
            StatusCode::TOO_MANY_REQUESTS => FetchError::RateLimited { message: unexpected, retry_after },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FetchError::Unauthorized(format!(
                "pull access denied, repository does not exist or may require authorization: {unexpected}"
            )),
            status if status.is_server_error() => FetchError::Unreachable(unexpected),
            _ => FetchError::Invalid(unexpected),
        }
    }

    async fn collect(&self, response: Response<Incoming>, limit: u64) -> Result<Bytes, FetchError> {
        let mut body = Body { incoming: response.into_body(), skip: 0 };
        let mut whole = Vec::new();
        while let Some(chunk) = body.next().await.map_err(FetchError::Unreachable)? {
            if whole.len() as u64 + chunk.len() as u64 > limit {
                return Err(FetchError::Invalid(format!(
                    "{} sent more than the {limit} bytes that are expected",
                    self.host()
                )));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.into())
    }
}

/// A body that comes in pieces.
pub(crate) struct Body {
    incoming: Incoming,
    /// Bytes that were received before.
    skip: u64,
}

impl Body {
    /// The next piece, never empty; None at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = match timeout(IDLE, self.incoming.frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(frame)) => frame.map_err(|error| error.to_string())?,
                Err(_) => return Err(format!("nothing came for {} seconds", IDLE.as_secs())),
            };
            let Ok(mut data) = frame.into_data() else { continue };
            let skipped = self.skip.min(data.len() as u64);
            self.skip -= skipped;
            bytes::Buf::advance(&mut data, skipped as usize);
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// The first message of the specification's error list.
fn server_message(bytes: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let error = value.get("errors")?.get(0)?;
    let text = |key| error.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let message = format!("{}: {}", text("code").to_ascii_lowercase(), text("message"));
    Some(message.chars().filter(|c| !c.is_control()).take(512).collect())
}

fn content_digest(response: &Response<Incoming>) -> Option<Digest> {
    response.headers().get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// A Location relative to where it came from. Leaving TLS is refused.
fn join(base: &Uri, location: &str) -> Option<String> {
    let scheme = base.scheme_str()?;
    let target = match location.split_once("://") {
        Some(("https", _)) => location.to_owned(),
        Some(("http", _)) if scheme == "http" => location.to_owned(),
        Some(_) => return None,
        None if location.starts_with("//") => format!("{scheme}:{location}"),
        None if location.starts_with('/') => format!("{scheme}://{}{location}", base.authority()?),
        None => return None,
    };
    let uri: Uri = target.parse().ok()?;
    uri.authority().is_some_and(|authority| !authority.as_str().contains('@')).then_some(target)
}

/// `application/x-www-form-urlencoded`.
fn encode(query: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in query {
        if !text.is_empty() {
            text.push('&');
        }
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

/// One challenge of a WWW-Authenticate header.
#[derive(Debug, PartialEq, Eq)]
struct Challenge {
    /// Lower case.
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn challenges(response: &Response<Incoming>) -> Vec<Challenge> {
    let values = response.headers().get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(parse_challenges).collect()
}

/// RFC 9110 section 11.6.1: several challenges may share one header.
fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',', '\t']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        rest = match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = parse_value(value.trim_start());
                if let Some(challenge) = found.last_mut() {
                    challenge.parameters.push((word.to_ascii_lowercase(), value));
                }
                after
            }
            None => {
                if !word.is_empty() {
                    found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                }
                after
            }
        };
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found
}

fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_may_share_a_header() {
        let header = r#"Basic realm="a, b=c", Bearer realm="https://auth.example/token",service=registry,scope="repository:x:pull,push""#;
        let found = parse_challenges(header);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].parameter("realm"), Some("a, b=c"));
        assert_eq!(found[1].scheme, "bearer");
        assert_eq!(found[1].parameter("scope"), Some("repository:x:pull,push"));
        assert_eq!(parse_challenges(r#"Bearer realm="a\"b"#)[0].parameter("realm"), Some("a\"b"));
        for odd in ["", ",,,", "=", "a=", "Bearer =,", "\"", "é=\"é"] {
            parse_challenges(odd);
        }
    }

    #[test]
    fn redirects_never_leave_tls() {
        let base: Uri = "https://registry.example/v2/x".parse().unwrap();
        assert_eq!(join(&base, "/y"), Some("https://registry.example/y".into()));
        assert_eq!(join(&base, "//cdn.example/y"), Some("https://cdn.example/y".into()));
        assert_eq!(join(&base, "http://cdn.example/y"), None);
        assert_eq!(join(&base, "file:///etc/passwd"), None);
        assert_eq!(join(&base, "https://user@cdn.example/y"), None);
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(
            encode(&[("scope", "repository:a/b:pull".into()), ("s", "x y".into())]),
            "scope=repository%3Aa%2Fb%3Apull&s=x%20y"
        );
    }
}

//! Pulling: resolve the name, choose the platform, fetch the layers side by side, and how it ends badly.
//!
//! One pass over each layer: the network's bytes are hashed here and fed to the confined child, which inflates, hashes and
//! unpacks. Messages follow containerd's `client/pull.go` and `core/remotes/docker`, which users know from events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use sha2::{Digest as _, Sha256};

use crate::access::{Access, Grant};
use crate::blocking;
use crate::config::{self, Parsed};
use crate::credentials::{self, Credentials, Secret};
use crate::digest::Digest;
use crate::distribution::{FetchError, Session};
use crate::http::Http;
use crate::layers::{LayerError, Layers};
use crate::manifest::{self, Descriptor, Document};
use crate::reference::Reference;
use crate::registries::Registries;

/// Layers of one image fetched at a time, as by containerd.
const PARALLEL_LAYERS: usize = 3;
/// How often a transfer that broke off goes on where it was.
const RESUMES: u32 = 5;
const RESUME_DELAY: Duration = Duration::from_millis(300);
/// Indexes in indexes: one level is in the wild, more is a loop.
const INDEX_DEPTH: u32 = 3;

/// Why an image could not be pulled. `Display` is the whole message, in containerd's words.
#[derive(Debug, thiserror::Error)]
#[error("failed to pull and unpack image \"{image}\": {cause}")]
pub struct PullError {
    /// In full form, such as `docker.io/library/busybox:1.37`.
    pub image: String,
    pub cause: PullCause,
}

#[derive(Debug, thiserror::Error)]
pub enum PullCause {
    #[error("failed to resolve reference \"{image}\": {image}: not found")]
    NotFound { image: String },
    /// `message` is the whole sentence, here and below.
    #[error("{message}")]
    Unauthorized { image: String, message: String },
    #[error("{message}")]
    RateLimited { image: String, message: String, retry_after: Option<Duration> },
    /// No endpoint answered, or one answered with a server error.
    #[error("{message}")]
    Unreachable { image: String, message: String },
    #[error("registry {registry} is blocked in registries.yaml")]
    Blocked { registry: String },
    /// Names under `localhost/` never leave the node.
    #[error(
        "{image} is not on this node, and names under localhost/ are never pulled: import it with `coracle image import`"
    )]
    LocalOnly { image: String },
    #[error("no match for platform in manifest: not found (wanted {wanted}, the image offers {offered})")]
    NoPlatform { wanted: String, offered: String },
    /// Content that is not what its descriptor or the specification says.
    #[error("{message}")]
    Invalid { message: String },
    #[error("failed to extract layer {layer}: {message}")]
    Unpack { layer: Digest, message: String },
    #[error("{context}: {source}")]
    Disk { context: String, source: std::io::Error },
}

impl PullError {
    /// The gRPC code's name that a CRI runtime would answer with, such as `NotFound`.
    pub fn code(&self) -> &'static str {
        match &self.cause {
            PullCause::NotFound { .. } | PullCause::NoPlatform { .. } | PullCause::LocalOnly { .. } => "NotFound",
            PullCause::Unauthorized { .. } => "PermissionDenied",
            PullCause::RateLimited { .. } => "ResourceExhausted",
            PullCause::Unreachable { .. } => "Unavailable",
            PullCause::Blocked { .. } => "FailedPrecondition",
            PullCause::Invalid { .. } | PullCause::Unpack { .. } | PullCause::Disk { .. } => "Unknown",
        }
    }
}

/// Told as a pull advances, from many tasks at once.
pub trait Progress: Send + Sync {
    fn report(&self, event: ProgressEvent<'_>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressEvent<'a> {
    /// The manifest is known. `total_bytes` is what must be fetched, compressed, without the layers already here.
    Resolved {
        layers: usize,
        total_bytes: u64,
    },
    /// `received` of `size` compressed bytes of one layer have arrived.
    Layer {
        digest: &'a Digest,
        received: u64,
        size: u64,
    },
    LayerDone {
        digest: &'a Digest,
    },
}

/// For callers that do not care how far it is.
pub struct NoProgress;

impl Progress for NoProgress {
    fn report(&self, _event: ProgressEvent<'_>) {}
}

/// What pulls need besides the name.
pub(crate) struct Puller<'a> {
    pub http: &'a Http,
    pub registries: &'a Registries,
    pub layers: &'a Arc<Layers>,
}

/// A name resolved at a registry.
pub(crate) struct Resolved<'a> {
    /// The endpoint that knew the name, then those behind it.
    sessions: Vec<Session<'a>>,
    /// Of the manifest or index behind the name.
    pub digest: Digest,
    /// Who may use what this endpoint gave.
    pub access: Access,
    served: Option<(Bytes, String)>,
}

/// An image whose layers are all here.
pub(crate) struct Pulled {
    pub id: Digest,
    pub parsed: Parsed,
    /// Manifests, index and configuration as they were served, to be kept.
    pub documents: BTreeMap<Digest, Bytes>,
}

impl<'a> Puller<'a> {
    /// Asks the endpoints in their order, each with the identities that fit it.
    pub async fn resolve(&self, image: &Reference, given: &[Credentials]) -> Result<Resolved<'a>, PullCause> {
        let endpoints =
            self.registries.endpoints(image).ok_or_else(|| PullCause::Blocked { registry: image.registry.clone() })?;
        let given = credentials::matching(given, image);
        let primary = endpoints.len() - 1;
        let mut failures = Vec::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            for (secret, grant) in identities(&given, at == primary, endpoint) {
                let session = Session::new(self.http, self.registries, endpoint.clone(), secret);
                match ask(&session, image).await {
                    Ok((digest, served)) => {
                        let behind = endpoints[at + 1..].iter().enumerate().map(|(offset, endpoint)| {
                            let (secret, _) = identities(&given, at + 1 + offset == primary, endpoint).swap_remove(0);
                            Session::new(self.http, self.registries, endpoint.clone(), secret)
                        });
                        let sessions = [session].into_iter().chain(behind).collect();
                        let access = grant.map_or(Access::Everybody, |grant| Access::Secrets(vec![grant]));
                        return Ok(Resolved { sessions, digest, access, served });
                    }
                    Err(error) => {
                        tracing::debug!(%image, host = session.host(), ?error, "an endpoint does not give the image");
                        let go_on = matches!(error, FetchError::Unauthorized(_));
                        failures.push((endpoint.host.clone(), error));
                        if !go_on {
                            break;
                        }
                    }
                }
            }
        }
        Err(verdict(image, failures))
    }

    /// Fetches what is behind a resolved name: documents first, then the layers that are not here.
    pub async fn fetch(
        &self,
        image: &Reference,
        resolved: Resolved<'a>,
        progress: &dyn Progress,
    ) -> Result<Pulled, PullCause> {
        let Resolved { sessions, digest, served, access: _ } = resolved;
        let mut documents = BTreeMap::new();
        let (mut bytes, mut media_type) = match served {
            Some(served) => served,
            None => fetch_manifest(&sessions, image, &digest, None).await?,
        };
        documents.insert(digest, bytes.clone());
        let host = manifest::host_platform();
        let mut depth = 0;
        let (config, layers) = loop {
            match manifest::parse(&bytes, &media_type).map_err(invalid)? {
                Document::Manifest { config, layers } => break (config, layers),
                Document::Index(_) if depth == INDEX_DEPTH => {
                    return Err(invalid("the image's indexes are nested too deeply".to_owned()));
                }
                Document::Index(manifests) => {
                    let chosen = manifest::select(&manifests, &host)
                        .map_err(|offered| PullCause::NoPlatform { wanted: host.to_string(), offered })?;
                    let (next, _) = fetch_manifest(&sessions, image, &chosen.digest, Some(chosen.size)).await?;
                    (bytes, media_type) = (next, chosen.media_type.clone());
                    documents.insert(chosen.digest.clone(), bytes.clone());
                    depth += 1;
                }
            }
        };
        let raw = fetch_config(&sessions, image, &config).await?;
        let parsed = check_config(&raw)?;
        if parsed.diff_ids.len() != layers.len() {
            let (layers, ids) = (layers.len(), parsed.diff_ids.len());
            return Err(invalid(format!("the manifest has {layers} layers, the image configuration {ids}")));
        }
        documents.insert(config.digest.clone(), raw);
        let wanted: Vec<(&Descriptor, &Digest)> = layers.iter().zip(&parsed.diff_ids).collect();
        let missing = wanted.iter().filter(|(_, diff_id)| self.layers.tree(diff_id).is_none());
        progress.report(ProgressEvent::Resolved {
            layers: layers.len(),
            total_bytes: missing.map(|(layer, _)| layer.size).sum(),
        });
        // Boxed before the stream: the compiler cannot prove otherwise that pulls may change threads.
        let fetches: Vec<BoxFuture<'_, Result<(), PullCause>>> = wanted
            .into_iter()
            .map(|(layer, diff_id)| self.layer(image, &sessions, layer, diff_id, progress).boxed())
            .collect();
        stream::iter(fetches).buffer_unordered(PARALLEL_LAYERS).try_collect::<Vec<()>>().await?;
        Ok(Pulled { id: config.digest, parsed, documents })
    }

    async fn layer(
        &self,
        image: &Reference,
        sessions: &[Session<'_>],
        layer: &Descriptor,
        diff_id: &Digest,
        progress: &dyn Progress,
    ) -> Result<(), PullCause> {
        let _alone = self.layers.lock(diff_id).await;
        if self.layers.tree(diff_id).is_none() {
            let mut failures = Vec::new();
            for session in sessions {
                match self.transfer(session, layer, diff_id, progress).await {
                    Ok(()) => break,
                    Err(Transfer::Fetch(error)) => failures.push((session.host().to_owned(), error)),
                    Err(Transfer::Final(cause)) => return Err(cause),
                }
            }
            if failures.len() == sessions.len() {
                return Err(verdict_of_content(image, failures));
            }
        }
        progress.report(ProgressEvent::LayerDone { digest: &layer.digest });
        Ok(())
    }

    async fn transfer(
        &self,
        session: &Session<'_>,
        layer: &Descriptor,
        diff_id: &Digest,
        progress: &dyn Progress,
    ) -> Result<(), Transfer> {
        let mut body = session.blob_stream(&layer.digest, 0).await.map_err(Transfer::Fetch)?;
        let refused = |error: LayerError| Transfer::Final(layer_cause(error, &layer.digest));
        let mut unpacking = self.layers.begin().map_err(refused)?;
        let mut hasher = Sha256::new();
        let (mut received, mut resumes) = (0, 0);
        loop {
            let broken = match body.next().await {
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    if received > layer.size {
                        let message =
                            format!("layer {} is longer than the {} bytes of its descriptor", layer.digest, layer.size);
                        return Err(Transfer::Fetch(FetchError::Invalid(message)));
                    }
                    hasher.update(&chunk);
                    unpacking.write(&chunk).await;
                    progress.report(ProgressEvent::Layer { digest: &layer.digest, received, size: layer.size });
                    continue;
                }
                Ok(None) if received == layer.size => break,
                Ok(None) => "the connection was closed".to_owned(),
                Err(error) => error,
            };
            if resumes == RESUMES {
                let message =
                    format!("layer {} broke off after {received} of {} bytes: {broken}", layer.digest, layer.size);
                return Err(Transfer::Fetch(FetchError::Unreachable(message)));
            }
            resumes += 1;
            tokio::time::sleep(RESUME_DELAY * resumes).await;
            body = session.blob_stream(&layer.digest, received).await.map_err(Transfer::Fetch)?;
        }
        let got = Digest::from_hasher(hasher);
        if got != layer.digest {
            let message = format!("unexpected commit digest {got}, expected {}: failed precondition", layer.digest);
            return Err(Transfer::Fetch(FetchError::Invalid(message)));
        }
        // Blocking work beside the runtime; it also ends when this pull is dropped meanwhile.
        let (layers, diff_id) = (Arc::clone(self.layers), diff_id.clone());
        blocking(move || unpacking.finish().and_then(|filled| layers.commit(filled, &diff_id))).await.map_err(refused)
    }
}

/// How one layer's transfer failed: another endpoint may help, or not.
enum Transfer {
    Fetch(FetchError),
    Final(PullCause),
}

/// Identities to try at an endpoint. Those given with the pull are for the registry itself and what they name, not for
/// whoever mirrors it. With each comes whom it belongs to, if not to the node.
fn identities(
    given: &[&Credentials],
    primary: bool,
    endpoint: &crate::registries::Endpoint,
) -> Vec<(Option<Secret>, Option<Grant>)> {
    let named = |one: &&&Credentials| one.registry.split('/').next() == Some(endpoint.host.as_str());
    let given = given.iter().filter(|one| primary || named(one));
    let given = given.map(|one| (Some(one.secret.clone()), one.grant()));
    let own = endpoint.secret.clone().map(|secret| (Some(secret), None));
    given.chain(own).chain([(None, None)]).collect()
}

/// The digest behind the name and, when the registry did not tell it by HEAD, the document itself.
async fn ask(session: &Session<'_>, image: &Reference) -> Result<(Digest, Option<(Bytes, String)>), FetchError> {
    if let Some(digest) = &image.digest {
        session.head_manifest(&digest.to_string()).await?;
        return Ok((digest.clone(), None));
    }
    let tag = image.tag.as_deref().unwrap_or("latest");
    if let Some(digest) = session.head_manifest(tag).await? {
        return Ok((digest, None));
    }
    let served = session.manifest(tag).await?;
    let digest = Digest::of(&served.bytes);
    if served.digest.as_ref().is_some_and(|told| *told != digest) {
        return Err(FetchError::Invalid(format!(
            "{} sent a manifest that is not of the digest it says",
            session.host()
        )));
    }
    Ok((digest, Some((served.bytes, served.media_type))))
}

/// A document by digest from the first endpoint that has it whole.
async fn fetch_manifest(
    sessions: &[Session<'_>],
    image: &Reference,
    digest: &Digest,
    size: Option<u64>,
) -> Result<(Bytes, String), PullCause> {
    let mut failures = Vec::new();
    for session in sessions {
        let checked = session.manifest(&digest.to_string()).await.and_then(|served| {
            check_content(&served.bytes, digest, size)?;
            Ok((served.bytes, served.media_type))
        });
        match checked {
            Ok(served) => return Ok(served),
            Err(error) => failures.push((session.host().to_owned(), error)),
        }
    }
    Err(verdict_of_content(image, failures))
}

async fn fetch_config(sessions: &[Session<'_>], image: &Reference, config: &Descriptor) -> Result<Bytes, PullCause> {
    if config.size > manifest::DOCUMENT_LIMIT {
        return Err(invalid(format!(
            "the image configuration has {} bytes, more than {}",
            config.size,
            manifest::DOCUMENT_LIMIT
        )));
    }
    let mut failures = Vec::new();
    for session in sessions {
        let fetched = session.blob(&config.digest, config.size).await;
        match fetched.and_then(|bytes| check_content(&bytes, &config.digest, Some(config.size)).map(|()| bytes)) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => failures.push((session.host().to_owned(), error)),
        }
    }
    Err(verdict_of_content(image, failures))
}

fn check_content(bytes: &[u8], digest: &Digest, size: Option<u64>) -> Result<(), FetchError> {
    if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
        return Err(FetchError::Invalid(format!("{digest} has {} bytes, its descriptor says {size}", bytes.len())));
    }
    match Digest::of(bytes) {
        got if got == *digest => Ok(()),
        got => {
            Err(FetchError::Invalid(format!("unexpected commit digest {got}, expected {digest}: failed precondition")))
        }
    }
}

/// Parses a configuration and makes sure that it is for this machine.
pub(crate) fn check_config(raw: &[u8]) -> Result<Parsed, PullCause> {
    let parsed = config::parse(raw).map_err(invalid)?;
    let host = manifest::host_platform();
    let fits = |own: &str, host: &str| own.is_empty() || own == host;
    match fits(&parsed.os, &host.os) && fits(&parsed.architecture, &host.architecture) {
        true => Ok(parsed),
        false => Err(PullCause::NoPlatform {
            wanted: host.to_string(),
            offered: format!("{}/{}", parsed.os, parsed.architecture),
        }),
    }
}

pub(crate) fn invalid(message: String) -> PullCause {
    PullCause::Invalid { message }
}

pub(crate) fn layer_cause(error: LayerError, layer: &Digest) -> PullCause {
    match error {
        LayerError::Refused(message) => PullCause::Unpack { layer: layer.clone(), message },
        LayerError::Io { context, source } => PullCause::Disk { context, source },
    }
}

/// The registry's own answer decides; what its mirrors said goes into the message.
fn verdict(image: &Reference, mut failures: Vec<(String, FetchError)>) -> PullCause {
    let Some((last, error)) = failures.pop() else {
        return invalid("no endpoint to ask".to_owned());
    };
    let mut others = String::new();
    for (host, error) in failures.iter().filter(|(host, _)| *host != last) {
        let text = match error {
            FetchError::NotFound { .. } => "not found",
            FetchError::Unauthorized(text) | FetchError::Unreachable(text) | FetchError::Invalid(text) => text,
            FetchError::RateLimited { message, .. } => message,
        };
        others.push_str(&format!(" (before, at {host}: {text})"));
    }
    cause(image, error, &format!("failed to resolve reference \"{image}\": "), &others)
}

/// Content that a manifest names: wrong bytes anywhere say more than silence elsewhere.
fn verdict_of_content(image: &Reference, mut failures: Vec<(String, FetchError)>) -> PullCause {
    failures.sort_by_key(|(_, error)| matches!(error, FetchError::Invalid(_)));
    match failures.pop() {
        Some((_, FetchError::Invalid(message))) => invalid(message),
        Some((host, FetchError::NotFound { url })) => {
            invalid(format!("failed to copy: content at {url} not found on {host}"))
        }
        Some((_, error)) => cause(image, error, "failed to copy: ", ""),
        None => invalid("no endpoint to ask".to_owned()),
    }
}

fn cause(image: &Reference, error: FetchError, before: &str, after: &str) -> PullCause {
    let image = image.to_string();
    let text = |message: String| format!("{before}{message}{after}");
    match error {
        FetchError::NotFound { .. } => PullCause::NotFound { image },
        FetchError::Unauthorized(message) => PullCause::Unauthorized { image, message: text(message) },
        FetchError::RateLimited { message, retry_after } => {
            PullCause::RateLimited { image, message: text(message), retry_after }
        }
        FetchError::Unreachable(message) => PullCause::Unreachable { image, message: text(message) },
        FetchError::Invalid(message) => invalid(text(message)),
    }
}

//! A small OCI distribution server on loopback, with authentication and faults on request.
//!
//! Threads and blocking sockets: it works in whatever network namespace its listener was made in. Source: OCI
//! distribution-spec 1.1; token flow of `distribution/distribution`, `docs/spec/auth/token.md`.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::images::{Blob, BuiltImage};

/// Who may read. Passwords are given as `user:password`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    None,
    Basic(String),
    /// Tokens from `/token`; with credentials, or for anyone when None.
    Bearer(Option<String>),
}

/// What goes wrong with requests whose path contains `path`, `times` times.
#[derive(Clone, Debug)]
pub struct Fault {
    pub path: String,
    pub kind: FaultKind,
    pub times: u32,
}

#[derive(Clone, Debug)]
pub enum FaultKind {
    Status(u16),
    /// The right length, one byte flipped.
    Corrupt,
    /// Half of the body, then the connection is closed.
    Truncate,
    /// Nothing for so long, then the answer.
    Stall(Duration),
    /// 307 to this address.
    Redirect(String),
    /// Another Content-Type.
    MediaType(String),
    /// More bytes than the manifest says, under a Content-Length that agrees with them.
    Append(Vec<u8>),
}

/// A running registry; dropping it closes every connection.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    listener: TcpListener,
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    /// By digest.
    blobs: BTreeMap<String, Blob>,
    /// By `repository:tag` and `repository@digest`.
    manifests: BTreeMap<String, Blob>,
    auth: Auth,
    faults: Vec<Fault>,
    /// `GET /v2/… 200`
    log: Vec<String>,
    connections: Vec<TcpStream>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Registry {
    /// On a free port of 127.0.0.1 in the caller's network namespace.
    ///
    /// # Errors
    /// When no socket can be had.
    pub fn start() -> io::Result<Registry> {
        Registry::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
    }

    /// On a listener of the caller's choice.
    ///
    /// # Errors
    /// When the listener is none.
    pub fn serve(listener: TcpListener) -> io::Result<Registry> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let (theirs, accepting) = (Arc::clone(&shared), listener.try_clone()?);
        let accept =
            std::thread::Builder::new().name("registry".into()).spawn(move || accept(&accepting, address, &theirs))?;
        Ok(Registry { address, listener, shared, accept: Some(accept) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Offers an image as `repository:tag` and by its digest.
    pub fn add(&self, repository: &str, tag: &str, image: &BuiltImage) {
        self.add_manifest(repository, tag, &image.manifest);
        self.add_blobs(image);
    }

    /// Offers any manifest or index; blobs and manifests that it names are added on their own.
    pub fn add_manifest(&self, repository: &str, tag: &str, manifest: &Blob) {
        let mut state = self.shared.lock();
        state.manifests.insert(format!("{repository}:{tag}"), manifest.clone());
        state.manifests.insert(format!("{repository}@{}", manifest.digest), manifest.clone());
    }

    /// Offers an image's layers and configuration, but not its manifest.
    pub fn add_blobs(&self, image: &BuiltImage) {
        let mut state = self.shared.lock();
        for blob in image.blobs() {
            state.blobs.insert(blob.digest.clone(), blob.clone());
        }
    }

    pub fn require(&self, auth: Auth) {
        self.shared.lock().auth = auth;
    }

    pub fn fault(&self, path: &str, kind: FaultKind, times: u32) {
        self.shared.lock().faults.push(Fault { path: path.to_owned(), kind, times });
    }

    /// What was asked and answered so far: `METHOD target status`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().log.clone()
    }

    /// `registries.yaml` that sends pulls from `hosts` (such as `docker.io`) here.
    pub fn registries_yaml(&self, hosts: &[&str]) -> String {
        let mirror = |host: &&str| format!("  {host:?}:\n    endpoint: [\"http://{}\"]\n", self.address);
        format!("mirrors:\n{}", hosts.iter().map(mirror).collect::<String>())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            for connection in &state.connections {
                let _ = connection.shutdown(Shutdown::Both); // its peer may be gone already
            }
        }
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both); // wakes accept
        if let Some(accept) = self.accept.take() {
            let _ = accept.join(); // a panic in it was already printed
        }
    }
}

fn accept(listener: &TcpListener, address: SocketAddr, shared: &Arc<Shared>) {
    std::thread::scope(|scope| {
        while let Ok((stream, _)) = listener.accept() {
            let Ok(watched) = stream.try_clone() else { continue };
            {
                let mut state = shared.lock();
                if state.stopping {
                    return;
                }
                state.connections.push(watched);
            }
            scope.spawn(|| {
                let peer = stream.peer_addr().ok();
                let _ = converse(stream, address, shared); // the client hung up
                shared.lock().connections.retain(|other| other.peer_addr().ok() != peer);
            });
        }
    });
}

struct Request {
    method: String,
    /// With its query.
    target: String,
    authorization: Option<String>,
    range_start: Option<usize>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Arc<[u8]>,
}

impl Answer {
    fn new(status: u16, code: &str, message: &str) -> Answer {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
        Answer { status, headers: vec![("Content-Type", "application/json".into())], body: body.into_bytes().into() }
    }

    fn of(blob: &Blob) -> Answer {
        let headers = vec![("Content-Type", blob.media_type.clone()), ("Docker-Content-Digest", blob.digest.clone())];
        Answer { status: 200, headers, body: Arc::clone(&blob.bytes) }
    }
}

fn converse(stream: TcpStream, address: SocketAddr, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    stream.set_nodelay(true)?;
    while let Some(request) = read_request(&mut reader)? {
        let path = request.target.split('?').next().unwrap_or_default();
        let fault = take_fault(&mut shared.lock(), path);
        let mut answer = match &fault {
            Some(FaultKind::Status(429)) => {
                let mut answer = Answer::new(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.");
                answer.headers.push(("Retry-After", "60".into()));
                answer
            }
            Some(FaultKind::Status(status)) => Answer::new(*status, "UNKNOWN", "a fault that a test asked for"),
            Some(FaultKind::Redirect(to)) => {
                Answer { status: 307, headers: vec![("Location", to.clone())], body: Arc::default() }
            }
            _ => answer(&request, path, address, &mut shared.lock()),
        };
        if let (Some(start), 200) = (request.range_start, answer.status)
            && start < answer.body.len()
        {
            let total = answer.body.len();
            answer.status = 206;
            answer.headers.push(("Content-Range", format!("bytes {start}-{}/{total}", total - 1)));
            answer.body = answer.body[start..].into();
        }
        let mut cut = answer.body.len();
        match fault {
            Some(FaultKind::Corrupt) if !answer.body.is_empty() => {
                let mut bytes = answer.body.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                answer.body = bytes.into();
            }
            Some(FaultKind::Truncate) => cut /= 2,
            Some(FaultKind::Stall(time)) => std::thread::sleep(time), // the very fault asked for
            Some(FaultKind::MediaType(other)) => {
                answer.headers.retain(|(name, _)| *name != "Content-Type");
                answer.headers.push(("Content-Type", other));
            }
            Some(FaultKind::Append(more)) => {
                answer.body = [&answer.body[..], &more].concat().into();
                cut = answer.body.len();
            }
            Some(FaultKind::Corrupt | FaultKind::Status(_) | FaultKind::Redirect(_)) | None => {}
        }
        shared.lock().log.push(format!("{} {} {}", request.method, request.target, answer.status));
        let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            stream.write_all(&answer.body[..cut])?;
            if cut < answer.body.len() {
                return stream.shutdown(Shutdown::Both);
            }
        }
    }
    Ok(())
}

fn take_fault(state: &mut State, path: &str) -> Option<FaultKind> {
    let at = state.faults.iter().position(|fault| fault.times > 0 && path.contains(&fault.path))?;
    let fault = &mut state.faults[at];
    fault.times -= 1;
    Some(fault.kind.clone())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let mut request = Request { method, target, authorization: None, range_start: None, body: Vec::new() };
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap_or(0),
            "range" => {
                let start = value.strip_prefix("bytes=").and_then(|range| range.split('-').next());
                request.range_start = start.and_then(|start| start.parse().ok());
            }
            _ => {}
        }
    }
    reader.take(length).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

fn answer(request: &Request, path: &str, address: SocketAddr, state: &mut State) -> Answer {
    if path == "/token" {
        return token(request, state);
    }
    if let Some(refusal) = refuse(request, path, address, state) {
        return refusal;
    }
    let not_found = || Answer::new(404, "NAME_UNKNOWN", "repository name not known to registry");
    if path == "/v2/" || path == "/v2" {
        return Answer { status: 200, headers: Vec::new(), body: Arc::default() };
    }
    let Some(rest) = path.strip_prefix("/v2/") else { return not_found() };
    if let Some((_, digest)) = rest.split_once("/blobs/") {
        return state.blobs.get(digest).map_or_else(not_found, Answer::of);
    }
    let Some((repository, name)) = rest.split_once("/manifests/") else { return not_found() };
    let separator = if name.starts_with("sha256:") { '@' } else { ':' };
    match state.manifests.get(&format!("{repository}{separator}{name}")) {
        Some(manifest) => Answer::of(manifest),
        None => Answer::new(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    }
}

fn refuse(request: &Request, path: &str, address: SocketAddr, state: &State) -> Option<Answer> {
    let (accepted, challenge) = match &state.auth {
        Auth::None => return None,
        Auth::Basic(login) => (format!("Basic {}", STANDARD.encode(login)), "Basic realm=\"test\"".to_owned()),
        Auth::Bearer(_) => {
            let repository = path.strip_prefix("/v2/").unwrap_or_default();
            let repository = repository.split("/manifests/").next()?.split("/blobs/").next()?;
            let scope = format!("repository:{repository}:pull");
            let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"{scope}\"");
            (format!("Bearer token-for-{scope}"), challenge)
        }
    };
    if request.authorization.as_deref() == Some(accepted.as_str()) {
        return None;
    }
    let mut answer = Answer::new(401, "UNAUTHORIZED", "authentication required");
    answer.headers.push(("WWW-Authenticate", challenge));
    Some(answer)
}

/// Answers GET with basic authentication, and the OAuth2 POST with a refresh token equal to `user:password`.
fn token(request: &Request, state: &State) -> Answer {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let query = request.target.split_once('?').map_or(body.as_str(), |(_, query)| query);
    let parameter = |name: &str| {
        query
            .split('&')
            .find_map(|pair| Some(pair.strip_prefix(name)?.strip_prefix('=')?.replace("%3A", ":").replace("%2F", "/")))
    };
    let scope = parameter("scope").unwrap_or_default();
    let allowed = match &state.auth {
        Auth::Bearer(Some(login)) => {
            request.authorization.as_deref() == Some(format!("Basic {}", STANDARD.encode(login)).as_str())
                || parameter("refresh_token").as_deref() == Some(login)
        }
        Auth::Bearer(None) => true,
        Auth::None | Auth::Basic(_) => false,
    };
    if !allowed {
        return Answer::new(401, "UNAUTHORIZED", "incorrect username or password");
    }
    let body = serde_json::json!({"token": format!("token-for-{scope}"), "expires_in": 300}).to_string();
    Answer { status: 200, headers: vec![("Content-Type", "application/json".into())], body: body.into_bytes().into() }
}

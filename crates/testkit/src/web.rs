//! A blocking HTTPS client, as small as tests need: certificates checked against one authority, requests one after the other.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::netns::within;

/// How long one read may take: longer than the server's watch bookmarks are apart.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where requests start, and whom they trust.
#[derive(Clone)]
pub struct Web {
    netns: PathBuf,
    tls: Arc<ClientConfig>,
    patience: Duration,
}

/// An answer with its whole body.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Web {
    /// From the namespace `netns`, trusting `authority` (PEM); `identity` is a client's certificate and key (PEM).
    ///
    /// # Errors
    /// When something is not PEM.
    pub fn new(netns: impl Into<PathBuf>, authority: &str, identity: Option<(&str, &str)>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
        };
        Ok(Self { netns: netns.into(), tls: Arc::new(tls), patience: PATIENCE })
    }

    /// The same, but an answer that pauses for longer than `patience` is an error.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// Connects to `host` at `address`, for several requests.
    ///
    /// # Errors
    /// When the connection fails; a certificate that is not trusted fails the first request.
    pub fn open(&self, address: SocketAddr, host: &str) -> Result<KeptAlive> {
        Ok(KeptAlive { host: host.to_owned(), reader: BufReader::new(self.connect(address, host)?) })
    }

    /// GET over HTTPS of `https://HOST/PATH`, where HOST is at `address`.
    ///
    /// # Errors
    /// When the connection or the certificate fails.
    pub fn get(&self, address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
        self.request(address, host, "GET", path, "", None)
    }

    /// GET over plain HTTP.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn get_plain(&self, address: SocketAddr, host: &str, path: &str) -> Result<Answer> {
        let mut stream = within(&self.netns, || connect(address, self.patience))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        whole_answer(&mut BufReader::new(stream))
    }

    fn request(
        &self,
        address: SocketAddr,
        host: &str,
        method: &str,
        path: &str,
        headers: &str,
        body: Option<&str>,
    ) -> Result<Answer> {
        let stream = self.send(address, host, method, path, headers, body)?;
        whole_answer(&mut BufReader::new(stream))
    }

    fn send(
        &self,
        address: SocketAddr,
        host: &str,
        method: &str,
        path: &str,
        headers: &str,
        body: Option<&str>,
    ) -> Result<Tls> {
        let mut stream = self.connect(address, host)?;
        let length = body.map(|body| format!("Content-Length: {}\r\n", body.len())).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}{length}\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.unwrap_or_default().as_bytes())?;
        stream.flush()?;
        Ok(stream)
    }

    fn connect(&self, address: SocketAddr, host: &str) -> Result<Tls> {
        let tcp = within(&self.netns, || connect(address, self.patience))?;
        let connection = ClientConnection::new(self.tls.clone(), host.to_owned().try_into()?)?;
        Ok(StreamOwned::new(connection, tcp))
    }
}

/// A connection that stays open between requests.
pub struct KeptAlive {
    host: String,
    reader: BufReader<Tls>,
}

impl KeptAlive {
    /// GET of a path.
    ///
    /// # Errors
    /// When the connection or the certificate fails, or the server closes the connection.
    pub fn get(&mut self, path: &str) -> Result<Answer> {
        self.ask_with("GET", path, "", None)
    }

    /// A request with a body, whatever its answer.
    ///
    /// # Errors
    /// As [`KeptAlive::get`].
    pub fn ask(&mut self, method: &str, path: &str, content_type: &str, body: Option<&str>) -> Result<Answer> {
        let headers = body.map(|_| format!("Content-Type: {content_type}\r\n")).unwrap_or_default();
        self.ask_with(method, path, &headers, body)
    }

    /// Any request; `headers` are whole lines.
    ///
    /// # Errors
    /// As [`KeptAlive::get`].
    pub fn ask_with(&mut self, method: &str, path: &str, headers: &str, body: Option<&str>) -> Result<Answer> {
        let length = body.map(|body| format!("Content-Length: {}\r\n", body.len())).unwrap_or_default();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}{length}\r\n", self.host);
        self.send(&format!("{head}{}", body.unwrap_or_default()))?;
        whole_answer(&mut self.reader)
    }

    /// Sends bytes that need not be a whole request.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let stream = self.reader.get_mut();
        stream.write_all(text.as_bytes())?;
        Ok(stream.flush()?)
    }
}

fn connect(address: SocketAddr, patience: Duration) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .with_context(|| format!("could not connect to {address}"))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn whole_answer(reader: &mut impl BufRead) -> Result<Answer> {
    let (status, headers) = head(reader)?;
    let mut answer = Answer { status, headers, body: String::new() };
    let mut body = Vec::new();
    if answer.header("transfer-encoding") == Some("chunked") {
        while let Some(chunk) = chunk(reader)? {
            body.extend(chunk);
        }
    } else if let Some(length) = answer.header("content-length") {
        body.resize(length.parse()?, 0);
        reader.read_exact(&mut body)?;
    } else if answer.status != 204 {
        reader.read_to_end(&mut body)?;
    }
    answer.body = String::from_utf8_lossy(&body).into_owned();
    Ok(answer)
}

type Head = (u16, Vec<(String, String)>);

fn head(reader: &mut impl BufRead) -> Result<Head> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("not an answer: {line:?}"))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => return Ok((status, headers)),
        }
    }
}

fn chunk(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let size = usize::from_str_radix(line.trim(), 16).with_context(|| format!("not a chunk: {line:?}"))?;
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk)?;
    chunk.truncate(size);
    Ok((size > 0).then_some(chunk))
}

/// What a kubeconfig says; certificates and key are PEM.
pub struct Kubeconfig {
    pub address: SocketAddr,
    pub authority: String,
    pub certificate: String,
    pub key: String,
}

impl Kubeconfig {
    /// # Errors
    /// When the text is not one that coracle writes: one cluster, and one user with a certificate.
    pub fn parse(text: &str) -> Result<Self> {
        let field = |name: &str| -> Result<String> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
            Ok(line.with_context(|| format!("the kubeconfig has no {name}"))?.to_owned())
        };
        let pem = |name: &str| -> Result<String> { Ok(String::from_utf8(STANDARD.decode(field(name)?)?)?) };
        Ok(Self {
            address: field("server")?.strip_prefix("https://").context("not https")?.parse()?,
            authority: pem("certificate-authority-data")?,
            certificate: pem("client-certificate-data")?,
            key: pem("client-key-data")?,
        })
    }
}

/// The API as its administrator sees it.
#[derive(Clone)]
pub struct Api {
    web: Web,
    address: SocketAddr,
}

impl Api {
    /// With the address, authority and certificate of a kubeconfig.
    ///
    /// # Errors
    /// When the text is not one that coracle writes.
    pub fn new(netns: impl Into<PathBuf>, kubeconfig: &str) -> Result<Self> {
        let Kubeconfig { address, authority, certificate, key } = Kubeconfig::parse(kubeconfig)?;
        let web = Web::new(netns, &authority, Some((&certificate, &key)))?;
        Ok(Self { web, address })
    }

    /// # Errors
    /// When the answer is not 2xx; its message is the error's.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, "", None)
    }

    /// # Errors
    /// As [`Api::get`].
    pub fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.call("POST", path, "Content-Type: application/json\r\n", Some(&object.to_string()))
    }

    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        self.call("PATCH", path, "Content-Type: application/merge-patch+json\r\n", Some(&patch.to_string()))
    }

    /// # Errors
    /// As [`Api::get`].
    pub fn delete(&self, path: &str) -> Result<Value> {
        self.call("DELETE", path, "", None)
    }

    /// Creates every document of a manifest.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn create_all(&self, manifest: &str) -> Result<()> {
        for document in api::yaml::parse_all(manifest).map_err(|error| anyhow::anyhow!("{error}"))? {
            let document = document.value;
            let path = collection(&document)?;
            self.post(&path, &document)?;
        }
        Ok(())
    }

    /// Watches a collection until `done` has had enough of its events' objects. Begins with what is there.
    ///
    /// # Errors
    /// When the watch ends before.
    pub fn watch_until(&self, collection: &str, mut done: impl FnMut(&Value) -> bool) -> Result<()> {
        let joint = if collection.contains('?') { '&' } else { '?' };
        let mut events = match self.watch(&format!("{collection}{joint}watch=1&timeoutSeconds=120"))? {
            Ok(events) => events,
            Err(status) => bail!("watching {collection} is answered with {status}"),
        };
        while let Some(event) = events.next()? {
            if event["type"] != "BOOKMARK" && done(&event["object"]) {
                return Ok(());
            }
        }
        bail!("the watch of {collection} ended")
    }

    /// Begins a watch; an answer that is none is given by its status code.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn watch(&self, path: &str) -> Result<std::result::Result<Events, u16>> {
        let host = self.address.ip().to_string();
        let mut reader = BufReader::new(self.web.send(self.address, &host, "GET", path, "", None)?);
        let (status, _) = head(&mut reader)?;
        Ok(if status == 200 { Ok(Events { reader, pending: Vec::new() }) } else { Err(status) })
    }

    /// A connection for several requests.
    ///
    /// # Errors
    /// When it fails.
    pub fn open(&self) -> Result<KeptAlive> {
        self.web.open(self.address, &self.address.ip().to_string())
    }

    /// The same, but an answer that pauses for longer than `patience` is an error.
    #[must_use]
    pub fn with_patience(&self, patience: Duration) -> Self {
        Self { web: self.web.with_patience(patience), ..self.clone() }
    }

    fn call(&self, method: &str, path: &str, headers: &str, body: Option<&str>) -> Result<Value> {
        let host = self.address.ip().to_string();
        let answer = self.web.request(self.address, &host, method, path, headers, body)?;
        let value: Value = serde_json::from_str(&answer.body).unwrap_or(Value::String(answer.body));
        ensure!(
            (200..300).contains(&answer.status),
            "{method} {path}: {}",
            value["message"].as_str().unwrap_or_default()
        );
        Ok(value)
    }
}

/// The events of a watch.
pub struct Events {
    reader: BufReader<Tls>,
    pending: Vec<u8>,
}

impl Events {
    /// The next event, or `None` when the watch has ended.
    ///
    /// # Errors
    /// When the connection fails, or what comes is no event.
    #[expect(clippy::should_implement_trait, reason = "an iterator would not stop at an error")]
    pub fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match chunk(&mut self.reader)? {
                Some(bytes) => self.pending.extend(bytes),
                None => return Ok(None),
            }
        }
    }
}

/// The path of an object's collection.
fn collection(object: &Value) -> Result<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let plural = match kind.as_str() {
        "Ingress" => "ingresses".to_owned(),
        "" => bail!("a document has no kind"),
        _ => format!("{}s", kind.to_ascii_lowercase()),
    };
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let namespace = text(&object["metadata"]["namespace"]);
    Ok(if namespace.is_empty() {
        format!("{root}/{version}/{plural}")
    } else {
        format!("{root}/{version}/namespaces/{namespace}/{plural}")
    })
}

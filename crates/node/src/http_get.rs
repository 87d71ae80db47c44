//! The node's HTTP and gRPC requests to containers: probes and lifecycle hooks.
//!
//! Redirects are followed on the same host only, and certificates are not checked: the container's identity is not in
//! question, its health is. Sources: pkg/probe/http/{http,request}.go, pkg/probe/grpc/grpc.go, pkg/probe/tcp/tcp.go.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::backoff::go_duration;

/// What is read of an answer. Source: http.go, `maxRespBodyLength`.
const MAX_BODY: usize = 10 << 10;
const MAX_REDIRECTS: usize = 10;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A GET that is ready to be sent.
#[derive(Clone, Debug)]
pub struct Get {
    uri: Uri,
    headers: HeaderMap,
}

pub struct Answer {
    pub code: u16,
    pub body: String,
}

/// The number of a port, which may be named in the container. Source: pkg/probe/util.go, `ResolveContainerPort`.
///
/// # Errors
/// For a name that the container does not have, or a number out of range.
pub fn port(wanted: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match wanted {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            match named {
                Some(port) => i64::from(port.container_port),
                None => {
                    name.parse().map_err(|_| format!("couldn't find port: {name:?} in container {}", container.name))?
                }
            }
        }
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

/// `host:port`, with brackets where IPv6 needs them.
pub fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Get {
    /// Makes a request of an action. `purpose` becomes `kube-<purpose>/1.37`.
    ///
    /// # Errors
    /// For ports and headers that there cannot be.
    pub fn new(action: &HTTPGetAction, container: &Container, pod_ip: &str, purpose: &str) -> Result<Self, String> {
        let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(pod_ip);
        let place = host_port(host, port(&action.port, container)?);
        let scheme = action.scheme.as_deref().unwrap_or("HTTP").to_lowercase();
        let path = action.path.as_deref().unwrap_or_default();
        let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
        let uri: Uri =
            format!("{scheme}://{place}{slash}{path}").parse().map_err(|error| format!("invalid URL: {error}"))?;
        let mut headers = HeaderMap::new();
        for given in action.http_headers.iter().flatten() {
            let name = HeaderName::try_from(given.name.as_str())
                .map_err(|error| format!("header {:?}: {error}", given.name))?;
            let value =
                HeaderValue::from_str(&given.value).map_err(|error| format!("header {:?}: {error}", given.name))?;
            headers.append(name, value);
        }
        if !headers.contains_key(header::USER_AGENT) {
            let agent = format!("kube-{purpose}/1.37");
            headers.insert(header::USER_AGENT, agent.parse().expect("plain text is a header value"));
        }
        match headers.get(header::ACCEPT) {
            None => drop(headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"))),
            Some(value) if value.is_empty() => drop(headers.remove(header::ACCEPT)),
            Some(_) => {}
        }
        Ok(Self { uri, headers })
    }

    /// Sends the request and follows redirects on the same host.
    ///
    /// # Errors
    /// With Go's text for a request that failed, such as `Get "http://10.0.0.1:80/": dial tcp …`.
    pub async fn send(&self, timeout: Duration) -> Result<Answer, String> {
        let shown = self.uri.to_string();
        match tokio::time::timeout(timeout, self.follow()).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!("Get {shown:?}: {error}")),
            Err(_) => Err(format!(
                "Get {shown:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )),
        }
    }

    async fn follow(&self) -> Result<Answer, String> {
        let mut uri = self.uri.clone();
        for _ in 0..MAX_REDIRECTS {
            let (answer, location) = request(&uri, &self.headers).await?;
            let Some(next) = location.filter(|_| (300..400).contains(&answer.code)).and_then(|to| resolve(&uri, &to))
            else {
                return Ok(answer);
            };
            if next.host() != self.uri.host() {
                return Ok(answer);
            }
            uri = next;
        }
        Err("stopped after 10 redirects".to_owned())
    }
}

/// A redirect's target, which may be relative.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let target: Uri = location.parse().ok()?;
    if target.host().is_some() {
        return Some(target);
    }
    let path = target.path_and_query()?.as_str().to_owned();
    let authority = base.authority()?.as_str();
    format!("{}://{authority}{path}", base.scheme_str()?).parse().ok()
}

async fn request(uri: &Uri, headers: &HeaderMap) -> Result<(Answer, Option<String>), String> {
    let tls = uri.scheme_str() == Some("https");
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let tcp = connect(&host, port).await?;
    let stream: Box<dyn Stream> = if tls { Box::new(handshake(tcp, &host).await?) } else { Box::new(tcp) };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(path).body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(header::HOST) {
        let host = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let host = HeaderValue::from_str(host).map_err(|error| error.to_string())?;
        request.headers_mut().insert(header::HOST, host);
    }
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|error| text_of(&error))?;
        let code = response.status().as_u16();
        let location = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok()).map(str::to_owned);
        let body = read_some(response.into_body()).await;
        Ok((Answer { code, body }, location))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    tokio::select! {
        // The answer first: a server that closes at once has still answered.
        biased;
        done = &mut exchange => done,
        ended = &mut connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(text_of(&error)),
        },
    }
}

fn text_of(error: &hyper::Error) -> String {
    if error.is_incomplete_message() { "EOF".to_owned() } else { error.to_string() }
}

async fn read_some(mut body: hyper::body::Incoming) -> String {
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            read.extend_from_slice(&data);
        }
        if read.len() >= MAX_BODY {
            read.truncate(MAX_BODY);
            break;
        }
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// Opens a TCP connection, with Go's error text.
///
/// # Errors
/// When it is refused, or the host is a name: the node has no resolver of its own for pods' names.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let ip: IpAddr = match host {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        _ => host.parse().map_err(|_| {
            format!("lookup {host}: probes and hooks are sent to addresses only: leave host empty for the pod's own, and name the server in a Host header")
        })?,
    };
    let stream = TcpStream::connect(SocketAddr::new(ip, port)).await;
    stream.map_err(|error| format!("dial tcp {}: {}", host_port(host, port), go_io_error(&error)))
}

fn go_io_error(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    }
}

async fn handshake(tcp: TcpStream, host: &str) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let config = wire::tls::unverified_client().map_err(|error| error.to_string())?;
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| {
        if error.to_string().contains("InvalidContentType") {
            "http: server gave HTTP response to HTTPS client".to_owned()
        } else {
            format!("tls: {error}")
        }
    })
}

/// Asks a gRPC server for its health. `Ok` when it serves, else upstream's message.
///
/// # Errors
/// With the text of the probe's failure.
pub async fn grpc_health(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = host_port(host, port);
    let seconds = go_duration(jiff::SignedDuration::try_from(timeout).unwrap_or_default());
    let started = tokio::time::Instant::now();
    let tcp = match tokio::time::timeout(timeout, connect(host, port)).await {
        Ok(Ok(tcp)) => tcp,
        // gRPC tries again until its time is over.
        Ok(Err(_)) | Err(_) => {
            return Err(format!(
                "timeout: failed to connect service {address:?} within {seconds}: context deadline exceeded"
            ));
        }
    };
    let left = timeout.saturating_sub(started.elapsed());
    match tokio::time::timeout(left, grpc_check(tcp, &address, service)).await {
        Ok(result) => result,
        Err(_) => Err(format!("timeout: health rpc did not complete within {seconds}")),
    }
}

async fn grpc_check(tcp: TcpStream, address: &str, service: &str) -> Result<(), String> {
    let failed = |error: String| format!("error: health rpc probe failed: {error}");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.37")
        .body(Full::new(health_request(service)))
        .map_err(|error| failed(error.to_string()))?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok::<_, String>((headers, trailers, body.to_bytes()))
    };
    tokio::pin!(connection);
    let (headers, trailers, body) = tokio::select! {
        biased;
        done = exchange => done.map_err(failed)?,
        ended = &mut connection => return Err(failed(format!("{ended:?}"))),
    };
    let field = |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|value| value.to_str().ok());
    let message = field("grpc-message").unwrap_or_default();
    match field("grpc-status").unwrap_or("2") {
        "0" => {}
        "12" => {
            return Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ));
        }
        code => return Err(failed(format!("rpc error: code = {code} desc = {message}"))),
    }
    match health_answer(&body) {
        1 => Ok(()),
        other => {
            let names = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
            let name = names.get(usize::from(other)).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with {name:?})"))
        }
    }
}

/// `HealthCheckRequest { service = 1 }` in a gRPC frame. Source: grpc/health/v1/health.proto.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.into()
}

/// `HealthCheckResponse { status = 1 }`; 0 when it is left out.
fn health_answer(frame: &[u8]) -> u8 {
    match frame.get(5..) {
        Some([0x08, status, ..]) => *status,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Serves the given answers, one connection each, and returns what was asked.
    async fn serve(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                asked.push(String::from_utf8(request).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, task)
    }

    fn get(port: u16, more: Value) -> Get {
        let mut action = json!({"port": port, "path": "/healthz"});
        action.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let container = serde_json::from_value(json!({"name": "c"})).unwrap();
        Get::new(&serde_json::from_value(action).unwrap(), &container, "127.0.0.1", "probe").unwrap()
    }

    #[tokio::test]
    async fn sends_what_the_kubelet_sends() {
        let (port, task) = serve(vec!["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_owned()]).await;
        let get = get(port, json!({"httpHeaders": [{"name": "X-A", "value": "1"}]}));
        assert_eq!(get.send(Duration::from_secs(5)).await.unwrap().code, 503);
        let mut lines: Vec<String> = task.await.unwrap()[0].lines().map(str::to_owned).collect();
        lines.sort();
        let expected = ["", "GET /healthz HTTP/1.1", "accept: */*", "connection: close"];
        assert_eq!(lines[..4], expected.map(str::to_owned));
        assert!(
            lines.contains(&format!("host: 127.0.0.1:{port}"))
                && lines.contains(&"user-agent: kube-probe/1.37".to_owned())
        );
    }

    #[tokio::test]
    async fn follows_its_own_host_only() {
        let local = "HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n".to_owned();
        let (port, task) = serve(vec![local, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()]).await;
        let answer = get(port, json!({})).send(Duration::from_secs(5)).await.unwrap();
        assert_eq!((answer.code, answer.body.as_str()), (200, "ok"));
        assert!(task.await.unwrap()[1].starts_with("GET /other "));
        let away = "HTTP/1.1 301 Moved\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n".to_owned();
        let (port, _task) = serve(vec![away]).await;
        assert_eq!(get(port, json!({})).send(Duration::from_secs(5)).await.unwrap().code, 301);
    }

    #[tokio::test]
    async fn errors_read_like_gos() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = get(port, json!({})).send(Duration::from_millis(50)).await.err().unwrap();
        assert_eq!(
            silent,
            format!(
                "Get \"http://127.0.0.1:{port}/healthz\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )
        );
        drop(listener);
        let refused = get(port, json!({})).send(Duration::from_secs(5)).await.err().unwrap();
        assert_eq!(
            refused,
            format!("Get \"http://127.0.0.1:{port}/healthz\": dial tcp 127.0.0.1:{port}: connect: connection refused")
        );
    }

    #[test]
    fn ports_have_names() {
        let container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]})).unwrap();
        let check = |wanted: IntOrString| port(&wanted, &container);
        assert_eq!(check(IntOrString::String("web".to_owned())), Ok(80));
        assert_eq!(check(IntOrString::String("8080".to_owned())), Ok(8080));
        assert_eq!(check(IntOrString::Int(0)), Err("invalid port number: 0".to_owned()));
        assert!(check(IntOrString::String("dns".to_owned())).unwrap_err().starts_with("couldn't find port"));
    }

    #[test]
    fn health_messages_are_protobuf() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!([health_answer(&[0, 0, 0, 0, 2, 8, 1]), health_answer(&[0, 0, 0, 0, 0])], [1, 0]);
    }
}

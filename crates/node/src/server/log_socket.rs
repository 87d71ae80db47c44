//! A log over a WebSocket: each piece a message, for clients that cannot read a body as it grows.
//!
//! Source: apimachinery `pkg/util/httpstream/wsstream/stream.go`: `binary.k8s.io`, its form in base64, and neither.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};
use tracing::debug;

use super::{Body, Endpoint, text};

const BINARY: &str = "binary.k8s.io";
const BASE64: &str = "base64.binary.k8s.io";
/// How long to wait for the client's goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// Whether the request asks for a WebSocket.
pub(super) fn is_asked(request: &Request<Incoming>) -> bool {
    let upgrade = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|upgrade| upgrade.eq_ignore_ascii_case("websocket"))
}

/// Sends the body of `log` over the WebSocket that `request` asks for; a refusal stays an ordinary answer.
pub(super) fn serve(endpoint: &Endpoint, mut request: Request<Incoming>, log: Response<Body>) -> Response<Body> {
    if log.status() != StatusCode::OK {
        return log;
    }
    let field = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let offered: Vec<&str> = field(SEC_WEBSOCKET_PROTOCOL).split(',').map(str::trim).collect();
    let Some(protocol) = ["", BINARY, BASE64].into_iter().find(|known| offered.contains(known)) else {
        let known = format!("{BINARY} {BASE64}");
        let why = format!("unable to negotiate protocol: client supports {offered:?}, server accepts [{known}]");
        return text(StatusCode::FORBIDDEN, &why);
    };
    let accept = derive_accept_key(field(SEC_WEBSOCKET_KEY).as_bytes());
    let Ok(accept) = HeaderValue::from_str(&accept) else { return text(StatusCode::BAD_REQUEST, "bad key") };
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let (upgrade, cancel) = (hyper::upgrade::on(&mut request), endpoint.cancel.clone());
    endpoint.tasks.spawn(async move {
        let sent = async {
            let upgraded = upgrade.await.map_err(|error| error.to_string())?;
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            send(socket, log.into_body(), protocol == BASE64).await.map_err(|error| error.to_string())
        };
        // A client that leaves has read enough.
        if let Some(Err(error)) = cancel.run_until_cancelled(sent).await {
            debug!(error, "a log's client left");
        }
    });
    response
}

async fn send<S>(mut socket: WebSocketStream<S>, mut log: Body, in_base64: bool) -> Result<(), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(frame) = log.frame().await {
        let piece: Bytes = frame?.into_data().unwrap_or_default();
        let message = match in_base64 {
            true => Message::Text(STANDARD.encode(&piece).into()),
            false => Message::Binary(piece),
        };
        socket.send(message).await?;
    }
    let end = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
    socket.close(Some(end)).await?;
    // A connection that is shut before the client has answered may lose what it has not read yet.
    tokio::time::timeout(GOODBYE, async { while let Some(Ok(_)) = socket.next().await {} }).await.ok();
    Ok(())
}

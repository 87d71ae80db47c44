//! Upgrades to WebSockets and SPDY, and a client's bytes after an upgrade: plain, or inside the binary messages of a WebSocket.
//!
//! Sources: apimachinery `pkg/util/httpstream/httpstream.go`, client-go `tools/portforward/tunneling_connection.go`.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use super::{Body, text};

type Io = TokioIo<Upgraded>;
pub(super) type Socket = WebSocketStream<Io>;

/// As much as is read at once.
const PIECE: usize = 32 << 10;

/// Clients take a close without a code for a broken connection.
pub(super) const NORMAL: CloseFrame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };

/// What the `Upgrade` header says.
pub(super) const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The values of a header that is a list.
pub(super) fn words(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|word| word.trim().to_owned()).collect()
}

/// The first protocol over SPDY that the client offers and that is `known`. Source: `Handshake`.
///
/// # Errors
/// The refusal.
pub(super) fn agree(headers: &HeaderMap, known: &[&'static str]) -> Result<&'static str, (StatusCode, String)> {
    let offered = words(headers, STREAM_PROTOCOL);
    if offered.is_empty() {
        let why = "unable to upgrade: header X-Stream-Protocol-Version does not exist in request";
        return Err((StatusCode::BAD_REQUEST, why.to_owned()));
    }
    let mut agreed = offered.iter().filter_map(|offer| known.iter().find(|name| *name == offer));
    agreed.next().copied().ok_or_else(|| (StatusCode::FORBIDDEN, not_agreed(&offered, known)))
}

pub(super) fn not_agreed(offered: &[String], known: &[&str]) -> String {
    let (offered, known) = (offered.join(" "), known.join(" "));
    format!("unable to upgrade: unable to negotiate protocol: client supports [{offered}], server accepts [{known}]")
}

/// The answer that turns a connection into something else.
fn switching() -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
}

/// Accepts a WebSocket; `protocol` may be empty.
#[allow(clippy::result_large_err)] // The error is the answer.
pub(super) fn accept_websocket(
    request: &Request<Incoming>,
    protocol: &'static str,
) -> Result<Response<Body>, Response<Body>> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    let mut response = switching();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = derive_accept_key(key).parse().map_err(|_| text(StatusCode::BAD_REQUEST, "bad key"))?;
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(response)
}

/// Accepts an upgrade to SPDY.
pub(super) fn switching_to_spdy(protocol: &'static str) -> Response<Body> {
    let mut response = switching();
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    response
}

pub(super) enum Reader {
    Plain(ReadHalf<Io>),
    WebSocket(SplitStream<Socket>),
}

pub(super) enum Writer {
    Plain(WriteHalf<Io>),
    WebSocket(SplitSink<Socket, Message>),
}

/// The server's side of a WebSocket that was agreed on.
pub(super) async fn socket(upgraded: Upgraded) -> Socket {
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await
}

pub(super) async fn split(upgraded: Upgraded, websocket: bool) -> (Reader, Writer) {
    if websocket {
        let (writer, reader) = socket(upgraded).await.split();
        (Reader::WebSocket(reader), Writer::WebSocket(writer))
    } else {
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        (Reader::Plain(reader), Writer::Plain(writer))
    }
}

impl Reader {
    /// The next bytes; `None` when the client has left. Cancellation safe.
    ///
    /// # Errors
    /// When the connection breaks, or a message is not binary.
    pub(super) async fn read(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Plain(half) => {
                let mut piece = BytesMut::with_capacity(PIECE);
                half.read_buf(&mut piece).await?;
                Ok((!piece.is_empty()).then(|| piece.freeze()))
            }
            Self::WebSocket(half) => loop {
                match half.next().await {
                    Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                    Some(Ok(Message::Text(_))) => return Err(io::Error::other("invalid message type received")),
                    Some(Ok(Message::Close(_))) | None => return Ok(None),
                    // Answered by the socket itself.
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Err(error)) => return Err(io::Error::other(error)),
                }
            },
        }
    }
}

impl Writer {
    /// # Errors
    /// When the connection breaks.
    pub(super) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Plain(half) => {
                half.write_all(&bytes).await?;
                half.flush().await
            }
            Self::WebSocket(half) => half.send(Message::Binary(bytes)).await.map_err(io::Error::other),
        }
    }

    /// # Errors
    /// When the connection is broken already.
    pub(super) async fn close(mut self) -> io::Result<()> {
        match &mut self {
            Self::Plain(half) => half.shutdown().await,
            Self::WebSocket(half) => half.send(Message::Close(Some(NORMAL))).await.map_err(io::Error::other),
        }
    }
}

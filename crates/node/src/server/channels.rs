//! The channels of exec and attach, whatever carries them: messages of a WebSocket, or streams of SPDY/3.1 for older clients.
//!
//! Sources: apimachinery `pkg/util/httpstream/wsstream/conn.go`, cri-streaming `remotecommand/{websocket,httpstream}.go`.

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;
use wire::spdy::{self, Event, Side, Status};

use super::transport::{NORMAL, Socket};

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
pub(super) const CLOSE: u8 = 255;

/// How long a client may take to open its streams. Source: `DefaultStreamCreationTimeout`.
const OPENING: Duration = Duration::from_secs(30);
/// How long to wait for the client's goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// As much as is read at once.
const PIECE: usize = 32 << 10;
/// Pieces of input that may come before all streams are open.
const EARLY: usize = 64;

/// What the client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Data(u8, Bytes),
    /// Nothing more comes on this channel.
    Closed(u8),
}

/// The client's side of an exec or attach.
pub(super) enum Channels {
    /// `base64`: messages are text. `close`: channels can be closed one by one.
    WebSocket {
        socket: Box<Socket>,
        base64: bool,
        close: bool,
    },
    Spdy(Box<Streams>),
}

impl Channels {
    /// # Errors
    /// When the client has left.
    pub(super) async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<(), ()> {
        let sent = match self {
            Self::WebSocket { socket, base64: true, .. } => {
                let message = Message::text(format!("{channel}{}", STANDARD.encode(bytes)));
                socket.send(message).await.map_err(std::io::Error::other)
            }
            Self::WebSocket { socket, base64: false, .. } => {
                socket.send(Message::binary([&[channel], bytes].concat())).await.map_err(std::io::Error::other)
            }
            Self::Spdy(streams) => streams.send(channel, bytes).await,
        };
        sent.map_err(|error| debug!(%error, "the client left"))
    }

    /// The next thing that the client says; `None` when it has left. Cancellation safe.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        match self {
            Self::WebSocket { socket, base64, close } => loop {
                let message = match socket.next().await? {
                    Ok(message) => message,
                    Err(error) => {
                        debug!(%error, "the client left");
                        return None;
                    }
                };
                let bytes: Bytes = match message {
                    Message::Binary(bytes) => bytes,
                    Message::Text(text) if *base64 => {
                        let (channel, rest) = text.split_at_checked(1)?;
                        let mut bytes = vec![channel.bytes().next()?.wrapping_sub(b'0')];
                        bytes.extend(STANDARD.decode(rest).ok()?);
                        bytes.into()
                    }
                    Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
                    Message::Close(_) => return None,
                    // Answered by the socket itself.
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                };
                match (bytes.first().copied(), bytes.get(1)) {
                    (Some(CLOSE), Some(channel)) if *close => return Some(Heard::Closed(*channel)),
                    (Some(channel), _) => return Some(Heard::Data(channel, bytes.slice(1..))),
                    (None, _) => {}
                }
            },
            Self::Spdy(streams) => streams.next().await,
        }
    }

    /// Says that this was all, and waits a moment for the client to go: a connection cut before that is an error to it.
    pub(super) async fn finish(mut self) {
        let said = match &mut self {
            Self::WebSocket { socket, .. } => socket.as_mut().close(Some(NORMAL)).await.map_err(std::io::Error::other),
            Self::Spdy(streams) => streams.close().await,
        };
        if let Err(error) = said {
            debug!(%error, "the client left first");
        }
        let goodbye = async {
            match &mut self {
                Self::WebSocket { socket, .. } => while let Some(Ok(_)) = socket.next().await {},
                Self::Spdy(streams) => while streams.next().await.is_some() {},
            }
        };
        if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
            debug!("the client did not say goodbye");
        }
    }
}

/// Channels as streams, which the client opens.
pub(super) struct Streams {
    transport: TokioIo<Upgraded>,
    session: spdy::Session,
    output: BytesMut,
    /// Which stream is which channel.
    open: Vec<(u32, u8)>,
    early: VecDeque<Heard>,
}

impl Streams {
    /// Waits for the client to open these channels; `None` when it does not.
    pub(super) async fn open(upgraded: Upgraded, wanted: &[u8]) -> Option<Self> {
        let mut streams = Self {
            transport: TokioIo::new(upgraded),
            session: spdy::Session::new(Side::Server),
            output: BytesMut::new(),
            open: Vec::new(),
            early: VecDeque::new(),
        };
        let opening = async {
            while !wanted.iter().all(|channel| streams.stream(*channel).is_some()) {
                streams.step().await?;
                if streams.early.len() > EARLY {
                    return None;
                }
            }
            Some(())
        };
        match tokio::time::timeout(OPENING, opening).await {
            Ok(Some(())) => Some(streams),
            Ok(None) => None,
            Err(_) => {
                debug!("timed out waiting for client to create streams");
                None
            }
        }
    }

    fn stream(&self, channel: u8) -> Option<u32> {
        self.open.iter().find(|(_, of)| *of == channel).map(|(stream, _)| *stream)
    }

    fn channel(&self, stream: u32) -> Option<u8> {
        self.open.iter().find(|(of, _)| *of == stream).map(|(_, channel)| *channel)
    }

    async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.early.pop_front() {
                return Some(heard);
            }
            self.step().await?;
        }
    }

    /// Goes on by one event, or by what the transport brings; `None` when the client has left or makes no sense. Cancellation safe.
    async fn step(&mut self) -> Option<()> {
        match self.session.poll() {
            Ok(Some(event)) => {
                self.hear(event);
                return Some(());
            }
            Ok(None) => {}
            Err(error) => {
                debug!(%error, "a client broke the protocol");
                return None;
            }
        }
        self.flush().await.ok()?;
        let mut piece = BytesMut::with_capacity(PIECE);
        if self.transport.read_buf(&mut piece).await.ok()? == 0 {
            return None;
        }
        self.session.receive(&piece);
        Some(())
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Opened { stream, headers } => {
                let kind = headers.iter().find(|(name, _)| name == "streamtype").map(|(_, kind)| kind.as_str());
                let channel = match kind {
                    Some("stdin") => STDIN,
                    Some("stdout") => STDOUT,
                    Some("stderr") => STDERR,
                    Some("error") => ERROR,
                    Some("resize") => RESIZE,
                    _ => return self.session.reset(stream, Status::Cancel),
                };
                if self.stream(channel).is_some() {
                    return self.session.reset(stream, Status::Cancel);
                }
                self.session.accept(stream);
                self.open.push((stream, channel));
            }
            Event::Data { stream, bytes } => {
                self.early.extend(self.channel(stream).map(|channel| Heard::Data(channel, bytes)));
            }
            Event::Finished { stream } | Event::Reset { stream } => {
                self.early.extend(self.channel(stream).map(Heard::Closed));
            }
            Event::Accepted { .. } | Event::GoingAway => {}
        }
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> std::io::Result<()> {
        if let Some(stream) = self.stream(channel) {
            self.session.send(stream, bytes);
        }
        self.flush().await
    }

    async fn close(&mut self) -> std::io::Result<()> {
        for (stream, _) in &self.open {
            self.session.close(*stream);
        }
        self.flush().await
    }

    /// Writes what is to be said. Cancellation safe: what was written is not written again.
    async fn flush(&mut self) -> std::io::Result<()> {
        self.output.extend_from_slice(&self.session.output());
        while !self.output.is_empty() {
            let written = self.transport.write(&self.output).await?;
            self.output.advance(written);
        }
        self.transport.flush().await
    }
}

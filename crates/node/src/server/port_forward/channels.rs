//! Ports over a WebSocket: channel 2n carries the data of the n-th port and channel 2n + 1 its error; both begin with the port.
//!
//! Source: cri-streaming `portforward/websocket.go`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use super::super::transport::{NORMAL, Socket};
use super::{Inside, Said, WAITING, forward};

/// As many as a channel's number, one byte, can tell apart; in base64 it is one digit.
pub(super) const MAX_PORTS: usize = 127;

/// Serves one client until it leaves or all of its connections are over.
pub(super) async fn run(socket: Socket, base64: bool, ports: Vec<u16>, pod: Arc<Inside>) {
    let (mut sink, mut stream) = socket.split();
    let (said, mut hears) = mpsc::channel(WAITING);
    let mut tasks = JoinSet::new();
    let mut inputs = Vec::new();
    for (index, port) in (0u32..).zip(&ports) {
        let (input, from_client) = mpsc::channel(WAITING);
        inputs.push(Some(input));
        for channel in [2 * index, 2 * index + 1] {
            if send(&mut sink, base64, channel, &port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        tasks.spawn(forward(pod.clone(), *port, 2 * index, from_client, said.clone()));
    }
    drop(said);
    let answers = async {
        while let Some((channel, said)) = hears.recv().await {
            let sent = match said {
                Said::Bytes(bytes) => send(&mut sink, base64, channel, &bytes).await,
                Said::Over(Err(Some(why))) => send(&mut sink, base64, channel + 1, why.as_bytes()).await,
                // A channel cannot be closed alone.
                Said::Finished | Said::Over(_) => Ok(()),
            };
            if sent.is_err() {
                return;
            }
        }
        // The client may have left first.
        drop(sink.send(Message::Close(Some(NORMAL))).await);
    };
    tokio::select! {
        () = answers => {}
        () = typed(&mut stream, base64, &mut inputs) => {}
    }
}

/// Hands on what the client sends until it leaves.
async fn typed(stream: &mut SplitStream<Socket>, base64: bool, inputs: &mut [Option<mpsc::Sender<Bytes>>]) {
    while let Some(Ok(message)) = stream.next().await {
        let Some((channel, bytes)) = (match message {
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            message => content(&message, base64),
        }) else {
            debug!("a client sent what is no message");
            return;
        };
        let Some(place) = inputs.get_mut(channel / 2).filter(|_| channel.is_multiple_of(2)) else { continue };
        if let Some(input) = place
            && input.send(bytes).await.is_err()
        {
            *place = None;
        }
    }
}

/// A message's channel and what it carries.
fn content(message: &Message, base64: bool) -> Option<(usize, Bytes)> {
    match message {
        Message::Text(text) if base64 => {
            let (channel, rest) = text.split_at_checked(1)?;
            Some((channel.parse().ok()?, STANDARD.decode(rest).ok()?.into()))
        }
        Message::Binary(bytes) if !base64 => Some((usize::from(*bytes.first()?), bytes.slice(1..))),
        _ => None,
    }
}

async fn send(sink: &mut SplitSink<Socket, Message>, base64: bool, channel: u32, bytes: &[u8]) -> Result<(), ()> {
    let message = if base64 {
        Message::text(format!("{channel}{}", STANDARD.encode(bytes)))
    } else {
        let number = u8::try_from(channel).expect("ports are few");
        Message::binary([&[number], bytes].concat())
    };
    sink.send(message).await.map_err(|error| debug!(%error, "a client that forwards ports left"))
}

//! Ports over SPDY: each connection is a pair of streams, one for its data and one for its error, which share a request's id.
//!
//! Source: cri-streaming `portforward/httpstream.go`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::debug;
use wire::spdy::{Event, Headers, Session, Side, Status};

use super::super::transport::{Reader, Writer};
use super::{Inside, Said, WAITING, forward};

/// How long a client may take from a pair's first stream to its second. Source: `DefaultStreamCreationTimeout`.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may be silent. Source: kubelet `streamingConnectionIdleTimeout`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 60 * 60);
/// How long a client that is told goodbye may take to read it.
const GOODBYE: Duration = Duration::from_secs(2);
/// Pieces that wait for a client that reads slowly; applications wait behind them.
const PIECES: usize = 4;

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Purpose {
    data: bool,
    port: u16,
    request: String,
}

/// Source: `httpStreamReceived` and `requestID`.
fn purpose(stream: u32, headers: &Headers) -> Result<Purpose, String> {
    let header = |name: &str| headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.as_str());
    let given = |name: &str| header(name).filter(|value| !value.is_empty());
    let port = given("port").ok_or("\"port\" header is required")?;
    let port: u16 = port.parse().map_err(|_| format!("unable to parse {port:?} as a port"))?;
    if port == 0 {
        return Err("port \"0\" must be > 0".to_owned());
    }
    let data = match given("streamtype").ok_or("\"streamType\" header is required")? {
        "data" => true,
        "error" => false,
        other => return Err(format!("invalid stream type {other:?}")),
    };
    // The oldest clients name no request; their data stream follows the error stream of the same connection.
    let numbered = || if data { i64::from(stream) - 2 } else { i64::from(stream) }.to_string();
    Ok(Purpose { data, port, request: given("requestid").map_or_else(numbered, str::to_owned) })
}

/// A connection of which one stream may be missing yet.
struct Pair {
    error: Option<u32>,
    data: Option<(u32, mpsc::Receiver<Bytes>)>,
    deadline: Instant,
}

struct Forward {
    error: u32,
    task: AbortHandle,
}

struct Tunnel {
    pod: Arc<Inside>,
    session: Session,
    pairs: BTreeMap<String, Pair>,
    /// By data stream.
    forwards: BTreeMap<u32, Forward>,
    /// What clients send, by data stream; closed when a client has finished.
    inputs: BTreeMap<u32, mpsc::Sender<Bytes>>,
    /// Data for an application that does not read; nothing else is read meanwhile, as upstream has it.
    stalled: Option<(u32, Bytes)>,
    tasks: JoinSet<()>,
    said: mpsc::Sender<(u32, Said)>,
}

/// What the loop woke up for.
enum Woken {
    Received(Bytes),
    Room(Option<mpsc::OwnedPermit<Bytes>>),
    Said(u32, Said),
    Overdue,
    Left,
}

/// Serves one client until it leaves.
pub(super) async fn run(mut reader: Reader, writer: Writer, pod: Arc<Inside>) {
    let (said, mut hears) = mpsc::channel(PIECES);
    let (output, to_write) = mpsc::channel(PIECES);
    let mut tunnel = Tunnel {
        pod,
        session: Session::new(Side::Server),
        pairs: BTreeMap::new(),
        forwards: BTreeMap::new(),
        inputs: BTreeMap::new(),
        stalled: None,
        tasks: JoinSet::new(),
        said,
    };
    let mut writing = JoinSet::new();
    writing.spawn(write_all(writer, to_write));
    let mut idle = Instant::now() + IDLE_TIMEOUT;
    loop {
        let healthy = tunnel.poll();
        if tunnel.session.has_output() && output.send(tunnel.session.output()).await.is_err() || !healthy {
            break;
        }
        while tunnel.tasks.try_join_next().is_some() {}
        let stalled = tunnel.stalled_input();
        let deadline = tunnel.pairs.values().map(|pair| pair.deadline).min();
        let woken = tokio::select! {
            permit = async { stalled.clone().expect("checked").reserve_owned().await.ok() }, if stalled.is_some() => {
                Woken::Room(permit)
            }
            Some((stream, said)) = hears.recv() => Woken::Said(stream, said),
            received = reader.read(), if stalled.is_none() => match received {
                Ok(Some(bytes)) => Woken::Received(bytes),
                Ok(None) => Woken::Left,
                Err(error) => {
                    debug!(%error, "a client that forwards ports left");
                    Woken::Left
                }
            },
            () = tokio::time::sleep_until(deadline.unwrap_or(idle)), if deadline.is_some() => Woken::Overdue,
            () = output.closed() => Woken::Left,
            () = tokio::time::sleep_until(idle) => Woken::Left,
        };
        if matches!(woken, Woken::Received(_) | Woken::Said(..)) {
            idle = Instant::now() + IDLE_TIMEOUT;
        }
        if !tunnel.apply(woken) {
            break;
        }
    }
    drop(output);
    let goodbye = async { while writing.join_next().await.is_some() {} };
    if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
        debug!("a client did not read to the end");
    }
}

async fn write_all(mut writer: Writer, mut output: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = output.recv().await {
        if let Err(error) = writer.write(bytes).await {
            debug!(%error, "a client that forwards ports does not read");
            return;
        }
    }
    if let Err(error) = writer.close().await {
        debug!(%error, "the client left first");
    }
}

impl Tunnel {
    /// Does what the received bytes ask for, until something has to wait; false when they make no sense.
    fn poll(&mut self) -> bool {
        while self.stalled.is_none() {
            match self.session.poll() {
                Ok(Some(event)) => self.hear(event),
                Ok(None) => break,
                Err(error) => {
                    debug!(%error, "a client broke the protocol");
                    self.session.go_away(true);
                    return false;
                }
            }
        }
        true
    }

    /// Where the data that waits is to go; data for nobody is dropped.
    fn stalled_input(&mut self) -> Option<mpsc::Sender<Bytes>> {
        let (stream, _) = self.stalled.as_ref()?;
        let input = self.inputs.get(stream).cloned();
        if input.is_none() {
            self.stalled = None;
        }
        input
    }

    fn apply(&mut self, woken: Woken) -> bool {
        match woken {
            Woken::Received(bytes) => self.session.receive(&bytes),
            Woken::Room(permit) => {
                if let (Some((_, bytes)), Some(permit)) = (self.stalled.take(), permit) {
                    permit.send(bytes);
                }
            }
            Woken::Said(stream, said) => self.answer(stream, said),
            Woken::Overdue => self.give_up(Instant::now()),
            Woken::Left => return false,
        }
        true
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Opened { stream, headers } => match purpose(stream, &headers) {
                Ok(purpose) => self.opened(stream, purpose),
                Err(why) => {
                    debug!(why, "a stream is refused");
                    self.session.reset(stream, Status::Cancel);
                }
            },
            Event::Data { stream, bytes } => {
                let Some(input) = self.inputs.get(&stream) else { return };
                // A connection that is over needs no more; what it was told is on its way to the client.
                if let Err(mpsc::error::TrySendError::Full(bytes)) = input.try_send(bytes) {
                    self.stalled = Some((stream, bytes));
                }
            }
            Event::Finished { stream } => drop(self.inputs.remove(&stream)),
            Event::Reset { stream } => {
                self.inputs.remove(&stream);
                if let Some(forward) = self.forwards.remove(&stream) {
                    forward.task.abort();
                    self.session.close(forward.error);
                }
            }
            Event::Accepted { .. } | Event::GoingAway => {}
        }
    }

    fn opened(&mut self, stream: u32, purpose: Purpose) {
        self.session.accept(stream);
        let deadline = Instant::now() + PAIR_TIMEOUT;
        let Purpose { data, port, request } = purpose;
        let pair = self.pairs.entry(request.clone()).or_insert(Pair { error: None, data: None, deadline });
        if if data { pair.data.is_some() } else { pair.error.is_some() } {
            let kind = if data { "data" } else { "error" };
            if let Some(error) = pair.error {
                let why = format!("error processing stream for request {request}: {kind} stream already assigned");
                self.session.send(error, why.as_bytes());
            }
            self.session.reset(stream, Status::Cancel);
            return;
        }
        if data {
            let (input, from_client) = mpsc::channel(WAITING);
            self.inputs.insert(stream, input);
            pair.data = Some((stream, from_client));
        } else {
            pair.error = Some(stream);
        }
        if pair.error.is_none() || pair.data.is_none() {
            return;
        }
        if let Some(Pair { error: Some(error), data: Some((data, from_client)), .. }) = self.pairs.remove(&request) {
            let work = forward(self.pod.clone(), port, data, from_client, self.said.clone());
            let task = self.tasks.spawn(work);
            self.forwards.insert(data, Forward { error, task });
        }
    }

    /// Tells the client what became of a connection.
    fn answer(&mut self, stream: u32, said: Said) {
        let Some(forward) = self.forwards.get(&stream) else { return };
        let error = forward.error;
        match said {
            Said::Bytes(bytes) => self.session.send(stream, &bytes),
            Said::Finished => self.session.close(stream),
            Said::Over(ended) => {
                self.forwards.remove(&stream);
                self.inputs.remove(&stream);
                if let Err(why) = ended {
                    self.session.send(error, why.unwrap_or_default().as_bytes());
                    self.session.reset(stream, Status::Cancel);
                }
                self.session.close(stream);
                self.session.close(error);
            }
        }
    }

    /// Forgets pairs whose second stream did not come.
    fn give_up(&mut self, now: Instant) {
        for (request, pair) in self.pairs.extract_if(.., |_, pair| pair.deadline <= now) {
            if let Some(error) = pair.error {
                self.session.send(error, format!("(request={request}) timed out waiting for streams").as_bytes());
                self.session.close(error);
            }
            if let Some((data, _)) = pair.data {
                self.inputs.remove(&data);
                self.session.reset(data, Status::Cancel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&str, &str)], expected: Result<(bool, u16, &str), &str>) {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let expected = expected.map(|(data, port, request)| Purpose { data, port, request: request.to_owned() });
        assert_eq!(purpose(5, &headers), expected.map_err(str::to_owned));
    }

    #[test]
    fn streams_say_what_they_are_for() {
        check(&[("streamtype", "data"), ("port", "80"), ("requestid", "7")], Ok((true, 80, "7")));
        check(&[("streamtype", "data"), ("port", "80")], Ok((true, 80, "3")));
        check(&[("streamtype", "error"), ("port", "80")], Ok((false, 80, "5")));
        check(&[("streamtype", "data")], Err("\"port\" header is required"));
        check(&[("streamtype", "data"), ("port", "0")], Err("port \"0\" must be > 0"));
        check(&[("streamtype", "data"), ("port", "http")], Err("unable to parse \"http\" as a port"));
        check(&[("streamtype", "tty"), ("port", "80")], Err("invalid stream type \"tty\""));
    }
}

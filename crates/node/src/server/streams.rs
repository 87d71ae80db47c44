//! `/exec` and `/attach` over WebSockets, the channels of `v5.channel.k8s.io` and its predecessors, and over SPDY.
//!
//! Each message begins with a channel's number: 0 stdin, 1 stdout, 2 stderr, 3 the result, 4 terminal sizes; 255 closes the
//! channel that follows (v5). Sources: apimachinery `pkg/util/httpstream/wsstream/conn.go`; cri-streaming
//! `remotecommand/{websocket,exec,attach}.go`; client-go `tools/remotecommand/websocket.go`.

use std::os::fd::OwnedFd;
use std::time::Duration;

use api::chain::chain;
use api::status::Status;
use bytes::Bytes;
use http::header::{SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use runtime::plan::{AttachPlan, ExecPlan, Streams};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::debug;

use super::channels::{Channels, ERROR, Heard, RESIZE, STDERR, STDIN, STDOUT, Streams as SpdyStreams};
use super::fd::Stream;
use super::{Action, Body, Endpoint, text, transport, values};
use crate::shared::Known;

/// A process may end while another holds its output open: how long to wait for more then.
const LINGER: Duration = Duration::from_millis(200);
/// Messages that wait for a slow client; the process waits behind them.
const PIECES: usize = 4;

/// What both sides agreed to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol {
    name: &'static str,
    /// Messages are base64 text.
    base64: bool,
    /// The result is a Status; before v4 it was the error's text, and nothing for success.
    status: bool,
    close: bool,
}

const PROTOCOLS: [Protocol; 6] = [
    Protocol { name: "v5.channel.k8s.io", base64: false, status: true, close: true },
    Protocol { name: "v4.channel.k8s.io", base64: false, status: true, close: false },
    Protocol { name: "v4.base64.channel.k8s.io", base64: true, status: true, close: false },
    Protocol { name: "channel.k8s.io", base64: false, status: false, close: false },
    Protocol { name: "base64.channel.k8s.io", base64: true, status: false, close: false },
    Protocol { name: "", base64: false, status: false, close: false },
];

/// The first protocol that the client offers and this side knows.
fn choose(offered: &str) -> Option<Protocol> {
    let mut offers = offered.split(',').map(str::trim);
    offers.find_map(|offer| PROTOCOLS.into_iter().find(|protocol| protocol.name == offer))
}

/// What an older client and this side agreed to speak over SPDY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StreamProtocol {
    name: &'static str,
    status: bool,
    /// A terminal's sizes have a stream.
    resize: bool,
}

const STREAM_PROTOCOLS: [StreamProtocol; 4] = [
    StreamProtocol { name: "v4.channel.k8s.io", status: true, resize: true },
    StreamProtocol { name: "v3.channel.k8s.io", status: false, resize: true },
    StreamProtocol { name: "v2.channel.k8s.io", status: false, resize: false },
    StreamProtocol { name: "channel.k8s.io", status: false, resize: false },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    WebSocket(Protocol),
    Spdy(StreamProtocol),
}

impl Spoken {
    fn status(self) -> bool {
        match self {
            Self::WebSocket(protocol) => protocol.status,
            Self::Spdy(protocol) => protocol.status,
        }
    }
}

/// What the client wants connected.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// The streams that a client opens over SPDY.
    fn channels(self, resize: bool) -> Vec<u8> {
        let Self { stdin, stdout, stderr, tty } = self;
        let all = [(true, ERROR), (stdin, STDIN), (stdout, STDOUT), (stderr, STDERR), (tty && resize, RESIZE)];
        all.into_iter().filter(|(wanted, _)| *wanted).map(|(_, channel)| channel).collect()
    }
}

pub(super) fn serve(
    endpoint: &Endpoint,
    known: &Known,
    container: &str,
    action: Action,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let flag = |name: &str| values(&query, name).iter().any(|value| matches!(value.as_str(), "1" | "true"));
    let tty = if action == Action::Exec { flag("tty") } else { has_terminal(known, container) };
    let wanted = Wanted { stdin: flag("input"), stdout: flag("output"), stderr: flag("error") && !tty, tty };
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr");
    }
    let command = values(&query, "command");
    if action == Action::Exec && command.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify at least one command for the container");
    }
    let Some(id) = running_id(known, container) else {
        return text(StatusCode::NOT_FOUND, &format!("container not found ({container:?})"));
    };
    let (spoken, response) = match handshake(&request) {
        Ok(agreed) => agreed,
        Err(refusal) => return refusal,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (runtime, uid) = (endpoint.runtime.clone(), known.pod.metadata.uid.clone().unwrap_or_default());
    let cancel = endpoint.cancel.clone();
    endpoint.tasks.spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                debug!(%error, "the client left before the streams began");
                return;
            }
        };
        let channels = match spoken {
            Spoken::WebSocket(protocol) => {
                let socket = Box::new(super::transport::socket(upgraded).await);
                Channels::WebSocket { socket, base64: protocol.base64, close: protocol.close }
            }
            Spoken::Spdy(protocol) => match SpdyStreams::open(upgraded, &wanted.channels(protocol.resize)).await {
                Some(streams) => Channels::Spdy(Box::new(streams)),
                None => return,
            },
        };
        let begun = match action {
            Action::Exec => {
                let plan = ExecPlan { args: command, stdin: wanted.stdin, tty: wanted.tty };
                let begun = runtime.exec(&uid, &id, plan).await.map(|io| (io.streams, Some(io.exit)));
                begun.map_err(|error| format!("error executing command in container: {}", chain(&error)))
            }
            _ => {
                let plan = AttachPlan { stdin: wanted.stdin, stdout: wanted.stdout, stderr: wanted.stderr };
                let begun = runtime.attach(&uid, &id, plan).await.map(|io| (io.streams, None));
                begun.map_err(|error| format!("error attaching to container: {}", chain(&error)))
            }
        };
        let session = Session { channels, status: spoken.status(), wanted };
        tokio::select! {
            () = session.run(begun) => {}
            () = cancel.cancelled() => {}
        }
    });
    response
}

fn has_terminal(known: &Known, container: &str) -> bool {
    known.container(container).is_some_and(|container| container.tty == Some(true))
}

fn running_id(known: &Known, container: &str) -> Option<String> {
    let status = crate::pod_machine::all_statuses(&known.status).find(|status| status.name == container)?;
    status.state.as_ref()?.running.as_ref()?;
    Some(status.container_id.as_ref()?.trim_start_matches("coracle://").to_owned())
}

#[allow(clippy::result_large_err)] // The error is the answer.
fn handshake(request: &Request<Incoming>) -> Result<(Spoken, Response<Body>), Response<Body>> {
    let field =
        |name: http::HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let upgrade = field(UPGRADE);
    if upgrade.eq_ignore_ascii_case(transport::SPDY) {
        let names = STREAM_PROTOCOLS.map(|protocol| protocol.name);
        let name = transport::agree(request.headers(), &names).map_err(|(code, why)| text(code, &why))?;
        let protocol =
            STREAM_PROTOCOLS.into_iter().find(|protocol| protocol.name == name).expect("it was chosen of them");
        return Ok((Spoken::Spdy(protocol), transport::switching_to_spdy(name)));
    }
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Err(text(StatusCode::BAD_REQUEST, "Upgrade request required"));
    }
    let offered = field(SEC_WEBSOCKET_PROTOCOL);
    let Some(protocol) = choose(offered) else {
        let known: Vec<&str> = PROTOCOLS.iter().map(|protocol| protocol.name).filter(|name| !name.is_empty()).collect();
        let why =
            format!("unable to negotiate protocol: client supports [{offered}], server accepts [{}]", known.join(" "));
        return Err(text(StatusCode::FORBIDDEN, &why));
    };
    let response = transport::accept_websocket(request, protocol.name)?;
    Ok((Spoken::WebSocket(protocol), response))
}

struct Session {
    channels: Channels,
    status: bool,
    wanted: Wanted,
}

type Begun = Result<(Streams, Option<oneshot::Receiver<i32>>), String>;

/// The process' side of the streams.
struct Process {
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
}

impl Process {
    fn new(streams: Streams) -> std::io::Result<Self> {
        let reader = |fd: Option<OwnedFd>| fd.map(Stream::reader).transpose();
        Ok(match streams {
            Streams::Pipes { stdin, stdout, stderr } => {
                Self { stdin: stdin.map(Stream::writer).transpose()?, stdout: reader(stdout)?, stderr: reader(stderr)? }
            }
            Streams::Terminal { input, output } => {
                Self { stdin: Some(Stream::writer(input)?), stdout: reader(Some(output))?, stderr: None }
            }
        })
    }
}

impl Session {
    async fn run(mut self, begun: Begun) {
        // Tells the client that the connection stands.
        let first = if self.wanted.stdout {
            STDOUT
        } else if self.wanted.stderr {
            STDERR
        } else {
            ERROR
        };
        if self.channels.send(first, &[]).await.is_err() {
            return;
        }
        let result = match begun.and_then(|(streams, exit)| {
            Process::new(streams).map(|process| (process, exit)).map_err(|error| error.to_string())
        }) {
            Ok((process, exit)) => self.connect(process, exit).await,
            Err(error) => Some(failure(&error)),
        };
        let Some(result) = result else { return };
        let text = self.result_text(&result);
        if let Some(text) = text
            && self.channels.send(ERROR, text.as_bytes()).await.is_err()
        {
            return;
        }
        self.channels.finish().await;
    }

    /// The result as this protocol tells it; nothing for success before v4.
    fn result_text(&self, result: &Value) -> Option<String> {
        if self.status {
            return Some(result.to_string());
        }
        (result["status"] != "Success").then(|| result["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Copies until the process has ended and its output is told, and returns the result; `None` when the client left.
    ///
    /// Output flows while input waits: a process that reads nothing before it has written, such as `cat` with a long input,
    /// would otherwise stop both sides for ever.
    async fn connect(&mut self, process: Process, exit: Option<oneshot::Receiver<i32>>) -> Option<Value> {
        let (pieces, mut output) = mpsc::channel::<(u8, Bytes)>(PIECES);
        let wanted = self.wanted;
        let Process { stdin, stdout, stderr } = process;
        let terminal = if wanted.tty { stdin.as_ref().and_then(|stream| stream.raw().try_clone().ok()) } else { None };
        let (input, typed) = mpsc::channel::<Bytes>(PIECES);
        let mut copies = JoinSet::new();
        copies.spawn(read_all(stdout, STDOUT, wanted.stdout, pieces.clone()));
        copies.spawn(read_all(stderr, STDERR, wanted.stderr, pieces));
        copies.spawn(write_all(stdin.filter(|_| wanted.stdin), typed));
        let mut input = Some(input);
        let mut waiting: Option<Bytes> = None;
        let mut exit = exit;
        let (mut code, mut copied) = (None, false);
        while !(copied && code.is_some()) {
            let typing = input.clone().filter(|_| waiting.is_some());
            let typeable = typing.is_some();
            tokio::select! {
                biased;
                piece = output.recv(), if !copied => match piece {
                    Some((channel, bytes)) => self.channels.send(channel, &bytes).await.ok()?,
                    None => {
                        copied = true;
                        if exit.is_none() && code.is_none() {
                            // An attached container's output ends with it.
                            code = Some(0);
                        }
                    }
                },
                ended = async { exit.as_mut().expect("checked").await }, if exit.is_some() => {
                    exit = None;
                    code = Some(match ended {
                        Ok(code) => code,
                        Err(_) => return Some(failure("error executing command in container: its shim died")),
                    });
                }
                permit = async { typing.expect("checked").reserve_owned().await }, if typeable => {
                    match (permit, waiting.take()) {
                        (Ok(permit), Some(bytes)) => drop(permit.send(bytes)),
                        _ => input = None,
                    }
                }
                heard = self.channels.next(), if waiting.is_none() || input.is_none() => {
                    waiting = receive(heard?, &mut input, terminal.as_ref());
                }
                () = tokio::time::sleep(LINGER), if code.is_some() && !copied => copied = true,
            }
        }
        code.map(exit_status)
    }
}

/// Takes what the client says, and returns what is to be typed, if anything.
fn receive(heard: Heard, input: &mut Option<mpsc::Sender<Bytes>>, terminal: Option<&OwnedFd>) -> Option<Bytes> {
    match heard {
        Heard::Data(STDIN, bytes) => return Some(bytes).filter(|bytes| !bytes.is_empty() && input.is_some()),
        Heard::Data(RESIZE, bytes) => resize(terminal, &bytes),
        Heard::Closed(STDIN) => *input = None,
        Heard::Data(..) | Heard::Closed(_) => {}
    }
    None
}

/// A terminal's size as clients send it. Source: client-go `tools/remotecommand/resize.go`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

fn resize(terminal: Option<&OwnedFd>, json: &[u8]) {
    let (Some(terminal), Ok(size)) = (terminal, serde_json::from_slice::<Size>(json)) else { return };
    if let Err(error) = runtime::resize(terminal, size.width, size.height) {
        debug!(%error, "terminal not resized");
    }
}

/// Reads a stream to its end. One that the client does not want is read all the same: the process must not block on it.
async fn read_all(from: Option<Stream>, channel: u8, wanted: bool, to: mpsc::Sender<(u8, Bytes)>) {
    let Some(from) = from else { return };
    let mut buffer = vec![0; 32 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) if wanted => {
                if to.send((channel, Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => {
                debug!(%error, "a process' output cannot be read");
                return;
            }
        }
    }
}

/// Writes what is typed until the client closes its side; the process then sees the end of its input.
async fn write_all(to: Option<Stream>, mut typed: mpsc::Receiver<Bytes>) {
    let Some(to) = to else { return };
    while let Some(bytes) = typed.recv().await {
        if to.write(&bytes).await.is_err() {
            return;
        }
    }
}

fn exit_status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with exit code {code}"),
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(why: &str) -> Value {
    serde_json::to_value(Status::internal(why)).unwrap_or_else(|_| json!({"status": "Failure", "message": why}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_first_choice_wins() {
        let name = |offered| choose(offered).map(|protocol| protocol.name);
        assert_eq!(name("v5.channel.k8s.io, v4.channel.k8s.io"), Some("v5.channel.k8s.io"));
        assert_eq!(name("v9.channel.k8s.io,base64.channel.k8s.io"), Some("base64.channel.k8s.io"));
        assert_eq!(name(""), Some(""));
        assert_eq!(name("chat"), None);
    }

    #[test]
    fn exit_codes_are_causes() {
        assert_eq!(exit_status(0)["status"], "Success");
        let status = exit_status(7);
        assert_eq!(status["details"]["causes"][0]["message"], "7");
        assert_eq!(status["message"], "command terminated with exit code 7");
        assert_eq!(failure("x")["code"], 500);
    }
}

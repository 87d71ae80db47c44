//! `/portForward`: connections to ports inside a pod.
//!
//! Three ways lead here: SPDY/3.1 inside a WebSocket (kubectl since 1.31), plain SPDY/3.1 (older ones), and a WebSocket with a pair
//! of channels for each port (client libraries). Sources: cri-streaming `portforward/{portforward,httpstream,websocket}.go`,
//! apimachinery `pkg/util/portforward/constants.go`; the words of a failure are containerd's.

mod channels;
mod tunnel;

use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::{io, mem};

use bytes::{Bytes, BytesMut};
use http::header::{SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tracing::debug;

use super::{Body, Endpoint, text, transport, values};
use crate::shared::Known;

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// How long an application in the pod may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pieces of a client's data that wait for an application that does not read: the client waits behind them.
const WAITING: usize = 8;
/// As much as is read of an application at once.
const PIECE: usize = 32 << 10;

/// What the client and this side agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Spdy { websocket: bool },
    Channels { protocol: &'static str, base64: bool },
}

fn agree(headers: &HeaderMap) -> Result<Spoken, (StatusCode, String)> {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if upgrade.eq_ignore_ascii_case(transport::SPDY) {
        return transport::agree(headers, &[PROTOCOL]).map(|_| Spoken::Spdy { websocket: false });
    }
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Err((StatusCode::BAD_REQUEST, "Upgrade request required".to_owned()));
    }
    let offered = transport::words(headers, SEC_WEBSOCKET_PROTOCOL.as_str());
    if offered.is_empty() {
        return Ok(Spoken::Channels { protocol: "", base64: false });
    }
    let known = [
        (TUNNEL, Spoken::Spdy { websocket: true }),
        ("v4.channel.k8s.io", Spoken::Channels { protocol: "v4.channel.k8s.io", base64: false }),
        ("v4.base64.channel.k8s.io", Spoken::Channels { protocol: "v4.base64.channel.k8s.io", base64: true }),
    ];
    let mut agreed = offered.iter().filter_map(|offer| known.iter().find(|(name, _)| name == offer));
    let refused = || (StatusCode::FORBIDDEN, transport::not_agreed(&offered, &known.map(|(name, _)| name)));
    agreed.next().map(|(_, spoken)| *spoken).ok_or_else(refused)
}

/// The ports of a request over channels. Source: cri-streaming `portforward/websocket.go`, `NewV4Options`.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let given = values(query, "port");
    if given.is_empty() {
        return Err("query parameter \"port\" is required".to_owned());
    }
    let mut ports = Vec::new();
    for text in &given {
        if text.is_empty() {
            return Err("query parameter \"port\" cannot be empty".to_owned());
        }
        for one in text.split(',') {
            match one.parse::<u16>() {
                Ok(0) => return Err(format!("port {text:?} must be > 0")),
                Ok(port) => ports.push(port),
                Err(_) => return Err(format!("unable to parse {text:?} as a port")),
            }
        }
    }
    if ports.len() > channels::MAX_PORTS {
        return Err(format!("at most {} ports can be forwarded over channels", channels::MAX_PORTS));
    }
    Ok(ports)
}

pub(super) fn serve(endpoint: &Endpoint, known: &Known, mut request: Request<Incoming>) -> Response<Body> {
    let spoken = match agree(request.headers()) {
        Ok(spoken) => spoken,
        Err((code, why)) => return text(code, &why),
    };
    let (name, uid) = (known.pod.metadata.name.clone(), known.pod.metadata.uid.clone().unwrap_or_default());
    let name = name.unwrap_or_default();
    let netns = match endpoint.runtime.netns(&uid) {
        Ok(netns) => netns,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, &format!("pod not found ({name:?}): {error}")),
    };
    let wanted = match spoken {
        Spoken::Spdy { .. } => Ok(Vec::new()),
        Spoken::Channels { .. } => ports(request.uri().query().unwrap_or_default()),
    };
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(why) => return text(StatusCode::BAD_REQUEST, &why),
    };
    let response = match spoken {
        Spoken::Spdy { websocket: false } => transport::switching_to_spdy(PROTOCOL),
        Spoken::Spdy { websocket: true } => match transport::accept_websocket(&request, TUNNEL) {
            Ok(response) => response,
            Err(refusal) => return refusal,
        },
        Spoken::Channels { protocol, .. } => match transport::accept_websocket(&request, protocol) {
            Ok(response) => response,
            Err(refusal) => return refusal,
        },
    };
    let pod = Arc::new(Inside { name, uid, netns });
    let upgrade = hyper::upgrade::on(&mut request);
    let cancel = endpoint.cancel.clone();
    endpoint.tasks.spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                debug!(%error, "the client left before ports were forwarded");
                return;
            }
        };
        let work: Pin<Box<dyn Future<Output = ()> + Send>> = match spoken {
            Spoken::Spdy { websocket } => {
                let (reader, writer) = transport::split(upgraded, websocket).await;
                Box::pin(tunnel::run(reader, writer, pod))
            }
            Spoken::Channels { base64, .. } => {
                Box::pin(channels::run(transport::socket(upgraded).await, base64, wanted, pod))
            }
        };
        tokio::select! {
            () = work => {}
            () = cancel.cancelled() => {}
        }
    });
    response
}

/// Where connections are made.
struct Inside {
    name: String,
    uid: String,
    /// The host's own when there is none.
    netns: Option<OwnedFd>,
}

impl Inside {
    /// Connects to a port of the pod's loopback, IPv4 first.
    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let make = || (TcpSocket::new_v4(), TcpSocket::new_v6());
        let sockets = match &self.netns {
            // Takes a thread's start: sockets stay in the namespace that they were made in.
            Some(netns) => net::pod::inside(netns.as_fd(), make),
            None => Ok(make()),
        };
        let failed =
            |why: String| format!("error forwarding port {port} to pod {}, uid {}: {why}", self.name, self.uid);
        let (v4, v6) = sockets.map_err(|error| failed(format!("failed to enter the network namespace: {error}")))?;
        let first = match dial(v4, (Ipv4Addr::LOCALHOST, port).into()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => words(&error),
        };
        dial(v6, (Ipv6Addr::LOCALHOST, port).into()).await.map_err(|error| {
            let second = words(&error);
            failed(format!(
                "failed to connect to localhost:{port} inside namespace {:?}, \
                 IPv4: dial tcp4 127.0.0.1:{port}: connect: {first} IPv6: dial tcp6 [::1]:{port}: connect: {second}",
                self.uid
            ))
        })
    }
}

async fn dial(socket: io::Result<TcpSocket>, to: SocketAddr) -> io::Result<TcpStream> {
    let connect = socket?.connect(to);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| io::ErrorKind::TimedOut)??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An error as Go has it: `connection refused`.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// What becomes of a forwarded connection.
enum Said {
    Bytes(Bytes),
    /// The application sends nothing more.
    Finished,
    /// It is over, with the text for the error stream.
    Over(Result<(), Option<String>>),
}

/// Carries one connection to its end, and says so. `id` names it in what is said.
async fn forward(
    pod: Arc<Inside>,
    port: u16,
    id: u32,
    mut from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<(u32, Said)>,
) {
    let say = async |said| to_client.send((id, said)).await;
    let stream = match pod.connect(port).await {
        Ok(stream) => stream,
        Err(why) => {
            debug!(pod = pod.name, port, why, "port not forwarded");
            // A client that has left needs no answer; here and below.
            return drop(say(Said::Over(Err(Some(why)))).await);
        }
    };
    let (mut reader, mut writer) = stream.into_split();
    let upward = async {
        while let Some(bytes) = from_client.recv().await {
            writer.write_all(&bytes).await?;
        }
        writer.shutdown().await
    };
    let downward = async {
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(PIECE);
            if reader.read_buf(&mut piece).await? == 0 {
                break;
            }
            let bytes = mem::take(&mut piece).freeze();
            if say(Said::Bytes(bytes)).await.is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        say(Said::Finished).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(())
    };
    // An application that resets its connection ends that connection and no other: nothing is written to the error stream,
    // at which kubectl would give up all of them.
    let ended = tokio::try_join!(upward, downward).map(|_| ()).map_err(|error: io::Error| {
        debug!(pod = pod.name, port, %error, "a forwarded connection broke");
        None
    });
    drop(say(Said::Over(ended)).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&str, &str)], expected: Result<Spoken, &str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        assert_eq!(agree(&map).map_err(|(_, why)| why), expected.map_err(str::to_owned));
    }

    #[test]
    fn each_generation_of_clients_is_understood() {
        let tunnel = Spoken::Spdy { websocket: true };
        check(&[("upgrade", "websocket"), ("sec-websocket-protocol", TUNNEL)], Ok(tunnel));
        check(
            &[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", PROTOCOL)],
            Ok(Spoken::Spdy { websocket: false }),
        );
        let channels = Spoken::Channels { protocol: "v4.channel.k8s.io", base64: false };
        check(&[("upgrade", "websocket"), ("sec-websocket-protocol", "x, v4.channel.k8s.io")], Ok(channels));
        check(&[], Err("Upgrade request required"));
        let why = "unable to upgrade: unable to negotiate protocol: client supports [chat], server accepts [portforward.k8s.io]";
        check(&[("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "chat")], Err(why));
    }

    #[test]
    fn ports_are_checked() {
        assert_eq!(ports("port=80&port=443,8080"), Ok(vec![80, 443, 8080]));
        assert_eq!(ports(""), Err("query parameter \"port\" is required".to_owned()));
        assert_eq!(ports("port=0"), Err("port \"0\" must be > 0".to_owned()));
        assert_eq!(ports("port=70000"), Err("unable to parse \"70000\" as a port".to_owned()));
    }
}

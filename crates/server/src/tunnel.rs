//! Connections to what a request is passed on to, and what becomes of them when both sides switch protocols: they are copied byte for
//! byte, whatever the protocol.
//!
//! Source: apimachinery `pkg/util/proxy/upgradeaware.go`.

use std::fmt::Display;

use api::status::Status;
use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use hyper::body::{Body as HttpBody, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

use crate::hooks::Stream;
use crate::http::exchange::Exchange;
use crate::http::reply::{self, Body};

/// Whether a request asks to switch protocols.
pub(crate) fn asks_upgrade(headers: &HeaderMap) -> bool {
    let mut options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    options.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade")))
        && headers.contains_key(UPGRADE)
}

impl Exchange<'_> {
    /// Speaks HTTP/1.1 over a fresh connection to `peer`, which ends with the server.
    pub(crate) async fn speak<B>(&self, stream: Box<dyn Stream>, peer: impl Display) -> hyper::Result<SendRequest<B>>
    where
        B: HttpBody<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.go_on(format!("the connection to {peer}"), connection.with_upgrades());
        Ok(sender)
    }

    /// When the other side switches protocols: its answer, after which both ways are copied.
    ///
    /// # Errors
    /// When it does so unasked.
    pub(crate) fn switched(
        &self,
        answer: &mut Response<Incoming>,
        client: OnUpgrade,
    ) -> Result<Option<Response<Body>>, Status> {
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(None);
        }
        if !asks_upgrade(&self.parts.headers) {
            return Err(Status::internal("the other side switched protocols without being asked to"));
        }
        let mut response = Response::new(reply::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        self.go_on("a tunnel".to_owned(), copy(client, hyper::upgrade::on(answer)));
        Ok(Some(response))
    }

    /// Goes on with it beside the request until it ends, or the server does.
    fn go_on<E: Display>(&self, what: String, work: impl Future<Output = Result<(), E>> + Send + 'static) {
        let shutdown = self.server.shutdown.clone();
        self.server.tunnels.spawn(async move {
            tokio::select! {
                ended = work => if let Err(error) = ended {
                    debug!(%error, "{what} ended");
                },
                () = shutdown.cancelled() => {}
            }
        });
    }
}

/// Copies both ways until both sides have closed, so that a side that has said all can still listen.
async fn copy(client: OnUpgrade, server: OnUpgrade) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (client, server) = tokio::try_join!(client, server)?;
    tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await?;
    Ok(())
}

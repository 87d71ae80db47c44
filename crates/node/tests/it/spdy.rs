//! A client that speaks plain SPDY/3.1, as kubectl did before 1.31.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::spdy::{Event, Session, Side};

use crate::bed::Bed;
use crate::endpoint::{allow_all, connect};

pub async fn upgrade(bed: &Bed, request: http::request::Builder) -> (Response<()>, Option<TokioIo<Upgraded>>) {
    let stream = TokioIo::new(connect(bed, Arc::new(allow_all)));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = request.header("host", "node").body(Empty::<Bytes>::new()).unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    let upgraded = match response.status().as_u16() {
        101 => Some(TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap())),
        _ => None,
    };
    (response.map(drop), upgraded)
}

/// An old client.
pub struct Client {
    transport: TokioIo<Upgraded>,
    pub session: Session,
}

impl Client {
    pub async fn start(bed: &Bed, path: &str, protocol: &str) -> Self {
        let request = Request::post(path).header("connection", "Upgrade");
        let request = request.header("upgrade", "SPDY/3.1").header("x-stream-protocol-version", protocol);
        let (response, transport) = upgrade(bed, request).await;
        assert_eq!(response.headers()["x-stream-protocol-version"], protocol);
        Self { transport: transport.unwrap(), session: Session::new(Side::Client) }
    }

    pub fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.session.open(&headers).unwrap()
    }

    async fn flush(&mut self) {
        self.transport.write_all(&self.session.output()).await.unwrap();
    }

    /// What comes until `last` says that it was the last, without acceptances.
    pub async fn hear(&mut self, last: impl Fn(&Event) -> bool) -> Vec<Event> {
        self.flush().await;
        let mut events = Vec::new();
        loop {
            while let Some(event) = self.session.poll().unwrap() {
                let done = last(&event);
                if !matches!(event, Event::Accepted { .. }) {
                    events.push(event);
                }
                if done {
                    return events;
                }
            }
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(Duration::from_secs(30), self.transport.read(&mut buffer)).await;
            let count = read.expect("an answer in time").unwrap();
            assert!(count > 0, "the node left after {events:?}");
            self.session.receive(&buffer[..count]);
        }
    }
}

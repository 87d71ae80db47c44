//! Applications behind the edge.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

pub struct Application {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    accepting: AbortHandle,
}

impl Application {
    /// Answers every request with what `answer` makes of it.
    pub async fn start<A, F>(answer: A) -> Self
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counted, opened) = (requests.clone(), connections.clone());
        let accepting = tokio::spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::Relaxed);
                let (answer, counted) = (answer.clone(), counted.clone());
                let service = service_fn(move |request| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                serving.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, requests, connections, accepting: accepting.abort_handle() }
    }

    /// Says its name.
    pub async fn named(name: &'static str) -> Self {
        Self::start(move |_| async move { Response::new(Full::from(name)) }).await
    }

    /// Answers with the request's line, headers and body.
    pub async fn echo() -> Self {
        Self::start(|request| async move {
            let mut text = format!("{} {}\n", request.method(), request.uri());
            for (name, value) in request.headers() {
                text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            text.push_str(&format!("\n{}", String::from_utf8_lossy(&body)));
            Response::new(Full::from(text))
        })
        .await
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Reads the head of a request.
pub async fn hear(stream: &mut (impl AsyncRead + Unpin)) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

//! Connections from the API server to nodes' own APIs, both sides with certificates of the cluster.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use rustls::pki_types::ServerName;
use server::hooks::{NodeAddress, NodeDialer, Stream};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Dials over TLS. The certificate must be for the address that was dialled: no node can pose as another.
pub struct TlsDialer(pub Arc<rustls::ClientConfig>);

impl NodeDialer for TlsDialer {
    fn dial<'a>(&'a self, node: &'a NodeAddress) -> server::identity::BoxFuture<'a, Result<Box<dyn Stream>, Status>> {
        Box::pin(async move {
            let failed = |why: String| {
                let NodeAddress { node, host, port } = node;
                Status::unavailable(format!("node {node:?} did not answer at {host}:{port}: {why}"))
            };
            let ip: IpAddr = node.host.parse().map_err(|_| failed("its address is not an IP address".to_owned()))?;
            let connected = timeout(PATIENCE, TcpStream::connect((ip, node.port))).await;
            let stream =
                connected.map_err(|_| failed("timed out".to_owned()))?.map_err(|error| failed(error.to_string()))?;
            stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
            let handshake = TlsConnector::from(self.0.clone()).connect(ServerName::from(ip), stream);
            let stream = timeout(PATIENCE, handshake).await.map_err(|_| failed("timed out".to_owned()))?;
            Ok(Box::new(stream.map_err(|error| failed(error.to_string()))?) as Box<dyn Stream>)
        })
    }
}

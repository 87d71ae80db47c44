//! Registries behind TLS: authorities of one's own, client certificates, and the switch that trusts anyone.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use image::pull::NoProgress;
use image::reference::Reference;
use image::registries::Registries;
use image::store::ImageStore;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, small, unpacker};

/// A registry whose only door is TLS, for clients that show a certificate of the same authority.
struct Tls {
    fixture: Fixture,
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

async fn start() -> Tls {
    let fixture = Fixture::new();
    fixture.registry.add("app", "1", &small("over tls"));
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        (certificate, key)
    };
    let (server, server_key) = issue("127.0.0.1");
    let (client, client_key) = issue("client");
    for (name, text) in
        [("ca.pem", authority.pem()), ("client.pem", client.pem()), ("client.key", client_key.serialize_pem())]
    {
        std::fs::write(fixture.dir.join(name), text).unwrap();
    }
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![server.der().clone()], server_key.serialize_der().try_into().unwrap())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, behind) = (listener.local_addr().unwrap(), fixture.registry.address());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut registry = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut registry).await;
            });
        }
    });
    Tls { fixture, address, _tasks: tasks }
}

/// Pulls with this `tls` section and shows the error's end.
async fn pull(tls: &Tls, section: &str) -> Result<(), String> {
    let dir = |name: &str| Path::new(&tls.fixture.dir).join(name).display().to_string();
    let section =
        section.replace("CA", &dir("ca.pem")).replace("CERT", &dir("client.pem")).replace("KEY", &dir("client.key"));
    let own = tls.address;
    let yaml = format!(
        "mirrors: {{\"{own}\": {{endpoint: [\"https://{own}\"]}}}}\nconfigs: {{\"{own}\": {{tls: {section}}}}}"
    );
    let store = ImageStore::open(dir("store").as_ref(), Registries::parse(&yaml).unwrap(), unpacker()).unwrap();
    let reference = Reference::parse(&format!("{own}/app:1")).unwrap();
    store.pull(&reference, &[], &NoProgress).await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn an_authority_of_ones_own_and_a_client_certificate() {
    let tls = start().await;
    let error = pull(&tls, "{cert_file: CERT, key_file: KEY}").await.unwrap_err();
    assert!(error.contains("invalid peer certificate: UnknownIssuer"), "{error}");
    let error = pull(&tls, "{ca_file: CA}").await.unwrap_err();
    assert!(error.contains("certificate required") || error.contains("CertificateRequired"), "{error}");
    let error = pull(&tls, "{ca_file: /nowhere/ca.pem}").await.unwrap_err();
    assert!(error.contains("/nowhere/ca.pem: "), "{error}");
    pull(&tls, "{ca_file: CA, cert_file: CERT, key_file: KEY}").await.unwrap();
}

#[tokio::test]
async fn verification_can_be_switched_off() {
    let tls = start().await;
    pull(&tls, "{insecure_skip_verify: true, cert_file: CERT, key_file: KEY}").await.unwrap();
}

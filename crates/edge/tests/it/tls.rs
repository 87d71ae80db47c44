//! HTTPS: which certificate, which protocol.

use http::StatusCode;
use rustls::pki_types::CertificateDer;
use wire::edge::Options;

use crate::application::{Application, hear};
use crate::bed::{Edge, Rules};
use crate::browser::{request, send_tls, tls};

/// A certificate that is its own authority.
pub struct Issued {
    pub authority: CertificateDer<'static>,
    pub chain: String,
    pub key: String,
}

pub fn issue(name: &str) -> Issued {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    Issued { authority: cert.der().clone(), chain: cert.pem(), key: signing_key.serialize_pem() }
}

#[tokio::test]
async fn sni_picks_the_certificate() {
    let app = Application::named("app").await;
    let (exact, wild, default) = (issue("a.example.org"), issue("*.example.org"), issue("localhost"));
    let rules = Rules::new()
        .host("", &[app.address])
        .certificate(&["a.example.org"], &exact.chain, &exact.key)
        .certificate(&["*.example.org"], &wild.chain, &wild.key)
        .certificate(&[], &default.chain, &default.key);
    let edge = Edge::serving(rules.table());
    for (name, issued) in [("a.example.org", &exact), ("b.example.org", &wild), ("localhost", &default)] {
        tls(edge.https, name, std::slice::from_ref(&issued.authority), "h2").await.unwrap();
    }
    // The default is for other names; that it does not fit is for the client to say.
    assert!(tls(edge.https, "x.b.example.org", &[default.authority, wild.authority], "h2").await.is_err());
}

#[tokio::test]
async fn both_versions_of_http_are_spoken() {
    let echo = Application::echo().await;
    let issued = issue("site.example.org");
    let rules = Rules::new().host("site.example.org", &[echo.address]).certificate(
        &["site.example.org"],
        &issued.chain,
        &issued.key,
    );
    let edge = Edge::serving(rules.table());
    for alpn in ["h2", "http/1.1"] {
        let stream = tls(edge.https, "site.example.org", std::slice::from_ref(&issued.authority), alpn).await.unwrap();
        let answer = send_tls(stream, request("POST", "site.example.org", "/a?b", "hello")).await;
        assert_eq!(answer.status, StatusCode::OK, "{alpn}");
        assert!(
            answer.body.starts_with("POST /a?b\n") && answer.body.ends_with("\n\nhello"),
            "{alpn}: {}",
            answer.body
        );
        for line in ["host: site.example.org", "x-forwarded-proto: https", "content-length: 5"] {
            assert!(answer.body.lines().any(|found| found == line), "{alpn}: {line} in {}", answer.body);
        }
        assert_eq!(answer.header("strict-transport-security"), "max-age=31536000; includeSubDomains", "{alpn}");
    }
}

#[tokio::test]
async fn https_is_not_redirected() {
    let app = Application::named("app").await;
    let issued = issue("x.example.org");
    let options = Options { redirect_to_https: true, ..Options::default() };
    let rules = Rules::new().host_with("x.example.org", &[app.address], options);
    let edge = Edge::serving(rules.certificate(&["x.example.org"], &issued.chain, &issued.key).table());
    let stream = tls(edge.https, "x.example.org", &[issued.authority], "h2").await.unwrap();
    assert_eq!(send_tls(stream, request("GET", "x.example.org", "/", "")).await.body, "app");
}

#[tokio::test]
async fn a_bad_certificate_is_named_and_harms_no_other() {
    let app = Application::named("app").await;
    let good = issue("good.example.org");
    let other = issue("other.example.org");
    let rules = Rules::new()
        .host("", &[app.address])
        .certificate(&["bad.example.org"], "no PEM", "no PEM")
        .certificate(&["mixed.example.org"], &good.chain, &other.key)
        .certificate(&["good.example.org"], &good.chain, &good.key);
    let mut edge = Edge::start();
    let problems = edge.main.use_table(rules.table());
    assert_eq!(problems.iter().map(|problem| problem.certificate).collect::<Vec<_>>(), [0, 1]);
    tls(edge.https, "good.example.org", std::slice::from_ref(&good.authority), "h2").await.unwrap();
    assert!(tls(edge.https, "bad.example.org", &[good.authority], "h2").await.is_err());
}

#[tokio::test]
async fn applications_may_speak_tls() {
    use tokio::io::AsyncWriteExt;
    let issued = issue("whatever");
    let key = rustls::pki_types::pem::PemObject::from_pem_slice(issued.key.as_bytes()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.authority], key)
            .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        hear(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret").await.unwrap();
        std::future::pending::<()>().await;
    });
    let options = Options { upstream_tls: true, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[address], options).table());
    assert_eq!(crate::browser::get(edge.http, "x", "/").await.body, "secret");
}

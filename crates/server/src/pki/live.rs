//! Certificates that can be replaced under running connections.

use std::sync::{Arc, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{Error, Leaf};

/// The certificate that new handshakes get. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Live(Arc<RwLock<Arc<CertifiedKey>>>);

impl Live {
    /// # Errors
    /// When the leaf's PEM is not a certificate and a key that TLS can use.
    pub fn new(leaf: &Leaf) -> Result<Self, Error> {
        Ok(Self(Arc::new(RwLock::new(certified(leaf)?))))
    }

    /// # Errors
    /// As [`Live::new`]; the certificate before stays.
    pub fn replace(&self, leaf: &Leaf) -> Result<(), Error> {
        let key = certified(leaf)?;
        *self.0.write().expect("no holder of this lock can panic") = key;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().expect("no holder of this lock can panic").clone()
    }
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Live")
    }
}

impl ResolvesServerCert for Live {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Live {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(leaf: &Leaf) -> Result<Arc<CertifiedKey>, Error> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(leaf.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Parse)?;
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).map_err(|_| Error::Parse)?;
    let signer = rustls::crypto::ring::sign::any_ecdsa_type(&key)?;
    Ok(Arc::new(CertifiedKey::new(chain, signer)))
}

/// The trust store that holds the authority alone.
///
/// # Errors
/// [`Error::Parse`] when `authority` is not a certificate in PEM.
pub fn roots(authority: &str) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|_| Error::Parse)?)?;
    Ok(Arc::new(roots))
}

/// TLS for a server that asks for client certificates of the authority and takes connections without one.
///
/// # Errors
/// When the authority's certificate cannot be used.
pub fn server_config(live: Live, authority: &str, protocols: &[&str]) -> Result<ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|_| Error::Parse)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(live));
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

/// TLS for a client that trusts the authority alone and shows a certificate of its own.
///
/// # Errors
/// When the authority's certificate cannot be used.
pub fn client_config(live: Live, authority: &str, protocols: &[&str]) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(authority)?)
        .with_client_cert_resolver(Arc::new(live));
    config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(config)
}

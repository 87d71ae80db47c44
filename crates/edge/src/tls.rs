//! TLS towards clients, with the certificate that SNI asks for, and towards applications that speak it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use wire::edge::{Certificate, Problem};

use crate::live::Live;

/// Certificates by name.
#[derive(Debug, Default)]
pub struct Certificates {
    by_host: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Takes those that are usable and says what is wrong with the others. The first for a name is the one.
    pub fn new(certificates: &[Certificate]) -> (Self, Vec<Problem>) {
        let mut all = Self::default();
        let mut problems = Vec::new();
        for (index, certificate) in certificates.iter().enumerate() {
            match certified(certificate) {
                Ok(key) if certificate.hosts.is_empty() => {
                    all.default.get_or_insert(key);
                }
                Ok(key) => {
                    for host in &certificate.hosts {
                        all.by_host.entry(host.to_ascii_lowercase()).or_insert_with(|| key.clone());
                    }
                }
                Err(message) => problems.push(Problem { certificate: index, message }),
            }
        }
        (all, problems)
    }

    /// The certificate for exactly this name, or for the wildcard one label above.
    pub fn named(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        let wildcard = || host.split_once('.').and_then(|(_, parent)| self.by_host.get(&format!("*.{parent}")));
        self.by_host.get(host).or_else(wildcard)
    }
}

fn certified(certificate: &Certificate) -> Result<Arc<CertifiedKey>, String> {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("the certificate is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("there is no certificate in it".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
        .map_err(|error| format!("the key is not PEM: {error}"))?;
    let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| error.to_string())?;
    Ok(Arc::new(certified))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Looks the certificate up in the table of the moment.
struct Resolver {
    live: Arc<RwLock<Arc<Live>>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner).clone();
        let named = hello.server_name().and_then(|name| live.certificates.named(&name.to_ascii_lowercase()));
        named.or(live.certificates.default.as_ref()).cloned()
    }
}

/// The configuration for clients, good for every table.
pub fn server_config(live: Arc<RwLock<Arc<Live>>>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver { live }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// The configuration for applications. Their certificates are not verified and SNI is not sent, as ingress-nginx has it
/// (`proxy-ssl-verify`, `proxy-ssl-server-name`: off); the endpoint is known by its address.
pub fn client_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = wire::tls::unverified_client()?;
    config.enable_sni = false;
    Ok(Arc::new(config))
}

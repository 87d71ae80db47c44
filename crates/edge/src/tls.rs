//! TLS towards clients, with the certificate that SNI asks for, and towards applications that speak it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use crate::live::Live;

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
        named.or(live.certificates.fallback()).cloned()
    }
}

/// The configuration for clients, good for every table.
pub fn server_config(live: Arc<RwLock<Arc<Live>>>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
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

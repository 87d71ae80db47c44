//! The certificates of a table, by the names that they are shown for.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use wire::edge::{Certificate, Problem};

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

    /// The one for every other name.
    pub fn fallback(&self) -> Option<&Arc<CertifiedKey>> {
        self.default.as_ref()
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
    let certified = CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(certified))
}

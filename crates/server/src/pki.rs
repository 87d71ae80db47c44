//! The cluster's certificates: one ECDSA authority and short-lived leaves that are renewed while everything runs.
//!
//! The authority is reissued with the same key and name at half of its life, so whoever still holds the older certificate
//! trusts the new leaves too. Upstream's layout of names and groups: kubeadm `cmd/kubeadm/app/phases/certs/certlist.go`.

pub mod keyring;
pub mod live;

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};

const DAY: SignedDuration = SignedDuration::from_hours(24);
/// How long the authority's certificate is valid.
pub const AUTHORITY_LIFE: SignedDuration = SignedDuration::from_hours(24 * 3650);
/// How long certificates last that are renewed without anybody's help.
pub const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(24 * 90);
/// How long certificates last that are handed to people, in a kubeconfig.
pub const USER_LIFE: SignedDuration = SignedDuration::from_hours(24 * 365);
/// Clocks of other machines may be behind.
const BACKDATE: SignedDuration = SignedDuration::from_mins(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("{name:?} is neither a DNS name nor an IP address")]
    Name { name: String },
    #[error("not a certificate")]
    Parse,
    #[error("key does not fit TLS")]
    Tls(#[from] rustls::Error),
    #[error("could not {action} {path:?}")]
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("{path:?} is damaged: {why}; move it away to have a new one made, which every client must then learn")]
    Damaged { path: std::path::PathBuf, why: String },
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Validity {
    /// Reads it from a certificate in PEM.
    ///
    /// # Errors
    /// [`Error::Parse`].
    pub fn of_pem(pem: &str) -> Result<Self, Error> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|_| Error::Parse)?;
        let certificate = pem.parse_x509().map_err(|_| Error::Parse)?;
        let validity = certificate.validity();
        let stamp =
            |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).map_err(|_| Error::Parse);
        Ok(Self { not_before: stamp(validity.not_before)?, not_after: stamp(validity.not_after)? })
    }

    /// The moment at which `fraction` of the certificate's life is over: when to renew it.
    pub fn after(&self, fraction: f64) -> Timestamp {
        self.not_before + self.not_after.duration_since(self.not_before).mul_f64(fraction)
    }
}

/// A certificate with its key, both in PEM.
#[derive(Clone)]
pub struct Leaf {
    pub certificate: String,
    pub key: String,
    pub validity: Validity,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Serves TLS under these DNS names and IP addresses.
    Server { names: Vec<String> },
    /// Authenticates a user; the organisation becomes its group. One only: the encoder takes no second of a kind.
    Client { group: Option<String> },
}

/// A certificate to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The common name: for a client, the user.
    pub name: String,
    pub purpose: Purpose,
    pub life: SignedDuration,
}

/// The cluster's certificate authority.
pub struct Authority {
    key: String,
    certificate: String,
}

impl Authority {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`Error::Make`] when no key can be made.
    pub fn new(now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self { certificate: authority_params(now).self_signed(&key)?.pem(), key: key.serialize_pem() })
    }

    /// Takes one that was kept as PEM.
    ///
    /// # Errors
    /// When either is not what it should be.
    pub fn from_pem(certificate: String, key: String) -> Result<Self, Error> {
        let authority = Self { certificate, key };
        authority.issuer()?;
        Validity::of_pem(&authority.certificate)?;
        Ok(authority)
    }

    /// The same authority with a certificate that is valid from `now`.
    ///
    /// # Errors
    /// [`Error::Make`].
    pub fn reissued(&self, now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::from_pem(&self.key)?;
        Ok(Self { certificate: authority_params(now).self_signed(&key)?.pem(), key: self.key.clone() })
    }

    /// In PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// In PEM. Whoever has it is the cluster's administrator.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Makes a certificate with a new key. It never outlives the authority.
    ///
    /// # Errors
    /// [`Error::Name`] for a server name that cannot be in a certificate.
    pub fn issue(&self, order: &Order, now: Timestamp) -> Result<Leaf, Error> {
        let validity = Validity {
            not_before: now - BACKDATE,
            not_after: (now + order.life).min(Validity::of_pem(&self.certificate)?.not_after),
        };
        let mut params = params(&order.name, validity);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        match &order.purpose {
            Purpose::Server { names } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                params.subject_alt_names = names.iter().map(|name| alternative_name(name)).collect::<Result<_, _>>()?;
            }
            Purpose::Client { group } => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                if let Some(group) = group {
                    params.distinguished_name.push(DnType::OrganizationName, group.as_str());
                }
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer()?)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem(), validity })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Error> {
        Ok(Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?)
    }
}

fn authority_params(now: Timestamp) -> CertificateParams {
    let validity = Validity { not_before: now - DAY, not_after: now + AUTHORITY_LIFE };
    let mut params = params("coracle", validity);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since = |t: Timestamp| Duration::from_secs(u64::try_from(t.as_second()).unwrap_or(0));
    params.not_before = epoch + since(validity.not_before);
    params.not_after = epoch + since(validity.not_after);
    params
}

fn alternative_name(name: &str) -> Result<SanType, Error> {
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(ip));
    }
    let dns = name.try_into().map_err(|_| Error::Name { name: name.to_owned() })?;
    Ok(SanType::DnsName(dns))
}

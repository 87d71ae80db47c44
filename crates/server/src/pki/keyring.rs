//! The key files of a cluster, and which certificates are live.
//!
//! ```text
//! pki/ca.crt ca.key          the authority
//! pki/service-accounts.key   signs service account tokens (PKCS #8)
//! ```
//! Leaves are never written down: they are made anew at each start and long before they end.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::live::Live;
use super::{Authority, Error, LEAF_LIFE, Order, Purpose, Validity};

/// All keys of one cluster.
pub struct Keyring {
    dir: PathBuf,
    pub authority: Authority,
    /// PKCS #8, DER.
    pub service_accounts: Vec<u8>,
}

impl Keyring {
    /// Reads the keys in `dir`, and makes those that are not there.
    ///
    /// # Errors
    /// [`Error::Damaged`] for a file that is there and unusable: nothing is overwritten.
    pub fn open(dir: &Path, now: Timestamp) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| Error::File {
            action: "create",
            path: dir.to_owned(),
            source,
        })?;
        let authority = open_authority(dir, now)?;
        let rng = ring::rand::SystemRandom::new();
        let service_accounts = read_or_make(&dir.join("service-accounts.key"), || {
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &rng);
            key.expect("the system has randomness").as_ref().to_vec()
        })?;
        Ok(Self { dir: dir.to_owned(), authority, service_accounts })
    }

    /// Reissues the authority's certificate when half of its life is over; returns whether it did.
    ///
    /// # Errors
    /// When the new one cannot be made or written; the old one stays.
    pub fn renew_authority(&mut self, now: Timestamp) -> Result<bool, Error> {
        if now < Validity::of_pem(self.authority.certificate())?.after(0.5) {
            return Ok(false);
        }
        let renewed = self.authority.reissued(now)?;
        write(&self.dir.join("ca.crt"), renewed.certificate().as_bytes())?;
        self.authority = renewed;
        Ok(true)
    }
}

fn open_authority(dir: &Path, now: Timestamp) -> Result<Authority, Error> {
    let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
    match (read(&certificate)?, read(&key)?) {
        (Some(c), Some(k)) => {
            let (c, k) = (String::from_utf8_lossy(&c).into_owned(), String::from_utf8_lossy(&k).into_owned());
            Authority::from_pem(c, k).map_err(|error| Error::Damaged { path: certificate, why: error.to_string() })
        }
        (Some(_), None) => Err(Error::Damaged { path: key, why: "it is missing while ca.crt exists".to_owned() }),
        // A key alone is what a start that was cut short leaves behind: the certificate is written last.
        (None, _) => {
            let authority = Authority::new(now)?;
            write(&key, authority.key().as_bytes())?;
            write(&certificate, authority.certificate().as_bytes())?;
            Ok(authority)
        }
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { action: "read", path: path.to_owned(), source }),
    }
}

fn read_or_make(path: &Path, make: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, Error> {
    if let Some(bytes) = read(path)? {
        return Ok(bytes);
    }
    let bytes = make();
    write(path, &bytes)?;
    Ok(bytes)
}

/// Writes a private file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |source| Error::File { action: "write", path: path.to_owned(), source };
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&new).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    let dir = path.parent().expect("key files lie in a directory");
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// A certificate that keeps itself renewed.
pub struct Renewed {
    pub live: Live,
    order: Order,
    validity: Validity,
}

impl Renewed {
    /// # Errors
    /// When the first certificate cannot be made.
    pub fn new(authority: &Authority, name: &str, purpose: Purpose, now: Timestamp) -> Result<Self, Error> {
        let order = Order { name: name.to_owned(), purpose, life: LEAF_LIFE };
        let leaf = authority.issue(&order, now)?;
        Ok(Self { live: Live::new(&leaf)?, order, validity: leaf.validity })
    }

    /// When [`Renewed::renew`] has something to do: after two thirds of the certificate's life.
    pub fn due(&self) -> Timestamp {
        self.validity.after(2.0 / 3.0)
    }

    /// Replaces the certificate if it is time.
    ///
    /// # Errors
    /// When a new one cannot be made; the old one stays.
    pub fn renew(&mut self, authority: &Authority, now: Timestamp) -> Result<(), Error> {
        if now >= self.due() {
            let leaf = authority.issue(&self.order, now)?;
            self.live.replace(&leaf)?;
            self.validity = leaf.validity;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::SignedDuration;
    use rustls::time_provider::TimeProvider;
    use rustls_pki_types::UnixTime;

    use super::super::live::{client_config, roots, server_config};
    use super::*;

    #[derive(Debug)]
    struct At(Timestamp);

    impl TimeProvider for At {
        fn current_time(&self) -> Option<UnixTime> {
            let seconds = u64::try_from(self.0.as_second()).expect("after 1970");
            Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)))
        }
    }

    /// A whole TLS handshake in memory at a given time, both sides verifying.
    fn handshake(
        server: &Live,
        client: &Live,
        authority: &str,
        trusted: &str,
        now: Timestamp,
    ) -> Result<(), rustls::Error> {
        let mut server_side = server_config(server.clone(), authority, &[]).expect("config");
        server_side.time_provider = Arc::new(At(now));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client_side = rustls::ClientConfig::builder_with_details(provider, Arc::new(At(now)))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(trusted).expect("roots"))
            .with_client_cert_resolver(Arc::new(client.clone()));
        drop(client_config(client.clone(), trusted, &[]).expect("config"));
        let name = "10.96.0.1".try_into().expect("name");
        let mut c = rustls::ClientConnection::new(Arc::new(client_side), name)?;
        let mut s = rustls::ServerConnection::new(Arc::new(server_side))?;
        let mut wire = Vec::new();
        while c.is_handshaking() || s.is_handshaking() {
            c.write_tls(&mut wire).expect("memory");
            s.read_tls(&mut wire.as_slice()).expect("memory");
            wire.clear();
            s.process_new_packets()?;
            s.write_tls(&mut wire).expect("memory");
            c.read_tls(&mut wire.as_slice()).expect("memory");
            wire.clear();
            c.process_new_packets()?;
        }
        assert!(s.peer_certificates().is_some(), "the client showed its certificate");
        Ok(())
    }

    fn cluster() -> (tempdir::Dir, Keyring, Renewed, Renewed, Timestamp) {
        let dir = tempdir::Dir::new();
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().expect("time");
        let keys = Keyring::open(&dir.0, now).expect("keys");
        let names = vec!["kubernetes".to_owned(), "10.96.0.1".to_owned()];
        let server = Renewed::new(&keys.authority, "kube-apiserver", Purpose::Server { names }, now).expect("server");
        let group = Some("system:nodes".to_owned());
        let client = Renewed::new(&keys.authority, "system:node:a", Purpose::Client { group }, now).expect("client");
        (dir, keys, server, client, now)
    }

    #[test]
    fn ten_years_pass_without_a_failed_handshake_or_a_restart() {
        let (_dir, mut keys, mut server, mut client, mut now) = cluster();
        let end = now + SignedDuration::from_hours(24 * 3660);
        let mut trusted = keys.authority.certificate().to_owned();
        let mut reissued = 0;
        while now < end {
            now += SignedDuration::from_hours(6);
            if keys.renew_authority(now).expect("renewal") {
                reissued += 1;
            }
            server.renew(&keys.authority, now).expect("renewal");
            client.renew(&keys.authority, now).expect("renewal");
            // A client that read the authority's certificate before it was reissued goes on for a year without noticing.
            if now.as_second() % (365 * 86400) < 6 * 3600 {
                trusted = keys.authority.certificate().to_owned();
            }
            if now.as_second() % (10 * 86400) < 6 * 3600 {
                handshake(&server.live, &client.live, keys.authority.certificate(), &trusted, now).expect("handshake");
            }
        }
        assert_eq!(reissued, 2);
    }

    #[test]
    fn a_certificate_left_alone_is_refused_after_its_life() {
        let (_dir, keys, server, client, now) = cluster();
        let ca = keys.authority.certificate();
        handshake(&server.live, &client.live, ca, ca, now).expect("valid now");
        let late = now + SignedDuration::from_hours(24 * 91);
        assert!(handshake(&server.live, &client.live, ca, ca, late).is_err());
    }

    #[test]
    fn keys_are_kept_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, keys, ..) = cluster();
        let again = Keyring::open(&dir.0, "2027-01-01T00:00:00Z".parse().expect("time")).expect("keys");
        assert_eq!(keys.authority.certificate(), again.authority.certificate());
        assert_eq!(keys.service_accounts, again.service_accounts);
        for file in ["ca.key", "ca.crt", "service-accounts.key"] {
            let mode = fs::metadata(dir.0.join(file)).expect("file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_damaged_key_is_named_and_left_alone() {
        let (dir, ..) = cluster();
        fs::write(dir.0.join("ca.crt"), "rubbish").expect("write");
        let error = Keyring::open(&dir.0, Timestamp::now()).err().expect("refused").to_string();
        assert!(error.contains("ca.crt"), "{error}");
        assert_eq!(fs::read(dir.0.join("ca.crt")).expect("read"), b"rubbish");
    }

    /// A directory that goes away with the test.
    mod tempdir {
        use std::path::PathBuf;
        use std::sync::atomic::{AtomicU32, Ordering};

        pub struct Dir(pub PathBuf);

        impl Dir {
            pub fn new() -> Self {
                static NEXT: AtomicU32 = AtomicU32::new(0);
                let n = NEXT.fetch_add(1, Ordering::Relaxed);
                Self(std::env::temp_dir().join(format!("coracle-keyring-{}-{n}", std::process::id())))
            }
        }

        impl Drop for Dir {
            fn drop(&mut self) {
                // Nothing can be done about a directory that will not go.
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }
}

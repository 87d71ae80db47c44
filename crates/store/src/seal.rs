//! Encryption at rest of Secrets: AES-256-GCM with the object's key as associated data.
//!
//! Every sealed value names the key it was sealed with, so that keys can be rotated: put a new one first in the file, and take
//! the old one out once a checkpoint has been written with the new. Kubernetes' own form of this is
//! `staging/src/k8s.io/apiserver/pkg/storage/value/encrypt/aes`; it is off by default there.

use std::fmt;
use std::io;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;
use ring::rand::SecureRandom;

use crate::vfs::{Vfs, parent, read_full_at, write_all_at};

const KEY_LEN: usize = 32;
const ID_LEN: usize = 8;

/// A source of random bytes fit for nonces and keys.
pub trait Rng: Send + Sync + 'static {
    /// # Errors
    /// When the source has none to give.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()>;
}

/// The operating system's random bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemRng;

impl Rng for SystemRng {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        let source = ring::rand::SystemRandom::new();
        source.fill(bytes).map_err(|_| io::Error::other("the operating system gave no random bytes"))
    }
}

/// What a key is known by: the beginning of a digest over it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub(crate) [u8; ID_LEN]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct SealingKey {
    id: KeyId,
    key: LessSafeKey,
}

impl SealingKey {
    fn new(bytes: &[u8; KEY_LEN]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"coracle sealing key id\0");
        context.update(bytes);
        let mut id = [0; ID_LEN];
        id.copy_from_slice(&context.finish().as_ref()[..ID_LEN]);
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("the length is the algorithm's");
        Self { id: KeyId(id), key: LessSafeKey::new(key) }
    }
}

/// The keys that Secrets are sealed with: the first seals, all of them open.
pub struct Keyring {
    current: SealingKey,
    older: Vec<SealingKey>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entry(&self.current.id).entries(self.older.iter().map(|key| key.id)).finish()
    }
}

/// Why a key file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("could not read or create the key file {path:?}")]
    Io { path: String, source: io::Error },
    #[error("line {line} of a key file is not 64 hexadecimal digits")]
    Line { line: usize },
    #[error("a key file holds no key; it needs a line of 64 hexadecimal digits")]
    Empty,
}

/// Why a sealed value did not open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    UnknownKey(KeyId),
    Damaged,
}

impl Keyring {
    /// Takes a key file's text: one key of 64 hexadecimal digits a line, the sealing one first; `#` begins a comment.
    ///
    /// # Errors
    /// Names the line that is not a key.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keys = Vec::new();
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                keys.push(SealingKey::new(&parse_hex(line).ok_or(KeyringError::Line { line: n + 1 })?));
            }
        }
        if keys.is_empty() {
            return Err(KeyringError::Empty);
        }
        let older = keys.split_off(1);
        Ok(Self { current: keys.remove(0), older })
    }

    /// The text of a key file with one new key.
    ///
    /// # Errors
    /// When there are no random bytes.
    pub fn generate(rng: &dyn Rng) -> io::Result<String> {
        let mut bytes = [0; KEY_LEN];
        rng.fill(&mut bytes)?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n")
    }

    /// Reads the key file; when there is none, creates it with a new key, durably before anything can be sealed with it.
    ///
    /// # Errors
    /// When the file can neither be read nor created, or holds something else.
    pub fn load_or_create(vfs: &dyn Vfs, path: &Path, rng: &dyn Rng) -> Result<Self, KeyringError> {
        let io = |source| KeyringError::Io { path: path.display().to_string(), source };
        let text = match read_text(vfs, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create_text(vfs, path, rng),
            read => read,
        };
        Self::parse(&text.map_err(io)?)
    }

    pub(crate) fn current(&self) -> KeyId {
        self.current.id
    }

    pub(crate) fn holds(&self, id: KeyId) -> bool {
        self.find(id).is_some()
    }

    fn find(&self, id: KeyId) -> Option<&SealingKey> {
        std::iter::once(&self.current).chain(&self.older).find(|key| key.id == id)
    }

    /// Appends key id, nonce, ciphertext and tag to `out`.
    pub(crate) fn seal(&self, rng: &dyn Rng, name: &str, plain: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill(&mut nonce)?;
        out.extend_from_slice(&self.current.id.0);
        out.extend_from_slice(&nonce);
        let start = out.len();
        out.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from(name.as_bytes());
        let tag = self.current.key.seal_in_place_separate_tag(nonce, aad, &mut out[start..]);
        let tag = tag.map_err(|_| io::Error::other("the value is too large to be sealed"))?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }

    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, Unopened> {
        let (id, rest) = sealed.split_first_chunk::<ID_LEN>().ok_or(Unopened::Damaged)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(Unopened::Damaged)?;
        let key = self.find(KeyId(*id)).ok_or(Unopened::UnknownKey(KeyId(*id)))?;
        let mut plain = rest.to_vec();
        let aad = Aad::from(name.as_bytes());
        let len = match key.key.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut plain) {
            Ok(opened) => opened.len(),
            Err(_) => return Err(Unopened::Damaged),
        };
        plain.truncate(len);
        Ok(plain)
    }
}

fn parse_hex(text: &str) -> Option<[u8; KEY_LEN]> {
    let digits = text.as_bytes();
    let mut bytes = [0; KEY_LEN];
    if digits.len() != 2 * KEY_LEN {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

fn read_text(vfs: &dyn Vfs, path: &Path) -> io::Result<String> {
    /// More than any sensible number of keys.
    const MAX: usize = 64 << 10;
    let file = vfs.open(path)?;
    let mut bytes = vec![0; MAX];
    let len = read_full_at(&*file, &mut bytes, 0)?;
    bytes.truncate(len);
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text"))
}

fn create_text(vfs: &dyn Vfs, path: &Path, rng: &dyn Rng) -> io::Result<String> {
    let text = Keyring::generate(rng)?;
    let dir = parent(path);
    let unfinished = path.with_extension("tmp");
    vfs.create_dir(dir)?;
    match vfs.remove(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let file = vfs.create(&unfinished)?;
    write_all_at(&*file, text.as_bytes(), 0)?;
    file.sync()?;
    vfs.rename(&unfinished, path)?;
    vfs.sync_dir(dir)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0000000000000000000000000000000000000000000000000000000000000001";
    const NEW: &str = "0000000000000000000000000000000000000000000000000000000000000002";

    fn ring(text: &str) -> Keyring {
        Keyring::parse(text).unwrap()
    }

    fn sealed(ring: &Keyring, name: &str) -> Vec<u8> {
        let mut out = Vec::new();
        ring.seal(&SystemRng, name, b"hunter2", &mut out).unwrap();
        out
    }

    #[test]
    fn what_was_sealed_before_a_rotation_opens_after_it() {
        let value = sealed(&ring(OLD), "/core/secrets/a/b");
        let rotated = ring(&format!("# new\n{NEW}\n{OLD} # until the next checkpoint\n"));
        assert_eq!(rotated.open("/core/secrets/a/b", &value).unwrap(), b"hunter2");
    }

    #[test]
    fn a_key_that_is_missing_is_named() {
        let value = sealed(&ring(OLD), "/core/secrets/a/b");
        let missing = ring(NEW).open("/core/secrets/a/b", &value).unwrap_err();
        assert_eq!(missing, Unopened::UnknownKey(ring(OLD).current()));
    }

    #[test]
    fn a_value_moved_to_another_object_does_not_open() {
        let value = sealed(&ring(OLD), "/core/secrets/a/b");
        assert_eq!(ring(OLD).open("/core/secrets/a/c", &value).unwrap_err(), Unopened::Damaged);
    }

    #[test]
    fn no_flipped_byte_and_no_shorter_value_opens() {
        let ring = ring(OLD);
        let value = sealed(&ring, "/core/secrets/a/b");
        for at in 0..value.len() {
            let mut bad = value.clone();
            bad[at] ^= 1;
            assert!(ring.open("/core/secrets/a/b", &bad).is_err());
            assert!(ring.open("/core/secrets/a/b", &value[..at]).is_err());
        }
    }

    #[test]
    fn a_line_that_is_no_key_is_named() {
        assert_eq!(
            Keyring::parse("\nabc").unwrap_err().to_string(),
            "line 2 of a key file is not 64 hexadecimal digits"
        );
        assert!(matches!(Keyring::parse("# nothing\n"), Err(KeyringError::Empty)));
    }
}

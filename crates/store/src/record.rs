//! What frames carry: groups of transactions in the log, runs of objects in a checkpoint.
//!
//! Integers are little endian. A log frame is `kind reserved count commit…`, a commit `revision count op…`, an op
//! `tag key [schema body]`. Bodies of Secrets are sealed. Only what changed is written: the history that a restart needs for
//! watches is worked out again from the state before.

use std::sync::Arc;

use api::key::Key;
use api::object::{Change, Draft, Object};
use bytes::Bytes;

use crate::Op;
use crate::seal::{KeyId, Keyring, Rng, Unopened};
use crate::state::Commit;

/// Values under this prefix are sealed.
const SECRETS: &str = "/core/secrets/";

const GROUP: u8 = 1;
const CLOSE: u8 = 2;
const OBJECTS: u8 = 3;
const TOTAL: u8 = 4;

const DELETE: u8 = 0;
const PUT: u8 = 1;
const PUT_SEALED: u8 = 2;

/// Encodes records; holds what sealing needs.
#[derive(Clone)]
pub(crate) struct Encoder {
    pub keys: Arc<Keyring>,
    pub rng: Arc<dyn Rng>,
}

impl Encoder {
    /// Appends a group of commits, after which revisions up to `reserved` may be issued without another one.
    pub fn group<'a>(
        &self,
        reserved: u64,
        commits: impl ExactSizeIterator<Item = &'a Commit>,
        out: &mut Vec<u8>,
    ) -> std::io::Result<()> {
        out.push(GROUP);
        out.extend_from_slice(&reserved.to_le_bytes());
        put_len(commits.len(), out);
        for commit in commits {
            out.extend_from_slice(&commit.revision.to_le_bytes());
            put_len(commit.changes.len(), out);
            for change in commit.changes.iter() {
                match change {
                    Change::Added(object) | Change::Modified { new: object, .. } => self.put(object.draft(), out)?,
                    Change::Deleted { last, .. } => {
                        out.push(DELETE);
                        put_bytes(last.key().as_str().as_bytes(), out);
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends the record that nothing was issued after the commits so far.
    pub fn close(&self, revision: u64, out: &mut Vec<u8>) {
        out.push(CLOSE);
        out.extend_from_slice(&revision.to_le_bytes());
    }

    /// Begins a run of a checkpoint's objects, to which [`Encoder::object`] appends.
    pub fn objects(&self, out: &mut Vec<u8>) {
        out.push(OBJECTS);
    }

    pub fn object(&self, object: &Object, out: &mut Vec<u8>) -> std::io::Result<()> {
        out.extend_from_slice(&object.revision.to_le_bytes());
        self.put(object.draft(), out)
    }

    /// Appends the record that completes a checkpoint.
    pub fn total(&self, objects: u64, out: &mut Vec<u8>) {
        out.push(TOTAL);
        out.extend_from_slice(&objects.to_le_bytes());
    }

    fn put(&self, draft: &Draft, out: &mut Vec<u8>) -> std::io::Result<()> {
        let key = draft.key.as_str();
        let sealed = key.starts_with(SECRETS);
        out.push(if sealed { PUT_SEALED } else { PUT });
        put_bytes(key.as_bytes(), out);
        out.extend_from_slice(&draft.schema.to_le_bytes());
        if !sealed {
            put_bytes(draft.body(), out);
            return Ok(());
        }
        let start = out.len();
        put_len(0, out);
        self.keys.seal(&*self.rng, key, draft.body(), out)?;
        let len = u32::try_from(out.len() - start - 4).expect("bodies are bounded far below 4 GiB");
        out[start..start + 4].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }
}

fn put_len(len: usize, out: &mut Vec<u8>) {
    let len = u32::try_from(len).expect("requests are bounded far below 4 GiB");
    out.extend_from_slice(&len.to_le_bytes());
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_len(bytes.len(), out);
    out.extend_from_slice(bytes);
}

/// Why an intact frame's payload was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadRecord {
    UnknownKey(KeyId),
    Damaged(&'static str),
}

/// A log frame's payload.
#[derive(Debug)]
pub(crate) enum Entry {
    Group { reserved: u64, commits: Vec<(u64, Vec<Op>)> },
    Close { revision: u64 },
}

/// A checkpoint frame's payload.
#[derive(Debug)]
pub(crate) enum Run {
    Objects(Vec<Arc<Object>>),
    Total(u64),
}

pub(crate) fn decode_entry(payload: &[u8], keys: &Keyring) -> Result<Entry, BadRecord> {
    let mut reader = Reader { rest: payload, keys };
    let entry = match reader.u8()? {
        GROUP => {
            let reserved = reader.u64()?;
            let commits = (0..reader.u32()?).map(|_| reader.commit()).collect::<Result<_, _>>()?;
            Entry::Group { reserved, commits }
        }
        CLOSE => Entry::Close { revision: reader.u64()? },
        _ => return Err(BadRecord::Damaged("the record is of no known kind")),
    };
    reader.end(entry)
}

pub(crate) fn decode_run(payload: &[u8], keys: &Keyring) -> Result<Run, BadRecord> {
    let mut reader = Reader { rest: payload, keys };
    let run = match reader.u8()? {
        OBJECTS => {
            let mut objects = Vec::new();
            while !reader.rest.is_empty() {
                let revision = reader.u64()?;
                let tag = reader.u8()?;
                objects.push(reader.draft(tag)?.commit(revision));
            }
            Run::Objects(objects)
        }
        TOTAL => Run::Total(reader.u64()?),
        _ => return Err(BadRecord::Damaged("the record is of no known kind")),
    };
    reader.end(run)
}

/// Decodes on all cores: parsing metadata is what a restart of a large store spends its time on.
pub(crate) fn decode_all<T: Send>(payloads: &[&[u8]], decode: impl Fn(&[u8]) -> T + Sync) -> Vec<T> {
    /// Less is not worth a thread.
    const SHARED: usize = 64 << 10;
    let is_small = payloads.iter().map(|payload| payload.len()).sum::<usize>() < SHARED;
    let cores = if is_small { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let decode = |payloads: &[&[u8]]| payloads.iter().map(|payload| decode(payload)).collect::<Vec<_>>();
    let mut shares = payloads.chunks(payloads.len().div_ceil(cores).max(1));
    let first = shares.next().unwrap_or_default();
    std::thread::scope(|scope| {
        let others: Vec<_> = shares.map(|share| scope.spawn(|| decode(share))).collect();
        let mut decoded = decode(first);
        for other in others {
            decoded.extend(other.join().expect("decoding does not panic"));
        }
        decoded
    })
}

struct Reader<'a> {
    rest: &'a [u8],
    keys: &'a Keyring,
}

impl<'a> Reader<'a> {
    fn commit(&mut self) -> Result<(u64, Vec<Op>), BadRecord> {
        let revision = self.u64()?;
        let ops = (0..self.u32()?).map(|_| self.op()).collect::<Result<_, _>>()?;
        Ok((revision, ops))
    }

    fn op(&mut self) -> Result<Op, BadRecord> {
        match self.u8()? {
            DELETE => Ok(Op::Delete(self.key()?)),
            tag => Ok(Op::Put(self.draft(tag)?)),
        }
    }

    fn draft(&mut self, tag: u8) -> Result<Draft, BadRecord> {
        let key = self.key()?;
        let schema = u16::from_le_bytes(*self.array()?);
        let body = self.bytes()?;
        // A copy of its own: the file's buffer must not live as long as the last object in it.
        let body = match tag {
            PUT => Bytes::copy_from_slice(body),
            PUT_SEALED => self.keys.open(key.as_str(), body).map_err(BadRecord::from)?.into(),
            _ => return Err(BadRecord::Damaged("the operation is of no known kind")),
        };
        Draft::from_bytes(key, schema, body).map_err(|_| BadRecord::Damaged("the record does not hold an object"))
    }

    fn key(&mut self) -> Result<Key, BadRecord> {
        let text = std::str::from_utf8(self.bytes()?).ok();
        text.and_then(Key::parse).ok_or(BadRecord::Damaged("the record's key is not one"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], BadRecord> {
        let len = self.u32()? as usize;
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(SHORT)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], BadRecord> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(SHORT)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, BadRecord> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, BadRecord> {
        Ok(u32::from_le_bytes(*self.array()?))
    }

    fn u64(&mut self) -> Result<u64, BadRecord> {
        Ok(u64::from_le_bytes(*self.array()?))
    }

    fn end<T>(&self, value: T) -> Result<T, BadRecord> {
        if self.rest.is_empty() { Ok(value) } else { Err(BadRecord::Damaged("the record is longer than it says")) }
    }
}

const SHORT: BadRecord = BadRecord::Damaged("the record is shorter than it says");

impl From<Unopened> for BadRecord {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::UnknownKey(id) => Self::UnknownKey(id),
            Unopened::Damaged => Self::Damaged("the sealed value does not open with its key"),
        }
    }
}

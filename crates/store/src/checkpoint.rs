//! Checkpoints: all objects at one revision, written beside the log and put in place by a rename.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::key::Key;
use api::object::Object;
use imbl::OrdMap;

use crate::Snapshot;
use crate::frame::{self, FILE_HEADER, FRAME_HEADER, Header, Kind};
use crate::log::UNFINISHED;
use crate::open::OpenError;
use crate::record::{Encoder, Run, decode_all, decode_run};
use crate::seal::Keyring;
use crate::vfs::{File, Vfs, read_full_at, write_all_at};

/// About as much as one frame holds: large enough to keep the disk busy, small beside what the store may use of memory.
const FRAME_BYTES: usize = 256 << 10;

/// Writes a snapshot under its final name, durably, and then removes the files that it replaces. Returns its size.
///
/// The log does not depend on it: after a failure the log is kept, and the next attempt begins anew.
///
/// # Errors
/// Of the first call that failed, or [`ErrorKind::Interrupted`] after `cancel` was set.
pub(crate) fn write(
    vfs: &dyn Vfs,
    dir: &Path,
    header: &Header,
    snapshot: &Snapshot,
    encoder: &Encoder,
    cancel: &AtomicBool,
) -> io::Result<u64> {
    let path = dir.join(Kind::Checkpoint.file_name(header.number));
    let unfinished = path.with_extension(&UNFINISHED[1..]);
    match vfs.remove(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let written = fill(vfs, &unfinished, header, snapshot, encoder, cancel).inspect_err(|_| {
        // Best effort: the next attempt, or the next start, removes it too.
        vfs.remove(&unfinished).unwrap_or_default();
    })?;
    vfs.rename(&unfinished, &path)?;
    vfs.sync_dir(dir)?;
    for (name, _) in replaced(&vfs.list(dir)?, header.number) {
        vfs.remove(&dir.join(name))?;
    }
    Ok(written)
}

/// The segments and checkpoints that the checkpoint with this number makes needless.
pub(crate) fn replaced(names: &[String], number: u64) -> impl Iterator<Item = (&str, Kind)> {
    names.iter().filter_map(move |name| {
        [Kind::Log, Kind::Checkpoint].into_iter().find_map(|kind| {
            let older = kind.parse_name(name).is_some_and(|n| n < number);
            older.then_some((name.as_str(), kind))
        })
    })
}

fn fill(
    vfs: &dyn Vfs,
    path: &Path,
    header: &Header,
    snapshot: &Snapshot,
    encoder: &Encoder,
    cancel: &AtomicBool,
) -> io::Result<u64> {
    let mut out = Output { file: vfs.create(path)?, header, sequence: header.sequence, end: FILE_HEADER as u64 };
    write_all_at(&*out.file, &header.encode(), 0)?;
    let mut objects = snapshot.range("", None).peekable();
    while objects.peek().is_some() {
        if cancel.load(Ordering::Relaxed) {
            return Err(ErrorKind::Interrupted.into());
        }
        let mut frame = frame::begin();
        encoder.objects(&mut frame);
        while frame.len() < FRAME_BYTES
            && let Some(object) = objects.next()
        {
            encoder.object(object, &mut frame)?;
        }
        out.append(frame)?;
    }
    let mut frame = frame::begin();
    encoder.total(snapshot.objects.len() as u64, &mut frame);
    out.append(frame)?;
    out.file.sync()?;
    Ok(out.end)
}

struct Output<'a> {
    file: Box<dyn File>,
    header: &'a Header,
    sequence: u64,
    end: u64,
}

impl Output<'_> {
    fn append(&mut self, mut frame: Vec<u8>) -> io::Result<()> {
        frame::finish(&mut frame, self.header.owner(), self.sequence);
        write_all_at(&*self.file, &frame, self.end)?;
        self.end += frame.len() as u64;
        self.sequence += 1;
        Ok(())
    }
}

/// Reads a checkpoint's objects, and its size.
///
/// # Errors
/// A checkpoint was complete before it got its name: any fault in it is damage.
pub(crate) fn read(
    vfs: &dyn Vfs,
    path: &Path,
    header: &Header,
    keys: &Keyring,
) -> Result<(OrdMap<Key, Arc<Object>>, u64), OpenError> {
    let mut input = Input::open(vfs, path, header)?;
    let mut objects = OrdMap::new();
    let mut total = None;
    while total.is_none() {
        let batch = input.batch()?;
        let payloads: Vec<_> = batch.iter().map(|frame| &frame.payload[..]).collect();
        for (decoded, frame) in decode_all(&payloads, |payload| decode_run(payload, keys)).into_iter().zip(&batch) {
            match decoded.map_err(|bad| OpenError::record(path, frame.offset, bad, OpenError::BACKUP))? {
                Run::Objects(run) => objects.extend(run.into_iter().map(|object| (object.key().clone(), object))),
                Run::Total(count) => total = Some(count),
            }
        }
    }
    if total != Some(objects.len() as u64) || input.offset != input.size {
        return Err(OpenError::damaged(path, input.offset, "the checkpoint does not hold what it says"));
    }
    Ok((objects, input.size))
}

/// A checkpoint being read, one frame at a time.
struct Input<'a> {
    file: Box<dyn File>,
    path: &'a Path,
    header: &'a Header,
    size: u64,
    offset: u64,
    sequence: u64,
}

struct Frame {
    offset: u64,
    payload: Vec<u8>,
}

impl<'a> Input<'a> {
    fn open(vfs: &dyn Vfs, path: &'a Path, header: &'a Header) -> Result<Self, OpenError> {
        let file = vfs.open(path).map_err(|source| OpenError::io("open", path, source))?;
        let size = file.size().map_err(|source| OpenError::io("read", path, source))?;
        Ok(Self { file, path, header, size, offset: FILE_HEADER as u64, sequence: header.sequence })
    }

    /// The next frames, some megabytes, at least one.
    fn batch(&mut self) -> Result<Vec<Frame>, OpenError> {
        const FRAMES: usize = 16;
        let mut batch = vec![self.next()?];
        while batch.len() < FRAMES && self.offset < self.size {
            batch.push(self.next()?);
        }
        Ok(batch)
    }

    fn next(&mut self) -> Result<Frame, OpenError> {
        let bad = |what| OpenError::damaged(self.path, self.offset, what);
        let io = |source| OpenError::io("read", self.path, source);
        let mut header = [0; FRAME_HEADER];
        if read_full_at(&*self.file, &mut header, self.offset).map_err(io)? < FRAME_HEADER {
            return Err(bad("the checkpoint ends too early"));
        }
        let expected = frame::expect(&header, self.header.owner(), self.sequence).map_err(bad)?;
        let next = self.offset + frame::frame_len(expected.payload) as u64;
        if next > self.size {
            return Err(bad("the checkpoint ends too early"));
        }
        let mut payload = vec![0; expected.payload];
        let start = self.offset + FRAME_HEADER as u64;
        let len = read_full_at(&*self.file, &mut payload, start).map_err(io)?;
        if len < expected.payload || !expected.matches(&payload) {
            return Err(bad("the frame does not match its checksum"));
        }
        let frame = Frame { offset: self.offset, payload };
        (self.offset, self.sequence) = (next, self.sequence + 1);
        Ok(frame)
    }
}

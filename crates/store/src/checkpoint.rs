//! Checkpoints: all objects at one revision, written beside the log and put in place by a rename.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Snapshot;
use crate::frame::{self, FILE_HEADER, Header, Kind};
use crate::log::UNFINISHED;
use crate::record::Encoder;
use crate::vfs::{File, Vfs, write_all_at};

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

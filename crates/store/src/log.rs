//! The append log: preallocated segments of frames, each frame synced before the next is begun.
//!
//! A segment gets its final name only once its header and its space are durable, and its first frame only after that: whatever
//! has the name of a segment has an intact header. Errors are final, but for a full disk, from which there is a proven way
//! back: cut the file at its last durable frame, sync, and go on in a new segment when there is space for one.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::frame::{self, FILE_HEADER, Header, Kind};
use crate::vfs::{File, Vfs, write_all_at};

/// The name of a file until it is complete.
pub(crate) const UNFINISHED: &str = ".tmp";

/// The segment that is written to.
pub(crate) struct Log {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    file: Box<dyn File>,
    header: Header,
    /// The next frame's.
    sequence: u64,
    /// Where the next frame goes.
    end: u64,
    /// The file's size.
    capacity: u64,
    segment_bytes: u64,
}

/// Why nothing was appended.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The log is as before, and may be appended to when there is space.
    Unchanged(io::Error),
    /// What the disk holds cannot be known without reading it again.
    Broken(io::Error),
}

/// What an append did besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    InPlace,
    /// It began this segment; the ones before hold all that came before.
    NewSegment,
}

/// Where a segment that was read back stands.
pub(crate) struct Tail {
    pub header: Header,
    pub sequence: u64,
    pub end: u64,
    pub capacity: u64,
}

impl Log {
    /// Creates a segment.
    pub fn create(vfs: Arc<dyn Vfs>, dir: &Path, header: Header, segment_bytes: u64) -> Result<Self, Failure> {
        let (file, capacity) = create_segment(&*vfs, dir, &header, segment_bytes)?;
        let sequence = header.sequence;
        let end = FILE_HEADER as u64;
        Ok(Self { vfs, dir: dir.to_owned(), file, header, sequence, end, capacity, segment_bytes })
    }

    /// Goes on in the segment that was read back last.
    pub fn resume(vfs: Arc<dyn Vfs>, dir: &Path, file: Box<dyn File>, tail: Tail, segment_bytes: u64) -> Self {
        let Tail { header, sequence, end, capacity } = tail;
        Self { vfs, dir: dir.to_owned(), file, header, sequence, end, capacity, segment_bytes }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Writes and syncs a frame. `frame` comes from [`frame::begin`] with the payload behind it; `next` is the header of a
    /// new segment in case there is no room, of which number and sequence are filled in here.
    pub fn append(&mut self, mut frame: Vec<u8>, next: Header) -> Result<Appended, Failure> {
        let len = frame::frame_len(frame.len() - frame::begin().len()) as u64;
        let mut appended = Appended::InPlace;
        if self.end + len > self.capacity {
            self.rotate(next, len)?;
            appended = Appended::NewSegment;
        }
        frame::finish(&mut frame, self.header.owner(), self.sequence);
        match write_all_at(&*self.file, &frame, self.end) {
            Ok(()) => {}
            Err(error) if is_full(&error) => return Err(self.cut(error)),
            Err(error) => return Err(Failure::Broken(error)),
        }
        #[cfg(feature = "planted")]
        if planted::on(planted::Bug::AckBeforeSync) {
            (self.end, self.sequence) = (self.end + len, self.sequence + 1);
            return Ok(appended);
        }
        self.file.sync().map_err(Failure::Broken)?;
        self.end += len;
        self.sequence += 1;
        Ok(appended)
    }

    fn rotate(&mut self, next: Header, len: u64) -> Result<(), Failure> {
        let header = Header { number: self.header.number + 1, sequence: self.sequence, ..next };
        let size = self.segment_bytes.max(FILE_HEADER as u64 + len);
        (self.file, self.capacity) = create_segment(&*self.vfs, &self.dir, &header, size)?;
        self.end = FILE_HEADER as u64;
        self.header = header;
        Ok(())
    }

    /// Removes what a failed write left, provably, so that the segment ends at its last durable frame.
    fn cut(&mut self, full: io::Error) -> Failure {
        let cut = self.file.truncate(self.end).and_then(|()| self.file.sync()).and_then(|()| self.file.size());
        match cut {
            Ok(size) if size == self.end => {
                self.capacity = size;
                Failure::Unchanged(full)
            }
            Ok(_) | Err(_) => Failure::Broken(full),
        }
    }
}

/// Creates a segment of at least `size` bytes under its final name, durably.
fn create_segment(vfs: &dyn Vfs, dir: &Path, header: &Header, size: u64) -> Result<(Box<dyn File>, u64), Failure> {
    let size = size.next_multiple_of(FILE_HEADER as u64);
    let path = dir.join(Kind::Log.file_name(header.number));
    let unfinished = path.with_extension(&UNFINISHED[1..]);
    let file = prepare(vfs, &unfinished, header, size).inspect_err(|_| {
        // Best effort: the next attempt, or the next start, removes it too.
        vfs.remove(&unfinished).unwrap_or_default();
    })?;
    vfs.rename(&unfinished, &path).map_err(classify)?;
    // From here the name may or may not be durable, and only reading the directory after a restart tells.
    vfs.sync_dir(dir).map_err(Failure::Broken)?;
    Ok((file, size))
}

fn prepare(vfs: &dyn Vfs, path: &Path, header: &Header, size: u64) -> Result<Box<dyn File>, Failure> {
    match vfs.remove(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(classify(error)),
        Ok(()) | Err(_) => {}
    }
    let file = vfs.create(path).map_err(classify)?;
    file.preallocate(size).map_err(classify)?;
    write_all_at(&*file, &header.encode(), 0).map_err(classify)?;
    file.sync().map_err(Failure::Broken)?;
    Ok(file)
}

fn classify(error: io::Error) -> Failure {
    if is_full(&error) { Failure::Unchanged(error) } else { Failure::Broken(error) }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

//! Reading a store back: the newest checkpoint, then the log behind it, and the proof that nothing in between is missing.
//!
//! Nothing is written before every file was understood. What a crash may leave is mended; anything else is refused with the
//! place and the way out, because a store that guesses loses acknowledged writes.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::Op;
use crate::checkpoint::{self, replaced};
use crate::frame::{self, BadHeader, FILE_HEADER, Found, Header, Kind, VERSION};
use crate::log::{Failure, Log, Tail, UNFINISHED};
use crate::open::{OpenError, Options};
use crate::record::{self, BadRecord, Entry};
use crate::seal::{Keyring, Rng};
use crate::state::State;
use crate::vfs::{File, Vfs, read_full_at, write_all_at};

pub(crate) struct Recovered {
    pub state: State,
    pub log: Log,
    /// The last revision that may be issued before the next durable commit.
    pub reserved: u64,
    /// The size of the log behind the checkpoint.
    pub log_bytes: u64,
    pub checkpoint_bytes: u64,
}

/// Reads the store in `options.dir`, or creates one where there is none.
pub(crate) fn recover(vfs: &Arc<dyn Vfs>, options: &Options, rng: &dyn Rng) -> Result<Recovered, OpenError> {
    let dir = Directory { vfs: &**vfs, path: &options.dir, keys: &options.keys };
    let inventory = dir.inventory()?;
    let Some((&newest, _)) = inventory.segments.last_key_value() else {
        if let Some(number) = inventory.checkpoints.keys().next_back() {
            let path = dir.path.join(Kind::Log.file_name(*number));
            return Err(OpenError::damaged(&path, 0, "the file is missing"));
        }
        dir.remove(inventory.unfinished.iter().map(String::as_str))?;
        return create(vfs, options, rng);
    };
    let mut replay = dir.load(&inventory, options)?;
    let first = replay.first;
    for (&number, header) in inventory.segments.range(first..) {
        dir.replay(&mut replay, header, number == newest)?;
    }
    let tail = replay.tail.take().expect("the newest segment was replayed");
    // A name may be there without being durable, if the sync that should have made it so failed or never came.
    vfs.sync_dir(dir.path).map_err(|source| OpenError::io("sync", dir.path, source))?;
    let path = dir.path.join(Kind::Log.file_name(newest));
    let (file, tail) = mend(dir.vfs, &path, tail).map_err(|source| OpenError::io("mend", &path, source))?;
    let names: Vec<_> = inventory.names().collect();
    dir.remove(replaced(&names, first).map(|(name, _)| name).chain(inventory.unfinished.iter().map(String::as_str)))?;

    let Replay { mut state, reserved, closed, log_bytes, checkpoint_bytes, .. } = replay;
    if !closed && reserved > state.revision() {
        state.skip_to(reserved + 1);
    }
    let log = Log::resume(vfs.clone(), dir.path, file, tail, options.segment_bytes);
    let reserved = reserved.min(state.revision());
    Ok(Recovered { state, log, reserved, log_bytes, checkpoint_bytes })
}

fn create(vfs: &Arc<dyn Vfs>, options: &Options, rng: &dyn Rng) -> Result<Recovered, OpenError> {
    let io = |action, source| OpenError::io(action, &options.dir, source);
    let mut store = [0; 8];
    rng.fill(&mut store).map_err(|source| io("name", source))?;
    let state = State::new(options.limits);
    let revision = state.revision();
    let header = Header {
        kind: Kind::Log,
        store: u64::from_le_bytes(store),
        number: 1,
        sequence: 1,
        revision,
        reserved: revision,
        key: options.keys.current(),
    };
    let log = Log::create(vfs.clone(), &options.dir, header, options.segment_bytes);
    let log = log.map_err(|(Failure::Unchanged(source) | Failure::Broken(source))| io("create a store in", source))?;
    Ok(Recovered { state, log, reserved: revision, log_bytes: 0, checkpoint_bytes: 0 })
}

/// The files of a store, by number.
#[derive(Default)]
struct Inventory {
    checkpoints: BTreeMap<u64, Header>,
    segments: BTreeMap<u64, Header>,
    unfinished: Vec<String>,
}

impl Inventory {
    fn names(&self) -> impl Iterator<Item = String> {
        let name = |kind: Kind| move |number: &u64| kind.file_name(*number);
        self.checkpoints.keys().map(name(Kind::Checkpoint)).chain(self.segments.keys().map(name(Kind::Log)))
    }
}

/// A store on its way from disk to memory.
struct Replay {
    state: State,
    /// The first segment that is not part of the checkpoint.
    first: u64,
    /// Commits up to here are part of the checkpoint.
    base: u64,
    store: u64,
    /// The sequence number of the next frame, known once the first segment was seen.
    sequence: Option<u64>,
    reserved: u64,
    /// Whether the last record says that nothing was issued after it.
    closed: bool,
    log_bytes: u64,
    checkpoint_bytes: u64,
    tail: Option<End>,
}

/// How the newest segment ends.
struct End {
    tail: Tail,
    torn: bool,
    /// The last frame and its offset, if a crash may have kept it from being synced.
    unproven: Option<(u64, Vec<u8>)>,
}

struct Directory<'a> {
    vfs: &'a dyn Vfs,
    path: &'a Path,
    keys: &'a Keyring,
}

impl Directory<'_> {
    /// Reads every file's header, so that a format that is not known is refused before anything is touched.
    fn inventory(&self) -> Result<Inventory, OpenError> {
        let mut inventory = Inventory::default();
        let names = self.vfs.list(self.path).map_err(|source| OpenError::io("list", self.path, source))?;
        for name in names {
            if let Some(number) = Kind::Log.parse_name(&name) {
                inventory.segments.insert(number, self.header(Kind::Log, number)?);
            } else if let Some(number) = Kind::Checkpoint.parse_name(&name) {
                inventory.checkpoints.insert(number, self.header(Kind::Checkpoint, number)?);
            } else if name.strip_suffix(UNFINISHED).is_some_and(is_own) {
                inventory.unfinished.push(name);
            }
        }
        let headers = inventory.checkpoints.values().chain(inventory.segments.values());
        let stores: std::collections::BTreeSet<_> = headers.map(|header| header.store).collect();
        if stores.len() > 1 {
            let (what, repair) = ("it mixes files of several stores", "leave those of one".to_owned());
            return Err(OpenError::damaged_but(self.path, 0, what, repair));
        }
        Ok(inventory)
    }

    fn header(&self, kind: Kind, number: u64) -> Result<Header, OpenError> {
        let path = self.path.join(kind.file_name(number));
        let file = self.vfs.open(&path).map_err(|source| OpenError::io("open", &path, source))?;
        let mut bytes = [0; FILE_HEADER];
        let len = read_full_at(&*file, &mut bytes, 0).map_err(|source| OpenError::io("read", &path, source))?;
        let header = match Header::decode(kind, &bytes[..len]) {
            Ok(header) => header,
            Err(BadHeader::Version(found)) => return Err(OpenError::Version { path, found, known: VERSION }),
            Err(BadHeader::Foreign) => {
                return Err(OpenError::damaged(&path, 0, "it does not begin as a file of the store does"));
            }
            Err(BadHeader::Damaged) => {
                return Err(OpenError::damaged(&path, 0, "the file's header does not match its checksum"));
            }
        };
        if header.number != number {
            let repair = format!("rename it to {}", kind.file_name(header.number));
            return Err(OpenError::damaged_but(&path, 0, "it has another file's name", repair));
        }
        if !self.keys.holds(header.key) {
            return Err(OpenError::Key { path, key: header.key });
        }
        Ok(header)
    }

    /// Loads the newest checkpoint and checks that the log goes on from it without a gap.
    fn load(&self, inventory: &Inventory, options: &Options) -> Result<Replay, OpenError> {
        let replay = match inventory.checkpoints.last_key_value() {
            Some((_, header)) => self.load_checkpoint(header, options)?,
            None => {
                let state = State::new(options.limits);
                let (base, store) = (state.revision(), inventory.segments.values().next().map_or(0, |h| h.store));
                Replay {
                    state,
                    first: 1,
                    base,
                    store,
                    sequence: Some(1),
                    reserved: base,
                    closed: true,
                    log_bytes: 0,
                    checkpoint_bytes: 0,
                    tail: None,
                }
            }
        };
        let newest = inventory.segments.last_key_value().map_or(0, |(number, _)| *number);
        if let Some(missing) = (replay.first..=newest.max(replay.first)).find(|n| !inventory.segments.contains_key(n)) {
            let path = self.path.join(Kind::Log.file_name(missing));
            return Err(OpenError::damaged(&path, 0, "the file is missing"));
        }
        Ok(replay)
    }

    fn load_checkpoint(&self, header: &Header, options: &Options) -> Result<Replay, OpenError> {
        let path = self.path.join(Kind::Checkpoint.file_name(header.number));
        let (objects, checkpoint_bytes) = checkpoint::read(self.vfs, &path, header, self.keys)?;
        Ok(Replay {
            state: State::at(objects, header.revision, options.limits),
            first: header.number,
            base: header.revision,
            store: header.store,
            sequence: None,
            reserved: header.reserved.max(header.revision),
            closed: false,
            log_bytes: 0,
            checkpoint_bytes,
            tail: None,
        })
    }

    /// Applies a segment's frames.
    fn replay(&self, replay: &mut Replay, header: &Header, newest: bool) -> Result<(), OpenError> {
        let path = self.path.join(Kind::Log.file_name(header.number));
        let (file, data) = self.read(&path).map_err(|source| OpenError::io("read", &path, source))?;
        drop(file);
        let mut sequence = header.sequence;
        if replay.sequence.is_some_and(|expected| expected != sequence) || header.store != replay.store {
            let what = "frames between this segment and the one before it are missing";
            return Err(OpenError::damaged(&path, 0, what));
        }
        let (mut at, mut frames, mut payloads) = (FILE_HEADER, Vec::new(), Vec::new());
        let end = loop {
            match frame::find(&data, at, header.owner(), sequence) {
                Found::Frame { payload, next } => {
                    frames.push(at..next);
                    payloads.push(&data[payload]);
                    (at, sequence) = (next, sequence + 1);
                }
                end => break end,
            }
        };
        let entries = record::decode_all(&payloads, |payload| record::decode_entry(payload, self.keys));
        for (entry, frame) in entries.into_iter().zip(&frames) {
            let applied = entry.and_then(|entry| replay.apply(entry));
            let repair = || cut(&path, frame.start, &replay.state);
            applied.map_err(|bad| OpenError::record(&path, frame.start as u64, bad, repair()))?;
        }
        let torn = match end {
            Found::Frame { .. } | Found::End => false,
            Found::Torn if newest => true,
            Found::Torn => {
                let what = "the segment ends in part of a frame, yet another one follows it";
                return Err(OpenError::damaged_but(&path, at as u64, what, cut(&path, at, &replay.state)));
            }
            Found::Damaged(what) => {
                return Err(OpenError::damaged_but(&path, at as u64, what, cut(&path, at, &replay.state)));
            }
        };
        let last = frames.pop();
        replay.sequence = Some(sequence);
        replay.log_bytes += at as u64;
        let unproven = last.filter(|_| !replay.closed).map(|range| (range.start as u64, data[range].to_vec()));
        let tail = Tail { header: *header, sequence, end: at as u64, capacity: data.len() as u64 };
        replay.tail = Some(End { tail, torn, unproven });
        Ok(())
    }

    fn read(&self, path: &Path) -> io::Result<(Box<dyn File>, Vec<u8>)> {
        let file = self.vfs.open(path)?;
        let size = usize::try_from(file.size()?).map_err(|_| ErrorKind::FileTooLarge)?;
        let mut data = vec![0; size];
        let len = read_full_at(&*file, &mut data, 0)?;
        data.truncate(len);
        Ok((file, data))
    }

    fn remove<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<(), OpenError> {
        for name in names {
            let path = self.path.join(name);
            self.vfs.remove(&path).map_err(|source| OpenError::io("remove", &path, source))?;
        }
        Ok(())
    }
}

impl Replay {
    fn apply(&mut self, entry: Entry) -> Result<(), BadRecord> {
        match entry {
            Entry::Group { reserved, commits } => {
                for (revision, ops) in commits {
                    self.commit(revision, ops)?;
                }
                (self.reserved, self.closed) = (reserved, false);
            }
            Entry::Close { revision } if revision < self.state.revision() => {
                return Err(BadRecord::Damaged("the store was closed at a revision before this"));
            }
            Entry::Close { revision } => {
                self.state.skip_to(revision);
                (self.reserved, self.closed) = (revision, true);
            }
        }
        Ok(())
    }

    fn commit(&mut self, revision: u64, ops: Vec<Op>) -> Result<(), BadRecord> {
        if revision <= self.state.revision() {
            let known = revision <= self.base;
            return if known { Ok(()) } else { Err(BadRecord::Damaged("its revision was committed before")) };
        }
        #[cfg(feature = "planted")]
        if planted::every(planted::Bug::LostWrite, 10) {
            return Ok(());
        }
        self.state.skip_to(revision - 1);
        self.state.replay(revision, ops, Instant::now());
        Ok(())
    }
}

/// Makes the newest segment ready to be appended to.
fn mend(vfs: &dyn Vfs, path: &Path, end: End) -> io::Result<(Box<dyn File>, Tail)> {
    let End { mut tail, torn, unproven } = end;
    let file = vfs.open(path)?;
    if let Some((offset, frame)) = unproven {
        // After a failed sync the page cache may hold what the disk does not, marked clean: write it once more.
        write_all_at(&*file, &frame, offset)?;
        file.sync()?;
    }
    if torn {
        file.truncate(tail.end)?;
        file.sync()?;
        tail.capacity = match file.preallocate(tail.capacity).and_then(|()| file.sync()) {
            Ok(()) => tail.capacity,
            // The next append begins a new segment, when there is space for one.
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => tail.end,
            Err(error) => return Err(error),
        };
    }
    Ok((file, tail))
}

/// How to go on with what comes before the damage.
fn cut(path: &Path, at: usize, state: &State) -> String {
    format!(
        "{}, or, to lose every write after revision {}, run `truncate -s {at} {}` and remove later segments",
        OpenError::BACKUP,
        state.revision(),
        path.display()
    )
}

fn is_own(name: &str) -> bool {
    Kind::Log.parse_name(name).or_else(|| Kind::Checkpoint.parse_name(name)).is_some()
}

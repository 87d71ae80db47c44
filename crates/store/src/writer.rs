//! The one thread that writes: group commit, lazy commits, and checkpoints in the background.
//!
//! While a group is being synced the next one gathers in the queue, so that many writers share a sync. Compares are checked
//! against what the group before has made durable and what this one has staged; nobody sees staged state, and no answer,
//! not even a conflict, leaves before the sync that it rests on.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::checkpoint;
use crate::frame::{self, Header, Kind};
use crate::log::{Appended, Failure, Log};
use crate::open::Options;
use crate::record::Encoder;
use crate::recover::Recovered;
use crate::seal::Rng;
use crate::state::Commit;
use crate::vfs::Vfs;
use crate::view::View;
use crate::{Committed, Compare, Error, Op, Snapshot};

/// Bounds of a group: what one sync takes along, and how long the first in it waits for the last.
const GROUP_WRITES: usize = 512;
const GROUP_BYTES: usize = 1 << 20;

/// Lazy commits that may wait in memory: what a crash can lose of Lease renewals, three quarters of an hour for one node.
const LAZY: usize = 256;

/// Revisions that each durable commit reserves. Lazy commits get this far when the disk is full.
const RESERVE: u64 = 4096;

pub(crate) struct Request {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
    pub reply: oneshot::Sender<Result<Committed, Error>>,
}

pub(crate) enum Command {
    Txn(Request),
    Close(oneshot::Sender<Result<(), Error>>),
}

pub(crate) struct Writer {
    view: Arc<View>,
    log: Log,
    encoder: Encoder,
    /// Visible commits that are not on disk.
    pending: Vec<Commit>,
    reserved: u64,
    /// Whether the last append found the disk full.
    full: bool,
    checkpoints: Checkpoints,
    lock: Box<dyn Send + Sync>,
}

impl Writer {
    pub fn new(
        vfs: Arc<dyn Vfs>,
        rng: Arc<dyn Rng>,
        lock: Box<dyn Send + Sync>,
        options: &Options,
        recovered: Recovered,
    ) -> (Self, Arc<View>) {
        let Recovered { state, log, reserved, log_bytes, checkpoint_bytes } = recovered;
        let view = View::new(state);
        let encoder = Encoder { keys: options.keys.clone(), rng };
        let checkpoints = Checkpoints {
            vfs,
            dir: options.dir.clone(),
            encoder: encoder.clone(),
            threshold: options.checkpoint_bytes,
            last_bytes: checkpoint_bytes,
            log_bytes,
            running: None,
        };
        let pending = Vec::new();
        (Self { view: view.clone(), log, encoder, pending, reserved, full: false, checkpoints, lock }, view)
    }

    /// Serves the queue until it is closed or a write fails; what is still in it is then answered with [`Error::Closed`].
    pub fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let closing = loop {
            let Some(first) = queue.blocking_recv() else { break None };
            let (group, closing) = gather(first, &mut queue);
            if let Err(broken) = self.commit(group) {
                tracing::error!(error = %broken, "the store cannot be written any more; restart to read the disk again");
                break closing.map(|reply| (reply, Err(Error::Closed)));
            }
            if let Some(reply) = closing {
                break Some((reply, self.close().map_err(|error| Error::Io(Arc::new(error)))));
            }
        };
        queue.close();
        self.checkpoints.cancel();
        drop(self.lock);
        if let Some((reply, result)) = closing {
            // Whoever closed the store may have stopped waiting.
            reply.send(result).unwrap_or_default();
        }
    }

    /// Commits a group and answers it.
    ///
    /// # Errors
    /// When the store must not be written any more. All have been answered.
    fn commit(&mut self, group: Vec<Request>) -> io::Result<()> {
        let mut stage = self.view.stage();
        let mut commits = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        for Request { compares, ops, reply } in group {
            let answer = stage.apply(&compares, ops).map(|applied| {
                commits.extend(applied.commit);
                applied.committed
            });
            answers.push((reply, answer));
        }
        let mut result = Ok(());
        if !commits.is_empty() {
            match self.persist(&commits, stage.revision()) {
                Ok(()) => self.view.publish(stage, commits),
                Err(failure) => {
                    let (Failure::Unchanged(error) | Failure::Broken(error)) = &failure;
                    let shared = Arc::new(io::Error::new(error.kind(), error.to_string()));
                    answers.iter_mut().for_each(|(_, answer)| *answer = Err(Error::Io(shared.clone())));
                    if let Failure::Broken(error) = failure {
                        result = Err(error);
                    }
                }
            }
        }
        for (reply, answer) in answers {
            // A caller that went away is not told; what it asked for is done.
            reply.send(answer).unwrap_or_default();
        }
        result
    }

    /// Brings commits to disk, or keeps them in memory when all of them may wait there.
    fn persist(&mut self, commits: &[Commit], revision: u64) -> Result<(), Failure> {
        let lazy = revision <= self.reserved && commits.iter().all(|commit| commit.lazy);
        if !lazy || self.pending.len() + commits.len() > LAZY {
            match self.append(commits, revision) {
                // Leases go on being renewed on a full disk, or its pods would be moved away.
                Err(Failure::Unchanged(_)) if lazy => {}
                done => return done,
            }
        }
        self.pending.extend_from_slice(commits);
        Ok(())
    }

    fn append(&mut self, commits: &[Commit], revision: u64) -> Result<(), Failure> {
        let reserved = revision + RESERVE;
        let mut frame = frame::begin();
        let all: Vec<_> = self.pending.iter().chain(commits).collect();
        self.encoder.group(reserved, all.into_iter(), &mut frame).map_err(Failure::Unchanged)?;
        let header = self.header();
        let before = self.view.snapshot();
        let len = frame.len() as u64;
        let appended = self.log.append(frame, header);
        self.report(&appended);
        let appended = appended?;
        self.checkpoints.log_bytes += len;
        if appended == Appended::NewSegment {
            self.checkpoints.consider(Header { kind: Kind::Checkpoint, sequence: 0, ..*self.log.header() }, before);
        }
        self.pending.clear();
        self.reserved = reserved;
        Ok(())
    }

    /// Says once that the disk is full, and once that it no longer is.
    fn report(&mut self, appended: &Result<Appended, Failure>) {
        match appended {
            Err(Failure::Unchanged(error)) if !self.full => {
                tracing::warn!(%error, "writes fail until there is space");
                self.full = true;
            }
            Ok(_) if self.full => {
                tracing::info!("there is space, writes succeed again");
                self.full = false;
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// The header of a file begun now.
    fn header(&self) -> Header {
        let revision = self.view.snapshot().revision;
        let key = self.encoder.keys.current();
        Header { revision, reserved: self.reserved, key, ..*self.log.header() }
    }

    fn close(&mut self) -> io::Result<()> {
        let unwrap = |(Failure::Unchanged(error) | Failure::Broken(error))| error;
        let revision = self.view.snapshot().revision;
        if !self.pending.is_empty() {
            self.append(&[], revision).map_err(unwrap)?;
        }
        if self.reserved > revision {
            let mut frame = frame::begin();
            self.encoder.close(revision, &mut frame);
            let header = self.header();
            self.log.append(frame, header).map_err(unwrap)?;
        }
        Ok(())
    }
}

/// Takes along what is in the queue already.
fn gather(
    first: Command,
    queue: &mut mpsc::Receiver<Command>,
) -> (Vec<Request>, Option<oneshot::Sender<Result<(), Error>>>) {
    let (mut group, mut bytes, mut next) = (Vec::new(), 0, Some(first));
    while let Some(command) = next {
        match command {
            Command::Txn(request) => {
                bytes += request.ops.iter().map(size).sum::<usize>();
                group.push(request);
            }
            Command::Close(reply) => return (group, Some(reply)),
        }
        next = if group.len() < GROUP_WRITES && bytes < GROUP_BYTES { queue.try_recv().ok() } else { None };
    }
    (group, None)
}

fn size(op: &Op) -> usize {
    match op {
        Op::Put(draft) | Op::PutLazily(draft) => draft.body().len(),
        Op::Delete(_) => 0,
    }
}

/// Bounds the log: writes a checkpoint in the background when there is as much log as it may replace.
struct Checkpoints {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    encoder: Encoder,
    threshold: u64,
    /// The size of the last checkpoint: a large store is not written again for a little log.
    last_bytes: u64,
    /// Log written since what the last checkpoint holds.
    log_bytes: u64,
    running: Option<Running>,
}

struct Running {
    thread: JoinHandle<io::Result<u64>>,
    cancel: Arc<AtomicBool>,
    /// The log when it began.
    log_bytes: u64,
}

impl Checkpoints {
    /// Called when a segment has begun, with the state that all segments before it make.
    fn consider(&mut self, header: Header, snapshot: Snapshot) {
        if let Some(running) = self.running.take_if(|running| running.thread.is_finished()) {
            self.finish(running);
        }
        if self.running.is_some() || self.log_bytes < self.threshold.max(self.last_bytes) {
            return;
        }
        let cancel = Arc::new(AtomicBool::new(false));
        let (vfs, dir, encoder, flag) = (self.vfs.clone(), self.dir.clone(), self.encoder.clone(), cancel.clone());
        let work = move || checkpoint::write(&*vfs, &dir, &header, &snapshot, &encoder, &flag);
        match std::thread::Builder::new().name("store-checkpoint".to_owned()).spawn(work) {
            Ok(thread) => self.running = Some(Running { thread, cancel, log_bytes: self.log_bytes }),
            Err(error) => tracing::warn!(%error, "no checkpoint was written; the next segment tries again"),
        }
    }

    fn finish(&mut self, running: Running) {
        match running.thread.join() {
            Ok(Ok(bytes)) => {
                self.last_bytes = bytes;
                self.log_bytes -= running.log_bytes;
            }
            Ok(Err(error)) if running.cancel.load(Ordering::Relaxed) => tracing::debug!(%error, "checkpoint cancelled"),
            Ok(Err(error)) => tracing::warn!(%error, "no checkpoint was written; the next segment tries again"),
            Err(_) => tracing::error!("writing a checkpoint panicked; the next segment tries again"),
        }
    }

    fn cancel(&mut self) {
        if let Some(running) = self.running.take() {
            running.cancel.store(true, Ordering::Relaxed);
            self.finish(running);
        }
    }
}

//! Containers' logs: lines of the CRI format, read across rotated files, from the end, since a time, or as they grow.
//!
//! A line is `RFC3339Nano stdout|stderr P|F text`; a text longer than the writer's buffer is several lines with tag `P` before
//! the last one's `F`. The current file is `<n>.log`; rotated ones are beside it. Source: pkg/kubelet/kuberuntime/logs and
//! cri-client `pkg/logs/logs.go`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// What is read at once.
const CHUNK: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub at: &'a str,
    pub stream: Stream,
    /// More of the same line follows.
    pub partial: bool,
    /// Without the final newline of the file's line.
    pub text: &'a [u8],
}

/// Splits a line of the file, given without its newline. `None` for what is not a log line.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let at = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let tags = parts.next()?;
    let text = parts.next()?;
    Some(Line { at, stream, partial: tags.split(|byte| *byte == b':').next() == Some(b"P"), text })
}

/// What part of a log is wanted, as the API's PodLogOptions say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub tail_lines: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit_bytes: Option<u64>,
    /// Only this stream.
    pub stream: Option<Stream>,
}

/// Turns file lines into what the client gets: pure.
#[derive(Debug)]
pub struct Filter {
    since: Option<Timestamp>,
    timestamps: bool,
    left: Option<u64>,
    stream: Option<Stream>,
    /// The line before was partial: the next one continues it.
    inside: bool,
}

impl Filter {
    pub fn new(options: &Options) -> Self {
        Self {
            since: options.since,
            timestamps: options.timestamps,
            left: options.limit_bytes,
            stream: options.stream,
            inside: false,
        }
    }

    /// Whether the limit of bytes is reached.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Appends what the client gets of one line.
    pub fn take(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse(line) else { return };
        if self.stream.is_some_and(|wanted| wanted != line.stream) {
            return;
        }
        let continued = std::mem::replace(&mut self.inside, line.partial);
        if let Some(since) = self.since {
            match line.at.parse::<Timestamp>() {
                Ok(at) if at >= since => {}
                _ => return,
            }
        }
        let start = out.len();
        if self.timestamps && !continued {
            out.extend_from_slice(line.at.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        if let Some(left) = &mut self.left {
            let kept = ((out.len() - start) as u64).min(*left);
            out.truncate(start + usize::try_from(kept).unwrap_or(usize::MAX));
            *left -= kept;
        }
    }
}

/// The files of one log, oldest first: rotated ones and then the current one.
///
/// Rotated files have the current one's name with a suffix: `.1` is the newest of plain numbers, time stamps sort by
/// themselves.
///
/// # Errors
/// When the directory cannot be read.
pub fn files(current: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (current.parent(), current.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut rotated = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.file_name();
        let Some(suffix) =
            found.to_str().and_then(|found| found.strip_prefix(name)).and_then(|rest| rest.strip_prefix('.'))
        else {
            continue;
        };
        if suffix.ends_with(".gz") || suffix.ends_with(".tmp") {
            continue;
        }
        let age = suffix.parse::<i64>().ok().filter(|number| *number < 1_000_000);
        rotated.push((age.map(|number| -number), suffix.to_owned(), entry.path()));
    }
    rotated.sort();
    let mut all: Vec<PathBuf> = rotated.into_iter().map(|(_, _, path)| path).collect();
    if current.exists() {
        all.push(current.to_owned());
    }
    Ok(all)
}

/// Finds where the last `lines` lines begin: an index into `files` and an offset. Partial lines count as one with their end.
fn tail(files: &[PathBuf], lines: u64) -> io::Result<(usize, u64)> {
    if lines == 0 {
        let last = files.len().saturating_sub(1);
        let end = files.last().map_or(Ok(0), |file| file.metadata().map(|metadata| metadata.len()))?;
        return Ok((last, end));
    }
    let mut left = lines;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = File::open(path)?;
        let mut end = file.metadata()?.len();
        let mut carry: Vec<u8> = Vec::new();
        while end > 0 {
            let start = end.saturating_sub(CHUNK as u64);
            let mut chunk = vec![0; usize::try_from(end - start).unwrap_or(CHUNK)];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut chunk)?;
            chunk.extend_from_slice(&carry);
            let mut cut = chunk.len();
            // Walks back over the line starts of this chunk; the first, maybe cut, line is carried over.
            while let Some(at) = chunk[..cut.saturating_sub(1)].iter().rposition(|byte| *byte == b'\n') {
                let line = &chunk[at + 1..cut];
                if parse(trim(line)).is_some_and(|line| !line.partial) {
                    if left == 0 {
                        return Ok((index, start + cut as u64));
                    }
                    left -= 1;
                }
                cut = at + 1;
            }
            carry = chunk[..cut].to_vec();
            end = start;
        }
        if parse(trim(&carry)).is_some_and(|line| !line.partial) {
            if left == 0 {
                return Ok((index, carry.len() as u64));
            }
            left -= 1;
        }
    }
    Ok((0, 0))
}

fn trim(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// Reads a log step by step. Everything blocks only on the local disk, and only for a chunk at a time.
pub struct Reader {
    current: PathBuf,
    files: std::collections::VecDeque<PathBuf>,
    open: Option<File>,
    rest: Vec<u8>,
    filter: Filter,
    follow: bool,
}

impl Reader {
    /// Finds the place to begin.
    ///
    /// # Errors
    /// When there is no log, or it cannot be read.
    pub fn open(current: &Path, options: &Options) -> io::Result<Self> {
        let all = files(current)?;
        if all.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("log {} does not exist", current.display())));
        }
        let (first, offset) = match options.tail_lines {
            Some(lines) => tail(&all, lines)?,
            None => (0, 0),
        };
        let mut files: std::collections::VecDeque<PathBuf> = all.into_iter().skip(first).collect();
        let open = match files.pop_front() {
            Some(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(offset))?;
                Some(file)
            }
            None => None,
        };
        Ok(Self {
            current: current.to_owned(),
            files,
            open,
            rest: Vec::new(),
            filter: Filter::new(options),
            follow: options.follow,
        })
    }

    /// Whether nothing more will come, whatever is written.
    pub fn is_full(&self) -> bool {
        self.filter.is_full()
    }

    /// What there is to read now, at most about a chunk; empty at the end.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.is_empty() && !self.filter.is_full() {
            let Some(file) = &mut self.open else { break };
            let mut chunk = vec![0; CHUNK];
            let count = file.read(&mut chunk)?;
            if count > 0 {
                self.rest.extend_from_slice(&chunk[..count]);
                self.split(&mut out);
                continue;
            }
            if !self.advance()? {
                break;
            }
        }
        Ok(out)
    }

    fn split(&mut self, out: &mut Vec<u8>) {
        let mut from = 0;
        while let Some(at) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
            self.filter.take(&self.rest[from..from + at], out);
            from += at + 1;
        }
        self.rest.drain(..from);
    }

    /// Goes on to the next file: one known from the start, or a current one that is not the open one any more.
    fn advance(&mut self) -> io::Result<bool> {
        if let Some(next) = self.files.pop_front() {
            match File::open(&next) {
                Ok(file) => self.open = Some(file),
                // Rotated away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            return Ok(true);
        }
        if !self.follow {
            return Ok(false);
        }
        let (Some(open), Ok(current)) = (&self.open, File::open(&self.current)) else { return Ok(false) };
        let (old, new) = (open.metadata()?, current.metadata()?);
        if (old.dev(), old.ino()) == (new.dev(), new.ino()) {
            return Ok(false);
        }
        self.open = Some(current);
        Ok(true)
    }
}

/// Tells when a log may have grown or been rotated.
pub struct Watcher {
    notify: AsyncFd<std::os::fd::OwnedFd>,
}

impl Watcher {
    /// Watches the directory of a log, so that a new file is noticed too.
    ///
    /// # Errors
    /// When the kernel has no more watches to give.
    pub fn new(current: &Path) -> io::Result<Self> {
        let notify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&notify, current.parent().unwrap_or(Path::new("/")), flags)?;
        // Its successor is unsafe and meant for descriptors that may be closed elsewhere: this one is owned.
        #[allow(deprecated)]
        let notify = AsyncFd::new(notify)?;
        Ok(Self { notify })
    }

    /// Waits for a change. Cancellation safe.
    ///
    /// # Errors
    /// When the kernel fails.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.notify.readable().await?;
        let mut buffer = [0; 4096];
        // All that there is: one wake-up for many writes.
        while let Ok(1..) = rustix::io::read(self.notify.get_ref(), &mut buffer) {}
        ready.clear_ready();
        Ok(())
    }
}

/// The last lines of a log, for a termination message: at most 80 lines and 2048 bytes.
///
/// Source: kuberuntime_container.go, `readLastStringFromContainerLogs`.
pub fn last_words(current: &Path) -> String {
    const MAX_BYTES: usize = 2048;
    let options = Options { tail_lines: Some(80), ..Options::default() };
    let mut all = Vec::new();
    if let Ok(mut reader) = Reader::open(current, &options) {
        while let Ok(more) = reader.read() {
            if more.is_empty() {
                break;
            }
            all.extend_from_slice(&more);
        }
    }
    let from = all.len().saturating_sub(MAX_BYTES);
    String::from_utf8_lossy(&all[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::tests::TempDir;

    fn line(second: u32, tag: &str, text: &str) -> String {
        format!("2026-11-23T10:00:{second:02}.000000001Z stdout {tag} {text}\n")
    }

    fn log(dir: &TempDir, files: &[(&str, String)]) -> PathBuf {
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
        dir.join("0.log")
    }

    fn read_all(current: &Path, options: &Options) -> String {
        let mut reader = Reader::open(current, options).unwrap();
        let mut all = Vec::new();
        loop {
            let more = reader.read().unwrap();
            if more.is_empty() {
                return String::from_utf8(all).unwrap();
            }
            all.extend(more);
        }
    }

    fn rotated(dir: &TempDir) -> PathBuf {
        log(
            dir,
            &[
                ("0.log.2", line(1, "F", "one")),
                ("0.log.1", line(2, "P", "tw") + &line(2, "F", "o")),
                ("0.log", line(3, "F", "three") + &line(4, "F", "")),
            ],
        )
    }

    #[test]
    fn reads_across_rotation_and_joins_partial_lines() {
        let dir = TempDir::new();
        let log = rotated(&dir);
        assert_eq!(read_all(&log, &Options::default()), "one\ntwo\nthree\n\n");
        let stamped = read_all(&log, &Options { timestamps: true, tail_lines: Some(3), ..Options::default() });
        assert_eq!(
            stamped,
            "2026-11-23T10:00:02.000000001Z two\n2026-11-23T10:00:03.000000001Z three\n2026-11-23T10:00:04.000000001Z \n"
        );
    }

    #[test]
    fn tail_since_and_limit_cut() {
        let dir = TempDir::new();
        let log = rotated(&dir);
        let tail = |lines| read_all(&log, &Options { tail_lines: Some(lines), ..Options::default() });
        assert_eq!(
            [tail(0), tail(1), tail(2), tail(3), tail(9)],
            ["", "\n", "three\n\n", "two\nthree\n\n", "one\ntwo\nthree\n\n"]
        );
        let since = "2026-11-23T10:00:03Z".parse().ok();
        assert_eq!(read_all(&log, &Options { since, ..Options::default() }), "three\n\n");
        assert_eq!(read_all(&log, &Options { limit_bytes: Some(5), ..Options::default() }), "one\nt");
    }

    #[test]
    fn long_logs_are_searched_from_the_end() {
        let dir = TempDir::new();
        let text: String = (0..5000).map(|number| line(number % 60, "F", &format!("line {number}"))).collect();
        let log = log(&dir, &[("0.log", text)]);
        assert_eq!(read_all(&log, &Options { tail_lines: Some(2), ..Options::default() }), "line 4998\nline 4999\n");
        let many = read_all(&log, &Options { tail_lines: Some(4000), ..Options::default() });
        assert_eq!((many.lines().count(), many.lines().next()), (4000, Some("line 1000")));
    }

    #[tokio::test]
    async fn following_sees_growth_and_rotation() {
        let dir = TempDir::new();
        let log = log(&dir, &[("0.log", line(1, "F", "one"))]);
        let watcher = Watcher::new(&log).unwrap();
        let mut reader = Reader::open(&log, &Options { follow: true, ..Options::default() }).unwrap();
        assert_eq!(reader.read().unwrap(), b"one\n");
        assert!(reader.read().unwrap().is_empty());
        std::fs::rename(&log, dir.join("0.log.1")).unwrap();
        std::fs::write(&log, line(2, "F", "two")).unwrap();
        watcher.changed().await.unwrap();
        assert_eq!(reader.read().unwrap(), b"two\n");
    }

    #[test]
    fn only_whole_lines_of_the_format_count() {
        assert_eq!(
            parse(b"2026-11-23T10:00:00Z stderr F a b").map(|line| (line.stream, line.text)),
            Some((Stream::Stderr, &b"a b"[..]))
        );
        assert_eq!(parse(b"2026-11-23T10:00:00Z stdout F"), None);
        assert_eq!(parse(b"hello"), None);
    }
}

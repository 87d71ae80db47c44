//! Unpacking layers in a confined child: inflate, hash and make the files in one pass over the stream.
//!
//! The parent hashes what it received and feeds the child; the child never sees a path of the host. What the child reports
//! (its diff id, the opaque directories) counts only for the directory that it filled.

mod apply;
mod confine;
pub(crate) mod tar;

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{self, Cursor, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;

/// How to start the confined child: a program that calls [`main`] when run with these arguments and one more.
#[derive(Clone, Debug)]
pub struct Unpacker {
    pub program: PathBuf,
    pub args: Vec<OsString>,
}

impl Unpacker {
    /// This very program with the argument `unpack`.
    pub fn current_exe() -> Unpacker {
        Unpacker { program: "/proc/self/exe".into(), args: vec!["unpack".into()] }
    }
}

/// What one layer may amount to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Limits {
    pub entries: u64,
    /// Of the uncompressed archive.
    pub bytes: u64,
    /// Uncompressed bytes for each compressed one, looked at beyond `ratio_free_bytes`.
    pub ratio: u64,
    pub ratio_free_bytes: u64,
}

impl Limits {
    /// A million entries; compressed to no less than a 250th, beyond the first 512 MiB; at most `bytes`.
    pub fn within(bytes: u64) -> Limits {
        Limits { entries: 1_000_000, bytes, ratio: 250, ratio_free_bytes: 512 << 20 }
    }
}

/// What the child says on its standard output when all went well.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub diff_id: Digest,
    /// Of the uncompressed archive.
    pub bytes: u64,
    /// Base64 of paths relative to the layer's root.
    opaque: Vec<String>,
}

impl Report {
    /// Directories to be marked `trusted.overlay.opaque`.
    pub fn opaque(&self) -> impl Iterator<Item = Option<Vec<u8>>> {
        self.opaque.iter().map(|path| STANDARD_NO_PAD.decode(path).ok())
    }
}

/// The child: confines itself to its working directory, then unpacks the layer on stdin into it.
///
/// `args` are those after the subcommand's name: the limits, written by the parent. Must run before any thread is started.
pub fn main(args: &[OsString]) -> ExitCode {
    match run(args) {
        Ok(report) => {
            let written =
                serde_json::to_vec(&report).map_err(io::Error::other).and_then(|json| io::stdout().write_all(&json));
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(message) => {
            let _ = writeln!(io::stderr(), "{message}"); // the parent is gone if this fails
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[OsString]) -> Result<Report, String> {
    let [limits] = args else { return Err("unpack is run by coracle itself, not by hand".to_owned()) };
    let limits: Limits =
        serde_json::from_slice(limits.as_encoded_bytes()).map_err(|error| format!("limits: {error}"))?;
    let root = confine::enter().map_err(|error| error.to_string())?;
    unpack(io::stdin().lock(), root, &limits)
}

/// Unpacks one layer, plain, gzip or zstd, into the directory `root`.
pub(crate) fn unpack(input: impl Read, root: OwnedFd, limits: &Limits) -> Result<Report, String> {
    let read = Rc::new(Cell::new(0));
    let meter = Meter {
        input: decompress(Counted { input, count: Rc::clone(&read) }).map_err(|error| error.to_string())?,
        compressed: read,
        hasher: Sha256::new(),
        bytes: 0,
        limits: *limits,
    };
    let mut meter = meter;
    let mut tree = apply::Tree::new(root);
    let mut reader = tar::Reader::new(&mut meter);
    let mut entries = 0;
    while let Some(entry) = reader.next().map_err(|error| error.to_string())? {
        entries += 1;
        if entries > limits.entries {
            return Err(format!("the layer has more than {} entries", limits.entries));
        }
        tree.apply(&entry, &mut reader).map_err(|error| error.to_string())?;
    }
    tree.finish().map_err(|error| error.to_string())?;
    // Bytes behind the end marker belong to the digest too.
    io::copy(&mut meter, &mut io::sink()).map_err(|error| error.to_string())?;
    let opaque = tree.opaque.iter().map(|path| STANDARD_NO_PAD.encode(path)).collect();
    Ok(Report { bytes: meter.bytes, diff_id: Digest::from_hasher(meter.hasher), opaque })
}

/// Looks at the first bytes: media types in the wild are often wrong about the compression.
fn decompress<'a, R: Read + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut start)?;
    let gzip = start.starts_with(&[0x1f, 0x8b]);
    let zstd = start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || (start.len() == 4 && start[0] & 0xf0 == 0x50 && start[1..] == [0x2a, 0x4d, 0x18]);
    let whole = Cursor::new(start).chain(input);
    Ok(match (gzip, zstd) {
        (true, _) => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        (_, true) => Box::new(zstd::stream::read::Decoder::new(whole)?),
        (false, false) => Box::new(io::BufReader::with_capacity(64 * 1024, whole)),
    })
}

struct Counted<R> {
    input: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        self.count.set(self.count.get() + got as u64);
        Ok(got)
    }
}

/// Hashes the uncompressed stream and stops it when it grows beyond the limits.
struct Meter<R> {
    input: R,
    compressed: Rc<Cell<u64>>,
    hasher: Sha256,
    bytes: u64,
    limits: Limits,
}

impl<R: Read> Read for Meter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        self.bytes += got as u64;
        let Limits { bytes, ratio, ratio_free_bytes, .. } = self.limits;
        if self.bytes > bytes {
            return Err(io::Error::other(format!("the layer needs more than the {bytes} bytes that are free for it")));
        }
        if self.bytes > ratio_free_bytes && self.bytes / ratio > self.compressed.get() {
            return Err(io::Error::other(format!(
                "the layer is compressed to less than a {ratio}th: it looks like a bomb"
            )));
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};

    use expect_test::{Expect, expect};
    use testkit::images::{Compression, Layer};

    use super::*;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("coracle-unpack-{name}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            Directory(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn check(name: &str, limits: Limits, layer: &[u8], expected: Expect) {
        let directory = Directory::new(name);
        let root = OwnedFd::from(std::fs::File::open(&directory.0).unwrap());
        expected.assert_eq(&unpack(layer, root, &limits).map_or_else(|error| error, |report| report.bytes.to_string()));
    }

    #[test]
    fn bombs_are_stopped() {
        let layer = Layer::new().file("zeros", 0o644, &vec![0; 1 << 20]).finish();
        let bomb = Compression::Zstd.compress(&layer);
        let small = Limits { entries: 9, bytes: 2 << 20, ratio: 250, ratio_free_bytes: 512 << 10 };
        check(
            "ratio",
            small,
            &bomb,
            expect!["/zeros: the layer is compressed to less than a 250th: it looks like a bomb"],
        );
        check("plain", small, &layer, expect!["1050112"]);
        let tight = Limits { bytes: 1 << 20, ..small };
        check(
            "bytes",
            tight,
            &layer,
            expect!["/zeros: the layer needs more than the 1048576 bytes that are free for it"],
        );
        let many = (0..10).fold(Layer::new(), |layer, number| layer.file(&number.to_string(), 0o644, b"")).finish();
        check("entries", small, &many, expect!["the layer has more than 9 entries"]);
    }

    #[test]
    fn trailing_bytes_count_for_the_digest_but_not_for_the_files() {
        let mut layer = Layer::new().file("a", 0o644, b"x").finish();
        layer.extend(Layer::new().file("b", 0o644, b"x").finish());
        let directory = Directory::new("trailing");
        let root = OwnedFd::from(std::fs::File::open(&directory.0).unwrap());
        let report = unpack(&layer[..], root, &Limits::within(1 << 20)).unwrap();
        assert_eq!(report.diff_id, Digest::of(&layer));
        assert!(directory.0.join("a").exists() && !directory.0.join("b").exists());
    }

    /// Random archives of few names, so that entries meet: we refuse, or make the tree that GNU tar makes.
    #[test]
    fn agrees_with_gnu_tar_or_refuses() {
        let mut state = 7_u64;
        let mut pick = |choices: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % choices
        };
        let names = ["a", "b", "c", "a/b", "a/c", "b/a", "./c", "a/b/c", "c/./a"];
        let mut agreed = 0;
        for round in 0..400 {
            let mut layer = Layer::new();
            for _ in 0..2 + pick(6) {
                let name = names[pick(names.len())];
                let mode = [0o644, 0o755, 0o4711][pick(3)];
                layer = match pick(6) {
                    0 | 1 => layer.file(name, mode, &b"contents"[..pick(8)]),
                    2 | 3 => layer.dir(name, mode & 0o777),
                    4 => layer.hard_link(name, names[pick(names.len())]),
                    _ => layer.symlink(name, ["a", "c", "nowhere"][pick(3)]),
                };
            }
            let layer = layer.finish();
            let (ours, theirs) = (Directory::new(&format!("ours-{round}")), Directory::new(&format!("gnu-{round}")));
            let root = OwnedFd::from(std::fs::File::open(&ours.0).unwrap());
            if unpack(&layer[..], root, &Limits::within(1 << 20)).is_err() {
                continue;
            }
            let mut tar = Command::new("tar")
                .args(["-xp", "-C"])
                .arg(&theirs.0)
                .stdin(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            tar.stdin.take().unwrap().write_all(&layer).unwrap();
            let accepted = tar.wait().unwrap().success();
            assert!(accepted, "GNU tar refuses archive {round}: {}", listing(&ours.0));
            assert_eq!(listing(&ours.0), listing(&theirs.0), "archive {round}");
            agreed += 1;
        }
        assert!(agreed > 100, "only {agreed} archives were accepted");
    }

    fn listing(directory: &std::path::Path) -> String {
        let find = Command::new("find")
            .arg(directory)
            .args(["-mindepth", "1", "-printf", "%P %y %m %n %l\n"])
            .output()
            .unwrap();
        let mut lines: Vec<&str> = std::str::from_utf8(&find.stdout).unwrap().lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    }

    /// The child is this very test, started again by name.
    #[test]
    fn child_is_confined() {
        const CHILD: &str = "CORACLE_TEST_UNPACK_CHILD";
        if std::env::var_os(CHILD).is_some() {
            // The test harness has threads, which the real child has not: this one is confined all the same.
            let _root = confine::enter().unwrap();
            let _ = io::stdout().write_all(b"ready\n");
            let _ = io::stdin().read(&mut [0]);
            std::process::exit(0);
        }
        let directory = Directory::new("confined");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "unpack::tests::child_is_confined", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .current_dir(&directory.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert_ne!(io::BufRead::read_line(&mut said, &mut line).unwrap(), 0);
        }
        let confined = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().find_map(|task| {
            let task = task.unwrap().path();
            let status = std::fs::read_to_string(task.join("status")).unwrap();
            status.contains("Seccomp:\t2").then(|| (std::fs::read_link(task.join("root")).unwrap(), status))
        });
        let (root, status) = confined.unwrap();
        assert_eq!(root, directory.0);
        let shown: Vec<&str> =
            status.lines().filter(|line| line.starts_with("Cap") || line.starts_with("NoNewPrivs")).collect();
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP
        assert!(
            shown.contains(&"CapEff:\t000000008800001b") && shown.contains(&"CapPrm:\t000000008800001b"),
            "{shown:?}"
        );
        assert!(shown.contains(&"NoNewPrivs:\t1"), "{shown:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

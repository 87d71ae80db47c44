//! A container's log file: CRI's format, rotation by size.
//!
//! Source: kubernetes `pkg/kubelet/kuberuntime/logs/logs.go` (format) and `pkg/kubelet/logs/container_log_manager.go` (names of
//! rotated files). Nothing is buffered: a line without its end is written at once, tagged `P`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags, fstat, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::plan::LogLimits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

pub(super) struct Log {
    directory: OwnedFd,
    name: String,
    file: File,
    size: u64,
    limits: LogLimits,
    /// Reused for every chunk.
    out: Vec<u8>,
}

impl Log {
    /// Opens `path` below the pod's log directory. Links are never followed: the directory may be shared with a container.
    pub(super) fn open(root: &Path, path: &Path, limits: LogLimits) -> io::Result<Log> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut directory = rustix::fs::open(root, flags, Mode::empty())?;
        if let Some(parent) = path.parent() {
            for part in parent {
                match mkdirat(&directory, part, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                directory = openat(&directory, part, flags | OFlags::NOFOLLOW, Mode::empty())?;
            }
        }
        let name = path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let (file, size) = open_file(&directory, &name)?;
        Ok(Log { directory, name, file, size, limits, out: Vec::new() })
    }

    /// Appends what a container wrote. What cannot be written is lost: a full disk must not stop a container.
    pub(super) fn write(&mut self, stream: Stream, chunk: &[u8], now: SystemTime) {
        #[cfg(feature = "planted")]
        if planted::every(planted::Bug::LogLineLost, 50) {
            return;
        }
        let head = format!("{} {} ", timestamp(now), stream.name());
        for line in chunk.split_inclusive(|byte| *byte == b'\n') {
            let length = (self.out.len() + head.len() + line.len()) as u64 + 3;
            if self.size + length > self.limits.max_size && self.size + self.out.len() as u64 > 0 {
                self.flush();
                // Without a new file the old one grows on: better than losing output.
                self.rotate(SystemTime::now()).ok();
            }
            format_line(&mut self.out, &head, line);
        }
        self.flush();
    }

    fn flush(&mut self) {
        if self.file.write_all(&self.out).is_ok() {
            self.size += self.out.len() as u64;
        }
        self.out.clear();
    }

    /// Opens the file anew after something moved it.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        (self.file, self.size) = open_file(&self.directory, &self.name)?;
        Ok(())
    }

    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        let rotated = format!("{}.{}", self.name, suffix(now));
        renameat(&self.directory, &self.name, &self.directory, &rotated)?;
        self.reopen()?;
        for name in surplus(&self.rotated()?, self.limits.max_files) {
            unlinkat(&self.directory, name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// The rotated files, oldest first.
    fn rotated(&self) -> io::Result<Vec<String>> {
        let prefix = format!("{}.", self.name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::Dir::new(openat(&self.directory, ".", flags, Mode::empty())?)?;
        let mut names = Vec::new();
        for entry in directory {
            let entry = entry?;
            names.extend(
                entry.file_name().to_str().ok().filter(|name| name.starts_with(&prefix)).map(ToOwned::to_owned),
            );
        }
        names.sort();
        Ok(names)
    }
}

/// The oldest of the rotated files, beyond what is kept beside the current one.
fn surplus(rotated: &[String], max_files: u32) -> &[String] {
    let keep = max_files.saturating_sub(1) as usize;
    &rotated[..rotated.len().saturating_sub(keep)]
}

fn open_file(directory: &OwnedFd, name: &str) -> io::Result<(File, u64)> {
    // A file that is a device or a FIFO would block the shim, and with it every container of the pod.
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::from_raw_mode(0o640))?;
    let stat = fstat(&file)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the log is not a regular file"));
    }
    Ok((File::from(file), stat.st_size as u64))
}

/// Appends a log line to `out`. `head` is time and stream; a `line` without its end is tagged as partial.
fn format_line(out: &mut Vec<u8>, head: &str, line: &[u8]) {
    let (tag, text) = match line.strip_suffix(b"\n") {
        Some(text) => ("F ", text),
        None => ("P ", line),
    };
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(tag.as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Year, month, day, hour, minute, second and nanosecond in UTC. The date after Howard Hinnant's `civil_from_days`.
fn civil(now: SystemTime) -> (i64, u32, u32, u64, u64, u64, u32) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 } as u32;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let rest = seconds % 86_400;
    (year, month, day, rest / 3600, rest / 60 % 60, rest % 60, since.subsec_nanos())
}

/// RFC 3339 with nanoseconds, in UTC.
fn timestamp(now: SystemTime) -> String {
    let (year, month, day, hour, minute, second, nano) = civil(now);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nano:09}Z")
}

/// The kubelet's suffix with nanoseconds, so that two rotations in a second do not collide and names sort by age.
fn suffix(now: SystemTime) -> String {
    let (year, month, day, hour, minute, second, nano) = civil(now);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}.{nano:09}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(timestamp(at(0, 0)), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(at(951_827_696, 5)), "2000-02-29T12:34:56.000000005Z");
        assert_eq!(timestamp(at(1_735_689_599, 999_999_999)), "2024-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn whole_lines_are_full_and_the_rest_is_partial() {
        let mut out = Vec::new();
        for line in [&b"one\n"[..], b"\n", b"tw"] {
            format_line(&mut out, "TIME stderr ", line);
        }
        assert_eq!(String::from_utf8(out).unwrap(), "TIME stderr F one\nTIME stderr F \nTIME stderr P tw\n");
    }

    #[test]
    fn the_oldest_go_first() {
        let rotated: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(surplus(&rotated, 3), ["a"]);
        assert!(surplus(&rotated, 4).is_empty());
    }
}

//! One line for each request, in ingress-nginx's format `upstreaminfo`.
//!
//! Source: ingress-nginx `docs/user-guide/nginx-configuration/log-format.md`.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use wire::edge::LOG_LIMIT;

use crate::progress::Progress;

/// What a pipe takes as a whole or not at all (`PIPE_BUF`); longer lines are cut.
const MAX_LINE: usize = 4096;
/// The longest part of a line that a client chooses.
const MAX_FIELD: usize = 1024;

/// Where lines go. Nobody waits for it: a line that does not fit is lost.
#[derive(Debug)]
pub struct AccessLog {
    descriptor: RwLock<OwnedFd>,
    /// How long the file is.
    length: AtomicU64,
    /// An eventfd, written once when the file has become too long.
    full: Arc<OwnedFd>,
}

impl AccessLog {
    pub fn new(descriptor: OwnedFd, full: Arc<OwnedFd>) -> std::io::Result<Self> {
        let length = AtomicU64::new(prepared(&descriptor)?);
        Ok(Self { descriptor: RwLock::new(descriptor), length, full })
    }

    /// Lines go to another file from now on.
    pub fn replace(&self, descriptor: OwnedFd) -> std::io::Result<()> {
        let length = prepared(&descriptor)?;
        let mut current = self.descriptor.write().unwrap_or_else(PoisonError::into_inner);
        *current = descriptor;
        self.length.store(length, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, line: &str) {
        let descriptor = self.descriptor.read().unwrap_or_else(PoisonError::into_inner);
        // Full, or its reader died: the request was served all the same.
        let written = rustix::io::write(&*descriptor, line.as_bytes()).unwrap_or(0) as u64;
        let before = self.length.fetch_add(written, Ordering::Relaxed);
        if before < LOG_LIMIT && LOG_LIMIT <= before + written {
            // The counter of an eventfd takes far more than one.
            let _told = rustix::io::write(&*self.full, &1u64.to_ne_bytes());
        }
    }
}

/// Makes writing never wait; returns the length of what is there, 0 for a pipe.
fn prepared(descriptor: &OwnedFd) -> std::io::Result<u64> {
    rustix::io::ioctl_fionbio(descriptor, true)?;
    Ok(u64::try_from(rustix::fs::fstat(descriptor)?.st_size).unwrap_or(0))
}

/// What one attempt with an endpoint came to.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub endpoint: SocketAddr,
    pub status: u16,
    pub time: Duration,
}

/// What nginx writes for a client that did not wait for its answer.
const CLIENT_GONE: u16 = 499;

/// The line of a request that is being served. It is written when the request is over: when this is dropped.
#[derive(Debug)]
pub struct Line {
    pub log: Arc<AccessLog>,
    pub client: IpAddr,
    pub request: String,
    /// 0 until there is an answer.
    pub status: u16,
    /// Bytes of the answer's body.
    pub sent: u64,
    pub referer: Option<String>,
    pub user_agent: Option<String>,
    /// Bytes of the request's head.
    pub head_length: u64,
    /// How much came of the body.
    pub body: Option<Arc<Progress>>,
    pub started: Instant,
    pub upstream: Option<String>,
    pub attempts: Vec<Attempt>,
    pub request_id: String,
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.status == 0 {
            self.status = CLIENT_GONE;
        }
        let mut text = self.text(Timestamp::now(), self.started.elapsed());
        let mut end = text.len().min(MAX_LINE - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('\n');
        self.log.write(&text);
    }
}

impl Line {
    fn text(&self, now: Timestamp, took: Duration) -> String {
        let mut text = String::with_capacity(512);
        let list = |field: fn(&Attempt) -> String| match self.attempts.as_slice() {
            [] => "-".to_owned(),
            attempts => attempts.iter().map(field).collect::<Vec<_>>().join(", "),
        };
        // Writing into a String does not fail.
        let _infallible = write!(
            text,
            "{} - - [{}] \"{}\" {} {} \"{}\" \"{}\" {} {:.3} [{}] [] {} {} {} {} {}",
            self.client,
            now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            Escaped(&self.request),
            self.status,
            self.sent,
            Escaped(self.referer.as_deref().unwrap_or("-")),
            Escaped(self.user_agent.as_deref().unwrap_or("-")),
            self.head_length + self.body.as_ref().map_or(0, |body| body.received()),
            took.as_secs_f64(),
            self.upstream.as_deref().unwrap_or_default(),
            list(|attempt| attempt.endpoint.to_string()),
            if self.attempts.is_empty() { "-".to_owned() } else { self.sent.to_string() },
            list(|attempt| format!("{:.3}", attempt.time.as_secs_f64())),
            list(|attempt| attempt.status.to_string()),
            Escaped(&self.request_id),
        );
        text
    }
}

/// Text of a client's, which must not end its field or its line. Source: nginx `ngx_http_log_module.c`.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars().take(MAX_FIELD) {
            match character {
                '"' | '\\' => write!(f, "\\x{:02X}", u32::from(character))?,
                control if control.is_control() => write!(f, "\\x{:02X}", u32::from(control))?,
                plain => f.write_char(plain)?,
            }
        }
        Ok(())
    }
}

//! The audit log: who asked for what, and what came of it, one JSON line each, at the level of metadata.
//!
//! Bodies are never in it. Components of this process are in it with what they write. Renewals of leases are left out, and so
//! are reads in process and paths that name no resource: an idle cluster writes nothing. Source: apiserver `pkg/apis/audit/v1/types.go`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::warn;

use crate::identity::User;
use crate::path::{Attributes, Target};

/// Takes audit events. A sink never blocks the request.
pub trait Audit: Send + Sync + 'static {
    fn record(&self, event: &Event<'_>);
}

/// One answered request.
pub struct Event<'a> {
    pub id: &'a str,
    pub received: Timestamp,
    pub answered: Timestamp,
    pub user: &'a User,
    /// Who is acted as, if somebody else.
    pub impersonated: Option<&'a User>,
    pub attributes: &'a Attributes,
    pub uri: &'a str,
    pub source: String,
    pub agent: &'a str,
    pub code: u16,
}

impl Event<'_> {
    /// Whether it belongs into the log.
    pub fn is_kept(&self) -> bool {
        match &self.attributes.target {
            Target::Path(_) => false,
            Target::Resource(at) => {
                let renewal = at.group == "coordination.k8s.io" && at.resource == "leases";
                !(renewal && self.code < 300 && matches!(&*self.attributes.verb, "get" | "update" | "patch"))
            }
        }
    }

    /// The event as upstream writes it.
    pub fn value(&self) -> Value {
        let user =
            |user: &User| json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": self.id,
            "stage": "ResponseComplete", "requestURI": self.uri, "verb": self.attributes.verb,
            "user": user(self.user), "sourceIPs": [self.source], "userAgent": self.agent,
            "responseStatus": {"metadata": {}, "code": self.code},
            "requestReceivedTimestamp": micros(self.received), "stageTimestamp": micros(self.answered),
        });
        if let Some(other) = self.impersonated {
            event["impersonatedUser"] = user(other);
        }
        if let Target::Resource(at) = &self.attributes.target {
            event["objectRef"] = json!({
                "resource": at.resource, "namespace": at.namespace, "name": at.name, "apiGroup": at.group,
                "apiVersion": at.version, "subresource": at.subresource,
            });
        }
        event
    }
}

fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Lines that may wait for the disk. More are dropped and counted: the API must not wait for its log.
const WAITING: usize = 1024;

/// A log of two files of bounded size: when one is full it replaces the older.
pub struct Files {
    lines: SyncSender<Vec<u8>>,
    dropped: AtomicU64,
}

impl Files {
    /// Writes to `path`, and keeps what was written before in `path.1`. `limit` is the size of one file in bytes.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = append(path)?;
        let written = file.metadata()?.len();
        let (lines, receiver) = sync_channel(WAITING);
        let mut writer = Writer { path: path.to_owned(), file, written, limit };
        thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&receiver))?;
        Ok(Self { lines, dropped: AtomicU64::new(0) })
    }
}

impl Audit for Files {
    fn record(&self, event: &Event<'_>) {
        let mut line = event.value().to_string().into_bytes();
        line.push(b'\n');
        match self.lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
                if dropped.is_power_of_two() {
                    warn!(dropped, "audit events were dropped: the disk is too slow");
                }
            }
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl Writer {
    fn run(&mut self, lines: &Receiver<Vec<u8>>) {
        while let Ok(line) = lines.recv() {
            if let Err(error) = self.write(&line) {
                warn!(%error, path = %self.path.display(), "could not write the audit log");
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written + line.len() as u64 > self.limit {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = append(&self.path)?;
            self.written = 0;
        }
        self.file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Names of secrets are in it: it is for root's eyes.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Resource;

    #[test]
    fn two_files_of_bounded_size() {
        let directory = std::env::temp_dir().join(format!("coracle-audit-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("audit.log");
        let mut writer = Writer { file: append(&path).unwrap(), path: path.clone(), written: 0, limit: 10 };
        for line in ["first\n", "second\n", "third\n"] {
            writer.write(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "third\n");
        assert_eq!(std::fs::read_to_string(directory.join("audit.log.1")).unwrap(), "second\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }

    fn kept(verb: &'static str, group: &str, resource: &str, code: u16) -> bool {
        let resource = Resource { group: group.to_owned(), resource: resource.to_owned(), ..Resource::default() };
        let (user, attributes) = (User::default(), Attributes::resource(verb, resource));
        let time = Timestamp::UNIX_EPOCH;
        Event {
            id: "",
            received: time,
            answered: time,
            user: &user,
            impersonated: None,
            attributes: &attributes,
            uri: "",
            source: String::new(),
            agent: "",
            code,
        }
        .is_kept()
    }

    #[test]
    fn renewals_are_left_out_unless_they_fail() {
        assert!(!kept("update", "coordination.k8s.io", "leases", 200));
        assert!(kept("update", "coordination.k8s.io", "leases", 403));
        assert!(kept("get", "", "secrets", 200));
    }
}

//! Which requests of a test the server refused, out of its audit log: the suite puts the test's name into its user agent.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

/// Follows an audit log of two files and counts what was refused.
pub struct Refusals {
    log: PathBuf,
    offset: u64,
    rest: Vec<u8>,
    /// By test: `CODE VERB PATH` in the order of their first time, and how often.
    by_test: BTreeMap<String, Vec<(String, usize)>>,
}

impl Refusals {
    pub fn new(log: &Path) -> Self {
        Self { log: log.to_owned(), offset: 0, rest: Vec::new(), by_test: BTreeMap::new() }
    }

    /// Reads what was written since the last time.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn read_on(&mut self) -> Result<()> {
        let length = match fs::metadata(&self.log) {
            Ok(found) => found.len(),
            Err(_) => return Ok(()), // nothing was asked yet, or the log is being moved aside
        };
        if length < self.offset {
            let mut old = self.log.clone().into_os_string();
            old.push(".1");
            self.take(Path::new(&old))?;
            self.offset = 0;
        }
        self.take(&self.log.clone())
    }

    fn take(&mut self, path: &Path) -> Result<()> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = std::mem::take(&mut self.rest);
        self.offset += file.read_to_end(&mut bytes)? as u64;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(whole);
        String::from_utf8_lossy(&bytes).lines().for_each(|line| self.line(line));
        Ok(())
    }

    fn line(&mut self, line: &str) {
        // Most lines are answers that please.
        if !(line.contains("\"code\":4") || line.contains("\"code\":5")) {
            return;
        }
        let Ok(event) = serde_json::from_str::<Value>(line) else { return };
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        let agent = event["userAgent"].as_str().unwrap_or_default();
        let Some((_, test)) = agent.split_once(" -- ") else { return };
        if code < 400 {
            return;
        }
        let text = |field: &str| event[field].as_str().unwrap_or_default();
        let refused = format!("{code} {} {}", text("verb"), text("requestURI"));
        let found = self.by_test.entry(test.to_owned()).or_default();
        match found.iter_mut().find(|(known, _)| *known == refused) {
            Some((_, times)) => *times += 1,
            None => found.push((refused, 1)),
        }
    }

    /// What a test was refused. Asking for what is not there is how tests wait, so that comes last, the longest wait first.
    pub fn of(&self, test: &str) -> Vec<String> {
        let mut found: Vec<_> = self.by_test.get(test).into_iter().flatten().collect();
        found.sort_by_key(|(refused, times)| (refused.starts_with("404 get"), Reverse(*times)));
        found
            .iter()
            .map(|(refused, times)| if *times > 1 { format!("{refused} ({times}×)") } else { refused.clone() })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn line(code: u16, verb: &str, agent: &str) -> String {
        format!(
            "{}\n",
            serde_json::json!({"responseStatus": {"code": code}, "verb": verb, "requestURI": "/api/v1/x", "userAgent": agent})
        )
    }

    #[test]
    fn counts_refusals_by_test_across_files() {
        let dir = std::env::temp_dir().join(format!("coracle-refusals-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("audit.log");
        let mut refusals = Refusals::new(&log);
        refusals.read_on().unwrap();
        let agent = "e2e.test/v1 -- [sig-node] a";
        let whole = line(422, "create", agent);
        fs::write(&log, format!("{}{}{}", line(404, "get", agent), line(200, "get", agent), &whole[..20])).unwrap();
        refusals.read_on().unwrap();
        File::options().append(true).open(&log).unwrap().write_all(&whole.as_bytes()[20..]).unwrap();
        fs::rename(&log, dir.join("audit.log.1")).unwrap();
        fs::write(&log, line(422, "create", "kubectl")).unwrap();
        refusals.read_on().unwrap();
        File::options().append(true).open(&log).unwrap().write_all(line(404, "get", agent).as_bytes()).unwrap();
        refusals.read_on().unwrap();
        refusals.line(&line(404, "get", agent).replace("/x", "/once"));
        let expected = ["422 create /api/v1/x", "404 get /api/v1/x (2×)", "404 get /api/v1/once"];
        assert_eq!(refusals.of("[sig-node] a"), expected);
        assert!(refusals.of("[sig-node] b").is_empty());
        fs::remove_dir_all(&dir).unwrap();
    }
}

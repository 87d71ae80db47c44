//! Long-lived programs on a host of a lab, each with its log in a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::host::Host;

/// Lines of a log that an error shows.
const SHOWN: usize = 20;

/// Running programs, in the order in which they were started. Dropping this kills them, the last one first.
pub struct Processes {
    dir: PathBuf,
    running: Vec<Process>,
}

struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Processes {
    /// Their logs go to `dir/NAME.log`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), running: Vec::new() }
    }

    /// # Errors
    /// When the program cannot be started.
    pub fn spawn(&mut self, host: &Host, name: &'static str, program: &Path, flags: &[String]) -> Result<()> {
        let log = self.dir.join(format!("{name}.log"));
        let file = fs::File::create(&log).with_context(|| format!("could not make {}", log.display()))?;
        let mut command = host.command(program);
        command.args(flags).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // nsenter becomes the program: the child's id is the program's.
        let child = command.spawn().with_context(|| format!("could not start {name}"))?;
        self.running.push(Process { name, child, log });
        Ok(())
    }

    /// # Errors
    /// When a program has ended; the end of its log is in the message.
    pub fn must_run(&mut self) -> Result<()> {
        for process in &mut self.running {
            if let Some(status) = process.child.try_wait()? {
                bail!("{} ended ({status}):\n{}", process.name, tail(&process.log));
            }
        }
        Ok(())
    }

    /// Name and process id of each, for accounting.
    pub fn pids(&self) -> Vec<(&'static str, u32)> {
        self.running.iter().map(|process| (process.name, process.child.id())).collect()
    }

    /// Kills them, the last one first.
    pub fn stop(&mut self) {
        for mut process in self.running.drain(..).rev() {
            // One that has ended already needs no killing.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }

    /// The end of every log.
    pub fn logs(&self) -> String {
        self.running.iter().map(|process| format!("{}:\n{}\n", process.name, tail(&process.log))).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop();
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

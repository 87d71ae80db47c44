//! Real kubectl, in the versions that users have: from Debian packages, run on a host of a lab.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{Debian, crate_target};
use crate::host::Host;

/// The releases of kubectl that tests run, by the Debian suite that has them.
pub const RELEASES: [Release; 2] =
    [Release { suite: "trixie", minor: "1.32" }, Release { suite: "sid", minor: "1.36" }];

/// Where the server leaves the administrator's kubeconfig on each host.
const KUBECONFIG: &str = "/etc/coracle/kubeconfig";
/// How long a line of a followed command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A release of kubectl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    pub suite: &'static str,
    /// Such as `1.36`.
    pub minor: &'static str,
}

impl Release {
    /// The program itself, fetched on first use.
    ///
    /// # Errors
    /// When the package cannot be fetched.
    pub fn program(self) -> Result<PathBuf> {
        let unpacked = Debian::in_cache(&crate_target().join("debian"), self.suite).unpacked("kubectl")?;
        let program = std::fs::canonicalize(unpacked)?.join("usr/bin/kubectl");
        ensure!(program.is_file(), "the Debian package kubectl of {} holds no {}", self.suite, program.display());
        Ok(program)
    }
}

/// kubectl of one release, talking to the cluster of one host as its administrator, in one namespace.
pub struct Kubectl<'a> {
    host: &'a Host,
    program: PathBuf,
    pub release: Release,
    pub namespace: String,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Printed {
    /// The command line, for messages.
    pub line: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$ kubectl {} # {:?}\n{}{}", self.line, self.code, self.stdout, self.stderr)
    }
}

impl<'a> Kubectl<'a> {
    /// # Errors
    /// When the program cannot be fetched.
    pub fn new(host: &'a Host, release: Release, namespace: &str) -> Result<Self> {
        Ok(Self { host, program: release.program()?, release, namespace: namespace.to_owned() })
    }

    /// A command with these arguments, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.wrapped(&[], arguments)
    }

    /// The same below another program, such as `env A=b` or `script`.
    fn wrapped(&self, before: &[&str], arguments: &[&str]) -> Command {
        let mut command = self.host.command("env");
        command.arg(format!("KUBECONFIG={KUBECONFIG}"));
        command.arg(format!("KUBECACHEDIR=/run/kubectl-{}", self.release.minor));
        // Below /run nothing outlives the host.
        command
            .arg("TMPDIR=/run")
            .args(before)
            .arg(&self.program)
            .arg("--namespace")
            .arg(&self.namespace)
            .args(arguments);
        command
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str], stdin: &str) -> Printed {
        self.finish(self.command(arguments), arguments.join(" "), stdin)
    }

    /// Runs a command with variables such as `NAME=value` in its environment.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run_with(&self, variables: &[&str], arguments: &[&str], stdin: &str) -> Printed {
        self.finish(self.wrapped(variables, arguments), arguments.join(" "), stdin)
    }

    /// Runs a command whose editor is `editor`, such as `sed -i s/a/b/`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run_with_editor(&self, editor: &str, arguments: &[&str]) -> Printed {
        let editor = format!("KUBE_EDITOR={editor}");
        self.finish(self.wrapped(&[&editor], arguments), arguments.join(" "), "")
    }

    /// Runs a command on a terminal of its own, typing `typed`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run_on_terminal(&self, arguments: &[&str], typed: &str) -> Printed {
        let quoted: Vec<String> = arguments.iter().map(|argument| quote(argument)).collect();
        let line = format!("{} --namespace {} {}", self.program.display(), self.namespace, quoted.join(" "));
        let mut command = self.host.command("env");
        command.arg(format!("KUBECONFIG={KUBECONFIG}"));
        command.arg(format!("KUBECACHEDIR=/run/kubectl-{}", self.release.minor));
        command.args(["TERM=xterm", "script", "-qec", &line, "/dev/null"]);
        self.finish(command, arguments.join(" "), typed)
    }

    /// Runs a program on the same host, such as `sh`, with `KUBECTL` naming kubectl.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run_program(&self, program: &[&str]) -> Printed {
        let mut command = self.host.command("env");
        command.arg(format!("KUBECONFIG={KUBECONFIG}")).arg(format!("KUBECTL={}", self.program.display()));
        command.args(program);
        self.finish(command, program.join(" "), "")
    }

    fn finish(&self, mut command: Command, line: String, stdin: &str) -> Printed {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("nsenter can be started");
        let mut input = child.stdin.take().expect("stdin was piped");
        let typed = stdin.to_owned();
        let writer = std::thread::spawn(move || {
            // A command that does not read all of it has its reasons, and says them.
            let _ = input.write_all(typed.as_bytes());
        });
        let output = child.wait_with_output().expect("a started child ends");
        let _ = writer.join();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Printed { line, code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Starts a command that goes on, such as `get -w`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn follow(&self, arguments: &[&str]) -> Result<Following> {
        self.follow_with(&[], arguments)
    }

    /// The same with variables such as `NAME=value` in its environment.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn follow_with(&self, variables: &[&str], arguments: &[&str]) -> Result<Following> {
        let line = arguments.join(" ");
        let mut command = self.wrapped(variables, arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().with_context(|| format!("could not start kubectl {line}"))?;
        let lines = lines_of(child.stdout.take().context("stdout was piped")?);
        Ok(Following { line, child, lines, seen: String::new() })
    }
}

/// A command that goes on; dropping it ends it.
pub struct Following {
    line: String,
    child: Child,
    lines: Receiver<String>,
    seen: String,
}

impl Following {
    /// Waits for a line that contains `wanted`, and returns it.
    ///
    /// # Errors
    /// When the command ends, or prints no such line in time; the message has what it printed.
    pub fn wait_for(&mut self, wanted: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push_str(&line);
                    self.seen.push('\n');
                    if line.contains(wanted) {
                        return Ok(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("kubectl {} printed no {wanted:?} in {PATIENCE:?}:\n{}", self.line, self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("kubectl {} ended without {wanted:?}:\n{}", self.line, self.seen)
                }
            }
        }
    }

    /// Waits until the command ends by itself, and returns its exit code.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for_end(&mut self) -> Result<Option<i32>> {
        crate::host::eventually(PATIENCE, &format!("kubectl {} to end", self.line), || {
            Ok(self.child.try_wait()?.map(|status| status.code()))
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        // One that ended already needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// For a shell.
fn quote(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', r"'\''"))
}

//! The shim's children: forked, set up, running, ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open};

use super::container_directory;
use super::log::{Log, Stream};
use super::namespaces::{Pids, open};
use super::protocol::{Answer, Failure, Message, Start};
use super::server::{Reply, Server, other};
use super::streams::{Output, readable};
use crate::bundle::{EXIT, write_atomically};
use crate::cgroup::OomCounter;
use crate::plan::{Exit, PidMode, Stdin};
use crate::seqpacket;
use crate::setup::{self, Stdio, Task};

pub(super) struct Container {
    pub id: String,
    pub state: State,
    pub stdin: Option<OwnedFd>,
    pub keep_stdin: bool,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
    pub outputs: Vec<Output>,
    pub log: Option<Log>,
    pub cgroups: Vec<PathBuf>,
    pub cgroup_v2: bool,
    pub oom: Option<OomCounter>,
    /// Its first process is no init: what it leaves behind lives on unless it is killed.
    pub shares_pids: bool,
}

pub(super) enum State {
    /// Between its entry and its fork: never seen by another request.
    New,
    /// Told to main as running: if it fails after all, its exit follows.
    Starting {
        pid: u32,
        since: SystemTime,
    },
    Running {
        pid: u32,
        at: SystemTime,
    },
    Exited(Exit),
}

pub(super) struct Exec {
    pub pid: u32,
    pub client: u64,
    pub seq: u64,
}

/// A child between fork and the execution of its program.
pub(super) struct Launch {
    pub pid: u32,
    pub status: OwnedFd,
    pub client: u64,
    pub seq: u64,
    /// The container; `None` is an exec.
    pub container: Option<String>,
    pub terminal: Option<OwnedFd>,
    pub fault: Option<String>,
    /// Reported that the program is next.
    pub ready: bool,
}

impl Container {
    fn new(start: &Start) -> Container {
        Container {
            id: start.id.clone(),
            state: State::New,
            stdin: None,
            keep_stdin: start.stdin == Stdin::Open,
            terminal: None,
            outputs: Vec::new(),
            log: None,
            cgroups: start.cgroups.clone(),
            cgroup_v2: start.cgroup_v2,
            oom: start.oom.clone(),
            shares_pids: start.pid_of.is_some(),
        }
    }
}

impl Launch {
    fn new(pid: u32, status: OwnedFd, client: u64, seq: u64, container: Option<String>) -> Launch {
        Launch { pid, status, client, seq, container, terminal: None, fault: None, ready: false }
    }
}

impl Server {
    /// Forks a container. `None`: the reply follows when its program is executed, or is not.
    pub(super) fn start(&mut self, client: u64, seq: u64, start: Start) -> Option<Reply> {
        if self.containers.iter().any(|container| container.id == start.id) {
            return Some(Err(Failure::Other(format!("container {} was started before", start.id))));
        }
        let id = start.id.clone();
        self.containers.push(Container::new(&start));
        match self.fork_init(start) {
            Ok((pid, status)) => {
                self.launches.push(Launch::new(pid, status, client, seq, Some(id)));
                None
            }
            Err(reason) => {
                self.exited(&id, exit_of_failure(&reason, SystemTime::now()), false);
                Some(Err(Failure::Start(reason)))
            }
        }
    }

    /// The process namespace of a running container.
    fn pids_of(&self, id: &str) -> Result<OwnedFd, String> {
        let target = self.containers.iter().find(|container| container.id == id);
        let Some(State::Running { pid, .. }) = target.map(|container| &container.state) else {
            return Err(format!("the target container {id} does not run"));
        };
        open(&format!("/proc/{pid}/ns/pid")).map_err(|error| format!("open the target's process namespace: {error}"))
    }

    /// The child's pid, and the socket on which it tells how it is doing.
    fn fork_init(&mut self, start: Start) -> Result<(u32, OwnedFd), String> {
        let say = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        let log = match &start.log_path {
            Some(path) => {
                let opened = Log::open(&self.plan.log_dir, path, start.log_limits);
                Some(opened.map_err(|error| format!("open the log {}: {error}", path.display()))?)
            }
            None => None,
        };
        let (status, child_status) = seqpacket::pair().map_err(say("make a socket"))?;
        let mut pipes = match start.terminal {
            true => None,
            false => Some(Pipes::make(start.stdin != Stdin::Null).map_err(say("make a pipe"))?),
        };
        let cgroup = cgroup_of(start.cgroup_v2, &start.cgroups).map_err(say("open the cgroup"))?;
        let stdio = match &mut pipes {
            Some(pipes) => Stdio::Pipes(std::mem::take(&mut pipes.child)),
            None => Stdio::Terminal,
        };
        let target = start.pid_of.as_deref().map(|id| self.pids_of(id)).transpose()?;
        let pids = target.as_ref().map_or(Pids::Container, Pids::Of);
        let forked = self.namespaces.fork(pids, self.plan.pid, cgroup.as_ref()).map_err(say("fork"))?;
        let Some(pid) = forked else {
            let directory = container_directory(&self.directory, &start.id);
            setup::run(&directory, Task::Init { base: self.namespaces.mounts.as_fd() }, stdio, child_status)
        };
        let Some(container) = self.containers.last_mut() else { return Err("no container".to_owned()) };
        container.state = State::Starting { pid, since: SystemTime::now() };
        container.log = log;
        if let Some(Pipes { stdin, stdout, stderr, .. }) = pipes {
            container.stdin = stdin;
            container.outputs = vec![Output::new(stdout, Stream::Stdout), Output::new(stderr, Stream::Stderr)];
        }
        Ok((pid, status))
    }

    /// Forks a process into a container's namespaces. The reply follows when its program is executed, or is not.
    pub(super) fn exec(
        &mut self,
        client: u64,
        seq: u64,
        id: &str,
        terminal: bool,
        stdin: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let container = self.find(id)?;
        let State::Running { pid: init, .. } = container.state else { return Err(Failure::NotRunning) };
        let (cgroups, v2) = (container.cgroups.clone(), container.cgroup_v2);
        let mut fds = fds.into_iter();
        let missing = || Failure::Other("a descriptor is missing".to_owned());
        let plan = fds.next().ok_or_else(missing)?;
        let stdio = if terminal {
            Stdio::Terminal
        } else {
            let input = if stdin { Some(fds.next().ok_or_else(missing)?) } else { None };
            let [output, error] = [fds.next().ok_or_else(missing)?, fds.next().ok_or_else(missing)?];
            Stdio::Pipes([input, Some(output), Some(error)])
        };
        let init = pid_of(init).ok_or(Failure::NotRunning)?;
        let pidfd = pidfd_open(init, PidfdFlags::empty()).map_err(|_| Failure::NotRunning)?;
        let pids = open(&format!("/proc/{}/ns/pid", init.as_raw_nonzero())).map_err(|_| Failure::NotRunning)?;
        let (status, child_status) = seqpacket::pair().map_err(other("socketpair"))?;
        let cgroup = cgroup_of(v2, &cgroups).map_err(other("open the cgroup"))?;
        let pid = match self.namespaces.fork(Pids::Of(&pids), self.plan.pid, cgroup.as_ref()) {
            Ok(Some(pid)) => pid,
            Ok(None) => {
                let directory = container_directory(&self.directory, id);
                setup::run(&directory, Task::Exec { init: pidfd.as_fd(), plan }, stdio, child_status)
            }
            // The process namespace of a container that is just ending takes no new process: ENOMEM.
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => return Err(Failure::NotRunning),
            Err(error) => return Err(Failure::Start(format!("fork: {error}"))),
        };
        self.launches.push(Launch::new(pid, status, client, seq, None));
        Ok(())
    }

    /// Reads what a child says while it sets itself up.
    pub(super) fn launch_progress(&mut self, pid: u32) {
        let mut buffer = [0; 4096];
        loop {
            let Some(launch) = self.launches.iter_mut().find(|launch| launch.pid == pid) else { return };
            if !readable(&launch.status) {
                return;
            }
            let (length, mut fds) = seqpacket::receive(launch.status.as_fd(), &mut buffer).unwrap_or_default();
            match buffer[..length].split_first() {
                None => return self.launched(pid),
                Some((b'T', _)) => launch.terminal = fds.pop(),
                Some((b'X', _)) => launch.ready = true,
                Some((_, reason)) => launch.fault = Some(String::from_utf8_lossy(reason).into_owned()),
            }
        }
    }

    /// The child's socket is closed: its program runs, or it is dead.
    fn launched(&mut self, pid: u32) {
        let Some(index) = self.launches.iter().position(|launch| launch.pid == pid) else { return };
        let launch = self.launches.swap_remove(index);
        let failed = match launch.fault {
            Some(fault) => Some(fault),
            None if launch.ready => None,
            None => Some(died_early(pid)),
        };
        let now = SystemTime::now();
        let reply = match (launch.container, failed) {
            (Some(id), Some(reason)) => {
                // Main learns it from the reply, unless the one that asked is gone.
                let orphaned = !self.clients.iter().any(|client| client.number == launch.client);
                self.exited(&id, exit_of_failure(&reason, now), orphaned);
                Err(Failure::Start(reason))
            }
            (Some(id), None) => self.started(&id, pid, now, launch.terminal),
            (None, Some(reason)) => Err(Failure::Start(reason)),
            (None, None) => self.executing(pid, launch.client, launch.seq, launch.terminal),
        };
        self.reply(launch.client, launch.seq, reply);
        self.shrink = true;
    }

    fn started(&mut self, id: &str, pid: u32, now: SystemTime, terminal: Option<OwnedFd>) -> Reply {
        let container = self.find(id)?;
        container.state = State::Running { pid, at: now };
        if let Some(terminal) = terminal {
            let source = terminal.try_clone().map_err(other("duplicate the terminal"))?;
            container.outputs.push(Output::new(source, Stream::Stdout));
            container.terminal = Some(terminal);
        }
        Ok((Answer::Started { pid, at: now }, Vec::new()))
    }

    fn executing(&mut self, pid: u32, client: u64, seq: u64, terminal: Option<OwnedFd>) -> Reply {
        self.execs.push(Exec { pid, client, seq });
        let pidfd = pid_of(pid)
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(|error| other("open a pidfd")(error.into()))?;
        Ok((Answer::Executing { pid }, std::iter::once(pidfd).chain(terminal).collect()))
    }

    /// Reaps every child that has ended.
    pub(super) fn children_changed(&mut self) {
        let mut buffer = [0; 128];
        while rustix::io::read(&self.signals, &mut buffer[..]).is_ok_and(|length| length == buffer.len()) {}
        // A child's last words are there before its end.
        let launching: Vec<u32> = self.launches.iter().map(|launch| launch.pid).collect();
        launching.into_iter().for_each(|pid| self.launch_progress(pid));
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get() as u32;
            // It may have ended after the look at the launches.
            self.launch_progress(pid);
            self.child_ended(pid, status);
        }
    }

    fn child_ended(&mut self, pid: u32, status: WaitStatus) {
        let (code, signal) = code_of(status);
        if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid) {
            let exec = self.execs.swap_remove(index);
            self.send(exec.client, &Message::ExecExited { seq: exec.seq, code }, &[]);
            return;
        }
        let running = self.containers.iter().find_map(|container| match container.state {
            State::Running { pid: init, at } if init == pid => Some((container.id.clone(), at, container.oom.clone())),
            _ => None,
        });
        if let Some((id, started_at, oom)) = running {
            let oom_killed = code != 0 && oom.is_some_and(|counter| counter.read() > 0);
            let exit = Exit {
                #[cfg(feature = "planted")]
                exit_code: if planted::on(planted::Bug::ExitCodeLost) { 0 } else { code },
                #[cfg(not(feature = "planted"))]
                exit_code: code,
                signal,
                oom_killed,
                started_at: Some(started_at),
                finished_at: SystemTime::now(),
                message: String::new(),
            };
            self.exited(&id, exit, true);
        }
    }

    /// Completes the log, keeps the exit on disk, and tells main.
    fn exited(&mut self, id: &str, exit: Exit, notify: bool) {
        let Some(container) = self.containers.iter_mut().find(|container| container.id == id) else { return };
        if self.plan.pid != PidMode::Container || container.shares_pids {
            // Nobody else ends what the init leaves behind: it was no init to them.
            kill_all(&container.cgroups);
        }
        for output in &mut container.outputs {
            output.drain(container.log.as_mut(), &mut self.buffer);
        }
        container.outputs.clear();
        (container.stdin, container.terminal, container.log) = (None, None, None);
        container.state = State::Exited(exit.clone());
        if let Ok(text) = serde_json::to_vec(&exit) {
            // The exit is told by the socket as well; the file is for a shim that dies later.
            write_atomically(&container_directory(&self.directory, id).join(EXIT), &text).ok();
        }
        if notify {
            let numbers: Vec<u64> =
                self.clients.iter().filter(|client| client.welcome).map(|client| client.number).collect();
            let message = Message::Exited { id: id.to_owned(), exit };
            numbers.into_iter().for_each(|number| self.send(number, &message, &[]));
        }
    }
}

/// The pipes of a container without a terminal.
struct Pipes {
    child: [Option<OwnedFd>; 3],
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Pipes {
    fn make(stdin: bool) -> io::Result<Pipes> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let (child_in, stdin) = match stdin {
            true => pipe().map(|(read, write)| (Some(read), Some(write)))?,
            false => (None, None),
        };
        let ((stdout, child_out), (stderr, child_err)) = (pipe()?, pipe()?);
        Ok(Pipes { child: [child_in, Some(child_out), Some(child_err)], stdin, stdout, stderr })
    }
}

pub(super) fn pid_of(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// The version 2 cgroup to fork into; on version 1 the child moves itself.
fn cgroup_of(v2: bool, directories: &[PathBuf]) -> io::Result<Option<OwnedFd>> {
    match directories.first().filter(|_| v2) {
        Some(directory) => Ok(Some(super::open_directory(directory)?)),
        None => Ok(None),
    }
}

/// Kills the processes of a container's cgroup, once; main does it thoroughly when it removes the container.
fn kill_all(cgroups: &[PathBuf]) {
    let Some(directory) = cgroups.first() else { return };
    let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter_map(pid_of) {
        // Gone already: fine.
        rustix::process::kill_process(pid, Signal::KILL).ok();
    }
}

/// The exit code as shells and the CRI have it, and the signal that killed the process.
fn code_of(status: WaitStatus) -> (i32, Option<i32>) {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code, None),
        (None, Some(signal)) => (128 + signal, Some(signal)),
        (None, None) => (255, None),
    }
}

/// Why a child is gone that said nothing. It is dead, or about to be: the wait is short.
fn died_early(pid: u32) -> String {
    let status = pid_of(pid).and_then(|pid| rustix::process::waitpid(Some(pid), WaitOptions::empty()).ok().flatten());
    match status.map(|(_, status)| code_of(status)) {
        Some((_, Some(9))) => "the container's set-up was killed; its memory limit may be too low".to_owned(),
        Some((_, Some(signal))) => format!("the container's set-up was killed by signal {signal}"),
        Some((code, None)) => format!("the container's set-up ended with code {code}"),
        None => "the container's set-up died".to_owned(),
    }
}

/// A container that never ran: the kubelet shows code 128 and reason StartError.
fn exit_of_failure(reason: &str, now: SystemTime) -> Exit {
    Exit {
        exit_code: 128,
        signal: None,
        oom_killed: false,
        started_at: None,
        finished_at: now,
        message: reason.to_owned(),
    }
}

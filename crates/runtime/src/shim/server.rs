//! The shim's loop: what it watches, and what it does about it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use super::container_directory;
use super::log::{Log, Stream};
use super::namespaces::{Namespaces, Pids, open};
use super::protocol::{Answer, Failure, Message, Op, Request, Start, VERSION};
use super::streams::{CHUNK, Output, readable};
use crate::bundle::{EXIT, write_atomically};
use crate::cgroup::OomCounter;
use crate::plan::{AttachPlan, ContainerState, Exit, PidMode, PodPlan, Stdin};
use crate::seqpacket::{self, MAX_MESSAGE};
use crate::setup::{self, Stdio, Task};

pub(super) struct Server {
    directory: PathBuf,
    plan: PodPlan,
    namespaces: Namespaces,
    signals: OwnedFd,
    /// Locked as long as this process lives.
    _lock: File,
    clients: Vec<Client>,
    next_client: u64,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    launches: Vec<Launch>,
    /// For output; one for all streams.
    buffer: Box<[u8; CHUNK]>,
}

/// A connection from main: the one that started this shim, or a later one.
struct Client {
    number: u64,
    socket: OwnedFd,
    /// Said `Hello`: gets notices.
    welcome: bool,
}

struct Container {
    id: String,
    state: State,
    stdin: Option<OwnedFd>,
    keep_stdin: bool,
    /// The master of its terminal.
    terminal: Option<OwnedFd>,
    outputs: Vec<Output>,
    log: Option<Log>,
    cgroups: Vec<PathBuf>,
    cgroup_v2: bool,
    oom: Option<OomCounter>,
}

enum State {
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

struct Exec {
    pid: u32,
    client: u64,
    seq: u64,
}

/// A child between fork and the execution of its program.
struct Launch {
    pid: u32,
    status: OwnedFd,
    client: u64,
    seq: u64,
    /// The container; `None` is an exec.
    container: Option<String>,
    terminal: Option<OwnedFd>,
    fault: Option<String>,
    /// Reported that the program is next.
    ready: bool,
}

/// What became readable.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Client(u64),
    Launch(u32),
    Output { container: usize, output: usize },
}

type Reply = Result<(Answer, Vec<OwnedFd>), Failure>;

fn other(what: &str) -> impl Fn(io::Error) -> Failure + '_ {
    move |error| Failure::Other(format!("{what}: {error}"))
}

impl Server {
    pub(super) fn new(
        directory: PathBuf,
        plan: PodPlan,
        namespaces: Namespaces,
        signals: OwnedFd,
        lock: File,
    ) -> Server {
        Server {
            directory,
            plan,
            namespaces,
            signals,
            _lock: lock,
            clients: Vec::new(),
            next_client: 0,
            containers: Vec::new(),
            execs: Vec::new(),
            launches: Vec::new(),
            buffer: Box::new([0; CHUNK]),
        }
    }

    /// Serves until main says `Shutdown`.
    pub(super) fn run(mut self, listener: OwnedFd, first: OwnedFd) -> io::Result<()> {
        self.accept(first);
        loop {
            let ready = self.wait(&listener)?;
            for source in ready {
                match source {
                    Source::Listener => self.accept_all(&listener),
                    Source::Signals => self.children_changed(),
                    Source::Client(number) => {
                        if self.serve(number) {
                            return Ok(());
                        }
                    }
                    Source::Launch(pid) => self.launch_progress(pid),
                    Source::Output { container, output } => self.output(container, output),
                }
            }
            // Indexes stay valid through a round: ended streams are removed only here.
            for container in &mut self.containers {
                container.outputs.retain(|output| !output.ended);
            }
        }
    }

    fn wait(&self, listener: &OwnedFd) -> io::Result<Vec<Source>> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
        ];
        let mut sources = vec![Source::Listener, Source::Signals];
        for client in &self.clients {
            fds.push(PollFd::from_borrowed_fd(client.socket.as_fd(), PollFlags::IN));
            sources.push(Source::Client(client.number));
        }
        for launch in &self.launches {
            fds.push(PollFd::from_borrowed_fd(launch.status.as_fd(), PollFlags::IN));
            sources.push(Source::Launch(launch.pid));
        }
        for (container, entry) in self.containers.iter().enumerate() {
            for (output, stream) in entry.outputs.iter().enumerate() {
                fds.push(PollFd::from_borrowed_fd(stream.source().as_fd(), PollFlags::IN));
                sources.push(Source::Output { container, output });
            }
        }
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        Ok(fds.iter().zip(sources).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, source)| source).collect())
    }

    // Connections

    fn accept_all(&mut self, listener: &OwnedFd) {
        while let Ok(socket) = rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
            // The directory is 0700 already; a descriptor of it may have leaked.
            let trusted =
                rustix::net::sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
            if trusted {
                self.accept(socket);
            }
        }
    }

    fn accept(&mut self, socket: OwnedFd) {
        self.clients.push(Client { number: self.next_client, socket, welcome: false });
        self.next_client += 1;
    }

    /// Handles one request; true when it was the last.
    fn serve(&mut self, number: u64) -> bool {
        let Some(client) = self.clients.iter().find(|client| client.number == number) else { return false };
        let mut buffer = vec![0; MAX_MESSAGE];
        let (length, fds) = match seqpacket::receive(client.socket.as_fd(), &mut buffer) {
            Ok((length, fds)) if length > 0 => (length, fds),
            _ => {
                self.clients.retain(|client| client.number != number);
                return false;
            }
        };
        let request: Request = match serde_json::from_slice(&buffer[..length]) {
            Ok(request) => request,
            Err(error) => {
                let failure = Failure::Other(format!("a request that this shim does not understand: {error}"));
                // The number may be readable though the rest is not.
                let seq = serde_json::from_slice(&buffer[..length]).map_or(0, |Number { seq }| seq);
                self.reply(number, seq, Err(failure));
                return false;
            }
        };
        drop(buffer);
        let last = matches!(request.op, Op::Shutdown);
        if let Some(reply) = self.perform(number, request.seq, request.op, fds) {
            self.reply(number, request.seq, reply);
        }
        last
    }

    /// `None`: the reply follows when the child has been executed, or not.
    fn perform(&mut self, client: u64, seq: u64, op: Op, fds: Vec<OwnedFd>) -> Option<Reply> {
        let done = |()| (Answer::Done, Vec::new());
        match op {
            Op::Hello { version: _ } => Some(self.welcome(client)),
            Op::Start(start) => self.start(client, seq, start).err().map(Err),
            Op::Exec { id, terminal, stdin } => self.exec(client, seq, &id, terminal, stdin, fds).err().map(Err),
            Op::Attach { id, plan } => Some(self.attach(&id, plan, fds)),
            Op::Signal { id, signal } => Some(self.signal(&id, signal).map(done)),
            Op::ReopenLog { id } => Some(self.reopen_log(&id).map(done)),
            Op::Forget { id } => Some(self.forget(&id).map(done)),
            Op::Shutdown => Some(Ok(done(()))),
        }
    }

    fn reply(&mut self, client: u64, seq: u64, reply: Reply) {
        let (result, fds) = match reply {
            Ok((answer, fds)) => (Ok(answer), fds),
            Err(failure) => (Err(failure), Vec::new()),
        };
        self.send(client, &Message::Reply { seq, result }, &fds);
    }

    /// A client that does not read is cut off: it connects anew, and is told the state of everything.
    fn send(&mut self, number: u64, message: &Message, fds: &[OwnedFd]) {
        let Some(client) = self.clients.iter().find(|client| client.number == number) else { return };
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let sent = serde_json::to_vec(message)
            .map_err(io::Error::from)
            .and_then(|text| seqpacket::send_now(client.socket.as_fd(), &text, &fds));
        if sent.is_err() {
            self.clients.retain(|client| client.number != number);
        }
    }

    fn welcome(&mut self, number: u64) -> Reply {
        if let Some(client) = self.clients.iter_mut().find(|client| client.number == number) {
            client.welcome = true;
        }
        let containers = self
            .containers
            .iter()
            .map(|container| {
                let state = match &container.state {
                    State::Starting { pid, since: at } | State::Running { pid, at } => {
                        ContainerState::Running { pid: *pid, started_at: *at }
                    }
                    State::Exited(exit) => ContainerState::Exited(exit.clone()),
                };
                (container.id.clone(), state)
            })
            .collect();
        let network = match &self.namespaces.network {
            Some(network) => vec![network.try_clone().map_err(other("duplicate the network namespace"))?],
            None => Vec::new(),
        };
        Ok((Answer::Welcome { version: VERSION, pid: std::process::id(), containers }, network))
    }

    // Containers

    fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.iter_mut().find(|container| container.id == id).ok_or(Failure::UnknownContainer)
    }

    fn start(&mut self, client: u64, seq: u64, start: Start) -> Result<(), Failure> {
        if self.containers.iter().any(|container| container.id == start.id) {
            return Err(Failure::Other(format!("container {} was started before", start.id)));
        }
        let log = match &start.log_path {
            Some(path) => {
                let opened = Log::open(&self.plan.log_dir, path, start.log_limits);
                Some(opened.map_err(|error| Failure::Start(format!("open the log {}: {error}", path.display())))?)
            }
            None => None,
        };
        let (status, child_status) = seqpacket::pair().map_err(other("socketpair"))?;
        let pipes = if start.terminal { None } else { Some(Pipes::make(start.stdin != Stdin::Null)?) };
        let cgroup = cgroup_of(start.cgroup_v2, &start.cgroups).map_err(other("open the cgroup"))?;
        let pid = match self.namespaces.fork(Pids::Container, self.plan.pid, cgroup.as_ref()) {
            Ok(Some(pid)) => pid,
            Ok(None) => {
                let stdio = match pipes {
                    Some(pipes) => Stdio::Pipes(pipes.child),
                    None => Stdio::Terminal,
                };
                let directory = container_directory(&self.directory, &start.id);
                let task = Task::Init { base: self.namespaces.mounts.as_fd() };
                setup::run(&directory, task, stdio, child_status)
            }
            Err(error) => return Err(Failure::Start(format!("fork: {error}"))),
        };
        drop(child_status);
        let (stdin, outputs) = match pipes {
            Some(Pipes { child, stdin, stdout, stderr }) => {
                drop(child);
                (stdin, vec![Output::new(stdout, Stream::Stdout), Output::new(stderr, Stream::Stderr)])
            }
            None => (None, Vec::new()),
        };
        self.containers.push(Container {
            id: start.id.clone(),
            state: State::Starting { pid, since: SystemTime::now() },
            stdin,
            keep_stdin: start.stdin == Stdin::Open,
            terminal: None,
            outputs,
            log,
            cgroups: start.cgroups,
            cgroup_v2: start.cgroup_v2,
            oom: start.oom,
        });
        self.launches.push(Launch {
            pid,
            status,
            client,
            seq,
            container: Some(start.id),
            terminal: None,
            fault: None,
            ready: false,
        });
        Ok(())
    }

    fn exec(
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
        let pidfd =
            rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty()).map_err(|_| Failure::NotRunning)?;
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
        self.launches.push(Launch {
            pid,
            status,
            client,
            seq,
            container: None,
            terminal: None,
            fault: None,
            ready: false,
        });
        Ok(())
    }

    fn attach(&mut self, id: &str, plan: AttachPlan, fds: Vec<OwnedFd>) -> Reply {
        let container = self.find(id)?;
        if !matches!(container.state, State::Running { .. }) {
            return Err(Failure::NotRunning);
        }
        let stream = |what: &str| Failure::Stream(format!("the container has no {what}"));
        if plan.stderr && container.terminal.is_some() {
            return Err(stream("stderr of its own: it has a terminal"));
        }
        let input = match (&container.terminal, &container.stdin) {
            (Some(terminal), _) => vec![terminal.try_clone().map_err(other("duplicate the terminal"))?],
            (None, Some(stdin)) if plan.stdin => vec![stdin.try_clone().map_err(other("duplicate stdin"))?],
            (None, None) if plan.stdin => return Err(stream("open stdin")),
            (None, _) => Vec::new(),
        };
        let wanted = [(plan.stdout, Stream::Stdout), (plan.stderr, Stream::Stderr)];
        let wanted = wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, stream)| stream);
        for (stream, fd) in wanted.zip(fds) {
            if let Some(output) = container.outputs.iter_mut().find(|output| output.stream == stream) {
                output.attach(fd).map_err(|error| other("attach")(error.into()))?;
            }
        }
        if plan.stdin && !container.keep_stdin {
            container.stdin = None;
        }
        Ok((Answer::Attached, input))
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Failure> {
        let State::Running { pid, .. } = self.find(id)?.state else { return Ok(()) };
        let (Some(pid), Some(signal)) = (pid_of(pid), Signal::from_named_raw(signal)) else {
            return Err(Failure::Other(format!("{signal} is not a signal")));
        };
        // The pid is this process' child and not reaped yet: it cannot be another's.
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(other("signal")(error.into())),
        }
    }

    fn reopen_log(&mut self, id: &str) -> Result<(), Failure> {
        match &mut self.find(id)?.log {
            Some(log) => log.reopen().map_err(other("reopen the log")),
            None => Ok(()),
        }
    }

    fn forget(&mut self, id: &str) -> Result<(), Failure> {
        self.children_changed();
        if self.containers.iter().any(|container| container.id == id && !matches!(container.state, State::Exited(_))) {
            return Err(Failure::Other("the container runs".to_owned()));
        }
        self.containers.retain(|container| container.id != id);
        crate::sys::trim_heap();
        Ok(())
    }

    // Children

    /// Reads what a child says while it sets itself up.
    fn launch_progress(&mut self, pid: u32) {
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
        crate::sys::trim_heap();
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
            .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
            .map_err(|error| other("open a pidfd")(error.into()))?;
        Ok((Answer::Executing { pid }, std::iter::once(pidfd).chain(terminal).collect()))
    }

    /// Reaps every child that has ended.
    fn children_changed(&mut self) {
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
        if self.plan.pid != PidMode::Container {
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

    fn output(&mut self, container: usize, output: usize) {
        let Some(container) = self.containers.get_mut(container) else { return };
        let Some(output) = container.outputs.get_mut(output) else { return };
        if !output.pump(container.log.as_mut(), &mut self.buffer) {
            output.ended = true;
        }
    }
}

/// Just the number of a request.
#[derive(serde::Deserialize)]
struct Number {
    seq: u64,
}

/// The pipes of a container without a terminal.
struct Pipes {
    child: [Option<OwnedFd>; 3],
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Pipes {
    fn make(stdin: bool) -> Result<Pipes, Failure> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| other("make a pipe")(error.into()));
        let (child_in, stdin) = if stdin {
            let (read, write) = pipe()?;
            (Some(read), Some(write))
        } else {
            (None, None)
        };
        let ((stdout, child_out), (stderr, child_err)) = (pipe()?, pipe()?);
        Ok(Pipes { child: [child_in, Some(child_out), Some(child_err)], stdin, stdout, stderr })
    }
}

fn pid_of(pid: u32) -> Option<Pid> {
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

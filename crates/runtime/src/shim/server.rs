//! The shim's loop: what it watches, and what it does about it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::children::{Container, Exec, Launch, State, pid_of};
use super::log::Stream;
use super::namespaces::Namespaces;
use super::protocol::{Answer, Failure, Message, Op, Request, VERSION};
use super::streams::{CHUNK, readable};
use crate::plan::{AttachPlan, ContainerState, PodPlan};
use crate::seqpacket::{self, MAX_MESSAGE};

pub(super) struct Server {
    pub directory: PathBuf,
    pub plan: PodPlan,
    pub namespaces: Namespaces,
    pub signals: OwnedFd,
    /// Locked as long as this process lives.
    _lock: File,
    pub clients: Vec<Client>,
    pub next_client: u64,
    pub containers: Vec<Container>,
    pub execs: Vec<Exec>,
    pub launches: Vec<Launch>,
    /// Something came to an end that took more memory than waiting does.
    pub shrink: bool,
    /// For output; one for all streams.
    pub buffer: Box<[u8; CHUNK]>,
}

/// A connection from main: the one that started this shim, or a later one.
pub(super) struct Client {
    pub number: u64,
    pub socket: OwnedFd,
    /// Said `Hello`: gets notices.
    pub welcome: bool,
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

pub(super) type Reply = Result<(Answer, Vec<OwnedFd>), Failure>;

pub(super) fn other(what: &str) -> impl Fn(io::Error) -> Failure + '_ {
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
            shrink: true,
            buffer: Box::new([0; CHUNK]),
        }
    }

    /// Serves until main says `Shutdown`.
    pub(super) fn run(mut self, listener: OwnedFd, first: OwnedFd) -> io::Result<()> {
        self.accept(first);
        loop {
            if self.shrink && self.launches.is_empty() {
                self.shrink = false;
                crate::sys::shrink();
            }
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
            Op::Start(start) => self.start(client, seq, start),
            Op::Exec { id, terminal, stdin } => self.exec(client, seq, &id, terminal, stdin, fds).err().map(Err),
            Op::Attach { id, plan } => Some(self.attach(&id, plan, fds)),
            Op::Signal { id, signal } => Some(self.signal(&id, signal).map(done)),
            Op::ReopenLog { id } => Some(self.reopen_log(&id).map(done)),
            Op::Forget { id } => Some(self.forget(&id).map(done)),
            Op::Shutdown => Some(Ok(done(()))),
        }
    }

    pub(super) fn reply(&mut self, client: u64, seq: u64, reply: Reply) {
        let (result, fds) = match reply {
            Ok((answer, fds)) => (Ok(answer), fds),
            Err(failure) => (Err(failure), Vec::new()),
        };
        self.send(client, &Message::Reply { seq, result }, &fds);
    }

    /// A client that does not read is cut off: it connects anew, and is told the state of everything.
    pub(super) fn send(&mut self, number: u64, message: &Message, fds: &[OwnedFd]) {
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
        self.shrink = true;
        if let Some(client) = self.clients.iter_mut().find(|client| client.number == number) {
            client.welcome = true;
        }
        let containers = self
            .containers
            .iter()
            .filter_map(|container| {
                let state = match &container.state {
                    State::New => return None,
                    State::Starting { pid, since: at } | State::Running { pid, at } => {
                        ContainerState::Running { pid: *pid, started_at: *at }
                    }
                    State::Exited(exit) => ContainerState::Exited(exit.clone()),
                };
                Some((container.id.clone(), state))
            })
            .collect();
        let network = match &self.namespaces.network {
            Some(network) => vec![network.try_clone().map_err(other("duplicate the network namespace"))?],
            None => Vec::new(),
        };
        Ok((Answer::Welcome { version: VERSION, pid: std::process::id(), containers }, network))
    }

    // Containers

    pub(super) fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.iter_mut().find(|container| container.id == id).ok_or(Failure::UnknownContainer)
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
        self.shrink = true;
        Ok(())
    }

    fn output(&mut self, container: usize, output: usize) {
        let Some(container) = self.containers.get_mut(container) else { return };
        let Some(output) = container.outputs.get_mut(output) else { return };
        // Whatever was handled before this in the same round may have read it, or moved another stream here.
        if readable(output.source()) && !output.pump(container.log.as_mut(), &mut self.buffer) {
            output.ended = true;
        }
    }
}

/// Just the number of a request.
#[derive(serde::Deserialize)]
struct Number {
    seq: u64,
}

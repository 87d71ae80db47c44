//! The private socket to main: frames down, frames up, listening sockets beside them.
//!
//! One thread, no runtime: whatever load the proxy is under, main is heard. The newest connection is main; an older one is a
//! main that died or was replaced.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, accept_with, recvmsg, sendmsg,
};
use tracing::{info, warn};
use wire::edge::{Counters, Down, MAX_FRAME, MAX_SOCKETS, Problem, Socket, Table, Up, VERSION, frame, take};

/// What is read at once.
const CHUNK: usize = 64 << 10;
/// A buffer that grew beyond this for one table is given back.
const KEPT_BUFFER: usize = 256 << 10;

/// What main wants, once the protocol's own business is done.
pub enum Order {
    Listen(Socket, OwnedFd),
    Table(Box<Table>),
    Log(OwnedFd),
    Count,
}

/// The listening socket, and the main of the day.
pub struct Control {
    listener: OwnedFd,
    main: Option<Main>,
    /// What is listened on, with descriptors to hand to the next main.
    held: Vec<(Socket, OwnedFd)>,
    generation: u64,
    orders: VecDeque<Order>,
    draining: bool,
    /// Readable when the access log has become too long.
    log_full: Arc<OwnedFd>,
    /// It is, and main has not given another yet: a main that comes later is told too.
    wants_log: bool,
}

/// What woke the thread.
enum Woken {
    Connecting,
    Speaking,
    LogFull,
}

struct Main {
    socket: OwnedFd,
    received: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    greeted: bool,
}

impl Control {
    pub fn new(listener: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        let (held, orders) = (Vec::new(), VecDeque::new());
        let log_full = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Self { listener, main: None, held, generation: 0, orders, draining: false, log_full, wants_log: false })
    }

    /// An eventfd to be written when the access log has become too long.
    pub fn log_full(&self) -> Arc<OwnedFd> {
        self.log_full.clone()
    }

    /// Waits for the next order; `None` when the edge shall drain.
    ///
    /// # Errors
    /// When the kernel fails; nothing that main sends is one.
    pub fn next(&mut self) -> io::Result<Option<Order>> {
        loop {
            if let Some(order) = self.orders.pop_front() {
                return Ok(Some(order));
            }
            if self.draining {
                return Ok(None);
            }
            match self.wait()? {
                Woken::Connecting => self.accept(),
                Woken::Speaking => self.hear(),
                Woken::LogFull => {
                    // Read to make it quiet; what was counted does not matter.
                    let _count = rustix::io::read(&*self.log_full, &mut [0; 8]);
                    self.wants_log = true;
                    self.ask_for_log();
                }
            }
        }
    }

    pub fn acknowledge(&mut self, generation: u64, problems: Vec<Problem>) {
        self.generation = generation;
        self.tell(&Up::Ack { generation, problems });
    }

    pub fn count(&mut self, counters: Counters) {
        self.tell(&Up::Counters(counters));
    }

    fn ask_for_log(&mut self) {
        if self.wants_log && self.main.as_ref().is_some_and(|main| main.greeted) {
            self.tell(&Up::LogFull);
        }
    }

    fn wait(&self) -> io::Result<Woken> {
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        let log_full = PollFd::new(&*self.log_full, PollFlags::IN);
        let main = self.main.as_ref().map(|main| PollFd::new(&main.socket, PollFlags::IN));
        let mut sources: Vec<PollFd<'_>> = [listener, log_full].into_iter().chain(main).collect();
        let ready = |source: &PollFd<'_>| !source.revents().is_empty();
        loop {
            match poll(&mut sources, None) {
                Ok(_) if ready(&sources[0]) => return Ok(Woken::Connecting),
                Ok(_) if ready(&sources[1]) => return Ok(Woken::LogFull),
                Ok(_) => return Ok(Woken::Speaking),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        let main = Main { socket, received: Vec::new(), descriptors: VecDeque::new(), greeted: false };
        let sockets = self.held.iter().map(|(socket, _)| socket.clone()).collect();
        let hello = frame(&Up::Hello { version: VERSION, sockets, generation: self.generation });
        let descriptors: Vec<_> = self.held.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        match send(main.socket.as_fd(), &hello, &descriptors) {
            Ok(()) => {
                info!(generation = self.generation, "a main connected");
                self.main = Some(main);
            }
            Err(error) => warn!(%error, "a main did not listen"),
        }
    }

    /// Frames up are small: a main that has no room for one does not read, and is dropped.
    fn tell(&mut self, message: &Up) {
        let Some(main) = &self.main else { return };
        if let Err(error) = send(main.socket.as_fd(), &frame(message), &[]) {
            warn!(%error, "main does not listen");
            self.main = None;
        }
    }

    fn hear(&mut self) {
        let Some(main) = &mut self.main else { return };
        let outcome = main.receive().and_then(|open| {
            let mut messages = Vec::new();
            while let Some(message) = take::<Down>(&mut main.received, MAX_FRAME).map_err(io::Error::other)? {
                messages.push(message);
            }
            if main.received.is_empty() && main.received.capacity() > KEPT_BUFFER {
                main.received = Vec::new();
            }
            Ok((open, messages))
        });
        let (open, messages) = match outcome {
            Ok(heard) => heard,
            Err(error) => {
                warn!(%error, "main is not understood; waiting for another");
                self.main = None;
                return;
            }
        };
        for message in messages {
            if let Err(reason) = self.obey(message) {
                warn!(reason, "main is not believed any more; waiting for another");
                self.main = None;
                return;
            }
        }
        if !open {
            info!("main is gone; going on with the last table");
            self.main = None;
        }
    }

    fn obey(&mut self, message: Down) -> Result<(), &'static str> {
        let Some(main) = &mut self.main else { return Ok(()) };
        if !main.greeted && !matches!(message, Down::Hello(_)) {
            return Err("its first frame is no Hello");
        }
        match message {
            Down::Hello(hello) if hello.version == VERSION => {
                main.greeted = true;
                self.ask_for_log();
            }
            Down::Hello(_) => return Err("it speaks another version"),
            Down::Listen { sockets } => {
                if sockets.len() > main.descriptors.len() || sockets.len() + self.held.len() > MAX_SOCKETS {
                    return Err("it sent other descriptors than it named");
                }
                let descriptors: Vec<OwnedFd> = main.descriptors.drain(..sockets.len()).collect();
                for (socket, descriptor) in sockets.into_iter().zip(descriptors) {
                    if self.held.iter().any(|(held, _)| *held == socket) {
                        continue;
                    }
                    let copy = descriptor.try_clone().map_err(|_| "its descriptors cannot be kept")?;
                    self.held.push((socket.clone(), copy));
                    self.orders.push_back(Order::Listen(socket, descriptor));
                }
            }
            Down::Table(table) => self.orders.push_back(Order::Table(table)),
            Down::Log => {
                let descriptor = main.descriptors.pop_front().ok_or("it sent no descriptor for the log")?;
                self.wants_log = false;
                self.orders.push_back(Order::Log(descriptor));
            }
            Down::Count => self.orders.push_back(Order::Count),
            Down::Drain => {
                self.held.clear();
                self.draining = true;
            }
        }
        Ok(())
    }
}

impl Main {
    /// Reads what is there; false at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        let start = self.received.len();
        self.received.resize(start + CHUNK, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(&mut self.received[start..])];
        let outcome = recvmsg(&self.socket, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
        let length = match &outcome {
            Ok(message) => message.bytes,
            Err(_) => 0,
        };
        self.received.truncate(start + length);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if self.descriptors.len() > MAX_SOCKETS {
            return Err(io::Error::other("more descriptors than the edge holds"));
        }
        match outcome {
            Ok(message) => Ok(message.bytes > 0),
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sends all or fails: frames up fit into any socket's buffer.
fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a message carries"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
    if sent < bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

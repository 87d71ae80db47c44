//! Netlink: messages with nested attributes, and a socket that waits for the kernel's answer.
//!
//! One codec serves routes and nftables. Sources: the kernel's `Documentation/userspace-api/netlink/intro.rst`,
//! `include/uapi/linux/netlink.h`.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const DUMP: u16 = 0x300;
pub const CREATE: u16 = 0x400;
pub const EXCLUSIVE: u16 = 0x200;
pub const REPLACE: u16 = 0x100;
pub const APPEND: u16 = 0x800;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// One message under construction: header, family header, attributes.
#[derive(Clone)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `family_header` is what the protocol puts before its attributes, such as `rtmsg` or `nfgenmsg`.
    pub fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(family_header);
        let mut message = Self { bytes };
        message.pad();
        message
    }

    #[must_use]
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    /// A string with its closing zero.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// In the machine's byte order, as route messages have it.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// In network byte order, as nftables has it.
    #[must_use]
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    #[must_use]
    pub fn be64(self, kind: u16, value: u64) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// An attribute that holds attributes.
    #[must_use]
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        let mut filled = fill(self);
        let length =
            u16::try_from(filled.bytes.len() - at).expect("callers split what could be longer than an attribute");
        filled.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }

    /// Bytes that are no attribute: the header of a message within a message.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).expect("no single attribute is that long");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn sealed(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("messages are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// The attributes of `payload`, as (type, value).
pub fn attributes(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = payload;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// A received message: its type, and what follows the header.
#[derive(Clone, Debug)]
pub struct Received {
    pub kind: u16,
    pub payload: Vec<u8>,
}

/// Which part of the kernel a socket talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Route,
    Netfilter,
}

/// A netlink socket in the network namespace of the thread that opened it. Blocks; an answer takes microseconds.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// # Errors
    /// When the kernel has no such family.
    pub fn open(family: Family) -> io::Result<Self> {
        Self::listen(family, 0)
    }

    /// Also receives the multicast groups of the bit mask `groups`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn listen(family: Family, groups: u32) -> io::Result<Self> {
        let protocol = match family {
            // NETLINK_ROUTE is protocol 0, which is also the default.
            Family::Route => None,
            Family::Netfilter => Some(netlink::NETFILTER),
        };
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        // A batch of rules is acknowledged message by message. Refused only without CAP_NET_ADMIN, and then nothing else works.
        let _ = set_socket_recv_buffer_size_force(&fd, 4 << 20);
        set_socket_timeout(&fd, Timeout::Recv, Some(Duration::from_secs(10)))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// For waiting with other descriptors.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends one message and waits until the kernel has carried it out.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.batch(vec![message])
    }

    /// Sends messages at once and waits for the answers to all.
    ///
    /// # Errors
    /// The first error of the kernel.
    pub fn batch(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let mut wire = Vec::new();
        let mut waiting = 0;
        for mut message in messages {
            self.sequence += 1;
            let flags = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]) | ACK;
            message.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
            wire.extend(message.sealed(self.sequence));
            waiting += 1;
        }
        self.send(&wire)?;
        let mut outcome = Ok(());
        while waiting > 0 {
            for received in self.receive()? {
                if let Some(error) = error_of(&received) {
                    waiting -= 1;
                    if error != 0 && outcome.is_ok() {
                        outcome = Err(io::Error::from_raw_os_error(error));
                    }
                }
            }
        }
        outcome
    }

    /// Sends an nftables transaction: messages that all happen or none. `begin` and `end` are not acknowledged.
    ///
    /// # Errors
    /// The first error of the kernel; nothing was changed.
    pub fn transaction(&mut self, begin: Message, messages: Vec<Message>, end: Message) -> io::Result<()> {
        let mut wire = begin.sealed(0);
        let first = self.sequence + 1;
        for message in messages {
            self.sequence += 1;
            wire.extend(message.sealed(self.sequence));
        }
        // One acknowledgement for the last message comes after the commit; errors come for each message that has one.
        self.sequence += 1;
        let mut last = end;
        let flags = u16::from_ne_bytes([last.bytes[6], last.bytes[7]]) | ACK;
        last.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        let end_sequence = self.sequence;
        wire.extend(last.sealed(end_sequence));
        self.send(&wire)?;
        let mut outcome = Ok(());
        loop {
            for received in self.receive_numbered()? {
                let (sequence, received) = received;
                if sequence != 0 && sequence < first {
                    continue;
                }
                match error_of(&received) {
                    Some(0) if sequence == end_sequence => return outcome,
                    Some(error) if error != 0 => {
                        if outcome.is_ok() {
                            outcome = Err(io::Error::from_raw_os_error(error));
                        }
                        if sequence == end_sequence || sequence == 0 {
                            return outcome;
                        }
                    }
                    Some(_) | None => {}
                }
            }
            if outcome.is_err() {
                // After an error the batch is aborted and its end is not acknowledged: what is left in the buffer belongs to it.
                self.drain();
                return outcome;
            }
        }
    }

    /// Sends a dump request and returns every answer.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn dump(&mut self, message: Message) -> io::Result<Vec<Received>> {
        self.sequence += 1;
        let wire = message.sealed(self.sequence);
        self.send(&wire)?;
        let mut all = Vec::new();
        loop {
            for (sequence, received) in self.receive_numbered()? {
                if sequence != self.sequence {
                    continue;
                }
                if received.kind == DONE {
                    return Ok(all);
                }
                match error_of(&received) {
                    Some(0) => return Ok(all),
                    Some(error) => return Err(io::Error::from_raw_os_error(error)),
                    None => all.push(received),
                }
            }
        }
    }

    /// Sends a request that is answered by one message.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn ask(&mut self, message: Message) -> io::Result<Vec<Received>> {
        self.sequence += 1;
        let wire = message.sealed(self.sequence);
        self.send(&wire)?;
        let answers = self.receive()?;
        match answers.iter().find_map(error_of) {
            Some(error) if error != 0 => Err(io::Error::from_raw_os_error(error)),
            Some(_) | None => Ok(answers),
        }
    }

    /// Waits for messages, of multicast groups too.
    ///
    /// # Errors
    /// When nothing comes within ten seconds, or some were lost because the buffer was full.
    pub fn receive(&mut self) -> io::Result<Vec<Received>> {
        Ok(self.receive_numbered()?.into_iter().map(|(_, received)| received).collect())
    }

    fn send(&self, wire: &[u8]) -> io::Result<()> {
        let sent = send(&self.fd, wire, SendFlags::empty())?;
        if sent == wire.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    fn drain(&self) {
        let mut buffer = [0; 1 << 16];
        while recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT).is_ok() {}
    }

    fn receive_numbered(&mut self) -> io::Result<Vec<(u32, Received)>> {
        let mut buffer = vec![0; 1 << 16];
        let (length, _) = recv(&self.fd, &mut buffer[..], RecvFlags::empty())?;
        Ok(split(&buffer[..length]))
    }
}

pub(crate) fn split(mut datagram: &[u8]) -> Vec<(u32, Received)> {
    let mut messages = Vec::new();
    while datagram.len() >= HEADER {
        let word = |at: usize| u32::from_ne_bytes(datagram[at..at + 4].try_into().expect("four bytes"));
        let length = (word(0) as usize).clamp(HEADER, datagram.len());
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        messages.push((word(8), Received { kind, payload: datagram[HEADER..length].to_vec() }));
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// The positive error number of an acknowledgement, 0 for success, `None` for any other message.
fn error_of(received: &Received) -> Option<i32> {
    if received.kind != ERROR {
        return None;
    }
    let code = received.payload.get(..4)?.try_into().ok()?;
    Some(-i32::from_ne_bytes(code))
}

//! SPDY/3.1 as Kubernetes still speaks it inside port-forwarding, exec and attach: a state machine without IO.
//!
//! Sources: the SPDY/3.1 draft of the Chromium project, and what `moby/spdystream` does on the wire, which is every client there is:
//! it knows no flow control, so that window updates are read and none is sent; the transport alone holds a fast sender back.
//! What the other side says is hostile: a control frame and its inflated headers are bounded, and so is the number of streams.

mod headers;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use headers::Headers;
use headers::{Deflater, Inflater};

/// The longest control frame that is believed, and the most that its headers may inflate to.
pub const MAX_CONTROL: usize = 64 << 10;
/// The most streams that the other side may have open: more are refused one by one.
pub const MAX_STREAMS: usize = 4096;
/// A frame's length has 24 bits.
const MAX_LENGTH: usize = (1 << 24) - 1;

const VERSION: u16 = 3;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    ProtocolError = 1,
    RefusedStream = 3,
    Cancel = 5,
    InternalError = 6,
}

/// What the other side did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It opened a stream: answer with [`Session::accept`] or [`Session::reset`].
    Opened { stream: u32, headers: Headers },
    /// It accepted a stream of ours.
    Accepted { stream: u32 },
    /// A piece of what it sends, which may be less than a frame.
    Data { stream: u32, bytes: Bytes },
    /// It sends nothing more on this stream.
    Finished { stream: u32 },
    /// It gave the stream up, both ways.
    Reset { stream: u32 },
    /// It opens no more streams and is about to leave.
    GoingAway,
}

/// The connection cannot go on: what follows has no known meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a control frame of version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("a frame of type {0} has the wrong length")]
    Malformed(u16),
    #[error("a data frame belongs to no stream")]
    ZeroStream,
    #[error("headers do not inflate")]
    Compression,
    #[error("headers are malformed")]
    Headers,
}

/// Which side of the connection this is: clients open streams with odd numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// The other side may still send.
    hears: bool,
    /// This side may still send.
    speaks: bool,
}

/// A data frame of which not everything was received.
#[derive(Clone, Copy, Debug)]
struct Partial {
    stream: u32,
    left: usize,
    fin: bool,
}

/// One side of a connection.
pub struct Session {
    received: BytesMut,
    output: BytesMut,
    partial: Option<Partial>,
    /// Of the frame before: one or two.
    events: VecDeque<Event>,
    streams: BTreeMap<u32, Stream>,
    /// The highest number that the other side has used.
    heard: u32,
    /// The next number of this side.
    own: u32,
    inflater: Inflater,
    deflater: Deflater,
}

impl Session {
    pub fn new(side: Side) -> Self {
        Self {
            received: BytesMut::new(),
            output: BytesMut::new(),
            partial: None,
            events: VecDeque::new(),
            streams: BTreeMap::new(),
            heard: 0,
            own: if side == Side::Client { 1 } else { 2 },
            inflater: Inflater::new(),
            deflater: Deflater::new(),
        }
    }

    /// Takes what the transport brought; [`Session::poll`] says what it means.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
    }

    /// What is to be sent, in order.
    pub fn output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Streams that are open in at least one direction.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// The next event; `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`Error`]: say goodbye by [`Session::go_away`] and close.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if let Some(partial) = self.partial {
                if self.received.is_empty() && partial.left > 0 {
                    return Ok(None);
                }
                self.data(partial);
                continue;
            }
            let Some(head) = self.received.first_chunk::<8>().copied() else { return Ok(None) };
            let [first @ .., flags, a, b, c] = head;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let word = u32::from_be_bytes(first);
            if word >> 31 == 0 {
                if word == 0 {
                    return Err(Error::ZeroStream);
                }
                self.received.advance(head.len());
                self.partial = Some(Partial { stream: word, left: length, fin: flags & FIN != 0 });
                continue;
            }
            let [kind, version] = [word as u16, (word >> 16) as u16 & 0x7fff];
            if version != VERSION {
                return Err(Error::Version(version));
            }
            if length > MAX_CONTROL {
                return Err(Error::TooLong(length));
            }
            if self.received.len() < head.len() + length {
                return Ok(None);
            }
            self.received.advance(head.len());
            let payload = self.received.split_to(length).freeze();
            self.control(kind, flags, payload)?;
        }
    }

    /// Hands out what is there of a data frame; data of streams that are not open any more was on its way before that.
    fn data(&mut self, partial: Partial) {
        let bytes = self.received.split_to(partial.left.min(self.received.len())).freeze();
        let (stream, left) = (partial.stream, partial.left - bytes.len());
        self.partial = (left > 0).then_some(Partial { left, ..partial });
        if !bytes.is_empty() && self.streams.get(&stream).is_some_and(|stream| stream.hears) {
            self.events.push_back(Event::Data { stream, bytes });
        }
        if left == 0 && partial.fin {
            self.finished(stream);
        }
    }

    /// The other side closed its direction.
    fn finished(&mut self, stream: u32) {
        if self.streams.get(&stream).is_some_and(|stream| stream.hears) {
            self.finish(stream, |stream| stream.hears = false);
            self.events.push_back(Event::Finished { stream });
        }
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: Bytes) -> Result<(), Error> {
        let wanted = match kind {
            SYN_STREAM => payload.len() >= 10,
            SYN_REPLY | HEADERS | SETTINGS => payload.len() >= 4,
            RST_STREAM | GOAWAY | WINDOW_UPDATE => payload.len() == 8,
            PING => payload.len() == 4,
            // Types that nobody knows are passed over, as the draft asks.
            _ => true,
        };
        if !wanted {
            return Err(Error::Malformed(kind));
        }
        match kind {
            SYN_STREAM => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                // The associated stream, the priority and the credential's slot say nothing here.
                payload.advance(6);
                let headers = self.inflater.headers(&payload)?;
                self.opened(stream, headers, flags & FIN != 0);
            }
            SYN_REPLY => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                self.inflater.headers(&payload)?;
                if self.streams.contains_key(&stream) && self.is_own(stream) {
                    self.events.push_back(Event::Accepted { stream });
                    if flags & FIN != 0 {
                        self.finished(stream);
                    }
                }
            }
            HEADERS => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                // Nothing that they could say is needed, but what follows is inflated with them.
                self.inflater.headers(&payload)?;
                if flags & FIN != 0 {
                    self.finished(stream);
                }
            }
            RST_STREAM => {
                let stream = payload.get_u32() & 0x7fff_ffff;
                if self.streams.remove(&stream).is_some() {
                    self.events.push_back(Event::Reset { stream });
                }
            }
            PING => {
                let id = payload.get_u32();
                // The other side's pings have its parity; one of ours comes back as an answer.
                if id % 2 != self.own % 2 {
                    self.control_frame(PING, 0, &id.to_be_bytes());
                }
            }
            GOAWAY => self.events.push_back(Event::GoingAway),
            _ => {}
        }
        Ok(())
    }

    fn opened(&mut self, stream: u32, headers: Headers, fin: bool) {
        if stream == 0 {
            return;
        }
        // Source: spdystream `connection.go`, `checkStreamFrame`.
        if self.is_own(stream) || stream <= self.heard {
            self.streams.remove(&stream);
            self.rst(stream, Status::ProtocolError);
            return;
        }
        self.heard = stream;
        if self.streams.len() >= MAX_STREAMS {
            self.rst(stream, Status::RefusedStream);
            return;
        }
        self.streams.insert(stream, Stream { hears: true, speaks: true });
        self.events.push_back(Event::Opened { stream, headers });
        if fin {
            self.finished(stream);
        }
    }

    fn is_own(&self, stream: u32) -> bool {
        stream % 2 == self.own % 2
    }

    /// Closes a direction; a stream closed both ways is forgotten.
    fn finish(&mut self, stream: u32, close: impl FnOnce(&mut Stream)) {
        if let Some(state) = self.streams.get_mut(&stream) {
            close(state);
            if !state.hears && !state.speaks {
                self.streams.remove(&stream);
            }
        }
    }

    /// Opens a stream, which the other side accepts or resets; `None` when all numbers are used.
    pub fn open(&mut self, headers: &Headers) -> Option<u32> {
        let stream = self.own;
        if stream > 0x7fff_ffff {
            return None;
        }
        self.own += 2;
        self.streams.insert(stream, Stream { hears: true, speaks: true });
        let mut payload = BytesMut::new();
        payload.put_u32(stream);
        payload.put_bytes(0, 6);
        payload.extend_from_slice(&self.deflater.headers(headers));
        self.control_frame(SYN_STREAM, 0, &payload);
        Some(stream)
    }

    /// Accepts a stream that the other side opened.
    pub fn accept(&mut self, stream: u32) {
        if !self.streams.contains_key(&stream) {
            return;
        }
        let mut payload = BytesMut::new();
        payload.put_u32(stream);
        payload.extend_from_slice(&self.deflater.headers(&Headers::new()));
        self.control_frame(SYN_REPLY, 0, &payload);
    }

    /// Sends; nothing on a stream that is closed this way.
    pub fn send(&mut self, stream: u32, bytes: &[u8]) {
        if !self.streams.get(&stream).is_some_and(|stream| stream.speaks) {
            return;
        }
        for piece in bytes.chunks(MAX_LENGTH) {
            self.data_frame(stream, 0, piece);
        }
    }

    /// Says that nothing more follows on the stream.
    pub fn close(&mut self, stream: u32) {
        if self.streams.get(&stream).is_some_and(|stream| stream.speaks) {
            self.data_frame(stream, FIN, &[]);
            self.finish(stream, |stream| stream.speaks = false);
        }
    }

    /// Gives a stream up, both ways.
    pub fn reset(&mut self, stream: u32, status: Status) {
        if self.streams.remove(&stream).is_some() {
            self.rst(stream, status);
        }
    }

    /// Says goodbye; `failed` when the other side broke the protocol.
    pub fn go_away(&mut self, failed: bool) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&self.heard.to_be_bytes());
        payload[7] = u8::from(failed);
        self.control_frame(GOAWAY, 0, &payload);
    }

    fn rst(&mut self, stream: u32, status: Status) {
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&stream.to_be_bytes());
        payload[4..].copy_from_slice(&(status as u32).to_be_bytes());
        self.control_frame(RST_STREAM, 0, &payload);
    }

    fn control_frame(&mut self, kind: u16, flags: u8, payload: &[u8]) {
        self.output.put_u16(0x8000 | VERSION);
        self.output.put_u16(kind);
        self.rest(flags, payload);
    }

    fn data_frame(&mut self, stream: u32, flags: u8, payload: &[u8]) {
        self.output.put_u32(stream);
        self.rest(flags, payload);
    }

    fn rest(&mut self, flags: u8, payload: &[u8]) {
        self.output.put_u8(flags);
        self.output.put_uint(payload.len() as u64, 3);
        self.output.extend_from_slice(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let text = |pair: &[u8]| String::from_utf8_lossy(pair).into_owned();
        digits.chunks(2).map(|pair| u8::from_str_radix(&text(pair), 16).expect("digits")).collect()
    }

    fn events(session: &mut Session, bytes: &[u8]) -> Result<Vec<Event>, Error> {
        session.receive(bytes);
        let mut events = Vec::new();
        while let Some(event) = session.poll()? {
            events.push(event);
        }
        Ok(events)
    }

    fn pairs(headers: &[(&str, &str)]) -> Headers {
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// The first two streams of kubectl, as Go's zlib compresses them.
    const KUBECTL: &str = "80030001 0000003c 00000001 00000000 0000
        78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45a024cc64610024398b209198094adc8c0600000000ffff
        00000001 01000000
        80030001 00000018 00000003 00000000 0000 c2aa15540a2512d209000000ffff";

    #[test]
    fn kubectls_streams_are_understood() {
        let mut server = Session::new(Side::Server);
        let opened = |stream, kind| Event::Opened {
            stream,
            headers: pairs(&[("streamtype", kind), ("port", "80"), ("requestid", "0")]),
        };
        let expected = [opened(1, "error"), Event::Finished { stream: 1 }, opened(3, "data")];
        assert_eq!(events(&mut server, &hex(KUBECTL)).expect("frames"), expected);
    }

    #[test]
    fn it_does_not_matter_how_the_bytes_arrive() {
        let mut server = Session::new(Side::Server);
        let mut one_by_one = Vec::new();
        for byte in hex(KUBECTL) {
            one_by_one.extend(events(&mut server, &[byte]).expect("frames"));
        }
        assert_eq!(one_by_one, events(&mut Session::new(Side::Server), &hex(KUBECTL)).expect("frames"));
    }

    #[test]
    fn both_sides_understand_each_other() {
        let (mut client, mut server) = (Session::new(Side::Client), Session::new(Side::Server));
        let stream = client.open(&pairs(&[("port", "80")])).expect("a number is left");
        let opened = Event::Opened { stream, headers: pairs(&[("port", "80")]) };
        assert_eq!(events(&mut server, &client.output()).expect("frames"), [opened]);
        server.accept(stream);
        server.send(stream, b"hello");
        server.close(stream);
        let answer = [
            Event::Accepted { stream },
            Event::Data { stream, bytes: Bytes::from_static(b"hello") },
            Event::Finished { stream },
        ];
        assert_eq!(events(&mut client, &server.output()).expect("frames"), answer);
        client.send(stream, b"bye");
        client.reset(stream, Status::Cancel);
        let end = [Event::Data { stream, bytes: Bytes::from_static(b"bye") }, Event::Reset { stream }];
        assert_eq!(events(&mut server, &client.output()).expect("frames"), end);
        assert_eq!((client.open_streams(), server.open_streams()), (0, 0));
    }

    #[test]
    fn pings_are_answered_and_window_updates_are_not() {
        let mut server = Session::new(Side::Server);
        let ping = hex("80030006 00000004 00000001");
        let update = hex("80030009 00000008 00000001 00010000");
        assert_eq!(events(&mut server, &[update, ping.clone()].concat()).expect("frames"), []);
        assert_eq!(server.output(), ping);
    }

    #[test]
    fn streams_out_of_order_are_reset() {
        let mut server = Session::new(Side::Server);
        let mut client = Session::new(Side::Client);
        client.open(&Headers::new()).expect("a number is left");
        let first = client.output();
        events(&mut server, &first).expect("frames");
        client.own = 1;
        client.open(&Headers::new()).expect("a number is left");
        assert_eq!(events(&mut server, &client.output()).expect("frames"), []);
        assert_eq!(server.output(), hex("80030003 00000008 00000001 00000001"));
    }

    #[test]
    fn nonsense_ends_the_connection() {
        let check = |bytes: &str, error| assert_eq!(events(&mut Session::new(Side::Server), &hex(bytes)), Err(error));
        check("80020006 00000004 00000001", Error::Version(2));
        check("80030001 00ffffff", Error::TooLong(0xff_ffff));
        check("80030006 00000003 000000", Error::Malformed(PING));
        check("00000000 00000000", Error::ZeroStream);
        check("80030001 0000000c 00000001 00000000 0000 ffff", Error::Compression);
    }
}

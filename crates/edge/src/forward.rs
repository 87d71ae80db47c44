//! Questions that only others can answer.
//!
//! A fresh socket, hence a random port, and a random id for each question, as RFC 5452 asks for. The client has its answer
//! within [`PATIENCE`]: SERVFAIL when nobody gave one, so that it can go on.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};
use wire::dns::{MAX_UDP, refusal, response};

/// How long a client waits at most.
const PATIENCE: Duration = Duration::from_millis(1900);
/// How long one upstream has for an answer, before the next is asked.
const FIRST_TRY: Duration = Duration::from_millis(600);
/// What is kept, and for how long at most. Source: kubeadm's Corefile, `cache 30`.
const MAX_KEPT: usize = 2048;
const MAX_TTL: Duration = Duration::from_secs(30);
/// For how long it is believed that a name does not exist when nobody says so.
const NEGATIVE_TTL: u32 = 5;

type Asked = (Name, RecordType, bool);

#[derive(Default)]
pub struct Forwarder {
    kept: Mutex<HashMap<Asked, Kept>>,
}

struct Kept {
    answer: Message,
    since: Instant,
    until: Instant,
}

impl Forwarder {
    /// Answers a query with one question.
    pub async fn ask(&self, upstreams: &[SocketAddr], query: &Message) -> Message {
        let Some(question) = query.queries.first() else { return refusal(query, ResponseCode::FormErr) };
        let dnssec = query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let asked = (question.name().to_lowercase(), question.query_type(), dnssec);
        if let Some(answer) = self.recall(&asked, Instant::now()) {
            return addressed(answer, query);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        for upstream in upstreams.iter().cycle().take(upstreams.len().max(2).min(upstreams.len() * 3)) {
            let until = deadline.min(Instant::now() + FIRST_TRY);
            match timeout_at(until, exchange(*upstream, query, dnssec)).await {
                Ok(Ok(answer)) if is_conclusive(&answer) => {
                    self.keep(asked, &answer, Instant::now());
                    return addressed(answer, query);
                }
                Ok(Ok(answer)) => last = Some(answer),
                Ok(Err(_)) | Err(_) => {}
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        last.map_or_else(|| refusal(query, ResponseCode::ServFail), |answer| addressed(answer, query))
    }

    fn recall(&self, asked: &Asked, now: Instant) -> Option<Message> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.get(asked).filter(|kept| now < kept.until)?;
        let age = u32::try_from((now - found.since).as_secs()).unwrap_or(u32::MAX);
        let mut answer = found.answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authorities).chain(&mut answer.additionals) {
            record.decrement_ttl(age);
        }
        Some(answer)
    }

    fn keep(&self, asked: Asked, answer: &Message, now: Instant) {
        let Some(ttl) = lifetime(answer).filter(|ttl| !ttl.is_zero()) else { return };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, kept| now < kept.until);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(asked, Kept { answer: answer.clone(), since: now, until: now + ttl });
        }
    }
}

fn is_conclusive(answer: &Message) -> bool {
    matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// How long an answer stays true. RFC 2308 section 5 for answers that something does not exist.
fn lifetime(answer: &Message) -> Option<Duration> {
    if !is_conclusive(answer) || answer.metadata.truncation {
        return None;
    }
    let records = answer.answers.iter().chain(&answer.authorities);
    let seconds = records.map(|record| record.ttl).min().unwrap_or(NEGATIVE_TTL);
    Some(Duration::from_secs(seconds.into()).min(MAX_TTL))
}

/// The answer to this very query.
fn addressed(found: Message, query: &Message) -> Message {
    let mut message = response(query);
    message.metadata.response_code = found.metadata.response_code;
    message.metadata.authentic_data = found.metadata.authentic_data && query.edns.is_some();
    message.answers = found.answers;
    message.authorities = found.authorities;
    message.additionals = found.additionals;
    message
}

async fn exchange(upstream: SocketAddr, query: &Message, dnssec: bool) -> io::Result<Message> {
    // Not hickory's own: its generator reads a file, and there is none here.
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let mut ours = Message::new(u16::from_ne_bytes(id), MessageType::Query, OpCode::Query);
    ours.metadata.recursion_desired = true;
    ours.metadata.checking_disabled = query.metadata.checking_disabled;
    ours.add_queries(query.queries.iter().cloned());
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP).set_version(0).set_dnssec_ok(dnssec);
    ours.set_edns(edns);
    let bytes = ours.to_vec().map_err(io::Error::other)?;
    let any: IpAddr = if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Somebody who guesses may guess again; the right answer is still on its way.
        let Ok(answer) = Message::from_vec(&buffer[..length]) else { continue };
        if !answers(&answer, &ours) {
            continue;
        }
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        return over_tcp(upstream, &ours, &bytes).await;
    }
}

async fn over_tcp(upstream: SocketAddr, ours: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = timeout(FIRST_TRY, TcpStream::connect(upstream)).await??;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    if answers(&answer, ours) { Ok(answer) } else { Err(io::Error::other("another question's answer")) }
}

fn answers(answer: &Message, question: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries
}

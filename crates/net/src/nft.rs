//! nftables messages: tables, chains, rules, sets and their elements, and the expressions that rules are made of.
//!
//! Source: `include/uapi/linux/netfilter/nf_tables.h`. Values are loaded into 32-bit registers, numbered from [`R0`];
//! a concatenation is simply consecutive registers.

use std::io;

use crate::netlink::{APPEND, CREATE, Family, Message, Socket};

/// The name of the one table, in family `inet`.
pub const TABLE: &str = "coracle";

const INET: u8 = 1;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
const DEL_TABLE: u16 = SUBSYSTEM << 8 | 2;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
pub const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
const GET_ELEMENT: u16 = SUBSYSTEM << 8 | 13;
const DEL_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Elements are sent in pieces: an attribute, and so a list, is at most 64 kB long.
const ELEMENTS_IN_A_MESSAGE: usize = 400;

/// `struct nfgenmsg`.
pub fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// Carries out `messages` as one transaction.
///
/// # Errors
/// The kernel's first error; then nothing was changed.
pub fn commit(messages: Vec<Message>) -> io::Result<()> {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    let mark = |kind| Message::new(kind, 0, &[0, 0, high, low]);
    Socket::open(Family::Netfilter)?.transaction(mark(BATCH_BEGIN), messages, mark(BATCH_END))
}

/// Whether the table is there.
///
/// # Errors
/// When the kernel does not answer.
pub fn has_table() -> io::Result<bool> {
    let ask = Message::new(GET_TABLE, 0, &header(INET)).text(1, TABLE);
    match Socket::open(Family::Netfilter)?.ask(ask) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the table; none is no error.
///
/// # Errors
/// The kernel's.
pub fn remove() -> io::Result<()> {
    commit(vec![add_table(), delete_table()])
}

fn table_message(kind: u16, flags: u16) -> Message {
    Message::new(kind, flags, &header(INET)).text(1, TABLE)
}

pub fn add_table() -> Message {
    table_message(NEW_TABLE, CREATE)
}

pub fn delete_table() -> Message {
    table_message(DEL_TABLE, 0)
}

/// Where a base chain is called from.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

pub const PREROUTING: u32 = 0;
pub const INPUT: u32 = 1;
pub const FORWARD: u32 = 2;
pub const OUTPUT: u32 = 3;
pub const POSTROUTING: u32 = 4;

pub fn add_chain(name: &str, hook: Option<Hook>) -> Message {
    let message = table_message(NEW_CHAIN, CREATE).text(3, name);
    match hook {
        None => message,
        Some(Hook { kind, number, priority }) => {
            message.nest(4, |hook| hook.be32(1, number).be32(2, priority.cast_unsigned())).text(7, kind)
        }
    }
}

/// Appends a rule.
pub fn add_rule(chain: &str, expressions: &[Expression]) -> Message {
    table_message(NEW_RULE, CREATE | APPEND).text(2, chain).nest(4, |list| {
        expressions.iter().fold(list, |list, expression| {
            list.nest(1, |element| element.text(1, expression.name()).nest(2, |data| expression.encode(data)))
        })
    })
}

/// The type of a part of a key, as `nft list` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Number,
}

impl Part {
    fn number(self) -> u32 {
        match self {
            Self::Number => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
        }
    }

    fn bytes(self) -> u32 {
        match self {
            Self::Ipv6 => 16,
            Self::Ipv4 | Self::Protocol | Self::Port | Self::Number => 4,
        }
    }
}

/// What a map's elements lead to.
#[derive(Clone, Copy, Debug)]
pub enum Data {
    /// It is a set.
    Nothing,
    Verdict,
    Value(&'static [Part]),
}

/// A set or map. `id` is unique within a transaction.
#[derive(Clone, Copy, Debug)]
pub struct Set {
    pub name: &'static str,
    pub key: &'static [Part],
    pub data: Data,
    /// Filled by rules, with time-outs.
    pub dynamic: bool,
}

pub fn add_set(set: &Set, id: u32) -> Message {
    const MAP: u32 = 8;
    const TIMEOUT: u32 = 0x10;
    const EVALUATED: u32 = 0x20;
    const VERDICT: u32 = 0xffff_ff00;
    let types = |parts: &[Part]| parts.iter().fold(0, |sum, part| sum << 6 | part.number());
    let length = |parts: &[Part]| parts.iter().map(|part| part.bytes()).sum::<u32>();
    let mut flags = if matches!(set.data, Data::Nothing) { 0 } else { MAP };
    if set.dynamic {
        flags |= TIMEOUT | EVALUATED;
    }
    let mut message = table_message(NEW_SET, CREATE)
        .text(2, set.name)
        .be32(3, flags)
        .be32(4, types(set.key))
        .be32(5, length(set.key))
        .be32(10, id);
    message = match set.data {
        Data::Nothing => message,
        Data::Verdict => message.be32(6, VERDICT).be32(7, 0),
        Data::Value(parts) => message.be32(6, types(parts)).be32(7, length(parts)),
    };
    // Without a size a set that rules fill would take all memory.
    if set.dynamic { message.nest(9, |description| description.be32(1, 65_536)) } else { message }
}

/// An element's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Nothing,
    Goto(String),
    Bytes(Vec<u8>),
}

pub fn add_elements<'a>(set: &str, elements: impl Iterator<Item = (&'a [u8], &'a Value)>) -> Vec<Message> {
    elements_messages(NEW_ELEMENT, CREATE, set, elements)
}

pub fn delete_elements<'a>(set: &str, elements: impl Iterator<Item = (&'a [u8], &'a Value)>) -> Vec<Message> {
    elements_messages(DEL_ELEMENT, 0, set, elements)
}

fn elements_messages<'a>(
    kind: u16,
    flags: u16,
    set: &str,
    elements: impl Iterator<Item = (&'a [u8], &'a Value)>,
) -> Vec<Message> {
    let elements: Vec<_> = elements.collect();
    let message = |piece: &[(&[u8], &Value)]| {
        table_message(kind, flags).text(2, set).nest(3, |list| {
            piece.iter().fold(list, |list, (key, value)| {
                list.nest(1, |element| {
                    let element = element.nest(1, |data| data.attr(1, key));
                    match value {
                        Value::Nothing => element,
                        Value::Bytes(bytes) => element.nest(2, |data| data.attr(1, bytes)),
                        Value::Goto(chain) => {
                            element.nest(2, |data| encode_verdict(data, &Verdict::Goto(chain.clone())))
                        }
                    }
                })
            })
        })
    };
    elements.chunks(ELEMENTS_IN_A_MESSAGE).map(message).collect()
}

/// The key and data of every element that rules put into `set`.
///
/// # Errors
/// The kernel's.
pub fn dump_elements(set: &str) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use crate::netlink::{DUMP, attributes};
    let ask = table_message(GET_ELEMENT, DUMP).text(2, set);
    let answers = Socket::open(Family::Netfilter)?.dump(ask)?;
    let value = |data: &[u8]| attributes(data).find(|(kind, _)| *kind == 1).map(|(_, v)| v.to_vec());
    let mut found = Vec::new();
    for answer in &answers {
        let lists = attributes(answer.payload.get(4..).unwrap_or_default()).filter(|(kind, _)| *kind == 3);
        for (_, element) in lists.flat_map(|(_, list)| attributes(list)) {
            let part = |wanted: u16| attributes(element).find(|(kind, _)| *kind == wanted).and_then(|(_, v)| value(v));
            if let (Some(key), Some(data)) = (part(1), part(2)) {
                found.push((key, data));
            }
        }
    }
    Ok(found)
}

/// The first 32-bit register.
pub const R0: u32 = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop,
    Accept,
    Return,
    Jump(String),
    Goto(String),
}

/// One step of a rule. A comparison or lookup that fails ends the rule.
#[derive(Clone, Debug)]
pub enum Expression {
    /// Bytes of the network header.
    Network {
        to: u32,
        offset: u32,
        length: u32,
    },
    /// Bytes of the transport header.
    Transport {
        to: u32,
        offset: u32,
        length: u32,
    },
    Meta {
        to: u32,
        key: Meta,
    },
    Compare {
        register: u32,
        equal: bool,
        bytes: Vec<u8>,
    },
    Mask {
        register: u32,
        mask: Vec<u8>,
    },
    /// Finds the registers from `from` in a set; a map's data goes to `to`, a verdict map decides.
    Lookup {
        set: &'static str,
        from: u32,
        to: Option<u32>,
    },
    /// Finds a verdict.
    Decide {
        map: &'static str,
        from: u32,
    },
    Random {
        to: u32,
        modulus: u32,
    },
    /// The address type of the destination (`RTN_LOCAL` is 2).
    DestinationType {
        to: u32,
    },
    /// The link by which answers to the source would leave, 0 when it is not the one that the packet came by.
    ReversePath {
        to: u32,
    },
    /// The connection's status; `IPS_DST_NAT` is 0x20.
    ConnectionStatus {
        to: u32,
    },
    /// Puts an element into a dynamic map, or renews its time-out.
    Update {
        map: &'static str,
        key: u32,
        data: u32,
        timeout_seconds: u64,
    },
    Dnat {
        ipv4: bool,
        address: u32,
        port: u32,
    },
    Masquerade,
    ResetTcp,
    /// ICMP port unreachable, of either family.
    Unreachable,
    Do(Verdict),
}

#[derive(Clone, Copy, Debug)]
pub enum Meta {
    InputName,
    OutputName,
    /// `NFPROTO_IPV4` is 2, `NFPROTO_IPV6` is 10.
    Family,
    Protocol,
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Self::Network { .. } | Self::Transport { .. } => "payload",
            Self::Meta { .. } => "meta",
            Self::Compare { .. } => "cmp",
            Self::Mask { .. } => "bitwise",
            Self::Lookup { .. } | Self::Decide { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::DestinationType { .. } | Self::ReversePath { .. } => "fib",
            Self::ConnectionStatus { .. } => "ct",
            Self::Update { .. } => "dynset",
            Self::Dnat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::ResetTcp | Self::Unreachable => "reject",
            Self::Do(_) => "immediate",
        }
    }

    fn encode(&self, m: Message) -> Message {
        match self {
            Self::Network { to, offset, length } => m.be32(1, *to).be32(2, 1).be32(3, *offset).be32(4, *length),
            Self::Transport { to, offset, length } => m.be32(1, *to).be32(2, 2).be32(3, *offset).be32(4, *length),
            Self::Meta { to, key } => m.be32(1, *to).be32(
                2,
                match key {
                    Meta::InputName => 6,
                    Meta::OutputName => 7,
                    Meta::Family => 15,
                    Meta::Protocol => 16,
                },
            ),
            Self::Compare { register, equal, bytes } => {
                m.be32(1, *register).be32(2, u32::from(!*equal)).nest(3, |data| data.attr(1, bytes))
            }
            Self::Mask { register, mask } => {
                let length = u32::try_from(mask.len()).expect("an address is short");
                m.be32(1, *register)
                    .be32(2, *register)
                    .be32(3, length)
                    .nest(4, |data| data.attr(1, mask))
                    .nest(5, |data| data.attr(1, &vec![0; mask.len()]))
            }
            Self::Lookup { set, from, to } => {
                let m = m.text(1, set).be32(2, *from);
                if let Some(to) = to { m.be32(3, *to) } else { m }
            }
            Self::Decide { map, from } => m.text(1, map).be32(2, *from).be32(3, 0),
            Self::Random { to, modulus } => m.be32(1, *to).be32(2, *modulus).be32(3, 1).be32(4, 0),
            Self::DestinationType { to } => m.be32(1, *to).be32(2, 3).be32(3, 2),
            Self::ReversePath { to } => m.be32(1, *to).be32(2, 1).be32(3, 1 | 8),
            Self::ConnectionStatus { to } => m.be32(1, *to).be32(2, 2),
            Self::Update { map, key, data, timeout_seconds } => {
                m.text(1, map).be32(3, 1).be32(4, *key).be32(5, *data).be64(6, timeout_seconds * 1000)
            }
            Self::Dnat { ipv4, address, port } => m
                .be32(1, 1)
                .be32(2, if *ipv4 { 2 } else { 10 })
                .be32(3, *address)
                .be32(4, *address)
                .be32(5, *port)
                .be32(6, *port)
                .be32(7, 2),
            Self::Masquerade => m,
            Self::ResetTcp => m.be32(1, 1).attr(2, &[0]),
            Self::Unreachable => m.be32(1, 2).attr(2, &[1]),
            Self::Do(verdict) => m.be32(1, 0).nest(2, |data| encode_verdict(data, verdict)),
        }
    }
}

/// `NFTA_DATA_VERDICT`.
fn encode_verdict(m: Message, verdict: &Verdict) -> Message {
    let (code, chain): (i32, Option<&str>) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5, None),
    };
    m.nest(2, |m| {
        let m = m.be32(1, code.cast_unsigned());
        if let Some(chain) = chain { m.text(2, chain) } else { m }
    })
}

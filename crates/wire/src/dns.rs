//! What the cluster's DNS server answers, without IO.
//!
//! Follows the Kubernetes DNS specification 1.1.0 (kubernetes/dns `docs/specification.md`) with CoreDNS's choices where it leaves
//! one, RFC 1035, RFC 2308 (what does not exist) and RFC 6891 (EDNS).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::edge::Dns;

/// How long answers may be kept, and for how long it is known that a name does not exist. Source: CoreDNS `kubernetes.go`.
const TTL: u32 = 5;
/// The largest answer over UDP, safe from fragments. Source: DNS flag day 2020.
pub const MAX_UDP: u16 = 1232;
/// External names that lead to external names are followed this far.
const MAX_ALIASES: usize = 8;
/// The version of the specification that is followed.
const SPECIFICATION: &str = "1.1.0";

/// The cluster's names, ready for questions.
#[derive(Debug)]
pub struct Zone {
    dns: Dns,
    domain: Name,
    reverse: Vec<Name>,
    /// Every name that exists below the domain because a longer one does.
    parents: BTreeSet<String>,
}

/// What becomes of a question.
#[derive(Debug)]
pub enum Reply {
    /// This is the answer.
    Answer(Message),
    /// The name is not one of ours: an upstream knows.
    Forward,
    /// An external name: the answer so far, to which the records of `target` belong.
    Chase { so_far: Message, target: Name },
}

impl Zone {
    /// # Errors
    /// When `dns.domain` or a reverse zone is no name.
    pub fn new(dns: Dns) -> Result<Self, hickory_proto::ProtoError> {
        let absolute = |name: &str| {
            Name::from_ascii(name).map(|mut name| {
                name.set_fqdn(true);
                name
            })
        };
        let domain = absolute(&dns.domain)?;
        let reverse = dns.reverse_zones.iter().map(|zone| absolute(zone)).collect::<Result<_, _>>()?;
        let names = dns.addresses.keys().chain(dns.services.keys()).chain(dns.aliases.keys());
        let parents = names.flat_map(|name| ancestors(name)).chain(["svc", "pod"]).map(str::to_owned).collect();
        Ok(Self { domain, reverse, parents, dns })
    }

    /// Where all other names are asked for.
    pub fn upstreams(&self) -> &[std::net::SocketAddr] {
        &self.dns.upstreams
    }

    /// Answers one query.
    pub fn reply(&self, query: &Message) -> Reply {
        let question = match acceptable(query) {
            Ok(question) => question,
            Err(code) => return Reply::Answer(refusal(query, code)),
        };
        let name = question.name().to_lowercase();
        if self.domain.zone_of(&name) {
            self.cluster(query, question, &name)
        } else if let Some(zone) = self.reverse.iter().find(|zone| zone.zone_of(&name)) {
            Reply::Answer(self.reverse(query, question, &name, zone))
        } else {
            Reply::Forward
        }
    }

    fn cluster(&self, query: &Message, question: &Query, name: &Name) -> Reply {
        let mut message = response(query);
        message.metadata.authoritative = true;
        let mut relative = self.relative(name);
        // Answers repeat the name as it was asked for, with its capitals.
        let mut owner = question.name().clone();
        for _ in 0..MAX_ALIASES {
            let Some(alias) = self.dns.aliases.get(&relative) else {
                return Reply::Answer(self.finish(message, question, &relative, &owner));
            };
            let Ok(mut target) = Name::from_ascii(alias) else { break };
            target.set_fqdn(true);
            message.add_answer(record(&owner, RData::CNAME(CNAME(target.clone()))));
            if question.query_type() == RecordType::CNAME {
                return Reply::Answer(message);
            }
            if !self.domain.zone_of(&target) {
                return Reply::Chase { so_far: message, target };
            }
            relative = self.relative(&target.to_lowercase());
            owner = target;
        }
        Reply::Answer(refusal(query, ResponseCode::ServFail))
    }

    fn finish(&self, mut message: Message, question: &Query, relative: &str, owner: &Name) -> Message {
        let wanted = question.query_type();
        let any = wanted == RecordType::ANY;
        let addresses = self.addresses(relative);
        for ip in addresses.iter().flatten() {
            if any || wanted == address_type(*ip) {
                message.add_answer(address(owner, *ip));
            }
        }
        let services = self.dns.services.get(relative);
        if any || wanted == RecordType::SRV {
            for service in services.into_iter().flatten() {
                let Some(target) = self.absolute(&service.target) else { continue };
                message.add_answer(record(owner, RData::SRV(SRV::new(0, 100, service.port, target.clone()))));
                for ip in self.dns.addresses.get(&service.target).into_iter().flatten() {
                    message.add_additional(address(&target, *ip));
                }
            }
        }
        let apex = relative.is_empty();
        if apex && (any || wanted == RecordType::SOA) {
            message.add_answer(self.soa(&self.domain));
        }
        if apex && (any || wanted == RecordType::NS) {
            message.add_answer(record(&self.domain, RData::NS(NS(self.server()))));
        }
        let version = relative == "dns-version";
        if version && (any || wanted == RecordType::TXT) {
            message.add_answer(record(owner, RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))));
        }
        let exists = addresses.is_some() || services.is_some() || apex || version || self.parents.contains(relative);
        if message.answers.is_empty() {
            message.add_authority(self.soa(&self.domain));
        }
        if !exists {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        message
    }

    fn addresses(&self, relative: &str) -> Option<Vec<IpAddr>> {
        if let Some(known) = self.dns.addresses.get(relative) {
            return Some(known.clone());
        }
        let labels: Vec<&str> = relative.split('.').collect();
        let [dashed, _, "pod"] = labels.as_slice() else { return None };
        let ip = undashed(dashed)?;
        let ours = self.dns.pod_ranges.iter().any(|(base, length)| within(ip, *base, *length));
        ours.then(|| vec![ip])
    }

    fn reverse(&self, query: &Message, question: &Query, name: &Name, zone: &Name) -> Message {
        let mut message = response(query);
        message.metadata.authoritative = true;
        let ip = arpa_address(name);
        let names = ip.and_then(|ip| self.dns.reverse.get(&ip));
        if matches!(question.query_type(), RecordType::PTR | RecordType::ANY) {
            for target in names.into_iter().flatten().filter_map(|target| self.absolute(target)) {
                message.add_answer(record(question.name(), RData::PTR(PTR(target))));
            }
        }
        if message.answers.is_empty() {
            message.add_authority(self.soa(zone));
        }
        // Names above an address exist as far as anybody can tell; only addresses without a name do not.
        if ip.is_some() && names.is_none() {
            message.metadata.response_code = ResponseCode::NXDomain;
        }
        message
    }

    /// The name without the domain and its dot; empty for the domain itself.
    fn relative(&self, lower: &Name) -> String {
        let labels = usize::from(lower.num_labels() - self.domain.num_labels());
        let parts: Vec<_> = lower.iter().take(labels).map(String::from_utf8_lossy).collect();
        parts.join(".")
    }

    fn absolute(&self, relative: &str) -> Option<Name> {
        Name::from_ascii(relative).ok()?.append_domain(&self.domain).ok()
    }

    fn server(&self) -> Name {
        self.absolute("ns.dns").unwrap_or_else(|| self.domain.clone())
    }

    fn soa(&self, zone: &Name) -> Record {
        let mailbox = self.absolute("hostmaster").unwrap_or_else(|| self.domain.clone());
        record(zone, RData::SOA(SOA::new(self.server(), mailbox, 1, 7200, 1800, 86_400, TTL)))
    }
}

/// Starts a response to a query.
pub fn response(query: &Message) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    message.add_queries(query.queries.iter().cloned());
    if let Some(edns) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(MAX_UDP).set_version(0).set_dnssec_ok(edns.flags().dnssec_ok);
        message.set_edns(ours);
    }
    message
}

/// Answers with an error.
pub fn refusal(query: &Message, code: ResponseCode) -> Message {
    let mut message = response(query);
    message.metadata.response_code = code;
    message
}

/// How many bytes the client takes over UDP.
pub fn udp_limit(query: &Message) -> usize {
    let wanted = query.edns.as_ref().map_or(512, Edns::max_payload);
    usize::from(wanted.clamp(512, MAX_UDP))
}

/// Encodes a response into at most `limit` bytes: what does not fit is left out and marked as truncated, so that the client
/// asks again over TCP.
///
/// # Errors
/// When a record cannot be encoded.
pub fn encode(message: &Message, limit: usize) -> Result<Vec<u8>, hickory_proto::ProtoError> {
    let bytes = message.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    if !message.additionals.is_empty() {
        let mut shorter = message.clone();
        shorter.additionals.clear();
        return encode(&shorter, limit);
    }
    message.truncate().to_vec()
}

fn acceptable(query: &Message) -> Result<&Query, ResponseCode> {
    if query.metadata.message_type != MessageType::Query {
        return Err(ResponseCode::FormErr);
    }
    if query.metadata.op_code != OpCode::Query {
        return Err(ResponseCode::NotImp);
    }
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Err(ResponseCode::BADVERS);
    }
    let [question] = query.queries.as_slice() else { return Err(ResponseCode::FormErr) };
    if question.query_class() != DNSClass::IN || matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return Err(ResponseCode::Refused);
    }
    Ok(question)
}

fn record(owner: &Name, data: RData) -> Record {
    Record::from_rdata(owner.clone(), TTL, data)
}

fn address(owner: &Name, ip: IpAddr) -> Record {
    match ip {
        IpAddr::V4(ip) => record(owner, RData::A(A(ip))),
        IpAddr::V6(ip) => record(owner, RData::AAAA(AAAA(ip))),
    }
}

fn address_type(ip: IpAddr) -> RecordType {
    if ip.is_ipv4() { RecordType::A } else { RecordType::AAAA }
}

/// The names above one, from the nearest.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(name.split_once('.'), |(_, above)| above.split_once('.')).map(|(_, above)| above)
}

/// Reads `10-244-0-3` or `fd00--3`, as the names of pods have it.
fn undashed(text: &str) -> Option<IpAddr> {
    let v4 = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

fn within(ip: IpAddr, base: IpAddr, length: u8) -> bool {
    let (ip, base, width) = match (ip, base) {
        (IpAddr::V4(ip), IpAddr::V4(base)) => (u128::from(ip.to_bits()), u128::from(base.to_bits()), 32),
        (IpAddr::V6(ip), IpAddr::V6(base)) => (ip.to_bits(), base.to_bits(), 128),
        _ => return false,
    };
    let host_bits = u32::from(width - length.min(width));
    ip.checked_shr(host_bits).unwrap_or(0) == base.checked_shr(host_bits).unwrap_or(0)
}

/// The address of a whole reverse name.
fn arpa_address(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&str> = name.iter().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    match labels.as_slice() {
        [d, c, b, a, "in-addr", "arpa"] => {
            let octet = |text: &str| text.parse::<u8>().ok();
            Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?).into())
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let digit = |text: &str| u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 1);
            let bits = nibbles.iter().rev().try_fold(0u128, |bits, nibble| Some(bits << 4 | digit(nibble)?))?;
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::edge::Srv;

    fn zone() -> Zone {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let name = |text: &str| text.to_owned();
        let srv = |port, target: &str| Srv { port, target: name(target) };
        Zone::new(Dns {
            domain: "cluster.local".into(),
            addresses: BTreeMap::from([
                (name("ns.dns"), vec![ip("10.96.0.10")]),
                (name("web.rack.svc"), vec![ip("10.96.1.2"), ip("fd00::12")]),
                (name("empty.rack.svc"), vec![]),
                (name("db.rack.svc"), vec![ip("10.244.0.3"), ip("10.244.0.4")]),
                (name("db-0.db.rack.svc"), vec![ip("10.244.0.3")]),
            ]),
            services: BTreeMap::from([
                (name("_http._tcp.web.rack.svc"), vec![srv(80, "web.rack.svc")]),
                (name("_pg._tcp.db.rack.svc"), vec![srv(5432, "db-0.db.rack.svc")]),
            ]),
            aliases: BTreeMap::from([
                (name("ext.rack.svc"), name("example.org")),
                (name("near.rack.svc"), name("web.rack.svc.cluster.local")),
                (name("loop.rack.svc"), name("loop.rack.svc.cluster.local")),
            ]),
            reverse: BTreeMap::from([
                (ip("10.96.1.2"), vec![name("web.rack.svc")]),
                (ip("fd00::12"), vec![name("web.rack.svc")]),
            ]),
            reverse_zones: vec![name("96.10.in-addr.arpa"), name("0.0.d.f.ip6.arpa")],
            pod_ranges: vec![(ip("10.244.0.0"), 16), (ip("fd00::"), 64)],
            upstreams: vec![],
        })
        .unwrap()
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn shown(reply: Reply) -> String {
        let texts = |message: &Message| {
            let records = message.answers.iter().map(|record| record.data.to_string());
            records.collect::<Vec<_>>().join(", ")
        };
        match reply {
            Reply::Forward => "forward".to_owned(),
            Reply::Chase { so_far, target } => format!("{} then {target}", texts(&so_far)),
            Reply::Answer(message) => match message.metadata.response_code {
                ResponseCode::NoError if message.answers.is_empty() => {
                    assert_eq!(message.authorities.len(), 1);
                    "nothing".to_owned()
                }
                ResponseCode::NoError => texts(&message),
                ResponseCode::NXDomain => {
                    assert_eq!(message.authorities.len(), 1);
                    "no such name".to_owned()
                }
                code => format!("{code:?}"),
            },
        }
    }

    #[test]
    fn questions_are_answered() {
        use RecordType::{A, AAAA, ANY, AXFR, CNAME, MX, NS, PTR, SOA, SRV, TXT};
        let soa = "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";
        let cases = [
            ("web.rack.svc.cluster.local.", A, "10.96.1.2"),
            ("WEB.Rack.svc.cluster.LOCAL.", A, "10.96.1.2"),
            ("web.rack.svc.cluster.local.", AAAA, "fd00::12"),
            ("web.rack.svc.cluster.local.", MX, "nothing"),
            ("web.rack.svc.cluster.local.", ANY, "10.96.1.2, fd00::12"),
            ("db.rack.svc.cluster.local.", A, "10.244.0.3, 10.244.0.4"),
            ("db.rack.svc.cluster.local.", AAAA, "nothing"),
            ("db-0.db.rack.svc.cluster.local.", A, "10.244.0.3"),
            ("db-1.db.rack.svc.cluster.local.", A, "no such name"),
            ("empty.rack.svc.cluster.local.", A, "nothing"),
            ("_http._tcp.web.rack.svc.cluster.local.", SRV, "0 100 80 web.rack.svc.cluster.local."),
            ("_pg._tcp.db.rack.svc.cluster.local.", SRV, "0 100 5432 db-0.db.rack.svc.cluster.local."),
            ("_http._tcp.web.rack.svc.cluster.local.", A, "nothing"),
            ("_http._udp.web.rack.svc.cluster.local.", SRV, "no such name"),
            ("_tcp.web.rack.svc.cluster.local.", SRV, "nothing"),
            ("rack.svc.cluster.local.", A, "nothing"),
            ("svc.cluster.local.", A, "nothing"),
            ("other.svc.cluster.local.", A, "no such name"),
            ("www.example.org.rack.svc.cluster.local.", A, "no such name"),
            ("ext.rack.svc.cluster.local.", A, "example.org. then example.org."),
            ("ext.rack.svc.cluster.local.", CNAME, "example.org."),
            ("near.rack.svc.cluster.local.", A, "web.rack.svc.cluster.local., 10.96.1.2"),
            ("loop.rack.svc.cluster.local.", A, "ServFail"),
            ("10-244-0-3.rack.pod.cluster.local.", A, "10.244.0.3"),
            ("fd00--3.rack.pod.cluster.local.", AAAA, "fd00::3"),
            ("10-96-0-3.rack.pod.cluster.local.", A, "no such name"),
            ("x.rack.pod.cluster.local.", A, "no such name"),
            ("dns-version.cluster.local.", TXT, "1.1.0"),
            ("dns-version.cluster.local.", A, "nothing"),
            ("cluster.local.", SOA, soa),
            ("cluster.local.", NS, "ns.dns.cluster.local."),
            ("cluster.local.", A, "nothing"),
            ("web.rack.svc.cluster.local.", AXFR, "Refused"),
            ("2.1.96.10.in-addr.arpa.", PTR, "web.rack.svc.cluster.local."),
            ("3.1.96.10.in-addr.arpa.", PTR, "no such name"),
            ("1.96.10.in-addr.arpa.", PTR, "nothing"),
            ("2.1.96.10.in-addr.arpa.", A, "nothing"),
            (
                "2.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
                PTR,
                "web.rack.svc.cluster.local.",
            ),
            ("1.2.0.192.in-addr.arpa.", PTR, "forward"),
            ("example.org.", A, "forward"),
            ("local.", A, "forward"),
            ("notcluster.local.", A, "forward"),
        ];
        let zone = zone();
        for (name, kind, expected) in cases {
            assert_eq!(shown(zone.reply(&query(name, kind))), expected, "{name} {kind}");
        }
    }

    #[test]
    fn what_cannot_be_a_question_is_refused() {
        let zone = zone();
        let refused = |change: fn(&mut Message)| {
            let mut message = query("web.rack.svc.cluster.local.", RecordType::A);
            change(&mut message);
            shown(zone.reply(&message))
        };
        assert_eq!(refused(|m| m.queries.clear()), "FormErr");
        assert_eq!(refused(|m| m.queries.push(m.queries[0].clone())), "FormErr");
        assert_eq!(refused(|m| m.metadata.op_code = OpCode::Update), "NotImp");
        let chaos = |m: &mut Message| {
            m.queries[0].set_query_class(DNSClass::CH);
        };
        assert_eq!(refused(chaos), "Refused");
        let future = |m: &mut Message| {
            let mut edns = Edns::new();
            edns.set_version(1);
            m.set_edns(edns);
        };
        assert_eq!(refused(future), "BADVERS");
    }

    #[test]
    fn a_service_record_comes_with_the_addresses_of_its_target() {
        let Reply::Answer(message) = zone().reply(&query("_http._tcp.web.rack.svc.cluster.local.", RecordType::SRV))
        else {
            panic!("no answer")
        };
        let additional: Vec<_> = message.additionals.iter().map(|record| record.data.to_string()).collect();
        assert_eq!(additional, ["10.96.1.2", "fd00::12"]);
    }

    #[test]
    fn capitals_come_back_as_they_were_asked() {
        let Reply::Answer(message) = zone().reply(&query("wEb.rack.svc.cluster.local.", RecordType::A)) else {
            panic!("no answer")
        };
        assert_eq!(message.answers[0].name.to_ascii(), "wEb.rack.svc.cluster.local.");
    }

    #[test]
    fn long_answers_lose_the_extras_first() {
        let mut message = response(&query("x.cluster.local.", RecordType::A));
        let owner = Name::from_ascii("x.cluster.local.").unwrap();
        message.add_answer(address(&owner, IpAddr::from([10, 0, 0, 1])));
        for last in 0..100 {
            message.add_additional(address(&owner, IpAddr::from([10, 0, 1, last])));
        }
        let read = Message::from_vec(&encode(&message, 512).unwrap()).unwrap();
        assert!(!read.metadata.truncation && read.answers.len() == 1 && read.additionals.is_empty());
        message.answers = std::mem::take(&mut message.additionals);
        let read = Message::from_vec(&encode(&message, 512).unwrap()).unwrap();
        assert!(read.metadata.truncation && read.answers.is_empty());
    }
}

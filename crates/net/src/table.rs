//! The one nftables table: what is always in it, and the sets that services fill.
//!
//! ```text
//! prerouting, output (nat)  → services: [address . protocol . port] → one chain per number of endpoints
//! services                  host ports first: dnat to [address . protocol . port] in map host-addresses4, host-ports4
//! chain "4.3"               dnat to [address . protocol . port . random 0..3] in map endpoints4
//! postrouting (nat)         hairpin and pods' traffic to the outside are masqueraded
//! forward, output, input    services without endpoints are refused, unused service addresses dropped
//! prerouting (raw)          a pod may not send from an address that is not its own, nor to the node's loopback
//! ```
//! A change of one service touches its elements only. Pure: [`contents`] and [`changes`] give values and messages.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::cidr::Cidr;

use crate::netlink::Message;
use crate::nft::{self, Data, Expression, Hook, Meta, Part, R0, Set, Value, Verdict};
use crate::proxy::{Backend, Frontend, Services};

/// What the fixed part of the table depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    pub pods: Vec<Cidr>,
    pub services: Vec<Cidr>,
    /// A port of the node that is reached through service addresses only, such as that of the cluster's DNS.
    pub hidden_port: Option<u16>,
}

/// The changing part: elements by set, and the chains that they lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub sets: BTreeMap<&'static str, BTreeMap<Vec<u8>, Value>>,
    pub chains: BTreeSet<Choice>,
}

/// A chain that picks one of `count` endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    ipv4: bool,
    node_port: bool,
    count: u32,
    affinity_seconds: Option<u64>,
}

/// The kernel refuses longer ones than 128 bytes; ours stay below 32.
fn chain_name(choice: &Choice) -> String {
    let Choice { ipv4, node_port, count, affinity_seconds } = choice;
    let family = if *ipv4 { 4 } else { 6 };
    let kind = if *node_port { "node-port" } else { "service" };
    match affinity_seconds {
        None => format!("{kind}{family}-{count}"),
        Some(seconds) => format!("{kind}{family}-{count}-sticky-{seconds}"),
    }
}

/// The sets of one family.
struct Family {
    ipv4: bool,
    /// 32-bit words of an address.
    words: u32,
    services: Set,
    node_ports: Set,
    endpoints: Set,
    node_port_endpoints: Set,
    refused: Set,
    refused_node_ports: Set,
    hairpin: Set,
    sticky: Set,
    host_addresses: Set,
    host_ports: Set,
}

const fn set(name: &'static str, key: &'static [Part], data: Data) -> Set {
    Set { name, key, data, dynamic: false }
}

use Part::{Ipv4, Ipv6, Number, Port, Protocol};

const FAMILIES: [Family; 2] = [
    Family {
        ipv4: true,
        words: 1,
        services: set("services4", &[Ipv4, Protocol, Port], Data::Verdict),
        node_ports: set("node-ports4", &[Protocol, Port], Data::Verdict),
        endpoints: set("endpoints4", &[Ipv4, Protocol, Port, Number], Data::Value(&[Ipv4, Port])),
        node_port_endpoints: set("node-port-endpoints4", &[Protocol, Port, Number], Data::Value(&[Ipv4, Port])),
        refused: set("refused4", &[Ipv4, Protocol, Port], Data::Verdict),
        refused_node_ports: set("refused-ports4", &[Protocol, Port], Data::Verdict),
        hairpin: set("hairpin4", &[Ipv4, Ipv4], Data::Nothing),
        sticky: Set { dynamic: true, ..set("sticky4", &[Ipv4, Ipv4, Protocol, Port], Data::Value(&[Ipv4, Port])) },
        host_addresses: set("host-addresses4", &[Ipv4, Protocol, Port], Data::Value(&[Ipv4, Port])),
        host_ports: set("host-ports4", &[Protocol, Port], Data::Value(&[Ipv4, Port])),
    },
    Family {
        ipv4: false,
        words: 4,
        services: set("services6", &[Ipv6, Protocol, Port], Data::Verdict),
        node_ports: set("node-ports6", &[Protocol, Port], Data::Verdict),
        endpoints: set("endpoints6", &[Ipv6, Protocol, Port, Number], Data::Value(&[Ipv6, Port])),
        node_port_endpoints: set("node-port-endpoints6", &[Protocol, Port, Number], Data::Value(&[Ipv6, Port])),
        refused: set("refused6", &[Ipv6, Protocol, Port], Data::Verdict),
        refused_node_ports: set("refused-ports6", &[Protocol, Port], Data::Verdict),
        hairpin: set("hairpin6", &[Ipv6, Ipv6], Data::Nothing),
        sticky: Set { dynamic: true, ..set("sticky6", &[Ipv6, Ipv6, Protocol, Port], Data::Value(&[Ipv6, Port])) },
        host_addresses: set("host-addresses6", &[Ipv6, Protocol, Port], Data::Value(&[Ipv6, Port])),
        host_ports: set("host-ports6", &[Protocol, Port], Data::Value(&[Ipv6, Port])),
    },
];

impl Family {
    fn of(ipv4: bool) -> &'static Self {
        &FAMILIES[usize::from(!ipv4)]
    }

    fn sets(&self) -> [&Set; 10] {
        [
            &self.services,
            &self.node_ports,
            &self.endpoints,
            &self.node_port_endpoints,
            &self.refused,
            &self.refused_node_ports,
            &self.hairpin,
            &self.sticky,
            &self.host_addresses,
            &self.host_ports,
        ]
    }

    fn source(&self, to: u32) -> Expression {
        let (offset, length) = if self.ipv4 { (12, 4) } else { (8, 16) };
        Expression::Network { to, offset, length }
    }

    fn destination(&self, to: u32) -> Expression {
        let (offset, length) = if self.ipv4 { (16, 4) } else { (24, 16) };
        Expression::Network { to, offset, length }
    }

    fn is_it(&self) -> [Expression; 2] {
        let number = if self.ipv4 { 2 } else { 10 };
        [Expression::Meta { to: R0, key: Meta::Family }, compare(R0, true, vec![number])]
    }
}

/// The set in which clients' endpoints are remembered, by family.
pub fn sticky_set(ipv4: bool) -> &'static str {
    Family::of(ipv4).sticky.name
}

/// An address as the kernel has it in a key.
pub fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An endpoint as map data.
pub fn endpoint_bytes((ip, port): &(IpAddr, u16)) -> Vec<u8> {
    let mut bytes = address_bytes(*ip);
    bytes.extend(port_bytes(*port));
    bytes
}

fn port_bytes(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn frontend_bytes(frontend: &Frontend) -> Vec<u8> {
    let (mut bytes, protocol, port) = match frontend {
        Frontend::Address(ip, protocol, port) | Frontend::HostAddress(ip, protocol, port) => {
            (address_bytes(*ip), protocol, port)
        }
        Frontend::NodePort { protocol, port, .. } | Frontend::HostPort { protocol, port, .. } => {
            (Vec::new(), protocol, port)
        }
    };
    bytes.extend([*protocol as u8, 0, 0, 0]);
    bytes.extend(port_bytes(*port));
    bytes
}

/// The sets' contents for `services`.
pub fn contents(services: &Services) -> Contents {
    let mut contents = Contents::default();
    for (frontend, backend) in services {
        let family = Family::of(frontend.is_ipv4());
        let key = frontend_bytes(frontend);
        let mut put = |set: &Set, key: Vec<u8>, value: Value| {
            contents.sets.entry(set.name).or_default().insert(key, value);
        };
        let hairpin = |ip: IpAddr| address_bytes(ip).repeat(2);
        let (decide, endpoints, refused) = match frontend {
            Frontend::NodePort { .. } => (&family.node_ports, &family.node_port_endpoints, &family.refused_node_ports),
            Frontend::Address(..) => (&family.services, &family.endpoints, &family.refused),
            Frontend::HostAddress(..) | Frontend::HostPort { .. } => {
                let by_address = matches!(frontend, Frontend::HostAddress(..));
                for endpoint in &backend.endpoints {
                    let set = if by_address { &family.host_addresses } else { &family.host_ports };
                    put(set, key.clone(), Value::Bytes(endpoint_bytes(endpoint)));
                    put(&family.hairpin, hairpin(endpoint.0), Value::Nothing);
                }
                continue;
            }
        };
        if backend.endpoints.is_empty() {
            let target = if backend.drop_when_empty { "drop" } else { "refuse" };
            put(refused, key, Value::Goto(target.to_owned()));
            continue;
        }
        let choice = choice(frontend, backend);
        for (n, endpoint) in (0_u32..).zip(&backend.endpoints) {
            let numbered = [&key[..], &n.to_ne_bytes()].concat();
            put(endpoints, numbered, Value::Bytes(endpoint_bytes(endpoint)));
            put(&family.hairpin, hairpin(endpoint.0), Value::Nothing);
        }
        put(decide, key, Value::Goto(chain_name(&choice)));
        contents.chains.insert(choice);
    }
    contents
}

fn choice(frontend: &Frontend, backend: &Backend) -> Choice {
    Choice {
        ipv4: frontend.is_ipv4(),
        node_port: matches!(frontend, Frontend::NodePort { .. }),
        count: u32::try_from(backend.endpoints.len()).expect("fewer endpoints than addresses"),
        affinity_seconds: backend.affinity_seconds,
    }
}

/// The messages that make the whole table, replacing one that is there.
pub fn build(ranges: &Ranges, contents: &Contents) -> Vec<Message> {
    // Adding first makes the deletion work whether it is there or not.
    let mut messages = vec![nft::add_table(), nft::delete_table(), nft::add_table()];
    for (id, set) in (1..).zip(FAMILIES.iter().flat_map(|family| family.sets())) {
        messages.push(nft::add_set(set, id));
    }
    for chain in ["services", "refusals", "refuse", "drop"] {
        messages.push(nft::add_chain(chain, None));
    }
    let base = |name, kind, number, priority| nft::add_chain(name, Some(Hook { kind, number, priority }));
    messages.extend([
        base("spoofed", "filter", nft::PREROUTING, -300),
        base("prerouting", "nat", nft::PREROUTING, -100),
        base("output", "nat", nft::OUTPUT, -100),
        base("postrouting", "nat", nft::POSTROUTING, 100),
        base("refused-input", "filter", nft::INPUT, 0),
        base("refused-forward", "filter", nft::FORWARD, 0),
        base("refused-output", "filter", nft::OUTPUT, 0),
    ]);
    messages.extend(fixed_rules(ranges));
    messages.extend(changes(&Contents::default(), contents));
    messages
}

/// The messages that turn one state of the sets into another: chains before what leads to them, removals before additions.
pub fn changes(from: &Contents, to: &Contents) -> Vec<Message> {
    let mut messages = Vec::new();
    for choice in to.chains.difference(&from.chains) {
        messages.push(nft::add_chain(&chain_name(choice), None));
        messages.extend(choice_rules(choice).iter().map(|rule| nft::add_rule(&chain_name(choice), rule)));
    }
    let none = BTreeMap::new();
    for set in FAMILIES.iter().flat_map(|family| family.sets()) {
        let (old, new) = (from.sets.get(set.name).unwrap_or(&none), to.sets.get(set.name).unwrap_or(&none));
        let gone = old.iter().filter(|(key, value)| new.get(*key) != Some(value));
        #[cfg(feature = "planted")]
        let gone = gone.filter(|(key, _)| new.contains_key(*key) || !planted::on(planted::Bug::LeakedElement));
        messages.extend(nft::delete_elements(set.name, gone.map(|(key, value)| (key.as_slice(), value))));
        let added = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
        messages.extend(nft::add_elements(set.name, added.map(|(key, value)| (key.as_slice(), value))));
    }
    // Chains that nothing leads to any more stay: there is one for each number of endpoints ever seen, a few hundred bytes each.
    messages
}

fn compare(register: u32, equal: bool, bytes: Vec<u8>) -> Expression {
    Expression::Compare { register, equal, bytes }
}

fn goto(chain: &str) -> Expression {
    Expression::Do(Verdict::Goto(chain.to_owned()))
}

/// Packets that come from a pod's link, or leave by one.
fn pods_link(key: Meta, equal: bool) -> [Expression; 2] {
    [Expression::Meta { to: R0, key }, compare(R0, equal, crate::pod::LINK_PREFIX.as_bytes().to_vec())]
}

/// `[address .] protocol . port` into consecutive registers.
fn load_frontend(family: &Family, with_address: bool, at: u32) -> Vec<Expression> {
    let mut steps = Vec::new();
    let mut next = at;
    if with_address {
        steps.push(family.destination(next));
        next += family.words;
    }
    steps.push(Expression::Meta { to: next, key: Meta::Protocol });
    steps.push(Expression::Transport { to: next + 1, offset: 2, length: 2 });
    steps
}

fn within(family: &Family, load: Expression, range: &Cidr, inside: bool) -> Vec<Expression> {
    let width = if family.ipv4 { 32 } else { 128 };
    let bits = u128::MAX.checked_shl(width - u32::from(range.prefix())).unwrap_or(0);
    let mask = bits.to_be_bytes()[16 - width as usize / 8..].to_vec();
    vec![load, Expression::Mask { register: R0, mask }, compare(R0, inside, address_bytes(range.address()))]
}

fn fixed_rules(ranges: &Ranges) -> Vec<Message> {
    let mut rules: Vec<(&str, Vec<Expression>)> = Vec::new();
    let jump = |chain: &str| vec![Expression::Do(Verdict::Jump(chain.to_owned()))];

    let mut spoofed = pods_link(Meta::InputName, true).to_vec();
    spoofed.extend([
        Expression::ReversePath { to: R0 },
        compare(R0, true, 0_u32.to_ne_bytes().to_vec()),
        Expression::Do(Verdict::Drop),
    ]);
    rules.push(("spoofed", spoofed));
    // Links of pods with host ports route loopback addresses, so that 127.0.0.1 works: the pods themselves must not use it
    // (CVE-2020-8558). Answers to such connections are not addressed to loopback here yet.
    let v4 = &FAMILIES[0];
    let loopback: Cidr = "127.0.0.0/8".parse().expect("a range");
    let to_loopback = within(v4, v4.destination(R0), &loopback, true);
    let drop = vec![Expression::Do(Verdict::Drop)];
    rules.push((
        "spoofed",
        [v4.is_it().to_vec(), pods_link(Meta::InputName, true).to_vec(), to_loopback, drop].concat(),
    ));
    let from_loopback = within(v4, v4.source(R0), &loopback, true);
    let masquerade = vec![Expression::Masquerade];
    let leaves = pods_link(Meta::OutputName, true).to_vec();
    rules.push(("postrouting", [v4.is_it().to_vec(), leaves, from_loopback, masquerade].concat()));
    for chain in ["prerouting", "output"] {
        rules.push((chain, jump("services")));
    }
    for chain in ["refused-input", "refused-forward", "refused-output"] {
        rules.push((chain, jump("refusals")));
    }
    for family in &FAMILIES {
        let only = |rest: Vec<Expression>| [family.is_it().to_vec(), rest].concat();
        for rule in host_port_rules(family) {
            rules.push(("services", only(rule)));
        }
        let mut by_address = load_frontend(family, true, R0);
        by_address.push(Expression::Decide { map: family.services.name, from: R0 });
        rules.push(("services", only(by_address)));
        let mut by_port = to_this_node(family);
        by_port.extend(load_frontend(family, false, R0));
        by_port.push(Expression::Decide { map: family.node_ports.name, from: R0 });
        rules.push(("services", only(by_port)));

        let mut refused = load_frontend(family, true, R0);
        refused.push(Expression::Decide { map: family.refused.name, from: R0 });
        rules.push(("refusals", only(refused)));
        let mut refused_port = to_this_node(family);
        refused_port.extend(load_frontend(family, false, R0));
        refused_port.push(Expression::Decide { map: family.refused_node_ports.name, from: R0 });
        rules.push(("refusals", only(refused_port)));
        // What still goes to a service address was not translated: nothing has that address, and it must not loop.
        for range in ranges.services.iter().filter(|range| range.is_ipv4() == family.ipv4) {
            let mut unused = within(family, family.destination(R0), range, true);
            unused.push(Expression::Do(Verdict::Drop));
            rules.push(("refusals", only(unused)));
        }

        let mut hairpin = vec![family.source(R0), family.destination(R0 + family.words)];
        hairpin.push(Expression::Lookup { set: family.hairpin.name, from: R0, to: None });
        hairpin.push(Expression::Masquerade);
        rules.push(("postrouting", only(hairpin)));
        let pods: Vec<&Cidr> = ranges.pods.iter().filter(|range| range.is_ipv4() == family.ipv4).collect();
        for range in &pods {
            let mut egress = pods_link(Meta::OutputName, false).to_vec();
            egress.extend(within(family, family.source(R0), range, true));
            for other in &pods {
                egress.extend(within(family, family.destination(R0), other, false));
            }
            egress.push(Expression::Masquerade);
            rules.push(("postrouting", only(egress)));
        }
    }
    if let Some(port) = ranges.hidden_port {
        const TRANSLATED: u32 = 0x20;
        rules.push((
            "refused-input",
            vec![
                Expression::Transport { to: R0, offset: 2, length: 2 },
                compare(R0, true, port.to_be_bytes().to_vec()),
                Expression::ConnectionStatus { to: R0 },
                Expression::Mask { register: R0, mask: TRANSLATED.to_ne_bytes().to_vec() },
                compare(R0, true, 0_u32.to_ne_bytes().to_vec()),
                goto("refuse"),
            ],
        ));
    }
    const TCP: u8 = 6;
    let is_tcp =
        vec![Expression::Meta { to: R0, key: Meta::Protocol }, compare(R0, true, vec![TCP]), Expression::ResetTcp];
    rules.push(("refuse", is_tcp));
    rules.push(("refuse", vec![Expression::Unreachable]));
    rules.push(("drop", vec![Expression::Do(Verdict::Drop)]));
    rules.iter().map(|(chain, expressions)| nft::add_rule(chain, expressions)).collect()
}

/// An address is looked up before all addresses are; there is one endpoint, so that nothing is to be chosen.
fn host_port_rules(family: &Family) -> [Vec<Expression>; 2] {
    let translate = |set: &Set| {
        [
            Expression::Lookup { set: set.name, from: R0, to: Some(CHOSEN) },
            Expression::Dnat { ipv4: family.ipv4, address: CHOSEN, port: CHOSEN + family.words },
        ]
    };
    let mut by_address = load_frontend(family, true, R0);
    by_address.extend(translate(&family.host_addresses));
    // IPv6 has no way to send from its loopback to a pod: there the port stays closed, and clients go on to 127.0.0.1.
    let mut by_port = if family.ipv4 { to_local_address() } else { to_this_node(family) };
    by_port.extend(load_frontend(family, false, R0));
    by_port.extend(translate(&family.host_ports));
    [by_address, by_port]
}

fn to_local_address() -> Vec<Expression> {
    const LOCAL: u32 = 2;
    vec![Expression::DestinationType { to: R0 }, compare(R0, true, LOCAL.to_ne_bytes().to_vec())]
}

/// Packets to an address of this node, but not to loopback: node ports are not offered there.
fn to_this_node(family: &Family) -> Vec<Expression> {
    let mut steps = to_local_address();
    let loopback = if family.ipv4 { "127.0.0.0/8" } else { "::1/128" };
    steps.extend(within(family, family.destination(R0), &loopback.parse().expect("a range"), false));
    steps
}

/// Where an endpoint is put once it is chosen: behind the longest key.
const CHOSEN: u32 = R0 + 10;

fn choice_rules(choice: &Choice) -> Vec<Vec<Expression>> {
    let family = Family::of(choice.ipv4);
    let endpoints = if choice.node_port { &family.node_port_endpoints } else { &family.endpoints };
    let dnat = Expression::Dnat { ipv4: choice.ipv4, address: CHOSEN, port: CHOSEN + family.words };
    let mut pick = load_frontend(family, !choice.node_port, R0);
    let number = R0 + if choice.node_port { 2 } else { family.words + 2 };
    pick.push(Expression::Random { to: number, modulus: choice.count });
    pick.push(Expression::Lookup { set: endpoints.name, from: R0, to: Some(CHOSEN) });
    let Some(timeout_seconds) = choice.affinity_seconds else {
        pick.push(dnat);
        return vec![pick];
    };
    let mut client = vec![family.source(R0)];
    client.extend(load_frontend(family, true, R0 + family.words));
    let remember = Expression::Update { map: family.sticky.name, key: R0, data: CHOSEN, timeout_seconds };
    let mut again = client.clone();
    again.push(Expression::Lookup { set: family.sticky.name, from: R0, to: Some(CHOSEN) });
    again.extend([remember.clone(), dnat.clone()]);
    pick.extend(client);
    pick.extend([remember, dnat]);
    vec![again, pick]
}

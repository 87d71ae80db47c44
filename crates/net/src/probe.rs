//! Looking at the machine's network without changing it.

use std::io;
use std::net::IpAddr;
use std::thread;

use crate::netlink::{DUMP, Family, Message, Socket, attributes};
use crate::nft::{self, Expression, Hook, R0};
use crate::route::Routes;
use crate::sys;

/// Whether the kernel answers nftables requests.
pub fn has_nftables() -> bool {
    list_chains().is_ok()
}

/// The kernel's modules that the services' rules need and that are not there.
///
/// Each is tried with a table of one rule, in a network namespace that is made for it and goes with its thread: the
/// machine's own rules are not touched.
///
/// # Errors
/// When there can be no such namespace.
pub fn missing_nft_modules() -> io::Result<Vec<&'static str>> {
    let probing = thread::Builder::new().name("nft-probe".to_owned()).spawn(|| {
        sys::leave_network()?;
        let lacks = |(_, messages): &(&str, Vec<Message>)| nft::commit(messages.clone()).is_err();
        Ok(needs().into_iter().filter(lacks).map(|(module, _)| module).collect())
    })?;
    probing.join().unwrap_or_else(|_| Err(io::Error::other("the probe of nftables panicked")))
}

/// Modules, each with a table that needs it. Source: `net/netfilter/Kconfig` and `net/netfilter/Makefile`.
fn needs() -> Vec<(&'static str, Vec<Message>)> {
    let filter = Hook { kind: "filter", number: nft::PREROUTING, priority: 0 };
    let input = Hook { kind: "filter", number: nft::INPUT, priority: 0 };
    let before = Hook { kind: "nat", number: nft::PREROUTING, priority: -100 };
    let after = Hook { kind: "nat", number: nft::POSTROUTING, priority: 100 };
    let table = |hook: Hook, rule: &[Expression]| {
        let mut messages = vec![nft::add_table(), nft::delete_table(), nft::add_table()];
        messages.push(nft::add_chain("probe", Some(hook)));
        if !rule.is_empty() {
            messages.push(nft::add_rule("probe", rule));
        }
        messages
    };
    // The kernel refuses registers that nothing was loaded into.
    let to_another_address = [
        Expression::Network { to: R0, offset: 16, length: 4 },
        Expression::Transport { to: R0 + 1, offset: 2, length: 2 },
        Expression::Dnat { ipv4: true, address: R0, port: R0 + 1 },
    ];
    vec![
        ("nf_tables", table(filter, &[])),
        ("nft_chain_nat", table(before, &[])),
        ("nft_nat", table(before, &to_another_address)),
        ("nft_masq", table(after, &[Expression::Masquerade])),
        ("nft_reject_inet", table(input, &[Expression::Unreachable])),
        ("nft_fib_inet", table(filter, &[Expression::ReversePath { to: R0 }])),
        ("nft_numgen", table(filter, &[Expression::Random { to: R0, modulus: 2 }])),
        ("nft_ct", table(filter, &[Expression::ConnectionStatus { to: R0 }])),
    ]
}

/// Chains of other tables that drop forwarded traffic by policy, such as `ip filter FORWARD (policy drop)`.
///
/// Drops by single rules are not found: what they match is beyond a guess.
pub fn foreign_forward_drops() -> Vec<String> {
    list_chains().unwrap_or_default()
}

fn list_chains() -> io::Result<Vec<String>> {
    const UNSPECIFIED: u8 = 0;
    let mut socket = Socket::open(Family::Netfilter)?;
    let answers = socket.dump(Message::new(nft::GET_CHAIN, DUMP, &nft::header(UNSPECIFIED)))?;
    Ok(answers.iter().filter_map(|answer| forward_drop(&answer.payload)).collect())
}

/// Source: `include/uapi/linux/netfilter/nf_tables.h`, `enum nft_chain_attributes`.
fn forward_drop(payload: &[u8]) -> Option<String> {
    const FORWARD: u32 = 2;
    const DROP: u32 = 0;
    let family = match payload.first()? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
    let number = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
    let (mut table, mut name, mut hook, mut policy) = (String::new(), String::new(), None, None);
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            1 => table = text(value),
            3 => name = text(value),
            4 => hook = attributes(value).find(|(kind, _)| *kind == 1).and_then(|(_, v)| number(v)),
            5 => policy = number(value),
            _ => {}
        }
    }
    let drops = hook == Some(FORWARD) && policy == Some(DROP) && table != nft::TABLE;
    drops.then(|| format!("{family} {table} {name} (policy drop)"))
}

/// The addresses by which this machine reaches the Internet, IPv4 first; a family without a default route is left out.
pub fn default_source_addresses() -> Vec<IpAddr> {
    // Addresses of documentation: nothing is sent to them.
    let targets: [IpAddr; 2] = [IpAddr::from([192_u8, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1_u16])];
    let Ok(mut routes) = Routes::open() else { return Vec::new() };
    targets
        .into_iter()
        .filter_map(|target| routes.source_towards(target).ok()?.0)
        .filter(|ip| !ip.is_loopback())
        .collect()
}

/// The largest packet that the link towards `destination` carries.
pub fn mtu_towards(destination: IpAddr) -> Option<u32> {
    let mut routes = Routes::open().ok()?;
    let (_, index) = routes.source_towards(destination).ok()?;
    routes.mtu_of(index).ok()
}

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
/// A table that needs them all is made in a network namespace of its own, which goes with its thread: the machine's own rules are
/// not touched. Only when that fails is each tried alone. Nothing is taken away: that alone makes the kernel wait for all processors.
///
/// # Errors
/// When there can be no such namespace, or the kernel refuses for another reason.
pub fn missing_nft_modules() -> io::Result<Vec<&'static str>> {
    missing(needs())
}

fn missing(needs: Vec<Need>) -> io::Result<Vec<&'static str>> {
    let probing = thread::Builder::new().name("nft-probe".to_owned()).spawn(move || {
        sys::leave_network()?;
        if make(&needs)? {
            return Ok(Vec::new());
        }
        let mut missing = Vec::new();
        for need in needs {
            let module = need.module;
            if !make(&[need])? {
                missing.push(module);
            }
        }
        Ok(missing)
    })?;
    probing.join().unwrap_or_else(|_| Err(io::Error::other("the probe of nftables panicked")))
}

/// A module, and what cannot be without it. Source: `net/netfilter/Kconfig` and `net/netfilter/Makefile`.
struct Need {
    module: &'static str,
    hook: Hook,
    rule: Vec<Expression>,
}

/// Whether the kernel adds all of these to the table.
fn make(needs: &[Need]) -> io::Result<bool> {
    let mut messages = vec![nft::add_table()];
    for need in needs {
        messages.push(nft::add_chain(need.module, Some(need.hook)));
        if !need.rule.is_empty() {
            messages.push(nft::add_rule(need.module, &need.rule));
        }
    }
    match nft::commit(messages) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::OutOfMemory) => {
            Err(error)
        }
        Err(_) => Ok(false),
    }
}

fn needs() -> Vec<Need> {
    let filter = Hook { kind: "filter", number: nft::PREROUTING, priority: 0 };
    let input = Hook { kind: "filter", number: nft::INPUT, priority: 0 };
    let before = Hook { kind: "nat", number: nft::PREROUTING, priority: -100 };
    let after = Hook { kind: "nat", number: nft::POSTROUTING, priority: 100 };
    // The kernel refuses registers that nothing was loaded into.
    let to_another_address = vec![
        Expression::Network { to: R0, offset: 16, length: 4 },
        Expression::Transport { to: R0 + 1, offset: 2, length: 2 },
        Expression::Dnat { ipv4: true, address: R0, port: R0 + 1 },
    ];
    let need = |module, hook, rule| Need { module, hook, rule };
    vec![
        need("nf_tables", filter, Vec::new()),
        need("nft_chain_nat", before, Vec::new()),
        need("nft_nat", before, to_another_address),
        need("nft_masq", after, vec![Expression::Masquerade]),
        need("nft_reject_inet", input, vec![Expression::Unreachable]),
        need("nft_fib_inet", filter, vec![Expression::ReversePath { to: R0 }]),
        need("nft_numgen", filter, vec![Expression::Random { to: R0, modulus: 2 }]),
        need("nft_ct", filter, vec![Expression::ConnectionStatus { to: R0 }]),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_from_what_is_there() {
        let mut needs = needs();
        let hook = Hook { kind: "such", number: nft::PREROUTING, priority: 0 };
        needs.insert(3, Need { module: "nft_chain_such", hook, rule: Vec::new() });
        needs.push(Need { module: "nft_chain_such_too", hook, rule: vec![Expression::Masquerade] });
        assert_eq!(missing(needs).expect("there is room for a namespace"), ["nft_chain_such", "nft_chain_such_too"]);
    }
}

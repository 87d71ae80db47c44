//! The elements of coracle's sets and maps, counted by netlink: `nft list` of Debian 12 does not survive them.
//!
//! Source: the kernel's `include/uapi/linux/netfilter/nf_tables.h`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use crate::host::Host;
use crate::netns::within;

/// `NFT_MSG_GETSETELEM` of nftables.
const GET_ELEMENTS: u16 = 10 << 8 | 13;
const REQUEST_DUMP: u16 = 0x301;
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The rules as text, without elements, and how many elements each set has.
///
/// # Errors
/// When `nft` is missing, or the kernel refuses.
pub fn look(host: &Host, netns: &Path) -> Result<(String, Vec<(String, usize)>)> {
    let rules = host.run(&["nft", "--terse", "list", "ruleset"])?;
    let sets: Vec<String> = sets_of(&rules).map(str::to_owned).collect();
    let counted =
        within(netns, || sets.into_iter().map(|set| elements_of(&set).map(|n| (set, n))).collect::<Result<_>>())?;
    Ok((rules, counted))
}

/// The sets and maps of the table `inet coracle`.
fn sets_of(rules: &str) -> impl Iterator<Item = &str> {
    let table = rules.split("table ").find_map(|table| table.strip_prefix("inet coracle {")).unwrap_or_default();
    table.lines().filter_map(|line| {
        let (sort, name) = line.trim().strip_suffix(" {")?.split_once(' ')?;
        matches!(sort, "set" | "map").then_some(name)
    })
}

fn elements_of(set: &str) -> Result<usize> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    // The family of tables that are for IPv4 and IPv6.
    let mut message = vec![1, 0, 0, 0];
    for (kind, text) in [(1_u16, "coracle"), (2, set)] {
        let length = u16::try_from(4 + text.len() + 1)?;
        message.extend(length.to_ne_bytes().into_iter().chain(kind.to_ne_bytes()).chain(text.bytes()).chain([0]));
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + message.len())?.to_ne_bytes();
    let header = length.into_iter().chain(GET_ELEMENTS.to_ne_bytes()).chain(REQUEST_DUMP.to_ne_bytes()).chain([0; 8]);
    send(&socket, &header.chain(message).collect::<Vec<u8>>(), SendFlags::empty())?;
    let (mut buffer, mut count) = (vec![0; 1 << 16], 0);
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some(header) = rest.get(..HEADER) {
            let length = usize::try_from(u32::from_ne_bytes(header[..4].try_into()?))?;
            let kind = u16::from_ne_bytes(header[4..6].try_into()?);
            let payload = rest.get(HEADER..length).context("a message that is cut off")?;
            match kind {
                DONE => return Ok(count),
                ERROR => ensure!(false, "set {set}: {:?}", payload.get(..4)),
                _ => {
                    let lists = attributes(payload.get(4..).unwrap_or_default()).filter(|(kind, _)| *kind == 3);
                    count += lists.map(|(_, list)| attributes(list).count()).sum::<usize>();
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_sets_are_looked_at() {
        let rules = "table ip other {\n\tset theirs {\n\t}\n}\ntable inet coracle {\n\tmap services {\n\t\ttype x : y\n\t}\n\tchain c {\n\t}\n}\n";
        assert_eq!(sets_of(rules).collect::<Vec<_>>(), ["services"]);
    }
}

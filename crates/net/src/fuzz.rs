//! Ways into this crate's private parsers, for the fuzz targets and the replay of their corpora.

use crate::{conntrack, netlink};

/// Reads a datagram of the kernel: its messages, their attributes, and what connection tracking says in them.
pub fn datagram(bytes: &[u8]) {
    for (_, message) in netlink::split(bytes) {
        assert!(message.payload.len() <= bytes.len());
        for (_, value) in netlink::attributes(&message.payload) {
            netlink::attributes(value).for_each(drop);
        }
        conntrack::parse(&message.payload);
    }
}

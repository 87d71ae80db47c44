//! What main programs into the kernel: pods' links and addresses, services, and masquerading.
//!
//! Everything speaks netlink itself; nothing is ever executed. Routes carry a protocol number of their own, rules lie in one
//! table, links have one prefix: what is not ours is never touched.

pub mod conntrack;
#[doc(hidden)]
pub mod fuzz;
pub mod host_ports;
pub mod ipam;
pub mod netlink;
pub mod nft;
pub mod pod;
pub mod pods;
pub mod probe;
pub mod proxy;
pub mod route;
pub mod shell;
pub mod sys;
pub mod table;

//! What the node reads of containers, images, the host, the kernel, its shims and the disk.

use k8s_openapi::api::core::v1::{Container, Pod};
use node::logs::{self, Filter, Options};
use node::plan::files::Dns;
use node::plan::{env, identity};

use crate::{halves, text};

pub(crate) fn log_line(bytes: &[u8]) {
    if let Some(line) = logs::parse(bytes) {
        assert!(line.text.len() < bytes.len());
    }
    let options = Options { tail_lines: Some(2), limit_bytes: Some(64), timestamps: true, ..Options::default() };
    let (mut filter, mut out) = (Filter::new(&options), Vec::new());
    for line in bytes.split(|byte| *byte == b'\n') {
        filter.take(line, &mut out);
    }
    assert!(out.len() <= 64, "the limit holds");
}

/// The image's user, its passwd and its group.
pub(crate) fn accounts(bytes: &[u8]) {
    let (user, rest) = halves(bytes);
    let (passwd, group) = halves(rest);
    let lossy = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let Some(user) = text(user) else { return };
    let accounts = identity::Accounts { passwd: lossy(passwd), group: lossy(group) };
    drop(identity::resolve(&Pod::default(), &Container::default(), user, &accounts));
}

pub(crate) fn resolv_conf(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let dns = Dns::parse(text);
    assert_eq!(Dns::parse(&dns.text()), dns);
}

pub(crate) fn expand(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    assert!(env::expand(text, |_| None).len() <= text.len(), "nothing is added");
    env::expand(text, |name| (name.len() < 3).then(|| "$(A)".to_owned()));
}

pub(crate) fn seccomp_profile(bytes: &[u8]) {
    runtime::fuzz::seccomp_profile(bytes);
}

pub(crate) fn shim_packet(bytes: &[u8]) {
    runtime::fuzz::shim_packet(bytes);
}

pub(crate) fn netlink(bytes: &[u8]) {
    net::fuzz::datagram(bytes);
}

pub(crate) fn store_file(bytes: &[u8]) {
    store::fuzz::file(bytes);
}

pub(crate) fn store_record(bytes: &[u8]) {
    store::fuzz::records(bytes);
}

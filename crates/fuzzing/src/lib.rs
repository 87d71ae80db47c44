//! Every parser of strangers' bytes, as one function each that takes any bytes at all.
//!
//! The fuzz targets in `fuzz/` and the replay of their corpora in `tests/it` go through this table, so that what was found once is
//! looked for in every test run. A function panics when a property does not hold: beside "does not panic" these are round trips,
//! bounds on what comes out, and that nothing is written outside of a layer's directory.
//! Where an input has several parts they are separated by a NUL byte.

mod image;
mod kubernetes;
mod machine;
mod network;
mod server;

/// A parser.
pub struct Target {
    pub name: &'static str,
    /// Whose bytes these are.
    pub from: &'static str,
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, from: &'static str, run: fn(&[u8])) -> Target {
    Target { name, from, run }
}

/// All of them, by name.
pub const TARGETS: &[Target] = &[
    target("accept", "a client of the API: Accept headers", server::accept),
    target("accounts", "an image: passwd and group", machine::accounts),
    target("body", "a client of the API: an object in a request", server::body),
    target("certificate", "a client of the API: its certificate", server::certificate),
    target("continue_token", "a client of the API: continue and resourceVersion", server::continue_token),
    target("dns_query", "a pod: a DNS query", network::dns_query),
    target("expand", "a pod: $(NAME) in commands and variables", machine::expand),
    target("field_selector", "a client of the API: field selectors", kubernetes::field_selector),
    target("image_config", "a registry: an image's configuration", image::config),
    target("image_manifest", "a registry: manifests and indexes", image::manifest),
    target("image_reference", "a pod: an image's name", image::reference),
    target("ingress_path", "a client of the ingress: host and path", network::ingress_path),
    target("json", "a client of the API: JSON", kubernetes::json),
    target("label_selector", "a client of the API: label selectors", kubernetes::label_selector),
    target("layer", "a registry: a layer, unpacked", image::layer),
    target("log_line", "a container: lines of its log", machine::log_line),
    target("names", "a client of the API: addresses, ranges and names", kubernetes::names),
    target("netlink", "the kernel: netlink answers", machine::netlink),
    target("object", "the store: an object's bytes", kubernetes::object),
    target("patch", "a client of the API: the three kinds of patches", kubernetes::patch),
    target("path", "a client of the API: methods, paths and queries", server::path),
    target("pod", "a client of the API: a Pod, defaulted and validated", server::pod),
    target("protobuf", "a client of the API: an object in protobuf", server::protobuf),
    target("quantity", "a client of the API: quantities", kubernetes::quantity),
    target("registries", "an administrator: registries.yaml and credentials", image::registries),
    target("resolv_conf", "the host: resolv.conf", machine::resolv_conf),
    target("seccomp_profile", "an administrator: seccomp profiles", machine::seccomp_profile),
    target("shim_packet", "a shim, and main: packets of their socket", machine::shim_packet),
    target("spdy", "a client of the node: SPDY frames", network::spdy),
    target("store_file", "a disk: the log and checkpoints", machine::store_file),
    target("store_record", "a disk: what a frame holds", machine::store_record),
    target("tar", "a registry: a layer, planned only", image::tar),
    target("token", "a client of the API: bearer tokens", server::token),
    target("watch_line", "a server: lists and watches, as our client reads them", server::watch_line),
    target("wire_down", "main: messages to the edge", network::wire_down),
    target("wire_up", "the edge: messages to main", network::wire_up),
    target("yaml", "a client of the API: YAML", kubernetes::yaml),
];

/// Runs the target of this name.
///
/// # Panics
/// When there is none, or when a property does not hold.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("the table has every target");
    (target.run)(bytes);
}

/// The input as text, if it is one.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// The first part of an input and the rest.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == 0);
    at.map_or((bytes, &[][..]), |at| (&bytes[..at], &bytes[at + 1..]))
}

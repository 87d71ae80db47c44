//! What coracle takes from an image's configuration: a typed allow-list, for the configuration is hostile input.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The part of an image's configuration that containers may inherit. Everything else in it is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `uid`, `uid:gid`, `name` or `name:group`; empty when the image names none.
    pub user: String,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Absolute and normalized; empty when the image names none.
    pub working_dir: String,
    /// Absolute, normalized paths, never `/`.
    pub volumes: Vec<String>,
    pub exposed_ports: Vec<ExposedPort>,
    /// Such as `SIGTERM` or `15`; None when the image names none.
    pub stop_signal: Option<String>,
    /// Shown to users, never acted on.
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExposedPort {
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

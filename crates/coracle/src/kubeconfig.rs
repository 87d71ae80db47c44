//! Kubeconfigs: the administrator's file on this machine, and others on request.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use server::pki::keyring::Keyring;
use server::pki::{Authority, Leaf, Order, Purpose, USER_LIFE};

use crate::config::Config;

/// A kubeconfig with one cluster, one user and one context.
pub fn render(server: SocketAddr, authority: &str, user: &str, leaf: &Leaf) -> String {
    let encode = |text: &str| STANDARD.encode(text);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: coracle
  cluster:
    server: https://{server}
    certificate-authority-data: {}
users:
- name: {user:?}
  user:
    client-certificate-data: {}
    client-key-data: {}
contexts:
- name: coracle
  context:
    cluster: coracle
    user: {user:?}
current-context: coracle
",
        encode(authority),
        encode(&leaf.certificate),
        encode(&leaf.key)
    )
}

/// Makes a certificate for `user` and the kubeconfig with it.
///
/// # Errors
/// When the cluster's keys cannot be read.
pub fn issue(config: &Config, user: &str, group: Option<String>) -> Result<String> {
    let dir = pki_dir(config);
    let missing = || format!("no cluster has been started here: {} does not exist", dir.join("ca.crt").display());
    anyhow::ensure!(dir.join("ca.crt").exists(), missing());
    let now = Timestamp::now();
    let keys = Keyring::open(&dir, now)?;
    let ips = if config.node_ips.is_empty() { net::probe::default_source_addresses() } else { config.node_ips.clone() };
    let group = group.or_else(|| (user == "kubernetes-admin").then(|| "system:masters".to_owned()));
    let ip = ips.first().context("this machine has no address that others could reach")?;
    for_user(&keys.authority, *ip, config.api_port, user, group, now)
}

/// The kubeconfig of a user whose certificate is made now.
///
/// # Errors
/// When the certificate cannot be made.
pub fn for_user(
    authority: &Authority,
    ip: IpAddr,
    port: u16,
    user: &str,
    group: Option<String>,
    now: Timestamp,
) -> Result<String> {
    let order = Order { name: user.to_owned(), purpose: Purpose::Client { group }, life: USER_LIFE };
    let leaf = authority.issue(&order, now)?;
    Ok(render(SocketAddr::new(ip, port), authority.certificate(), user, &leaf))
}

pub fn pki_dir(config: &Config) -> std::path::PathBuf {
    config.config_dir.join("pki")
}

/// Writes the administrator's kubeconfig, 0600.
///
/// # Errors
/// When the file cannot be written.
pub fn write_admin(path: &Path, text: &str) -> Result<()> {
    crate::cluster::write(path, text.as_bytes()).with_context(|| format!("could not write {}", path.display()))
}

//! What is decided at a cluster's first start and kept: its name for the node, and its ranges.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use api::cidr::Cidr;
use serde::{Deserialize, Serialize};

use crate::config::Config;

/// Blocks of pod addresses that one node takes: 4 × 64 addresses of each family, for 110 pods and those that rest.
const BLOCKS: u128 = 4;

/// The cluster's own facts, in `cluster.json` below the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    pub node_name: String,
    /// Primary family first.
    pub pod_cidrs: Vec<String>,
    pub service_cidrs: Vec<String>,
}

impl Cluster {
    /// Reads what was decided, or decides it. `random` are 5 bytes for the unique local ranges.
    ///
    /// # Errors
    /// When the configuration now says something else: neither the node's name nor the ranges can change under running pods.
    pub fn open(config: &Config, node_ips: &[IpAddr], host_name: &str, random: [u8; 5]) -> Result<Self> {
        let path = config.data_dir.join("cluster.json");
        match fs::read(&path) {
            Ok(bytes) => {
                let kept: Self =
                    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
                kept.check(config)?;
                Ok(kept)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let fresh = Self::decide(config, node_ips, host_name, random);
                write(&path, &serde_json::to_vec_pretty(&fresh)?)
                    .with_context(|| format!("could not write {}", path.display()))?;
                Ok(fresh)
            }
            Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
        }
    }

    fn decide(config: &Config, node_ips: &[IpAddr], host_name: &str, random: [u8; 5]) -> Self {
        let [a, b, c, d, e] = random;
        let ula = |subnet: u16| format!("fd{a:02x}:{b:02x}{c:02x}:{d:02x}{e:02x}:{subnet:x}::");
        let has_ipv6 = node_ips.iter().any(IpAddr::is_ipv6);
        let has_ipv4 = node_ips.iter().any(IpAddr::is_ipv4);
        let ranges = |given: &[Cidr], v4: &str, v6: String| -> Vec<String> {
            if !given.is_empty() {
                return given.iter().map(ToString::to_string).collect();
            }
            has_ipv4.then(|| v4.to_owned()).into_iter().chain(has_ipv6.then_some(v6)).collect()
        };
        Self {
            node_name: config.node_name.clone().unwrap_or_else(|| host_name.to_ascii_lowercase()),
            pod_cidrs: ranges(&config.pod_cidrs, "10.244.0.0/16", format!("{}/64", ula(0))),
            service_cidrs: ranges(&config.service_cidrs, "10.96.0.0/12", format!("{}/112", ula(1))),
        }
    }

    fn check(&self, config: &Config) -> Result<()> {
        let differs = |key: &str, now: Vec<String>, kept: &[String]| {
            if !now.is_empty() && now != kept {
                bail!(
                    "{key} was fixed as {} when this cluster was made and cannot become {}",
                    kept.join(","),
                    now.join(",")
                );
            }
            Ok(())
        };
        let shown = |ranges: &[Cidr]| ranges.iter().map(ToString::to_string).collect();
        differs("node-name", config.node_name.clone().into_iter().collect(), std::slice::from_ref(&self.node_name))?;
        differs("pod-cidr", shown(&config.pod_cidrs), &self.pod_cidrs)?;
        differs("service-cidr", shown(&config.service_cidrs), &self.service_cidrs)
    }

    /// # Errors
    /// When the file holds something that is no range.
    pub fn pod_ranges(&self) -> Result<Vec<Cidr>> {
        parse(&self.pod_cidrs)
    }

    /// # Errors
    /// As [`Cluster::pod_ranges`].
    pub fn service_ranges(&self) -> Result<Vec<Cidr>> {
        parse(&self.service_cidrs)
    }
}

/// The first blocks of a pod range: /26 or /122 each.
pub fn blocks(range: &Cidr) -> Vec<Cidr> {
    let (width, block): (u8, u8) = if range.is_ipv4() { (32, 26) } else { (128, 122) };
    let in_range = 1_u128 << (block - range.prefix()).min(100);
    let size = 1_u128 << (width - block);
    (0..BLOCKS.min(in_range)).map(|n| Cidr::new(range.nth(n * size), block)).collect()
}

fn parse(texts: &[String]) -> Result<Vec<Cidr>> {
    texts
        .iter()
        .map(|text| text.parse().map_err(|()| anyhow::anyhow!("cluster.json: {text:?} is not a range")))
        .collect()
}

/// Writes a file whole or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Makes a directory that only root may enter; one that exists is left as it is.
///
/// # Errors
/// When it cannot be made.
pub fn private_dir(dir: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).with_context(|| format!("could not create {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, load};

    fn config(settings: Settings) -> Config {
        load(Settings { config_dir: Some("/nonexistent".into()), ..settings }).expect("valid")
    }

    #[test]
    fn both_families_where_the_node_has_both() {
        let ips = ["192.168.1.5".parse().expect("IP"), "2001:db8::5".parse().expect("IP")];
        let cluster = Cluster::decide(&config(Settings::default()), &ips, "Cupboard", [1, 2, 3, 4, 5]);
        assert_eq!(cluster.node_name, "cupboard");
        assert_eq!(cluster.pod_cidrs, ["10.244.0.0/16", "fd01:0203:0405:0::/64"]);
        assert_eq!(cluster.service_cidrs, ["10.96.0.0/12", "fd01:0203:0405:1::/112"]);
    }

    #[test]
    fn ranges_and_name_stay() {
        let cluster = Cluster::decide(&config(Settings::default()), &["192.168.1.5".parse().expect("IP")], "a", [0; 5]);
        assert!(cluster.check(&config(Settings::default())).is_ok());
        let other = config(Settings { pod_cidr: vec!["10.1.0.0/16".into()], ..Settings::default() });
        let error = cluster.check(&other).expect_err("refused").to_string();
        assert_eq!(
            error,
            "pod-cidr was fixed as 10.244.0.0/16 when this cluster was made and cannot become 10.1.0.0/16"
        );
    }

    #[test]
    fn blocks_follow_each_other() {
        let shown =
            |range: &str| blocks(&range.parse().expect("range")).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(shown("10.244.0.0/16"), ["10.244.0.0/26", "10.244.0.64/26", "10.244.0.128/26", "10.244.0.192/26"]);
        assert_eq!(shown("10.244.0.0/26"), ["10.244.0.0/26"]);
        assert_eq!(shown("fd00::/64")[1], "fd00::40/122");
    }
}

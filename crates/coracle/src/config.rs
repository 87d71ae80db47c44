//! The configuration of `coracle server`: defaults, then `/etc/coracle/config.yaml`, then `config.yaml.d/*.yaml`, then flags.
//!
//! The file's keys are the flags. It is read whole and checked whole: an unknown key or a bad value is an error that names the
//! key, and all errors are reported at once.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};

use api::cidr::Cidr;

/// What a user may set, as flags or as keys of the configuration file. Unset means the default of [`Config`].
#[derive(Args, Clone, Debug, Default)]
pub struct Settings {
    /// Configuration file; its keys are these flags without the dashes
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the cluster's state, images and volumes live [default: /var/lib/coracle]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Sockets and run-time state, lost on reboot [default: /run/coracle]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<String>,
    /// Keys, kubeconfig, manifests and registries [default: /etc/coracle]
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<String>,
    /// Pod directories, where the ecosystem looks for them [default: /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub kubelet_dir: Option<String>,
    /// Container logs [default: /var/log/pods]
    #[arg(long, value_name = "DIR")]
    pub pod_logs_dir: Option<String>,
    /// Links to container logs [default: /var/log/containers]
    #[arg(long, value_name = "DIR")]
    pub container_logs_dir: Option<String>,
    /// The cgroup below which everything runs [default: coracle.slice]
    #[arg(long, value_name = "NAME")]
    pub cgroup_root: Option<String>,
    /// The node's name; kept once the cluster exists [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The node's address, one for each family [default: the source addresses of the default routes]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<String>,
    /// Range of the pods, one for each family [default: 10.244.0.0/16 and a random ULA /64]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub pod_cidr: Vec<String>,
    /// Range of the services, one for each family [default: 10.96.0.0/12 and a random ULA /112]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub service_cidr: Vec<String>,
    /// Domain of the cluster's names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// How many pods the node takes [default: 110]
    #[arg(long, value_name = "NUMBER")]
    pub max_pods: Option<u16>,
    /// Port of the API [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub api_port: Option<u16>,
    /// Port of the node's own API [default: 10250]
    #[arg(long, value_name = "PORT")]
    pub kubelet_port: Option<u16>,
    /// Port of the ingress for HTTP [default: 80]
    #[arg(long, value_name = "PORT")]
    pub http_port: Option<u16>,
    /// Port of the ingress for HTTPS [default: 443]
    #[arg(long, value_name = "PORT")]
    pub https_port: Option<u16>,
    /// Names and addresses beside the node's own in the API's certificate
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// What to log: error, warn, info, debug, or a filter such as node=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// The whole configuration, validated.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub config_dir: PathBuf,
    pub kubelet_dir: PathBuf,
    pub pod_logs_dir: PathBuf,
    pub container_logs_dir: PathBuf,
    pub cgroup_root: String,
    /// `None`: the host's name.
    pub node_name: Option<String>,
    /// At most one of each family; empty: to be found from the default routes.
    pub node_ips: Vec<IpAddr>,
    /// At most one of each family; empty: the defaults, fixed at the cluster's first start.
    pub pod_cidrs: Vec<Cidr>,
    pub service_cidrs: Vec<Cidr>,
    pub cluster_domain: String,
    pub max_pods: u16,
    pub api_port: u16,
    pub kubelet_port: u16,
    pub http_port: u16,
    pub https_port: u16,
    pub tls_sans: Vec<String>,
    pub log_level: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid(pub Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("configuration is not valid:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Invalid {}

/// Reads the files that `flags` and the defaults name, and puts the flags over them.
///
/// # Errors
/// [`Invalid`] with every problem of every file and flag.
pub fn load(flags: Settings) -> Result<Config, Invalid> {
    let dir = PathBuf::from(flags.config_dir.as_deref().unwrap_or("/etc/coracle"));
    let mut problems = Vec::new();
    let mut settings = Settings::default();
    for path in config_files(flags.config.as_deref(), &dir) {
        match std::fs::read_to_string(&path) {
            Ok(text) => settings.merge(parse(&path.display().to_string(), &text, &mut problems)),
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    settings.merge(flags);
    let config = settings.resolve(&mut problems);
    if problems.is_empty() { Ok(config) } else { Err(Invalid(problems)) }
}

/// A file named by a flag must exist; the default one and its drop-ins need not.
fn config_files(named: Option<&Path>, dir: &Path) -> Vec<PathBuf> {
    let mut files = match named {
        Some(path) => vec![path.to_owned()],
        None => Some(dir.join("config.yaml")).filter(|path| path.exists()).into_iter().collect(),
    };
    let mut drop_ins: Vec<PathBuf> = std::fs::read_dir(dir.join("config.yaml.d"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "yml"))
        .collect();
    drop_ins.sort();
    files.append(&mut drop_ins);
    files
}

/// Parses one file. `name` stands before each problem.
pub fn parse(name: &str, text: &str, problems: &mut Vec<String>) -> Settings {
    let mut settings = Settings::default();
    let document: Value = match api::yaml::parse(text) {
        Ok(Value::Null) => return settings,
        Ok(document) => document,
        Err(error) => {
            problems.push(format!("{name}: {error}"));
            return settings;
        }
    };
    let Value::Object(entries) = document else {
        problems.push(format!("{name}: must be a mapping of settings, such as `data-dir: /srv/coracle`"));
        return settings;
    };
    settings.take(name, entries, problems);
    settings
}

/// Calls a macro with every setting: the field and its shape. The one place that maps keys to fields.
macro_rules! for_each_setting {
    ($call:ident) => {
        $call! {
            text data_dir, text run_dir, text config_dir, text kubelet_dir, text pod_logs_dir, text container_logs_dir,
            text cgroup_root, text node_name, list node_ip, list pod_cidr, list service_cidr, text cluster_domain,
            number max_pods, port api_port, port kubelet_port, port http_port, port https_port, list tls_san, text log_level
        }
    };
}

impl Settings {
    fn take(&mut self, file: &str, entries: Map<String, Value>, problems: &mut Vec<String>) {
        for (key, value) in entries {
            let mut known = Vec::new();
            let mut found = false;
            macro_rules! read {
                ($($shape:ident $field:ident),* $(,)?) => { $(
                    let name = stringify!($field).replace('_', "-");
                    if key == name {
                        found = true;
                        match $shape(&value) {
                            Ok(value) => self.$field = value,
                            Err(expected) => problems.push(format!("{file}: {key}: {expected}, not {value}")),
                        }
                    }
                    known.push(name);
                )* };
            }
            for_each_setting!(read);
            if !found {
                let hint = nearest(&key, &known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
                problems.push(format!("{file}: unknown key `{key}`{hint}"));
            }
        }
    }

    /// Puts what `over` sets over this.
    fn merge(&mut self, over: Self) {
        macro_rules! put {
            ($($shape:ident $field:ident),* $(,)?) => { $(
                if is_set(&over.$field) {
                    self.$field = over.$field;
                }
            )* };
        }
        for_each_setting!(put);
    }

    fn resolve(self, problems: &mut Vec<String>) -> Config {
        let mut dir = |key: &str, value: Option<String>, default: &str| {
            let path = PathBuf::from(value.as_deref().unwrap_or(default));
            if !path.is_absolute() {
                problems.push(format!("{key}: {path:?} must be an absolute path"));
            }
            path
        };
        let data_dir = dir("data-dir", self.data_dir, "/var/lib/coracle");
        let run_dir = dir("run-dir", self.run_dir, "/run/coracle");
        let config_dir = dir("config-dir", self.config_dir, "/etc/coracle");
        let kubelet_dir = dir("kubelet-dir", self.kubelet_dir, "/var/lib/kubelet");
        let pod_logs_dir = dir("pod-logs-dir", self.pod_logs_dir, "/var/log/pods");
        let container_logs_dir = dir("container-logs-dir", self.container_logs_dir, "/var/log/containers");

        let node_ips = parse_each("node-ip", &self.node_ip, "an IP address", problems);
        one_per_family("node-ip", &node_ips, IpAddr::is_ipv4, problems);
        for ip in &node_ips {
            if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
                problems.push(format!(
                    "node-ip: {ip} cannot be reached from other machines; give an address of a network card"
                ));
            }
        }
        let pod_cidrs: Vec<Cidr> = parse_each("pod-cidr", &self.pod_cidr, "a range such as 10.244.0.0/16", problems);
        let service_cidrs: Vec<Cidr> =
            parse_each("service-cidr", &self.service_cidr, "a range such as 10.96.0.0/12", problems);
        check_ranges(&pod_cidrs, &service_cidrs, problems);

        if let Some(name) = &self.node_name {
            problems.extend(
                api::names::is_dns1123_subdomain(name).into_iter().map(|why| format!("node-name: {name:?}: {why}")),
            );
        }
        let cluster_domain = self.cluster_domain.unwrap_or_else(|| "cluster.local".into());
        problems.extend(
            api::names::is_dns1123_subdomain(&cluster_domain)
                .into_iter()
                .map(|why| format!("cluster-domain: {cluster_domain:?}: {why}")),
        );
        let cgroup_root = self.cgroup_root.unwrap_or_else(|| "coracle.slice".into());
        if cgroup_root.is_empty() || cgroup_root.split('/').any(|part| part.is_empty() || part == "..") {
            problems.push(format!("cgroup-root: {cgroup_root:?} must be a name such as coracle.slice"));
        }

        // Source: KubeletConfiguration, `maxPods`.
        let max_pods = self.max_pods.unwrap_or(110);
        if max_pods == 0 {
            problems.push("max-pods: 0 leaves no room for any pod".to_owned());
        }
        let ports = [
            ("api-port", self.api_port.unwrap_or(6443)),
            ("kubelet-port", self.kubelet_port.unwrap_or(10250)),
            ("http-port", self.http_port.unwrap_or(80)),
            ("https-port", self.https_port.unwrap_or(443)),
        ];
        for (i, (key, port)) in ports.iter().enumerate() {
            if *port == 0 {
                problems.push(format!("{key}: 0 is not a port"));
            }
            if let Some((other, _)) = ports[..i].iter().find(|(_, taken)| taken == port) {
                problems.push(format!("{key}: {port} is already used by {other}"));
            }
        }
        let [(_, api_port), (_, kubelet_port), (_, http_port), (_, https_port)] = ports;
        Config {
            data_dir,
            run_dir,
            config_dir,
            kubelet_dir,
            pod_logs_dir,
            container_logs_dir,
            cgroup_root,
            node_name: self.node_name,
            node_ips,
            pod_cidrs,
            service_cidrs,
            cluster_domain,
            max_pods,
            api_port,
            kubelet_port,
            http_port,
            https_port,
            tls_sans: self.tls_san,
            log_level: self.log_level.unwrap_or_else(|| "info".into()),
        }
    }
}

fn check_ranges(pods: &[Cidr], services: &[Cidr], problems: &mut Vec<String>) {
    one_per_family("pod-cidr", pods, Cidr::is_ipv4, problems);
    one_per_family("service-cidr", services, Cidr::is_ipv4, problems);
    for service in services {
        // Source: kubernetes cmd/kube-apiserver/app/options/validation.go, validateServiceClusterIPRange: at most 20 host bits.
        let shortest = if service.is_ipv4() { 12 } else { 108 };
        if service.prefix() < shortest {
            problems.push(format!("service-cidr: {service} is too large: the shortest allowed prefix is /{shortest}"));
        }
        for pod in pods.iter().filter(|pod| pod.overlaps(service)) {
            problems.push(format!("service-cidr: {service} overlaps pod-cidr {pod}"));
        }
    }
    for pod in pods {
        // A node takes one block (/26 or /122) of the range.
        let longest = if pod.is_ipv4() { 26 } else { 122 };
        if pod.prefix() > longest {
            problems.push(format!("pod-cidr: {pod} is too small: it must hold one block of /{longest}"));
        }
    }
}

fn one_per_family<T: fmt::Display>(key: &str, values: &[T], is_ipv4: fn(&T) -> bool, problems: &mut Vec<String>) {
    for (i, value) in values.iter().enumerate() {
        if values[..i].iter().any(|earlier| is_ipv4(earlier) == is_ipv4(value)) {
            problems.push(format!("{key}: {value} is a second one of its family; give at most one IPv4 and one IPv6"));
        }
    }
}

fn parse_each<T: std::str::FromStr>(key: &str, texts: &[String], expected: &str, problems: &mut Vec<String>) -> Vec<T> {
    let mut parsed = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(value) => parsed.push(value),
            Err(_) => problems.push(format!("{key}: {text:?} is not {expected}")),
        }
    }
    parsed
}

fn is_set<T: Default + PartialEq>(value: &T) -> bool {
    *value != T::default()
}

fn text(value: &Value) -> Result<Option<String>, &'static str> {
    value.as_str().map(|s| Some(s.to_owned())).ok_or("must be text")
}

fn port(value: &Value) -> Result<Option<u16>, &'static str> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).map(Some).ok_or("must be a port number")
}

fn number(value: &Value) -> Result<Option<u16>, &'static str> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).map(Some).ok_or("must be a number up to 65535")
}

/// A list, or one element written without brackets.
fn list(value: &Value) -> Result<Vec<String>, &'static str> {
    let expected = "must be text or a list of texts";
    match value {
        Value::String(one) => Ok(one.split(',').map(|part| part.trim().to_owned()).collect()),
        Value::Array(many) => many.iter().map(|v| v.as_str().map(str::to_owned).ok_or(expected)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(expected),
    }
}

/// The candidate closest to `name`, if it is close enough to be what was meant.
pub fn nearest<'a>(name: &str, candidates: &'a [String]) -> Option<&'a str> {
    let limit = (name.len() / 3).max(2);
    candidates.iter().map(|c| (distance(name, c), c.as_str())).filter(|(d, _)| *d <= limit).min().map(|(_, c)| c)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(yaml: &str, expected: Expect) {
        let mut problems = Vec::new();
        let settings = parse("config.yaml", yaml, &mut problems);
        let config = settings.resolve(&mut problems);
        let shown = if problems.is_empty() {
            format!("{} {:?}", config.data_dir.display(), config.pod_cidrs)
        } else {
            problems.join("\n")
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn empty_file_gives_the_defaults() {
        check("", expect!["/var/lib/coracle []"]);
    }

    #[test]
    fn names_an_unknown_key_and_the_nearest_one() {
        check("data-dri: /srv", expect!["config.yaml: unknown key `data-dri`; did you mean `data-dir`?"]);
    }

    #[test]
    fn names_a_value_of_the_wrong_type() {
        check(
            "api-port: six\ndata-dir: 5\nmax-pods: -1",
            expect![[r#"
            config.yaml: api-port: must be a port number, not "six"
            config.yaml: data-dir: must be text, not 5
            config.yaml: max-pods: must be a number up to 65535, not -1"#]],
        );
    }

    #[test]
    fn reports_all_bad_ranges_at_once() {
        check(
            "pod-cidr: [10.0.0.0/8, 10.1.0.0/16]\nservice-cidr: 10.0.0.0/11",
            expect![[r#"
            pod-cidr: 10.1.0.0/16 is a second one of its family; give at most one IPv4 and one IPv6
            service-cidr: 10.0.0.0/11 is too large: the shortest allowed prefix is /12
            service-cidr: 10.0.0.0/11 overlaps pod-cidr 10.0.0.0/8
            service-cidr: 10.0.0.0/11 overlaps pod-cidr 10.1.0.0/16"#]],
        );
    }

    #[test]
    fn refuses_a_port_used_twice() {
        check("http-port: 443", expect!["https-port: 443 is already used by http-port"]);
    }

    #[test]
    fn refuses_a_duplicate_key() {
        let mut problems = Vec::new();
        parse("config.yaml", "data-dir: /a\ndata-dir: /b", &mut problems);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0], "config.yaml: line 2, column 1: key \"data-dir\" is already set in this mapping");
    }
}

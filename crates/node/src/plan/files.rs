//! The files that every pod gets: host name, `/etc/hosts`, `/etc/resolv.conf`.
//!
//! Sources: kubelet_pods.go, `GeneratePodHostNameAndDomain` and `managedHostsFileContent`; network/dns/dns.go.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig, PodSpec};

const MANAGED: &str = "# Kubernetes-managed hosts file.\n";
const MANAGED_HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";
const HOSTNAME_MAX: usize = 63;
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
const MAX_SEARCH_LEN: usize = 253;

/// The pod's host name, and its domain when it has a subdomain.
pub fn host_name(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    if let Some(name) = &spec.hostname_override {
        return (truncated(name), String::new());
    }
    let own = pod.metadata.name.as_deref().unwrap_or_default();
    let name = truncated(spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or(own));
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    (name, domain.map_or_else(String::new, |subdomain| format!("{subdomain}.{namespace}.svc.{cluster_domain}")))
}

/// What `gethostname` answers in the pod: with `setHostnameAsFQDN` the whole name.
pub fn kernel_host_name(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (name, domain) = host_name(pod, cluster_domain);
    let whole = pod.spec.as_ref().is_some_and(|spec| spec.set_hostname_as_fqdn == Some(true)) && !domain.is_empty();
    if !whole {
        return Ok(name);
    }
    let name = format!("{name}.{domain}");
    if name.len() > HOSTNAME_MAX + 1 {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long (64 characters is the max, {} characters requested)",
            name.len()
        ));
    }
    Ok(name)
}

/// Cut to 63 characters, and then not ending in `-` or `.`.
fn truncated(name: &str) -> String {
    let cut: String = name.chars().take(HOSTNAME_MAX).collect();
    if cut.len() == name.len() { cut } else { cut.trim_end_matches(['-', '.']).to_owned() }
}

/// `/etc/hosts` of a pod with a network of its own.
pub fn hosts(pod: &Pod, ips: &[String], cluster_domain: &str) -> String {
    let (name, domain) = host_name(pod, cluster_domain);
    let mut text = String::from(MANAGED);
    text.push_str("127.0.0.1\tlocalhost\n");
    text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
    text.push_str("fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n");
    for ip in ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{name}\n"));
        } else {
            text.push_str(&format!("{ip}\t{name}.{domain}\t{name}\n"));
        }
    }
    text + &aliases(pod)
}

/// `/etc/hosts` of a pod on the host's network, given the host's.
pub fn hosts_of_host(pod: &Pod, host: &str) -> String {
    format!("{MANAGED_HOST_NETWORK}{host}{}", aliases(pod))
}

fn aliases(pod: &Pod) -> String {
    let aliases = pod.spec.as_ref().and_then(|spec| spec.host_aliases.as_ref());
    let Some(aliases) = aliases.filter(|aliases| !aliases.is_empty()) else { return String::new() };
    let mut text = String::from("\n# Entries added by HostAliases.\n");
    for alias in aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    text
}

/// Where names are asked for: what a `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    /// `name` or `name:value`.
    pub options: Vec<String>,
}

impl Dns {
    /// Reads a `resolv.conf`; of several `search` lines the last one counts.
    pub fn parse(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            match fields.next() {
                Some("nameserver") => dns.servers.extend(fields.next().map(str::to_owned)),
                Some("search") => {
                    let domains = fields.map(|domain| domain.trim_end_matches('.'));
                    dns.searches = domains.filter(|domain| !domain.is_empty()).map(str::to_owned).collect();
                }
                Some("options") => fields.for_each(|option| set_option(&mut dns.options, option.to_owned())),
                _ => {}
            }
        }
        dns
    }

    /// The host's configuration for pods: `resolved` in place of `main` when that names nothing but resolvers on loopback, which
    /// no pod reaches. Source: kubeadm, `resolvConf` of systemd-resolved.
    pub fn of_host(main: &str, resolved: Option<&str>) -> Self {
        let dns = Self::parse(main);
        let loopback = |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match resolved {
            Some(resolved) if !dns.servers.is_empty() && dns.servers.iter().all(loopback) => Self::parse(resolved),
            Some(_) | None => dns,
        }
    }

    /// The file's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

fn set_option(options: &mut Vec<String>, option: String) {
    let name = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
    match options.iter_mut().find(|known| name(known) == name(&option)) {
        Some(known) => *known = option,
        None => options.push(option),
    }
}

/// What the cluster tells every pod about names.
#[derive(Clone, Debug, Default)]
pub struct ClusterDns {
    pub servers: Vec<IpAddr>,
    pub domain: String,
}

/// A pod's resolver configuration, and warnings for `DNSConfigForming` or `MissingClusterDNS` events.
pub fn dns(pod: &Pod, cluster: &ClusterDns, host: &Dns) -> (Dns, Vec<(&'static str, String)>) {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let mut warnings = Vec::new();
    let host_network = spec.host_network == Some(true);
    let mut dns = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Dns::default(),
        "Default" => host.clone(),
        "ClusterFirst" if host_network => host.clone(),
        _ if cluster.servers.is_empty() => {
            let meta = &pod.metadata;
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            let pod = format!("{}_{}({})", part(&meta.name), part(&meta.namespace), part(&meta.uid));
            warnings.push(("MissingClusterDNS", format!("pod: {pod:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \"ClusterFirst\" policy. Falling back to \"Default\" policy.")));
            host.clone()
        }
        _ => cluster_first(pod, cluster, host),
    };
    if let Some(own) = &spec.dns_config {
        extend(&mut dns, own);
    }
    fit(&mut dns, &mut warnings);
    (dns, warnings)
}

fn cluster_first(pod: &Pod, cluster: &ClusterDns, host: &Dns) -> Dns {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = &cluster.domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]);
    }
    searches.extend(host.searches.iter().cloned());
    unique(&mut searches);
    Dns {
        servers: cluster.servers.iter().map(ToString::to_string).collect(),
        searches,
        options: vec!["ndots:5".to_owned()],
    }
}

fn extend(dns: &mut Dns, own: &PodDNSConfig) {
    dns.servers.extend(own.nameservers.iter().flatten().cloned());
    dns.searches.extend(own.searches.iter().flatten().cloned());
    unique(&mut dns.servers);
    unique(&mut dns.searches);
    for option in own.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        let value = option.value.as_ref().filter(|value| !value.is_empty());
        set_option(&mut dns.options, value.map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
    }
}

fn unique(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

/// Cuts what resolvers do not read. Source: `formDNSNameserversFitsLimits`, `formDNSSearchFitsLimits`.
fn fit(dns: &mut Dns, warnings: &mut Vec<(&'static str, String)>) {
    if dns.servers.len() > MAX_NAMESERVERS {
        dns.servers.truncate(MAX_NAMESERVERS);
        let line = dns.servers.join(" ");
        warnings.push(("DNSConfigForming", format!("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}")));
    }
    let before = dns.searches.len();
    dns.searches.truncate(MAX_SEARCHES);
    dns.searches.retain(|search| search.len() <= MAX_SEARCH_LEN);
    while dns.searches.join(" ").len() > MAX_SEARCH_CHARS {
        dns.searches.pop();
    }
    if dns.searches.len() < before {
        let line = dns.searches.join(" ");
        warnings.push(("DNSConfigForming", format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}")));
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut whole =
            json!({"metadata": {"name": "web-0", "namespace": "shop", "uid": "u"}, "spec": {"containers": []}});
        whole["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn check_dns(spec: Value, expect: Expect) {
        let cluster = ClusterDns { servers: vec!["10.96.0.10".parse().unwrap()], domain: "cluster.local".to_owned() };
        let host = Dns::parse(
            "# by hand\nnameserver 192.0.2.1\nsearch old.example\nsearch lan. .\noptions rotate timeout:1\n",
        );
        let (dns, warnings) = dns(&pod(spec), &cluster, &host);
        let warnings: String = warnings.iter().map(|(reason, text)| format!("! {reason}: {text}\n")).collect();
        expect.assert_eq(&(dns.text() + &warnings));
    }

    #[test]
    fn cluster_first_asks_the_cluster() {
        check_dns(
            json!({}),
            expect![[r#"
                search shop.svc.cluster.local svc.cluster.local cluster.local lan
                nameserver 10.96.0.10
                options ndots:5
            "#]],
        );
    }

    #[test]
    fn a_stub_on_loopback_is_replaced() {
        let servers = |main: &str| Dns::of_host(main, Some("nameserver 192.0.2.1\n")).servers;
        assert_eq!(servers("nameserver 127.0.0.53\n"), ["192.0.2.1"]);
        assert_eq!(servers("nameserver 127.0.0.1\nnameserver 192.0.2.9\n"), ["127.0.0.1", "192.0.2.9"]);
    }

    #[test]
    fn host_network_uses_the_hosts_unless_told() {
        let host = expect![[r#"
            search lan
            nameserver 192.0.2.1
            options rotate timeout:1
        "#]];
        check_dns(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"}), host);
        check_dns(
            json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            expect![[r#"
                search shop.svc.cluster.local svc.cluster.local cluster.local lan
                nameserver 10.96.0.10
                options ndots:5
            "#]],
        );
    }

    #[test]
    fn own_configuration_overrides_options_and_is_cut() {
        check_dns(
            json!({"dnsConfig": {
                "nameservers": ["1.1.1.1", "8.8.8.8", "9.9.9.9"],
                "options": [{"name": "ndots", "value": "1"}, {"name": "edns0"}],
            }}),
            expect![[r#"
                search shop.svc.cluster.local svc.cluster.local cluster.local lan
                nameserver 10.96.0.10
                nameserver 1.1.1.1
                nameserver 8.8.8.8
                options ndots:1 edns0
                ! DNSConfigForming: Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 10.96.0.10 1.1.1.1 8.8.8.8
            "#]],
        );
        check_dns(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}}),
            expect![[r#"
            nameserver 1.1.1.1
        "#]],
        );
    }

    #[test]
    fn hosts_names_the_pod_and_its_aliases() {
        let pod = pod(json!({
            "subdomain": "peers",
            "hostAliases": [{"ip": "127.0.0.2", "hostnames": ["a.example", "a"]}],
        }));
        let text = hosts(&pod, &["10.244.0.5".to_owned(), "fd00::5".to_owned()], "cluster.local");
        expect![[r#"
            # Kubernetes-managed hosts file.
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fe00::0	ip6-localnet
            fe00::0	ip6-mcastprefix
            fe00::1	ip6-allnodes
            fe00::2	ip6-allrouters
            10.244.0.5	web-0.peers.shop.svc.cluster.local	web-0
            fd00::5	web-0.peers.shop.svc.cluster.local	web-0

            # Entries added by HostAliases.
            127.0.0.2	a.example	a
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn long_names_are_cut_before_a_dash() {
        let mut pod = pod(json!({}));
        pod.metadata.name = Some(format!("{}-tail", "a".repeat(62)));
        assert_eq!(host_name(&pod, "cluster.local").0, "a".repeat(62));
        let fqdn = super::tests::pod(json!({"subdomain": "peers", "setHostnameAsFQDN": true}));
        assert_eq!(kernel_host_name(&fqdn, "cluster.local").unwrap(), "web-0.peers.shop.svc.cluster.local");
    }
}

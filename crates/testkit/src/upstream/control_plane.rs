//! etcd and kube-apiserver on a host of a lab, as kubeadm would set them up: TLS with an authority of its own, Node and RBAC
//! authorization, default admission. Controllers, a scheduler and a kubelet can be started beside it with [`ControlPlane::kubeconfig`].

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use super::process::Processes;
use crate::debian::{Debian, crate_target};
use crate::host::{Host, Lab, eventually};
use crate::web::Api;

/// The suite whose etcd is taken: the first with 3.5, which answers consistent reads from the watch cache.
const ETCD_SUITE: &str = "trixie";
/// The default of kubeadm.
pub const SERVICE_CIDR: &str = "10.96.0.0/12";
const PORT: u16 = 6443;
const PATIENCE: Duration = Duration::from_secs(120);

/// A running control plane. Dropping it stops both processes and removes their files.
pub struct ControlPlane {
    dir: PathBuf,
    address: SocketAddr,
    authority: Issuer<'static, KeyPair>,
    authority_pem: String,
    admin: PathBuf,
    api: Api,
    /// Name, program and flags, in the order in which they start.
    programs: [(&'static str, PathBuf, Vec<String>); 2],
    processes: Processes,
}

impl ControlPlane {
    /// Starts both on `host` and waits until the API is ready. `more` are further flags of kube-apiserver, which override.
    ///
    /// # Errors
    /// When a program cannot be had, ends, or is not ready in time; its log is in the message.
    pub fn start(lab: &Lab, host: usize, more: &[&str]) -> Result<Self> {
        let etcd = etcd()?;
        let apiserver = super::program("kube-apiserver")?;
        let netns = lab.host_netns(host);
        let host = lab.host(host);
        let dir = host.dir.join("upstream");
        fs::create_dir_all(&dir)?;
        let (authority, authority_pem) = authority()?;
        let address: SocketAddr = format!("{}:{PORT}", host.ipv4).parse()?;
        let files = Files { dir: &dir, authority: &authority, authority_pem: &authority_pem, address };
        files.write("ca.crt", &authority_pem)?;
        files.write("ca.key", &authority.key().serialize_pem())?;
        let accounts = KeyPair::generate()?;
        files.write("sa.key", &accounts.serialize_pem())?;
        files.write("sa.pub", &accounts.public_key_pem())?;
        let names =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", "10.96.0.1"];
        let serving = CertificateParams::new(
            names.iter().map(|n| (*n).to_owned()).chain([host.ipv4.clone()]).collect::<Vec<_>>(),
        )?;
        files.leaf("apiserver", serving, ExtendedKeyUsagePurpose::ServerAuth)?;
        files.client("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"))?;
        let admin = files.kubeconfig("kubernetes-admin", Some("system:masters"))?;
        let api = Api::new(netns, &fs::read_to_string(&admin)?)?;
        let mut flags = apiserver_flags(&dir, &host.ipv4);
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        let programs = [("etcd", etcd, etcd_flags(&dir)), ("kube-apiserver", apiserver, flags)];
        let processes = Processes::new(&dir);
        let mut started = Self { dir, address, authority, authority_pem, admin, api, programs, processes };
        started.launch(host)?;
        started.wait_until_ready()?;
        Ok(started)
    }

    /// Kills both, as a crash would: `SIGKILL`. Their files stay.
    pub fn kill(&mut self) {
        self.processes.stop();
    }

    /// Starts both on the files that are there.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn launch(&mut self, host: &Host) -> Result<()> {
        self.programs.iter().try_for_each(|(name, program, flags)| self.processes.spawn(host, name, program, flags))
    }

    /// # Errors
    /// When a program ends, or the API is not ready in time; the logs are in the message.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        eventually(PATIENCE, "upstream's API", || {
            self.must_run()?;
            Ok(self.api.get("/readyz").is_ok().then_some(()))
        })
        .with_context(|| self.processes.logs())
    }

    /// Where the API listens, in the lab's network.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API as its administrator sees it, from the host itself.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The administrator's kubeconfig. The path is the same inside and outside of the host.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// Writes a kubeconfig of `user`, such as `system:kube-scheduler`, or `system:node:N` of the group `system:nodes`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        Files { dir: &self.dir, authority: &self.authority, authority_pem: &self.authority_pem, address: self.address }
            .kubeconfig(user, group)
    }

    /// Certificates, keys, kubeconfigs, logs and etcd's data: `ca.crt`, `ca.key`, `sa.key`, `sa.pub`, `NAME.log` and so on.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Name and process id of each process, for accounting.
    pub fn pids(&self) -> Vec<(&'static str, u32)> {
        self.processes.pids()
    }

    /// # Errors
    /// When a process ended; the end of its log is in the message.
    pub fn must_run(&mut self) -> Result<()> {
        self.processes.must_run()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.processes.stop();
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} was not removed: {error}", self.dir.display());
        }
    }
}

/// The program etcd.
///
/// # Errors
/// When the package cannot be had.
pub fn etcd() -> Result<PathBuf> {
    let tree = Debian::in_cache(&crate_target().join("debian"), ETCD_SUITE).unpacked("etcd-server")?;
    Ok(fs::canonicalize(tree)?.join("usr/bin/etcd"))
}

fn etcd_flags(dir: &Path) -> Vec<String> {
    let data = dir.join("etcd");
    let flag = |name: &str, value: &str| format!("--{name}={value}");
    vec![
        flag("data-dir", &data.display().to_string()),
        flag("listen-client-urls", "http://127.0.0.1:2379"),
        flag("advertise-client-urls", "http://127.0.0.1:2379"),
        flag("listen-peer-urls", "http://127.0.0.1:2380"),
        flag("log-level", "warn"),
    ]
}

/// What kubeadm gives it, without what needs an aggregated API.
fn apiserver_flags(dir: &Path, ip: &str) -> Vec<String> {
    let file = |name: &str| dir.join(name).display().to_string();
    [
        ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
        ("advertise-address", ip.to_owned()),
        ("secure-port", PORT.to_string()),
        ("tls-cert-file", file("apiserver.crt")),
        ("tls-private-key-file", file("apiserver.key")),
        ("client-ca-file", file("ca.crt")),
        ("kubelet-client-certificate", file("kubelet-client.crt")),
        ("kubelet-client-key", file("kubelet-client.key")),
        ("kubelet-preferred-address-types", "InternalIP".to_owned()),
        ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
        ("service-account-key-file", file("sa.pub")),
        ("service-account-signing-key-file", file("sa.key")),
        ("service-cluster-ip-range", SERVICE_CIDR.to_owned()),
        ("authorization-mode", "Node,RBAC".to_owned()),
        ("enable-admission-plugins", "NodeRestriction".to_owned()),
        ("allow-privileged", "true".to_owned()),
        ("cert-dir", file("")),
    ]
    .into_iter()
    .map(|(name, value)| format!("--{name}={value}"))
    .collect()
}

fn authority() -> Result<(Issuer<'static, KeyPair>, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = subject("upstream", None);
    let pem = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), pem))
}

fn subject(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject
}

/// The files of a control plane that tell who is who.
struct Files<'a> {
    dir: &'a Path,
    authority: &'a Issuer<'static, KeyPair>,
    authority_pem: &'a str,
    address: SocketAddr,
}

impl Files<'_> {
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    /// Writes `NAME.crt` and `NAME.key`, and returns both texts.
    fn leaf(
        &self,
        name: &str,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String)> {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let pair = (params.signed_by(&key, self.authority)?.pem(), key.serialize_pem());
        self.write(&format!("{name}.crt"), &pair.0)?;
        self.write(&format!("{name}.key"), &pair.1)?;
        Ok(pair)
    }

    fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<(String, String)> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = subject(user, group);
        self.leaf(file, params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn kubeconfig(&self, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let file = user.replace(':', "-");
        let (certificate, key) = self.client(&file, user, group)?;
        let (authority, certificate, key) =
            (STANDARD.encode(self.authority_pem), STANDARD.encode(certificate), STANDARD.encode(key));
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: upstream\n  cluster:\n    server: https://{}\n    \
             certificate-authority-data: {authority}\nusers:\n- name: {user}\n  user:\n    \
             client-certificate-data: {certificate}\n    client-key-data: {key}\ncontexts:\n- name: upstream\n  \
             context:\n    cluster: upstream\n    user: {user}\ncurrent-context: upstream\n",
            self.address
        );
        self.write(&format!("{file}.kubeconfig"), &text)
    }
}

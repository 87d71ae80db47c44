//! The rest of upstream's cluster on the same host: containerd with runc and the CNI's bridge, kubelet, kube-proxy in its nftables mode,
//! kube-controller-manager and kube-scheduler, as kubeadm sets them up for one node.
//!
//! Where a machine of one's own would be changed, the host's own view is: sysctls that the kubelet insists on are files of the host's.
//! Leader election is off: there is nobody to elect against, and it writes every two seconds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::container_runtime::ContainerRuntime;
use super::control_plane::{ControlPlane, SERVICE_CIDR};
use super::process::Processes;
use crate::host::{Host, Lab};
use crate::registry::Registry;

/// The sandbox's image, which the registry must have.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.1";
const POD_CIDR: &str = "10.244.0.0/24";
const CLUSTER_CIDR: &str = "10.244.0.0/16";
const SOCKET: &str = "/run/containerd/containerd.sock";
/// What the kubelet sets for good when they are otherwise. Source: `pkg/kubelet/cm`, `setupKernelTunables`.
const TUNABLES: &[(&str, &str)] =
    &[("vm/overcommit_memory", "1"), ("vm/panic_on_oom", "0"), ("kernel/panic", "10"), ("kernel/panic_on_oops", "1")];

/// Beside containerd, in the order in which they are started.
const PROGRAMS: [&str; 4] = ["kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy"];

/// Fetches and builds what a node is made of, unless it is there.
///
/// # Errors
/// When something cannot be had.
pub fn prepare() -> Result<()> {
    ContainerRuntime::unpacked()?;
    PROGRAMS.iter().try_for_each(|name| super::program(name).map(drop))
}

/// How often the programs may ask their API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttles {
    /// As they come.
    Default,
    /// So often that it never matters.
    Removed,
}

/// The running programs. Dropping this kills them; containers are ended by the lab.
pub struct Node {
    processes: Processes,
    dir: PathBuf,
    throttles: Throttles,
}

impl Node {
    /// Starts containerd, which takes its images from `registry`.
    ///
    /// # Errors
    /// When a package cannot be had or containerd cannot be started.
    pub fn container_runtime(lab: &Lab, host: usize, registry: &Registry, throttles: Throttles) -> Result<Self> {
        let programs = ContainerRuntime::unpacked()?;
        let host = lab.host(host);
        let dir = host.dir.join("node");
        fs::create_dir_all(dir.join("cni"))?;
        let mut node = Self { processes: Processes::new(&dir), dir, throttles };
        for name in ["docker.io", "registry.k8s.io"] {
            let mirror =
                format!("[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n", registry.address());
            node.write(&format!("registries/{name}/hosts.toml"), &mirror)?;
        }
        node.write("cni/10-bridge.conflist", &network())?;
        let config = node.write("containerd.toml", &containerd_config(&node.dir, &programs))?;
        // containerd finds its shims in PATH only.
        let script = format!(
            "#!/bin/sh\nPATH={}:$PATH exec {} --config {}\n",
            programs.shims.display(),
            programs.containerd.display(),
            config.display()
        );
        let start = node.write("start-containerd", &script)?;
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
        node.processes.spawn(host, "containerd", &start, &[])?;
        Ok(node)
    }

    /// Starts what speaks to the API server, which is ready.
    ///
    /// # Errors
    /// When a program cannot be built or started.
    pub fn join(&mut self, lab: &Lab, host: usize, control_plane: &ControlPlane) -> Result<()> {
        let host = lab.host(host);
        hide_tunables(host, &self.dir)?;
        let kubeconfig = |user: &str, group: Option<&str>| -> Result<String> {
            Ok(format!("--kubeconfig={}", control_plane.kubeconfig(user, group)?.display()))
        };
        let of_node = kubeconfig(&format!("system:node:{}", host.name), Some("system:nodes"))?;
        let config = self.write("kubelet.yaml", &self.kubelet_config(host, control_plane.dir()))?;
        let kubelet = vec![
            of_node,
            format!("--config={}", config.display()),
            format!("--hostname-override={}", host.name),
            format!("--node-ip={}", host.ipv4),
            format!("--cert-dir={}", self.dir.join("kubelet-pki").display()),
        ];
        let manager = self.controller_manager(control_plane, kubeconfig("system:kube-controller-manager", None)?);
        let mut scheduler = vec![kubeconfig("system:kube-scheduler", None)?, "--leader-elect=false".to_owned()];
        scheduler.extend(self.client_flags());
        let proxy_user = control_plane.kubeconfig("system:kube-proxy", None)?;
        let proxy = self.write("kube-proxy.yaml", &proxy_config(&proxy_user))?;
        let proxy = vec![format!("--config={}", proxy.display()), format!("--hostname-override={}", host.name)];
        for (name, flags) in PROGRAMS.into_iter().zip([kubelet, manager, scheduler, proxy]) {
            self.processes.spawn(host, name, &super::program(name)?, &flags)?;
        }
        Ok(())
    }

    /// # Errors
    /// When a program has ended; the end of its log is in the message.
    pub fn must_run(&mut self) -> Result<()> {
        self.processes.must_run()
    }

    /// Name and process id of each program, for accounting.
    pub fn pids(&self) -> Vec<(&'static str, u32)> {
        self.processes.pids()
    }

    /// The end of every program's log.
    pub fn logs(&self) -> String {
        self.processes.logs()
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        Ok(path)
    }

    fn controller_manager(&self, control_plane: &ControlPlane, kubeconfig: String) -> Vec<String> {
        let file = |name: &str| control_plane.dir().join(name).display().to_string();
        let mut flags = vec![
            kubeconfig,
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--cluster-signing-cert-file={}", file("ca.crt")),
            format!("--cluster-signing-key-file={}", file("ca.key")),
            format!("--service-account-private-key-file={}", file("sa.key")),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
            "--allocate-node-cidrs=true".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
        ];
        flags.extend(self.client_flags());
        flags
    }

    fn client_flags(&self) -> Vec<String> {
        match self.throttles {
            Throttles::Default => Vec::new(),
            Throttles::Removed => vec!["--kube-api-qps=5000".to_owned(), "--kube-api-burst=5000".to_owned()],
        }
    }

    /// Source: kubelet `pkg/kubelet/apis/config/v1beta1`, and what kubeadm writes.
    fn kubelet_config(&self, host: &Host, pki: &Path) -> String {
        let (root, ca) = (&host.cgroup_root, pki.join("ca.crt"));
        let throttles = match self.throttles {
            Throttles::Default => "",
            Throttles::Removed => "kubeAPIQPS: 5000\nkubeAPIBurst: 5000\neventRecordQPS: 5000\neventBurst: 5000\n",
        };
        format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\n\
             cgroupRoot: /{root}\ncgroupDriver: cgroupfs\ncontainerRuntimeEndpoint: unix://{SOCKET}\n\
             authentication:\n  anonymous:\n    enabled: false\n  webhook:\n    enabled: true\n  x509:\n    clientCAFile: {}\n\
             authorization:\n  mode: Webhook\nclusterDNS: [10.96.0.10]\nclusterDomain: cluster.local\nrotateCertificates: false\n\
             evictionHard:\n  memory.available: 100Mi\n  nodefs.available: 1%\n  imagefs.available: 1%\n\
             serializeImagePulls: true\n{throttles}",
            ca.display()
        )
    }
}

/// Binds files of the host's own over the sysctls that the kubelet would set for the whole machine.
fn hide_tunables(host: &Host, dir: &Path) -> Result<()> {
    for (name, value) in TUNABLES {
        let file = dir.join("sysctl").join(name);
        fs::create_dir_all(file.parent().context("a file has a directory")?)?;
        fs::write(&file, format!("{value}\n"))?;
        host.run(&["mount", "--bind", &file.display().to_string(), &format!("/proc/sys/{name}")])?;
    }
    Ok(())
}

/// Version 3 is containerd 2's. Source: containerd `docs/cri/config.md`.
fn containerd_config(dir: &Path, programs: &ContainerRuntime) -> String {
    let (runtime, images) = ("plugins.'io.containerd.cri.v1.runtime'", "plugins.'io.containerd.cri.v1.images'");
    format!(
        "version = 3\nroot = '{dir}/containerd'\nstate = '/run/containerd'\n[grpc]\naddress = '{SOCKET}'\n\
         [{runtime}]\nrestrict_oom_score_adj = true\n\
         [{runtime}.containerd]\ndefault_runtime_name = 'runc'\n\
         [{runtime}.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [{runtime}.containerd.runtimes.runc.options]\nBinaryName = '{runc}'\nSystemdCgroup = false\n\
         [{runtime}.cni]\nbin_dirs = ['{plugins}']\nconf_dir = '{dir}/cni'\n\
         [{images}]\nsnapshotter = 'overlayfs'\n[{images}.pinned_images]\nsandbox = '{PAUSE}'\n\
         [{images}.registry]\nconfig_path = '{dir}/registries'\n",
        dir = dir.display(),
        runc = programs.runc.display(),
        plugins = programs.plugins.display(),
    )
}

/// A bridge with the node's range, and host ports.
fn network() -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
    "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{POD_CIDR}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}], "dataDir": "/run/cni"}}}},
  {{"type": "portmap", "backend": "nftables", "capabilities": {{"portMappings": true}}}}
]}}
"#
    )
}

/// Zeros leave the machine's connection tracking alone.
fn proxy_config(kubeconfig: &Path) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
         clusterCIDR: {CLUSTER_CIDR}\nclientConnection:\n  kubeconfig: {}\n\
         conntrack:\n  maxPerCore: 0\n  min: 0\n  tcpCloseWaitTimeout: 0s\n  tcpEstablishedTimeout: 0s\n",
        kubeconfig.display()
    )
}

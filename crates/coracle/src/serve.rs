//! `coracle server`: the parts of a cluster, started in the order in which they need each other.
//!
//! keys → store → API server → what a cluster begins with → network → edge → node → controllers and scheduler. Every part is a
//! task of one set; one that fails ends the process with its reason, and the next start adopts what runs.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use api::cidr::Cidr;
use client::{Client, Resource};
use controllers::Served;
use feed::compile::DefaultCertificate;
use image::registries::Registries;
use image::store::ImageStore;
use image::unpack::Unpacker;
use jiff::Timestamp;
use net::host_ports::HostPorts;
use net::ipam::Pool;
use net::pods::PodNetwork;
use node::network::KernelNetwork;
use node::server::Endpoint;
use node::shared::{Registry as NodeRegistry, Roots};
use runtime::Runtime;
use server::audit::Files;
use server::authn::ClusterAuthenticator;
use server::authn::token::Tokens;
use server::authz::ClusterAuthorizer;
use server::hooks::{Clock, Rng};
use server::identity::{SYSTEM_AUTHENTICATED, User};
use server::pki::keyring::{Keyring, Renewed};
use server::pki::{Order, Purpose, USER_LIFE, live};
use server::reviews::Reviews;
use server::server::{Server, ServerConfig, VERSION};
use store::durable::Durable;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::admin::{self, Admin};
use crate::bootstrap::{self, Wanted};
use crate::clock::clock;
use crate::cluster::{self, Cluster, private_dir};
use crate::config::Config;
use crate::edge_role;
use crate::kubeconfig;
use crate::kubelet;
use crate::node_dialer::TlsDialer;
use crate::sockets;

/// One file of the audit log; as much again is kept of what was before.
const AUDIT_LIMIT: u64 = 32 << 20;
/// The cluster's DNS is the tenth address of the service range, where everybody looks for it.
const DNS_OFFSET: u128 = 10;

/// A part of the server as a task: ends when the server stops, or with the reason why it cannot go on.
type Tasks = JoinSet<Result<()>>;

/// Runs a cluster until SIGTERM or SIGINT. Containers, the edge and the kernel's tables go on after that.
///
/// # Errors
/// When a part cannot start, or ends.
pub fn run(config: Config) -> Result<()> {
    init_logging(&config.log_level)?;
    // Two workers serve a rack; more threads would be more memory.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config))
}

fn init_logging(level: &str) -> Result<()> {
    let filter =
        tracing_subscriber::EnvFilter::try_new(level).with_context(|| format!("log-level: {level:?} is no filter"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}

async fn serve(config: Config) -> Result<()> {
    let cancel = CancellationToken::new();
    let mut tasks = Tasks::new();
    let (outcome, kept) = match start(&config, &mut tasks, &cancel).await {
        Ok(kept) => (supervise(&mut tasks).await, Some(kept)),
        Err(error) => (Err(error), None),
    };
    cancel.cancel();
    while tasks.join_next().await.is_some() {}
    if let Some(Kept { store, images }) = kept {
        // What failed before fails here again, and has been said.
        let _ = store.close().await;
        let _ = images.close();
    }
    outcome
}

/// What is to be closed last, so that the next start finds it in order.
struct Kept {
    store: Arc<Durable>,
    images: ImageStore,
}

/// Waits for a signal, or for a part that ends although nobody asked it to.
async fn supervise(tasks: &mut Tasks) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        Some(ended) = tasks.join_next() => match ended {
            Ok(Ok(())) => bail!("a part of the server ended"),
            Ok(Err(error)) => Err(error),
            Err(panic) => bail!("a part of the server panicked: {panic}"),
        },
    }
}

/// What the parts share.
struct Cell {
    config: Config,
    cluster: Cluster,
    node_ips: Vec<IpAddr>,
    clock: Clock,
    rng: Rng,
    cancel: CancellationToken,
}

async fn start(config: &Config, tasks: &mut Tasks, cancel: &CancellationToken) -> Result<Kept> {
    for dir in [&config.data_dir, &config.run_dir, &config.config_dir] {
        private_dir(dir)?;
    }
    let node_ips =
        if config.node_ips.is_empty() { net::probe::default_source_addresses() } else { config.node_ips.clone() };
    let rng: Rng = Arc::new(|bytes: &mut [u8]| {
        rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty()).expect("the kernel has random numbers");
    });
    let mut random = [0; 5];
    rng(&mut random);
    let host_name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let cell = Cell {
        cluster: Cluster::open(config, &node_ips, &host_name, random)?,
        config: config.clone(),
        node_ips,
        clock: clock(),
        rng,
        cancel: cancel.clone(),
    };
    let keys = Keyring::open(&kubeconfig::pki_dir(config), Timestamp::now())?;
    let api = start_api(&cell, keys, tasks).await?;
    // Only the holder of the store is the server that `stop` means: a second one was refused above.
    admin::write_pid(config, "main", std::process::id())?;
    let (server, root_ca, store) = (api.server.clone(), api.root_ca.clone(), api.store.clone());
    bootstrap::run(&server.local(User::loopback("system:apiserver")), &wanted(&cell)?).await?;
    let images = open_images(config)?;
    let host_ports = HostPorts::default();
    start_network(&cell, &server, &host_ports, tasks)?;
    let (runtime, events) = Runtime::new(runtime_config(config)).context("could not start the container runtime")?;
    start_edge(&cell, &api, &runtime, tasks)?;
    start_node(&cell, api, images.clone(), (runtime, events), host_ports, tasks)?;
    start_controllers(&cell, &server, root_ca, tasks);
    let status = admin::Status {
        version: VERSION.to_owned(),
        node: cell.cluster.node_name.clone(),
        api: format!("https://{}", SocketAddr::new(cell.node_ips[0], config.api_port)),
        kubeconfig: config.config_dir.join("kubeconfig").display().to_string(),
        ..admin::Status::default()
    };
    tasks.spawn(admin::serve(
        Arc::new(Admin { images: images.clone(), status, config: config.clone() }),
        cancel.clone(),
    ));
    info!(node = cell.cluster.node_name, "server is up");
    Ok(Kept { store, images })
}

/// The API server, and what the node's own API shares with it.
struct Api {
    server: Arc<Server>,
    authenticator: Arc<ClusterAuthenticator>,
    authorizer: Arc<ClusterAuthorizer>,
    kubelet_tls: Arc<rustls::ServerConfig>,
    /// What the ingress shows for hosts without a certificate of their own.
    default_certificate: DefaultCertificate,
    /// PEM; changes when the authority is reissued.
    root_ca: watch::Receiver<String>,
    store: Arc<Durable>,
}

async fn start_api(cell: &Cell, mut keys: Keyring, tasks: &mut Tasks) -> Result<Api> {
    let config = &cell.config;
    let vfs = Arc::new(store::vfs::RealVfs);
    let secrets = kubeconfig::pki_dir(config).join("secrets.keys");
    let sealing = store::seal::Keyring::load_or_create(&*vfs, &secrets, &store::seal::SystemRng)?;
    let options = store::durable::Options::new(config.data_dir.join("store"), sealing);
    let store = store::durable::open(vfs, Arc::new(store::seal::SystemRng), options)?;

    let now = Timestamp::now();
    let names = api_names(cell)?;
    let apiserver = Renewed::new(&keys.authority, "kube-apiserver", Purpose::Server { names }, now)?;
    let masters = || Purpose::Client { group: Some("system:masters".to_owned()) };
    let to_kubelet = Renewed::new(&keys.authority, "kube-apiserver-kubelet-client", masters(), now)?;
    let node_names =
        std::iter::once(cell.cluster.node_name.clone()).chain(cell.node_ips.iter().map(ToString::to_string));
    let kubelet = Renewed::new(&keys.authority, "kubelet", Purpose::Server { names: node_names.collect() }, now)?;
    let api_tls = live::server_config(apiserver.live.clone(), keys.authority.certificate(), &["h2", "http/1.1"])?;
    let kubelet_tls = Arc::new(live::server_config(kubelet.live.clone(), keys.authority.certificate(), &["http/1.1"])?);
    let dialer = live::client_config(to_kubelet.live.clone(), keys.authority.certificate(), &["http/1.1"])?;

    let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    let tokens =
        Arc::new(Tokens::new(&keys.service_accounts, &issuer, store.clone(), cell.clock.clone()).map_err(|error| {
            anyhow::anyhow!("{}: {error}", kubeconfig::pki_dir(config).join("service-accounts.key").display())
        })?);
    let authorizer = Arc::new(ClusterAuthorizer::new(store.clone()));
    let authenticator = Arc::new(ClusterAuthenticator::new(tokens.clone()));
    let mut parts = ServerConfig::new(
        store.clone(),
        kinds::registry(),
        authenticator.clone(),
        authorizer.clone(),
        cell.clock.clone(),
        cell.rng.clone(),
    );
    parts.admission = server::admission::chain(authorizer.clone(), cell.rng.clone());
    parts.reviewer = Arc::new(Reviews { authorizer: authorizer.clone(), tokens: tokens.clone() });
    parts.tokens = tokens;
    let (ranges, node_ports) = (cell.cluster.service_ranges()?, server::allocate::NODE_PORTS);
    parts.allocators.push(Box::new(server::allocate::Services { ranges, node_ports, rng: cell.rng.clone() }));
    parts.node_dialer = Arc::new(TlsDialer(Arc::new(dialer)));
    let audit = config.data_dir.join("audit.log");
    let audit = Files::open(&audit, AUDIT_LIMIT).with_context(|| format!("could not open {}", audit.display()))?;
    parts.audit = Some(Arc::new(audit));
    parts.advertised = SocketAddr::new(cell.node_ips[0], config.api_port).to_string();
    parts.shutdown = cell.cancel.clone();
    let server = Server::new(parts);

    let listener =
        listen(config.api_port, cell.node_ips.iter().any(IpAddr::is_ipv6)).context("could not listen for the API")?;
    let (serving, cancel) = (server.clone(), cell.cancel.clone());
    tasks.spawn(async move { Ok(serving.serve(listener, Some(Arc::new(api_tls)), cancel).await?) });
    let maintaining = server.clone();
    let stop = cell.cancel.clone();
    tasks.spawn(async move {
        maintaining.maintain().await;
        stop.cancelled().await;
        Ok(())
    });
    let cancel = cell.cancel.clone();
    let closing = store.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = cancel.cancelled() => Ok(()),
            () = closing.closed() => bail!("the store failed and takes no more writes"),
        }
    });
    let admin = kubeconfig::for_user(
        &keys.authority,
        cell.node_ips[0],
        config.api_port,
        "kubernetes-admin",
        Some("system:masters".to_owned()),
        now,
    )?;
    kubeconfig::write_admin(&config.config_dir.join("kubeconfig"), &admin)?;
    let names = vec!["ingress.local".to_owned()];
    let order =
        Order { name: "ingress without a certificate".to_owned(), purpose: Purpose::Server { names }, life: USER_LIFE };
    let leaf = keys.authority.issue(&order, now)?;
    let default_certificate = DefaultCertificate { chain: leaf.certificate, key: leaf.key };
    let (told, root_ca) = watch::channel(keys.authority.certificate().to_owned());
    let mut leaves = [apiserver, to_kubelet, kubelet];
    let cancel = cell.cancel.clone();
    tasks.spawn(async move {
        loop {
            let now = Timestamp::now();
            if keys.renew_authority(now)? {
                told.send_replace(keys.authority.certificate().to_owned());
            }
            for leaf in &mut leaves {
                leaf.renew(&keys.authority, now)?;
            }
            // Days away; looked at daily because a machine may have been asleep.
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(std::time::Duration::from_secs(86_400)) => {}
            }
        }
    });
    Ok(Api { server, authenticator, authorizer, kubelet_tls, default_certificate, root_ca, store })
}

/// Every name by which the API is reached.
fn api_names(cell: &Cell) -> Result<Vec<String>> {
    let domain = &cell.config.cluster_domain;
    let mut names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", "::1"]
            .map(str::to_owned)
            .to_vec();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(cell.cluster.node_name.clone());
    names.extend(cell.node_ips.iter().map(ToString::to_string));
    names.extend(cell.cluster.service_ranges()?.iter().map(|range| range.nth(1).to_string()));
    names.extend(cell.config.tls_sans.iter().cloned());
    Ok(names)
}

/// All addresses of both families on one socket, or IPv4 alone.
fn listen(port: u16, dual: bool) -> std::io::Result<TcpListener> {
    let any = if dual { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::from([0, 0, 0, 0]) };
    let listener = std::net::TcpListener::bind((any, port))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn wanted(cell: &Cell) -> Result<Wanted> {
    let ranges = cell.cluster.service_ranges()?;
    Ok(Wanted {
        api_ips: ranges.iter().map(|range| range.nth(1)).collect(),
        node_ips: cell.node_ips.clone(),
        api_port: cell.config.api_port,
        dns_ips: ranges.iter().map(|range| range.nth(DNS_OFFSET)).collect(),
        dns_port: sockets::DNS_PORT,
        node_name: cell.cluster.node_name.clone(),
    })
}

fn open_images(config: &Config) -> Result<ImageStore> {
    let path = config.config_dir.join("registries.yaml");
    let registries = match fs::read_to_string(&path) {
        Ok(text) => Registries::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Registries::default(),
        Err(error) => return Err(error).with_context(|| format!("could not read {}", path.display())),
    };
    Ok(ImageStore::open(&config.data_dir.join("images"), registries, Unpacker::current_exe())?)
}

fn start_network(cell: &Cell, server: &Arc<Server>, host_ports: &HostPorts, tasks: &mut Tasks) -> Result<()> {
    net::pod::enable_forwarding(cell.node_ips.iter().any(IpAddr::is_ipv6))?;
    let (ready, _) = watch::channel(false);
    let proxy = net::shell::Config {
        client: component(server, "system:kube-proxy"),
        node_name: cell.cluster.node_name.clone(),
        ranges: net::table::Ranges {
            pods: cell.cluster.pod_ranges()?,
            services: cell.cluster.service_ranges()?,
            hidden_port: Some(sockets::DNS_PORT),
        },
        host_ports: host_ports.clone(),
        ready,
    };
    let cancel = cell.cancel.clone();
    tasks.spawn(async move { Ok(net::shell::run(proxy, cancel).await?) });
    Ok(())
}

/// The edge, and what keeps its table up to date.
fn start_edge(cell: &Cell, api: &Api, runtime: &Runtime, tasks: &mut Tasks) -> Result<()> {
    let config = &cell.config;
    let control = edge_role::control_path(config);
    // No edge, or one that does not answer: then its sockets are not to be had either, and listening says what is wrong.
    let held = feed::adopt::listeners(&control).unwrap_or_default();
    let pairs = |ranges: Vec<Cidr>| ranges.iter().map(|range| (range.address(), range.prefix())).collect();
    let (ready, _) = watch::channel(false);
    let feed = feed::shell::Config {
        client: component(&api.server, "system:serviceaccount:kube-system:ingress-controller"),
        node_name: cell.cluster.node_name.clone(),
        node_ips: cell.node_ips.clone(),
        listeners: sockets::for_edge(config, &cell.node_ips, held)?,
        control,
        open_log: {
            let log = edge_role::log_path(config);
            Arc::new(move || edge_role::open_log(&log))
        },
        settings: feed::compile::Settings {
            domain: config.cluster_domain.clone(),
            service_ranges: pairs(cell.cluster.service_ranges()?),
            pod_ranges: pairs(cell.cluster.pod_ranges()?),
            upstreams: resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
            default_certificate: Some(api.default_certificate.clone()),
        },
        ready,
    };
    let cancel = cell.cancel.clone();
    tasks.spawn(async move {
        feed::shell::run(feed, cancel).await;
        Ok(())
    });
    let (config, runtime, cancel) = (config.clone(), runtime.clone(), cell.cancel.clone());
    tasks.spawn(async move { edge_role::keep(&config, &runtime, cancel).await });
    Ok(())
}

/// The machine's own resolvers; a resolver on loopback serves the edge too, which shares the machine's network.
fn resolvers(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers =
        resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    servers.map(|ip| SocketAddr::new(ip, 53)).collect()
}

/// A client in this process that acts as one of the cluster's components, with the rights that upstream gives it.
fn component(server: &Arc<Server>, name: &str) -> Client {
    let mut groups = vec![SYSTEM_AUTHENTICATED];
    let account_group;
    if let Some(account) = name.strip_prefix("system:serviceaccount:") {
        let namespace = account.split(':').next().unwrap_or_default();
        account_group = format!("system:serviceaccounts:{namespace}");
        groups.extend(["system:serviceaccounts", account_group.as_str()]);
        return server.local(User::new(name, &groups));
    }
    if name.starts_with("system:node:") {
        groups.push("system:nodes");
    }
    server.local(User::new(name, &groups))
}

/// The container runtime, and what it reports.
type RuntimeWithEvents = (Runtime, mpsc::Receiver<runtime::plan::Event>);

fn start_node(
    cell: &Cell,
    api: Api,
    images: ImageStore,
    (runtime, runtime_events): RuntimeWithEvents,
    host_ports: HostPorts,
    tasks: &mut Tasks,
) -> Result<()> {
    let config = &cell.config;
    let Api { server, authenticator, authorizer, kubelet_tls, .. } = api;
    let pod_ranges = cell.cluster.pod_ranges()?;
    let pools = pod_ranges.iter().map(|range| Pool::new(cluster::blocks(range))).collect();
    let mtu = net::probe::mtu_towards(IpAddr::from([192, 0, 2, 1])).unwrap_or(1500);
    let pods = PodNetwork::new(pools, mtu);
    let network = KernelNetwork { pods, host_ports, clock: cell.clock.clone() };
    let registry = NodeRegistry::default();
    let roots = Roots {
        kubelet: config.kubelet_dir.clone(),
        pod_logs: config.pod_logs_dir.clone(),
        container_logs: config.container_logs_dir.clone(),
        seccomp: config.kubelet_dir.join("seccomp"),
        ..Roots::default()
    };
    let endpoint = Endpoint::new(
        registry.clone(),
        runtime.clone(),
        roots.clone(),
        kubelet::authorizer(authenticator, authorizer, &cell.cluster.node_name),
        cell.cancel.clone(),
    );
    let listener = listen(config.kubelet_port, cell.node_ips.iter().any(IpAddr::is_ipv6))
        .context("could not listen for the node")?;
    tasks.spawn(async move {
        endpoint.serve(listener, kubelet_tls).await;
        Ok(())
    });
    let node = node::run::Config {
        node_name: cell.cluster.node_name.clone(),
        node_ips: cell.node_ips.clone(),
        roots,
        pod_cidrs: pod_ranges.iter().map(|range| cluster::blocks(range)[0].to_string()).collect(),
        cluster_dns: wanted(cell)?.dns_ips,
        cluster_domain: config.cluster_domain.clone(),
        client: component(&server, &format!("system:node:{}", cell.cluster.node_name)),
        runtime,
        runtime_events,
        images,
        network: Arc::new(network),
        clock: cell.clock.clone(),
        version: VERSION.to_owned(),
        port: config.kubelet_port,
        max_pods: config.max_pods,
        registry,
    };
    let cancel = cell.cancel.clone();
    tasks.spawn(async move { Ok(node::run::run(node, cancel).await?) });
    Ok(())
}

/// Where the container runtime keeps its state.
pub fn runtime_config(config: &Config) -> runtime::Config {
    runtime::Config {
        run_dir: config.run_dir.join("pods"),
        cgroup_root: config.cgroup_root.clone().into(),
        binary: "/proc/self/exe".into(),
        after_step: None,
    }
}

fn start_controllers(cell: &Cell, server: &Arc<Server>, root_ca: watch::Receiver<String>, tasks: &mut Tasks) {
    let for_identity = server.clone();
    let client_for: Arc<dyn Fn(&str) -> Client + Send + Sync> =
        Arc::new(move |name: &str| component(&for_identity, name));
    let controllers =
        controllers::Config { client_for: client_for.clone(), clock: cell.clock.clone(), served: served(), root_ca };
    let scheduler = scheduler::Config { client_for, clock: cell.clock.clone() };
    let cancel = cell.cancel.clone();
    tasks.spawn(async move {
        controllers::run(controllers, cancel).await;
        Ok(())
    });
    let cancel = cell.cancel.clone();
    tasks.spawn(async move {
        scheduler::run(scheduler, cancel).await;
        Ok(())
    });
}

/// What namespace deletion and garbage collection look after: every kind that is stored.
fn served() -> Vec<Served> {
    use kinds::kind::{Scope, Verb};
    kinds::registry()
        .into_iter()
        .filter(|kind| kind.verbs.contains(&Verb::List))
        .map(|kind| Served {
            resource: Resource { resource: kind.names.resource.clone(), version: "v1" },
            kind: kind.names.kind.to_string(),
            is_namespaced: kind.scope == Scope::Namespaced,
            is_deletable: kind.verbs.contains(&Verb::Delete),
        })
        .collect()
}

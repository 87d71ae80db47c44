//! The service proxy's loop: watches Services and EndpointSlices, and keeps the kernel's table as they say.
//!
//! Woken by changes and by the kernel's own notices about nftables: whoever flushes the ruleset finds ours back at once.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use api::object::Object;
use client::informer::{Informer, Informers, View, subscribe};
use client::{Client, Resource};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::host_ports::HostPorts;
use crate::netlink::{Family, Socket};
use crate::proxy::{self, Frontend, Services};
use crate::table::{self, Contents, Ranges};
use crate::{conntrack, nft, sys};

/// How long to wait before trying again after the kernel refused.
const RETRY: Duration = Duration::from_secs(1);
/// `NFNLGRP_NFTABLES`, as a bit.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);

/// What the service proxy needs to know.
pub struct Config {
    pub client: Client,
    pub node_name: String,
    pub ranges: Ranges,
    /// What pods of this node have of its ports. Nothing is programmed before it is complete.
    pub host_ports: HostPorts,
    /// Tells that the kernel follows the API for the first time.
    pub ready: watch::Sender<bool>,
}

/// Runs until cancelled. The table stays: connections go on while nobody is here.
///
/// # Errors
/// When the kernel gives no netlink socket.
pub async fn run(config: Config, cancel: CancellationToken) -> io::Result<()> {
    let mut informers = Informers::new(&cancel);
    let services = informers.start(&config.client, Resource::of::<Service>().everywhere(), &[]);
    let slices = informers.start(&config.client, Resource::of::<EndpointSlice>().everywhere(), &[]);
    let mut changes = subscribe([&services, &slices]);
    let notices = sys::watched(nonblocking(Socket::listen(Family::Netfilter, NFTABLES_GROUP)?)?)?;
    let mut proxy = Proxy { ranges: config.ranges, programmed: None };
    let mut host_ports = config.host_ports.subscribe();
    if services.synced().await.is_err() || slices.synced().await.is_err() {
        return Ok(());
    }
    match cancel.run_until_cancelled(host_ports.wait_for(|known| known.complete)).await {
        Some(Ok(_)) => {}
        Some(Err(_)) | None => return Ok(()),
    }
    loop {
        let mut wanted = desired(&services, &slices, &config.node_name);
        wanted.extend(host_ports.borrow_and_update().by_pod.values().flat_map(Clone::clone));
        let retry = match proxy.program(wanted) {
            Ok(()) => {
                config.ready.send_replace(true);
                Duration::MAX
            }
            Err(error) => {
                warn!(%error, "the kernel refused the services' rules; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            _ = changes.next() => {}
            Ok(()) = host_ports.changed() => {}
            () = tokio::time::sleep(retry) => {}
            lost = table_lost(&notices) => if lost? {
                warn!("somebody removed the services' rules; putting them back");
                proxy.programmed = None;
            }
        }
    }
    informers.stop().await;
    Ok(())
}

/// What the kernel has, as far as we put it there.
struct Proxy {
    ranges: Ranges,
    programmed: Option<(Services, Contents)>,
}

impl Proxy {
    fn program(&mut self, services: Services) -> io::Result<()> {
        let contents = table::contents(&services);
        match &self.programmed {
            Some((before, _)) if *before == services => return Ok(()),
            Some((before, programmed)) => {
                nft::commit(table::changes(programmed, &contents))?;
                let changed = changed(before, &services);
                forget(before, &services, &changed);
            }
            None => {
                nft::commit(table::build(&self.ranges, &contents))?;
                info!(frontends = services.len(), "services are programmed");
                forget(&Services::new(), &services, &services.keys().cloned().collect());
            }
        }
        self.programmed = Some((services, contents));
        Ok(())
    }
}

fn changed(before: &Services, after: &Services) -> BTreeSet<Frontend> {
    before.keys().chain(after.keys()).filter(|frontend| before.get(frontend) != after.get(frontend)).cloned().collect()
}

/// Makes clients of endpoints that are gone choose again. Best effort: what stays behind ends by its own time-out.
fn forget(before: &Services, after: &Services, changed: &BTreeSet<Frontend>) {
    if let Err(error) = conntrack::forget_stale(after, changed) {
        warn!(%error, "stale UDP flows could not be forgotten");
    }
    for ipv4 in [true, false] {
        let sticky = changed.iter().filter(|f| f.is_ipv4() == ipv4);
        let gone: BTreeSet<Vec<u8>> = sticky
            .filter_map(|frontend| {
                let old = before.get(frontend).filter(|backend| backend.affinity_seconds.is_some())?;
                let new = after.get(frontend);
                let left = old.endpoints.iter().filter(move |e| !new.is_some_and(|n| n.endpoints.contains(e)));
                Some(left.map(table::endpoint_bytes).collect::<Vec<_>>())
            })
            .flatten()
            .collect();
        if !gone.is_empty()
            && let Err(error) = forget_clients(table::sticky_set(ipv4), &gone)
        {
            warn!(%error, "clients of a gone endpoint keep it until their affinity ends");
        }
    }
}

fn forget_clients(set: &str, gone: &BTreeSet<Vec<u8>>) -> io::Result<()> {
    let elements = nft::dump_elements(set)?;
    let stale: Vec<_> = elements.iter().filter(|(_, endpoint)| gone.contains(endpoint)).collect();
    if stale.is_empty() {
        return Ok(());
    }
    nft::commit(nft::delete_elements(set, stale.iter().map(|(key, _)| (key.as_slice(), &nft::Value::Nothing))))
}

fn desired(services: &Informer, slices: &Informer, node: &str) -> Services {
    let (services, slices) = (decoded::<Service>(&services.view()), decoded::<EndpointSlice>(&slices.view()));
    proxy::services(&services, &slices, node)
}

fn decoded<T: DeserializeOwned>(view: &View) -> Vec<T> {
    let decode = |object: &std::sync::Arc<Object>| match object.decode() {
        Ok(typed) => Some(typed),
        Err(error) => {
            warn!(key = %object.key(), %error, "object is not understood");
            None
        }
    };
    view.iter().filter_map(decode).collect()
}

fn nonblocking(socket: Socket) -> io::Result<OwnedFd> {
    let fd = socket.into_fd();
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Waits for a notice about nftables, and says whether the table is gone.
async fn table_lost(notices: &AsyncFd<OwnedFd>) -> io::Result<bool> {
    let mut ready = notices.readable().await?;
    let mut buffer = [0; 1 << 14];
    // What the notices say does not matter: our own changes cause them too. An overrun only means that there were many.
    while rustix::io::read(notices.get_ref(), &mut buffer).is_ok() {}
    ready.clear_ready();
    Ok(!nft::has_table()?)
}

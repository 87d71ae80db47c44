//! The pods' network as the node uses it: addresses from the node's blocks, links made and removed.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use jiff::Timestamp;

use crate::ipam::{Exhausted, Pool};
use crate::pod;

/// All pods' addresses and links on this node. Asks nothing of the API: what it must know after a restart it is told.
#[derive(Debug)]
pub struct PodNetwork {
    /// One for each family of the pod ranges.
    pools: Mutex<Vec<Pool>>,
    mtu: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    #[error(transparent)]
    Link(#[from] pod::Error),
}

impl PodNetwork {
    /// `mtu` is the largest packet of the link to the outside.
    pub fn new(pools: Vec<Pool>, mtu: u32) -> Self {
        Self { pools: Mutex::new(pools), mtu }
    }

    /// Takes over a pod that runs already.
    pub fn adopt(&self, pod_uid: &str, ips: &[IpAddr]) {
        let mut pools = self.pools.lock().expect("no holder of this lock can panic");
        for ip in ips {
            let of_family = pools.iter_mut().find(|pool| pool.blocks().iter().any(|b| b.is_ipv4() == ip.is_ipv4()));
            if let Some(pool) = of_family {
                pool.adopt(*ip, pod_uid);
            }
        }
    }

    /// Gives a pod its addresses and connects it; the first address is of the cluster's first family. Asked again it repairs.
    ///
    /// # Errors
    /// When no address is free or the kernel refuses; then the pod has neither link nor address.
    pub async fn attach(&self, pod_uid: &str, netns: OwnedFd, now: Timestamp) -> Result<Vec<IpAddr>, Error> {
        let ips = self.allocate(pod_uid, now).inspect_err(|_| self.release(pod_uid, now))?;
        let (uid, wanted, mtu) = (pod_uid.to_owned(), ips.clone(), self.mtu);
        let work = move || pod::attach(&uid, netns.as_fd(), &wanted, mtu);
        blocking(work).await.inspect_err(|_| self.release(pod_uid, now))?;
        Ok(ips)
    }

    /// Disconnects a pod; its addresses rest before another gets them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn detach(&self, pod_uid: &str, now: Timestamp) -> Result<(), Error> {
        let (uid, ips) = (pod_uid.to_owned(), self.addresses(pod_uid));
        blocking(move || pod::detach(&uid, &ips)).await?;
        self.release(pod_uid, now);
        Ok(())
    }

    pub fn addresses(&self, pod_uid: &str) -> Vec<IpAddr> {
        self.pools
            .lock()
            .expect("no holder of this lock can panic")
            .iter()
            .filter_map(|pool| pool.of(pod_uid))
            .collect()
    }

    fn allocate(&self, pod_uid: &str, now: Timestamp) -> Result<Vec<IpAddr>, Exhausted> {
        let mut pools = self.pools.lock().expect("no holder of this lock can panic");
        pools.iter_mut().map(|pool| pool.allocate(pod_uid, now)).collect()
    }

    fn release(&self, pod_uid: &str, now: Timestamp) {
        let mut pools = self.pools.lock().expect("no holder of this lock can panic");
        pools.iter_mut().for_each(|pool| pool.release(pod_uid, now));
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
    }
}

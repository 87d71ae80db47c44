//! The kubelet's part: what runs on this machine, and what the API is told about it.
//!
//! Pure cores decide ([`pod_machine`], [`plan`], [`pod_status`], [`probes`], [`admission`], payloads of [`volumes`]), thin shells
//! carry out. Each pod has a worker of its own with its own machine; the node's heartbeat shares nothing with them. Follows
//! upstream's `pkg/kubelet`.

pub mod backoff;
pub mod exec;
pub mod hooks;
pub mod http_get;
pub mod logs;
pub mod plan;
pub mod pod_machine;
pub mod pod_status;
pub mod probes;
pub mod resources;
pub mod sources;
pub mod volumes;

//! What scheduling knows of pods and nodes: parsed once per change, not once per decision.
//!
//! Source: kubernetes `pkg/scheduler/framework/types.go` (`NodeInfo`, `PodInfo`) and component-helpers `resource/helpers.go`
//! (`PodRequests`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelector, Pod, PodCondition, PreferredSchedulingTerm, ResourceRequirements, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::terms::{Namespaces, Neighbours, Spread, Term};

/// What a container without a request counts for in scores. Source: `pkg/scheduler/util/pod_resources.go`.
const DEFAULT_CPU_MILLIS: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources: CPU in thousandths, everything else in units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(BTreeMap<String, i64>);

impl Resources {
    pub fn parse(list: Option<&BTreeMap<String, Text>>) -> Self {
        let amount = |name: &str, text: &Text| {
            // The server has validated every quantity; what cannot be read asks for nothing.
            let quantity: Quantity = text.0.parse().unwrap_or(Quantity::ZERO);
            if name == "cpu" { quantity.millis() } else { quantity.value() }
        };
        Self(list.into_iter().flatten().map(|(name, text)| (name.clone(), amount(name, text))).collect())
    }

    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let rest = self.0.entry(name.clone()).or_default();
            *rest = rest.saturating_sub(*amount);
        }
    }

    /// Takes the greater amount of each.
    fn raise(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let most = self.0.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }

    fn or_default(mut self, name: &str, amount: i64) -> Self {
        self.0.entry(name.to_owned()).or_insert(amount);
        self
    }
}

/// A port on the host that a pod occupies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: String,
    pub port: i32,
    /// `0.0.0.0` for every address.
    pub ip: String,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        let everywhere = |ip: &str| ip == "0.0.0.0";
        let address = self.ip == other.ip || everywhere(&self.ip) || everywhere(&other.ip);
        self.protocol == other.protocol && self.port == other.port && address
    }
}

/// A pod as scheduling sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: Option<i64>,
    pub created: Option<Timestamp>,
    pub started: Option<Timestamp>,
    pub is_terminating: bool,
    /// Whether it was evicted for a more important pod.
    pub is_preempted: bool,
    pub priority: i32,
    pub may_preempt: bool,
    /// The node it is bound to, or the only one that it may be bound to.
    pub node: Option<String>,
    pub requests: Resources,
    /// The requests with a default for containers that have none: for scores.
    pub assumed_requests: Resources,
    pub ports: Vec<HostPort>,
    pub node_selector: BTreeMap<String, String>,
    pub required: Option<NodeSelector>,
    pub preferred: Vec<PreferredSchedulingTerm>,
    pub tolerations: Vec<Toleration>,
    pub labels: BTreeMap<String, String>,
    pub neighbours: Neighbours,
    pub spread: Vec<Spread>,
    pub gates: Vec<String>,
}

impl PodFacts {
    /// Whether a term of any pod's means this one.
    pub fn is_meant(&self, term: &Term, namespaces: &Namespaces) -> bool {
        term.matches(&self.namespace, &self.labels, namespaces)
    }

    /// Whether it counts for how `pod` is to be spread. One that terminates does not.
    pub fn counts_for(&self, spread: &Spread, pod: &PodFacts) -> bool {
        self.namespace == pod.namespace
            && !self.is_terminating
            && !spread.selector.is_empty()
            && spread.selector.matches(&self.labels)
    }

    /// Takes the pod apart.
    pub fn new(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let spec = pod.spec.clone().unwrap_or_default();
        let affinity = spec.affinity.unwrap_or_default();
        let (namespace, labels) = (meta.namespace.clone().unwrap_or_default(), meta.labels.clone().unwrap_or_default());
        let neighbours = Neighbours::new(&affinity, &namespace);
        let spread = spec.topology_spread_constraints.iter().flatten();
        let spread = spread.map(|constraint| Spread::new(constraint, &labels)).collect();
        let affinity = affinity.node_affinity.unwrap_or_default();
        let status = pod.status.as_ref();
        let is_preemption = |condition: &PodCondition| {
            condition.type_ == "DisruptionTarget"
                && condition.status == "True"
                && condition.reason.as_deref() == Some("PreemptionByScheduler")
        };
        let requests = |defaults: bool| pod_requests(pod, &|of| container_requests(of, defaults));
        Self {
            namespace,
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation,
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            started: status.and_then(|status| status.start_time.as_ref()).map(|time| time.0),
            is_terminating: meta.deletion_timestamp.is_some(),
            is_preempted: status.and_then(|status| status.conditions.as_ref()).into_iter().flatten().any(is_preemption),
            priority: spec.priority.unwrap_or(0),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            node: spec.node_name.clone().filter(|name| !name.is_empty()),
            requests: requests(false),
            assumed_requests: requests(true),
            ports: host_ports(pod),
            node_selector: spec.node_selector.unwrap_or_default(),
            required: affinity.required_during_scheduling_ignored_during_execution,
            preferred: affinity.preferred_during_scheduling_ignored_during_execution.unwrap_or_default(),
            tolerations: spec.tolerations.unwrap_or_default(),
            labels,
            neighbours,
            spread,
            gates: spec.scheduling_gates.into_iter().flatten().map(|gate| gate.name).collect(),
        }
    }

    /// Whether it matters to it where other pods run.
    pub fn looks_at_others(&self) -> bool {
        !self.neighbours.is_empty() || !self.spread.is_empty()
    }

    /// How messages name it.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn container_requests(of: Option<&ResourceRequirements>, defaults: bool) -> Resources {
    let requests = Resources::parse(of.and_then(|resources| resources.requests.as_ref()));
    if defaults {
        requests.or_default("cpu", DEFAULT_CPU_MILLIS).or_default("memory", DEFAULT_MEMORY)
    } else {
        requests
    }
}

/// What a pod needs at its most demanding moment: all containers and sidecars together, or one init container beside the
/// sidecars that were started before it; requests of the whole pod take precedence; overhead comes on top.
fn pod_requests(pod: &Pod, of_container: &dyn Fn(Option<&ResourceRequirements>) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let requests = |container: &Container| of_container(container.resources.as_ref());
    let mut total = Resources::default();
    for container in &spec.containers {
        total.add(&requests(container));
    }
    let (mut sidecars, mut starting) = (Resources::default(), Resources::default());
    for init in spec.init_containers.iter().flatten() {
        let mut need = requests(init);
        if init.restart_policy.as_deref() == Some("Always") {
            total.add(&need);
            sidecars.add(&need);
            starting.raise(&sidecars);
        } else {
            need.add(&sidecars);
            starting.raise(&need);
        }
    }
    total.raise(&starting);
    let of_pod = Resources::parse(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    for (name, amount) in
        of_pod.iter().filter(|(name, _)| *name == "cpu" || *name == "memory" || name.starts_with("hugepages-"))
    {
        total.0.insert(name.to_owned(), amount);
    }
    total.add(&Resources::parse(spec.overhead.as_ref()));
    total
}

/// Ports of containers and of sidecars. Source: `pkg/scheduler/util/utils.go`, `GetHostPorts`.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let occupied = ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let ip = port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        Some(HostPort { protocol, port: number, ip })
    });
    occupied.collect()
}

/// A node as scheduling sees it, with the pods on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub is_unschedulable: bool,
    pub allocatable: Resources,
}

impl NodeFacts {
    pub fn new(node: &Node) -> Self {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.as_ref();
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.taints.unwrap_or_default(),
            is_unschedulable: spec.unschedulable.unwrap_or(false),
            allocatable: Resources::parse(status.and_then(|status| status.allocatable.as_ref())),
        }
    }
}

/// A node and what is placed on it.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    pub facts: NodeFacts,
    /// By uid.
    pub pods: BTreeMap<String, Arc<PodFacts>>,
    pub requested: Resources,
    pub assumed_requested: Resources,
    pub used_ports: BTreeSet<HostPort>,
    /// How many of the pods want some others far from themselves.
    pub refusing: usize,
}

impl NodeState {
    pub fn place(&mut self, pod: Arc<PodFacts>) {
        self.remove(&pod.uid);
        self.requested.add(&pod.requests);
        self.assumed_requested.add(&pod.assumed_requests);
        self.used_ports.extend(pod.ports.iter().cloned());
        self.refusing += usize::from(!pod.neighbours.forbidden.is_empty());
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodFacts>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.assumed_requested.subtract(&pod.assumed_requests);
        self.refusing -= usize::from(!pod.neighbours.forbidden.is_empty());
        self.used_ports = self.pods.values().flat_map(|pod| pod.ports.iter().cloned()).collect();
        Some(pod)
    }
}

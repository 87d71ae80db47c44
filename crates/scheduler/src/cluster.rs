//! The nodes and what is placed on them: bound pods, and pods assumed to be bound because their binding was sent; and the
//! pods that are nominated for a node, because others make room for them there.
//!
//! Source: kubernetes `pkg/scheduler/backend/cache/cache.go`, `backend/queue/nominator.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::facts::{NodeFacts, NodeState, PodFacts};
use crate::terms::Namespaces;

/// Which pods that fit nowhere a change may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum News {
    None,
    /// Those to which it matters where other pods run.
    Neighbour,
    /// All of them.
    Room,
}

impl News {
    /// For a change that may help all of them, or none.
    pub fn room(is_room: bool) -> Self {
        if is_room { Self::Room } else { Self::None }
    }
}

#[derive(Debug, Default)]
pub struct Cluster {
    nodes: BTreeMap<String, NodeState>,
    namespaces: Namespaces,
    /// Pods on nodes that are not known, or not any more.
    unknown: BTreeMap<String, NodeState>,
    /// The node of each placed pod, by uid.
    places: BTreeMap<String, String>,
    /// Pods that are nominated for a node, by node and uid.
    nominated: BTreeMap<String, BTreeMap<String, Arc<PodFacts>>>,
}

impl Cluster {
    pub fn nodes(&self) -> &BTreeMap<String, NodeState> {
        &self.nodes
    }

    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Sets a namespace's labels, or forgets it; returns whether that is news.
    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) -> bool {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels.clone()) != Some(labels),
            None => self.namespaces.remove(name).is_some(),
        }
    }

    /// Adds or changes a node; returns whether a pod that fitted nowhere may fit now.
    pub fn set_node(&mut self, facts: NodeFacts) -> bool {
        let unknown = &mut self.unknown;
        let name = facts.name.clone();
        let state = self.nodes.entry(name.clone()).or_insert_with(|| unknown.remove(&name).unwrap_or_default());
        let changed = state.facts != facts;
        state.facts = facts;
        changed
    }

    pub fn remove_node(&mut self, name: &str) {
        if let Some(mut state) = self.nodes.remove(name) {
            state.facts = NodeFacts::default();
            self.unknown.insert(name.to_owned(), state);
        }
    }

    /// Places a pod on a node; returns whom that may help.
    pub fn place(&mut self, pod: PodFacts, node: &str) -> News {
        let moved = self.places.get(&pod.uid).is_some_and(|place| place != node);
        if moved {
            self.remove(&pod.uid);
        }
        self.places.insert(pod.uid.clone(), node.to_owned());
        let state = match self.nodes.get_mut(node) {
            Some(state) => state,
            None => self.unknown.entry(node.to_owned()).or_default(),
        };
        let before = state.pods.get(&pod.uid);
        let is_news =
            before.is_none_or(|before| before.labels != pod.labels || before.is_terminating != pod.is_terminating);
        let shrank = before.is_some_and(|before| {
            before.ports != pod.ports || before.requests.iter().any(|(name, amount)| pod.requests.get(name) < amount)
        });
        state.place(Arc::new(pod));
        if moved || shrank {
            News::Room
        } else if is_news {
            News::Neighbour
        } else {
            News::None
        }
    }

    /// Takes a pod off its node; returns whether it was on one.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(node) = self.places.remove(uid) else { return false };
        if let Some(state) = self.nodes.get_mut(&node) {
            return state.remove(uid).is_some();
        }
        if let Some(state) = self.unknown.get_mut(&node) {
            state.remove(uid);
            if state.pods.is_empty() {
                self.unknown.remove(&node);
            }
        }
        false
    }

    /// Notes that a placed pod is being evicted, before the view says so.
    pub fn evicted(&mut self, uid: &str) {
        let state = self.places.get(uid).and_then(|node| self.nodes.get_mut(node));
        if let Some(pod) = state.and_then(|state| state.pods.get_mut(uid)) {
            let pod = Arc::make_mut(pod);
            (pod.is_terminating, pod.is_preempted) = (true, true);
        }
    }

    pub fn nominate(&mut self, pod: PodFacts, node: &str) {
        self.withdraw(&pod.uid);
        self.nominated.entry(node.to_owned()).or_default().insert(pod.uid.clone(), Arc::new(pod));
    }

    /// Ends a pod's nomination; returns whether it had one.
    pub fn withdraw(&mut self, uid: &str) -> bool {
        let mut found = false;
        self.nominated.retain(|_, pods| {
            found |= pods.remove(uid).is_some();
            !pods.is_empty()
        });
        found
    }

    pub fn nominated_node(&self, uid: &str) -> Option<&str> {
        self.nominated.iter().find(|(_, pods)| pods.contains_key(uid)).map(|(node, _)| node.as_str())
    }

    pub fn nominated_for(&self, node: &str) -> impl Iterator<Item = &Arc<PodFacts>> {
        self.nominated.get(node).into_iter().flat_map(BTreeMap::values)
    }
}

//! Sets of fields: who owns what in an object, as trees of [`Step`]s.
//!
//! Source: structured-merge-diff `fieldpath/{set,serialize}.go`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::step::Step;

/// The fields below a place, ordered. No node in it is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set(Vec<(Step, Node)>);

/// What a set has of one child.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// The child itself, apart from what is in it.
    pub member: bool,
    pub children: Set,
}

impl Node {
    pub const MEMBER: Self = Self { member: true, children: Set::EMPTY };

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

impl Set {
    pub const EMPTY: Self = Self(Vec::new());

    /// Takes fields as `metadata.labels` writes them: names of structs' fields, joined by points.
    pub fn of_fields(paths: &[&str]) -> Self {
        let mut out = Self::EMPTY;
        for path in paths {
            let steps = path.split('.').map(|name| Step::Field(name.to_owned()));
            out.insert(&steps.collect::<Vec<_>>());
        }
        out
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a child behind all others; an empty node is left out.
    pub(super) fn push(&mut self, step: Step, node: Node) {
        debug_assert!(self.0.last().is_none_or(|(last, _)| *last < step), "children are added in order");
        if !node.is_empty() {
            self.0.push((step, node));
        }
    }

    fn insert(&mut self, path: &[Step]) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = match self.0.binary_search_by(|(step, _)| step.cmp(first)) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (first.clone(), Node::default()));
                at
            }
        };
        let node = &mut self.0[at].1;
        if rest.is_empty() { node.member = true } else { node.children.insert(rest) }
    }

    pub fn get(&self, step: &Step) -> Option<&Node> {
        let at = self.0.binary_search_by(|(own, _)| own.cmp(step)).ok()?;
        Some(&self.0[at].1)
    }

    pub fn has(&self, path: &[Step]) -> bool {
        match path {
            [] => false,
            [last] => self.get(last).is_some_and(|node| node.member),
            [first, rest @ ..] => self.get(first).is_some_and(|node| node.children.has(rest)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Step, Node)> {
        self.0.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut (Step, Node)> {
        self.0.iter_mut()
    }

    /// What is in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other } else { self };
        }
        let mut out = Self::EMPTY;
        let (mut left, mut right) = (self.0.into_iter().peekable(), other.0.into_iter().peekable());
        loop {
            let order = match (left.peek(), right.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return out,
            };
            let a = if order.is_le() { left.next() } else { None };
            let b = if order.is_ge() { right.next() } else { None };
            match (a, b) {
                (Some((step, a)), Some((_, b))) => {
                    out.push(step, Node { member: a.member || b.member, children: a.children.union(b.children) });
                }
                (Some((step, node)), None) | (None, Some((step, node))) => out.push(step, node),
                (None, None) => return out,
            }
        }
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self::EMPTY;
        for (step, a) in &self.0 {
            if let Some(b) = other.get(step) {
                let node = Node { member: a.member && b.member, children: a.children.intersection(&b.children) };
                out.push(step.clone(), node);
            }
        }
        out
    }

    /// What is in `self` alone. A child stays when only its parent is in `other`.
    #[must_use]
    pub fn difference(self, other: &Self) -> Self {
        self.less(other, |a, b| Node { member: a.member && !b.member, children: a.children.difference(&b.children) })
    }

    /// What is in `self` and neither in `other` nor below what is in it.
    #[must_use]
    pub fn without(self, other: &Self) -> Self {
        self.less(other, |a, b| match b.member {
            true => Node::default(),
            false => Node { member: a.member, children: a.children.without(&b.children) },
        })
    }

    /// Leaves of each child that both have what `rest` makes of it.
    fn less(mut self, other: &Self, rest: impl Fn(Node, &Node) -> Node) -> Self {
        if !other.is_empty() {
            self.0.retain_mut(|(step, node)| {
                if let Some(theirs) = other.get(step) {
                    *node = rest(std::mem::take(node), theirs);
                }
                !node.is_empty()
            });
        }
        self
    }

    /// Every path in the set: of each place first its members, then what is below.
    pub fn paths(&self) -> Vec<Vec<Step>> {
        fn walk(set: &Set, prefix: &[Step], out: &mut Vec<Vec<Step>>) {
            let at = |step: &Step| [prefix, std::slice::from_ref(step)].concat();
            out.extend(set.iter().filter(|(_, node)| node.member).map(|(step, _)| at(step)));
            for (step, node) in set.iter().filter(|(_, node)| !node.children.is_empty()) {
                walk(&node.children, &at(step), out);
            }
        }
        let mut out = Vec::new();
        walk(self, &[], &mut out);
        out
    }

    /// Reads `fieldsV1`. Steps of a kind that is not known are left out.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_json(fields: &Value) -> Result<Self, String> {
        let Value::Object(members) = fields else {
            return Err("fieldsV1 must be an object".to_owned());
        };
        let mut out = Vec::with_capacity(members.len());
        for (key, below) in members.iter().filter(|(key, _)| *key != ".") {
            if let Some(step) = Step::parse(key)? {
                let children = Self::from_json(below)?;
                let member = children.is_empty() || below.get(".").is_some();
                out.push((step, Node { member, children }));
            }
        }
        // Keys and values are not ordered as their texts are.
        out.sort_by(|(a, _), (b, _)| a.cmp(b));
        out.dedup_by(|(a, _), (b, _)| a == b);
        Ok(Self(out))
    }

    /// Writes `fieldsV1`.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        for (step, node) in &self.0 {
            let mut below = node.children.to_json();
            if let Value::Object(below) = &mut below
                && node.member
                && !below.is_empty()
            {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            out.insert(step.encoded(), below);
        }
        Value::Object(out)
    }
}

/// A path as conflicts name it, such as `.spec.containers[name="web"].image`.
pub fn shown(path: &[Step]) -> String {
    path.iter().map(ToString::to_string).collect()
}

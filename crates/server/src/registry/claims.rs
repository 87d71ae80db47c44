//! Bookkeeping keys that exist exactly as long as an object claims them, such as cluster IPs and node ports.
//!
//! A claim is taken and released in the transaction that writes its object, so nothing has to be repaired after a crash.
//! Upstream keeps bitmaps and repairs them (`pkg/registry/core/service/{ipallocator,portallocator}`).

use api::field;
use api::key::{GroupResource, Key};
use api::object::Draft;
use kinds::kind::{Claim, Kind};
use serde_json::{Value, json};
use store::{Compare, Op, Snapshot};

/// The group of keys that are not API objects.
pub const GROUP: &str = ".alloc";

/// Where a claim on `value` is kept.
pub fn key(pool: &'static str, value: &str) -> Key {
    // Values are addresses and ports: none contains a slash.
    Key::new(&GroupResource::new(GROUP, pool), "", &value.replace('/', "_"))
}

/// Adds the changes of claims between two states of an object to its transaction.
///
/// # Errors
/// The field error of the first claim that another object holds.
pub fn change(
    kind: &Kind,
    owner: &Key,
    old: Option<&Value>,
    new: Option<&Value>,
    snapshot: &Snapshot,
    compares: &mut Vec<Compare>,
    ops: &mut Vec<Op>,
) -> Result<(), field::Error> {
    let Some(claims) = &kind.claims else { return Ok(()) };
    let (had, wants) = (old.map(claims).unwrap_or_default(), new.map(claims).unwrap_or_default());
    let same = |a: &Claim, b: &Claim| a.pool == b.pool && a.value == b.value;
    for claim in had.iter().filter(|claim| !wants.iter().any(|other| same(claim, other))) {
        ops.push(Op::Delete(key(claim.pool, &claim.value)));
    }
    let mut taken: Vec<&Claim> = Vec::new();
    for claim in wants.iter().filter(|claim| !had.iter().any(|other| same(claim, other))) {
        if taken.iter().any(|other| same(claim, other)) {
            continue;
        }
        taken.push(claim);
        let key = key(claim.pool, &claim.value);
        if snapshot.get(&key).is_some() {
            return Err(claim.taken.clone());
        }
        let object = json!({"metadata": {"name": key.name()}, "owner": owner.as_str()});
        let draft = Draft::new(key.clone(), object).expect("it has metadata");
        compares.push(Compare::Absent(key));
        ops.push(Op::Put(draft));
    }
    Ok(())
}

//! The managers of `scale`: those of its object who own the number of replicas.
//!
//! Source: apimachinery `pkg/util/managedfields/scalehandler.go`.

use serde_json::Value;

use super::managers::{Managers, Owned};
use super::set::Set;

/// The version of the Scale's own fields.
const SCALE: &str = "autoscaling/v1";

/// `managedFields` of the Scale of an object; `versions` are those of the object's kind.
///
/// # Errors
/// When those of the object cannot be read.
pub fn to_scale(object: &Value, versions: &[String]) -> Result<Option<Value>, String> {
    let replicas = Set::of_fields(&["spec.replicas"]);
    let mut managers = Managers::decode(object)?;
    managers.0.retain(|_, owned| versions.contains(&owned.api_version) && has(&owned.set, &replicas));
    for owned in managers.0.values_mut() {
        *owned = Owned { set: replicas.clone(), api_version: SCALE.to_owned(), time: owned.time.take() };
    }
    Ok(managers.encode())
}

/// `managedFields` of an object after a change of its Scale, whose are `scale`.
///
/// # Errors
/// When one of them cannot be read.
pub fn to_object(object: &Value, scale: &Value, version: &str, versions: &[String]) -> Result<Option<Value>, String> {
    let replicas = Set::of_fields(&["spec.replicas"]);
    let mut managers = Managers::decode(object)?;
    let mut scaling = Managers::decode(scale)?;
    let times = managers.clone();
    managers.0.retain(|identity, owned| {
        if !versions.contains(&owned.api_version) {
            return false;
        }
        if has(&owned.set, &replicas) && scaling.0.remove(identity).is_none() {
            owned.set = std::mem::take(&mut owned.set).difference(&replicas);
        }
        !owned.set.is_empty()
    });
    for (identity, owned) in scaling.0 {
        if has(&owned.set, &replicas) {
            // As upstream has it, who is new has no time.
            let time = times.0.get(&identity).and_then(|owned| owned.time.clone());
            managers.0.insert(identity, Owned { set: replicas.clone(), api_version: version.to_owned(), time });
        }
    }
    Ok(managers.encode())
}

fn has(set: &Set, replicas: &Set) -> bool {
    !set.intersection(replicas).is_empty()
}

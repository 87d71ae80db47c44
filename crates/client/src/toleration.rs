//! Whether a pod tolerates a taint: one rule for scheduler, taint eviction and node.
//!
//! Source: api `core/v1/toleration.go`, `ToleratesTaint`.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// An absent effect tolerates all effects; an absent key with `Exists` all taints. The numeric operators are behind a
/// feature gate that is off, and match nothing.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let unset_or =
        |field: &Option<String>, value: &str| field.as_deref().is_none_or(|text| text.is_empty() || text == value);
    if !unset_or(&toleration.effect, &taint.effect) || !unset_or(&toleration.key, &taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
        "Exists" => true,
        _ => false,
    }
}

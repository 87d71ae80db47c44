//! Events about a pod and its containers. Source: container/helpers.go, `GenerateContainerRef`.

use client::events::{Recorder, Severity, reference_to};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

/// Records events of one pod. Cheap to clone.
#[derive(Clone)]
pub struct PodEvents {
    recorder: Recorder,
    pod: ObjectReference,
    init: Vec<String>,
}

impl PodEvents {
    pub fn new(recorder: Recorder, pod: &Pod) -> Self {
        let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        Self { recorder, pod: reference_to(pod), init: init.map(|container| container.name.clone()).collect() }
    }

    pub fn normal(&self, reason: &str, message: &str, container: Option<&str>) {
        self.recorder.event(&self.about(container), Severity::Normal, reason, message);
    }

    pub fn warning(&self, reason: &str, message: &str, container: Option<&str>) {
        self.recorder.event(&self.about(container), Severity::Warning, reason, message);
    }

    fn about(&self, container: Option<&str>) -> ObjectReference {
        let path = container.map(|name| {
            let list = if self.init.iter().any(|init| init == name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{name}}}")
        });
        ObjectReference { field_path: path, ..self.pod.clone() }
    }
}

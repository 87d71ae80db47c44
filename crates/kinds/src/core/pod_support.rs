//! Every field of the pod specification: built, refused with a message, or taken away where upstream takes it away too.
//! Nothing is accepted and ignored.
//!
//! One table, walked along with an incoming pod or template; a test walks the schema with it, so that a field of a new
//! release cannot slip through. A refused field may be set to what it means when it is absent.

use api::field::Error;
use serde_json::Value;

use crate::place::Place;
use crate::value::is_empty;

/// What is done about a field.
#[derive(Clone, Copy)]
pub enum Support {
    /// Text, numbers, and lists and maps of them. Objects are listed field by field.
    Built,
    /// An object, or a list of objects, of a type that has fields of its own here.
    Of(&'static str),
    /// Refused when it is set at all.
    Refused(&'static str),
    /// Refused unless its value is fine where it stands.
    Unless(fn(&Value, &Context) -> bool, &'static str),
    /// Switched off in upstream, which takes it away without a word; so does [`take_away`].
    Off,
    /// A map of which only some keys are built; gives the message for the others.
    Keys(fn(&str) -> Option<&'static str>),
}

/// What the meaning of a field depends on beside its own value.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Inside of an init container.
    pub init: bool,
}

use Support::{Built, Keys, Of, Off, Refused, Unless};

/// An error for every field that is set to something that is not built.
pub fn check(spec: &Place<'_>) -> Vec<Error> {
    let context = Context { init: false };
    let mut errors = Vec::new();
    walk("PodSpec", spec, context, &mut errors);
    errors
}

/// Takes away what upstream has switched off of the pod specification at a JSON pointer.
///
/// Source: kubernetes `pkg/api/pod/util.go`, `dropDisabledFields`, with the defaults of `pkg/features/kube_features.go`.
pub fn take_away(object: &mut Value, pointer: &str) {
    if let Some(spec) = object.pointer_mut(pointer) {
        strip("PodSpec", spec);
    }
}

fn strip(of: &str, value: &mut Value) {
    let fields = fields_of(of);
    let Some(members) = value.as_object_mut() else { return };
    members.retain(|name, member| match fields.iter().find(|(field, _)| field == name).map(|(_, support)| support) {
        Some(Off) => false,
        Some(Of(inner)) => {
            let had_something = !is_empty(member);
            match member.as_array_mut() {
                Some(items) => items.iter_mut().for_each(|item| strip(inner, item)),
                None => strip(inner, member),
            }
            // A lifecycle with nothing left in it goes too.
            *inner != "Lifecycle" || !had_something || !is_empty(member)
        }
        _ => true,
    });
}

fn walk(of: &str, place: &Place<'_>, context: Context, errors: &mut Vec<Error>) {
    let fields = fields_of(of);
    for (name, _) in place.value.as_object().into_iter().flatten() {
        // A field that the schema does not have is the schema's to complain about.
        let Some((_, support)) = fields.iter().find(|(field, _)| field == name) else { continue };
        let field = place.child(name);
        let context = Context { init: context.init || name == "initContainers" };
        match support {
            Built | Off => {}
            Of(inner) if field.value.is_array() => field.items().for_each(|item| walk(inner, &item, context, errors)),
            Of(inner) => walk(inner, &field, context, errors),
            Refused(_) if is_absent(field.value) => {}
            Refused(why) => errors.push(refusal(&field, why)),
            Unless(fine, why) => {
                if !is_absent(field.value) && !fine(field.value, &context) {
                    errors.push(refusal(&field, why));
                }
            }
            Keys(refuse) => {
                let refused = field.entries().filter_map(|(key, entry)| refuse(key).map(|why| refusal(&entry, why)));
                errors.extend(refused);
            }
        }
    }
}

/// The error for a field that is refused.
pub fn refusal(place: &Place<'_>, why: &str) -> Error {
    place.forbidden(format!("not supported yet by coracle: {why}"))
}

/// Lists and strings mean nothing when they are empty; an empty object may well mean something, such as a volume.
fn is_absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => false,
    }
}

/// The fields of a type, or none for a type that is not in the table.
pub fn fields_of(of: &str) -> &'static [(&'static str, Support)] {
    TABLE.iter().find(|(name, _)| *name == of).map_or(&[], |(_, fields)| fields)
}

const NO_WINDOWS: &str = "nodes run Linux only";
const NO_APPARMOR: &str = "AppArmor profiles are not loaded";
const NO_STORAGE: &str = "persistent volumes are not built; use a hostPath";
const NO_REMOTE: &str = "this kind of volume is not mounted; mount it on the host and use a hostPath";
const NO_DRA: &str = "dynamic resource allocation is not built";
const NO_RULES: &str = "single containers have no restart policy, except restartPolicy Always of init containers";

fn resource(name: &str) -> Option<&'static str> {
    match name {
        _ if name.starts_with("hugepages-") => Some("huge pages are not handed out"),
        // Extended resources are counted, and that is all that upstream does with those of no device plugin.
        _ => None,
    }
}

fn equals(expected: &'static str, value: &Value) -> bool {
    value.as_str() == Some(expected)
}

type Fields = &'static [(&'static str, Support)];

static TABLE: &[(&str, Fields)] = &[
    ("PodSpec", POD_SPEC),
    ("Container", CONTAINER),
    ("Volume", VOLUME),
    (
        "Affinity",
        &[
            ("nodeAffinity", Of("NodeAffinity")),
            ("podAffinity", Of("PodAffinity")),
            ("podAntiAffinity", Of("PodAntiAffinity")),
        ],
    ),
    (
        "PodSecurityContext",
        &[
            ("appArmorProfile", Refused(NO_APPARMOR)),
            ("fsGroup", Built),
            ("fsGroupChangePolicy", Built),
            ("runAsGroup", Built),
            ("runAsNonRoot", Built),
            ("runAsUser", Built),
            // Without SELinux on the node there is nothing to label: a warning says so.
            ("seLinuxChangePolicy", Built),
            ("seLinuxOptions", Of("SELinuxOptions")),
            ("seccompProfile", Of("SeccompProfile")),
            ("supplementalGroups", Built),
            ("supplementalGroupsPolicy", Built),
            ("sysctls", Of("Sysctl")),
            ("windowsOptions", Refused(NO_WINDOWS)),
        ],
    ),
    (
        "Sysctl",
        &[
            (
                "name",
                Unless(
                    |name, _| name.as_str().is_some_and(is_safe_sysctl),
                    "only the safe sysctls can be set: those that belong to the pod alone and cannot harm the node",
                ),
            ),
            ("value", Built),
        ],
    ),
    (
        "SecurityContext",
        &[
            ("allowPrivilegeEscalation", Built),
            ("appArmorProfile", Refused(NO_APPARMOR)),
            ("capabilities", Of("Capabilities")),
            ("privileged", Built),
            (
                "procMount",
                Unless(
                    |value, _| equals("Default", value),
                    "the masked paths of /proc need user namespaces to be shown",
                ),
            ),
            ("readOnlyRootFilesystem", Built),
            ("runAsGroup", Built),
            ("runAsNonRoot", Built),
            ("runAsUser", Built),
            ("seLinuxOptions", Of("SELinuxOptions")),
            ("seccompProfile", Of("SeccompProfile")),
            ("windowsOptions", Refused(NO_WINDOWS)),
        ],
    ),
    ("SELinuxOptions", &[("level", Built), ("role", Built), ("type", Built), ("user", Built)]),
    ("ContainerResizePolicy", &[("resourceName", Built), ("restartPolicy", Built)]),
    ("ImageVolumeSource", &[("pullPolicy", Built), ("reference", Built)]),
    ("EphemeralContainer", EPHEMERAL_CONTAINER),
    ("ResourceRequirements", &[("claims", Refused(NO_DRA)), ("limits", Keys(resource)), ("requests", Keys(resource))]),
    (
        "ContainerPort",
        &[("containerPort", Built), ("hostIP", Built), ("hostPort", Built), ("name", Built), ("protocol", Built)],
    ),
    ("EnvVar", &[("name", Built), ("value", Built), ("valueFrom", Of("EnvVarSource"))]),
    (
        "EnvVarSource",
        &[
            ("configMapKeyRef", Of("ConfigMapKeySelector")),
            ("fieldRef", Of("ObjectFieldSelector")),
            ("fileKeyRef", Refused("variables are not read from files")),
            ("resourceFieldRef", Of("ResourceFieldSelector")),
            ("secretKeyRef", Of("SecretKeySelector")),
        ],
    ),
    (
        "ResourceFieldSelector",
        &[
            ("containerName", Built),
            ("divisor", Built),
            (
                "resource",
                Unless(
                    |name, _| {
                        let name = name.as_str().and_then(|name| name.split_once('.'));
                        name.is_none_or(|(_, name)| resource(name).is_none())
                    },
                    "huge pages are not handed out",
                ),
            ),
        ],
    ),
    (
        "VolumeMount",
        &[
            ("bindMountOptions", Off),
            ("mountPath", Built),
            ("mountPropagation", Built),
            ("name", Built),
            ("readOnly", Built),
            ("recursiveReadOnly", Built),
            ("subPath", Built),
            ("subPathExpr", Built),
        ],
    ),
    ("Lifecycle", &[("postStart", Of("LifecycleHandler")), ("preStop", Of("LifecycleHandler")), ("stopSignal", Off)]),
    (
        "LifecycleHandler",
        // Upstream's tcpSocket is deprecated and fails when it runs; so it does here.
        &[
            ("exec", Of("ExecAction")),
            ("httpGet", Of("HTTPGetAction")),
            ("sleep", Of("SleepAction")),
            ("tcpSocket", Of("TCPSocketAction")),
        ],
    ),
    (
        "Probe",
        &[
            ("exec", Of("ExecAction")),
            ("failureThreshold", Built),
            ("grpc", Of("GRPCAction")),
            ("httpGet", Of("HTTPGetAction")),
            ("initialDelaySeconds", Built),
            ("periodSeconds", Built),
            ("successThreshold", Built),
            ("tcpSocket", Of("TCPSocketAction")),
            ("terminationGracePeriodSeconds", Built),
            ("timeoutSeconds", Built),
        ],
    ),
    (
        "HTTPGetAction",
        &[
            ("host", Built),
            ("httpHeaders", Of("HTTPHeader")),
            ("path", Built),
            ("port", Built),
            ("protocol", Off),
            ("scheme", Built),
        ],
    ),
    ("GRPCAction", &[("mode", Off), ("port", Built), ("service", Built)]),
    (
        "EmptyDirVolumeSource",
        &[
            (
                "medium",
                Unless(|value, _| equals("Memory", value), "an emptyDir is on disk, or in memory with medium Memory"),
            ),
            ("mode", Off),
            ("sizeLimit", Built),
        ],
    ),
    (
        "SecretVolumeSource",
        &[
            ("defaultMode", Built),
            ("defaultUser", Off),
            ("items", Of("KeyToPath")),
            ("optional", Built),
            ("secretName", Built),
        ],
    ),
    (
        "ConfigMapVolumeSource",
        &[
            ("defaultMode", Built),
            ("defaultUser", Off),
            ("items", Of("KeyToPath")),
            ("name", Built),
            ("optional", Built),
        ],
    ),
    (
        "DownwardAPIVolumeSource",
        &[("defaultMode", Built), ("defaultUser", Off), ("items", Of("DownwardAPIVolumeFile"))],
    ),
    (
        "DownwardAPIVolumeFile",
        &[
            ("fieldRef", Of("ObjectFieldSelector")),
            ("mode", Built),
            ("path", Built),
            ("resourceFieldRef", Of("ResourceFieldSelector")),
            ("user", Off),
        ],
    ),
    ("KeyToPath", &[("key", Built), ("mode", Built), ("path", Built), ("user", Off)]),
    ("ProjectedVolumeSource", &[("defaultMode", Built), ("defaultUser", Off), ("sources", Of("VolumeProjection"))]),
    (
        "VolumeProjection",
        &[
            ("clusterTrustBundle", Refused("there are no ClusterTrustBundles")),
            ("configMap", Of("ConfigMapProjection")),
            ("downwardAPI", Of("DownwardAPIProjection")),
            ("podCertificate", Refused("there are no PodCertificateRequests")),
            ("secret", Of("SecretProjection")),
            ("serviceAccountToken", Of("ServiceAccountTokenProjection")),
        ],
    ),
    ("ConfigMapProjection", &[("items", Of("KeyToPath")), ("name", Built), ("optional", Built)]),
    ("SecretProjection", &[("items", Of("KeyToPath")), ("name", Built), ("optional", Built)]),
    ("DownwardAPIProjection", &[("items", Of("DownwardAPIVolumeFile"))]),
    (
        "NodeAffinity",
        &[
            ("preferredDuringSchedulingIgnoredDuringExecution", Of("PreferredSchedulingTerm")),
            ("requiredDuringSchedulingIgnoredDuringExecution", Of("NodeSelector")),
        ],
    ),
    (
        "PodAffinity",
        &[
            ("preferredDuringSchedulingIgnoredDuringExecution", Of("WeightedPodAffinityTerm")),
            ("requiredDuringSchedulingIgnoredDuringExecution", Of("PodAffinityTerm")),
        ],
    ),
    (
        "PodAntiAffinity",
        &[
            ("preferredDuringSchedulingIgnoredDuringExecution", Of("WeightedPodAffinityTerm")),
            ("requiredDuringSchedulingIgnoredDuringExecution", Of("PodAffinityTerm")),
        ],
    ),
    ("WeightedPodAffinityTerm", &[("podAffinityTerm", Of("PodAffinityTerm")), ("weight", Built)]),
    (
        "PodAffinityTerm",
        &[
            ("labelSelector", Of("LabelSelector")),
            ("matchLabelKeys", Built),
            ("mismatchLabelKeys", Built),
            ("namespaceSelector", Of("LabelSelector")),
            ("namespaces", Built),
            ("topologyKey", Built),
        ],
    ),
    (
        "TopologySpreadConstraint",
        &[
            ("labelSelector", Of("LabelSelector")),
            ("matchLabelKeys", Built),
            ("maxSkew", Built),
            ("minDomains", Built),
            ("nodeAffinityPolicy", Built),
            ("nodeTaintsPolicy", Built),
            ("topologyKey", Built),
            ("whenUnsatisfiable", Built),
        ],
    ),
    ("LabelSelector", &[("matchExpressions", Of("LabelSelectorRequirement")), ("matchLabels", Built)]),
    ("LabelSelectorRequirement", &[("key", Built), ("operator", Built), ("values", Built)]),
    ("PreferredSchedulingTerm", &[("preference", Of("NodeSelectorTerm")), ("weight", Built)]),
    ("NodeSelector", &[("nodeSelectorTerms", Of("NodeSelectorTerm"))]),
    (
        "NodeSelectorTerm",
        &[("matchExpressions", Of("NodeSelectorRequirement")), ("matchFields", Of("NodeSelectorRequirement"))],
    ),
    ("NodeSelectorRequirement", &[("key", Built), ("operator", Built), ("values", Built)]),
    ("SeccompProfile", &[("localhostProfile", Built), ("type", Built)]),
    ("Capabilities", &[("add", Built), ("drop", Built)]),
    ("ConfigMapKeySelector", &[("key", Built), ("name", Built), ("optional", Built)]),
    ("SecretKeySelector", &[("key", Built), ("name", Built), ("optional", Built)]),
    ("ObjectFieldSelector", &[("apiVersion", Built), ("fieldPath", Built)]),
    ("ExecAction", &[("command", Built)]),
    ("SleepAction", &[("seconds", Built)]),
    ("TCPSocketAction", &[("host", Built), ("port", Built)]),
    ("HTTPHeader", &[("name", Built), ("value", Built)]),
    ("PodDNSConfig", &[("nameservers", Built), ("options", Of("PodDNSConfigOption")), ("searches", Built)]),
    ("PodDNSConfigOption", &[("name", Built), ("value", Built)]),
    ("HostAlias", &[("hostnames", Built), ("ip", Built)]),
    ("LocalObjectReference", &[("name", Built)]),
    ("PodOS", &[("name", Unless(|name, _| equals("linux", name), NO_WINDOWS))]),
    ("PodReadinessGate", &[("conditionType", Built)]),
    ("PodSchedulingGate", &[("name", Built)]),
    (
        "Toleration",
        &[("effect", Built), ("key", Built), ("operator", Built), ("tolerationSeconds", Built), ("value", Built)],
    ),
    (
        "EnvFromSource",
        &[("configMapRef", Of("ConfigMapEnvSource")), ("prefix", Built), ("secretRef", Of("SecretEnvSource"))],
    ),
    ("ConfigMapEnvSource", &[("name", Built), ("optional", Built)]),
    ("SecretEnvSource", &[("name", Built), ("optional", Built)]),
    ("HostPathVolumeSource", &[("path", Built), ("type", Built)]),
    (
        "ServiceAccountTokenProjection",
        &[("audience", Built), ("expirationSeconds", Built), ("path", Built), ("user", Off)],
    ),
];

const POD_SPEC: Fields = &[
    ("activeDeadlineSeconds", Built),
    ("affinity", Of("Affinity")),
    ("automountServiceAccountToken", Built),
    ("containers", Of("Container")),
    ("dnsConfig", Of("PodDNSConfig")),
    ("dnsPolicy", Built),
    ("enableServiceLinks", Built),
    ("ephemeralContainers", Of("EphemeralContainer")),
    ("evictionResponders", Off),
    ("hostAliases", Of("HostAlias")),
    ("hostIPC", Built),
    ("hostNetwork", Built),
    ("hostPID", Built),
    ("hostUsers", Unless(|value, _| value.as_bool() == Some(true), "pods have no user namespaces of their own")),
    ("hostname", Built),
    ("hostnameOverride", Refused("use hostname and subdomain")),
    ("imagePullSecrets", Of("LocalObjectReference")),
    ("initContainers", Of("Container")),
    ("nodeName", Built),
    ("nodeSelector", Built),
    ("os", Of("PodOS")),
    ("overhead", Keys(resource)),
    ("preemptionPolicy", Built),
    ("priority", Built),
    ("priorityClassName", Built),
    ("readinessGates", Of("PodReadinessGate")),
    ("resourceClaims", Refused(NO_DRA)),
    ("resources", Refused("resources are given to containers, not to pods")),
    ("restartPolicy", Built),
    ("runtimeClassName", Built),
    ("schedulerName", Built),
    ("schedulingGates", Of("PodSchedulingGate")),
    ("schedulingGroup", Off),
    ("securityContext", Of("PodSecurityContext")),
    ("serviceAccount", Built),
    ("serviceAccountName", Built),
    ("setHostnameAsFQDN", Built),
    ("shareProcessNamespace", Built),
    ("subdomain", Built),
    ("terminationGracePeriodSeconds", Built),
    ("tolerations", Of("Toleration")),
    ("topologySpreadConstraints", Of("TopologySpreadConstraint")),
    ("volumes", Of("Volume")),
];

const CONTAINER: Fields = &[
    ("args", Built),
    ("command", Built),
    ("env", Of("EnvVar")),
    ("envFrom", Of("EnvFromSource")),
    ("image", Built),
    ("imagePullPolicy", Built),
    ("lifecycle", Of("Lifecycle")),
    ("livenessProbe", Of("Probe")),
    ("name", Built),
    ("ports", Of("ContainerPort")),
    ("readinessProbe", Of("Probe")),
    ("resizePolicy", Of("ContainerResizePolicy")),
    ("resources", Of("ResourceRequirements")),
    ("restartPolicy", Unless(|policy, context| context.init && equals("Always", policy), NO_RULES)),
    ("restartPolicyRules", Refused(NO_RULES)),
    ("securityContext", Of("SecurityContext")),
    ("startupProbe", Of("Probe")),
    ("stdin", Built),
    ("stdinOnce", Built),
    ("terminationMessagePath", Built),
    ("terminationMessagePolicy", Built),
    ("tty", Built),
    ("volumeDevices", Refused(NO_STORAGE)),
    ("volumeMounts", Of("VolumeMount")),
    ("workingDir", Built),
];

/// Validation says of what only workloads have that an ephemeral container cannot.
const EPHEMERAL_CONTAINER: Fields = &[
    ("args", Built),
    ("command", Built),
    ("env", Of("EnvVar")),
    ("envFrom", Of("EnvFromSource")),
    ("image", Built),
    ("imagePullPolicy", Built),
    ("lifecycle", Of("Lifecycle")),
    ("livenessProbe", Of("Probe")),
    ("name", Built),
    ("ports", Of("ContainerPort")),
    ("readinessProbe", Of("Probe")),
    ("resizePolicy", Of("ContainerResizePolicy")),
    ("resources", Of("ResourceRequirements")),
    ("restartPolicy", Built),
    ("restartPolicyRules", Refused(NO_RULES)),
    ("securityContext", Of("SecurityContext")),
    ("startupProbe", Of("Probe")),
    ("stdin", Built),
    ("stdinOnce", Built),
    ("targetContainerName", Built),
    ("terminationMessagePath", Built),
    ("terminationMessagePolicy", Built),
    ("tty", Built),
    ("volumeDevices", Refused(NO_STORAGE)),
    ("volumeMounts", Of("VolumeMount")),
    ("workingDir", Built),
];

const VOLUME: Fields = &[
    ("awsElasticBlockStore", Refused(NO_REMOTE)),
    ("azureDisk", Refused(NO_REMOTE)),
    ("azureFile", Refused(NO_REMOTE)),
    ("cephfs", Refused(NO_REMOTE)),
    ("cinder", Refused(NO_REMOTE)),
    ("configMap", Of("ConfigMapVolumeSource")),
    ("csi", Refused("there are no CSI drivers; use a hostPath")),
    ("downwardAPI", Of("DownwardAPIVolumeSource")),
    ("emptyDir", Of("EmptyDirVolumeSource")),
    ("ephemeral", Refused(NO_STORAGE)),
    ("fc", Refused(NO_REMOTE)),
    ("flexVolume", Refused(NO_REMOTE)),
    ("flocker", Refused(NO_REMOTE)),
    ("gcePersistentDisk", Refused(NO_REMOTE)),
    ("gitRepo", Refused("clone in an init container into an emptyDir")),
    ("glusterfs", Refused(NO_REMOTE)),
    ("hostPath", Of("HostPathVolumeSource")),
    ("image", Of("ImageVolumeSource")),
    ("iscsi", Refused(NO_REMOTE)),
    ("name", Built),
    ("nfs", Refused(NO_REMOTE)),
    ("persistentVolumeClaim", Refused(NO_STORAGE)),
    ("photonPersistentDisk", Refused(NO_REMOTE)),
    ("portworxVolume", Refused(NO_REMOTE)),
    ("projected", Of("ProjectedVolumeSource")),
    ("quobyte", Refused(NO_REMOTE)),
    ("rbd", Refused(NO_REMOTE)),
    ("scaleIO", Refused(NO_REMOTE)),
    ("secret", Of("SecretVolumeSource")),
    ("storageos", Refused(NO_REMOTE)),
    ("vsphereVolume", Refused(NO_REMOTE)),
];

/// The sysctls that a pod may set: namespaced, and isolated from the node and from other pods.
///
/// Source: kubernetes `pkg/kubelet/sysctl/safe_sysctls.go`.
pub fn is_safe_sysctl(name: &str) -> bool {
    const SAFE: [&str; 14] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_wmem",
        "net.ipv4.tcp_slow_start_after_idle",
        "net.ipv4.tcp_notsent_lowat",
    ];
    // Both separators name the same file.
    SAFE.contains(&name.replace('/', ".").as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use api::schema::{Element, Shape, Type};

    use super::*;
    use crate::schema;

    /// The type of the objects in a field, if there are any.
    fn object_in(shape: Shape<'static>) -> Option<Type<'static>> {
        match shape {
            Shape::Scalar(_) => None,
            Shape::Object(of) => Some(of),
            Shape::List(element) | Shape::Map(element) => inner(element),
        }
    }

    fn inner(element: Element<'static>) -> Option<Type<'static>> {
        object_in(element.shape())
    }

    #[test]
    fn every_field_of_the_schema_is_built_or_refused() {
        let mut seen = BTreeSet::new();
        let mut todo = vec![schema::get("io.k8s.api.core.v1.PodSpec").expect("pods have a specification")];
        while let Some(of) = todo.pop() {
            if !seen.insert(of.short_name()) {
                continue;
            }
            let known: BTreeSet<&str> = fields_of(of.short_name()).iter().map(|(name, _)| *name).collect();
            let all: BTreeSet<&str> = of.fields().map(|field| field.name()).collect();
            assert_eq!(known, all, "{}", of.short_name());
            for (name, support) in fields_of(of.short_name()) {
                let inner = object_in(of.field(name).expect("compared above").shape());
                match (support, inner) {
                    (Of(expected), Some(inner)) => {
                        assert_eq!(*expected, inner.short_name(), "{}.{name}", of.short_name());
                        todo.push(inner);
                    }
                    (Refused(_) | Off, _) | (Built | Unless(..) | Keys(_), None) => {}
                    (_, inner) => panic!("{}.{name} holds {:?}", of.short_name(), inner.map(|of| of.short_name())),
                }
            }
        }
        let listed: BTreeSet<&str> = TABLE.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, seen, "types that pods do not have");
    }
}

//! Bundles: what the runtime writes for a container, and what it refuses to run.
//!
//! A container's directory holds `config.json` (OCI), `bundle.json` (what OCI has no word for), `seccomp.bpf` (the compiled filter),
//! and later `exit.json`. It appears under its final name only when it is complete.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Mount, Spec};
use serde::{Deserialize, Serialize};

use crate::cgroup::OomCounter;
use crate::device_program::DeviceRule;
use crate::error::Error;
use crate::mount_options;
use crate::plan::{ContainerPlan, Resources, Rootfs};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const BUNDLE: &str = "bundle.json";
pub(crate) const FILTER: &str = "seccomp.bpf";
pub(crate) const EXIT: &str = "exit.json";

/// `bundle.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bundle {
    /// With an empty `spec`: that is `config.json`.
    pub plan: ContainerPlan,
    /// The directories of its cgroup.
    pub cgroups: Vec<PathBuf>,
    pub cgroup_v2: bool,
    pub oom: Option<OomCounter>,
}

/// The option by which a bind names a path inside its source: Kubernetes' `subPath`.
const SUBPATH: &str = "x-coracle.subpath";

pub(crate) fn subpath(data: &[(String, Option<String>)]) -> Option<&str> {
    data.iter().find(|(key, _)| key == SUBPATH).and_then(|(_, value)| value.as_deref())
}

/// The pod's shared memory: a tmpfs on `/dev/shm` with source `shm`.
pub(crate) fn is_pod_shm(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("tmpfs")
        && mount.destination() == Path::new("/dev/shm")
        && mount.source().as_deref() == Some(Path::new("shm"))
}

fn refuse<T>(field: &str, problem: impl Into<String>) -> Result<T, Error> {
    Err(Error::Plan { field: field.to_owned(), problem: problem.into() })
}

/// Checks that the runtime can run a plan as it stands.
///
/// # Errors
/// [`Error::Plan`] with the field; nothing of a plan is ignored.
pub(crate) fn validate(plan: &ContainerPlan) -> Result<(), Error> {
    if plan.id.len() != 64 || !plan.id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
        return refuse("id", "must be 64 lower-case hexadecimal digits");
    }
    if let Some(path) = &plan.log_path
        && !path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
    {
        return refuse("log_path", "must be relative, without `.` and `..`");
    }
    if plan.log_limits.max_files < 2 || plan.log_limits.max_size == 0 {
        return refuse("log_limits", "max_files must be at least 2, and max_size at least 1");
    }
    if let Rootfs::Overlay { lower, .. } = &plan.rootfs
        && lower.is_empty()
    {
        return refuse("rootfs.lower", "must have at least one layer");
    }
    validate_spec(&plan.spec)
}

fn validate_spec(spec: &Spec) -> Result<(), Error> {
    let Some(process) = spec.process() else { return refuse("process", "is required") };
    if process.args().as_ref().and_then(|args| args.first()).is_none_or(String::is_empty) {
        return refuse("process.args", "must not be empty");
    }
    if !process.cwd().is_absolute() {
        return refuse("process.cwd", "must be an absolute path");
    }
    let strings = process.args().iter().flatten().chain(process.env().iter().flatten());
    if strings.into_iter().any(|text| text.contains('\0')) {
        return refuse("process.args", "must not contain null characters");
    }
    let capabilities = process.capabilities().as_ref();
    let filled = |set: Option<&Option<oci_spec::runtime::Capabilities>>| {
        set.and_then(Option::as_ref).is_some_and(|set| !set.is_empty())
    };
    if filled(capabilities.map(|sets| sets.inheritable())) {
        return refuse("process.capabilities.inheritable", "must be empty");
    }
    if filled(capabilities.map(|sets| sets.ambient())) {
        return refuse("process.capabilities.ambient", "must be empty");
    }
    let not_built: [(&str, bool); 10] = [
        ("process.consoleSize", process.console_size().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("process.apparmorProfile", process.apparmor_profile().is_some()),
        ("process.selinuxLabel", process.selinux_label().is_some()),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("hooks", spec.hooks().is_some()),
    ];
    for (field, present) in not_built {
        if present {
            return refuse(field, "is not supported");
        }
    }
    for mount in spec.mounts().iter().flatten() {
        validate_mount(mount)?;
    }
    validate_linux(spec)
}

fn validate_mount(mount: &Mount) -> Result<(), Error> {
    let field = format!("mounts[{}]", mount.destination().display());
    if !mount.destination().is_absolute() {
        return refuse(&field, "the destination must be an absolute path");
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return refuse(&field, "id-mapped mounts are not supported");
    }
    let options = mount_options::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or_default();
    if options.bind || kind == "bind" {
        if !mount.source().as_ref().is_some_and(|source| source.is_absolute()) {
            return refuse(&field, "the source must be an absolute path");
        }
        return match options.data.iter().find(|(key, _)| key != SUBPATH) {
            Some((key, _)) => refuse(&field, format!("unknown option {key:?} for a bind")),
            None => Ok(()),
        };
    }
    match kind {
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup" => Ok(()),
        _ => refuse(&field, format!("mounts of type {kind:?} are not supported")),
    }
}

fn validate_linux(spec: &Spec) -> Result<(), Error> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let not_built: [(&str, bool); 9] = [
        ("linux.uidMappings", linux.uid_mappings().as_ref().is_some_and(|mappings| !mappings.is_empty())),
        ("linux.gidMappings", linux.gid_mappings().as_ref().is_some_and(|mappings| !mappings.is_empty())),
        ("linux.sysctl", linux.sysctl().as_ref().is_some_and(|sysctl| !sysctl.is_empty())),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.mountLabel", linux.mount_label().as_ref().is_some_and(|label| !label.is_empty())),
        ("linux.personality", linux.personality().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())),
    ];
    for (field, present) in not_built {
        if present {
            return refuse(field, "is not supported");
        }
    }
    if let Some(propagation) = linux.rootfs_propagation()
        && !["", "private", "rprivate", "slave", "rslave", "shared", "rshared"].contains(&propagation.as_str())
    {
        return refuse("linux.rootfsPropagation", format!("{propagation:?} is not supported"));
    }
    for device in linux.devices().iter().flatten() {
        let plain = device.path().components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if !device.path().starts_with("/dev/") || !plain {
            return refuse("linux.devices", format!("{} is not below /dev", device.path().display()));
        }
    }
    linux.resources().as_ref().map_or(Ok(()), |resources| limits(resources).map(drop))
}

/// The limits of `linux.resources`.
pub(crate) fn limits(resources: &LinuxResources) -> Result<Resources, Error> {
    let cpu = resources.cpu().as_ref();
    let memory = resources.memory().as_ref();
    let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
    let not_built: [(&str, bool); 17] = [
        ("memory.kernel", memory.and_then(|memory| memory.kernel()).is_some()),
        ("memory.kernelTCP", memory.and_then(|memory| memory.kernel_tcp()).is_some()),
        ("memory.disableOOMKiller", memory.and_then(|memory| memory.disable_oom_killer()).unwrap_or(false)),
        ("cpu.realtimePeriod", cpu.and_then(|cpu| cpu.realtime_period()).is_some()),
        ("rdma", resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty())),
        ("cpu.period", cpu.and_then(|cpu| cpu.period()).is_some_and(|period| period != crate::plan::CPU_PERIOD)),
        ("cpu.burst", cpu.and_then(|cpu| cpu.burst()).is_some()),
        ("cpu.idle", cpu.and_then(|cpu| cpu.idle()).is_some()),
        ("cpu.realtimeRuntime", cpu.and_then(|cpu| cpu.realtime_runtime()).is_some()),
        ("cpu.cpus", cpu.is_some_and(|cpu| cpu.cpus().as_ref().is_some_and(|cpus| !cpus.is_empty()))),
        ("cpu.mems", cpu.is_some_and(|cpu| cpu.mems().as_ref().is_some_and(|mems| !mems.is_empty()))),
        ("memory.reservation", memory.and_then(|memory| memory.reservation()).is_some()),
        ("memory.swappiness", memory.and_then(|memory| memory.swappiness()).is_some()),
        ("blockIO", resources.block_io().is_some()),
        ("hugepageLimits", resources.hugepage_limits().as_ref().is_some_and(|limits| !limits.is_empty())),
        ("network", resources.network().is_some()),
        ("unified", resources.unified().as_ref().is_some_and(|unified| !unified.is_empty())),
    ];
    for (field, present) in not_built {
        if present {
            return refuse(&format!("linux.resources.{field}"), "is not supported");
        }
    }
    let limit = positive(memory.and_then(|memory| memory.limit()));
    if let Some(swap) = positive(memory.and_then(|memory| memory.swap()))
        && Some(swap) != limit
    {
        return refuse("linux.resources.memory.swap", "must equal the memory limit: swap is not granted");
    }
    Ok(Resources {
        cpu_shares: cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares > 0),
        cpu_quota: positive(cpu.and_then(|cpu| cpu.quota())),
        memory_limit: limit,
        pids_limit: positive(resources.pids().as_ref().map(|pids| pids.limit())),
    })
}

/// The device rules of a container: the plan's, then those of the standard nodes and terminals, which always open.
///
/// Source: config-linux.md, "Default Devices"; runc `libcontainer/specconv`, `AllowedDevices`.
pub(crate) fn device_rules(plan: &[LinuxDeviceCgroup]) -> Vec<DeviceRule> {
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    let mut rules: Vec<DeviceRule> = plan
        .iter()
        .map(|rule| DeviceRule {
            allow: rule.allow(),
            kind: match rule.typ().unwrap_or_default() {
                LinuxDeviceType::B => 'b',
                LinuxDeviceType::C | LinuxDeviceType::U => 'c',
                LinuxDeviceType::A | LinuxDeviceType::P => 'a',
            },
            major: number(rule.major()),
            minor: number(rule.minor()),
            access: rule.access().clone().unwrap_or_else(|| "rwm".to_owned()),
        })
        .collect();
    let allow =
        |kind, major, minor, access: &str| DeviceRule { allow: true, kind, major, minor, access: access.into() };
    rules.extend([allow('c', None, None, "m"), allow('b', None, None, "m")]);
    rules.extend(crate::defaults::NODES.map(|(_, major, minor)| allow('c', Some(major), Some(minor), "rwm")));
    // Pseudo-terminals and their multiplexer.
    rules.extend([allow('c', Some(136), None, "rwm"), allow('c', Some(5), Some(2), "rwm")]);
    rules
}

/// Writes a file whole or not at all.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

//! What a container cannot do, seen from inside.

use oci_spec::runtime::{
    LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxResourcesBuilder, UserBuilder,
};
use runtime::plan::ContainerPlan;

use crate::bed::{Bed, default_capabilities};

async fn output(change: impl FnOnce(&mut ContainerPlan), script: &str) -> String {
    let mut bed = Bed::new();
    let mut plan = bed.plan(script);
    change(&mut plan);
    let (_, log) = bed.run(plan).await;
    bed.finish().await;
    log
}

fn set_capabilities(plan: &mut ContainerPlan, names: &[String]) {
    let linux = plan.spec.linux_mut().as_mut().unwrap();
    linux.set_seccomp(Some(runtime::seccomp::runtime_default(names)));
    plan.spec.process_mut().as_mut().unwrap().set_capabilities(Some(runtime::capability::sets(names)));
}

const STATUS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t'";

#[tokio::test(flavor = "multi_thread")]
async fn root_has_nine_capabilities_and_a_filter() {
    let expected = "CapInh:0000000000000000\nCapPrm:00000000000005fb\nCapEff:00000000000005fb\n\
                    CapBnd:00000000000005fb\nCapAmb:0000000000000000\nNoNewPrivs:0\nSeccomp:2\n";
    assert_eq!(output(|_| {}, STATUS).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_has_none() {
    let change = |plan: &mut ContainerPlan| {
        let process = plan.spec.process_mut().as_mut().unwrap();
        let user = UserBuilder::default().uid(1000u32).gid(1000u32).additional_gids(vec![7u32, 8]).build().unwrap();
        process.set_user(user).set_no_new_privileges(Some(true));
    };
    let script = format!("id; echo $HOME; {STATUS}; echo x > /dev/stdout");
    let expected = "uid=1000(user) gid=1000(user) groups=1000(user),7,8\n/home/user\n\
                    CapInh:0000000000000000\nCapPrm:0000000000000000\nCapEff:0000000000000000\n\
                    CapBnd:00000000000005fb\nCapAmb:0000000000000000\nNoNewPrivs:1\nSeccomp:2\nx\n";
    let log = output(change, &script).await.replace("groups=7,8,1000(user)", "groups=1000(user),7,8");
    assert_eq!(log.replace("groups=7,8\n", "groups=1000(user),7,8\n"), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_is_confined_like_its_container() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("sleep 600");
    let id = plan.id.clone();
    let process = plan.spec.process_mut().as_mut().unwrap();
    let user = UserBuilder::default().uid(1000u32).gid(1000u32).build().unwrap();
    process.set_user(user).set_no_new_privileges(Some(true));
    bed.start("p", plan).await.unwrap();
    let (_, init) = bed.exec("p", &id, &STATUS.replace("self", "1")).await;
    let (_, exec) = bed.exec("p", &id, &format!("{STATUS}; id -u")).await;
    assert_eq!(exec, format!("{init}1000\n"));
    assert!(init.contains("NoNewPrivs:1\nSeccomp:2\n"), "{init}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_filter_answers_as_the_profile_says() {
    let script = "exec 2>&1; unshare -m true; chroot / true; mount -t tmpfs x /tmp; ip link add d type dummy; true";
    let log = output(|_| {}, script).await;
    assert!(log.contains("unshare: unshare(0x20000): Function not implemented"), "{log}");
    assert!(log.contains("chroot: can't change root directory to '/': Operation not permitted"), "{log}");
    assert!(log.contains("mount: permission denied"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_unlocks_its_calls() {
    let mut names = default_capabilities();
    names.push("CAP_SYS_CHROOT".to_owned());
    let log = output(move |plan| set_capabilities(plan, &names), "chroot / echo changed").await;
    assert_eq!(log, "changed\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_profile_there_is_no_filter() {
    let change = |plan: &mut ContainerPlan| {
        plan.spec.linux_mut().as_mut().unwrap().set_seccomp(None);
    };
    assert_eq!(output(change, "grep Seccomp: /proc/self/status | tr -d '\\t'").await, "Seccomp:0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_localhost_profile_is_enforced() {
    let json = br#"{"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 122}]}"#;
    let profile = runtime::seccomp::parse_profile(json, &[]).unwrap();
    let change = |plan: &mut ContainerPlan| {
        plan.spec.linux_mut().as_mut().unwrap().set_seccomp(Some(profile));
    };
    let log = output(change, "exec 2>&1; mkdir /tmp/x; touch /tmp/y && echo touched").await;
    assert_eq!(log, "mkdir: can't create directory '/tmp/x': Disk quota exceeded\ntouched\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_root_cannot_be_written() {
    let change = |plan: &mut ContainerPlan| {
        plan.spec.root_mut().as_mut().unwrap().set_readonly(Some(true));
    };
    let log = output(change, "exec 2>&1; touch /x; mkdir /y; echo ok > /dev/shm/z && cat /dev/shm/z").await;
    let expected = "touch: /x: Read-only file system\nmkdir: can't create directory '/y': Read-only file system\nok\n";
    assert_eq!(log, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_masked_and_read_only() {
    let script = "exec 2>&1; head -c1 /proc/interrupts | wc -c; ls /sys/firmware | wc -l; ls -l /proc/keys | cut -c1; \
                  echo 1 > /proc/sys/kernel/panic; grep -o '/proc/irq ro' /proc/self/mountinfo; mkdir /sys/fs/cgroup/x /sys/x; true";
    let log = output(|_| {}, script).await;
    assert!(log.starts_with("0\n0\nc\n"), "{log}");
    assert!(log.contains("/proc/sys/kernel/panic: Read-only file system"), "{log}");
    assert!(log.contains("/proc/irq ro\n"), "{log}");
    assert!(log.contains("'/sys/fs/cgroup/x': Read-only file system"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_host_is_mounted() {
    let log =
        output(|_| {}, "exec 2>&1; cut -d' ' -f5 /proc/self/mountinfo; ls -l /proc/self/fd | grep -c -- '->'").await;
    let mounts: Vec<&str> = log.lines().filter(|line| line.starts_with('/')).collect();
    let strange: Vec<&&str> = mounts
        .iter()
        .filter(|mount| !["/proc", "/dev", "/sys"].iter().any(|root| mount.starts_with(root)) && **mount != "/")
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    // 0, 1, 2; the directory's own is closed again when ls looks at it.
    assert_eq!(log.lines().last(), Some("3"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_nodes_are_the_standard_ones() {
    let script = "ls /dev; echo x > /dev/null; head -c2 /dev/zero | wc -c; test -c /dev/ptmx && echo ptmx";
    let expected =
        "core\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n2\nptmx\n";
    assert_eq!(output(|_| {}, script).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_devices_do_not_open() {
    let change = |plan: &mut ContainerPlan| {
        let mut names = default_capabilities();
        names.push("CAP_MKNOD".to_owned());
        set_capabilities(plan, &names);
    };
    let log = output(change, "exec 2>&1; mknod /dev/kmsg c 1 11 && head -c1 /dev/kmsg").await;
    assert_eq!(log, "head: /dev/kmsg: Operation not permitted\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_the_plan_opens() {
    let change = |plan: &mut ContainerPlan| {
        let device = LinuxDeviceBuilder::default()
            .path("/dev/sub/mynull")
            .typ(LinuxDeviceType::C)
            .major(1i64)
            .minor(3i64)
            .file_mode(0o600u32)
            .uid(1000u32)
            .gid(1000u32)
            .build()
            .unwrap();
        let rule = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(1i64)
            .minor(11i64)
            .access("r")
            .build()
            .unwrap();
        let linux = plan.spec.linux_mut().as_mut().unwrap();
        linux.set_devices(Some(vec![device]));
        linux.set_resources(Some(LinuxResourcesBuilder::default().devices(vec![rule]).build().unwrap()));
    };
    let log = output(change, "stat -c '%a %u %t:%T' /dev/sub/mynull; echo x > /dev/sub/mynull && echo written").await;
    assert_eq!(log, "600 1000 1:3\nwritten\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_cannot_be_written_through_a_shim() {
    let bed = Bed::new();
    let pod = bed.pod("p").await;
    let exe = format!("/proc/{}/exe", pod.shim_pid);
    let error = std::fs::OpenOptions::new().append(true).open(&exe).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(30 | 26)), "{error}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inheritable_and_ambient_capabilities_are_refused() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("true");
    let mut sets = runtime::capability::sets(&default_capabilities());
    sets.set_ambient(sets.bounding().clone());
    plan.spec.process_mut().as_mut().unwrap().set_capabilities(Some(sets));
    let error = bed.runtime.create_container("p", plan).await.unwrap_err();
    assert_eq!(error.to_string(), "process.capabilities.ambient: must be empty");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_descriptor_is_a_way_out() {
    // CVE-2024-21626: a working directory by a descriptor of the runtime's.
    let mut bed = Bed::new();
    bed.pod("p").await;
    assert!(std::path::Path::new("/etc/hostname").exists(), "the host has what the container has not");
    for number in 3..16 {
        let mut plan = bed.plan("ls -d /proc/self/cwd/../../../../../../etc/hostname 2>/dev/null; ls /proc/self/fd");
        plan.log_path = Some(format!("main/{number}.log").into());
        plan.spec.process_mut().as_mut().unwrap().set_cwd(format!("/proc/self/fd/{number}").into());
        if bed.start("p", plan).await.is_ok() {
            bed.exit().await;
            let log = std::fs::read_to_string(bed.directory.join(format!("logs/p/main/{number}.log"))).unwrap();
            assert_eq!(crate::bed::text_of(&log), "0\n1\n2\n3\n", "descriptor {number}");
        }
    }
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_gets_three_descriptors() {
    let bed = Bed::new();
    bed.pod("p").await;
    let plan = bed.plan("sleep 600");
    let id = plan.id.clone();
    bed.start("p", plan).await.unwrap();
    // The fourth is the directory that ls reads.
    assert_eq!(bed.exec("p", &id, "ls /proc/self/fd").await, (0, "0\n1\n2\n3\n".to_owned()));
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_masked_path_that_is_a_link_is_an_error() {
    let bed = Bed::new();
    std::os::unix::fs::symlink("/etc/passwd", bed.directory.join("layer/link")).unwrap();
    bed.pod("p").await;
    let mut plan = bed.plan("true");
    plan.spec.linux_mut().as_mut().unwrap().set_masked_paths(Some(vec!["/link".to_owned()]));
    let error = bed.start("p", plan).await.unwrap_err();
    assert_eq!(error.to_string(), "mask /link: too many levels of symbolic links");
    bed.finish().await;
}

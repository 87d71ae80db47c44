//! Binds: read-only, recursive, propagated, hostile.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use runtime::error::Error;
use runtime::plan::ContainerPlan;

use crate::bed::{Bed, bind};

fn add(plan: &mut ContainerPlan, source: &Path, destination: &str, options: &[&str]) {
    plan.spec.mounts_mut().as_mut().unwrap().push(bind(source, destination, options));
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_files_are_bound() {
    let mut bed = Bed::new();
    let source = bed.directory.join("volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    let mut plan = bed.plan("exec 2>&1; cat /data/file /etc/one; echo more > /data/new; echo x > /etc/one");
    add(&mut plan, &source, "/data", &["rbind", "rprivate"]);
    add(&mut plan, &source.join("file"), "/etc/one", &["rbind", "rprivate", "ro"]);
    let (_, log) = bed.run(plan).await;
    assert_eq!(log, "content\ncontent\nsh: can't create /etc/one: Read-only file system\n");
    assert_eq!(fs::read_to_string(source.join("new")).unwrap(), "more\n");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_source_is_a_start_error() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("true");
    add(&mut plan, Path::new("/no/such/source"), "/data", &["rbind"]);
    let error = bed.start("p", plan).await.unwrap_err();
    assert_eq!(error.to_string(), "bind /no/such/source: no such file or directory");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_in_the_image_stay_inside() {
    let mut bed = Bed::new();
    let layer = bed.directory.join("layer");
    let outside = bed.directory.join("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, layer.join("data")).unwrap();
    symlink("../../../../../..", layer.join("up")).unwrap();
    let source = bed.directory.join("volume");
    fs::create_dir(&source).unwrap();
    let mut plan = bed.plan("ls -d /up/mounted && touch /data/inside");
    add(&mut plan, &source, "/data/made", &["rbind"]);
    add(&mut plan, &source, "/up/mounted", &["rbind"]);
    let (exit, log) = bed.run(plan).await;
    assert_eq!((exit.exit_code, log.as_str()), (0, "/up/mounted\n"));
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside of the root");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proc_and_dev_must_be_ordinary_directories() {
    for name in ["proc", "dev", "sys"] {
        let bed = Bed::new();
        let layer = bed.directory.join("layer");
        fs::remove_dir(layer.join(name)).unwrap();
        symlink("tmp", layer.join(name)).unwrap();
        bed.pod("p").await;
        let error = bed.start("p", bed.plan("true")).await.unwrap_err();
        assert_eq!(error.to_string(), format!("mount /{name}: the destination must be an ordinary directory"));
        bed.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_bound_inside_of_proc() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("true");
    add(&mut plan, Path::new("/etc/hostname"), "/proc/version", &["bind"]);
    let error = bed.start("p", plan).await.unwrap_err();
    assert_eq!(error.to_string(), "mount /proc/version: the destination is inside /proc");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_path_cannot_leave_its_volume() {
    let mut bed = Bed::new();
    let volume = bed.directory.join("volume");
    fs::create_dir_all(volume.join("etc")).unwrap();
    fs::create_dir_all(volume.join("sub")).unwrap();
    fs::write(volume.join("sub/file"), "of the volume\n").unwrap();
    fs::write(volume.join("etc/passwd"), "of the volume too\n").unwrap();
    symlink("/etc", volume.join("link")).unwrap();
    let mut plan = bed.plan("cat /a/file /b");
    add(&mut plan, &volume, "/a", &["rbind", "x-coracle.subpath=sub"]);
    add(&mut plan, &volume, "/b", &["rbind", "x-coracle.subpath=link/passwd"]);
    let (_, log) = bed.run(plan).await;
    assert_eq!(log, "of the volume\nof the volume too\n");
    bed.finish().await;
}

/// Runs a command that changes mounts, in a mount namespace that a test's runtime shares.
fn mount(args: &[&str]) {
    assert!(Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
}

/// A directory that is a shared mount; unmounted at the end.
struct Shared(std::path::PathBuf);

impl Shared {
    fn new(path: &Path) -> Shared {
        fs::create_dir_all(path).unwrap();
        let text = path.to_str().unwrap();
        mount(&["-t", "tmpfs", "none", text]);
        mount(&["--make-shared", text]);
        Shared(path.to_owned())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        Command::new("umount").arg("-R").arg(&self.0).status().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_is_not_recursive_unless_asked_for() {
    let mut bed = Bed::new();
    let shared = Shared::new(&bed.directory.join("volume"));
    fs::create_dir(shared.0.join("below")).unwrap();
    mount(&["-t", "tmpfs", "none", shared.0.join("below").to_str().unwrap()]);
    let mut plan = bed.plan("exec 2>&1; touch /a/x; touch /a/below/x && echo written; touch /b/below/x");
    add(&mut plan, &shared.0, "/a", &["rbind", "ro"]);
    add(&mut plan, &shared.0, "/b", &["rbind", "rro"]);
    let (_, log) = bed.run(plan).await;
    assert_eq!(log, "touch: /a/x: Read-only file system\nwritten\ntouch: /b/below/x: Read-only file system\n");
    drop(shared);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_propagate_as_asked() {
    let bed = Bed::new();
    let shared = Shared::new(&bed.directory.join("volume"));
    fs::create_dir(shared.0.join("late")).unwrap();
    bed.pod("p").await;
    let mut plan = bed.plan("echo ready; sleep 600");
    let id = plan.id.clone();
    add(&mut plan, &shared.0, "/private", &["rbind", "rprivate"]);
    add(&mut plan, &shared.0, "/slave", &["rbind", "rslave"]);
    bed.start("p", plan).await.unwrap();
    bed.wait_for_log("p", "ready").await;
    mount(&["-t", "tmpfs", "none", shared.0.join("late").to_str().unwrap()]);
    fs::write(shared.0.join("late/file"), "").unwrap();
    let (_, output) = bed.exec("p", &id, "ls /slave/late /private/late").await;
    assert_eq!(output, "/private/late:\n\n/slave/late:\nfile\n");
    bed.runtime.remove_pod("p").await.unwrap();
    drop(shared);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_mounts_for_the_host_where_it_may() {
    let mut bed = Bed::new();
    let shared = Shared::new(&bed.directory.join("volume"));
    fs::create_dir(shared.0.join("made")).unwrap();
    let mut plan = bed.plan("mount -t tmpfs none /data/made && touch /data/made/here");
    add(&mut plan, &shared.0, "/data", &["rbind", "rshared"]);
    let mut names = crate::bed::default_capabilities();
    names.push("CAP_SYS_ADMIN".to_owned());
    plan.spec.process_mut().as_mut().unwrap().set_capabilities(Some(runtime::capability::sets(&names)));
    plan.spec.linux_mut().as_mut().unwrap().set_seccomp(None);
    let (exit, log) = bed.run(plan).await;
    assert_eq!((exit.exit_code, log.as_str()), (0, ""));
    assert!(shared.0.join("made/here").exists());
    drop(shared);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn propagation_needs_a_shared_source() {
    let bed = Bed::new();
    let private = Shared::new(&bed.directory.join("volume"));
    mount(&["--make-private", private.0.to_str().unwrap()]);
    bed.pod("p").await;
    let mut plan = bed.plan("true");
    add(&mut plan, &private.0, "/data", &["rbind", "rshared"]);
    let error = bed.start("p", plan).await.unwrap_err();
    let path = private.0.display().to_string();
    assert_eq!(error.to_string(), format!("path {path:?} is mounted on {path:?} but it is not a shared mount"));
    drop(private);
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_bind_options_are_refused() {
    let bed = Bed::new();
    bed.pod("p").await;
    let mut plan = bed.plan("true");
    add(&mut plan, Path::new("/tmp"), "/data", &["rbind", "speed=high"]);
    let error = bed.runtime.create_container("p", plan).await.unwrap_err();
    assert!(matches!(&error, Error::Plan { field, .. } if field == "mounts[/data]"), "{error}");
    bed.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_has_up_to_a_hundred_layers() {
    // Few enough for one option of the file system, and more.
    for count in [2, 40, 100] {
        let mut bed = Bed::new();
        let mut plan = bed.plan("ls /layers | wc -l; cat /top");
        let runtime::plan::Rootfs::Overlay { lower, .. } = &mut plan.rootfs else { panic!("no overlay") };
        for number in 0..count {
            let layer = bed.directory.join(format!("layer-{number}"));
            fs::create_dir_all(layer.join("layers")).unwrap();
            fs::write(layer.join("layers").join(number.to_string()), "").unwrap();
            fs::write(layer.join("top"), format!("{number}\n")).unwrap();
            lower.insert(0, layer);
        }
        let (_, log) = bed.run(plan).await;
        assert_eq!(log, format!("{count}\n{}\n", count - 1));
        bed.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_writes_goes_to_its_upper_layer() {
    let mut bed = Bed::new();
    let plan = bed.plan("echo new > /file; rm /etc/group");
    let runtime::plan::Rootfs::Overlay { upper, .. } = plan.rootfs.clone() else { panic!("no overlay") };
    bed.run(plan).await;
    assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "new\n");
    assert!(bed.directory.join("layer/etc/group").exists() && !bed.directory.join("layer/file").exists());
    bed.finish().await;
}

//! Mounts that the node itself makes: memory-backed volumes and the fixed places of sub-paths.
//!
//! Sub-paths are opened once, below the volume and without leaving it, and the open descriptor is mounted at a place of our
//! own, which the runtime then binds: no component is resolved twice (CVE-2017-1002101, CVE-2021-25741). Source:
//! pkg/volume/util/subpath/subpath_linux.go, with `open_tree` and `move_mount` in place of /proc/self/fd.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

/// The mount points of this process' namespace, from `mountinfo`.
///
/// # Errors
/// When /proc cannot be read.
pub fn mounted() -> io::Result<Vec<PathBuf>> {
    Ok(parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse_mountinfo(text: &str) -> Vec<PathBuf> {
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

/// Undoes the octal escapes of spaces and the like in fstab and mountinfo.
pub fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = text
            .get(at + 1..at + 4)
            .filter(|_| bytes[at] == b'\\')
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    use std::os::unix::ffi::OsStringExt;
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Mounts a tmpfs on `dir` unless one is there. `size` in bytes; the kernel's default (half of memory) without.
///
/// # Errors
/// When the kernel refuses.
pub fn tmpfs(dir: &Path, size: Option<u64>, mode: u32) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if mounted()?.iter().any(|place| place == dir) {
        return Ok(());
    }
    let size = size.map_or_else(String::new, |size| format!(",size={size}"));
    let data = std::ffi::CString::new(format!("mode={mode:o}{size}")).map_err(io::Error::other)?;
    rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str())?;
    Ok(())
}

/// Mounts the layers of an image on `dir`, read-only and without anything to execute, unless something is there.
///
/// # Errors
/// When a layer is gone, or the kernel refuses.
pub fn image(dir: &Path, layers: &[PathBuf]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // Two containers of a pod may come at once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if mounted()?.iter().any(|place| place == dir) {
        return Ok(());
    }
    // Below all layers lies an empty directory, which is then mounted over: an overlay wants two at least.
    fs::create_dir_all(dir)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let all = layers.iter().map(PathBuf::as_path).chain([dir]);
    let open = all.map(|layer| rustix::fs::open(layer, flags, Mode::empty())).collect::<Result<Vec<_>, _>>()?;
    // Descriptors make short names: all of them have one page.
    let names: Vec<String> = open.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    let data = std::ffi::CString::new(format!("lowerdir={}", names.join(":"))).map_err(io::Error::other)?;
    let restricted = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("overlay", dir, "overlay", restricted, data.as_c_str())?;
    Ok(())
}

/// Opens `sub` below `volume` without following anything out of it, and makes missing directories with the mode of the volume.
///
/// # Errors
/// When a component leads out, is no directory where one is needed, or cannot be made.
pub fn open_sub_path(volume: &Path, sub: &str) -> io::Result<OwnedFd> {
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, sub, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath) {
        Ok(found) => return Ok(found),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&root)?.st_mode & 0o7777);
    let mut walked = PathBuf::new();
    for part in Path::new(sub).components() {
        let Component::Normal(name) = part else {
            if part == Component::CurDir {
                continue;
            }
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path leaves the volume"));
        };
        let parent = if walked.as_os_str().is_empty() { Path::new(".") } else { walked.as_path() };
        let parent =
            openat2(&root, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), beneath)?;
        match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) => {
                // mkdir is subject to the umask.
                let made = openat2(
                    &parent,
                    name,
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                    beneath,
                )?;
                rustix::fs::fchmod(&made, mode)?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        walked.push(name);
    }
    Ok(openat2(&root, sub, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), beneath)?)
}

/// Binds an open file or directory to `place`, which is made with the same type. A mount that is there already is replaced.
///
/// # Errors
/// When the kernel refuses.
pub fn bind(what: &OwnedFd, place: &Path) -> io::Result<()> {
    let directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(what)?.st_mode).is_dir();
    if mounted()?.iter().any(|mounted| mounted == place) {
        rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    if directory {
        fs::create_dir_all(place)?;
    } else {
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(place)?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(what, "", flags)?;
    rustix::mount::move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// Takes away everything that is mounted on or below `dir`, innermost first, and then deletes `dir`.
///
/// # Errors
/// When something stays mounted: nothing is deleted then, for it would be deleted from the volume itself.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    #[cfg(feature = "planted")]
    if planted::on(planted::Bug::LeakedMount) {
        return Ok(());
    }
    unmount_below(dir)?;
    if let Some(left) = mounted()?.into_iter().find(|place| place.starts_with(dir)) {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn unmount_below(dir: &Path) -> io::Result<()> {
    let mut places: Vec<PathBuf> = mounted()?.into_iter().filter(|place| place.starts_with(dir)).collect();
    places.sort_by_key(|place| std::cmp::Reverse(place.components().count()));
    for place in places {
        match rustix::mount::unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::TempDir;
    use super::*;

    #[test]
    fn sub_paths_stay_inside_and_are_made() {
        let dir = TempDir::new();
        let volume = dir.join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(dir.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("etc")).unwrap();
        for sub in ["out", "etc/passwd", "../secret", "a/../../secret"] {
            assert!(open_sub_path(&volume, sub).is_err(), "{sub}");
        }
        open_sub_path(&volume, "a/b").unwrap();
        assert!(volume.join("a/b").is_dir());
    }

    #[test]
    fn a_bound_sub_path_is_taken_away_and_its_files_stay() {
        let dir = TempDir::new();
        let (volume, pod) = (dir.join("volume"), dir.join("pod"));
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "kept").unwrap();
        let place = pod.join("volume-subpaths/v/c/0");
        bind(&open_sub_path(&volume, "file").unwrap(), &place).unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "kept");
        tmpfs(&pod.join("memory"), Some(1 << 20), 0o777).unwrap();
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
        assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "kept");
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape("/mnt/a\\040b\\134"), Path::new("/mnt/a b\\"));
        let info = "36 35 98:0 /x /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n";
        assert_eq!(parse_mountinfo(info), [Path::new("/mnt/a b")]);
    }
}

//! Paths inside a container's root: resolved once, to a descriptor, and never outside of the root.
//!
//! The kernel does it where everything exists (`openat2` with `RESOLVE_IN_ROOT`). Where a mount point has to be made, the path is
//! walked by descriptors with the same rules: `..` stops at the root, absolute links start there, magic links are plain text.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

/// `openat2` gives up with EAGAIN when something is renamed meanwhile.
const MAX_RETRIES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// Opens what is at `path` inside `root`, following links within it.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens what is at `path` inside `root` if no part of the path is a link: ELOOP otherwise.
pub(super) fn open_plain(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS)
}

fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags, how: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    for _ in 0..MAX_RETRIES {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens `path` inside `root`, making what is missing of it: directories of mode 0755, and an empty file at the end for
/// [`Kind::File`].
pub(super) fn open_or_make(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> rustix::io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => walk(root, path, kind),
        result => result,
    }
}

fn walk(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> rustix::io::Result<OwnedFd> {
    // The directories from the root down to where the walk stands: `..` pops, so that it cannot leave.
    let mut stack =
        vec![root.try_clone_to_owned().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?];
    let mut todo: VecDeque<OsString> = components(path.as_os_str());
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name.as_bytes() == b".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let here = stack.last().expect("the root is never popped").as_fd();
        let next = match openat(here, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) if todo.is_empty() && kind == Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(here, &name, flags, Mode::from_raw_mode(0o644))?
            }
            Err(Errno::NOENT) => {
                match mkdirat(here, &name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(here, &name, flags, Mode::empty())?
            }
            result => result?,
        };
        if FileType::from_raw_mode(fstat(&next)?.st_mode) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP);
            }
            let target = OsString::from_vec(readlinkat(&next, "", Vec::new())?.into_bytes());
            if target.as_bytes().starts_with(b"/") {
                stack.truncate(1);
            }
            for part in components(&target).into_iter().rev() {
                todo.push_front(part);
            }
            continue;
        }
        stack.push(next);
    }
    Ok(stack.pop().expect("the root is never popped"))
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    let parts = path.as_bytes().split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").map(|part| OsStr::from_bytes(part).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory with `root` inside; removed at the end.
    struct Scene(PathBuf);

    impl Scene {
        fn new() -> Scene {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("runtime-path-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let dir = std::env::temp_dir().join(name);
            fs::create_dir_all(dir.join("root")).unwrap();
            Scene(dir)
        }

        fn make(&self, path: &str, kind: Kind) -> rustix::io::Result<u64> {
            let root = fs::File::open(self.0.join("root")).unwrap();
            let fd = open_or_make(root.as_fd(), Path::new(path), kind)?;
            Ok(fstat(&fd)?.st_ino)
        }

        fn inode(&self, path: &str) -> u64 {
            fs::symlink_metadata(self.0.join(path)).unwrap().ino()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn makes_what_is_missing() {
        let scene = Scene::new();
        let made = scene.make("/a/b/file", Kind::File).unwrap();
        assert_eq!(made, scene.inode("root/a/b/file"));
    }

    #[test]
    fn dots_and_absolute_links_stay_inside() {
        let scene = Scene::new();
        symlink("/../../../../out", scene.0.join("root/link")).unwrap();
        let made = scene.make("link/x", Kind::Directory).unwrap();
        assert_eq!(made, scene.inode("root/out/x"));
        assert!(!scene.0.join("out").exists());
        assert_eq!(scene.make("../../escape", Kind::Directory).unwrap(), scene.inode("root/escape"));
    }

    #[test]
    fn dangling_links_are_followed_inside() {
        let scene = Scene::new();
        symlink("/run", scene.0.join("root/var")).unwrap();
        assert_eq!(scene.make("/var/secrets", Kind::Directory).unwrap(), scene.inode("root/run/secrets"));
    }

    #[test]
    fn loops_end() {
        let scene = Scene::new();
        symlink("b", scene.0.join("root/a")).unwrap();
        symlink("a", scene.0.join("root/b")).unwrap();
        assert_eq!(scene.make("a/x", Kind::Directory), Err(Errno::LOOP));
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let scene = Scene::new();
        fs::write(scene.0.join("root/file"), "").unwrap();
        assert_eq!(scene.make("file/x", Kind::Directory), Err(Errno::NOTDIR));
    }

    #[test]
    fn plain_paths_have_no_links() {
        let scene = Scene::new();
        symlink("/tmp", scene.0.join("root/proc")).unwrap();
        let root = fs::File::open(scene.0.join("root")).unwrap();
        assert_eq!(open_plain(root.as_fd(), Path::new("/proc"), OFlags::PATH).unwrap_err(), Errno::LOOP);
    }
}

//! An image's passwd and group files, read from its layers.
//!
//! Layers come from strangers: files are opened below their layer and never outside of it, and only so much is read.

use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat2};

use crate::plan::identity::Accounts;

/// More than any honest account file.
const MAX_FILE: u64 = 1 << 20;

/// Reads both files; one that is missing is empty. `layers` begins with the topmost. Blocks.
pub fn read(layers: &[PathBuf]) -> Accounts {
    Accounts { passwd: find(layers, "passwd"), group: find(layers, "group") }
}

fn find(layers: &[PathBuf], name: &str) -> String {
    for layer in layers {
        match look(layer, name) {
            Look::Found(text) => return text,
            Look::Hidden => return String::new(),
            Look::Absent => {}
        }
    }
    String::new()
}

enum Look {
    Found(String),
    /// This layer deletes what is below.
    Hidden,
    Absent,
}

fn look(layer: &Path, name: &str) -> Look {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let Ok(root) = rustix::fs::open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return Look::Absent;
    };
    let etc = openat2(&root, "etc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside);
    let Ok(etc) = etc else { return Look::Absent };
    if is_whiteout(&etc) {
        return Look::Hidden;
    }
    let path = format!("etc/{name}");
    let Ok(found) = openat2(&root, path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside) else {
        return if is_opaque(layer) { Look::Hidden } else { Look::Absent };
    };
    if is_whiteout(&found) {
        return Look::Hidden;
    }
    // Opened again for reading only after it is known to be a file: a FIFO would block.
    let regular = rustix::fs::fstat(&found).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    if !regular {
        return Look::Absent;
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = openat2(&root, path.as_str(), flags, Mode::empty(), inside) else { return Look::Absent };
    let mut bytes = Vec::new();
    match std::fs::File::from(file).take(MAX_FILE).read_to_end(&mut bytes) {
        Ok(_) => Look::Found(String::from_utf8_lossy(&bytes).into_owned()),
        Err(_) => Look::Absent,
    }
}

/// overlayfs marks a deletion by a character device 0:0.
fn is_whiteout(file: &impl std::os::fd::AsFd) -> bool {
    rustix::fs::fstat(file)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0)
}

fn is_opaque(layer: &Path) -> bool {
    let mut value = [0; 4];
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        rustix::fs::lgetxattr(layer.join("etc"), *name, &mut value).is_ok_and(|length| value[..length] == *b"y")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::tests::TempDir;

    #[test]
    fn the_topmost_file_wins_and_links_stay_inside() {
        let dir = TempDir::new();
        let layer = |name: &str| {
            let layer = dir.join(name);
            std::fs::create_dir_all(layer.join("etc")).unwrap();
            layer
        };
        let (top, middle, bottom) = (layer("top"), layer("middle"), layer("bottom"));
        std::fs::write(bottom.join("etc/passwd"), "bottom").unwrap();
        std::fs::write(middle.join("etc/passwd"), "middle").unwrap();
        std::fs::write(bottom.join("etc/group"), "group").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", top.join("etc/group")).unwrap();
        let accounts = read(&[top, middle, bottom]);
        assert_eq!(
            (accounts.passwd.as_str(), accounts.group.as_str()),
            ("middle", "group"),
            "a link cannot show the host's file"
        );
    }
}

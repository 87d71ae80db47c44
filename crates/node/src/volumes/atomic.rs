//! Replaces the files of a volume at once, so that a reader sees all of the old or all of the new.
//!
//! The visible names are links through `..data`, which is itself a link to the newest directory; one rename switches them
//! all. Source: pkg/volume/util/atomic_writer.go.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::payload::Payload;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Writes `payload` into `dir`, which must exist. `fs_group` owns the files when set. Nothing is done, and false returned, when
/// the volume has this content already. `stamp` names the new directory.
///
/// # Errors
/// For paths that leave the volume, and when the disk refuses.
pub fn write(dir: &Path, payload: &Payload, fs_group: Option<u32>, stamp: &str) -> io::Result<bool> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && holds(&dir.join(current), payload)?
    {
        return Ok(false);
    }
    let new = PathBuf::from(format!("..{stamp}"));
    let place = dir.join(&new);
    make_dir(&place)?;
    for (path, file) in payload {
        let target = place.join(path);
        if let Some(parent) = target.parent() {
            make_dir(parent)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut out = options.write(true).create_new(true).mode(0o600).open(&target)?;
        io::Write::write_all(&mut out, &file.data)?;
        // Exactly the mode asked for, whatever the umask.
        out.set_permissions(fs::Permissions::from_mode(file.mode))?;
        if let Some(uid) = file.uid {
            std::os::unix::fs::fchown(&out, Some(uid), None)?;
        }
    }
    if let Some(group) = fs_group {
        own(&place, group, false)?;
    }
    let link = dir.join(DATA_NEW);
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link)?;
    }
    symlink(&new, &link)?;
    fs::rename(&link, dir.join(DATA))?;
    link_names(dir, payload)?;
    if let Some(old) = current.filter(|old| *old != new) {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn check_path(path: &str) -> io::Result<()> {
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let first_hidden = path.starts_with("..");
    if path.is_empty() || !inside || first_hidden {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("invalid path: {path:?} must stay inside the volume"),
        ));
    }
    Ok(())
}

fn make_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// Whether `place` has exactly these files with these contents and modes.
fn holds(place: &Path, payload: &Payload) -> io::Result<bool> {
    for (path, file) in payload {
        match fs::read(place.join(path)) {
            Ok(data) if data == file.data => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    let mut count = 0;
    count_files(place, &mut count)?;
    Ok(count == payload.len())
}

fn count_files(dir: &Path, count: &mut usize) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count_files(&entry.path(), count)?;
        } else {
            *count += 1;
        }
    }
    Ok(())
}

/// Makes the visible links that are missing and removes those that lead nowhere.
fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    let first = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let names: std::collections::BTreeSet<String> = payload.keys().map(first).collect();
    for name in &names {
        let link = dir.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Gives a tree to a group: setgid directories, and files that the group may read (and write when `writable`).
///
/// Symbolic links are left alone. Source: pkg/volume/volume_linux.go, `changeFilePermission`.
pub fn own(path: &Path, group: u32, writable: bool) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    if metadata.is_symlink() {
        return Ok(());
    }
    std::os::unix::fs::chown(path, None, Some(group))?;
    let mut mask = if writable { 0o660 } else { 0o440 };
    if metadata.is_dir() {
        mask |= 0o2110;
    }
    fs::set_permissions(path, fs::Permissions::from_mode((metadata.permissions().mode() & 0o7777) | mask))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), group, writable)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::payload::File;
    use super::super::tests::TempDir;
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { mode: 0o640, data: data.as_bytes().to_vec(), uid: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn listing(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_change_replaces_everything_at_once() {
        let dir = TempDir::new();
        assert!(write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None, "one").unwrap());
        assert_eq!(listing(&dir), ["..data", "..one", "a", "sub"]);
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(
            !write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None, "two").unwrap(),
            "the same again does nothing"
        );
        assert!(write(&dir, &payload(&[("a", "3")]), None, "three").unwrap());
        assert_eq!(listing(&dir), ["..data", "..three", "a"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
    }

    #[test]
    fn an_empty_volume_can_be_filled_later() {
        let dir = TempDir::new();
        assert!(write(&dir, &payload(&[]), None, "one").unwrap());
        assert!(write(&dir, &payload(&[("a", "1")]), None, "two").unwrap());
        assert_eq!(listing(&dir), ["..data", "..two", "a"]);
    }

    #[test]
    fn paths_cannot_leave() {
        let dir = TempDir::new();
        for path in ["../a", "/a", "a/../b", "..x", ""] {
            assert!(write(&dir, &payload(&[(path, "1")]), None, "one").is_err(), "{path}");
        }
        assert!(listing(&dir).is_empty());
    }
}

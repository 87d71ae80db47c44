//! Paths of the host: type checks, creation, and waiting for a disk that is not mounted yet.
//!
//! Source: pkg/volume/hostpath/host_path.go, `checkTypeInternal`. The wait is our own: a directory under the mount point of a
//! disk that failed to mount passes every check and shows an empty disk to the program.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::mounts::unescape;

/// Checks a hostPath's type and makes what its type says to make. Follows symbolic links. Blocks as long as the disk does.
///
/// # Errors
/// With the text of the FailedMount event.
pub fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(error) => return Err(format!("hostPath {} cannot be examined: {error}", path.display())),
    };
    let fail = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    let made = |result: io::Result<()>| {
        result.map_err(|error| format!("hostPath {} cannot be created: {error}", path.display()))
    };
    match (kind, found) {
        ("", Some(_)) => Ok(()),
        // Without a type the container runtimes make a directory.
        ("" | "DirectoryOrCreate", None) => made(fs::DirBuilder::new().recursive(true).mode(0o755).create(path)),
        ("Directory" | "DirectoryOrCreate", found) if found.is_some_and(|kind| kind.is_dir()) => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => fail("a directory"),
        ("FileOrCreate", None) => {
            made(fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop))
        }
        ("File" | "FileOrCreate", found) if found.is_some_and(|kind| kind.is_file()) => Ok(()),
        ("File" | "FileOrCreate", _) => fail("a file"),
        ("Socket", found) if found.is_some_and(|kind| kind.is_socket()) => Ok(()),
        ("Socket", _) => fail("a socket file"),
        ("CharDevice", found) if found.is_some_and(|kind| kind.is_char_device()) => Ok(()),
        ("CharDevice", _) => fail("a character device"),
        ("BlockDevice", found) if found.is_some_and(|kind| kind.is_block_device()) => Ok(()),
        ("BlockDevice", _) => fail("a block device"),
        (other, _) => Err(format!("{other} is an invalid volume type")),
    }
}

/// The mount points that the machine's administrator declared in `fstab` and in systemd's `.mount` units, `/` apart.
///
/// Entries with `noauto` are the administrator's own business and left out, as is swap.
pub fn declared(fstab: &str, units: &[String]) -> Vec<PathBuf> {
    let from_fstab = fstab.lines().filter_map(|line| {
        let line = line.split('#').next()?;
        let mut fields = line.split_whitespace();
        let (_, place, _, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next().unwrap_or(""));
        (place.starts_with('/') && !options.split(',').any(|option| option == "noauto")).then(|| unescape(place))
    });
    let from_units = units.iter().filter_map(|unit| {
        let place = unit.lines().find_map(|line| line.trim().strip_prefix("Where="))?;
        place.starts_with('/').then(|| PathBuf::from(place.trim()))
    });
    from_fstab.chain(from_units).filter(|place| place != Path::new("/")).collect()
}

/// The innermost declared mount point above `path` that is not mounted.
pub fn unmounted<'a>(path: &Path, declared: &'a [PathBuf], mounted: &[PathBuf]) -> Option<&'a Path> {
    let above = declared.iter().filter(|place| path.starts_with(place));
    above.filter(|place| !mounted.contains(place)).max_by_key(|place| place.components().count()).map(PathBuf::as_path)
}

#[cfg(test)]
mod tests {
    use super::super::tests::TempDir;
    use super::*;

    #[test]
    fn types_are_strict_and_worded_as_upstream() {
        let dir = TempDir::new();
        let (file, missing) = (dir.join("file"), dir.join("missing"));
        fs::write(&file, "").unwrap();
        let failed = |path: &Path, kind: &str, what: &str| {
            let expected = format!("hostPath type check failed: {} is not {what}", path.display());
            assert_eq!(prepare(path, kind), Err(expected));
        };
        failed(&file, "Directory", "a directory");
        failed(&missing, "Directory", "a directory");
        failed(&file, "DirectoryOrCreate", "a directory");
        failed(&dir, "File", "a file");
        failed(&missing, "File", "a file");
        failed(&file, "Socket", "a socket file");
        failed(&file, "CharDevice", "a character device");
        failed(&file, "BlockDevice", "a block device");
        assert_eq!(prepare(Path::new("/dev/null"), "CharDevice"), Ok(()));
        assert_eq!(prepare(&file, ""), Ok(()));
        assert!(!missing.exists());
    }

    #[test]
    fn only_the_creating_types_create() {
        let dir = TempDir::new();
        prepare(&dir.join("a/b"), "DirectoryOrCreate").unwrap();
        prepare(&dir.join("a/f"), "FileOrCreate").unwrap();
        assert!(dir.join("a/b").is_dir() && dir.join("a/f").is_file());
        assert!(prepare(&dir.join("no/parent"), "FileOrCreate").is_err(), "parents are not created");
    }

    #[test]
    fn a_declared_disk_must_be_mounted() {
        let fstab = "# disks\n/dev/sda1 / ext4 defaults 0 1\nUUID=1 /mnt/XS1 ext4 defaults 0 2\n/dev/cd /cd iso9660 noauto,ro\nUUID=2 none swap sw\nUUID=3 /mnt/My\\040Disk ext4\n";
        let declared = declared(fstab, &["[Mount]\nWhere=/srv/nfs\nWhat=nas:/x\n".to_owned()]);
        assert_eq!(declared, [Path::new("/mnt/XS1"), Path::new("/mnt/My Disk"), Path::new("/srv/nfs")]);
        let waits = |path: &str, mounted: &[&str]| {
            let mounted: Vec<PathBuf> = mounted.iter().map(PathBuf::from).collect();
            unmounted(Path::new(path), &declared, &mounted).map(|place| place.display().to_string())
        };
        assert_eq!(waits("/mnt/XS1/books", &[]).as_deref(), Some("/mnt/XS1"));
        assert_eq!(waits("/mnt/XS1/books", &["/mnt/XS1"]), None);
        assert_eq!(waits("/mnt/XS10", &[]), None);
    }
}

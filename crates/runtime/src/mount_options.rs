//! The options of an OCI mount, as attributes, propagation and file system data.
//!
//! Source: runtime-spec config.md, "Linux mount options"; the names are mount(8)'s, with `r…` for recursive attributes.

use crate::sys::MountAttr;

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
/// The access time modes are one field of the attributes; relatime is its zero.
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// `bind` or `rbind`.
    pub bind: bool,
    /// `rbind`: mounts below the source come along.
    pub deep: bool,
    pub attributes: Attributes,
    /// Attributes of the mount and all below it (`rro` and so on).
    pub recursive: Attributes,
    /// `MS_PRIVATE` and so on, and whether it goes for the mounts below.
    pub propagation: Option<(u64, bool)>,
    /// Everything else, for the file system: `size=64m` or a flag.
    pub data: Vec<(String, Option<String>)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    fn apply(&mut self, (set, clear): (u64, u64)) {
        self.set = (self.set & !clear) | set;
        self.clear |= clear;
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Attributes::default()
    }

    pub(crate) fn attr(self) -> MountAttr {
        MountAttr { set: self.set, clear: self.clear, ..MountAttr::default() }
    }
}

/// Reads a list of options. Never fails: what is no known word is data for the file system, which refuses what it does not know.
pub(crate) fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        if let Some(change) = attribute(option) {
            parsed.attributes.apply(change);
        } else if let Some(change) = option.strip_prefix('r').and_then(attribute) {
            parsed.recursive.apply(change);
        } else if let Some(propagation) = propagation(option) {
            parsed.propagation = Some(propagation);
        } else {
            match option.as_str() {
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.deep) = (true, true),
                "defaults" => {}
                _ => parsed.data.push(match option.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (option.clone(), None),
                }),
            }
        }
    }
    parsed
}

fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (RDONLY, 0),
        "rw" => (0, RDONLY),
        "nosuid" => (NOSUID, 0),
        "suid" => (0, NOSUID),
        "nodev" => (NODEV, 0),
        "dev" => (0, NODEV),
        "noexec" => (NOEXEC, 0),
        "exec" => (0, NOEXEC),
        "nodiratime" => (NODIRATIME, 0),
        "diratime" => (0, NODIRATIME),
        "nosymfollow" => (NOSYMFOLLOW, 0),
        "symfollow" => (0, NOSYMFOLLOW),
        "noatime" => (NOATIME, ATIME),
        "strictatime" => (STRICTATIME, ATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, ATIME),
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<(u64, bool)> {
    let (kind, deep) = match option {
        "private" => (libc::MS_PRIVATE, false),
        "rprivate" => (libc::MS_PRIVATE, true),
        "slave" => (libc::MS_SLAVE, false),
        "rslave" => (libc::MS_SLAVE, true),
        "shared" => (libc::MS_SHARED, false),
        "rshared" => (libc::MS_SHARED, true),
        "unbindable" => (libc::MS_UNBINDABLE, false),
        "runbindable" => (libc::MS_UNBINDABLE, true),
        _ => return None,
    };
    Some((kind, deep))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &str) -> MountOptions {
        parse(&options.split(',').map(ToOwned::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn binds_carry_attributes_and_propagation() {
        let parsed = of("rbind,rslave,ro,nosuid");
        assert!(parsed.bind && parsed.deep);
        assert_eq!(parsed.attributes, Attributes { set: RDONLY | NOSUID, clear: 0 });
        assert_eq!(parsed.propagation, Some((libc::MS_SLAVE, true)));
        assert!(parsed.data.is_empty());
    }

    #[test]
    fn recursive_read_only_is_apart_from_read_only() {
        let parsed = of("rbind,rro");
        assert!(parsed.attributes.is_empty());
        assert_eq!(parsed.recursive.set, RDONLY);
    }

    #[test]
    fn the_rest_is_the_file_systems() {
        let data = of("size=64m,mode=1777,newinstance").data;
        let expected = [("size", Some("64m")), ("mode", Some("1777")), ("newinstance", None)];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.map(ToOwned::to_owned)));
        assert_eq!(data, expected);
    }

    #[test]
    fn the_last_word_wins() {
        assert_eq!(of("ro,rw").attributes, Attributes { set: 0, clear: RDONLY });
        assert_eq!(of("rw,ro").attributes.set, RDONLY);
    }
}

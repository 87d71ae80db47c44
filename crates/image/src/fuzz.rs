//! Ways into this crate's private parsers, for the fuzz targets and the replay of their corpora.

use std::io::Read;
use std::os::fd::OwnedFd;

use crate::unpack::tar::{Kind, Reader};
use crate::unpack::{Limits, unpack};
use crate::{config, manifest};

/// As much content as one input may unfold to.
const CONTENT: u64 = 1 << 20;

/// Plans a layer without touching anything: reads all entries and their content.
///
/// # Panics
/// When an entry could name something outside of its layer.
pub fn tar(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    while let Ok(Some(entry)) = reader.next() {
        let named = |path: &[Vec<u8>]| path.iter().all(|name| is_name(name));
        assert!(named(&entry.path), "{entry:?}");
        if let Kind::HardLink(target) = &entry.kind {
            assert!(named(target), "{entry:?}");
        }
        let mut content = Vec::new();
        let read = (&mut reader).take(CONTENT).read_to_end(&mut content);
        assert!(read.is_err() || content.len() as u64 == entry.size.min(CONTENT), "{entry:?}");
    }
}

/// Whether a name stays in the directory that it is looked up in.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

/// Unpacks a layer into `root`, as the confined child does after confining itself. True when it was accepted.
pub fn layer(bytes: &[u8], root: OwnedFd) -> bool {
    let limits = Limits { entries: 64, bytes: CONTENT, ratio: 250, ratio_free_bytes: CONTENT };
    unpack(bytes, root, &limits).is_ok()
}

/// Reads a manifest or an index as each of the types that it may be served as.
pub fn manifest(bytes: &[u8]) {
    for media_type in [
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        if let Ok(manifest::Document::Index(manifests)) = manifest::parse(bytes, media_type)
            && let Ok(chosen) = manifest::select(&manifests, &manifest::host_platform())
        {
            assert!(manifests.contains(chosen));
        }
    }
}

/// Reads an image's configuration.
pub fn config(bytes: &[u8]) -> bool {
    config::parse(bytes).is_ok()
}

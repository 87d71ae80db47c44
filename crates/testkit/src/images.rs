//! Builds OCI images in memory: layers from a file tree, a configuration, a manifest; and the archives that tools save.
//!
//! Source: OCI image-spec 1.1; `docker save`'s archive as in `moby/moby`, `image/tarexport`.

use std::io::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Modification time of everything built here: images built twice have one digest.
const MTIME: u64 = 1_700_000_000;

/// Content with the type and digest by which others refer to it.
#[derive(Clone, Debug)]
pub struct Blob {
    pub media_type: String,
    pub bytes: Arc<[u8]>,
    /// `sha256:…`
    pub digest: String,
}

impl Blob {
    pub fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Blob {
        Blob { media_type: media_type.into(), digest: digest(&bytes), bytes: bytes.into() }
    }

    pub fn json(media_type: &str, value: &Value) -> Blob {
        Blob::new(media_type, value.to_string().into_bytes())
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// `sha256:…` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    fn suffix(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        }
    }

    pub fn compress(self, bytes: &[u8]) -> Vec<u8> {
        let never = "writing to memory cannot fail";
        match self {
            Compression::None => bytes.to_vec(),
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(bytes).expect(never);
                encoder.finish().expect(never)
            }
            Compression::Zstd => zstd::encode_all(bytes, 3).expect(never),
        }
    }
}

/// One image, ready to be served or saved.
#[derive(Clone, Debug)]
pub struct BuiltImage {
    pub manifest: Blob,
    /// Its digest is the image's id.
    pub config: Blob,
    /// Compressed, lowest first.
    pub layers: Vec<Blob>,
    /// The same layers uncompressed.
    pub tars: Vec<Arc<[u8]>>,
}

impl BuiltImage {
    /// `config` is the `config` member of the image's configuration, such as `{"User": "1000", "Cmd": ["sh"]}`.
    pub fn new(config: Value, tars: &[Vec<u8>], compression: Compression) -> BuiltImage {
        BuiltImage::for_platform("linux", architecture(), config, tars, compression)
    }

    pub fn for_platform(
        os: &str,
        architecture: &str,
        config: Value,
        tars: &[Vec<u8>],
        compression: Compression,
    ) -> BuiltImage {
        let config = json!({
            "created": "2023-11-14T22:13:20Z",
            "architecture": architecture,
            "os": os,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": tars.iter().map(|tar| digest(tar)).collect::<Vec<_>>()},
            "history": tars.iter().map(|_| json!({"created_by": "testkit"})).collect::<Vec<_>>(),
        });
        let media_type = format!("{OCI_LAYER}{}", compression.suffix());
        let layers: Vec<Blob> =
            tars.iter().map(|tar| Blob::new(media_type.clone(), compression.compress(tar))).collect();
        BuiltImage::from_parts(Blob::json(OCI_CONFIG, &config), layers, tars)
    }

    /// An image whose manifest says what it is told, true or not.
    pub fn from_parts(config: Blob, layers: Vec<Blob>, tars: &[Vec<u8>]) -> BuiltImage {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        BuiltImage {
            manifest: Blob::json(OCI_MANIFEST, &manifest),
            config,
            layers,
            tars: tars.iter().map(|tar| tar.as_slice().into()).collect(),
        }
    }

    /// The same image with other layers on top and members of `config` replaced. What is below stays as it is.
    pub fn extend(&self, config: &Value, more: &[Vec<u8>], compression: Compression) -> BuiltImage {
        let mut base: Value = serde_json::from_slice(&self.config.bytes).expect("built here");
        for (key, value) in config.as_object().into_iter().flatten() {
            base["config"][key] = value.clone();
        }
        let mut layers = self.layers.clone();
        for tar in more {
            let layer = Blob::new(format!("{OCI_LAYER}{}", compression.suffix()), compression.compress(tar));
            let of_tar = if compression == Compression::None { layer.digest.clone() } else { digest(tar) };
            for (list, entry) in [("/rootfs/diff_ids", json!(of_tar)), ("/history", json!({"created_by": "testkit"}))] {
                base.pointer_mut(list).and_then(Value::as_array_mut).expect("built here").push(entry);
            }
            layers.push(layer);
        }
        let built = BuiltImage::from_parts(Blob::json(OCI_CONFIG, &base), layers, more);
        BuiltImage { tars: self.tars.iter().cloned().chain(built.tars).collect(), ..built }
    }

    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config])
    }
}

/// An image index over manifests, with `(os, architecture)` of each.
pub fn index(images: &[(&str, &str, &BuiltImage)]) -> Blob {
    let manifests: Vec<Value> = images
        .iter()
        .map(|(os, architecture, image)| {
            let mut descriptor = image.manifest.descriptor();
            descriptor["platform"] = json!({"os": os, "architecture": architecture});
            descriptor
        })
        .collect();
    Blob::json(OCI_INDEX, &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}))
}

/// This machine's architecture in OCI's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An OCI layout in a tar, as `podman save --format oci-archive` and `skopeo copy … oci-archive:` write it.
pub fn oci_archive(images: &[(&str, &BuiltImage)]) -> Vec<u8> {
    let mut archive = Layer::new().dir("blobs", 0o755).dir("blobs/sha256", 0o755);
    let mut manifests = Vec::new();
    for (name, image) in images {
        let mut descriptor = image.manifest.descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        manifests.push(descriptor);
        for blob in image.blobs().chain([&image.manifest]) {
            archive = archive.file(&blob.digest.replacen("sha256:", "blobs/sha256/", 1), 0o644, &blob.bytes);
        }
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    archive
        .file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", 0o644, index.as_bytes())
        .finish()
}

/// A docker archive, as `podman save` and `docker save` before 25 write it; `manifest.json` comes last.
pub fn docker_archive(images: &[(&str, &BuiltImage)]) -> Vec<u8> {
    let mut archive = Layer::new();
    let mut manifest = Vec::new();
    for (name, image) in images {
        let mut layers = Vec::new();
        for tar in &image.tars {
            let path = format!("{}.tar", digest(tar).replacen("sha256:", "", 1));
            archive = archive.file(&path, 0o644, tar);
            layers.push(path);
        }
        let config = format!("{}.json", image.config.digest.replacen("sha256:", "", 1));
        archive = archive.file(&config, 0o644, &image.config.bytes);
        manifest.push(json!({"Config": config, "RepoTags": [name], "Layers": layers}));
    }
    archive.file("manifest.json", 0o644, Value::from(manifest).to_string().as_bytes()).finish()
}

/// A layer's tar, entry by entry. Entries belong to root until [`Layer::owner`] says otherwise.
#[derive(Debug)]
pub struct Layer {
    tar: Vec<u8>,
    uid: u64,
    gid: u64,
}

impl Default for Layer {
    fn default() -> Layer {
        Layer::new()
    }
}

impl Layer {
    pub fn new() -> Layer {
        Layer { tar: Vec::new(), uid: 0, gid: 0 }
    }

    /// Owner of the entries that follow.
    pub fn owner(mut self, uid: u64, gid: u64) -> Layer {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn dir(self, path: &str, mode: u32) -> Layer {
        self.entry(EntryType::Directory, path, "", mode, &[])
    }

    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Layer {
        self.entry(EntryType::Regular, path, "", mode, content)
    }

    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(EntryType::Symlink, path, target, 0o777, &[])
    }

    /// `target` is a path within the layer: a program, whose mode archives repeat and containerd sets again.
    pub fn hard_link(self, path: &str, target: &str) -> Layer {
        self.entry(EntryType::Link, path, target, 0o755, &[])
    }

    pub fn char_device(self, path: &str, major: u32, minor: u32) -> Layer {
        let mut header = self.header(EntryType::Char, path, "", 0o600, 0);
        header.set_device_major(major).expect("ustar headers have devices");
        header.set_device_minor(minor).expect("ustar headers have devices");
        header.set_cksum();
        self.raw(header, &[])
    }

    pub fn fifo(self, path: &str, mode: u32) -> Layer {
        self.entry(EntryType::Fifo, path, "", mode, &[])
    }

    /// A PAX extended header for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Layer {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3; // space, equals sign, newline
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry(EntryType::XHeader, "PaxHeaders/entry", "", 0o644, &body)
    }

    /// The entry with any path and link target, escaping ones too: names are written as given.
    pub fn entry(self, kind: EntryType, path: &str, target: &str, mode: u32, content: &[u8]) -> Layer {
        let header = self.header(kind, path, target, mode, content.len() as u64);
        self.raw(header, content)
    }

    fn header(&self, kind: EntryType, path: &str, target: &str, mode: u32, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.uid);
        header.set_gid(self.gid);
        header.set_mtime(MTIME);
        header.set_size(size);
        let fields = header.as_ustar_mut().expect("made as ustar");
        // The setters of the crate refuse what hostile archives contain.
        let (prefix, name) = split(path);
        fields.prefix[..prefix.len()].copy_from_slice(prefix.as_bytes());
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        header
    }

    /// One header with its content, padded.
    pub fn raw(mut self, header: Header, content: &[u8]) -> Layer {
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end marker.
    pub fn finish(mut self) -> Vec<u8> {
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }
}

/// A path as ustar's prefix and name.
///
/// # Panics
/// When it fits neither way; tests have short paths.
fn split(path: &str) -> (&str, &str) {
    if path.len() <= 100 {
        return ("", path);
    }
    path.match_indices('/')
        .map(|(at, _)| (&path[..at], &path[at + 1..]))
        .find(|(prefix, name)| prefix.len() <= 155 && name.len() <= 100)
        .expect("paths in test layers fit a ustar header")
}

//! Importing archives: OCI layouts and docker's, as `podman save`, `docker save` and `skopeo copy` write them.
//!
//! The archive itself is unpacked by the confined child into a temporary directory; its files are then read as if they came
//! from a registry. Source: OCI image-spec 1.1, `image-layout.md`; `moby/moby`, `image/tarexport`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use serde_json::json;

use crate::config::Parsed;
use crate::digest::Digest;
use crate::manifest::{self, DOCUMENT_LIMIT, Descriptor, Document};
use crate::pull::{PullCause, check_config};
use crate::reference::Reference;

const NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// An archive's files. Its symbolic links (docker's legacy layout has some) stay inside.
pub(crate) struct Archive {
    root: OwnedFd,
}

/// One image of an archive, its layers not unpacked yet.
pub(crate) struct Member {
    pub id: Digest,
    pub parsed: Parsed,
    pub names: BTreeSet<Reference>,
    /// The digest by which it can be named.
    pub manifest: Digest,
    pub documents: BTreeMap<Digest, Bytes>,
    /// Paths of its layers in the archive, lowest first, with their descriptors when the archive has such.
    pub layers: Vec<(String, Option<Descriptor>)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Vec<Descriptor>,
}

/// One element of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    pub fn open(dir: &Path) -> std::io::Result<Archive> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Archive { root: rustix::fs::open(dir, flags, Mode::empty())? })
    }

    /// The images of the archive that run on this machine.
    ///
    /// # Errors
    /// A sentence that says what the archive lacks.
    pub fn members(&self) -> Result<Vec<Member>, String> {
        let members = if self.has("index.json") {
            self.oci_members()?
        } else if self.has("manifest.json") {
            self.docker_members()?
        } else {
            return Err("it holds neither index.json nor manifest.json".to_owned());
        };
        if members.is_empty() {
            return Err("it holds no image".to_owned());
        }
        Ok(members)
    }

    /// A file of the archive, which must be a regular one.
    pub fn file(&self, path: &str) -> Result<File, String> {
        let failed = |what: &dyn std::fmt::Display| format!("{path}: {what}");
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve).map_err(|error| failed(&error))?;
        let file = File::from(file);
        match file.metadata().map_err(|error| failed(&error))?.is_file() {
            true => Ok(file),
            false => Err(failed(&"is no regular file")),
        }
    }

    fn has(&self, path: &str) -> bool {
        self.file(path).is_ok()
    }

    fn document(&self, path: &str) -> Result<Bytes, String> {
        let mut bytes = Vec::new();
        let mut file = self.file(path)?.take(DOCUMENT_LIMIT + 1);
        file.read_to_end(&mut bytes).map_err(|error| format!("{path}: {error}"))?;
        match bytes.len() as u64 > DOCUMENT_LIMIT {
            true => Err(format!("{path}: is larger than {DOCUMENT_LIMIT} bytes")),
            false => Ok(bytes.into()),
        }
    }

    fn content(&self, descriptor: &Descriptor) -> Result<Bytes, String> {
        let path = blob_path(&descriptor.digest);
        let bytes = self.document(&path)?;
        match Digest::of(&bytes) == descriptor.digest && bytes.len() as u64 == descriptor.size {
            true => Ok(bytes),
            false => Err(format!("{path}: is not of the digest and size that it should have")),
        }
    }

    fn oci_members(&self) -> Result<Vec<Member>, String> {
        let index: Index =
            serde_json::from_slice(&self.document("index.json")?).map_err(|error| format!("index.json: {error}"))?;
        let mut members: BTreeMap<Digest, Member> = BTreeMap::new();
        for descriptor in &index.manifests {
            let Some(mut member) = self.oci_member(descriptor)? else { continue };
            let annotation = |key| descriptor.annotations.get(key).map(String::as_str);
            member.names.extend(name(annotation(FULL_NAME), annotation(NAME))?);
            match members.get_mut(&member.id) {
                Some(known) => known.names.append(&mut member.names),
                None => {
                    members.insert(member.id.clone(), member);
                }
            }
        }
        Ok(members.into_values().collect())
    }

    /// None for what is no image of this platform, such as an attestation.
    fn oci_member(&self, descriptor: &Descriptor) -> Result<Option<Member>, String> {
        let host = manifest::host_platform();
        let mut documents = BTreeMap::new();
        let mut chosen = descriptor.clone();
        for _ in 0..3 {
            if !manifest::is_index(&chosen.media_type) && !manifest::is_manifest(&chosen.media_type) {
                return Ok(None);
            }
            let bytes = self.content(&chosen)?;
            documents.insert(chosen.digest.clone(), bytes.clone());
            match manifest::parse(&bytes, &chosen.media_type)? {
                Document::Index(manifests) => match manifest::select(&manifests, &host) {
                    Ok(next) => chosen = next.clone(),
                    Err(offered) => {
                        return Err(format!(
                            "no match for platform in manifest: wanted {host}, the image offers {offered}"
                        ));
                    }
                },
                Document::Manifest { config, layers } => {
                    let raw = self.content(&config)?;
                    let parsed = check_config(&raw).map_err(|cause: PullCause| cause.to_string())?;
                    documents.insert(config.digest.clone(), raw);
                    let layers = layers.into_iter().map(|layer| (blob_path(&layer.digest), Some(layer))).collect();
                    let manifest = descriptor.digest.clone();
                    return Ok(Some(Member {
                        id: config.digest,
                        parsed,
                        names: BTreeSet::new(),
                        manifest,
                        documents,
                        layers,
                    }));
                }
            }
        }
        Err("its indexes are nested too deeply".to_owned())
    }

    fn docker_members(&self) -> Result<Vec<Member>, String> {
        let bytes = self.document("manifest.json")?;
        let images: Vec<DockerImage> =
            serde_json::from_slice(&bytes).map_err(|error| format!("manifest.json: {error}"))?;
        images.into_iter().map(|image| self.docker_member(image)).collect()
    }

    /// A docker archive has no manifest: one is made, as pushing the image would make it.
    fn docker_member(&self, image: DockerImage) -> Result<Member, String> {
        let raw = self.document(&image.config)?;
        let id = Digest::of(&raw);
        let parsed = check_config(&raw).map_err(|cause| cause.to_string())?;
        let mut layers = Vec::new();
        for (path, diff_id) in image.layers.iter().zip(&parsed.diff_ids) {
            let size = self.file(path)?.metadata().map_err(|error| format!("{path}: {error}"))?.len();
            layers
                .push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": size}));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": raw.len()},
            "layers": layers,
        });
        let manifest = Bytes::from(manifest.to_string());
        let mut names = BTreeSet::new();
        for tag in image.repo_tags.unwrap_or_default() {
            names.insert(Reference::parse(&tag).map_err(|error| format!("name {tag:?}: {error}"))?);
        }
        let manifest_digest = Digest::of(&manifest);
        let documents = BTreeMap::from([(id.clone(), raw), (manifest_digest.clone(), manifest)]);
        let layers = image.layers.into_iter().map(|path| (path, None)).collect();
        Ok(Member { id, parsed, names, manifest: manifest_digest, documents, layers })
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// containerd and docker write the full name beside the tag; podman and skopeo write what they were given.
fn name(full: Option<&str>, given: Option<&str>) -> Result<Option<Reference>, String> {
    let parse = |name: &str| Reference::parse(name).map(Some).map_err(|error| format!("name {name:?}: {error}"));
    match (full, given) {
        (Some(full), _) => parse(full),
        (None, Some(given)) if given.contains(['/', ':']) => parse(given),
        (None, _) => Ok(None), // a bare tag names nothing
    }
}

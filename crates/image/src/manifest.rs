//! Manifests and indexes: what they say, and which image of an index runs here.
//!
//! Source: OCI image-spec 1.1, `manifest.md` and `image-index.md`; Docker's schema 2. A document that could be read as
//! both a manifest and an index is refused (CVE-2021-41190).

use serde::Deserialize;

use crate::digest::Digest;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What we ask for, as the value of `Accept`.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Manifests and configurations larger than this are refused, as by containerd.
pub(crate) const DOCUMENT_LIMIT: u64 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default)]
    pub variant: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a document that was served as, or is described as, `media_type`.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(crate) fn parse(bytes: &[u8], media_type: &str) -> Result<Document, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|error| format!("manifest is not valid: {error}"))?;
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if raw.schema_version == 1 || raw.fs_layers.is_some() {
        return Err(
            "the image has a schema 1 manifest, which is obsolete: push it again with a current tool".to_owned()
        );
    }
    if raw.schema_version != 2 {
        return Err(format!("manifest is not valid: schemaVersion is {}, not 2", raw.schema_version));
    }
    if let Some(own) = &raw.media_type
        && own != media_type
    {
        return Err(format!("manifest is not valid: it says mediaType {own:?} but was served as {media_type:?}"));
    }
    match (media_type, raw.config, raw.layers, raw.manifests) {
        (OCI_MANIFEST | DOCKER_MANIFEST, Some(config), Some(layers), None) => {
            for layer in &layers {
                check_layer(layer)?;
            }
            Ok(Document::Manifest { config, layers })
        }
        (OCI_INDEX | DOCKER_LIST, None, None, Some(manifests)) => Ok(Document::Index(manifests)),
        (OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST, ..) => {
            Err("manifest is not valid: it must have either config and layers or manifests".to_owned())
        }
        _ => Err(format!("media type {media_type:?} is not that of a container image")),
    }
}

pub(crate) fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

pub(crate) fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

fn check_layer(layer: &Descriptor) -> Result<(), String> {
    match layer.media_type.as_str() {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(()),
        other => Err(format!("layer {} has media type {other:?}, which cannot be unpacked", layer.digest)),
    }
}

/// The platform of this machine, in OCI's words.
pub(crate) fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", None),
        "aarch64" => ("arm64", Some("v8".to_owned())),
        other => (other, None),
    };
    Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant }
}

/// The manifest of an index that runs on `host`, and else what it offers.
pub(crate) fn select<'a>(manifests: &'a [Descriptor], host: &Platform) -> Result<&'a Descriptor, String> {
    let runnable = |descriptor: &&Descriptor| {
        let platform = descriptor.platform.as_ref();
        let fits = platform.is_none_or(|platform| platform.os == host.os && platform.architecture == host.architecture);
        fits && (is_manifest(&descriptor.media_type) || is_index(&descriptor.media_type))
    };
    // A variant above the baseline (amd64/v3, arm64/v9) might not run: the baseline, then none named, then any.
    let rank = |descriptor: &&&Descriptor| match descriptor.platform.as_ref() {
        Some(platform) if platform.variant == host.variant || platform.variant.as_deref() == Some("v1") => 0,
        Some(platform) if platform.variant.is_none() => 1,
        Some(_) => 2,
        None => 3,
    };
    let chosen = manifests.iter().filter(runnable).collect::<Vec<_>>();
    chosen.iter().min_by_key(rank).copied().ok_or_else(|| {
        let mut offered: Vec<String> =
            manifests.iter().filter_map(|one| Some(one.platform.as_ref()?.to_string())).collect();
        offered.dedup();
        offered.join(", ")
    })
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = r#"{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":3}"#;

    #[test]
    fn ambiguous_documents_are_refused() {
        let both = format!(r#"{{"schemaVersion":2,"config":{D},"layers":[{D}],"manifests":[{D}]}}"#);
        assert!(parse(both.as_bytes(), OCI_MANIFEST).is_err());
        assert!(parse(both.as_bytes(), OCI_INDEX).is_err());
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{D},"layers":[{D}]}}"#);
        assert!(parse(manifest.as_bytes(), OCI_MANIFEST).is_ok());
        assert!(parse(manifest.as_bytes(), OCI_INDEX).is_err());
        assert!(parse(manifest.as_bytes(), "application/json").is_err());
        let other = manifest.replace("layer.v1.tar", "layer.nondistributable.v1.tar");
        assert!(parse(other.as_bytes(), OCI_MANIFEST).unwrap_err().contains("cannot be unpacked"));
        let negative = manifest.replace("\"size\":3", "\"size\":-3");
        assert!(parse(negative.as_bytes(), OCI_MANIFEST).is_err());
    }

    #[test]
    fn the_baseline_of_this_platform_is_chosen() {
        let of = |variant: &str, os: &str| {
            let platform = format!(r#"{{"os":"{os}","architecture":"amd64"{variant}}}"#);
            serde_json::from_str(
                &D.replace("image.layer.v1.tar", "image.manifest.v1+json")
                    .replace("\"size\"", &format!("\"platform\":{platform},\"size\"")),
            )
            .unwrap()
        };
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let index: Vec<Descriptor> = vec![of("", "windows"), of(r#","variant":"v3""#, "linux"), of("", "linux")];
        assert_eq!(select(&index, &host), Ok(&index[2]));
        assert_eq!(select(&index[..1], &host), Err("windows/amd64".to_owned()));
    }
}

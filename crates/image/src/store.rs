//! The images of one node: what they are called, where their layers lie, and how long they stay.
//!
//! `images.json` is the list, replaced as a whole; `content/` keeps documents as they were served, `layers/` the files.
//! Several processes may use one store at a time (`coracle image import` beside `coracle server`): changes are made under
//! `images.lock`, and each process reads the list again when it has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::access::{self, Access, Accesses, Grant};
use crate::archive::{Archive, Member};
use crate::blocking;
use crate::config::ImageConfig;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::gc::{self, Candidate, Disk, Policy};
use crate::http::Http;
use crate::layers::{LayerError, Layers, write_durably, write_durably_by};
use crate::pull::{Progress, PullCause, PullError, Puller};
use crate::reference::Reference;
use crate::registries::Registries;
use crate::unpack::Unpacker;

const FORMAT: u32 = 1;
/// Hex digits of an id that name an image, as docker and crictl print them.
const SHORT_ID: usize = 12;

/// One image that is complete on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration: the image ID of kubelet and CRI.
    pub id: Digest,
    /// Full names with tag, such as `docker.io/library/busybox:1.37`, sorted.
    pub repo_tags: Vec<String>,
    /// `name@digest` of the manifest or index pulled, sorted; imported images get that of their manifest.
    pub repo_digests: Vec<String>,
    /// Bytes of all its files on disk; layers shared with other images count in each.
    pub size: u64,
    pub config: ImageConfig,
    /// Directories for overlayfs's `lowerdir=`, in its order: the topmost layer first. Never empty, none twice.
    pub layers: Vec<PathBuf>,
    /// Never collected.
    pub pinned: bool,
    /// Who may use it without its registry being asked.
    pub accesses: Accesses,
}

/// The image store of one node. Clones are handles to the same store.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    registries: Registries,
    http: Http,
    layers: Arc<Layers>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Device, inode and time of the list that `records` were read from.
    read_from: Option<(u64, u64, i64, i64)>,
    records: Vec<Record>,
    images: Vec<Arc<Image>>,
    uses: HashMap<Digest, Use>,
    /// How many hold an image.
    holds: HashMap<Digest, u32>,
}

/// Keeps an image from removal and collection by this process until it is dropped: a container runs on its layers.
pub struct Hold {
    store: ImageStore,
    id: Digest,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store.mark_used(&self.id);
        let mut state = self.store.inner.state();
        if let Some(count) = state.holds.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                state.holds.remove(&self.id);
            }
        }
    }
}

/// Known to this process only, as in the kubelet.
#[derive(Clone, Copy)]
struct Use {
    first_seen: SystemTime,
    last_used: SystemTime,
}

#[derive(Serialize, Deserialize)]
struct List {
    format: u32,
    images: Vec<Record>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    id: Digest,
    names: BTreeSet<String>,
    digests: BTreeSet<String>,
    /// Lowest first, as in the configuration.
    layers: Vec<Digest>,
    config: ImageConfig,
    pinned: bool,
    #[serde(default, skip_serializing_if = "Accesses::is_empty")]
    accesses: Accesses,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{context}: {source}")]
    Io { context: String, source: io::Error },
    #[error("image store {path:?} has format {found}, this release reads {FORMAT}; its content is left as it is")]
    Format { path: PathBuf, found: String },
    /// Only a disk that loses what was synced, or an editor, brings this about.
    #[error("the list of images {path:?} is damaged: {source}")]
    Damaged { path: PathBuf, source: serde_json::Error },
    #[error("image {0:?} is not on this node")]
    NoSuchImage(String),
    #[error("image {0:?} is in use by a container: delete its pods first")]
    InUse(String),
}

/// Why an archive was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("not an OCI or docker image archive: {0}")]
    Archive(String),
    #[error("failed to extract layer {layer}: {message}")]
    Unpack { layer: Digest, message: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the store occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
    pub disk: Disk,
}

/// What a collection did.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    pub images: Vec<Arc<Image>>,
    /// Of layers that no image needs any more.
    pub freed_bytes: u64,
    /// What the thresholds asked for, and what unused images could give: `eligible < wanted` is worth an event.
    pub wanted_bytes: u64,
    pub eligible_bytes: u64,
}

impl ImageStore {
    /// Opens or makes the store in `dir`, discards what was left half done, and after a reboot that was not announced by
    /// [`ImageStore::close`] checks every layer.
    ///
    /// Layers that are damaged are deleted; the images that need them vanish from the list and are pulled again on use.
    /// Blocks: call it from a blocking context.
    ///
    /// # Errors
    /// When the directory cannot be used, or is of another format.
    pub fn open(dir: &Path, registries: Registries, unpacker: Unpacker) -> Result<ImageStore, StoreError> {
        let io =
            |source| StoreError::Io { context: format!("could not open the image store {}", dir.display()), source };
        fs::create_dir_all(dir.join("content")).map_err(io)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
        let dir = fs::canonicalize(dir).map_err(io)?;
        let layers = Arc::new(Layers::new(&dir, unpacker));
        let inner = Inner { dir, registries, http: Http::default(), layers, state: Mutex::default() };
        inner.read_or_set_aside_list()?; // an unknown format is refused before anything is touched
        inner.layers.open().map_err(io)?;
        inner.verify_after_crash().map_err(io)?;
        inner.state().read_from = None;
        let store = ImageStore { inner: Arc::new(inner) };
        store.inner.refresh()?;
        Ok(store)
    }

    /// Notes that this shutdown is an orderly one, so that the next start after a reboot need not check the layers. Blocks.
    ///
    /// # Errors
    /// When the note cannot be written; nothing is lost but the time of a check.
    pub fn close(&self) -> Result<(), StoreError> {
        let note = || {
            let _lock = self.inner.lock()?;
            write_durably(&self.inner.dir.join("boot"), format!("{} clean\n", boot_id()?).as_bytes())
        };
        note().map_err(|source| StoreError::Io { context: "could not close the image store".to_owned(), source })
    }

    /// Pulls an image, or what is missing of it, and gives it `reference` as a name.
    ///
    /// `credentials` are tried before those of `registries.yaml`, then none. Pulls of the same layer at the same time
    /// share one transfer. Cancel safe: a dropped pull leaves nothing but finished layers.
    ///
    /// # Errors
    /// With the message for users.
    pub async fn pull(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, PullError> {
        let pulled = self.pull_inner(reference, credentials, progress).await;
        pulled.map_err(|cause| PullError { image: reference.to_string(), cause })
    }

    async fn pull_inner(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, PullCause> {
        if reference.is_local() {
            let name = reference.to_string();
            return self.get(&name).ok_or(PullCause::LocalOnly { image: name });
        }
        let disk = |source| PullCause::Disk { context: "could not use the image store".to_owned(), source };
        let inner = Arc::clone(&self.inner);
        let adding = blocking(move || inner.layers.adding()).await.map_err(disk)?;
        let puller = Puller { http: &self.inner.http, registries: &self.inner.registries, layers: &self.inner.layers };
        let resolved = puller.resolve(reference, credentials).await?;
        let repo_digest = format!("{}@{}", reference.name(), resolved.digest);
        let accesses = Accesses::from([(reference.name(), resolved.access.clone())]);
        let names = match &reference.digest {
            Some(_) => BTreeSet::new(),
            None => BTreeSet::from([reference.to_string()]),
        };
        let known = self.inner.by_manifest(&resolved.digest);
        let (mut record, documents) = match known {
            Some(record) => (record, BTreeMap::new()),
            None => {
                let pulled = puller.fetch(reference, resolved, progress).await?;
                (Record::new(pulled.id, pulled.parsed.diff_ids, pulled.parsed.config), pulled.documents)
            }
        };
        (record.names, record.digests, record.accesses) = (names, BTreeSet::from([repo_digest]), accesses);
        let inner = Arc::clone(&self.inner);
        let added = blocking(move || inner.add(record, &documents)).await;
        drop(adding);
        added.map_err(|error| match error {
            StoreError::Io { context, source } => PullCause::Disk { context, source },
            other => {
                PullCause::Disk { context: "could not keep the image".to_owned(), source: io::Error::other(other) }
            }
        })
    }

    /// Lets whoever has these credentials use the image under this name without asking the registry.
    ///
    /// # Errors
    /// When the list cannot be written: the registry is asked then.
    pub async fn grant(&self, id: &Digest, name: &Reference, grant: Grant) -> Result<(), StoreError> {
        let (inner, id, name) = (Arc::clone(&self.inner), id.clone(), name.name());
        blocking(move || {
            inner.update(|records| {
                for record in records.iter_mut().filter(|record| record.id == id) {
                    access::add(&mut record.accesses, name.clone(), Access::Secrets(vec![grant.clone()]));
                }
            })
        })
        .await
    }

    /// The image of this name as users write it, or of this id (`sha256:…` or 12 or more hex digits of it).
    pub fn get(&self, name_or_id: &str) -> Option<Arc<Image>> {
        let images = self.list();
        images.iter().position(|image| is_called(image, name_or_id)).map(|at| Arc::clone(&images[at]))
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        if let Err(error) = self.inner.refresh() {
            tracing::error!(%error, "could not read the list of images; it is shown as it was");
        }
        self.inner.state().images.clone()
    }

    /// Takes the name away; the image itself with its last name, or at once when an id is given.
    ///
    /// Layers that other images need stay.
    ///
    /// # Errors
    /// When there is no such image, a container uses it, or the list cannot be written.
    pub async fn remove(&self, name_or_id: &str) -> Result<(), StoreError> {
        let image = self.get(name_or_id).ok_or_else(|| StoreError::NoSuchImage(name_or_id.to_owned()))?;
        let name = Reference::parse(name_or_id).ok().map(|name| name.to_string());
        let (inner, given) = (Arc::clone(&self.inner), name_or_id.to_owned());
        blocking(move || {
            let held = |id: &Digest| inner.state().holds.contains_key(id);
            inner.update(|records| {
                let Some(at) = records.iter().position(|record| record.id == image.id) else { return Ok(()) };
                let record = &mut records[at];
                let named = name.filter(|name| record.names.contains(name));
                match named {
                    Some(name) if record.names.len() > 1 => {
                        record.names.remove(&name);
                    }
                    _ if held(&image.id) => return Err(StoreError::InUse(given)),
                    _ => {
                        records.remove(at);
                    }
                }
                Ok(())
            })??;
            inner.sweep().map(drop)
        })
        .await
    }

    /// Keeps the image on this node while a container is made from it and runs. Adopted containers are held anew.
    pub fn hold(&self, id: &Digest) -> Hold {
        self.mark_used(id);
        *self.inner.state().holds.entry(id.clone()).or_default() += 1;
        Hold { store: self.clone(), id: id.clone() }
    }

    /// Imports an OCI layout or docker archive (`podman save`, `docker save`), plain, gzip or zstd.
    ///
    /// # Errors
    /// When it is neither, or its content is not what its digests say.
    pub async fn import(&self, mut archive: impl AsyncRead + Send + Unpin) -> Result<Vec<Arc<Image>>, ImportError> {
        let disk = |source| StoreError::Io { context: "could not use the image store".to_owned(), source };
        let inner = Arc::clone(&self.inner);
        let (adding, mut unpacking) = blocking(move || {
            let adding = inner.layers.adding().map_err(disk)?;
            inner.layers.begin().map(|unpacking| (adding, unpacking)).map_err(import_failed)
        })
        .await?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match archive.read(&mut buffer).await {
                Ok(0) => break,
                Ok(got) => unpacking.write(&buffer[..got]).await,
                Err(error) => return Err(ImportError::Archive(format!("could not read it: {error}"))),
            }
        }
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let filled = unpacking.finish().map_err(import_failed)?;
            let archive = Archive::open(&filled.scratch.path.join("fs")).map_err(disk)?;
            let members = archive.members().map_err(ImportError::Archive)?;
            let imported = members.into_iter().map(|member| inner.import_member(&archive, member)).collect();
            drop(adding);
            imported
        })
        .await
    }

    /// Notes that a container was made from the image; garbage collection prefers images unused for longest.
    pub fn mark_used(&self, id: &Digest) {
        let now = SystemTime::now();
        let mut state = self.inner.state();
        state.uses.entry(id.clone()).or_insert(Use { first_seen: now, last_used: now }).last_used = now;
    }

    /// Keeps the image from collection, or no longer.
    ///
    /// # Errors
    /// When there is no such image, or the list cannot be written.
    pub async fn pin(&self, id: &Digest, pinned: bool) -> Result<(), StoreError> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        blocking(move || {
            let found = inner.update(|records| {
                let record = records.iter_mut().find(|record| record.id == id);
                record.map(|record| record.pinned = pinned).is_some()
            })?;
            found.then_some(()).ok_or_else(|| StoreError::NoSuchImage(id.to_string()))
        })
        .await
    }

    /// Deletes images by `policy`, never one that is held or whose id is in `in_use`, and layers that no image needs.
    ///
    /// # Errors
    /// When the disk cannot be read or the list not be written.
    pub async fn collect(&self, policy: &Policy, in_use: &BTreeSet<Digest>) -> Result<Collected, StoreError> {
        let now = SystemTime::now();
        let in_use: BTreeSet<Digest> = in_use.iter().chain(self.inner.state().holds.keys()).cloned().collect();
        for id in &in_use {
            self.mark_used(id);
        }
        let disk = self.inner.disk()?;
        let images = self.list();
        let candidates: Vec<Candidate> = {
            let mut state = self.inner.state();
            let mut candidate = |image: &Arc<Image>| {
                let unseen = Use { first_seen: now, last_used: now };
                let Use { first_seen, last_used } = *state.uses.entry(image.id.clone()).or_insert(unseen);
                let (id, size, pinned) = (image.id.clone(), image.size, image.pinned);
                Candidate { in_use: in_use.contains(&id), id, size, pinned, first_seen, last_used }
            };
            images.iter().map(&mut candidate).collect()
        };
        let decision = gc::decide(policy, disk, &candidates, now);
        let doomed: BTreeSet<Digest> = decision.delete.iter().cloned().collect();
        let inner = Arc::clone(&self.inner);
        let freed_bytes = blocking(move || {
            if !doomed.is_empty() {
                inner.update(|records| {
                    // A container may have been made since the decision.
                    let held = |id: &Digest| inner.state().holds.contains_key(id);
                    records.retain(|record| record.pinned || held(&record.id) || !doomed.contains(&record.id));
                })?;
            }
            inner.sweep()
        })
        .await?;
        let images = images.into_iter().filter(|image| decision.delete.contains(&image.id)).collect();
        let gc::Decision { wanted_bytes, eligible_bytes, .. } = decision;
        Ok(Collected { images, freed_bytes, wanted_bytes, eligible_bytes })
    }

    /// # Errors
    /// When the disk cannot be read.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let io = |source| StoreError::Io { context: "could not read the image store".to_owned(), source };
        let layers = self.inner.layers.all().map_err(io)?;
        let trees = layers.iter().filter_map(|diff_id| self.inner.layers.tree(diff_id));
        let (bytes, inodes) =
            trees.fold((0, 0), |(bytes, inodes), tree| (bytes + tree.disk_bytes, inodes + tree.entries));
        Ok(Usage { bytes, inodes, disk: self.inner.disk()? })
    }
}

impl Record {
    fn new(id: Digest, layers: Vec<Digest>, config: ImageConfig) -> Record {
        let (names, digests) = (BTreeSet::new(), BTreeSet::new());
        Record { id, names, digests, layers, config, pinned: false, accesses: Accesses::new() }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> Result<Disk, StoreError> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|error| StoreError::Io {
            context: "could not read the image store's disk".to_owned(),
            source: error.into(),
        })?;
        Ok(Disk { capacity_bytes: stat.f_blocks * stat.f_frsize, available_bytes: stat.f_bavail * stat.f_frsize })
    }

    /// Reads the list again if another process has replaced it.
    fn refresh(&self) -> Result<(), StoreError> {
        self.read_list(&mut self.state())
    }

    fn read_list(&self, state: &mut State) -> Result<(), StoreError> {
        let path = self.dir.join("images.json");
        let io = |source| StoreError::Io { context: format!("could not read {}", path.display()), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (state.read_from, state.records, state.images) = (None, Vec::new(), Vec::new());
                return Ok(());
            }
            Err(error) => return Err(io(error)),
        };
        let meta = file.metadata().map_err(io)?;
        let version = (meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec());
        if state.read_from == Some(version) {
            return Ok(());
        }
        let damaged = |source: serde_json::Error| match source.is_io() {
            true => io(source.into()),
            false => StoreError::Damaged { path: path.clone(), source },
        };
        let value: serde_json::Value = serde_json::from_reader(io::BufReader::new(file)).map_err(damaged)?;
        if value.get("format").and_then(serde_json::Value::as_u64) != Some(FORMAT.into()) {
            let found = value.get("format").map_or_else(|| "unknown".to_owned(), ToString::to_string);
            return Err(StoreError::Format { path: self.dir.clone(), found });
        }
        let list: List = serde_json::from_value(value).map_err(damaged)?;
        let now = SystemTime::now();
        state.images = list.images.iter().filter_map(|record| self.image(record)).map(Arc::new).collect();
        state.images.sort_by(|a, b| a.id.cmp(&b.id));
        state.records = list.images;
        state.read_from = Some(version);
        let State { images, uses, .. } = state;
        uses.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            uses.entry(image.id.clone()).or_insert(Use { first_seen: now, last_used: now });
        }
        Ok(())
    }

    /// Images are pulled again; a node that does not start over a lost list helps nobody.
    fn read_or_set_aside_list(&self) -> Result<(), StoreError> {
        match self.refresh() {
            Err(StoreError::Damaged { path, source }) => {
                let aside = path.with_extension("json.damaged");
                tracing::error!(error = %source, kept = %aside.display(), "the list of images is damaged; images are pulled again, imported ones must be imported again");
                let io = |source| StoreError::Io { context: format!("could not set {} aside", path.display()), source };
                fs::rename(&path, aside).map_err(io)?;
                self.refresh()
            }
            read => read,
        }
    }

    /// None when a layer is missing.
    fn image(&self, record: &Record) -> Option<Image> {
        let mut size = 0;
        let mut layers = Vec::new();
        // A layer that stands twice shows only where it is topmost; overlayfs refuses a directory given twice.
        let mut seen = BTreeSet::new();
        for diff_id in record.layers.iter().rev().filter(|diff_id| seen.insert(*diff_id)) {
            size += self.layers.tree(diff_id)?.disk_bytes;
            layers.push(self.layers.path(diff_id));
        }
        Some(Image {
            id: record.id.clone(),
            repo_tags: record.names.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size,
            config: record.config.clone(),
            layers,
            pinned: record.pinned,
            accesses: record.accesses.clone(),
        })
    }

    /// Keeps other processes from changing the list and the note about the boot.
    fn lock(&self) -> io::Result<File> {
        let lock = File::options().create(true).truncate(false).write(true).open(self.dir.join("images.lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        Ok(lock)
    }

    /// Changes the list under its lock and makes the change durable. Blocks.
    fn update<T>(&self, change: impl FnOnce(&mut Vec<Record>) -> T) -> Result<T, StoreError> {
        let io = |source| StoreError::Io { context: "could not write the list of images".to_owned(), source };
        let _lock = self.lock().map_err(io)?;
        self.refresh()?;
        let mut records = self.state().records.clone();
        let result = change(&mut records);
        // Images whose layers were lost are forgotten when the list is written next.
        records.retain(|record| record.layers.iter().all(|diff_id| self.layers.tree(diff_id).is_some()));
        let list = serde_json::to_vec_pretty(&List { format: FORMAT, images: records }).expect("records become JSON");
        write_durably(&self.dir.join("images.json"), &list).map_err(io)?;
        self.refresh()?;
        Ok(result)
    }

    /// Adds an image whose layers are here, or names to one; a name that another image had moves here. Blocks.
    fn add(&self, record: Record, documents: &BTreeMap<Digest, Bytes>) -> Result<Arc<Image>, StoreError> {
        for (digest, bytes) in documents {
            let path = self.dir.join("content").join(digest.hex());
            if !path.exists() {
                let io = |source| StoreError::Io { context: format!("could not keep {digest}"), source };
                let scratch = self.layers.scratch().map_err(io)?;
                write_durably_by(&scratch.path.join("document"), &path, bytes).map_err(io)?;
            }
        }
        let id = record.id.clone();
        self.update(|records| {
            for other in records.iter_mut().filter(|other| other.id != record.id) {
                other.names.retain(|name| !record.names.contains(name));
            }
            match records.iter_mut().find(|known| known.id == record.id) {
                Some(known) => {
                    // Names that nobody pulled, out of an archive, stay for everybody beside those that somebody did.
                    let unpulled = known.digests.union(&record.digests).filter_map(|digest| digest.split_once('@'));
                    let unpulled = unpulled.filter(|(name, _)| !record.accesses.contains_key(*name));
                    for (name, _) in unpulled {
                        known.accesses.entry(name.to_owned()).or_insert(Access::Everybody);
                    }
                    known.names.extend(record.names);
                    known.digests.extend(record.digests);
                    known.config = record.config;
                    for (name, access) in record.accesses {
                        access::add(&mut known.accesses, name, access);
                    }
                }
                None => records.push(record),
            }
        })?;
        let found = self.state().images.iter().find(|image| image.id == id).cloned();
        found.ok_or_else(|| StoreError::NoSuchImage(id.to_string()))
    }

    /// The complete image behind a manifest that was pulled before.
    fn by_manifest(&self, digest: &Digest) -> Option<Record> {
        let state = self.state();
        let suffix = format!("@{digest}");
        let record = state.records.iter().find(|record| record.digests.iter().any(|name| name.ends_with(&suffix)))?;
        state.images.iter().any(|image| image.id == record.id).then(|| record.clone())
    }

    /// Deletes layers and documents that no image needs, unless somebody adds some just now. Blocks.
    fn sweep(&self) -> Result<u64, StoreError> {
        let io = |source| StoreError::Io { context: "could not delete unused layers".to_owned(), source };
        let Some(alone) = self.layers.alone().map_err(io)? else { return Ok(0) };
        self.refresh()?;
        let (needed, documents) = {
            let state = self.state();
            let needed: BTreeSet<Digest> =
                state.records.iter().flat_map(|record| record.layers.iter().cloned()).collect();
            let named = state.records.iter().flat_map(|record| &record.digests);
            let manifests = named.filter_map(|name| name.split_once('@')?.1.parse().ok());
            let documents: BTreeSet<Digest> =
                state.records.iter().map(|record| record.id.clone()).chain(manifests).collect();
            (needed, documents)
        };
        let (freed, gone) = self.layers.sweep(&needed, &alone).map_err(io)?;
        for entry in fs::read_dir(self.dir.join("content")).map_err(io)? {
            let entry = entry.map_err(io)?;
            let digest = entry.file_name().to_str().and_then(|name| format!("sha256:{name}").parse().ok());
            if !digest.is_some_and(|digest: Digest| documents.contains(&digest)) {
                fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        drop(alone);
        drop(gone);
        Ok(freed)
    }

    fn import_member(&self, archive: &Archive, member: Member) -> Result<Arc<Image>, ImportError> {
        let Member { id, parsed, names, manifest, documents, layers } = member;
        if layers.len() != parsed.diff_ids.len() {
            let (layers, ids) = (layers.len(), parsed.diff_ids.len());
            return Err(ImportError::Archive(format!("an image has {layers} layers, its configuration {ids}")));
        }
        for ((path, descriptor), diff_id) in layers.iter().zip(&parsed.diff_ids) {
            if self.layers.tree(diff_id).is_some() {
                continue;
            }
            let failed = |error| match error {
                LayerError::Refused(message) => ImportError::Unpack { layer: diff_id.clone(), message },
                LayerError::Io { context, source } => StoreError::Io { context, source }.into(),
            };
            let mut unpacking = self.layers.begin().map_err(failed)?;
            let mut file = archive.file(path).map_err(ImportError::Archive)?;
            let mut hasher = Sha256::new();
            let mut size = 0;
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let got =
                    io::Read::read(&mut file, &mut buffer).map_err(|error| ImportError::Archive(error.to_string()))?;
                if got == 0 {
                    break;
                }
                hasher.update(&buffer[..got]);
                size += got as u64;
                tokio::runtime::Handle::current().block_on(unpacking.write(&buffer[..got]));
            }
            let got = Digest::from_hasher(hasher);
            if descriptor.as_ref().is_some_and(|descriptor| descriptor.digest != got || descriptor.size != size) {
                return Err(ImportError::Archive(format!("{path}: is not of the digest and size that it should have")));
            }
            let filled = unpacking.finish().map_err(failed)?;
            self.layers.commit(filled, diff_id).map_err(failed)?;
        }
        let mut record = Record::new(id, parsed.diff_ids, parsed.config);
        record.digests = names.iter().map(|name| format!("{}@{manifest}", name.name())).collect();
        record.names = names.into_iter().map(|name| name.to_string()).collect();
        Ok(self.add(record, &documents)?)
    }

    /// What was synced before it was renamed cannot be torn by a crash, unless the disk lied: look once after each.
    fn verify_after_crash(&self) -> io::Result<()> {
        let _lock = self.lock()?;
        let path = self.dir.join("boot");
        let noted = fs::read_to_string(&path).unwrap_or_default();
        let (boot, how) = noted.trim().split_once(' ').unwrap_or_default();
        let this_boot = boot_id()?;
        if boot == this_boot && how == "open" {
            return Ok(());
        }
        if boot != this_boot && how != "clean" {
            for diff_id in self.layers.all()? {
                if !self.layers.verify(&diff_id) {
                    tracing::warn!(%diff_id, "an image layer is damaged; it is deleted and will be pulled again");
                    self.layers.discard(&diff_id)?;
                }
            }
        }
        write_durably(&path, format!("{this_boot} open\n").as_bytes())
    }
}

fn import_failed(error: LayerError) -> ImportError {
    match error {
        LayerError::Refused(message) => ImportError::Archive(message),
        LayerError::Io { context, source } => StoreError::Io { context, source }.into(),
    }
}

fn is_called(image: &Image, name_or_id: &str) -> bool {
    let hex = name_or_id.strip_prefix("sha256:").unwrap_or(name_or_id);
    if hex.len() >= SHORT_ID && image.id.hex().starts_with(hex) {
        return true;
    }
    let Ok(reference) = Reference::parse(name_or_id) else { return false };
    match &reference.digest {
        Some(digest) => image.repo_digests.contains(&format!("{}@{digest}", reference.name())),
        None => image.repo_tags.contains(&reference.to_string()),
    }
}

fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

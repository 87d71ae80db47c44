//! The private socket by which the command line talks to the running server: `admin.sock` in the run directory, root only.
//!
//! Requests are one line of JSON; an import is followed by the archive until the client closes its side. The answer is one line of JSON.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use api::chain::chain;
use image::store::ImageStore;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::Config;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Request {
    Images,
    Import,
    Remove { image: String },
    Status,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Images(Vec<ImageRow>),
    Imported(Vec<String>),
    Removed,
    Status(Box<Status>),
    Failed(String),
}

#[derive(Serialize, Deserialize)]
struct ImageRow {
    name: String,
    id: String,
    size: u64,
}

/// What runs on this machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: String,
    pub node: String,
    pub api: String,
    pub kubeconfig: String,
    /// By role: `main`, `edge`, `shims`.
    pub roles: BTreeMap<String, RoleStatus>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleStatus {
    pub processes: u32,
    /// Proportional set size, all processes of the role together.
    pub pss_bytes: u64,
}

impl Status {
    pub fn render(&self) -> String {
        let mut out = format!(
            "coracle {}\nnode        {}\nAPI         {}\nkubeconfig  {}\n",
            self.version, self.node, self.api, self.kubeconfig
        );
        for (role, RoleStatus { processes, pss_bytes }) in &self.roles {
            out.push_str(&format!("{role:<11} {processes} running, {:.1} MB\n", *pss_bytes as f64 / 1e6));
        }
        out
    }
}

pub fn socket_path(config: &Config) -> PathBuf {
    config.run_dir.join("admin.sock")
}

fn pid_file(config: &Config, role: &str) -> PathBuf {
    config.run_dir.join(format!("{role}.pid"))
}

/// Notes which process plays a role.
///
/// # Errors
/// When the file cannot be written.
pub fn write_pid(config: &Config, role: &str, pid: u32) -> std::io::Result<()> {
    std::fs::write(pid_file(config, role), format!("{pid}\n"))
}

/// The running process of a role, if it is one of this binary's.
fn role_pid(config: &Config, role: &str) -> Option<u32> {
    let pid: u32 = std::fs::read_to_string(pid_file(config, role)).ok()?.trim().parse().ok()?;
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let name = if role == "main" { "server" } else { role };
    arguments.split(|b| *b == 0).nth(1).is_some_and(|argument| argument == name.as_bytes()).then_some(pid)
}

pub fn main_pid(config: &Config) -> Option<u32> {
    role_pid(config, "main")
}

pub fn edge_pid(config: &Config) -> Option<u32> {
    role_pid(config, "edge")
}

/// What the server needs to answer.
pub struct Admin {
    pub images: ImageStore,
    /// All but the roles, which are looked up when asked for.
    pub status: Status,
    pub config: Config,
}

/// Serves until cancelled.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(admin: Arc<Admin>, cancel: CancellationToken) -> Result<()> {
    let path = socket_path(&admin.config);
    // A socket of a server that was killed is in the way.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("could not listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                let admin = admin.clone();
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    if let Err(error) = admin.connection(stream).await {
                        debug!(%error, "administrator's connection ended");
                    }
                });
            }
        }
    }
}

impl Admin {
    async fn connection(&self, stream: tokio::net::UnixStream) -> Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = tokio::io::BufReader::new(reader);
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let answer = match serde_json::from_str(&line)? {
            Request::Images => Answer::Images(self.images()),
            Request::Import => match self.images.import(reader).await {
                Ok(images) => Answer::Imported(images.iter().flat_map(|image| names_of(image)).collect()),
                Err(error) => Answer::Failed(chain(&error)),
            },
            Request::Remove { image } => match self.images.remove(&image).await {
                Ok(()) => Answer::Removed,
                Err(error) => Answer::Failed(chain(&error)),
            },
            Request::Status => Answer::Status(Box::new(self.status())),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
        Ok(())
    }

    fn images(&self) -> Vec<ImageRow> {
        let rows = |image: &Arc<image::store::Image>| {
            let (id, size) = (image.id.to_string(), image.size);
            names_of(image).into_iter().map(move |name| ImageRow { name, id: id.clone(), size })
        };
        self.images.list().iter().flat_map(rows).collect()
    }

    fn status(&self) -> Status {
        let mut status = self.status.clone();
        let mut add = |role: &str, pid: u32| {
            let entry = status.roles.entry(role.to_owned()).or_default();
            entry.processes += 1;
            entry.pss_bytes += pss_bytes(pid);
        };
        add("main", std::process::id());
        if let Some(pid) = edge_pid(&self.config) {
            add("edge", pid);
        }
        shim_pids(&self.config).for_each(|pid| add("shims", pid));
        status
    }
}

/// The shims of this server's pods: their arguments name its run directory, in the same mount namespace.
fn shim_pids(config: &Config) -> impl Iterator<Item = u32> {
    let run_dir = config.run_dir.as_os_str().as_encoded_bytes().to_vec();
    let mounts = std::fs::read_link("/proc/self/ns/mnt").ok();
    let pids = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(move |pid| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|b| *b == 0);
        arguments.nth(1) == Some(b"shim")
            && arguments.any(|argument| argument.starts_with(&run_dir))
            && std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() == mounts
    })
}

fn pss_bytes(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kilobytes = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Its tags, or what else it is called.
fn names_of(image: &image::store::Image) -> Vec<String> {
    if !image.repo_tags.is_empty() {
        return image.repo_tags.clone();
    }
    vec![image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string())]
}

fn ask(config: &Config, request: &Request, body: Option<&mut dyn Read>) -> Result<Answer> {
    let path = socket_path(config);
    let mut stream = connect(&path)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    if let Some(body) = body {
        // The server stops reading when it has found out what is wrong: its answer says so.
        let _ = std::io::copy(body, &mut stream);
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer).context("the server closed the connection")? {
        Answer::Failed(why) => bail!(why),
        answer => Ok(answer),
    }
}

fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).with_context(|| format!("no server runs here: could not connect to {}", path.display()))
}

/// # Errors
/// When no server runs.
pub fn status(config: &Config) -> Result<Status> {
    match ask(config, &Request::Status, None)? {
        Answer::Status(status) => Ok(*status),
        _ => bail!("the server's answer is not understood"),
    }
}

/// Imports an archive and returns the names of its images.
///
/// # Errors
/// When no server runs, or the archive is not one of images.
pub fn import_images(config: &Config, mut archive: Box<dyn Read>) -> Result<Vec<String>> {
    match ask(config, &Request::Import, Some(&mut *archive))? {
        Answer::Imported(names) => Ok(names),
        _ => bail!("the server's answer is not understood"),
    }
}

/// A table of images.
///
/// # Errors
/// When no server runs.
pub fn list_images(config: &Config) -> Result<String> {
    let Answer::Images(rows) = ask(config, &Request::Images, None)? else {
        bail!("the server's answer is not understood")
    };
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(5);
    let mut out = format!("{:<width$}   {:<12}   SIZE\n", "IMAGE", "ID");
    for ImageRow { name, id, size } in rows {
        let id = id.trim_start_matches("sha256:").get(..12).unwrap_or_default().to_owned();
        out.push_str(&format!("{name:<width$}   {id}   {:.1} MB\n", size as f64 / 1e6));
    }
    Ok(out)
}

/// # Errors
/// When no server runs, or the image is unknown or in use.
pub fn remove_image(config: &Config, image: &str) -> Result<()> {
    ask(config, &Request::Remove { image: image.to_owned() }, None).map(drop)
}

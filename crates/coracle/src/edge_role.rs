//! The edge's process: adopted when one runs, started confined when none does, replaced when it ends.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use runtime::Runtime;
use runtime::confine::{Confined, ConfinedPlan, Root};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wire::edge::LOG_LIMIT;

use crate::admin;
use crate::cluster::private_dir;
use crate::config::Config;

/// A user that owns nothing on this machine. Debian and its kin leave 60000 and above to administrators; systemd's
/// `DynamicUser` begins at 61184.
const EDGE_USER: u32 = 60_666;
/// Tables, certificates and the buffers of thousands of connections.
const MEMORY: u64 = 512 << 20;
/// An edge that ends sooner than this is started again after a pause, which doubles from the first to the last.
const SETTLED: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What the edge may ask of the kernel beside what every confined process may: sockets of its own.
const SYSCALLS: &[&str] = &["bind", "connect", "getsockname", "listen", "recvmmsg", "sendmmsg", "socket", "writev"];

pub fn control_path(config: &Config) -> PathBuf {
    config.run_dir.join("edge").join("control.sock")
}

/// Runs as `coracle edge`: confines itself, then serves.
///
/// # Errors
/// When it was not started by main.
pub fn main() -> Result<std::process::ExitCode> {
    let mut fds = runtime::confine::enter().context("the edge could not be confined")?.into_iter();
    let (control, log) = (fds.next().context("no control socket")?, fds.next().context("no access log")?);
    Ok(edge::run(control, log))
}

/// Keeps one edge running until cancelled; it goes on after that.
///
/// # Errors
/// When no edge can be started.
pub async fn keep(config: &Config, runtime: &Runtime, cancel: CancellationToken) -> Result<()> {
    let directory =
        control_path(config).parent().map(Path::to_owned).context("the control socket lies in a directory")?;
    private_dir(&directory)?;
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        let edge = match adopt(config)? {
            Some(pidfd) => {
                info!("the edge of an earlier server goes on");
                Edge::Adopted(net::sys::watched(pidfd)?)
            }
            None => Edge::Started(start(config, runtime)?),
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            ended = edge.ended() => ended?,
        }
        #[cfg(feature = "planted")]
        if planted::on(planted::Bug::EdgeNotReplaced) {
            return Ok(cancel.cancelled().await);
        }
        warn!("the edge ended; starting another");
        pause = if began.elapsed() < SETTLED { (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE) } else { Duration::ZERO };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// A running edge: a child of this process, or of one before.
enum Edge {
    Started(Confined),
    Adopted(AsyncFd<OwnedFd>),
}

impl Edge {
    async fn ended(&self) -> Result<()> {
        match self {
            Self::Started(edge) => drop(edge.wait().await?),
            Self::Adopted(pidfd) => drop(pidfd.readable().await?),
        }
        Ok(())
    }
}

fn adopt(config: &Config) -> Result<Option<OwnedFd>> {
    let Some(pid) = admin::edge_pid(config).and_then(|pid| Pid::from_raw(pid.cast_signed())) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        // It may have ended, and another have its number: asked again with the descriptor in hand.
        Ok(pidfd) => Ok(admin::edge_pid(config).is_some().then_some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error).context("could not watch the edge"),
    }
}

fn start(config: &Config, runtime: &Runtime) -> Result<Confined> {
    let path = control_path(config);
    // The socket of an edge that is gone leads nowhere.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("could not remove the old control socket");
        }
        Ok(()) | Err(_) => {}
    }
    let control = UnixListener::bind(&path).with_context(|| format!("could not listen on {}", path.display()))?;
    let plan = ConfinedPlan {
        args: vec!["edge".to_owned()],
        root: Root::Empty,
        uid: EDGE_USER,
        gid: EDGE_USER,
        capabilities: Vec::new(),
        syscalls: SYSCALLS.iter().map(|name| (*name).to_owned()).collect(),
        host_network: true,
        memory_limit: Some(MEMORY),
        name: "edge".to_owned(),
        fds: vec![control.into(), access_log(config)?],
        stderr: Some(std::io::stderr().as_fd().try_clone_to_owned()?),
    };
    let edge = runtime.spawn_confined(plan).context("could not start the edge")?;
    admin::write_pid(config, "edge", edge.pid)?;
    info!(pid = edge.pid, "the edge runs");
    Ok(edge)
}

fn access_log(config: &Config) -> Result<OwnedFd> {
    let path = log_path(config);
    open_log(&path).with_context(|| format!("could not open {}", path.display()))
}

/// The edge's access log; `access.log.1` is the one before.
pub fn log_path(config: &Config) -> PathBuf {
    config.data_dir.join("access.log")
}

/// Opens the access log; one that is too long is moved aside before.
///
/// # Errors
/// When the disk fails.
pub fn open_log(path: &Path) -> std::io::Result<OwnedFd> {
    if fs::metadata(path).is_ok_and(|log| log.len() >= LOG_LIMIT) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    Ok(fs::OpenOptions::new().create(true).append(true).open(path)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_too_long_is_moved_aside() {
        let dir = std::env::temp_dir().join(format!("coracle-log-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("access.log");
        let length = |name: &str| fs::metadata(dir.join(name)).map(|file| file.len()).ok();
        drop(open_log(&path).unwrap());
        fs::File::options().write(true).open(&path).unwrap().set_len(LOG_LIMIT - 1).unwrap();
        drop(open_log(&path).unwrap());
        assert_eq!((length("access.log"), length("access.log.1")), (Some(LOG_LIMIT - 1), None));
        fs::File::options().write(true).open(&path).unwrap().set_len(LOG_LIMIT).unwrap();
        drop(open_log(&path).unwrap());
        assert_eq!((length("access.log"), length("access.log.1")), (Some(0), Some(LOG_LIMIT)));
        fs::remove_dir_all(&dir).unwrap();
    }
}

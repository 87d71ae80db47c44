//! A connection that left HTTP, such as a WebSocket: bytes in both directions until both sides have ended or both are silent.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

const BUFFER: usize = 16 << 10;

/// Counts the bytes that go to the client in `sent`.
pub async fn run(client: Upgraded, application: Upgraded, silence: Duration, sent: &mut u64) -> io::Result<()> {
    let (client_reads, client_writes) = tokio::io::split(TokioIo::new(client));
    let (application_reads, application_writes) = tokio::io::split(TokioIo::new(application));
    let last = Mutex::new(Instant::now());
    let mut received = 0;
    let up = pump(client_reads, application_writes, &last, &mut received);
    let down = pump(application_reads, client_writes, &last, sent);
    let both = async { tokio::try_join!(up, down) };
    tokio::pin!(both);
    loop {
        let deadline = moment(&last) + silence;
        tokio::select! {
            ended = &mut both => return ended.map(|_| ()),
            () = sleep_until(deadline) => {}
        }
        if moment(&last) + silence <= Instant::now() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

fn moment(last: &Mutex<Instant>) -> Instant {
    *last.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    last: &Mutex<Instant>,
    moved: &mut u64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
        *moved += length as u64;
        *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

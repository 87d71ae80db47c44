//! A connection that left HTTP, such as a WebSocket: bytes in both directions until one side ends or both are silent.

use std::io;
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const BUFFER: usize = 16 << 10;

/// Returns the bytes that went to the client.
pub async fn run(client: Upgraded, application: Upgraded, silence: Duration, sent: &mut u64) -> io::Result<()> {
    let (mut client_reads, mut client_writes) = tokio::io::split(TokioIo::new(client));
    let (mut application_reads, mut application_writes) = tokio::io::split(TokioIo::new(application));
    let (mut up, mut down) = (vec![0; BUFFER], vec![0; BUFFER]);
    let (mut client_open, mut application_open) = (true, true);
    while client_open && application_open {
        let step = async {
            tokio::select! {
                read = client_reads.read(&mut up), if client_open => {
                    let length = read?;
                    client_open = length > 0;
                    application_writes.write_all(&up[..length]).await
                }
                read = application_reads.read(&mut down), if application_open => {
                    let length = read?;
                    application_open = length > 0;
                    *sent += length as u64;
                    client_writes.write_all(&down[..length]).await
                }
            }
        };
        timeout(silence, step).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
    // Errors here are those of a side that is gone already.
    let _gone = client_writes.shutdown().await;
    let _gone = application_writes.shutdown().await;
    Ok(())
}

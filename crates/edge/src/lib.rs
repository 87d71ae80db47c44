//! The unprivileged worker: the proxy behind every Ingress, and the cluster's DNS server.
//!
//! It holds the listening sockets and the last table that main sent, and needs nothing else: no file, no capability, no child.
//! When main dies it goes on with that table; the next main connects and takes over.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use tracing::{error, warn};

mod access_log;
mod answer_body;
mod certificates;
mod control;
mod dns;
mod forward;
#[doc(hidden)]
pub mod fuzz;
mod headers;
mod health;
mod http;
mod live;
mod path;
mod pool;
mod progress;
mod proxy;
mod request_body;
mod shared;
mod stream;
mod tls;
mod tunnel;

/// Serves until main says [`wire::edge::Down::Drain`]. `control` is a listening Unix socket: the newest connection to it is
/// main. `log` receives the access log, and is never waited for.
pub fn run(control: OwnedFd, log: OwnedFd) -> ExitCode {
    match serve(control, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(%error, "the edge stops");
            ExitCode::FAILURE
        }
    }
}

fn serve(control: OwnedFd, log: OwnedFd) -> io::Result<()> {
    let mut control = control::Control::new(control)?;
    let log = access_log::AccessLog::new(log, control.log_full())?;
    let mut http = http::Http::start(log)?;
    let mut dns = dns::Dns::start()?;
    while let Some(order) = control.next()? {
        match order {
            control::Order::Listen(socket, descriptor) => match socket.role {
                wire::edge::Role::Http | wire::edge::Role::Https => http.listen(&socket, descriptor)?,
                wire::edge::Role::DnsUdp | wire::edge::Role::DnsTcp => dns.listen(&socket, descriptor)?,
            },
            control::Order::Table(table) => {
                let generation = table.generation;
                #[cfg(feature = "planted")]
                if planted::every(planted::Bug::EdgeDropsConnections, 5) {
                    std::process::exit(1);
                }
                let zone = table.dns.clone();
                let problems = http.replace(*table);
                dns.replace(zone);
                control.acknowledge(generation, problems);
            }
            control::Order::Log(descriptor) => {
                if let Err(error) = http.log_to(descriptor) {
                    warn!(%error, "the access log stays where it is");
                }
            }
            control::Order::Count => {
                control.count(wire::edge::Counters { dns_queries: dns.queries(), ..http.counters() })
            }
        }
    }
    dns.stop();
    http.drain();
    Ok(())
}

//! Clients that load a site over HTTPS and remember every request that failed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::web::{Answer, KeptAlive, Web};

/// How long a client rests between two requests: people read what they load.
const REST: Duration = Duration::from_millis(100);

/// Running clients: every second keeps one connection, the others make a new one for each request.
pub struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<(Duration, Vec<String>)>>,
}

/// What the clients saw.
#[derive(Debug)]
pub struct Seen {
    pub served: usize,
    pub slowest: Duration,
    /// One line for each request that was not answered with 200 and the expected body.
    pub failures: Vec<String>,
}

impl Load {
    /// Starts `clients` that load `/` of `site` at `address`; each answer must contain `expected`. A request is bounded by
    /// the patience of `web`.
    pub fn start(web: &Web, address: SocketAddr, site: &str, expected: &'static str, clients: usize) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |n: usize| {
            let (web, site) = (web.clone(), site.to_owned());
            let (stop, served) = (stop.clone(), served.clone());
            std::thread::spawn(move || {
                let (mut slowest, mut failures, mut kept) = (Duration::ZERO, Vec::new(), None);
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let answer = if n.is_multiple_of(2) {
                        on_kept(&mut kept, &web, address, &site)
                    } else {
                        web.get(address, &site, "/")
                    };
                    match answer.and_then(|answer| check(&answer, expected)) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            failures.push(format!("client {n}, after {:?}: {error:#}", began.elapsed()));
                            kept = None;
                        }
                    }
                    slowest = slowest.max(began.elapsed());
                    std::thread::sleep(REST);
                }
                (slowest, failures)
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, served, clients }
    }

    /// How many requests were answered as they should be until now.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Lets every client finish its request.
    ///
    /// # Errors
    /// When a client panicked.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut seen = Seen { served: 0, slowest: Duration::ZERO, failures: Vec::new() };
        for client in self.clients {
            let (slowest, failures) = client.join().ok().context("a client panicked")?;
            seen.slowest = seen.slowest.max(slowest);
            seen.failures.extend(failures);
        }
        seen.served = self.served.load(Ordering::Relaxed);
        Ok(seen)
    }
}

fn on_kept(kept: &mut Option<KeptAlive>, web: &Web, address: SocketAddr, site: &str) -> Result<Answer> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(web.open(address, site)?),
    };
    connection.get("/")
}

fn check(answer: &Answer, expected: &str) -> Result<()> {
    ensure!(answer.status == 200 && answer.body.contains(expected), "answered with {answer:?}");
    Ok(())
}

//! Ctrl-C, so that what was set up is taken down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// Answers whether Ctrl-C was pressed or the process was told to end; the first does not kill, so that everything is removed.
///
/// # Errors
/// When no runtime can be made.
pub fn interrupts() -> Result<impl Fn() -> bool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            set.store(true, Ordering::Relaxed);
        });
    });
    Ok(move || flag.load(Ordering::Relaxed))
}

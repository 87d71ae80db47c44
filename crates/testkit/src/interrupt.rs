//! Ctrl-C, so that what was set up is taken down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

/// Runs `then` once Ctrl-C is pressed or the process is told to end; the first does not kill, so that everything is removed.
///
/// # Errors
/// When no runtime can be made.
pub fn on_interrupt(then: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        let told = runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (mut interrupt, mut terminate) =
                (signal(SignalKind::interrupt()).ok()?, signal(SignalKind::terminate()).ok()?);
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            Some(())
        });
        if told.is_some() {
            then();
        }
    });
    Ok(())
}

/// Answers whether that has happened.
///
/// # Errors
/// As [`on_interrupt`].
pub fn interrupts() -> Result<impl Fn() -> bool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    on_interrupt(move || set.store(true, Ordering::Relaxed))?;
    Ok(move || flag.load(Ordering::Relaxed))
}

//! The access log: how main exchanges it while requests are served.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use wire::edge::{Down, LOG_LIMIT, Up, frame};

use crate::application::Application;
use crate::bed::{Edge, Main, PATIENCE, Rules};
use crate::browser::get;

/// A file without a name whose length is `length`.
fn file(length: u64) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("log", flags).unwrap());
    file.set_len(length).unwrap();
    rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).unwrap();
    file
}

fn descriptor(file: &File) -> OwnedFd {
    file.try_clone().unwrap().into()
}

#[tokio::test]
async fn a_log_that_is_too_long_is_exchanged_while_the_edge_runs() {
    let app = Application::named("app").await;
    let (first, second) = (file(LOG_LIMIT - 10), file(0));
    let mut edge = Edge::logging(descriptor(&first), descriptor(&first));
    assert_eq!(edge.main.use_table(Rules::new().host("", &[app.address]).table()), []);
    assert_eq!(get(edge.http, "x", "/first").await.body, "app");
    assert_eq!(edge.main.hear(), Some(Up::LogFull));
    // A main that comes later hears it too.
    edge.main = Main::connect(&edge.control);
    assert_eq!(edge.main.hear(), Some(Up::LogFull));
    edge.main.send_with(&frame(&Down::Log), &[second.as_fd()]);
    edge.main.use_table(Rules::new().host("", &[app.address]).table());
    assert_eq!(get(edge.http, "x", "/second").await.body, "app");
    let deadline = Instant::now() + PATIENCE;
    while second.metadata().unwrap().len() == 0 {
        assert!(Instant::now() < deadline, "nothing was logged");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut text = String::new();
    rustix::fs::seek(&second, rustix::fs::SeekFrom::Start(0)).unwrap();
    (&second).read_to_string(&mut text).unwrap();
    assert!(text.contains("/second") && !text.contains("/first"), "{text}");
    // Another main is not asked for anything.
    edge.main = Main::connect(&edge.control);
    edge.main.use_table(Rules::new().table());
}

#[tokio::test]
async fn a_log_without_a_descriptor_is_not_believed() {
    let edge = Edge::start();
    let mut main = Main::connect(&edge.control);
    main.send(&Down::Log);
    assert_eq!(main.hear(), None);
    let mut edge = edge;
    edge.main = Main::connect(&edge.control);
}

//! The edge has no files: what it needs of the system it gets by system calls.

use std::process::Command;

use crate::application::Application;
use crate::bed::{Edge, Rules};

const INSIDE: &str = "EDGE_TEST_EMPTY_ROOT";

/// Runs [`inside_an_empty_root`] in a process of its own: a root is for a whole process.
#[test]
fn an_empty_root_is_enough() {
    let root = std::env::temp_dir().join(format!("edge-root-{}", std::process::id()));
    std::fs::create_dir_all(root.join("tmp")).unwrap();
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "confined::inside_an_empty_root", "--nocapture"])
        .env(INSIDE, &root)
        .env("TMPDIR", "/tmp")
        .output()
        .unwrap();
    std::fs::remove_dir_all(&root).unwrap();
    let said = String::from_utf8_lossy(&inner.stdout);
    let panics = String::from_utf8_lossy(&inner.stderr);
    assert!(inner.status.success() && said.contains("1 passed"), "{said}{panics}");
}

#[tokio::test]
async fn inside_an_empty_root() {
    let Some(root) = std::env::var_os(INSIDE) else { return };
    rustix::process::chroot(std::path::Path::new(&root)).unwrap();
    rustix::process::chdir("/").unwrap();
    let app = Application::named("app").await;
    let issued = crate::tls::issue("x.example.org");
    let (upstream, _) = crate::dns::upstream(60, false).await;
    let rules = Rules::new().host("", &[app.address]).certificate(&["x.example.org"], &issued.chain, &issued.key);
    let edge = Edge::serving(rules.dns(crate::dns::names(&[upstream])).table());
    let stream = crate::browser::tls(edge.https, "x.example.org", &[issued.authority], "h2").await.unwrap();
    let answer = crate::browser::send_tls(stream, crate::browser::request("GET", "x.example.org", "/", "")).await;
    assert_eq!(answer.body, "app");
    crate::dns::resolves_elsewhere(edge.dns).await;
}

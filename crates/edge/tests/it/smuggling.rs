//! Requests that mean one thing to a proxy and another to an application.

use crate::application::Application;
use crate::bed::{Edge, Rules};
use crate::browser::raw;

/// What the edge answers, and how many requests the application saw.
async fn check(bytes: &str, status: &str, seen: usize) {
    let echo = Application::echo().await;
    let edge = Edge::serving(Rules::new().host("", &[echo.address]).table());
    let answer = raw(edge.http, bytes).await;
    let first = answer.lines().next().unwrap_or_default();
    assert!(first.starts_with(&format!("HTTP/1.1 {status}")), "{bytes:?}: {answer:?}");
    assert_eq!(echo.requests(), seen, "{bytes:?}: {answer:?}");
}

#[tokio::test]
async fn a_body_has_one_length() {
    let chunked_and_long = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    // The chunks count, the length is removed, and nothing after them is taken for a request.
    check(chunked_and_long, "200", 1).await;
    check("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", "400", 0).await;
    check("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd", "400", 0).await;
    check("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400", 0).await;
    check("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "400", 0).await;
    check("POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400", 0).await;
}

#[tokio::test]
async fn the_length_cannot_be_taken_for_hop_by_hop() {
    check("POST / HTTP/1.1\r\nHost: x\r\nConnection: close, content-length\r\nContent-Length: 3\r\n\r\nabc", "200", 1)
        .await;
}

#[tokio::test]
async fn headers_are_read_in_one_way() {
    check("GET / HTTP/1.1\r\nConnection: close\r\nHost : x\r\n\r\n", "400", 0).await;
    check("GET / HTTP/1.1\r\nConnection: close\r\nHost: x\r\nA: b\r\n folded: c\r\n\r\n", "400", 0).await;
    check("GET / HTTP/1.1\r\nConnection: close\r\nHost: x\r\nA: b\x00c\r\n\r\n", "400", 0).await;
    check("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", "400", 0).await;
}

#[tokio::test]
async fn there_is_one_host() {
    check("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400", 0).await;
    check("GET / HTTP/1.1\r\nConnection: close\r\nHost: x\r\nHost: y\r\n\r\n", "400", 0).await;
    check("GET / HTTP/1.1\r\nConnection: close\r\nHost: x/../y\r\n\r\n", "400", 0).await;
    check("GET / HTTP/1.1\r\nConnection: close\r\nHost: x y\r\n\r\n", "400", 0).await;
}

#[tokio::test]
async fn the_edge_is_no_forward_proxy() {
    check("CONNECT example.org:443 HTTP/1.1\r\nConnection: close\r\nHost: example.org:443\r\n\r\n", "400", 0).await;
    check("OPTIONS * HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n", "400", 0).await;
}

#[tokio::test]
async fn a_chunk_is_as_long_as_it_says() {
    let edge = Edge::serving(Rules::new().host("", &[Application::echo().await.address]).table());
    let answer =
        raw(edge.http, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n").await;
    assert!(!answer.contains(" 200 "), "{answer}");
}

//! What a user of an Ingress sees.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use wire::edge::{Options, PathMatch, Target};

use crate::application::Application;
use crate::bed::{Edge, Rules};
use crate::browser::{get, raw, request, send, try_send};

#[tokio::test]
async fn the_host_picks_the_route() {
    let (a, b, rest) = (Application::named("a").await, Application::named("b").await, Application::named("rest").await);
    let rules = Rules::new().host("a.example.org", &[a.address]).host("*.example.org", &[b.address]);
    let edge = Edge::serving(rules.host("", &[rest.address]).table());
    let cases = [
        ("a.example.org", "a"),
        ("A.Example.Org", "a"),
        ("a.example.org:8080", "a"),
        ("a.example.org.", "a"),
        ("b.example.org", "b"),
        ("c.b.example.org", "rest"),
        ("example.org", "rest"),
        ("[::1]:80", "rest"),
    ];
    for (host, expected) in cases {
        assert_eq!(get(edge.http, host, "/").await.body, expected, "{host}");
    }
}

#[tokio::test]
async fn the_path_picks_the_route() {
    let (site, admin) = (Application::named("site").await, Application::named("admin").await);
    let closed = Target::Status(503);
    let rules = Rules::new()
        .route("x", PathMatch::Prefix("/closed".into()), closed, Options::default())
        .host_with("unused", &[site.address], Options::default())
        .host_with("unused", &[admin.address], Options::default())
        .route("x", PathMatch::Exact("/admin".into()), Target::Upstream(1), Options::default())
        .route("x", PathMatch::Prefix("/site".into()), Target::Upstream(0), Options::default());
    let edge = Edge::serving(rules.table());
    let cases = [
        ("/site", 200, "site"),
        ("/site/a?b=c", 200, "site"),
        ("/sites", 404, "default backend - 404"),
        ("/admin", 200, "admin"),
        ("/admin/", 404, "default backend - 404"),
        ("/closed/x", 503, "503 Service Unavailable\n"),
        ("/site/../closed", 503, "503 Service Unavailable\n"),
        ("/%63losed", 503, "503 Service Unavailable\n"),
        ("//closed", 503, "503 Service Unavailable\n"),
        ("/../x", 400, "400 Bad Request\n"),
    ];
    for (path, status, body) in cases {
        let answer = get(edge.http, "x", path).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (status, body), "{path}");
    }
}

#[tokio::test]
async fn the_application_learns_who_asked_and_for_what() {
    let echo = Application::echo().await;
    let edge = Edge::serving(Rules::new().host("", &[echo.address]).table());
    let mut forged = request("GET", "site.example.org:81", "/a%20b/../c?d=e", "");
    for (name, value) in [
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "1.2.3.4"),
        ("x-request-id", "abc"),
        ("connection", "x-secret"),
        ("x-secret", "1"),
        ("te", "trailers"),
        ("proxy", "http://evil"),
        ("keep-alive", "3"),
    ] {
        forged.headers_mut().append(name, value.parse().unwrap());
    }
    let answer = send(edge.http, forged).await;
    let mut lines: Vec<&str> = answer.body.lines().filter(|line| !line.is_empty()).collect();
    lines[1..].sort_unstable();
    let port = format!("x-forwarded-port: {}", edge.http.port());
    let expected = [
        "GET /a%20b/../c?d=e",
        "host: site.example.org:81",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: site.example.org:81",
        port.as_str(),
        "x-forwarded-proto: http",
        "x-forwarded-scheme: http",
        "x-original-forwarded-for: 1.2.3.4",
        "x-real-ip: 127.0.0.1",
        "x-request-id: abc",
        "x-scheme: http",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_request_without_an_id_gets_one() {
    let echo = Application::echo().await;
    let edge = Edge::serving(Rules::new().host("", &[echo.address]).table());
    let body = get(edge.http, "x", "/").await.body;
    let id = body.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
}

#[tokio::test]
async fn plain_http_is_sent_to_https() {
    let app = Application::named("app").await;
    let options = Options { redirect_to_https: true, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("site.example.org", &[app.address], options).table());
    let answer = get(edge.http, "site.example.org:80", "/a/b?c=d&e").await;
    assert_eq!(answer.status, StatusCode::PERMANENT_REDIRECT);
    assert_eq!(answer.header("location"), format!("https://site.example.org:{}/a/b?c=d&e", edge.https.port()));
    assert_eq!(app.requests(), 0);
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused() {
    let echo = Application::echo().await;
    let options = Options { body_limit: 1000, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[echo.address], options).table());
    let fits = send(edge.http, request("POST", "x", "/", vec![b'x'; 1000])).await;
    assert!(fits.status == StatusCode::OK && fits.body.ends_with(&"x".repeat(1000)));
    assert_eq!(
        send(edge.http, request("POST", "x", "/", vec![b'x'; 1001])).await.status,
        StatusCode::PAYLOAD_TOO_LARGE
    );
    // Long enough that the client is still sending when it is refused.
    let long = send(edge.http, request("POST", "x", "/", vec![b'x'; 3 << 20])).await;
    assert_eq!(long.status, StatusCode::PAYLOAD_TOO_LARGE);
    let chunks =
        futures_util::stream::iter((0..11).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 100])))));
    let chunked = Request::post("/").header("host", "x").body(StreamBody::new(chunks)).unwrap();
    assert_eq!(send(edge.http, chunked).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let long = futures_util::stream::iter(
        (0..64).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 64 << 10])))),
    );
    let chunked = Request::post("/").header("host", "x").body(StreamBody::new(long)).unwrap();
    assert_eq!(send(edge.http, chunked).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_client_that_waits_for_leave_gets_it_only_for_what_fits() {
    let echo = Application::echo().await;
    let options = Options { body_limit: 10, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[echo.address], options).table());
    let head = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n";
    let long = raw(edge.http, &format!("{head}Content-Length: 11\r\n\r\n")).await;
    assert!(long.starts_with("HTTP/1.1 413 "), "{long}");
    let fits = raw(edge.http, &format!("{head}Content-Length: 10\r\n\r\n0123456789")).await;
    assert!(fits.starts_with("HTTP/1.1 100 ") && fits.contains("HTTP/1.1 200 "), "{fits}");
}

#[tokio::test]
async fn bodies_pass_in_both_directions_while_they_grow() {
    let app = Application::start(|request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Full::from(body))
    })
    .await;
    let options = Options { body_limit: 0, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[app.address], options).table());
    let chunks = futures_util::stream::iter(
        (0..64).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 64 << 10])))),
    );
    let chunked = Request::post("/").header("host", "x").body(StreamBody::new(chunks)).unwrap();
    let answer = send(edge.http, chunked).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 4 << 20));
}

#[tokio::test]
async fn requests_take_turns_and_connections_are_kept() {
    let (a, b) = (Application::named("a").await, Application::named("b").await);
    let edge = Edge::serving(Rules::new().host("", &[a.address, b.address]).table());
    for _ in 0..10 {
        get(edge.http, "x", "/").await;
    }
    assert_eq!((a.requests(), b.requests()), (5, 5));
    assert_eq!((a.connections(), b.connections()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_exchanged_without_a_failed_request() {
    let (a, b) = (Application::named("a").await, Application::named("b").await);
    let table = |app: &Application| Rules::new().host("x", &[app.address]).table();
    let mut edge = Edge::serving(table(&a));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (stop, served, http) = (stop.clone(), served.clone(), edge.http);
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = try_send(http, request("GET", "x", "/", "")).await.unwrap();
                    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for turn in 0..100 {
        edge.main.use_table(table(if turn % 2 == 0 { &b } else { &a }));
        let before = served.load(Ordering::Relaxed);
        while served.load(Ordering::Relaxed) < before + 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(a.requests() > 0 && b.requests() > 0);
}

#[tokio::test]
async fn websockets_pass() {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let mut edge = Edge::serving(Rules::new().host("x", &[address]).table());
    let stream = tokio::net::TcpStream::connect(edge.http).await.unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async("ws://x/chat", stream).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    drop(socket);
    assert!(edge.log_lines(1)[0].contains("\"GET /chat HTTP/1.1\" 101 "));
}

#[tokio::test]
async fn every_request_is_logged() {
    let app = Application::named("hello").await;
    let mut edge = Edge::serving(Rules::new().host("x", &[app.address]).table());
    let mut logged = request("GET", "x", "/a?b", "");
    for (name, value) in [("user-agent", "me \"too\""), ("referer", "http://y/"), ("x-request-id", "id1")] {
        logged.headers_mut().insert(name, value.parse().unwrap());
    }
    send(edge.http, logged).await;
    get(edge.http, "y", "/").await;
    let lines = edge.log_lines(2);
    let (before, after) = lines[0].split_once(" [").unwrap();
    assert_eq!(before, "127.0.0.1 - -");
    let (time, after) = after.split_once("] ").unwrap();
    assert!(time.ends_with(" +0000") && time.len() == "23/Nov/2026:13:00:00 +0000".len(), "{time}");
    let start = "\"GET /a?b HTTP/1.1\" 200 5 \"http://y/\" \"me \\x22too\\x22\" ";
    let after = after.strip_prefix(start).unwrap_or_else(|| panic!("{after}"));
    let (_, after) = after.split_once(" [").unwrap();
    let end = format!("test-x-80] [] {} 5 ", app.address);
    assert!(after.starts_with(&end) && after.ends_with(" 200 id1"), "{after}");
    assert!(lines[1].contains("404 21 \"-\" \"-\"") && lines[1].contains("[upstream-default-backend] [] - - - - "));
}

#[tokio::test]
async fn a_client_that_does_not_wait_is_logged() {
    let app = Application::start(|_| std::future::pending::<Response<Full<Bytes>>>()).await;
    let mut edge = Edge::serving(Rules::new().host("x", &[app.address]).table());
    let mut stream = tokio::net::TcpStream::connect(edge.http).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    while app.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    assert!(edge.log_lines(1)[0].contains("\"GET / HTTP/1.1\" 499 0 "));
}

#[tokio::test]
async fn a_drained_edge_finishes_what_it_began() {
    let entered = Arc::new(tokio::sync::Notify::new());
    let leave = Arc::new(tokio::sync::Notify::new());
    let app = {
        let (entered, leave) = (entered.clone(), leave.clone());
        Application::start(move |_| {
            let (entered, leave) = (entered.clone(), leave.clone());
            async move {
                entered.notify_one();
                leave.notified().await;
                Response::new(Full::from("late"))
            }
        })
        .await
    };
    let edge = Edge::serving(Rules::new().host("", &[app.address]).table());
    let http = edge.http;
    let running = tokio::spawn(async move { get(http, "x", "/").await });
    entered.notified().await;
    let draining = tokio::task::spawn_blocking(move || edge.drain());
    while tokio::net::TcpStream::connect(http).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leave.notify_one();
    assert_eq!(running.await.unwrap().body, "late");
    assert_eq!(format!("{:?}", draining.await.unwrap()), format!("{:?}", std::process::ExitCode::SUCCESS));
}

//! What clients see when applications fail.

use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wire::edge::{Options, Table};

use crate::application::{Application, hear};
use crate::bed::{Edge, Rules, dead};
use crate::browser::{get, request, send};

#[tokio::test]
async fn without_a_table_nothing_is_found() {
    let mut edge = Edge::start();
    edge.main.use_table(Table { dns: crate::bed::no_names(), ..Table::default() });
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn without_endpoints_the_service_is_unavailable() {
    let edge = Edge::serving(Rules::new().host("", &[]).table());
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_a_bad_gateway() {
    let edge = Edge::serving(Rules::new().host("", &[dead()]).table());
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn an_endpoint_that_answers_nonsense_is_a_bad_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            hear(&mut stream).await;
            stream.write_all(b"nonsense\r\n\r\n").await.unwrap();
        }
    });
    let edge = Edge::serving(Rules::new().host("", &[address]).table());
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_times_out() {
    let app = Application::start(|_| std::future::pending::<Response<Full<bytes::Bytes>>>()).await;
    let options = Options { read_timeout_ms: 100, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[app.address], options).table());
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(send(edge.http, request("POST", "x", "/", "body")).await.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn an_endpoint_that_takes_no_connection_times_out() {
    // A listener whose queue is full: further connections hang.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        queue.push(stream);
    }
    let options = Options { connect_timeout_ms: 100, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[address], options).table());
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn a_slow_body_is_no_slow_answer() {
    let app = Application::echo().await;
    let options = Options { read_timeout_ms: 150, send_timeout_ms: 150, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[app.address], options).table());
    let mut stream = tokio::net::TcpStream::connect(edge.http).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\n").await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"x").await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let app = Application::named("alive").await;
    let mut edge = Edge::serving(Rules::new().host("x", &[dead(), app.address]).table());
    for _ in 0..20 {
        let answer = send(edge.http, request("POST", "x", "/", "body")).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "alive"));
    }
    let tried = edge.log_lines(20).iter().filter(|line| line.contains("502, 200")).count();
    assert!(tried <= 2, "the dead endpoint was tried {tried} times");
}

#[tokio::test]
async fn all_endpoints_passed_over_are_tried_all_the_same() {
    let gone = dead();
    let edge = Edge::serving(Rules::new().host("x", &[gone]).table());
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::BAD_GATEWAY);
    let listener = TcpListener::bind(gone).await.unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        hear(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    });
    assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_kept_connection_that_the_application_closes_fails_no_request() {
    // Promises to keep the connection, then closes it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                hear(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                // Closes with the next request unread.
                stream.readable().await.unwrap();
            });
        }
    });
    let edge = Edge::serving(Rules::new().host("", &[address]).table());
    for _ in 0..50 {
        assert_eq!(get(edge.http, "x", "/").await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn an_answer_that_stops_half_way_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        hear(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
        std::future::pending::<()>().await;
    });
    let options = Options { read_timeout_ms: 100, ..Options::default() };
    let edge = Edge::serving(Rules::new().host_with("", &[address], options).table());
    assert!(crate::browser::try_send(edge.http, request("GET", "x", "/", "")).await.is_err());
}

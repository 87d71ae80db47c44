//! Mains that come, go, and talk nonsense.

use wire::edge::{Down, Hello, Role, Socket, Up};

use crate::application::Application;
use crate::bed::{Edge, Main, Rules};
use crate::browser::get;

#[tokio::test]
async fn the_edge_outlives_its_main() {
    let (a, b) = (Application::named("a").await, Application::named("b").await);
    let mut edge = Edge::serving(Rules::new().host("", &[a.address]).table());
    let generation = edge.main.generation();
    let next = Main::connect(&edge.control);
    drop(std::mem::replace(&mut edge.main, next));
    assert_eq!(get(edge.http, "x", "/").await.body, "a");
    assert_eq!(edge.main.generation(), generation);
    let roles: Vec<Role> = edge.main.held.iter().map(|socket| socket.role).collect();
    assert_eq!(roles, [Role::Http, Role::Https, Role::DnsUdp, Role::DnsTcp]);
    edge.main.use_table(Rules::new().host("", &[b.address]).table());
    assert_eq!(get(edge.http, "x", "/").await.body, "b");
}

#[tokio::test]
async fn the_newest_main_is_heard() {
    let mut edge = Edge::start();
    let next = Main::connect(&edge.control);
    let mut old = std::mem::replace(&mut edge.main, next);
    assert_eq!(old.hear(), None);
    edge.main.use_table(Rules::new().table());
}

#[tokio::test]
async fn nonsense_ends_the_conversation_and_nothing_else() {
    let app = Application::named("app").await;
    let edge = Edge::serving(Rules::new().host("", &[app.address]).table());
    let frames: [&[u8]; 5] = [
        &[0xff; 64],
        b"\0\0\0\x04oops",
        &wire::edge::frame(&Down::Count),
        &wire::edge::frame(&Down::Hello(Hello { version: 999 })),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for bytes in frames {
        let mut main = Main::connect_silently(&edge.control);
        main.send_bytes(bytes);
        assert_eq!(main.hear(), None, "{bytes:?}");
        assert_eq!(get(edge.http, "x", "/").await.body, "app");
    }
    let mut silent = Main::connect(&edge.control);
    let socket = Socket { role: Role::Http, address: edge.http };
    silent.send(&Down::Listen { sockets: vec![socket] });
    assert_eq!(silent.hear(), None, "sockets without descriptors");
    let mut edge = edge;
    edge.main = Main::connect(&edge.control);
}

#[tokio::test]
async fn a_socket_that_is_held_is_not_taken_twice() {
    let app = Application::named("app").await;
    let mut edge = Edge::serving(Rules::new().host("", &[app.address]).table());
    let another = crate::bed::listen();
    edge.main.listen(&[(Socket { role: Role::Http, address: edge.http }, another.into())]);
    edge.main.use_table(Rules::new().host("", &[app.address]).table());
    assert_eq!(get(edge.http, "x", "/").await.body, "app");
    assert_eq!(Main::connect(&edge.control).held.len(), 4);
    edge.main = Main::connect(&edge.control);
}

#[tokio::test]
async fn requests_are_counted() {
    let app = Application::named("app").await;
    let mut edge = Edge::serving(Rules::new().host("", &[app.address]).table());
    for _ in 0..3 {
        get(edge.http, "x", "/").await;
    }
    edge.main.send(&Down::Count);
    let Some(Up::Counters(counters)) = edge.main.hear() else { panic!("no counters") };
    assert_eq!((counters.requests, counters.connections, counters.dns_queries), (3, 3, 0));
}

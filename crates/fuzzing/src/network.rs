//! What the world, the edge and clients of the node say.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::LazyLock;

use hickory_proto::op::{Message, ResponseCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::dns::{Reply, Zone, encode, refusal, udp_limit};
use wire::edge::{self, Dns, Down, MAX_FRAME, MAX_UP_FRAME, PathMatch, Srv, Up};
use wire::spdy::{Event, MAX_STREAMS, Session, Side};

use crate::{halves, text};

pub(crate) fn dns_query(bytes: &[u8]) {
    static ZONE: LazyLock<Zone> = LazyLock::new(|| {
        let name = |name: &str| name.to_owned();
        let address = "10.96.0.7".parse().expect("an address");
        let many = (0..200).map(|n| std::net::IpAddr::from([10, 244, 1, n])).collect();
        Zone::new(Dns {
            domain: name("cluster.local"),
            addresses: BTreeMap::from([(name("web.rack.svc"), vec![address]), (name("all.rack.svc"), many)]),
            services: BTreeMap::from([(
                name("_http._tcp.web.rack.svc"),
                vec![Srv { port: 80, target: name("web.rack.svc") }],
            )]),
            aliases: BTreeMap::from([
                (name("db.rack.svc"), name("db.example.org")),
                (name("ring.rack.svc"), name("ring.rack.svc.cluster.local")),
            ]),
            reverse: BTreeMap::from([(address, vec![name("web.rack.svc")])]),
            reverse_zones: vec![name("96.10.in-addr.arpa")],
            pod_ranges: vec![("10.244.0.0".parse().expect("an address"), 16)],
            upstreams: Vec::new(),
        })
        .expect("a zone")
    });
    let Ok(query) = Message::from_vec(bytes) else { return };
    let answer = match ZONE.reply(&query) {
        Reply::Answer(answer) => answer,
        Reply::Forward => refusal(&query, ResponseCode::ServFail),
        Reply::Chase { so_far, .. } => so_far,
    };
    for limit in [udp_limit(&query), usize::from(u16::MAX)] {
        let Ok(bytes) = encode(&answer, limit) else { continue };
        assert!(bytes.len() <= limit, "{} > {limit}", bytes.len());
        Message::from_vec(&bytes).expect("what is written is read");
    }
}

/// A path and a host.
pub(crate) fn ingress_path(bytes: &[u8]) {
    let (path, host) = halves(bytes);
    if let Some(host) = text(host).and_then(::edge::fuzz::host) {
        assert!(!host.bytes().any(|byte| byte.is_ascii_uppercase()), "{host:?}");
    }
    let Some(path) = text(path).and_then(::edge::fuzz::normalized) else { return };
    assert!(PathMatch::Prefix("/".to_owned()).matches(&path));
    assert!(PathMatch::Exact(path.clone()).matches(&path) && PathMatch::Prefix(path.clone()).matches(&path));
    let within = PathMatch::Prefix("/admin".to_owned()).matches(&path);
    assert_eq!(within, path.split('/').nth(1) == Some("admin"), "{path:?}");
}

/// Takes messages until there are no more; each is written and read again.
fn messages<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let mut received = bytes.to_vec();
    while let Ok(Some(message)) = edge::take::<T>(&mut received, MAX_UP_FRAME) {
        let mut written = edge::frame(&message);
        let again = edge::take::<T>(&mut written, MAX_FRAME).expect("what is written is read");
        assert_eq!(again, Some(message));
    }
    assert!(received.len() <= bytes.len());
}

pub(crate) fn wire_up(bytes: &[u8]) {
    messages::<Up>(bytes);
}

pub(crate) fn wire_down(bytes: &[u8]) {
    messages::<Down>(bytes);
}

/// The same bytes to both sides, whole and in two pieces; the server answers as the node does.
pub(crate) fn spdy(bytes: &[u8]) {
    for side in [Side::Server, Side::Client] {
        let whole = heard(side, &[bytes]);
        let cut = bytes.len() / 2;
        assert_eq!(heard(side, &[&bytes[..cut], &bytes[cut..]]), whole, "pieces mean what the whole means");
    }
}

/// What a side hears: events without data, all data by stream, and whether it ended badly.
fn heard(side: Side, pieces: &[&[u8]]) -> (Vec<Event>, BTreeMap<u32, Vec<u8>>, bool) {
    let mut session = Session::new(side);
    let own = session.open(&vec![("port".to_owned(), "80".to_owned())]);
    let (mut events, mut data) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
    for piece in pieces {
        session.receive(piece);
        loop {
            match session.poll() {
                Ok(Some(Event::Data { stream, bytes })) => {
                    assert!(!bytes.is_empty());
                    session.send(stream, &bytes);
                    data.entry(stream).or_default().extend_from_slice(&bytes);
                }
                Ok(Some(event)) => {
                    if let Event::Opened { stream, .. } = event {
                        assert_ne!(Some(stream % 2), own.map(|own| own % 2));
                        session.accept(stream);
                    }
                    if let Event::Finished { stream } = event {
                        session.close(stream);
                    }
                    events.push(event);
                }
                Ok(None) => break,
                Err(_) => return (events, data, true),
            }
            assert!(session.open_streams() <= MAX_STREAMS + 1);
        }
    }
    (events, data, false)
}

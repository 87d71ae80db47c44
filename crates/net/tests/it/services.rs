//! What clients of services see: pods, the host, both families.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use net::pod;
use net::proxy::{Backend, Frontend, Protocol, Services};

use crate::world::{World, ask_tcp, ask_udp, within};

const V4: &str = "10.96.0.7";
const V6: &str = "fd00:96::7";

fn to(world: &World, pods: &[usize], family: usize, port: u16) -> Backend {
    let endpoints = pods.iter().map(|p| (world.pods[*p].ips[family], port)).collect();
    Backend { endpoints, ..Backend::default() }
}

fn web(world: &World, pods: &[usize]) -> Services {
    let frontend = |ip: &str| Frontend::Address(ip.parse().expect("IP"), Protocol::Tcp, 80);
    Services::from([(frontend(V4), to(world, pods, 0, 8080)), (frontend(V6), to(world, pods, 1, 8080))])
}

#[test]
fn pods_and_host_reach_pods_directly() {
    let world = World::new(2);
    world.serve_tcp(1, 8080);
    assert_eq!(ask_tcp(&world.pods[0].netns, "10.244.0.2:8080"), Ok("1 10.244.0.1".to_owned()));
    assert_eq!(ask_tcp(&world.pods[0].netns, "[fd00:244::2]:8080"), Ok("1 fd00:244::1".to_owned()));
    assert_eq!(ask_tcp(&world.host, "10.244.0.2:8080"), Ok("1 192.168.77.2".to_owned()));
    assert_eq!(ask_tcp(&world.host, "[fd00:244::2]:8080"), Ok("1 fd77::2".to_owned()));
}

#[test]
fn a_service_spreads_over_its_endpoints() {
    let mut world = World::new(3);
    world.serve_tcp(1, 8080);
    world.serve_tcp(2, 8080);
    world.program(&web(&world, &[1, 2]));
    for (client, target) in [
        (&world.pods[0].netns, "10.96.0.7:80"),
        (&world.host, "10.96.0.7:80"),
        (&world.pods[0].netns, "[fd00:96::7]:80"),
        (&world.host, "[fd00:96::7]:80"),
    ] {
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let answer = ask_tcp(client, target).unwrap_or_else(|e| panic!("{target}: {e}"));
            seen.insert(answer.split(' ').next().expect("number").to_owned());
        }
        assert_eq!(seen.len(), 2, "{target}");
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut world = World::new(1);
    world.serve_tcp(0, 8080);
    world.program(&web(&world, &[0]));
    assert!(ask_tcp(&world.pods[0].netns, "10.96.0.7:80").is_ok());
    assert!(ask_tcp(&world.pods[0].netns, "[fd00:96::7]:80").is_ok());
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let mut world = World::new(1);
    world.program(&web(&world, &[]));
    for client in [&world.pods[0].netns, &world.host] {
        assert_eq!(ask_tcp(client, "10.96.0.7:80"), Err(ErrorKind::ConnectionRefused));
        assert_eq!(ask_tcp(client, "[fd00:96::7]:80"), Err(ErrorKind::ConnectionRefused));
    }
}

#[test]
fn an_unused_service_address_is_dropped() {
    let world = World::new(1);
    assert_eq!(ask_tcp(&world.pods[0].netns, "10.96.0.99:80"), Err(ErrorKind::TimedOut));
}

#[test]
fn changes_take_effect_for_the_next_connection() {
    let mut world = World::new(3);
    world.serve_tcp(1, 8080);
    world.serve_tcp(2, 8080);
    world.program(&web(&world, &[1]));
    assert_eq!(ask_tcp(&world.pods[0].netns, "10.96.0.7:80"), Ok("1 10.244.0.1".to_owned()));
    world.program(&web(&world, &[2]));
    assert_eq!(ask_tcp(&world.pods[0].netns, "10.96.0.7:80"), Ok("2 10.244.0.1".to_owned()));
    world.program(&Services::new());
    assert_eq!(ask_tcp(&world.pods[0].netns, "10.96.0.7:80"), Err(ErrorKind::TimedOut));
}

#[test]
fn a_client_stays_with_its_endpoint() {
    let mut world = World::new(3);
    world.serve_tcp(1, 8080);
    world.serve_tcp(2, 8080);
    let mut services = web(&world, &[1, 2]);
    services.values_mut().for_each(|backend| backend.affinity_seconds = Some(10_800));
    world.program(&services);
    for target in ["10.96.0.7:80", "[fd00:96::7]:80"] {
        let first = ask_tcp(&world.pods[0].netns, target).expect("answer");
        for _ in 0..20 {
            assert_eq!(ask_tcp(&world.pods[0].netns, target).as_ref(), Ok(&first));
        }
    }
}

#[test]
fn host_ports_lead_into_their_pod_from_everywhere() {
    let mut world = World::new(2);
    world.serve_tcp(1, 8080);
    world.serve_udp(1, 8080);
    let port = |ipv4, protocol| Frontend::HostPort { ipv4, protocol, port: 54323 };
    world.program(&Services::from([
        (port(true, Protocol::Tcp), to(&world, &[1], 0, 8080)),
        (port(false, Protocol::Tcp), to(&world, &[1], 1, 8080)),
        (port(true, Protocol::Udp), to(&world, &[1], 0, 8080)),
    ]));
    let uid = world.pods[1].uid.clone();
    within(&world.host, move || pod::route_loopback(&uid).expect("setting"));
    for (client, target) in [
        (&world.pods[0].netns, "192.168.77.2:54323"),
        (&world.pods[0].netns, "[fd77::2]:54323"),
        (&world.pods[1].netns, "192.168.77.2:54323"),
        (&world.pods[1].netns, "[fd77::2]:54323"),
        (&world.host, "192.168.77.2:54323"),
        (&world.host, "[fd77::2]:54323"),
        (&world.host, "127.0.0.1:54323"),
    ] {
        let answer = ask_tcp(client, target).unwrap_or_else(|error| panic!("{target}: {error}"));
        assert!(answer.starts_with("1 "), "{target}: {answer}");
    }
    assert_eq!(ask_udp(&world.host, "0.0.0.0:0", "192.168.77.2:54323").as_deref(), Ok("1"));
    assert_eq!(ask_udp(&world.host, "0.0.0.0:0", "127.0.0.1:54323").as_deref(), Ok("1"));
    world.program(&Services::new());
    assert_eq!(ask_tcp(&world.host, "127.0.0.1:54323"), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn a_host_port_at_one_address_leaves_the_others_alone() {
    let mut world = World::new(3);
    for pod in [0, 1] {
        world.serve_tcp(pod, 8080);
    }
    let at = |ip: &str| Frontend::HostAddress(ip.parse().expect("IP"), Protocol::Tcp, 54323);
    let (local, node) = (to(&world, &[0], 0, 8080), to(&world, &[1], 0, 8080));
    world.program(&Services::from([(at("127.0.0.1"), local), (at("192.168.77.2"), node)]));
    let uid = world.pods[0].uid.clone();
    within(&world.host, move || pod::route_loopback(&uid).expect("setting"));
    let from = |client, target| ask_tcp(client, target).map(|answer| answer[..1].to_owned());
    assert_eq!(from(&world.host, "127.0.0.1:54323").as_deref(), Ok("0"));
    assert_eq!(from(&world.host, "192.168.77.2:54323").as_deref(), Ok("1"));
    assert_eq!(from(&world.pods[2].netns, "192.168.77.2:54323").as_deref(), Ok("1"));
}

#[test]
fn a_pod_with_a_host_port_cannot_reach_the_hosts_loopback() {
    let mut world = World::new(1);
    world.serve_on_host(7777);
    let port = Frontend::HostPort { ipv4: true, protocol: Protocol::Tcp, port: 54323 };
    world.program(&Services::from([(port, to(&world, &[0], 0, 8080))]));
    let uid = world.pods[0].uid.clone();
    within(&world.host, move || pod::route_loopback(&uid).expect("setting"));
    assert!(ask_tcp(&world.host, "127.0.0.1:7777").is_ok());
    // The pod gives its loopback's range away to the gateway, and lets itself use it.
    within(&world.pods[0].netns, || {
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").expect("setting");
        let down = std::process::Command::new("ip").args(["link", "set", "lo", "down"]).status().expect("iproute2");
        assert!(down.success());
        let mut routes = net::route::Routes::open().expect("rtnetlink");
        let index = routes.index_of("eth0").expect("eth0");
        routes.add_host_route(index, "127.0.0.9".parse().expect("IP")).expect("route");
        let mac = [0xee; 6];
        routes.add_neighbour(index, "127.0.0.9".parse().expect("IP"), mac).expect("neighbour");
    });
    assert_eq!(ask_tcp(&world.pods[0].netns, "127.0.0.9:7777"), Err(ErrorKind::TimedOut));
}

#[test]
fn node_ports_answer_on_the_nodes_address_but_not_on_loopback() {
    let mut world = World::new(2);
    world.serve_tcp(1, 8080);
    let node_port = |ipv4| Frontend::NodePort { ipv4, protocol: Protocol::Tcp, port: 30080 };
    world.program(&Services::from([
        (node_port(true), to(&world, &[1], 0, 8080)),
        (node_port(false), to(&world, &[1], 1, 8080)),
    ]));
    assert!(ask_tcp(&world.pods[0].netns, "192.168.77.2:30080").is_ok());
    assert!(ask_tcp(&world.pods[0].netns, "[fd77::2]:30080").is_ok());
    assert!(ask_tcp(&world.host, "192.168.77.2:30080").is_ok());
    assert_eq!(ask_tcp(&world.host, "127.0.0.1:30080"), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn udp_is_translated_too() {
    let mut world = World::new(2);
    world.serve_udp(1, 5353);
    let frontend = Frontend::Address(V4.parse().expect("IP"), Protocol::Udp, 53);
    world.program(&Services::from([(frontend, to(&world, &[1], 0, 5353))]));
    assert_eq!(ask_udp(&world.pods[0].netns, "0.0.0.0:0", "10.96.0.7:53"), Ok("1".to_owned()));
}

#[test]
fn a_hidden_port_is_reached_through_its_service_only() {
    let mut world = World::new(1);
    world.serve_on_host(10053);
    let frontend = Frontend::Address(V4.parse().expect("IP"), Protocol::Tcp, 53);
    let endpoints = [("192.168.77.2".parse().expect("IP"), 10053)].into();
    world.program(&Services::from([(frontend, Backend { endpoints, ..Backend::default() })]));
    for client in [&world.pods[0].netns, &world.host] {
        assert_eq!(ask_tcp(client, "10.96.0.7:53"), Ok("host".to_owned()));
        assert_eq!(ask_tcp(client, "192.168.77.2:10053"), Err(ErrorKind::ConnectionRefused));
    }
}

#[test]
fn a_pod_cannot_send_from_another_address() {
    let world = World::new(2);
    let stolen: IpAddr = "10.244.0.77".parse().expect("IP");
    within(&world.pods[0].netns, move || {
        let mut routes = net::route::Routes::open().expect("rtnetlink");
        let index = routes.index_of("eth0").expect("eth0");
        routes.add_address(index, stolen).expect("address");
    });
    assert!(receives(&world, "10.244.0.1"));
    assert!(!receives(&world, "10.244.0.77"));
}

/// Whether a datagram that pod 0 sends from `source` arrives at pod 1.
fn receives(world: &World, source: &str) -> bool {
    let source: IpAddr = source.parse().expect("IP");
    let receiver = within(&world.pods[1].netns, || UdpSocket::bind("0.0.0.0:9").expect("bind"));
    receiver.set_read_timeout(Some(Duration::from_millis(300))).expect("option");
    within(&world.pods[0].netns, move || {
        let sender = UdpSocket::bind((source, 0)).expect("bind");
        sender.send_to(b"x", "10.244.0.2:9").expect("sent");
    });
    receiver.recv(&mut [0; 8]).is_ok()
}

#[test]
fn detaching_leaves_nothing() {
    let world = World::new(1);
    let (uid, ips) = (world.pods[0].uid.clone(), world.pods[0].ips.clone());
    within(&world.host, move || {
        pod::detach(&uid, &ips).expect("detach");
        pod::detach(&uid, &ips).expect("again");
        let mut routes = net::route::Routes::open().expect("rtnetlink");
        assert!(!routes.links().expect("links").iter().any(|(_, name)| name.starts_with(pod::LINK_PREFIX)));
        assert_eq!(routes.own_host_routes().expect("routes"), vec![]);
    });
}

//! Labs of several machines.

use std::path::Path;

use testkit::host::Lab;

#[test]
fn hosts_reach_each_other_and_keep_their_files_apart() {
    let mut lab = Lab::unique().expect("root");
    let (a, b) = (lab.add_host("alpha").expect("host"), lab.add_host("beta").expect("host"));
    for ip in [&lab.host(b).ipv4, &lab.host(b).ipv6] {
        // Nothing listens there: the refusal is the other host's answer.
        let answer = lab.host(a).run(&["timeout", "5", "bash", "-c", &format!("exec 3<>/dev/tcp/{ip}/9")]);
        assert!(format!("{answer:?}").contains("refused"), "{answer:?}");
    }
    lab.host(a).run(&["sh", "-c", "echo x > /etc/only-here; echo x > /var/lib/coracle/only-here"]).expect("writable");
    assert_eq!(lab.host(a).run(&["hostname"]).expect("hostname"), "alpha\n");
    assert!(lab.host(b).run(&["cat", "/etc/only-here"]).is_err());
    assert!(!Path::new("/etc/only-here").exists());
    assert!(lab.host(a).dir.join("var/lib/coracle/only-here").exists(), "real directories are seen from outside");
}

#[test]
fn nothing_stays_behind() {
    let mut lab = Lab::unique().expect("root");
    lab.add_host("alpha").expect("host");
    let (dir, switch) = (lab.dir().to_owned(), lab.switch());
    drop(lab);
    assert!(!dir.exists());
    assert!(!Path::new("/run/netns").join(switch).exists());
}

#[test]
fn a_lab_in_use_is_left_alone() {
    let name = format!("u{:05}", std::process::id() % 100_000);
    let mut lab = Lab::new(&name).expect("root");
    lab.add_host("a").unwrap();
    let refused = Lab::new(&name).map(drop).unwrap_err().to_string();
    assert!(refused.contains("is in use"), "{refused}");
    lab.host(0).run(&["ip", "link", "show", "eth0"]).unwrap();
    drop(lab);
    Lab::new(&name).unwrap();
}

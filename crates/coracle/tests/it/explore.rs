#[test]
fn explore() {
    if std::env::var_os("EXPLORE").is_none() {
        return;
    }
    let c = crate::cluster::shared();
    std::fs::write("/tmp/hk/lab", c.lab.host_netns(0).display().to_string()).unwrap();
    let holder = c.host().run(&["sh", "-c", "ls -l /proc/self/ns/mnt"]).unwrap();
    println!("{holder} {:?}", c.host().command("x"));
    while !std::path::Path::new("/tmp/hk/stop").exists() {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
}

//! The images that the conformance tests use, made of upstream's own programs and of Debian's, under their own names.
//!
//! Source: kubernetes `test/utils/image/manifest.go` (names and tags), `test/images/*/Dockerfile` (users, files, commands).

use anyhow::Result;
use serde_json::json;

use super::libraries::{Program, with_programs};
use super::tools::Tools;
use crate::debian::Debian;
use crate::images::{BuiltImage, Compression, Layer};
use crate::registry::Registry;
use crate::stand_ins::{self, GROUP, PASSWD};

/// Registries that are answered for; any image that is not here is not found there.
pub const MIRRORED: &[&str] = &["registry.k8s.io", "gcr.io", "docker.io"];

/// What tests of DNS and of services run in a shell.
const NETWORK_PROGRAMS: &[Program] = &[
    ("bind9-dnsutils", "usr/bin/dig", &["usr/bin/dig"]),
    ("bind9-dnsutils", "usr/bin/nslookup", &["usr/bin/nslookup", "bin/nslookup"]),
    ("curl", "usr/bin/curl", &["usr/bin/curl"]),
    ("libc-bin", "usr/bin/getent", &["usr/bin/getent", "bin/getent"]),
    ("netcat-openbsd", "usr/bin/nc.openbsd", &["usr/bin/nc", "bin/nc"]),
];
const NGINX: &str = "worker_processes 1;
error_log /dev/stderr;
pid /tmp/nginx.pid;
events { worker_connections 64; }
http { access_log off; server { listen 80; root /usr/share/nginx/html; } }
";
const PAGE: &str = "<!doctype html><title>nginx</title>\n";

/// Makes all images and offers them in a registry.
///
/// # Errors
/// When a package cannot be fetched or a program is not built.
pub fn offer(registry: &Registry, tools: &Tools, debian: &Debian) -> Result<()> {
    let busybox = stand_ins::busybox_of(&tools.busybox(debian)?)?;
    let network = with_programs(debian, Layer::new(), NETWORK_PROGRAMS)?.finish();
    let agnhost = agnhost(tools, &busybox, &network)?;
    let of_tests = |name: &str, tag: &str, image: &BuiltImage| {
        registry.add(&format!("e2e-test-images/{name}"), tag, image);
    };
    of_tests("agnhost", "2.66.1", &agnhost);
    of_tests("agnhost", "2.55", &agnhost);
    of_tests("busybox", "1.37.0-2", &busybox);
    of_tests("nginx", "1.27.0-2", &nginx(debian, &busybox)?);
    of_tests("glibc-dns-testing", "2.1.1", &extended(&busybox, json!({}), network));
    for (name, tag) in [("kitten", "1.8"), ("nautilus", "1.8")] {
        of_tests(name, tag, &pictures(tools, &agnhost, name)?);
    }
    of_tests("nonewprivs", "1.4", &nonewprivs(tools, &busybox)?);
    let server = Layer::new().file("sample-apiserver", 0o755, &std::fs::read(tools.program("sample-apiserver"))?);
    let config = json!({"Entrypoint": ["/sample-apiserver"], "Cmd": null});
    of_tests("sample-apiserver", "1.29.2", &extended(&busybox, config, server.finish()));
    registry.add("pause", "3.10.2", &stand_ins::pause()?);
    let etcd: Program = ("etcd-server", "usr/bin/etcd", &["usr/local/bin/etcd"]);
    let etcd = with_programs(debian, Layer::new().dir("usr/local", 0o755).dir("usr/local/bin", 0o755), &[etcd])?;
    registry.add("etcd", "3.7.0-0", &extended(&busybox, json!({"Cmd": ["etcd"]}), etcd.finish()));
    Ok(())
}

/// Uncompressed: the registry is on loopback.
fn extended(base: &BuiltImage, config: serde_json::Value, layer: Vec<u8>) -> BuiltImage {
    base.extend(&config, &[layer], Compression::None)
}

fn agnhost(tools: &Tools, busybox: &BuiltImage, network: &[u8]) -> Result<BuiltImage> {
    let porter = |name: &str| tools.source(&format!("test/images/agnhost/porter/{name}"));
    let user = "user-defined-in-image";
    let layer = Layer::new()
        .file("agnhost", 0o755, &std::fs::read(tools.program("agnhost"))?)
        .symlink("agnhost-2", "agnhost")
        .dir("uploads", 0o755)
        .file("localhost.crt", 0o644, &porter("localhost.crt")?)
        .file("localhost.key", 0o644, &porter("localhost.key")?)
        .file("etc/passwd", 0o644, format!("{PASSWD}{user}:x:1000:1000::/home/{user}:/bin/sh\n").as_bytes())
        .file("etc/group", 0o644, format!("{GROUP}{user}:x:1000:\ngroup-defined-in-image:x:50000:{user}\n").as_bytes());
    let config = json!({
        "Entrypoint": ["/agnhost"],
        "Cmd": ["pause"],
        "ExposedPorts": {"80/tcp": {}, "5000/tcp": {}, "8080/tcp": {}, "8081/tcp": {}, "9376/tcp": {}},
    });
    Ok(busybox.extend(&config, &[network.to_vec(), layer.finish()], Compression::None))
}

/// A picture and what describes it, served by agnhost. Tests of image volumes ask what the image is based on.
fn pictures(tools: &Tools, agnhost: &BuiltImage, name: &str) -> Result<BuiltImage> {
    let file = |file: &str| tools.source(&format!("test/images/{name}/html/{file}"));
    let picture = format!("{name}.jpg");
    let layer =
        Layer::new().file(&picture, 0o644, &file(&picture)?).file("data.json", 0o644, &file("data.json")?).file(
            "etc/os-release",
            0o644,
            b"NAME=\"Alpine Linux\"\nID=alpine\nPRETTY_NAME=\"stands in for Alpine Linux\"\n",
        );
    Ok(extended(agnhost, json!({"Cmd": ["test-webserver"]}), layer.finish()))
}

fn nonewprivs(tools: &Tools, busybox: &BuiltImage) -> Result<BuiltImage> {
    let layer = Layer::new().dir("usr/local", 0o755).dir("usr/local/bin", 0o755).file(
        "usr/local/bin/nnp",
        0o6755,
        &std::fs::read(tools.program("nonewprivs"))?,
    );
    Ok(extended(busybox, json!({"Cmd": ["nnp"]}), layer.finish()))
}

fn nginx(debian: &Debian, busybox: &BuiltImage) -> Result<BuiltImage> {
    let layer = Layer::new();
    let layer = ["etc/nginx", "var/lib", "var/lib/nginx", "var/log", "var/log/nginx", "usr/share", "usr/share/nginx"]
        .iter()
        .fold(layer, |layer, directory| layer.dir(directory, 0o755))
        .dir("usr/share/nginx/html", 0o755)
        .file("usr/share/nginx/html/index.html", 0o644, PAGE.as_bytes())
        .file("etc/nginx/nginx.conf", 0o644, NGINX.as_bytes());
    let layer = with_programs(debian, layer, &[("nginx", "usr/sbin/nginx", &["usr/sbin/nginx"])])?;
    Ok(extended(busybox, json!({"Cmd": ["nginx", "-g", "daemon off;"]}), layer.finish()))
}

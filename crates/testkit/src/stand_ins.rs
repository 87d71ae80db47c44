//! Images that stand in for public ones where no public registry can be reached, built from Debian packages.
//!
//! They do what their originals do as far as a cluster can see: the same ports, users, volumes and needs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::debian::Debian;
use crate::images::{BuiltImage, Compression, Layer};

/// Uid of the user `static` in the website's image, as busybox's adduser gives it.
pub const STATIC_UID: u32 = 1000;
/// Port of the website: the one in the post.
pub const WEBSITE_PORT: u16 = 11245;
/// Port of Komga and its stand-in.
pub const LIBRARY_PORT: u16 = 25600;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
pub(crate) const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\nmail:x:8:8:mail:/var/spool/mail:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
pub(crate) const GROUP: &str =
    "root:x:0:\ndaemon:x:1:\nbin:x:2:\nmail:x:8:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";

/// In place of `docker.io/library/busybox:1.37.0-glibc`: a shell and every applet as a hard link, root, command `sh`.
///
/// # Errors
/// When the package cannot be fetched.
pub fn busybox(debian: &Debian) -> Result<BuiltImage> {
    busybox_of(&debian.unpacked("busybox-static")?.join("usr/bin/busybox"))
}

/// The same with another build of busybox.
///
/// # Errors
/// When it cannot be run.
pub fn busybox_of(program: &Path) -> Result<BuiltImage> {
    let listed = Command::new(program).arg("--list").output().with_context(|| format!("could not run {program:?}"))?;
    ensure!(listed.status.success(), "{program:?} --list failed");
    let applets = String::from_utf8(listed.stdout).context("applet names are not text")?;
    let mut layer = Layer::new();
    for directory in ["bin", "dev", "etc", "home", "usr", "usr/bin", "usr/sbin", "var", "var/www"] {
        layer = layer.dir(directory, 0o755);
    }
    layer = layer.dir("root", 0o700).dir("tmp", 0o1777).dir("var/spool", 0o755).dir("var/spool/mail", 0o755);
    layer = layer.file("bin/busybox", 0o755, &fs::read(program)?);
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox");
    }
    layer = layer
        .symlink("usr/bin/env", "../../bin/env")
        .file("etc/passwd", 0o644, PASSWD.as_bytes())
        .file("etc/group", 0o644, GROUP.as_bytes())
        .file("etc/shadow", 0o600, b"root:*:::::::\n")
        .file("etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nhosts: files dns\n");
    Ok(BuiltImage::new(json!({"Env": [PATH], "Cmd": ["sh"]}), &[layer.finish()], Compression::Gzip))
}

/// The rack's static site: what the post's Containerfile makes, serving `pages` (path below the root, content).
///
/// Runs as the named user `static` (uid [`STATIC_UID`]) on port [`WEBSITE_PORT`].
///
/// # Errors
/// When busybox cannot be fetched.
pub fn website(debian: &Debian, pages: &[(&str, &str)]) -> Result<BuiltImage> {
    let uid = u64::from(STATIC_UID);
    let user = Layer::new()
        .file(
            "etc/passwd",
            0o644,
            format!("{PASSWD}static:x:{uid}:{uid}:Linux User,,,:/home/static:/bin/sh\n").as_bytes(),
        )
        .file("etc/group", 0o644, format!("{GROUP}static:x:{uid}:\n").as_bytes())
        .owner(uid, uid)
        .dir("home/static", 0o755);
    let mut site = Layer::new();
    for (path, content) in pages {
        let mut parent = String::from("home/static");
        let (directories, _) = path.rsplit_once('/').unwrap_or(("", path));
        for directory in directories.split('/').filter(|name| !name.is_empty()) {
            parent = format!("{parent}/{directory}");
            site = site.dir(&parent, 0o755);
        }
        site = site.file(&format!("home/static/{path}"), 0o644, content.as_bytes());
    }
    let config = json!({
        "User": "static",
        "WorkingDir": "/home/static",
        "Cmd": ["busybox", "httpd", "-f", "-v", "-p", WEBSITE_PORT.to_string()],
    });
    Ok(busybox(debian)?.extend(&config, &[user.finish(), site.finish()], Compression::Gzip))
}

/// In place of `docker.io/gotson/komga`: serves on [`LIBRARY_PORT`], keeps SQLite in the volume /config, lists /data, and
/// needs a writable /tmp; runs as any uid on a read-only root.
///
/// `GET /actuator/health` asks the database; any other path counts the visit and lists the books.
///
/// # Errors
/// When a package cannot be fetched.
pub fn library(debian: &Debian) -> Result<BuiltImage> {
    let mut layer = Layer::new().dir("app", 0o755).dir("config", 0o777).dir("data", 0o755).dir("lib", 0o755);
    layer = layer.dir("lib64", 0o755).file("app/serve", 0o755, SERVE.as_bytes());
    layer = layer.file("app/answer", 0o755, ANSWER.as_bytes());
    let sqlite = debian.unpacked("sqlite3")?.join("usr/bin/sqlite3");
    layer = layer.file("app/sqlite3", 0o755, &fs::read(&sqlite).with_context(|| format!("could not read {sqlite:?}"))?);
    for (package, libraries) in LIBRARIES {
        let root = debian.unpacked(package)?;
        for name in *libraries {
            let found = find_library(&root, name)?;
            let content = fs::read(&found).with_context(|| format!("could not read {found:?}"))?;
            let mode = fs::metadata(&found)?.permissions().mode() & 0o777;
            let directory = if name.starts_with("ld-linux-x86-64") { "lib64" } else { "lib" };
            layer = layer.file(&format!("{directory}/{name}"), mode, &content);
        }
    }
    let config = json!({
        "Entrypoint": ["/app/serve"],
        "Cmd": null,
        "Env": [PATH, format!("PORT={LIBRARY_PORT}")],
        "ExposedPorts": {format!("{LIBRARY_PORT}/tcp"): {}},
        "Volumes": {"/config": {}},
        "WorkingDir": "/app",
    });
    Ok(busybox(debian)?.extend(&config, &[layer.finish()], Compression::Gzip))
}

#[cfg(target_arch = "aarch64")]
const LOADER: &str = "ld-linux-aarch64.so.1";
#[cfg(not(target_arch = "aarch64"))]
const LOADER: &str = "ld-linux-x86-64.so.2";

/// What sqlite3 links with, by package.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("libc6", &["libc.so.6", "libm.so.6", LOADER]),
    ("libsqlite3-0", &["libsqlite3.so.0"]),
    ("libreadline8t64", &["libreadline.so.8"]),
    ("libtinfo6", &["libtinfo.so.6"]),
    ("zlib1g", &["libz.so.1"]),
];

fn find_library(root: &Path, name: &str) -> Result<std::path::PathBuf> {
    for directory in ["usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib", "usr/lib64"] {
        let path = root.join(directory).join(name);
        // Debian's links are relative and stay in one directory.
        if let Ok(found) = fs::canonicalize(&path) {
            return Ok(found);
        }
    }
    anyhow::bail!("{root:?} does not hold {name}")
}

/// The shell stays as the first process, so that SIGTERM ends the container at once.
const SERVE: &str = r#"#!/bin/sh
# Stand-in for Komga: the same port, volumes and needs.
set -eu
export HOME=/tmp
probe=$(mktemp) || { echo "/tmp is not writable: mount an emptyDir there" >&2; exit 1; }
rm "$probe"
/app/sqlite3 /config/database.sqlite \
  'PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS visit (path TEXT PRIMARY KEY, times INTEGER NOT NULL);' \
  >/dev/null || { echo "/config is not writable by uid $(id -u)" >&2; exit 1; }
echo "serving on port $PORT as uid $(id -u)"
nc -ll -p "$PORT" -e /app/answer &
trap 'kill $!; exit 143' TERM INT
wait $!
"#;

/// One request on standard input, its answer on standard output.
const ANSWER: &str = r#"#!/bin/sh
set -eu
read -r method path version
while read -r line && [ "$line" != "$(printf '\r')" ]; do :; done
page=$(mktemp)
trap 'rm -f "$page"' EXIT
sql() { /app/sqlite3 -cmd '.timeout 5000' /config/database.sqlite "$@"; }
status='200 OK' type=application/json
case $path in
/actuator/health)
  if sql 'SELECT 1' >/dev/null; then echo '{"status":"UP"}' >"$page"
  else status='503 Service Unavailable'; echo '{"status":"DOWN"}' >"$page"; fi ;;
*)
  type=text/html
  times=$(sql "INSERT INTO visit VALUES ('all', 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times")
  { echo "<!doctype html><title>The library</title><h1>The library</h1><p>Visit $times</p><ul>"
    for book in /data/*; do [ -e "$book" ] && echo "<li>${book##*/}</li>"; done
    echo "</ul>"; } >"$page" ;;
esac
printf 'HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %s\r\nConnection: close\r\n\r\n' \
  "$status" "$type" "$(wc -c <"$page")"
[ "$method" = HEAD ] || cat "$page"
"#;

/// In place of `registry.k8s.io/pause`: waits for SIGTERM or SIGINT and exits 0.
pub fn pause() -> Result<BuiltImage> {
    let (program, entrypoint) = match std::env::consts::ARCH {
        "x86_64" => (pause_elf(), json!(["/pause"])),
        _ => {
            let script = b"#!/bin/sh\ntrap 'exit 0' TERM INT\nsleep infinity &\nwait\n".to_vec();
            let layer = Layer::new().file("pause", 0o755, &script).finish();
            return Ok(busybox(&Debian::new())?.extend(
                &json!({"Entrypoint": ["/pause"], "Cmd": null}),
                &[layer],
                Compression::Gzip,
            ));
        }
    };
    let layer = Layer::new().file("pause", 0o755, &program).finish();
    let config = json!({"User": "65535:65535", "Env": [PATH], "Entrypoint": entrypoint, "WorkingDir": "/"});
    Ok(BuiltImage::new(config, &[layer], Compression::Gzip))
}

/// A static program for x86-64: blocks SIGINT and SIGTERM, waits for one of them, exits 0.
fn pause_elf() -> Vec<u8> {
    #[rustfmt::skip]
    const CODE: &[u8] = &[
        0x68, 0x02, 0x40, 0x00, 0x00,       // push 1<<1 | 1<<14 (SIGINT, SIGTERM)
        0x48, 0x89, 0xe6,                   // mov rsi, rsp
        0x31, 0xff,                         // xor edi, edi (SIG_BLOCK)
        0x31, 0xd2,                         // xor edx, edx
        0x6a, 0x08, 0x41, 0x5a,             // push 8; pop r10
        0xb8, 0x0e, 0x00, 0x00, 0x00,       // mov eax, rt_sigprocmask
        0x0f, 0x05,                         // syscall
        0x48, 0x89, 0xe7,                   // wait: mov rdi, rsp
        0x31, 0xf6,                         // xor esi, esi
        0x31, 0xd2,                         // xor edx, edx
        0x6a, 0x08, 0x41, 0x5a,             // push 8; pop r10
        0xb8, 0x80, 0x00, 0x00, 0x00,       // mov eax, rt_sigtimedwait
        0x0f, 0x05,                         // syscall
        0x85, 0xc0,                         // test eax, eax
        0x78, 0xea,                         // js wait (interrupted)
        0x31, 0xff,                         // xor edi, edi
        0xb8, 0xe7, 0x00, 0x00, 0x00,       // mov eax, exit_group
        0x0f, 0x05,                         // syscall
    ];
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + CODE.len() as u64;
    let mut elf = Vec::with_capacity(size as usize);
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, EV_CURRENT
    for field in [BASE + HEADERS, 64, 0] {
        elf.extend_from_slice(&field.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, read and execute
    for field in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(CODE);
    elf
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::unix::process::CommandExt as _;
    use std::path::PathBuf;
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// A root directory with an image's files, gone on drop with the process that ran in it.
    struct Root {
        path: PathBuf,
        child: Option<Child>,
    }

    impl Root {
        fn of(name: &str, image: &BuiltImage) -> Root {
            let path = std::env::temp_dir().join(format!("coracle-stand-in-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            for layer in &image.tars {
                let mut archive = tar::Archive::new(&layer[..]);
                archive.set_preserve_permissions(true);
                archive.unpack(&path).unwrap();
            }
            let null = path.join("dev/null");
            if image.tars.len() > 1 {
                use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
                mknodat(CWD, &null, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)).unwrap();
                fs::set_permissions(&null, fs::Permissions::from_mode(0o666)).unwrap();
            }
            Root { path, child: None }
        }

        fn run(&mut self, uid: u32, directory: &str, port: u16, argv: &[&str]) {
            let mut command = Command::new("unshare");
            command.arg("--root").arg(&self.path).arg(format!("--wd={directory}"));
            command.args([format!("--setgid={uid}"), format!("--setuid={uid}")]).args(argv);
            command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("PORT", port.to_string());
            command.stdin(Stdio::null()).process_group(0);
            self.child = Some(command.spawn().unwrap());
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            if let Some(mut child) = self.child.take() {
                let group = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                let _ = child.wait();
            }
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    fn free_port() -> u16 {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    fn get(port: u16, path: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                return answer;
            }
            assert!(Instant::now() < deadline, "nothing listens on {port}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn library_answers_from_its_database_as_any_user() {
        let mut root = Root::of("library", &library(&Debian::new()).unwrap());
        let config = root.path.join("config");
        std::os::unix::fs::chown(&config, Some(119), Some(119)).unwrap();
        fs::write(root.path.join("data/Walden.epub"), "").unwrap();
        let port = free_port();
        root.run(119, "/app", port, &["/app/serve"]);
        let health = get(port, "/actuator/health");
        assert!(health.starts_with("HTTP/1.1 200") && health.contains(r#""status":"UP""#), "{health}");
        get(port, "/");
        let page = get(port, "/");
        assert!(page.contains("Visit 2") && page.contains("Walden.epub"), "{page}");
        assert!(config.join("database.sqlite").exists());
    }

    #[test]
    fn website_serves_its_pages() {
        let image =
            website(&Debian::new(), &[("index.html", "<h1>Hello</h1>"), ("notes/first.html", "first")]).unwrap();
        let mut root = Root::of("website", &image);
        let port = free_port().to_string();
        root.run(STATIC_UID, "/home/static", 0, &["busybox", "httpd", "-f", "-v", "-p", &port]);
        assert!(get(port.parse().unwrap(), "/").contains("<h1>Hello</h1>"));
        assert!(get(port.parse().unwrap(), "/notes/first.html").contains("first"));
    }

    #[test]
    fn pause_ends_on_sigterm() {
        let mut root = Root::of("pause", &pause().unwrap());
        root.run(65535, "/", 0, &["/pause"]);
        let mut child = root.child.take().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        let waits = || fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap().starts_with("128 ");
        let deadline = Instant::now() + Duration::from_secs(20);
        while !waits() {
            assert!(Instant::now() < deadline, "pause does not wait for signals");
            std::thread::sleep(Duration::from_millis(5));
        }
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

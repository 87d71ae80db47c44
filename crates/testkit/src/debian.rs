//! Programs for test images, from Debian packages fetched by the machine's own apt.
//!
//! A private apt directory below `target/testkit` points the machine's own mirror at the suite wanted, so neither the
//! machine's package lists nor its installed packages change. Each package is fetched and unpacked once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result, bail, ensure};

/// The suite that stand-ins come from: the first with busybox 1.37.
pub const SUITE: &str = "trixie";

/// Unpacked packages of one suite, kept below a cache directory.
#[derive(Debug)]
pub struct Debian {
    cache: PathBuf,
    suite: String,
}

/// One fetch at a time in this process; across processes renames decide.
static FETCH: Mutex<()> = Mutex::new(());

impl Debian {
    /// Packages of [`SUITE`], kept in `target/testkit/debian` of this workspace.
    pub fn new() -> Debian {
        Debian::in_cache(&crate_target().join("debian"), SUITE)
    }

    pub fn in_cache(cache: &Path, suite: &str) -> Debian {
        Debian { cache: cache.join(suite), suite: suite.to_owned() }
    }

    /// The directory that holds the files of `package`, as it would install them.
    ///
    /// # Errors
    /// When apt cannot fetch it; the message holds apt's own.
    pub fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let done = self.cache.join("unpacked").join(package);
        if done.is_dir() {
            return Ok(done);
        }
        let _one = FETCH.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if done.is_dir() {
            return Ok(done);
        }
        let scratch = Scratch::below(&self.cache)?;
        let deb = self.fetch(package, &scratch.0)?;
        let tree = scratch.0.join("tree");
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree))?;
        fs::create_dir_all(done.parent().expect("joined above"))?;
        match fs::rename(&tree, &done) {
            Err(_) if done.is_dir() => Ok(done), // another process was first
            renamed => renamed.map(|()| done).with_context(|| format!("could not keep the files of {package}")),
        }
    }

    /// The sources of `package` as their authors released them, without Debian's changes.
    ///
    /// # Errors
    /// When apt cannot fetch them; the message holds apt's own.
    pub fn original_source(&self, package: &str) -> Result<PathBuf> {
        let done = self.cache.join("sources").join(package);
        let _one = FETCH.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if done.is_dir() {
            return Ok(done);
        }
        let apt = self.cache.join("apt-sources");
        if !apt.join("lists.done").exists() {
            self.prepare(&apt, "deb-src")?;
        }
        let scratch = Scratch::below(&self.cache)?;
        run(apt_get(&apt).current_dir(&scratch.0).args(["source", "--download-only", package]))
            .with_context(|| format!("could not fetch the sources of {package} of Debian {}", self.suite))?;
        let files = fs::read_dir(&scratch.0)?.flatten().map(|entry| entry.path());
        let mut archives = files.filter(|path| path.to_string_lossy().contains(".orig.tar"));
        let archive = archives.next().with_context(|| format!("{package} has no original sources"))?;
        let tree = scratch.0.join("tree");
        fs::create_dir(&tree)?;
        run(Command::new("tar").arg("--strip-components=1").arg("-C").arg(&tree).arg("-xf").arg(&archive))?;
        fs::create_dir_all(done.parent().expect("joined above"))?;
        fs::rename(&tree, &done).with_context(|| format!("could not keep the sources of {package}"))?;
        Ok(done)
    }

    /// The package on which `package`, an empty one that always means the newest, depends.
    ///
    /// # Errors
    /// When apt does not know it.
    pub fn newest_of(&self, package: &str) -> Result<String> {
        let _one = FETCH.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let apt = self.prepared()?;
        let output = apt_with("apt-cache", &apt).args(["show", "--no-all-versions", package]).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let depends = text.lines().find_map(|line| line.strip_prefix("Depends: ")?.split(' ').next());
        depends.map(str::to_owned).with_context(|| format!("Debian {} has no package {package}", self.suite))
    }

    /// The packages of shared libraries that `package` needs, and those that they need.
    ///
    /// # Errors
    /// When apt does not know it.
    pub fn libraries_of(&self, package: &str) -> Result<Vec<String>> {
        let kept = self.cache.join("libraries-of").join(package);
        if let Ok(names) = fs::read_to_string(&kept) {
            return Ok(names.lines().map(str::to_owned).collect());
        }
        let _one = FETCH.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let apt = self.prepared()?;
        let output = apt_with("apt-cache", &apt)
            .args(["depends", "--recurse", "--important", package])
            .output()
            .context("could not run apt-cache")?;
        ensure!(output.status.success(), "Debian {} has no package {package}", self.suite);
        let text = String::from_utf8_lossy(&output.stdout);
        // Each package stands at the beginning of a line, and what it depends on is indented.
        let is_library = |name: &&str| ["lib", "zlib", "bind9-libs"].iter().any(|begin| name.starts_with(begin));
        let names = text.lines().filter(|line| is_library(line) && *line != "libc6" && *line != package);
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names.dedup();
        fs::create_dir_all(kept.parent().expect("joined above"))?;
        fs::write(kept, names.join("\n"))?;
        Ok(names)
    }

    /// The private apt directory, with package lists in it.
    fn prepared(&self) -> Result<PathBuf> {
        let apt = self.cache.join("apt");
        if !apt.join("lists.done").exists() {
            self.prepare(&apt, "deb")?;
        }
        Ok(apt)
    }

    fn fetch(&self, package: &str, into: &Path) -> Result<PathBuf> {
        let apt = self.prepared()?;
        run(apt_get(&apt).current_dir(into).args(["download", package])).with_context(|| {
            format!("could not fetch the Debian package {package} of {}; is the Debian mirror reachable?", self.suite)
        })?;
        for entry in fs::read_dir(into)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                return Ok(path);
            }
        }
        bail!("apt-get download {package} left no .deb behind")
    }

    /// Writes the private sources and fetches the suite's lists, of packages (`deb`) or of sources (`deb-src`).
    fn prepare(&self, apt: &Path, types: &str) -> Result<()> {
        for directory in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(directory))?;
        }
        let mirror = Mirror::of_this_machine(Path::new("/etc/apt"))?;
        fs::write(apt.join("sources/suite.sources"), mirror.sources(types, &self.suite))?;
        run(apt_get(apt).arg("update")).with_context(|| {
            format!("could not fetch the package lists of Debian {} from {}", self.suite, mirror.uri)
        })?;
        fs::write(apt.join("lists.done"), "")?;
        Ok(())
    }
}

impl Default for Debian {
    fn default() -> Debian {
        Debian::new()
    }
}

/// `target/testkit` of this workspace.
pub fn crate_target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/testkit")
}

fn apt_get(apt: &Path) -> Command {
    apt_with("apt-get", apt)
}

/// One of apt's programs, seeing only the private directory.
fn apt_with(program: &str, apt: &Path) -> Command {
    let mut command = Command::new(program);
    let mut option = |key: &str, value: &str| {
        command.arg("-o").arg(format!("{key}={value}"));
    };
    let below = |name: &str| apt.join(name).display().to_string();
    option("Dir::Etc::sourcelist", "/dev/null");
    option("Dir::Etc::sourceparts", &below("sources"));
    option("Dir::State::lists", &below("lists"));
    option("Dir::State::status", "/dev/null");
    option("Dir::Cache", &below("cache"));
    option("Acquire::Languages", "none");
    option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
    option("APT::Sandbox::User", "root");
    command.arg("-q");
    command
}

/// Where this machine gets Debian from.
struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

impl Mirror {
    /// Reads deb822 `.sources` and one-line `.list` files, skipping the security archive.
    fn of_this_machine(etc_apt: &Path) -> Result<Mirror> {
        let mut files: Vec<PathBuf> = fs::read_dir(etc_apt.join("sources.list.d"))
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        files.sort();
        files.push(etc_apt.join("sources.list"));
        for path in files {
            let extension = path.extension().unwrap_or_default();
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let found = match extension.to_str() {
                Some("sources") => text.split("\n\n").find_map(Mirror::from_stanza),
                Some("list") => text.lines().find_map(Mirror::from_line),
                _ => None,
            };
            if let Some(mirror) = found {
                return Ok(mirror);
            }
        }
        bail!("no Debian mirror in /etc/apt/sources.list and /etc/apt/sources.list.d: add one")
    }

    fn from_stanza(stanza: &str) -> Option<Mirror> {
        let field = |name: &str| {
            stanza.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
        };
        let uri = field("URIs")?.split_whitespace().next()?.to_owned();
        let debian = uri.contains("debian") && !uri.contains("security") && !field("Suites")?.contains("security");
        let on = field("Enabled").is_none_or(|enabled| enabled != "no");
        (debian && on).then(|| Mirror { uri, signed_by: field("Signed-By") })
    }

    fn from_line(line: &str) -> Option<Mirror> {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let uri = rest.split_whitespace().next()?.to_owned();
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        (uri.contains("debian") && !uri.contains("security"))
            .then(|| Mirror { uri, signed_by: signed_by.map(str::to_owned) })
    }

    fn sources(&self, types: &str, suite: &str) -> String {
        let signed_by = self.signed_by.as_deref().unwrap_or("/usr/share/keyrings/debian-archive-keyring.gpg");
        format!("Types: {types}\nURIs: {}\nSuites: {suite}\nComponents: main\nSigned-By: {signed_by}\n", self.uri)
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("could not run {:?}", command.get_program()))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A directory that is gone when the value is.
struct Scratch(PathBuf);

impl Scratch {
    fn below(parent: &Path) -> Result<Scratch> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".scratch-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("could not make {path:?}"))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // best effort: it lies below target/
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mirror_in_both_forms() {
        let deb822 = "# main\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nSigned-By: /k.gpg\n";
        let mirror = Mirror::from_stanza(deb822).unwrap();
        assert_eq!(
            (mirror.uri.as_str(), mirror.signed_by.as_deref()),
            ("http://mirror.example/debian", Some("/k.gpg"))
        );
        let line = "deb [arch=amd64 signed-by=/l.gpg] http://mirror.example/debian bookworm main";
        assert_eq!(Mirror::from_line(line).unwrap().signed_by.as_deref(), Some("/l.gpg"));
        assert!(Mirror::from_line("deb http://security.debian.org/debian-security bookworm-security main").is_none());
        assert!(Mirror::from_line("deb-src http://mirror.example/debian bookworm main").is_none());
    }
}

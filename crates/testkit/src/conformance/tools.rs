//! The suite and the other programs of the Go module `conformance/`: built once, and again when the module changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::host::checked;
use crate::images::digest;

/// The release whose suite is run.
pub const RELEASE: &str = "v1.37.2";

/// Programs that are built, by package.
const PROGRAMS: &[(&str, &str)] = &[
    ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    ("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("nonewprivs", "k8s.io/kubernetes/test/images/nonewprivs"),
    ("sample-apiserver", "k8s.io/sample-apiserver"),
];
const SUITE: (&str, &str) = ("e2e.test", "k8s.io/kubernetes/test/e2e");

/// The built programs and upstream's sources.
#[derive(Clone, Debug)]
pub struct Tools {
    bin: PathBuf,
    /// The directory of k8s.io/kubernetes.
    pub sources: PathBuf,
}

/// The workspace's root.
pub fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::canonicalize(&root).unwrap_or(root)
}

/// Where everything of this instrument lies.
pub fn target() -> PathBuf {
    root().join("target/conformance")
}

impl Tools {
    /// Builds what is missing. `say` is told what takes long.
    ///
    /// # Errors
    /// Without Go, or when something does not build.
    pub fn prepare(say: impl Fn(&str)) -> Result<Self> {
        let module = root().join("conformance");
        let described = fs::read_to_string(module.join("go.mod")).context("conformance/go.mod")?;
        let wanted = wanted_version(&described)?;
        let go = || {
            let mut go = Command::new("go");
            go.current_dir(&module).env("CGO_ENABLED", "0");
            go
        };
        let Ok(output) = go().args(["env", "GOVERSION"]).output() else {
            bail!(
                "the suite is built with Go {wanted} or newer, and there is no `go` here: install it from \
                 https://go.dev/dl/ or with your distribution's package manager, and put it into PATH"
            );
        };
        ensure!(
            output.status.success(),
            "`go` does not work: {}; the suite needs Go {wanted} or newer from https://go.dev/dl/",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let bin = target().join("bin");
        fs::create_dir_all(&bin)?;
        let locked = fs::read(module.join("go.sum")).context("conformance/go.sum")?;
        let stamp = format!("{} {}", digest(&locked), String::from_utf8_lossy(&output.stdout).trim());
        for (name, package) in PROGRAMS.iter().chain([&SUITE]) {
            let (program, mark) = (bin.join(name), bin.join(format!("{name}.built-from")));
            if program.exists() && fs::read_to_string(&mark).is_ok_and(|built| built == stamp) {
                continue;
            }
            say(&format!("building {name} of {RELEASE}, which is kept"));
            let mut command = go();
            match *name {
                "e2e.test" => command.args(["test", "-c"]),
                _ => command.arg("build"),
            };
            command.args(["-trimpath", "-ldflags", &link_flags(), "-o"]).arg(&program).arg(package);
            checked(&mut command).with_context(|| format!("could not build {package}"))?;
            fs::write(mark, &stamp)?;
        }
        let sources = checked(go().args(["list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes"]))?;
        Ok(Self { bin, sources: PathBuf::from(sources.trim()) })
    }

    /// A built program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A file of upstream's sources.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn source(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.sources.join(path);
        fs::read(&path).with_context(|| format!("could not read {}", path.display()))
    }
}

/// No symbols, and the version that upstream's own build would put in.
fn link_flags() -> String {
    let version = "k8s.io/component-base/version";
    let minor = RELEASE.split('.').nth(1).unwrap_or_default();
    format!(
        "-s -w -X {version}.gitVersion={RELEASE} -X {version}.gitMajor=1 -X {version}.gitMinor={minor} -X {version}.gitTreeState=clean"
    )
}

/// The version of Go that a module asks for.
fn wanted_version(module: &str) -> Result<&str> {
    let line = module.lines().find_map(|line| line.strip_prefix("go "));
    line.map(str::trim).context("conformance/go.mod names no version of Go")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_says_which_go_it_needs() {
        assert_eq!(wanted_version("module m\n\ngo 1.26.0\n").unwrap(), "1.26.0");
        assert!(wanted_version("module m\n").is_err());
        assert!(link_flags().contains("gitMinor=37 "), "{}", link_flags());
    }
}

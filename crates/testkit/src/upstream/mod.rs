//! Upstream's own programs, built out of the Go module `conformance/` once and kept in `target/conformance/bin`.

pub mod container_runtime;
pub mod control_plane;
pub mod node;
mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The release that the module requires.
pub const RELEASE: &str = "v1.37.2";

/// The program `name` of upstream's `cmd/`, such as `kube-apiserver`. The first call builds it, which takes minutes.
///
/// # Errors
/// Without Go: says which version is needed and how to get it. Else when the build fails, with its own words.
pub fn program(name: &str) -> Result<PathBuf> {
    let built = bin_dir().join(name);
    if !built.is_file() {
        build(&["build"], &format!("k8s.io/kubernetes/cmd/{name}"), &built)?;
    }
    fs::canonicalize(&built).with_context(|| format!("could not find {}", built.display()))
}

/// Where programs built from Go are kept.
pub fn bin_dir() -> PathBuf {
    workspace().join("target/conformance/bin")
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Builds a package of the module by `how`: `go build`, or `go test -c` for one that is a test. Without C, so that the program
/// runs on any machine and in any image.
pub(crate) fn build(how: &[&str], package: &str, to: &Path) -> Result<()> {
    require_go()?;
    fs::create_dir_all(bin_dir())?;
    // Whole or not at all: a build that is interrupted leaves nothing that looks finished.
    let unfinished = to.with_extension(format!("new-{}", std::process::id()));
    eprintln!("building {package} {RELEASE}, once; this takes minutes …");
    let status = Command::new("go")
        .current_dir(workspace().join("conformance"))
        .env("CGO_ENABLED", "0")
        .args(how)
        .args(["-trimpath", "-ldflags", &linker_flags(), "-o"])
        .args([unfinished.as_os_str(), package.as_ref()])
        .stdin(Stdio::null())
        .status()
        .context("could not run go")?;
    ensure!(status.success(), "go build {package}: {status}");
    fs::rename(&unfinished, to).with_context(|| format!("could not keep {}", to.display()))
}

/// What a release build of upstream says of itself.
fn linker_flags() -> String {
    let version = "k8s.io/component-base/version";
    let (major, minor) = (1, 37);
    format!(
        "-s -w -X {version}.gitVersion={RELEASE} -X {version}.gitMajor={major} -X {version}.gitMinor={minor} \
         -X {version}.gitTreeState=clean"
    )
}

/// # Errors
/// When there is no Go that can build the module; the message is the remedy.
pub fn require_go() -> Result<()> {
    let module = workspace().join("conformance");
    let text = fs::read_to_string(module.join("go.mod")).context("could not read conformance/go.mod")?;
    let needed =
        text.lines().find_map(|line| line.strip_prefix("go ")).context("conformance/go.mod names no version")?;
    let remedy = format!(
        "this needs Go {needed} or newer to build upstream's programs: unpack it from https://go.dev/dl/ and put its bin/ into PATH"
    );
    // In the module's directory: a newer toolchain that Go would fetch for it counts.
    match Command::new("go").current_dir(module).args(["env", "GOVERSION"]).output() {
        Err(_) => bail!("{remedy} (there is no go now)"),
        Ok(output) if !output.status.success() => {
            bail!("{remedy} ({})", String::from_utf8_lossy(&output.stderr).trim())
        }
        Ok(_) => Ok(()),
    }
}

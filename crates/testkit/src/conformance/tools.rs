//! The suite and the other programs of the Go module `conformance/`: built once, and again when the module changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::debian::Debian;
use crate::host::checked;
use crate::images::digest;
use crate::upstream::{bin_dir, build, require_go};

/// What is built: name, how, package.
const PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("agnhost", &["build"], "k8s.io/kubernetes/test/images/agnhost"),
    ("e2e.test", &["test", "-c"], "k8s.io/kubernetes/test/e2e"),
    ("ginkgo", &["build"], "github.com/onsi/ginkgo/v2/ginkgo"),
    ("kubectl", &["build"], "k8s.io/kubernetes/cmd/kubectl"),
    ("nonewprivs", &["build"], "k8s.io/kubernetes/test/images/nonewprivs"),
    ("sample-apiserver", &["build"], "k8s.io/sample-apiserver"),
];

/// The built programs and upstream's sources.
#[derive(Clone, Debug)]
pub struct Tools {
    /// What programs are built from; another one means building anew.
    stamp: String,
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
    /// Finds Go and the module; builds nothing yet.
    ///
    /// # Errors
    /// Without Go, or when the module cannot be fetched.
    pub fn find() -> Result<Self> {
        require_go()?;
        let module = root().join("conformance");
        let go = |arguments: &[&str]| checked(Command::new("go").current_dir(&module).args(arguments));
        let locked = fs::read(module.join("go.sum")).context("conformance/go.sum")?;
        let stamp = format!("{} {}", digest(&locked), go(&["env", "GOVERSION"])?.trim());
        let found = go(&["mod", "download", "-json", "k8s.io/kubernetes"]).context("could not fetch the suite")?;
        let found: Value = serde_json::from_str(&found).context("go mod download -json")?;
        let sources = found["Dir"].as_str().context("go mod download names no directory")?;
        Ok(Self { sources: PathBuf::from(sources), stamp })
    }

    /// Builds what is missing, or was built from another module.
    ///
    /// # Errors
    /// When something does not build.
    pub fn build(&self) -> Result<()> {
        for (name, how, package) in PROGRAMS {
            let (program, mark) = (self.program(name), bin_dir().join(format!("{name}.built-from")));
            if !program.exists() || fs::read_to_string(&mark).ok().as_ref() != Some(&self.stamp) {
                build(how, package, &program)?;
                fs::write(mark, &self.stamp)?;
            }
        }
        Ok(())
    }

    /// A built program.
    pub fn program(&self, name: &str) -> PathBuf {
        bin_dir().join(name)
    }

    /// busybox as its authors release it. Debian's shell drops variables with names such as `data-1`, which tests ask for.
    ///
    /// # Errors
    /// When its sources cannot be fetched, or it does not build.
    pub fn busybox(&self, debian: &Debian) -> Result<PathBuf> {
        let program = self.program("busybox");
        if program.exists() {
            return Ok(program);
        }
        println!("building busybox, which is kept …");
        let sources = debian.original_source("busybox")?;
        let make = |arguments: &[&str]| {
            let mut make = Command::new("make");
            checked(make.arg("-C").arg(&sources).args(arguments)).context("busybox is built with make and a C compiler")
        };
        make(&["defconfig"])?;
        let config = sources.join(".config");
        let chosen = fs::read_to_string(&config)?
            .replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y")
            // Of a queueing discipline that newer kernels' headers do not know.
            .replace("CONFIG_TC=y", "# CONFIG_TC is not set");
        fs::write(&config, chosen)?;
        make(&["silentoldconfig"])?;
        make(&["-j", "2", "busybox"])?;
        fs::copy(sources.join("busybox"), &program).context("could not keep busybox")?;
        Ok(program)
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

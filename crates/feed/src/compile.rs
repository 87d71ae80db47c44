//! From objects to the edge's table. Pure.

use wire::edge::Certificate;

use crate::values::Services;
pub use crate::values::{Compiled, DefaultCertificate, Finding, Observed, Settings};
use crate::{names, routes};

/// Works out the whole table.
pub fn compile(observed: &Observed<'_>) -> Compiled {
    let services = Services::new(observed);
    let mut compiled = routes::compile(observed, &services);
    compiled.table.dns = names::compile(observed, &services);
    if let Some(default) = &observed.settings.default_certificate {
        let (chain, key) = (default.chain.clone(), default.key.clone());
        compiled.table.certificates.push(Certificate { hosts: Vec::new(), chain, key });
        compiled.certificate_owners.push(None);
    }
    compiled
}

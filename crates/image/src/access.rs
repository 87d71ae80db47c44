//! Who may use an image that is on the node without its registry being asked again.
//!
//! What was pulled with somebody's credentials is for those who have them; what came without any, with those of the node, or out of
//! an archive is for everybody. Source: KEP-2535; kubernetes `images/pullmanager/image_pull_manager.go` under the default policy,
//! `NeverVerifyPreloadedImages`. Upstream keeps records of intents and pulls beside its runtime's store; here they are part of the
//! image in the store's own list and written in one step with it, so that no crash leaves an image without.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// From so many on no further credentials are kept for being as good as others. Source: `writeRecordWhileMatchingLimit`.
const MANY: usize = 100;

/// A Secret that credentials come from, and what tells them from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    #[serde(flatten)]
    pub source: Source,
    pub hash: Digest,
}

/// The Secret itself; a new one of the same name is another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// With what an image was pulled under one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    Everybody,
    Secrets(Vec<Grant>),
}

/// By the image's name without tag and digest. Empty for images that this node did not pull.
pub type Accesses = BTreeMap<String, Access>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Granted,
    /// Granted, and from now on to this one too.
    GrantedTo(Grant),
    /// The registry decides.
    Ask,
}

/// Whether somebody with these credentials may use the image under this name.
pub fn verdict(accesses: &Accesses, name: &str, offered: &[Grant]) -> Verdict {
    let held = match accesses.get(name) {
        None if accesses.is_empty() => return Verdict::Granted,
        None => return Verdict::Ask,
        Some(Access::Everybody) => return Verdict::Granted,
        Some(Access::Secrets(held)) => held,
    };
    if offered.iter().any(|grant| held.contains(grant)) {
        return Verdict::Granted;
    }
    let room = held.len() < MANY;
    for (grant, known) in offered.iter().flat_map(|grant| held.iter().map(move |known| (grant, known))) {
        match (grant.hash == known.hash, grant.source == known.source) {
            (true, false) if room => return Verdict::GrantedTo(grant.clone()),
            (true, _) => return Verdict::Granted,
            // The Secret's content was changed: whoever may do that may use the image.
            (false, true) if room => return Verdict::GrantedTo(grant.clone()),
            (false, _) => {}
        }
    }
    Verdict::Ask
}

/// Notes with what the image came, or could have come, under a name.
pub fn add(accesses: &mut Accesses, name: String, more: Access) {
    match (accesses.get_mut(&name), more) {
        (Some(Access::Everybody), _) => {}
        (Some(Access::Secrets(known)), Access::Secrets(more)) => {
            known.retain(|old| !more.iter().any(|new| new.source == old.source));
            known.extend(more);
        }
        (Some(Access::Secrets(_)) | None, more) => drop(accesses.insert(name, more)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(name: &str, password: &str) -> Grant {
        let text = |text: &str| text.to_owned();
        let source = Source { namespace: text("n"), name: text(name), uid: text("u") };
        Grant { source, hash: Digest::of(password.as_bytes()) }
    }

    fn pulled(with: &[Access]) -> Accesses {
        let mut accesses = Accesses::new();
        for access in with {
            add(&mut accesses, "r/a".to_owned(), access.clone());
        }
        accesses
    }

    #[test]
    fn what_nobody_pulled_and_what_anybody_can_pull_is_for_everybody() {
        assert_eq!(verdict(&Accesses::new(), "r/a", &[]), Verdict::Granted);
        let secret = Access::Secrets(vec![grant("s", "1")]);
        for with in [vec![Access::Everybody], vec![secret.clone(), Access::Everybody], vec![Access::Everybody, secret]]
        {
            assert_eq!(verdict(&pulled(&with), "r/a", &[]), Verdict::Granted, "{with:?}");
        }
        assert_eq!(
            verdict(&pulled(&[Access::Everybody]), "r/b", &[]),
            Verdict::Ask,
            "another name is another registry's"
        );
    }

    #[test]
    fn credentials_are_known_by_their_secret_or_by_what_they_are() {
        let accesses = pulled(&[Access::Secrets(vec![grant("s", "1")])]);
        let ask = |offered: &[Grant]| verdict(&accesses, "r/a", offered);
        assert_eq!(ask(&[]), Verdict::Ask);
        assert_eq!(ask(&[grant("t", "2")]), Verdict::Ask);
        assert_eq!(ask(&[grant("t", "2"), grant("s", "1")]), Verdict::Granted);
        assert_eq!(ask(&[grant("t", "1")]), Verdict::GrantedTo(grant("t", "1")));
        assert_eq!(ask(&[grant("s", "2")]), Verdict::GrantedTo(grant("s", "2")));
        let both = pulled(&[grant("s", "1"), grant("t", "1")].map(|grant| Access::Secrets(vec![grant])));
        assert_eq!(verdict(&both, "r/a", &[grant("t", "1")]), Verdict::Granted, "what is known need not be kept again");
    }

    #[test]
    fn a_secret_is_kept_once() {
        let pulls = ["1", "2"].map(|password| Access::Secrets(vec![grant("s", password)]));
        let accesses = pulled(&pulls);
        assert_eq!(verdict(&accesses, "r/a", &[grant("s", "2")]), Verdict::Granted);
        assert_eq!(verdict(&accesses, "r/a", &[grant("t", "1")]), Verdict::Ask, "an old password opens nothing");
    }

    #[test]
    fn the_record_does_not_grow_for_ever() {
        let many = (0..MANY).map(|at| grant(&at.to_string(), "1")).collect();
        let accesses = pulled(&[Access::Secrets(many)]);
        assert_eq!(verdict(&accesses, "r/a", &[grant("t", "1")]), Verdict::Granted);
        assert_eq!(verdict(&accesses, "r/a", &[grant("7", "2")]), Verdict::Ask);
    }
}

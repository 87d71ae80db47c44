//! As whom a container runs, and what that identity may do.
//!
//! Sources: kuberuntime/security_context.go and security_context_others.go (`verifyRunAsNonRoot`); securitycontext/util.go
//! (`DetermineEffectiveSecurityContext`); opencontainers/runc `libcontainer/user` for the image's passwd and group files.

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};

use crate::pod_machine::event::User;

/// The image's account files, as far as it has them.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    pub passwd: String,
    pub group: String,
}

/// A container's resolved identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: User,
    /// The account's home directory, `/` when it has none.
    pub home: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl Accounts {
    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(Account {
                name,
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
                home: fields.nth(1).unwrap_or_default(),
            })
        })
    }

    /// Name, number and members of each group.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, Vec<&str>)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            Some((name, gid.parse().ok()?, fields.next().unwrap_or_default().split(',').collect()))
        })
    }

    fn group_number(&self, group: &str) -> Option<u32> {
        group.parse().ok().or_else(|| self.groups().find(|(name, _, _)| *name == group).map(|(_, gid, _)| gid))
    }
}

fn contexts<'a>(
    pod: &'a Pod,
    container: &'a Container,
) -> (Option<&'a PodSecurityContext>, Option<&'a SecurityContext>) {
    (pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()), container.security_context.as_ref())
}

/// The user that the specification asks for; the container's wins over the pod's.
fn wanted<T>(
    pod: Option<&PodSecurityContext>,
    container: Option<&SecurityContext>,
    of_pod: impl Fn(&PodSecurityContext) -> Option<T>,
    of_container: impl Fn(&SecurityContext) -> Option<T>,
) -> Option<T> {
    container.and_then(of_container).or_else(|| pod.and_then(of_pod))
}

fn number(value: i64, field: &str) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{field} {value} is not a valid id"))
}

/// Resolves who the container runs as. `image_user` is the image's USER.
///
/// # Errors
/// Fit for `CreateContainerConfigError`: broken runAsNonRoot in upstream's words, and names that the image does not know.
pub fn resolve(pod: &Pod, container: &Container, image_user: &str, accounts: &Accounts) -> Result<Identity, String> {
    let (of_pod, own) = contexts(pod, container);
    let run_as_user = wanted(of_pod, own, |context| context.run_as_user, |context| context.run_as_user);
    let run_as_group = wanted(of_pod, own, |context| context.run_as_group, |context| context.run_as_group);
    let non_root = wanted(of_pod, own, |context| context.run_as_non_root, |context| context.run_as_non_root);
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    if non_root == Some(true) {
        check_non_root(pod, container, run_as_user, image_name)?;
    }
    let (uid, from_image) = match run_as_user {
        Some(uid) => (number(uid, "runAsUser")?, false),
        None if image_name.is_empty() => (0, true),
        None => (image_uid(image_name, accounts)?, true),
    };
    let account = accounts.accounts().find(|account| {
        account.uid == uid && (!from_image || image_name.parse::<u32>().is_ok() || account.name == image_name)
    });
    let account = account.or_else(|| accounts.accounts().find(|account| account.uid == uid));
    let gid = match run_as_group {
        Some(gid) => number(gid, "runAsGroup")?,
        None if from_image && !image_group.is_empty() => accounts
            .group_number(image_group)
            .ok_or_else(|| format!("unable to find group {image_group}: no matching entries in group file"))?,
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let mut groups = vec![gid];
    let strict = of_pod.is_some_and(|context| context.supplemental_groups_policy.as_deref() == Some("Strict"));
    if let Some(account) = account.as_ref().filter(|_| !strict) {
        let memberships = accounts.groups().filter(|(_, _, members)| members.contains(&account.name));
        groups.extend(memberships.map(|(_, gid, _)| gid));
    }
    if let Some(context) = of_pod {
        for gid in context.supplemental_groups.iter().flatten().chain(&context.fs_group) {
            groups.push(number(*gid, "supplementalGroups")?);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    let home = account.map(|account| account.home).filter(|home| !home.is_empty()).unwrap_or("/").to_owned();
    Ok(Identity { user: User { uid, gid, groups }, home })
}

fn image_uid(name: &str, accounts: &Accounts) -> Result<u32, String> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    let account = accounts.accounts().find(|account| account.name == name);
    account
        .map(|account| account.uid)
        .ok_or_else(|| format!("unable to find user {name}: no matching entries in passwd file"))
}

fn check_non_root(pod: &Pod, container: &Container, run_as_user: Option<i64>, image: &str) -> Result<(), String> {
    let meta = &pod.metadata;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let pod = format!("{}_{}({})", part(&meta.name), part(&meta.namespace), part(&meta.uid));
    let place = format!("(pod: {pod:?}, container: {})", container.name);
    match (run_as_user, image.parse::<u32>()) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err(format!("container has runAsNonRoot and image will run as root {place}")),
        (None, Err(_)) if image.is_empty() => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        (None, Err(_)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({image}), cannot verify user is non-root {place}"
        )),
        (None, Ok(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nstatic:x:100:101::/srv:/bin/false\nbroken\n".to_owned(),
            group: "root:x:0:\nweb:x:33:www,static\nstatic:x:101:\n".to_owned(),
        }
    }

    fn check(pod: Value, container: Value, image: &str, expected: Result<&str, &str>) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": container}]},
        }))
        .unwrap();
        let found = resolve(&pod, &pod.spec.as_ref().unwrap().containers[0], image, &accounts())
            .map(|found| format!("{}:{} {:?} {}", found.user.uid, found.user.gid, found.user.groups, found.home));
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn non_root_is_refused_in_upstreams_words() {
        let non_root = || json!({"runAsNonRoot": true});
        check(
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            json!({}),
            "1000",
            Err("container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)"),
        );
        check(
            non_root(),
            json!({}),
            "0",
            Err("container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"),
        );
        check(
            non_root(),
            json!({}),
            "",
            Err("container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"),
        );
        check(
            non_root(),
            json!({}),
            "static",
            Err(
                "container has runAsNonRoot and image has non-numeric user (static), cannot verify user is non-root (pod: \"p_n(u)\", container: c)",
            ),
        );
        check(non_root(), json!({"runAsUser": 100}), "static", Ok("100:101 [101, 33] /srv"));
        check(non_root(), json!({"runAsNonRoot": false}), "0", Ok("0:0 [0] /root"));
    }

    #[test]
    fn image_users_are_looked_up_in_the_image() {
        check(json!({}), json!({}), "static", Ok("100:101 [101, 33] /srv"));
        check(json!({}), json!({}), "static:web", Ok("100:33 [33] /srv"));
        check(json!({}), json!({}), "7:9", Ok("7:9 [9] /"));
        check(json!({}), json!({}), "nobody", Err("unable to find user nobody: no matching entries in passwd file"));
    }

    #[test]
    fn groups_are_merged_unless_strict() {
        check(
            json!({"runAsUser": 100, "supplementalGroups": [7], "fsGroup": 2000}),
            json!({}),
            "",
            Ok("100:101 [101, 33, 7, 2000] /srv"),
        );
        check(
            json!({"runAsUser": 100, "supplementalGroups": [7], "supplementalGroupsPolicy": "Strict"}),
            json!({}),
            "",
            Ok("100:101 [101, 7] /srv"),
        );
        check(json!({"runAsGroup": 44}), json!({}), "", Ok("0:44 [44] /root"));
        check(json!({"runAsUser": 4_294_967_296_i64}), json!({}), "", Err("runAsUser 4294967296 is not a valid id"));
    }
}

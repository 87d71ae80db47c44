//! Acting as somebody else, as `kubectl --as` does.
//!
//! Each part of the other identity must be allowed to the one who asks. Source: apiserver
//! `pkg/endpoints/filters/impersonation/impersonation.go`.

use api::status::Status;
use http::HeaderMap;

use crate::identity::{self, ANONYMOUS, Authorizer, SYSTEM_AUTHENTICATED, SYSTEM_UNAUTHENTICATED, User};
use crate::path::{Attributes, Resource};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user that a request acts as: the one who sent it, unless its headers name another.
///
/// # Errors
/// 403 when a part of that identity may not be taken on, 400 for headers without a user.
pub fn effective(authorizer: &dyn Authorizer, real: User, headers: &HeaderMap) -> Result<User, Status> {
    let one = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| !text.is_empty());
    let extras: Vec<(String, &str)> = headers
        .iter()
        .filter_map(|(name, value)| {
            let key = name.as_str().strip_prefix(EXTRA)?;
            Some((unescaped(key), value.to_str().ok()?))
        })
        .collect();
    let groups: Vec<&str> = headers.get_all(GROUP).iter().filter_map(|value| value.to_str().ok()).collect();
    let Some(name) = one(USER) else {
        if groups.is_empty() && extras.is_empty() && one(UID).is_none() {
            return Ok(real);
        }
        return Err(Status::bad_request("requested groups, uid or extra without impersonating a user"));
    };
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let resource = Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Resource::default()
        };
        identity::authorize(authorizer, &real, &Attributes::resource("impersonate", resource))
    };
    let mut user = User { name: name.to_owned(), ..User::default() };
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            may("", "serviceaccounts", "", namespace, account)?;
            if groups.is_empty() {
                user.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        None => may("", "users", "", "", name)?,
    }
    for group in groups {
        may("", "groups", "", "", group)?;
        user.groups.push(group.to_owned());
    }
    for (key, value) in extras {
        may("authentication.k8s.io", "userextras", &key, "", value)?;
        user.extra.entry(key).or_default().push(value.to_owned());
    }
    if let Some(uid) = one(UID) {
        may("authentication.k8s.io", "uids", "", "", uid)?;
        user.uid = uid.to_owned();
    }
    let known = user.is_in(SYSTEM_AUTHENTICATED) || user.is_in(SYSTEM_UNAUTHENTICATED);
    if user.name == ANONYMOUS && !user.is_in(SYSTEM_UNAUTHENTICATED) {
        user.groups.push(SYSTEM_UNAUTHENTICATED.to_owned());
    } else if !known {
        user.groups.push(SYSTEM_AUTHENTICATED.to_owned());
    }
    Ok(user)
}

/// Header names cannot hold every key: what does not fit is percent-encoded.
fn unescaped(key: &str) -> String {
    crate::path::decoded(key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Decision;
    use crate::path::Target;

    struct Rules;

    impl Authorizer for Rules {
        fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
            let Target::Resource(at) = &attributes.target else { return Decision::NoOpinion(String::new()) };
            match user.name == "admin" && attributes.verb == "impersonate" && at.name != "system:masters" {
                true => Decision::Allow(String::new()),
                false => Decision::NoOpinion(String::new()),
            }
        }
    }

    fn check(real: &str, headers: &[(&'static str, &str)], expected: &str) {
        let headers = headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        let got = match effective(&Rules, User::new(real, &[]), &headers) {
            Ok(user) => format!("{} [{}] {:?}", user.name, user.groups.join(" "), user.extra),
            Err(status) => status.message,
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn identities() {
        check("admin", &[], "admin [] {}");
        check("admin", &[(USER, "jane")], "jane [system:authenticated] {}");
        check("admin", &[(USER, "jane"), (GROUP, "dev")], "jane [dev system:authenticated] {}");
        check("admin", &[(USER, ANONYMOUS)], "system:anonymous [system:unauthenticated] {}");
        check(
            "admin",
            &[(USER, "system:serviceaccount:ns:bot")],
            "system:serviceaccount:ns:bot [system:serviceaccounts system:serviceaccounts:ns system:authenticated] {}",
        );
        check(
            "admin",
            &[(USER, "jane"), ("impersonate-extra-acme.com%2fproject", "x")],
            "jane [system:authenticated] {\"acme.com/project\": [\"x\"]}",
        );
    }

    #[test]
    fn every_part_must_be_allowed() {
        check(
            "jane",
            &[(USER, "admin")],
            "users \"admin\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
        );
        check(
            "admin",
            &[(USER, "jane"), (GROUP, "system:masters")],
            "groups \"system:masters\" is forbidden: User \"admin\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope",
        );
        check("admin", &[(GROUP, "dev")], "requested groups, uid or extra without impersonating a user");
    }
}

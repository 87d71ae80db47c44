//! Who may use the node's own API: whoever the cluster lets `nodes/proxy` and its finer parts.
//!
//! Source: kubernetes `pkg/kubelet/server/auth.go`.

use std::sync::Arc;

use node::server::{Action, Authorizer, Caller, Denied};
use server::identity::{Authenticator, Decision, Proved};
use server::path::{Attributes, Resource};

/// Asks the API server's own authenticator and authorizer.
pub fn authorizer(
    authenticator: Arc<dyn Authenticator>,
    authorizer: Arc<dyn server::identity::Authorizer>,
    node: &str,
) -> Authorizer {
    let node = node.to_owned();
    Arc::new(move |caller: Caller, action: Action| {
        let (authenticator, authorizer, node) = (authenticator.clone(), authorizer.clone(), node.clone());
        Box::pin(async move {
            let mut request = http::Request::builder().uri("/");
            if let Some(token) = &caller.bearer_token {
                request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let (parts, ()) = request.body(()).map_err(|_| Denied::Unauthenticated)?.into_parts();
            let proved = Arc::new(Proved::new(caller.certificates.into_iter().next()));
            let user = authenticator.authenticate(&parts, &proved).await;
            let user = user.map_err(|_| Denied::Unauthenticated)?;
            // What runs something needs more than what reads, whatever method carries the request.
            let (verb, finer) = match action {
                Action::Pods => ("get", Some("pods")),
                Action::Logs => ("get", None),
                Action::Exec | Action::Attach | Action::PortForward => ("create", None),
            };
            let allowed = finer.into_iter().chain(["proxy"]).any(|subresource| {
                let at = Resource {
                    version: "v1".to_owned(),
                    resource: "nodes".to_owned(),
                    subresource: subresource.to_owned(),
                    name: node.clone(),
                    ..Resource::default()
                };
                matches!(authorizer.authorize(&user, &Attributes::resource(verb, at)), Decision::Allow(_))
            });
            if allowed { Ok(()) } else { Err(Denied::Forbidden) }
        })
    })
}

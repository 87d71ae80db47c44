//! Requests that a node answers: log, exec, attach.

use api::status::Status;
use http::Response;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use kinds::kind::Subresource;

use crate::http::reply::Body;
use crate::http::route::{Endpoint, Exchange};

impl Exchange<'_> {
    pub(crate) async fn node(
        &self,
        _endpoint: Endpoint<'_>,
        _sub: &Subresource,
        _body: Incoming,
        _upgrade: OnUpgrade,
    ) -> Result<Response<Body>, Status> {
        Err(Status::unavailable("not yet"))
    }
}

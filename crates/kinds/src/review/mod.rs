//! The kinds that are questions: created, answered and never stored.
//!
//! Source: kubernetes `pkg/registry/authentication`, `pkg/registry/authorization`.

use crate::kind::{Answer, Kind};

pub fn token_review() -> Kind {
    Kind::cluster("authentication.k8s.io", "v1", "TokenReview", "tokenreviews").answered(Answer::TokenReview)
}

pub fn self_subject_review() -> Kind {
    Kind::cluster("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews")
        .answered(Answer::SelfSubjectReview)
}

pub fn subject_access_review() -> Kind {
    Kind::cluster("authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews")
        .answered(Answer::SubjectAccessReview)
}

pub fn local_subject_access_review() -> Kind {
    Kind::namespaced("authorization.k8s.io", "v1", "LocalSubjectAccessReview", "localsubjectaccessreviews")
        .answered(Answer::LocalSubjectAccessReview)
}

pub fn self_subject_access_review() -> Kind {
    Kind::cluster("authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
        .answered(Answer::SelfSubjectAccessReview)
}

pub fn self_subject_rules_review() -> Kind {
    Kind::cluster("authorization.k8s.io", "v1", "SelfSubjectRulesReview", "selfsubjectrulesreviews")
        .answered(Answer::SelfSubjectRulesReview)
}

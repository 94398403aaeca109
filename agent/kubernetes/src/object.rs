//! What is kept of a PortcullisPolicy.

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use portcullis_policy::yaml::SIZE_MAX;
use serde_json::Value;

use crate::status::Condition;

/// How the API server calls them.
pub fn resource() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("portcullis.dev", "v1alpha1", "PortcullisPolicy"),
        "portcullispolicies",
    )
}

/// One of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its name, and the policy's.
    pub name: String,
    /// It tells an object from an earlier one of the same name.
    pub uid: String,
    /// It grows with each change of the spec.
    pub generation: i64,
    /// Seconds since 1970. The older has the precedence.
    pub created: i64,
    /// `spec`; `None` if it is larger than a policy may be.
    pub spec: Option<Value>,
    /// What its status says so far.
    pub accepted: Option<Condition>,
}

impl From<DynamicObject> for Object {
    fn from(mut object: DynamicObject) -> Self {
        let spec = object.data.get_mut("spec").map(Value::take).unwrap_or_default();
        let metadata = object.metadata;
        Self {
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            spec: (spec.to_string().len() <= SIZE_MAX).then_some(spec),
            accepted: object.data.get("status").and_then(Condition::accepted_in),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An object as the API server gives it.
    pub fn object(name: &str, value: Value) -> Object {
        let mut object = DynamicObject::new(name, &resource()).data(value);
        object.metadata.uid = Some(format!("uid-of-{name}"));
        object.metadata.generation = Some(1);
        object.into()
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let spec = |size: usize| object("a", serde_json::json!({ "spec": { "mode": "x".repeat(size) } })).spec;
        assert!(spec(10).is_some() && spec(SIZE_MAX).is_none());
    }

    #[test]
    fn its_status_is_found() {
        let conditions = serde_json::json!([
            { "type": "Other", "status": "True" },
            { "type": "Accepted", "status": "False", "reason": "Invalid", "message": "m", "observedGeneration": 3, "lastTransitionTime": "2026-01-01T00:00:00Z" },
        ]);
        let found =
            object("a", serde_json::json!({ "spec": {}, "status": { "conditions": conditions } })).accepted.unwrap();
        assert_eq!((found.status.as_str(), found.observed_generation), ("False", 3));
        for broken in [serde_json::json!(null), serde_json::json!({ "conditions": [{ "type": "Accepted" }] })] {
            assert_eq!(object("a", serde_json::json!({ "status": broken })).accepted, None);
        }
    }
}

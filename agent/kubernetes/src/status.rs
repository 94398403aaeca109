//! What the objects' status says.
//!
//! Every node judges every object, and nearly always they agree. So a node speaks only where the status says otherwise, and says
//! the same thing once: nodes of different versions, each of which would have it its own way, do not go on for ever. Who
//! speaks last is right until the object changes.

use std::collections::HashMap;

use jiff::Timestamp;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    core::{DynamicObject, Status},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{object::Object, plan::Verdict};

/// In whose name fields are set. That of all nodes: they say the same.
const MANAGER: &str = "portcullis-policies";
/// Kubernetes allows 32,768 characters.
const MESSAGE_MAX: usize = 4096;

/// A condition as Kubernetes has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    kind: String,
    /// `True` or `False`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Of which generation of the object this is said.
    pub observed_generation: i64,
    last_transition_time: String,
}

impl Condition {
    /// That among an object's conditions which is ours.
    pub fn accepted_in(status: &Value) -> Option<Self> {
        let conditions = status.get("conditions")?.as_array()?;
        let ours = conditions.iter().find(|condition| condition.get("type").is_some_and(|kind| kind == "Accepted"))?;
        serde_json::from_value(ours.clone()).ok()
    }

    /// What is to be said of an object.
    fn new(object: &Object, verdict: &Verdict, now: Timestamp) -> Self {
        let status = if verdict.accepted { "True" } else { "False" };
        let former = object.accepted.as_ref().filter(|former| former.status == status);
        let mut message = verdict.message.clone();
        if let Some((end, _)) = message.char_indices().nth(MESSAGE_MAX) {
            message.replace_range(end.., "…");
        }
        Self {
            kind: "Accepted".to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.to_owned(),
            message,
            observed_generation: object.generation,
            last_transition_time: former.map_or_else(
                || now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                |former| former.last_transition_time.clone(),
            ),
        }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        let Self { kind: _, status, reason, message, observed_generation, last_transition_time: _ } = self;
        (status, reason, message, observed_generation)
            == (&other.status, &other.reason, &other.message, &other.observed_generation)
    }
}

/// What has been said by this node, or found said, by the objects' uid.
#[derive(Debug, Default)]
pub struct Said(HashMap<String, Condition>);

impl Said {
    /// What there is to say of an object now.
    pub fn next(&mut self, object: &Object, verdict: &Verdict, now: Timestamp) -> Option<Condition> {
        let condition = Condition::new(object, verdict, now);
        match &object.accepted {
            Some(there) if there.says_the_same(&condition) => {
                self.note(object, condition);
                None
            }
            Some(_) if self.0.get(&object.uid).is_some_and(|said| said.says_the_same(&condition)) => None,
            _ => Some(condition),
        }
    }

    /// It has been said.
    pub fn note(&mut self, object: &Object, condition: Condition) {
        self.0.insert(object.uid.clone(), condition);
    }

    /// Forgets the objects that are gone.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|uid, _| exists(uid));
    }
}

/// Says it. `false`: the object is gone, or another one has its name.
pub async fn say(api: &Api<DynamicObject>, object: &Object, condition: &Condition) -> kube::Result<bool> {
    let resource = crate::object::resource();
    let body = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": { "name": object.name, "uid": object.uid },
        "status": { "conditions": [condition] },
    });
    match api.patch_status(&object.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(body)).await {
        Ok(answer) => {
            tracing::debug!(policy = answer.name_any(), "status set");
            Ok(true)
        }
        Err(kube::Error::Api(status)) if is_gone(&status) => Ok(false),
        Err(error) => Err(error),
    }
}

/// 409: the uid is another one.
fn is_gone(status: &Status) -> bool {
    matches!(status.code, 404 | 409)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::tests::object;

    fn verdict(accepted: bool, message: &str) -> Verdict {
        Verdict { accepted, reason: if accepted { "Valid" } else { "Invalid" }, message: message.to_owned(), note: "" }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_the_status_says_already_is_not_said_again() {
        let (mut said, mut policy) = (Said::default(), object("a", json!({ "spec": {} })));
        let first = said.next(&policy, &verdict(true, "m"), at(0)).unwrap();
        assert_eq!(first.last_transition_time, "1970-01-01T00:00:00Z");
        // It has not arrived: it is said again.
        assert!(said.next(&policy, &verdict(true, "m"), at(1)).is_some());
        policy.accepted = Some(first);
        assert_eq!(said.next(&policy, &verdict(true, "m"), at(2)), None);
        policy.generation = 2;
        let second = said.next(&policy, &verdict(true, "m"), at(3)).unwrap();
        assert_eq!((second.observed_generation, &*second.last_transition_time), (2, "1970-01-01T00:00:00Z"));
        let third = said.next(&policy, &verdict(false, "n"), at(4)).unwrap();
        assert_eq!((&*third.status, &*third.last_transition_time), ("False", "1970-01-01T00:00:04Z"));
    }

    #[test]
    fn two_nodes_that_disagree_come_to_an_end() {
        let mut policy = object("a", json!({ "spec": {} }));
        let (mut old, mut new) = (Said::default(), Said::default());
        let mut times = 0;
        for second in 0..10 {
            for (said, verdict) in [(&mut old, verdict(false, "unknown field")), (&mut new, verdict(true, "m"))] {
                if let Some(condition) = said.next(&policy, &verdict, at(second)) {
                    said.note(&policy, condition.clone());
                    policy.accepted = Some(condition);
                    times += 1;
                }
            }
        }
        assert_eq!(times, 2);
        assert_eq!(policy.accepted.unwrap().status, "True");
    }

    #[test]
    fn messages_are_short() {
        let policy = object("a", json!({ "spec": {} }));
        let condition = Said::default().next(&policy, &verdict(false, &"é".repeat(10_000)), at(0)).unwrap();
        assert_eq!(condition.message.chars().count(), MESSAGE_MAX + 1);
    }

    #[test]
    fn the_forgotten_is_said_once_more() {
        let (mut said, policy) = (Said::default(), object("a", json!({ "spec": {} })));
        let condition = said.next(&policy, &verdict(true, "m"), at(0)).unwrap();
        said.note(&policy, condition);
        // Somebody has removed the status.
        assert!(said.next(&policy, &verdict(true, "m"), at(1)).is_some());
        said.retain(|uid| uid != "uid-of-a");
        assert!(said.0.is_empty());
    }
}

//! The custom resource definition, made from the types that read policies: config/helm/portcullis/files/crd.yaml.

use std::fs;

use portcullis_policy::schema;
use serde_json::{Value, json};

use crate::object::resource;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/helm/portcullis/files/crd.yaml");
const HEADER: &str = "# Generated: PORTCULLIS_REGENERATE=1 cargo test -p portcullis-policies definition\n";

fn definition() -> Value {
    let resource = resource();
    let text = |description: &str| json!({ "type": "string", "description": description });
    let condition = json!({
        "type": "object",
        "required": ["lastTransitionTime", "message", "reason", "status", "type"],
        "properties": {
            "type": text("Accepted."),
            "status": { "type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether its newest version is taken." },
            "reason": text("Valid, Invalid (by itself), or Conflict (with other policies)."),
            "message": text("What is wrong, and where."),
            "observedGeneration": { "type": "integer", "format": "int64", "description": "Of which generation this is said." },
            "lastTransitionTime": { "type": "string", "format": "date-time", "description": "Since when the status is what it is." },
        },
    });
    let column = |name: &str, kind: &str, path: &str| json!({ "name": name, "type": kind, "jsonPath": path });
    let accepted = ".status.conditions[?(@.type==\"Accepted\")]";
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        // Deleting the definition would delete all policies.
        "metadata": { "name": "portcullispolicies.portcullis.dev", "annotations": { "helm.sh/resource-policy": "keep" } },
        "spec": {
            "group": resource.group,
            "scope": "Cluster",
            "names": {
                "kind": resource.kind, "listKind": "PortcullisPolicyList", "plural": resource.plural,
                "singular": "portcullispolicy", "shortNames": ["pcp"], "categories": ["portcullis"],
            },
            "versions": [{
                "name": resource.version,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": [
                    column("Mode", "string", ".spec.mode"),
                    column("Priority", "integer", ".spec.priority"),
                    column("Accepted", "string", &format!("{accepted}.status")),
                    column("Reason", "string", &format!("{accepted}.reason")),
                    column("Age", "date", ".metadata.creationTimestamp"),
                ],
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": "What is done about network utilities in containers.",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object", "properties": { "name": { "type": "string", "maxLength": 63 } } },
                        "spec": schema::structural(),
                        "status": {
                            "type": "object",
                            "description": "What nodes say of it.",
                            "properties": { "conditions": {
                                "type": "array", "description": "One, Accepted.", "items": condition,
                                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                            } },
                        },
                    },
                } },
            }],
        },
    })
}

#[test]
fn the_charts_definition_is_that_of_the_types() {
    let wanted = format!("{HEADER}{:#}\n", definition());
    if std::env::var_os("PORTCULLIS_REGENERATE").is_some() {
        fs::write(PATH, &wanted).unwrap();
    }
    let found = fs::read_to_string(PATH).unwrap();
    assert!(found == wanted, "{PATH} is not what the types say: run this test with PORTCULLIS_REGENERATE=1");
    assert!(!found.contains("{{"), "helm would take it for a template");
}

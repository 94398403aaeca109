//! The JSON Schema of policy files, for editors and pipelines.
//!
//! It is generated from the types that [`crate::source::parse`] reads, and says of a file's structure what that says. Whether a
//! rule makes sense (tools that exist, exceptions that can be judged) is beyond it: `portcullis policy validate` tells.

use schemars::{
    JsonSchema, Schema,
    generate::SchemaSettings,
    transform::{RecursiveTransform, Transform},
};
use serde_json::Value;

use crate::source::{Policy, Spec};

/// The schema, as draft 7: the newest that editors agree on.
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<Policy>();
    RecursiveTransform(unwrap_lines).transform(&mut schema);
    schema.insert("title".to_owned(), "NetworkUtilityPolicy".into());
    schema.to_value()
}

/// The schema of `spec` as Kubernetes's custom resource definitions have them: a structural one.
///
/// It cannot say that there are no other fields. So that none is dropped on its way, unknown ones are kept: whoever reads the
/// object finds and refuses them.
pub fn structural() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Spec>();
    RecursiveTransform(unwrap_lines).transform(&mut schema);
    schema.remove("$schema");
    schema.remove("title");
    let mut schema = schema.to_value();
    make_structural(&mut schema);
    schema
}

/// Rewrites what a structural schema can't have.
fn make_structural(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    for key in ["default", "propertyNames"] {
        fields.remove(key);
    }
    // Kubernetes knows of the formats of numbers these two.
    if !fields.get("format").is_some_and(|format| format == "int32" || format == "int64") {
        fields.remove("format");
    }
    // Something or nothing.
    if let Some(Value::Object(something)) = fields.get("anyOf").and_then(something) {
        fields.remove("anyOf");
        let description = fields.remove("description");
        fields.extend(something);
        fields.insert("nullable".to_owned(), true.into());
        fields.extend(description.map(|text| ("description".to_owned(), text)));
    }
    // Words that are described one by one.
    if let Some(words) = fields.get("oneOf").and_then(words) {
        fields.remove("oneOf");
        fields.insert("type".to_owned(), "string".into());
        fields.insert("enum".to_owned(), words.into());
    }
    if fields.get("anyOf").is_some_and(is_number_or_text) {
        fields.remove("anyOf");
        fields.insert("x-kubernetes-int-or-string".to_owned(), true.into());
    }
    if fields.get("type").is_some_and(|kind| kind == "object") {
        if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
            fields.remove("additionalProperties");
        }
        if !fields.contains_key("additionalProperties") {
            fields.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(make_structural);
    }
    for key in ["items", "additionalProperties"] {
        fields.get_mut(key).into_iter().for_each(make_structural);
    }
}

/// The words of an enum, each in a schema of its own: OpenAPI 3.0 says `enum: [word]`.
fn words(alternatives: &Value) -> Option<Vec<Value>> {
    let word = |schema: &Value| match (schema.get("const"), schema.get("enum")?.as_array()?.as_slice()) {
        (Some(word), _) | (None, [word]) => Some(word.clone()),
        _ => None,
    };
    alternatives.as_array()?.iter().map(word).collect()
}

/// Of two alternatives the one that is not null.
fn something(alternatives: &Value) -> Option<Value> {
    let null = |schema: &Value| schema.get("type").is_none() && schema.get("nullable") == Some(&Value::Bool(true));
    match alternatives.as_array()?.as_slice() {
        [some, none] if null(none) => Some(some.clone()),
        _ => None,
    }
}

fn is_number_or_text(alternatives: &Value) -> bool {
    let kinds: Vec<_> = alternatives.as_array().into_iter().flatten().filter_map(|schema| schema.get("type")).collect();
    kinds == ["integer", "string"]
}

/// A user, or a range of them, as YAML has it: `0`, `1000-1999`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)] // It is only described.
pub(crate) enum User {
    Number(u32),
    Range(String),
}

/// Descriptions come with the line breaks of the source code that they stand in.
fn unwrap_lines(schema: &mut Schema) {
    let Some(Value::String(text)) = schema.get_mut("description") else { return };
    let paragraphs: Vec<String> = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
    *text = paragraphs.join("\n\n");
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jsonschema::Validator;

    use super::*;
    use crate::{source, yaml};

    fn validator() -> Validator {
        jsonschema::draft7::new(&schema()).unwrap()
    }

    const HEAD: &str = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {name: t}\n";

    #[test]
    fn shipped_policies_are_valid() {
        let validator = validator();
        let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../config/policies")).unwrap();
        let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 4, "{files:?}");
        for path in files {
            let (name, text) = (&path.display().to_string(), &fs::read_to_string(&path).unwrap());
            let value: Value = yaml::read(name, text).unwrap();
            let errors: Vec<String> = validator.iter_errors(&value).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}");
        }
    }

    /// What the parser refuses for its structure, an editor underlines; and nothing that the parser takes.
    #[test]
    fn schema_and_parser_agree_on_structure() {
        let validator = validator();
        let rule = |rule: &str| format!("{HEAD}spec: {{mode: detect, rules: [{rule}]}}");
        let name = |name: &str| {
            format!("{}spec: {{mode: detect, rules: []}}", HEAD.replace("name: t", &format!("name: {name}")))
        };
        let spec = |spec: &str| format!("{HEAD}spec: {spec}");
        let exception = |exception: &str| spec(&format!("{{mode: detect, rules: [], exceptions: [{{{exception}}}]}}"));
        let select = |select: &str| spec(&format!("{{mode: detect, rules: [], select: {{{select}}}}}"));
        let cases = [
            (true, spec("{mode: detect, rules: []}")),
            (true, spec("{mode: enforce, onAttachFailure: deny, allowLoosening: true, rules: []}")),
            (true, spec("{mode: enforce, onAttachFailure: null, rules: []}")),
            (true, rule("{tools: [nc], categories: [dns], action: block, severity: high}")),
            (true, rule("{comm: ['nc*'], exceptArguments: ['127.0.0.1'], exceptRepeats: 1h, action: alert}")),
            (true, spec("{mode: detect, rules: [], select: {}, priority: -7, requireBackend: lsm}")),
            (
                true,
                select(
                    "namespaces: [a, 'b-*'], pods: [a], containers: ['?'], images: ['*/app:*'], annotations: {a.b/c: '*'}",
                ),
            ),
            (false, select("namespaces: []")),
            (false, select("namespaces: a")),
            (false, select("pods: [a, '']")),
            (false, select(&format!("containers: [{}]", "a".repeat(254)))),
            (false, select(&format!("images: [{}]", "a,".repeat(65)))),
            (false, select("annotations: {}")),
            (false, select("annotations: {'': a}")),
            (false, select("annotations: {a: ''}")),
            (false, select("annotations: [a]")),
            (false, select("labels: {a: b}")),
            (false, spec("{mode: detect, rules: [], select: []}")),
            (false, spec("{mode: detect, rules: [], priority: high}")),
            (false, spec("{mode: detect, rules: [], priority: 1.5}")),
            (false, spec("{mode: detect, rules: [], priority: 2147483648}")),
            (false, spec("{mode: detect, rules: [], requireBackend: ebpf}")),
            (true, rule("{tools: [nc], places: [writable_directory, memfd], users: [0, 1000-1999], action: block}")),
            (false, rule("{tools: [nc], places: [temporary], action: block}")),
            (false, rule("{tools: [nc], users: 0, action: block}")),
            (false, rule("{tools: [nc], users: [[0]], action: block}")),
            (
                true,
                exception(
                    "tools: [nc], categories: [dns], arguments: [-z, '*', '...'], parents: [/a], ancestors: [/b*]",
                ),
            ),
            (true, exception("images: ['r/*'], users: [0, 1000-1999], reason: because, arguments: []")),
            (false, exception("tool: [nc]")),
            (false, exception("arguments: x")),
            (false, exception("arguments: [{x: y}]")),
            (false, exception("parents: {a: b}")),
            (false, exception("reason: [x]")),
            (false, spec("{mode: detect, rules: [], exceptions: {}}")),
            (true, name("a")),
            (true, name("team-a.enforce-2")),
            (true, name(&"a".repeat(63))),
            (false, String::new()),
            (false, "[]".into()),
            (false, HEAD.into()),
            (false, spec("{}")),
            (false, spec("[]")),
            (false, spec("{rules: []}")),
            (false, spec("{mode: detect}")),
            (false, spec("{mode: Detect, rules: []}")),
            (false, spec("{mode: 1, rules: []}")),
            (false, spec("{mode: [detect], rules: []}")),
            (false, spec("{mode: detect, rules: {}}")),
            (false, spec("{mode: detect, rules: [x]}")),
            (false, spec("{mode: detect, ruels: []}")),
            (false, spec("{mode: detect, rules: [], more: 1}")),
            (false, spec("{mode: detect, rules: [], allowLoosening: yes}")),
            (false, spec("{mode: detect, rules: [], allowLoosening: 1}")),
            (false, spec("{mode: detect, rules: [], onAttachFailure: block}")),
            (true, spec("{mode: detect, rules: [], repeat: {}}")),
            (true, spec("{mode: detect, rules: [], repeat: {window: 10m, keys: [tool, arguments]}}")),
            (false, spec("{mode: detect, rules: [], repeat: 10m}")),
            (false, spec("{mode: detect, rules: [], repeat: {window: [10m]}}")),
            (false, spec("{mode: detect, rules: [], repeat: {keys: [argv]}}")),
            (false, spec("{mode: detect, rules: [], repeat: {windows: 10m}}")),
            (false, rule("{tools: [nc]}")),
            (false, rule("{tools: nc, action: block}")),
            (false, rule("{tools: [[nc]], action: block}")),
            (false, rule("{tools: [{nc: 1}], action: block}")),
            (false, rule("{tool: [nc], action: block}")),
            (false, rule("{tools: [nc], action: deny}")),
            (false, rule("{tools: [nc], action: block, severity: worst}")),
            (false, rule("{comm: [nc], action: alert, exceptRepeats: [1h]}")),
            (false, name("''")),
            (false, name("A")),
            (false, name("-a")),
            (false, name("a.")),
            (false, name("../a")),
            (false, name("\"a\\n\"")),
            (false, name(&"a".repeat(64))),
            (false, name("[a]")),
            (false, HEAD.replace("/v1", "/v2") + "spec: {mode: detect, rules: []}"),
            (false, HEAD.replace("NetworkUtilityPolicy", "Policy") + "spec: {mode: detect, rules: []}"),
            (false, HEAD.replace("kind: NetworkUtilityPolicy\n", "") + "spec: {mode: detect, rules: []}"),
            (false, HEAD.replace("metadata: {name: t}", "metadata: {}") + "spec: {mode: detect, rules: []}"),
            (false, HEAD.replace("{name: t}", "{name: t, labels: {}}") + "spec: {mode: detect, rules: []}"),
        ];
        for (right, text) in cases {
            let value: Value = yaml::read("t.yaml", &text).unwrap_or_else(|error| panic!("{error}: {text}"));
            let parsed = source::parse("t.yaml", &text);
            assert_eq!(parsed.is_ok(), right, "the parser, {text}: {parsed:?}");
            assert_eq!(validator.is_valid(&value), right, "the schema, {text}");
        }
    }

    /// What a structural schema may have of what the generator makes.
    const KNOWN: &[&str] = &[
        "type",
        "description",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "enum",
        "nullable",
        "format",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "pattern",
        "minProperties",
    ];

    /// The rules of apiextensions.k8s.io/v1, as far as they concern what the generator makes.
    #[test]
    fn the_structural_schema_is_one() {
        fn look(value: &Value, place: &str) {
            let fields = value.as_object().unwrap_or_else(|| panic!("{place}: {value}"));
            for key in fields.keys() {
                let known = KNOWN.contains(&&**key) || key.starts_with("x-kubernetes-") || key == "maxProperties";
                assert!(known, "{place}.{key}");
            }
            let kind = fields.get("type").map(|kind| kind.as_str().unwrap_or_else(|| panic!("{place}: {kind}")));
            assert!(
                kind.is_some() || fields.contains_key("x-kubernetes-int-or-string"),
                "{place} has no type: {value}"
            );
            assert!(kind != Some("array") || fields.contains_key("items"), "{place}");
            for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
                look(property, &format!("{place}.{name}"));
            }
            for key in ["items", "additionalProperties"] {
                fields.get(key).into_iter().for_each(|value| look(value, &format!("{place}.{key}")));
            }
        }
        let schema = structural();
        look(&schema, "spec");
        assert_eq!(schema["required"], serde_json::json!(["mode", "rules"]));
        assert_eq!(schema["properties"]["mode"]["enum"], serde_json::json!(["detect", "enforce"]));
        let users = &schema["properties"]["rules"]["items"]["properties"]["users"]["items"];
        assert_eq!(users["x-kubernetes-int-or-string"], true);
    }

    #[test]
    fn every_field_is_described() {
        fn look(value: &Value, place: &str) {
            let Value::Object(fields) = value else { return };
            for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let text = property["description"].as_str().unwrap_or_default();
                assert!(!text.is_empty() && !text.contains(['\n', '[']), "{place}.{name}: {text:?}");
            }
            fields.iter().for_each(|(name, value)| look(value, &format!("{place}.{name}")));
        }
        look(&schema(), "");
    }
}

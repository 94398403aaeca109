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

use crate::source::Policy;

/// The schema, as draft 7: the newest that editors agree on.
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<Policy>();
    RecursiveTransform(unwrap_lines).transform(&mut schema);
    schema.insert("title".to_owned(), "NetworkUtilityPolicy".into());
    schema.to_value()
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

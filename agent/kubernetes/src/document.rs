//! An object of the cluster as a policy file, and the places of a file's errors in the object.
//!
//! The file is JSON, which is YAML as well: one value a line, so that a line has one place in the object.

use portcullis_policy::source::SourceError;
use serde_json::{Value, json};

/// How each file of ours begins. What does not is somebody else's, whatever its name.
pub const MARK: &str =
    "# Written by portcullis-policies for the PortcullisPolicy of this name: a change here is undone.\n";

/// The file's text.
pub fn render(name: &str, spec: &Value) -> String {
    let document = json!({
        "apiVersion": "portcullis.dev/v1",
        "kind": "NetworkUtilityPolicy",
        "metadata": { "name": name },
        "spec": spec,
    });
    format!("{MARK}{document:#}\n")
}

/// An error of a rendered file in terms of the object: `spec.rules[0].action: …`.
pub fn explain(text: &str, error: &SourceError) -> String {
    match place(text, usize::try_from(error.line).unwrap_or_default()) {
        Some(place) => format!("{place}: {}", error.reason),
        None => error.reason.clone(),
    }
}

/// Where in the object a line is, counted from 1.
fn place(text: &str, line: usize) -> Option<String> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    let mut wanted = depth(lines.last()?);
    let mut parts = Vec::new();
    // Elements of the list that the line is in, if it is in one.
    let mut elements = None;
    for line in lines.iter().rev() {
        let (depth, content) = (depth(line), line.trim_start());
        if depth + 1 == wanted && elements.is_some() {
            parts.push(format!("[{}]", elements.take().map_or(0, |count: usize| count.saturating_sub(1))));
            wanted = depth;
        }
        if depth != wanted || depth == 0 {
            continue;
        }
        match (key(content), &mut elements) {
            (Some(key), _) => {
                parts.push(format!(".{key}"));
                wanted -= 1;
            }
            (None, Some(count)) => *count += usize::from(!content.starts_with(['}', ']'])),
            (None, None) => elements = Some(1),
        }
    }
    parts.reverse();
    let path = parts.concat();
    (!path.is_empty()).then(|| path.trim_start_matches('.').to_owned())
}

fn depth(line: &str) -> usize {
    (line.len() - line.trim_start().len()) / 2
}

/// The key with which a line begins.
fn key(content: &str) -> Option<String> {
    let mut values = serde_json::Deserializer::from_str(content).into_iter::<String>();
    let key = values.next()?.ok()?;
    content.get(values.byte_offset()..)?.starts_with(": ").then_some(key)
}

#[cfg(test)]
mod tests {
    use portcullis_policy::{catalog::Catalog, validate::validate};

    use super::*;

    fn errors(spec: &Value) -> Vec<String> {
        let text = render("t", spec);
        let errors = validate(&Catalog::shipped().unwrap(), "t", &text).err().unwrap_or_default();
        errors.iter().map(|error| explain(&text, error)).collect()
    }

    #[test]
    fn what_is_rendered_is_read_as_it_is() {
        let strange = "a\"b\\c\n\t\u{1}é\u{1f600}\u{2028}";
        let spec = json!({
            "mode": "enforce",
            "select": { "namespaces": ["shop-*"] },
            "rules": [{ "comm": ["nc*"], "exceptArguments": [strange, "# no comment", "*a: &b"], "action": "alert" }],
        });
        let text = render("shop", &spec);
        let policy = validate(&Catalog::shipped().unwrap(), "t", &text).unwrap();
        assert_eq!(policy.metadata.name, "shop");
        let rule = &policy.spec.rules[0];
        let words: Vec<&str> = rule.except_arguments.iter().map(|word| &*word.value).collect();
        assert_eq!(words, [strange, "# no comment", "*a: &b"]);
    }

    #[test]
    fn errors_name_the_place_in_the_object() {
        let rule = |tool: &str| json!({ "tools": ["nc", tool], "users": [0, "1-2"], "action": "block" });
        let spec = json!({ "mode": "detect", "rules": [rule("nc"), rule("telnut"), rule("ncc")] });
        let found = errors(&spec);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("spec.rules[1].tools[1]: "), "{found:?}");
        assert!(found[1].starts_with("spec.rules[2].tools[1]: "), "{found:?}");
        let found = errors(&json!({ "mode": "detect", "rules": [], "excptions": [] }));
        assert!(found[0].starts_with("spec.excptions: unknown field"), "{found:?}");
        let found = errors(&json!({ "mode": "audit", "rules": [] }));
        assert!(found[0].starts_with("spec.mode: "), "{found:?}");
        let found = errors(&json!("x"));
        assert!(found[0].starts_with("spec: "), "{found:?}");
    }
}

//! Everything that is wrong with a policy file, not only the first.

use std::mem;

use crate::{
    catalog::Catalog,
    compile::compile,
    source::{Policy, SourceError, parse},
};

/// The kernel id while nothing is put into the kernel.
const NO_ID: u32 = 1;

/// Reads a file and checks it against the catalogue. The errors are, in the order of their places, that which keeps it from
/// being read at all, or one of each rule that can't be compiled. `file` is its name in errors.
pub fn validate(catalog: &Catalog, file: &str, text: &str) -> Result<Policy, Vec<SourceError>> {
    let mut policy = parse(file, text).map_err(|error| vec![error])?;
    let Err(first) = compile(catalog, &policy, NO_ID) else { return Ok(policy) };
    let (rules, exceptions) = (mem::take(&mut policy.spec.rules), mem::take(&mut policy.spec.exceptions));
    let mut errors: Vec<SourceError> = Vec::new();
    for rule in rules {
        policy.spec.rules = vec![rule];
        errors.extend(compile(catalog, &policy, NO_ID).err());
    }
    policy.spec.rules.clear();
    for exception in exceptions {
        policy.spec.exceptions = vec![exception];
        errors.extend(compile(catalog, &policy, NO_ID).err());
    }
    // What only several together do.
    if !errors.contains(&first) {
        errors.push(first);
    }
    errors.sort_by_key(|error| (error.line, error.column));
    Err(errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SHIPPED_DEFAULT;

    const HEAD: &str = "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {name: t}\n";

    fn errors(spec: &str) -> Vec<String> {
        let catalog = Catalog::shipped().unwrap();
        let errors = validate(&catalog, "t.yaml", &format!("{HEAD}{spec}")).unwrap_err();
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_and_exception_has_its_error() {
        let found = errors(
            "\
spec:
  mode: detect
  rules:
  - {tools: [netcat], action: block}
  - {tools: [nc], action: block}
  - {categories: [dsn], action: block}
  - {comm: [nc], exceptRepeats: 1h, action: block}
  exceptions:
  - {tools: [curl]}
  - {parents: [health]}
  - {users: [0]}
",
        );
        let starts = [
            "t.yaml:7:14: unknown tool",
            "t.yaml:9:19: unknown category",
            "t.yaml:10:33: `exceptRepeats` needs",
            "t.yaml:12:5: an exception needs at least one",
            "t.yaml:13:16: \"health\" is no path",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}");
        }
    }

    #[test]
    fn what_no_rule_does_alone_is_an_error_too() {
        let rules: String = (0..2)
            .map(|rule| {
                let names: Vec<String> = (0..200).map(|name| format!("n{rule}x{name}")).collect();
                format!("  - {{comm: [{}], action: alert}}\n", names.join(", "))
            })
            .collect::<Vec<_>>()
            .concat();
        let found = errors(&format!("spec:\n  mode: detect\n  rules:\n{rules}"));
        assert!(matches!(found.as_slice(), [one] if one.contains("256 patterns")), "{found:?}");
    }

    #[test]
    fn a_file_that_cannot_be_read_has_one() {
        let found = errors("spec: {mode: odd, rules: [{tools: [netcat]}]}\n");
        assert!(matches!(found.as_slice(), [one] if one.starts_with("t.yaml:4:14: ")), "{found:?}");
        let name =
            validate(&Catalog::shipped().unwrap(), "t.yaml", &HEAD.replace("{name: t}", "{name: a/b}")).unwrap_err();
        assert!(name[0].to_string().starts_with("t.yaml:3:18: \"a/b\" can't be a policy's name"), "{}", name[0]);
        let policy = validate(&Catalog::shipped().unwrap(), "default.yaml", SHIPPED_DEFAULT).unwrap();
        assert_eq!((policy.metadata.name.as_str(), policy.spec.rules.len()), ("default", 4));
    }
}

//! Catalogue and policy → what the kernel programs look up.

use std::collections::HashMap;

use crate::{
    catalog::{Catalog, Severity},
    policyset::{Mode, OnAttachFailure, PolicyEntry},
    source::{Action, Policy, Rule, SourceError},
};

/// One policy, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// What the shim needs.
    pub entry: PolicyEntry,
    /// Kernel id of the policy and the tool to action. What is ignored is not in it.
    pub rules: Vec<((u32, u32), Action)>,
    /// Kernel id of the tool to the severity of its signals, where the policy gives one.
    pub severities: HashMap<u32, Severity>,
}

/// Checks the policy against the catalogue and compiles it. `id` is the policy's key in the kernel's tables.
pub fn compile(catalog: &Catalog, policy: &Policy, id: u32) -> Result<Compiled, SourceError> {
    for rule in &policy.spec.rules {
        check(catalog, &policy.file, rule)?;
    }
    let mut rules = Vec::new();
    let mut severities = HashMap::new();
    for tool in catalog.tools() {
        let kernel_id = tool.kernel_id();
        let decides = |rule: &&Rule| {
            rule.tools.iter().any(|id| id.value == tool.id)
                || rule.categories.iter().any(|id| id.value == tool.category)
        };
        let Some(rule) = policy.spec.rules.iter().find(decides) else { continue };
        if rule.action != Action::Ignore {
            rules.push(((id, kernel_id), rule.action));
        }
        if let Some(severity) = rule.severity {
            severities.insert(kernel_id, severity);
        }
    }
    let on_attach_failure = policy.spec.on_attach_failure.unwrap_or(match policy.spec.mode {
        Mode::Detect => OnAttachFailure::Allow,
        Mode::Enforce => OnAttachFailure::Deny,
    });
    let entry = PolicyEntry {
        id,
        name: policy.metadata.name.clone(),
        mode: policy.spec.mode,
        on_attach_failure,
        allow_loosening: policy.spec.allow_loosening,
    };
    Ok(Compiled { entry, rules, severities })
}

fn check(catalog: &Catalog, file: &str, rule: &Rule) -> Result<(), SourceError> {
    if let Some(unknown) = rule.categories.iter().find(|id| !catalog.categories().contains_key(&id.value)) {
        let known: Vec<&str> = catalog.categories().keys().map(String::as_str).collect();
        let reason = format!("unknown category {:?}; there are {}", unknown.value, known.join(", "));
        return Err(SourceError::at(file, unknown.referenced, reason));
    }
    if let Some(unknown) = rule.tools.iter().find(|id| !catalog.tools().iter().any(|tool| tool.id == id.value)) {
        let owner = catalog.tools().iter().find(|tool| tool.names.contains(&unknown.value));
        let hint = owner.map_or_else(String::new, |tool| format!("; this is a name of the tool {:?}", tool.id));
        let reason = format!("unknown tool {:?}{hint}", unknown.value);
        return Err(SourceError::at(file, unknown.referenced, reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{SHIPPED_DEFAULT, parse};

    const HEAD: &str =
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata:\n  name: t\nspec:\n  mode: enforce\n";

    fn compiled(rules: &str) -> Result<Compiled, SourceError> {
        let catalog = Catalog::shipped().unwrap();
        compile(&catalog, &parse("t.yaml", &format!("{HEAD}{rules}"))?, 7)
    }

    fn action(compiled: &Compiled, name: &str) -> Option<Action> {
        let catalog = Catalog::shipped().unwrap();
        let tool = catalog.names().find(|known| known.name == name)?.kernel_id;
        compiled.rules.iter().find(|((_, id), _)| *id == tool).map(|(_, action)| *action)
    }

    #[test]
    fn the_first_rule_that_names_a_tool_decides() {
        let compiled = compiled(
            "  rules:\n  - tools: [curl]\n    action: alert\n    severity: low\n  - categories: [http, dns]\n    action: block\n",
        )
        .unwrap();
        assert_eq!(action(&compiled, "curl"), Some(Action::Alert));
        assert_eq!(action(&compiled, "wget"), Some(Action::Block));
        assert_eq!(action(&compiled, "nslookup"), Some(Action::Block));
        assert_eq!(action(&compiled, "nmap"), None);
        assert_eq!(compiled.severities.values().collect::<Vec<_>>(), [&Severity::Low]);
        assert_eq!(compiled.entry.on_attach_failure, OnAttachFailure::Deny);
        assert!(compiled.rules.iter().all(|((policy, _), _)| *policy == 7));
    }

    #[test]
    fn every_error_names_file_line_and_reason() {
        let error = |rules: &str| compiled(rules).unwrap_err().to_string();
        let unknown =
            error("  rules:\n  - categories: [dns]\n    action: block\n  - categories: [dsn]\n    action: block\n");
        assert!(unknown.starts_with("t.yaml:10:18: unknown category \"dsn\"; there are "), "{unknown}");
        let alias = error("  rules:\n  - tools: [netcat]\n    action: block\n");
        assert!(alias.contains("this is a name of the tool \"nc\""), "{alias}");
        let field = error("  ruels: []\n");
        assert!(field.starts_with("t.yaml:7:3: ") && field.contains("ruels"), "{field}");
        assert!(!field.contains("line 7"), "the place is told once: {field}");
        let action = error("  rules:\n  - tools: [nc]\n    action: deny\n");
        assert!(action.starts_with("t.yaml:9:13: "), "{action}");
        let syntax = error("  rules: [\n");
        assert!(syntax.starts_with("t.yaml:"), "{syntax}");
        assert!(!syntax.contains('\n'), "{syntax}");
    }

    #[test]
    fn shipped_default_detects_and_would_block_all_but_diagnostics() {
        let catalog = Catalog::shipped().unwrap();
        let compiled = compile(&catalog, &parse("default.yaml", SHIPPED_DEFAULT).unwrap(), 1).unwrap();
        assert_eq!(compiled.entry.name, "default");
        assert_eq!((compiled.entry.mode, compiled.entry.allow_loosening), (Mode::Detect, false));
        assert_eq!(action(&compiled, "nc.openbsd"), Some(Action::Block));
        assert_eq!(action(&compiled, "nslookup"), Some(Action::Block));
        assert_eq!(action(&compiled, "ping"), Some(Action::Alert));
    }
}

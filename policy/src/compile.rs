//! Catalogue and policy → what the kernel programs look up.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_saphyr::Spanned;

use crate::{
    catalog::{Catalog, Severity, kernel_id},
    comm::Pattern,
    exceptions::{Exceptions, REPEATS_MAX, WORD_MAX, WORDS_MAX, parse_repeats},
    policyset::{Mode, OnAttachFailure, PolicyEntry},
    source::{Action, Policy, Rule, SourceError},
};

/// How many patterns of comm a policy may have: with room for several policies, old and new, in the kernel's table.
pub const PATTERNS_MAX: usize = 256;

/// One pattern of comm, and what its rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommRule {
    /// The pattern.
    pub pattern: Pattern,
    /// Severity of its signals, where the rule gives one.
    pub severity: Option<Severity>,
    /// What is left out; the same for all of a rule's patterns.
    pub exceptions: Option<Arc<Exceptions>>,
}

/// One policy, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// What the shim needs.
    pub entry: PolicyEntry,
    /// Kernel id of the policy and of tool or pattern to action. What is ignored is not in it.
    pub rules: Vec<((u32, u32), Action)>,
    /// Kernel id of the tool to the severity of its signals, where the policy gives one.
    pub severities: BTreeMap<u32, Severity>,
    /// Kernel id of policy and pattern to the pattern; those that are ignored as well, as they shield from shorter ones.
    pub comm: BTreeMap<(u32, u32), CommRule>,
}

/// Checks the policy against the catalogue and compiles it. `id` is the policy's key in the kernel's tables.
pub fn compile(catalog: &Catalog, policy: &Policy, id: u32) -> Result<Compiled, SourceError> {
    for rule in &policy.spec.rules {
        check(catalog, &policy.file, rule)?;
    }
    let (mut rules, comm) = compile_comm(catalog, policy, id)?;
    let mut severities = BTreeMap::new();
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
        select: policy.spec.select.clone(),
        priority: policy.spec.priority,
        allow_loosening: policy.spec.allow_loosening,
        require_backend: policy.spec.require_backend,
        ..PolicyEntry::new(id, &policy.metadata.name, policy.spec.mode, on_attach_failure)
    };
    Ok(Compiled { entry, rules, severities, comm })
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
    if let (Some(comm), false) = (rule.comm.first(), rule.categories.is_empty() && rule.tools.is_empty()) {
        let reason =
            "a rule names executables by `comm` or tools by `categories` and `tools`, not both: make it two rules";
        return Err(SourceError::at(file, comm.referenced, reason));
    }
    let exceptions =
        [("exceptArguments", rule.except_arguments.first()), ("exceptRepeats", rule.except_repeats.as_ref())];
    for (key, given) in exceptions {
        let Some(given) = given else { continue };
        if rule.comm.is_empty() {
            let reason = format!("`{key}` is for rules that name executables by `comm`");
            return Err(SourceError::at(file, given.referenced, reason));
        }
        if rule.action != Action::Alert {
            let reason = format!(
                "`{key}` needs `action: alert`: arguments and repeats are judged by the agent once the program runs, when it \
                 can no longer be blocked"
            );
            return Err(SourceError::at(file, given.referenced, reason));
        }
    }
    Ok(())
}

type CommRules = (Vec<((u32, u32), Action)>, BTreeMap<(u32, u32), CommRule>);

/// The rules that name executables by comm. The kernel finds the longest pattern that a comm matches; that it belongs to the
/// first rule that matches, patterns are left out which an earlier rule covers.
fn compile_comm(catalog: &Catalog, policy: &Policy, id: u32) -> Result<CommRules, SourceError> {
    let mut actions = Vec::new();
    let mut rules: BTreeMap<(u32, u32), CommRule> = BTreeMap::new();
    let mut earlier: Vec<Pattern> = Vec::new();
    for rule in &policy.spec.rules {
        let exceptions = exceptions(&policy.file, rule)?.map(Arc::new);
        let mut ours = Vec::with_capacity(rule.comm.len());
        for text in &rule.comm {
            let error = |reason: String| SourceError::at(&policy.file, text.referenced, reason);
            let pattern: Pattern = text.value.parse().map_err(|reason| error(format!("{reason}")))?;
            let kernel_id = pattern.kernel_id();
            let known = rules.get(&(id, kernel_id)).map(|known| &known.pattern);
            if catalog.tool(kernel_id).is_some() || known.is_some_and(|known| *known != pattern) {
                return Err(error(format!("{text:?} and another name share their 32-bit hash", text = text.value)));
            }
            ours.push(pattern.clone());
            if known.is_some() || earlier.iter().any(|earlier| earlier.covers(&pattern)) {
                continue;
            }
            if rules.len() == PATTERNS_MAX {
                return Err(error(format!("there may be {PATTERNS_MAX} patterns of comm")));
            }
            if rule.action != Action::Ignore {
                actions.push(((id, kernel_id), rule.action));
            }
            let exceptions = exceptions.clone();
            rules.insert((id, kernel_id), CommRule { pattern, severity: rule.severity, exceptions });
        }
        earlier.append(&mut ours);
    }
    Ok((actions, rules))
}

fn exceptions(file: &str, rule: &Rule) -> Result<Option<Exceptions>, SourceError> {
    let words = &rule.except_arguments;
    if let Some(odd) = words.iter().find(|word| word.value.is_empty() || word.value.len() > WORD_MAX) {
        let reason = format!("{:?} must have 1 to {WORD_MAX} bytes: every argument contains the empty word", odd.value);
        return Err(SourceError::at(file, odd.referenced, reason));
    }
    if let Some(more) = words.get(WORDS_MAX) {
        return Err(SourceError::at(file, more.referenced, format!("there may be {WORDS_MAX} words")));
    }
    let repeats = rule.except_repeats.as_ref().map(|given| repeats(file, given)).transpose()?;
    if words.is_empty() && repeats.is_none() {
        return Ok(None);
    }
    let names: Vec<&str> = rule.comm.iter().map(|text| text.value.as_str()).collect();
    Ok(Some(Exceptions {
        rule: kernel_id(&names.join(" ")),
        arguments: words.iter().map(|word| word.value.clone()).collect(),
        repeats,
    }))
}

fn repeats(file: &str, given: &Spanned<String>) -> Result<Duration, SourceError> {
    parse_repeats(&given.value).ok_or_else(|| {
        let days = REPEATS_MAX.as_secs() / 86_400;
        let reason = format!("{:?} is no time: a number and s, m, h or d, such as 1h; at most {days}d", given.value);
        SourceError::at(file, given.referenced, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{SHIPPED_DEFAULT, SHIPPED_UPSTREAM, parse};

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

    /// The pattern that the kernel finds for a comm.
    fn found<'a>(compiled: &'a Compiled, comm: &str) -> Option<&'a CommRule> {
        let comm: Pattern = comm.parse().unwrap();
        let covering = compiled.comm.values().filter(|rule| rule.pattern.covers(&comm));
        covering.max_by_key(|rule| (rule.pattern.name().len(), rule.pattern.is_whole()))
    }

    #[test]
    fn of_the_rules_that_name_a_comm_the_first_decides() {
        let compiled = compiled(
            "  rules:\n  - comm: [ncdu]\n    action: ignore\n  - comm: [nc*, ncat, nc*]\n    action: alert\n    severity: low\n  \
             - comm: [n*, nca*, nc, ncdu]\n    action: block\n",
        )
        .unwrap();
        let action = |comm| {
            let id = found(&compiled, comm)?.pattern.kernel_id();
            compiled.rules.iter().find(|((_, pattern), _)| *pattern == id).map(|(_, action)| *action)
        };
        assert_eq!(action("ncdu"), None);
        for ours in ["nc", "ncat", "ncal", "ncdu2"] {
            assert_eq!(action(ours), Some(Action::Alert), "{ours}");
            assert_eq!(found(&compiled, ours).unwrap().severity, Some(Severity::Low));
        }
        assert_eq!(action("netcat"), Some(Action::Block));
        assert!(found(&compiled, "socat").is_none());
        assert_eq!(found(&compiled, "ncat").unwrap().pattern.to_string(), "ncat");
        assert!(compiled.comm.keys().all(|(policy, _)| *policy == 7));
    }

    #[test]
    fn exceptions_need_what_can_judge_them() {
        let error = |rule: &str| compiled(&format!("  rules:\n  - {rule}\n")).unwrap_err().to_string();
        for (key, value, column) in [("exceptArguments", "[localhost]", 51), ("exceptRepeats", "1h", 48)] {
            let blocks = error(&format!("{{comm: [nc], action: block, {key}: {value}}}"));
            assert!(blocks.starts_with(&format!("t.yaml:8:{column}: `{key}` needs `action: alert`")), "{blocks}");
            let ignores = error(&format!("{{comm: [nc], action: ignore, {key}: {value}}}"));
            assert!(ignores.contains("needs `action: alert`"), "{ignores}");
            let tools = error(&format!("{{tools: [nc], action: alert, {key}: {value}}}"));
            assert!(tools.contains("is for rules that name executables by `comm`"), "{tools}");
        }
        let both = error("{comm: [nc], tools: [nc], action: alert}");
        assert!(both.starts_with("t.yaml:8:13: ") && both.contains("not both"), "{both}");
        let long = error("{comm: [nc, sixteen-bytes-16], action: alert}");
        assert!(long.starts_with("t.yaml:8:17: \"sixteen-bytes-16\" can't be a comm"), "{long}");
        let empty = error("{comm: [nc], action: alert, exceptArguments: ['']}");
        assert!(empty.contains("1 to 256 bytes"), "{empty}");
        let time = error("{comm: [nc], action: alert, exceptRepeats: 3600}");
        assert!(time.contains("\"3600\" is no time: a number and s, m, h or d"), "{time}");
        let words = (0..=WORDS_MAX).map(|number| format!("w{number}")).collect::<Vec<_>>().join(", ");
        let many = error(&format!("{{comm: [nc], action: alert, exceptArguments: [{words}]}}"));
        assert!(many.ends_with("there may be 64 words"), "{many}");
        let names = (0..=PATTERNS_MAX).map(|number| format!("n{number}")).collect::<Vec<_>>().join(", ");
        let many = error(&format!("{{comm: [{names}], action: alert}}"));
        assert!(many.ends_with("there may be 256 patterns of comm"), "{many}");
    }

    #[test]
    fn shipped_upstream_rule_is_the_published_one() {
        let catalog = Catalog::shipped().unwrap();
        let compiled = compile(&catalog, &parse("upstream-exact.yaml", SHIPPED_UPSTREAM).unwrap(), 1).unwrap();
        assert_eq!((compiled.entry.name.as_str(), compiled.entry.mode), ("upstream-exact", Mode::Detect));
        let mut patterns: Vec<String> = compiled.comm.values().map(|rule| rule.pattern.to_string()).collect();
        patterns.sort_unstable();
        let published = ["curl", "dig", "host", "lwp-download", "nc*", "ncat", "netcat*", "nslookup", "socat", "wget"];
        assert_eq!(patterns, published);
        assert_eq!(compiled.rules.len(), published.len(), "nothing but the patterns");
        for rule in compiled.comm.values() {
            let exceptions = rule.exceptions.as_ref().unwrap();
            assert_eq!(exceptions.arguments, ["localhost", "127.0.0.1", "motd.ubuntu.com"]);
            assert_eq!(exceptions.repeats, Some(Duration::from_secs(3600)));
        }
        for hit in ["nc", "nc.openbsd", "ncdu", "ncal", "ncat", "netcat6", "wget", "host"] {
            assert!(found(&compiled, hit).is_some(), "{hit}");
        }
        for miss in ["busybox", "wget2", "hostname", "curlie", "netca", "nmap", "ssh", "lwp-download2"] {
            assert!(found(&compiled, miss).is_none(), "{miss}");
        }
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

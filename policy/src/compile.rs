//! Catalogue and policy → what the kernel programs look up.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_saphyr::Spanned;

use crate::{
    catalog::{Catalog, Severity, Tool, kernel_id},
    comm::Pattern,
    exceptions::{self, EXCEPTIONS_MAX, Exception},
    omissions::{Omissions, REPEATS_MAX, WORD_MAX, WORDS_MAX, parse_repeats},
    policyset::{ImageException, Mode, OnAttachFailure, PolicyEntry},
    repeat::Repeat,
    source::{Action, Place, Policy, Rule, SourceError},
    users::Users,
};

/// How many patterns of comm a policy may have: with room for several policies, old and new, in the kernel's table.
pub const PATTERNS_MAX: usize = 256;
/// What a policy may say of one tool, by place and user.
pub const DECISIONS_MAX: usize = 8;

/// What one rule says of a tool or pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The rule's number in its policy, from 0.
    pub rule: u32,
    /// One of these must hold. Empty: wherever the file is.
    pub places: Vec<Place>,
    /// Of whom.
    pub users: Users,
}

/// What a policy says of a tool or pattern: the first decision that applies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ruling {
    /// In order.
    pub decisions: Vec<Decision>,
    /// Numbers of the policy's exceptions that may hold: a bit each.
    pub exceptions: u32,
}

impl Ruling {
    /// What is said of a file that is in these places, and of this user.
    pub fn decision(&self, places: &[Place], uid: u32) -> Option<&Decision> {
        let is_there = |wanted: &[Place]| wanted.is_empty() || wanted.iter().any(|place| places.contains(place));
        self.decisions.iter().find(|decision| decision.users.contain(uid) && is_there(&decision.places))
    }
}

/// What a rule says besides its actions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleFacts {
    /// Severity of its signals, where it gives one.
    pub severity: Option<Severity>,
    /// What the agent does not report.
    pub omissions: Option<Arc<Omissions>>,
}

/// One policy, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// What the shim needs.
    pub entry: PolicyEntry,
    /// Kernel id of tool or pattern to what is done. What is always ignored is not in it.
    pub rulings: BTreeMap<u32, Ruling>,
    /// By the rules' numbers.
    pub rules: Vec<RuleFacts>,
    /// By their numbers.
    pub exceptions: Vec<Exception>,
    /// Kernel id to pattern of comm; those that are ignored as well, as they shield from shorter ones.
    pub comm: BTreeMap<u32, Pattern>,
    /// What the agent folds.
    pub repeat: Repeat,
}

/// Checks the policy against the catalogue and compiles it. `id` is the policy's key in the kernel's tables.
pub fn compile(catalog: &Catalog, policy: &Policy, id: u32) -> Result<Compiled, SourceError> {
    let (file, spec) = (&policy.file, &policy.spec);
    for rule in &spec.rules {
        check(catalog, file, rule)?;
    }
    let rules: Vec<RuleFacts> = spec
        .rules
        .iter()
        .map(|rule| Ok(RuleFacts { severity: rule.severity, omissions: omissions(file, rule)?.map(Arc::new) }))
        .collect::<Result<_, SourceError>>()?;
    if let Some(more) = spec.exceptions.get(EXCEPTIONS_MAX) {
        return Err(SourceError::at(file, more.referenced, format!("there may be {EXCEPTIONS_MAX} exceptions")));
    }
    let exceptions: Vec<Exception> = spec
        .exceptions
        .iter()
        .map(|given| Exception::compile(catalog, file, given))
        .collect::<Result<_, SourceError>>()?;
    let comm = compile_comm(catalog, policy)?;
    let mut rulings = BTreeMap::new();
    for tool in catalog.tools() {
        let decisions = decisions(policy, |rule| names(rule, tool))?;
        if !decisions.is_empty() {
            rulings
                .insert(tool.kernel_id(), Ruling { decisions, exceptions: bits(&exceptions, |one| one.is_for(tool)) });
        }
    }
    for (kernel_id, pattern) in &comm {
        let decisions = decisions(policy, |rule| covers(rule, pattern))?;
        if !decisions.is_empty() {
            rulings.insert(*kernel_id, Ruling { decisions, exceptions: bits(&exceptions, Exception::is_for_all) });
        }
    }
    let repeat = Repeat::compile(file, &spec.repeat)?;
    let on_attach_failure = spec.on_attach_failure.unwrap_or(match spec.mode {
        Mode::Detect => OnAttachFailure::Allow,
        Mode::Enforce => OnAttachFailure::Deny,
    });
    let entry = PolicyEntry {
        select: spec.select.clone(),
        priority: spec.priority,
        allow_loosening: spec.allow_loosening,
        require_backend: spec.require_backend,
        image_exceptions: image_exceptions(&exceptions),
        ..PolicyEntry::new(id, &policy.metadata.name, spec.mode, on_attach_failure)
    };
    Ok(Compiled { entry, rulings, rules, exceptions, comm, repeat })
}

/// Whether a rule names a tool.
fn names(rule: &Rule, tool: &Tool) -> bool {
    rule.tools.iter().any(|id| id.value == tool.id) || rule.categories.iter().any(|id| id.value == tool.category)
}

/// Whether a rule names every comm that a pattern stands for.
fn covers(rule: &Rule, pattern: &Pattern) -> bool {
    rule.comm.iter().any(|text| text.value.parse::<Pattern>().is_ok_and(|ours| ours.covers(pattern)))
}

/// The exceptions that may hold, a bit each.
fn bits(exceptions: &[Exception], may_hold: impl Fn(&Exception) -> bool) -> u32 {
    exceptions
        .iter()
        .enumerate()
        .filter(|(_, exception)| may_hold(exception))
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

fn image_exceptions(exceptions: &[Exception]) -> Vec<ImageException> {
    let of_images = (0..).zip(exceptions).filter(|(_, exception)| !exception.images.is_empty());
    of_images.map(|(number, exception)| ImageException { number, images: exception.images.clone() }).collect()
}

/// Whether a rule leaves nothing for later ones.
fn is_unconditional(rule: &Rule) -> bool {
    rule.places.is_empty() && rule.users.is_empty()
}

/// What the rules say that apply, up to the first without conditions. Nothing if all of it is to ignore.
fn decisions(policy: &Policy, applies: impl Fn(&Rule) -> bool) -> Result<Vec<Decision>, SourceError> {
    let mut decisions = Vec::new();
    for (number, rule) in policy.spec.rules.iter().enumerate().filter(|(_, rule)| applies(rule)) {
        let users = match exceptions::users(&policy.file, &rule.users, DECISIONS_MAX)?.as_slice() {
            [] => vec![Users::ALL],
            users => users.to_vec(),
        };
        let rule_number = u32::try_from(number).unwrap_or(u32::MAX);
        let decision = |users| Decision { action: rule.action, rule: rule_number, places: rule.places.clone(), users };
        decisions.extend(users.into_iter().map(decision));
        if decisions.len() > DECISIONS_MAX {
            let first = [&rule.tools, &rule.categories, &rule.comm].into_iter().find_map(|names| names.first());
            let reason = format!(
                "this rule and those before it make more than {DECISIONS_MAX} conditions for one tool: each range of users \
                 and each rule counts"
            );
            let at = first.map_or(serde_saphyr::Location::UNKNOWN, |name| name.referenced);
            return Err(SourceError::at(&policy.file, at, reason));
        }
        if is_unconditional(rule) {
            break;
        }
    }
    let last = decisions.iter().rposition(|decision| decision.action != Action::Ignore);
    decisions.truncate(last.map_or(0, |last| last + 1));
    Ok(decisions)
}

/// Whether the catalogue has these.
pub(crate) fn check_ids(
    catalog: &Catalog,
    file: &str,
    categories: &[Spanned<String>],
    tools: &[Spanned<String>],
) -> Result<(), SourceError> {
    if let Some(unknown) = categories.iter().find(|id| !catalog.categories().contains_key(&id.value)) {
        let known: Vec<&str> = catalog.categories().keys().map(String::as_str).collect();
        let reason = format!("unknown category {:?}; there are {}", unknown.value, known.join(", "));
        return Err(SourceError::at(file, unknown.referenced, reason));
    }
    if let Some(unknown) = tools.iter().find(|id| !catalog.tools().iter().any(|tool| tool.id == id.value)) {
        let owner = catalog.tools().iter().find(|tool| tool.names.contains(&unknown.value));
        let hint = owner.map_or_else(String::new, |tool| format!("; this is a name of the tool {:?}", tool.id));
        let reason = format!("unknown tool {:?}{hint}", unknown.value);
        return Err(SourceError::at(file, unknown.referenced, reason));
    }
    Ok(())
}

fn check(catalog: &Catalog, file: &str, rule: &Rule) -> Result<(), SourceError> {
    check_ids(catalog, file, &rule.categories, &rule.tools)?;
    if let (Some(comm), false) = (rule.comm.first(), rule.categories.is_empty() && rule.tools.is_empty()) {
        let reason =
            "a rule names executables by `comm` or tools by `categories` and `tools`, not both: make it two rules";
        return Err(SourceError::at(file, comm.referenced, reason));
    }
    let omissions =
        [("exceptArguments", rule.except_arguments.first()), ("exceptRepeats", rule.except_repeats.as_ref())];
    for (key, given) in omissions {
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

/// The patterns of comm. The kernel finds the longest one that a comm matches, and asks what the policy says of it. Those
/// that an earlier rule covers altogether are left out.
fn compile_comm(catalog: &Catalog, policy: &Policy) -> Result<BTreeMap<u32, Pattern>, SourceError> {
    let mut patterns: BTreeMap<u32, Pattern> = BTreeMap::new();
    let mut covered: Vec<Pattern> = Vec::new();
    for rule in &policy.spec.rules {
        let mut ours = Vec::with_capacity(rule.comm.len());
        for text in &rule.comm {
            let error = |reason: String| SourceError::at(&policy.file, text.referenced, reason);
            let pattern: Pattern = text.value.parse().map_err(|reason| error(format!("{reason}")))?;
            let kernel_id = pattern.kernel_id();
            let known = patterns.get(&kernel_id);
            if catalog.tool(kernel_id).is_some() || known.is_some_and(|known| *known != pattern) {
                return Err(error(format!("{text:?} and another name share their 32-bit hash", text = text.value)));
            }
            ours.push(pattern.clone());
            if known.is_some() || covered.iter().any(|earlier| earlier.covers(&pattern)) {
                continue;
            }
            if patterns.len() == PATTERNS_MAX {
                return Err(error(format!("there may be {PATTERNS_MAX} patterns of comm")));
            }
            patterns.insert(kernel_id, pattern);
        }
        if is_unconditional(rule) {
            covered.append(&mut ours);
        }
    }
    Ok(patterns)
}

fn omissions(file: &str, rule: &Rule) -> Result<Option<Omissions>, SourceError> {
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
    Ok(Some(Omissions {
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

    /// What is done wherever the file is, whoever the user.
    fn action_of(compiled: &Compiled, kernel_id: u32) -> Option<Action> {
        let ruling = compiled.rulings.get(&kernel_id)?;
        assert_eq!(ruling.decisions.len(), 1);
        Some(ruling.decisions[0].action)
    }

    fn action(compiled: &Compiled, name: &str) -> Option<Action> {
        let catalog = Catalog::shipped().unwrap();
        let known = catalog.names().find(|known| known.name == name)?;
        action_of(compiled, known.kernel_id)
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
        assert_eq!(compiled.rules.iter().map(|rule| rule.severity).collect::<Vec<_>>(), [Some(Severity::Low), None]);
        assert_eq!(compiled.entry.on_attach_failure, OnAttachFailure::Deny);
        assert_eq!(compiled.entry.id, 7);
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
    fn found<'a>(compiled: &'a Compiled, comm: &str) -> Option<&'a Pattern> {
        let comm: Pattern = comm.parse().unwrap();
        let covering = compiled.comm.values().filter(|pattern| pattern.covers(&comm));
        covering.max_by_key(|pattern| (pattern.name().len(), pattern.is_whole()))
    }

    #[test]
    fn of_the_rules_that_name_a_comm_the_first_decides() {
        let compiled = compiled(
            "  rules:\n  - comm: [ncdu]\n    action: ignore\n  - comm: [nc*, ncat, nc*]\n    action: alert\n    severity: low\n  \
             - comm: [n*, nca*, nc, ncdu]\n    action: block\n",
        )
        .unwrap();
        let action = |comm| action_of(&compiled, found(&compiled, comm)?.kernel_id());
        assert_eq!(action("ncdu"), None);
        for ours in ["nc", "ncat", "ncal", "ncdu2"] {
            assert_eq!(action(ours), Some(Action::Alert), "{ours}");
            let ruling = &compiled.rulings[&found(&compiled, ours).unwrap().kernel_id()];
            assert_eq!(ruling.decisions[0].rule, 1);
        }
        assert_eq!(action("netcat"), Some(Action::Block));
        assert!(found(&compiled, "socat").is_none());
        assert_eq!(found(&compiled, "ncat").unwrap().to_string(), "ncat");
    }

    fn ruling(compiled: &Compiled, tool: &str) -> Vec<(Action, u32)> {
        let ruling = compiled.rulings.get(&kernel_id(tool));
        ruling.map(|ruling| ruling.decisions.iter().map(|one| (one.action, one.rule)).collect()).unwrap_or_default()
    }

    #[test]
    fn rules_with_conditions_leave_the_rest_to_later_ones() {
        let compiled = compiled(
            "  rules:\n  - {categories: [http], places: [upper_layer, memfd], action: block}\n  - {tools: [curl], users: \
             [0, 1000-1999], action: ignore}\n  - {tools: [curl], action: alert}\n  - {categories: [http], users: [33], \
             action: ignore}\n  - {tools: [curl], action: block}\n",
        )
        .unwrap();
        let (block, ignore, alert) = (Action::Block, Action::Ignore, Action::Alert);
        assert_eq!(ruling(&compiled, "curl"), [(block, 0), (ignore, 1), (ignore, 1), (alert, 2)]);
        assert_eq!(ruling(&compiled, "wget"), [(block, 0)], "what is ignored at last needs no word");
        let curl = &compiled.rulings[&kernel_id("curl")].decisions;
        assert_eq!(curl[0].places, [Place::UpperLayer, Place::Memfd]);
        assert_eq!((curl[0].users, curl[2].users), (Users::ALL, "1000-1999".parse().unwrap()));
        assert_eq!(ruling(&compiled, "nc"), []);
    }

    #[test]
    fn conditions_of_one_tool_are_bounded_and_none_is_dropped() {
        let users = |count| (0..count).map(|uid| uid.to_string()).collect::<Vec<_>>().join(", ");
        let policy = |count| {
            compiled(&format!(
                "  rules:\n  - {{tools: [nc], users: [{}], action: alert}}\n  - {{tools: [nc], action: block}}\n",
                users(count)
            ))
        };
        assert_eq!(ruling(&policy(7).unwrap(), "nc").last(), Some(&(Action::Block, 1)));
        let error = policy(8).unwrap_err().to_string();
        assert!(error.starts_with("t.yaml:9:14: ") && error.contains("more than 8 conditions"), "{error}");
        let error = policy(9).unwrap_err().to_string();
        assert!(error.contains("there may be 8 users or ranges"), "{error}");
    }

    #[test]
    fn a_pattern_has_the_decisions_of_all_that_cover_it() {
        let compiled = compiled(
            "  rules:\n  - {comm: [ncdu], users: [1], action: ignore}\n  - {comm: [nc*], users: [0], action: block}\n  - {comm: \
             [nc, n*], action: alert}\n  - {comm: [ncdu, nx], action: block}\n",
        )
        .unwrap();
        let of = |comm: &str| {
            let ruling = &compiled.rulings[&found(&compiled, comm).unwrap().kernel_id()];
            ruling.decisions.iter().map(|one| one.rule).collect::<Vec<_>>()
        };
        assert_eq!((of("ncdu"), of("ncat"), of("nc"), of("nx")), (vec![0, 1, 2], vec![1, 2], vec![1, 2], vec![2]));
        assert_eq!(found(&compiled, "nx").unwrap().to_string(), "n*", "covered before it is named");
    }

    #[test]
    fn exceptions_are_for_what_they_name() {
        let compiled = compiled(
            "  rules:\n  - {categories: [http, netcat], action: block}\n  - {comm: [odd], action: block}\n  exceptions:\n  - \
             {tools: [curl], arguments: []}\n  - {categories: [netcat], users: [0]}\n  - {parents: ['/usr/bin/cron*']}\n",
        )
        .unwrap();
        let bits = |kernel_id| compiled.rulings[&kernel_id].exceptions;
        assert_eq!((bits(kernel_id("curl")), bits(kernel_id("wget")), bits(kernel_id("nc"))), (0b101, 0b100, 0b110));
        assert_eq!(bits(*compiled.comm.keys().next().unwrap()), 0b100);
        let curl = compiled.exceptions[0].arguments.as_ref().unwrap();
        assert!(curl.patterns.is_empty() && !curl.more);
    }

    #[test]
    fn senseless_exceptions_are_refused() {
        let error = |exception: &str| {
            let rules = "  rules:\n  - {tools: [curl], action: block}\n  exceptions:\n  - ";
            compiled(&format!("{rules}{exception}\n")).unwrap_err().to_string()
        };
        let empty = error("{tools: [curl], reason: because}");
        assert!(empty.starts_with("t.yaml:10:5: an exception needs at least one of"), "{empty}");
        let unknown = error("{tools: [crul], users: [0]}");
        assert!(unknown.starts_with("t.yaml:10:14: unknown tool"), "{unknown}");
        assert!(error("{arguments: ['...', a]}").contains("must be the last"));
        assert!(error("{parents: [cron]}").contains("must begin with a slash"));
        assert!(error("{users: [root]}").contains("names no users"));
        assert!(error(&format!("{{arguments: [{}]}}", "n".repeat(127))).contains("at most 126 bytes"));
        assert!(error(&format!("{{arguments: [{}]}}", ["a"; 17].join(","))).contains("there may be 16 patterns"));
        assert!(error("{ancestors: [/a, /b, /c, /d, /e]}").contains("there may be 4 executables in `ancestors`"));
        let many = ["{users: [0]}"; 33].join("\n  - ");
        assert!(error(&many).ends_with("there may be 32 exceptions"));
    }

    #[test]
    fn omissions_need_what_can_judge_them() {
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
        let mut patterns: Vec<String> = compiled.comm.values().map(Pattern::to_string).collect();
        patterns.sort_unstable();
        let published = ["curl", "dig", "host", "lwp-download", "nc*", "ncat", "netcat*", "nslookup", "socat", "wget"];
        assert_eq!(patterns, published);
        assert_eq!(compiled.rulings.len(), published.len(), "nothing but the patterns");
        let [rule] = compiled.rules.as_slice() else { panic!("{:?}", compiled.rules) };
        let omissions = rule.omissions.as_ref().unwrap();
        assert_eq!(omissions.arguments, ["localhost", "127.0.0.1", "motd.ubuntu.com"]);
        assert_eq!(omissions.repeats, Some(Duration::from_secs(3600)));
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

//! A compiled policy → the kernel's tables.

use portcullis_bpf::{
    abi::{self, CommKey, ExceptionKey, Pattern, PatternKey, PatternList, RuleKey, UidRange, exception_flags, place},
    tables::Content,
};
use portcullis_policy::{
    compile::{Compiled, Decision, Ruling},
    exceptions::Exception,
    source::{Action, Place},
    text,
    users::Users,
};

/// A policy that does not fit into the kernel's tables. Compiling refuses those, so it is a defect of ours.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} of the policy {policy} does not fit into the kernel's tables: a defect of Portcullis, please report it"
)]
pub struct RulesError {
    policy: String,
    what: String,
}

/// Adds a policy to what the tables are to hold.
pub fn add(compiled: &Compiled, content: &mut Content) -> Result<(), RulesError> {
    let policy = compiled.entry.id;
    let too_large = |what: String| RulesError { policy: compiled.entry.name.clone(), what };
    for (tool, ruling) in &compiled.rulings {
        let value = kernel_ruling(ruling).ok_or_else(|| too_large(format!("the ruling of {tool:08x}")))?;
        content.rules.push((RuleKey { policy, tool: *tool }, value));
    }
    for (id, pattern) in &compiled.comm {
        let key = CommKey::new(policy, pattern.name(), pattern.is_whole());
        content.comm_patterns.push((key.ok_or_else(|| too_large(format!("the pattern {pattern}")))?, *id));
    }
    for (number, exception) in (0..).zip(&compiled.exceptions) {
        add_exception(ExceptionKey { policy, number }, exception, content)
            .ok_or_else(|| too_large(format!("exception {number}")))?;
    }
    Ok(())
}

fn kernel_ruling(ruling: &Ruling) -> Option<abi::Ruling> {
    let decisions: Vec<abi::Decision> = ruling.decisions.iter().map(kernel_decision).collect();
    abi::Ruling::new(ruling.exceptions, &decisions)
}

fn kernel_decision(decision: &Decision) -> abi::Decision {
    abi::Decision {
        action: kernel_action(decision.action) as u32,
        rule: decision.rule,
        places: decision.places.iter().fold(0, |bits, place| bits | kernel_place(*place)),
        uids: kernel_users(decision.users),
    }
}

fn kernel_action(action: Action) -> abi::Action {
    match action {
        Action::Ignore => abi::Action::Ignore,
        Action::Alert => abi::Action::Alert,
        Action::Block => abi::Action::Block,
    }
}

fn kernel_place(place: Place) -> u32 {
    match place {
        Place::WritableDirectory => place::WRITABLE_DIRECTORY,
        Place::UpperLayer => place::UPPER_LAYER,
        Place::Memfd => place::MEMFD,
        Place::Deleted => place::DELETED,
    }
}

fn kernel_users(users: Users) -> UidRange {
    UidRange { first: users.first, last: users.last }
}

fn add_exception(key: ExceptionKey, exception: &Exception, content: &mut Content) -> Option<()> {
    let arguments = exception.arguments.as_ref();
    let mut value = abi::Exception { users: count(&exception.users)?, ..abi::Exception::default() };
    if let Some(arguments) = arguments {
        value.flags = exception_flags::ARGUMENTS;
        if arguments.more {
            value.flags |= exception_flags::MORE_ARGUMENTS;
        }
    }
    for (place, users) in value.uids.iter_mut().zip(&exception.users) {
        *place = kernel_users(*users);
    }
    let mut list = |list, patterns: &[text::Pattern], most| {
        for (index, pattern) in (0..).zip(patterns) {
            let value = Pattern::new(pattern.text(), pattern.is_whole())?;
            let key = PatternKey { policy: key.policy, number: key.number, list: list as u32, index };
            content.patterns.push((key, value));
        }
        count(patterns).filter(|_| patterns.len() <= most)
    };
    let patterns = arguments.map_or(&[][..], |arguments| &arguments.patterns);
    value.arguments = list(PatternList::Arguments, patterns, abi::ARGUMENT_PATTERNS_MAX)?;
    value.parents = list(PatternList::Parents, &exception.parents, abi::EXE_PATTERNS_MAX)?;
    value.ancestors = list(PatternList::Ancestors, &exception.ancestors, abi::EXE_PATTERNS_MAX)?;
    content.exceptions.push((key, value));
    Some(())
}

fn count<T>(list: &[T]) -> Option<u32> {
    u32::try_from(list.len()).ok()
}

#[cfg(test)]
mod tests {
    use portcullis_policy::{
        catalog::Catalog,
        comm,
        compile::{DECISIONS_MAX, compile},
        decide, exceptions,
        source::{SHIPPED_UPSTREAM, parse},
    };

    use super::*;

    fn content(text: &str) -> (Compiled, Content) {
        let catalog = Catalog::shipped().unwrap();
        let compiled = compile(&catalog, &parse("p.yaml", text).unwrap(), 7).unwrap();
        let mut content = Content::default();
        add(&compiled, &mut content).unwrap();
        (compiled, content)
    }

    #[test]
    fn what_compiles_fits_into_the_tables() {
        assert_eq!(comm::COMM_MAX, abi::COMM_LEN - 1);
        assert_eq!(DECISIONS_MAX, abi::DECISIONS_MAX);
        assert_eq!(exceptions::EXCEPTIONS_MAX, abi::EXCEPTIONS_MAX);
        assert_eq!(exceptions::ARGUMENTS_MAX, abi::ARGUMENT_PATTERNS_MAX);
        assert_eq!(exceptions::EXES_MAX, abi::EXE_PATTERNS_MAX);
        assert_eq!(exceptions::USERS_MAX, abi::UID_RANGES_MAX);
        assert_eq!(decide::EXCEPTED_MAX, abi::EXCEPTED_MAX);
        assert_eq!(text::PATTERN_MAX, Pattern::MAX);
    }

    #[test]
    fn patterns_reach_the_kernel_with_their_actions() {
        let (compiled, content) = content(SHIPPED_UPSTREAM);
        assert_eq!((content.comm_patterns.len(), content.rules.len()), (10, 10));
        for (key, id) in &content.comm_patterns {
            let pattern = &compiled.comm[id];
            assert_eq!(CommKey::new(7, pattern.name(), pattern.is_whole()), Some(*key));
            let (_, ruling) = content.rules.iter().find(|(key, _)| *key == RuleKey { policy: 7, tool: *id }).unwrap();
            assert_eq!((ruling.count, ruling.decisions[0].action), (1, abi::Action::Alert as u32));
        }
    }

    #[test]
    fn conditions_and_exceptions_reach_the_kernel() {
        let (_, content) = content(
            "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {name: t}\nspec:\n  mode: enforce\n  rules:\n  \
             - {tools: [nc], action: alert}\n  - {tools: [curl], places: [upper_layer, memfd], users: [5-6], action: block}\n  \
             exceptions:\n  - {tools: [nc], users: [0]}\n  - {tools: [curl], arguments: ['-s', 'http://a/*', '...'], parents: \
             [/a, '/b*']}\n",
        );
        let ruling = content.rules.iter().find(|(_, ruling)| ruling.decisions[0].rule == 1).unwrap().1;
        let uids = UidRange { first: 5, last: 6 };
        let places = place::UPPER_LAYER | place::MEMFD;
        assert_eq!(ruling.decisions[0], abi::Decision { action: abi::Action::Block as u32, rule: 1, places, uids });
        assert_eq!((ruling.count, ruling.exceptions), (1, 0b10));
        let (key, exception) = content.exceptions[1];
        assert_eq!(key, ExceptionKey { policy: 7, number: 1 });
        assert_eq!(exception.flags, exception_flags::ARGUMENTS | exception_flags::MORE_ARGUMENTS);
        assert_eq!((exception.arguments, exception.parents, exception.ancestors, exception.users), (2, 2, 0, 0));
        let key = PatternKey { policy: 7, number: 1, list: PatternList::Parents as u32, index: 1 };
        let (_, pattern) = content.patterns.iter().find(|(known, _)| *known == key).unwrap();
        assert_eq!(Some(*pattern), Pattern::new("/b", false));
        assert_eq!(content.patterns.len(), 4);
    }
}

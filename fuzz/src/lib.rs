//! What each target does with its input, and what must hold for the outcome. The tests of `integration-tests` replay the
//! corpus through the same functions.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    path::{Component, Path},
    sync::LazyLock,
};

use portcullis_bpf::{
    abi::{
        ANCESTORS_MAX, ARGV_LEN, Activity, CommKey, DATAGRAM_LEN, Event, NAME_LEN, NameKey, NamePrefix, PREFIXES_MAX,
    },
    fingerprint::{HEAD_LEN, of_file, of_head},
};
use portcullis_policy::{
    arrange::arrange,
    catalog::{Catalog, Kind},
    compile, decide, dns, identity,
    policyset::{Choice, MODE_ANNOTATION, PolicySet},
    record::{ContainerRecord, file_name},
    select::Facts,
    source,
};

static SHIPPED: LazyLock<Catalog> = LazyLock::new(|| Catalog::shipped().expect("the shipped catalogue"));

/// A record of the ring buffer.
pub fn event(data: &[u8]) {
    let Ok(event) = Event::decode(data) else { return };
    assert!(event.lineage.len() <= ANCESTORS_MAX);
    let bytes = |argv: &[Vec<u8>]| argv.iter().map(|argument| argument.len() + 1).sum::<usize>();
    assert!(bytes(&event.argv) <= ARGV_LEN + 1, "no more than the kernel can have written");
    assert!(event.invoked.len() <= NAME_LEN);
    let mut strings: Vec<&Vec<u8>> = vec![&event.invoked, &event.tty, &event.filename, &event.exe, &event.cwd];
    strings.extend(event.argv.iter().chain(event.lineage.iter().flat_map(|ancestor| ancestor.argv.iter())));
    assert!(strings.iter().all(|string| !string.contains(&0)));
    assert_eq!(Event::decode(data), Ok(event.clone()));
    assert!(Event::decode(&data[..data.len().min(100)]).is_err(), "a part of a record is none");
}

/// What a process does on the network, a datagram to a name server, and the words of a command.
pub fn dns(data: &[u8]) {
    if let Ok(activity) = Activity::decode(data) {
        assert!(activity.datagram.len() <= DATAGRAM_LEN);
    }
    let words: Vec<Vec<u8>> = data.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    let tools = ["dig", "nslookup", "host", "drill", "kdig", "delv"];
    let asked = tools.into_iter().filter_map(|tool| dns::from_arguments(tool, &words));
    for question in asked.chain(dns::from_datagram(data)) {
        assert!(!question.name.is_empty() && question.name.len() <= 4 * 255, "{question:?}");
        assert!(
            [&question.name, &question.kind].into_iter().all(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))
        );
    }
}

/// A file's content, and an entry of a catalogue made of the same bytes.
pub fn fingerprint(data: &[u8]) {
    let size = data.len() as u64;
    let whole = of_file(&mut &*data, size).expect("memory can be read");
    assert_ne!(whole, 0);
    let mut head = [0; HEAD_LEN];
    head[..data.len().min(HEAD_LEN)].copy_from_slice(&data[..data.len().min(HEAD_LEN)]);
    assert_eq!(of_head(&head, size), whole);
    // What comes after the head counts by its length only.
    assert_eq!(of_file(&mut Trickle(data), size).expect("memory can be read"), whole);

    let entry = |value: &str, what: &str| format!("[[fingerprint]]\n{what}\nvalue = {value}\n");
    let own = entry(&format!("'{whole:016x}'"), "tool = 'nc'");
    let catalog = SHIPPED.clone().with("c.toml", &own).or_else(|error| {
        assert!(error.reason.contains("share the fingerprint"), "{error}");
        Ok::<_, ()>(SHIPPED.clone())
    });
    let catalog = catalog.expect("cannot fail");
    assert!(catalog.meaning_of_fingerprint(whole).is_some());
    let Ok(text) = str::from_utf8(data) else { return };
    let (value, what) = text.split_once('\n').unwrap_or((text, "runs = 'shell'"));
    catalog_text(&entry(value, what));
}

/// A catalogue file.
pub fn catalog(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data) {
        catalog_text(text);
    }
}

fn catalog_text(text: &str) {
    let catalog = match SHIPPED.clone().with("c.toml", text) {
        Ok(catalog) => catalog,
        Err(error) => {
            check_error("c.toml", text, error.line as u64, error.column as u64, &error.to_string());
            return;
        }
    };
    for name in catalog.names() {
        assert!(NameKey::new(name.name).is_some(), "{name:?}");
        assert_eq!(catalog.meaning_of_name(name.name).map(|meaning| meaning.kind), Some(name.kind));
        assert!(name.kind != Kind::Tool || catalog.tool(name.kernel_id).is_some());
    }
    let options = catalog.loader_options();
    assert!(options.value.iter().chain(&options.argv0).all(|option| NameKey::new(option).is_some()));
    assert!(catalog.multicall_prefixes().len() <= PREFIXES_MAX);
    assert!(catalog.multicall_prefixes().iter().all(|prefix| NamePrefix::new(prefix).is_some()));
    for known in catalog.fingerprints() {
        assert_ne!(known.value, 0);
        assert!(known.kind != Kind::Tool || catalog.tool(known.kernel_id).is_some());
    }
    for tool in catalog.tools() {
        assert_eq!(catalog.tool(tool.kernel_id()), Some(tool));
        assert!(catalog.categories().contains_key(&tool.category));
    }
    // The shipped policy names shipped tools and categories only, and these stay.
    let policy = source::parse("p.yaml", source::SHIPPED_DEFAULT).expect("the shipped policy");
    compile::compile(&catalog, &policy, 1).expect("the shipped policy");
}

/// A policy file.
pub fn policy(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let policy = source::parse("p.yaml", text);
    let compiled = policy.and_then(|policy| compile::compile(&SHIPPED, &policy, 7).map(|compiled| (policy, compiled)));
    match compiled {
        Ok((policy, compiled)) => {
            assert_eq!(compiled.entry.name, policy.metadata.name);
            assert_eq!(compiled.entry.mode, policy.spec.mode);
            let own = identity::compile(&SHIPPED, &policy).expect("it compiles under any id");
            assert_ne!(own.entry.id, 0);
            let arranged = arrange(&[own], |_| None).is_some();
            assert_eq!(arranged, policy.spec.select.is_everything(), "the default is for every container");
            for (id, ruling) in &compiled.rulings {
                assert!(SHIPPED.tool(*id).is_some() || compiled.comm.contains_key(id));
                let last = ruling.decisions.last().expect("one that does something");
                assert!(last.action != source::Action::Ignore && ruling.decisions.len() <= compile::DECISIONS_MAX);
                let known = |decision: &compile::Decision| (decision.rule as usize) < compiled.rules.len();
                assert!(ruling.decisions.iter().all(known));
                assert_eq!(u64::from(ruling.exceptions) >> compiled.exceptions.len(), 0);
            }
            for pattern in compiled.comm.values() {
                assert!(CommKey::new(7, pattern.name(), pattern.is_whole()).is_some());
                assert_eq!(pattern.to_string().parse(), Ok(pattern.clone()));
            }
            let words =
                compiled.rules.iter().filter_map(|rule| rule.omissions.as_ref()).flat_map(|rule| &rule.arguments);
            assert!(words.into_iter().all(|word| !word.is_empty()));
            for text in
                compiled.exceptions.iter().flat_map(|exception| [&exception.parents, &exception.ancestors]).flatten()
            {
                assert_eq!(text.to_string().parse(), Ok(text.clone()));
            }
            let command: Vec<&str> = policy.metadata.name.split(' ').collect();
            decide::decide(&SHIPPED, &compiled, &decide::Execution::of_command(&command));
        }
        Err(error) => {
            check_error("p.yaml", text, error.line, error.column, &error.to_string());
            assert!(error.reason.chars().count() < 520, "what is quoted is cut");
        }
    }
}

/// What shims and the agent tell each other: a container's record, and the policy set.
pub fn records(data: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<ContainerRecord>(data) {
        let name = file_name(record.cgroup_id, &record.containerd_namespace, &record.container_id);
        let mut parts = Path::new(&name).components();
        assert!(matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)), "{name:?}");
        let bytes = serde_json::to_vec(&record).expect("it was read from UTF-8");
        assert_eq!(serde_json::from_slice::<ContainerRecord>(&bytes).expect("our own"), record);
        let _ = record.annotations.get(MODE_ANNOTATION);
    }
    if let Ok(set) = PolicySet::parse(data) {
        assert_eq!(PolicySet::parse(&set.to_bytes().expect("it was read from UTF-8")).expect("our own"), set);
        for mode in ["detect", "enforce", "odd"] {
            let annotations = BTreeMap::from([(MODE_ANNOTATION.to_owned(), mode.to_owned())]);
            let facts = |image| Facts {
                namespace: Some("default"),
                pod: None,
                container: Some("c1"),
                image,
                annotations: &annotations,
            };
            for image in [None, Some("nginx:1")] {
                let chosen = set.choose(&facts(image));
                assert_eq!(chosen.is_ok(), mode != "odd");
                let told = |choice: Choice<'_>| !choice.mode_reason.is_empty() && !choice.policy_reason.is_empty();
                assert!(chosen.is_ok_and(told) || mode == "odd");
            }
        }
    }
}

/// An error is one line for a log, and its place is in the file.
fn check_error(file: &str, text: &str, line: u64, column: u64, message: &str) {
    assert!(message.starts_with(&format!("{file}:{line}:{column}: ")), "{message}");
    assert!(!message.contains('\n'), "{message:?}");
    // To YAML, a carriage return ends a line as well.
    assert!(line <= text.split(['\n', '\r']).count() as u64 + 1, "{message}");
}

/// Gives one byte at a time.
struct Trickle<'a>(&'a [u8]);

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        match (self.0.split_first(), to.first_mut()) {
            (Some((byte, rest)), Some(place)) => {
                *place = *byte;
                self.0 = rest;
                Ok(1)
            }
            _ => Ok(0),
        }
    }
}

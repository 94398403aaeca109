use std::fs;

use tempfile::TempDir;

use portcullis_policy::record::ContainerRecord;

use super::*;
use crate::{
    files,
    testing::{self, FakeTables},
};

/// An agent's enforcement with tables that are no kernel's, and an operator's directory.
struct Bed {
    directory: TempDir,
    tables: Arc<FakeTables>,
    containers: Containers,
    counters: Arc<Counters>,
    enforcement: Enforcement,
}

fn bed() -> Bed {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("policies")).unwrap();
    let (containers, counters, tables) = (Containers::default(), Arc::default(), Arc::<FakeTables>::default());
    let enforcement =
        testing::enforcement_with(directory.path(), &containers, Arc::clone(&tables), Arc::clone(&counters));
    Bed { directory, tables, containers, counters, enforcement }
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}, rules: [{{categories: \
         [dns], action: block}}]}}\n"
    )
}

impl Bed {
    fn write(&self, file: &str, text: &str) {
        fs::write(self.directory.path().join("policies").join(file), text).unwrap();
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.directory.path().join("policies").join(file)).unwrap();
    }

    fn published_file(&self) -> PathBuf {
        self.directory.path().join(policyset::file_name(abi::ABI_VERSION))
    }

    /// The policy set that shims read.
    fn published(&self) -> PolicySet {
        PolicySet::parse(&fs::read(self.published_file()).unwrap()).unwrap()
    }

    /// A container that another version's shim has put under a policy of another agent.
    fn left_behind(&self, cgroup_id: u64, pins: &str, policy_id: u32) -> RecordName {
        let mut record = testing::record(cgroup_id, "old");
        (record.policy_id, record.policy, record.pins) = (policy_id, "former".into(), pins.into());
        record.mode = Mode::Detect;
        let name = RecordName::Cgroup(cgroup_id);
        self.containers.insert(name.clone(), record);
        self.enforcement.apply(&name);
        name
    }

    /// A container, by its shim's choice.
    fn start(&self, cgroup_id: u64, id: &str, annotations: &[(&str, &str)]) -> RecordName {
        let mut record = testing::record(cgroup_id, id);
        record.annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let set = self.published();
        let choice = set.choose(&Facts::of(&record, None)).unwrap();
        (record.policy_id, record.mode) = (choice.policy.id, choice.mode);
        (record.policy, record.policy_reason) = (choice.policy.name.clone(), choice.policy_reason.clone());
        self.tables.enter(cgroup_id, choice.policy.id, kernel_mode(choice.mode));
        let name = RecordName::Cgroup(cgroup_id);
        self.containers.insert(name.clone(), record);
        self.enforcement.apply(&name);
        name
    }

    /// The policy that the kernel has a container under, and the mode.
    fn held(&self, cgroup_id: u64) -> (u32, Mode) {
        let entry = self.tables.state().containers[&cgroup_id];
        (entry.policy, if entry.mode == abi::Mode::Enforce as u32 { Mode::Enforce } else { Mode::Detect })
    }

    fn id(&self, policy: &str) -> u32 {
        self.enforcement.get(policy).unwrap().0.id
    }

    fn standing(&self, name: &RecordName) -> Standing {
        self.containers.get(name).unwrap().standing
    }

    fn names(&self) -> Vec<String> {
        self.enforcement.list().into_iter().map(|policy| policy.name).collect()
    }

    fn error(&self) -> String {
        self.enforcement.status().1
    }
}

const ENFORCE_C1: &str = "mode: enforce, select: {containers: [c1]}";

#[test]
fn an_edited_policy_moves_its_containers_and_no_others() {
    let bed = bed();
    let (first, second) = (bed.start(1, "c1", &[]), bed.start(2, "c2", &[]));
    let default = bed.id("default");
    assert_eq!((bed.held(1), bed.held(2)), ((default, Mode::Detect), (default, Mode::Detect)));

    bed.write("c1.yaml", &policy("one", ENFORCE_C1));
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.error(), "");
    assert_eq!(bed.names(), ["one", "default"]);
    let one = bed.id("one");
    assert_eq!((bed.held(1), bed.held(2)), ((one, Mode::Enforce), (default, Mode::Detect)));
    let standing = bed.standing(&first);
    assert_eq!((standing.policy.as_str(), standing.mode), ("one", Mode::Enforce));
    assert_eq!(standing.policy_reason, "it selects containers \"c1\"");
    assert_eq!(bed.standing(&second).policy, "default");
    assert_eq!(bed.published().policies.len(), 1);

    bed.write("c1.yaml", &policy("one", &ENFORCE_C1.replace("enforce", "detect")));
    bed.enforcement.reload(Cause::Request);
    let edited = bed.id("one");
    assert_ne!(edited, one, "an edited policy has another id");
    assert_eq!(bed.id("default"), default, "and one that nobody has edited the same");
    assert_eq!(bed.held(1), (edited, Mode::Detect));
    assert_eq!(bed.tables.state().policies, [edited, default].into(), "rules that nobody needs are gone");

    bed.remove("c1.yaml");
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.held(1), (default, Mode::Detect));
    assert_eq!(bed.tables.state().policies, [default].into());
    let Moves { passes, moved, failed, .. } = bed.enforcement.moves();
    assert_eq!((passes, moved, failed), (3, 3, 0));
    let entry = bed.tables.state().containers[&1];
    assert_eq!((entry.init_pid, entry.scope, entry.node_mount_ns), (7, 9, 11), "all else is as its shim wrote it");
}

#[test]
fn a_broken_file_keeps_the_old_set_whole() {
    let bed = bed();
    bed.write("one.yaml", &policy("one", ENFORCE_C1));
    bed.enforcement.reload(Cause::Request);
    bed.start(1, "c1", &[]);
    let (before, published) = (bed.held(1), fs::read(bed.published_file()).unwrap());
    bed.write("one.yaml", &policy("one", "mode: detect"));
    bed.write("two.yaml", "kind: [\n");
    bed.write("three.yaml", "mood: x\n");
    bed.enforcement.reload(Cause::Request);
    let error = bed.error();
    assert!(error.contains("two.yaml:") && error.contains("three.yaml:"), "{error}");
    assert_eq!(bed.held(1), before);
    assert_eq!(fs::read(bed.published_file()).unwrap(), published);
    assert_eq!(bed.counters.policies_rejected.get(), 1);
    bed.remove("two.yaml");
    bed.remove("three.yaml");
    bed.enforcement.reload(Cause::Request);
    assert_eq!((bed.error().as_str(), bed.held(1).1), ("", Mode::Detect));
}

#[test]
fn a_second_directory_counts_like_the_first() {
    let bed = bed();
    let more = bed.directory.path().join("more");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("shop.yaml"), policy("shop", "mode: detect, select: {namespaces: [shop]}")).unwrap();
    bed.write("bank.yaml", &policy("bank", "mode: detect, select: {namespaces: [bank]}"));
    bed.enforcement.reload(Cause::Change);
    assert_eq!(bed.names(), ["bank", "shop", "default"]);
    let text = policy("shop", "mode: enforce, select: {namespaces: [shop]}");
    let error = bed.enforcement.store("stdin", &text, Edit::default()).unwrap_err().to_string();
    assert!(error.contains("more/shop.yaml: change it there"), "{error}");
    bed.write("same.yaml", &text);
    bed.enforcement.reload(Cause::Change);
    assert!(bed.error().contains("both hold a policy named \"shop\""), "{}", bed.error());
}

#[test]
fn a_change_that_changes_nothing_is_passed_over() {
    let bed = bed();
    let path = bed.directory.path().join(policyset::file_name(abi::ABI_VERSION));
    fs::write(&path, "someone else's").unwrap();
    bed.write(".one.yaml.swp", "x");
    bed.enforcement.reload(Cause::Change);
    assert_eq!(fs::read_to_string(&path).unwrap(), "someone else's");
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.published().default_policy.name, "default", "asked for, it is put in force anew");
    bed.write("broken.yaml", "kind: [\n");
    bed.enforcement.reload(Cause::Change);
    assert!(bed.error().contains("broken.yaml"));
    bed.remove("broken.yaml");
    bed.enforcement.reload(Cause::Change);
    assert_eq!(bed.error(), "");
}

#[test]
fn what_the_kernel_does_not_take_changes_nothing() {
    let bed = bed();
    bed.start(1, "c1", &[]);
    let before = bed.published();
    bed.write("one.yaml", &policy("one", ENFORCE_C1));
    bed.tables.state().full = true;
    bed.enforcement.reload(Cause::Request);
    assert!(bed.error().contains("filling the kernel's tables"), "{}", bed.error());
    assert_eq!((bed.published(), bed.names()), (before, vec!["default".to_owned()]));
    bed.tables.state().full = false;
    bed.enforcement.reload(Cause::Request);
    assert_eq!((bed.error().as_str(), bed.held(1).1), ("", Mode::Enforce));
}

#[test]
fn a_set_that_can_not_be_published_changes_nothing() {
    let bed = bed();
    bed.start(1, "c1", &[]);
    let default = bed.id("default");
    bed.write("one.yaml", &policy("one", ENFORCE_C1));
    // Where the temporary file would be.
    fs::create_dir(bed.directory.path().join(format!(".{}", policyset::file_name(abi::ABI_VERSION)))).unwrap();
    bed.enforcement.reload(Cause::Request);
    assert!(bed.error().contains("policyset"), "{}", bed.error());
    assert_eq!(bed.held(1), (default, Mode::Detect));
    assert_eq!(bed.tables.state().policies, [default].into(), "what was added is out again");
}

#[test]
fn a_container_that_does_not_move_keeps_its_rules_and_is_tried_again() {
    let bed = bed();
    bed.write("one.yaml", &policy("one", ENFORCE_C1));
    bed.enforcement.reload(Cause::Request);
    let (first, one) = (bed.start(1, "c1", &[]), bed.id("one"));
    bed.tables.state().stuck.insert(1);
    bed.remove("one.yaml");
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.held(1), (one, Mode::Enforce));
    assert!(bed.tables.state().policies.contains(&one), "its rules stay");
    assert_eq!((bed.counters.moves_failed.get(), bed.counters.policies_outlived.get()), (1, 1));
    assert_eq!(bed.standing(&first).policy, "one", "what is shown is what holds");
    bed.tables.state().stuck.clear();
    bed.enforcement.settle();
    assert_eq!(bed.held(1), (bed.id("default"), Mode::Detect));
    assert!(!bed.tables.state().policies.contains(&one));
    let passes = bed.enforcement.moves().passes;
    bed.enforcement.settle();
    assert_eq!(bed.enforcement.moves().passes, passes, "nothing is left to do");
}

#[test]
fn a_released_container_does_not_come_back() {
    let bed = bed();
    bed.start(1, "c1", &[]);
    bed.tables.state().containers.remove(&1);
    bed.write("one.yaml", &policy("one", ENFORCE_C1));
    bed.enforcement.reload(Cause::Request);
    assert!(bed.tables.state().containers.is_empty());
    assert_eq!(bed.counters.moves_failed.get(), 0);
}

#[test]
fn a_record_that_was_written_by_an_old_set_is_put_right() {
    let bed = bed();
    let old = bed.id("default");
    bed.write("one.yaml", &policy("one", ENFORCE_C1));
    // Entered before the change, and not yet known here.
    bed.tables.enter(1, old, abi::Mode::Detect);
    bed.write("default.yaml", &policy("all", "mode: enforce"));
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.held(1), (old, Mode::Detect));
    assert!(bed.tables.state().policies.contains(&old), "an entry without a record keeps its rules");
    let name = RecordName::Cgroup(1);
    bed.containers.insert(name.clone(), testing::record(1, "c1"));
    bed.enforcement.apply(&name);
    assert_eq!(bed.held(1), (bed.id("one"), Mode::Enforce));
    bed.enforcement.settle();
    assert!(!bed.tables.state().policies.contains(&old));
}

#[test]
fn an_image_that_becomes_known_selects() {
    let bed = bed();
    bed.write("nginx.yaml", &policy("nginx", "mode: enforce, select: {images: ['*/nginx:*']}"));
    bed.enforcement.reload(Cause::Request);
    let name = bed.start(1, "c1", &[]);
    assert_eq!(bed.held(1), (bed.id("default"), Mode::Detect));
    let created_ns = bed.containers.get(&name).unwrap().record.created_ns;
    bed.containers.set_image(&name, created_ns, Image::Known("docker.io/library/nginx:1".into()));
    bed.enforcement.apply(&name);
    assert_eq!(bed.held(1), (bed.id("nginx"), Mode::Enforce));
    assert_eq!(bed.standing(&name).policy_reason, "it selects images \"*/nginx:*\"");

    // Another agent does not know the image at first.
    let (containers, id) = (Containers::default(), bed.id("nginx"));
    let again = testing::enforcement_with(
        bed.directory.path(),
        &containers,
        Arc::clone(&bed.tables),
        Arc::clone(&bed.counters),
    );
    let record = bed.containers.get(&name).unwrap().record;
    containers.insert(name.clone(), ContainerRecord::clone(&record));
    again.apply(&name);
    again.settle();
    assert_eq!(bed.held(1), (id, Mode::Enforce), "it stays until the image is known");
    let standing = containers.get(&name).unwrap().standing;
    assert_eq!((standing.policy.as_str(), standing.mode), ("nginx", Mode::Enforce));
    containers.set_image(&name, created_ns, Image::Known("docker.io/library/redis:1".into()));
    again.apply(&name);
    assert_eq!(bed.held(1).1, Mode::Detect);
}

#[test]
fn a_policy_that_nobody_holds_any_more_is_not_waited_for() {
    let bed = bed();
    bed.write("nginx.yaml", &policy("nginx", "mode: enforce, select: {images: [nginx]}"));
    bed.write("all.yaml", &policy("all", "mode: detect"));
    bed.enforcement.reload(Cause::Request);
    let name = bed.start(1, "c1", &[]);
    let created_ns = bed.containers.get(&name).unwrap().record.created_ns;
    bed.containers.set_image(&name, created_ns, Image::Unanswered);
    let old = bed.held(1);
    bed.write("all.yaml", &policy("all", "mode: enforce"));
    bed.enforcement.reload(Cause::Request);
    assert_ne!(bed.held(1), old, "containerd may never answer");
}

#[test]
fn an_operators_mode_holds_until_it_is_taken_back() {
    let bed = bed();
    let name = bed.start(1, "c1", &[]);
    bed.enforcement.set_policy_mode("default", Some(Mode::Enforce)).unwrap();
    assert_eq!(bed.held(1), (bed.id("default"), Mode::Enforce));
    assert_eq!(bed.standing(&name).mode_reason, "operator");
    assert!(bed.published().default_policy.mode_by_operator, "shims know it as well");
    let (told, text) = bed.enforcement.get("default").unwrap();
    assert_eq!((told.mode, told.file_mode, told.containers), (Mode::Enforce, Some(Mode::Detect), 1));
    assert!(text.contains("name: default"));

    bed.write("default.yaml", &policy("default", "mode: detect"));
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.held(1).1, Mode::Enforce, "also when the file is edited");
    let again =
        testing::enforcement_with(bed.directory.path(), &bed.containers, Arc::clone(&bed.tables), Arc::default());
    again.settle();
    assert_eq!(bed.held(1).1, Mode::Enforce, "and when the agent is another one");

    bed.enforcement.set_policy_mode("default", None).unwrap();
    assert_eq!(bed.held(1).1, Mode::Detect);
    let error = bed.enforcement.set_policy_mode("nothing", Some(Mode::Detect)).unwrap_err();
    assert_eq!(error.to_string(), "no policy named \"nothing\" is in force");
}

#[test]
fn a_containers_own_mode_ends_with_it() {
    let bed = bed();
    let (name, other) = (bed.start(1, "c1", &[("portcullis.dev/mode", "enforce")]), bed.start(2, "c2", &[]));
    let key = |name: &RecordName| containers::key(&bed.containers.get(name).unwrap().record);
    let (first, second) = (key(&name), key(&other));
    bed.enforcement.set_container_mode(&first, Some(Mode::Detect)).unwrap();
    bed.enforcement.set_container_mode(&second, Some(Mode::Enforce)).unwrap();
    assert_eq!((bed.held(1).1, bed.held(2).1), (Mode::Detect, Mode::Enforce));
    assert_eq!(bed.standing(&name).mode_reason, "operator", "the operator is the authority");
    bed.enforcement.reload(Cause::Request);
    assert_eq!((bed.held(1).1, bed.held(2).1), (Mode::Detect, Mode::Enforce), "whatever policies say");
    bed.enforcement.set_container_mode(&second, None).unwrap();
    assert_eq!(bed.held(2).1, Mode::Detect);

    bed.containers.remove(&name);
    bed.enforcement.settle();
    let saved = files::read(&bed.directory.path().join("overrides.json")).unwrap();
    assert!(!saved.contains("c1"), "{saved}");
    let error = bed.enforcement.set_container_mode(&first, Some(Mode::Detect)).unwrap_err();
    assert!(error.to_string().contains("does not run"), "{error}");
}

#[test]
fn a_mode_without_a_guard_is_refused() {
    let bed = bed();
    let mut record = testing::record(0, "c1");
    record.guard = Guard::Unguarded { reason: "no cgroup".into() };
    let key = containers::key(&record);
    bed.containers.insert(RecordName::Other("x-default-c1".into()), record);
    let error = bed.enforcement.set_container_mode(&key, Some(Mode::Enforce)).unwrap_err();
    assert!(error.to_string().contains("no cgroup"), "{error}");
}

#[test]
fn another_backend_is_told() {
    let bed = bed();
    bed.write("one.yaml", &policy("one", "mode: enforce, requireBackend: tracepoint, select: {containers: [c1]}"));
    let name = bed.start(1, "c1", &[]);
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.held(1), (bed.id("one"), Mode::Enforce), "it runs already: better so than not at all");
    let reason = bed.standing(&name).policy_reason;
    assert!(reason.contains("requires the backend tracepoint, this node has lsm"), "{reason}");
}

/// Not a measurement: a guard against a pass that costs a second.
#[test]
fn a_thousand_containers_move_in_one_pass() {
    let bed = bed();
    for number in 1..=1000 {
        bed.start(number, &format!("c{number}"), &[("io.kubernetes.cri.sandbox-namespace", "shop")]);
    }
    for number in 0..50 {
        bed.write(
            &format!("{number}.yaml"),
            &policy(&format!("p{number}"), &format!("mode: detect, select: {{namespaces: ['a{number}*']}}")),
        );
    }
    bed.write("shop.yaml", &policy("shop", "mode: enforce, select: {namespaces: ['sh*']}"));
    bed.enforcement.reload(Cause::Request);
    let moves = bed.enforcement.moves();
    assert_eq!(moves.moved, 1000);
    assert!(moves.last < Duration::from_secs(1), "{:?}", moves.last);
    println!("1000 containers, 52 policies: {:?}", moves.last);
}

#[test]
fn what_another_version_guards_stays_as_it_was() {
    let bed = bed();
    let default = bed.id("default");
    let readable = format!("/sys/fs/bpf/portcullis/v{}", abi::RECORDS_SINCE);
    // As its record says, where no tables can be read.
    let name = bed.left_behind(1, "/sys/fs/bpf/portcullis/v1", 77);
    let standing = bed.standing(&name);
    assert_eq!((standing.policy.as_str(), standing.mode), ("former", Mode::Detect));
    assert_eq!(standing.left_behind, Some(LeftBehind::Unreported));
    assert!(standing.policy_reason.contains("another version's programs"), "{standing:?}");
    // As the agent before has moved it, where they can.
    bed.tables.enter(2, default, abi::Mode::Enforce);
    let name = bed.left_behind(2, &readable, 77);
    let standing = bed.standing(&name);
    assert_eq!((standing.policy.as_str(), standing.mode), ("default", Mode::Enforce));
    assert_eq!(standing.left_behind, Some(LeftBehind::Reported));
    bed.write("old.yaml", &policy("one", "mode: detect, select: {containers: [old]}"));
    bed.enforcement.reload(Cause::Request);
    assert_eq!(bed.held(2), (default, Mode::Enforce), "changes do not reach it");
    assert_eq!(bed.standing(&name), standing);
    assert_eq!(bed.enforcement.moves().failed, 0);
}

use portcullis_policy::{
    compile::compile,
    decide::{Execution, decide},
    source,
};
use portcullis_proto::v1;

use super::{suggest::*, *};

const THRESHOLD: Threshold = Threshold { min_times: 5, min_spread: 2 };

/// A signal of a container of `shop/web`, and how to change it.
#[derive(Clone)]
struct Builder(v1::Signal);

fn curl(url: &str) -> Builder {
    command("curl", "http", &["curl", "-fsS", url])
}

fn command(tool: &str, category: &str, argv: &[&str]) -> Builder {
    let ancestor = |exe: &str| v1::Ancestor { exe: exe.into(), ..v1::Ancestor::default() };
    Builder(v1::Signal {
        verdict: v1::Verdict::WouldBlock.into(),
        time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        tool: Some(v1::Tool { id: tool.into(), category: category.into(), techniques: Vec::new() }),
        container: Some(v1::Container {
            containerd_namespace: "k8s.io".into(),
            image: "r/web:1".into(),
            pod: Some(v1::Pod { namespace: "shop".into(), container_name: "web".into(), ..v1::Pod::default() }),
            ..v1::Container::default()
        }),
        process: Some(v1::Process {
            argv: argv.iter().map(|&text| text.into()).collect(),
            uid: 33,
            ..v1::Process::default()
        }),
        lineage: vec![ancestor("/usr/local/bin/health"), ancestor("/usr/bin/tini")],
        policy: "default".into(),
        ..v1::Signal::default()
    })
}

impl Builder {
    fn with(mut self, change: impl FnOnce(&mut v1::Signal)) -> Self {
        change(&mut self.0);
        self
    }

    fn process(self, change: impl FnOnce(&mut v1::Process)) -> Self {
        self.with(|signal| change(signal.process.as_mut().unwrap()))
    }

    fn of(self, container: impl std::fmt::Display) -> Self {
        self.with(|signal| signal.container.as_mut().unwrap().id = format!("c{container}"))
    }

    fn image(self, image: &str) -> Self {
        self.with(|signal| signal.container.as_mut().unwrap().image = image.into())
    }

    fn called_by(self, exes: &[&str]) -> Self {
        let ancestor = |exe: &&str| v1::Ancestor { exe: (*exe).into(), ..v1::Ancestor::default() };
        self.with(|signal| signal.lineage = exes.iter().map(ancestor).collect())
    }

    /// Once in each of so many containers.
    fn spread(self, containers: usize) -> Vec<Self> {
        (0..containers).map(|number| self.clone().of(number)).collect()
    }
}

fn habits(signals: impl IntoIterator<Item = Builder>) -> Habits {
    let mut habits = Habits::new(Catalog::shipped().unwrap());
    signals.into_iter().for_each(|Builder(signal)| habits.add(&signal.into()));
    habits
}

fn suggestions(signals: impl IntoIterator<Item = Builder>) -> Vec<Suggestion> {
    habits(signals).suggestions(&THRESHOLD)
}

fn only(signals: impl IntoIterator<Item = Builder>) -> Suggestion {
    let mut found = suggestions(signals);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

#[test]
fn a_habit_becomes_an_exception() {
    let found = only((0..10).map(|number| curl(&format!("http://localhost:8080/health?n={number}")).of(number % 3)));
    assert_eq!(
        found.exception,
        Exception {
            tools: vec!["curl".into()],
            arguments: Some(vec!["-fsS".into(), "http://localhost:8080/health?n=*".into()]),
            parents: vec!["/usr/local/bin/health".into()],
            ancestors: vec![],
            users: [33].into(),
            images: ["r/web:1".to_owned()].into(),
        }
    );
    assert_eq!((found.policy.as_str(), found.counts.would_block, found.counts.stopped), ("default", 10, 0));
    assert_eq!((found.counts.containers(), found.counts.days()), (Count(3), Count(1)));
    assert!(found.dangers.is_empty() && found.notes().is_empty(), "{:?} {:?}", found.dangers, found.notes());
    assert_eq!(found.reason(), "habitual: 10 times from 2023-11-14 to 2023-11-14");
    let workload = Workload { namespace: "shop".into(), container: "web".into(), repository: "r/web".into() };
    assert_eq!(found.workloads.into_iter().collect::<Vec<_>>(), [workload]);
}

#[test]
fn what_is_rare_or_of_one_container_alone_is_none() {
    assert!(suggestions(curl("http://h/").spread(4)).is_empty());
    assert!(suggestions((0..100).map(|_| curl("http://h/").of(1))).is_empty(), "one container, one day");
    let daily =
        (0..5).map(|day| curl("http://h/").of(1).with(|signal| signal.time.as_mut().unwrap().seconds += day * 86_400));
    assert_eq!(only(daily).counts.days(), Count(5));
    let detected = curl("http://h/").with(|signal| signal.verdict = v1::Verdict::Detected.into());
    assert_eq!(habits(detected.spread(9)).counts.times(), 0);
}

/// The attack that waits for the operator: the same tool, differently.
#[test]
fn what_differs_in_anything_that_counts_is_another_habit() {
    let habit = curl("http://localhost:8080/a").spread(5);
    for other in [
        curl("http://localhost:8081/a"),
        curl("http://evil.example/a"),
        command("curl", "http", &["curl", "-fsS", "http://localhost:8080/a", "-d@/etc/shadow"]),
        command("wget", "http", &["wget", "-fsS", "http://localhost:8080/a"]),
        curl("http://localhost:8080/a").called_by(&["/bin/sh"]),
        curl("http://localhost:8080/a").called_by(&[]),
        curl("http://localhost:8080/a").image("r/other:1"),
        curl("http://localhost:8080/a").with(|signal| signal.policy = "strict".into()),
    ] {
        let found = only(habit.clone().into_iter().chain((0..4).map(|_| other.clone().of(9))));
        assert_eq!(found.counts.times(), 5, "{:?}", other.0);
        assert_eq!(found.exception.arguments.unwrap(), ["-fsS", "http://localhost:8080/a"]);
    }
}

#[test]
fn what_an_exception_cannot_say_is_counted_but_not_proposed() {
    for odd in [
        curl("http://h/").process(|process| process.argv_truncated = true),
        curl("http://h/").process(|process| process.argv.clear()),
        curl("http://h/\u{fffd}"),
        curl("..."),
        curl("http://h/").image(""),
        command("odd", "netcat", &["odd"]),
        command("nc", "netcat", &["busybox", "wget"]).with(|signal| {
            signal.identified_by = vec![v1::Identification::Applet.into()];
        }),
    ] {
        let habits = habits(odd.clone().spread(9));
        assert!(habits.suggestions(&THRESHOLD).is_empty(), "{:?}", odd.0);
        let (_, _, tally) = habits.tallies().next().unwrap();
        assert_eq!((tally.counts.times(), tally.habitual(&THRESHOLD)), (9, 0));
    }
}

#[test]
fn a_multi_call_programs_arguments_begin_behind_the_tool() {
    for argv in [
        &["busybox", "nc", "-z", "db", "5432"][..],
        &["-busybox", "/bin/nc", "-z", "db", "5432"],
        &["nc", "-z", "db", "5432"],
    ] {
        let applet = command("nc", "netcat", argv).with(|signal| {
            signal.identified_by = vec![v1::Identification::Applet.into()];
        });
        assert_eq!(only(applet.spread(5)).exception.arguments.unwrap(), ["-z", "db", "5432"]);
    }
    // By its own name it is argv[0], whatever that says.
    let renamed = command("nc", "netcat", &["x", "-z"]);
    assert_eq!(only(renamed.spread(5)).exception.arguments.unwrap(), ["-z"]);
    assert!(only(command("dig", "dns", &["dig"]).spread(5)).exception.arguments.unwrap().is_empty());
}

#[test]
fn what_runs_already_is_told_by_its_caller_and_a_pattern_by_its_arguments() {
    let socket = command("shell_socket", "behaviour", &["sh", "-c", "x"]);
    let socket = socket.with(|signal| signal.identified_by = vec![v1::Identification::Socket.into()]);
    let found = only(socket.spread(5));
    assert_eq!((found.exception.arguments.as_ref(), found.exception.tools.len()), (None, 1));
    assert!(found.notes().iter().any(|note| note.contains("whatever they are")), "{:?}", found.notes());
    let pattern = command("nc*", "pattern", &["ncdu", "/x"]);
    let pattern = pattern.with(|signal| signal.identified_by = vec![v1::Identification::Pattern.into()]);
    let found = only(pattern.spread(5));
    assert_eq!((found.exception.arguments.as_ref().unwrap().len(), found.exception.tools.len()), (1, 0));
    assert!(found.notes().iter().any(|note| note.contains("whatever a rule names")), "{:?}", found.notes());
}

/// What is suggested excepts what was seen, as the kernel programs decide it, and nothing else of it.
#[test]
fn suggestions_hold_as_they_were_meant() {
    let attack = [
        curl("http://localhost:8080.evil.example/a"),
        curl("http://localhost:8080/a").image("r/other:1"),
        curl("http://localhost:8080/a").called_by(&["/bin/sh"]),
        curl("http://localhost:8080/a").process(|process| process.uid = 0),
        command("curl", "http", &["curl", "-fsS", "http://localhost:8080/a", "-o/x"]),
        command("curl", "http", &["curl", "-fsS"]),
        command("wget", "http", &["wget", "-fsS", "http://localhost:8080/a"]),
        command("nc", "netcat", &["nc", "-z", "db*", "5432", "x"]),
        command("nc", "netcat", &["nc", "-z", "dbs", "5432"]),
    ];
    let mut habit: Vec<Builder> =
        (0..9).map(|number| curl(&format!("http://localhost:8080/a?{number}")).of(number)).collect();
    habit.extend(command("nc", "netcat", &["nc", "-z", "db*", "5432"]).spread(5));
    habit.extend(
        command("nc", "netcat", &["busybox", "nc", "-z", "db*", "5432"])
            .spread(5)
            .into_iter()
            .map(|signal| signal.with(|signal| signal.identified_by = vec![v1::Identification::Applet.into()])),
    );
    habit.extend(command("dig", "dns", &["dig"]).called_by(&["/bin/dash", "/usr/bin/node"]).spread(6));
    habit.extend((0..6).map(|tag| command("wget", "http", &["wget", ""]).of(tag).image(&format!("r/web:{tag}"))));

    let exceptions: Vec<Exception> =
        suggestions(habit.iter().chain(&attack).cloned()).into_iter().map(|suggestion| suggestion.exception).collect();
    let policy = format!(
        "apiVersion: portcullis.dev/v1\nkind: NetworkUtilityPolicy\nmetadata: {{name: t}}\nspec: {{mode: enforce, exceptions: {}, rules: \
         [{{categories: [http, dns, netcat], action: block}}]}}",
        serde_json::to_string(&exceptions).unwrap()
    );
    let catalog = Catalog::shipped().unwrap();
    let policy = compile(&catalog, &source::parse("t.yaml", &policy).unwrap(), 1).unwrap();
    let passes = |Builder(signal): &Builder| {
        let process = signal.process.as_ref().unwrap();
        let argv: Vec<&str> = process.argv.iter().map(String::as_str).collect();
        let execution = Execution {
            uid: process.uid,
            images: signal.lineage.iter().map(|ancestor| ancestor.exe.as_bytes()).collect(),
            image: signal.container.as_ref().map(|container| container.image.as_str()),
            ..Execution::of_command(&argv)
        };
        decide(&catalog, &policy, &execution).found.is_none()
    };
    for signal in &habit {
        assert!(passes(signal), "{:?}\n{exceptions:#?}", signal.0.process);
    }
    for signal in &attack {
        assert!(!passes(signal), "{:?}\n{exceptions:#?}", signal.0.process);
    }
}

#[test]
fn a_script_is_told_by_what_called_its_shell() {
    let script = curl("http://h/").called_by(&["/bin/dash", "/bin/bash", "/usr/bin/node", "/usr/bin/tini"]);
    let found = only(script.spread(5));
    assert_eq!(found.exception.parents, ["/bin/dash"]);
    assert_eq!(found.exception.ancestors, ["/usr/bin/node"]);
    assert!(found.notes().iter().any(|note| note.contains("any other script")), "{:?}", found.notes());
    let cut = curl("http://h/").called_by(&["/x"]).with(|signal| signal.lineage[0].exe_truncated = true);
    let found = only(cut.spread(5));
    assert!(found.exception.parents.is_empty());
    assert!(found.notes().iter().any(|note| note.contains("whoever calls it")), "{:?}", found.notes());
}

#[test]
fn many_users_and_images_widen() {
    let by = |user: u32| curl("http://h/").process(|process| process.uid = user);
    let found = only((0..4).flat_map(|user| by(user).spread(5)).chain(by(9).spread(4)));
    assert_eq!(found.exception.users, [0, 1, 2, 3].into(), "each of them has the habit");
    let found = only((0..5).flat_map(|user| by(user).spread(5)));
    assert!(found.exception.users.is_empty());
    assert!(found.notes().iter().any(|note| note.contains("more than 4 users")), "{:?}", found.notes());
    let found = only((0..6).map(|tag| curl("http://h/").of(tag).image(&format!("r/web:{tag}"))));
    assert_eq!(found.exception.images, ["r/web:*".to_owned()].into());
    // Another repository is another workload, with the same exception.
    let both = curl("http://h/").spread(5).into_iter().chain(curl("http://h/").image("r/shop:2").spread(7));
    let found = only(both);
    assert_eq!(found.exception.images, ["r/shop:2".to_owned(), "r/web:1".to_owned()].into());
    assert_eq!((found.counts.times(), found.workloads.len()), (12, 2));
    // Nobody has seen that user in that image.
    let crossed = by(1).spread(5).into_iter().chain(by(2).image("r/shop:2").spread(5));
    assert_eq!(suggestions(crossed).len(), 2);
}

#[test]
fn dangers_are_told_and_come_last() {
    let listens = command("nc", "netcat", &["nc", "-lvp", "4444"]).spread(20);
    let shell = command("reverse_shell", "behaviour", &["sh", "-i"]).spread(9);
    let found = suggestions(listens.into_iter().chain(shell).chain(curl("http://h/").spread(5)));
    let tools: Vec<&str> = found.iter().map(|one| one.exception.tools[0].as_str()).collect();
    assert_eq!(tools, ["curl", "nc", "reverse_shell"]);
    assert_eq!(found[1].dangers, BTreeSet::from([Danger::Listens]));
    assert_eq!(found[2].dangers, BTreeSet::from([Danger::Behaviour]));
    let mixed = curl("http://h/")
        .spread(5)
        .into_iter()
        .chain(curl("http://h/").process(|process| process.places = vec![v1::Place::UpperLayer.into()]).spread(1));
    assert_eq!(only(mixed).dangers, BTreeSet::from([Danger::Writable]), "once is enough");
}

#[test]
fn what_is_dangerous_is_not_habitual() {
    let habits = habits(
        command("nc", "netcat", &["nc", "-lvp", "4444"])
            .spread(9)
            .into_iter()
            .chain(command("nc", "netcat", &["nc", "-z", "db", "1"]).spread(7)),
    );
    let (_, tool, tally) = habits.tallies().next().unwrap();
    assert_eq!((tool, tally.counts.times(), tally.habitual(&THRESHOLD)), ("nc", 16, 7));
}

#[test]
fn the_order_of_signals_does_not_matter() {
    let signals: Vec<Builder> = (0..200_u32)
        .map(|number| {
            let path = ["a", "a/b", "ab", "x?y=1"][number as usize % 4];
            curl(&format!("http://h{}/{path}", number % 3))
                .of(number % 7)
                .image(&format!("r/web:{}", number % 2))
                .process(|process| process.uid = number % 5)
        })
        .collect();
    let summary = |signals: &mut dyn Iterator<Item = Builder>| -> Vec<_> {
        let found = suggestions(signals);
        found.iter().map(|one| (one.exception.clone(), one.counts.times(), one.notes())).collect()
    };
    let forwards = summary(&mut signals.iter().cloned());
    assert_eq!(forwards.len(), 3);
    assert_eq!(summary(&mut signals.iter().rev().cloned()), forwards);
    assert_eq!(summary(&mut (0..200).map(|number| signals[number * 77 % 200].clone())), forwards);
}

/// A container that calls a tool in ever other ways takes neither memory nor the place of what is habitual.
#[test]
fn floods_are_bounded() {
    let flood = (0..3000).map(|number| curl(&format!("http://h{number}/")).of(0));
    let habit = (0..60).map(|number| curl("http://localhost/").of(number % 3));
    let mut all: Vec<Builder> = flood.collect();
    // Between the others, as they come.
    for (place, signal) in habit.enumerate() {
        all.insert(place * 50, signal);
    }
    let many = habits(all);
    assert!(many.entries <= 1 + WAYS_MAX);
    let (_, _, tally) = many.tallies().next().unwrap();
    assert_eq!(tally.counts.times(), 3060);
    let found = many.suggestions(&THRESHOLD);
    assert!(matches!(found.as_slice(), [one] if one.counts.times() > 40), "{found:#?}");

    let workloads = (0..2 * ENTRIES_MAX).map(|number| curl("http://h/").image(&format!("r/{number}")));
    let many = habits(workloads);
    assert_eq!(many.entries, ENTRIES_MAX);
    assert_eq!(many.left_out() + many.counts.times(), 2 * ENTRIES_MAX as u64, "none is lost silently");

    let long = command("curl", "http", &vec!["x".repeat(100).as_str(); 40]);
    let (_, _, tally) =
        habits([long]).tallies().next().map(|(w, t, tally)| (w.clone(), t.to_owned(), tally.clone())).unwrap();
    assert_eq!(tally.sample.last().unwrap(), "…");
    assert!(tally.sample.iter().map(String::len).sum::<usize>() <= SAMPLE_MAX + 3);
}

//! What comes of one execution: as the kernel programs decide it, for explanations and to test them against.
//!
//! ```
//! use portcullis_policy::{catalog::Catalog, compile, decide::{Decided, Execution, decide}, source};
//!
//! let catalog = Catalog::shipped()?;
//! let policy = source::parse("default.yaml", source::SHIPPED_DEFAULT)?;
//! let compiled = compile::compile(&catalog, &policy, 1)?;
//! let execution = Execution::of_command(&["busybox", "nc", "10.0.0.1", "4444"]);
//! let Decided { found: Some(found), .. } = decide(&catalog, &compiled, &execution) else { panic!() };
//! assert_eq!((found.id.as_str(), found.rule), ("nc", 3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::{
    catalog::{Catalog, Kind, Meaning, kernel_id},
    comm::{self, Pattern},
    compile::Compiled,
    exceptions::Exception,
    source::{Action, Place},
};

/// Tools of one execution that exceptions are looked for; what else it is, is not excepted.
pub const EXCEPTED_MAX: usize = 2;

/// The finding that a shell or interpreter has an internet socket as standard input or output.
pub const REVERSE_SHELL: &str = "reverse_shell";
/// The finding that an executable is not part of the image and no known tool.
pub const DROPPED_EXECUTABLE: &str = "dropped_executable";

/// A way in which something was identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// The last component of the path that was executed.
    InvokedName,
    /// The name of the file that it led to.
    ResolvedName,
    /// The file's content.
    Fingerprint,
    /// argv of a multi-call program.
    Applet,
    /// argv of a dynamic loader.
    Loader,
    /// An internet socket as standard input or output.
    Stdio,
    /// Where the file is.
    Place,
    /// A pattern of its comm.
    Pattern,
}

/// One execution.
#[derive(Debug, Clone, Default)]
pub struct Execution<'a> {
    /// Last component of the path that is executed.
    pub invoked: &'a [u8],
    /// Name of the file that it leads to, links followed.
    pub resolved: &'a [u8],
    /// What its content is known as.
    pub contents: Vec<Meaning>,
    /// Arguments, the first included.
    pub argv: Vec<&'a [u8]>,
    /// Where the file is.
    pub places: Vec<Place>,
    /// The user, as the node sees them.
    pub uid: u32,
    /// Executables that led here, nearest first: of the process itself, then its ancestors.
    pub images: Vec<&'a [u8]>,
    /// Standard input or output is an internet socket.
    pub stdio_is_socket: bool,
    /// The container's image, where it is known.
    pub image: Option<&'a str>,
}

impl<'a> Execution<'a> {
    /// That of a command, by a file of the same name.
    pub fn of_command<T: AsRef<[u8]> + ?Sized>(argv: &[&'a T]) -> Self {
        let argv: Vec<&[u8]> = argv.iter().map(|argument| (*argument).as_ref()).collect();
        let name = basename(argv.first().copied().unwrap_or_default());
        Self { invoked: name, resolved: name, argv, ..Self::default() }
    }
}

/// What was found, and what the policy says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tool's id. Where only a pattern of comm found it: that of the tool which it is called like, or else the pattern.
    pub id: String,
    /// All the ways that led to it.
    pub ways: Vec<Way>,
    /// What to do. Never to ignore.
    pub action: Action,
    /// The number of the rule that says so, from 0.
    pub rule: usize,
}

/// What comes of an execution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decided {
    /// What is reported, or stopped. `None`: nothing.
    pub found: Option<Found>,
    /// What would have been but for an exception: with the exception's number, from 0.
    pub excepted: Vec<(Found, usize)>,
}

/// What the policy makes of an execution.
pub fn decide(catalog: &Catalog, policy: &Compiled, execution: &Execution<'_>) -> Decided {
    let mut decided = Decided::default();
    let mut excepted = Vec::new();
    loop {
        let mut search = Search { catalog, policy, execution, excepted: &excepted, best: None };
        search.identify();
        let Some(best) = search.best else { return decided };
        let exception = (excepted.len() < EXCEPTED_MAX).then(|| best.exception(policy, execution)).flatten();
        let (id, found) = (best.id, best.found(catalog, policy, execution.invoked));
        let Some(number) = exception else {
            decided.found = Some(found);
            return decided;
        };
        excepted.push(id);
        decided.excepted.push((found, number));
    }
}

struct Best {
    id: u32,
    ways: Vec<Way>,
    action: Action,
    rule: u32,
    exceptions: u32,
    /// Which of argv is its first argument.
    first_argument: usize,
}

impl Best {
    fn found(self, catalog: &Catalog, policy: &Compiled, invoked: &[u8]) -> Found {
        let tool = catalog.tool(self.id).map(|tool| tool.id.clone());
        let called = || {
            let meaning = catalog.meaning_of_name(str::from_utf8(invoked).ok()?)?;
            (meaning.kind == Kind::Tool).then(|| meaning.id.clone())
        };
        let pattern = || policy.comm.get(&self.id).map(Pattern::to_string);
        let id = tool.or_else(called).or_else(pattern).unwrap_or_default();
        Found { id, ways: self.ways, action: self.action, rule: usize::try_from(self.rule).unwrap_or(usize::MAX) }
    }

    fn exception(&self, policy: &Compiled, execution: &Execution<'_>) -> Option<usize> {
        let may_hold = |number: usize| self.exceptions >> number & 1 == 1;
        let holds = |exception: &Exception| holds(exception, execution, self.first_argument);
        policy
            .exceptions
            .iter()
            .enumerate()
            .find(|(number, one)| may_hold(*number) && holds(one))
            .map(|(number, _)| number)
    }
}

fn holds(exception: &Exception, execution: &Execution<'_>, first_argument: usize) -> bool {
    let fits_one = |patterns: &[crate::text::Pattern], images: &[&[u8]]| {
        patterns.is_empty() || images.iter().any(|image| patterns.iter().any(|pattern| pattern.fits(image)))
    };
    let nearest = execution.images.get(..1).unwrap_or_default();
    let arguments = execution.argv.get(first_argument..).unwrap_or_default();
    (exception.users.is_empty() || exception.users.iter().any(|users| users.contain(execution.uid)))
        && fits_one(&exception.parents, nearest)
        && fits_one(&exception.ancestors, &execution.images)
        && exception.arguments.as_ref().is_none_or(|wanted| wanted.fit(arguments))
        && exception.is_for_image(execution.image)
}

struct Search<'a> {
    catalog: &'a Catalog,
    policy: &'a Compiled,
    execution: &'a Execution<'a>,
    excepted: &'a [u32],
    best: Option<Best>,
}

impl Search<'_> {
    /// In the order of the kernel programs: of equal actions the first is reported.
    fn identify(&mut self) {
        let execution = self.execution;
        let named = |name| self.catalog.meaning_of_name(str::from_utf8(name).ok()?);
        // The file says more about what runs than the name it was called by, so it comes first.
        let meanings: Vec<(&Meaning, Way)> = named(execution.resolved)
            .map(|meaning| (meaning, Way::ResolvedName))
            .into_iter()
            .chain(execution.contents.iter().map(|meaning| (meaning, Way::Fingerprint)))
            .chain(named(execution.invoked).map(|meaning| (meaning, Way::InvokedName)))
            .collect();
        let mut kinds: Vec<Kind> = meanings.iter().map(|(meaning, _)| meaning.kind).collect();
        for (meaning, way) in meanings {
            self.consider_meaning(meaning, way);
        }
        for reader in [Kind::Multicall, Kind::Loader] {
            if kinds.contains(&reader) {
                kinds.extend(self.consider_command(reader));
            }
        }
        let is_talker = kinds.iter().any(|kind| matches!(kind, Kind::Shell | Kind::Interpreter));
        if is_talker && execution.stdio_is_socket {
            self.consider(kernel_id(REVERSE_SHELL), Way::Stdio);
        }
        let is_dropped = execution.places.iter().any(|place| matches!(place, Place::UpperLayer | Place::Memfd));
        if self.best.is_none() && self.excepted.is_empty() && is_dropped {
            self.consider(kernel_id(DROPPED_EXECUTABLE), Way::Place);
        }
        if let Some(pattern) = self.pattern() {
            self.consider(pattern, Way::Pattern);
        }
    }

    fn consider_meaning(&mut self, meaning: &Meaning, way: Way) {
        if meaning.kind == Kind::Tool {
            self.consider(kernel_id(&meaning.id), way);
        }
    }

    fn consider(&mut self, id: u32, way: Way) {
        if self.excepted.contains(&id) {
            return;
        }
        if let Some(best) = self.best.as_mut().filter(|best| best.id == id) {
            if !best.ways.contains(&way) {
                best.ways.push(way);
            }
            return;
        }
        let Execution { places, uid, .. } = self.execution;
        let Some(ruling) = self.policy.rulings.get(&id) else { return };
        let Some(decision) = ruling.decision(places, *uid) else { return };
        let least = self.best.as_ref().map_or(Action::Ignore, |best| best.action);
        if decision.action > least {
            self.best = Some(Best {
                id,
                ways: vec![way],
                action: decision.action,
                rule: decision.rule,
                exceptions: ruling.exceptions,
                first_argument: 1,
            });
        }
    }

    /// What a program that runs others was told to run: its kind.
    fn consider_command(&mut self, reader: Kind) -> Option<Kind> {
        let (meaning, at, way) = command(self.catalog, &self.execution.argv, reader)?;
        self.consider_meaning(&meaning, way);
        if meaning.kind == Kind::Tool
            && let Some(best) = self.best.as_mut().filter(|best| best.id == kernel_id(&meaning.id))
        {
            best.first_argument = at + 1;
        }
        Some(meaning.kind)
    }

    /// The longest of the policy's patterns that the comm matches.
    fn pattern(&self) -> Option<u32> {
        let name = self.execution.invoked;
        let comm = name.get(..name.len().min(comm::COMM_MAX))?;
        let matches = |pattern: &Pattern| {
            if pattern.is_whole() {
                comm == pattern.name().as_bytes()
            } else {
                comm.starts_with(pattern.name().as_bytes())
            }
        };
        let matching = self.policy.comm.iter().filter(|(_, pattern)| matches(pattern));
        matching.max_by_key(|(_, pattern)| (pattern.name().len(), pattern.is_whole())).map(|(id, _)| *id)
    }
}

/// The last component of a path.
pub fn basename(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// What arguments tell a multi-call program or a dynamic loader to run, which of them says so, and who read them: as
/// `command.bpf.h` does.
fn command(catalog: &Catalog, argv: &[&[u8]], reader: Kind) -> Option<(Meaning, usize, Way)> {
    let mut reader = reader;
    let way = |reader| if reader == Kind::Multicall { Way::Applet } else { Way::Loader };
    let meaning = |name: &[u8]| catalog.meaning_of_name(str::from_utf8(name).ok()?).cloned();
    let is_multicall =
        |name: &[u8]| catalog.multicall_prefixes().iter().any(|prefix| name.starts_with(prefix.as_bytes()));
    let options = catalog.loader_options();
    let mut value_of: Option<bool> = None;
    let mut argv0: Option<Option<Meaning>> = None;
    for (index, argument) in argv.iter().enumerate() {
        let followed = value_of.take();
        let is_option = argument.starts_with(b"--");
        // argv[0] is no option, whatever it looks like.
        if reader == Kind::Loader && index > 0 && is_option && followed.is_none() {
            let is = |known: &&String| known.as_bytes() == *argument;
            value_of = if options.argv0.iter().any(|known| is(&known)) {
                Some(true)
            } else {
                options.value.iter().any(|known| is(&known)).then_some(false)
            };
        }
        // A login shell's argv[0] begins with a dash.
        let text = if index == 0 { argument.strip_prefix(b"-").unwrap_or(argument) } else { argument };
        let name = basename(text);
        let known = meaning(name);
        if reader == Kind::Loader {
            if followed == Some(true) && !is_multicall(name) {
                argv0 = Some(known.clone());
            }
            if index == 0 || is_option || followed.is_some() {
                continue;
            }
            if known.as_ref().is_some_and(|known| known.kind == Kind::Loader) {
                continue;
            }
        }
        if is_multicall(name) {
            let renamed = argv0.take().filter(|_| reader == Kind::Loader);
            reader = Kind::Multicall;
            match renamed {
                Some(found) => return Some((found?, index, way(reader))),
                None => continue,
            }
        }
        return Some((known?, index, way(reader)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{compile::compile, source::parse};

    const POLICY: &str = "
apiVersion: portcullis.dev/v1
kind: NetworkUtilityPolicy
metadata: {name: t}
spec:
  mode: enforce
  rules:
    - {tools: [curl], places: [upper_layer], action: block}
    - {categories: [http], users: [33], action: ignore}
    - {categories: [http], action: alert}
    - {categories: [netcat, dns], action: block}
    - {tools: [reverse_shell, dropped_executable], action: block}
    - {comm: [odd*], action: alert}
  exceptions:
    - {tools: [nc], arguments: ['-z', 'db*', '5432']}
    - {tools: [curl], parents: [/usr/bin/health], images: ['registry/*']}
    - {categories: [netcat, dns], ancestors: ['/opt/backup/*'], users: [0]}
";

    struct World {
        catalog: Catalog,
        policy: Compiled,
    }

    impl World {
        fn new() -> Self {
            let catalog = Catalog::shipped().unwrap();
            let policy = compile(&catalog, &parse("t.yaml", POLICY).unwrap(), 1).unwrap();
            Self { catalog, policy }
        }

        fn decide(&self, execution: &Execution<'_>) -> Decided {
            decide(&self.catalog, &self.policy, execution)
        }

        /// What is found, what is done, and by which rule.
        fn found(&self, execution: &Execution<'_>) -> Option<(String, Action, usize)> {
            self.decide(execution).found.map(|found| (found.id, found.action, found.rule))
        }
    }

    #[allow(clippy::unnecessary_wraps)] // To be compared with what may be nothing.
    fn is(id: &str, action: Action, rule: usize) -> Option<(String, Action, usize)> {
        Some((id.to_owned(), action, rule))
    }

    #[test]
    fn the_first_decision_that_applies_holds() {
        let world = World::new();
        let curl = |uid, places: &[Place]| {
            let execution =
                Execution { uid, places: places.to_vec(), ..Execution::of_command(&["/usr/bin/curl", "x"]) };
            world.found(&execution)
        };
        assert_eq!(curl(0, &[]), is("curl", Action::Alert, 2));
        assert_eq!(curl(33, &[]), None);
        assert_eq!(curl(33, &[Place::Deleted, Place::UpperLayer]), is("curl", Action::Block, 0));
        assert_eq!(world.found(&Execution::of_command(&["ls"])), None);
        assert_eq!(world.found(&Execution::of_command(&["oddity"])), is("odd*", Action::Alert, 5));
    }

    #[test]
    fn whatever_runs_a_tool_the_tool_is_found() {
        let world = World::new();
        for (argv, id) in [
            (&["busybox", "nc", "-l"][..], "nc"),
            (&["/bin/busybox", "busybox", "nslookup"], "nslookup"),
            (&["ld.so", "--argv0", "x", "/usr/bin/nc"], "nc"),
            (&["ld.so", "--preload", "nc", "/bin/busybox", "nslookup"], "nslookup"),
            (&["ld.so", "--argv0", "nc", "/bin/busybox", "ls"], "nc"),
            (&["ld.so", "/lib/ld.so", "/usr/bin/nc"], "nc"),
        ] {
            assert_eq!(world.found(&Execution::of_command(argv)), is(id, Action::Block, 3), "{argv:?}");
        }
        for argv in
            [&["busybox", "--list"][..], &["busybox", "ls", "nc"], &["ld.so", "--preload", "nc", "ls"], &["ld.so"]]
        {
            assert_eq!(world.found(&Execution::of_command(argv)), None, "{argv:?}");
        }
        let contents = vec![Meaning { kind: Kind::Tool, id: "nc".into() }];
        let renamed = Execution { contents, ..Execution::of_command(&["report"]) };
        assert_eq!(world.found(&renamed), is("nc", Action::Block, 3));
        let shell = Execution { stdio_is_socket: true, ..Execution::of_command(&["sh"]) };
        assert_eq!(world.found(&shell), is("reverse_shell", Action::Block, 4));
    }

    #[test]
    fn an_exception_needs_all_that_it_names() {
        let world = World::new();
        let excepted = |execution: &Execution<'_>| {
            let decided = world.decide(execution);
            assert_ne!(decided.found.is_some(), !decided.excepted.is_empty(), "{decided:?}");
            decided.excepted.first().map(|(_, number)| *number)
        };
        for argv in [&["nc", "-z", "db1", "5432"][..], &["busybox", "nc", "-z", "db", "5432"]] {
            assert_eq!(excepted(&Execution::of_command(argv)), Some(0), "{argv:?}");
        }
        for argv in [&["nc", "-z", "db"][..], &["nc", "-z", "db", "5432", "x"], &["nc", "-zv", "db", "5432"]] {
            assert_eq!(excepted(&Execution::of_command(argv)), None, "{argv:?}");
        }
        let health: &[u8] = b"/usr/bin/health";
        let curl = |images: &[&'static [u8]], image| {
            excepted(&Execution { images: images.to_vec(), image, ..Execution::of_command(&["curl"]) })
        };
        assert_eq!(curl(&[health], Some("registry/app")), Some(1));
        assert_eq!(curl(&[b"/bin/sh", health], Some("registry/app")), None, "no parent");
        assert_eq!(curl(&[health], Some("other/app")), None);
        assert_eq!(curl(&[health], None), None);
        let dig = |uid| {
            let images = vec![&b"/bin/sh"[..], b"/opt/backup/run"];
            excepted(&Execution { uid, images, ..Execution::of_command(&["dig"]) })
        };
        assert_eq!((dig(0), dig(1)), (Some(2), None));
    }

    #[test]
    fn an_exception_for_one_tool_says_nothing_of_what_else_a_file_is() {
        let world = World::new();
        // A copy of dig that calls itself nc.
        let contents = vec![Meaning { kind: Kind::Tool, id: "dig".into() }];
        let execution = Execution { contents, ..Execution::of_command(&["nc", "-z", "db", "5432"]) };
        let decided = world.decide(&execution);
        assert_eq!(decided.excepted.len(), 1);
        assert_eq!(decided.found.map(|found| found.id).as_deref(), Some("dig"));
    }

    #[test]
    fn what_is_excepted_is_no_dropped_executable() {
        let world = World::new();
        let dropped = |argv| {
            let execution = Execution { places: vec![Place::Memfd], ..Execution::of_command(argv) };
            world.found(&execution)
        };
        assert_eq!(dropped(&["thing"]), is("dropped_executable", Action::Block, 4));
        assert_eq!(dropped(&["nc", "-z", "db", "5432"]), None);
    }
}

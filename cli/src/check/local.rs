//! What agent and shim share on this node, looked at without asking either.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use portcullis_bpf::{abi::ABI_VERSION, pins::Pins};
use portcullis_policy::{
    policyset::{self, Backend, PolicySet},
    record::{self, ContainerRecord, Guard},
};

use super::report::Check;

/// The shim's file name, which containerd derives from the runtime type `io.containerd.portcullis.v1`.
pub const SHIM: &str = "containerd-shim-portcullis-v1";

/// Where shims are installed; root's PATH in a shell and containerd's are not always the same.
const USUAL_DIRECTORIES: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

const START: &str = "start portcullisd (systemctl start portcullisd), which writes it";
const ROOT: &str = "run this as root";

/// All of them. The records are only counted when there is no agent to say it. `containerd_path`: where containerd looks for
/// programs, if that could be seen.
pub fn checks(run_dir: &Path, agent_answers: bool, containerd_path: Option<&[PathBuf]>) -> Vec<Check> {
    let mut checks = Vec::new();
    match policy_set(&run_dir.join(policyset::file_name(ABI_VERSION))) {
        Err(check) => checks.push(check),
        Ok(set) => {
            let detail = format!(
                "format {}, default policy {} ({}), {} others",
                set.format,
                set.default_policy.name,
                set.default_policy.mode,
                set.policies.len()
            );
            checks.push(Check::ok("policyset", detail));
            checks.push(pins(&set));
            checks.push(program(
                "inner-shim",
                &set.inner_shim,
                containerd_path,
                "install containerd's runc shim, or set inner_shim in portcullis.toml",
            ));
        }
    }
    checks.push(program(
        "shim",
        Path::new(SHIM),
        containerd_path,
        "install it where containerd finds it, for example in /usr/local/bin, executable",
    ));
    if !agent_answers {
        checks.push(records(&run_dir.join(record::DIR_NAME)));
    }
    checks
}

/// What to say of a file that can't be read.
fn unreadable(name: &str, path: &Path, error: &io::Error, missing: &str) -> Check {
    let detail = format!("{}: {error}", path.display());
    let remedy = if error.kind() == io::ErrorKind::PermissionDenied { ROOT } else { missing };
    Check::failed(name, detail, remedy)
}

fn policy_set(path: &Path) -> Result<PolicySet, Check> {
    let bytes = fs::read(path).map_err(|error| unreadable("policyset", path, &error, START))?;
    PolicySet::parse(&bytes).map_err(|error| {
        let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        let detail = format!("{}: {error}{source}", path.display());
        Check::failed(
            "policyset",
            detail,
            "restart portcullisd, which writes it anew; install agent and shim of one version",
        )
    })
}

fn pins(set: &PolicySet) -> Check {
    let pins = Pins::at(&set.pins);
    let backend = match set.backend {
        Backend::Lsm => portcullis_bpf::Backend::Lsm,
        Backend::Tracepoint => portcullis_bpf::Backend::Tracepoint,
    };
    let mut wanted = vec![pins.maps()];
    wanted.extend(pins.needed(backend));
    for path in wanted {
        if let Err(error) = fs::symlink_metadata(&path) {
            return unreadable("pins", &path, &error, "restart portcullisd, which loads and pins the programs");
        }
    }
    Check::ok("pins", format!("{} holds what the {} backend needs", pins.directory().display(), set.backend))
}

/// A program by name or absolute path.
fn program(name: &str, program: &Path, containerd_path: Option<&[PathBuf]>, remedy: &str) -> Check {
    let path = env::var_os("PATH").unwrap_or_default();
    let guessed: Vec<_> = env::split_paths(&path).chain(USUAL_DIRECTORIES.map(PathBuf::from)).collect();
    let directories = containerd_path.unwrap_or(&guessed);
    let shown = program.display();
    if let Some(found) = find(program, directories, is_executable) {
        return Check::ok(name, found.display().to_string());
    }
    let detail = if let Some(found) = find(program, directories, Path::is_file) {
        format!("{} is not executable", found.display())
    } else if program.is_absolute() {
        format!("{shown} is not there")
    } else if containerd_path.is_none() {
        format!("{shown} is neither in PATH nor in the usual directories")
    } else {
        let directories: Vec<_> = directories.iter().map(|directory| directory.display().to_string()).collect();
        format!("{shown} is not where containerd looks: {}", directories.join(":"))
    };
    Check::failed(name, detail, remedy)
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn find(program: &Path, directories: &[PathBuf], fits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    // Joining an absolute path gives that path.
    directories.iter().map(|directory| directory.join(program)).find(|path| fits(path))
}

fn records(directory: &Path) -> Check {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Check::ok("containers", "none"),
        Err(error) => return unreadable("containers", directory, &error, ROOT),
    };
    let records = entries
        .flatten()
        .filter_map(|entry| serde_json::from_slice::<ContainerRecord>(&fs::read(entry.path()).ok()?).ok());
    let (mut guarded, mut unguarded) = (0, Vec::new());
    for record in records.filter(|record| record.ended_ns.is_none()) {
        match record.guard {
            Guard::Guarded => guarded += 1,
            Guard::Unguarded { reason } => unguarded.push(format!("{} ({reason})", record.container_id)),
        }
    }
    if unguarded.is_empty() {
        return Check::ok("containers", format!("{guarded} guarded, none unguarded"));
    }
    let detail = format!("{} started without their guard: {}", unguarded.len(), super::containerd::some_of(&unguarded));
    Check::warning("containers", detail, "mend the cause and start them anew")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use portcullis_policy::policyset::{FORMAT, Mode, OnAttachFailure, PolicyEntry};

    use super::{super::report::State, *};

    fn set(backend: Backend, pins: PathBuf, inner_shim: PathBuf) -> PolicySet {
        let default_policy = PolicyEntry::new(1, "default", Mode::Detect, OnAttachFailure::Allow);
        PolicySet { format: FORMAT, backend, pins, inner_shim, catalog: 1, default_policy, policies: Vec::new() }
    }

    fn state(checks: &[Check], name: &str) -> State {
        checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}")).state
    }

    #[test]
    fn a_complete_node_is_well_with_either_backend() {
        for backend in [Backend::Lsm, Backend::Tracepoint] {
            let directory = tempfile::tempdir().unwrap();
            let pins = Pins::at(directory.path().join("v1"));
            fs::create_dir_all(pins.maps()).unwrap();
            fs::create_dir_all(pins.programs()).unwrap();
            fs::create_dir_all(pins.node_links()).unwrap();
            // What the loader pins for each.
            match backend {
                Backend::Lsm => {
                    let sockets =
                        ["connect", "create", "bind", "listen", "sendmsg"].map(|call| format!("socket_{call}"));
                    let files = ["bprm_check", "bprm_committed", "mmap_file"].map(str::to_owned);
                    let programs = files.iter().chain(&sockets).map(|hook| pins.program(&format!("pc_{hook}")));
                    let node = ["bpf", "bpf_map", "unlink", "rmdir", "rename"].map(|name| format!("pc_{name}"));
                    programs.chain(node.map(|name| pins.node_link(&name))).collect()
                }
                Backend::Tracepoint => ["pc_sched_exec", "pc_tcp_connect"].map(|name| pins.node_link(name)).to_vec(),
            }
            .iter()
            .chain([&pins.node_link("pc_sched_fork")])
            .for_each(|pin| fs::write(pin, "").unwrap());
            let set = set(backend, pins.directory().to_owned(), "/bin/sh".into());
            fs::write(directory.path().join(policyset::file_name(ABI_VERSION)), set.to_bytes().unwrap()).unwrap();
            let checks = checks(directory.path(), false, None);
            for name in ["policyset", "pins", "inner-shim", "containers"] {
                assert_eq!(state(&checks, name), State::Ok, "{checks:?}");
            }
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let missing = checks(directory.path(), true, None);
        assert_eq!(state(&missing, "policyset"), State::Failed);
        assert!(missing.iter().all(|check| (check.state == State::Ok) == check.remedy.is_empty()), "{missing:?}");
        let set = set(Backend::Lsm, directory.path().join("v1"), "no-such-shim".into());
        fs::write(directory.path().join(policyset::file_name(ABI_VERSION)), set.to_bytes().unwrap()).unwrap();
        let broken = checks(directory.path(), true, None);
        assert_eq!(state(&broken, "pins"), State::Failed);
        assert_eq!(state(&broken, "inner-shim"), State::Failed);
        fs::write(directory.path().join(policyset::file_name(ABI_VERSION)), r#"{"format": 99}"#).unwrap();
        assert_eq!(state(&checks(directory.path(), true, None), "policyset"), State::Failed);
    }

    #[test]
    fn only_executable_files_are_programs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SHIM);
        fs::write(&path, "").unwrap();
        let check = || program("shim", Path::new(SHIM), Some(&[directory.path().to_owned()]), "remedy");
        assert_eq!(check().detail, format!("{} is not executable", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!((check().state, check().detail), (State::Ok, path.display().to_string()));
        fs::remove_file(&path).unwrap();
        assert!(check().detail.contains("is not where containerd looks"), "{:?}", check());
    }
}

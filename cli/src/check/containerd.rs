//! What containerd runs: which containers have the shim. Every bundle names the shim that really runs it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{local::SHIM, report::Check};

/// The runtime type that leads containerd to our shim.
pub const RUNTIME_TYPE: &str = "io.containerd.portcullis.v1";
/// Where containerd keeps the bundles of running tasks, below its state directory.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// Annotations that only make sense under our shim.
const ANNOTATIONS: &str = "portcullis.dev/";
/// Against the trap ([`super::config`]).
pub const REMEDY: &str = "give the runtime runtime_type = \"io.containerd.portcullis.v1\" (runtime_path does not do it), \
                      restart containerd, and start the workloads anew";

/// Looks at the running containers for those that ask for us and don't have us.
pub fn bundles(state: &Path) -> Check {
    const NAME: &str = "bundles";
    let tasks = state.join(TASKS);
    let bundles = match list(&tasks) {
        Ok(bundles) => bundles,
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as root",
                _ => "start containerd, or give --containerd-state",
            };
            return Check::warning(NAME, format!("{}: {error}", tasks.display()), remedy);
        }
    };
    let ours = bundles.iter().filter(|bundle| bundle.is_ours()).count();
    let trapped: Vec<_> = bundles.iter().filter(|bundle| bundle.is_trapped()).map(Bundle::describe).collect();
    if trapped.is_empty() {
        return Check::ok(
            NAME,
            format!("{ours} of {} running containers have the shim; no other asks for it", bundles.len()),
        );
    }
    let detail =
        format!("{} ask for Portcullis and run under another shim, unguarded: {}", trapped.len(), some_of(&trapped));
    Check::warning(NAME, detail, REMEDY)
}

/// Running containers that have the shim.
pub fn guarded(state: &Path) -> Vec<String> {
    let bundles = list(&state.join(TASKS)).unwrap_or_default();
    bundles
        .iter()
        .filter(|bundle| bundle.is_ours())
        .map(|bundle| format!("{}/{}", bundle.namespace, bundle.id))
        .collect()
}

/// Processes of the shim, wherever their containerd keeps its state.
pub fn shims() -> Vec<u32> {
    // Once its file was replaced, the link says so behind the name.
    let is_ours = |exe: PathBuf| exe.to_str().is_some_and(|exe| is_shim(exe.trim_end_matches(" (deleted)")));
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(is_ours))
        .collect()
}

/// Whether it is the shim's path or name.
pub fn is_shim(path: &str) -> bool {
    Path::new(path).file_name().is_some_and(|name| name == SHIM)
}

struct Bundle {
    namespace: String,
    id: String,
    /// Unknown in bundles of containerd before 1.6.
    shim: Option<String>,
    asks_for_us: bool,
}

impl Bundle {
    fn is_ours(&self) -> bool {
        self.shim.as_deref().is_some_and(is_shim)
    }

    fn is_trapped(&self) -> bool {
        self.asks_for_us && self.shim.is_some() && !self.is_ours()
    }

    fn describe(&self) -> String {
        format!("{}/{} ({})", self.namespace, self.id, self.shim.as_deref().unwrap_or_default())
    }

    fn read(namespace: String, id: String, path: &Path) -> Self {
        #[derive(Deserialize)]
        struct Spec {
            #[serde(default)]
            annotations: BTreeMap<String, String>,
        }
        // A container may end while it is looked at: what is gone asks for nothing.
        let spec =
            fs::read(path.join("config.json")).ok().and_then(|bytes| serde_json::from_slice::<Spec>(&bytes).ok());
        Self {
            namespace,
            id,
            shim: fs::read_to_string(path.join("shim-binary-path")).ok().map(|path| path.trim().to_owned()),
            asks_for_us: spec.is_some_and(|spec| spec.annotations.keys().any(|key| key.starts_with(ANNOTATIONS))),
        }
    }
}

fn list(tasks: &Path) -> io::Result<Vec<Bundle>> {
    let mut bundles = Vec::new();
    for namespace in fs::read_dir(tasks)?.flatten() {
        for bundle in fs::read_dir(namespace.path()).into_iter().flatten().flatten() {
            let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
            bundles.push(Bundle::read(name(&namespace), name(&bundle), &bundle.path()));
        }
    }
    bundles.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
    Ok(bundles)
}

/// The first few, and how many more there are.
pub fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = names.iter().take(SHOWN).map(String::as_str).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::State, *};

    fn bundle(state: &Path, id: &str, shim: Option<&str>, annotations: &str) {
        let path = state.join(TASKS).join("k8s.io").join(id);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), format!(r#"{{"ociVersion": "1.0.2", "annotations": {annotations}}}"#))
            .unwrap();
        if let Some(shim) = shim {
            fs::write(path.join("shim-binary-path"), shim).unwrap();
        }
    }

    #[test]
    fn the_trap_is_seen_in_the_bundles() {
        let state = tempfile::tempdir().unwrap();
        let asking = r#"{"portcullis.dev/mode": "enforce"}"#;
        bundle(state.path(), "guarded", Some("/usr/local/bin/containerd-shim-portcullis-v1"), asking);
        bundle(state.path(), "other", Some("/usr/bin/containerd-shim-runc-v2"), "{}");
        bundle(state.path(), "old", None, asking);
        let check = bundles(state.path());
        assert_eq!(check.state, State::Ok, "{check:?}");
        assert!(check.detail.starts_with("1 of 3"), "{check:?}");
        bundle(state.path(), "trapped", Some("/usr/bin/containerd-shim-runc-v2\n"), asking);
        let check = bundles(state.path());
        assert_eq!(check.state, State::Warning);
        assert!(check.detail.contains("k8s.io/trapped (/usr/bin/containerd-shim-runc-v2)"), "{check:?}");
        assert!(!check.detail.contains("k8s.io/other"), "{check:?}");
    }

    #[test]
    fn no_containerd_is_a_warning() {
        assert_eq!(bundles(Path::new("/nonexistent")).state, State::Warning);
    }
}

//! containerd's side: whether it starts the shim for those containers that should have it.
//!
//! The trap: with `runtime_type = "io.containerd.runc.v2"` and `runtime_path` naming our shim, containerd 1.6
//! ignores the path without a word; pods run, unguarded. Every bundle names the shim that really runs it.

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
const REMEDY: &str = "give the runtime runtime_type = \"io.containerd.portcullis.v1\" (runtime_path does not do it), \
                      restart containerd, and start the workloads anew";

/// Looks at the configuration for a runtime that leads to the shim, and for the trap.
pub fn config(path: &Path) -> Check {
    const NAME: &str = "containerd-config";
    let mut runtimes = Runtimes::default();
    if let Err(error) = read_config(path, &mut runtimes) {
        return Check::warning(NAME, error, "give --containerd-config, or run this as root");
    }
    if !runtimes.trapped.is_empty() {
        let detail =
            format!("runtime_path names our shim but runtime_type does not, in {}", some_of(&runtimes.trapped));
        return Check::warning(NAME, detail, REMEDY);
    }
    if runtimes.ours.is_empty() {
        return Check::warning(
            NAME,
            format!("no runtime in {} has runtime_type {RUNTIME_TYPE}", path.display()),
            "add one to guard pods; ctr and nerdctl can name the runtime themselves",
        );
    }
    Check::ok(NAME, format!("leads to the shim: {}", some_of(&runtimes.ours)))
}

#[derive(Default)]
struct Runtimes {
    ours: Vec<String>,
    trapped: Vec<String>,
}

/// The file and what it imports; imports don't nest in containerd either beyond what is of use here.
fn read_config(path: &Path, runtimes: &mut Runtimes) -> Result<(), String> {
    let main = parse(path)?;
    collect(&main, "", runtimes);
    let imports = main.get("imports").and_then(toml::Value::as_array).into_iter().flatten();
    for pattern in imports.filter_map(toml::Value::as_str) {
        for import in expand(&path.parent().unwrap_or(Path::new("/")).join(pattern)) {
            collect(&parse(&import)?, "", runtimes);
        }
    }
    Ok(())
}

fn parse(path: &Path) -> Result<toml::Table, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    toml::from_str(&text).map_err(|error| format!("{}: {}", path.display(), error.message()))
}

/// `directory/*.toml` as containerd's documentation has it; anything else is one file.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let suffix = pattern.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('*'));
    let (Some(suffix), Some(directory)) = (suffix, pattern.parent()) else { return vec![pattern.to_owned()] };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.to_str().is_some_and(|path| path.ends_with(suffix))).collect()
}

/// Every table with a `runtime_type`, wherever containerd's version keeps it.
fn collect(table: &toml::Table, name: &str, runtimes: &mut Runtimes) {
    let text = |key| table.get(key).and_then(toml::Value::as_str);
    let is_ours = |value: &str| value == RUNTIME_TYPE || is_shim(value);
    if text("runtime_type").is_some_and(is_ours) {
        runtimes.ours.push(name.to_owned());
    } else if text("runtime_path").is_some_and(is_shim) {
        runtimes.trapped.push(name.to_owned());
    }
    for (key, value) in table {
        if let toml::Value::Table(table) = value {
            collect(table, key, runtimes);
        }
    }
}

fn is_shim(path: &str) -> bool {
    Path::new(path).file_name().is_some_and(|name| name == SHIM)
}

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
        assert_eq!(config(Path::new("/nonexistent")).state, State::Warning);
    }

    #[test]
    fn the_trap_is_seen_in_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let main = directory.path().join("config.toml");
        let runtime = |name: &str, lines: &str| {
            format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]\n{lines}\n")
        };
        fs::write(
            &main,
            format!(
                "version = 2\nimports = [\"conf.d/*.toml\"]\n{}",
                runtime("runc", "runtime_type = \"io.containerd.runc.v2\"")
            ),
        )
        .unwrap();
        assert!(config(&main).detail.contains("no runtime"));
        fs::create_dir(directory.path().join("conf.d")).unwrap();
        let drop_in = directory.path().join("conf.d/portcullis.toml");
        fs::write(&drop_in, runtime("portcullis", "runtime_type = \"io.containerd.portcullis.v1\"")).unwrap();
        assert_eq!(config(&main).state, State::Ok, "{:?}", config(&main));
        let trap =
            "runtime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/usr/local/bin/containerd-shim-portcullis-v1\"";
        fs::write(&drop_in, runtime("guarded", trap)).unwrap();
        let check = config(&main);
        assert_eq!(check.state, State::Warning);
        assert!(check.detail.ends_with("in guarded"), "{check:?}");
    }
}

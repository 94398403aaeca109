//! containerd's configuration: whether it leads to the shim, and what stands in the way.
//!
//! The trap: with `runtime_type = "io.containerd.runc.v2"` and `runtime_path` naming our shim, containerd 1.6
//! ignores the path without a word; pods run, unguarded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    containerd::{self, RUNTIME_TYPE, is_shim, some_of},
    report::Check,
};

const NAME: &str = "containerd-config";
/// What puts handler and import right, whatever was wrong with them.
const INSTALL: &str = "portcullis install && systemctl restart containerd";
/// The annotations that policies know.
const ANNOTATIONS: &str = "portcullis.dev/";

/// What the configuration says.
#[derive(Debug, Default)]
pub struct Config {
    /// Names of the handlers that lead to the shim.
    pub handlers: Vec<String>,
    /// What there is to say about it; never empty.
    pub checks: Vec<Check>,
}

/// Looks at containerd's main file and at all that it imports, and for what it ought to import.
pub fn look(path: &Path) -> Config {
    let files = match Files::read(path) {
        Ok(files) => files,
        Err(error) => {
            let remedy = "give --containerd-config, or run this as root";
            return Config { handlers: Vec::new(), checks: vec![Check::warning(NAME, error, remedy)] };
        }
    };
    let handlers: Vec<_> = files.read.iter().flat_map(File::handlers).collect();
    let mut checks: Vec<_> =
        [files.trapped(), files.not_imported(), files.of_other_versions()].into_iter().flatten().collect();
    checks.extend(files.without_annotations());
    if checks.is_empty() && handlers.is_empty() {
        let detail = format!("no handler in {} has runtime_type {RUNTIME_TYPE}", path.display());
        checks.push(Check::warning(NAME, detail, format!("{INSTALL}   # for pods; ctr and nerdctl name the runtime")));
    }
    let handlers: Vec<String> = handlers.into_iter().map(|handler| handler.name.clone()).collect();
    if checks.is_empty() {
        checks.push(Check::ok(NAME, format!("leads to the shim: {}", some_of(&handlers))));
    }
    Config { handlers, checks }
}

/// A table with a `runtime_type`, wherever containerd's version keeps it.
#[derive(Debug)]
struct Handler {
    name: String,
    is_ours: bool,
    is_trapped: bool,
    has_annotations: bool,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    version: Option<i64>,
    all: Vec<Handler>,
}

impl File {
    fn read(path: &Path) -> Result<(Self, toml::Table), String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let table: toml::Table =
            toml::from_str(&text).map_err(|error| format!("{}: {}", path.display(), error.message()))?;
        let mut all = Vec::new();
        collect(&table, "", &mut all);
        let version = table.get("version").and_then(toml::Value::as_integer);
        Ok((Self { path: path.to_owned(), version, all }, table))
    }

    fn handlers(&self) -> impl Iterator<Item = &Handler> {
        self.all.iter().filter(|handler| handler.is_ours)
    }
}

/// The main file, those that it imports, and those beside them.
#[derive(Debug)]
struct Files {
    read: Vec<File>,
    beside: Vec<File>,
}

impl Files {
    /// Imports don't nest in containerd either beyond what is of use here.
    fn read(main: &Path) -> Result<Self, String> {
        let directory = main.parent().unwrap_or(Path::new("/"));
        let (file, table) = File::read(main)?;
        let mut read = vec![file];
        let imports = table.get("imports").and_then(toml::Value::as_array).into_iter().flatten();
        for pattern in imports.filter_map(toml::Value::as_str) {
            for import in expand(&directory.join(pattern)) {
                if read.iter().all(|file| file.path != import) {
                    read.push(File::read(&import)?.0);
                }
            }
        }
        // What can't be read there is not containerd's concern.
        let beside = expand(&directory.join("conf.d/*.toml")).into_iter();
        let beside = beside.filter(|path| read.iter().all(|file| file.path != *path));
        let beside = beside.filter_map(|path| File::read(&path).ok()).map(|(file, _)| file).collect();
        Ok(Self { read, beside })
    }

    fn main(&self) -> Option<&File> {
        self.read.first()
    }

    fn trapped(&self) -> Option<Check> {
        let trapped = self.read.iter().flat_map(|file| &file.all).filter(|handler| handler.is_trapped);
        let names: Vec<_> = trapped.map(|handler| handler.name.clone()).collect();
        let detail = format!("runtime_path names our shim but runtime_type does not, in {}", some_of(&names));
        (!names.is_empty()).then(|| Check::failed(NAME, detail, containerd::REMEDY))
    }

    fn not_imported(&self) -> Option<Check> {
        let file = self.beside.iter().find(|file| file.handlers().next().is_some())?;
        let main = self.main()?.path.display();
        let detail = format!("{} has the handler, but {main} does not import it", file.path.display());
        Some(Check::failed(NAME, detail, INSTALL))
    }

    /// containerd 2 ignores sections of a file whose version is older than the others', containerd 1 refuses what is newer.
    fn of_other_versions(&self) -> Option<Check> {
        let main = self.main()?;
        let differs = |file: &&File| file.version.is_some() && file.version != main.version;
        let file = self.read.iter().filter(|file| file.handlers().next().is_some()).find(differs)?;
        let number = |file: &File| file.version.map_or("none".to_owned(), |version| version.to_string());
        let detail = format!(
            "{} is of version {}, {} of version {}: containerd ignores the handler, or does not start",
            file.path.display(),
            number(file),
            main.path.display(),
            number(main)
        );
        Some(Check::failed(NAME, detail, format!("{INSTALL}   # if the file was edited: install --overwrite")))
    }

    fn without_annotations(&self) -> Option<Check> {
        let handlers = self.read.iter().flat_map(File::handlers).filter(|handler| !handler.has_annotations);
        let names: Vec<_> = handlers.map(|handler| handler.name.clone()).collect();
        let detail =
            format!("CRI keeps the annotations of pods to itself in {}: only policies decide", some_of(&names));
        let remedy = "give it pod_annotations = [\"portcullis.dev/*\"], and restart containerd";
        (!names.is_empty()).then(|| Check::warning(NAME, detail, remedy))
    }
}

/// `directory/*.toml` as containerd's documentation has it; anything else is one file.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let suffix = pattern.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('*'));
    let (Some(suffix), Some(directory)) = (suffix, pattern.parent()) else { return vec![pattern.to_owned()] };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<_> = entries.filter(|path| path.to_str().is_some_and(|path| path.ends_with(suffix))).collect();
    paths.sort();
    paths
}

fn collect(table: &toml::Table, name: &str, handlers: &mut Vec<Handler>) {
    let text = |key| table.get(key).and_then(toml::Value::as_str);
    let is_ours = text("runtime_type").is_some_and(|value| value == RUNTIME_TYPE || is_shim(value));
    if table.contains_key("runtime_type") {
        let annotations = table.get("pod_annotations").and_then(toml::Value::as_array).into_iter().flatten();
        let has_annotations = annotations
            .filter_map(toml::Value::as_str)
            .any(|pattern| pattern.starts_with(ANNOTATIONS) || pattern.starts_with('*'));
        let is_trapped = !is_ours && text("runtime_path").is_some_and(is_shim);
        handlers.push(Handler { name: name.to_owned(), is_ours, is_trapped, has_annotations });
    }
    for (key, value) in table {
        if let toml::Value::Table(table) = value {
            collect(table, key, handlers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::State, *};

    const GOOD: &str = "runtime_type = \"io.containerd.portcullis.v1\"\npod_annotations = [\"portcullis.dev/*\"]";
    const IMPORTING: &str = "version = 2\nimports = [\"conf.d/*.toml\"]\n";

    fn handler(name: &str, lines: &str) -> String {
        format!("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}]\n{lines}\n")
    }

    fn look_at(main: &str, drop_in: Option<&str>) -> (Vec<String>, Check) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, main).unwrap();
        if let Some(drop_in) = drop_in {
            fs::create_dir(directory.path().join("conf.d")).unwrap();
            fs::write(directory.path().join("conf.d/portcullis.toml"), drop_in).unwrap();
        }
        let Config { handlers, mut checks } = look(&path);
        assert_eq!(checks.len(), 1, "{checks:?}");
        (handlers, checks.remove(0))
    }

    #[test]
    fn what_leads_to_the_shim_is_found() {
        let (handlers, check) = look_at(IMPORTING, Some(&handler("portcullis", GOOD)));
        assert_eq!((handlers, check.state), (vec!["portcullis".to_owned()], State::Ok), "{check:?}");
        let (handlers, check) = look_at(IMPORTING, Some(&handler("runc", "runtime_type = \"io.containerd.runc.v2\"")));
        assert!(handlers.is_empty() && check.detail.contains("no handler"), "{check:?}");
        assert!(check.remedy.starts_with(INSTALL), "{check:?}");
        assert_eq!(look(Path::new("/nonexistent")).checks[0].state, State::Warning);
    }

    #[test]
    fn the_trap_is_seen() {
        let trap =
            "runtime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/usr/local/bin/containerd-shim-portcullis-v1\"";
        let (_, check) = look_at(IMPORTING, Some(&handler("guarded", trap)));
        assert_eq!(check.state, State::Failed);
        assert!(check.detail.ends_with("in guarded"), "{check:?}");
    }

    #[test]
    fn what_stands_in_the_way_is_named() {
        let (handlers, check) = look_at("version = 2\n", Some(&handler("portcullis", GOOD)));
        assert!(handlers.is_empty() && check.state == State::Failed, "{check:?}");
        assert!(check.detail.contains("config.toml does not import it"), "{check:?}");
        let (_, check) = look_at(IMPORTING, Some(&format!("version = 3\n{}", handler("portcullis", GOOD))));
        assert!(check.state == State::Failed && check.detail.contains("is of version 3"), "{check:?}");
        let bare = "runtime_type = \"io.containerd.portcullis.v1\"\npod_annotations = [\"example.com/*\"]";
        let (handlers, check) = look_at(IMPORTING, Some(&handler("bare", bare)));
        assert_eq!((handlers.len(), check.state), (1, State::Warning));
        assert!(check.detail.contains("annotations of pods to itself in bare"), "{check:?}");
    }
}

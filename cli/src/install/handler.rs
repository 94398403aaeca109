//! containerd's configuration: a file of our own beside it, and the line that imports it.
//!
//! The first and the second seen with containerd 1.6.20 and 2.1.9, whose dumps of the configuration tell; the third is told in docs/shim.md.
//! - containerd 1 replaces a plugin's whole section by the imported one, so the file repeats what the main one has of CRI's;
//!   it also forgets its own handler `runc` once another is configured, so that is stated as well.
//! - containerd 2 merges sections. But if one file is of version 2 and the other of version 3, CRI's section of the one of
//!   version 2 is ignored, with a warning in the log: both must have the same.
//! - containerd 1.6 reads no options of a handler with a runtime type of its own but `ConfigPath`; later ones read that, too.

use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Table, Value, value};

use crate::check::containerd::RUNTIME_TYPE;

const STOCK: &str = "io.containerd.runc.v2";
const HEADER: &str = "# Written by `portcullis install`, which writes it anew as long as nobody has edited it: change the other file instead, and \
                      then run that again.\n";
const REPEATED: &str =
    "# containerd 1 takes CRI's section from here alone: what the main file had of it is repeated.\n";

/// A configuration that can't be built upon.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// No TOML, or not what containerd reads.
    #[error("{path}: {reason}")]
    Invalid {
        /// Which file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// Version 1, which a file without `version` has, can't have a handler like ours.
    #[error(
        "{path} is of version {version}; versions 2 and 3 are known: have containerd rewrite it \
         (containerd config migrate)"
    )]
    Version {
        /// Which file.
        path: String,
        /// Its version.
        version: i64,
    },
    /// There is no configuration to go by, and no containerd to ask.
    #[error("there is neither {path} nor a containerd that tells its version: say --containerd-version 1 or 2")]
    Unknown {
        /// The file that was looked for.
        path: String,
    },
}

/// What to write.
#[derive(Debug, PartialEq, Eq)]
pub struct Handler {
    /// The main file's text; `None` if it stays as it is.
    pub main: Option<String>,
    /// Whether the main file imported something, or nothing in so many words, before that.
    pub had_imports: bool,
    /// Our file's text.
    pub drop_in: String,
    /// The text of the file with runc's options, if they can be given in no other way.
    pub runc_options: Option<String>,
}

/// What decides about it.
#[derive(Debug)]
pub struct Wish<'a> {
    /// The handler's name.
    pub name: &'a str,
    /// The main file.
    pub main_path: &'a Path,
    /// Our file.
    pub drop_in_path: &'a Path,
    /// The file with runc's options.
    pub options_path: &'a Path,
    /// Whether kubelet uses the systemd cgroup driver. `None`: as the handler `runc` says.
    pub systemd_cgroup: Option<bool>,
    /// containerd's major version, for where there is no main file.
    pub containerd: Option<u32>,
}

/// The sections of a version of the configuration.
struct Version {
    number: i64,
    plugin: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version { number: 2, plugin: "io.containerd.grpc.v1.cri" },
    Version { number: 3, plugin: "io.containerd.cri.v1.runtime" },
];

impl Handler {
    /// `main`: the main file's text, if there is one.
    pub fn new(main: Option<&str>, wish: &Wish<'_>) -> Result<Self, HandlerError> {
        let path = || wish.main_path.display().to_string();
        let mut document = parse(main.unwrap_or_default(), wish.main_path)?;
        let number = match (main, wish.containerd) {
            (Some(_), _) => document.get("version").and_then(Item::as_integer).unwrap_or(1),
            (None, Some(1)) => 2,
            (None, Some(_)) => 3,
            (None, None) => return Err(HandlerError::Unknown { path: path() }),
        };
        let version = VERSIONS.iter().find(|version| version.number == number);
        let version = version.ok_or_else(|| HandlerError::Version { path: path(), version: number })?;
        let section = document.get("plugins").and_then(|plugins| plugins.get(version.plugin)).cloned();
        let of_runc = section.as_ref().and_then(|section| at(section, &["containerd", "runtimes", "runc", "options"]));
        let says = of_runc.and_then(|options| options.get("SystemdCgroup")).and_then(Item::as_bool);
        let systemd_cgroup = wish.systemd_cgroup.or(says).unwrap_or(false);

        let drop_in = drop_in(version, section, systemd_cgroup, wish);
        let had_imports = document.contains_key("imports");
        let changed = add_import(&mut document, main.is_none().then_some(number), wish)?;
        Ok(Self {
            main: changed.then(|| document.to_string()),
            had_imports,
            drop_in,
            runc_options: (systemd_cgroup && number == 2).then(|| "SystemdCgroup = true\n".to_owned()),
        })
    }
}

fn parse(text: &str, path: &Path) -> Result<DocumentMut, HandlerError> {
    text.parse().map_err(|error: toml_edit::TomlError| HandlerError::Invalid {
        path: path.display().to_string(),
        reason: error.to_string().trim_end().to_owned(),
    })
}

fn at<'a>(item: &'a Item, keys: &[&str]) -> Option<&'a Item> {
    keys.iter().try_fold(item, |item, key| item.get(key))
}

/// The table of that name in another, made if it is missing.
fn table<'a>(within: &'a mut Table, name: &str) -> Option<&'a mut Table> {
    within.entry(name).or_insert_with(|| Item::Table(implicit())).as_table_mut()
}

/// A table that has no line of its own as long as it has only tables in it.
fn implicit() -> Table {
    let mut table = Table::new();
    table.set_implicit(true);
    table
}

fn drop_in(version: &Version, repeated: Option<Item>, systemd_cgroup: bool, wish: &Wish<'_>) -> String {
    let repeats = version.number == 2;
    // What is written as an inline table becomes one of lines, so that ours can stand in it.
    let mut section = match repeated.filter(|_| repeats).map(Item::into_table) {
        Some(Ok(section)) => section,
        _ => implicit(),
    };
    let had_some = !section.is_empty();
    place(&mut section);
    let mut runtimes = implicit();
    if let Some(containerd) = table(&mut section, "containerd")
        && let Some(theirs) = table(containerd, "runtimes")
    {
        runtimes = std::mem::take(theirs);
        runtimes.set_implicit(true);
    }
    if repeats && !runtimes.contains_key("runc") {
        let mut stock = Table::new();
        stock.insert("runtime_type", value(STOCK));
        runtimes.insert("runc", Item::Table(stock));
    }
    let mut ours = Table::new();
    ours.insert("runtime_type", value(RUNTIME_TYPE));
    // Without these CRI keeps the annotations to itself, and only the policy decides.
    for key in ["pod_annotations", "container_annotations"] {
        ours.insert(key, value(Array::from_iter(["portcullis.dev/*"])));
    }
    let mut options = Table::new();
    if repeats && systemd_cgroup {
        options.insert("ConfigPath", value(wish.options_path.display().to_string()));
    } else if systemd_cgroup {
        options.insert("SystemdCgroup", value(true));
    }
    if !options.is_empty() {
        ours.insert("options", Item::Table(options));
    }
    runtimes.insert(wish.name, Item::Table(ours));
    if let Some(containerd) = table(&mut section, "containerd") {
        containerd.insert("runtimes", Item::Table(runtimes));
    }

    let mut plugins = implicit();
    plugins.insert(version.plugin, Item::Table(section));
    let mut document = DocumentMut::new();
    document.insert("version", value(version.number));
    document.insert("plugins", Item::Table(plugins));
    let repeated = if had_some { REPEATED } else { "" };
    format!("{HEADER}{repeated}{document}")
}

/// Tables remember their places among those of the file that they come from.
fn place(table: &mut Table) {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        if let Some(table) = item.as_table_mut() {
            place(table);
        }
    }
}

/// Whether the line had to be added or changed. `version`: for a file that does not exist yet.
fn add_import(document: &mut DocumentMut, version: Option<i64>, wish: &Wish<'_>) -> Result<bool, HandlerError> {
    let ours = wish.drop_in_path.display().to_string();
    if let Some(version) = version {
        document.insert("version", value(version));
    }
    let invalid = || HandlerError::Invalid {
        path: wish.main_path.display().to_string(),
        reason: "imports is not a list of paths".to_owned(),
    };
    let imports =
        document.entry("imports").or_insert_with(|| value(Array::new())).as_array_mut().ok_or_else(invalid)?;
    if imports.iter().filter_map(Value::as_str).any(|pattern| imports_file(pattern, wish)) {
        return Ok(false);
    }
    imports.push(ours);
    Ok(true)
}

/// Whether an import is for our file, by its path or by a star for its directory.
fn imports_file(pattern: &str, wish: &Wish<'_>) -> bool {
    let pattern: PathBuf = wish.main_path.parent().unwrap_or(Path::new("/")).join(pattern);
    pattern == wish.drop_in_path
        || pattern.parent() == wish.drop_in_path.parent()
            && matches!(pattern.file_name().and_then(|name| name.to_str()), Some("*.toml" | "*"))
}

/// The main file's text without the line for our file; `None` if it has none of its own. `keep_list`: even if nothing is in it.
pub fn without_import(
    main: &str,
    main_path: &Path,
    drop_in_path: &Path,
    keep_list: bool,
) -> Result<Option<String>, HandlerError> {
    let mut document = parse(main, main_path)?;
    let ours = drop_in_path.display().to_string();
    let Some(imports) = document.get_mut("imports").and_then(Item::as_array_mut) else { return Ok(None) };
    let before = imports.len();
    imports.retain(|import| import.as_str() != Some(ours.as_str()));
    if imports.len() == before {
        return Ok(None);
    }
    if imports.is_empty() && !keep_list {
        document.remove("imports");
    }
    Ok(Some(document.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish<'static> {
        Wish {
            name: "portcullis",
            main_path: Path::new("/etc/containerd/config.toml"),
            drop_in_path: Path::new("/etc/containerd/conf.d/portcullis.toml"),
            options_path: Path::new("/etc/portcullis/runc-options.toml"),
            systemd_cgroup: None,
            containerd: None,
        }
    }

    fn runtimes<'a>(text: &'a toml::Table, plugin: &str) -> &'a toml::Value {
        &text["plugins"][plugin]["containerd"]["runtimes"]
    }

    #[test]
    fn containerd_1_gets_its_section_again() {
        let main = "# mine\nversion = 2\nroot = \"/data\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  enable_selinux = true # yes\n\
                    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n\
                    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n\
                    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n\
                    [plugins.\"io.containerd.other\"]\n  x = 1\n";
        let handler = Handler::new(Some(main), &wish()).unwrap();
        let text: toml::Table = toml::from_str(&handler.drop_in).unwrap();
        let cri = &text["plugins"]["io.containerd.grpc.v1.cri"];
        assert_eq!(text["version"].as_integer(), Some(2));
        assert_eq!(cri["enable_selinux"].as_bool(), Some(true));
        assert_eq!(cri["cni"]["bin_dir"].as_str(), Some("/usr/lib/cni"));
        let all = runtimes(&text, "io.containerd.grpc.v1.cri");
        assert_eq!(all["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(all["portcullis"]["runtime_type"].as_str(), Some(RUNTIME_TYPE));
        assert_eq!(all["portcullis"]["options"]["ConfigPath"].as_str(), Some("/etc/portcullis/runc-options.toml"));
        assert!(!text["plugins"].as_table().unwrap().contains_key("io.containerd.other"));
        assert_eq!(handler.runc_options.as_deref(), Some("SystemdCgroup = true\n"));
        let main = handler.main.unwrap();
        assert!(main.starts_with("# mine\nversion = 2\nroot = \"/data\"\n"), "{main}");
        assert!(main.contains("imports = [\"/etc/containerd/conf.d/portcullis.toml\"]"), "{main}");
        let again = Handler::new(Some(&main), &wish()).unwrap();
        assert_eq!((again.main, again.drop_in), (None, handler.drop_in));
    }

    #[test]
    fn containerd_1_without_a_section_keeps_its_own_handler() {
        let handler = Handler::new(None, &Wish { containerd: Some(1), ..wish() }).unwrap();
        let text: toml::Table = toml::from_str(&handler.drop_in).unwrap();
        let all = runtimes(&text, "io.containerd.grpc.v1.cri");
        assert_eq!(all["runc"]["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        assert!(!all["portcullis"].as_table().unwrap().contains_key("options"));
        let main: toml::Table = toml::from_str(&handler.main.unwrap()).unwrap();
        assert_eq!(main["version"].as_integer(), Some(2));
    }

    #[test]
    fn containerd_2_merges() {
        let main = "version = 3\nimports = [\"conf.d/*.toml\"]\n\
                    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
        let handler = Handler::new(Some(main), &wish()).unwrap();
        assert_eq!((handler.main, handler.runc_options), (None, None), "it is imported already");
        let text: toml::Table = toml::from_str(&handler.drop_in).unwrap();
        let all = runtimes(&text, "io.containerd.cri.v1.runtime").as_table().unwrap();
        assert_eq!(all.len(), 1, "nothing is repeated");
        assert_eq!(all["portcullis"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(all["portcullis"]["pod_annotations"][0].as_str(), Some("portcullis.dev/*"));
        let other = Handler::new(Some(main), &Wish { systemd_cgroup: Some(false), ..wish() }).unwrap();
        assert!(!other.drop_in.contains("options"));
    }

    #[test]
    fn what_can_not_be_built_upon_is_told() {
        let error = |main: Option<&str>| Handler::new(main, &wish()).unwrap_err().to_string();
        assert!(error(Some("disabled_plugins = []\n")).contains("is of version 1"));
        assert!(error(Some("version = 4\n")).contains("is of version 4"));
        assert!(error(Some("version = \n")).starts_with("/etc/containerd/config.toml: "));
        assert!(error(Some("version = 2\nimports = 3\n")).contains("imports is not a list"));
        assert!(error(None).contains("--containerd-version"));
    }

    #[test]
    fn the_line_goes_as_it_came() {
        let main = "# mine\nversion = 2\n\n[debug]\n  level = \"info\"\n";
        let path = Path::new("/etc/containerd/config.toml");
        let with = Handler::new(Some(main), &wish()).unwrap().main.unwrap();
        let without = |main: &str, keep_list| without_import(main, path, wish().drop_in_path, keep_list).unwrap();
        assert_eq!(without(&with, false).as_deref(), Some(main));
        assert_eq!(without(main, false), None);
        let others = "version = 2\nimports = [\"/a.toml\", \"/etc/containerd/conf.d/portcullis.toml\"]\n";
        assert_eq!(without(others, false).as_deref(), Some("version = 2\nimports = [\"/a.toml\"]\n"));
        // As containerd 2 itself writes it.
        let nothing = "version = 2\nimports = []\n";
        let with = Handler::new(Some(nothing), &wish()).unwrap();
        assert!(with.had_imports);
        assert_eq!(without(&with.main.unwrap(), true).as_deref(), Some(nothing));
    }
}

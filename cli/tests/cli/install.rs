//! A node's root file system in a directory: no agent, no containerd.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use tempfile::TempDir;

use crate::support::*;

const MAIN: &str = "# mine\nversion = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"/usr/lib/cni\"\n";

struct Root {
    node: Node,
    directory: TempDir,
}

impl Root {
    /// With programs to install, and containerd's configuration.
    fn new(main: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = Self { node: Node::new(), directory };
        for program in ["containerd-shim-portcullis-v1", "portcullisd", "portcullis"] {
            root.write(&format!("/new/{program}"), &format!("{program} 1"));
        }
        if let Some(main) = main {
            root.write("/etc/containerd/config.toml", main);
        }
        root
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn run(&self, verb: &[&str]) -> Output {
        let root = self.directory.path().to_str().unwrap();
        self.node.run(&[verb, &["--root", root]].concat())
    }

    fn install(&self, more: &[&str]) -> Output {
        let from = self.at("/new");
        self.run(&[&["install", "--from", from.to_str().unwrap()], more].concat())
    }

    /// Every file below /etc and /usr, with content and mode.
    fn files(&self) -> BTreeMap<PathBuf, (Vec<u8>, u32)> {
        fn collect(directory: &Path, files: &mut BTreeMap<PathBuf, (Vec<u8>, u32)>) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    collect(&path, files);
                } else {
                    let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                    files.insert(path.clone(), (fs::read(path).unwrap(), mode));
                }
            }
        }
        let mut files = BTreeMap::new();
        for path in ["/etc", "/usr"] {
            collect(&self.at(path), &mut files);
        }
        files
    }
}

fn succeeded(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    stdout(output)
}

#[test]
fn a_dry_run_shows_and_changes_nothing() {
    let root = Root::new(Some(MAIN));
    let before = root.files();
    let text = succeeded(&root.install(&["--dry-run"]));
    assert!(text.contains("+imports = [\"/etc/containerd/conf.d/portcullis.toml\"]"), "{text}");
    assert!(text.contains("+runtime_type = \"io.containerd.portcullis.v1\""), "{text}");
    assert!(text.contains("nothing was changed"), "{text}");
    assert_eq!(root.files(), before);
}

#[test]
fn twice_is_once_and_uninstall_undoes_it() {
    let root = Root::new(Some(MAIN));
    let before = root.files();
    let text = succeeded(&root.install(&[]));
    assert!(text.contains("created") && text.contains("next: systemctl daemon-reload"), "{text}");
    assert_eq!(root.read("/usr/local/bin/portcullisd"), "portcullisd 1");
    let unit = root.read("/etc/systemd/system/portcullisd.service");
    assert!(unit.contains("\nExecStart=/usr/local/bin/portcullisd\n"), "{unit}");
    let mode = fs::metadata(root.at("/usr/local/bin/portcullis")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert!(root.read("/etc/containerd/config.toml").starts_with("# mine\nversion = 2\n"));
    assert!(root.read("/etc/containerd/conf.d/portcullis.toml").contains("bin_dir = \"/usr/lib/cni\""));
    let installed = root.files();
    let text = succeeded(&root.install(&[]));
    assert!(!text.contains("created") && !text.contains("replaced") && !text.contains("next:"), "{text}");
    assert_eq!(root.files(), installed);
    succeeded(&root.run(&["uninstall", "--dry-run"]));
    assert_eq!(root.files(), installed);
    succeeded(&root.run(&["uninstall"]));
    assert_eq!(root.files(), before);
    assert!(!root.at("/etc/containerd/conf.d").exists());
    let again = root.run(&["uninstall"]);
    assert_eq!(again.status.code(), Some(0));
    assert!(stderr(&again).contains("nothing to undo"), "{}", stderr(&again));
}

#[test]
fn a_node_whose_agent_is_a_pod_gets_the_runtime_alone() {
    let root = Root::new(Some(MAIN));
    fs::remove_file(root.at("/new/portcullisd")).unwrap();
    let before = root.files();
    let text = succeeded(&root.install(&["--runtime-only"]));
    assert!(text.contains("restart containerd") && !text.contains("portcullisd"), "{text}");
    let added: Vec<_> = root.files().into_keys().filter(|path| !before.contains_key(path)).collect();
    let wanted = [
        "/etc/containerd/conf.d/portcullis.toml",
        "/etc/portcullis/install.json",
        "/usr/local/bin/containerd-shim-portcullis-v1",
        "/usr/local/bin/portcullis",
    ];
    assert_eq!(added, wanted.map(|path| root.at(path)));
    // What containerd and people on the node read has no trace of where its root is mounted.
    assert!(!root.read("/etc/containerd/config.toml").contains(root.directory.path().to_str().unwrap()));
    assert!(!root.read("/etc/portcullis/install.json").contains(root.directory.path().to_str().unwrap()));
    succeeded(&root.run(&["uninstall"]));
    assert_eq!(root.files(), before);
}

#[test]
fn what_the_operator_has_edited_stays() {
    let root = Root::new(Some(MAIN));
    root.write("/etc/portcullis/policies/default.yaml", "mine");
    succeeded(&root.install(&[]));
    assert_eq!(root.read("/etc/portcullis/policies/default.yaml"), "mine");
    root.write("/etc/portcullis/portcullis.toml", "backend = \"lsm\"\n");
    root.write("/new/portcullisd", "portcullisd 2");
    let main = root.read("/etc/containerd/config.toml").replace("/usr/lib/cni", "/opt/cni");
    root.write("/etc/containerd/config.toml", &main);
    let text = succeeded(&root.install(&[]));
    assert!(text.contains("replaced"), "{text}");
    assert_eq!(root.read("/usr/local/bin/portcullisd"), "portcullisd 2");
    assert!(root.read("/etc/containerd/conf.d/portcullis.toml").contains("bin_dir = \"/opt/cni\""));
    let output = root.run(&["uninstall"]);
    succeeded(&output);
    assert!(stderr(&output).contains("portcullis.toml was edited and stays"), "{}", stderr(&output));
    assert_eq!(root.read("/etc/portcullis/policies/default.yaml"), "mine");
    assert!(root.at("/etc/portcullis/portcullis.toml").exists());
    assert!(!root.at("/usr/local/bin/portcullisd").exists());
    assert!(!root.read("/etc/containerd/config.toml").contains("imports"));
}

#[test]
fn an_edited_handler_stays_until_it_is_to_be_overwritten() {
    const DROP_IN: &str = "/etc/containerd/conf.d/portcullis.toml";
    let root = Root::new(Some(MAIN));
    succeeded(&root.install(&[]));
    let written = root.read(DROP_IN);
    // Nobody has edited it: it follows the main file.
    root.write("/etc/containerd/config.toml", &MAIN.replace("/usr/lib/cni", "/opt/cni/bin"));
    let again = root.install(&[]);
    assert!(succeeded(&again).contains("replaced") && !stderr(&again).contains("edited"), "{}", stderr(&again));
    assert!(root.read(DROP_IN).contains("/opt/cni/bin"));
    let edited = written + "# mine\n";
    root.write(DROP_IN, &edited);
    for option in [&[][..], &["--dry-run"]] {
        let kept = root.install(option);
        succeeded(&kept);
        assert!(stderr(&kept).contains(&format!("{DROP_IN} was edited and stays")), "{}", stderr(&kept));
        assert_eq!(root.read(DROP_IN), edited);
    }
    let shown = succeeded(&root.install(&["--overwrite", "--dry-run"]));
    assert!(shown.contains("-# mine"), "{shown}");
    succeeded(&root.run(&["uninstall"]));
    assert_eq!(root.read(DROP_IN), edited, "what is the operator's goes with nobody else");
    assert!(!root.read("/etc/containerd/config.toml").contains("imports"));
    succeeded(&root.install(&["--overwrite"]));
    assert!(!root.read(DROP_IN).contains("# mine"));
    succeeded(&root.run(&["uninstall"]));
    assert!(!root.at(DROP_IN).exists());
}

#[test]
fn beside_a_package_only_containerd_is_told() {
    let root = Root::new(Some(MAIN));
    root.write("/usr/lib/systemd/system/portcullisd.service", "the package's");
    let main = root.at("/etc/containerd/config.toml");
    fs::set_permissions(&main, fs::Permissions::from_mode(0o600)).unwrap();
    let before = root.files();
    assert!(stderr(&root.install(&[])).contains("leave out --from"));
    let text = succeeded(&root.run(&["install"]));
    assert!(text.contains("restart containerd") && !text.contains("daemon-reload"), "{text}");
    assert!(root.at("/etc/containerd/conf.d/portcullis.toml").exists());
    assert!(!root.at("/usr/local/bin").exists() && !root.at("/etc/portcullis/portcullis.toml").exists());
    assert_eq!(fs::metadata(&main).unwrap().permissions().mode() & 0o7777, 0o600, "there may be secrets in it");
    assert!(succeeded(&root.run(&["install"])).contains("nothing to do"));
    let text = succeeded(&root.run(&["uninstall"]));
    assert!(!text.contains("systemctl stop"), "{text}");
    assert_eq!(root.files(), before);
    assert!(!root.at("/etc/containerd/conf.d").exists());
}

#[test]
fn no_container_is_left_without_its_shim() {
    let root = Root::new(Some(MAIN));
    succeeded(&root.install(&[]));
    let installed = root.files();
    let bundle = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/web";
    root.write(&format!("{bundle}/shim-binary-path"), "/usr/local/bin/containerd-shim-portcullis-v1");
    let output = root.run(&["uninstall"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("1 containers run under the shim") && stderr(&output).contains("k8s.io/web"));
    assert_eq!(root.files(), installed);
}

#[test]
fn what_is_missing_is_named_before_anything_is_written() {
    let root = Root::new(Some(MAIN));
    fs::remove_file(root.at("/new/portcullisd")).unwrap();
    let before = root.files();
    let output = root.install(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("new/portcullisd: say --from DIR"), "{}", stderr(&output));
    let old = Root::new(Some("disabled_plugins = []\n"));
    assert!(stderr(&old.install(&[])).contains("containerd config migrate"));
    assert_eq!(root.files(), before);
    assert_eq!(root.install(&["--handler", "a b"]).status.code(), Some(2));
    let json = Root::new(None);
    let output = json.install(&["--containerd-version", "2", "-o", "json"]);
    let outcome: serde_json::Value = serde_json::from_str(&succeeded(&output)).unwrap();
    assert_eq!(outcome["files"][0]["change"], "created");
    assert!(json.read("/etc/containerd/config.toml").contains("version = 3"));
}

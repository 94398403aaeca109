//! `install` and `uninstall`: the programs, their unit and configuration, and the runtime handler in containerd's configuration.
//!
//! | module | idea |
//! |---|---|
//! | [`changes`] | a file's change, planned, shown or made |
//! | [`handler`] | containerd's configuration |
//! | [`manifest`] | what was put where |
//!
//! Everything is planned before anything is written, so that `--dry-run` shows just what would be done. Neither verb restarts
//! anything: what to do next is told.

mod changes;
mod handler;
mod manifest;

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::Serialize;

use self::{
    changes::{Change, Wanted},
    handler::{Handler, Wish},
    manifest::{Installed, Manifest},
};
use crate::{
    args::Global,
    check::{
        containerd::{self, some_of},
        local::SHIM,
        unit,
    },
    escape, exit,
    output::{self, Format, Tone},
};

/// The programs; all must be there.
const PROGRAMS: [&str; 3] = [SHIM, "portcullis", "portcullisd"];
/// Those that a node needs whose agent is a pod.
const RUNTIME_PROGRAMS: [&str; 2] = [SHIM, "portcullis"];
/// Below the root. Ours, replaced by each installation.
const UNIT: (&str, &str) =
    ("/etc/systemd/system/portcullisd.service", include_str!("../../../config/systemd/portcullisd.service"));
/// Below the root. The operator's: written if they are missing.
const EDITABLE: [(&str, &str); 2] = [
    ("/etc/portcullis/portcullis.toml", include_str!("../../../config/portcullis.toml")),
    ("/etc/portcullis/policies/default.yaml", include_str!("../../../config/policies/default.yaml")),
];
/// What is next for the agent, and for containerd.
const NEXT_AGENT: [&str; 2] = [
    "systemctl daemon-reload && systemctl enable --now portcullisd",
    "systemctl restart portcullisd   # if it ran before",
];
const NEXT_CONTAINERD: [&str; 2] = ["systemctl restart containerd    # containers go on running", "portcullis check"];
const PREFIX: &str = "/usr/local";
const RUNC_OPTIONS: &str = "/etc/portcullis/runc-options.toml";

/// Put Portcullis on this node
///
/// The programs go below the prefix, the agent's unit into /etc/systemd/system, its configuration and the default policy into
/// /etc/portcullis (if there is none yet), and a file with the runtime handler beside containerd's configuration, which gets
/// a line that imports it. Running it again changes only what differs. Nothing is started or restarted; what to do next is
/// told. Where a package has put programs, unit and configuration in, only containerd's part is done. The file with the handler
/// stays as it is if it was edited since, which is told.
#[derive(Debug, clap::Args)]
pub struct Install {
    #[command(flatten)]
    place: Place,
    /// Where the programs are; by default beside this one
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// The programs' place is bin below this; it must be in containerd's PATH
    #[arg(long, value_name = "DIR", default_value = PREFIX)]
    prefix: PathBuf,
    /// The runtime handler's name
    #[arg(long, value_name = "NAME", default_value = "portcullis", value_parser = handler_name)]
    handler: String,
    /// containerd's configuration, below the root
    #[arg(long, value_name = "PATH", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// containerd's major version, needed only if it has no configuration and can't be asked
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=2))]
    containerd_version: Option<u32>,
    /// Whether kubelet uses the systemd cgroup driver; auto: as containerd's handler runc says
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    systemd_cgroup: Choice,
    /// Only the shim, this program and the handler: the agent runs elsewhere, in a DaemonSet for example, and has its
    /// configuration there
    #[arg(long)]
    runtime_only: bool,
    /// Write the file with the handler anew even if it was edited
    #[arg(long)]
    overwrite: bool,
}

/// Undo what `install` has done
///
/// Files that were edited since stay. It is refused while containers run under the shim: without it containerd could neither
/// end nor delete them.
#[derive(Debug, clap::Args)]
pub struct Uninstall {
    #[command(flatten)]
    place: Place,
    /// containerd's state directory, where running containers are looked for, below the root
    #[arg(long, value_name = "DIR", default_value = "/run/containerd")]
    containerd_state: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The node's root file system, for one that is mounted elsewhere
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// `--systemd-cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    Auto,
    Always,
    Never,
}

/// What `-o json` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    dry_run: bool,
    files: Vec<FileOutcome>,
    next: Vec<String>,
}

#[derive(Debug, Serialize)]
struct FileOutcome {
    path: String,
    change: &'static str,
}

/// A file of the installation on its way.
struct File {
    path: PathBuf,
    bytes: Vec<u8>,
    mode: u32,
    theirs: Theirs,
}

/// What of a file is the operator's, and stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Theirs {
    /// Nothing of it.
    Nothing,
    /// What was edited since it was written here; who has not edited it gets what a newer version writes.
    Edits,
    /// All of it, once it is there.
    All,
}

/// A bare key of TOML that is also a name for Kubernetes.
fn handler_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 63 || !name.chars().all(fits) || name == "runc" {
        return Err("a handler's name has lower-case letters, digits and -, and is not runc".to_owned());
    }
    Ok(name.to_owned())
}

impl Place {
    /// A path of the node as seen from here.
    fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn read(&self, path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.at(path);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {} (run this as root)", path.display())),
        }
    }

    fn read_text(&self, path: &Path) -> anyhow::Result<Option<String>> {
        let bytes = self.read(path)?;
        bytes.map(|bytes| String::from_utf8(bytes).with_context(|| format!("{}", path.display()))).transpose()
    }

    /// The permission bits of a file that is somebody else's: there may be secrets in it.
    fn mode(&self, path: &Path) -> u32 {
        fs::metadata(self.at(path)).map_or(0o644, |metadata| metadata.permissions().mode() & 0o7777)
    }

    /// Whether programs, unit and configuration are a package's: then only containerd's part is left to do.
    fn is_packaged(&self) -> bool {
        unit::PACKAGED.iter().any(|path| self.at(Path::new(path)).exists())
    }

    fn manifest(&self) -> anyhow::Result<Option<Manifest>> {
        let Some(bytes) = self.read(Path::new(manifest::PATH))? else { return Ok(None) };
        let read = serde_json::from_slice(&bytes);
        Ok(Some(read.with_context(|| {
            format!("{}: remove it and install again", self.at(Path::new(manifest::PATH)).display())
        })?))
    }

    /// Shows the changes or makes them, and tells what is next.
    fn carry_out(&self, changes: &[Change], next: Vec<String>, global: &Global) -> anyhow::Result<()> {
        if !self.dry_run {
            changes.iter().try_for_each(Change::apply)?;
        }
        let changed = changes.iter().any(Change::is_needed);
        let next = if changed { next } else { Vec::new() };
        let mut out = io::stdout().lock();
        if matches!(global.output, Format::Json | Format::Yaml) {
            let file = |change: &Change| FileOutcome { path: change.path.display().to_string(), change: change.word() };
            let outcome = Outcome { dry_run: self.dry_run, files: changes.iter().map(file).collect(), next };
            match global.output {
                Format::Yaml => output::yaml(&mut out, &outcome)?,
                _ => output::json(&mut out, &outcome)?,
            }
            return Ok(());
        }
        let screen = global.screen();
        let mut tell = |text: &str| io::Write::write_all(&mut out, text.as_bytes());
        for change in changes {
            let tone = if change.is_needed() { Tone::Title } else { Tone::Plain };
            let word = screen.paint(tone, &format!("{:9}", change.word()));
            tell(&format!("{word} {}\n", escape::text(&change.path.display().to_string())))?;
            if self.dry_run && change.is_needed() {
                tell(&change.diff(screen))?;
            }
        }
        if !changed {
            tell("nothing to do\n")?;
        }
        if self.dry_run && changed {
            tell("nothing was changed (--dry-run)\n")?;
        }
        for (index, step) in next.iter().enumerate() {
            tell(&format!("{}{step}\n", if index == 0 { "next: " } else { "      " }))?;
        }
        Ok(())
    }
}

impl Install {
    /// Plans, and carries it out.
    pub fn run(&self, global: &Global) -> anyhow::Result<()> {
        let options_path = Path::new(RUNC_OPTIONS);
        let conf_d = self.containerd_config.parent().unwrap_or(Path::new("/")).join("conf.d");
        let drop_in_path = conf_d.join("portcullis.toml");
        let main = self.place.read_text(&self.containerd_config)?;
        let wish = Wish {
            name: &self.handler,
            main_path: &self.containerd_config,
            drop_in_path: &drop_in_path,
            options_path,
            systemd_cgroup: match self.systemd_cgroup {
                Choice::Auto => None,
                choice => Some(choice == Choice::Always),
            },
            containerd: self.containerd_version.or_else(containerd_version),
        };
        let handler = Handler::new(main.as_deref(), &wish)?;

        let packaged = self.place.is_packaged();
        if packaged && (self.from.is_some() || self.prefix != Path::new(PREFIX)) {
            bail!("the programs here are a package's: leave out --from and --prefix, or remove the package first");
        }
        let mut files = if packaged { Vec::new() } else { self.programs()? };
        let text = |path: &str, text: &str, theirs| File {
            path: path.into(),
            bytes: text.as_bytes().to_vec(),
            mode: 0o644,
            theirs,
        };
        if !packaged && !self.runtime_only {
            let agent = format!("ExecStart={}", self.prefix.join("bin/portcullisd").display());
            files.push(text(UNIT.0, &UNIT.1.replace("ExecStart=portcullisd", &agent), Theirs::Nothing));
            files.extend(EDITABLE.map(|(path, content)| text(path, content, Theirs::All)));
        }
        if let Some(options) = &handler.runc_options {
            files.push(text(RUNC_OPTIONS, options, Theirs::All));
        }
        let drop_in = drop_in_path.display().to_string();
        files.push(text(&drop_in, &handler.drop_in, Theirs::Edits));

        let before = self.place.manifest()?.unwrap_or_default();
        let had_imports = if handler.main.is_some() { handler.had_imports } else { before.had_imports };
        let imported_by = handler.main.as_ref().map(|_| self.containerd_config.clone()).or(before.imported_by);
        let mut manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            files: before.files,
            drop_in: imported_by.is_some().then(|| drop_in_path.clone()),
            imported_by,
            had_imports,
        };
        let mut changes = Vec::new();
        for file in files {
            // What the operator has edited, or had before, stays.
            let kept = self.place.read(&file.path)?.filter(|found| match file.theirs {
                Theirs::Nothing => false,
                Theirs::Edits => !self.overwrite && *found != file.bytes && !manifest.has_written(&file.path, found),
                Theirs::All => true,
            });
            if kept.is_some() && file.theirs == Theirs::Edits {
                exit::note(&format!(
                    "{} was edited and stays; --overwrite writes it anew, and with --dry-run shows what is lost then",
                    escape::text(&file.path.display().to_string())
                ));
            }
            if kept.is_none() {
                manifest.files.retain(|installed| installed.path != file.path);
                manifest.files.push(Installed::new(&file.path, &file.bytes, file.theirs != Theirs::Nothing));
            }
            let mode = if kept.is_some() { self.place.mode(&file.path) } else { file.mode };
            let wanted = Wanted::Content { bytes: kept.unwrap_or(file.bytes), mode };
            changes.push(Change::plan(&self.place.at(&file.path), wanted)?);
        }
        if let Some(main) = handler.main {
            let mode = self.place.mode(&self.containerd_config);
            let wanted = Wanted::Content { bytes: main.into_bytes(), mode };
            changes.push(Change::plan(&self.place.at(&self.containerd_config), wanted)?);
        }
        manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut bytes = serde_json::to_vec_pretty(&manifest).context("writing down what is installed")?;
        bytes.push(b'\n');
        // First, so that an installation that is cut short can be undone.
        let wanted = Wanted::Content { bytes, mode: 0o644 };
        changes.insert(0, Change::plan(&self.place.at(Path::new(manifest::PATH)), wanted)?);

        // A package's scripts, or a pod, see to the agent.
        let agent = NEXT_AGENT.iter().filter(|_| !packaged && !self.runtime_only);
        let next = agent.chain(&NEXT_CONTAINERD).map(|step| (*step).to_owned()).collect();
        self.place.carry_out(&changes, next, global)
    }

    fn programs(&self) -> anyhow::Result<Vec<File>> {
        let beside = || Ok(env::current_exe()?.parent().unwrap_or(Path::new("/")).to_owned());
        let from: anyhow::Result<PathBuf> = self.from.clone().map_or_else(beside, Ok);
        let from = from.context("finding the programs: say --from DIR")?;
        let program = |name: &&str| {
            let path = from.join(name);
            let bytes = fs::read(&path)
                .with_context(|| format!("reading {}: say --from DIR, where all programs are", path.display()))?;
            Ok(File { path: self.prefix.join("bin").join(name), bytes, mode: 0o755, theirs: Theirs::Nothing })
        };
        let programs = if self.runtime_only { &RUNTIME_PROGRAMS[..] } else { &PROGRAMS[..] };
        programs.iter().map(program).collect()
    }
}

impl Uninstall {
    /// Plans, and carries it out.
    pub fn run(&self, global: &Global) -> anyhow::Result<()> {
        let running = containerd::guarded(&self.place.at(&self.containerd_state));
        if !running.is_empty() {
            bail!(
                "{} containers run under the shim, and without it containerd could not end them: {}; delete them first",
                running.len(),
                some_of(&running)
            );
        }
        // Those of a containerd that keeps its state elsewhere.
        let shims = if self.place.root == Path::new("/") { containerd::shims() } else { Vec::new() };
        if !shims.is_empty() {
            let pids: Vec<_> = shims.iter().map(u32::to_string).collect();
            bail!("shims run, and containers under them (pids {}); delete these first", some_of(&pids));
        }
        let Some(manifest) = self.place.manifest()? else {
            exit::note("nothing is installed by this command: there is nothing to undo");
            return Ok(());
        };
        let mut changes = Vec::new();
        // First the line that imports: containerd does not start if what it imports is missing.
        if let (Some(main_path), Some(drop_in)) = (&manifest.imported_by, &manifest.drop_in)
            && let Some(main) = self.place.read_text(main_path)?
            && let Some(text) = handler::without_import(&main, main_path, drop_in, manifest.had_imports)?
        {
            let wanted = Wanted::Content { bytes: text.into_bytes(), mode: self.place.mode(main_path) };
            changes.push(Change::plan(&self.place.at(main_path), wanted)?);
        }
        for installed in &manifest.files {
            let found = self.place.read(&installed.path)?;
            if installed.editable && found.is_some_and(|bytes| !installed.is(&bytes)) {
                exit::note(&format!("{} was edited and stays", escape::text(&installed.path.display().to_string())));
                continue;
            }
            changes.push(Change::plan(&self.place.at(&installed.path), Wanted::Nothing)?);
        }
        changes.push(Change::plan(&self.place.at(Path::new(manifest::PATH)), Wanted::Nothing)?);
        let mut next = vec!["systemctl restart containerd    # which then offers the handler no longer".to_owned()];
        if !self.place.is_packaged() {
            next.push("systemctl stop portcullisd; systemctl daemon-reload".to_owned());
            let pins =
                "rm -r /sys/fs/bpf/portcullis /run/portcullis   # what is pinned; /var/lib/portcullis has the signals";
            next.push(pins.to_owned());
        }
        self.place.carry_out(&changes, next, global)?;
        if let Some(conf_d) = manifest.drop_in.as_deref().and_then(Path::parent).filter(|_| !self.place.dry_run) {
            // Only if nothing else is in there.
            let _ = fs::remove_dir(self.place.at(conf_d));
        }
        Ok(())
    }
}

/// The major version of the containerd that would be started here.
fn containerd_version() -> Option<u32> {
    let output = Command::new("containerd").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(2)?.trim_start_matches('v');
    version.split('.').next()?.parse().ok()
}

//! The configuration file: one struct a section, every value checked where it is read.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs, io, iter,
    net::SocketAddr,
    num::NonZeroU32,
    ops::Deref,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tonic::{
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::Endpoint,
};

use crate::certificate;

/// Environment variable with the node's name: of many nodes with one file, as in Kubernetes, each has its own.
pub const NODE_NAME: &str = "PORTCULLIS_NODE_NAME";
/// Environment variable with the cluster's name.
pub const CLUSTER_NAME: &str = "PORTCULLIS_CLUSTER_NAME";

/// Read when `--config` is not given; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/portcullis/portcullis.toml";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Shared with shims and clients.
    pub run_dir: AbsolutePath,
    /// Where programs, maps and links are pinned.
    pub bpffs_root: AbsolutePath,
    /// The database's directory.
    pub state_dir: AbsolutePath,
    /// The operator's policies.
    pub policy_dir: AbsolutePath,
    /// More of them, which the API does not write to.
    pub more_policy_dirs: Vec<AbsolutePath>,
    /// What the operator adds to the catalogue.
    pub catalog_dir: AbsolutePath,
    /// Which backend.
    pub backend: BackendChoice,
    /// What signals call this node; the host's name unless told. [`NODE_NAME`] in the environment goes before it.
    pub node_name: Option<Name>,
    /// And its cluster. [`CLUSTER_NAME`] in the environment goes before it.
    pub cluster_name: Option<Name>,
    /// See [`Socket`].
    pub socket: Socket,
    /// See [`Shim`].
    pub shim: Shim,
    /// See [`Signals`].
    pub signals: Signals,
    /// See [`Log`].
    pub log: Log,
    /// See [`Export`].
    pub export: Export,
    /// See [`Metrics`].
    pub metrics: Metrics,
    /// See [`Tcp`]. Unset: the API is on its socket alone.
    pub tcp: Option<Tcp>,
    /// See [`Sandbox`].
    pub sandbox: Sandbox,
}

/// `backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// LSM where the kernel offers it.
    Auto,
    /// LSM or nothing.
    Lsm,
    /// The tracepoint, even where LSM would work.
    Tracepoint,
}

/// `[socket]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Socket {
    /// Who besides root may connect.
    pub group: Option<String>,
}

/// `[shim]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shim {
    /// The stock shim.
    pub inner: InnerShim,
}

/// `[signals]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Signals {
    /// Retention by age.
    pub max_age_days: NonZeroU32,
    /// Retention by size of the database.
    pub max_size_mb: NonZeroU32,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
}

/// `log.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[export]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Export {
    /// See [`Jsonl`]. Unset: there is no such file.
    pub jsonl: Option<Jsonl>,
    /// See [`Otlp`]. Unset: nothing is sent.
    pub otlp: Option<Otlp>,
}

/// `[export.jsonl]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jsonl {
    /// The file.
    pub path: AbsolutePath,
    /// Size at which a new one is begun.
    #[serde(default = "jsonl_size")]
    pub max_size_mb: NonZeroU32,
    /// Former files that are kept.
    #[serde(default = "jsonl_keep")]
    pub keep: u8,
}

fn jsonl_size() -> NonZeroU32 {
    const { NonZeroU32::new(64) }.unwrap_or(NonZeroU32::MIN)
}

const fn jsonl_keep() -> u8 {
    4
}

/// `[export.otlp]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Otlp {
    /// The collector's gRPC address.
    pub endpoint: Collector,
    /// Sent with each request.
    #[serde(default)]
    pub headers: Headers,
    /// How long a request may take.
    #[serde(default = "otlp_timeout")]
    pub timeout_seconds: NonZeroU32,
}

fn otlp_timeout() -> NonZeroU32 {
    const { NonZeroU32::new(10) }.unwrap_or(NonZeroU32::MIN)
}

/// `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Collector(String);

impl TryFrom<String> for Collector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.starts_with("https:") {
            return Err(
                "https is not spoken: send to a collector on this node by http, which may send on by https".into()
            );
        }
        let collector = Self(text);
        let endpoint = collector.endpoint().map_err(|error| format!("{:?} is no address: {error}", collector.0))?;
        match endpoint.uri().scheme_str() {
            Some("http") => Ok(collector),
            _ => Err(format!("{:?} is not of the form http://HOST:PORT", collector.0)),
        }
    }
}

impl Collector {
    /// To connect to.
    pub fn endpoint(&self) -> Result<Endpoint, tonic::transport::Error> {
        Endpoint::from_shared(self.0.clone())
    }
}

/// Names and values that can be sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>")]
pub struct Headers(Vec<(String, String)>);

fn header(name: &str, value: &str) -> Result<(AsciiMetadataKey, AsciiMetadataValue), String> {
    let key =
        name.parse().map_err(|_| format!("{name:?} can't be a header's name: lower case letters, digits, -, _"))?;
    // Not the value: it may be a secret.
    let value = value.is_ascii().then(|| value.parse().ok()).flatten();
    Ok((key, value.ok_or_else(|| format!("the value of the header {name:?} is not plain ASCII"))?))
}

impl TryFrom<BTreeMap<String, String>> for Headers {
    type Error = String;

    fn try_from(headers: BTreeMap<String, String>) -> Result<Self, String> {
        for (name, value) in &headers {
            header(name, value)?;
        }
        Ok(Self(headers.into_iter().collect()))
    }
}

impl Headers {
    /// As gRPC sends them.
    pub fn metadata(&self) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in self.0.iter().filter_map(|(name, value)| header(name, value).ok()) {
            map.insert(key, value);
        }
        map
    }
}

/// `[metrics]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where Prometheus finds them. Unset: nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[tcp]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TcpSection")]
pub struct Tcp {
    /// Where the API is served by mutual TLS.
    pub listen: SocketAddr,
    /// The agent's certificate, and those between it and what its clients trust.
    pub certificate: AbsolutePath,
    /// Its key.
    pub key: AbsolutePath,
    /// Whom clients' certificates are signed by.
    pub client_ca: AbsolutePath,
    /// Whose certificates may make the calls that change nothing.
    pub read: Vec<certificate::Name>,
    /// And whose all.
    pub admin: Vec<certificate::Name>,
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TcpSection {
    listen: SocketAddr,
    certificate: AbsolutePath,
    key: AbsolutePath,
    client_ca: AbsolutePath,
    #[serde(default)]
    read: Vec<certificate::Name>,
    #[serde(default)]
    admin: Vec<certificate::Name>,
}

impl TryFrom<TcpSection> for Tcp {
    type Error = String;

    fn try_from(section: TcpSection) -> Result<Self, String> {
        let TcpSection { listen, certificate, key, client_ca, read, admin } = section;
        if read.is_empty() && admin.is_empty() {
            return Err("neither read nor admin names a certificate: nobody could call".to_owned());
        }
        if let Some(name) = read.iter().find(|name| admin.contains(name)) {
            return Err(format!("{:?} is in both read and admin: an administrator may read", name.to_string()));
        }
        Ok(Self { listen, certificate, key, client_ca, read, admin })
    }
}

/// `[sandbox]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sandbox {
    /// What comes of system calls of the agent that its profile does not name.
    pub seccomp: Seccomp,
}

/// `sandbox.seccomp`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// They are refused and counted.
    #[default]
    Enforce,
    /// They are made, and the kernel logs them.
    Log,
    /// They are made.
    Off,
}

/// What a node or a cluster is called. It is part of every signal, and of the ids of exported findings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

/// As for a name in DNS, which Kubernetes takes for nodes.
const NAME_MAX: usize = 253;

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        if name.is_empty() || name.len() > NAME_MAX {
            Err(format!("a name has 1 to {NAME_MAX} bytes, not {}", name.len()))
        } else if name.chars().any(|character| character.is_control() || character == '/') {
            Err(format!("the name {name:?} has a control character or a slash in it"))
        } else {
            Ok(Self(name))
        }
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A path that means the same whatever the working directory is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct AbsolutePath(PathBuf);

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() { Ok(Self(path)) } else { Err(format!("{} is not an absolute path", path.display())) }
    }
}

impl Deref for AbsolutePath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// A name for `PATH` to resolve, or an absolute path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct InnerShim(PathBuf);

impl TryFrom<PathBuf> for InnerShim {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        let is_name = path.file_name().is_some_and(|name| name == path.as_os_str());
        if is_name || path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(format!("{:?} is neither a program's name nor an absolute path", path.display().to_string()))
        }
    }
}

impl Deref for InnerShim {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            run_dir: AbsolutePath("/run/portcullis".into()),
            bpffs_root: AbsolutePath("/sys/fs/bpf/portcullis".into()),
            state_dir: AbsolutePath("/var/lib/portcullis".into()),
            policy_dir: AbsolutePath("/etc/portcullis/policies".into()),
            more_policy_dirs: Vec::new(),
            catalog_dir: AbsolutePath("/etc/portcullis/catalog.d".into()),
            backend: BackendChoice::Auto,
            node_name: None,
            cluster_name: None,
            socket: Socket::default(),
            shim: Shim::default(),
            signals: Signals::default(),
            log: Log::default(),
            export: Export::default(),
            metrics: Metrics::default(),
            tcp: None,
            sandbox: Sandbox::default(),
        }
    }
}

impl Default for Shim {
    fn default() -> Self {
        Self { inner: InnerShim("containerd-shim-runc-v2".into()) }
    }
}

impl Default for Signals {
    fn default() -> Self {
        let (days, megabytes) = const { (NonZeroU32::new(30), NonZeroU32::new(512)) };
        Self { max_age_days: days.unwrap_or(NonZeroU32::MIN), max_size_mb: megabytes.unwrap_or(NonZeroU32::MIN) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The environment says something that makes no sense.
    #[error("environment variable {variable}: {reason}")]
    Environment {
        /// Which variable.
        variable: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The file says something that makes no sense.
    #[error("{}:{line}:{column}: {reason}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What is wrong.
        reason: String,
    },
}

impl Config {
    /// All directories of policies, that of the API first.
    pub fn policy_dirs(&self) -> Vec<&Path> {
        iter::once(&self.policy_dir).chain(&self.more_policy_dirs).map(|directory| &**directory).collect()
    }

    /// Reads the file that `--config` names, or the default one if it exists.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        let config = match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Self::default(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        config.with_environment(|variable| env::var_os(variable))
    }

    /// What the environment says goes before what the file says. An empty variable says nothing: so a chart can always set it.
    fn with_environment(mut self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        for (name, value) in [(NODE_NAME, &mut self.node_name), (CLUSTER_NAME, &mut self.cluster_name)] {
            let Some(given) = variable(name).filter(|given| !given.is_empty()) else { continue };
            let invalid = |reason| ConfigError::Environment { variable: name, reason };
            let given = given.into_string().map_err(|given| invalid(format!("{} is not UTF-8", given.display())))?;
            *value = Some(Name::try_from(given).map_err(invalid)?);
        }
        Ok(self)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            ConfigError::Invalid {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
                reason: error.message().to_owned(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../config/portcullis.toml");

    fn error(text: &str) -> String {
        Config::parse(Path::new("p.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn shipped_file_holds_the_defaults() {
        assert_eq!(Config::parse(Path::new("p.toml"), SHIPPED).unwrap(), Config::default());
        assert_eq!(Config::parse(Path::new("p.toml"), "").unwrap(), Config::default());
    }

    #[test]
    fn shipped_file_names_every_key() {
        for key in [
            "run_dir",
            "bpffs_root",
            "state_dir",
            "policy_dir",
            "more_policy_dirs",
            "catalog_dir",
            "backend",
            "inner",
            "format",
            "seccomp",
        ]
        .into_iter()
        .chain(["# group", "max_age_days", "max_size_mb", "# node_name", "# cluster_name", "# listen"])
        .chain(["# path", "# max_size_mb", "# keep", "# endpoint", "# headers", "# timeout_seconds"])
        .chain(["# certificate", "# key", "# client_ca", "# read", "# admin"])
        {
            assert!(SHIPPED.lines().any(|line| line.starts_with(&format!("{key} = "))), "{key}");
        }
    }

    #[test]
    fn errors_name_the_place_and_the_reason() {
        assert!(error("run_dir = \"/r\"\nrundir = \"/x\"\n").starts_with("p.toml:2:1: unknown field `rundir`"));
        let relative = error("\nstate_dir = \"state\"\n");
        assert_eq!(relative, "p.toml:2:13: state is not an absolute path");
        let zero = error("[signals]\nmax_age_days = 0\n");
        assert!(zero.starts_with("p.toml:2:16: ") && zero.contains("nonzero"), "{zero}");
        let backend = error("backend = \"ebpf\"\n");
        assert!(backend.contains("auto") && backend.starts_with("p.toml:1:11: "), "{backend}");
        assert!(error("[shim]\ninner = \"bin/shim\"\n").contains("neither"));
        assert!(error("[log\n").starts_with("p.toml:1:"));
    }

    #[test]
    fn what_the_shipped_file_proposes_makes_sense() {
        let proposed: Vec<_> = SHIPPED.lines().filter_map(|line| line.strip_prefix("# ")).collect();
        let begin = proposed.iter().position(|line| *line == "[export.jsonl]").unwrap();
        let proposed = proposed[begin..].iter().copied().take_while(|line| !line.starts_with("listen"));
        let proposed = proposed.filter(|line| line.starts_with('[') || line.contains(" = "));
        let config = Config::parse(Path::new("p.toml"), &proposed.collect::<Vec<_>>().join("\n")).unwrap();
        let (jsonl, otlp) = (config.export.jsonl.unwrap(), config.export.otlp.unwrap());
        assert_eq!((jsonl.max_size_mb, jsonl.keep, otlp.timeout_seconds), (jsonl_size(), jsonl_keep(), otlp_timeout()));
        assert!(!otlp.headers.metadata().is_empty());
        let (_, tcp) = SHIPPED.split_once("# [tcp]").unwrap();
        let tcp = tcp.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| line.contains(" = "));
        let tcp = format!("[tcp]\n{}", tcp.collect::<Vec<_>>().join("\n"));
        assert_eq!(Config::parse(Path::new("p.toml"), &tcp).unwrap().tcp.unwrap().admin.len(), 2);
    }

    #[test]
    fn a_collectors_address_and_headers_are_checked() {
        let otlp = |rest: &str| error(&format!("[export.otlp]\n{rest}\n"));
        assert!(otlp("endpoint = \"https://c:4317\"").contains("collector on this node"));
        assert!(otlp("endpoint = \"c:4317\"").contains("http://HOST:PORT"));
        assert!(otlp("endpoint = \"http://\"").contains("is no address"));
        let secret = otlp("endpoint = \"http://c:4317\"\nheaders = { token = \"sécret\" }");
        assert!(secret.contains("token") && !secret.contains("cret\""), "{secret}");
        assert!(otlp("endpoint = \"http://c:4317\"\nheaders = { \"a b\" = \"x\" }").contains("a header's name"));
        assert!(error("[metrics]\nlisten = \"localhost\"\n").starts_with("p.toml:2:10: "));
    }

    #[test]
    fn the_environment_names_node_and_cluster() {
        let file = Config::parse(Path::new("p.toml"), "node_name = \"a\"\ncluster_name = \"b\"\n").unwrap();
        let with = |node: &str, cluster: &str| {
            let (node, cluster) = (OsString::from(node), OsString::from(cluster));
            file.clone().with_environment(|name| Some(if name == NODE_NAME { node.clone() } else { cluster.clone() }))
        };
        let names = |config: Config| [config.node_name, config.cluster_name].map(|name| name.unwrap().to_string());
        assert_eq!(names(with("", "").unwrap()), ["a", "b"]);
        assert_eq!(names(with("node-1", "").unwrap()), ["node-1", "b"]);
        assert_eq!(names(with("node-1", "shop").unwrap()), ["node-1", "shop"]);
        assert_eq!(names(file.clone().with_environment(|_| None).unwrap()), ["a", "b"]);
        let slash = with("a/b", "").unwrap_err().to_string();
        assert!(slash.starts_with("environment variable PORTCULLIS_NODE_NAME: ") && slash.contains("slash"), "{slash}");
        let control = error("cluster_name = \"a\\u001b\"\n");
        assert!(control.starts_with("p.toml:1:16: ") && control.contains("control"), "{control}");
        assert!(error(&format!("node_name = \"{}\"\n", "x".repeat(254))).contains("253"));
    }

    #[test]
    fn who_may_call_over_tcp_is_named() {
        let tcp = |rest: &str| {
            let files = "certificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/a\"";
            Config::parse(Path::new("p.toml"), &format!("[tcp]\nlisten = \"[::]:9466\"\n{files}\n{rest}\n"))
        };
        let section = tcp("read = [\"DNS:a\"]\nadmin = [\"CN:b\", \"URI:spiffe://c/d\"]").unwrap().tcp.unwrap();
        assert_eq!((section.read.len(), section.admin.len(), section.listen.port()), (1, 2, 9466));
        let error = |rest| tcp(rest).unwrap_err().to_string();
        assert!(error("").contains("nobody could call"));
        assert!(error("read = [\"CN:a\"]\nadmin = [\"CN:a\"]").contains("\"CN:a\" is in both"));
        assert!(error("admin = [\"a\"]").contains("DNS:NAME, URI:NAME or CN:NAME"));
        assert!(error("admin = [\"CN:a\"]\ncrl = \"/x\"").contains("unknown field `crl`"));
        assert!(Config::parse(Path::new("p.toml"), "[tcp]\nlisten = \":1\"\n").is_err());
    }

    #[test]
    fn missing_file_is_an_error_only_when_asked_for() {
        let missing = Path::new("/nonexistent/portcullis.toml");
        assert!(matches!(Config::load(Some(missing)), Err(ConfigError::Read { path, .. }) if path == missing));
    }
}

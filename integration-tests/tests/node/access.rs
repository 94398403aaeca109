//! The API over TCP: the real agent and the real tool, with certificates of all kinds.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{command::Output, eventually::eventually, node::Node};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use serde_json::Value;

/// How long a connection may stay silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Signs certificates, and keeps all in one directory.
struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Result<Self> {
        let directory = directory.join(name);
        fs::create_dir(&directory)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        fs::write(directory.join("ca.crt"), params.self_signed(&key)?.pem())?;
        Ok(Self { directory, issuer: Issuer::new(params, key) })
    }

    /// Leaves NAME.crt and NAME.key.
    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate()?;
        fs::write(self.file(name, "crt"), params.signed_by(&key, &self.issuer)?.pem())?;
        let path = self.file(name, "key");
        fs::write(&path, key.serialize_pem())?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn sign_agent(&self) -> Result<()> {
        let address = SanType::IpAddress([127, 0, 0, 1].into());
        self.sign("agent", |params| params.subject_alt_names = vec![address])
    }

    fn file(&self, name: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{name}.{extension}"))
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn section(port: u16, authority: &Authority) -> String {
    let directory = authority.directory.display();
    format!(
        "[tcp]\nlisten = \"127.0.0.1:{port}\"\ncertificate = \"{directory}/agent.crt\"\nkey = \"{directory}/agent.key\"\n\
         client_ca = \"{directory}/ca.crt\"\nread = [\"CN:reader\"]\nadmin = [\"URI:spiffe://example.org/admin\"]\n"
    )
}

/// The tool's way to an agent.
struct Way<'a> {
    node: &'a Node,
    address: String,
    trusted: &'a Authority,
}

impl Way<'_> {
    fn run(&self, signed_by: &Authority, name: &str, arguments: &[&str]) -> Result<Output> {
        let [ca, cert, key] =
            [self.trusted.file("ca", "crt"), signed_by.file(name, "crt"), signed_by.file(name, "key")]
                .map(|path| path.display().to_string());
        let way = ["--address", &self.address, "--ca", &ca, "--cert", &cert, "--key", &key];
        self.node.portcullis(&[&way, arguments].concat())
    }
}

fn losses(node: &Node) -> Result<Value> {
    let run_dir = node.paths().run_dir.display().to_string();
    let output = node.portcullis(&["check", "--run-dir", &run_dir, "-o", "json"])?;
    let status: Value = serde_json::from_str(&output.stdout)?;
    status.pointer("/agent/losses").cloned().context("no losses")
}

pub fn a_certificate_may_do_what_its_role_says(node: &Node) -> Result<()> {
    let scratch = node.scratch()?;
    let authority = Authority::new(scratch.path(), "ours")?;
    let others = Authority::new(scratch.path(), "others")?;
    authority.sign_agent()?;
    for name in ["reader", "stranger"] {
        authority.sign(name, |_| {})?;
    }
    authority.sign("admin", |params| {
        // The name is a constant.
        params.subject_alt_names.extend("spiffe://example.org/admin".try_into().map(SanType::URI));
    })?;
    authority.sign("expired", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    })?;
    others.sign("reader", |_| {})?;
    let port = free_port()?;
    let _agent = node.configured_agent(&section(port, &authority))?;
    let way = Way { node, address: format!("https://127.0.0.1:{port}"), trusted: &authority };
    let container = node.container().mode("detect").start()?;

    eventually(|| {
        let listed = way.run(&authority, "reader", &["containers", "list", "-o", "json"])?.success()?;
        ensure!(listed.stdout.contains(container.id()), "{listed}");
        Ok(())
    })?;
    let refused = way.run(&authority, "reader", &["contain", container.id(), "--lock"])?;
    ensure!(refused.status == 1 && refused.stderr.contains("CN:reader may only read"), "{refused}");
    container.exec(&["true"])?.success()?;
    way.run(&authority, "admin", &["contain", container.id(), "--lock"])?.success()?;
    ensure!(container.exec(&["true"])?.status != 0, "it is not locked");
    way.run(&authority, "admin", &["release", container.id(), "--lock"])?.success()?;
    container.exec(&["true"])?.success()?;
    let signals = node.signals()?;
    let operations: Vec<_> = signals
        .iter()
        .filter(|signal| signal.container_id() == container.id())
        .filter_map(|signal| signal.operation.as_ref()?.caller.as_ref())
        .collect();
    ensure!(operations.len() == 2, "what was refused is no operation: {operations:?}");
    for caller in operations {
        ensure!(caller.certificate == "URI:spiffe://example.org/admin", "{caller:?}");
        ensure!(caller.uid == u32::MAX && !caller.serial.is_empty(), "{caller:?}");
    }

    let refused = way.run(&authority, "stranger", &["containers", "list"])?;
    ensure!(refused.status == 1 && refused.stderr.contains("CN:stranger is named by neither"), "{refused}");
    let refused = way.run(&others, "reader", &["containers", "list"])?;
    ensure!(refused.status == 3 && refused.stderr.contains("it trusts another CA"), "{refused}");
    let refused = way.run(&authority, "expired", &["containers", "list"])?;
    ensure!(refused.status == 3 && refused.stderr.contains("it has expired"), "{refused}");
    let mut plain = TcpStream::connect(("127.0.0.1", port))?;
    plain.set_read_timeout(Some(PATIENCE))?;
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut answer = Vec::new();
    // It may be reset.
    let _ = plain.read_to_end(&mut answer);
    ensure!(answer.len() < 16, "an alert at most: {answer:?}");
    let plain = Way { address: format!("http://127.0.0.1:{port}"), ..way };
    let refused = plain.run(&authority, "reader", &["containers", "list"])?;
    ensure!(refused.status == 2 && refused.stderr.contains("say https://"), "{refused}");
    eventually(|| {
        let losses = losses(node)?;
        for (name, count) in [("handshakes_refused", 3), ("calls_forbidden", 2)] {
            ensure!(losses.get(name).and_then(Value::as_u64) == Some(count), "{losses}");
        }
        Ok(())
    })?;
    let log = node.agent().as_ref().context("no agent")?.log();
    for told in ["CN:reader may only read", "CN:stranger is named by neither", "not signed by [tcp] client_ca"] {
        ensure!(log.contains(told), "{told:?} is not in the agent's log");
    }
    Ok(())
}

pub fn certificates_are_replaced_while_the_agent_runs(node: &Node) -> Result<()> {
    let scratch = node.scratch()?;
    let first = Authority::new(scratch.path(), "first")?;
    let second = Authority::new(scratch.path(), "second")?;
    for authority in [&first, &second] {
        authority.sign_agent()?;
    }
    first.sign("reader", |_| {})?;
    let port = free_port()?;
    let _agent = node.configured_agent(&section(port, &first))?;
    let way = |trusted| Way { node, address: format!("https://127.0.0.1:{port}"), trusted };
    let check = way(&first).run(&first, "reader", &["check"])?.success()?;
    ensure!(check.stdout.lines().any(|line| line.starts_with("ok") && line.contains(" tcp ")), "{check}");

    // Read again by themselves.
    for extension in ["crt", "key"] {
        fs::rename(second.file("agent", extension), first.file("agent", extension))?;
    }
    eventually(|| way(&second).run(&first, "reader", &["check"])?.success())?;
    let refused = way(&first).run(&first, "reader", &["containers", "list"])?;
    ensure!(refused.status == 3 && refused.stderr.contains("not signed by --ca"), "{refused}");

    // On request at once; what can't be used is told, and the former ones stay.
    fs::write(first.file("agent", "key"), "nonsense")?;
    node.reload()?;
    eventually(|| {
        let check = way(&second).run(&first, "reader", &["check"])?.success()?;
        ensure!(check.stdout.contains("agent.key has no private key"), "{check}");
        Ok(())
    })
}

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use hyper_util::rt::TokioIo;
use portcullis_proto::v1::{
    ContainRequest, GetStatusRequest, ListSignalsRequest, Measure, SetTriageStateRequest, TriageState,
    WatchSignalsRequest, check::State, containment_service_client::ContainmentServiceClient,
    node_service_client::NodeServiceClient, signal_service_client::SignalServiceClient,
    triage_service_client::TriageServiceClient,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_rustls::TlsConnector;
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::*;
use crate::{
    api::tests::{Bed, bed_with},
    certificate::Name,
    records::RecordName,
    testing,
};

const WAIT: Duration = Duration::from_secs(20);

/// Signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key.
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        Self::named("ours")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    fn agent(&self) -> Pair {
        self.sign(|params| params.subject_alt_names = vec![SanType::DnsName("node-1".try_into().unwrap())])
    }

    fn client(&self, common_name: &str) -> Pair {
        self.sign(|params| {
            params.distinguished_name.push(DnType::CommonName, common_name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }
}

fn put(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| Name::try_from((*name).to_owned()).unwrap()).collect()
}

/// Puts the files where the section says.
fn section(directory: &Path, own: &Pair, clients: &Authority) -> Tcp {
    let path = |name: &str| directory.join(name).try_into().unwrap();
    let tcp = Tcp {
        // Whichever port is free: two tests may choose at the same time, but not the same one.
        listen: std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(),
        certificate: path("tls.crt"),
        key: path("tls.key"),
        client_ca: path("ca.crt"),
        read: names(&["CN:reader"]),
        admin: names(&["CN:admin", "URI:spiffe://example.org/admin"]),
    };
    put(&tcp.certificate, &own.certificate);
    put(&tcp.key, &own.key);
    put(&tcp.client_ca, &clients.pem);
    tcp
}

/// An agent that is asked over TCP.
pub struct Served {
    pub bed: Bed,
    tcp: Tcp,
    authority: Authority,
    _directory: tempfile::TempDir,
}

pub async fn served() -> Served {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let tcp = section(directory.path(), &authority.agent(), &authority);
    let counters = Arc::default();
    let listener = Listener::bind(&tcp, &counters).await.unwrap();
    Served { bed: bed_with(Some(listener), counters), tcp, authority, _directory: directory }
}

fn client(authority: &Authority, identity: Option<&Pair>, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => config.with_no_client_auth(),
        Some(Pair { certificate, key }) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

type Stream = BufReader<tokio_rustls::client::TlsStream<TcpStream>>;

/// Connects, and waits for the first byte: in TLS 1.3 a client has finished before it is refused.
async fn connect(listen: SocketAddr, config: ClientConfig) -> io::Result<Stream> {
    let stream = TcpStream::connect(listen).await?;
    let name = ServerName::try_from("node-1").unwrap();
    let mut stream = BufReader::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?);
    if stream.fill_buf().await?.is_empty() {
        return Err(io::Error::other("closed"));
    }
    Ok(stream)
}

impl Served {
    async fn channel(&self, identity: &Pair) -> Channel {
        let stream = connect(self.tcp.listen, client(&self.authority, Some(identity), &TLS13)).await.unwrap();
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            std::future::ready(stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
        });
        Endpoint::from_static("http://node-1").connect_with_connector(connector).await.unwrap()
    }

    async fn get_status(&self, identity: &Pair) -> Result<(), Code> {
        let mut node = NodeServiceClient::new(self.channel(identity).await);
        node.get_status(GetStatusRequest {}).await.map(drop).map_err(|status| status.code())
    }

    async fn refused(&self, count: u64) {
        let refused = &self.bed.sources.counters.handshakes_refused;
        let wait = timeout(WAIT, async {
            while refused.get() < count {
                sleep(Duration::from_millis(5)).await;
            }
        });
        wait.await.unwrap_or_else(|_| panic!("{} of {count} are counted", refused.get()));
        assert_eq!(refused.get(), count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_and_an_administrator_does_what_it_likes() {
    let served = served().await;
    let bed = &served.bed;
    bed.sources.containers.insert(RecordName::Cgroup(42), testing::record(42, "c1"));
    bed.put(1, "nc").await;
    let contain =
        || ContainRequest { container_id: "c1".into(), measure: Measure::Lock.into(), ..ContainRequest::default() };
    let triage = || SetTriageStateRequest {
        signal_ids: vec![1],
        state: TriageState::Expected.into(),
        ..SetTriageStateRequest::default()
    };

    let channel = served.channel(&served.authority.client("reader")).await;
    let mut signals = SignalServiceClient::new(channel.clone());
    signals.list_signals(ListSignalsRequest::default()).await.unwrap();
    let mut watch = signals
        .watch_signals(WatchSignalsRequest { after_id: Some(0), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    timeout(WAIT, watch.message()).await.unwrap().unwrap().unwrap();
    let refused = ContainmentServiceClient::new(channel.clone()).contain(contain()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("CN:reader") && refused.message().contains("may only read"), "{refused}");
    let refused = TriageServiceClient::new(channel).set_triage_state(triage()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(bed.sources.counters.calls_forbidden.get(), 2);

    let admin = served.authority.sign(|params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org/admin".try_into().unwrap())];
    });
    let channel = served.channel(&admin).await;
    let done = TriageServiceClient::new(channel.clone()).set_triage_state(triage()).await.unwrap().into_inner();
    let said = done.signals[0].triage.clone().unwrap();
    assert_eq!(said.author, "URI:spiffe://example.org/admin");
    let caller = said.caller.unwrap();
    assert_eq!((caller.uid, caller.certificate.as_str()), (u32::MAX, "URI:spiffe://example.org/admin"));
    assert!(!caller.serial.is_empty());
    // Whatever comes of it for this container: it is not refused for who asks, and is kept with who did.
    let _ = ContainmentServiceClient::new(channel).contain(contain()).await;
    let contained = async {
        loop {
            let mut signals = SignalServiceClient::new(served.channel(&admin).await);
            let page = signals.list_signals(ListSignalsRequest::default()).await.unwrap().into_inner();
            if let Some(signal) = page.signals.into_iter().find(|signal| signal.rule == "containment") {
                return signal;
            }
        }
    };
    let signal = timeout(WAIT, contained).await.unwrap();
    assert!(!signal.operation.unwrap().error.contains("only root"), "{}", signal.message);
    let by = format!("by certificate URI:spiffe://example.org/admin, serial {}", caller.serial);
    assert!(signal.message.contains(&by), "{}", signal.message);

    assert_eq!(served.get_status(&served.authority.client("stranger")).await, Err(Code::PermissionDenied));
    assert_eq!(bed.sources.counters.calls_forbidden.get(), 3);
    assert_eq!(bed.sources.counters.handshakes_refused.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_certificate_nobody_gets_anywhere() {
    let served = served().await;
    let (listen, authority) = (served.tcp.listen, &served.authority);
    let with = |identity: &Pair, version| client(authority, Some(identity), version);
    let admin = authority.client("admin");
    let expired = authority.sign(|params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let early = authority.sign(|params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.not_before = date_time_ymd(2200, 1, 1);
        params.not_after = date_time_ymd(2201, 1, 1);
    });
    let server = authority.sign(|params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    for (what, config, reason) in [
        ("no certificate", client(authority, None, &TLS13), "CertificateRequired"),
        ("another authority's", with(&Authority::named("theirs").client("admin"), &TLS13), "UnknownCA"),
        ("one's of the same name", with(&Authority::named("ours").client("admin"), &TLS13), "DecryptError"),
        ("an expired one", with(&expired, &TLS13), "CertificateExpired"),
        ("one of the future", with(&early, &TLS13), "CertificateExpired"),
        ("a server's", with(&server, &TLS13), ""),
        ("TLS 1.2", with(&admin, &TLS12), "ProtocolVersion"),
    ] {
        let error = connect(listen, config).await.map(drop).expect_err(what);
        assert!(error.to_string().contains(reason), "{what}: {error}");
    }
    served.refused(7).await;

    // HTTP/2 without TLS.
    let mut plain = TcpStream::connect(listen).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(WAIT, plain.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(answer.len() < 16, "an alert at most: {answer:?}");
    served.refused(8).await;

    // Who says nothing has so long for it; who only looks whether the port is open is no failure.
    let mut silent = TcpStream::connect(listen).await.unwrap();
    drop(TcpStream::connect(listen).await.unwrap());
    assert_eq!(timeout(2 * HANDSHAKE, silent.read(&mut [0])).await.expect("it is closed").unwrap(), 0);
    served.refused(9).await;
    assert_eq!(served.get_status(&admin).await, Ok(()), "others are served");
    assert_eq!(served.bed.sources.counters.calls_forbidden.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_and_a_certificate_have_so_many_connections() {
    let served = served().await;
    let reader = served.authority.client("reader");
    let mut held = Vec::new();
    for _ in 0..super::super::connections::MAX_CONNECTIONS {
        held.push(connect(served.tcp.listen, client(&served.authority, Some(&reader), &TLS13)).await.unwrap());
    }
    assert!(connect(served.tcp.listen, client(&served.authority, Some(&reader), &TLS13)).await.is_err());
    assert_eq!(served.get_status(&served.authority.client("admin")).await, Ok(()));
    let refused = &served.bed.sources.counters.connections_refused;
    assert_eq!(refused.get(), 1);
    // Before they have said who they are.
    let mut silent = Vec::new();
    for _ in 0..super::super::connections::MAX_CONNECTIONS {
        silent.push(TcpStream::connect(served.tcp.listen).await.unwrap());
    }
    let mut another = TcpStream::connect(served.tcp.listen).await.unwrap();
    assert!(!matches!(timeout(WAIT, another.read(&mut [0])).await.expect("it is closed"), Ok(1..)));
    assert_eq!(refused.get(), 2);
    drop(silent);
    let again = async {
        let admin = served.authority.client("admin");
        while connect(served.tcp.listen, client(&served.authority, Some(&admin), &TLS13)).await.is_err() {}
    };
    timeout(WAIT, again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_its_certificate() {
    let served = served().await;
    let now = clock::now_ns() / 1_000_000_000;
    let brief = served.authority.sign(|params| {
        params.distinguished_name.push(DnType::CommonName, "reader");
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(now + 3);
    });
    let mut signals = SignalServiceClient::new(served.channel(&brief).await);
    let mut watch = signals.watch_signals(WatchSignalsRequest::default()).await.unwrap().into_inner();
    assert!(timeout(WAIT, watch.message()).await.expect("it ends").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_taken_over_when_they_are_replaced() {
    let served = served().await;
    let (tcp, tls) = (&served.tcp, served.bed.sources.tls.clone().unwrap());
    let other = Authority::new();
    let admin = served.authority.client("admin");
    let trusts =
        async |authority: &Authority| connect(tcp.listen, client(authority, Some(&admin), &TLS13)).await.is_ok();
    assert!(trusts(&served.authority).await && !trusts(&other).await);
    assert_eq!(tls.check().state(), State::Ok);

    let own = other.agent();
    put(&tcp.certificate, &own.certificate);
    tls.look(false);
    tls.look(false);
    let check = tls.check();
    assert_eq!(check.state(), State::Warning);
    assert!(check.detail.contains("tls.crt") && check.detail.contains("do not fit together"), "{check:?}");
    assert!(trusts(&served.authority).await, "the former ones stay in use");
    put(&tcp.key, &own.key);
    tls.look(false);
    assert!(!trusts(&other).await, "another file may be about to change");
    tls.look(false);
    assert!(trusts(&other).await);
    assert_eq!(tls.check().state(), State::Ok);

    put(&tcp.client_ca, &other.pem);
    tls.reload();
    assert!(!trusts(&other).await, "the client is not of the new authority");
    fs::remove_file(&*tcp.client_ca).unwrap();
    tls.reload();
    assert!(tls.check().detail.contains("ca.crt"), "{:?}", tls.check());
    assert_eq!(served.bed.sources.counters.certificates_rejected.get(), 2);
}

#[test]
fn what_is_wrong_with_the_files_is_said() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let own = authority.agent();
    let tcp = section(directory.path(), &own, &authority);
    let fails = |path: &Path, text: &str, mode: u32| {
        let before = fs::read_to_string(path).unwrap();
        put(path, text);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let error = Tls::new(tcp.clone(), Arc::default()).err().map(anyhow::Error::from);
        put(path, &before);
        format!("{:#}", error.expect(text))
    };
    for (path, text, mode, reason) in [
        (&tcp.key, &own.key, 0o644, "tls.key has mode 0644"),
        (&tcp.key, &own.key, 0o660, "tls.key has mode 0660"),
        (&tcp.key, &own.certificate, 0o600, "tls.key has no private key"),
        (&tcp.key, &authority.agent().key, 0o400, "tls.key do not fit together"),
        (&tcp.certificate, &own.key, 0o600, "tls.crt has no certificate"),
        (&tcp.client_ca, &String::new(), 0o600, "ca.crt has no certificate"),
        (&tcp.client_ca, &"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into(), 0o600, "ca.crt"),
    ] {
        let error = fails(path, text, mode);
        assert!(error.contains(reason), "{error}");
    }
    assert!(Tls::new(tcp.clone(), Arc::default()).is_ok());
    let fifo = section(directory.path(), &own, &authority);
    fs::remove_file(&*fifo.key).unwrap();
    fs::create_dir(&*fifo.key).unwrap();
    assert!(format!("{:#}", anyhow::Error::from(Tls::new(fifo, Arc::default()).err().unwrap())).contains("not a file"));
}

#[test]
fn an_end_that_is_near_is_warned_of() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let now = clock::now_ns() / 1_000_000_000;
    let check = |from, until| {
        let own = authority.sign(|params| {
            params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(from);
            params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(until);
        });
        let tls = Tls::new(section(directory.path(), &own, &authority), Arc::default()).unwrap();
        let check = tls.check();
        (check.state(), check.detail)
    };
    let day = 24 * 3600;
    assert_eq!(check(now, now + 15 * day).0, State::Ok);
    assert_eq!(check(now, now + 13 * day).0, State::Warning);
    // The agent does its work all the same.
    let (state, detail) = check(now - 2 * day, now - day);
    assert!(state == State::Failed && detail.contains("has expired on"), "{detail}");
}

#[tokio::test]
async fn a_port_that_can_not_be_had_is_named() {
    let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut tcp = section(directory.path(), &authority.agent(), &authority);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.listen = taken.local_addr().unwrap();
    let error = Listener::bind(&tcp, &Arc::default()).await.err().unwrap();
    assert!(error.to_string().contains("[tcp] listen"), "{error}");
}

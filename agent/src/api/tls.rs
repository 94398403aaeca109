//! Certificate, key and the clients' authority: read, checked, and read again when they are replaced.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use portcullis_proto::v1::{Check, check::State};
use rustix::fs::OFlags;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier},
    version::TLS13,
};
use sha2::{Digest, Sha256};
use tokio::time::interval;

use crate::{
    certificate::{Certificate, CertificateError},
    clock,
    config::Tcp,
    counters::Counters,
};

/// Bytes of a file; authorities of whole organisations fit in.
const MAX_BYTES: u64 = 1 << 20;
/// How often the files are looked at. New ones count once they have stayed the same for as long: there are three of them.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long before its end a certificate is warned of, in seconds.
const SOON: i64 = 14 * 24 * 3600;
/// Others may not read or write a key, and its group may only read it.
const EXPOSED: u32 = 0o037;
/// HTTP/2, which gRPC is made of.
const ALPN: &[u8] = b"h2";

/// Why nothing can be served by TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("reading {}{}", path.display(), hint(source))]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key is no secret.
    #[error("{} has mode {mode:04o}: a key may be read by its owner and group alone, and written by its owner (chmod 600)", path.display())]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file is of another kind.
    #[error("{} has no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is looked for.
        what: &'static str,
        /// What is there instead.
        source: pem::Error,
    },
    /// There is nothing in it.
    #[error("{} has no certificate in it", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The agent's own.
    #[error("{}", path.display())]
    Certificate {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
    /// One of the authority's is none.
    #[error("{}", path.display())]
    Authority {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// Nobody could be let in.
    #[error("making a verifier of {}", path.display())]
    Verifier {
        /// The authority.
        path: PathBuf,
        /// What is wrong.
        source: VerifierBuilderError,
    },
    /// As when the key is another's.
    #[error("{} and {} do not fit together", certificate.display(), key.display())]
    Pair {
        /// The agent's certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The library lacks what it needs.
    #[error("setting up TLS 1.3")]
    Setup(#[source] rustls::Error),
}

/// What makes root fail where root may do everything.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (the agent is root without its privileges: the file has to be root's)",
        _ => "",
    }
}

/// What the three files say.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Vec<u8>,
}

impl Files {
    fn read(tcp: &Tcp) -> Result<Self, TlsError> {
        let key = read(&tcp.key, |file| {
            let mode = file.metadata()?.mode() & 0o7777;
            Ok((mode & EXPOSED != 0).then_some(mode))
        })?;
        Ok(Self {
            certificate: read(&tcp.certificate, |_| Ok(None))?,
            key,
            authority: read(&tcp.client_ca, |_| Ok(None))?,
        })
    }

    fn digest(&self) -> Vec<u8> {
        let mut digest = Sha256::new();
        for file in [&self.certificate, &self.key, &self.authority] {
            digest.update(Sha256::digest(file));
        }
        digest.finalize().to_vec()
    }

    /// What to serve with, and the certificate.
    fn compile(&self, tcp: &Tcp) -> Result<Serving, TlsError> {
        let chain = certificates(&tcp.certificate, &self.certificate)?;
        let own = chain.first().ok_or_else(|| TlsError::Empty { path: tcp.certificate.to_path_buf() })?;
        let own = Certificate::read(own)
            .map_err(|source| TlsError::Certificate { path: tcp.certificate.to_path_buf(), source })?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| TlsError::Pem {
            path: tcp.key.to_path_buf(),
            what: "private key that is not encrypted",
            source,
        })?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&tcp.client_ca, &self.authority)? {
            let wrong = |source| TlsError::Authority { path: tcp.client_ca.to_path_buf(), source };
            roots.add(certificate).map_err(wrong)?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|source| TlsError::Verifier { path: tcp.client_ca.to_path_buf(), source })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::Pair {
                certificate: tcp.certificate.to_path_buf(),
                key: tcp.key.to_path_buf(),
                source,
            })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session is not verified again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Serving { config: Arc::new(config), not_after: own.not_after })
    }
}

/// A file's content, unless its mode is not in order. Nothing that could be waited for.
fn read(path: &Path, exposed: impl FnOnce(&File) -> io::Result<Option<u32>>) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        if let Some(mode) = exposed(&file)? {
            return Ok(Err(mode));
        }
        let mut bytes = Vec::new();
        let size = file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if u64::try_from(size).unwrap_or(u64::MAX) > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_BYTES} bytes")));
        }
        Ok(Ok(bytes))
    };
    match read() {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(mode)) => Err(TlsError::Exposed { path: path.to_owned(), mode }),
        Err(source) => Err(TlsError::Read { path: path.to_owned(), source }),
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem { path: path.to_owned(), what: "certificate", source };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(wrong)?;
    if certificates.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(certificates) }
}

/// What new connections are served with.
struct Serving {
    config: Arc<ServerConfig>,
    not_after: i64,
}

struct Current {
    serving: Serving,
    /// Of the files, or of why they can't be read, as they were looked at last.
    looked_at: Vec<u8>,
    /// And as they were used last, or could not be.
    used: Vec<u8>,
    /// Why newer files are not in use.
    error: Option<String>,
}

/// The files, and what is made of them.
pub struct Tls {
    tcp: Tcp,
    counters: Arc<Counters>,
    current: Mutex<Current>,
}

impl Tls {
    /// Reads the files.
    pub fn new(tcp: Tcp, counters: Arc<Counters>) -> Result<Self, TlsError> {
        let files = Files::read(&tcp)?;
        let serving = files.compile(&tcp)?;
        if serving.not_after < now() {
            tracing::error!(certificate = %tcp.certificate.display(), "{}", expired(serving.not_after));
        }
        let (looked_at, used) = (files.digest(), files.digest());
        let current = Mutex::new(Current { serving, looked_at, used, error: None });
        Ok(Self { tcp, counters, current })
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the next connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().serving.config)
    }

    /// When the certificate expires, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.current().serving.not_after
    }

    /// Reads the files again. If they can't be used, the former ones stay in use.
    pub fn reload(&self) {
        self.look(true);
    }

    /// `now`: whether or not they have changed a moment ago.
    pub(super) fn look(&self, now: bool) {
        let files = Files::read(&self.tcp);
        let digest = match &files {
            Ok(files) => files.digest(),
            Err(error) => error.to_string().into_bytes(),
        };
        let mut current = self.current();
        let settled = current.looked_at == digest;
        current.looked_at.clone_from(&digest);
        if !now && (!settled || current.used == digest) {
            return;
        }
        let changed = current.used != digest;
        current.used = digest;
        match files.and_then(|files| files.compile(&self.tcp)) {
            Ok(serving) => {
                if changed {
                    let until = clock::date(serving.not_after);
                    tracing::info!(until, "the certificates of the API's TCP listener are replaced");
                }
                current.serving = serving;
                current.error = None;
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                self.counters.certificates_rejected.increment();
                tracing::error!(
                    error,
                    "new certificates of the API's TCP listener can't be used; the former ones stay"
                );
                current.error = Some(error);
            }
        }
    }

    /// Looks at the files from time to time.
    pub async fn follow(self: Arc<Self>) {
        let mut ticks = interval(INTERVAL);
        loop {
            ticks.tick().await;
            let this = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || this.look(false)).await.is_err() {
                // The runtime is ending.
                return;
            }
        }
    }

    /// For the status.
    pub fn check(&self) -> Check {
        let current = self.current();
        let until = current.serving.not_after;
        let left = until.saturating_sub(now());
        let serves = format!("the API is served on {} by mutual TLS", self.tcp.listen);
        let (state, detail, remedy) = match &current.error {
            _ if left < 0 => (State::Failed, format!("{serves}; {}", expired(until)), RENEW),
            Some(error) => (
                State::Warning,
                format!("{serves} with former certificates: {error}"),
                "mend the files of [tcp]; they are read again by themselves",
            ),
            None if left < SOON => {
                (State::Warning, format!("{serves}; its certificate expires on {}", clock::date(until)), RENEW)
            }
            None => (State::Ok, format!("{serves}; its certificate is valid until {}", clock::date(until)), ""),
        };
        Check { name: "tcp".to_owned(), state: state.into(), detail, remedy: remedy.to_owned() }
    }
}

const RENEW: &str = "replace certificate and key of [tcp]; they are read again by themselves";

fn expired(until: i64) -> String {
    format!("its certificate has expired on {}, and clients refuse it", clock::date(until))
}

fn now() -> i64 {
    i64::try_from(clock::now_ns() / 1_000_000_000).unwrap_or(i64::MAX)
}

//! The agent over TCP: TLS 1.3, by which either side shows a certificate.

use std::{error::Error, fmt, io, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rustls::{
    AlertDescription as Alert, CertificateError as Invalid, ClientConfig, Error as TlsFailure, RootCertStore,
    client::Resumption,
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName,
        pem::{self, PemObject},
    },
    version::TLS13,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::{
    codegen::http::Uri,
    transport::{Channel, Endpoint},
};

/// How often the agent is asked whether it is still there, while it has something to answer …
const PING: Duration = Duration::from_secs(30);
/// … and how long it may take.
const PONG: Duration = Duration::from_secs(20);

/// `https://HOST:PORT`.
#[derive(Debug, Clone)]
pub struct Remote {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "https://[{host}]:{port}") } else { write!(f, "https://{host}:{port}") }
    }
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http:") {
            return Err("the agent is asked over TCP by mutual TLS only: say https://".to_owned());
        }
        let form = || "it is not of the form https://HOST:PORT".to_owned();
        let uri: Uri = text.parse().map_err(|_| form())?;
        let plain = uri.path() == "/" && uri.query().is_none() && !text.contains(['@', '#', '?']);
        let (Some("https"), Some(host), Some(port), true) = (uri.scheme_str(), uri.host(), uri.port_u16(), plain)
        else {
            return Err(form());
        };
        if host.is_empty() {
            return Err(form());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = server_name(&host)?;
        Ok(Self { host, port, name })
    }
}

impl Remote {
    /// Whose certificate is for another name.
    pub fn with_name(self, name: ServerName<'static>) -> Self {
        Self { name, ..self }
    }
}

/// A name that a certificate may be for.
pub fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|error| format!("{text:?}: {error}"))
}

/// Files of whom to trust, and who we are.
#[derive(Debug, Clone)]
pub struct Identity {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why we can't say who we are. The texts carry their causes.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be read, or is of another kind.
    #[error("{option} {}: {}", path.display(), describe(cause))]
    File {
        /// Which.
        option: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong.
        cause: pem::Error,
    },
    /// One of the authority's is none.
    #[error("--ca {}: {cause}", path.display())]
    Authority {
        /// Its value.
        path: PathBuf,
        /// What is wrong.
        cause: TlsFailure,
    },
    /// As when the key is another's.
    #[error("--cert {} and --key {} do not fit together: {cause}", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What is wrong.
        cause: TlsFailure,
    },
    /// The library lacks what it needs.
    #[error("setting up TLS 1.3: {0}")]
    Setup(TlsFailure),
}

fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "there is nothing of that kind in it (PEM; a key without a password)".to_owned(),
        other => format!("it is no PEM file: {other}"),
    }
}

impl Identity {
    fn config(&self) -> Result<ClientConfig, IdentityError> {
        let Self { ca, cert, key } = self;
        let file = |option, path: &PathBuf| {
            let path = path.clone();
            move |cause| IdentityError::File { option, path, cause }
        };
        let read = |option, path| -> Result<Vec<CertificateDer<'static>>, IdentityError> {
            let certificates = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            let certificates = certificates.map_err(file(option, path))?;
            if certificates.is_empty() {
                return Err(file(option, path)(pem::Error::NoItemsFound));
            }
            Ok(certificates)
        };
        let mut roots = RootCertStore::empty();
        for certificate in read("--ca", ca)? {
            roots.add(certificate).map_err(|cause| IdentityError::Authority { path: ca.clone(), cause })?;
        }
        let chain = read("--cert", cert)?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(file("--key", key))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(IdentityError::Setup)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, secret)
            .map_err(|cause| IdentityError::Pair { cert: cert.clone(), key: key.clone(), cause })?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// Connects, and waits until the agent has looked at our certificate. The endpoint's authority is shown to it and never resolved.
pub async fn connect(
    remote: &Remote,
    identity: &Identity,
    endpoint: Endpoint,
) -> Result<Result<Channel, tonic::transport::Error>, IdentityError> {
    let connector = TlsConnector::from(Arc::new(identity.config()?));
    let remote = remote.clone();
    let connector = tower::service_fn(move |_| {
        let (connector, remote) = (connector.clone(), remote.clone());
        async move {
            let stream = TcpStream::connect((remote.host.as_str(), remote.port)).await?;
            stream.set_nodelay(true)?;
            let mut stream = BufReader::new(connector.connect(remote.name, stream).await?);
            // In TLS 1.3 a client has finished before it is told that its certificate is refused. Who is let in is sent settings.
            if stream.fill_buf().await?.is_empty() {
                return Err(io::Error::new(io::ErrorKind::ConnectionReset, "it closed the connection"));
            }
            Ok(TokioIo::new(stream))
        }
    });
    let endpoint = endpoint.http2_keep_alive_interval(PING).keep_alive_timeout(PONG);
    Ok(endpoint.connect_with_connector(connector).await)
}

/// What went wrong with TLS, if it was that, and what to do.
pub fn explain(error: &(dyn Error + 'static)) -> Option<(String, &'static str)> {
    let mut cause = Some(error);
    let failure = loop {
        let error = cause?;
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(failure) = inner.and_then(|inner| inner.downcast_ref::<TlsFailure>()) {
            break failure;
        }
        cause = error.source();
    };
    let (cause, remedy) = match failure {
        TlsFailure::InvalidCertificate(Invalid::UnknownIssuer | Invalid::BadSignature) => {
            ("its certificate is not signed by --ca", "give the CA that signed it")
        }
        TlsFailure::InvalidCertificate(Invalid::Expired | Invalid::ExpiredContext { .. }) => {
            ("its certificate has expired", "renew it on the node")
        }
        TlsFailure::InvalidCertificate(Invalid::NotValidYet | Invalid::NotValidYetContext { .. }) => {
            ("its certificate is not valid yet", "compare the clocks")
        }
        TlsFailure::InvalidCertificate(Invalid::NotValidForName | Invalid::NotValidForNameContext { .. }) => {
            ("its certificate is for other names", "say one of them by --address or --server-name")
        }
        TlsFailure::AlertReceived(Alert::UnknownCA | Alert::DecryptError) => {
            ("it refuses --cert: it trusts another CA", "use a certificate of [tcp] client_ca in its configuration")
        }
        TlsFailure::AlertReceived(Alert::CertificateExpired) => {
            ("it refuses --cert: it has expired, or is not valid yet", "renew it")
        }
        TlsFailure::AlertReceived(alert) => {
            return Some((format!("it refuses the connection ({alert:?})"), "see the agent's log"));
        }
        TlsFailure::InvalidMessage(_) => ("whoever listens there does not speak TLS", "is this its address?"),
        TlsFailure::PeerIncompatible(_) => ("whoever listens there does not speak TLS 1.3", "is this its address?"),
        other => return Some((other.to_string(), "see the agent's log")),
    };
    Some((cause.to_owned(), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_says_https_host_and_port() {
        for text in ["https://node-1:9466", "https://192.0.2.1:9466", "https://[2001:db8::1]:9466"] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), text);
        }
        assert!("http://node-1:9466".parse::<Remote>().unwrap_err().contains("say https://"));
        for text in ["node-1:9466", "https://node-1", "https://:1", "https://a:1/x", "https://u@a:1", "unix:/run/x", ""]
        {
            assert!(text.parse::<Remote>().unwrap_err().contains("https://HOST:PORT"), "{text}");
        }
        assert!("https://a_b..c:1".parse::<Remote>().is_err());
    }
}

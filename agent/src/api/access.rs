//! Who may make which call. Processes that reach the socket may make all, but for containment, which is root's; over TCP the
//! client's certificate decides.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use portcullis_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};
use tonic::{Status, codegen::http};
use tower::{BoxError, filter::Predicate};

use super::peer::{Audit, Client, Peer};
use crate::{
    certificate::{Certificate, Name},
    config::Tcp,
    counters::Counters,
    text,
};

/// Characters of a name that is not listed.
const SHOWN: usize = 256;

/// Services of gRPC itself, which change nothing.
const GENERAL: [&str; 3] = ["/grpc.health.v1.", "/grpc.reflection.v1.", "/grpc.reflection.v1alpha."];

/// What a certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Calls that change nothing.
    Read,
    /// All.
    Admin,
}

/// The lists of the configuration.
#[derive(Debug, Clone)]
pub struct Roles(HashMap<Name, Role>);

impl Roles {
    /// As they are configured.
    pub fn new(tcp: &Tcp) -> Self {
        let named = |names: &[Name], role| names.iter().map(|name| (name.clone(), role)).collect::<Vec<_>>();
        Self(named(&tcp.read, Role::Read).into_iter().chain(named(&tcp.admin, Role::Admin)).collect())
    }

    /// Whom a certificate names: by the name that may do most, or nobody who is known.
    pub fn client(&self, certificate: &Certificate) -> Client {
        let listed = certificate.names.iter().filter_map(|name| Some((name, *self.0.get(name)?)));
        // Of several the first one in the certificate.
        let best = listed.reduce(|best, next| if next.1 > best.1 { next } else { best });
        let name = best.map_or_else(
            || match certificate.names.first() {
                Some(name) => text::escaped(&name.to_string()).chars().take(SHOWN).collect(),
                None => "none".to_owned(),
            },
            |(name, _)| name.to_string(),
        );
        Client { name, serial: certificate.serial.clone(), role: best.map(|(_, role)| role) }
    }
}

/// What is known of the API's calls.
#[derive(Debug, Default)]
pub struct Calls {
    /// Change nothing. Whatever is not said to be so is an administrator's.
    reading: HashSet<String>,
    /// Last for as long as the client likes.
    streams: HashSet<String>,
}

impl Calls {
    /// From the API's definition.
    pub fn new() -> Result<Self, prost::DecodeError> {
        let mut calls = Self::default();
        for file in FileDescriptorSet::decode(FILE_DESCRIPTOR_SET)?.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let level = method.options.as_ref().map(prost_types::MethodOptions::idempotency_level);
                    if level == Some(IdempotencyLevel::NoSideEffects) {
                        calls.reading.insert(path.clone());
                    }
                    if method.server_streaming() || method.client_streaming() {
                        calls.streams.insert(path);
                    }
                }
            }
        }
        Ok(calls)
    }

    /// What it takes to make this one.
    pub fn needs(&self, path: &str) -> Role {
        let reads = self.reading.contains(path) || GENERAL.iter().any(|prefix| path.starts_with(prefix));
        if reads { Role::Read } else { Role::Admin }
    }

    /// Whether it has to end soon.
    pub fn is_bounded(&self, path: &str) -> bool {
        !self.streams.contains(path) && !GENERAL.iter().any(|prefix| path.starts_with(prefix))
    }
}

/// Refuses calls that a client may not make.
#[derive(Clone)]
pub struct Gate {
    calls: Arc<Calls>,
    counters: Arc<Counters>,
}

impl Gate {
    /// Refused calls are counted.
    pub fn new(calls: Arc<Calls>, counters: Arc<Counters>) -> Self {
        Self { calls, counters }
    }

    fn refusal(&self, path: &str, extensions: &http::Extensions) -> Option<Status> {
        let Some(Peer::Client(client)) = extensions.get() else { return None };
        let reason = match client.role {
            Some(role) if role >= self.calls.needs(path) => return None,
            Some(_) => format!("the certificate {} may only read: [tcp] admin does not name it", client.name),
            None => format!("the certificate {} is named by neither read nor admin of [tcp]", client.name),
        };
        self.counters.calls_forbidden.increment();
        let Audit { certificate, serial, .. } = Audit::of(extensions);
        let call = text::escaped(path);
        tracing::warn!(certificate, serial, call, reason, "a call was refused");
        Some(Status::permission_denied(reason))
    }
}

/// Of tower's filters.
impl<B> Predicate<http::Request<B>> for Gate {
    type Request = http::Request<B>;

    fn check(&mut self, request: http::Request<B>) -> Result<Self::Request, BoxError> {
        match self.refusal(request.uri().path(), request.extensions()) {
            Some(refusal) => Err(refusal.into()),
            None => Ok(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::try_from(text.to_owned()).unwrap()
    }

    fn certificate(names: &[&str]) -> Certificate {
        let names = names.iter().map(|text| name(text)).collect();
        Certificate { names, serial: "01".into(), not_before: 0, not_after: 1 }
    }

    #[test]
    fn the_name_that_may_do_most_counts() {
        let roles =
            Roles([(name("DNS:r"), Role::Read), (name("CN:a"), Role::Admin), (name("URI:b"), Role::Admin)].into());
        let client = |names| {
            let Client { name, role, .. } = roles.client(&certificate(names));
            (name, role)
        };
        assert_eq!(client(&["DNS:x", "DNS:r"]), ("DNS:r".into(), Some(Role::Read)));
        assert_eq!(client(&["DNS:r", "URI:b", "CN:a"]), ("URI:b".into(), Some(Role::Admin)));
        assert_eq!(client(&["DNS:x", "CN:r"]), ("DNS:x".into(), None));
        assert_eq!(client(&[]), ("none".into(), None));
        let mut hostile = certificate(&[]);
        hostile.names.push(Name::Common("\u{1b}[2J".repeat(500)));
        let shown = roles.client(&hostile).name;
        assert!(shown.starts_with("CN:\\u{1b}[2J") && shown.len() == SHOWN, "{shown}");
    }

    #[test]
    fn what_changes_something_is_an_administrators() {
        let calls = Calls::new().unwrap();
        let all = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let services = all.file.iter().flat_map(|file| &file.service);
        let mut admin: Vec<_> = services
            .flat_map(|service| service.method.iter().map(|method| format!("{}/{}", service.name(), method.name())))
            .filter(|method| calls.needs(&format!("/portcullis.v1.{method}")) == Role::Admin)
            .collect();
        admin.sort_unstable();
        let expected = [
            "ContainmentService/Contain",
            "ContainmentService/Release",
            "PolicyService/ApplyPolicy",
            "PolicyService/DeletePolicy",
            "PolicyService/SetMode",
            "TriageService/SetTriageState",
        ];
        assert_eq!(admin, expected, "a new call that changes nothing says so in the definition");
        assert_eq!(calls.needs("/grpc.health.v1.Health/Check"), Role::Read);
        for unknown in [
            "/portcullis.v1.SignalService/Purge",
            "",
            "/grpc.health.v10.Health/Check",
            "//portcullis.v1.NodeService/GetStatus",
        ] {
            assert_eq!(calls.needs(unknown), Role::Admin, "{unknown}");
        }
        assert!(!calls.is_bounded("/portcullis.v1.SignalService/WatchSignals"));
        assert!(calls.is_bounded("/portcullis.v1.SignalService/ListSignals") && calls.is_bounded("/x"));
    }
}

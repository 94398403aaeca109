//! Whom a certificate names: as the configuration lists it, and as a client's says it.

use std::fmt;

use serde::Deserialize;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate, X509Error},
};

/// Bytes of a name.
const NAME_MAX: usize = 1024;

/// One name of a certificate. Compared as a whole: nothing stands for something else.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum Name {
    /// A DNS name of the subject's alternatives, in lower case.
    Dns(String),
    /// A URI of them, such as a SPIFFE id.
    Uri(String),
    /// The subject's only common name.
    Common(String),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Uri(name) => write!(f, "URI:{name}"),
            Self::Common(name) => write!(f, "CN:{name}"),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (kind, name) = text.split_once(':').unwrap_or_default();
        if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
            return Err(format!("{text:?} is not of the form DNS:NAME, URI:NAME or CN:NAME"));
        }
        match kind {
            "DNS" if name.contains('*') => {
                Err(format!("{text:?}: a name is compared as a whole, * stands for nothing"))
            }
            "DNS" => Ok(Self::Dns(name.to_ascii_lowercase())),
            "URI" => Ok(Self::Uri(name.to_owned())),
            "CN" => Ok(Self::Common(name.to_owned())),
            _ => Err(format!("{text:?} is not of the form DNS:NAME, URI:NAME or CN:NAME")),
        }
    }
}

/// What matters of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// In the certificate's order, the common name last.
    pub names: Vec<Name>,
    /// Hexadecimal digits with colons.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

/// Why a certificate can't be read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It is none.
    #[error("it is not a certificate")]
    Syntax(#[from] x509_parser::nom::Err<X509Error>),
    /// As when there are two lists of names.
    #[error("its names can't be read")]
    Names(#[from] X509Error),
}

impl Certificate {
    /// Reads it. That it is valid, and whose it is, is for others to see.
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) = X509Certificate::from_der(der)?;
        let alternatives = certificate.subject_alternative_name()?;
        let alternatives = alternatives.iter().flat_map(|extension| &extension.value.general_names);
        let mut names: Vec<_> = alternatives
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(Name::Dns(name.to_ascii_lowercase())),
                GeneralName::URI(name) => Some(Name::Uri((*name).to_owned())),
                _ => None,
            })
            .collect();
        // Of several, readers of certificates disagree about which it is.
        let mut common = certificate.subject().iter_common_name();
        if let (Some(name), None) = (common.next(), common.next()) {
            names.extend(name.as_str().ok().map(|name| Name::Common(name.to_owned())));
        }
        let validity = certificate.validity();
        Ok(Self {
            names,
            serial: certificate.raw_serial_as_string(),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::*;

    fn name(text: &str) -> Result<Name, String> {
        Name::try_from(text.to_owned())
    }

    #[test]
    fn a_name_says_what_it_is() {
        assert_eq!(name("DNS:Ops.Example.org").unwrap(), Name::Dns("ops.example.org".into()));
        assert_eq!(name("URI:spiffe://example.org/Ops").unwrap().to_string(), "URI:spiffe://example.org/Ops");
        assert_eq!(name("CN:Ada: the first").unwrap(), Name::Common("Ada: the first".into()));
        for wrong in ["ops.example.org", "DNS:", "", "IP:127.0.0.1", "dns:a", "CN:a\nb", "CN:a\0"] {
            assert!(name(wrong).unwrap_err().contains("is not of the form"), "{wrong:?}");
        }
        assert!(name("DNS:*.example.org").unwrap_err().contains("as a whole"));
    }

    fn made(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn names_and_serial_are_read() {
        let der = made(|params| {
            params.serial_number = Some(SerialNumber::from_slice(&[0x0a, 0x1b]));
            params.distinguished_name.push(DnType::CommonName, "ada");
            params.subject_alt_names = vec![
                SanType::URI("spiffe://example.org/ops".try_into().unwrap()),
                SanType::DnsName("Ops.example.org".try_into().unwrap()),
                SanType::IpAddress([127, 0, 0, 1].into()),
            ];
        });
        let read = Certificate::read(&der).unwrap();
        let names: Vec<_> = read.names.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["URI:spiffe://example.org/ops", "DNS:ops.example.org", "CN:ada"]);
        assert_eq!(read.serial, "0a:1b");
        assert!(read.not_before < read.not_after);
    }

    #[test]
    fn a_name_with_a_nul_or_of_another_kind_is_another_name() {
        let der = made(|params| {
            params.distinguished_name.push(DnType::CommonName, "ops.example.org\0.evil.example");
            params.subject_alt_names = vec![SanType::URI("ops.example.org".try_into().unwrap())];
        });
        let names = Certificate::read(&der).unwrap().names;
        assert_eq!(names.len(), 2);
        for listed in ["DNS:ops.example.org", "CN:ops.example.org"] {
            assert!(!names.contains(&name(listed).unwrap()), "{names:?}");
        }
    }

    #[test]
    fn several_common_names_are_none() {
        // rcgen keeps one of each type, so that the second is written over another attribute of the same length.
        let mut der = made(|params| {
            params.distinguished_name.push(DnType::CommonName, "ada");
            params.distinguished_name.push(DnType::OrganizationName, "bob");
        });
        assert_eq!(Certificate::read(&der).unwrap().names, [Name::Common("ada".into())]);
        let organization = [0x06, 0x03, 0x55, 0x04, 0x0a];
        let places: Vec<_> = (0..der.len() - 5).filter(|place| der[*place..][..5] == organization).collect();
        assert!(!places.is_empty());
        for place in places {
            der[place + 4] = 0x03;
        }
        assert_eq!(Certificate::read(&der).unwrap().names, []);
    }

    #[test]
    fn whatever_comes_nothing_breaks() {
        let der = made(|params| {
            params.subject_alt_names = vec![SanType::DnsName("a.example".try_into().unwrap())];
        });
        for end in 0..der.len() {
            assert!(Certificate::read(&der[..end]).is_err(), "{end}");
        }
        for place in 0..der.len() {
            for value in [0, 0x7f, 0x80, 0xff] {
                let mut other = der.clone();
                other[place] = value;
                // An error, or other names: not a panic.
                let _ = Certificate::read(&other);
            }
        }
        assert!(Certificate::read(&[0x30; 4096]).is_err());
    }
}

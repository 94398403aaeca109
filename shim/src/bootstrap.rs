//! What containerd and a shim say to each other around `start`.
//!
//! Three dialects of answer are about: containerd up to 1.7 wants the bare address, 2.0 to 2.2 a JSON object, and 2.3
//! an encoded `BootstrapResult`. The inner shim was built along with containerd and knows which one is right, so its
//! answer is passed on with nothing but the address replaced.

use anyhow::{Context, Result, bail};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::{Message, well_known_types::any::Any};
use serde_json::{Map, Value};

use crate::options::{Translation, translate};

/// The version of the task API that a bare address stands for.
const PLAIN_VERSION: u32 = 2;

/// A shim's answer to `start`.
#[derive(Debug, Clone, PartialEq)]
enum Format {
    Plain,
    Json(Map<String, Value>),
    Protobuf(BootstrapResult),
}

/// A shim's answer to `start`.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Where the shim listens.
    pub address: String,
    /// Version of the task API.
    pub version: u32,
    format: Format,
}

impl Answer {
    /// Reads an answer of any of the three dialects.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map(str::trim).unwrap_or_default();
        let (address, version, protocol, format) = if text.starts_with('{') {
            let object: Map<String, Value> = serde_json::from_str(text).context("its answer is not valid JSON")?;
            let string = |key| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let version = object.get("version").and_then(Value::as_u64).and_then(|version| u32::try_from(version).ok());
            (string("address"), version.unwrap_or(0), string("protocol"), Format::Json(object))
        } else if text.starts_with(|first: char| first.is_ascii_graphic()) {
            (text.to_owned(), PLAIN_VERSION, String::new(), Format::Plain)
        } else {
            let result = BootstrapResult::parse_from_bytes(bytes).context("its answer can't be decoded")?;
            // rust-protobuf writes these with a wrong length: nobody could read the answer that is passed on.
            if let Some(unknown) = result.capabilities.iter().find(|capability| capability.value() < 0) {
                bail!("its answer names the capability {}, which can't be", unknown.value());
            }
            let version = u32::try_from(result.version).unwrap_or(0);
            (result.address.clone(), version, result.protocol.clone(), Format::Protobuf(result))
        };
        if address.is_empty() {
            bail!("its answer names no address: {:?}", String::from_utf8_lossy(bytes));
        }
        if !matches!(protocol.as_str(), "" | "ttrpc") {
            bail!("it speaks {protocol}, only ttrpc is supported");
        }
        Ok(Self { address, version: if version == 0 { PLAIN_VERSION } else { version }, format })
    }

    /// The same answer with another address.
    pub fn with_address(&self, address: &str) -> Result<Vec<u8>> {
        match &self.format {
            Format::Plain => Ok(address.as_bytes().to_vec()),
            Format::Json(object) => {
                let mut object = object.clone();
                object.insert("address".to_owned(), address.into());
                serde_json::to_vec(&object).context("encoding the answer")
            }
            Format::Protobuf(result) => {
                let mut result = result.clone();
                address.clone_into(&mut result.address);
                result.write_to_bytes().context("encoding the answer")
            }
        }
    }
}

/// What containerd pipes into `start`.
#[derive(Debug, Default, PartialEq)]
pub struct Input {
    /// The bytes for the inner shim: the same, with the runtime options translated.
    pub for_inner: Vec<u8>,
    /// containerd's gRPC address, where the input names it.
    pub containerd_address: Option<String>,
    /// The directory for sockets, where the input names it.
    pub socket_directory: Option<String>,
}

impl Input {
    /// Reads it. Up to containerd 2.2 it is the runtime options as an `Any`, later `BootstrapParams`. Both decode as
    /// either; what tells them apart is whether the first field is the container's id or a type's name.
    pub fn parse(bytes: &[u8], id: &str, namespace: &str) -> Result<Self> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        if let Ok(params) = BootstrapParams::parse_from_bytes(bytes)
            && params.instance_id == id
            && params.namespace == namespace
        {
            return Self::from_params(params, bytes);
        }
        let Ok(options) = Any::parse_from_bytes(bytes) else {
            return Ok(Self { for_inner: bytes.to_vec(), ..Self::default() });
        };
        let for_inner = match translate(&options)? {
            Translation::AsIs => bytes.to_vec(),
            Translation::Instead(options) => options.write_to_bytes().context("encoding the runtime options")?,
            Translation::Nothing => Vec::new(),
        };
        Ok(Self { for_inner, ..Self::default() })
    }

    fn from_params(mut params: BootstrapParams, bytes: &[u8]) -> Result<Self> {
        let mut changed = false;
        let mut kept = Vec::new();
        for mut extension in params.extensions.drain(..) {
            match extension.value.as_ref().map(translate).transpose()? {
                None | Some(Translation::AsIs) => kept.push(extension),
                Some(Translation::Nothing) => changed = true,
                Some(Translation::Instead(options)) => {
                    extension.value = Some(options).into();
                    kept.push(extension);
                    changed = true;
                }
            }
        }
        params.extensions = kept;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            containerd_address: some(&params.containerd_grpc_address),
            socket_directory: params.socket_dir.as_deref().and_then(some),
            for_inner: if changed {
                params.write_to_bytes().context("encoding the bootstrap parameters")?
            } else {
                bytes.to_vec()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;

    use super::*;

    #[test]
    fn plain_answer() {
        let answer = Answer::parse(b"unix:///run/containerd/s/aa\n").unwrap();
        assert_eq!((answer.address.as_str(), answer.version), ("unix:///run/containerd/s/aa", 2));
        assert_eq!(answer.with_address("unix:///b").unwrap(), b"unix:///b");
    }

    #[test]
    fn json_answer_keeps_what_we_do_not_know() {
        let answer =
            Answer::parse(br#"{"version":3,"address":"unix:///a","protocol":"ttrpc","metadata":{"k":"v"}}"#).unwrap();
        assert_eq!((answer.address.as_str(), answer.version), ("unix:///a", 3));
        let swapped: Value = serde_json::from_slice(&answer.with_address("unix:///b").unwrap()).unwrap();
        assert_eq!(
            swapped,
            serde_json::json!({"version": 3, "address": "unix:///b", "protocol": "ttrpc", "metadata": {"k": "v"}})
        );
    }

    #[test]
    fn protobuf_answer() {
        let mut result =
            BootstrapResult { version: 3, address: "unix:///a".into(), protocol: "ttrpc".into(), ..Default::default() };
        let answer = Answer::parse(&result.write_to_bytes().unwrap()).unwrap();
        assert_eq!((answer.address.as_str(), answer.version), ("unix:///a", 3));
        result.address = "unix:///b".into();
        let swapped = BootstrapResult::parse_from_bytes(&answer.with_address("unix:///b").unwrap()).unwrap();
        assert_eq!(swapped, result);
    }

    #[test]
    fn useless_answers_are_refused() {
        let capability = b"\x08\x03\x12\x01a\x22\x0a\xf1\xff\xff\xff\xff\xff\xff\xff\xff\x01";
        for answer in [&b""[..], b"{}", b"{", br#"{"address":"unix:///a","protocol":"grpc"}"#, capability] {
            assert!(Answer::parse(answer).is_err(), "{answer:?}");
        }
    }

    fn systemd_options() -> Any {
        let mut options = protobuf::well_known_types::empty::Empty::default();
        options.special_fields.mut_unknown_fields().add_length_delimited(3, b"SystemdCgroup = true".to_vec());
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Default::default()
        }
    }

    #[test]
    fn options_on_stdin_are_translated() {
        let input = Input::parse(&systemd_options().write_to_bytes().unwrap(), "c1", "default").unwrap();
        let options = Any::parse_from_bytes(&input.for_inner).unwrap();
        assert_eq!(options.type_url, "containerd.runc.v1.Options");
        assert_eq!(Input::parse(b"", "c1", "default").unwrap(), Input::default());
    }

    #[test]
    fn options_in_bootstrap_parameters_are_translated() {
        let params = BootstrapParams {
            instance_id: "c1".into(),
            namespace: "default".into(),
            containerd_grpc_address: "/run/c.sock".into(),
            socket_dir: Some("/s".into()),
            extensions: vec![Extension { value: Some(systemd_options()).into(), ..Default::default() }],
            ..Default::default()
        };
        let input = Input::parse(&params.write_to_bytes().unwrap(), "c1", "default").unwrap();
        assert_eq!(input.containerd_address.as_deref(), Some("/run/c.sock"));
        assert_eq!(input.socket_directory.as_deref(), Some("/s"));
        let inner = BootstrapParams::parse_from_bytes(&input.for_inner).unwrap();
        assert_eq!(inner.extensions.first().unwrap().value.type_url, "containerd.runc.v1.Options");
    }
}

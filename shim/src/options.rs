//! Runtime options that the inner shim can't read, put into the words it knows.
//!
//! CRI sends a runtime type that it does not know as `runtimeoptions.v1.Options`: the section of containerd's
//! configuration as TOML, or the path of a file that holds it. The runc shim reads only `containerd.runc.v1.Options`,
//! and `SystemdCgroup` reaches it in no other way: without the translation containers would end up in the wrong
//! cgroup.

use std::fs;

use anyhow::{Context, Error, Result, anyhow};
use containerd_shim_protos::shim::oci::Options;
use protobuf::{Message, UnknownValueRef, well_known_types::any::Any, well_known_types::empty::Empty};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

const GENERIC: &str = "runtimeoptions.v1.Options";
const RUNC: &str = "containerd.runc.v1.Options";

/// Fields of `runtimeoptions.v1.Options`.
const CONFIG_PATH: u32 = 2;
pub(crate) const CONFIG_BODY: u32 = 3;

/// Field of `containerd.runc.v1.Options` that containerd 2 has retired and older runc shims read.
const CRIU_PATH: u32 = 8;

/// The options in the inner shim's words.
#[derive(Debug, PartialEq)]
pub enum Translation {
    /// It reads them as they are.
    AsIs,
    /// Send these instead.
    Instead(Any),
    /// They say nothing: send none.
    Nothing,
}

/// Translates options.
pub fn translate(options: &Any) -> Result<Translation> {
    // Go writes the bare name, others put a host before it.
    if options.type_url.rsplit('/').next() != Some(GENERIC) {
        return Ok(Translation::AsIs);
    }
    let Some(text) = config(&options.value)? else { return Ok(Translation::Nothing) };
    // Not `toml::Table`: what makes one of the parsed text would be a twentieth of this program, which is resident.
    let table = DeTable::parse(&text).context("the runtime options are not valid TOML")?;
    let runc = from_table(table.get_ref(), &text)?;
    if runc == Options::default() {
        return Ok(Translation::Nothing);
    }
    let value = runc.write_to_bytes().context("encoding the runtime options")?;
    Ok(Translation::Instead(Any { type_url: RUNC.to_owned(), value, ..Any::default() }))
}

/// The TOML in an encoded `runtimeoptions.v1.Options`. No generated code for three fields: a message without fields
/// keeps them all as unknown ones.
fn config(message: &[u8]) -> Result<Option<String>> {
    let message = Empty::parse_from_bytes(message).context("decoding the runtime options")?;
    let field = |number| match message.special_fields.unknown_fields().get(number) {
        Some(UnknownValueRef::LengthDelimited(bytes)) if !bytes.is_empty() => {
            std::str::from_utf8(bytes).context("the runtime options are not UTF-8").map(Some)
        }
        _ => Ok(None),
    };
    if let Some(body) = field(CONFIG_BODY)? {
        return Ok(Some(body.to_owned()));
    }
    let Some(path) = field(CONFIG_PATH)? else { return Ok(None) };
    fs::read_to_string(path).map(Some).with_context(|| format!("reading the runtime options' ConfigPath {path}"))
}

/// Keys are compared without regard to case, as containerd's own TOML decoder does. A key that is no option of runc's
/// is passed over, as containerd does with the section of the runc shim.
fn from_table(table: &DeTable<'_>, text: &str) -> Result<Options> {
    let mut options = Options::default();
    for (key, value) in table {
        let given = Given { key: key.get_ref(), value, text };
        match key.get_ref().to_ascii_lowercase().as_str() {
            "nopivotroot" => options.no_pivot_root = given.boolean()?,
            "nonewkeyring" => options.no_new_keyring = given.boolean()?,
            "shimcgroup" => options.shim_cgroup = given.string()?,
            "iouid" => options.io_uid = given.number()?,
            "iogid" => options.io_gid = given.number()?,
            "binaryname" => options.binary_name = given.string()?,
            "root" => options.root = given.string()?,
            "criupath" => options
                .special_fields
                .mut_unknown_fields()
                .add_length_delimited(CRIU_PATH, given.string()?.into_bytes()),
            "systemdcgroup" => options.systemd_cgroup = given.boolean()?,
            "criuimagepath" => options.criu_image_path = given.string()?,
            "criuworkpath" => options.criu_work_path = given.string()?,
            "taskapiaddress" => options.task_api_address = given.string()?,
            "taskapiversion" => options.task_api_version = given.number()?,
            _ => {}
        }
    }
    Ok(options)
}

/// An option as it stands in the text.
struct Given<'a> {
    key: &'a str,
    value: &'a Spanned<DeValue<'a>>,
    text: &'a str,
}

impl Given<'_> {
    fn must_be(&self, what: &str) -> Error {
        let given = self.text.get(self.value.span()).unwrap_or_default();
        anyhow!("runtime option {} must be {what}, not {given}", self.key)
    }

    fn boolean(&self) -> Result<bool> {
        self.value.get_ref().as_bool().ok_or_else(|| self.must_be("true or false"))
    }

    fn string(&self) -> Result<String> {
        self.value.get_ref().as_str().map(str::to_owned).ok_or_else(|| self.must_be("a string"))
    }

    fn number(&self) -> Result<u32> {
        let number = self.value.get_ref().as_integer();
        number
            .and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok())
            .ok_or_else(|| self.must_be("a number from 0 to 4294967295"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(fields: &[(u32, &str)]) -> Any {
        let mut message = Empty::default();
        for (number, text) in fields {
            message.special_fields.mut_unknown_fields().add_length_delimited(*number, text.as_bytes().to_vec());
        }
        Any {
            type_url: format!("types.googleapis.com/{GENERIC}"),
            value: message.write_to_bytes().unwrap(),
            ..Any::default()
        }
    }

    fn translated(options: &Any) -> Options {
        let Translation::Instead(any) = translate(options).unwrap() else { panic!("not translated") };
        assert_eq!(any.type_url, RUNC);
        Options::parse_from_bytes(&any.value).unwrap()
    }

    #[test]
    fn body_becomes_runc_options() {
        let options = translated(&generic(&[(
            CONFIG_BODY,
            "SystemdCgroup = true\nBinaryName = \"/usr/sbin/runc\"\nIoUid = 0x1_0\nCriuPath = \"/criu\"\nSomething = 1\n",
        )]));
        assert!(options.systemd_cgroup);
        assert_eq!(options.binary_name, "/usr/sbin/runc");
        assert_eq!(options.io_uid, 16);
        let criu = options.special_fields.unknown_fields().get(CRIU_PATH);
        assert!(matches!(criu, Some(UnknownValueRef::LengthDelimited(b"/criu"))), "{criu:?}");
    }

    #[test]
    fn keys_have_no_case() {
        assert!(translated(&generic(&[(CONFIG_BODY, "systemdcgroup = true")])).systemd_cgroup);
    }

    #[test]
    fn path_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "SystemdCgroup = true").unwrap();
        assert!(translated(&generic(&[(CONFIG_PATH, file.path().to_str().unwrap())])).systemd_cgroup);
        let error = translate(&generic(&[(CONFIG_PATH, "/nonexistent")])).unwrap_err();
        assert!(format!("{error:#}").contains("ConfigPath /nonexistent"), "{error:#}");
    }

    #[test]
    fn what_says_nothing_is_not_sent() {
        assert_eq!(translate(&generic(&[])).unwrap(), Translation::Nothing);
        assert_eq!(translate(&generic(&[(1, "x")])).unwrap(), Translation::Nothing);
        assert_eq!(translate(&generic(&[(CONFIG_BODY, "SystemdCgroup = false")])).unwrap(), Translation::Nothing);
    }

    #[test]
    fn other_types_pass() {
        let runc = Any { type_url: RUNC.to_owned(), value: vec![0x48, 1], ..Any::default() };
        assert_eq!(translate(&runc).unwrap(), Translation::AsIs);
    }

    #[test]
    fn wrong_types_are_named() {
        let error = translate(&generic(&[(CONFIG_BODY, "SystemdCgroup = \"yes\"")])).unwrap_err();
        assert_eq!(error.to_string(), "runtime option SystemdCgroup must be true or false, not \"yes\"");
        assert!(translate(&generic(&[(CONFIG_BODY, "IoUid = -1")])).is_err());
        assert!(translate(&generic(&[(CONFIG_BODY, "= 1")])).is_err());
    }
}

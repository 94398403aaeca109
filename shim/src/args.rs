//! The command line that containerd gives a shim, in the syntax of Go's `flag` package.
//!
//! The crate `containerd-shim` has this as well, along with a hundred further crates (a D-Bus client among them) that
//! nothing else here needs.

use std::ffi::OsString;

use anyhow::{Context, Result, bail};

/// What a shim is told. Everything is handed on to the inner shim as it came; here is what we use.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Log more.
    pub debug: bool,
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// The bundle, where it is not the working directory.
    pub bundle: String,
    /// containerd's gRPC address.
    pub address: String,
    /// Print the version.
    pub version: bool,
    /// Print what the runtime can do.
    pub info: bool,
    /// The command: `start`, `delete`, our own `learn`, or nothing.
    pub action: String,
    /// What follows the command, if anything does; containerd gives nothing.
    pub argument: String,
}

impl Flags {
    /// Reads the arguments after the program's name. Flags end at the first word that is none.
    pub fn parse(arguments: &[OsString]) -> Result<Self> {
        let mut flags = Self::default();
        // Given by containerd, of no use to us.
        let (mut socket, mut publish_binary) = (String::new(), String::new());
        let mut words =
            arguments.iter().map(|word| word.to_str().with_context(|| format!("{} is not UTF-8", word.display())));
        while let Some(word) = words.next().transpose()? {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|flag| !flag.is_empty())
            else {
                let action = if word == "--" { words.next().transpose()?.unwrap_or_default() } else { word };
                action.clone_into(&mut flags.action);
                words.next().transpose()?.unwrap_or_default().clone_into(&mut flags.argument);
                break;
            };
            let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
            let boolean = match name {
                "debug" => Some(&mut flags.debug),
                "v" | "version" => Some(&mut flags.version),
                "info" => Some(&mut flags.info),
                _ => None,
            };
            if let Some(boolean) = boolean {
                *boolean = match value {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(other) => bail!("flag -{name} must be true or false, not {other:?}"),
                };
                continue;
            }
            let string = match name {
                "namespace" => &mut flags.namespace,
                "id" => &mut flags.id,
                "bundle" => &mut flags.bundle,
                "address" => &mut flags.address,
                "socket" => &mut socket,
                "publish-binary" => &mut publish_binary,
                _ => bail!("unknown flag -{name}"),
            };
            let value = match value {
                Some(value) => value,
                None => words.next().transpose()?.with_context(|| format!("flag -{name} needs a value"))?,
            };
            value.clone_into(string);
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags> {
        Flags::parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn start_and_delete_as_containerd_runs_them() {
        let flags = parse("-namespace default -address /c.sock -publish-binary /bin/containerd -id c1 -debug start");
        assert_eq!(
            flags.unwrap(),
            Flags {
                debug: true,
                namespace: "default".into(),
                id: "c1".into(),
                address: "/c.sock".into(),
                action: "start".into(),
                ..Flags::default()
            }
        );
        let flags = parse("-namespace=default --id=c1 -socket x -bundle /b -debug=false delete").unwrap();
        assert_eq!((flags.bundle.as_str(), flags.action.as_str(), flags.debug), ("/b", "delete", false));
    }

    #[test]
    fn version_and_info() {
        assert!(parse("-v").unwrap().version);
        assert!(parse("--version").unwrap().version);
        assert!(parse("-info").unwrap().info);
        assert_eq!(parse("").unwrap(), Flags::default());
    }

    #[test]
    fn nonsense_is_named() {
        for (line, word) in [("-id", "-id"), ("-debug=maybe", "maybe"), ("-such start", "-such")] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(parse("-id c1 -- start").unwrap().action, "start");
    }

    #[test]
    fn a_command_may_have_an_argument() {
        assert_eq!(parse("learn -x").unwrap().argument, "-x");
        assert_eq!(parse("-id c1 start").unwrap().argument, "");
    }
}

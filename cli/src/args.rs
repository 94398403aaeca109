//! The command line as a whole.

use std::path::PathBuf;

use clap::{ColorChoice, CommandFactory, Parser, Subcommand, error::ErrorKind};
use rustls::pki_types::ServerName;

use crate::{
    check,
    client::{Agent, ClientError, Place},
    completions,
    contain::{Contain, Release},
    containers, exit, fingerprint,
    install::{Install, Uninstall},
    man, mode,
    output::{Format, Screen},
    policy, signals,
    tls::{self, Identity, Remote},
    triage,
};

/// Network utilities in containers: what was found on this node, what is guarded, what the node can do.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, after_help = exit::HELP, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every verb.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The agent's socket
    #[arg(long, global = true, value_name = "PATH", env = "PORTCULLIS_SOCKET")]
    #[arg(default_value = "/run/portcullis/portcullis.sock")]
    pub socket: PathBuf,
    /// An agent that serves TCP, instead of the socket; needs --ca, --cert and --key
    #[arg(long, global = true, value_name = "https://HOST:PORT", env = "PORTCULLIS_ADDRESS")]
    pub address: Option<Remote>,
    /// Whom its certificate is signed by (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_CA")]
    pub ca: Option<PathBuf>,
    /// Your certificate (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_CERT")]
    pub cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, global = true, value_name = "FILE", env = "PORTCULLIS_KEY")]
    pub key: Option<PathBuf>,
    /// The name that its certificate is for, if that is not HOST
    #[arg(long, global = true, value_name = "NAME", env = "PORTCULLIS_SERVER_NAME", value_parser = tls::server_name)]
    pub server_name: Option<ServerName<'static>>,
    /// Output format
    #[arg(short, long, global = true, value_name = "FORMAT", value_enum, default_value = "table")]
    pub output: Format,
    /// Colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

impl Global {
    /// What is known about standard output.
    pub fn screen(&self) -> Screen {
        Screen::stdout(self.color)
    }

    /// Where the agent is; an error of usage if that can't be told.
    pub fn place(&self) -> Result<Place, clap::Error> {
        let Some(remote) = &self.address else { return Ok(Place::Socket(self.socket.clone())) };
        let (Some(ca), Some(cert), Some(key)) = (&self.ca, &self.cert, &self.key) else {
            let reason = "--address needs --ca, --cert and --key: the agent is asked over TCP by mutual TLS only";
            return Err(Args::command().error(ErrorKind::MissingRequiredArgument, reason));
        };
        let remote = match &self.server_name {
            Some(name) => remote.clone().with_name(name.clone()),
            None => remote.clone(),
        };
        Ok(Place::Remote(remote, Identity { ca: ca.clone(), cert: cert.clone(), key: key.clone() }))
    }

    /// A connection to it.
    pub async fn agent(&self) -> Result<Agent, ClientError> {
        Agent::connect(self.place().unwrap_or_else(|error| error.exit())).await
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    Check(check::Args),
    Signals(signals::Args),
    Triage(triage::Args),
    Containers(containers::Args),
    Policy(policy::Args),
    Mode(mode::Args),
    Contain(Contain),
    Release(Release),
    Fingerprint(fingerprint::Args),
    Install(Install),
    Uninstall(Uninstall),
    Completions(completions::Args),
    Man(man::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        super::Args::command().debug_assert();
    }
}

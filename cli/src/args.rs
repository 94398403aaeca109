//! The command line as a whole.

use std::path::PathBuf;

use clap::{ColorChoice, Parser, Subcommand};

use crate::{
    check, completions,
    contain::{Contain, Release},
    containers, exit, fingerprint,
    install::{Install, Uninstall},
    man, mode,
    output::{Format, Screen},
    policy, signals, triage,
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

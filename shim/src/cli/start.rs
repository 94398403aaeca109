//! `start`: makes sure that a pair of shims serves the container's group, and says where.
//!
//! containerd runs it in the container's bundle.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{net::UnixListener, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    args::Flags,
    bootstrap::{Answer, Input},
    inner::{self, Inner},
    log::{self, Level},
    proxy,
    rundir::RunDir,
    socket, spec,
    starting::Starting,
    state::{self, Shims},
};

/// The file in which containerd finds a shim's address again after a restart.
const ADDRESS: &str = "address";

/// Runs the command and gives the answer to print.
pub fn start(flags: &Flags, arguments: &[OsString]) -> Result<Vec<u8>> {
    start_in(flags, arguments).with_context(|| format!("container {} refused", flags.id))
}

fn start_in(flags: &Flags, arguments: &[OsString]) -> Result<Vec<u8>> {
    if flags.id.is_empty() || flags.namespace.is_empty() {
        bail!("-id and -namespace are required: containerd gives them");
    }
    let bundle = env::current_dir().context("finding the bundle")?;
    let input = Input::parse(&super::input()?, &flags.id, &flags.namespace)?;
    let address = input.containerd_address.as_deref().filter(|_| flags.address.is_empty()).unwrap_or(&flags.address);
    // Refused here, before anything exists that would have to be undone.
    let run_dir = RunDir::from_env();
    let set = run_dir.policy_set()?;
    let annotations = spec::annotations(&bundle)?;
    let socket = socket::path(
        input.socket_directory.as_deref().map(Path::new),
        address,
        &flags.namespace,
        spec::group(&annotations, &flags.id),
    );
    inner::prepare(&bundle)?;
    let starting = run_dir.starting();
    let new = New {
        flags,
        starting: &starting,
        containerd_address: address,
        arguments,
        input: &input.for_inner,
        bundle: &bundle,
    };
    let shims = match bind_or_join(&socket)? {
        Side::Bound(listener) => new.start(&set.inner_shim, socket.clone(), listener).inspect_err(|_| {
            let _ = fs::remove_file(&socket);
        })?,
        Side::Joined(shims) => {
            shims.save(&bundle)?;
            shims
        }
    };
    if let Err(error) = starting.end_abandoned(super::bury) {
        log::write(&bundle, Level::Warning, &flags.id, &format!("what a killed shim left behind stays: {error:#}"));
    }
    state::replace(&bundle.join(ADDRESS), socket::address(&shims.socket).as_bytes())?;
    Ok(shims.answer)
}

/// How a container comes by its shims.
enum Side {
    /// It is the first of its group.
    Bound(UnixListener),
    /// One pair of shims serves all containers of a pod.
    Joined(Shims),
}

fn bind_or_join(socket: &Path) -> Result<Side> {
    // Twice, for a shim that dies while it is being looked at.
    for _ in 0..2 {
        if let Some(listener) = socket::bind(socket)? {
            return Ok(Side::Bound(listener));
        }
        if let Some(shims) = proxy::find(socket)? {
            return Ok(Side::Joined(shims));
        }
    }
    bail!("the socket {} keeps changing hands: try again", socket.display())
}

/// A pair of shims to be started.
struct New<'a> {
    flags: &'a Flags,
    containerd_address: &'a str,
    arguments: &'a [OsString],
    input: &'a [u8],
    bundle: &'a Path,
    starting: &'a Starting,
}

impl New<'_> {
    fn start(&self, inner_shim: &Path, socket: PathBuf, listener: UnixListener) -> Result<Shims> {
        let program = Inner::find(inner_shim)?;
        let answer = program.run(self.arguments, &inner::directory(self.bundle), self.input)?;
        let answer = Answer::parse(&answer).with_context(|| format!("{} start", program.program.display()))?;
        let shims = Shims {
            answer: answer.with_address(&socket::address(&socket))?,
            socket,
            inner_program: program.program,
            inner_address: answer.address,
            task_version: answer.version,
            inner: None,
        };
        // The resident part comes up while the inner shim does, which takes longer: only it has the time to wait.
        shims
            .save(self.bundle)
            .and_then(|()| self.starting.note(&shims))
            .and_then(|()| self.daemon(listener))
            .inspect_err(|_| {
                // It serves nobody yet, and nobody else knows of it.
                let _ = super::end_inner(&shims);
                self.starting.forget(&shims);
            })?;
        Ok(shims)
    }

    /// Starts the resident part. It needs nothing of us but the socket, and that is its standard input.
    fn daemon(&self, listener: UnixListener) -> Result<()> {
        let program = env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.args(["-namespace", &self.flags.namespace, "-id", &self.flags.id, "-address", self.containerd_address]);
        if self.flags.debug {
            command.arg("-debug");
        }
        command
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting the shim's resident part")?;
        Ok(())
    }
}

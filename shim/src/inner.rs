//! The inner shim as a program: finding it, running its commands.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// The inner shim where no policy set says otherwise.
pub const DEFAULT: &str = "containerd-shim-runc-v2";

/// Directory in the bundle that is the inner shim's own.
const DIRECTORY: &str = "inner";

/// The inner shim's own directory in a bundle. Both shims write `address` into their working directory.
pub fn directory(bundle: &Path) -> PathBuf {
    bundle.join(DIRECTORY)
}

/// Creates that directory, with links to what the inner shim reads and writes in the bundle.
pub fn prepare(bundle: &Path) -> Result<PathBuf> {
    let directory = directory(bundle);
    let prepare = || -> io::Result<()> {
        fs::create_dir_all(&directory)?;
        for name in ["config.json", "log"] {
            match symlink(Path::new("..").join(name), directory.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
        }
        Ok(())
    };
    prepare().with_context(|| format!("preparing {}", directory.display()))?;
    Ok(directory)
}

/// The inner shim.
#[derive(Debug, Clone)]
pub struct Inner {
    /// Absolute path of the program.
    pub program: PathBuf,
}

impl Inner {
    /// Finds the program: an absolute path, or a name looked up in `PATH`.
    pub fn find(name: &Path) -> Result<Self> {
        Self::find_in(name, &env::var_os("PATH").unwrap_or_default())
    }

    fn find_in(name: &Path, path: &OsString) -> Result<Self> {
        let is_program = |candidate: &PathBuf| {
            fs::metadata(candidate).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        let (found, place) = if name.is_absolute() {
            (Some(name.to_owned()).filter(is_program), "")
        } else {
            (env::split_paths(path).map(|directory| directory.join(name)).find(is_program), " in PATH")
        };
        let program = found.with_context(|| {
            format!(
                "inner shim {} not found{place}: install containerd's runc shim, or set shim.inner in \
                 /etc/portcullis/portcullis.toml",
                name.display()
            )
        })?;
        Ok(Self { program })
    }

    /// Runs one of its commands and gives what it printed.
    pub fn run(&self, arguments: &[OsString], directory: &Path, input: &[u8]) -> Result<Vec<u8>> {
        let doing = || format!("running {}", self.program.display());
        let mut child = Command::new(&self.program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(doing)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command may well end without reading it.
            match stdin.write_all(input) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error).with_context(doing),
                _ => {}
            }
        }
        let Output { status, stdout, stderr } = child.wait_with_output().with_context(doing)?;
        if !status.success() {
            let said = [stderr, stdout].concat();
            bail!("{} ended with {status}: {}", self.program.display(), String::from_utf8_lossy(&said).trim());
        }
        Ok(stdout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_names_cause_and_remedy() {
        let error = Inner::find_in(Path::new("no-such-shim"), &"/bin:/usr/bin".into()).unwrap_err().to_string();
        assert!(error.starts_with("inner shim no-such-shim not found in PATH: install"), "{error}");
        assert!(error.contains("shim.inner"), "{error}");
        let error = Inner::find_in(Path::new("/no/such/shim"), &"".into()).unwrap_err().to_string();
        assert!(error.starts_with("inner shim /no/such/shim not found: install"), "{error}");
    }

    #[test]
    fn finds_by_name_and_by_path() {
        assert_eq!(Inner::find_in(Path::new("sh"), &"/nonexistent:/bin".into()).unwrap().program, Path::new("/bin/sh"));
        assert_eq!(Inner::find_in(Path::new("/bin/sh"), &"".into()).unwrap().program, Path::new("/bin/sh"));
        // A directory or a plain file is no program.
        assert!(Inner::find_in(Path::new("/etc"), &"".into()).is_err());
        assert!(Inner::find_in(Path::new("/etc/passwd"), &"".into()).is_err());
    }

    #[test]
    fn failure_carries_what_the_program_said() {
        let shell = Inner { program: "/bin/sh".into() };
        let run = |script: &str| shell.run(&["-c".into(), script.into()], Path::new("/"), b"x");
        assert_eq!(run("cat").unwrap(), b"x");
        assert_eq!(run("echo noise >&2; echo answer").unwrap(), b"answer\n");
        let error = run("echo cause >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("exit status: 3: cause"), "{error}");
    }

    #[test]
    fn preparing_twice_is_fine() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("config.json"), "{}").unwrap();
        prepare(bundle.path()).unwrap();
        let inner = prepare(bundle.path()).unwrap();
        assert_eq!(fs::read_to_string(inner.join("config.json")).unwrap(), "{}");
    }
}

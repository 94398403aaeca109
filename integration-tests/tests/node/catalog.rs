//! What the operator adds to the catalogue.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{
    eventually::eventually,
    node::{Node, find_program},
};

/// A root file system whose only program is `/bin/innocent`, which nobody knows by its content, and links to it.
pub fn innocent_rootfs(root: &Path, links: &[&str]) -> Result<()> {
    for directory in ["bin", "proc", "dev", "sys", "run", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    let innocent = root.join("bin/innocent");
    // busybox with its section table said to be elsewhere: it runs, but is another content.
    let mut program = fs::read(find_program("busybox").context("busybox is missing")?)?;
    *program.get_mut(40).context("busybox is empty")? ^= 0x55;
    fs::write(&innocent, &program)?;
    fs::set_permissions(&innocent, Permissions::from_mode(0o755))?;
    for link in links {
        symlink("innocent", root.join("bin").join(link))?;
    }
    Ok(())
}

/// A tool by name and by content, in containers that run already; and a broken file that changes nothing.
pub fn an_operators_tools_are_known(node: &Node) -> Result<()> {
    let scratch = node.scratch()?;
    let root = scratch.path().join("rootfs");
    innocent_rootfs(&root, &["sleep", "true", "acme-probe"])?;
    let container = node.container().rootfs(&root).option("--env").option("PATH=/bin").start()?;
    container.exec(&["true"])?.success()?;
    ensure!(node.signals()?.iter().all(|signal| signal.container_id() != container.id()), "it is known already");

    let innocent = root.join("bin/innocent").display().to_string();
    let entry = node.portcullis(&["fingerprint", "--tool", "acme", &innocent])?.success()?.stdout;
    let tool = "[category.scanner.tools]\nacme = { names = [\"acme-probe\"] }\n";
    let more = node.catalog(&format!("{tool}{entry}"))?;
    container.exec(&["acme-probe"])?;
    container.exec(&["true"])?;
    let both = |number| {
        eventually(|| {
            let signals = node.signals()?;
            let mut ours: Vec<_> =
                signals.into_iter().filter(|signal| signal.container_id() == container.id()).collect();
            ours.sort_by_key(|signal| signal.id);
            ensure!(ours.len() == number, "{ours:#?}");
            Ok(ours)
        })
    };
    let signals = both(2)?;
    for (signal, by) in signals.iter().zip(["invoked_name", "fingerprint"]) {
        ensure!(signal.tool() == "acme" && signal.identified_by.iter().any(|word| word == by), "{signal:#?}");
    }

    fs::write(more.file(), "[category.scanner.tools]\nacme = { names = [\"nc\"] }\n")?;
    node.reload()?;
    eventually(|| {
        let log = node.agent().as_ref().context("no agent")?.log();
        ensure!(log.contains("test.toml:2:"), "the agent's log does not name the place: {log}");
        Ok(())
    })?;
    // With another argument it is no repeat.
    container.exec(&["true", "again"])?;
    ensure!(both(3)?.iter().all(|signal| signal.tool() == "acme"), "the former catalogue is not in force");
    Ok(())
}

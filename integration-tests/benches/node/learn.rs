//! What learning a container's contents adds to its Create: of the first container of an image, and of the next ones. The shim's own
//! command `learn`, timed from outside, on containers that no shim has learnt from.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use portcullis_integration_tests::{command::run, containerd::IMAGE};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

use crate::{
    Bed,
    figure::{Figure, MS, Notebook, Samples},
};

/// A Debian image for developers has so many; the smallest one 275 in /usr/bin and 116 in /usr/sbin.
const PROGRAMS: usize = 1500;

/// What is to be compared is smaller than what other load adds to a process's time.
const LEAST_OF: usize = 10;

const WARM_UP: usize = 2;

pub fn learn(bed: &Bed, book: &Notebook) -> Result<()> {
    let scratch = bed.node.scratch()?;
    let root = scratch.path().join("root");
    crowded_root(bed, &scratch.path().join("image"), &root)?;
    let (mut first, mut next, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..WARM_UP + bed.rounds(40, 5, 5, 2) {
        let times = once(bed, &scratch.path().join(format!("learn-{number}")), &root, number)?;
        if number >= WARM_UP {
            first.push(times.unknown);
            next.push(times.known - times.nothing);
            alone.push(times.nothing);
        }
    }
    let [first, next, alone] = [first, next, alone].map(Samples::from_iter);
    let of = format!("{PROGRAMS} files in /usr/bin");
    book.add(Figure::median(&format!("learning, first container of an image with {of}: a process"), MS, &first));
    book.add(Figure::tail("learning, first container, p95", MS, 0.95, &first));
    book.add(Figure::median("learning, next container: that process less one that does nothing", MS, &next));
    book.add(Figure::median("a process that does nothing, part of these", MS, &alone));
    Ok(())
}

/// The image, which has more tools than Debian's, and so many files beside them.
fn crowded_root(bed: &Bed, image: &Path, root: &Path) -> Result<()> {
    fs::create_dir(image)?;
    run(bed.node.containerd().ctr().args(["images", "mount", IMAGE]).arg(image))?.success()?;
    let copied = run(Command::new("cp").arg("-a").arg(image).arg(root));
    run(bed.node.containerd().ctr().args(["images", "unmount", "--rm"]).arg(image))?.success()?;
    copied?.success()?;
    let programs = root.join("usr/bin");
    for number in fs::read_dir(&programs)?.count()..PROGRAMS {
        File::create(programs.join(format!("program-{number}")))?;
    }
    Ok(())
}

/// Milliseconds.
struct Times {
    unknown: f64,
    known: f64,
    nothing: f64,
}

/// Mounted anew, as for each container: nothing of it has been looked up yet.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(directory: &Path, lower: &Path) -> Result<Self> {
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| directory.join(name));
        for directory in [&upper, &work, &merged] {
            fs::create_dir_all(directory)?;
        }
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options)?;
        mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str())?;
        Ok(Self(merged))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("unmounting {}: {error}", self.0.display());
        }
    }
}

fn once(bed: &Bed, directory: &Path, root: &Path, number: usize) -> Result<Times> {
    let overlay = Overlay::mount(directory, root)?;
    // By the stock shim: ours would learn by itself.
    let container = bed.stock().rootfs(&overlay.0).start_with(&["/bin/sleep", "1000"])?;
    let set = bed.node.policy_set()?;
    // A scope that is nobody's.
    let scope = u64::try_from(number)? + 1;
    let lesson =
        json!({ "pid": container.pid()?, "scope": scope, "catalog": set.catalog, "pins": set.pins }).to_string();
    let unknown = shim(bed, &["learn", &lesson])?;
    let known = least(bed, &["learn", &lesson])?;
    let nothing = least(bed, &["-v"])?;
    container.delete()?;
    Ok(Times { unknown, known, nothing })
}

fn least(bed: &Bed, arguments: &[&str]) -> Result<f64> {
    (0..LEAST_OF).try_fold(f64::INFINITY, |least, _| Ok(least.min(shim(bed, arguments)?)))
}

/// How long the shim's program takes.
fn shim(bed: &Bed, arguments: &[&str]) -> Result<f64> {
    let mut command = Command::new(bed.node.setup().bin_dir.join("containerd-shim-portcullis-v1"));
    command.args(arguments).env("PORTCULLIS_RUN_DIR", &bed.node.paths().run_dir);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let begun = Instant::now();
    let status = command.status().context("running the shim's program")?;
    let took = begun.elapsed();
    ensure!(status.success(), "{arguments:?}: {status}");
    Ok(took.as_secs_f64() * 1000.0)
}

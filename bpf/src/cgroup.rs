//! Finding the cgroup v2 directory of a process.
//!
//! The kernel programs know a container by its cgroup's id, which is the inode number of the cgroup's directory in
//! the cgroup v2 hierarchy. On a hybrid host that hierarchy is mounted beside the v1 ones and works as well.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// `CGROUP_DEPTH_MAX` of `abi.h`: a guarded cgroup is at most this deep; what it holds may be deeper.
pub const DEPTH_MAX: usize = 32;

/// One cgroup v2 directory.
#[derive(Debug)]
pub struct Cgroup {
    /// Absolute path.
    pub path: PathBuf,
    /// The kernel's id of it.
    pub id: u64,
    /// Open for attaching.
    pub directory: File,
}

/// Why no cgroup to guard was found.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of procfs could not be read.
    #[error("reading {}", path.display())]
    Procfs {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// No cgroup v2 mount.
    #[error(
        "no cgroup v2 hierarchy is mounted here (cgroup v1 only): boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2"
    )]
    NotMounted,
    /// The process is not in the v2 hierarchy.
    #[error(
        "process {pid} is in no cgroup v2 group: let the runtime create one (cgroup v2 or a hybrid host, and a cgroupsPath in the spec)"
    )]
    NoGroup {
        /// The process.
        pid: u32,
    },
    /// The process shares the cgroup of something that is not this container.
    #[error("process {pid} is in the cgroup {path}, which is not its container's own: guarding it would guard others too; set a cgroupsPath in the spec", path = path.display())]
    Shared {
        /// The process.
        pid: u32,
        /// Its cgroup.
        path: PathBuf,
    },
    /// The programs would not find it.
    #[error("the cgroup {path} is {depth} levels deep, more than the {DEPTH_MAX} that the programs look at: give the container a cgroupsPath nearer to the root", path = path.display())]
    TooDeep {
        /// Its cgroup.
        path: PathBuf,
        /// Levels below the hierarchy's root.
        depth: usize,
    },
    /// The directory could not be opened.
    #[error("opening the cgroup {}", path.display())]
    Open {
        /// Which directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn read(path: impl Into<PathBuf>) -> Result<String, CgroupError> {
    let path = path.into();
    fs::read_to_string(&path).map_err(|source| CgroupError::Procfs { path, source })
}

/// Octal escapes (`\040` for a space) as mountinfo has them.
fn unescape(field: &str) -> PathBuf {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let decoded = after.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok());
        if let (Some(byte), Some(tail)) = (decoded, after.get(3..)) {
            out.push(char::from(byte));
            rest = tail;
        } else {
            out.push('\\');
            rest = after;
        }
    }
    out.push_str(rest);
    out.into()
}

/// Mount point of the v2 hierarchy whose root is the whole hierarchy, from the text of `/proc/self/mountinfo`.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        // id parent major:minor root mountpoint options [optional…] - type source superoptions
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next()?, left.next()?);
        (right.split(' ').next()? == "cgroup2" && root == "/").then(|| unescape(mount))
    })
}

/// The v2 path from the text of `/proc/<pid>/cgroup`.
fn group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Levels below the hierarchy's root.
fn depth(relative: &str) -> usize {
    relative.split('/').filter(|name| !name.is_empty()).count()
}

/// Where the cgroup v2 hierarchy is mounted.
pub fn hierarchy() -> Result<PathBuf, CgroupError> {
    mount_point(&read("/proc/self/mountinfo")?).ok_or(CgroupError::NotMounted)
}

/// Whether a process is in the cgroup of this id, or below it.
pub fn holds(cgroup_id: u64, pid: u32) -> Result<bool, CgroupError> {
    let mount = hierarchy()?;
    let text = read(format!("/proc/{pid}/cgroup"))?;
    let relative = group(&text).ok_or(CgroupError::NoGroup { pid })?.trim_start_matches('/');
    let path = mount.join(relative);
    let mut above = path.ancestors().take_while(|path| path.starts_with(&mount));
    // One that is gone by now is not it.
    Ok(above.any(|path| fs::metadata(path).is_ok_and(|found| found.ino() == cgroup_id)))
}

/// Whether this node has only cgroup v2, or v2 beside v1.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

impl Cgroup {
    /// The cgroup that the container whose first process is `pid` has for itself. Refuses the root cgroup and the
    /// caller's own, which hold processes of others, and one too deep for the programs to find.
    pub fn of_container(pid: u32) -> Result<Self, CgroupError> {
        let mount = hierarchy()?;
        let text = read(format!("/proc/{pid}/cgroup"))?;
        let relative = group(&text).ok_or(CgroupError::NoGroup { pid })?.trim_start_matches('/');
        let path = mount.join(relative);
        let own = read("/proc/self/cgroup")?;
        if relative.is_empty() || group(&own).is_some_and(|own| own.trim_start_matches('/') == relative) {
            return Err(CgroupError::Shared { pid, path });
        }
        let depth = depth(relative);
        if depth > DEPTH_MAX {
            return Err(CgroupError::TooDeep { path, depth });
        }
        Self::open(path)
    }

    /// The caller's own cgroup, unless it has others below it, as the hierarchy's root has: programs run for those as well.
    pub fn own() -> Result<Option<Self>, CgroupError> {
        let text = read("/proc/self/cgroup")?;
        let relative = group(&text).unwrap_or_default().trim_start_matches('/');
        let own = Self::open(hierarchy()?.join(relative))?;
        let below = fs::read_dir(&own.path).into_iter().flatten().flatten();
        let is_leaf = !below.into_iter().any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        Ok((is_leaf && !relative.is_empty()).then_some(own))
    }

    /// The cgroup at this path.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, CgroupError> {
        let path = path.into();
        let opened = File::open(&path).and_then(|directory| Ok((directory.metadata()?.ino(), directory)));
        match opened {
            Ok((id, directory)) => Ok(Self { path, id, directory }),
            Err(source) => Err(CgroupError::Open { path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchy_on_unified_and_hybrid_hosts() {
        let unified = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_point(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      32 30 0:28 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/uni fied".into()));
        // A bind mount of one group is not the hierarchy.
        assert_eq!(mount_point("32 30 0:28 /docker/x /mnt rw - cgroup2 cgroup2 rw\n"), None);
    }

    #[test]
    fn reads_the_v2_line_only() {
        assert_eq!(group("12:cpu:/a\n1:name=systemd:/b\n0::/c/d\n"), Some("/c/d"));
        assert_eq!(group("12:cpu:/a\n"), None);
    }

    #[test]
    fn depth_counts_levels_below_the_root() {
        assert_eq!([depth(""), depth("a"), depth("kubepods.slice/pod1/c1"), depth("a//b/")], [0, 1, 3, 2]);
        // The programs' bound, from their own header.
        let header = include_str!("bpf/abi.h");
        assert!(header.contains(&format!("#define CGROUP_DEPTH_MAX {DEPTH_MAX}\n")));
    }

    #[test]
    fn a_process_is_in_its_own_cgroup_and_those_above() {
        let pid = std::process::id();
        let text = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = hierarchy().unwrap().join(group(&text).unwrap().trim_start_matches('/'));
        let root = fs::metadata(hierarchy().unwrap()).unwrap().ino();
        for id in [fs::metadata(own).unwrap().ino(), root] {
            assert!(holds(id, pid).unwrap());
        }
        assert!(!holds(u64::MAX, pid).unwrap());
        assert!(matches!(holds(root, u32::MAX), Err(CgroupError::Procfs { .. })));
    }

    #[test]
    fn its_own_cgroup_is_the_one_that_holds_it() {
        let own = Cgroup::own().unwrap();
        assert!(own.is_none_or(|own| holds(own.id, std::process::id()).unwrap() && own.path != hierarchy().unwrap()));
    }

    #[test]
    fn refuses_its_own_cgroup() {
        assert!(matches!(Cgroup::of_container(std::process::id()), Err(CgroupError::Shared { .. })));
    }
}

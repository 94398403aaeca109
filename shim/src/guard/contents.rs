//! What a container's own tools contain, so that the kernel knows them under any name.
//!
//! The places where programs are kept are looked through for names of the catalogue. All of it is chosen by whoever made
//! the image, so: nothing is followed out of the root file system or into another one, nothing but regular files is opened,
//! and what is learnt holds for containers of the same layers only. An image whose python is called `nc` is harmed by itself.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::Mount;
use portcullis_bpf::{
    abi::{Identity, Kind, NameKey},
    fingerprint,
};
use rustix::{
    fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
};
use sha2::{Digest, Sha256};

/// Where programs and dynamic loaders are, in Debian, Alpine, Fedora and their like.
const DIRECTORIES: [&str; 10] =
    ["bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "lib", "lib64", "usr/lib", "usr/lib64"];

/// Entries of one directory that are looked at. Debian with everything that developers want has 3,000 in /usr/bin.
const ENTRIES_MAX: usize = 16_384;

/// Set in the scope of a container that shares its contents with no other.
const PRIVATE: u64 = 1 << 63;

/// Links are followed inside the root file system only, and it is not left by a mount either: on what was mounted by
/// somebody else, a read could wait for ever.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_XDEV).union(ResolveFlags::NO_MAGICLINKS);

/// Containers with equal scopes have the same contents: the same layers of overlayfs, and nothing written over them yet.
/// To be asked before the container is created, as creating it may write into the upper layer.
pub fn shared_scope(rootfs: &[Mount]) -> Option<u64> {
    let overlay = rootfs.last().filter(|mount| mount.type_ == "overlay")?;
    let upper = overlay.options.iter().find_map(|option| option.strip_prefix("upperdir="))?;
    if fs::read_dir(upper).ok()?.next().is_some() {
        return None;
    }
    let mut hasher = Sha256::new();
    for lower in overlay.options.iter().filter(|option| option.starts_with("lowerdir")) {
        hasher.update(lower);
        hasher.update([0]);
    }
    let hash = hasher.finalize();
    let first = hash.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // 0 is the node's own.
    Some((first & !PRIVATE).max(1))
}

/// The scope of a container that shares its contents with no other.
pub fn private_scope(cgroup_id: u64) -> u64 {
    PRIVATE | cgroup_id
}

/// What a container's root file system holds under names of the catalogue.
pub fn of_container(pid: u32, names: &HashMap<NameKey, Identity>) -> Result<Vec<(u64, Identity)>> {
    let path = format!("/proc/{pid}/root");
    let root = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening the root file system {path}"))?;
    let mut found = Found::default();
    let mut seen = HashSet::new();
    for directory in DIRECTORIES {
        let Some(opened) = open(root.as_fd(), directory, OFlags::RDONLY | OFlags::DIRECTORY)? else { continue };
        let stat = fstat(&opened).with_context(|| format!("looking at /{directory}"))?;
        // One of two may be a link to the other.
        if seen.insert((stat.st_dev, stat.st_ino)) {
            look_through(root.as_fd(), directory, &opened, names, &mut found)
                .with_context(|| format!("looking through /{directory}"))?;
        }
    }
    Ok(found.contents())
}

/// `None` for what is not there, or not inside.
fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<Option<OwnedFd>> {
    match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), INSIDE) {
        Ok(file) => Ok(Some(file)),
        // Missing, a link that dangles or goes round or out, another mount, no directory: an image may hold all of it.
        Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("opening /{path}")),
    }
}

fn look_through(
    root: BorrowedFd<'_>,
    directory: &str,
    opened: &OwnedFd,
    names: &HashMap<NameKey, Identity>,
    found: &mut Found,
) -> Result<()> {
    for (number, entry) in Dir::read_from(opened)?.enumerate() {
        if number == ENTRIES_MAX {
            bail!("more than {ENTRIES_MAX} entries, which is too many: move what is no program elsewhere");
        }
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let Some(called) = NameKey::new(name).and_then(|key| names.get(&key)) else { continue };
        // A handle first: opening a device or a FIFO for reading could do things, or wait.
        let Some(handle) = open(root, &format!("{directory}/{name}"), OFlags::PATH)? else { continue };
        let stat = fstat(&handle)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let own = own_name(&link).and_then(|key| names.get(&key));
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        // It can be unreadable, or vanish: then it is not learnt.
        let Ok(hash) = File::open(&link).and_then(|mut file| fingerprint::of_file(&mut file, size)) else { continue };
        // The file's own name says more than that of a link to it.
        found.add(hash, *own.unwrap_or(called));
    }
    Ok(())
}

fn own_name(link: &str) -> Option<NameKey> {
    let path = fs::read_link(link).ok()?;
    NameKey::new(Path::new(&path).file_name()?.to_str()?)
}

/// What each content was found to be.
#[derive(Default)]
struct Found(HashMap<u64, Vec<Identity>>);

impl Found {
    fn add(&mut self, fingerprint: u64, identity: Identity) {
        let identities = self.0.entry(fingerprint).or_default();
        if !identities.contains(&identity) {
            identities.push(identity);
        }
    }

    fn contents(self) -> Vec<(u64, Identity)> {
        self.0.into_iter().filter_map(|(hash, identities)| Some((hash, decide(&identities)?))).collect()
    }
}

/// What one content is that has been found under several names. A multi-call program is one under whatever name; a shell or
/// an interpreter that is also called like a tool is not that tool; but what goes by the names of several tools, or of a
/// shell and a tool, can only be told by its argv.
fn decide(identities: &[Identity]) -> Option<Identity> {
    let of_kind = |kind: Kind| identities.iter().find(|identity| identity.kind == kind as u32).copied();
    let tools = identities.iter().filter(|identity| identity.kind == Kind::Tool as u32).count();
    let several = tools > 1 || (tools == 1 && of_kind(Kind::Shell).is_some());
    of_kind(Kind::Multicall)
        .or_else(|| of_kind(Kind::Loader))
        .or_else(|| several.then_some(Identity { id: 0, kind: Kind::Multicall as u32 }))
        .or_else(|| of_kind(Kind::Shell))
        .or_else(|| of_kind(Kind::Interpreter))
        .or_else(|| of_kind(Kind::Tool))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn identity(id: u32, kind: Kind) -> Identity {
        Identity { id, kind: kind as u32 }
    }

    fn names() -> HashMap<NameKey, Identity> {
        [
            ("nc", 1, Kind::Tool),
            ("nc.openbsd", 1, Kind::Tool),
            ("curl", 2, Kind::Tool),
            ("busybox", 3, Kind::Multicall),
            ("sh", 4, Kind::Shell),
            ("python3", 5, Kind::Interpreter),
            ("ld.so", 6, Kind::Loader),
        ]
        .map(|(name, id, kind)| (NameKey::new(name).unwrap(), identity(id, kind)))
        .into()
    }

    /// Looks through a directory of the test's as a container's /bin.
    fn learn(root: &Path) -> HashMap<u64, Identity> {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let opened = open(root.as_fd(), "bin", OFlags::RDONLY | OFlags::DIRECTORY).unwrap().unwrap();
        let mut found = Found::default();
        look_through(root.as_fd(), "bin", &opened, &names(), &mut found).unwrap();
        found.contents().into_iter().collect()
    }

    fn hash(text: &str) -> u64 {
        fingerprint::of_file(&mut text.as_bytes(), u64::try_from(text.len()).unwrap()).unwrap()
    }

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("bin")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        root
    }

    #[test]
    fn learns_tools_through_links_that_stay_inside() {
        let root = root();
        let bin = root.path().join("bin");
        fs::write(bin.join("nc.openbsd"), "netcat").unwrap();
        symlink("/bin/nc.openbsd", root.path().join("etc/nc")).unwrap();
        symlink("/etc/nc", bin.join("nc")).unwrap();
        fs::write(bin.join("ls"), "ls").unwrap();
        fs::write(bin.join("python3"), "python").unwrap();
        assert_eq!(
            learn(root.path()),
            [(hash("netcat"), identity(1, Kind::Tool)), (hash("python"), identity(5, Kind::Interpreter))].into()
        );
    }

    #[test]
    fn what_is_hostile_teaches_nothing() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = root();
        let bin = root.path().join("bin");
        symlink(outside.path().join("secret"), bin.join("nc")).unwrap();
        symlink("../../../../../../../etc/passwd", bin.join("curl")).unwrap();
        symlink("sh", bin.join("sh")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, bin.join("busybox"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        fs::create_dir(bin.join("python3")).unwrap();
        for number in 0..1000 {
            symlink("nc", bin.join(format!("l{number}"))).unwrap();
        }
        assert_eq!(learn(root.path()), [].into());
    }

    #[test]
    fn of_several_names_the_most_careful_meaning_holds() {
        let [nc, curl, busybox, sh, python, loader] = [
            identity(1, Kind::Tool),
            identity(2, Kind::Tool),
            identity(3, Kind::Multicall),
            identity(4, Kind::Shell),
            identity(5, Kind::Interpreter),
            identity(6, Kind::Loader),
        ];
        let unnamed = Some(identity(0, Kind::Multicall));
        assert_eq!(decide(&[nc]), Some(nc));
        assert_eq!(decide(&[nc, curl]), unnamed, "one program by hard links");
        assert_eq!(decide(&[sh, nc]), unnamed, "busybox without its own name");
        assert_eq!(decide(&[nc, busybox, sh]), Some(busybox));
        assert_eq!(decide(&[nc, python]), Some(python), "python called nc");
        assert_eq!(decide(&[nc, loader]), Some(loader));
        assert_eq!(decide(&[]), None);
    }

    #[test]
    fn only_equal_layers_without_changes_share_a_scope() {
        let upper = tempfile::tempdir().unwrap();
        let mount = |lower: &str, kind: &str| Mount {
            type_: kind.to_owned(),
            options: vec![format!("lowerdir={lower}"), format!("upperdir={}", upper.path().display())],
            ..Mount::default()
        };
        let scope = |mount: Mount| shared_scope(&[mount]);
        assert!(scope(mount("/2:/1", "overlay")).is_some());
        assert_eq!(scope(mount("/2:/1", "overlay")), scope(mount("/2:/1", "overlay")));
        assert_ne!(scope(mount("/2:/1", "overlay")), scope(mount("/3:/1", "overlay")));
        assert_eq!(scope(mount("/2:/1", "bind")), None);
        assert_eq!(shared_scope(&[]), None);
        fs::write(upper.path().join("nc"), "").unwrap();
        assert_eq!(scope(mount("/2:/1", "overlay")), None);
        assert!(private_scope(7) != 0 && private_scope(7) != private_scope(8));
    }
}

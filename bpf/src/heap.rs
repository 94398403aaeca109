//! What of the memory goes back to the system. It is here because calling the C library takes `unsafe`.

use std::{fs, io, ops::Range, path::Path};

/// Blocks of at least so many bytes are mapped by themselves, and unmapped when they are freed: glibc's own first value.
const MAPPED_BYTES: libc::c_int = 128 * 1024;
/// Heaps apart, against which threads contend.
const ARENAS: libc::c_int = 2;

/// Has what is freed go back to the system, where the C library is glibc: others do by themselves. Reading the kernel's types
/// takes tens of megabytes for a moment. By itself, glibc learns from that to put large blocks into its heaps, whose tops then
/// keep what is below them resident for good. To be called before threads are started; whether it was done.
pub fn give_back() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes no pointers, checks its arguments, and may be called at any time.
        let set = |parameter, value| unsafe { libc::mallopt(parameter, value) } == 1;
        set(libc::M_MMAP_THRESHOLD, MAPPED_BYTES) && set(libc::M_ARENA_MAX, ARENAS)
    }
    #[cfg(not(target_env = "gnu"))]
    true
}

/// Gives back what only starting has taken: what is free within the heap, and the program's code and constants, most of which are needed
/// to start only, while the kernel maps whatever is near anything that is used. What is needed again comes back from the page cache.
pub fn leave_start() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointers, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    let program = fs::read_link("/proc/self/exe")?;
    for range in as_in_the_file(&fs::read_to_string("/proc/self/smaps")?, &program) {
        // SAFETY: the range is a private mapping of a file, neither writable nor ever written to, for it has no page of its own: what
        // is read there after this call is what was read before.
        if unsafe { libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The addresses where this program's file is mapped and has not been changed; relocations are changes. From `/proc/self/smaps`, where
/// each mapping's own line is followed by what is in memory of it.
fn as_in_the_file(smaps: &str, program: &Path) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(range) = addresses(line) {
            current = is_constant(line, program).then_some(range);
        } else if let Some(changed) = line.strip_prefix("Anonymous:") {
            found.extend(current.take().filter(|_| changed.trim() == "0 kB"));
        }
    }
    found
}

/// Of a mapping's own line.
fn addresses(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

/// Whether a mapping is private, of this file, and can't be written to.
fn is_constant(line: &str, program: &Path) -> bool {
    let path = line.find('/').and_then(|start| line.get(start..));
    matches!(line.split(' ').nth(1), Some("r--p" | "r-xp")) && path.is_some_and(|path| Path::new(path) == program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_takes_it() {
        assert!(give_back());
    }

    /// In kB, of this program's file.
    fn resident() -> u64 {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_its = false;
        let mut sum = 0;
        for line in smaps.lines() {
            if addresses(line).is_some() {
                is_its = is_constant(line, &program);
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| is_its) {
                sum += rss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn code_leaves() {
        let leaves = || {
            let before = resident();
            leave_start().unwrap();
            resident() < before
        };
        // Other tests run meanwhile, and need their code.
        assert!((0..100).any(|_| leaves()));
    }

    #[test]
    fn only_what_is_as_in_the_file_is_left() {
        let smaps = "\
55d0c000-55d10000 r--p 00000000 fe:00 77                       /usr/bin/a b
Rss:                  16 kB
Anonymous:             0 kB
55d10000-55d20000 r-xp 00004000 fe:00 77                       /usr/bin/a b
Anonymous:             0 kB
55d20000-55d21000 r--p 00014000 fe:00 77                       /usr/bin/a b
Anonymous:             4 kB
55d21000-55d22000 rw-p 00015000 fe:00 77                       /usr/bin/a b
Anonymous:             0 kB
7f000000-7f001000 r-xp 00000000 fe:00 78                       /usr/lib/libc.so.6
Anonymous:             0 kB
7f001000-7f002000 r--s 00000000 00:0e 5                        anon_inode:bpf-map
Anonymous:             0 kB
7f002000-7f003000 r--p 00000000 00:00 0
Anonymous:             0 kB
";
        let found = as_in_the_file(smaps, Path::new("/usr/bin/a b"));
        assert_eq!(found, [0x55d0_c000..0x55d1_0000, 0x55d1_0000..0x55d2_0000]);
    }
}

//! What of the memory goes back to the system. It is here because calling the C library takes `unsafe`.

use std::{ffi::CStr, io, ptr, slice};

use rustix::param::page_size;

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

/// Gives back what is not needed now: what is free within the heap, and the code and constants of the program and its libraries, of which
/// most are needed to start only, while the kernel maps whatever is near anything that is used. What is needed again comes back from the
/// page cache, some tens of pages at a time.
pub fn trim() -> io::Result<()> {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointers, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    // SAFETY: the callback keeps nothing that it is given, and does not unwind.
    match unsafe { libc::dl_iterate_phdr(Some(trim_object), ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The same of one file that the program is made of; an errno, or 0.
unsafe extern "C" fn trim_object(info: *mut libc::dl_phdr_info, _: libc::size_t, _: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the C library gives what describes a file that is loaded, its name, and as many program headers as it says.
    let (base, name, headers) = unsafe {
        let info = &*info;
        let headers = slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (info.dlpi_addr, CStr::from_ptr(info.dlpi_name).to_bytes(), headers)
    };
    // The program's own name is empty, and the kernel's object is no file.
    if !name.is_empty() && !name.starts_with(b"/") {
        return 0;
    }
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        let offset = header.p_vaddr % page_size() as u64;
        let range = (usize::try_from(base + header.p_vaddr - offset), usize::try_from(header.p_memsz + offset));
        let (Ok(start), Ok(length)) = range else { return libc::EOVERFLOW };
        // SAFETY: a private mapping of a file that stays loaded as long as we run, neither writable nor ever written to: what is read
        // there after this call is what was read before. What has to be relocated, and is then protected, is of a segment that can be
        // written to.
        if unsafe { libc::madvise(ptr::with_exposed_provenance_mut(start), length, libc::MADV_DONTNEED) } != 0 {
            return io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_c_library_takes_it() {
        assert!(give_back());
    }

    /// In kB.
    fn resident_of_files() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_leaves() {
        let leaves = || {
            let before = resident_of_files();
            trim().unwrap();
            resident_of_files() < before
        };
        // Other tests run meanwhile, and need their code.
        assert!((0..100).any(|_| leaves()));
    }
}

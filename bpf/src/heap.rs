//! What of the heap goes back to the system. It is here because calling the C library takes `unsafe`.

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_c_library_takes_it() {
        assert!(super::give_back());
    }
}

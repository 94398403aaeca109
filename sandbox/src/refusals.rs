//! What comes of a system call that is refused: `EPERM`, and a count. A filter can only do the one or the other; so it sends
//! SIGSYS to the thread, whose handler does both.

use std::{
    io, mem, ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use libc::{SA_RESTART, SA_SIGINFO, SIGSYS, c_int, c_void, sigaction, siginfo_t, ucontext_t};
use syscalls::Sysno;

/// `SYS_SECCOMP` of `asm-generic/siginfo.h`.
const SYS_SECCOMP: c_int = 1;
/// More than there are; what has no place is counted with the last one.
const NUMBERS: usize = 1024;

/// By the call's number.
static COUNTS: [AtomicU64; NUMBERS] = [const { AtomicU64::new(0) }; NUMBERS];

/// What was refused since the process started, and how often, by name.
pub fn refused() -> Vec<(&'static str, u64)> {
    let counts = COUNTS.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
    let name = |number| Sysno::new(number).map_or("unknown", |call| call.name());
    counts.filter(|(_, count)| *count > 0).map(|(number, count)| (name(number), count)).collect()
}

/// Has refused calls counted from now on.
pub(crate) fn catch() -> io::Result<()> {
    // SAFETY: zeroes are a valid `sigaction`: no flags, no signals masked.
    let mut action: sigaction = unsafe { mem::zeroed() };
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    action.sa_sigaction = on_refusal as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    // SAFETY: `action` is valid, and its handler is async-signal-safe.
    if unsafe { sigaction(SIGSYS, &raw const action, ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Async-signal-safe: it adds to an atomic number and writes a register of the interrupted thread. `errno` stays.
extern "C" fn on_refusal(_signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO both are valid until this returns, the latter is a `ucontext_t`, and nobody else has them.
    let (info, context) = unsafe { (&*info, &mut *context.cast::<ucontext_t>()) };
    // Somebody may send the signal by kill(2): then there is no call to answer.
    if info.si_code != SYS_SECCOMP {
        return;
    }
    let (number, result) = call(context);
    let number = usize::try_from(number).unwrap_or(NUMBERS);
    if let Some(count) = COUNTS.get(number.min(NUMBERS - 1)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
    *result = REFUSED;
}

/// What the thread sees: `-EPERM`, as the kernel says it.
#[cfg(target_arch = "x86_64")]
const REFUSED: i64 = -(libc::EPERM as i64);
#[cfg(target_arch = "aarch64")]
const REFUSED: u64 = (-(libc::EPERM as i64)).cast_unsigned();

/// The number of the call, and where its result goes. The kernel has put the registers back to what they were before it.
#[cfg(target_arch = "x86_64")]
fn call(context: &mut ucontext_t) -> (i64, &mut i64) {
    const RAX: usize = libc::REG_RAX as usize;
    let rax = &mut context.uc_mcontext.gregs[RAX];
    (*rax, rax)
}

/// The number of the call, and where its result goes.
#[cfg(target_arch = "aarch64")]
fn call(context: &mut ucontext_t) -> (u64, &mut u64) {
    let registers = &mut context.uc_mcontext.regs;
    (registers[8], &mut registers[0])
}

//! What root's rights are left. A thread has its own, and those to come have what their maker had: so this is for a process that
//! has no other threads yet.

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

pub use rustix::thread::CapabilitySet as Capabilities;

/// Leaves this thread, and those that it makes, no more than `kept`, and no program that they execute more than that. Says what
/// is left: less, if the process was started with less.
pub fn keep(kept: Capabilities) -> Result<Capabilities, Errno> {
    set_no_new_privs(true)?;
    let held = capabilities(None)?;
    // Without SETPCAP the bounding set stays: then it is the business of whoever took that.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        bound(kept)?;
    }
    clear_ambient_capability_set()?;
    let left = held.permitted & kept;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(left)
}

/// Also those that are newer than this program.
fn bound(kept: Capabilities) -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)?,
            Ok(false) => {}
            // The kernel knows no more than those before.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

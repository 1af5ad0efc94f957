//! Guest memory as KVM sees it: one slot a stretch of RAM or ROM, holes for everything else.
//!
//! The board's address space is the truth. [`Slots::sync`] walks it, makes a list of the stretches that are whole pages,
//! and changes those slots that differ from the list. Where there is no slot an access becomes an MMIO exit, which goes
//! through the address space, so parts of pages work, only slower.
//!
//! A20: while the gate is closed the odd megabytes show what the even ones below them have. That is done for the first
//! [`A20_REACH`] bytes, what a processor that knows the gate (80286 segments, real mode) can address.

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use tessera_hw_core::mem::{AddressSpace, Region};

/// A page of the guest and of the host.
const PAGE: u64 = 4096;
/// How far the closed A20 gate is emulated.
pub const A20_REACH: u64 = 16 << 20;
/// Bit 20.
const A20_BIT: u64 = 1 << 20;

/// A stretch of guest memory at one place of the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stretch {
    len: u64,
    host: u64,
    writable: bool,
}

/// The slots of a VM.
pub struct Slots {
    space: Arc<AddressSpace>,
    /// By guest-physical address: number and what is there.
    present: BTreeMap<u64, (u32, Stretch)>,
    free: Vec<u32>,
    next: u32,
    limit: u32,
}

impl Slots {
    /// No slots yet, of at most `limit`.
    pub fn new(space: Arc<AddressSpace>, limit: u32) -> Slots {
        Slots { space, present: BTreeMap::new(), free: Vec::new(), next: 0, limit }
    }

    /// The stretches that the address space has now, by guest-physical address.
    fn wanted(&self, a20: bool) -> BTreeMap<u64, Stretch> {
        let mut list = BTreeMap::new();
        let mut last: Option<(u64, Stretch)> = None;
        let mut at = 0u64;
        loop {
            let masked = !a20 && at < A20_REACH;
            let source = if masked { at & !A20_BIT } else { at };
            // A closed gate makes every megabyte a stretch of its own.
            let bound = if masked { A20_BIT - at % A20_BIT } else { u64::MAX };
            let (len, stretch) = match self.space.lookup(source) {
                Region::Ram { host, len, writable, .. } => {
                    let len = len.min(bound);
                    (len, pages(at, host as u64, len, writable))
                }
                Region::Mmio { len, .. } | Region::Unmapped { len } => (len.min(bound), None),
            };
            if let Some((start, stretch)) = stretch {
                match &mut last {
                    Some((first, joined))
                        if *first + joined.len == start
                            && joined.host + joined.len == stretch.host
                            && joined.writable == stretch.writable =>
                    {
                        joined.len += stretch.len;
                    }
                    _ => list.extend(last.replace((start, stretch))),
                }
            }
            match at.checked_add(len) {
                Some(next) if len > 0 => at = next,
                _ => break,
            }
        }
        list.extend(last);
        list
    }

    /// Makes the VM's slots what the address space is now. An error is a sentence.
    pub fn sync(&mut self, vm: &VmFd, a20: bool) -> Result<(), String> {
        let wanted = self.wanted(a20);
        let stale: Vec<u64> = self
            .present
            .iter()
            .filter(|(at, (_, have))| wanted.get(at) != Some(have))
            .map(|(&at, _)| at)
            .collect();
        for at in stale {
            if let Some((slot, stretch)) = self.present.remove(&at) {
                set(vm, slot, at, &Stretch { len: 0, ..stretch })?;
                self.free.push(slot);
            }
        }
        for (at, stretch) in wanted {
            if self.present.contains_key(&at) {
                continue;
            }
            let slot = match self.free.pop() {
                Some(slot) => slot,
                None if self.next < self.limit => {
                    self.next += 1;
                    self.next - 1
                }
                None => {
                    return Err(format!(
                        "KVM has only {} memory slots, and the machine needs more",
                        self.limit
                    ));
                }
            };
            set(vm, slot, at, &stretch)?;
            self.present.insert(at, (slot, stretch));
        }
        Ok(())
    }
}

/// The whole pages of a region at `at`; `None` if there are none, or if its bytes do not lie in the host's pages as in
/// the guest's.
fn pages(at: u64, host: u64, len: u64, writable: bool) -> Option<(u64, Stretch)> {
    let start = at.checked_next_multiple_of(PAGE)?;
    let end = at.checked_add(len)? & !(PAGE - 1);
    let host = host + (start - at);
    (start < end && host.is_multiple_of(PAGE))
        .then_some((start, Stretch { len: end - start, host, writable }))
}

fn set(vm: &VmFd, slot: u32, at: u64, stretch: &Stretch) -> Result<(), String> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: if stretch.writable { 0 } else { KVM_MEM_READONLY },
        guest_phys_addr: at,
        memory_size: stretch.len,
        userspace_addr: stretch.host,
    };
    // SAFETY: the stretch comes from `Region::Ram` of an address space that keeps its memory mapped as long as it lives.
    // `Slots` holds the address space and is dropped after the vCPU (see the order of `KvmEngine`'s fields), without which
    // nothing of the VM reaches memory. Guest memory has no Rust references to it, so the guest may write it at any time.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|error| format!("KVM refuses {:#x} bytes of memory at {at:#x} ({error})", stretch.len))
}

#[cfg(test)]
mod tests {
    use tessera_hw_core::mem::{GuestRam, MmioDevice};

    use super::*;

    struct Silent;
    impl MmioDevice for Silent {
        fn read(&self, _: u64, _: u8) -> u64 {
            0
        }
        fn write(&self, _: u64, _: u8, _: u64) {}
    }

    fn space() -> (Arc<AddressSpace>, u64) {
        let space = Arc::new(AddressSpace::new());
        let ram = Arc::new(GuestRam::new(4 << 20).unwrap());
        let rom = Arc::new(GuestRam::new(0x2_0000).unwrap());
        space.map_memory(0, 0xa_0000, &ram, 0, true, 0).unwrap();
        space.map_memory(0xc_0000, 0x34_0000, &ram, 0xc_0000, true, 0).unwrap();
        space.map_memory(0xfffe_0000, 0x2_0000, &rom, 0, false, 0).unwrap();
        (space, ram.host_base() as u64)
    }

    fn list(space: &Arc<AddressSpace>, a20: bool) -> Vec<(u64, u64, bool)> {
        let slots = Slots::new(space.clone(), 8);
        slots.wanted(a20).into_iter().map(|(at, s)| (at, s.len, s.writable)).collect()
    }

    #[test]
    fn memory_is_slots_and_the_rest_is_holes() {
        let (space, _) = space();
        assert_eq!(
            list(&space, true),
            [(0, 0xa_0000, true), (0xc_0000, 0x34_0000, true), (0xfffe_0000, 0x2_0000, false)]
        );
    }

    #[test]
    fn a_register_page_cuts_memory() {
        let (space, _) = space();
        let id = space.add_mmio(Arc::new(Silent)).unwrap();
        let window = space.map_mmio(0x20_0100, 0x200, id, 1).unwrap();
        assert_eq!(
            list(&space, true)[1..3],
            [(0xc_0000, 0x14_0000, true), (0x20_1000, 0x1f_f000, true)],
            "the page that is shared is no slot"
        );
        space.unmap(window);
        assert_eq!(list(&space, true).len(), 3);
    }

    #[test]
    fn a_closed_gate_shows_even_megabytes_twice() {
        let (space, base) = space();
        let slots = Slots::new(space, 8);
        let wanted = slots.wanted(false);
        assert_eq!(wanted[&0].host, base);
        assert_eq!(wanted[&0x10_0000].host, base);
        assert_eq!(wanted[&0x10_0000].len, 0xa_0000);
        assert_eq!(wanted[&0x1c_0000].host, base + 0xc_0000);
        // The third and fourth megabyte.
        assert_eq!((wanted[&0x30_0000].host, wanted[&0x30_0000].len), (base + 0x20_0000, 0x10_0000));
        assert!(wanted.contains_key(&0xfffe_0000), "beyond its reach nothing changes");
    }
}

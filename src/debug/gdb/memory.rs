//! Guest memory for the debugger: by linear address through the guest's page tables, or by physical address.
//!
//! Looking has no side effects: page tables are walked without setting accessed bits, and registers of devices are not
//! read. Only RAM and ROM are memory here. What is written to RAM is told to the translator like a device's writes.

use std::sync::Arc;

use tessera_hw::misc::a20::A20;
use tessera_hw_core::mem::{AddressSpace, Region};
use tessera_x86::cpu_state::CpuState;
use tessera_x86::mmu::inspect::{self, Walk};

const PAGE: u64 = 4096;
const A20_BIT: u64 = 1 << 20;

/// The guest's memory as the CPU puts out addresses.
#[derive(Clone)]
pub struct Memory {
    space: Arc<AddressSpace>,
    a20: Arc<A20>,
}

impl Memory {
    /// The memory of a machine.
    pub fn new(space: Arc<AddressSpace>, a20: Arc<A20>) -> Memory {
        Memory { space, a20 }
    }

    fn masked(&self, phys: u64) -> u64 {
        if self.a20.enabled() { phys } else { phys & !A20_BIT }
    }

    /// Copies bytes from one page; how many of them are memory.
    fn read_page(&self, phys: u64, out: &mut [u8]) -> usize {
        let phys = self.masked(phys);
        match self.space.lookup(phys) {
            Region::Ram { len, .. } => {
                let len = usize::try_from(len).unwrap_or(usize::MAX).min(out.len());
                self.space.read_bytes(phys, &mut out[..len]);
                len
            }
            Region::Mmio { .. } | Region::Unmapped { .. } => 0,
        }
    }

    /// Translates a linear address under a state, and shows the way.
    pub fn walk(&self, state: &CpuState, va: u64) -> Walk {
        let mut entry = |phys, size: u32| {
            let mut bytes = [0; 8];
            let size = size as usize;
            (self.read_page(phys, &mut bytes[..size]) == size).then(|| u64::from_le_bytes(bytes))
        };
        inspect::walk(state, &mut entry, va)
    }

    /// The physical address; without a state, `address` is one.
    fn translate(&self, state: Option<&CpuState>, address: u64) -> Option<u64> {
        match state {
            Some(state) => self.walk(state, address).result.ok().map(|(phys, _)| phys),
            None => Some(address),
        }
    }

    /// Reads; the number of bytes before the first that is not there. With a state, the address is linear, else physical.
    pub fn read(&self, state: Option<&CpuState>, address: u64, out: &mut [u8]) -> usize {
        let mut done = 0;
        while done < out.len() {
            let at = address.wrapping_add(done as u64);
            let piece = ((PAGE - at % PAGE) as usize).min(out.len() - done);
            let Some(phys) = self.translate(state, at) else { break };
            let got = self.read_page(phys, &mut out[done..done + piece]);
            done += got;
            if got < piece {
                break;
            }
        }
        done
    }

    /// Writes all, or nothing if any of it is not RAM.
    pub fn write(&self, state: Option<&CpuState>, address: u64, bytes: &[u8]) -> bool {
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            let at = address.wrapping_add(done as u64);
            let piece = ((PAGE - at % PAGE) as usize).min(bytes.len() - done);
            let Some(phys) = self.translate(state, at).map(|phys| self.masked(phys)) else { return false };
            match self.space.lookup(phys) {
                Region::Ram { writable: true, len, .. } if len >= piece as u64 => pieces.push((phys, piece)),
                _ => return false,
            }
            done += piece;
        }
        let mut rest = bytes;
        for (phys, len) in pieces {
            let (now, later) = rest.split_at(len);
            self.space.write_bytes(phys, now);
            rest = later;
        }
        true
    }
}

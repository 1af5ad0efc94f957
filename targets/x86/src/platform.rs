//! What the CPU needs of the machine around it; implemented by the accelerator over the board.

/// A random number where the operating system's cannot be had: a keyed hash of a counter, the key being its choice.
pub fn hashed_random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// The local APIC, the port bus and the clock as one CPU sees them. Called on the vCPU's thread.
///
/// A machine has a clock. What it need not have, by default it does not have: nobody answers at ports, nothing happens, and there
/// is no local APIC.
pub trait Platform: Send {
    /// Reads 1, 2 or 4 bytes from an I/O port, zero-extended.
    fn port_in(&mut self, _port: u16, size: u32) -> u32 {
        u32::MAX >> (32 - 8 * size)
    }
    /// Writes 1, 2 or 4 bytes to an I/O port.
    fn port_out(&mut self, _port: u16, _size: u32, _value: u32) {}
    /// Time-stamp counter of the machine's clock, before the guest's own offset.
    fn tsc(&mut self) -> u64;
    /// TSC ticks a second.
    fn tsc_hz(&self) -> u64;
    /// Unix time in nanoseconds by the machine's clock.
    fn wall_ns(&mut self) -> u64 {
        0
    }
    /// A random number, for RDRAND and RDSEED.
    fn random(&mut self) -> u64 {
        hashed_random()
    }
    /// Writes guest-physical memory as a device does: translations of code there become stale, ROM and holes swallow it.
    fn write_physical(&mut self, _phys: u64, _bytes: &[u8]) {}

    /// Whether a maskable interrupt waits whose priority the task priority lets through. Cheap.
    fn interrupt_pending(&self) -> bool {
        false
    }
    /// Takes the waiting interrupt: its vector; `None` if it went away meanwhile.
    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        None
    }
    /// Takes a pending NMI.
    fn take_nmi(&mut self) -> bool {
        false
    }
    /// Takes a pending SMI.
    fn take_smi(&mut self) -> bool {
        false
    }
    /// Takes a pending INIT.
    fn take_init(&mut self) -> bool {
        false
    }
    /// Takes a pending startup IPI: its vector.
    fn take_sipi(&mut self) -> Option<u8> {
        None
    }
    /// Whether [`poll_events`](tessera_tcg::guest::Guest::poll_events) has anything to look at: one of the above, or
    /// a request to stop. Cheap.
    fn event_pending(&self) -> bool {
        self.stop_requested()
    }

    /// Whether the accelerator wants the CPU to stop executing. Cheap; [`Platform::event_pending`] says so, too.
    fn stop_requested(&self) -> bool {
        false
    }

    /// The CPU has entered system-management mode, or left it: accesses that follow see SMRAM, or do not. It has dropped what
    /// it knew of [`ram_page`](tessera_tcg::memory::PhysMemory::ram_page).
    fn smm_changed(&mut self, _active: bool) {}

    /// Task priority class (CR8, bits 3:0).
    fn tpr(&self) -> u8 {
        0
    }
    /// Sets the task priority class (CR8, bits 3:0).
    fn set_tpr(&mut self, _class: u8) {}
    /// IA32_APIC_BASE.
    fn apic_base(&self) -> u64 {
        0
    }
    /// Sets IA32_APIC_BASE; `Err` raises #GP(0).
    fn set_apic_base(&mut self, _value: u64) -> Result<(), InvalidMsr> {
        Err(InvalidMsr)
    }
    /// Reads an x2APIC register (MSR 800h to 8FFh) or IA32_TSC_DEADLINE (6E0h).
    fn apic_msr_read(&mut self, _msr: u32) -> Result<u64, InvalidMsr> {
        Err(InvalidMsr)
    }
    /// Writes an x2APIC register or IA32_TSC_DEADLINE (an absolute value of [`Platform::tsc`]).
    fn apic_msr_write(&mut self, _msr: u32, _value: u64) -> Result<(), InvalidMsr> {
        Err(InvalidMsr)
    }

    /// Mask applied to every physical address: bit 20 clear while the A20 gate is closed.
    fn a20_mask(&self) -> u64 {
        u64::MAX
    }
    /// The CPU asserts FERR# (x87 error with CR0.NE clear): IRQ 13 on a PC. `false` withdraws it.
    fn ferr(&mut self, _asserted: bool) {}
    /// Whether IGNNE# is asserted: x87 instructions go on although an error is pending. Where nothing answers FERR#, they
    /// always may.
    fn ignne(&self) -> bool {
        true
    }
}

/// An MSR access that the register does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InvalidMsr;

//! What a virtual CPU sees of its interrupt controller.
//!
//! The accelerator holds one [`CpuIrq`] a vCPU. While it executes it looks at [`CpuIrq::signals`], one atomic word, which is
//! not zero when something waits; it then asks what. The controller calls the *kick* that the accelerator registered when
//! something begins to wait, so that translated code is left, or a halted vCPU wakes.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bits of [`CpuIrq::signals`].
pub mod signal {
    /// A maskable interrupt that the task priority lets through (the CPU's IF is not considered).
    pub const INTR: u32 = 1 << 0;
    /// A non-maskable interrupt.
    pub const NMI: u32 = 1 << 1;
    /// INIT.
    pub const INIT: u32 = 1 << 2;
    /// A start-up IPI, for a vCPU that waits for one.
    pub const SIPI: u32 = 1 << 3;
}

/// The access raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("#GP(0)")]
pub struct GpFault;

/// Called from any thread, under locks of the interrupt controller: sets a flag and wakes the vCPU, no more.
pub type Kick = Arc<dyn Fn() + Send + Sync>;

/// A local APIC's registers in the form of its register page in xAPIC mode: register n is at offset 16 * n. What is no
/// state (version, PPR) is 0.
pub type ApicPage = [u32; 64];

/// One vCPU's interrupt controller.
pub trait CpuIrq: Send + Sync {
    /// What waits, as [`signal`] bits; may be kept as a pointer by translated code while the machine lives.
    fn signals(&self) -> &AtomicU32;

    /// Whether a maskable interrupt waits that the task priority lets through.
    #[inline]
    fn pending(&self) -> bool {
        self.signals().load(Ordering::Acquire) & signal::INTR != 0
    }

    /// Takes the waiting maskable interrupt: its vector, from the local APIC or through it from the 8259. `None` when it has
    /// gone away meanwhile.
    fn acknowledge(&self) -> Option<u8>;

    /// Whether an NMI waits.
    #[inline]
    fn nmi_pending(&self) -> bool {
        self.signals().load(Ordering::Acquire) & signal::NMI != 0
    }
    /// Takes the waiting NMI.
    fn take_nmi(&self) -> bool;
    /// Takes the waiting INIT; the local APIC is then in its INIT state.
    fn take_init(&self) -> bool;
    /// Takes the waiting start-up IPI: the vCPU starts in real mode at `vector << 12`.
    fn take_sipi(&self) -> Option<u8>;

    /// The local APIC's ID (the 32-bit one in x2APIC mode).
    fn apic_id(&self) -> u32;

    /// CR8: the task priority, 0 to 15.
    fn cr8(&self) -> u8;
    /// Sets CR8; bits above 3 are ignored (the CPU raises #GP for them before).
    fn set_cr8(&self, priority: u8);

    /// MSR 1BH, IA32_APIC_BASE.
    fn apic_base(&self) -> u64;
    /// Writes IA32_APIC_BASE.
    fn set_apic_base(&self, value: u64) -> Result<(), GpFault>;

    /// Reads MSR 800H to 8FFH. #GP outside x2APIC mode and for reserved or write-only registers.
    fn read_x2apic(&self, msr: u32) -> Result<u64, GpFault>;
    /// Writes MSR 800H to 8FFH.
    fn write_x2apic(&self, msr: u32, value: u64) -> Result<(), GpFault>;

    /// All registers at once, without the effects of reads.
    fn apic_page(&self) -> ApicPage;
    /// Takes over all registers, without the effects of writes; the timer goes on from its count. IA32_APIC_BASE comes before,
    /// IA32_TSC_DEADLINE after.
    fn set_apic_page(&self, page: &ApicPage);

    /// MSR 6E0H, IA32_TSC_DEADLINE, in ticks of this vCPU's TSC.
    fn tsc_deadline(&self) -> u64;
    /// Writes IA32_TSC_DEADLINE: ignored unless the timer is in that mode, 0 disarms.
    fn set_tsc_deadline(&self, tsc: u64);
    /// Tells by how much this vCPU's TSC is ahead of [`crate::clock::Clock::tsc`] (wrapping), after the guest wrote
    /// IA32_TIME_STAMP_COUNTER or IA32_TSC_ADJUST.
    fn set_tsc_offset(&self, offset: u64);

    /// Registers the accelerator's kick (the last one counts).
    fn set_kick(&self, kick: Kick);
}

thread_local! {
    static CURRENT: Cell<u32> = const { Cell::new(0) };
}

/// Declares that the calling thread runs vCPU `index`, so that accesses to per-CPU registers in shared address space
/// (the local APIC's page) reach its own. Threads that never say so count as vCPU 0.
pub fn set_current(index: u32) {
    CURRENT.set(index);
}

/// The vCPU that the calling thread runs.
#[inline]
pub fn current() -> u32 {
    CURRENT.get()
}

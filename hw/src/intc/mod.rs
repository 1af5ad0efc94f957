//! Interrupt controllers, from the device's wire to the vCPU.
//!
//! ```text
//! ISA wire ──┬─► i8259 pair ──INTR──► LINT0 of the boot CPU's local APIC ─┐
//!            └─► I/O APIC ──message──► ApicBus ──► local APIC ────────────┴─► CpuIrq: vCPU
//! PCI MSI ───────────────────message──►
//! ```

pub mod apic_bus;
pub mod i8259;
pub mod ioapic;
pub mod lapic;

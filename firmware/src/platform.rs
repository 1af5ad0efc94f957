//! The machine as its firmware describes it, and the fixed addresses boards and tables share.
//!
//! A board builds one [`PlatformInfo`] from what it really wired up; the tables say exactly that. Addresses that
//! never vary are constants here, so that a device and its table entry cannot disagree.

use std::ops::Range;

/// I/O base of the ACPI fixed-hardware block: PM1a event (4 bytes).
pub const PM1A_EVENT: u16 = 0x600;
/// PM1a control register (2 bytes): bit 13 is SLP_EN, bits 10–12 SLP_TYP; S5 is type 0.
pub const PM1A_CONTROL: u16 = 0x604;
/// PM timer (4 bytes, all 32 bits count), 3.579545 MHz.
pub const PM_TIMER: u16 = 0x608;
/// System control interrupt: ISA IRQ and GSI, level triggered, active high.
pub const SCI_IRQ: u16 = 9;
/// Reset register port; [`RESET_VALUE`] written to it resets the machine.
pub const RESET_PORT: u16 = 0xCF9;
/// See [`RESET_PORT`].
pub const RESET_VALUE: u8 = 0x0F;
/// CMOS index of the century byte.
pub const RTC_CENTURY: u8 = 0x32;
/// Local APIC MMIO base after reset.
pub const LAPIC_BASE: u32 = 0xFEE0_0000;
/// I/O APIC MMIO base.
pub const IOAPIC_BASE: u32 = 0xFEC0_0000;
/// I/O APIC identifier.
pub const IOAPIC_ID: u8 = 0;
/// Number of I/O APIC inputs: GSI 0–23.
pub const IOAPIC_INPUTS: u32 = 24;
/// HPET MMIO base.
pub const HPET_BASE: u32 = 0xFED0_0000;
/// Low doubleword of the HPET's capability register, which its ACPI table repeats: vendor 0x8086, legacy replacement,
/// 64-bit counter, three comparators, revision 1.
pub const HPET_EVENT_TIMER_BLOCK_ID: u32 = 0x8086_A201;
/// PCI Express configuration window of [`MachineKind::Q35`]: 256 buses of 1 MiB.
pub const MCFG_BASE: u64 = 0xB000_0000;
/// Size in bytes of the window at [`MCFG_BASE`].
pub const MCFG_SIZE: u64 = 0x1000_0000;
/// Where RAM goes on above the 32-bit hole.
pub const HIGH_RAM_BASE: u64 = 0x1_0000_0000;
/// Start of the area at the end of the first 640 KiB that belongs to the firmware (EBDA).
pub const EBDA_BASE: u64 = 0x9_FC00;
/// End of conventional memory.
pub const CONVENTIONAL_END: u64 = 0xA_0000;
/// Start of the 64 KiB in which guests search for the RSDP, SMBIOS and MP anchors.
pub const BIOS_AREA: u64 = 0xF_0000;
/// Start of extended memory.
pub const EXTENDED_BASE: u64 = 0x10_0000;
/// Bytes at the end of low RAM that hold the ACPI tables (the last 4 KiB of them the FACS).
pub const ACPI_AREA_SIZE: u64 = 0x2_0000;
/// End of the 32-bit PCI memory window.
pub const PCI_MMIO32_END: u64 = 0xFEC0_0000;
/// Most processors the tables can describe.
pub const MAX_CPUS: usize = 1024;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Which of QEMU's two PC machines the board resembles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MachineKind {
    /// `-machine pc`: i440FX + PIIX3, conventional PCI.
    Pc,
    /// `-machine q35`: Q35 + ICH9, PCI Express with [`MCFG_BASE`].
    Q35,
}

/// How much RAM lies below and above the 32-bit hole, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RamLayout {
    /// RAM from address 0 upwards.
    pub low: u64,
    /// RAM from [`HIGH_RAM_BASE`] upwards.
    pub high: u64,
}

impl RamLayout {
    /// Splits `total` bytes the way QEMU's machine of that kind does, so that a guest sees the same map: `pc` keeps
    /// all RAM low below 3.5 GiB and 3 GiB of it low from there on; `q35` all below 2.75 GiB, 2 GiB from there on.
    #[must_use]
    pub fn for_machine(kind: MachineKind, total: u64) -> Self {
        let (all_low_below, low_otherwise) = match kind {
            MachineKind::Pc => (3 * GIB + 512 * MIB, 3 * GIB),
            MachineKind::Q35 => (2 * GIB + 768 * MIB, 2 * GIB),
        };
        if total < all_low_below {
            Self { low: total, high: 0 }
        } else {
            Self { low: low_otherwise, high: total - low_otherwise }
        }
    }

    /// The guest-physical range of the ACPI tables, or `None` if there is too little RAM for them.
    #[must_use]
    pub fn acpi_area(&self) -> Option<Range<u64>> {
        let end = self.low & !0xFFF;
        (end >= EXTENDED_BASE + 2 * ACPI_AREA_SIZE).then(|| end - ACPI_AREA_SIZE..end)
    }

    /// End of RAM above the hole; [`HIGH_RAM_BASE`] if there is none.
    #[must_use]
    pub fn high_end(&self) -> u64 {
        HIGH_RAM_BASE.saturating_add(self.high)
    }
}

/// A 16550A on the ISA bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// I/O base (8 ports).
    pub io: u16,
    /// ISA IRQ.
    pub irq: u8,
}

/// COM1 to COM4 where every PC has them.
pub const COM_PORTS: [SerialPort; 4] = [
    SerialPort { io: 0x3F8, irq: 4 },
    SerialPort { io: 0x2F8, irq: 3 },
    SerialPort { io: 0x3E8, irq: 4 },
    SerialPort { io: 0x2E8, irq: 3 },
];

/// Everything the tables say about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformInfo {
    /// The board.
    pub machine: MachineKind,
    /// RAM below and above the hole.
    pub ram: RamLayout,
    /// APIC identifiers of the processors, the boot processor first; 1 to [`MAX_CPUS`] of them, each once.
    pub apic_ids: Vec<u32>,
    /// Serial ports present.
    pub serial: Vec<SerialPort>,
    /// An HPET answers at [`HPET_BASE`].
    pub hpet: bool,
    /// An i8042 with keyboard (IRQ 1) and mouse (IRQ 12) answers at 0x60 and 0x64.
    pub i8042: bool,
    /// A PCI host bridge answers at 0xCF8 (and, on q35, at [`MCFG_BASE`]).
    pub pci: bool,
    /// A VGA-compatible adapter is present, so that a guest may probe for one.
    pub vga: bool,
    /// SMBIOS system UUID, in the byte order in which it is printed.
    pub uuid: [u8; 16],
}

impl PlatformInfo {
    /// A machine with `cpus` processors with APIC identifiers 0, 1, … and the devices every board has: COM1, HPET, i8042
    /// and PCI, no VGA.
    #[must_use]
    pub fn new(machine: MachineKind, ram: RamLayout, cpus: u32) -> Self {
        Self {
            machine,
            ram,
            apic_ids: (0..cpus).collect(),
            serial: vec![COM_PORTS[0]],
            hpet: true,
            i8042: true,
            pci: true,
            vga: false,
            uuid: [0; 16],
        }
    }
}

/// The four interrupt links of the board (PIRQ A–D): ISA IRQs used while the guest runs on the two i8259s.
pub const PIRQ_ISA_IRQ: [u8; 4] = [10, 10, 11, 11];

/// The GSI at which link `pirq` (0–3) arrives at the I/O APIC: the ISA IRQ on `pc`, 16–19 on `q35`.
///
/// # Panics
/// If `pirq` is above 3.
#[must_use]
pub fn pirq_gsi(kind: MachineKind, pirq: u8) -> u32 {
    let isa = PIRQ_ISA_IRQ[usize::from(pirq)];
    match kind {
        MachineKind::Pc => u32::from(isa),
        MachineKind::Q35 => 16 + u32::from(pirq),
    }
}

/// Which link (0–3) interrupt pin `pin` (0 = INTA#) of PCI slot `slot` on bus 0 is wired to: the usual swizzle, with
/// slot 1's INTA# on link A.
#[must_use]
pub fn pci_pin_to_pirq(slot: u8, pin: u8) -> u8 {
    slot.wrapping_add(pin).wrapping_sub(1) & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_hole_as_the_machine_does() {
        let pc = |total| RamLayout::for_machine(MachineKind::Pc, total);
        let q35 = |total| RamLayout::for_machine(MachineKind::Q35, total);
        assert_eq!(pc(512 * MIB), RamLayout { low: 512 * MIB, high: 0 });
        assert_eq!(pc(3583 * MIB), RamLayout { low: 3583 * MIB, high: 0 });
        assert_eq!(pc(4 * GIB), RamLayout { low: 3 * GIB, high: GIB });
        assert_eq!(q35(2 * GIB), RamLayout { low: 2 * GIB, high: 0 });
        assert_eq!(q35(3 * GIB), RamLayout { low: 2 * GIB, high: GIB });
        assert!(q35(2815 * MIB).low <= MCFG_BASE);
    }

    #[test]
    fn the_acpi_area_needs_ram() {
        assert_eq!(
            RamLayout { low: 64 * MIB, high: 0 }.acpi_area(),
            Some(64 * MIB - ACPI_AREA_SIZE..64 * MIB)
        );
        assert_eq!(RamLayout { low: MIB, high: 0 }.acpi_area(), None);
        assert_eq!(RamLayout { low: 0, high: 0 }.acpi_area(), None);
    }

    #[test]
    fn pins_spread_over_all_links() {
        for slot in 0..32 {
            let mut links: Vec<u8> = (0..4).map(|pin| pci_pin_to_pirq(slot, pin)).collect();
            links.sort_unstable();
            assert_eq!(links, [0, 1, 2, 3]);
        }
        assert_eq!(pci_pin_to_pirq(1, 0), 0);
        assert_eq!(pci_pin_to_pirq(0, 0), 3);
        assert_eq!(pirq_gsi(MachineKind::Pc, 3), 11);
        assert_eq!(pirq_gsi(MachineKind::Q35, 3), 19);
    }
}

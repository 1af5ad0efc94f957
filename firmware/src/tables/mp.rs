//! Intel MultiProcessor specification 1.4 tables, for kernels that know no ACPI or are told to ignore it.

use super::set_checksum;
use crate::platform::{
    IOAPIC_BASE, IOAPIC_ID, IOAPIC_INPUTS, LAPIC_BASE, PlatformInfo, pci_pin_to_pirq, pirq_gsi,
};

/// Interrupt types of the I/O and local interrupt entries.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// PO/EL flags: as the bus has it, and level triggered active high.
const CONFORMS: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;
/// Bus identifiers of the bus entries.
const PCI_BUS: u8 = 0;
const ISA_BUS: u8 = 1;
/// Version registers: integrated APIC, 82093AA-like I/O APIC.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x20;

/// The finished tables.
pub(super) struct Mp {
    /// The floating pointer.
    pub pointer: Vec<u8>,
    /// The configuration table.
    pub table: Vec<u8>,
}

/// Makes the tables for placement at `pointer_addr` (paragraph aligned) and `table_addr`, both below 1 MiB.
pub(super) fn build(info: &PlatformInfo, pointer_addr: u64, table_addr: u64) -> Mp {
    debug_assert_eq!(pointer_addr % 16, 0);
    let mut pointer = Vec::with_capacity(16);
    pointer.extend(b"_MP_");
    pointer.extend((table_addr as u32).to_le_bytes());
    // Length in paragraphs, specification 1.4, checksum, "configuration table present", no IMCR.
    pointer.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut pointer, 10);
    Mp { pointer, table: configuration(info) }
}

fn configuration(info: &PlatformInfo) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    // Identifiers of 8 bits, 255 means "all": what does not fit is left out, as on real machines.
    for (index, &apic_id) in info.apic_ids.iter().enumerate().filter(|(_, id)| **id < 255) {
        let flags = if index == 0 { 0b11 } else { 0b01 }; // enabled, boot processor
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, apic_id as u8, LAPIC_VERSION, flags]);
        // Signature: family 6; features: FPU and APIC. Guests read CPUID for more.
        entry[4..8].copy_from_slice(&0x600u32.to_le_bytes());
        entry[8..12].copy_from_slice(&0x201u32.to_le_bytes());
        add(&entry);
    }
    if info.pci {
        add(b"\x01\x00PCI   ");
    }
    add(b"\x01\x01ISA   ");
    let base = IOAPIC_BASE.to_le_bytes();
    add(&[2, IOAPIC_ID, IOAPIC_VERSION, 1, base[0], base[1], base[2], base[3]]);

    let mut interrupt = |kind: u8, flags: u16, bus: u8, source: u8, input: u32| {
        let flags = flags.to_le_bytes();
        add(&[3, kind, flags[0], flags[1], bus, source, IOAPIC_ID, input as u8]);
    };
    for irq in 0u8..16 {
        match irq {
            0 => interrupt(INT, CONFORMS, ISA_BUS, 0, 2),
            2 => {} // the cascade
            9 => interrupt(INT, LEVEL_HIGH, ISA_BUS, 9, 9),
            10 | 11 if info.pci => {}
            _ => interrupt(INT, CONFORMS, ISA_BUS, irq, irq.into()),
        }
    }
    if info.pci {
        for slot in 0u8..32 {
            for pin in 0u8..4 {
                let input = pirq_gsi(info.machine, pci_pin_to_pirq(slot, pin));
                debug_assert!(input < IOAPIC_INPUTS);
                interrupt(INT, LEVEL_HIGH, PCI_BUS, slot << 2 | pin, input);
            }
        }
    }
    // LINT0 of the boot processor takes the i8259s, LINT1 of all takes NMI.
    let boot_id = info.apic_ids.first().map_or(0, |&id| id as u8);
    add(&[4, EXTINT, 0, 0, ISA_BUS, 0, boot_id, 0]);
    add(&[4, NMI, 0, 0, ISA_BUS, 0, 0xFF, 1]);

    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend(b"PCMP");
    table.extend((44 + entries.len() as u16).to_le_bytes());
    table.extend([4, 0]); // specification 1.4, checksum
    table.extend(b"TESSERA ");
    table.extend(b"PC          ");
    table.extend([0; 6]); // no OEM table
    table.extend(count.to_le_bytes());
    table.extend(LAPIC_BASE.to_le_bytes());
    table.extend([0; 4]); // no extended entries
    debug_assert_eq!(table.len(), 44);
    table.extend(entries);
    set_checksum(&mut table, 7);
    table
}

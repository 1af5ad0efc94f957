//! The memory map a guest is given (ACPI 6.5, section 15; named after BIOS call INT 15h, AX=E820h).
//!
//! Entries are sorted, do not overlap, and cover RAM completely; holes (0xA0000–0xEFFFF, the PCI windows) are not listed.

use crate::platform::{
    BIOS_AREA, CONVENTIONAL_END, EBDA_BASE, EXTENDED_BASE, HIGH_RAM_BASE, MCFG_BASE, MCFG_SIZE, MachineKind,
    RamLayout,
};

/// What a range of the map may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Type {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// RAM that holds ACPI tables and may be reused after they were read.
    AcpiData = 3,
    /// RAM that must be kept across sleep states (the FACS).
    AcpiNvs = 4,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First guest-physical address.
    pub addr: u64,
    /// Length in bytes, never 0.
    pub size: u64,
    /// Use of the range.
    pub kind: E820Type,
}

impl E820Entry {
    /// The address after the range.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.addr + self.size
    }
}

/// The memory map of a machine with the given RAM.
///
/// The last 128 KiB of low RAM hold the ACPI tables ([`RamLayout::acpi_area`]).
#[must_use]
pub fn build(kind: MachineKind, ram: &RamLayout) -> Vec<E820Entry> {
    let mut map = Vec::with_capacity(10);
    let mut add = |start: u64, end: u64, kind| {
        if start < end {
            map.push(E820Entry { addr: start, size: end - start, kind });
        }
    };
    add(0, EBDA_BASE.min(ram.low), E820Type::Ram);
    add(EBDA_BASE, CONVENTIONAL_END, E820Type::Reserved);
    add(BIOS_AREA, EXTENDED_BASE, E820Type::Reserved);
    match ram.acpi_area() {
        Some(area) => {
            let facs = area.end - 0x1000;
            add(EXTENDED_BASE, area.start, E820Type::Ram);
            add(area.start, facs, E820Type::AcpiData);
            add(facs, area.end, E820Type::AcpiNvs);
        }
        None => add(EXTENDED_BASE, ram.low, E820Type::Ram),
    }
    if kind == MachineKind::Q35 {
        add(MCFG_BASE, MCFG_BASE + MCFG_SIZE, E820Type::Reserved);
    }
    // The ROM's place below 4 GiB.
    add(0xFFFC_0000, HIGH_RAM_BASE, E820Type::Reserved);
    add(HIGH_RAM_BASE, ram.high_end(), E820Type::Ram);
    map
}

/// The usable range that starts at 1 MiB, where kernels and initrds are placed; empty if there is none.
#[must_use]
pub fn extended_ram(map: &[E820Entry]) -> std::ops::Range<u64> {
    map.iter()
        .find(|entry| entry.kind == E820Type::Ram && entry.addr == EXTENDED_BASE)
        .map_or(EXTENDED_BASE..EXTENDED_BASE, |entry| entry.addr..entry.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn maps_are_sorted_and_cover_the_ram() {
        for kind in [MachineKind::Pc, MachineKind::Q35] {
            for total in [0, 1, 640 * 1024, MIB, 2 * MIB, 128 * MIB, 2816 * MIB, 3584 * MIB, 1 << 40] {
                let ram = RamLayout::for_machine(kind, total);
                let map = build(kind, &ram);
                assert!(map.iter().all(|entry| entry.size > 0), "{kind:?} {total:#x}");
                assert!(
                    map.windows(2).all(|pair| pair[0].end() <= pair[1].addr),
                    "{kind:?} {total:#x}: {map:x?}"
                );
                if total >= 2 * MIB {
                    let above_1m: u64 = map
                        .iter()
                        .filter(|entry| entry.addr >= MIB && entry.kind != E820Type::Reserved)
                        .map(|entry| entry.size)
                        .sum();
                    assert_eq!(above_1m, (total - MIB) & !0xFFF, "{kind:?} {total:#x}");
                }
            }
        }
    }

    #[test]
    fn a_512_mib_pc() {
        let ram = RamLayout::for_machine(MachineKind::Pc, 512 * MIB);
        let map = build(MachineKind::Pc, &ram);
        assert_eq!(map[0], E820Entry { addr: 0, size: 0x9FC00, kind: E820Type::Ram });
        assert_eq!(extended_ram(&map), MIB..512 * MIB - 0x2_0000);
        assert!(map.contains(&E820Entry { addr: 512 * MIB - 0x1000, size: 0x1000, kind: E820Type::AcpiNvs }));
    }
}

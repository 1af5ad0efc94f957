//! SMBIOS 2.8 (DMTF DSP0134): what inventory tools and DMI quirks read.

use super::set_checksum;
use crate::platform::{BIOS_AREA, HIGH_RAM_BASE, MachineKind, PlatformInfo};

/// One virtual DIMM holds at most this much, so that its size fits the field.
const DIMM_SIZE: u64 = 16 << 30;
const MANUFACTURER: &str = "Tessera";
const SYSTEM_HANDLE: u16 = 0x100;
const CHASSIS_HANDLE: u16 = 0x300;
const PROCESSOR_HANDLE: u16 = 0x400;
const ARRAY_HANDLE: u16 = 0x1000;
const DIMM_HANDLE: u16 = 0x1100;
const MAPPED_HANDLE: u16 = 0x1300;
const BOOT_HANDLE: u16 = 0x2000;
const END_HANDLE: u16 = 0x7F00;
/// "No information": no error structure, or no other handle.
const NONE: u16 = 0xFFFE;
const NO_HANDLE: u16 = 0xFFFF;

/// The finished tables.
pub(super) struct Smbios {
    /// The entry point.
    pub anchor: Vec<u8>,
    /// The structures it points to.
    pub structures: Vec<u8>,
}

/// All structures so far.
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    longest: usize,
}

impl Structures {
    /// Appends a structure: formatted area (without type, length and handle) and its strings.
    fn add(&mut self, kind: u8, handle: u16, formatted: &[u8], strings: &[&str]) {
        let start = self.bytes.len();
        self.bytes.extend([kind, formatted.len() as u8 + 4]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend_from_slice(formatted);
        for string in strings {
            self.bytes.extend_from_slice(string.as_bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.count += 1;
        self.longest = self.longest.max(self.bytes.len() - start);
    }
}

/// A formatted area under construction.
#[derive(Default)]
struct Area(Vec<u8>);

impl Area {
    fn u8(mut self, values: &[u8]) -> Self {
        self.0.extend_from_slice(values);
        self
    }
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
}

/// Makes the tables for placement at `anchor_addr` (paragraph aligned, in 0xF0000–0xFFFFF) and `table_addr`.
pub(super) fn build(info: &PlatformInfo, anchor_addr: u64, table_addr: u64) -> Smbios {
    debug_assert!(anchor_addr.is_multiple_of(16) && anchor_addr >= BIOS_AREA);
    let structures = structures(info);
    let mut anchor = Vec::with_capacity(31);
    anchor.extend(b"_SM_");
    anchor.extend([0, 31, 2, 8]); // checksum, length, version 2.8
    anchor.extend((structures.longest as u16).to_le_bytes());
    anchor.extend([0; 6]); // entry point revision 0, formatted area
    anchor.extend(b"_DMI_");
    anchor.push(0);
    anchor.extend((structures.bytes.len() as u16).to_le_bytes());
    anchor.extend((table_addr as u32).to_le_bytes());
    anchor.extend(structures.count.to_le_bytes());
    anchor.push(0x28);
    set_checksum(&mut anchor[16..], 5);
    set_checksum(&mut anchor, 4);
    Smbios { anchor, structures: structures.bytes }
}

fn structures(info: &PlatformInfo) -> Structures {
    let mut all = Structures { bytes: Vec::new(), count: 0, longest: 0 };
    let version = env!("CARGO_PKG_VERSION");
    let product = match info.machine {
        MachineKind::Pc => "Standard PC (i440FX + PIIX, 1996)",
        MachineKind::Q35 => "Standard PC (Q35 + ICH9, 2009)",
    };

    // Type 0, BIOS: strings 1–3, segment, 64 KiB, no characteristics but "virtual machine" (byte 2, bit 4).
    let bios = Area::default().u8(&[1, 2]).u16((BIOS_AREA >> 4) as u16).u8(&[3, 0]).u64(1 << 3);
    let bios = bios.u8(&[0, 1 << 4, 0, 0, 0xFF, 0xFF]);
    all.add(0, 0, &bios.0, &[MANUFACTURER, version, "01/01/2026"]);

    // Type 1, system. The first three fields of a UUID are little endian since SMBIOS 2.6.
    let mut uuid = info.uuid;
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    let system = Area::default().u8(&[1, 2, 3, 0]).u8(&uuid).u8(&[6, 0, 0]); // wake-up by the power switch
    all.add(1, SYSTEM_HANDLE, &system.0, &[MANUFACTURER, product, version]);

    // Type 3, chassis: "other"; states "safe"; security "unknown".
    let chassis = Area::default().u8(&[1, 1, 0, 0, 0, 3, 3, 3, 2]).u32(0).u8(&[0, 0, 0, 0, 0]);
    all.add(3, CHASSIS_HANDLE, &chassis.0, &[MANUFACTURER]);

    // Type 4, one socket with all processors as cores.
    let cores = info.apic_ids.len();
    let processor = Area::default()
        .u8(&[1, 3, 1, 2]) // socket, central processor, family "other", manufacturer
        .u64(0) // identification: guests read CPUID
        .u8(&[3, 0]) // version, voltage unknown
        .u16(0) // external clock
        .u16(0) // maximum speed
        .u16(0) // current speed
        .u8(&[0x41, 1]) // populated and enabled; upgrade "other"
        .u16(NO_HANDLE)
        .u16(NO_HANDLE)
        .u16(NO_HANDLE) // caches
        .u8(&[0, 0, 0])
        .u8(&[cores.min(255) as u8; 3])
        .u16(1 << 1) // characteristics unknown
        .u16(1) // family 2: "other"
        .u16(cores as u16)
        .u16(cores as u16)
        .u16(cores as u16);
    all.add(4, PROCESSOR_HANDLE, &processor.0, &["CPU 0", MANUFACTURER, "virtual"]);

    memory(info, &mut all);

    // Type 32, boot information: no error. Type 127, end.
    all.add(32, BOOT_HANDLE, &[0; 7], &[]);
    all.add(127, END_HANDLE, &[], &[]);
    all
}

/// Types 16, 17 and 19: one array of modules, and the ranges where its memory appears.
fn memory(info: &PlatformInfo, all: &mut Structures) {
    let total = info.ram.low + info.ram.high;
    // A machine of many terabytes is described by larger modules, so that the table stays small.
    let dimm_size = DIMM_SIZE.max(total.div_ceil(16).next_multiple_of(1 << 20));
    let dimms = total.div_ceil(dimm_size).max(1);
    let array = Area::default()
        .u8(&[1, 3, 6]) // location "other", system memory, multi-bit ECC
        .u32(0x8000_0000) // capacity in the extended field
        .u16(NONE)
        .u16(dimms as u16)
        .u64(total);
    all.add(16, ARRAY_HANDLE, &array.0, &[]);

    for index in 0..dimms {
        let size_mib = (total - index * dimm_size).min(dimm_size) >> 20;
        let (size, extended) =
            if size_mib < 0x7FFF { (size_mib as u16, 0) } else { (0x7FFF, size_mib as u32) };
        let locator = format!("DIMM {index}");
        let dimm = Area::default()
            .u16(ARRAY_HANDLE)
            .u16(NONE)
            .u16(64)
            .u16(64) // widths in bits
            .u16(size)
            .u8(&[9, 0, 1, 0, 7]) // DIMM, no set, locator, no bank, "RAM"
            .u16(1 << 1) // detail "other"
            .u16(0)
            .u8(&[2, 0, 0, 0, 0]) // manufacturer, serial, tag, part, rank
            .u32(extended)
            .u16(0)
            .u16(0)
            .u16(0)
            .u16(0);
        all.add(17, DIMM_HANDLE + index as u16, &dimm.0, &[&locator, MANUFACTURER]);
    }

    for (index, (start, size)) in [(0, info.ram.low), (HIGH_RAM_BASE, info.ram.high)]
        .into_iter()
        .filter(|range| range.1 > 0)
        .enumerate()
    {
        // The extended fields hold bytes; the 32-bit fields say "see there".
        let mapped = Area::default()
            .u32(u32::MAX)
            .u32(u32::MAX)
            .u16(ARRAY_HANDLE)
            .u8(&[1])
            .u64(start)
            .u64(start + size - 1);
        all.add(19, MAPPED_HANDLE + index as u16, &mapped.0, &[]);
    }
}

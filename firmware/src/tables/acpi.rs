//! ACPI tables except the DSDT's code (ACPI specification 6.5, chapter 5; HPET: IA-PC HPET specification 1.0a, section
//! 3.2.4; MCFG: PCI Firmware specification 3.3, section 4.1.2).

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{dsdt, set_checksum};
use crate::platform::{
    HPET_BASE, HPET_EVENT_TIMER_BLOCK_ID, IOAPIC_BASE, IOAPIC_ID, LAPIC_BASE, MCFG_BASE, MCFG_SIZE,
    MachineKind, PM_TIMER, PM1A_CONTROL, PM1A_EVENT, PlatformInfo, RESET_PORT, RESET_VALUE, RTC_CENTURY,
    SCI_IRQ,
};

const OEM_ID: [u8; 6] = *b"TESSRA";
const OEM_TABLE_ID: [u8; 8] = *b"TESSERA ";
const OEM_REVISION: u32 = 1;
const HEADER_SIZE: usize = 36;

/// IAPC_BOOT_ARCH bits (ACPI 6.5, table 5.10).
const LEGACY_DEVICES: u16 = 1 << 0;
const HAS_8042: u16 = 1 << 1;
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// MPS INTI flags (table 5.26): active high, level triggered.
const LEVEL_HIGH: u16 = 0b1101;
/// The last identifier a type 0 local APIC entry (and xAPIC hardware) can name.
const XAPIC_MAX: u32 = 254;

/// The finished tables.
pub(super) struct Acpi {
    /// Goes to the 0xF0000 area.
    pub rsdp: Vec<u8>,
    /// Goes to the address [`build`] was given.
    pub tables: Vec<u8>,
    /// Goes to the FACS address [`build`] was given.
    pub facs: Vec<u8>,
}

/// A table under construction: a header without length and checksum, then whatever is appended.
struct Sdt(Vec<u8>);

impl Sdt {
    fn new(signature: &[u8; 4], revision: u8) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(signature);
        bytes.extend([0; 4]); // length
        bytes.extend([revision, 0]); // checksum
        bytes.extend(OEM_ID);
        bytes.extend(OEM_TABLE_ID);
        bytes.extend(OEM_REVISION.to_le_bytes());
        bytes.extend(b"TSRA");
        bytes.extend(1u32.to_le_bytes());
        debug_assert_eq!(bytes.len(), HEADER_SIZE);
        Self(bytes)
    }

    fn add(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[4..8].copy_from_slice(&length.to_le_bytes());
        set_checksum(&mut self.0, 9);
        self.0
    }
}

/// Makes all tables for placement from guest-physical `base`, with the FACS at `facs_addr` (both below 4 GiB).
pub(super) fn build(info: &PlatformInfo, base: u64, facs_addr: u64) -> Acpi {
    let mut tables = Vec::new();
    let mut place = |table: Vec<u8>| {
        tables.resize(tables.len().next_multiple_of(16), 0);
        let addr = base + tables.len() as u64;
        tables.extend(table);
        addr
    };
    let mut code = Sdt::new(b"DSDT", 2);
    code.add(&dsdt::aml(info));
    let dsdt_addr = place(code.finish());

    let mut listed = vec![place(fadt(info, dsdt_addr as u32, facs_addr as u32)), place(madt(info))];
    if info.hpet {
        listed.push(place(hpet()));
    }
    if info.pci && info.machine == MachineKind::Q35 {
        listed.push(place(mcfg()));
    }
    let mut rsdt = Sdt::new(b"RSDT", 1);
    let mut xsdt = Sdt::new(b"XSDT", 1);
    for addr in listed {
        rsdt.add(&(addr as u32).to_le_bytes());
        xsdt.add(&addr.to_le_bytes());
    }
    let rsdt_addr = place(rsdt.finish());
    let xsdt_addr = place(xsdt.finish());

    let mut facs = Vec::new();
    FACS::new().to_aml_bytes(&mut facs);
    Acpi { rsdp: rsdp(rsdt_addr as u32, xsdt_addr), tables, facs }
}

fn rsdp(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36);
    bytes.extend(b"RSD PTR ");
    bytes.push(0); // checksum of the first 20 bytes
    bytes.extend(OEM_ID);
    bytes.push(2); // revision
    bytes.extend(rsdt.to_le_bytes());
    bytes.extend(36u32.to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]); // extended checksum, reserved
    set_checksum(&mut bytes[..20], 8);
    set_checksum(&mut bytes, 32);
    bytes
}

fn fadt(info: &PlatformInfo, dsdt: u32, facs: u32) -> Vec<u8> {
    let io = |port: u16, bits, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Desktop)
        .firmware_ctrl_32(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // Guests that read only the 32-bit field and guests that prefer the 64-bit one see the same DSDT.
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.creator_id = *b"TSRA";
    fadt.creator_revision = 1u32.to_le_bytes();
    fadt.fadt_minor_version = 4;
    fadt.sci_int = SCI_IRQ.into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL).into();
    fadt.pm_tmr_blk = u32::from(PM_TIMER).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = io(PM1A_EVENT, 32, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io(PM1A_CONTROL, 16, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = io(PM_TIMER, 32, AccessSize::DwordAccess);
    // C2 and C3 are not supported: latencies above 100 and 1000 microseconds say so.
    fadt.p_lvl2_lat = 0x0FFF.into();
    fadt.p_lvl3_lat = 0x0FFF.into();
    fadt.century = RTC_CENTURY;
    let mut boot_arch = LEGACY_DEVICES;
    if info.i8042 {
        boot_arch |= HAS_8042;
    }
    if !info.vga {
        boot_arch |= VGA_NOT_PRESENT;
    }
    fadt.iapc_boot_arch = boot_arch.into();
    fadt.reset_reg = io(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

fn madt(info: &PlatformInfo) -> Vec<u8> {
    let mut madt = Sdt::new(b"APIC", 5);
    madt.add(&LAPIC_BASE.to_le_bytes());
    madt.add(&1u32.to_le_bytes()); // PCAT_COMPAT: the two i8259s exist
    let enabled = 1u32.to_le_bytes();
    for (uid, &apic_id) in info.apic_ids.iter().enumerate() {
        if apic_id <= XAPIC_MAX && uid < 255 {
            madt.add(&[0, 8, uid as u8, apic_id as u8]).add(&enabled);
        } else {
            madt.add(&[9, 16, 0, 0])
                .add(&apic_id.to_le_bytes())
                .add(&enabled)
                .add(&(uid as u32).to_le_bytes());
        }
    }
    madt.add(&[1, 12, IOAPIC_ID, 0]).add(&IOAPIC_BASE.to_le_bytes()).add(&0u32.to_le_bytes());
    let mut interrupt_override = |irq: u8, gsi: u32, flags: u16| {
        madt.add(&[2, 10, 0, irq]).add(&gsi.to_le_bytes()).add(&flags.to_le_bytes());
    };
    // The i8254 is wired to input 2; the SCI is level triggered and active high.
    interrupt_override(0, 2, 0);
    interrupt_override(SCI_IRQ as u8, SCI_IRQ.into(), LEVEL_HIGH);
    if info.machine == MachineKind::Pc && info.pci {
        for irq in [10, 11] {
            interrupt_override(irq, irq.into(), LEVEL_HIGH);
        }
    }
    // NMI arrives at LINT1 of every processor.
    madt.add(&[4, 6, 0xFF, 0, 0, 1]);
    if info.apic_ids.iter().any(|&id| id > XAPIC_MAX) {
        madt.add(&[0x0A, 12, 0, 0]).add(&u32::MAX.to_le_bytes()).add(&[1, 0, 0, 0]);
    }
    madt.finish()
}

fn hpet() -> Vec<u8> {
    let mut table = Sdt::new(b"HPET", 1);
    table.add(&HPET_EVENT_TIMER_BLOCK_ID.to_le_bytes());
    table.add(&[0, 0, 0, 0]).add(&u64::from(HPET_BASE).to_le_bytes());
    // Sequence number, minimum tick in periodic mode, no page protection.
    table.add(&[0]).add(&100u16.to_le_bytes()).add(&[0]);
    table.finish()
}

fn mcfg() -> Vec<u8> {
    let last_bus = (MCFG_SIZE >> 20) as u8;
    let mut table = Sdt::new(b"MCFG", 1);
    table.add(&[0; 8]).add(&MCFG_BASE.to_le_bytes());
    table.add(&0u16.to_le_bytes()).add(&[0, last_bus.wrapping_sub(1)]).add(&[0; 4]);
    table.finish()
}

//! The tables by which a guest learns what the machine consists of.
//!
//! The problem: a kernel cannot probe for processors, interrupt wiring or the power switch; it reads tables, and tables
//! that disagree with the devices are worse than none. The strategy: one [`PlatformInfo`] is the only input, each
//! table is a pure function from it to bytes, and [`build`] places them:
//!
//! ```text
//! 0xF0000   RSDP           (paragraph aligned, as guests search for it)
//! 0xF0100   SMBIOS 2.8 anchor, structures from 0xF1000
//! 0xF0200   MP floating pointer, MP configuration table from 0xF8000
//! end of low RAM - 128 KiB   DSDT, FADT, MADT, HPET, MCFG, RSDT, XSDT
//! end of low RAM -   4 KiB   FACS (64-byte aligned)
//! ```
//!
//! Invariants: every table's length and checksum are right by construction; RSDT and XSDT list the same tables; the
//! addresses lie in ranges that [`e820::build`](crate::e820::build) does not list as usable RAM.
//!
//! A guest that boots by these tables starts in ACPI mode: there is no SMI command port, so SCI_EN has to read 1.

use thiserror::Error;

use crate::memory::{GuestMemory, MemoryError};
use crate::platform::{BIOS_AREA, MAX_CPUS, PlatformInfo};

mod acpi;
mod dsdt;
mod mp;
mod smbios;

const RSDP_ADDR: u64 = BIOS_AREA;
const SMBIOS_ANCHOR: u64 = BIOS_AREA + 0x100;
const MP_POINTER: u64 = BIOS_AREA + 0x200;
const SMBIOS_TABLE: u64 = BIOS_AREA + 0x1000;
const MP_TABLE: u64 = BIOS_AREA + 0x8000;
const BIOS_AREA_SIZE: u64 = 0x1_0000;

/// Why the tables cannot be made.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TablesError {
    /// Not even the tables fit.
    #[error("{low} bytes of RAM are too few for the firmware tables; give the guest at least 2 MiB")]
    TooLittleRam {
        /// RAM below the hole, in bytes.
        low: u64,
    },
    /// No processor, or more than the tables can name.
    #[error("{0} processors cannot be described; give 1 to {MAX_CPUS}")]
    CpuCount(usize),
    /// The description is larger than the area set aside for it.
    #[error("the {table} needs {size} bytes, but only {room} are set aside for it; use fewer processors")]
    TooLarge {
        /// Which table.
        table: &'static str,
        /// Bytes needed.
        size: u64,
        /// Bytes available.
        room: u64,
    },
    /// The memory map promises RAM that is not there.
    #[error("the firmware tables cannot be placed: {0}")]
    Memory(#[from] MemoryError),
}

/// Writes ACPI, SMBIOS and MP tables into guest memory and returns the guest-physical address of the RSDP.
///
/// # Errors
/// [`TablesError`] if the machine cannot be described.
pub fn build(mem: &mut dyn GuestMemory, info: &PlatformInfo) -> Result<u64, TablesError> {
    let cpus = info.apic_ids.len();
    if cpus == 0 || cpus > MAX_CPUS {
        return Err(TablesError::CpuCount(cpus));
    }
    let area = info.ram.acpi_area().ok_or(TablesError::TooLittleRam { low: info.ram.low })?;
    let acpi = acpi::build(info, area.start, area.end - 0x1000);
    let room = area.end - 0x1000 - area.start;
    if acpi.tables.len() as u64 > room {
        return Err(TablesError::TooLarge { table: "ACPI tables", size: acpi.tables.len() as u64, room });
    }
    let smbios = smbios::build(info, SMBIOS_ANCHOR, SMBIOS_TABLE);
    let mp = mp::build(info, MP_POINTER, MP_TABLE);
    for (table, data, room) in [
        ("SMBIOS table", &smbios.structures, MP_TABLE - SMBIOS_TABLE),
        ("MP table", &mp.table, BIOS_AREA + BIOS_AREA_SIZE - MP_TABLE),
    ] {
        if data.len() as u64 > room {
            return Err(TablesError::TooLarge { table, size: data.len() as u64, room });
        }
    }

    mem.write(area.start, &acpi.tables)?;
    mem.write(area.end - 0x1000, &acpi.facs)?;
    mem.write(SMBIOS_TABLE, &smbios.structures)?;
    mem.write(SMBIOS_ANCHOR, &smbios.anchor)?;
    mem.write(MP_TABLE, &mp.table)?;
    mem.write(MP_POINTER, &mp.pointer)?;
    mem.write(RSDP_ADDR, &acpi.rsdp)?;
    Ok(RSDP_ADDR)
}

/// Sets the byte at `at` such that all of `bytes` sum to 0 modulo 256.
fn set_checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    bytes[at] = sum.wrapping_neg();
}

#[cfg(test)]
mod tests;

//! The PCI functions that the boards themselves have: host bridge, ISA bridge, power management.
//!
//! They are configuration space only: what is behind them (ISA devices, the ACPI block, the MMCONFIG window) is at fixed
//! addresses that their registers report and do not move.
//!
//! Sources: Intel 82440FX, 82371SB (PIIX3), 82371AB (PIIX4), 82G33 (Q35) and ICH9 data sheets.

use std::sync::Mutex;

use tessera_firmware::platform::{MCFG_BASE, PIRQ_ISA_IRQ, PM1A_EVENT, SCI_IRQ};
use tessera_hw_core::device::{Device, Section, StateError, damaged, decode, encode};
use tessera_hw_core::lock;

use super::{ConfigSpace, Devfn, PciFunction};

/// Vendor and device of the subsystem of emulated boards.
const SUBSYSTEM: u32 = 0x1100_1af4;

const HOST_BRIDGE: u32 = 0x06_00_00;
const ISA_BRIDGE: u32 = 0x06_01_00;
const OTHER_BRIDGE: u32 = 0x06_80_00;

/// A function with no more than registers.
pub struct Bridge {
    name: &'static str,
    at_reset: ConfigSpace,
    space: Mutex<ConfigSpace>,
}

impl Bridge {
    fn new(name: &'static str, space: ConfigSpace) -> Self {
        Self { name, at_reset: space.clone(), space: Mutex::new(space) }
    }
}

impl PciFunction for Bridge {
    fn config_read(&self, register: u8, size: u8) -> u32 {
        lock(&self.space).read(register, size)
    }
    fn config_write(&self, register: u8, size: u8, value: u32) {
        lock(&self.space).write(register, size, value);
    }
}

impl Device for Bridge {
    fn name(&self) -> &str {
        self.name
    }
    fn reset(&self) {
        *lock(&self.space) = self.at_reset.clone();
    }
    fn save(&self) -> Section {
        encode(self.name, 1, &lock(&self.space).values())
    }
    fn restore(&self, section: &Section) -> Result<(), StateError> {
        let values: Vec<u8> = decode(section, 1)?;
        let new = self
            .at_reset
            .with_values(values)
            .ok_or_else(|| damaged(section, "registers of another function"))?;
        *lock(&self.space) = new;
        Ok(())
    }
}

/// Interrupt links A to D routed to their ISA IRQs, as firmware leaves them.
fn with_links(space: ConfigSpace, first: u8) -> ConfigSpace {
    let links = u32::from_le_bytes(PIRQ_ISA_IRQ);
    space.with(first, 4, links, 0x8f8f_8f8f)
}

/// `-machine pc`: i440FX host bridge, PIIX3 ISA bridge, PIIX4 power management.
pub fn i440fx() -> Vec<(Devfn, Bridge)> {
    let host = ConfigSpace::new(0x1237_8086, 2, HOST_BRIDGE)
        .subsystem(SUBSYSTEM)
        .with(0x04, 2, 0x0006, 0x0100)
        .with(0x06, 2, 0x0280, 0)
        // Attributes of the memory from 0xC0000 to 0xFFFFF: stored, not followed; it is always RAM.
        .with(0x58, 4, 0x3000_0000, 0xffff_ff00)
        .with(0x5c, 4, 0x3333_3333, 0xffff_ffff)
        .with(0x72, 1, 0x02, 0x78);
    let isa = ConfigSpace::new(0x7000_8086, 0, ISA_BRIDGE)
        .multifunction()
        .subsystem(SUBSYSTEM)
        .with(0x04, 2, 7, 0)
        .with(0x06, 2, 0x0200, 0);
    let pm = ConfigSpace::new(0x7113_8086, 3, OTHER_BRIDGE)
        .subsystem(SUBSYSTEM)
        .with(0x06, 2, 0x0280, 0)
        .with(0x3c, 2, 0x0100 | u32::from(SCI_IRQ), 0xff)
        // The ACPI block's base, and that it is enabled.
        .with(0x40, 4, u32::from(PM1A_EVENT) | 1, 0)
        .with(0x80, 1, 1, 0);
    vec![
        (Devfn::new(0, 0), Bridge::new("i440fx", host)),
        (Devfn::new(1, 0), Bridge::new("piix3-isa", with_links(isa, 0x60))),
        (Devfn::new(1, 3), Bridge::new("piix4-pm", pm)),
    ]
}

/// `-machine q35`: memory controller hub and ICH9 LPC bridge.
pub fn q35() -> Vec<(Devfn, Bridge)> {
    let host = ConfigSpace::new(0x29c0_8086, 0, HOST_BRIDGE)
        .subsystem(SUBSYSTEM)
        .with(0x04, 2, 0x0006, 0x0100)
        .with(0x06, 2, 0x0080, 0)
        // PCIEXBAR: 256 MiB at the window's base, enabled.
        .with(0x60, 4, MCFG_BASE as u32 | 1, 0)
        .with(0x64, 4, (MCFG_BASE >> 32) as u32, 0)
        // Attributes of the memory from 0xC0000 to 0xFFFFF, as above.
        .with(0x90, 4, 0x3333_3330, 0xffff_ffff)
        .with(0x94, 4, 0x0000_3333, 0x0000_ffff);
    let lpc = ConfigSpace::new(0x2918_8086, 2, ISA_BRIDGE)
        .multifunction()
        .subsystem(SUBSYSTEM)
        .with(0x04, 2, 7, 0)
        .with(0x06, 2, 0x0200, 0)
        .with(0x40, 4, u32::from(PM1A_EVENT) | 1, 0)
        // ACPI_CNTL: the block is enabled, its interrupt is IRQ 9.
        .with(0x44, 1, 0x80, 0)
        .with(0x68, 4, 0x8080_8080, 0x8f8f_8f8f);
    vec![
        (Devfn::new(0, 0), Bridge::new("q35-mch", host)),
        (Devfn::new(31, 0), Bridge::new("ich9-lpc", with_links(lpc, 0x60))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boards_have_their_bridges() {
        let ids = |v: Vec<(Devfn, Bridge)>| -> Vec<(u8, u32)> {
            v.iter().map(|(at, f)| (at.0, f.config_read(0, 4))).collect()
        };
        assert_eq!(ids(i440fx()), [(0, 0x1237_8086), (8, 0x7000_8086), (11, 0x7113_8086)]);
        assert_eq!(ids(q35()), [(0, 0x29c0_8086), (0xf8, 0x2918_8086)]);
        let (_, pm) = i440fx().pop().unwrap();
        assert_eq!(pm.config_read(0x40, 4), 0x601);
        pm.config_write(0x40, 4, 0);
        assert_eq!(pm.config_read(0x40, 4), 0x601);
        let isa = &i440fx()[1].1;
        assert_eq!(isa.config_read(0x60, 4), 0x0b0b_0a0a);
        isa.config_write(0x60, 1, 5);
        let saved = isa.save();
        Device::reset(isa);
        assert_eq!(isa.config_read(0x60, 1), 0x0a);
        isa.restore(&saved).unwrap();
        assert_eq!(isa.config_read(0x60, 1), 5);
        assert!(pm.restore(&saved).is_err());
    }
}

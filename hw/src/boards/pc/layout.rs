//! Where everything is in a PC: ports, memory, interrupts. Addresses that the firmware's tables also tell a guest come from
//! [`tessera_firmware::platform`], so that board and tables cannot disagree.

pub use tessera_firmware::platform::{
    COM_PORTS, EXTENDED_BASE, HIGH_RAM_BASE, HPET_BASE, IOAPIC_BASE, LAPIC_BASE, MCFG_BASE, MCFG_SIZE,
    PM1A_EVENT, RESET_PORT, SCI_IRQ,
};

/// Conventional memory ends and the adapters' memory begins.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// The adapters' memory ends; from here to 1 MiB is RAM that holds copies of firmware.
pub const SHADOW_BASE: u64 = 0xc_0000;
/// The part of a ROM that is also seen just below 1 MiB.
pub const ROM_SHADOW_MAX: u64 = 0x2_0000;
/// Size of the register pages of I/O APIC, local APIC and HPET.
pub const REGISTER_PAGE: u64 = 0x1000;

/// 8259 master.
pub const PIC_MASTER: u16 = 0x20;
/// 8259 slave.
pub const PIC_SLAVE: u16 = 0xa0;
/// Edge or level of the 8259s' inputs.
pub const ELCR: u16 = 0x4d0;
/// 8254.
pub const PIT: u16 = 0x40;
/// Gate and output of the 8254's counter 2.
pub const SYSTEM_CONTROL: u16 = 0x61;
/// Keyboard controller, data.
pub const KEYBOARD_DATA: u16 = 0x60;
/// Keyboard controller, commands and status.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// Real-time clock.
pub const RTC: u16 = 0x70;
/// DMA page registers and POST code.
pub const SCRATCH: u16 = 0x80;
/// The alternative delay port.
pub const DELAY: u16 = 0xed;
/// System control port A.
pub const PORT_92: u16 = 0x92;
/// Error logic of the x87 unit.
pub const COPROCESSOR: u16 = 0xf0;
/// PCI configuration address and data.
pub const PCI_CONFIG: u16 = 0xcf8;

/// ISA IRQ of the 8254.
pub const PIT_IRQ: u32 = 0;
/// ISA IRQ of the x87 unit's errors.
pub const COPROCESSOR_IRQ: u32 = 13;
/// ISA IRQ of the keyboard.
pub const KEYBOARD_IRQ: u32 = 1;
/// ISA IRQ of the real-time clock.
pub const RTC_IRQ: u32 = 8;
/// ISA IRQs there are.
pub const ISA_IRQS: u32 = 16;

/// The I/O APIC input to which an ISA IRQ is wired: its own number, but for the timer's, which is at 2, where the 8259s'
/// cascade leaves a place. `None` for 2 itself.
pub fn isa_gsi(irq: u32) -> Option<u32> {
    match irq {
        0 => Some(2),
        2 => None,
        n => Some(n),
    }
}

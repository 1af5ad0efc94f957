//! What lies where in guest-physical memory while the self-test runs. Everything fits into the first 640 KiB.

/// Linear address of the ROM's low copy.
pub const ROM_BASE: u64 = 0xF_0000;
/// Size of the image.
pub const ROM_SIZE: usize = 0x1_0000;
/// The real-mode code segment.
pub const ROM_SEGMENT: u16 = 0xF000;

/// Native speed of the host in instructions per second of the speed loop, 64-bit little endian, written before
/// the start by whoever runs the ROM; 0 if unknown.
pub const NATIVE_SPEED: u32 = 0x500;

// Variables, 8 bytes apart.
/// Checks passed and failed so far.
pub const PASSED: u32 = 0x600;
pub const FAILED: u32 = 0x608;
/// Address of the running check's name, and how many of its expectations failed.
pub const CHECK_NAME: u32 = 0x610;
pub const CHECK_FAILS: u32 = 0x618;
/// The failed expectation at hand: address of its description, both values (see also [`FIELD`]).
pub const WHAT: u32 = 0x620;
pub const GOT: u32 = 0x628;
pub const EXPECTED: u32 = 0x630;
/// The first failed expectation of the running check.
pub const FIRST_WHAT: u32 = 0x638;
pub const FIRST_GOT: u32 = 0x640;
pub const FIRST_EXPECTED: u32 = 0x648;
/// Where to go on after an expected exception, and with which stack pointer; 0 if none is expected.
pub const RESUME: u32 = 0x650;
pub const RESUME_SP: u32 = 0x658;
/// What the exception handlers saw.
pub const EXC_VECTOR: u32 = 0x660;
pub const EXC_ERROR: u32 = 0x668;
pub const EXC_IP: u32 = 0x670;
pub const EXC_CS: u32 = 0x678;
pub const EXC_FLAGS: u32 = 0x680;
pub const EXC_SP: u32 = 0x688;
pub const EXC_SS: u32 = 0x690;
pub const EXC_CR2: u32 = 0x698;
/// Stack pointer in the handler, before it used the stack: the address of the error code or instruction pointer.
pub const EXC_HANDLER_SP: u32 = 0x6A0;
/// Registers at the exception.
pub const EXC_AX: u32 = 0x6A8;
pub const EXC_CX: u32 = 0x6B0;
pub const EXC_SI: u32 = 0x6B8;
pub const EXC_DI: u32 = 0x6C0;
/// Interrupts counted by their handlers.
pub const IRQ0_COUNT: u32 = 0x6C8;
pub const LAPIC_COUNT: u32 = 0x6D0;
pub const IOAPIC_COUNT: u32 = 0x6D8;
pub const SPURIOUS_COUNT: u32 = 0x6E0;
/// Frequency of the time stamp counter in Hz, 0 until measured.
pub const TSC_HZ: u32 = 0x6E8;
/// For checks that need a value kept over a change of mode.
pub const SCRATCH_VAR: u32 = 0x6F0;
pub const SCRATCH_VAR2: u32 = 0x6F8;
/// Address of the text that says which part of [`WHAT`] differs.
pub const FIELD: u32 = 0x700;
pub const FIRST_FIELD: u32 = 0x708;
/// End of the variables.
pub const VARS_END: u32 = 0x710;

/// Tables the processor reads.
pub const IDT32: u32 = 0x1000;
pub const TSS32: u32 = 0x1800;
pub const IDT64: u32 = 0x2000;
pub const TSS64: u32 = 0x3000;
pub const GDT: u32 = 0x3800;

/// Ends of stacks.
pub const STACK: u32 = 0x7000;
pub const STACK_RING0: u32 = 0x8000;
pub const STACK_USER: u32 = 0x9000;
pub const STACK_IST: u32 = 0xA000;
/// Code written at run time.
pub const CODE_RAM: u32 = 0xB000;
/// Data of the checks, two pages.
pub const SCRATCH: u32 = 0xC000;

/// Page tables: two-level, PAE, four-level.
pub const PD32: u32 = 0x2_0000;
pub const PT32: u32 = 0x2_1000;
pub const PT32_TEST: u32 = 0x2_2000;
pub const PDPT_PAE: u32 = 0x2_3000;
pub const PD_PAE: u32 = 0x2_4000;
pub const PT_PAE: u32 = 0x2_5000;
pub const PT_PAE_TEST: u32 = 0x2_6000;
pub const PML4: u32 = 0x3_0000;
pub const PDPT: u32 = 0x3_1000;
pub const PD0: u32 = 0x3_2000;
pub const PD1: u32 = 0x3_3000;
pub const PD3: u32 = 0x3_4000;
pub const PT_TEST: u32 = 0x3_5000;
/// Pages that the paging checks map in various ways.
pub const PAGE_A: u32 = 0x7_0000;
pub const PAGE_B: u32 = 0x7_1000;

// Selectors of the GDT in `tables.rs`. RPL 3 is part of the user selectors.
pub const CODE32: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE64: u16 = 0x18;
pub const USER_CODE32: u16 = 0x28 | 3;
pub const USER_DATA: u16 = 0x30 | 3;
pub const USER_CODE64: u16 = 0x38 | 3;
/// Base 0xF0000, 64 KiB, 16 bit.
pub const CODE16: u16 = 0x40;
/// Base [`SCRATCH`], limit 0xFF.
pub const SMALL: u16 = 0x48;
/// Same, expanding down: offsets from 0x100.
pub const DOWN: u16 = 0x50;
/// Not present: data.
pub const ABSENT: u16 = 0x58;
pub const READ_ONLY: u16 = 0x60;
pub const EXECUTE_ONLY: u16 = 0x68;
pub const TSS32_SELECTOR: u16 = 0x70;
/// Call gate for ring 3, to `32.gate`, one parameter.
pub const GATE: u16 = 0x78;
pub const TSS64_SELECTOR: u16 = 0x80;
pub const GDT_SIZE: u16 = 0x90;

// Vectors beyond the exceptions.
/// System call by software interrupt, allowed in ring 3.
pub const VEC_SYSCALL: u8 = 0x80;
/// A gate that is not present.
pub const VEC_ABSENT: u8 = 0x81;
/// First vector of the first i8259.
pub const VEC_PIC: u8 = 0x20;
pub const VEC_LAPIC: u8 = 0x30;
pub const VEC_IOAPIC: u8 = 0x31;
pub const VEC_SPURIOUS: u8 = 0xFF;

/// The arithmetic flags: OF, SF, ZF, AF, PF, CF.
pub const ARITHMETIC: u32 = 0x8D5;

/// COM1.
pub const COM1: u32 = 0x3F8;

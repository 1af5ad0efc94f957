//! What lies where in guest-physical memory while a program runs. Everything fits into the first 640 KiB.
//!
//! Everything that real mode must reach with a segment of 0 lies below 64 KiB.

/// Where the loader puts the file, which copies itself to [`IMAGE`].
pub const LOADED: u32 = 0x10_0000;
/// Linear address of the linked program, and its real-mode segment.
pub const IMAGE: u32 = 0x1_0000;
pub const IMAGE_SEGMENT: u32 = IMAGE >> 4;
pub const IMAGE_SIZE: usize = 0x1_0000;

/// Port of the debug console, and of the device that ends the machine.
pub const CONSOLE: u32 = 0xE9;
pub const EXIT: u32 = 0xF4;

// Variables, 8 bytes apart.
/// Checks that failed so far.
pub const FAILED: u32 = 0x600;
/// The running check: its name, and how many of its expectations failed.
pub const NAME: u32 = 0x608;
pub const FAILS: u32 = 0x610;
/// The failed expectation at hand.
pub const WHAT: u32 = 0x618;
pub const FIELD: u32 = 0x620;
pub const GOT: u32 = 0x628;
pub const EXPECTED: u32 = 0x630;
/// The first failed expectation of the running check, in the order of those above.
pub const FIRST: u32 = 0x638;
/// Where an exception continues, 0 if none is expected; the end of the running check.
pub const RESUME: u32 = 0x658;
pub const END: u32 = 0x660;
/// The stack pointer with which an exception continues.
pub const RESUME_SP: u32 = 0x668;
/// What the handler saw: vector ([`NO_EXCEPTION`] if none came), error code (0 if there is none) and the saved registers.
pub const EXC_VECTOR: u32 = 0x670;
pub const EXC_ERROR: u32 = 0x678;
pub const EXC_IP: u32 = 0x680;
pub const EXC_CS: u32 = 0x688;
pub const EXC_FLAGS: u32 = 0x690;
pub const EXC_SP: u32 = 0x698;
pub const EXC_SS: u32 = 0x6A0;
pub const EXC_CR2: u32 = 0x6A8;
/// Only virtual-8086 mode saves them.
pub const EXC_ES: u32 = 0x6B0;
/// Stack pointer in the handler, before it used the stack: the address of the error code or the instruction pointer.
pub const EXC_HANDLER_SP: u32 = 0x6B8;
/// CS and flags in the handler.
pub const EXC_HANDLER_CS: u32 = 0x6C0;
pub const EXC_HANDLER_FLAGS: u32 = 0x6C8;
pub const EXC_DR6: u32 = 0x6D0;
/// General registers at the exception.
pub const EXC_AX: u32 = 0x6E0;
pub const EXC_CX: u32 = 0x6E8;
pub const EXC_DX: u32 = 0x6F0;
pub const EXC_BX: u32 = 0x6F8;
pub const EXC_SI: u32 = 0x700;
pub const EXC_DI: u32 = 0x708;
/// Control registers between checks.
pub const HOME_CR0: u32 = 0x710;
pub const HOME_CR3: u32 = 0x718;
pub const HOME_CR4: u32 = 0x720;
/// For the checks: cleared at the start of each.
pub const V: [u32; 8] = [0x740, 0x748, 0x750, 0x758, 0x760, 0x768, 0x770, 0x778];

/// What [`EXC_VECTOR`] holds while nothing has happened.
pub const NO_EXCEPTION: u32 = 0xFFFF;

/// Tables in use; each check starts with fresh ones.
pub const IDT: u32 = 0x1000;
pub const GDT: u32 = 0x2000;
pub const GDT_SIZE: u32 = 0x400;
/// What [`IDT`] is refreshed from.
pub const IDT_TEMPLATE: u32 = 0x3000;
/// The task that checks run in, with a permission bitmap for all ports, and two others.
pub const TSS: u32 = 0x4000;
pub const TSS_BITMAP: u32 = TSS + 0x68;
pub const TSS_LIMIT: u32 = 0x68 + 0x2000;
pub const TSS_B: u32 = 0x6800;
pub const TSS16_A: u32 = 0x6900;
pub const TSS16_B: u32 = 0x6A00;
pub const LDT: u32 = 0x6C00;
pub const LDT_SIZE: u32 = 0x100;

/// Stacks, by their upper ends: between checks, for interrupts from outer rings, of ring 3, by interrupt stack table, of a
/// second task.
pub const STACK: u32 = 0x8000;
pub const STACK0: u32 = 0x9000;
pub const STACK3: u32 = 0xA000;
pub const STACK_IST: u32 = 0xB000;
pub const STACK_IST2: u32 = 0xC000;
pub const STACK_B: u32 = 0xD000;
pub const STACK1: u32 = 0xE000;
/// Two pages for the checks.
pub const SCRATCH: u32 = 0xE000;

/// Page tables: 16 pages, cleared at the start.
pub const TABLES: u32 = 0x2_0000;
pub const PML5: u32 = TABLES;
pub const PML4: u32 = TABLES + 0x1000;
pub const PDPT: u32 = TABLES + 0x2000;
pub const PD: u32 = TABLES + 0x3000;
pub const PD_TEST: u32 = TABLES + 0x4000;
pub const PT_TEST: u32 = TABLES + 0x5000;
pub const PML4_B: u32 = TABLES + 0x6000;
pub const PDPT_B: u32 = TABLES + 0x7000;
pub const PD_B: u32 = TABLES + 0x8000;
pub const PT_B: u32 = TABLES + 0x9000;
pub const PD_HIGH: u32 = TABLES + 0xA000;
/// Pages for the checks to map.
pub const PAGES: u32 = 0x3_0000;

/// With paging: the first 4 MiB again, for ring 3. The first mapping is ring 0's alone.
pub const USER_ALIAS: u32 = 0x4000_0000;
/// With paging: where [`PT_TEST`] maps.
pub const TEST: u32 = 0x8000_0000;

// Selectors.
pub const CODE32: u32 = 0x08;
pub const DATA: u32 = 0x10;
pub const CODE64: u32 = 0x18;
/// SYSCALL and SYSEXIT count from a base: ring 0 code, data, ring 3 code 32, data, code 64.
pub const DATA64: u32 = 0x20;
pub const USER32: u32 = 0x2B;
pub const USER_DATA: u32 = 0x33;
pub const USER64: u32 = 0x3B;
pub const CODE16: u32 = 0x40;
pub const DATA16: u32 = 0x48;
pub const TSS_SEL: u32 = 0x50;
/// Behind the upper half of the 64-bit TSS descriptor.
pub const LDT_SEL: u32 = 0x60;
pub const TSS_B_SEL: u32 = 0x70;
pub const TSS16_A_SEL: u32 = 0x78;
pub const TSS16_B_SEL: u32 = 0x80;
pub const CONFORMING: u32 = 0x88;
pub const RING1_CODE: u32 = 0x91;
pub const RING1_DATA: u32 = 0x99;
/// The first of the selectors that checks fill as they like.
pub const FREE: u32 = 0xC0;

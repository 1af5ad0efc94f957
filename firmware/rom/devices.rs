//! The devices every PC has: serial port, CMOS clock, i8259s with i8254, local APIC, I/O APIC, and the clocks' agreement.

use iced_x86::code_asm::*;

use super::layout::*;
use super::report::{self, begin, end, expect_if, expect_var, expect32};
use tessera_asm::{Code, R, Symbols};

const PM_TIMER: u32 = 0x608;
/// PM timer ticks a second (ACPI 6.5, section 4.8.2.1), and in a millisecond.
const PM_HZ: u32 = 3_579_545;
const PM_MS: u32 = PM_HZ / 1000;
/// No interrupt under test takes longer than this.
const PATIENCE: u32 = 400 * PM_MS;

const LAPIC: u32 = 0xFEE0_0000;
const LAPIC_VERSION: u32 = LAPIC + 0x30;
const LAPIC_TPR: u32 = LAPIC + 0x80;
const LAPIC_EOI: u32 = LAPIC + 0xB0;
const LAPIC_SVR: u32 = LAPIC + 0xF0;
const LAPIC_IRR1: u32 = LAPIC + 0x210;
const LAPIC_LVT_TIMER: u32 = LAPIC + 0x320;
const LAPIC_LVT_LINT0: u32 = LAPIC + 0x350;
const LAPIC_LVT_LINT1: u32 = LAPIC + 0x360;
const LAPIC_INITIAL: u32 = LAPIC + 0x380;
const LAPIC_CURRENT: u32 = LAPIC + 0x390;
const LAPIC_DIVIDE: u32 = LAPIC + 0x3E0;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;

const IOAPIC_SELECT: u32 = 0xFEC0_0000;
const IOAPIC_WINDOW: u32 = 0xFEC0_0010;
/// The i8254's input and the redirection entry that belongs to it.
const PIT_REDIRECTION: u32 = 0x10 + 2 * 2;

const HPET: u32 = 0xFED0_0000;

/// 32-bit code: makes the ACPI fixed hardware answer at 0x600, on boards whose firmware has to place it.
///
/// PIIX4 (bus 0, 8086:7113): PMBASE at 40h, enabled by bit 0 of 80h. ICH9 (8086:2918): PMBASE at 40h, enabled by bit 7 of
/// 44h. A board without either has it there already.
pub fn map_power_management(c: &mut Code, s: &Symbols) -> R {
    let [next, ich9, skip, done] = std::array::from_fn(|_| c.fresh());
    c.mov(ebx, 0x8000_0000u32)?;
    c.label(&next)?;
    read_config(c, 0)?;
    c.cmp(eax, 0x7113_8086)?;
    c.jne(s.at(&ich9))?;
    write_config(c, 0x40, 0x601)?;
    write_config(c, 0x80, 1)?;
    c.jmp(s.at(&done))?;
    c.label(&ich9)?;
    c.cmp(eax, 0x2918_8086)?;
    c.jne(s.at(&skip))?;
    write_config(c, 0x40, 0x601)?;
    write_config(c, 0x44, 0x80)?;
    c.jmp(s.at(&done))?;
    c.label(&skip)?;
    c.add(ebx, 0x100)?;
    c.cmp(ebx, 0x8001_0000u32)?;
    c.jne(s.at(&next))?;
    c.label(&done)
}

/// EAX = the doubleword at `offset` of the function EBX names. Clobbers EDX.
fn read_config(c: &mut Code, offset: u32) -> R {
    c.lea(eax, dword_ptr(ebx + offset))?;
    c.mov(edx, 0xCF8)?;
    c.out(dx, eax)?;
    c.mov(edx, 0xCFC)?;
    c.in_(eax, dx)
}

fn write_config(c: &mut Code, offset: u32, value: u32) -> R {
    read_config(c, offset)?;
    c.mov(eax, value)?;
    c.out(dx, eax)
}

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    serial(c, s)?;
    rtc(c, s)?;
    pic_and_pit(c, s)?;
    halt(c, s)?;
    local_apic(c, s)?;
    io_apic(c, s)?;
    clocks(c, s)
}

fn outb(c: &mut Code, port: u32, value: u32) -> R {
    c.mov(al, value)?;
    if port < 0x100 {
        c.out(port as i32, al)
    } else {
        c.mov(dx, port)?;
        c.out(dx, al)
    }
}

/// EAX = a byte from a port.
fn inb(c: &mut Code, port: u32) -> R {
    c.xor(eax, eax)?;
    if port < 0x100 {
        c.in_(al, port as i32)
    } else {
        c.mov(dx, port)?;
        c.in_(al, dx)
    }
}

fn mmio_write(c: &mut Code, address: u32, value: u32) -> R {
    c.mov(ebx, address)?;
    c.mov(dword_ptr(rbx), value)
}

/// EAX = a register. Clobbers RBX.
fn mmio_read(c: &mut Code, address: u32) -> R {
    c.mov(ebx, address)?;
    c.mov(eax, dword_ptr(rbx))
}

/// Waits with interrupts on until a counter reaches `count`, at most `ticks` of the PM timer; then interrupts are off.
fn wait_for(c: &mut Code, s: &Symbols, counter: u32, count: u32, ticks: u32) -> R {
    c.mov(edi, counter)?;
    c.mov(esi, count)?;
    c.mov(ebp, ticks)?;
    c.call(s.at("64.wait"))
}

fn serial(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "serial port: 16550A in loopback")?;
    let (drained, arrived) = (c.fresh(), c.fresh());
    c.label(&drained)?;
    inb(c, COM1 + 5)?;
    c.test(al, 0x40)?;
    c.je(s.at(&drained))?;
    outb(c, COM1 + 7, 0x5A)?;
    inb(c, COM1 + 7)?;
    c.mov(esi, eax)?;
    inb(c, COM1 + 2)?;
    c.mov(edi, eax)?;
    outb(c, COM1 + 4, 0x1A)?; // loop, OUT2, RTS
    inb(c, COM1 + 6)?;
    c.mov(ebp, eax)?;
    outb(c, COM1, 0xA5)?;
    c.mov(ecx, 100_000)?;
    let wait = c.fresh();
    c.label(&wait)?;
    inb(c, COM1 + 5)?;
    c.test(al, 1)?;
    c.jne(s.at(&arrived))?;
    c.dec(ecx)?;
    c.jne(s.at(&wait))?;
    c.label(&arrived)?;
    inb(c, COM1)?;
    c.mov(ebx, eax)?;
    inb(c, COM1 + 5)?;
    c.mov(ecx, eax)?;
    outb(c, COM1 + 4, 3)?;
    expect32(c, s, "scratch register", esi, 0x5A)?;
    c.and(edi, 0xC1)?;
    expect32(c, s, "FIFOs enabled, no interrupt pending", edi, 0xC1)?;
    c.and(ebp, 0xF0)?;
    expect32(c, s, "modem status in loopback", ebp, 0x90)?;
    expect32(c, s, "byte received in loopback", ebx, 0xA5)?;
    c.and(ecx, 1)?;
    expect32(c, s, "data ready after it was read", ecx, 0)?;
    end(c, s)
}

fn rtc(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "real-time clock")?;
    outb(c, 0x70, 0x0D)?;
    inb(c, 0x71)?;
    c.and(eax, 0x80)?;
    expect32(c, s, "battery is good", eax, 0x80)?;
    // Outside of an update, all of them are BCD (or binary) numbers within their range.
    let stable = c.fresh();
    c.mov(ecx, 100_000)?;
    let wait = c.fresh();
    c.label(&wait)?;
    outb(c, 0x70, 0x0A)?;
    inb(c, 0x71)?;
    c.test(al, 0x80)?;
    c.je(s.at(&stable))?;
    c.dec(ecx)?;
    c.jne(s.at(&wait))?;
    c.label(&stable)?;
    for (register, minimum, maximum, what) in [
        (0, 0, 0x59, "seconds up to 59"),
        (2, 0, 0x59, "minutes up to 59"),
        (7, 1, 0x31, "day of month 1 to 31"),
        (8, 1, 0x12, "month 1 to 12"),
    ] {
        outb(c, 0x70, register)?;
        inb(c, 0x71)?;
        c.sub(eax, minimum)?;
        c.cmp(eax, maximum - minimum)?;
        expect_if(c, s, what, |c, to| c.jbe(to))?;
    }
    end(c, s)
}

/// i8254 channel 0 in the given mode.
fn program_pit(c: &mut Code, mode: u32, count: u32) -> R {
    outb(c, 0x43, 0x30 | mode << 1)?;
    outb(c, 0x40, count & 0xFF)?;
    outb(c, 0x40, count >> 8)
}

fn pic_and_pit(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "i8259 and i8254: timer interrupts")?;
    // Virtual wire mode: the i8259s reach the processor through LINT0.
    mmio_write(c, LAPIC_SVR, 0x100 | u32::from(VEC_SPURIOUS))?;
    mmio_write(c, LAPIC_LVT_TIMER, MASKED)?;
    mmio_write(c, LAPIC_LVT_LINT0, 0x700)?;
    mmio_write(c, LAPIC_LVT_LINT1, 0x400)?;
    mmio_write(c, LAPIC_TPR, 0)?;
    for (port, value) in [
        (0x20, 0x11),
        (0x21, u32::from(VEC_PIC)),
        (0x21, 4),
        (0x21, 1),
        (0xA0, 0x11),
        (0xA1, u32::from(VEC_PIC) + 8),
        (0xA1, 2),
        (0xA1, 1),
        (0x21, 0xFE),
        (0xA1, 0xFF),
    ] {
        outb(c, port, value)?;
    }
    inb(c, 0x21)?;
    expect32(c, s, "interrupt mask register", eax, 0xFE)?;
    program_pit(c, 2, 1193)?; // 1 kHz
    wait_for(c, s, IRQ0_COUNT, 5, PATIENCE)?;
    c.cmp(dword_ptr(IRQ0_COUNT), 5)?;
    expect_if(c, s, "five timer interrupts", |c, to| c.jae(to))?;
    outb(c, 0x21, 0xFF)?;
    // One may have been on its way.
    wait_for(c, s, IRQ0_COUNT, u32::MAX, PM_MS)?;
    c.mov(eax, dword_ptr(IRQ0_COUNT))?;
    c.mov(dword_ptr(SCRATCH_VAR), eax)?;
    wait_for(c, s, IRQ0_COUNT, u32::MAX, 5 * PM_MS)?;
    c.mov(eax, dword_ptr(IRQ0_COUNT))?;
    c.sub(eax, dword_ptr(SCRATCH_VAR))?;
    expect32(c, s, "interrupts while masked", eax, 0)?;
    // Latched counts differ after a while and stay below the reload value.
    outb(c, 0x43, 0)?;
    inb(c, 0x40)?;
    c.mov(esi, eax)?;
    inb(c, 0x40)?;
    c.shl(eax, 8)?;
    c.or(esi, eax)?;
    c.cmp(esi, 1194)?;
    expect_if(c, s, "latched count is below the reload value", |c, to| c.jb(to))?;
    end(c, s)
}

fn halt(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "HLT ends by an interrupt")?;
    let (skip, done) = (c.fresh(), c.fresh());
    c.cmp(dword_ptr(IRQ0_COUNT), 0)?;
    c.je(s.at(&skip))?; // it would never end
    c.mov(dword_ptr(IRQ0_COUNT), 0)?;
    program_pit(c, 0, 11932)?; // once, after 10 ms
    outb(c, 0x21, 0xFE)?;
    c.sti()?;
    c.hlt()?;
    c.cli()?;
    outb(c, 0x21, 0xFF)?;
    expect_var(c, s, "interrupts", IRQ0_COUNT, 1)?;
    c.jmp(s.at(&done))?;
    c.label(&skip)?;
    report::fail(c, s, "a timer interrupt to wake up by")?;
    c.label(&done)?;
    end(c, s)
}

fn local_apic(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "local APIC: timer, priorities")?;
    mmio_read(c, LAPIC_VERSION)?;
    c.and(eax, 0xF0)?;
    expect32(c, s, "version is 1x (integrated)", eax, 0x10)?;
    mmio_write(c, LAPIC_DIVIDE, 3)?; // by 16
    mmio_write(c, LAPIC_LVT_TIMER, VEC_LAPIC.into())?;
    mmio_write(c, LAPIC_INITIAL, 50_000)?;
    wait_for(c, s, LAPIC_COUNT, 1, PATIENCE)?;
    wait_for(c, s, LAPIC_COUNT, 2, 5 * PM_MS)?;
    expect_var(c, s, "interrupts of a one-shot", LAPIC_COUNT, 1)?;
    mmio_read(c, LAPIC_CURRENT)?;
    expect32(c, s, "current count after it", eax, 0)?;
    mmio_write(c, LAPIC_LVT_TIMER, PERIODIC | u32::from(VEC_LAPIC))?;
    mmio_write(c, LAPIC_INITIAL, 50_000)?;
    wait_for(c, s, LAPIC_COUNT, 4, PATIENCE)?;
    mmio_write(c, LAPIC_LVT_TIMER, MASKED | PERIODIC | u32::from(VEC_LAPIC))?;
    mmio_write(c, LAPIC_INITIAL, 0)?;
    c.cmp(dword_ptr(LAPIC_COUNT), 4)?;
    expect_if(c, s, "three interrupts of the periodic timer", |c, to| c.jae(to))?;
    // Priority class 3 is held back by CR8 = 3 and comes when it drops.
    wait_for(c, s, LAPIC_COUNT, u32::MAX, PM_MS)?;
    c.mov(dword_ptr(LAPIC_COUNT), 0)?;
    c.mov(eax, 3)?;
    c.mov(cr8, rax)?;
    mmio_read(c, LAPIC_TPR)?;
    expect32(c, s, "task priority after a write to CR8", eax, 0x30)?;
    mmio_write(c, LAPIC_LVT_TIMER, VEC_LAPIC.into())?;
    mmio_write(c, LAPIC_INITIAL, 1000)?;
    wait_for(c, s, LAPIC_COUNT, 1, 10 * PM_MS)?;
    expect_var(c, s, "interrupts at a higher task priority", LAPIC_COUNT, 0)?;
    mmio_read(c, LAPIC_IRR1)?;
    c.and(eax, 1 << (VEC_LAPIC - 32))?;
    expect32(c, s, "pending in the IRR", eax, 1 << (VEC_LAPIC - 32))?;
    c.xor(eax, eax)?;
    c.mov(cr8, rax)?;
    wait_for(c, s, LAPIC_COUNT, 1, PATIENCE)?;
    expect_var(c, s, "interrupts after the task priority dropped", LAPIC_COUNT, 1)?;
    mmio_write(c, LAPIC_LVT_TIMER, MASKED)?;
    expect_var(c, s, "spurious interrupts", SPURIOUS_COUNT, 0)?;
    end(c, s)
}

fn ioapic_write(c: &mut Code, register: u32, value: u32) -> R {
    mmio_write(c, IOAPIC_SELECT, register)?;
    mmio_write(c, IOAPIC_WINDOW, value)
}

fn io_apic(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "I/O APIC: routing of the i8254")?;
    mmio_write(c, IOAPIC_SELECT, 1)?;
    mmio_read(c, IOAPIC_WINDOW)?;
    c.shr(eax, 16)?;
    c.and(eax, 0xFF)?;
    expect32(c, s, "number of the last input", eax, 23)?;
    // Edge triggered, active high, fixed, to the APIC of this processor.
    mmio_read(c, LAPIC + 0x20)?;
    c.mov(esi, eax)?;
    mmio_write(c, IOAPIC_SELECT, PIT_REDIRECTION + 1)?;
    c.mov(ebx, IOAPIC_WINDOW)?;
    c.mov(dword_ptr(rbx), esi)?;
    program_pit(c, 2, 1193)?;
    ioapic_write(c, PIT_REDIRECTION, VEC_IOAPIC.into())?;
    wait_for(c, s, IOAPIC_COUNT, 3, PATIENCE)?;
    c.cmp(dword_ptr(IOAPIC_COUNT), 3)?;
    expect_if(c, s, "three interrupts through input 2", |c, to| c.jae(to))?;
    ioapic_write(c, PIT_REDIRECTION, MASKED | u32::from(VEC_IOAPIC))?;
    wait_for(c, s, IOAPIC_COUNT, u32::MAX, PM_MS)?;
    c.mov(dword_ptr(IOAPIC_COUNT), 0)?;
    wait_for(c, s, IOAPIC_COUNT, 1, 5 * PM_MS)?;
    expect_var(c, s, "interrupts while masked", IOAPIC_COUNT, 0)?;
    program_pit(c, 0, 1)?;
    end(c, s)
}

/// Measures the TSC twice by the PM timer, and the HPET once; a host that was busy elsewhere gets further attempts.
fn clocks(c: &mut Code, s: &Symbols) -> R {
    const ATTEMPTS: u32 = 8;
    begin(c, s, "clocks: TSC, PM timer and HPET (if present) agree within 1 %")?;
    let [again, good, no_hpet, compared, end_label] = std::array::from_fn(|_| c.fresh());
    // The HPET counts from here on.
    c.mov(ebx, HPET)?;
    c.or(dword_ptr(rbx + 0x10), 1)?;
    c.mov(ebp, ATTEMPTS)?;
    c.label(&again)?;
    c.call(s.at("64.sample"))?; // RAX: TSC frequency; RCX: HPET nanoseconds; RDX: PM nanoseconds
    c.test(rax, rax)?;
    c.je(s.at(&end_label))?;
    c.mov(rdi, rax)?;
    c.call(s.at("64.sample"))?;
    c.mov(qword_ptr(SCRATCH_VAR), rdx)?;
    c.mov(qword_ptr(SCRATCH_VAR2), rcx)?;
    c.mov(rsi, rax)?;
    c.mov(qword_ptr(TSC_HZ), rax)?;
    within_one_percent(c, s, rdi, rsi, &compared)?;
    // An HPET that is not there reads as all ones or as zero.
    c.mov(ebx, HPET)?;
    c.mov(eax, dword_ptr(rbx))?;
    c.lea(ecx, dword_ptr(rax - 1))?;
    c.cmp(ecx, -3)?;
    c.ja(s.at(&no_hpet))?;
    c.mov(rdi, qword_ptr(SCRATCH_VAR))?;
    c.mov(rsi, qword_ptr(SCRATCH_VAR2))?;
    within_one_percent(c, s, rdi, rsi, &compared)?;
    c.label(&no_hpet)?;
    c.jmp(s.at(&good))?;
    c.label(&compared)?;
    c.dec(ebp)?;
    c.jne(s.at(&again))?;
    c.label(&end_label)?;
    report::fail_different(c, s, "a frequency in Hz or time in ns by one clock", rdi, rsi)?;
    c.label(&good)?;
    end(c, s)
}

/// Jumps to `otherwise` unless two numbers differ by at most 1/100 of the second. Clobbers RAX, RCX, RDX.
fn within_one_percent(c: &mut Code, s: &Symbols, a: AsmRegister64, b: AsmRegister64, otherwise: &str) -> R {
    let positive = c.fresh();
    c.mov(rcx, a)?;
    c.sub(rcx, b)?;
    c.jae(s.at(&positive))?;
    c.neg(rcx)?;
    c.label(&positive)?;
    c.imul_3(rcx, rcx, 100)?;
    c.cmp(rcx, b)?;
    c.ja(s.at(otherwise))
}

/// Interrupt handlers and routines.
pub fn handlers(c: &mut Code, s: &Symbols) -> R {
    for (name, counter) in [
        ("64.irq0", IRQ0_COUNT),
        ("64.lapic_timer", LAPIC_COUNT),
        ("64.ioapic", IOAPIC_COUNT),
        ("64.lapic_spurious", SPURIOUS_COUNT),
        ("64.pic_spurious", SPURIOUS_COUNT),
    ] {
        c.label(name)?;
        c.push(rax)?;
        c.inc(dword_ptr(counter))?;
        match counter {
            IRQ0_COUNT => {
                c.mov(al, 0x20)?;
                c.out(0x20, al)?;
            }
            // A spurious interrupt takes no EOI.
            SPURIOUS_COUNT => {}
            _ => {
                c.mov(eax, LAPIC_EOI)?;
                c.mov(dword_ptr(rax), 0)?;
            }
        }
        c.pop(rax)?;
        c.iretq()?;
    }

    // `64.wait`: until the counter at EDI is at least ESI, or EBP ticks of the PM timer have passed, or the PM timer was
    // read so often that it must be broken. Clobbers RAX, RDX, R8, R9.
    let [next, done] = std::array::from_fn(|_| c.fresh());
    c.label("64.wait")?;
    c.mov(edx, PM_TIMER)?;
    c.in_(eax, dx)?;
    c.mov(r8d, eax)?;
    c.mov(r9d, 2_000_000)?;
    c.sti()?;
    c.label(&next)?;
    c.cmp(dword_ptr(rdi), esi)?;
    c.jae(s.at(&done))?;
    c.in_(eax, dx)?;
    c.sub(eax, r8d)?;
    c.and(eax, 0xFF_FFFF)?;
    c.cmp(eax, ebp)?;
    c.ja(s.at(&done))?;
    c.dec(r9d)?;
    c.jne(s.at(&next))?;
    c.label(&done)?;
    c.cli()?;
    c.ret()?;

    sample(c, s)
}

/// `64.sample`: lets 20 ms of the PM timer pass. RAX = TSC frequency in Hz (0 if the PM timer stands still), RCX and RDX =
/// nanoseconds by HPET and PM timer. Clobbers R8–R10, R12–R14, RBX.
fn sample(c: &mut Code, s: &Symbols) -> R {
    let [next, passed, broken] = std::array::from_fn(|_| c.fresh());
    c.label("64.sample")?;
    c.mov(ebx, HPET)?;
    c.mov(r9d, 4_000_000)?;
    read_clocks(c)?;
    c.mov(r8d, eax)?;
    c.mov(r12, rcx)?;
    c.mov(r13, r10)?;
    c.label(&next)?;
    read_clocks(c)?;
    c.sub(eax, r8d)?;
    c.and(eax, 0xFF_FFFF)?;
    c.cmp(eax, 20 * PM_MS)?;
    c.jae(s.at(&passed))?;
    c.dec(r9d)?;
    c.jne(s.at(&next))?;
    c.jmp(s.at(&broken))?;
    c.label(&passed)?;
    c.mov(r8d, eax)?; // PM ticks
    c.sub(rcx, r12)?; // TSC ticks
    c.mov(r12, rcx)?;
    c.mov(eax, r10d)?; // HPET ticks, of which the low half counts
    c.sub(eax, r13d)?;
    c.mov(r13d, eax)?;
    // HPET: ticks * femtoseconds a tick / 10^6.
    c.mov(eax, r13d)?;
    c.mov(ecx, dword_ptr(rbx + 4))?;
    c.mul(rcx)?;
    c.mov(ecx, 1_000_000)?;
    c.div(rcx)?;
    c.mov(r14, rax)?;
    // PM timer: ticks * 10^9 / frequency.
    c.mov(eax, r8d)?;
    c.mov(ecx, 1_000_000_000)?;
    c.mul(rcx)?;
    c.mov(ecx, PM_HZ)?;
    c.div(rcx)?;
    c.mov(r10, rax)?;
    // TSC: ticks * frequency of the PM timer / ticks of the PM timer.
    c.mov(rax, r12)?;
    c.mov(ecx, PM_HZ)?;
    c.mul(rcx)?;
    c.div(r8)?;
    c.mov(rcx, r14)?;
    c.mov(rdx, r10)?;
    c.ret()?;
    c.label(&broken)?;
    c.xor(eax, eax)?;
    c.ret()
}

/// EAX = PM timer, RCX = TSC, R10D = HPET (base in RBX), read right after each other. Clobbers RDX, R11.
fn read_clocks(c: &mut Code) -> R {
    c.mov(edx, PM_TIMER)?;
    c.in_(eax, dx)?;
    c.mov(r11d, eax)?;
    c.rdtsc()?;
    c.shl(rdx, 32)?;
    c.lea(rcx, qword_ptr(rax + rdx))?;
    c.mov(r10d, dword_ptr(rbx + 0xF0))?;
    c.mov(eax, r11d)
}

//! Code that runs elsewhere than at ring 0 in flat 32- or 64-bit mode: ring 3, virtual-8086 mode, 16-bit segments.

use iced_x86::code_asm::*;
use iced_x86::{Code as Opcode, Instruction};

use super::layout::*;
use super::protected::{CLOSED_PORT, OPEN_PORT};
use tessera_asm::{Code, R, Symbols};

pub fn emit16(c: &mut Code, s: &Symbols) -> R {
    // Called far from 32-bit code: a 16-bit MOV, and a LOOP that counts CX, not ECX.
    c.label("user.code16")?;
    c.mov(ecx, 0x1_0003)?;
    let again = c.fresh();
    c.label(&again)?;
    c.mov(ax, 0x5678)?;
    c.loop_(s.to(16, &again))?;
    c.add_instruction(Instruction::with(Opcode::Retfd))?;

    // Virtual-8086: DS is at the scratch page, SS at 0.
    c.label("user.v86")?;
    c.mov(ax, 0x1111)?;
    c.push(ax)?;
    c.add(ax, 0x2222)?;
    c.mov(bx, 0x20)?;
    c.mov(word_ptr(bx), ax)?;
    c.label("user.v86_int")?;
    c.int(0x60)
}

pub fn emit32(c: &mut Code, _: &Symbols) -> R {
    c.label("user.int")?;
    c.mov(eax, 0x1234)?;
    c.push(eax)?;
    c.int(i32::from(VEC_SYSCALL))?;
    c.label("user.cli")?;
    c.cli()?;
    c.label("user.cr0")?;
    c.mov(eax, cr0)?;
    c.label("user.int6")?;
    c.int(6)?;
    c.label("user.in_closed")?;
    c.mov(dx, CLOSED_PORT)?;
    c.in_(al, dx)?;
    c.label("user.in_open")?;
    c.xor(eax, eax)?;
    c.mov(dx, OPEN_PORT)?;
    c.in_(al, dx)?;
    c.int(i32::from(VEC_SYSCALL))?;
    c.label("user.load_ds")?;
    c.mov(eax, u32::from(DATA))?;
    c.mov(ds, eax)?;
    c.label("user.gate")?;
    c.push(0x4321)?;
    c.call_far(GATE, 0)?;
    c.int(i32::from(VEC_SYSCALL))?;

    // Called far from 64-bit code: INC is one byte here.
    c.label("32.compatibility")?;
    c.mov(eax, 0x1234)?;
    c.inc(eax)?;
    c.inc(eax)?;
    c.mov(ecx, cs)?;
    c.retf()?;

    // Accesses of the paging checks; each ends in a fault, or else in a system call.
    for (name, access) in [("user.read", 0u32), ("user.write", 1), ("user.jump", 2)] {
        c.label(name)?;
        // The address is in EDI.
        match access {
            0 => c.mov(eax, dword_ptr(edi))?,
            1 => c.mov(dword_ptr(edi), 0x7777_7777)?,
            _ => c.jmp(edi)?,
        }
        c.int(i32::from(VEC_SYSCALL))?;
    }
    Ok(())
}

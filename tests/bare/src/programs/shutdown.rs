//! Shutdown: a third exception while a double fault is delivered resets a PC (Intel SDM volume 3A, section 6.15, #DF).
//!
//! Memory outlives a reset, and the loader starts the program again: a word above the program says how far it had come. Only
//! the run after the last reset prints the results.

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

/// Above what firmware and loader touch: a mark, and the number of the experiment that is under way.
const MARK: u32 = 0x30_0000;
const STAGE: u32 = MARK + 4;
const MAGIC: u32 = 0x5354_4150;
/// Number of experiments.
const EXPERIMENTS: u32 = 6;

pub fn emit(k: &mut Kit) -> R {
    // The memory at MARK is mapped by the second large page.
    let (started, done) = (k.fresh(), k.fresh());
    code!(k; cmp(dword_ptr(MARK), MAGIC); je(k.to(&started)); mov(dword_ptr(MARK), MAGIC);
        mov(dword_ptr(STAGE), 0); label(&started));
    // Each start begins the next experiment; one that is survived leaves its number with a flag.
    code!(k; cmp(dword_ptr(STAGE), EXPERIMENTS); jae(k.to(&done)); inc(dword_ptr(STAGE));
        mov(eax, dword_ptr(STAGE)));
    for (index, experiment) in
        [no_idt, no_stack, gates_missing, real_mode, page_faults, task_missing].into_iter().enumerate()
    {
        let next = k.fresh();
        code!(k; cmp(eax, index as u32 + 1); jne(k.to(&next)));
        experiment(k)?;
        code!(k; or(dword_ptr(STAGE), 0x100); label(&next));
    }
    k.label(&done)?;
    for (number, name) in [
        "no interrupt table at all",
        "no stack for the double fault",
        "gates that are missing",
        "real mode, interrupt table too short",
        "page faults all the way",
        "protected mode, double fault by a task gate to nowhere",
    ]
    .into_iter()
    .enumerate()
    {
        k.check(name, "3A, 6.15 (#DF)", |k| {
            // The experiment after which this one started was over by a reset.
            code!(k; mov(ebx, dword_ptr(STAGE)); mov(ecx, ebx); shr(ecx, 8));
            k.eq("survived", ecx, 0)?;
            code!(k; cmp(ebx, number as u32 + 1));
            k.holds("it was started", |c, to| c.jae(to))
        })?;
    }
    // The next run of the machine begins from the start.
    k.mov(dword_ptr(MARK), 0)
}

fn no_idt(k: &mut Kit) -> R {
    code!(k; mov(word_ptr(SCRATCH), 0); mov(qword_ptr(SCRATCH + 2), 0); lidt(tbyte_ptr(SCRATCH)));
    k.faulting(|k| k.ud2())
}

fn no_stack(k: &mut Kit) -> R {
    code!(k; lidt(tbyte_ptr(k.imm("idtr"))); mov(rsp, 0x8000_0000_0000u64));
    k.faulting(|k| k.push(rax))
}

fn gates_missing(k: &mut Kit) -> R {
    // The table is all zeros: #UD, #NP for its gate, #NP for that, #DF's gate is missing, too.
    code!(k; mov(word_ptr(SCRATCH), 0xFFF); mov(rax, u64::from(PAGES)); mov(qword_ptr(SCRATCH + 2), rax);
        lidt(tbyte_ptr(SCRATCH)));
    k.faulting(|k| k.ud2())
}

fn to_protected(k: &mut Kit, target: &str) -> R {
    code!(k; mov(dword_ptr(SCRATCH), k.imm(target)); mov(dword_ptr(SCRATCH + 4), CODE32);
        jmp(fword_ptr(SCRATCH)));
    Ok(())
}

fn real_mode(k: &mut Kit) -> R {
    k.elsewhere(32, "to.real", |k| {
        code!(k; mov(eax, cr0); and(eax, 0x7FFF_FFFF); mov(cr0, eax);
            jmp_far(CODE16 as u16, k.off("to.real.16")));
        Ok(())
    });
    k.elsewhere(16, "to.real.16", |k| {
        code!(k; mov(ax, DATA16); mov(ds, eax); mov(ss, eax); mov(word_ptr(SCRATCH), 0);
            mov(dword_ptr(SCRATCH + 2), 0); lidt(fword_ptr(SCRATCH));
            mov(eax, cr0); and(al, 0xFEu32); mov(cr0, eax));
        k.faulting(|k| k.int3())
    });
    to_protected(k, "to.real")
}

fn page_faults(k: &mut Kit) -> R {
    code!(k; mov(word_ptr(SCRATCH), 0xFFF); mov(eax, TEST); mov(qword_ptr(SCRATCH + 2), rax);
        lidt(tbyte_ptr(SCRATCH)));
    k.faulting(|k| k.mov(eax, dword_ptr(TEST as u64)))
}

fn task_missing(k: &mut Kit) -> R {
    k.elsewhere(32, "to.tasks", |k| {
        code!(k; mov(eax, cr0); and(eax, 0x7FFF_FFFF); mov(cr0, eax); mov(word_ptr(SCRATCH), 0x7FF);
            mov(dword_ptr(SCRATCH + 2), IDT); lidt(fword_ptr(SCRATCH)));
        k.poke(IDT + 8 * 8, gate(0, 0, TASK, 0))?;
        k.poke(IDT + 6 * 8, 0)?;
        k.poke(IDT + 11 * 8, 0)?;
        k.poke(IDT + 13 * 8, 0)?;
        k.faulting(|k| k.ud2())
    });
    to_protected(k, "to.tasks")
}

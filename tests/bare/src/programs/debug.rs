//! Debug exceptions: instruction, data and I/O breakpoints, single step, general detect, the flags RF and TF, what inhibits
//! them for an instruction (Intel SDM volume 3B, chapter 17).

use iced_x86::code_asm::*;
use tessera_asm::R;

use crate::kit::*;
use crate::layout::*;
use crate::tables::*;

/// DR7 with bit 10, which is always set.
const DR7: u32 = 0x400;
/// Local enable of breakpoint `n`, and its type and length.
const fn enabled(n: u32, kind: u32, length: u32) -> u32 {
    1 << (n * 2) | kind << (16 + n * 4) | length << (18 + n * 4)
}
const EXECUTE: u32 = 0;
const WRITE: u32 = 1;
const IO: u32 = 2;
const ACCESS: u32 = 3;
const LEN1: u32 = 0;
const LEN2: u32 = 1;
const LEN8: u32 = 2;
const LEN4: u32 = 3;
/// DR6 bits.
const BS: u32 = 0x4000;
const BD: u32 = 0x2000;
const TF: u32 = 0x100;
const RF: u32 = 0x1_0000;

pub fn emit(k: &mut Kit) -> R {
    single_step(k)?;
    inhibition(k)?;
    instructions(k)?;
    data(k)?;
    priorities(k)?;
    ring3(k)
}

/// Sets breakpoint `n` at an address. Clobbers RAX.
fn breakpoint(k: &mut Kit, n: u32, address: u32, control: u32) -> R {
    code!(k; mov(eax, address));
    match n {
        0 => k.mov(dr0, rax)?,
        1 => k.mov(dr1, rax)?,
        2 => k.mov(dr2, rax)?,
        _ => k.mov(dr3, rax)?,
    }
    code!(k; mov(eax, 0xFFFF_0FF0u32); mov(dr6, rax); mov(eax, DR7 | control); mov(dr7, rax));
    Ok(())
}

fn off(k: &mut Kit) -> R {
    code!(k; mov(eax, DR7); mov(dr7, rax));
    Ok(())
}

/// Expects DR6 as the handler saw it, without the bits that are always set.
fn dr6_is(k: &mut Kit, what: &str, expected: u32) -> R {
    k.masked(what, EXC_DR6, 0xE00F, expected)
}

/// A handler that counts in V[0], keeps return addresses from SCRATCH on, collects and clears what DR6 says, keeps the flags that
/// were pushed last in V[3], and sets RF for the return.
fn counting_handler(k: &mut Kit) -> R {
    k.aside("count", |k| {
        code!(k; push(rax); push(rbx); mov(ebx, dword_ptr(V[0])); mov(rax, qword_ptr(rsp + 16));
            mov(qword_ptr(rbx * 8 + SCRATCH), rax);
            inc(dword_ptr(V[0])); mov(rax, dr6); or(dword_ptr(V[1]), eax); mov(eax, dword_ptr(rsp + 32));
            mov(dword_ptr(V[3]), eax); or(dword_ptr(rsp + 32), RF);
            mov(eax, 0xFFFF_0FF0u32); mov(dr6, rax); pop(rbx); pop(rax); iretq());
        Ok(())
    })
}

/// Makes the handler of #DB the counting one.
fn count(k: &mut Kit) -> R {
    let handler = k.imm("count");
    k.idt(1, gate(CODE64, handler, INT32, 0))
}

/// Expects the return addresses that were counted.
fn counted(k: &mut Kit, labels: &[&str]) -> R {
    k.var("number of debug exceptions", V[0], labels.len() as u32)?;
    for (index, label) in labels.iter().enumerate() {
        let rip = k.imm(label);
        k.var64("return address", SCRATCH + index as u32 * 8, rip.into())?;
    }
    Ok(())
}

/// Sets TF from the next instruction but one on, by POPF.
fn step(k: &mut Kit) -> R {
    code!(k; pushfq(); or(dword_ptr(rsp), TF); popfq());
    Ok(())
}

/// Clears TF; POPF itself is stepped over once more.
fn stop(k: &mut Kit) -> R {
    code!(k; pushfq(); and(dword_ptr(rsp), !TF); popfq());
    Ok(())
}

fn single_step(k: &mut Kit) -> R {
    counting_handler(k)?;
    k.check("single step", "3B, 17.3.1.4", |k| {
        count(k)?;
        step(k)?;
        code!(k; nop(); label("ss.1"); mov(eax, 1); label("ss.2"); add(eax, 2); label("ss.3"));
        code!(k; pushfq(); label("ss.4"); and(dword_ptr(rsp), !TF); label("ss.5"); popfq(); label("ss.6"));
        // POPF begins with TF set, so it traps although it clears it.
        counted(k, &["ss.1", "ss.2", "ss.3", "ss.4", "ss.5", "ss.6"])?;
        k.masked("DR6.BS", V[1], 0xE00F, BS)
    })?;
    k.check("single step: pushed flags show TF, the handler runs without", "3B, 17.3.1.4", |k| {
        let after = k.fresh();
        k.arm(&after)?;
        step(k)?;
        code!(k; nop(); label(&after));
        let ip = k.imm(&after);
        k.seen("trap", DB, Some(ip))?;
        k.masked("TF pushed", EXC_FLAGS, TF, TF)?;
        k.masked("TF in the handler", EXC_HANDLER_FLAGS, TF, 0)?;
        dr6_is(k, "DR6.BS", BS)
    })?;
    k.check("PUSHF under single step stores TF", "2B, PUSHF", |k| {
        count(k)?;
        step(k)?;
        code!(k; pushfq(); pop(rcx));
        stop(k)?;
        code!(k; and(ecx, TF));
        k.eq("TF", ecx, TF)
    })?;
    k.check("INT n clears TF before the step", "3B, 17.3.1.4", |k| {
        count(k)?;
        k.aside("plain.iret", |k| k.iretq())?;
        let handler = k.imm("plain.iret");
        k.idt(0x60, gate(CODE64, handler, INT32, 0))?;
        step(k)?;
        code!(k; int(0x60); label("ssi.1"); nop(); label("ssi.2"));
        stop(k)?;
        // No step in the handler, nor after INT itself; IRET sets TF again, which takes one instruction.
        let rip = k.imm("ssi.2");
        k.var64("first return address", SCRATCH, rip.into())
    })?;
    k.check("single step and repeated string instructions", "3B, 17.3.1.4", |k| {
        count(k)?;
        code!(k; mov(ecx, 3); mov(esi, PAGES); mov(edi, PAGES + 0x100); mov(dword_ptr(PAGES), 0x44332211));
        step(k)?;
        code!(k; label("rep.at"));
        k.rep().movsb()?;
        code!(k; label("rep.after"));
        stop(k)?;
        // A trap after each iteration, at the instruction while there is more to do.
        for (index, label) in ["rep.at", "rep.at", "rep.after"].into_iter().enumerate() {
            let rip = k.imm(label);
            k.var64("return address", SCRATCH + index as u32 * 8, rip.into())?;
        }
        k.masked("copied", PAGES + 0x100, 0xFF_FFFF, 0x33_2211)
    })?;
    k.check("single step over a jump and a call", "3B, 17.3.1.4", |k| {
        count(k)?;
        step(k)?;
        code!(k; jmp(k.to("ssj.1")); nop(); label("ssj.1"); call(k.to("ssj.2")); nop(); label("ssj.2");
            pop(rax); label("ssj.3"));
        stop(k)?;
        for (index, label) in ["ssj.1", "ssj.2", "ssj.3"].into_iter().enumerate() {
            let rip = k.imm(label);
            k.var64("return address", SCRATCH + index as u32 * 8, rip.into())?;
        }
        Ok(())
    })?;
    k.check("IRET that sets TF", "3B, 17.3.1.4; 2A, IRET", |k| {
        let (next, after) = (k.fresh(), k.fresh());
        k.arm(&after)?;
        for value in [DATA, STACK, TF | 2, CODE64, k.imm(&next)] {
            code!(k; mov(eax, value); push(rax));
        }
        code!(k; iretq(); label(&next); nop(); label(&after));
        let ip = k.imm(&after);
        k.seen("trap after the instruction behind IRET", DB, Some(ip))
    })?;
    k.check("INT1 sets nothing in DR6", "3B, 17.2.3; 2A, INT n", |k| {
        k.raises("INT1", DB.trap(), |k| k.int1())?;
        dr6_is(k, "DR6", 0)
    })?;
    k.check("INT3 is a trap with its own vector", "3B, 17.3.2", |k| {
        k.raises("one byte", BP, |k| k.int3())?;
        k.raises("two bytes", BP, |k| k.raw(&[0xCD, 3]))
    })
}

fn inhibition(k: &mut Kit) -> R {
    k.check("MOV SS holds back the single-step trap", "3A, 6.8.3; 2B, MOV", |k| {
        count(k)?;
        code!(k; mov(ebx, ss));
        step(k)?;
        code!(k; mov(ss, ebx); label("ms.0"); nop(); label("ms.1"); nop(); label("ms.2"));
        stop(k)?;
        for (index, label) in ["ms.1", "ms.2"].into_iter().enumerate() {
            let rip = k.imm(label);
            k.var64("return address", SCRATCH + index as u32 * 8, rip.into())?;
        }
        Ok(())
    })?;
    k.check("STI does not hold back the single-step trap", "2B, STI; 3A, 6.8.3", |k| {
        count(k)?;
        step(k)?;
        code!(k; sti(); label("st.1"); cli(); label("st.2"));
        stop(k)?;
        for (index, label) in ["st.1", "st.2"].into_iter().enumerate() {
            let rip = k.imm(label);
            k.var64("return address", SCRATCH + index as u32 * 8, rip.into())?;
        }
        Ok(())
    })?;
    k.check("MOV SS holds back a data breakpoint", "3A, 6.8.3; 3B, 17.3.1.2", |k| {
        count(k)?;
        code!(k; mov(dword_ptr(PAGES), DATA));
        breakpoint(k, 0, PAGES, enabled(0, ACCESS, LEN4))?;
        code!(k; mov(ss, word_ptr(PAGES)); nop(); label("md.1"); nop());
        off(k)?;
        counted(k, &["md.1"])
    })
}

fn instructions(k: &mut Kit) -> R {
    k.check("instruction breakpoint", "3B, 17.3.1.1", |k| {
        let (at, after) = (k.fresh(), k.fresh());
        for n in 0..4 {
            let (at, after) = (format!("{at}.{n}"), format!("{after}.{n}"));
            let ip = k.imm(&at);
            breakpoint(k, n, ip, enabled(n, EXECUTE, LEN1))?;
            k.arm(&after)?;
            code!(k; xor(ecx, ecx); label(&at); inc(ecx); label(&after));
            k.seen("fault", DB, Some(ip))?;
            code!(k; mov(ebx, dword_ptr(EXC_CX)));
            k.eq("not executed", ebx, 0)?;
            dr6_is(k, "DR6", 1 << n)?;
            // The handler has to set it for the return.
            k.masked("RF pushed", EXC_FLAGS, RF, 0)?;
        }
        off(k)
    })?;
    k.check("RF lets one instruction pass", "3B, 17.3.1.1", |k| {
        count(k)?;
        let ip = k.imm("rf.at");
        breakpoint(k, 0, ip, enabled(0, EXECUTE, LEN1))?;
        // The handler sets RF in the flags that it returns with.
        code!(k; xor(ecx, ecx); label("rf.at"); inc(ecx); cmp(ecx, 3); jb(k.to("rf.at")));
        off(k)?;
        k.eq("iterations", ecx, 3)?;
        counted(k, &["rf.at", "rf.at", "rf.at"])
    })?;
    k.check("RF by IRET", "3B, 17.3.1.1; 2A, IRET", |k| {
        count(k)?;
        let ip = k.imm("rfi.at");
        breakpoint(k, 0, ip, enabled(0, EXECUTE, LEN1))?;
        for value in [DATA, STACK, RF | 2, CODE64, ip] {
            code!(k; mov(eax, value); push(rax));
        }
        code!(k; iretq(); label("rfi.at"); pushfq(); pop(rcx));
        off(k)?;
        counted(k, &[])?;
        code!(k; and(ecx, RF));
        k.eq("PUSHF never shows RF", ecx, 0)?;
        // POPF cannot set it.
        let ip = k.imm("rfp.at");
        breakpoint(k, 0, ip, enabled(0, EXECUTE, LEN1))?;
        code!(k; pushfq(); or(dword_ptr(rsp), RF); popfq(); label("rfp.at"); nop());
        off(k)?;
        counted(k, &["rfp.at"])
    })?;
    k.check("a breakpoint inside an instruction or not enabled", "3B, 17.2.4 and 17.2.5", |k| {
        count(k)?;
        let ip = k.imm("in.at");
        breakpoint(k, 0, ip + 1, enabled(0, EXECUTE, LEN1))?;
        code!(k; label("in.at"); mov(eax, 0x1234_5678));
        let ip = k.imm("in.off");
        breakpoint(k, 0, ip, 0)?;
        code!(k; label("in.off"); nop());
        off(k)?;
        counted(k, &[])?;
        // Not enabled, DR6 may say so or not, but nothing happens. A global one works, too.
        let ip = k.imm("in.global");
        breakpoint(k, 1, ip, 8)?;
        code!(k; label("in.global"); nop());
        off(k)?;
        counted(k, &["in.global"])
    })
}

fn data(k: &mut Kit) -> R {
    k.check("data breakpoints are traps", "3B, 17.3.1.2", |k| {
        for (n, kind, what) in [(0, WRITE, "write"), (1, ACCESS, "access"), (3, WRITE, "write by DR3")] {
            breakpoint(k, n, PAGES + 8, enabled(n, kind, LEN4))?;
            k.raises(what, DB.trap(), |k| k.mov(dword_ptr(PAGES + 8), 7))?;
            dr6_is(k, what, 1 << n)?;
            k.masked("RF is not pushed by a trap", EXC_FLAGS, RF, 0)?;
            off(k)?;
            k.var("written", PAGES + 8, 7)?;
            k.mov(dword_ptr(PAGES + 8), 0)?;
        }
        Ok(())
    })?;
    k.check("data breakpoints: kinds and lengths", "3B, 17.2.4 and table 17-1", |k| {
        count(k)?;
        breakpoint(k, 0, PAGES + 8, enabled(0, WRITE, LEN4))?;
        // Not these: a read, neighbours.
        code!(k; mov(eax, dword_ptr(PAGES + 8)); mov(byte_ptr(PAGES + 7), al); mov(byte_ptr(PAGES + 12), al);
            mov(qword_ptr(PAGES), rax));
        counted(k, &[])?;
        // These: one byte of it, from before, unaligned, and a wide one.
        code!(k; mov(byte_ptr(PAGES + 11), al); label("dk.1"); mov(dword_ptr(PAGES + 5), eax); label("dk.2");
            add(word_ptr(PAGES + 9), 1); label("dk.3");
            movups(xmmword_ptr(PAGES), xmm0); label("dk.4"));
        off(k)?;
        counted(k, &["dk.1", "dk.2", "dk.3", "dk.4"])?;
        k.masked("DR6", V[1], 0xE00F, 1)
    })?;
    k.check("data breakpoints of 1, 2 and 8 bytes", "3B, 17.2.4 and table 17-1", |k| {
        count(k)?;
        breakpoint(k, 2, PAGES + 3, enabled(2, ACCESS, LEN1))?;
        code!(k; mov(al, byte_ptr(PAGES + 2)); mov(al, byte_ptr(PAGES + 4)); mov(al, byte_ptr(PAGES + 3));
            label("dl.1"); mov(eax, dword_ptr(PAGES)); label("dl.2"));
        breakpoint(k, 2, PAGES + 2, enabled(2, ACCESS, LEN2))?;
        code!(k; mov(al, byte_ptr(PAGES + 1)); mov(al, byte_ptr(PAGES + 4)); mov(al, byte_ptr(PAGES + 3));
            label("dl.3"));
        breakpoint(k, 2, PAGES + 8, enabled(2, ACCESS, LEN8))?;
        code!(k; mov(al, byte_ptr(PAGES + 7)); mov(al, byte_ptr(PAGES + 16)); mov(al, byte_ptr(PAGES + 15));
            label("dl.4"));
        // The low address bits are ignored for longer ones.
        breakpoint(k, 2, PAGES + 0x13, enabled(2, ACCESS, LEN4))?;
        code!(k; mov(al, byte_ptr(PAGES + 0x14)); mov(al, byte_ptr(PAGES + 0x10)); label("dl.5"));
        off(k)?;
        counted(k, &["dl.1", "dl.2", "dl.3", "dl.4", "dl.5"])
    })?;
    k.check("data breakpoints on the stack and in string instructions", "3B, 17.3.1.2", |k| {
        count(k)?;
        breakpoint(k, 0, STACK - 0x100, enabled(0, WRITE, LEN8))?;
        code!(k; mov(rbx, rsp); mov(rsp, u64::from(STACK - 0xF8)); push(rax); label("ds.1"); mov(rsp, rbx));
        breakpoint(k, 0, PAGES + 0x40, enabled(0, WRITE, LEN1))?;
        code!(k; mov(edi, PAGES + 0x3E); mov(ecx, 6); xor(eax, eax); label("ds.rep"));
        k.rep().stosb()?;
        off(k)?;
        // The trap comes after the iteration that hit, with RF set as there is more to do.
        counted(k, &["ds.1", "ds.rep"])?;
        k.masked("RF pushed in the middle", V[3], RF, RF)?;
        k.eq("RCX at the end", ecx, 0)
    })?;
    k.check("I/O breakpoints", "3B, 17.3.1.3", |k| {
        count(k)?;
        k.cr4_bits(8, 0)?;
        breakpoint(k, 0, 0x80, enabled(0, IO, LEN1))?;
        code!(k; in_(al, 0x61); out(0x80, al); label("io.1"); nop());
        off(k)?;
        k.cr4_bits(0, 8)?;
        counted(k, &["io.1"])
    })?;
    k.check("a fault leaves no data breakpoint behind", "3B, 17.3.1.2; 3A, 6.9", |k| {
        // The access that would hit never happens.
        breakpoint(k, 0, TEST, enabled(0, ACCESS, LEN4))?;
        k.poke(PT_TEST, 0)?;
        code!(k; mov(ebx, TEST); invlpg(byte_ptr(rbx)));
        k.raises("page fault", pf(0), |k| k.mov(eax, dword_ptr(rbx)))?;
        dr6_is(k, "DR6", 0)?;
        off(k)
    })
}

fn priorities(k: &mut Kit) -> R {
    k.check("one trap for two causes", "3B, 17.2.3; 3A, 6.9", |k| {
        breakpoint(k, 1, PAGES, enabled(1, WRITE, LEN4))?;
        let after = k.fresh();
        k.arm(&after)?;
        step(k)?;
        code!(k; mov(dword_ptr(PAGES), 1); label(&after));
        let ip = k.imm(&after);
        k.seen("trap", DB, Some(ip))?;
        dr6_is(k, "DR6: step and breakpoint", BS | 2)?;
        off(k)
    })?;
    k.check("general detect", "3B, 17.2.4", |k| {
        code!(k; mov(eax, DR7 | 0x2000); mov(dr7, rax));
        k.raises("MOV from DR0", DB, |k| k.faulting(|k| k.mov(rax, dr0)))?;
        dr6_is(k, "DR6.BD", BD)?;
        // The handler could look: GD is cleared on entry.
        code!(k; mov(rbx, dr7));
        k.eq64("DR7 afterwards", rbx, DR7.into())?;
        code!(k; mov(eax, DR7 | 0x2000); mov(dr7, rax));
        k.raises("MOV to DR7", DB, |k| k.faulting(|k| k.mov(dr7, rax)))
    })?;
    k.check("DR6 is not cleared by the processor", "3B, 17.2.3", |k| {
        code!(k; mov(eax, 0xFFFF_0FF4u32); mov(dr6, rax));
        let after = k.fresh();
        k.arm(&after)?;
        step(k)?;
        code!(k; nop(); label(&after));
        k.seen("step", DB, None)?;
        // Breakpoint bits may be cleared by a debug exception or kept; BS is there.
        k.masked("BS", EXC_DR6, BS, BS)
    })?;
    k.check("an instruction that faults is not stepped", "3A, 6.9; 3B, 17.3.1.4", |k| {
        code!(k; xor(ecx, ecx); mov(eax, 1); xor(edx, edx));
        let (at, after) = (k.fresh(), k.fresh());
        k.arm(&after)?;
        step(k)?;
        code!(k; label(&at));
        k.faulting(|k| k.ud2())?;
        k.label(&after)?;
        let ip = k.imm(&at);
        k.seen("UD2", UD, Some(ip))?;
        dr6_is(k, "DR6", 0)?;
        k.masked("TF pushed", EXC_FLAGS, TF, TF)
    })
}

fn ring3(k: &mut Kit) -> R {
    k.check("single step in ring 3, SYSCALL", "2B, SYSCALL; 3B, 17.3.1.4", |k| {
        k.aside("sc.entry", |k| {
            k.label("sc.inside")?;
            code!(k; nop(); mov(dword_ptr(V[2]), 1); sysretq());
            Ok(())
        })?;
        count(k)?;
        let entry = k.imm("sc.entry");
        k.msr(0xC000_0080, 0xD01)?;
        k.msr(0xC000_0081, u64::from(USER32) << 48 | u64::from(CODE64) << 32)?;
        k.msr(0xC000_0082, entry.into())?;
        k.msr(0xC000_0084, TF.into())?;
        k.user("code", UD.anywhere(), |k| {
            step(k)?;
            code!(k; syscall(); label("sc.1"); nop(); label("sc.2"); pushfq(); and(dword_ptr(rsp), !TF);
                popfq(); ud2());
            Ok(())
        })?;
        k.var("the system call ran", V[2], 1)?;
        // FMASK clears TF: no trap inside, none for SYSCALL.
        let rip = k.user_imm("sc.1");
        let next = k.user_imm("sc.2");
        // SYSRET restores TF from R11, and traps before the instruction it returns to, or after that one.
        code!(k; mov(rax, qword_ptr(SCRATCH)); mov(ebx, rip); cmp(rax, rbx));
        let ok = k.fresh();
        code!(k; je(k.to(&ok)); mov(ebx, next); cmp(rax, rbx); label(&ok));
        k.holds("first trap in ring 3", |c, to| c.je(to))
    })?;
    k.check("data breakpoint by the processor's own accesses", "3B, 17.3.1.2", |k| {
        // Pushing the frame of an interrupt hits it: the trap comes before the handler's first instruction.
        count(k)?;
        k.aside("idb.handler", |k| {
            code!(k; label("idb.first"); nop(); iretq());
            Ok(())
        })?;
        let handler = k.imm("idb.handler");
        k.idt(0x60, gate(CODE64, handler, INT32, 1))?;
        breakpoint(k, 0, STACK_IST - 8, enabled(0, WRITE, LEN8))?;
        code!(k; int(0x60));
        off(k)?;
        k.var("number of debug exceptions", V[0], 1)?;
        let rip = k.imm("idb.first");
        k.var64("return address", SCRATCH, rip.into())
    })
}

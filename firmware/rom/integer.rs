//! Integer, string and atomic instructions in 64-bit mode, CPUID, and code that changes itself.

use iced_x86::code_asm::*;

use super::layout::*;
use super::report::{begin, end, expect_if, expect32, expect64};
use tessera_asm::{Code, R, Symbols};

pub fn emit(c: &mut Code, s: &Symbols) -> R {
    cpuid(c, s)?;
    arithmetic(c, s)?;
    strings(c, s)?;
    atomics(c, s)?;
    self_modifying(c, s)
}

/// Expects RAX and the arithmetic flags in `mask` of the instruction just emitted. Clobbers RDX.
fn expect_result(c: &mut Code, s: &Symbols, what: &str, result: u64, mask: u32, flags: u32) -> R {
    c.pushfq()?;
    c.pop(rdx)?;
    c.and(edx, mask)?;
    expect64(c, s, what, rax, result)?;
    expect32(c, s, &format!("{what}: flags"), edx, flags)
}

fn cpuid(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "CPUID: leaves and features of an x86-64 processor")?;
    c.mov(rax, -1i64)?;
    c.xor(eax, eax)?;
    c.cpuid()?;
    c.cmp(eax, 1)?;
    expect_if(c, s, "highest basic leaf is at least 1", |c, to| c.jae(to))?;
    // The vendor's twelve letters.
    for register in [ebx, edx, ecx] {
        let next = c.fresh();
        let printable = c.fresh();
        c.mov(dword_ptr(SCRATCH), register)?;
        c.xor(esi, esi)?;
        c.label(&next)?;
        c.movzx(eax, byte_ptr(rsi + SCRATCH))?;
        c.sub(eax, 0x20)?;
        c.cmp(eax, 0x5E)?;
        c.jbe(s.at(&printable))?;
        super::report::fail(c, s, "the vendor is printable")?;
        c.label(&printable)?;
        c.inc(esi)?;
        c.cmp(esi, 4)?;
        c.jb(s.at(&next))?;
    }
    c.mov(rax, 0xFFFF_FFFF_0000_0001u64)?;
    c.xor(ecx, ecx)?;
    c.cpuid()?;
    // FPU, PSE, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, FXSR, SSE, SSE2
    let required = 1 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x2000 | 0x8000 | 0x0700_0000;
    c.and(edx, required)?;
    expect32(c, s, "features in leaf 1", edx, required)?;
    c.shr(rax, 32)?;
    expect64(c, s, "upper half of RAX", rax, 0)?;
    c.mov(eax, 0x8000_0000u32)?;
    c.cpuid()?;
    c.cmp(eax, 0x8000_0008u32)?;
    expect_if(c, s, "highest extended leaf is at least 80000008", |c, to| c.jae(to))?;
    c.mov(eax, 0x8000_0001u32)?;
    c.cpuid()?;
    let required = 1 << 11 | 1 << 20 | 1 << 29; // SYSCALL, NX, LM
    c.and(edx, required)?;
    expect32(c, s, "features in leaf 80000001", edx, required)?;
    c.mov(eax, 0x8000_0008u32)?;
    c.cpuid()?;
    c.movzx(ecx, al)?;
    c.sub(ecx, 32)?;
    c.cmp(ecx, 20)?;
    expect_if(c, s, "physical addresses have 32 to 52 bits", |c, to| c.jbe(to))?;
    end(c, s)
}

fn arithmetic(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "64-bit integer arithmetic and flags")?;
    c.mov(rax, -1i64)?;
    c.mov(eax, 5)?;
    expect64(c, s, "a 32-bit write clears the upper half", rax, 5)?;
    c.mov(rax, 0x7FFF_FFFF_FFFF_FFFFu64)?;
    c.add(rax, 1)?;
    expect_result(c, s, "7FFF… + 1", 1 << 63, ARITHMETIC, 0x894)?;
    c.xor(eax, eax)?;
    c.sub(rax, 1)?;
    expect_result(c, s, "0 - 1", u64::MAX, ARITHMETIC, 0x95)?;
    c.mov(rax, -1i64)?;
    c.stc()?;
    c.adc(rax, 0)?;
    expect_result(c, s, "-1 + 0 + carry", 0, ARITHMETIC, 0x55)?;
    c.mov(rax, 0x8000_0000_0000_0000u64)?;
    c.neg(rax)?;
    expect_result(c, s, "NEG of 8000…", 1 << 63, ARITHMETIC, 0x885)?;
    c.mov(eax, 0xFF)?;
    c.stc()?;
    c.inc(al)?;
    expect_result(c, s, "INC of FF keeps the carry", 0, ARITHMETIC, 0x55)?;
    c.mov(rax, 0x1234_5678_9ABC_DEF0u64)?;
    c.mov(rcx, 0xFEDC_BA98_7654_3210u64)?;
    let product = 0x1234_5678_9ABC_DEF0u128 * 0xFEDC_BA98_7654_3210u128;
    c.mul(rcx)?;
    expect64(c, s, "MUL, high half", rdx, (product >> 64) as u64)?;
    expect64(c, s, "MUL, low half", rax, product as u64)?;
    c.mov(rcx, 0xFEDC_BA98_7654_3211u64)?;
    c.mov(rdx, (product >> 64) as u64)?;
    c.div(rcx)?;
    expect64(c, s, "DIV, quotient", rax, (product / 0xFEDC_BA98_7654_3211) as u64)?;
    expect64(c, s, "DIV, remainder", rdx, (product % 0xFEDC_BA98_7654_3211) as u64)?;
    c.mov(rcx, -3i64)?;
    c.imul_3(rax, rcx, 1000)?;
    expect64(c, s, "IMUL with immediate", rax, -3000i64 as u64)?;
    c.mov(rax, 0x8000_0000_0000_0001u64)?;
    c.mov(cl, 65)?;
    c.shl(rax, cl)?;
    expect_result(c, s, "SHL by 65 is SHL by 1", 2, 1, 1)?;
    c.mov(rax, 0xF0u64)?;
    c.mov(rdx, 0xABCDu64)?;
    c.shrd(rax, rdx, 8)?;
    expect64(c, s, "SHRD", rax, 0xCD00_0000_0000_0000)?;
    c.mov(rax, 0x0102_0304_0506_0708u64)?;
    c.bswap(rax)?;
    expect64(c, s, "BSWAP", rax, 0x0807_0605_0403_0201)?;
    c.mov(ecx, 0x8000_0000u32)?;
    c.movsxd(rax, ecx)?;
    expect64(c, s, "MOVSXD", rax, 0xFFFF_FFFF_8000_0000)?;
    c.mov(rcx, 0x0010_0000_0000_0000u64)?;
    c.bsr(rax, rcx)?;
    expect64(c, s, "BSR", rax, 52)?;
    c.mov(qword_ptr(SCRATCH), 0)?;
    c.mov(qword_ptr(SCRATCH + 8), 0)?;
    c.mov(ecx, 67)?;
    c.bts(qword_ptr(SCRATCH), rcx)?;
    c.mov(rax, qword_ptr(SCRATCH + 8))?;
    expect64(c, s, "BTS with a bit offset beyond the operand", rax, 8)?;
    c.mov(eax, 7)?;
    c.cmp(eax, 8)?;
    c.setl(cl)?;
    c.cmovb(eax, dword_ptr(SCRATCH + 8))?;
    c.movzx(ecx, cl)?;
    expect32(c, s, "SETL", ecx, 1)?;
    expect32(c, s, "CMOVB", eax, 8)?;
    // R12 and R13 as bases have encodings of their own.
    c.mov(r12d, SCRATCH)?;
    c.mov(r13d, SCRATCH)?;
    c.mov(dword_ptr(r12), 0x12)?;
    c.mov(dword_ptr(r13 + 4), 0x13)?;
    c.mov(rax, qword_ptr(r13))?;
    expect64(c, s, "R12 and R13 as bases", rax, 0x13_0000_0012)?;
    c.mov(eax, 0x1234)?;
    c.mov(ah, al)?;
    expect32(c, s, "AH", eax, 0x3434)?;
    c.mov(rbp, 0x5566u64)?;
    c.mov(al, bpl)?;
    expect32(c, s, "BPL", eax, 0x3466)?;
    c.mov(rax, -1i64)?;
    c.push(-2)?;
    c.pop(rax)?;
    expect64(c, s, "PUSH of a sign-extended immediate", rax, u64::MAX - 1)?;
    c.mov(rcx, rsp)?;
    c.enter(0x20, 0)?;
    c.leave()?;
    c.sub(rcx, rsp)?;
    expect64(c, s, "ENTER and LEAVE", rcx, 0)?;
    end(c, s)
}

fn strings(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "64-bit string instructions")?;
    let (from, to) = (SCRATCH + 0x200, SCRATCH + 0x900);
    c.mov(edi, from)?;
    c.mov(rax, 0x0807_0605_0403_0201u64)?;
    c.mov(ecx, 0x40)?;
    c.rep().stosq()?;
    expect64(c, s, "RDI after REP STOSQ", rdi, u64::from(from) + 0x200)?;
    expect64(c, s, "RCX after REP STOSQ", rcx, 0)?;
    c.mov(esi, from + 1)?;
    c.mov(edi, to)?;
    c.mov(ecx, 0x30)?;
    c.rep().movsq()?;
    c.mov(rax, qword_ptr(to + 0x178))?;
    expect64(c, s, "unaligned REP MOVSQ", rax, 0x0108_0706_0504_0302)?;
    // An overlapping forward copy repeats what it has copied.
    c.mov(byte_ptr(to), 0xEEu32)?;
    c.mov(esi, to)?;
    c.mov(edi, to + 1)?;
    c.mov(ecx, 16)?;
    c.rep().movsb()?;
    c.mov(rax, qword_ptr(to + 9))?;
    expect64(c, s, "overlapping REP MOVSB", rax, 0xEEEE_EEEE_EEEE_EEEE)?;
    c.mov(edi, to)?;
    c.mov(eax, 0xEE)?;
    c.mov(ecx, 0x100)?;
    c.repe().scasb()?;
    expect64(c, s, "RCX after REPE SCASB", rcx, 0x100 - 18)?;
    c.mov(esi, from + 0x1FC)?;
    c.mov(edi, to + 0x1FC)?;
    c.mov(ecx, 4)?;
    c.std()?;
    c.rep().movsd()?;
    c.cld()?;
    expect64(c, s, "RSI after backwards REP MOVSD", rsi, u64::from(from) + 0x1EC)?;
    c.mov(rax, qword_ptr(to + 0x1F0))?;
    expect64(c, s, "backwards REP MOVSD", rax, 0x0807_0605_0403_0201)?;
    c.mov(esi, from)?;
    c.mov(edi, from + 8)?;
    c.mov(ecx, 8)?;
    c.repe().cmpsq()?;
    expect_if(c, s, "ZF after REPE CMPSQ of equal strings", |c, to| c.je(to))?;
    expect64(c, s, "RCX after it", rcx, 0)?;
    // Across a page boundary.
    c.mov(edi, SCRATCH + 0xFF9)?;
    c.mov(eax, 0x2A)?;
    c.mov(ecx, 20)?;
    c.rep().stosb()?;
    c.mov(rax, qword_ptr(SCRATCH + 0xFFC))?;
    expect64(c, s, "REP STOSB across a page boundary", rax, 0x2A2A_2A2A_2A2A_2A2A)?;
    end(c, s)
}

fn atomics(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "atomic instructions")?;
    c.mov(qword_ptr(SCRATCH), 10)?;
    c.mov(eax, 5)?;
    c.lock().xadd(qword_ptr(SCRATCH), rax)?;
    expect64(c, s, "XADD, old value", rax, 10)?;
    c.mov(rax, 15u64)?;
    c.mov(ecx, 99)?;
    c.lock().cmpxchg(qword_ptr(SCRATCH), rcx)?;
    expect_if(c, s, "CMPXCHG of an equal value sets ZF", |c, to| c.je(to))?;
    c.lock().cmpxchg(qword_ptr(SCRATCH), rcx)?;
    expect_if(c, s, "CMPXCHG of another value clears ZF", |c, to| c.jne(to))?;
    expect64(c, s, "CMPXCHG loads the value", rax, 99)?;
    c.mov(edx, 1)?;
    c.xchg(qword_ptr(SCRATCH), rdx)?;
    expect64(c, s, "XCHG", rdx, 99)?;
    c.mov(dword_ptr(SCRATCH + 4), 2)?;
    c.mov(eax, 1)?;
    c.mov(edx, 2)?;
    c.mov(ebx, 0xB)?;
    c.mov(ecx, 0xC)?;
    c.lock().cmpxchg8b(qword_ptr(SCRATCH))?;
    expect_if(c, s, "CMPXCHG8B of an equal value sets ZF", |c, to| c.je(to))?;
    c.mov(rax, qword_ptr(SCRATCH))?;
    expect64(c, s, "CMPXCHG8B", rax, 0xC_0000_000B)?;
    c.lock().or(dword_ptr(SCRATCH), 0x40)?;
    c.lock().dec(dword_ptr(SCRATCH))?;
    c.lock().btr(dword_ptr(SCRATCH), 1)?;
    c.mov(eax, dword_ptr(SCRATCH))?;
    expect32(c, s, "OR, DEC, BTR with LOCK", eax, 0x48)?;
    end(c, s)
}

fn self_modifying(c: &mut Code, s: &Symbols) -> R {
    begin(c, s, "self-modifying code")?;
    // MOV EAX, 1; RET
    c.mov(dword_ptr(CODE_RAM), 0x0000_01B8)?;
    c.mov(word_ptr(CODE_RAM + 4), 0xC300u32)?;
    c.mov(ebx, CODE_RAM)?;
    c.call(rbx)?;
    expect32(c, s, "code written before its first run", eax, 1)?;
    c.mov(dword_ptr(CODE_RAM + 1), 0x1234_5678)?;
    c.call(rbx)?;
    expect32(c, s, "code changed after its first run", eax, 0x1234_5678)?;
    // Changed and run two hundred times; through another mapping every second time.
    c.xor(esi, esi)?;
    c.mov(ecx, 200)?;
    let again = c.fresh();
    c.label(&again)?;
    c.mov(edi, super::long_paging::USER_WINDOW as u32 + CODE_RAM)?;
    c.test(ecx, 1)?;
    c.cmove(edi, ebx)?;
    c.mov(dword_ptr(rdi + 1), ecx)?;
    c.call(rbx)?;
    c.add(esi, eax)?;
    c.dec(ecx)?;
    c.jne(s.at(&again))?;
    expect32(c, s, "sum of 200 changing constants", esi, 200 * 201 / 2)?;
    // Code that changes the instruction it jumps to: MOV BYTE [B021], 22h; JMP +0; …; MOV AL, 11h; RET
    let patched = CODE_RAM + 0x21;
    let mut code = vec![0xC6, 0x04, 0x25];
    code.extend(patched.to_le_bytes());
    code.extend([0x22, 0xEB, 0x20 - 10, 0x90, 0x90]);
    code.resize(0x20, 0x90);
    code.extend([0xB0, 0x11, 0xC3, 0x90]);
    c.mov(edi, CODE_RAM)?;
    for word in code.chunks(4) {
        c.mov(eax, u32::from_le_bytes([word[0], word[1], word[2], word[3]]))?;
        c.stosd()?;
    }
    c.xor(eax, eax)?;
    c.call(rbx)?;
    expect32(c, s, "a block that changes its successor", eax, 0x22)?;
    // A block that changes the instruction right behind the store.
    c.mov(byte_ptr(CODE_RAM + 9), 0u32)?;
    c.mov(dword_ptr(CODE_RAM + 3), CODE_RAM + 9)?;
    c.mov(byte_ptr(CODE_RAM + 7), 0x33)?;
    c.mov(dword_ptr(CODE_RAM + 8), 0x90C3_11B0u32)?;
    c.xor(eax, eax)?;
    c.call(rbx)?;
    expect32(c, s, "a block that changes itself", eax, 0x33)?;
    // An instruction across a page boundary whose second half is changed.
    let across = CODE_RAM + 0xFFD;
    c.mov(byte_ptr(across), 0xB8u32)?;
    c.mov(dword_ptr(across + 1), 0x0101_0101)?;
    c.mov(byte_ptr(across + 5), 0xC3u32)?;
    c.mov(edx, across)?;
    c.call(rdx)?;
    c.mov(byte_ptr(across + 4), 0x77)?;
    c.call(rdx)?;
    expect32(c, s, "an instruction across two pages, its second page changed", eax, 0x7701_0101)?;
    end(c, s)
}

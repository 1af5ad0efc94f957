//! Integer instructions between registers, and the flags that they leave.

use iced_x86::code_asm::*;

use crate::snippet::{Theme, snippets};

/// Arithmetic and moves.
pub const INTEGER: Theme = Theme {
    name: "integer",
    host: |_| true,
    snippets: snippets! { a;
        add_registers User64 { add(rax, rbx); add(rcx, rdx) }
        add_immediate User64 { add(rax, 1i32); add(rbx, 0x12345i32) }
        add_then_dead_flags User64 { add(rax, rbx); sub(rax, rcx); xor(rdx, rdx) }
        add_32_zero_extends User64 { add(eax, ebx); mov(ecx, ecx) }
        add_16 User64 { add(ax, bx); add(cx, 5i32) }
        add_8_low_and_high User64 { add(al, bl); add(ah, cl) }
        add_32 User32 { add(eax, ebx); sub(ecx, edx); xor(esi, esi) }
        and_or_xor_not User64 { and(rax, rbx); or(rcx, rdx); xor(rsi, rdi); not(r8) }
        compare_only User64 { cmp(rax, rbx) }
        increment_decrement User64 { inc(rax); dec(ebx) }
        lea_sums User64 { lea(rax, qword_ptr(rbx + rcx * 4 + 16)); lea(edx, qword_ptr(rsi + rdi)) }
        lea_of_pc User64 { lea(rax, qword_ptr(0x8100)) }
        move_constants User64 { mov(eax, 1u32); mov(rbx, 0x1122334455667788u64); mov(rcx, -1i64) }
        move_then_change User64 { mov(rdi, rdx); add(rdx, 16i32); mov(rcx, rax); lea(rax, qword_ptr(rax + 8)) }
        move_extended User64 { movzx(eax, bl); movsx(rcx, dl); movzx(esi, di); movsxd(r8, r9d) }
        move_partial User64 { mov(al, bl); mov(ch, dl); mov(si, di) }
        move_upper_registers User64 { mov(r8, r9); mov(r10, r11); mov(r12, r13); mov(r14, r15) }
        negate User64 { neg(rax); neg(ebx) }
        exchange User64 { xchg(rax, rbx); xchg(ecx, edx) }
        zeroing_idiom User64 { xor(eax, eax); sub(ecx, ecx) }
        sixteen_registers User64 {
            add(rax, r8); add(rcx, r9); add(rdx, r10); add(rbx, r11);
            add(rsi, r12); add(rdi, r13); add(rbp, r14); add(rsp, r15)
        }
        sign_conversions User64 { cdqe(); cqo(); cwde(); cdq() }
        byte_swap User64 { bswap(rax); bswap(ebx) }
    },
};

/// Who reads flags, and what that costs.
pub const FLAGS: Theme = Theme {
    name: "flags",
    host: |_| true,
    snippets: snippets! { a;
        adc_chain User64 { add(rax, r8); adc(rcx, r9); adc(rdx, r10); adc(rbx, r11) }
        sbb_mask User64 { cmp(rax, rbx); sbb(rcx, rcx) }
        setcc_after_cmp User64 { cmp(rax, rbx); setl(cl); movzx(ecx, cl) }
        setcc_after_test User64 { test(eax, eax); sete(bl) }
        setcc_without_setter User64 { setb(al); seta(bl) }
        setcc_twice User64 { cmp(rax, rbx); setg(cl); sete(dl) }
        cmov_after_cmp User64 { cmp(rax, rbx); cmovl(rax, rbx) }
        cmov_32 User64 { test(eax, eax); cmovne(ecx, edx) }
        carry_flag_instructions User64 { stc(); adc(eax, ebx); cmc(); adc(ecx, edx); clc() }
        flags_across_inc User64 { add(rax, rbx); inc(rcx); adc(rdx, rsi) }
        lahf_sahf User64 { cmp(rax, rbx); lahf(); sahf() }
        pushfq_popfq User64 { pushfq(); popfq() }
        parity User64 { and(eax, ebx); setp(cl) }
        overflow User64 { add(eax, ebx); seto(cl) }
    },
};

/// Shifts and rotates.
pub const SHIFTS: Theme = Theme {
    name: "shifts",
    host: |_| true,
    snippets: snippets! { a;
        shift_left_by_constant User64 { shl(rax, 3i32); shl(ebx, 1i32) }
        shift_left_by_constant_dead_flags User64 { shl(rax, 3i32); xor(ebx, ebx) }
        shift_right_by_constant User64 { shr(rax, 7i32); sar(ecx, 31i32) }
        shift_by_cl User64 { shl(rax, cl); sar(edx, cl) }
        shift_by_cl_dead_flags User64 { shl(rax, cl); test(ebx, ebx) }
        shift_bytes User64 { shr(al, 4i32); shl(bh, 2i32) }
        shift_bmi2 User64 { shlx(rax, rbx, rcx); shrx(edx, esi, edi); sarx(r8, r9, r10) }
        rotate_by_constant User64 { rol(rax, 13i32); ror(ecx, 8i32) }
        rotate_by_cl User64 { rol(rax, cl); ror(edx, cl) }
        rotate_bmi2 User64 { rorx(rax, rbx, 11) }
        rotate_through_carry User64 { rcl(rax, 1i32); rcr(ebx, 1i32) }
        double_shift User64 { shld(rax, rbx, 5i32); shrd(ecx, edx, cl) }
    },
};

/// Bits, one and many.
pub const BITS: Theme = Theme {
    name: "bits",
    host: |_| true,
    snippets: snippets! { a;
        bit_test User64 { bt(rax, 5i32); setb(bl) }
        bit_test_register User64 { bt(rax, rcx); setb(bl) }
        bit_set_reset_complement User64 { bts(rax, 5i32); btr(ebx, 6i32); btc(rcx, rdx) }
        bit_set_in_memory User64 { bts(qword_ptr(rdi), 3i32) }
        bit_set_in_memory_by_register User64 { bts(qword_ptr(rdi), rax) }
        bit_scan User64 { bsf(rax, rbx); bsr(ecx, edx) }
        count_zeros User64 { tzcnt(rax, rbx); lzcnt(ecx, edx) }
        count_ones User64 { popcnt(rax, rbx) }
        bmi1 User64 { andn(rax, rbx, rcx); blsr(rdx, rsi); blsi(edi, r8d); blsmsk(r9, r10) }
        bmi1_extract User64 { bextr(rax, rbx, rcx) }
        bmi2_deposit_extract User64 { pdep(rax, rbx, rcx); pext(edx, esi, edi) }
        bmi2_zero_high User64 { bzhi(rax, rbx, rcx) }
    },
};

/// Multiplication and division.
pub const MULTIPLY_DIVIDE: Theme = Theme {
    name: "multiply-divide",
    host: |_| true,
    snippets: snippets! { a;
        multiply_two_operands User64 { imul_2(rax, rbx); imul_2(ecx, edx) }
        multiply_by_constant User64 { imul_3(rax, rbx, 100i32) }
        multiply_dead_flags User64 { imul_2(rax, rbx); add(rax, rcx) }
        multiply_wide User64 { mul(rbx) }
        multiply_wide_signed User64 { imul(rbx) }
        multiply_wide_32 User64 { mul(ecx) }
        multiply_byte User64 { mul(bl) }
        multiply_bmi2 User64 { mulx(rax, rbx, rcx) }
        multiply_adx User64 { adcx(rax, rbx); adox(rcx, rdx) }
        divide_32 User64 { xor(edx, edx); div(ecx) }
        divide_64 User64 { xor(edx, edx); div(rcx) }
        divide_signed_32 User64 { cdq(); idiv(ecx) }
        divide_signed_64 User64 { cqo(); idiv(rcx) }
        divide_signed_any User64 { idiv(ecx) }
        divide_by_rdx User64 { xor(edi, edi); mov(rsi, rdx); xor(edx, edx); div(rsi) }
        divide_byte User64 { div(cl) }
    },
};

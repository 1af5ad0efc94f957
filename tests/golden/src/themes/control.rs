//! Jumps, loops, calls and returns.

use iced_x86::code_asm::*;

use crate::snippet::{Theme, snippets};

/// In the page of the snippets, behind them.
const NEAR: u64 = 0x8800;
/// In another page.
const FAR: u64 = 0x2_0000;

/// Jumps.
pub const BRANCHES: Theme = Theme {
    name: "branches",
    host: |_| true,
    snippets: snippets! { a;
        compare_and_branch User64 { cmp(rax, rbx); je(NEAR) }
        compare_and_branch_32 User32 { cmp(eax, ebx); jl(NEAR) }
        compare_and_branch_back User64 { nop(); cmp(rax, 10i32); jne(0x8000u64) }
        test_and_branch User64 { test(rax, rax); jne(NEAR) }
        subtract_and_branch User64 { sub(rax, rbx); jb(NEAR) }
        branch_without_setter User64 { jle(NEAR) }
        branch_on_parity User64 { ucomisd(xmm0, xmm1); jp(NEAR); jne(NEAR) }
        branch_over_one User64 { test(eax, eax); je(a.fwd()?); inc(rbx); anonymous_label(); mov(rcx, rbx); jmp(NEAR) }
        branch_to_other_page User64 { test(eax, eax); je(FAR) }
        dirty_registers_at_branch User64 { mov(rax, r8); mov(rbx, r9); add(rcx, 8i32); cmp(rax, rbx); jne(NEAR) }
        branch_on_rcx User64 { jrcxz(0x8040u64) }
        jump User64 { jmp(NEAR) }
        jump_to_other_page User64 { jmp(FAR) }
        jump_register User64 { jmp(rax) }
        jump_table User64 { cmp(eax, 5i32); ja(NEAR); jmp(qword_ptr(rbx + rax * 8)) }
        two_side_exits User64 { cmp(rax, 1i32); je(NEAR); cmp(rax, 2i32); je(NEAR + 64); inc(rcx); jmp(NEAR + 128) }
    },
};

/// Bodies of loops, as compilers make them.
pub const LOOPS: Theme = Theme {
    name: "loops",
    host: |_| true,
    snippets: snippets! { a;
        count_down User64 { anonymous_label(); dec(rcx); jne(a.bwd()?) }
        count_up User64 { anonymous_label(); inc(eax); cmp(eax, ebx); jne(a.bwd()?) }
        copy_bytes User64 {
            anonymous_label(); movzx(eax, byte_ptr(rsi)); mov(byte_ptr(rdi), al); inc(rsi); inc(rdi);
            dec(rcx); jne(a.bwd()?)
        }
        find_zero User64 { anonymous_label(); inc(rax); cmp(byte_ptr(rax), 0i32); jne(a.bwd()?) }
        list_walk User64 { anonymous_label(); mov(rax, qword_ptr(rax)); test(rax, rax); jne(a.bwd()?) }
        loop_instruction User64 { anonymous_label(); add(rax, rbx); loop_(a.bwd()?) }
        matrix_row User64 {
            anonymous_label(); movsd_2(xmm0, qword_ptr(rsi + rax * 8)); mulsd(xmm0, qword_ptr(rdi));
            addsd(xmm1, xmm0); add(rdi, 512i32); inc(rax); cmp(rax, 64i32); jne(a.bwd()?)
        }
        previous_value User64 {
            anonymous_label(); mov(rax, r9); add(r9, 8i32); cmp(r9, rcx); jne(a.bwd()?)
        }
        search_with_exit User64 {
            anonymous_label(); cmp(dword_ptr(rsi), edx); je(NEAR); add(rsi, 4i32); dec(ecx); jne(a.bwd()?)
        }
        spilled_sum User64 {
            anonymous_label(); mov(rax, qword_ptr(rsi)); add(rsi, 8i32); add(rax, qword_ptr(rsp + 8));
            mov(qword_ptr(rsp + 16), rax); cmp(rsi, rdi); jne(a.bwd()?)
        }
        sum_array User64 {
            anonymous_label(); add(rax, qword_ptr(rsi)); add(rsi, 8i32); cmp(rsi, rdi); jne(a.bwd()?)
        }
        sum_array_32 User32 {
            anonymous_label(); add(eax, dword_ptr(esi)); add(esi, 4i32); cmp(esi, edi); jne(a.bwd()?)
        }
        checksum_step User64 {
            anonymous_label(); movzx(edx, byte_ptr(rsi)); inc(rsi); mov(ecx, eax); xor(cl, dl); movzx(ecx, cl);
            shr(eax, 8i32); xor(eax, dword_ptr(rdi + rcx * 4)); cmp(rsi, rbx); jne(a.bwd()?)
        }
        bubble_step User64 {
            anonymous_label(); mov(eax, dword_ptr(rsi)); mov(edx, dword_ptr(rsi + 4)); cmp(eax, edx); jle(NEAR);
            mov(dword_ptr(rsi), edx); mov(dword_ptr(rsi + 4), eax); add(rsi, 4i32); cmp(rsi, rdi); jne(a.bwd()?)
        }
    },
};

/// Calls, returns, and what stands around them.
pub const CALLS: Theme = Theme {
    name: "calls",
    host: |_| true,
    snippets: snippets! { a;
        call User64 { call(NEAR) }
        call_32 User32 { call(NEAR) }
        call_other_page User64 { call(FAR) }
        call_register User64 { call(rax) }
        call_memory User64 { call(qword_ptr(rax + 24)) }
        return_ User64 { ret() }
        return_and_pop User64 { ret_1(16i32) }
        return_32 User32 { ret() }
        leaf_function User64 { lea(eax, qword_ptr(rdi + rsi)); ret() }
        prologue User64 { push(rbp); mov(rbp, rsp); push(r12); push(rbx); sub(rsp, 32i32) }
        epilogue User64 { add(rsp, 32i32); pop(rbx); pop(r12); pop(rbp); ret() }
        enter_leave User64 { enter(32i32, 0i32); leave(); ret() }
        recursion_step User64 { mov(edi, ebx); sub(edi, 1i32); call(NEAR) }
        syscall User64 { mov(eax, 39i32); syscall() }
    },
};

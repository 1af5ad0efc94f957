//! The x87 unit.

use iced_x86::code_asm::*;

use crate::snippet::{Theme, snippets};

/// Loads, arithmetic, comparisons, control.
pub const X87: Theme = Theme {
    name: "x87",
    host: |_| true,
    snippets: snippets! { a;
        load_add_store User64 { fld(qword_ptr(rdi)); fadd(qword_ptr(rsi)); fstp(qword_ptr(rdi)) }
        load_extended User64 { fld(tword_ptr(rdi)); fstp(tword_ptr(rsi)) }
        registers User64 { fmul_2(st0, st1); faddp(st1, st0) }
        exchange User64 { fxch(st0, st1) }
        constants User64 { fldz(); fld1(); fldpi() }
        compare_and_branch User64 { fucomip(st0, st1); ja(0x8800u64) }
        status_word User64 { fcom_2(st0, st1); fnstsw(ax) }
        integer_load_store User64 { fild(dword_ptr(rdi)); fistp(qword_ptr(rsi)) }
        square_root User64 { fsqrt(); fchs(); fabs() }
        sine User64 { fsin() }
        control_word User64 { fnstcw(word_ptr(rdi)); fldcw(word_ptr(rsi)) }
        conditional_move User64 { fcmove(st0, st1) }
    },
};

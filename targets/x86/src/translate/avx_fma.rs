//! FMA: `a * b + c` rounded once, in its variants of sign, size and operand order.
//!
//! The digits of a mnemonic say which operands are multiplied and which is added: of 132 these are the first and the third, and
//! the second. Which operand comes first in the product matters when several are NaNs: it is the second operand in the
//! forms 213 and 231 (SDM volume 1, section 14.5.2; confirmed on silicon). The scalar forms take the other lanes from the first
//! operand, wherever that is in the sum, so the IR has an operation for each.

use iced_x86::Instruction;
use tessera_tcg::ir::{Inst, Value, Vec3Op, VecLen};

use super::{Row, Translator};

/// Operands one, two and three to factors and addend.
type Order = fn([Value; 3]) -> [Value; 3];

const ORDER_132: Order = |[one, two, three]| [one, three, two];
const ORDER_213: Order = |[one, two, three]| [two, one, three];
const ORDER_231: Order = |[one, two, three]| [two, three, one];

/// Three rows a line, in the orders 132, 213 and 231: `Mnemonic Operation`.
macro_rules! fma_rows {
    ($($m132:ident $op132:ident, $m213:ident $op213:ident, $m231:ident $op231:ident;)*) => {
        &[$(
            Row::All(iced_x86::Mnemonic::$m132, |t, i| multiply_add(t, i, Vec3Op::$op132, ORDER_132)),
            Row::All(iced_x86::Mnemonic::$m213, |t, i| multiply_add(t, i, Vec3Op::$op213, ORDER_213)),
            Row::All(iced_x86::Mnemonic::$m231, |t, i| multiply_add(t, i, Vec3Op::$op231, ORDER_231)),
        )*]
    };
}

/// Rows of this family.
pub(super) const ROWS: &[Row] = fma_rows! {
    Vfmadd132ps MulAddF32, Vfmadd213ps MulAddF32, Vfmadd231ps MulAddF32;
    Vfmadd132pd MulAddF64, Vfmadd213pd MulAddF64, Vfmadd231pd MulAddF64;
    Vfmsub132ps MulSubF32, Vfmsub213ps MulSubF32, Vfmsub231ps MulSubF32;
    Vfmsub132pd MulSubF64, Vfmsub213pd MulSubF64, Vfmsub231pd MulSubF64;
    Vfnmadd132ps NegMulAddF32, Vfnmadd213ps NegMulAddF32, Vfnmadd231ps NegMulAddF32;
    Vfnmadd132pd NegMulAddF64, Vfnmadd213pd NegMulAddF64, Vfnmadd231pd NegMulAddF64;
    Vfnmsub132ps NegMulSubF32, Vfnmsub213ps NegMulSubF32, Vfnmsub231ps NegMulSubF32;
    Vfnmsub132pd NegMulSubF64, Vfnmsub213pd NegMulSubF64, Vfnmsub231pd NegMulSubF64;
    Vfmaddsub132ps MulAddSubF32, Vfmaddsub213ps MulAddSubF32, Vfmaddsub231ps MulAddSubF32;
    Vfmaddsub132pd MulAddSubF64, Vfmaddsub213pd MulAddSubF64, Vfmaddsub231pd MulAddSubF64;
    Vfmsubadd132ps MulSubAddF32, Vfmsubadd213ps MulSubAddF32, Vfmsubadd231ps MulSubAddF32;
    Vfmsubadd132pd MulSubAddF64, Vfmsubadd213pd MulSubAddF64, Vfmsubadd231pd MulSubAddF64;
    Vfmadd132ss MulAddScalarAF32, Vfmadd213ss MulAddScalarBF32, Vfmadd231ss MulAddScalarCF32;
    Vfmadd132sd MulAddScalarAF64, Vfmadd213sd MulAddScalarBF64, Vfmadd231sd MulAddScalarCF64;
    Vfmsub132ss MulSubScalarAF32, Vfmsub213ss MulSubScalarBF32, Vfmsub231ss MulSubScalarCF32;
    Vfmsub132sd MulSubScalarAF64, Vfmsub213sd MulSubScalarBF64, Vfmsub231sd MulSubScalarCF64;
    Vfnmadd132ss NegMulAddScalarAF32, Vfnmadd213ss NegMulAddScalarBF32, Vfnmadd231ss NegMulAddScalarCF32;
    Vfnmadd132sd NegMulAddScalarAF64, Vfnmadd213sd NegMulAddScalarBF64, Vfnmadd231sd NegMulAddScalarCF64;
    Vfnmsub132ss NegMulSubScalarAF32, Vfnmsub213ss NegMulSubScalarBF32, Vfnmsub231ss NegMulSubScalarCF32;
    Vfnmsub132sd NegMulSubScalarAF64, Vfnmsub213sd NegMulSubScalarBF64, Vfnmsub231sd NegMulSubScalarCF64;
};

fn multiply_add(t: &mut Translator<'_>, i: &Instruction, op: Vec3Op, order: Order) {
    let Some(form) = t.vector_form(i) else { return };
    let three = t.source(i, 2, form);
    let one = t.ymm(i.op0_register());
    let two = t.ymm(i.op1_register());
    let [a, b, c] = order([one, two, three]);
    let len = if op.max_len() == VecLen::V128 { VecLen::V128 } else { form.len };
    let r = t.floating(|t| t.b.push(Inst::Vec3 { op, len, a, b, c }));
    t.set_result(i, form, r);
}

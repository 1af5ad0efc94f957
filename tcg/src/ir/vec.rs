//! Vector operations.
//!
//! One row an operation: its name, how many vector operands it reads (1: `a`; 2: `a`, `b`), whether it has an
//! immediate, and its meaning. Operations work on 128 or 256 bits ([`VecLen`](super::VecLen)); a 128-bit operation
//! reads the low halves and zeroes the high half of its result. *Scalar* operations (`…S32`, `…S64`) compute
//! lane 0 and take the other lanes of the low 128 bits from `a`; they exist in 128 bits only.
//!
//! Floating-point operations follow IEEE 754 with the guest's rounding mode and flush controls in the host's control
//! register, accumulate its sticky flags, and choose NaN results as SSE does (the first operand's quieted NaN, else
//! the second's, else the default NaN). A back end for a host with other rules makes them by other means.
//!
//! To add one: a row here, a row in each backend's encoding table, an arm in the interpreter.

macro_rules! vec_ops {
    ($($(#[doc = $doc:literal])+ $name:ident $text:literal $operands:literal $imm:literal;)*) => {
        /// A vector operation; see the module documentation.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum VecOp {
            $($(#[doc = $doc])+ $name,)*
        }

        impl VecOp {
            /// Every operation, in table order.
            pub const ALL: &'static [VecOp] = &[$(VecOp::$name),*];

            /// Name in the text form.
            pub fn text(self) -> &'static str {
                match self { $(VecOp::$name => $text),* }
            }

            /// How many vector operands it reads: 1 (`a`) or 2.
            pub fn operands(self) -> u32 {
                match self { $(VecOp::$name => $operands),* }
            }

            /// Whether its immediate matters.
            pub fn has_imm(self) -> bool {
                match self { $(VecOp::$name => $imm),* }
            }
        }
    };
}

vec_ops! {
    /// Bitwise `a & b`.
    And "and" 2 false;
    /// Bitwise `!a & b`.
    AndNot "andnot" 2 false;
    /// Bitwise `a | b`.
    Or "or" 2 false;
    /// Bitwise `a ^ b`.
    Xor "xor" 2 false;
    /// Lane-wise wrapping sum of 8-bit lanes.
    AddI8 "add.i8" 2 false;
    /// Lane-wise wrapping sum of 16-bit lanes.
    AddI16 "add.i16" 2 false;
    /// Lane-wise wrapping sum of 32-bit lanes.
    AddI32 "add.i32" 2 false;
    /// Lane-wise wrapping sum of 64-bit lanes.
    AddI64 "add.i64" 2 false;
    /// Lane-wise wrapping difference of 8-bit lanes.
    SubI8 "sub.i8" 2 false;
    /// Lane-wise wrapping difference of 16-bit lanes.
    SubI16 "sub.i16" 2 false;
    /// Lane-wise wrapping difference of 32-bit lanes.
    SubI32 "sub.i32" 2 false;
    /// Lane-wise wrapping difference of 64-bit lanes.
    SubI64 "sub.i64" 2 false;
}

//! Helpers of the x87 instructions.

helpers! { super::X87_BASE; }

//! The snippets, by theme.

use crate::snippet::Theme;

mod control;
mod integer;
mod memory;
mod system;
mod vector;
mod x87;

/// All themes, sorted by name.
pub const ALL: &[Theme] = &[
    memory::ATOMICS,
    vector::AVX,
    integer::BITS,
    control::BRANCHES,
    control::CALLS,
    vector::CRYPTO,
    integer::FLAGS,
    integer::INTEGER,
    control::LOOPS,
    memory::MEMORY,
    integer::MULTIPLY_DIVIDE,
    memory::SEGMENTS,
    integer::SHIFTS,
    vector::SSE_PACKED,
    vector::SSE_SCALAR,
    memory::STACK,
    memory::STRINGS,
    system::SYSTEM,
    x87::X87,
];

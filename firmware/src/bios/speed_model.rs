//! What the speed loop computes, in Rust: the self-test compares the machine code's result with this one.
//!
//! Used by the crate and by its build script.

/// Instructions the loop executes in each iteration, on every path.
pub const INSNS_PER_ITERATION: u64 = 31;

/// Start value of the generator.
pub const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
/// Factor of the loop's multiplication (fits a sign-extended 32-bit immediate).
pub const FACTOR: i32 = 0x2545_F491;
/// Entries of the loop's table on the stack.
pub const TABLE: usize = 32;

/// The result of `iterations` iterations.
#[must_use]
pub fn result(iterations: u64) -> u64 {
    let mut table = [0u64; TABLE];
    let (mut random, mut sum, mut product) = (SEED, 0u64, 1u64);
    for left in (1..=iterations).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let slot = &mut table[(random as usize) & (TABLE - 1)];
        *slot = slot.wrapping_add(random).rotate_left(5);
        let value = *slot;
        if left & 3 != 0 {
            sum = sum.wrapping_add(value).wrapping_add(1);
        } else {
            sum = sum.wrapping_sub(value) ^ product;
        }
        product = sum.wrapping_mul(FACTOR as u64);
        let (added, carry) = {
            let added = product.wrapping_add(value & 0xFF);
            (added, added < sum)
        };
        product = added;
        sum = sum.wrapping_add(u64::from(carry));
        sum ^= product.wrapping_add(sum) >> 3;
    }
    random ^ sum ^ product
}

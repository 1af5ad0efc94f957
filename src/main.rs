//! Tessera, a full-system PC emulator.
fn main() {}

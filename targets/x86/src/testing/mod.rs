//! What tests here and the prover share: checks of the front end, and a machine with nothing in it. Not part of the emulator.

pub mod decoder;
mod platform;
mod ram;

pub use platform::NoPlatform;
pub use ram::Ram;

//! What tests here and the prover share: checks of the front end, and a machine with nothing in it, random
//! numbers. Not part of the emulator.

pub mod decoder;
mod platform;
mod ram;
mod rng;

pub use platform::NoPlatform;
pub use ram::Ram;
pub use rng::Rng;

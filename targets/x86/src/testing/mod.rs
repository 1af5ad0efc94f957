//! Checks of the front end that tests here and the prover share. Not part of the emulator.

pub mod decoder;

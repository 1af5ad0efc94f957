//! Boards: which devices a machine has and how they are wired.

pub mod pc;

//! Host code of guest snippets, pinned in text files, so that a change that makes code worse is seen in review.
//!
//! Problem: the engine's tests say that translated code is right, and benchmarks say, with noise, how fast all of it is
//! together. Neither shows that one instruction has become two.
//!
//! Strategy: some hundred short pieces of guest code, by [theme](themes), are translated as the emulator does it, and what
//! comes out is written as assembler text, with counts, to `expected/THEME.txt`; `expected/summary.txt` has the counts alone,
//! a line each. The test compares; `cargo xtask golden --bless` writes all files anew, to be looked at in the diff of the
//! change and to settle conflicts of a merge.
//!
//! Invariants: the text depends on the engine and nothing else. Host addresses, offsets in the environment and in the runtime
//! have names ([`listing`]), files are sorted by the snippets' names, and padding is left out.
//!
//! | module | does |
//! |---|---|
//! | [`snippet`] | what a snippet is, and the processor's state that it is translated for |
//! | [`themes`] | the snippets |
//! | [`rig`] | translates one |
//! | [`listing`] | writes it as text |
//! | [`files`] | compares and blesses |

pub mod files;
pub mod listing;
pub mod rig;
pub mod snippet;
pub mod themes;

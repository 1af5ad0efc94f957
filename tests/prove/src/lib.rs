//! The proof: random instruction sequences on the translator and on the host's silicon, from the same state, compared.
//!
//! Problem: thousands of encodings, each with its flags, faults and corner cases, in every combination. Strategy: the host is
//! an x86-64 processor, so it knows. A [`generate::Generator`] makes cases (a [`sequence`] and a [`frame`], the state before
//! it) out of a seed; a [`rig::Rig`] runs each one natively ([`native`], a forked child) and on a vCPU in user mode
//! ([`guest`]), and [`compare`]s registers, flags, memory, x87 and vector state, and the exception that ended it. What differs
//! is shrunk ([`shrink`]) and told in full ([`report`]).
//!
//! Invariants: a case is a function of seed, number and filter; what a sequence can reach lies at the same addresses on both
//! sides ([`layout`]); nothing compared depends on what the manual leaves undefined ([`sequence::Sequence::define_flags`],
//! [`compare`]) or on the host's system ([`codes::EXCLUDED`]).

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

pub mod codes;
pub mod compare;
pub mod coverage;
pub mod decoder;
pub mod frame;
pub mod generate;
pub mod guest;
pub mod layout;
pub mod native;
pub mod operands;
pub mod report;
pub mod rig;
pub mod run;
pub mod sequence;
pub mod shrink;
pub mod values;

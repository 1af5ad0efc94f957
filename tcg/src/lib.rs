//! Tessera's translator.
//!
//! Guest instructions become [`ir`], the IR becomes host code one translation block (TB) at a time, blocks are
//! chained to each other, and they reach guest memory through a software TLB. This crate knows neither a guest
//! nor a device: a guest architecture implements [`guest::Guest`], the machine implements [`memory::PhysMemory`].
//!
//! Data flows one way: `guest` (front end) → [`ir`] → [`opt`] → `backend` (register allocation, emission) →
//! `code_cache` → `exec` (the loop that finds, links and runs blocks), with `softmmu` beside the running code.

pub mod backend;
pub mod code_cache;
pub mod env;
pub mod exec;
pub mod guest;
pub mod interp;
pub mod ir;
pub mod jump_cache;
pub mod memory;
pub mod opt;
pub mod softmmu;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

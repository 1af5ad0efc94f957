//! A small guest for tests, and random blocks over it.
//!
//! Problem: passes, interpreter and backends must agree on every valid block, and a real front end makes only some of
//! those. Strategy: [`generate::block`] turns a list of random words into a valid block over a guest that has one of
//! everything: [`GLOBALS`] of each type (vectors overlapping as 128 and 256 bits), [`HELPERS`] of each kind of
//! [`Effects`], and a [`TestMemory`] of three pages with different permissions. Each word makes one or a few
//! instructions independently of the others, so that a property test shrinks a failure by leaving out words.
//!
//! A test makes two equal [`TestMachine`]s from one seed, runs a block on each by two executors, and compares what
//! [`TestMachine::observe`] returns:
//!
//! ```
//! use tessera_tcg::{interp, testing::{TestMachine, generate, guest}};
//! let block = generate::block(&[1, 2, 3, 4, 5]);
//! let mut machine = TestMachine::new(7);
//! let end = interp::run(&block, &guest(), &mut machine);
//! println!("{:?}", machine.observe(&block, end));
//! ```
//!
//! Invariants: the environment is all plain bytes, so that an interpreter may see it as a slice; helpers keep to the
//! effects they declare, exactly.

mod env;
pub mod generate;
mod memory;
mod rng;

pub use env::{GLOBALS, HELPERS, TestEnv, global, guest, helper};
pub use memory::TestMemory;
pub use rng::SplitMix;

use crate::guest::Exception;
use crate::interp::{End, Machine, set_global};
use crate::ir::{Block, HelperId};

/// Environment and memory of one test run.
pub struct TestMachine {
    /// The environment.
    pub env: Box<TestEnv>,
    /// Guest memory.
    pub memory: TestMemory,
}

/// All that a block may change, as of its end: equal for equal executions.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// How it ended.
    pub end: End,
    /// General globals.
    pub int: [u64; 16],
    /// Program counter.
    pub pc: u64,
    /// Defined flags.
    pub flags: u32,
    /// Floating-point control and status word.
    pub fp_control: u32,
    /// Vector globals.
    pub vec: [[u64; 4]; 8],
    /// What the block stores outside of globals.
    pub scratch: [u64; 8],
    /// What helpers were called with, digested.
    pub calls: u64,
    /// Memory.
    pub memory: TestMemory,
}

impl TestMachine {
    /// A machine in a random state, the same for the same seed.
    pub fn new(seed: u64) -> TestMachine {
        let mut rng = SplitMix::new(seed);
        TestMachine { env: TestEnv::new(&mut rng), memory: TestMemory::new(&mut rng) }
    }

    /// The state after a run that ended like this. Globals that the exit declares dead read as zero.
    pub fn observe(&self, block: &Block, end: End) -> Observed {
        let mut env = self.env.duplicate();
        if let End::Exit(exit) = end {
            let dead = block.exits[exit.0 as usize].dead;
            for g in dead.iter().filter(|g| *g != global::PC && (g.0 as usize) < GLOBALS.len()) {
                set_global(env.bytes(), &GLOBALS[g.0 as usize], [0; 4]);
            }
        }
        Observed {
            end,
            int: env.int,
            pc: env.pc,
            flags: env.flags & crate::ir::flags::ALL,
            fp_control: env.fp_control,
            vec: env.vec,
            scratch: env.scratch,
            calls: env.calls,
            memory: self.memory.clone(),
        }
    }
}

impl Machine for TestMachine {
    fn env(&mut self) -> &mut [u8] {
        self.env.bytes()
    }

    fn load(&mut self, va: u64, buf: &mut [u8], mmu: u8, for_write: bool) -> Result<(), Exception> {
        self.memory.load(va, buf, mmu, for_write)
    }

    fn store(&mut self, va: u64, bytes: &[u8], mmu: u8) -> Result<(), Exception> {
        self.memory.store(va, bytes, mmu)
    }

    fn misaligned(&mut self, va: u64) -> Exception {
        TestMemory::misaligned(va)
    }

    fn call(&mut self, helper: HelperId, args: [u64; 5]) -> Result<u64, Exception> {
        let r = helper::call(&mut self.env, helper, args);
        match std::mem::take(&mut self.env.header.helper_fault) {
            0 => Ok(r),
            _ => Err(self.env.exception()),
        }
    }
}

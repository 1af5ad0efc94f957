//! Bare-metal guest programs that check what user mode cannot run: modes and their transitions, faults, gates, tasks, segment
//! limits, paging, debug registers, model-specific registers.
//!
//! The problem: translated user code can be compared with the host's silicon, the system side cannot. The strategy: each
//! program is a small kernel about one subject, assembled here, loaded as an ELF file with a PVH entry (so
//! `tessera -kernel FILE` and other emulators run it), and made of checks that compare what the processor did with what
//! the manual prescribes. What is right is what the Intel SDM says, and each check names its section; where the manual leaves a
//! choice, a check accepts all of it.
//!
//! A program prints on the debug console (port 0xE9) a line for each check, `ok NAME` or
//! `FAIL NAME: WHAT: expected 0x…, got 0x…`, and ends by the exit device at port 0xF4: status 1 if all is well, 3 if not.
//! [`runner`] runs programs and judges their output; `cargo test -p tessera-bare` does so with this workspace's emulator, and
//! the program of this package with any.
//!
//! To add a check: a call of [`Kit::check`](kit::Kit::check) in the program it belongs to. To add a program: a file in
//! `programs/` and a row in [`programs`].

mod elf;
mod kit;
mod kvm;
mod layout;
mod programs;
pub mod runner;
mod runtime;
mod tables;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use iced_x86::{Code, Decoder, DecoderOptions};
use tessera_asm::{Builder, Error, R};

pub use kit::{Check, Variant};
use kit::{Kit, Plan};
use layout::{IMAGE, IMAGE_SIZE, USER_ALIAS};
pub use programs::programs;

/// A guest program.
#[derive(Clone, Copy)]
pub struct Program {
    /// Its name, and its file's.
    pub name: &'static str,
    /// The mode it is at home in: 16, 32 or 64 bits.
    bits: u32,
    /// The processor it needs, as for `-cpu`.
    pub cpu: &'static str,
    /// Whether its home mode has paging on, so that ring 3 code runs at [`USER_ALIAS`].
    paging: bool,
    /// How many levels its page tables have.
    levels: u32,
    /// Whether triple faults restart the machine in between; if not, one ends the program.
    pub resets: bool,
    body: fn(&mut Kit) -> R,
}

impl Program {
    const fn new(name: &'static str, bits: u32, body: fn(&mut Kit) -> R) -> Program {
        Program { name, bits, cpu: "max", paging: bits == 64, levels: 4, resets: false, body }
    }

    /// Assembles it.
    pub fn assemble(&self, variant: Variant) -> Result<Assembled, Error> {
        let plan = Rc::new(Plan {
            program: self.name,
            variant,
            home: self.bits,
            levels: self.levels,
            alias: if self.paging { USER_ALIAS } else { 0 },
            checks: RefCell::default(),
        });
        let mut builder = Builder::new(IMAGE.into(), IMAGE_SIZE);
        let kit = |emit: fn(&mut Kit) -> R| {
            let plan = plan.clone();
            move |code: &mut tessera_asm::Code, s: &tessera_asm::Symbols| {
                emit(&mut Kit { code, s, plan: &plan })
            }
        };
        builder.section(32, kit(runtime::start));
        builder.section(self.bits, kit(runtime::routines));
        let (body, plan_of_body) = (self.body, plan.clone());
        builder.section(self.bits, move |code, s| {
            let mut k = Kit { code, s, plan: &plan_of_body };
            // Every pass lists the checks anew.
            k.plan.checks.borrow_mut().clear();
            k.label("main")?;
            body(&mut k)?;
            runtime::exit(&mut k)
        });
        let linked = builder.finish()?;
        let start = linked.symbols.iter().find(|(_, name)| name == "start").map(|(address, _)| *address);
        let entry = start.ok_or("the program has no start")?;
        let codes = linked
            .instructions
            .iter()
            .filter_map(|placed| {
                let bytes = &linked.bytes[placed.offset..];
                let code = Decoder::new(placed.bits, bytes, DecoderOptions::NONE).decode().code();
                (code != Code::INVALID).then_some(code)
            })
            .collect();
        let file = elf::file(&linked.bytes, entry as u32)?;
        let checks = plan.checks.take();
        Ok(Assembled { file, checks, codes, symbols: linked.symbols })
    }
}

/// A program, ready to run.
pub struct Assembled {
    /// The ELF file.
    pub file: Vec<u8>,
    /// Its checks, in order.
    pub checks: Vec<Check>,
    /// What it executes; without instructions that are only there to fault.
    pub codes: BTreeSet<Code>,
    /// Linear addresses, for debugging.
    pub symbols: tessera_asm::SymbolList,
}

/// The instructions that the programs execute to their end, by iced's codes: those whose result some check depends on, and
/// those that raise an exception by nature (INT n, UD2, BOUND). An instruction that is only made to fault is not in it.
///
/// # Panics
///
/// If a program cannot be assembled; the tests of this crate assemble all of them.
#[must_use]
pub fn exercised() -> BTreeSet<Code> {
    let assembled = |program: &Program| match program.assemble(Variant::Full) {
        Ok(assembled) => assembled.codes,
        Err(error) => panic!("{}: {error}", program.name),
    };
    programs().iter().flat_map(assembled).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_program_assembles() {
        for program in programs() {
            for variant in [Variant::Full, Variant::Kvm] {
                let assembled =
                    program.assemble(variant).unwrap_or_else(|error| panic!("{}: {error}", program.name));
                let names: BTreeSet<_> = assembled.checks.iter().map(|check| &check.name).collect();
                assert_eq!(names.len(), assembled.checks.len(), "{}: two checks have one name", program.name);
                for check in &assembled.checks {
                    let source = check.source.starts_with(['1', '2', '3', '4']);
                    assert!(source, "{}: {} names no section of the SDM", program.name, check.name);
                }
            }
        }
    }

    #[test]
    fn what_kvm_leaves_out_exists() {
        for (name, left_out) in kvm::rows() {
            let program = programs().into_iter().find(|program| program.name == name);
            let checks =
                program.unwrap_or_else(|| panic!("no program {name}")).assemble(Variant::Kvm).unwrap().checks;
            let found = checks
                .iter()
                .any(|check| (check.name == left_out || left_out == "*") && check.left_out.is_some());
            assert!(found, "{name} has no check {left_out:?}");
        }
    }

    #[test]
    fn instructions_count_when_they_complete() {
        let codes = exercised();
        for code in
            [Code::Ud2, Code::Lldt_rm16, Code::Iretq, Code::Invlpg_m, Code::Mov_cr_r64, Code::Int_imm8]
        {
            assert!(codes.contains(&code), "{code:?}");
        }
        assert!(!codes.contains(&Code::VEX_Vaddps_ymm_ymm_ymmm256));
    }
}

//! Coverage in the open: `docs/coverage.md`, which says of every instruction that `max` claims who has seen it work.
//!
//! The table counts iced's `Code`s by CPUID feature. A test compares the file with what [`text`] makes, so it is true as
//! long as the tests pass; `cargo xtask prove --coverage` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use iced_x86::{Code, Mnemonic};
use tessera_bare::{Variant, programs};
use tessera_x86::cpuid::CpuidTable;
use tessera_x86::translate::{TranslateFn, dispatch};

use crate::codes::{How, how, is_encoding};
use crate::guest::model;

/// What tests instructions that no oracle can run: mnemonic, file, test.
const BY_HAND: &[(Mnemonic, &str)] = {
    use Mnemonic::*;
    &[(Cpuid, "targets/x86/src/cpuid/leaves.rs: tests of the leaves")]
};

/// Whether an instruction has a translation of its own.
pub fn is_translated(code: Code) -> bool {
    let table = dispatch();
    // What no family lists shares one function; no model has VMX.
    let none = table[Code::Vmcall as usize];
    !std::ptr::fn_addr_eq(table[code as usize], none as TranslateFn)
}

/// The encodings that the model claims.
pub fn claimed(model: &CpuidTable) -> impl Iterator<Item = Code> + '_ {
    Code::values().filter(|&c| is_encoding(c) && model.allows(c))
}

/// What has seen an instruction work.
#[derive(Clone, Copy, Default)]
struct Seen {
    translated: bool,
    silicon: bool,
    kvm: bool,
    program: bool,
    by_hand: bool,
}

impl Seen {
    fn nobody(self) -> bool {
        !(self.silicon || self.kvm || self.program || self.by_hand)
    }
}

fn codes_of(variant: Variant) -> BTreeSet<Code> {
    let mut codes = BTreeSet::new();
    for program in programs().iter() {
        match program.assemble(variant) {
            Ok(assembled) => codes.extend(assembled.codes),
            Err(error) => panic!("{}: {error}", program.name),
        }
    }
    codes
}

/// The file's name in the repository.
pub const FILE: &str = "docs/coverage.md";

/// The file's place.
pub fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(FILE)
}

fn features(code: Code) -> String {
    let names: Vec<_> = code.cpuid_features().iter().map(|f| format!("{f:?}")).collect();
    names.join(" and ")
}

/// The contents of the file.
pub fn text() -> String {
    let model = model();
    let (full, kvm) = (codes_of(Variant::Full), codes_of(Variant::Kvm));
    let mut rows: BTreeMap<String, Vec<(Code, Seen)>> = BTreeMap::new();
    let mut reasons: BTreeMap<&str, Vec<(Code, Seen)>> = BTreeMap::new();
    for code in claimed(&model) {
        let seen = Seen {
            translated: is_translated(code),
            silicon: how(&model, code) == How::Native,
            kvm: kvm.contains(&code),
            program: full.contains(&code),
            by_hand: BY_HAND.iter().any(|(m, _)| *m == code.mnemonic()),
        };
        rows.entry(features(code)).or_default().push((code, seen));
        if let How::Excluded(reason) = how(&model, code) {
            reasons.entry(reason).or_default().push((code, seen));
        }
    }
    let mut out = String::from(INTRODUCTION);
    let mut total = [0; 7];
    for (name, codes) in &rows {
        let count = |is: fn(Seen) -> bool| codes.iter().filter(|(_, s)| is(*s)).count();
        let row = [
            codes.len(),
            count(|s| s.translated),
            count(|s| s.silicon),
            count(|s| s.kvm),
            count(|s| s.program),
            count(|s| s.by_hand),
            count(Seen::nobody),
        ];
        for (sum, n) in total.iter_mut().zip(row) {
            *sum += n;
        }
        line(&mut out, name, row);
    }
    line(&mut out, "**all**", total);

    out.push_str("\n## Not compared with silicon\n\n| encoding | why | guest program | KVM | by hand |\n|---|---|---|---|---|\n");
    let yes = |b: bool| if b { "yes" } else { "" };
    for (reason, codes) in &reasons {
        for (code, s) in codes {
            let hand = BY_HAND.iter().find(|(m, _)| *m == code.mnemonic()).map_or("", |(_, test)| test);
            let _ = writeln!(out, "| {code:?} | {reason} | {} | {} | {hand} |", yes(s.program), yes(s.kvm));
        }
    }
    let rest: Vec<_> =
        rows.values().flatten().filter(|(_, s)| s.nobody()).map(|(c, _)| format!("{c:?}")).collect();
    out.push_str("\n## Not exercised\n\n");
    if rest.is_empty() {
        out.push_str("None.\n");
    }
    for code in rest {
        let _ = writeln!(out, "- {code}");
    }
    out
}

fn line(out: &mut String, name: &str, row: [usize; 7]) {
    let cells: Vec<_> = row.iter().map(|n| if *n == 0 { String::new() } else { n.to_string() }).collect();
    let _ = writeln!(out, "| {name} | {} |", cells.join(" | "));
}

const INTRODUCTION: &str = "\
# Who has seen each instruction work

Made by `cargo xtask prove --coverage` from iced-x86's list of encodings; a test fails when it is out of date.

- **claimed**: encodings that the CPU model `max` has, by the CPUID feature that enumerates them.
- **translated**: those with a translation.
- **silicon**: those that `cargo xtask prove` runs on the host's processor and on the translator, comparing all they leave.
  What of them this host lacks is left out of a run, which says so.
- **KVM**, **guest program**: those that the bare-metal programs in `tests/bare` execute; the programs run under KVM, too, without
  the checks that KVM on a host that emulates instructions cannot pass.
- **by hand**: those with a test of their own that compares with what the manual says.
- **nobody**: the rest.

| feature | claimed | translated | silicon | KVM | guest program | by hand | nobody |
|---|---:|---:|---:|---:|---:|---:|---:|
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::Table;
    use crate::generate::Generator;

    #[test]
    fn the_file_is_current() {
        let there = std::fs::read_to_string(path()).unwrap_or_default();
        assert!(there == text(), "{FILE} is out of date: run `cargo xtask prove --coverage` and commit it");
    }

    #[test]
    fn what_is_claimed_is_translated() {
        let missing: Vec<_> = claimed(&model()).filter(|c| !is_translated(*c)).collect();
        assert!(missing.is_empty(), "claimed by `max`, but not translated: {missing:?}");
    }

    #[test]
    fn what_silicon_is_said_to_run_is_generated() {
        let mut generator = Generator::new(Table::new(&model(), None), 1, false);
        // Panics for instructions whose operands it cannot make.
        for n in 0..generator.table().entries.len() as u64 {
            let case = generator.case(n);
            let entry = generator.table().entries[n as usize];
            let codes = case.sequence.steps.iter().flat_map(|s| &s.insns);
            assert!(codes.into_iter().any(|i| i.code() == entry.code), "{:?}", entry.code);
        }
    }
}

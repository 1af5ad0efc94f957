//! What CPUID says, which features the CPU has, and so which instructions exist.
//!
//! Problem: guests choose code paths by CPUID, hang on small inconsistencies between its leaves, and must get #UD for
//! what their CPU model lacks. Strategy: one [`FeatureSet`] a CPU is the source of all of it. [`parse`] makes it from the
//! `-cpu` text and a table of [`models`], [`CpuidTable::query`] makes leaves from it, [`CpuidTable::allows`] answers
//! whether an instruction exists from a bit map that is computed once, and [`xstate`] lays out the XSAVE area.
//!
//! Invariants: a feature in a table is supported by whoever executes the guest (for the translator:
//! [`models::IMPLEMENTED`]) and has what it needs ([`FeatureSet::close`]).
//!
//! Source: SDM volume 2, CPUID; volume 1, chapter 13 (XSAVE); volume 4 (IA32_ARCH_CAPABILITIES); AMD64 manual volume 3,
//! appendix E.

mod codes;
pub mod features;
#[cfg(test)]
mod golden;
mod leaves;
pub mod models;
mod parse;
mod table;
pub mod xstate;

use std::fmt::Write;

pub use features::{Feature, FeatureSet, Word};
pub use leaves::Dynamic;
use models::{Chip, IMPLEMENTED, Vendor};
pub use parse::{CpuError, parse, parse_for};

/// What a CPU says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Identity {
    vendor: Vendor,
    /// Family, model and stepping, extensions included.
    signature: [u16; 3],
    level: u32,
    xlevel: u32,
    brand: [u8; 48],
    phys_bits: u8,
}

impl Identity {
    fn new(chip: &Chip, phys_bits: u8) -> Identity {
        let mut brand = [0; 48];
        brand[..chip.brand.len()].copy_from_slice(chip.brand.as_bytes());
        Identity {
            vendor: chip.vendor,
            signature: chip.signature,
            level: chip.level,
            xlevel: chip.xlevel,
            brand,
            phys_bits,
        }
    }

    /// CPUID.1:EAX: families beyond 15 and models beyond 15 in extension fields.
    fn signature(&self) -> u32 {
        let [family, model, stepping] = self.signature.map(u32::from);
        stepping & 0xf
            | (model & 0xf) << 4
            | family.min(15) << 8
            | (model >> 4 & 0xf) << 16
            | (family.saturating_sub(15) & 0xff) << 20
    }
}

/// CPUID leaves and the features they claim, of one CPU.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    features: FeatureSet,
    model: &'static str,
    identity: Identity,
    /// Which `iced_x86::Code`s exist, one bit each.
    codes: Box<[u64]>,
    /// This CPU's APIC ID, the number of CPUs, and leaf 15H.
    apic_id: u32,
    cpus: u32,
    tsc_hz: u64,
    crystal: [u32; 4],
    /// `kvm=on`: KVM's own leaves and its clock.
    kvm: bool,
}

impl Default for CpuidTable {
    fn default() -> Self {
        parse("max").unwrap_or_else(|e| unreachable!("the default model: {e}"))
    }
}

impl CpuidTable {
    fn new(model: &'static str, identity: Identity, features: FeatureSet) -> CpuidTable {
        CpuidTable {
            codes: codes::allowed(&features),
            features,
            model,
            identity,
            apic_id: 0,
            cpus: 1,
            tsc_hz: 0,
            crystal: [0; 4],
            kvm: true,
        }
    }

    /// Whether the CPU has `f`.
    #[inline]
    pub fn has(&self, f: Feature) -> bool {
        self.features.has(f)
    }

    /// All its features.
    pub fn features(&self) -> &FeatureSet {
        &self.features
    }

    /// Name of the model.
    pub fn model(&self) -> &'static str {
        self.model
    }

    /// MAXPHYADDR.
    #[inline]
    pub fn phys_bits(&self) -> u32 {
        self.identity.phys_bits as u32
    }

    /// Whether the CPU does as AMD's where vendors differ (SYSCALL outside 64-bit mode, SYSENTER in long mode …).
    #[inline]
    pub fn is_amd(&self) -> bool {
        self.identity.vendor.is_amd()
    }

    /// Whether the CPU has the instruction. One array access: meant for every instruction translated.
    ///
    /// Encodings that are defined to be no-operations without their feature (ENDBR, RDSSP, CLDEMOTE …) are allowed.
    /// LZCNT and TZCNT without their feature are BSR and BSF, and WBNOINVD is WBINVD: the front end decides that.
    #[inline]
    pub fn allows(&self, code: iced_x86::Code) -> bool {
        let n = code as usize;
        self.codes[n / 64] >> (n % 64) & 1 != 0
    }

    /// Sets this CPU's place among others: its APIC ID and how many CPUs there are.
    pub fn set_topology(&mut self, apic_id: u32, cpus: u32) {
        self.apic_id = apic_id;
        self.cpus = cpus.max(1);
        let many = self.cpus > 1;
        self.features.set(Feature::HT, many);
    }

    /// Tells the frequencies for leaves 15H and 16H: of the TSC and of the clock that the local APIC's timer counts,
    /// which guests take to be the same crystal. Without them the leaves are zero, and guests calibrate.
    pub fn set_frequencies(&mut self, tsc_hz: u64, apic_timer_hz: u64) {
        self.tsc_hz = tsc_hz;
        self.crystal = CpuidTable::crystal(tsc_hz, apic_timer_hz);
    }

    /// Whether the CPU says that it is a guest of KVM's kind, and has its clock.
    pub fn shows_kvm(&self) -> bool {
        self.kvm && self.has(Feature::HYPERVISOR)
    }

    /// The XCR0 bits that may be set.
    pub fn xcr0_mask(&self) -> u64 {
        xstate::supported(&self.features)
    }

    /// IA32_ARCH_CAPABILITIES.
    pub fn arch_capabilities(&self) -> u64 {
        (self.features.word(Word::ArchHigh) as u64) << 32 | self.features.word(Word::ArchLow) as u64
    }
}

/// The models and features, for `-cpu help`.
pub fn list() -> String {
    let mut out = String::from("CPU models:\n");
    for m in models::models() {
        let _ = writeln!(out, "  {:<28} {}", m.name, m.about);
        for (n, v) in m.versions.iter().enumerate() {
            let number = format!("{}-v{}", m.name, n + 2);
            let name = if v.alias.is_empty() { number } else { v.alias.to_string() };
            let about = v.brand.unwrap_or(m.about);
            let _ = writeln!(out, "  {name:<28} {about}");
        }
    }
    out.push_str("\nA model leaves out, with a warning, what is not implemented. `-v1`, `-v2` … name a model's versions.\n");
    out.push_str("\nCPU features, to be added as `+feature` or taken away as `-feature`:\n");
    names(&mut out, |f| IMPLEMENTED.has(f));
    out.push_str("\nKnown, but not implemented:\n");
    names(&mut out, |f| !IMPLEMENTED.has(f));
    out.push_str(
        "\nOther settings: vendor=, family=, model=, stepping=, level=, xlevel=, model-id=, phys-bits=,\n\
         check=on|off (warn of what is left out), enforce (refuse instead), kvm=on|off\n",
    );
    out
}

fn names(out: &mut String, which: impl Fn(Feature) -> bool) {
    let mut line = String::from(" ");
    for row in table::ROWS.iter().filter(|r| which(r.feature)) {
        if line.len() + row.name.len() > 98 {
            out.push_str(&line);
            out.push('\n');
            line = String::from(" ");
        }
        line.push(' ');
        line.push_str(row.name);
    }
    out.push_str(&line);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use iced_x86::Code;

    use super::*;

    #[test]
    fn capabilities_are_where_the_manual_has_them() {
        let t = parse("max").unwrap();
        let has = |bit: u32| t.arch_capabilities() >> bit & 1 != 0;
        assert!([0, 1, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62].into_iter().all(has));
        assert!(!has(7) && !has(2));
        assert_eq!(parse("max,-arch-capabilities").unwrap().arch_capabilities(), 0);
    }

    #[test]
    fn help_names_models_and_features() {
        let text = list();
        assert!(text.contains("x86-64-v2") && text.contains("Haswell-noTSX") && text.contains(" smap"));
        assert!(text.lines().all(|l| l.len() <= 110));
    }

    #[test]
    fn instructions_follow_features() {
        let t = parse("max").unwrap();
        for code in
            [Code::Add_rm32_r32, Code::Popcnt_r64_rm64, Code::Endbr64, Code::Xsavec_mem, Code::Syscall]
        {
            assert!(t.allows(code), "{code:?}");
        }
        for code in
            [Code::Vmcall, Code::Monitord, Code::EVEX_Vaddpd_zmm_k1z_zmm_zmmm512b64_er, Code::Xbegin_rel32]
        {
            assert!(!t.allows(code), "{code:?}");
        }
        let t = parse("max,-popcnt,-xsave").unwrap();
        assert!(!t.allows(Code::Popcnt_r64_rm64) && !t.allows(Code::Xgetbv));
        assert!(t.allows(Code::Fxsave_m512byte));
    }
}

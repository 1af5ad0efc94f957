//! What CPUID says, which features the CPU has, and so which instructions exist.
//!
//! Problem: guests choose code paths by CPUID, hang on small inconsistencies between its leaves, and must get #UD for
//! what their CPU model lacks. Strategy: one [`FeatureSet`] a CPU is the source of all of it. [`parse`] makes it from the
//! `-cpu` text, [`CpuidTable::query`] makes leaves from it, [`CpuidTable::allows`] answers whether an instruction exists
//! from a bit map that is computed once, and [`xstate`] lays out the XSAVE area.
//!
//! Invariants: a feature in a table is implemented ([`models::IMPLEMENTED`]) and has what it needs
//! ([`FeatureSet::close`]).
//!
//! Source: SDM volume 2, CPUID; volume 1, chapter 13 (XSAVE); volume 4 (IA32_ARCH_CAPABILITIES).

mod codes;
pub mod features;
mod leaves;
pub mod models;
pub mod xstate;

use std::fmt::Write;

pub use features::{Feature, FeatureSet, Word};
pub use leaves::Dynamic;
use models::{IMPLEMENTED, MODELS, Model};

/// What is wrong with a `-cpu` text; each message is one sentence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuError {
    /// No such model.
    #[error("unknown CPU model '{0}'; `-cpu help` lists the models")]
    Model(String),
    /// No such feature.
    #[error("unknown CPU feature '{0}'; `-cpu help` lists the features")]
    Feature(String),
    /// The model has features that do not work yet.
    #[error("CPU model '{model}' needs features that are not implemented: {features}; use `-cpu max`")]
    ModelNotImplemented {
        /// The model.
        model: String,
        /// Names of features.
        features: String,
    },
    /// The feature does not work yet.
    #[error("CPU feature '{0}' is not implemented; leave it out")]
    NotImplemented(String),
    /// A feature was asked for whose prerequisite is absent.
    #[error("CPU feature '{feature}' needs '{needs}'; add `+{needs}`")]
    Needs {
        /// The feature.
        feature: String,
        /// What it needs.
        needs: String,
    },
    /// Not `+feature`, `-feature` or `feature=on|off`.
    #[error("'{0}' is not a CPU feature setting; write `+feature`, `-feature` or `feature=on|off`")]
    Syntax(String),
}

/// CPUID leaves and the features they claim, of one CPU.
#[derive(Clone, Debug)]
pub struct CpuidTable {
    features: FeatureSet,
    model: &'static str,
    phys_bits: u8,
    /// Which `iced_x86::Code`s exist, one bit each.
    codes: Box<[u64]>,
    /// This CPU's APIC ID, the number of CPUs, and leaf 15H.
    apic_id: u32,
    cpus: u32,
    tsc_hz: u64,
    crystal: [u32; 4],
}

impl Default for CpuidTable {
    fn default() -> Self {
        CpuidTable::new(&MODELS[0], MODELS[0].set())
    }
}

impl CpuidTable {
    fn new(model: &Model, mut features: FeatureSet) -> CpuidTable {
        features.close();
        CpuidTable {
            codes: codes::allowed(&features),
            features,
            model: model.name,
            phys_bits: if features.has(Feature::PAE) { model.phys_bits } else { 32 },
            apic_id: 0,
            cpus: 1,
            tsc_hz: 0,
            crystal: [0; 4],
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
        self.phys_bits as u32
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

    /// The XCR0 bits that may be set.
    pub fn xcr0_mask(&self) -> u64 {
        xstate::supported(&self.features)
    }

    /// IA32_ARCH_CAPABILITIES.
    pub fn arch_capabilities(&self) -> u64 {
        (self.features.word(Word::ArchHigh) as u64) << 32 | self.features.word(Word::ArchLow) as u64
    }
}

fn implemented() -> FeatureSet {
    let all: Vec<Feature> = IMPLEMENTED.iter().flat_map(|g| g.iter().copied()).collect();
    FeatureSet::of(&all)
}

/// Makes a table of `-cpu`'s text: a model's name, then features to add or take away, separated by commas.
///
/// ```
/// use tessera_x86::cpuid::{self, Feature};
/// let cpu = cpuid::parse("max,-smap,pcid=off").unwrap();
/// assert!(!cpu.has(Feature::SMAP) && cpu.has(Feature::SMEP));
/// assert!(cpuid::parse("80986").is_err());
/// ```
pub fn parse(text: &str) -> Result<CpuidTable, CpuError> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    let name = if name == "base" { "x86-64-v1" } else { name };
    let model = MODELS.iter().find(|m| m.name == name).ok_or_else(|| CpuError::Model(name.to_string()))?;
    let implemented = implemented();
    let mut features = model.set();
    let mut wanted = Vec::new();
    for part in parts {
        let (name, on) = if let Some(name) = part.strip_prefix('+') {
            (name, true)
        } else if let Some(name) = part.strip_prefix('-') {
            (name, false)
        } else {
            match part.split_once('=') {
                Some((name, "on" | "true" | "yes")) => (name, true),
                Some((name, "off" | "false" | "no")) => (name, false),
                None if !part.is_empty() => (part, true),
                _ => return Err(CpuError::Syntax(part.to_string())),
            }
        };
        let feature = Feature::by_name(name).ok_or_else(|| CpuError::Feature(name.to_string()))?;
        if on && !implemented.has(feature) {
            return Err(CpuError::NotImplemented(name.to_string()));
        }
        features.set(feature, on);
        wanted.retain(|&f| f != feature);
        if on {
            wanted.push(feature);
        }
    }
    let missing: Vec<&str> = features.missing_in(&implemented).map(Feature::name).collect();
    if !missing.is_empty() {
        return Err(CpuError::ModelNotImplemented { model: name.to_string(), features: missing.join(", ") });
    }
    let before = features;
    features.close();
    if let Some(&f) = wanted.iter().find(|&&f| !features.has(f)) {
        let row = features::ROWS.iter().find(|r| r.feature == f);
        let needs = row.and_then(|r| r.needs.iter().find(|&&n| !features.has(n)));
        return Err(CpuError::Needs {
            feature: f.name().to_string(),
            needs: needs.map_or("?", |n| n.name()).to_string(),
        });
    }
    debug_assert!(features.missing_in(&before).next().is_none());
    Ok(CpuidTable::new(model, features))
}

/// The models and features, for `-cpu help`.
pub fn list() -> String {
    let implemented = implemented();
    let mut out = String::from("CPU models:\n");
    for m in MODELS {
        let missing = m.set().missing_in(&implemented).next().is_some();
        let note = if missing { " (not complete yet, cannot be used)" } else { "" };
        let _ = writeln!(out, "  {:<12} {}{note}", m.name, m.about);
    }
    out.push_str("\nCPU features, to be added as `+feature` or taken away as `-feature`:\n");
    let mut line = String::from(" ");
    for row in features::ROWS.iter().filter(|r| implemented.has(r.feature)) {
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
    out
}

#[cfg(test)]
mod tests {
    use iced_x86::Code;

    use super::*;

    #[test]
    fn models_are_implemented_or_say_what_they_lack() {
        for m in MODELS {
            match parse(m.name) {
                Ok(t) => {
                    let mut closed = m.set();
                    closed.close();
                    assert_eq!(closed, m.set(), "{} claims what it lacks the base for", m.name);
                    assert_eq!(t.model(), m.name);
                }
                Err(CpuError::ModelNotImplemented { features, .. }) => assert!(!features.is_empty()),
                Err(e) => panic!("{}: {e}", m.name),
            }
        }
    }

    #[test]
    fn text_is_parsed_or_refused() {
        let t = parse("max,-sse4.2,+la57,rdrand=off").unwrap();
        assert!(t.has(Feature::SSE41) && !t.has(Feature::SSE42));
        assert!(t.has(Feature::LA57) && !t.has(Feature::RDRAND));
        assert_eq!(parse("z80").unwrap_err(), CpuError::Model("z80".into()));
        assert_eq!(parse("max,+frob").unwrap_err(), CpuError::Feature("frob".into()));
        assert_eq!(parse("max,smap=maybe").unwrap_err(), CpuError::Syntax("smap=maybe".into()));
        assert_eq!(
            parse("max,-sse2,+sse4.2").unwrap_err(),
            CpuError::Needs { feature: "sse4.2".into(), needs: "sse4.1".into() }
        );
        assert!(matches!(parse("max,"), Err(CpuError::Syntax(_))));
    }

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
        assert!(text.contains("x86-64-v2") && text.contains(" smap"));
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

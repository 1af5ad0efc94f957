//! CPUID for a KVM vCPU: what a model says of itself, as far as the host's KVM supports it, or what the host says.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry,
};
use kvm_ioctls::Kvm;
use tessera_x86::cpuid::xstate::{self, component};
use tessera_x86::cpuid::{self, CpuidTable, Dynamic, Feature, FeatureSet, Word};
use tessera_x86::system::kvm_clock;

use super::state::XsaveLayout;

/// CPUID.1:ECX of the x2APIC and of its timer's deadline mode.
pub const APIC_FEATURES: u32 = 1 << 21 | 1 << 24;
/// IA32_ARCH_CAPABILITIES.
const ARCH_CAPABILITIES: u32 = 0x10a;
/// First leaf of the hypervisor.
const HYPERVISOR: u32 = 0x4000_0000;

/// Where each word of a [`FeatureSet`] is in CPUID: leaf, sub-leaf, register (EAX to EDX). `None` for words that are MSRs.
fn place(word: Word) -> Option<(u32, u32, usize)> {
    Some(match word {
        Word::L1Edx => (1, 0, 3),
        Word::L1Ecx => (1, 0, 2),
        Word::L6Eax => (6, 0, 0),
        Word::L7Ebx => (7, 0, 1),
        Word::L7Ecx => (7, 0, 2),
        Word::L7Edx => (7, 0, 3),
        Word::L7Sub1Eax => (7, 1, 0),
        Word::L7Sub1Edx => (7, 1, 3),
        Word::L7Sub2Edx => (7, 2, 3),
        Word::XsaveEax => (0xd, 1, 0),
        Word::Ext1Edx => (0x8000_0001, 0, 3),
        Word::Ext1Ecx => (0x8000_0001, 0, 2),
        Word::Ext7Edx => (0x8000_0007, 0, 3),
        Word::Ext8Ebx => (0x8000_0008, 0, 1),
        Word::ExtAEdx => (0x8000_000a, 0, 3),
        Word::Ext21Eax => (0x8000_0021, 0, 0),
        Word::ArchLow | Word::ArchHigh | Word::CoreLow => return None,
    })
}

/// All words of a [`FeatureSet`].
const WORDS: &[Word] = &[
    Word::L1Edx,
    Word::L1Ecx,
    Word::L6Eax,
    Word::L7Ebx,
    Word::L7Ecx,
    Word::L7Edx,
    Word::L7Sub1Eax,
    Word::L7Sub1Edx,
    Word::L7Sub2Edx,
    Word::XsaveEax,
    Word::Ext1Edx,
    Word::Ext1Ecx,
    Word::Ext7Edx,
    Word::Ext8Ebx,
    Word::ExtAEdx,
    Word::Ext21Eax,
    Word::ArchLow,
    Word::ArchHigh,
    Word::CoreLow,
];

/// What the host's KVM supports.
pub struct Supported {
    entries: Vec<kvm_cpuid_entry2>,
    /// IA32_ARCH_CAPABILITIES.
    capabilities: u64,
}

fn registers(entry: &kvm_cpuid_entry2) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

impl Supported {
    /// Asks KVM.
    pub fn of(kvm: &Kvm) -> Result<Supported, String> {
        let list = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| format!("does not tell which CPUID it supports ({error})"))?;
        let entry = kvm_msr_entry { index: ARCH_CAPABILITIES, ..Default::default() };
        let capabilities = Msrs::from_entries(&[entry]).ok().and_then(|mut list| {
            let got = kvm.get_msrs(&mut list).ok()?;
            (got == 1).then(|| list.as_slice()[0].data)
        });
        Ok(Supported { entries: list.as_slice().to_vec(), capabilities: capabilities.unwrap_or(0) })
    }

    fn leaf(&self, leaf: u32, sub: u32) -> [u32; 4] {
        let entry = self.entries.iter().find(|e| {
            e.function == leaf && (e.index == sub || e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0)
        });
        entry.map_or([0; 4], registers)
    }

    /// The features that a guest can have.
    pub fn features(&self) -> FeatureSet {
        let mut set = FeatureSet::default();
        for &word in WORDS {
            let value = match (place(word), word) {
                (Some((leaf, sub, register)), _) => self.leaf(leaf, sub)[register],
                (None, Word::ArchHigh) => (self.capabilities >> 32) as u32,
                (None, Word::ArchLow) => self.capabilities as u32,
                // KVM has no IA32_CORE_CAPABILITIES.
                (None, _) => 0,
            };
            set.set_word(word, value);
        }
        // Whether a guest sees that it is one, and its share of threads, is for the model to say.
        set.set(Feature::HYPERVISOR, true);
        set.set(Feature::HT, true);
        // These are the interrupt controller's, whose it may be: KVM does not speak for the board's.
        set.set(Feature::X2APIC, true);
        set.set(Feature::TSC_DEADLINE, true);
        set
    }

    /// The XSAVE area as the host lays it out.
    pub fn xsave_layout(&self) -> XsaveLayout {
        let [low, _, _, high] = self.leaf(0xd, 0);
        let mut components = u64::from(high) << 32 | u64::from(low);
        let pkru = self.leaf(0xd, component::PKRU)[1] as usize;
        if pkru == 0 {
            components &= !(1 << component::PKRU);
        }
        // x87 and SSE state is always there, whether or not a guest may use XSAVE.
        XsaveLayout { components: components | 3, pkru }
    }
}

/// What a vCPU is made with.
pub struct Model {
    /// For the guest.
    pub entries: CpuId,
    /// The same as far as [`CpuidTable`] can say it.
    pub table: CpuidTable,
    /// IA32_ARCH_CAPABILITIES.
    pub capabilities: u64,
    /// What EDX has after a reset.
    pub signature: u32,
    /// What to tell the user, a sentence each.
    pub warnings: Vec<String>,
}

/// The processor that `-cpu`'s text asks for. `prepare` sets the table's topology and frequencies. An error is a sentence
/// without its beginning.
pub fn model(
    text: &str,
    supported: &Supported,
    prepare: impl Fn(&mut CpuidTable),
) -> Result<Model, cpuid::CpuError> {
    let features = supported.features();
    let (name, settings) = text.split_once(',').unwrap_or((text, ""));
    let host = name == "host";
    // Of `host`, the settings are those that `max` would take.
    let text = if host { format!("max,{settings}") } else { text.to_owned() };
    let (mut table, mut warnings) = cpuid::parse_for(text.trim_end_matches(','), &features)?;
    if host || name == "max" {
        // These mean what there is.
        warnings.clear();
    }
    prepare(&mut table);
    let mut entries = if host { host_entries(supported, &table)? } else { model_entries(supported, &table) };
    hypervisor(&mut entries, supported, table.shows_kvm());
    let signature = entries.iter().find(|e| e.function == 1).map_or(0, |e| e.eax);
    let capabilities = if host { supported.capabilities } else { table.arch_capabilities() };
    let entries = CpuId::from_entries(&entries)
        .map_err(|_| cpuid::CpuError::Model(format!("{name} (with {} leaves)", entries.len())))?;
    Ok(Model { entries, table, capabilities, signature, warnings })
}

fn entry(function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = if index.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
    kvm_cpuid_entry2 { function, index: index.unwrap_or(0), flags, eax, ebx, ecx, edx, ..Default::default() }
}

/// The state in which CPUID is asked: KVM takes away itself what the guest has not switched on.
const NOW: Dynamic = Dynamic { osxsave: false, ospke: false, apic: true, code64: true, xcr0: 1 };

/// How many sub-leaves a leaf has at most.
fn sub_leaves(leaf: u32) -> Option<u32> {
    match leaf {
        4 | 0x8000_001d => Some(8),
        7 => Some(3),
        0xb => Some(3),
        0xd => Some(64),
        _ => None,
    }
}

fn model_entries(supported: &Supported, table: &CpuidTable) -> Vec<kvm_cpuid_entry2> {
    let mut list = Vec::new();
    let ranges = [0u32, 0x8000_0000].map(|first| first..=table.query(first, 0, &NOW)[0].min(first + 0xff));
    for leaf in ranges.into_iter().flatten() {
        match sub_leaves(leaf) {
            Some(count) => list.extend((0..count).map(|sub| {
                let mut values = table.query(leaf, sub, &NOW);
                if leaf == 0xd {
                    host_layout(supported, table, sub, &mut values);
                }
                entry(leaf, Some(sub), values)
            })),
            None => list.push(entry(leaf, None, table.query(leaf, 0, &NOW))),
        }
    }
    // All zero is what a guest reads where there is no entry, too.
    list.retain(|e| e.index == 0 || registers(e) != [0; 4]);
    list
}

/// The guest executes XSAVE on the host's processor: sizes and offsets are that one's.
fn host_layout(supported: &Supported, table: &CpuidTable, sub: u32, values: &mut [u32; 4]) {
    let mask = table.xcr0_mask();
    let host = |component: u32| supported.leaf(0xd, component);
    match sub {
        0 if mask != 0 => {
            let end = xstate::enabled(mask).map(|c| host(c.index)[0] + host(c.index)[1]).max();
            // KVM keeps what depends on XCR0, EBX, itself.
            values[2] = end.unwrap_or(xstate::EXTENDED).max(xstate::EXTENDED);
        }
        2..64 if mask >> sub & 1 != 0 => *values = host(sub),
        _ => {}
    }
}

/// The host's leaves with what the settings take away, and with this machine's topology.
fn host_entries(supported: &Supported, table: &CpuidTable) -> Result<Vec<kvm_cpuid_entry2>, cpuid::CpuError> {
    let (all, _) = cpuid::parse_for("max", &supported.features())?;
    let mut list = supported.entries.clone();
    for e in &mut list {
        let mut values = registers(e);
        for &word in WORDS {
            if let Some((leaf, sub, register)) = place(word)
                && e.function == leaf
                && (e.index == sub || e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0)
            {
                let has = |set: &FeatureSet| set.word(word);
                values[register] &= !(has(all.features()) & !has(table.features()));
                values[register] |= has(table.features()) & !has(all.features());
            }
        }
        match e.function {
            // Logical processors and APIC ID, and what the interrupt controller has; caches; topology.
            1 => {
                let own = table.query(1, 0, &NOW);
                values[1] = values[1] & 0xffff | own[1] & 0xffff_0000;
                values[2] |= own[2] & APIC_FEATURES;
            }
            4 => values[0] = values[0] & 0x3fff | table.query(4, e.index, &NOW)[0] & 0xffff_c000,
            0xb | 0x1f => values = table.query(0xb, e.index, &NOW),
            // KVM has no crystal to tell of, but the clock is known.
            0x15 | 0x16 => values = table.query(e.function, 0, &NOW),
            _ => {}
        }
        [e.eax, e.ebx, e.ecx, e.edx] = values;
    }
    if table.has(Feature::HYPERVISOR)
        && let Some(e) = list.iter_mut().find(|e| e.function == 1)
    {
        e.ecx |= 1 << 31;
    }
    list.retain(|e| !(HYPERVISOR..HYPERVISOR + 0x100).contains(&e.function));
    Ok(list)
}

/// KVM's own leaves, or none. Of what it offers a guest is told of the clock, as under the translator; the rest is for
/// guests that share a host's processors.
fn hypervisor(list: &mut Vec<kvm_cpuid_entry2>, supported: &Supported, shown: bool) {
    if shown {
        let [_, b, c, d] = supported.leaf(HYPERVISOR, 0);
        let features = supported.leaf(HYPERVISOR + 1, 0)[0] & kvm_clock::FEATURES;
        list.push(entry(HYPERVISOR, None, [HYPERVISOR + 1, b, c, d]));
        list.push(entry(HYPERVISOR + 1, None, [features, 0, 0, 0]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What KVM says on a host with AVX, PKU and a layout of the XSAVE area of its own.
    fn supported() -> Supported {
        let entries = vec![
            entry(0, None, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            entry(1, None, [0x0009_06ea, 0x0310_0800, 0x7ed8_2203, 0x0f8b_fbff]),
            entry(4, Some(0), [0x1c00_4121, 0x01c0_003f, 0x3f, 0]),
            entry(6, None, [4, 0, 0, 0]),
            entry(7, Some(0), [0, 0x0000_0128, 0x8, 0]),
            entry(0xd, Some(0), [0x207, 0x240, 0xa88, 0]),
            entry(0xd, Some(1), [1, 0, 0, 0]),
            entry(0xd, Some(2), [0x100, 0x240, 0, 0]),
            entry(0xd, Some(9), [8, 0xa80, 0, 0]),
            entry(HYPERVISOR, None, [HYPERVISOR + 1, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            entry(HYPERVISOR + 1, None, [0x0100_7efb, 0, 0, 0]),
            entry(0x8000_0000, None, [0x8000_0008, 0, 0, 0]),
            entry(0x8000_0001, None, [0, 0, 0x21, 0x2810_0800]),
            entry(0x8000_0008, None, [0x3027, 0, 0, 0]),
        ];
        Supported { entries, capabilities: 0x2b }
    }

    fn get(model: &Model, leaf: u32, sub: u32) -> [u32; 4] {
        let found = model.entries.as_slice().iter().find(|e| e.function == leaf && e.index == sub);
        found.map_or([0; 4], registers)
    }

    fn of(text: &str) -> Model {
        model(text, &supported(), |_| ()).unwrap()
    }

    #[test]
    fn a_model_is_filtered_and_says_so() {
        let model = of("Haswell");
        assert_eq!(model.warnings.len(), 1, "{:?}", model.warnings);
        assert!(model.warnings[0].contains("invpcid"), "{:?}", model.warnings);
        assert!(model.table.has(Feature::AVX) && !model.table.has(Feature::INVPCID));
        assert_eq!(get(&model, 7, 0)[1] & !0x128, 0, "no more than the host has");
        assert_eq!(model.signature, get(&model, 1, 0)[0]);
    }

    #[test]
    fn max_is_what_there_is() {
        let model = of("max");
        assert_eq!(model.warnings, [""; 0]);
        assert!(model.table.has(Feature::AVX2) && !model.table.has(Feature::SMAP));
        assert!(of("max,-avx2").warnings.is_empty());
        assert!(super::model("max,+smap", &supported(), |_| ()).is_err());
        assert!(super::model("z80", &supported(), |_| ()).is_err());
    }

    #[test]
    fn the_xsave_area_is_the_hosts() {
        let model = of("max");
        assert_eq!(get(&model, 0xd, 0)[2], 0xa88);
        assert_eq!(get(&model, 0xd, 9), [8, 0xa80, 0, 0]);
        assert_eq!(supported().xsave_layout(), XsaveLayout { components: 0x207, pkru: 0xa80 });
        assert_eq!(get(&of("max,-pku"), 0xd, 0)[2], 0x340, "what ends with AVX");
    }

    #[test]
    fn host_is_the_hosts_less_what_is_taken_away() {
        let model = of("host");
        assert_eq!((model.signature, model.capabilities), (0x0009_06ea, 0x2b));
        assert_eq!(get(&model, 1, 0)[2] & APIC_FEATURES, APIC_FEATURES, "the board has these");
        assert_eq!(get(&model, 1, 0)[1] >> 16, 1, "one processor, number 0");
        assert_eq!(get(&model, 7, 0)[1], 0x128);
        assert_eq!(get(&of("host,-avx2"), 7, 0)[1], 0x108);
    }

    #[test]
    fn kvms_leaves_tell_of_the_clock_only() {
        let model = of("max");
        assert_eq!(get(&model, HYPERVISOR, 0)[..2], [HYPERVISOR + 1, 0x4b4d_564b]);
        assert_eq!(get(&model, HYPERVISOR + 1, 0)[0], 1 << 24 | 0xb);
        for hidden in ["max,kvm=off", "host,kvm=off", "max,-hypervisor"] {
            assert_eq!(get(&of(hidden), HYPERVISOR, 0), [0; 4], "{hidden}");
        }
    }
}

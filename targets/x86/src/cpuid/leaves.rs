//! The leaves (SDM volume 2, CPUID, tables 3-8 and following; AMD64 manual volume 3, appendix E).

use super::{CpuidTable, Feature, Word, xstate};
use crate::system::kvm_clock;

/// What of CPUID depends on the CPU's state at the moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// CR4.PKE.
    pub ospke: bool,
    /// The local APIC is enabled in IA32_APIC_BASE.
    pub apic: bool,
    /// The CPU executes 64-bit code: Intel reports SYSCALL only there.
    pub code64: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// First extended leaf.
const EXTENDED: u32 = 0x8000_0000;
/// Leaves of a hypervisor.
const HYPERVISOR: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;
/// Bits of leaf 1's EDX that AMD repeats in leaf 80000001H: all but SEP, the serial number, CLFLUSH, SSE and what only
/// Intel has.
const REPEATED: u32 = 0x0183_f3ff;

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl CpuidTable {
    /// EAX, EBX, ECX and EDX of a leaf. Beyond the last leaf, Intel's chips give the highest basic one, AMD's zero.
    pub fn query(&self, leaf: u32, sub: u32, now: &Dynamic) -> [u32; 4] {
        let amd = self.identity.vendor.is_amd();
        match leaf {
            _ if leaf <= self.identity.level => self.basic(leaf, sub, now),
            EXTENDED.. if leaf <= self.identity.xlevel => self.extended(leaf, now),
            _ if HYPERVISOR.contains(&leaf) && self.has(Feature::HYPERVISOR) => self.hypervisor(leaf),
            _ if amd => [0; 4],
            _ => self.basic(self.identity.level, sub, now),
        }
    }

    /// KVM's leaves, see [`kvm_clock`].
    fn hypervisor(&self, leaf: u32) -> [u32; 4] {
        let name = kvm_clock::SIGNATURE;
        match leaf {
            _ if !self.shows_kvm() => [0; 4],
            0x4000_0000 => [0x4000_0001, word(name), word(&name[4..]), word(&name[8..])],
            0x4000_0001 => [kvm_clock::FEATURES, 0, 0, 0],
            _ => [0; 4],
        }
    }

    fn vendor(&self, highest: u32) -> [u32; 4] {
        let name = &self.identity.vendor.0;
        [highest, word(name), word(&name[8..]), word(&name[4..])]
    }

    fn basic(&self, leaf: u32, sub: u32, now: &Dynamic) -> [u32; 4] {
        let w = |w| self.features.word(w);
        let amd = self.identity.vendor.is_amd();
        match leaf {
            0x0 => self.vendor(self.identity.level),
            0x1 => {
                let mut ecx = w(Word::L1Ecx);
                if now.osxsave {
                    ecx |= 1 << 27;
                }
                // CLFLUSH line of 8 quadwords; logical processors; initial APIC ID.
                let mut ebx = self.apic_id << 24;
                if self.has(Feature::CLFLUSH) {
                    ebx |= 8 << 8;
                }
                if self.has(Feature::CLFLUSH) || self.cpus > 1 {
                    ebx |= self.cpus.min(255) << 16;
                }
                [self.identity.signature(), ebx, ecx, self.leaf1_edx(now)]
            }
            // "No descriptors for caches: see leaf 4"; 64-byte prefetching.
            0x2 if self.identity.level >= 4 && !amd => [0x00ff_ff01, 0x0000_00f0, 0, 0],
            // TLBs for 4 KiB and 4 MiB pages; 16 KiB of L1 each for instructions and data, 512 KiB of L2.
            0x2 if !amd => [0x0302_0101, 0, 0, 0x0c04_0843],
            0x4 if !amd => self.cache(sub),
            0x6 => [w(Word::L6Eax), 0, 0, 0],
            0x7 => self.leaf7(sub, now),
            0xb => {
                let shift = 32 - (self.cpus - 1).leading_zeros();
                match sub {
                    0 => [0, 1, 0x100, self.apic_id],
                    1 => [shift, self.cpus, 0x201, self.apic_id],
                    _ => [0, 0, sub & 0xff, self.apic_id],
                }
            }
            0xd => self.xsave(sub, now),
            0x15 => self.crystal,
            0x16 if self.tsc_hz != 0 => {
                let mhz = (self.tsc_hz / 1_000_000).min(0xffff) as u32;
                [mhz, mhz, 100, 0]
            }
            _ => [0; 4],
        }
    }

    fn leaf1_edx(&self, now: &Dynamic) -> u32 {
        let edx = self.features.word(Word::L1Edx);
        if now.apic { edx } else { edx & !(1 << 9) }
    }

    fn leaf7(&self, sub: u32, now: &Dynamic) -> [u32; 4] {
        let w = |w| self.features.word(w);
        match sub {
            0 => {
                let ospke = if now.ospke { 1 << 4 } else { 0 };
                let last = match (w(Word::L7Sub2Edx), w(Word::L7Sub1Eax) | w(Word::L7Sub1Edx)) {
                    (0, 0) => 0,
                    (0, _) => 1,
                    _ => 2,
                };
                [last, w(Word::L7Ebx), w(Word::L7Ecx) | ospke, w(Word::L7Edx)]
            }
            1 => [w(Word::L7Sub1Eax), 0, 0, w(Word::L7Sub1Edx)],
            2 => [0, 0, 0, w(Word::L7Sub2Edx)],
            _ => [0; 4],
        }
    }

    /// Leaf 4: 32 KiB of L1 each for data and instructions, 2 MiB of L2, 16 MiB of L3.
    fn cache(&self, sub: u32) -> [u32; 4] {
        let (kind, level, ways, sets, shared) = match sub {
            0 => (1, 1, 8, 64, 1),
            1 => (2, 1, 8, 64, 1),
            2 => (3, 2, 16, 2048, 1),
            3 => (3, 3, 16, 16384, self.cpus),
            _ => return [0; 4],
        };
        let threads = shared.next_power_of_two() - 1;
        let cores = (self.cpus.next_power_of_two() - 1).min(63);
        // Type, level, self-initialising; fully inclusive for the last level.
        let eax = kind | level << 5 | 1 << 8 | threads << 14 | cores << 26;
        let edx = if sub == 3 { 2 } else { 0 };
        [eax, (ways - 1) << 22 | 63, sets - 1, edx]
    }

    fn xsave(&self, sub: u32, now: &Dynamic) -> [u32; 4] {
        let mask = self.xcr0_mask();
        if mask == 0 {
            return [0; 4];
        }
        match sub {
            0 => {
                let size = xstate::standard_size;
                [mask as u32, size(now.xcr0 & mask), size(mask), (mask >> 32) as u32]
            }
            1 => {
                let compact =
                    if self.has(Feature::XSAVEC) { xstate::compact_size(now.xcr0 & mask) } else { 0 };
                [self.features.word(Word::XsaveEax), compact, 0, 0]
            }
            2..64 => {
                xstate::enabled(mask).find(|c| c.index == sub).map_or([0; 4], |c| [c.size, c.offset, 0, 0])
            }
            _ => [0; 4],
        }
    }

    /// Leaf 15H: TSC = crystal * EBX / EAX. Guests multiply the crystal's kHz by EBX in 32 bits, which leaves small numbers
    /// only. So the crystal (the clock of the local APIC's timer) is told with an error of up to 20 parts in a million, as
    /// real ones have, chosen such that the TSC, which is what guests keep time by, is right to one; or nothing is told.
    pub(super) fn crystal(tsc_hz: u64, crystal_hz: u64) -> [u32; 4] {
        let (tsc, khz) = (tsc_hz as u128, crystal_hz as u128 / 1000);
        if tsc == 0 || khz == 0 || crystal_hz > u32::MAX as u64 {
            return [0; 4];
        }
        let mut best: Option<(u128, u128, u128, u128)> = None;
        for denominator in 1.. {
            let numerator = (tsc * denominator).div_ceil(khz * 1000);
            // Room for the tolerance, too.
            if numerator * (khz + khz / 50_000) > u32::MAX as u128 || denominator > u32::MAX as u128 / khz {
                break;
            }
            for numerator in [numerator - 1, numerator] {
                if numerator == 0 {
                    continue;
                }
                let product = tsc * denominator;
                let told = (product + numerator * 500) / (numerator * 1000);
                if told.abs_diff(khz) > khz / 50_000 {
                    continue;
                }
                // In parts per 10^12.
                let error = (told * 1000 * numerator).abs_diff(product) * 1_000_000_000_000 / product;
                if error <= 1_000_000 && best.is_none_or(|(e, ..)| error < e) {
                    best = Some((error, denominator, numerator, told));
                }
            }
        }
        best.map_or([0; 4], |(_, denominator, numerator, told)| {
            [denominator as u32, numerator as u32, (told * 1000) as u32, 0]
        })
    }

    fn extended(&self, leaf: u32, now: &Dynamic) -> [u32; 4] {
        let amd = self.identity.vendor.is_amd();
        match leaf {
            EXTENDED if amd => self.vendor(self.identity.xlevel),
            EXTENDED => [self.identity.xlevel, 0, 0, 0],
            0x8000_0001 => {
                let mut ecx = self.features.word(Word::Ext1Ecx);
                let mut edx = self.features.word(Word::Ext1Edx);
                if amd {
                    edx |= self.leaf1_edx(now) & REPEATED;
                    if self.cpus > 1 {
                        // The logical processors of leaf 1 are cores.
                        ecx |= 1 << 1;
                    }
                } else if !now.code64 {
                    edx &= !(1 << 11);
                }
                [if amd { self.identity.signature() } else { 0 }, 0, ecx, edx]
            }
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf - 0x8000_0002) as usize * 16;
                std::array::from_fn(|i| word(&self.identity.brand[at + 4 * i..]))
            }
            // TLBs of 32 entries, fully associative; 32 KiB of L1, 8 ways, 64-byte lines, each for data and instructions.
            0x8000_0005 if amd => {
                [0xff20_ff20, 0xff20_ff20, 32 << 24 | 8 << 16 | 1 << 8 | 64, 32 << 24 | 8 << 16 | 1 << 8 | 64]
            }
            // TLBs of 512 entries, 4 ways; 2 MiB of L2 and 16 MiB of L3, 16 ways.
            0x8000_0006 if amd => {
                [0, 0x4200_4200, 2048 << 16 | 8 << 12 | 1 << 8 | 64, 32 << 18 | 8 << 12 | 1 << 8 | 64]
            }
            // L2: 2 MiB, 16 ways, 64-byte lines.
            0x8000_0006 => [0, 0, 2048 << 16 | 8 << 12 | 64, 0],
            0x8000_0007 => [0, 0, 0, self.features.word(Word::Ext7Edx)],
            0x8000_0008 => {
                let linear = if self.has(Feature::LA57) {
                    57
                } else if self.has(Feature::LM) {
                    48
                } else {
                    32
                };
                let cores = if amd { self.cpus.min(256) - 1 } else { 0 };
                [self.phys_bits() | linear << 8, self.features.word(Word::Ext8Ebx), cores, 0]
            }
            0x8000_000a if self.has(Feature::SVM) => [1, 16, 0, self.features.word(Word::ExtAEdx)],
            0x8000_0021 => [self.features.word(Word::Ext21Eax), 0, 0, 0],
            _ => [0; 4],
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::cpuid::{Dynamic, parse};

    #[test]
    fn vendor_and_brand_spell_out() {
        let t = parse("max").unwrap();
        let v = t.query(0, 0, &Dynamic::default());
        let text: Vec<u8> = [v[1], v[3], v[2]].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(text, b"GenuineIntel");
        let b = t.query(0x8000_0002, 0, &Dynamic::default());
        assert_eq!(b[0].to_le_bytes(), *b"Tess");
    }

    #[test]
    fn dynamic_bits_follow_state() {
        let t = parse("max").unwrap();
        let off = Dynamic::default();
        let on = Dynamic { osxsave: true, ospke: true, apic: true, code64: true, xcr0: 0x203 };
        assert_eq!(t.query(1, 0, &off)[2] ^ t.query(1, 0, &on)[2], 1 << 27);
        assert_eq!(t.query(1, 0, &off)[3] ^ t.query(1, 0, &on)[3], 1 << 9);
        assert_eq!(t.query(7, 0, &off)[2] ^ t.query(7, 0, &on)[2], 1 << 4);
        assert_eq!(t.query(0xd, 0, &on)[1], 840);
        assert_eq!(t.query(0xd, 1, &on)[1], 584);
        assert_eq!(t.query(0xd, 0, &off)[1], 576);
    }

    #[test]
    fn crystal_is_close_or_silent() {
        let mut t = parse("max").unwrap();
        assert_eq!(t.query(0x15, 0, &Dynamic::default()), [0; 4]);
        t.set_frequencies(2_000_000_000, 1_000_000_000);
        assert_eq!(t.query(0x15, 0, &Dynamic::default()), [1, 2, 1_000_000_000, 0]);
        for tsc in [2_100_000_001u64, 2_599_985_123, 3_712_345_678, 999_999_937, 5_300_000_017] {
            t.set_frequencies(tsc, 1_000_000_000);
            let [den, num, crystal, _] = t.query(0x15, 0, &Dynamic::default()).map(u64::from);
            assert_ne!(den, 0, "{tsc} cannot be said");
            assert!((crystal / 1000) * num <= u32::MAX as u64);
            assert!((crystal * num / den).abs_diff(tsc) <= tsc / 1_000_000, "{tsc}: {num}/{den}");
            assert!(crystal.abs_diff(1_000_000_000) <= 20_000);
        }
        // The ratio 1 to 100001 cannot be said in numbers that small.
        t.set_frequencies(10_000, 1_000_010_000);
        assert_eq!(t.query(0x15, 0, &Dynamic::default()), [0; 4]);
    }

    #[test]
    fn topology_is_consistent() {
        let mut t = parse("max").unwrap();
        assert_eq!(t.query(0xb, 1, &Dynamic::default())[..2], [0, 1]);
        t.set_topology(2, 3);
        let core = t.query(0xb, 1, &Dynamic::default());
        assert_eq!(core, [2, 3, 0x201, 2]);
        assert_eq!(t.query(1, 0, &Dynamic::default())[1] >> 24, 2);
    }

    #[test]
    fn beyond_the_last_leaf_comes_the_last() {
        let t = parse("max").unwrap();
        let now = Dynamic::default();
        assert_eq!(t.query(0x77, 0, &now), t.query(0x16, 0, &now));
        assert_eq!(t.query(0x4000_0002, 0, &now), [0; 4]);
    }
}

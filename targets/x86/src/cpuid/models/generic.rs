//! Models that are no chip: baselines that guests may rely on wherever they run.
//!
//! `max` and the levels of the x86-64 psABI are this project's own; the others are known from QEMU and KVM.

use super::super::features::FeatureSet;
use super::{BASE, Chip, MAX, Model, NO_FLAWS, OWN_SIGNATURE, SYSTEM, V2, V3, Vendor, chip, set};

/// What this project's own models say of themselves.
const OWN: Chip = chip(Vendor::INTEL, OWN_SIGNATURE, 0x16, 0x8000_0008, "Tessera Virtual CPU");

const LEVEL1: FeatureSet = BASE.union(SYSTEM).union(NO_FLAWS);
const LEVEL2: FeatureSet = LEVEL1.union(V2);
const LEVEL3: FeatureSet = LEVEL2.union(V3).with(set![XSAVEOPT XSAVEC XGETBV1 SMEP SMAP]);

const QEMU32: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP PGE CMOV PAT MMX FXSR SSE SSE2 SSE3
]);

const KVM32: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2 SSE3
]);

const QEMU64: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2 SSE3
    CX16 SYSCALL NX LM LAHF_LM
]);

const KVM64: FeatureSet = FeatureSet::of(set![
    FPU VME DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFLUSH MMX FXSR SSE SSE2 SSE3
    CX16 SYSCALL NX LM
]);

/// Models that are no chip.
pub(super) static GENERIC: &[Model] = &[
    Model::new("max", OWN, LEVEL2.union(MAX)).about("everything that is implemented (default)").phys_bits(46),
    Model::new("base", chip(Vendor::INTEL, [6, 6, 3], 1, 0, "Tessera Virtual CPU"), FeatureSet::of(set![]))
        .about("no features at all, to add them one by one"),
    Model::new("x86-64-v1", OWN, LEVEL1).about("x86-64 baseline"),
    Model::new("x86-64-v2", OWN, LEVEL2).about("x86-64 with SSE4.2 and POPCNT"),
    Model::new("x86-64-v3", OWN, LEVEL3).about("x86-64 with AVX2, BMI and FMA"),
    Model::new("qemu32", chip(Vendor::INTEL, [6, 6, 3], 0x4, 0x8000_0004, "Tessera Virtual CPU"), QEMU32)
        .about("32-bit baseline with SSE3"),
    Model::new(
        "kvm32",
        chip(Vendor::INTEL, [15, 6, 1], 0x5, 0x8000_0008, "Common 32-bit KVM processor"),
        KVM32,
    ),
    Model::new("qemu64", chip(Vendor::AMD, [15, 107, 1], 0xd, 0x8000_000a, "Tessera Virtual CPU"), QEMU64)
        .about("x86-64 baseline with SSE3 and CMPXCHG16B"),
    Model::new("kvm64", chip(Vendor::INTEL, [15, 6, 1], 0xd, 0x8000_0008, "Common KVM processor"), KVM64),
];

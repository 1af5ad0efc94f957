//! What every model's leaves are, as a text that reviews see change: `leaves.txt`.
//!
//! `TESSERA_BLESS=1 cargo test -p tessera-x86 cpuid` rewrites it.

use std::fmt::Write;

use super::{CpuidTable, Dynamic, Feature, models, parse, table};

const GOLDEN: &str = include_str!("leaves.txt");

/// All names that stand for a model or a version of one.
fn names() -> Vec<String> {
    models::models()
        .flat_map(|m| {
            std::iter::once(m.name.to_string())
                .chain((0..m.versions.len()).map(|n| format!("{}-v{}", m.name, n + 2)))
        })
        .collect()
}

/// A running 64-bit (or, without long mode, 32-bit) operating system's view.
fn now(t: &CpuidTable) -> Dynamic {
    Dynamic {
        osxsave: t.has(Feature::XSAVE),
        ospke: t.has(Feature::PKU),
        apic: true,
        code64: t.has(Feature::LM),
        xcr0: t.xcr0_mask(),
    }
}

fn describe(name: &str) -> String {
    let (t, warnings) = super::parse_for(name, &models::IMPLEMENTED).expect("a model");
    let now = now(&t);
    let mut out = format!("{name}\n");
    for w in warnings {
        let _ = writeln!(out, "  {w}");
    }
    let highest = t.query(0, 0, &now)[0];
    let extended = t.query(0x8000_0000, 0, &now)[0];
    let last = if extended >> 31 != 0 { extended } else { 0x8000_0000 };
    for leaf in (0..=highest).chain(0x8000_0000..=last) {
        let subs = match leaf {
            4 => 0..=4,
            7 => 0..=2,
            0xb => 0..=1,
            0xd => 0..=15,
            _ => 0..=0,
        };
        for sub in subs {
            let r = t.query(leaf, sub, &now);
            if r != [0; 4] {
                let [a, b, c, d] = r;
                let _ = writeln!(out, "  {leaf:08x}.{sub:x}  {a:08x} {b:08x} {c:08x} {d:08x}");
            }
        }
    }
    out
}

#[test]
fn leaves_are_as_reviewed() {
    let text: String = names().iter().map(|n| describe(n)).collect();
    if std::env::var_os("TESSERA_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cpuid/leaves.txt"), &text)
            .expect("a writable tree");
        return;
    }
    for (n, (is, was)) in text.lines().zip(GOLDEN.lines()).enumerate() {
        assert_eq!(is, was, "leaves.txt, line {}; TESSERA_BLESS=1 rewrites it", n + 1);
    }
    assert_eq!(text.lines().count(), GOLDEN.lines().count());
}

#[test]
fn every_model_is_consistent() {
    for name in names() {
        let t = parse(&name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let now = now(&t);
        let (level, xlevel) = (t.query(0, 0, &now)[0], t.query(0x8000_0000, 0, &now)[0]);
        for row in table::ROWS.iter().filter(|r| t.has(r.feature)) {
            for &n in row.needs {
                assert!(t.has(n), "{name} has {} without {}", row.name, n.name());
            }
        }
        let wants = |f, leaf: u32| !t.has(f) || leaf <= if leaf >> 31 != 0 { xlevel } else { level };
        assert!(wants(Feature::LM, 0x8000_0008), "{name}");
        assert!(wants(Feature::NX, 0x8000_0001), "{name}");
        assert!(wants(Feature::AVX, 0xd), "{name}");
        assert!(wants(Feature::SMEP, 7), "{name}");
        assert!(t.query(1, 0, &now)[0] >> 8 & 0xf >= 4, "{name}: no such family");
        if t.has(Feature::LM) {
            let brand = t.query(0x8000_0002, 0, &now)[0].to_le_bytes();
            assert!(brand.iter().all(|b| b.is_ascii_graphic() || *b == b' '), "{name}: {brand:?}");
            assert!((36..=52).contains(&t.phys_bits()), "{name}");
        }
    }
}

#[test]
fn no_model_is_named_twice() {
    let mut all = names();
    all.extend(
        models::models()
            .flat_map(|m| m.versions.iter())
            .map(|v| v.alias.to_string())
            .filter(|a| !a.is_empty()),
    );
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);
    assert!(all.iter().all(|n| models::find(n).is_some()));
}

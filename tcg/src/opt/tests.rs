//! Tests of the passes as a whole: equivalence on random blocks, and what each rule makes of a small one.

use proptest::prelude::*;

use super::*;
use crate::interp;
use crate::ir::{Inst, text, verify};
use crate::testing::{Observed, TestMachine, generate, guest};

fn run(block: &Block, seed: u64) -> Observed {
    let mut machine = TestMachine::new(seed);
    let end = interp::run(block, &guest(), &mut machine);
    machine.observe(block, end)
}

/// Optimises with a subset of the passes and compares with the original.
fn check(words: &[u64], seed: u64, flags: OptFlags) -> Result<(), TestCaseError> {
    let block = generate::block(words);
    let mut optimised = block.clone();
    Optimizer::new(flags, guest()).run(&mut optimised, true);
    let g = guest();
    let show = || format!("{flags:?}\n{}\n{}", text::print(&block, &g), text::print(&optimised, &g));
    prop_assert_eq!(verify::verify(&optimised, &g), Ok(()), "{}", show());
    prop_assert_eq!(run(&block, seed), run(&optimised, seed), "{}", show());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn every_subset_of_passes_preserves_meaning(
        words in prop::collection::vec(any::<u64>(), 0..70),
        seed: u64,
    ) {
        for bits in 0..=OptFlags::PASSES.bits() {
            check(&words, seed, OptFlags::from_bits_retain(bits))?;
        }
    }
}

#[test]
fn all_passes_preserve_meaning_on_many_blocks() {
    let mut optimizer = Optimizer::new(OptFlags::all(), guest());
    let (mut before, mut after) = (0, 0);
    for seed in 0..3000 {
        let block = generate::block(&generate::words(seed, 10 + seed as usize % 80));
        let mut optimised = block.clone();
        optimizer.run(&mut optimised, true);
        let (expect, got) = (run(&block, seed), run(&optimised, seed));
        assert_eq!(
            expect,
            got,
            "seed {seed}\n{}\n{}",
            text::print(&block, &guest()),
            text::print(&optimised, &guest())
        );
        before += block.insts.len();
        after += optimised.insts.len();
    }
    // Passes that do nothing preserve meaning, too.
    assert!(after * 4 < before * 3, "{before} instructions became {after}");
}

#[test]
fn only_hot_blocks_are_optimised_where_there_are_tiers() {
    let source =
        "insn 0x1000\nv0 = const 2\nv1 = const 3\nv2 = add.64 v0, v1\nset r1, v0\nset r1, v2\nleave 0\n";
    let block = text::parse(source, &guest()).unwrap();
    let adds_and_sets = |hot, flags| {
        let mut optimised = block.clone();
        Optimizer::new(flags, guest()).run(&mut optimised, hot);
        let count = |wanted: fn(&Inst) -> bool| optimised.insts.iter().filter(|inst| wanted(inst)).count();
        (count(|inst| matches!(inst, Inst::Bin { .. })), count(|inst| matches!(inst, Inst::Set(..))))
    };
    let all = OptFlags::all();
    assert_eq!(adds_and_sets(false, all), (1, 2));
    assert_eq!(adds_and_sets(true, all), (0, 1));
    // Nothing ever becomes hot without traces.
    assert_eq!(adds_and_sets(false, all - OptFlags::TRACES), (0, 1));
    assert_eq!(adds_and_sets(false, all - OptFlags::TIERS), (0, 1));
}

/// The text of a block after optimisation, without what `leave 0` and its like are there for.
fn optimised(source: &str) -> String {
    let mut block = text::parse(source, &guest()).unwrap();
    verify::verify(&block, &guest()).unwrap();
    Optimizer::new(OptFlags::all(), guest()).run(&mut block, true);
    text::print(&block, &guest()).to_string()
}

#[track_caller]
fn expect(source: &str, result: &str) {
    assert_eq!(optimised(source), result);
}

#[test]
fn reads_are_forwarded_across_guest_instructions() {
    expect(
        "insn 0x10
         a = get r0
         b = get r1
         c = add.64 a, b
         set r0, c
         insn 0x13
         d = get r0
         e = get r1
         f = xor.64 d, e
         set r0, f
         leave 0",
        "insn 0x10\nv1 = get r0\nv2 = get r1\nv3 = add.64 v1, v2\ninsn 0x13\nv5 = xor.64 v3, v2\n\
         set r0, v5\nleave 0\n",
    );
}

#[test]
fn memory_accesses_keep_the_sets_before_them() {
    let source = "insn 0x10
         a = const 1
         set r0, a
         insn 0x13
         p = get r1
         b = load.8 [p] mmu0
         set r0, b
         leave 0";
    let result = optimised(source);
    assert_eq!(result.matches("set r0").count(), 2, "{result}");
    // The program counter is what a fault sets, so setting it is dead there.
    let source = source.replace("set r0, a", "set pc, a\nset pc, a").replace("set r0, b", "set pc, b");
    let result = optimised(&source);
    assert_eq!(result.matches("set pc").count(), 1, "{result}");
}

#[test]
fn helpers_observe_what_they_declare() {
    // `read` reads r0 and the low half of y0, not r5; what it may write is none of it.
    let result = optimised(
        "a = const 1
         b = const 2
         x = vfromint.64 a
         y = vfromint.64 b
         set r0, a
         set r5, a
         set y0, x
         set y3, x
         r = call read(a)
         set r0, b
         set r5, b
         set y0, y
         set y3, y
         leave 0",
    );
    for (g, n) in [("r0", 2), ("r5", 1), ("y0", 2), ("y3", 1)] {
        assert_eq!(result.matches(&format!("set {g},")).count(), n, "{g}: {result}");
    }
    // `write` writes r1 and perhaps r2: neither is known afterwards, r3 is.
    let result = optimised(
        "a = const 1
         set r1, a
         set r2, a
         set r3, a
         w = call write(a)
         b = get r1
         c = get r2
         d = get r3
         k = call count(b, c, d, a, a)
         leave 0",
    );
    assert_eq!(result.matches("= get").count(), 2, "{result}");
}

#[test]
fn narrow_and_wide_vectors_overlap() {
    // The high half set by `y1` stays alive under a set of `x1`; after a set of both nothing of it does.
    let source = "p = const 0x40000000
         a = loadv.256 [p] mmu0
         b = loadv.128 [p] mmu0
         set y1, a
         set x1, b
         n = get x1
         set x2, n
         w = get y1
         set y3, w
         leave 0";
    let result = optimised(source);
    assert_eq!(result.matches("get x1").count(), 0, "{result}");
    assert_eq!(result.matches("get y1").count(), 1, "{result}");
    assert_eq!(result.matches("set y1").count(), 1, "{result}");
    let result = optimised(&source.replace("set x1, b", "set y1, b"));
    assert_eq!(result.matches("= get").count(), 0, "{result}");
    assert_eq!(result.matches("set y1").count(), 1, "{result}");
    // A 256-bit value is not what the 128-bit view reads.
    let result = optimised(&source.replace("set x1, b", "set x1, a"));
    assert_eq!(result.matches("get x1").count(), 1, "{result}");
}

#[test]
fn exits_tell_what_is_dead() {
    expect(
        "insn 0x10
         a = get r0
         b = get r1
         f = flags.sub.64 a, b
         set flags, f
         set r3, a
         set pc, a
         goto exit0
         exit0: 0x20 chain dead{flags, r3}",
        "insn 0x10\ngoto exit0\nexit0: 0x20 chain dead{r3, flags}\n",
    );
    // A conditional exit observes what the end does not.
    let result = optimised(
        "a = get r0
         f = flags.and.64 a, a
         set r3, a
         exitif.e f -> exit1
         goto exit0
         exit0: 0x20 dead{r3}
         exit1: 0x30",
    );
    assert!(result.contains("set r3"), "{result}");
}

#[test]
fn branches_on_known_flags_are_decided() {
    let tail = "exit0: 0x20 chain\nexit1: 0x30 chain\n";
    for (flags, cond, result) in [
        ("flags.and.32 a, a", "b", "goto exit1"),
        ("flags.and.32 a, a", "ae", "goto exit0"),
        ("flags.and.32 a, zero", "e", "goto exit0"),
        ("flags.sub.8 a, a", "ne", "goto exit1"),
        ("flags.sub.8 a, a", "le", "goto exit0"),
        ("flags.sub.64 zero, one", "b", "goto exit0"),
        ("flags.sub.64 a, zero", "g", "v0 = get r0\nf1 = flags.and.64 v0, v0\nbranch.g f1 -> exit0, exit1"),
    ] {
        let source = format!(
            "a = get r0\nzero = const 0\none = const 1\nf = {flags}\nbranch.{cond} f -> exit0, exit1\n{tail}"
        );
        assert_eq!(optimised(&source), format!("{result}\n{tail}"), "{flags} {cond}");
    }
    expect(
        "a = get r0
         f = flags.sub.64 a, a
         exitif.ne f -> exit1
         exitif.e f -> exit0
         set r1, a
         goto exit1
         exit0: 0x20 chain
         exit1: 0x30 chain",
        &format!("goto exit0\n{tail}"),
    );
}

#[test]
fn conditions_of_conditions_are_conditions() {
    // sete al; movzx eax, al; test eax, eax; jne
    expect(
        "a = get r0
         b = get r1
         f = flags.sub.64 a, b
         s = setcond.e f
         i = insert a, s, 0, 8
         z = extend.8 i
         t = flags.and.32 z, z
         set r0, z
         branch.e t -> exit0, exit1
         exit0: 0x20 dead{flags}
         exit1: 0x30 dead{flags}",
        "v0 = get r0\nv1 = get r1\nf2 = flags.sub.64 v0, v1\nv3 = setcond.e f2\nset r0, v3\n\
         branch.ne f2 -> exit0, exit1\nexit0: 0x20 dead{flags}\nexit1: 0x30 dead{flags}\n",
    );
}

#[test]
fn packed_flags_unpack_to_themselves() {
    expect(
        "a = get flags
         p = pack a
         m = const 0xd501
         n = and.32 p, m
         f = flags.unpack.64 n
         s = setcond.b f
         set r0, s
         set flags, f
         leave 0",
        "f0 = get flags\nv1 = setcond.b f0\nset r0, v1\nleave 0\n",
    );
}

#[test]
fn conditions_look_through_changed_bits_of_packed_flags() {
    let source = |cond: &str| {
        format!(
            "a = get r0
             b = get r1
             f = flags.and.64 a, a
             p = pack f
             m = const 0xd000
             q = and.32 p, m
             c = insert q, b, 8, 1
             g = flags.unpack.64 c
             branch.{cond} g -> exit0, exit1
             exit0: 0x20 dead{{flags}}
             exit1: 0x30 dead{{flags}}"
        )
    };
    let exits = "exit0: 0x20 dead{flags}\nexit1: 0x30 dead{flags}\n";
    for (cond, result) in [
        // Kept bits are those of the first flags, the changed one is the integer's.
        ("ne", "v0 = get r0\nf1 = flags.and.64 v0, v0\nbranch.ne f1 -> exit0, exit1\n"),
        ("s", "v0 = get r0\nf1 = flags.and.64 v0, v0\nbranch.s f1 -> exit0, exit1\n"),
        ("ae", "v0 = get r1\nv1 = const 0x1\nf2 = flags.and.8 v0, v1\nbranch.e f2 -> exit0, exit1\n"),
    ] {
        assert_eq!(optimised(&source(cond)), format!("{result}{exits}"), "{cond}");
    }
    // Of two words, or of a bit that was masked out: as it was.
    for cond in ["a", "p"] {
        assert!(optimised(&source(cond)).contains("unpack"), "{cond}");
    }
}

#[test]
fn a_shift_by_a_constant_frees_the_old_flags() {
    let result = optimised(
        "a = get r0
         b = get r1
         old = flags.sub.64 a, b
         three = const 3
         f = flags.shl.64 a, three, old
         set flags, f
         leave 0",
    );
    assert!(!result.contains("flags.sub"), "{result}");
    let result = optimised(
        "a = get r0
         old = get flags
         n = const 32
         f = flags.shl.32 a, n, old
         r = shl.32 a, n
         set flags, f
         set r0, r
         leave 0",
    );
    assert_eq!(result, "v0 = get r0\nv1 = extend.32 v0\nset r0, v1\nleave 0\n");
}

/// Wraps an expression over `a` (r0), `b` (r1), `n` (an 8-bit load) and constants `c0` … into a block.
fn expression(e: &str) -> String {
    let source = format!(
        "a = get r0
         b = get r1
         p = const 0x40000000
         n = load.8 [p] mmu0
         k0 = const 0
         k1 = const 1
         k8 = const 8
         m1 = const 0xffffffffffffffff
         kff = const 0xff
         {e}
         set r2, e
         leave 0"
    );
    let result = optimised(&source);
    // Inline what precedes, for a readable expectation.
    let mut text: String = String::new();
    let mut names: Vec<(String, String)> = Vec::new();
    for line in result.lines() {
        if let Some((name, def)) = line.split_once(" = ") {
            let named = match def {
                "get r0" => "a".into(),
                "get r1" => "b".into(),
                "const 0x40000000" => continue,
                _ if def.starts_with("load.8 ") => "n".into(),
                _ => match def.strip_prefix("const ") {
                    Some(c) => c.to_string(),
                    None => {
                        let args = def.split_once(' ').map_or(("", ""), |p| p);
                        let args: Vec<String> = args
                            .1
                            .split(", ")
                            .map(|a| {
                                let found = names.iter().find(|(n, _)| n == a);
                                found.map_or(a.to_string(), |(_, v)| v.clone())
                            })
                            .collect();
                        format!("{}({})", def.split_once(' ').map_or(def, |p| p.0), args.join(" "))
                    }
                },
            };
            names.push((name.into(), named));
        } else if let Some(v) = line.strip_prefix("set r2, ") {
            let found = names.iter().find(|(n, _)| n == v);
            text = found.map_or(v.to_string(), |(_, t)| t.clone());
        }
    }
    text
}

#[test]
fn integer_identities() {
    for (e, result) in [
        ("e = add.64 a, k0", "a"),
        ("e = add.32 a, k0", "extend.32(a)"),
        ("e = sub.8 n, k0", "n"),
        ("e = xor.64 a, a", "0x0"),
        ("e = and.64 a, m1", "a"),
        ("e = and.32 a, kff", "extend.8(a)"),
        ("e = and.64 n, kff", "n"),
        ("e = or.16 m1, a", "0xffff"),
        ("e = xor.64 a, m1", "not.64(a)"),
        ("x = not.64 a\ne = not.64 x", "a"),
        ("e = andnot.64 a, kff", "and.64(a 0xffffffffffffff00)"),
        ("e = mul.64 k8, a", "shl.64(a 0x3)"),
        ("e = mulhiu.64 a, k1", "0x0"),
        ("e = shl.64 a, k0", "a"),
        ("e = shr.64 n, k8", "0x0"),
        ("e = shl.8 a, k8", "0x0"),
        ("e = sar.64 k0, a", "0x0"),
        ("e = sub.64 k0, a", "neg.64(a)"),
        ("e = rol.8 n, k8", "n"),
        ("x = add.64 a, k8\ne = add.64 x, k1", "add.64(a 0x9)"),
        ("x = sub.64 a, k8\ne = add.64 x, k8", "a"),
        ("x = add.64 a, k8\ny = sub.64 x, k1\ne = sub.32 y, k1", "add.32(a 0x6)"),
        ("e = lea.64 [k8 + k1<<3 + -1]", "0xf"),
        ("e = lea.64 [a + k1<<3 + -1]", "add.64(a 0x7)"),
        ("e = extend.8 n", "n"),
        ("x = shr.32 n, k1\ne = extend.8.s64 x", "shr.32(n 0x1)"),
        ("e = extend.8.s64 n", "extend.8.s64(n)"),
        ("x = extend.32 a\ne = add.32 x, b", "add.32(a b)"),
        ("x = insert a, b, 0, 8\ne = extend.8 x", "extend.8(b)"),
        ("x = insert a, b, 8, 8\ne = extend.8 x", "extend.8(a)"),
        ("x = insert a, n, 8, 8\ny = extract x, 8, 8\ne = extend.8 y", "n"),
        ("x = insert k0, n, 0, 8\ne = insert x, n, 0, 16", "n"),
        ("x = insert a, n, 0, 8\ne = insert x, b, 0, 16", "insert(a b 0 16)"),
        ("x = extract a, 8, 8\ne = insert a, x, 8, 8", "a"),
        ("e = extract n, 8, 8", "0x0"),
        ("x = extract a, 8, 16\ne = extract x, 4, 8", "extract(a 12 8)"),
        ("e = shiftpair.64 a, a, k8", "ror.64(a 0x8)"),
        ("e = shiftpair.32 a, n, k0", "n"),
        ("f = flags.and.8 a, a\ne = addc.32 a, k0, f", "extend.32(a)"),
        ("f = flags.sub.64 k0, k1\ne = subc.64 a, k0, f", "sub.64(a 0x1)"),
        ("f = flags.sub.8 a, b\ne = select.e.64 f, a, a", "a"),
        ("f = flags.sub.8 a, b\nx = select.e.64 f, k0, k1\ne = extend.8 x", "setcond.ne(flags.sub.8(a b))"),
    ] {
        assert_eq!(expression(e), result, "{e}");
    }
}

#[test]
fn equal_operations_are_computed_once() {
    let result = optimised(
        "a = get r0
         b = get r1
         x = mul.64 a, b
         y = mul.64 a, b
         h = call mix(a, b)
         i = call mix(a, b)
         j = call count(x, y, h, i, a)
         k = call count(x, y, h, i, a)
         leave 0",
    );
    assert_eq!(result.matches("mul.64").count(), 1, "{result}");
    assert_eq!(result.matches("call mix").count(), 1, "{result}");
    assert_eq!(result.matches("call count").count(), 2, "{result}");
}

#[test]
fn floating_point_keeps_its_sticky_flags() {
    let result = optimised(
        "a = get y0
         b = get y1
         x = v.add.f32.256 a, b
         y = v.add.i32.256 a, b
         leave 0",
    );
    assert!(result.contains("add.f32") && !result.contains("add.i32"), "{result}");
}

#[test]
fn sums_that_a_global_holds_are_not_taken_apart() {
    // Successive pushes: each address is the stack pointer just set.
    let result = optimised(
        "insn 0x10
         a = get r4
         k = const 8
         b = sub.64 a, k
         store.64 [b] mmu0, a
         set r4, b
         insn 0x11
         c = get r4
         d = sub.64 c, k
         store.64 [d] mmu0, a
         set r4, d
         leave 0",
    );
    assert_eq!(result.matches("sub.64").count(), 2, "{result}");
}

#[test]
fn behind_an_indirect_exit_the_program_counter_is_set_anew() {
    let source = "insn 0x1000\nv1 = get r1\nf2 = get flags\nset pc, v1\nexitif.b f2 -> exit0\nset pc, v1\ngoto_indirect\n\
                  exit0: 0x0 indirect\n";
    assert_eq!(optimised(source).matches("set pc").count(), 2);
    let chained = source.replace("0x0 indirect", "0x2000 chain");
    assert_eq!(optimised(&chained).matches("set pc").count(), 1);
}

#[test]
fn old_flags_are_those_that_make_the_bits() {
    // Each decrement keeps C, so the last one may as well have that of the first operand's flags.
    let tail = "set flags, f\nset r0, a\nleave 0";
    let result = optimised(&format!(
        "a = get r0\nb = get r1\ns = flags.sub.64 a, b\nx = flags.dec.64 a, s\ny = flags.inc.32 b, x\n\
         f = flags.dec.8 b, y\n{tail}"
    ));
    assert!(result.contains("flags.dec.8 v1, f2\n") && !result.contains("inc"), "{result}");
    // A rotation wants neither C nor V of what it follows, a bit test not C.
    let result = optimised(&format!(
        "a = get r0\nb = get r1\nn = const 3\ns = flags.sub.64 a, b\nx = flags.bit.64 a, b, s\n\
         y = flags.rol.64 b, n, x\nf = flags.bit.64 b, n, y\n{tail}"
    ));
    assert!(result.contains("flags.rol.64 v1, v2, f3\n") && result.contains("flags.bit.64"), "{result}");
    // A rotation makes V, which the bit test passes on.
    assert_eq!(result.matches("flags.bit").count(), 1, "{result}");
    // By an unknown count anything may be passed on.
    let result = optimised(&format!(
        "a = get r0\nb = get r1\ns = flags.sub.64 a, b\nx = flags.dec.64 a, s\nf = flags.rol.64 b, a, x\n{tail}"
    ));
    assert!(result.contains("flags.dec.64"), "{result}");
}

#[test]
fn conditions_are_those_of_the_flags_that_make_them() {
    let exits = "exit0: 0x20 dead{flags}\nexit1: 0x30 dead{flags}\n";
    let source = |cond: &str| {
        format!(
            "a = get r0\nb = get r1\ns = flags.sub.64 a, b\nx = flags.inc.64 a, s\nf = flags.dec.64 b, x\n\
             branch.{cond} f -> exit0, exit1\n{exits}"
        )
    };
    let compare = "v0 = get r0\nv1 = get r1\nf2 = flags.sub.64 v0, v1\n";
    assert_eq!(optimised(&source("b")), format!("{compare}branch.b f2 -> exit0, exit1\n{exits}"));
    // Of two places.
    assert_eq!(
        optimised(&source("a")),
        format!("{compare}f3 = flags.dec.64 v1, f2\nbranch.a f3 -> exit0, exit1\n{exits}")
    );
}

#[test]
fn a_known_carry_is_a_constant() {
    let result = optimised(
        "a = get r0\nb = get r1\nt = flags.and.64 a, b\nd = flags.dec.64 a, t\nx = addc.64 a, b, d\n\
         f = flags.adc.64 a, b, d\nset r0, x\nset flags, f\nleave 0",
    );
    assert_eq!(
        result,
        "v0 = get r0\nv1 = get r1\nv2 = add.64 v0, v1\nf3 = flags.add.64 v0, v1\nset r0, v2\nset flags, f3\nleave 0\n"
    );
}

//! What flags cost: the mnemonics of small blocks.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use super::X86_64;
use crate::backend::{Compiled, HostBackend, Room};
use crate::ir::text::parse;
use crate::testing::guest;

const END: &str = "exit0: 0x2000 chain dead{flags}\nexit1: 0x3000 chain dead{flags}\n";

/// The mnemonics of a block's code, side exits included, from behind the look for requests.
#[track_caller]
fn code(text: &str) -> Vec<Mnemonic> {
    let block = parse(&format!("insn 0x1000\n{text}\n{END}"), &guest()).expect("valid text");
    let mut backend = X86_64::new(guest()).expect("the host runs the backend");
    let mut out = Compiled::default();
    backend.compile(&block, Room { start: 0x10_0000, end: 0x20_0000 }, 0, &mut out);
    let decoder = Decoder::new(64, &out.hot, DecoderOptions::NONE);
    let all = decoder.into_iter().map(|i| i.mnemonic()).filter(|m| *m != Mnemonic::Nop);
    all.skip(2).collect()
}

/// How many of these there are.
fn count(code: &[Mnemonic], what: Mnemonic) -> usize {
    code.iter().filter(|m| **m == what).count()
}

/// A decrement of `r0`, which is `a`, and of the flags `f`.
const DEC: &str = "one = const 1\nr = sub.32 a, one\ng = flags.dec.32 a, f\nset r0, r\nset flags, g\n";

#[test]
fn a_branch_on_the_result_of_an_increment_needs_no_older_flags() {
    use Mnemonic::*;
    let start = "a = get r0\nf = get flags\n";
    // The host's flags are at hand: C is not, and is not asked for.
    let near = code(&format!("{start}{DEC}branch.e g -> exit0, exit1"));
    assert_eq!(near[..3], [Dec, Je, Jmp]);
    // A load came in between: what it may fault with is a recipe, and the result says whether it is zero.
    let far = code(&format!("{start}{DEC}p = load.64 [r] mmu0\nset r1, p\nbranch.s g -> exit0, exit1"));
    assert_eq!((count(&far, Test), count(&far, Sahf), count(&far, Dec)), (1, 0, 1), "{far:?}");
    // Overflow does not show in the result.
    let overflow = code(&format!("{start}{DEC}p = load.64 [r] mmu0\nset r1, p\nbranch.o g -> exit0, exit1"));
    assert_eq!((count(&overflow, Dec), count(&overflow, Sahf)), (2, 0), "{overflow:?}");
}

#[test]
fn a_row_of_increments_is_no_chain() {
    use Mnemonic::*;
    let round = |n: usize| {
        let names = |text: &str| {
            let (was, is) = (n.to_string(), (n + 1).to_string());
            text.replace("NEXT", &is).replace("THIS", &was)
        };
        names(
            "rNEXT = sub.32 rTHIS, one\nfNEXT = flags.dec.32 rTHIS, fTHIS\nset r0, rNEXT\nset flags, fNEXT\n\
             pNEXT = load.64 [rNEXT] mmu0\nset r1, pNEXT\nexitif.e fNEXT -> exit0\n",
        )
    };
    let rounds: String = (0..4).map(round).collect();
    let code = code(&format!("r0 = get r0\nf0 = get flags\none = const 1\n{rounds}leave 0"));
    // The last one is done twice: at the end, for all flags, of which C comes from memory.
    assert_eq!((count(&code, Test), count(&code, Dec)), (4, 2), "{code:?}");
    assert_eq!((count(&code, Sahf), count(&code, Bt), count(&code, Lahf)), (0, 1, 1), "{code:?}");
}

#[test]
fn flags_at_hand_are_completed_by_the_carry() {
    use Mnemonic::*;
    // From memory.
    let code_of = |f: &str, end: &str| code(&format!("a = get r0\n{f}\n{DEC}{end}"));
    let stored = code_of("f = get flags", "leave 0");
    assert_eq!(stored[..5], [Dec, Bt, Seto, Lahf, Mov]);
    // Of a logical operation it is clear, and of what the host's flags hold it stays.
    let fetched = code_of("c = get r2\nf = flags.and.64 c, c", "leave 0");
    assert_eq!(fetched[..5], [Dec, Clc, Seto, Lahf, Mov]);
    let kept = code_of("c = get r2\nf = flags.sub.64 c, a\ns = setcond.b f\nset r3, s", "leave 0");
    assert_eq!((count(&kept, Cmp), count(&kept, Dec), count(&kept, Bt)), (1, 1, 0), "{kept:?}");
}

#[test]
fn a_carry_survives_the_increments_of_a_loop() {
    use Mnemonic::*;
    let text = |last: &str| {
        format!(
            "a = get r0\nb = get r2\nold = get flags\nx = addc.64 b, b, old\nf = flags.adc.64 b, b, old\n\
             set r2, x\nset flags, f\n{DEC}c = get r3\n{last}\nset r3, y\nset flags, h\nleave 0"
        )
    };
    let code = code(&text("y = addc.64 c, c, g\nh = flags.adc.64 c, c, g"));
    let wanted: Vec<_> = code.iter().filter(|m| matches!(**m, Bt | Adc | Dec | Sahf | Lahf)).collect();
    // No one wants the decrement's own flags.
    assert_eq!(wanted, [&Bt, &Adc, &Adc, &Lahf], "{code:?}");
    // As well if what follows makes other flags.
    let last = "y = addc.64 c, c, g\nh = flags.sub.64 c, b";
    let code = self::code(&text(last));
    let wanted: Vec<_> = code.iter().filter(|m| matches!(**m, Bt | Adc | Sahf | Lahf)).collect();
    assert_eq!(wanted, [&Bt, &Adc, &Adc, &Lahf], "{code:?}");
}

#[test]
fn the_first_operand_serves_as_long_as_it_is_somewhere() {
    use Mnemonic::*;
    let compare = "a = get r0\nb = get r1\nr = sub.64 a, b\nf = flags.sub.64 a, b\nset r2, r\nset flags, f\n\
                   q = load.64 [r] mmu0\n";
    let kept = code(&format!("{compare}branch.l f -> exit0, exit1"));
    assert_eq!((count(&kept, Cmp), count(&kept, Add)), (2, 0), "{kept:?}");
    // Overwritten, it is the result and the second operand.
    let gone = code(&format!("{}branch.l f -> exit0, exit1", compare.replace("set r2", "set r0")));
    let at = gone.iter().rposition(|m| *m == Cmp).expect("a comparison");
    assert_eq!(gone[at - 1], Lea, "{gone:?}");
}

#[test]
fn bits_of_a_shift_or_a_bit_test_need_no_older_ones() {
    use Mnemonic::*;
    let text = |op: &str, cond: &str| {
        format!(
            "a = get r0\nf = get flags\nn = const 3\ng = flags.{op} a, n, f\nset flags, g\nbranch.{cond} g -> exit0, exit1"
        )
    };
    assert_eq!(code(&text("bit.64", "b"))[..2], [Bt, Jb]);
    assert_eq!(code(&text("bit.64", "e"))[..2], [Test, Jne]);
    let rotated = code(&text("rol.64", "b"));
    assert_eq!((count(&rotated, Rol), count(&rotated, Sahf)), (1, 0), "{rotated:?}");
}

#[test]
fn flags_that_only_dead_code_reads_are_not_computed() {
    let (before, after) = ("a = get r0\nr = add.64 a, a\nset r0, r\nf = flags.add.64 a, a\n", "goto exit0");
    // As for the flags of a rotation that the next instruction overwrites.
    let dead = "p = pack f\nl = extract r, 0, 1\nq = insert p, l, 8, 1\ng = flags.unpack.32 q\nset flags, g\n\
                h = flags.and.64 r, r\nset flags, h\n";
    assert_eq!(code(&format!("{before}{dead}{after}")), code(&format!("{before}{after}")));
}

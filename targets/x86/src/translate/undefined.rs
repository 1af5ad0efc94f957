//! What the manuals leave undefined, and what happens here: as a rule what Intel's current processors do, because
//! programs that depend on it were tested there.
//!
//! The oracles compare all of it (`oracle` and `compat_oracle`, on Intel hosts), so this is a list of facts:
//!
//! | instruction | undefined | here |
//! |---|---|---|
//! | AND, OR, XOR, TEST | AF | clear |
//! | SHL, SHR | AF; OF for counts above 1; CF for counts above the width | clear; as for a count of 1; clear |
//! | SAR | AF; OF for counts above 1 | clear; clear |
//! | ROL, ROR | OF for counts other than 1 | kept by an immediate on a register, else as for a count of 1 |
//! | RCL, RCR | OF for counts other than 1 | as for a count of 1 |
//! | SHLD, SHRD | AF; OF for counts above 1 | clear; as for a count of 1 |
//! | SHLD, SHRD with 16 bits | result and flags for counts above 16 | the operand `dst:src:dst` is shifted |
//! | MUL, IMUL | SF, ZF, AF, PF | of the low half, clear, clear, of the low half |
//! | DIV, IDIV | all flags | kept |
//! | BT, BTS, BTR, BTC | OF, SF, AF, PF | kept |
//! | BSF, BSR | destination for a source of zero | kept, all 64 bits |
//! | BSF, BSR | CF, OF, SF, AF; PF | clear; of the number found, or of zero |
//! | LZCNT, TZCNT | OF, SF, PF, AF | clear |
//! | ANDN, BLSI, BLSR, BLSMSK, BZHI | AF, PF | clear |
//! | BEXTR | AF, SF, PF | clear |
//! | DAA, DAS | OF | clear |
//! | AAA, AAS | OF, SF, ZF, PF | clear; the others of AL |
//! | AAM | OF, AF, CF | clear |
//! | AAD | OF, AF, CF | of the addition |
//! | FCOMI, FUCOMI, FCMOV | C1 | kept, unless the stack underflows |
//! | FPREM, FPREM1 | C0, C3 where there is no quotient | kept |
//! | FLD of a denormal, exception unmasked | register stack | the number is pushed |
//! | x87 instructions without a memory operand | data pointer | kept |
//!
//! "As for a count of 1" means: the flag depends on the operands as it would if the count were 1. Counts are what is left
//! of them after masking to 5 or 6 bits.
//!
//! Not compared, because no two processors agree: the approximations of RCPPS, RSQRTPS and their scalar forms beyond the
//! precision that is promised (they are the host's).

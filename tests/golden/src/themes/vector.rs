//! SSE, AVX and the instructions of cryptography.

use iced_x86::code_asm::*;

use crate::snippet::{Theme, snippets};

/// Scalar floating point.
pub const SSE_SCALAR: Theme = Theme {
    name: "sse-scalar",
    host: |_| true,
    snippets: snippets! { a;
        add_double User64 { addsd(xmm0, xmm1) }
        add_single User64 { addss(xmm0, xmm1) }
        expression User64 { mulsd(xmm0, xmm1); addsd(xmm0, xmm2); divsd(xmm0, xmm3); sqrtsd(xmm4, xmm0) }
        load_and_multiply User64 { movsd_2(xmm0, qword_ptr(rdi)); mulsd(xmm0, qword_ptr(rsi)) }
        store_double User64 { movsd_2(qword_ptr(rdi), xmm0) }
        compare_and_branch User64 { ucomisd(xmm0, xmm1); ja(0x8800u64) }
        compare_to_mask User64 { cmpltsd(xmm0, xmm1) }
        minimum User64 { minsd(xmm0, xmm1) }
        to_integer User64 { cvttsd2si(rax, xmm0) }
        from_integer User64 { cvtsi2sd(xmm0, rax) }
        between_precisions User64 { cvtss2sd(xmm0, xmm1); cvtsd2ss(xmm2, xmm3) }
        move_to_register User64 { movq(rax, xmm0); movd(xmm1, ecx) }
        zero User64 { pxor(xmm0, xmm0); addsd(xmm0, xmm1) }
        round User64 { roundsd(xmm0, xmm1, 1i32) }
    },
};

/// Packed integers and floating point of 128 bits.
pub const SSE_PACKED: Theme = Theme {
    name: "sse-packed",
    host: |_| true,
    snippets: snippets! { a;
        add_doubles User64 { addpd(xmm0, xmm1); mulpd(xmm2, xmm3) }
        add_integers User64 { paddd(xmm0, xmm1); psubq(xmm2, xmm3); paddusb(xmm4, xmm5) }
        logic User64 { pand(xmm0, xmm1); por(xmm2, xmm3); pandn(xmm4, xmm5) }
        compare User64 { pcmpeqb(xmm0, xmm1); pmovmskb(eax, xmm0); test(eax, eax); je(0x8800u64) }
        load_aligned User64 { movaps(xmm0, xmmword_ptr(rdi)) }
        load_unaligned User64 { movups(xmm0, xmmword_ptr(rdi)) }
        store_aligned User64 { movaps(xmmword_ptr(rdi), xmm0) }
        store_unaligned User64 { movdqu(xmmword_ptr(rdi), xmm0) }
        load_operand User64 { paddd(xmm0, xmmword_ptr(rdi)) }
        copy_32_bytes User64 {
            movups(xmm0, xmmword_ptr(rsi)); movups(xmm1, xmmword_ptr(rsi + 16));
            movups(xmmword_ptr(rdi), xmm0); movups(xmmword_ptr(rdi + 16), xmm1)
        }
        multiply User64 { pmullw(xmm0, xmm1); pmuludq(xmm2, xmm3); pmaddwd(xmm4, xmm5) }
        shift User64 { pslld(xmm0, 3i32); psrlq(xmm1, xmm2); pslldq(xmm3, 4i32) }
        shuffle User64 { pshufd(xmm0, xmm1, 0x1bi32); shufps(xmm2, xmm3, 0x44i32); pshufb(xmm4, xmm5) }
        unpack User64 { punpcklbw(xmm0, xmm1); unpckhpd(xmm2, xmm3) }
        string_compare User64 { pcmpistri(xmm0, xmm1, 0x18i32) }
        convert User64 { cvtdq2ps(xmm0, xmm1); cvttps2dq(xmm2, xmm3) }
        insert_extract User64 { pinsrd(xmm0, eax, 1i32); pextrq(rcx, xmm1, 1i32) }
    },
};

/// AVX, AVX2 and FMA.
pub const AVX: Theme = Theme {
    name: "avx",
    host: |_| true,
    snippets: snippets! { a;
        add_128_zeroes_upper User64 { vaddpd(xmm0, xmm1, xmm2) }
        add_256 User64 { vaddpd(ymm0, ymm1, ymm2); vpaddd(ymm3, ymm4, ymm5) }
        fused_multiply_add User64 { vfmadd231pd(ymm0, ymm1, ymm2); vfmadd213sd(xmm3, xmm4, xmm5) }
        load_256 User64 { vmovups(ymm0, ymmword_ptr(rdi)) }
        store_256 User64 { vmovdqu(ymmword_ptr(rdi), ymm0) }
        multiply_from_memory User64 { vmulpd(ymm0, ymm1, ymmword_ptr(rdi)) }
        broadcast User64 { vbroadcastsd(ymm0, qword_ptr(rdi)); vpbroadcastb(ymm1, xmm2) }
        permute User64 { vpermq(ymm0, ymm1, 0x4ei32); vperm2i128(ymm2, ymm3, ymm4, 0x20i32) }
        masked_load User64 { vmaskmovps(ymm0, ymm1, ymmword_ptr(rdi)) }
        compare_mask User64 { vpcmpeqb(ymm0, ymm1, ymm2); vpmovmskb(eax, ymm0) }
        extract_insert User64 { vextracti128(xmm0, ymm1, 1i32); vinserti128(ymm2, ymm3, xmm4, 1i32) }
        gather User64 { vpgatherdd_3(ymm0, dword_ptr(rdi + ymm1 * 4), ymm2) }
        zero_upper User64 { vaddps(ymm0, ymm1, ymm2); vzeroupper(); ret() }
        string_length_step User64 {
            vmovdqu(ymm0, ymmword_ptr(rdi)); vpcmpeqb(ymm1, ymm0, ymm2); vpmovmskb(eax, ymm1); test(eax, eax);
            jne(0x8800u64)
        }
    },
};

/// AES, SHA and arithmetic without carries.
pub const CRYPTO: Theme = Theme {
    name: "crypto",
    host: |host| host.aes && host.clmul && host.sha && host.gf && host.aes256,
    snippets: snippets! { a;
        aes_round User64 { aesenc(xmm0, xmm1); aesenclast(xmm0, xmm2) }
        aes_256_bits User64 { vaesenc(ymm0, ymm1, ymm2) }
        aes_key User64 { aeskeygenassist(xmm0, xmm1, 1i32) }
        carryless_multiply User64 { pclmulqdq(xmm0, xmm1, 0x11i32) }
        crc32 User64 { crc32(eax, cl); crc32(rax, qword_ptr(rdi)) }
        galois_multiply User64 { gf2p8mulb(xmm0, xmm1) }
        sha256_rounds User64 { sha256rnds2(xmm1, xmm2); sha256msg1(xmm3, xmm4) }
    },
};

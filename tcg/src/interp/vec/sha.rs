//! SHA-1 and SHA-256 steps on four 32-bit lanes (FIPS 180-4, sections 5.3 and 6; SDM volume 2, SHA1RNDS4 and its
//! neighbours).
//!
//! Lanes are numbered from the low bits. SHA-1 keeps its first word in lane 3, SHA-256's schedule in lane 0.

/// Four lanes.
type Lanes = [u32; 4];

pub fn sha1_next_e(a: Lanes, b: Lanes) -> Lanes {
    [b[0], b[1], b[2], b[3].wrapping_add(a[3].rotate_left(30))]
}

pub fn sha1_msg1(a: Lanes, b: Lanes) -> Lanes {
    [b[2] ^ a[0], b[3] ^ a[1], a[0] ^ a[2], a[1] ^ a[3]]
}

pub fn sha1_msg2(a: Lanes, b: Lanes) -> Lanes {
    let w16 = (a[3] ^ b[2]).rotate_left(1);
    let w17 = (a[2] ^ b[1]).rotate_left(1);
    let w18 = (a[1] ^ b[0]).rotate_left(1);
    let w19 = (a[0] ^ w16).rotate_left(1);
    [w19, w18, w17, w16]
}

pub fn sha1_rounds4(state: Lanes, words: Lanes, function: u8) -> Lanes {
    let f = |b: u32, c: u32, d: u32| match function & 3 {
        0 => choose(b, c, d).wrapping_add(0x5a82_7999),
        1 => (b ^ c ^ d).wrapping_add(0x6ed9_eba1),
        2 => majority(b, c, d).wrapping_add(0x8f1b_bcdc),
        _ => (b ^ c ^ d).wrapping_add(0xca62_c1d6),
    };
    let [mut d, mut c, mut b, mut a] = state;
    // E is part of the first word.
    let mut e = 0;
    for word in words.into_iter().rev() {
        let next = f(b, c, d).wrapping_add(a.rotate_left(5)).wrapping_add(word).wrapping_add(e);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    [d, c, b, a]
}

pub fn sha256_rounds2(cdgh: Lanes, abef: Lanes, words: Lanes) -> Lanes {
    let [mut h, mut g, mut d, mut c] = cdgh;
    let [mut f, mut e, mut b, mut a] = abef;
    for word in &words[..2] {
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let t1 = choose(e, f, g).wrapping_add(sum1).wrapping_add(*word).wrapping_add(h);
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = majority(a, b, c).wrapping_add(sum0);
        (a, b, c, d, e, f, g, h) = (t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g);
    }
    [f, e, b, a]
}

pub fn sha256_msg1(a: Lanes, b: Lanes) -> Lanes {
    let sigma0 = |x: u32| x.rotate_right(7) ^ x.rotate_right(18) ^ x >> 3;
    let following = [a[1], a[2], a[3], b[0]];
    std::array::from_fn(|n| a[n].wrapping_add(sigma0(following[n])))
}

pub fn sha256_msg2(a: Lanes, b: Lanes) -> Lanes {
    let sigma1 = |x: u32| x.rotate_right(17) ^ x.rotate_right(19) ^ x >> 10;
    let w16 = a[0].wrapping_add(sigma1(b[2]));
    let w17 = a[1].wrapping_add(sigma1(b[3]));
    [w16, w17, a[2].wrapping_add(sigma1(w16)), a[3].wrapping_add(sigma1(w17))]
}

fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y | !x & z
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y | x & z | y & z
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The digest of "abc" (FIPS 180-4's example), by these steps alone.
    #[test]
    fn sha1_of_abc() {
        let words: [u32; 16] =
            std::array::from_fn(|n| [0x6162_6380, 24][usize::from(n == 15)] * u32::from(n % 15 == 0));
        let start: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        let mut w: Vec<Lanes> = words.chunks(4).map(|c| [c[3], c[2], c[1], c[0]]).collect();
        for n in 4..20 {
            let half = sha1_msg1(w[n - 4], w[n - 3]);
            let half: Lanes = std::array::from_fn(|k| half[k] ^ w[n - 2][k]);
            w.push(sha1_msg2(half, w[n - 1]));
        }
        let mut state: Lanes = [start[3], start[2], start[1], start[0]];
        // Lane 3 rotated left by 30 is E.
        let mut e_source: Lanes = [0, 0, 0, start[4].rotate_right(30)];
        for (n, words) in w.into_iter().enumerate() {
            let with_e = sha1_next_e(e_source, words);
            e_source = state;
            state = sha1_rounds4(state, with_e, (n / 5) as u8);
        }
        let digest: [u32; 5] = [
            state[3].wrapping_add(start[0]),
            state[2].wrapping_add(start[1]),
            state[1].wrapping_add(start[2]),
            state[0].wrapping_add(start[3]),
            e_source[3].rotate_left(30).wrapping_add(start[4]),
        ];
        assert_eq!(digest, [0xa999_3e36, 0x4706_816a, 0xba3e_2571, 0x7850_c26c, 0x9cd0_d89d]);
    }
}

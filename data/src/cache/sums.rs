//! Running sums in place, without carry beyond a number's bits: what undoes differences.

/// Of bytes.
pub(super) fn of_bytes(numbers: &mut [u8]) {
    let (blocks, rest) = numbers.as_chunks_mut();
    let before = blocks_of_bytes(blocks);
    rest.iter_mut().fold(before, |sum, v| {
        *v = v.wrapping_add(sum);
        *v
    });
}

/// Of words.
pub(super) fn of_words(numbers: &mut [u16]) {
    let (blocks, rest) = numbers.as_chunks_mut();
    let before = blocks_of_words(blocks);
    rest.iter_mut().fold(before, |sum, v| {
        *v = v.wrapping_add(sum);
        *v
    });
}

#[cfg(target_arch = "x86_64")]
fn blocks_of_bytes(blocks: &mut [[u8; 16]]) -> u8 {
    // SAFETY: every x86-64 has SSE2.
    unsafe { sse2::blocks_of_bytes(blocks) };
    blocks.last().map_or(0, |block| block[15])
}

#[cfg(target_arch = "x86_64")]
fn blocks_of_words(blocks: &mut [[u16; 8]]) -> u16 {
    // SAFETY: every x86-64 has SSE2.
    unsafe { sse2::blocks_of_words(blocks) };
    blocks.last().map_or(0, |block| block[7])
}

#[cfg(not(target_arch = "x86_64"))]
fn blocks_of_bytes(blocks: &mut [[u8; 16]]) -> u8 {
    blocks.as_flattened_mut().iter_mut().fold(0, |sum, v| {
        *v = v.wrapping_add(sum);
        *v
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn blocks_of_words(blocks: &mut [[u16; 8]]) -> u16 {
    blocks.as_flattened_mut().iter_mut().fold(0, |sum, v| {
        *v = v.wrapping_add(sum);
        *v
    })
}

/// A compiler goes number by number, four times as slow: each sum waits for the one before. Here the sums within a block come of
/// adding the block to itself, moved by 1, 2, 4 and 8 places, and only the last number of a block is waited for.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "sse2")]
    pub(super) fn blocks_of_bytes(blocks: &mut [[u8; 16]]) {
        let mut before = _mm_setzero_si128();
        for block in blocks {
            let mut v = load(u128::from_le_bytes(*block));
            v = _mm_add_epi8(v, _mm_slli_si128::<1>(v));
            v = _mm_add_epi8(v, _mm_slli_si128::<2>(v));
            v = _mm_add_epi8(v, _mm_slli_si128::<4>(v));
            v = _mm_add_epi8(v, _mm_slli_si128::<8>(v));
            v = _mm_add_epi8(v, before);
            *block = store(v).to_le_bytes();
            let last = _mm_srli_si128::<15>(v);
            before = _mm_shuffle_epi32::<0>(_mm_shufflelo_epi16::<0>(_mm_unpacklo_epi8(last, last)));
        }
    }

    #[target_feature(enable = "sse2")]
    pub(super) fn blocks_of_words(blocks: &mut [[u16; 8]]) {
        let mut before = _mm_setzero_si128();
        for block in blocks {
            let [a, b, c, d, e, f, g, h] = block.map(|v| v as i16);
            let mut v = _mm_set_epi16(h, g, f, e, d, c, b, a);
            v = _mm_add_epi16(v, _mm_slli_si128::<2>(v));
            v = _mm_add_epi16(v, _mm_slli_si128::<4>(v));
            v = _mm_add_epi16(v, _mm_slli_si128::<8>(v));
            v = _mm_add_epi16(v, before);
            let sums = store(v).to_le_bytes();
            *block = std::array::from_fn(|i| u16::from_le_bytes([sums[2 * i], sums[2 * i + 1]]));
            let last = _mm_shufflehi_epi16::<0xff>(v);
            before = _mm_unpackhi_epi64(last, last);
        }
    }

    #[target_feature(enable = "sse2")]
    fn load(v: u128) -> __m128i {
        _mm_set_epi64x((v >> 64) as i64, v as i64)
    }

    #[target_feature(enable = "sse2")]
    fn store(v: __m128i) -> u128 {
        let (low, high) = (_mm_cvtsi128_si64(v) as u64, _mm_cvtsi128_si64(_mm_unpackhi_epi64(v, v)) as u64);
        u128::from(high) << 64 | u128::from(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_any_number_of_bytes_and_words() {
        for n in (0..70).chain([36_864]) {
            let words: Vec<u16> = (0..n).map(|i| engine::random::bits(1, i) as u16).collect();
            let bytes: Vec<u8> = words.iter().map(|&v| v as u8).collect();
            let sum = |sum: &mut u16, v: &u16| {
                *sum = sum.wrapping_add(*v);
                Some(*sum)
            };
            let want: Vec<u16> = words.iter().scan(0, sum).collect();
            let (mut got, mut got_bytes) = (words, bytes);
            of_words(&mut got);
            of_bytes(&mut got_bytes);
            assert_eq!(got, want);
            assert_eq!(got_bytes, want.iter().map(|&v| v as u8).collect::<Vec<_>>());
        }
    }
}

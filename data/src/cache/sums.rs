//! Running sums, without carry beyond a number's bits: what undoes differences.

/// Numbers that are summed as vectors.
const BLOCK: usize = 16;

/// Of as many bytes as there is room for.
pub(super) fn of_bytes(numbers: &[u8], sums: &mut [u16]) {
    let numbers = &numbers[..sums.len()];
    let done = blocks_of_bytes(numbers.as_chunks().0, sums.as_chunks_mut().0);
    let add = |sum: u16, n: &u8| u16::from((sum as u8).wrapping_add(*n));
    one_by_one(done, numbers.iter(), sums, add);
}

/// Of as many words, whose low and high bytes stand apart.
pub(super) fn of_words(low: &[u8], high: &[u8], sums: &mut [u16]) {
    let (low, high) = (&low[..sums.len()], &high[..sums.len()]);
    let done = blocks_of_words(low.as_chunks().0, high.as_chunks().0, sums.as_chunks_mut().0);
    let add = |sum: u16, (l, h): (&u8, &u8)| sum.wrapping_add(u16::from_le_bytes([*l, *h]));
    one_by_one(done, low.iter().zip(high), sums, add);
}

/// The sums after the first `done`.
fn one_by_one<N>(done: usize, numbers: impl Iterator<Item = N>, sums: &mut [u16], add: impl Fn(u16, N) -> u16) {
    let (before, sums) = sums.split_at_mut(done);
    let mut sum = before.last().copied().unwrap_or(0);
    for (to, n) in sums.iter_mut().zip(numbers.skip(done)) {
        sum = add(sum, n);
        *to = sum;
    }
}

/// How many numbers it summed.
#[cfg(target_arch = "x86_64")]
fn blocks_of_bytes(numbers: &[[u8; BLOCK]], sums: &mut [[u16; BLOCK]]) -> usize {
    // SAFETY: every x86-64 has SSE2.
    unsafe { sse2::blocks_of_bytes(numbers, sums) };
    BLOCK * sums.len()
}

/// How many numbers it summed.
#[cfg(target_arch = "x86_64")]
fn blocks_of_words(low: &[[u8; BLOCK]], high: &[[u8; BLOCK]], sums: &mut [[u16; BLOCK]]) -> usize {
    // SAFETY: every x86-64 has SSE2.
    unsafe { sse2::blocks_of_words(low, high, sums) };
    BLOCK * sums.len()
}

#[cfg(not(target_arch = "x86_64"))]
fn blocks_of_bytes(_: &[[u8; BLOCK]], _: &mut [[u16; BLOCK]]) -> usize {
    0
}

#[cfg(not(target_arch = "x86_64"))]
fn blocks_of_words(_: &[[u8; BLOCK]], _: &[[u8; BLOCK]], _: &mut [[u16; BLOCK]]) -> usize {
    0
}

/// A compiler goes number by number, four times as slow: each sum waits for the one before. Here the sums within a vector come of
/// adding it to itself, moved by 1, 2, 4 and 8 places, and only its last number is waited for.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use super::BLOCK;
    use std::arch::x86_64::*;

    #[target_feature(enable = "sse2")]
    pub(super) fn blocks_of_bytes(numbers: &[[u8; BLOCK]], sums: &mut [[u16; BLOCK]]) {
        let mut before = _mm_setzero_si128();
        for (block, to) in numbers.iter().zip(sums) {
            let mut v = load(block);
            v = _mm_add_epi8(v, _mm_slli_si128::<1>(v));
            v = _mm_add_epi8(v, _mm_slli_si128::<2>(v));
            v = _mm_add_epi8(v, _mm_slli_si128::<4>(v));
            v = _mm_add_epi8(v, _mm_slli_si128::<8>(v));
            v = _mm_add_epi8(v, before);
            let zero = _mm_setzero_si128();
            store([_mm_unpacklo_epi8(v, zero), _mm_unpackhi_epi8(v, zero)], to);
            let last = _mm_srli_si128::<15>(v);
            before = _mm_shuffle_epi32::<0>(_mm_shufflelo_epi16::<0>(_mm_unpacklo_epi8(last, last)));
        }
    }

    #[target_feature(enable = "sse2")]
    pub(super) fn blocks_of_words(low: &[[u8; BLOCK]], high: &[[u8; BLOCK]], sums: &mut [[u16; BLOCK]]) {
        let mut before = _mm_setzero_si128();
        for ((low, high), to) in low.iter().zip(high).zip(sums) {
            let (low, high) = (load(low), load(high));
            let first = words_within(_mm_unpacklo_epi8(low, high));
            let second = words_within(_mm_unpackhi_epi8(low, high));
            let first = _mm_add_epi16(first, before);
            let second = _mm_add_epi16(second, last_word(first));
            store([first, second], to);
            before = last_word(second);
        }
    }

    /// The running sums of 8 words.
    #[target_feature(enable = "sse2")]
    fn words_within(mut v: __m128i) -> __m128i {
        v = _mm_add_epi16(v, _mm_slli_si128::<2>(v));
        v = _mm_add_epi16(v, _mm_slli_si128::<4>(v));
        _mm_add_epi16(v, _mm_slli_si128::<8>(v))
    }

    /// The last of 8 words, 8 times.
    #[target_feature(enable = "sse2")]
    fn last_word(v: __m128i) -> __m128i {
        let last = _mm_shufflehi_epi16::<0xff>(v);
        _mm_unpackhi_epi64(last, last)
    }

    #[target_feature(enable = "sse2")]
    fn load(block: &[u8; BLOCK]) -> __m128i {
        let v = u128::from_le_bytes(*block);
        _mm_set_epi64x((v >> 64) as i64, v as i64)
    }

    #[target_feature(enable = "sse2")]
    fn store(halves: [__m128i; 2], to: &mut [u16; BLOCK]) {
        let quarters = halves.map(|v| [_mm_cvtsi128_si64(v), _mm_cvtsi128_si64(_mm_unpackhi_epi64(v, v))]);
        let (words, _) = to.as_chunks_mut::<4>();
        for (to, four) in words.iter_mut().zip(quarters.as_flattened()) {
            *to = std::array::from_fn(|i| (four >> (16 * i)) as u16);
        }
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
            let (low, high) = (bytes.clone(), words.iter().map(|v| (v >> 8) as u8).collect::<Vec<_>>());
            let mut got = vec![0x5a5a; words.len()];
            of_words(&low, &high, &mut got);
            assert_eq!(got, want);
            of_bytes(&bytes, &mut got);
            assert_eq!(got, want.iter().map(|v| v & 0xff).collect::<Vec<_>>());
        }
    }
}

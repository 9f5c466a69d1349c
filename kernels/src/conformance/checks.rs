//! The checks: inputs, launch, and what must come out.

use super::Want::{self, Bits, Near, NotFinite, Value};
use super::cuda::Launch;
use super::host;
use engine::random::{bits, derive, normal, uniform};
use engine::{Device, Result};

type Check = fn(Device, u64) -> Result<Vec<(u32, Want)>>;

/// Each with the wrappers that it is about.
pub const ALL: &[(&str, Check)] = &[
    ("to_bf16, to_f16, to_tf32, pack", round),
    ("to_f32, unpack", widen),
    ("ex2, expf, logf, rsqrtf, sqrtf, /, fmaf", math),
    ("shuffles and votes", warp),
    ("warp_sum, warp_max, block_sum, block_max", reduce),
    ("ldmatrix", ldmatrix),
    ("mma_bf16", mma_bf16),
    ("mma_f16", mma_f16),
    ("mma_tf32", mma_tf32),
    ("cp_async", copy),
    ("__threadfence, atomicAdd", last_block),
];

/// What an output holds before the launch, so that a word that is not written shows.
const UNWRITTEN: u32 = 0xa5a5_a5a5;

fn words(seed: u64, stream: u64, n: usize) -> Vec<u32> {
    let seed = derive(seed, &[stream]);
    (0..n as u64).map(|i| bits(seed, i) as u32).collect()
}

fn normals(seed: u64, stream: u64, n: usize) -> Vec<f32> {
    let seed = derive(seed, &[stream]);
    (0..n as u64).map(|i| normal(seed, i) as f32).collect()
}

fn raw(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn pairs(got: Vec<u32>, want: Vec<Want>) -> Vec<(u32, Want)> {
    got.into_iter().zip(want).collect()
}

/// Numbers of every size, and the neighbourhood of what is special about the formats.
fn round(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    let mut a = words(seed, 1, 20_000);
    // around ties and the largest and smallest values of f16 and bf16
    for edge in [0x3f80_8000, 0x3f81_8000, 0x3f80_1000, 0x3f80_3000, 0x477f_e000, 0x477f_f000, 0x3380_0000, 0x3300_0000]
    {
        a.extend([edge - 1, edge, edge + 1, edge | 1 << 31]);
    }
    a.extend(raw(&[0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 1e-45]));
    a.extend([0x7f80_0001, 0xff80_1fff, 0x7f80_2000, 0x7fff_ffff]); // NaN by some of their bits
    // a quarter in the range of f16
    a.extend(raw(&normals(seed, 2, a.len() / 3)));
    let b: Vec<u32> = a.iter().rev().copied().collect();
    let launch = elementwise("conformance_round", &a, &b, 5);
    // SAFETY: a and b have n words, out 5 n.
    let got = unsafe { launch.run(device)? };
    let want = a.iter().zip(&b).flat_map(|(&a, &b)| {
        let (a, b) = (f32::from_bits(a), f32::from_bits(b));
        let pair = |convert: fn(f32) -> u32| Bits(convert(a) | convert(b) << 16);
        [Bits(host::bf16(a)), Bits(host::f16(a)), tf32(a), pair(host::bf16), pair(host::f16)]
    });
    Ok(pairs(got, want.collect()))
}

/// GPUs cut the low 13 bits of a NaN off: one that is NaN only by these becomes an infinity.
fn tf32(value: f32) -> Want {
    let cut = f32::from_bits(value.to_bits() & !0x1fff);
    if value.is_nan() && cut.is_infinite() { NotFinite } else { Value(host::tf32(value)) }
}

/// All numbers of both formats.
fn widen(device: Device, _: u64) -> Result<Vec<(u32, Want)>> {
    let a: Vec<u32> = (0..0x8000).map(|i| i | (i + 0x8000) << 16).collect();
    let launch = elementwise("conformance_widen", &a, &[], 4);
    // SAFETY: a has n words, out 4 n.
    let got = unsafe { launch.run(device)? };
    let want = a.iter().flat_map(|word| {
        let (low, high) = (word & 0xffff, word >> 16);
        [host::from_bf16(low), host::from_bf16(high), host::from_f16(low), host::from_f16(high)].map(Value)
    });
    Ok(pairs(got, want.collect()))
}

/// CUDA's programming guide gives 2 units in the last place for expf and rsqrtf and 1 for logf; device.cuh 2 for ex2. One half
/// more is the rounding of what is expected.
fn math(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    let spread = derive(seed, &[1]);
    let mut a: Vec<f32> = (0..4000).map(|i| (300.0 * uniform(spread, i) - 150.0) as f32).collect();
    a.extend([0.0, 1.0, 1e-40, 1e-30, 1e30, f32::INFINITY]);
    let b: Vec<f32> = normals(seed, 2, a.len()).iter().map(|b| b.exp()).collect();
    let (a_words, b_words) = (raw(&a), raw(&b));
    let launch = elementwise("conformance_math", &a_words, &b_words, 7);
    // SAFETY: a and b have n words, out 7 n.
    let got = unsafe { launch.run(device)? };
    let want = a.iter().zip(&b).flat_map(|(&a, &b)| {
        let wide = f64::from(a);
        let flushed = if wide.exp2() < f64::from(f32::MIN_POSITIVE) { Value(0.0) } else { within(wide.exp2(), 2.0) };
        let inverse = within(1.0 / wide.sqrt(), 2.0);
        [
            flushed,
            within(wide.exp(), 2.0),
            within(wide.ln(), 1.0),
            inverse,
            Value(a.sqrt()),
            Value(a / b),
            Value(a.mul_add(b, a)),
        ]
    });
    Ok(pairs(got, want.collect()))
}

/// So many units of f32's last place, and half a unit; to the bit where f32 has no finite number for it.
fn within(value: f64, units: f64) -> Want {
    let near = value as f32;
    if !near.is_finite() {
        return Value(near);
    }
    let next = f32::from_bits(near.abs().to_bits() + 1);
    Near(value, (units + 0.5) * (f64::from(next) - f64::from(near.abs())))
}

fn warp(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    let (blocks, threads) = (8, 64);
    let a = words(seed, 1, blocks * threads);
    let out = vec![UNWRITTEN; 8 * a.len()];
    let launch = Launch { kernel: "conformance_warp", blocks, threads: 64, shared: 0, a: &a, b: &[], out, n: a.len() };
    // SAFETY: a has one word for each thread, out 8.
    let got = unsafe { launch.run(device)? };
    let want = (0..a.len()).flat_map(|i| {
        let (lane, own, block) = (i % 32, &a[i / 32 * 32..][..32], &a[i / threads * threads..][..threads]);
        let ballot = own.iter().enumerate().map(|(lane, word)| (word & 1) << lane).sum();
        let zeros = own.iter().filter(|word| **word & 31 == 0).count();
        let count = block.iter().filter(|word| **word & 2 != 0).count();
        let moved = [
            lane / 8 * 8 + 5,
            lane ^ 21,
            if lane < 3 { lane } else { lane - 3 },
            if lane % 16 > 12 { lane } else { lane + 3 },
        ];
        let votes = [ballot, u32::from(zeros > 0), u32::from(zeros == 0), count as u32];
        moved.map(|from| own[from]).into_iter().chain(votes).map(Bits)
    });
    Ok(pairs(got, want.collect()))
}

/// The order of a sum is part of the contract, so its bits are.
fn reduce(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    let (blocks, threads) = (16, 96);
    let a = normals(seed, 1, blocks * threads);
    let (a_words, out) = (raw(&a), vec![UNWRITTEN; 4 * a.len()]);
    let launch =
        Launch { kernel: "conformance_reduce", blocks, threads: 96, shared: 0, a: &a_words, b: &[], out, n: a.len() };
    // SAFETY: a has one word for each thread, out 4.
    let got = unsafe { launch.run(device)? };
    let add = |a, b| a + b;
    let (sums, mosts) = (host::butterfly(&a, 8, add), host::butterfly(&a, 8, f32::max));
    let (warps, highs) = (host::butterfly(&a, 32, add), host::butterfly(&a, 32, f32::max));
    let want = (0..a.len()).flat_map(|i| {
        let of_block = |lanes: &[f32]| [0, 32, 64].map(|warp| lanes[i / threads * threads + warp]);
        let sum = of_block(&warps).into_iter().reduce(add).unwrap_or_default();
        let most = of_block(&highs).into_iter().reduce(f32::max).unwrap_or_default();
        [sum, most, sums[i], mosts[i]].map(Value)
    });
    Ok(pairs(got, want.collect()))
}

fn ldmatrix(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    let blocks = 8;
    let a = words(seed, 1, blocks * 32 * 4);
    let out = vec![UNWRITTEN; blocks * 32 * 14];
    let launch = Launch { kernel: "conformance_ldmatrix", blocks, threads: 32, shared: 0, a: &a, b: &[], out, n: 0 };
    // SAFETY: a has 4 words for each thread, out 14.
    let got = unsafe { launch.run(device)? };
    let want = (0..blocks * 32).flat_map(|i| {
        let (block, g, t) = (i / 32, i % 32 / 4, i % 4 * 2);
        let element = |tile: usize, row: usize, column: usize| {
            a[(block * 32 + tile * 8 + row) * 4 + column / 2] >> (column % 2 * 16) & 0xffff
        };
        let plain = |tile| Bits(element(tile, g, t) | element(tile, g, t + 1) << 16);
        let across = |tile| Bits(element(tile, t, g) | element(tile, t + 1, g) << 16);
        let both = |tiles: usize| (0..tiles).map(plain).chain((0..tiles).map(across)).collect::<Vec<_>>();
        [both(1), both(2), both(4)].concat()
    });
    Ok(pairs(got, want.collect()))
}

fn mma_bf16(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    mma(device, seed, "conformance_mma_bf16", 16, |v| host::from_bf16(host::bf16(v)))
}

fn mma_f16(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    mma(device, seed, "conformance_mma_f16", 16, |v| host::from_f16(host::f16(v)))
}

fn mma_tf32(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    mma(device, seed, "conformance_mma_tf32", 8, host::tf32)
}

/// d (16 × 8) += a (16 × k) · b (k × 8) for operands that are rounded first. Each of the k + 1 terms may lose one unit of a sum of
/// 24 bits; half of the products are of small whole numbers, whose sums are exact in any order.
fn mma(device: Device, seed: u64, kernel: &str, k: usize, rounded: fn(f32) -> f32) -> Result<Vec<(u32, Want)>> {
    let blocks = 64;
    let [a, b, c] = [16 * k, 8 * k, 128].map(|n| {
        let values = normals(seed, n as u64, blocks * n);
        let whole = |(i, v): (usize, f32)| if i / n % 2 == 0 { v } else { (4.0 * v).round() };
        values.into_iter().enumerate().map(whole).collect::<Vec<_>>()
    });
    let (a_words, b_words) = (raw(&a), raw(&b));
    let launch = Launch { kernel, blocks, threads: 32, shared: 0, a: &a_words, b: &b_words, out: raw(&c), n: 0 };
    // SAFETY: a, b and out have a tile for each block.
    let got = unsafe { launch.run(device)? };
    let want = (0..blocks * 128).map(|i| {
        let (block, row, column) = (i / 128, i / 8 % 16, i % 8);
        let start = f64::from(c[i]);
        let (mut sum, mut size) = (start, start.abs());
        for k_index in 0..k {
            let left = f64::from(rounded(a[(block * 16 + row) * k + k_index]));
            let right = f64::from(rounded(b[(block * k + k_index) * 8 + column]));
            sum += left * right;
            size += (left * right).abs();
        }
        if block % 2 == 1 { Value(sum as f32) } else { Near(sum, (k + 1) as f64 * 2f64.powi(-23) * size) }
    });
    Ok(pairs(got, want.collect()))
}

fn copy(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    let (blocks, threads) = (8, 64);
    let (a, b) = (words(seed, 1, blocks * threads * 4), words(seed, 2, blocks * threads));
    let (out, shared) = (vec![UNWRITTEN; blocks * threads * 12], 48 * threads as u32);
    let launch = Launch { kernel: "conformance_copy", blocks, threads: 64, shared, a: &a, b: &b, out, n: 0 };
    // SAFETY: for each thread a has 4 words, b one and out 12, and there are 48 bytes of shared memory.
    let got = unsafe { launch.run(device)? };
    // which of the six copies brings each of a thread's words
    let copies = [0, 0, 0, 0, 1, 2, 3, 3, 4, 4, 5, 5];
    let want = (0..blocks * threads * 12).map(|i| {
        let (thread, word) = (i / 12, i % 12);
        Bits(if b[thread] >> copies[word] & 1 == 1 { a[thread * 4 + word % 4] } else { 0 })
    });
    Ok(pairs(got, want.collect()))
}

fn last_block(device: Device, seed: u64) -> Result<Vec<(u32, Want)>> {
    let a = normals(seed, 1, 2000);
    let a_words = raw(&a);
    let mut out = vec![UNWRITTEN; 2 + a.len()];
    out[0] = 0;
    let launch = Launch {
        kernel: "conformance_last_block",
        blocks: a.len(),
        threads: 32,
        shared: 0,
        a: &a_words,
        b: &[],
        out,
        n: 0,
    };
    // SAFETY: a has a word for each block, out two more.
    let got = unsafe { launch.run(device)? };
    let sum = a.iter().fold(0.0, |sum, v| sum + v);
    Ok(pairs(got, [Bits(a.len() as u32), Value(sum)].into_iter().chain(a.iter().map(|v| Value(*v))).collect()))
}

/// A launch over arrays in strides of the grid, with so many words out for each word of a.
fn elementwise<'a>(kernel: &'a str, a: &'a [u32], b: &'a [u32], factor: usize) -> Launch<'a> {
    Launch { kernel, blocks: 40, threads: 64, shared: 0, a, b, out: vec![UNWRITTEN; factor * a.len()], n: a.len() }
}

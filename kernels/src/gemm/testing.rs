//! What the tests of convolutions and linear layers share.

use crate::conv3d::Params;
use crate::simd::{Level, testing::run_at};
use engine::{DType, Result, Tensor};

/// Values in (-1, 1) with 7 bits, so that products of two are exact in f32, and those of sums of 4 and of 9 in a Winograd tile: a
/// multiply-add rounds alike on every CPU, and what is left to differ is the order of sums.
pub fn values(dims: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Vec<f32> = (0..dims.iter().product())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as i32 as f32 % 128.0 / 128.0 * if state & 1 == 0 { 1.0 } else { -1.0 }
        })
        .collect();
    Tensor::from_slice(&data, dims).expect("values")
}

/// Eighths in [-1, 1] in bf16: their products, and sums of up to 2^18 of those, are exact in f32 in any order, so that results
/// have one rounding and the same bits on every CPU.
pub fn eighths(dims: &[usize], seed: u64) -> Tensor {
    let eighth = |v: f64| (v * 8.0).round() / 8.0;
    let data: Vec<f64> = values(dims, seed).to_f64_vec().expect("values").into_iter().map(eighth).collect();
    Tensor::from_slice(&data, dims).and_then(|t| t.to_dtype(DType::BF16)).expect("bf16")
}

/// Asserts that `f`, of [`eighths`], is the exact result rounded to the dtype of its result, on every CPU.
pub fn assert_rounded(what: &str, want: &[f64], f: impl Fn() -> Result<Tensor> + Sync) {
    let got = on_every_cpu(what, f);
    let want = Tensor::from_slice(want, got.dims()).and_then(|t| t.to_dtype(got.dtype())).expect("rounded");
    assert!(got.to_f64_vec() == want.to_f64_vec(), "{what}: not the exact result in {}", got.dtype());
}

pub fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).expect("f64")
}

pub fn assert_near(what: &str, got: &Tensor, want: &[f64], bound: f64) {
    let got = got.to_f64_vec().expect("values");
    assert_eq!(got.len(), want.len(), "{what}: sizes");
    let distance: f64 = got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let size: f64 = want.iter().map(|v| v * v).sum::<f64>().sqrt();
    assert!(distance <= bound * size, "{what}: error {:e} of {size}", distance / size);
}

/// Runs `f` with every width of vectors that this CPU has, on one thread and on three, and asserts that all give the same bits.
pub fn on_every_cpu(what: &str, f: impl Fn() -> Result<Tensor> + Sync) -> Tensor {
    let mut first: Option<Tensor> = None;
    for level in Level::ALL {
        for threads in [1, 3] {
            let got = run_at(level, threads, &f).expect(what);
            let want = first.get_or_insert_with(|| got.clone());
            let same = want.to_f64_vec().expect("values") == got.to_f64_vec().expect("values");
            assert!(same, "{what}: {level:?} on {threads} threads differs");
        }
    }
    first.expect("ran")
}

/// The three sums of a convolution by their definition, in f64.
pub struct Definition {
    pub y: Vec<f64>,
    pub dx: Vec<f64>,
    pub dw: Vec<f64>,
}

/// For x `[N, D, H, W, Ci]`, w `[Co, KD, KH, KW, Ci]` and dy `[N, Do, Ho, Wo, Co]`.
pub fn definition(x: &Tensor, w: &Tensor, dy: &Tensor, p: Params) -> Definition {
    let [n, d, h, wide, ci] = x.ndhwc("x").expect("x");
    let [co, kd, kh, kw, _] = w.ndhwc("w").expect("w");
    let [_, od, oh, ow, _] = dy.ndhwc("dy").expect("dy");
    let [xs, ws, dys] = [x, w, dy].map(|t| t.to_f64_vec().expect("values"));
    let mut sums = Definition { y: vec![0.0; dys.len()], dx: vec![0.0; xs.len()], dw: vec![0.0; ws.len()] };
    let place = |o: usize, k: usize, a: usize, size: usize| {
        (o * p.stride[a] + k).checked_sub(p.padding[a]).filter(|&at| at < size)
    };
    for out in 0..n * od * oh * ow {
        let (b, o) = (out / ow / oh / od, [out / ow / oh % od, out / ow % oh, out % ow]);
        for tap in 0..kd * kh * kw {
            let k = [tap / kw / kh, tap / kw % kh, tap % kw];
            let at = (place(o[0], k[0], 0, d), place(o[1], k[1], 1, h), place(o[2], k[2], 2, wide));
            let (Some(q), Some(r), Some(s)) = at else { continue };
            for i in 0..ci {
                let xi = (((b * d + q) * h + r) * wide + s) * ci + i;
                for c in 0..co {
                    let (yi, wi) = (out * co + c, (c * kd * kh * kw + tap) * ci + i);
                    sums.y[yi] += xs[xi] * ws[wi];
                    sums.dx[xi] += dys[yi] * ws[wi];
                    sums.dw[wi] += dys[yi] * xs[xi];
                }
            }
        }
    }
    sums
}

/// Asserts that `gradient` is that of `sum(f(at) * cotangent)` in `at`, all f64, by central differences.
pub fn assert_gradient(
    what: &str,
    at: &Tensor,
    cotangent: &Tensor,
    gradient: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) {
    const STEP: f64 = 1e-4;
    let point = at.to_vec::<f64>().expect("f64");
    let loss = |point: &[f64]| -> f64 {
        let y = f(&Tensor::from_slice(point, at.dims()).expect("point")).expect(what);
        y.to_f64_vec().expect("y").iter().zip(cotangent.to_f64_vec().expect("dy")).map(|(y, c)| y * c).sum()
    };
    let slopes: Vec<f64> = (0..point.len())
        .map(|i| {
            let moved = |by: f64| {
                let mut point = point.clone();
                point[i] += by;
                loss(&point)
            };
            (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
        })
        .collect();
    assert_near(what, gradient, &slopes, 1e-9);
}

//! Window attention against the CPU's f64.

use super::{DTYPES, assert_close, device, exact, random, same_bits, unit};
use engine::{DType, Device, Tensor};
use kernels::window_attention::{Grads, Output, Params, backward, forward};

/// Sizes of a case: batch, grid, heads, head_dim, window, shift.
type Case = (usize, [usize; 3], usize, usize, [usize; 3], [usize; 3]);

/// Grids of 1, of primes, smaller than the window on all, some and no axes; with and without padding, shift and a batch; heads
/// narrower than a tile, as wide, and between; one block and several for the rows of a window.
const CASES: [Case; 15] = [
    (1, [1, 1, 1], 1, 1, [7; 3], [3; 3]),
    (2, [1, 1, 1], 3, 5, [1; 3], [0; 3]),
    (1, [5, 8, 13], 2, 4, [7; 3], [3; 3]),
    (2, [5, 8, 13], 1, 5, [2, 3, 4], [1, 1, 2]),
    (1, [4, 9, 7], 3, 16, [7; 3], [3; 3]),
    (1, [7, 7, 7], 1, 32, [7; 3], [0; 3]),
    (2, [4, 4, 4], 2, 64, [7; 3], [3; 3]),
    (1, [3, 5, 2], 1, 64, [2, 3, 4], [1, 1, 2]),
    (1, [2, 3, 19], 2, 7, [2, 2, 17], [0, 1, 5]),
    (1, [3, 4, 5], 1, 20, [2, 3, 4], [0, 0, 0]),
    (1, [9, 8, 10], 2, 16, [7; 3], [0, 3, 0]),
    (1, [6, 5, 3], 2, 33, [4, 4, 2], [2, 0, 1]),
    (3, [5, 11, 3], 3, 8, [3, 4, 3], [1, 2, 1]),
    (1, [8, 7, 7], 1, 48, [7; 3], [3; 3]),
    (1, [1, 2, 600], 1, 12, [1, 2, 400], [0, 0, 100]),
];

struct Inputs {
    p: Params,
    qkv: Tensor,
    pad: Tensor,
    table: Tensor,
    dy: Tensor,
}

impl Inputs {
    /// qkv and dy in `dtype`; pad holds what `dtype` can hold.
    fn new((b, [d, h, w], heads, head_dim, window, shift): Case, dtype: DType) -> Inputs {
        let channels = heads * head_dim;
        let offsets: usize = window.iter().map(|w| 2 * w - 1).product();
        Inputs {
            p: Params { heads, window, shift },
            qkv: random(1, &[b, d, h, w, 3 * channels], dtype),
            pad: random(2, &[3 * channels], dtype).to_dtype(DType::F32).expect("pad"),
            table: random(3, &[offsets, heads], DType::F32),
            dy: random(4, &[b, d, h, w, channels], dtype),
        }
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Inputs {
        Inputs { p: self.p, qkv: f(&self.qkv), pad: f(&self.pad), table: f(&self.table), dy: f(&self.dy) }
    }

    fn to(&self, device: Device) -> Inputs {
        self.map(|t| t.to_device(device).expect("copy"))
    }

    fn run(&self) -> (Output, Grads) {
        let out = forward(&self.qkv, &self.pad, &self.table, self.p).expect("forward");
        let g = backward(&self.dy, &out.y, &out.lse, &self.qkv, &self.pad, &self.table, self.p).expect("backward");
        (out, g)
    }
}

fn all((out, g): &(Output, Grads)) -> [&Tensor; 5] {
    [&out.y, &out.lse, &g.dqkv, &g.dpad, &g.dtable]
}

/// In f32: sums of up to some hundred roundings, most of which cancel, and weights within a few units (scores of up to 8 in base 2,
/// rounded, and 2 units of the exponential).
///
/// In 16 bits a weight, or its derivative ds, is rounded by up to a unit before it multiplies, each on its own, and so is the result:
/// two units for y and the gradients of v. ds also has an error from D, made from a y that was rounded by as much, and D is not
/// larger than dy · v, of which it is the mean: three units for the gradients of q and k, of which dpad and dtable are sums. lse
/// comes from products that are exact.
fn assert_agrees_with_f64(cases: &[Case]) {
    let device = device();
    for dtype in DTYPES {
        for &case in cases {
            let inputs = Inputs::new(case, dtype);
            let (want, want_g) = inputs.map(exact).run();
            let inputs = inputs.to(device);
            let got = inputs.run();
            same_bits(&all(&got), &all(&inputs.run()));
            let (out, g) = got;
            let sums = 32.0 * unit(DType::F32);
            let rounded = |times: f64| sums + if dtype.is_half() { times * unit(dtype) } else { 0.0 };
            assert_close(&out.y, &want.y, rounded(2.0));
            assert_close(&out.lse, &want.lse, sums);
            assert_close(&g.dqkv, &want_g.dqkv, rounded(3.0));
            assert_close(&g.dpad, &want_g.dpad, rounded(3.0));
            assert_close(&g.dtable, &want_g.dtable, rounded(3.0));
            assert_eq!([out.lse.dtype(), g.dpad.dtype(), g.dtable.dtype()], [DType::F32; 3]);
        }
    }
}

#[test]
fn outputs_and_gradients_agree_with_f64() {
    assert_agrees_with_f64(&CASES);
}

/// Few tokens, for runs under a sanitizer, which take a hundred times as long: several windows, with padding, shift and masks; rows of
/// one block and of several.
#[test]
fn small_windows_agree_with_f64() {
    assert_agrees_with_f64(&[
        (1, [3, 5, 2], 1, 16, [2, 3, 4], [1, 1, 2]),
        (1, [4, 5, 4], 2, 4, [4; 3], [2; 3]),
        (1, [1, 2, 70], 1, 12, [1, 2, 40], [0, 0, 10]),
    ]);
}

#[test]
fn broken_numbers_show() {
    let device = device();
    for dtype in DTYPES {
        for (part, bad) in [(0, f64::NAN), (1, f64::NAN), (2, f64::NAN), (0, f64::INFINITY), (1, f64::INFINITY)] {
            let mut inputs = Inputs::new((1, [3, 3, 3], 1, 4, [7; 3], [0; 3]), dtype);
            let mut values = inputs.qkv.to_f64_vec().expect("qkv");
            values[5 * 12 + part * 4] = bad;
            inputs.qkv =
                Tensor::from_slice(&values, inputs.qkv.dims()).and_then(|t| t.to_dtype(dtype)).expect("broken qkv");
            let (out, g) = inputs.to(device).run();
            let [y, lse, dqkv] = [&out.y, &out.lse, &g.dqkv].map(|t| t.to_f64_vec().expect("values"));
            let rows = if part == 0 { 5..6 } else { 0..27 };
            for r in rows {
                let broken = y[r * 4].is_nan() && (part == 2 || lse[r].is_nan()) && dqkv[r * 12].is_nan();
                assert!(broken, "{dtype}: {bad} in part {part} does not show in row {r}");
            }
        }
    }
}

#[test]
fn what_kernels_cannot_do_is_an_error() {
    let device = device();
    let run = |case: Case, dtype: DType| {
        let i = Inputs::new(case, dtype).to(device);
        forward(&i.qkv, &i.pad, &i.table, i.p).map(drop).map_err(|e| e.to_string())
    };
    let wide = run((1, [2, 2, 2], 1, 65, [2; 3], [0; 3]), DType::F32).expect_err("65 channels");
    assert!(wide.contains("up to 64 channels"), "{wide}");
    let long = run((1, [1, 1, 1024], 1, 4, [1, 1, 1024], [0; 3]), DType::F32).expect_err("a long axis");
    assert!(long.contains("axes below 1024"), "{long}");
    let large = run((1, [24, 24, 24], 1, 4, [24; 3], [0; 3]), DType::BF16).expect_err("a large window");
    assert!(large.contains("too large for a block"), "{large}");
    let i = Inputs::new(CASES[4], DType::BF16);
    let narrow = i.pad.to_dtype(DType::BF16).expect("bf16");
    assert!(forward(&i.qkv, &narrow, &i.table, i.p).is_err(), "pad goes with sums, in f32");
}

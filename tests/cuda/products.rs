//! Convolutions, transposed convolutions, linear layers and bias gradients against the CPU's f64.

use super::{DTYPES, assert_close, device, exact, random, same_bits, twice, unit};
use engine::{DType, Device, Error, Tensor};
use kernels::{add, conv_transpose3d as transposed, conv3d as conv, gelu, linear, sum_rows};

/// A sum of k products of normal values, all of them exact in f32 for inputs of 16 bits. Each addition rounds by at most 2^-24 of
/// what is there so far, whose square is j for the jth, so that as noise they add up to the square root of k / 2 of the result's.
/// The tensor cores may instead cut off 2^-23 at every eighth product, always towards zero: at most k / 6. The bias and splits of
/// k add a few roundings more.
fn sum_bound(k: usize, dtype: DType) -> f64 {
    let cut = if dtype.is_half() { k as f64 / 6.0 } else { 0.0 };
    unit(DType::F32) * (cut + (k as f64).sqrt() + 4.0)
}

/// The same for a result that is then rounded to `dtype`.
fn bound(k: usize, dtype: DType) -> f64 {
    sum_bound(k, dtype) + unit(dtype)
}

fn there(t: &Tensor, device: Device) -> Tensor {
    t.to_device(device).expect("copy")
}

/// f returns the same bits twice, and no more than `bound` from `want`.
#[track_caller]
fn check(f: impl Fn() -> engine::Result<Tensor>, want: engine::Result<Tensor>, bound: f64) {
    assert_close(&twice(f), &want.expect("f64"), bound);
}

fn params(stride: [usize; 3], padding: [usize; 3]) -> conv::Params {
    conv::Params { stride, padding }
}

/// x, w, stride and padding. Every tile (channels around 48 and 96, in multiples of 8, 4, 2 and 1), rows that fill tiles and do
/// not, strides that divide sizes and do not, taps that no input meets, few channels, and sums long enough to be split.
fn shapes() -> Vec<([usize; 5], [usize; 5], conv::Params)> {
    let same = params([1; 3], [1; 3]);
    let plain = params([1; 3], [0; 3]);
    vec![
        ([1, 5, 6, 7, 48], [48, 3, 3, 3, 48], same),
        ([1, 7, 8, 9, 8], [56, 3, 3, 3, 8], same),
        ([2, 2, 2, 2, 64], [96, 3, 3, 3, 64], same),
        ([2, 3, 5, 4, 12], [13, 3, 3, 3, 12], same),
        ([1, 9, 9, 10, 1], [49, 3, 3, 3, 1], same),
        ([2, 8, 8, 8, 1], [48, 2, 2, 2, 1], params([2; 3], [0; 3])),
        ([1, 10, 11, 9, 3], [7, 3, 2, 4, 3], params([2, 3, 1], [2, 0, 3])),
        ([1, 3, 4, 5, 64], [101, 1, 1, 1, 64], plain),
        ([3, 4, 4, 4, 96], [192, 1, 1, 1, 96], plain),
        ([1, 6, 7, 8, 48], [14, 1, 1, 1, 48], plain),
        ([1, 9, 8, 9, 24], [24, 1, 3, 3, 24], params([1; 3], [0, 1, 1])),
        ([1, 7, 5, 6, 40], [32, 3, 3, 3, 40], params([2; 3], [1; 3])),
        ([1, 9, 12, 11, 16], [8, 2, 2, 2, 16], params([2; 3], [0; 3])),
        ([1, 5, 4, 3, 8], [16, 5, 3, 4, 8], params([1; 3], [2, 1, 2])),
        ([1, 7, 6, 9, 16], [16, 2, 2, 2, 16], params([5, 3, 4], [1, 2, 0])),
        ([2, 3, 1, 2, 5], [2, 2, 1, 3, 5], params([3, 2, 4], [4, 3, 5])),
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], plain),
        ([1, 16, 16, 32, 1], [17, 16, 16, 16, 1], params([16; 3], [0; 3])),
        ([1, 12, 12, 13, 8], [8, 12, 12, 12, 8], plain),
    ]
}

#[test]
fn convolutions_agree_with_f64() {
    let device = device();
    for (x_dims, w_dims, p) in shapes() {
        let y_dims = conv::output_dims(&x_dims, &w_dims, p).expect("dims");
        let positions: usize = y_dims[..4].iter().product();
        let (taps, inputs, outputs) = (w_dims[1..4].iter().product::<usize>(), w_dims[4], w_dims[0]);
        for dtype in DTYPES {
            let [x, w, dy] = [(1, &x_dims), (2, &w_dims), (3, &y_dims)].map(|(seed, dims)| random(seed, dims, dtype));
            let bias = random(4, &[outputs], DType::F32);
            let [x64, w64, dy64, bias64] = [&x, &w, &dy, &bias].map(exact);
            let [x, w, dy, bias] = [x, w, dy, bias].map(|t| there(&t, device));
            check(|| conv::fprop(&x, &w, None, p), conv::fprop(&x64, &w64, None, p), bound(taps * inputs, dtype));
            let want = conv::fprop(&x64, &w64, Some(&bias64), p);
            check(|| conv::fprop(&x, &w, Some(&bias), p), want, bound(taps * inputs, dtype));
            let want = conv::dgrad(&dy64, &w64, &x_dims, p);
            check(|| conv::dgrad(&dy, &w, &x_dims, p), want, bound(taps * outputs, dtype));
            let dw = || conv::wgrad(&x, &dy, &w_dims, p);
            check(dw, conv::wgrad(&x64, &dy64, &w_dims, p), sum_bound(positions, dtype));
            assert_eq!(dw().expect("dw").dtype(), DType::F32);
        }
    }
}

/// Enough of 3 x 3 x 3 for the kernels that keep a brick of the source in shared memory: sizes that bricks hang over, one and two
/// slabs of 48 channels, columns that fill no tile.
#[test]
fn convolutions_of_large_volumes_agree_with_f64() {
    let device = device();
    let (p, size) = (params([1; 3], [1; 3]), [31, 15, 29]);
    let dims = |n: usize, channels: usize| [n, size[0], size[1], size[2], channels];
    for dtype in [DType::BF16, DType::F16] {
        let (x, w, bias) =
            (random(1, &dims(2, 96), dtype), random(2, &[14, 3, 3, 3, 96], dtype), random(3, &[14], DType::F32));
        let want = conv::fprop(&exact(&x), &exact(&w), Some(&exact(&bias)), p);
        let [x, w, bias] = [x, w, bias].map(|t| there(&t, device));
        check(|| conv::fprop(&x, &w, Some(&bias), p), want, bound(27 * 96, dtype));
        let (dy, w) = (random(4, &dims(1, 48), dtype), random(5, &[48, 3, 3, 3, 56], dtype));
        let want = conv::dgrad(&exact(&dy), &exact(&w), &dims(1, 56), p);
        let [dy, w] = [dy, w].map(|t| there(&t, device));
        check(|| conv::dgrad(&dy, &w, &dims(1, 56), p), want, bound(27 * 48, dtype));
    }
}

#[test]
fn transposed_convolutions_agree_with_f64() {
    let device = device();
    for (x_dims, w_dims, stride) in [
        ([2, 3, 4, 5, 48], [48, 2, 2, 2, 24], [2; 3]),
        ([1, 4, 3, 5, 7], [7, 1, 2, 2, 50], [1, 2, 2]),
        ([1, 3, 2, 4, 5], [5, 3, 2, 1, 3], [2, 3, 2]),
        ([1, 2, 3, 2, 96], [96, 2, 2, 2, 96], [2; 3]),
        ([1, 1, 1, 1, 8], [8, 2, 2, 2, 8], [1 << 31; 3]),
    ] {
        let (p, taps) = (transposed::Params { stride }, w_dims[1..4].iter().product::<usize>());
        let positions: usize = x_dims[..4].iter().product();
        for dtype in DTYPES {
            let (x, w, bias) =
                (random(1, &x_dims, dtype), random(2, &w_dims, dtype), random(3, &w_dims[4..], DType::F32));
            let y64 = transposed::fprop(&exact(&x), &exact(&w), Some(&exact(&bias)), p).expect("f64");
            let dy = random(4, y64.dims(), dtype);
            let [x64, w64, dy64] = [&x, &w, &dy].map(exact);
            let [x, w, dy, bias] = [x, w, dy, bias].map(|t| there(&t, device));
            check(|| transposed::fprop(&x, &w, Some(&bias), p), Ok(y64), bound(taps * w_dims[0], dtype));
            check(|| transposed::dgrad(&dy, &w, p), transposed::dgrad(&dy64, &w64, p), bound(taps * w_dims[4], dtype));
            let want = transposed::wgrad(&x64, &dy64, &w_dims, p);
            check(|| transposed::wgrad(&x, &dy, &w_dims, p), want, sum_bound(positions, dtype));
        }
    }
}

#[test]
fn linear_layers_agree_with_f64() {
    let device = device();
    for (rows, inputs, outputs) in [
        (&[1][..], 1, 1),
        (&[2, 7], 5, 3),
        (&[700], 48, 144),
        (&[3, 11, 5], 100, 31),
        (&[9], 1536, 96),
        (&[1025], 7, 17),
        (&[], 4, 6),
    ] {
        let dims = |channels: usize| [rows, &[channels]].concat();
        for dtype in DTYPES {
            let (x, w) = (random(1, &dims(inputs), dtype), random(2, &[outputs, inputs], dtype));
            let (bias, dy) = (random(3, &[outputs], DType::F32), random(4, &dims(outputs), dtype));
            let [x64, w64, bias64, dy64] = [&x, &w, &bias, &dy].map(exact);
            let [x, w, bias, dy] = [x, w, bias, dy].map(|t| there(&t, device));
            let want = linear::fprop(&x64, &w64, Some(&bias64));
            check(|| linear::fprop(&x, &w, Some(&bias)), want, bound(inputs, dtype));
            check(|| linear::dgrad(&dy, &w), linear::dgrad(&dy64, &w64), bound(outputs, dtype));
            check(|| linear::wgrad(&x, &dy), linear::wgrad(&x64, &dy64), sum_bound(x64.rows(), dtype));
        }
    }
}

/// What follows a layer in its kernel gives the bits of kernels of its own: few rows, so that sums are split, and many; rows of
/// whole fours and not; operands that start at no multiple of 16 bytes.
#[test]
fn epilogues_give_the_bits_of_the_operations_they_stand_for() {
    let device = device();
    for (rows, inputs, outputs) in [(1, 1, 1), (7, 500, 12), (1030, 48, 96), (259, 24, 31), (3, 1536, 8), (513, 7, 50)]
    {
        for dtype in DTYPES {
            let [w, back] = [[outputs, inputs], [inputs, outputs]].map(|dims| there(&random(1, &dims, dtype), device));
            let [x, dx] = [2, 3].map(|seed| there(&random(seed, &[rows, inputs], dtype), device));
            let bias = there(&random(4, &[outputs], DType::F32), device);
            let aligned = there(&random(5, &[rows, outputs], dtype), device);
            let values = random(5, &[rows * outputs + 1, 1], dtype);
            let shifted = there(&values, device).rows_at(1, rows * outputs);
            let shifted = shifted.and_then(|t| t.reshape(&[rows, outputs])).expect("view");

            let plain = linear::fprop(&x, &w, Some(&bias)).expect("fprop");
            let (kept, after) = linear::fprop_gelu(&x, &w, Some(&bias), true).expect("with gelu");
            let activated = gelu::forward(&plain).expect("gelu");
            same_bits(&[&kept.expect("kept"), &after], &[&plain, &activated]);
            let (none, after) = linear::fprop_gelu(&x, &w, Some(&bias), false).expect("with gelu alone");
            assert!(none.is_none());
            same_bits(&[&after], &[&activated]);

            for other in [&aligned, &shifted] {
                let sum = linear::fprop_add(&x, &w, Some(&bias), other).expect("with add");
                same_bits(&[&sum], &[&add::forward(&plain, other).expect("add")]);
                let (gradient, after) = linear::dgrad_gelu(&dx, &back, other).expect("with gelu");
                let plain = linear::dgrad(&dx, &back).and_then(|dz| gelu::backward(&dz, other)).expect("dgrad");
                same_bits(&[&gradient, &after], &[&plain, &gelu::forward(other).expect("gelu")]);
            }
            assert!(linear::fprop_add(&x, &w, None, &x).is_err() || inputs == outputs, "a residual of another shape");
            let here = random(5, &[rows, outputs], dtype);
            assert!(linear::fprop_add(&x, &w, None, &here).is_err(), "a residual elsewhere");
        }
    }
}

/// Weights and activations that do not start at a multiple of 16 bytes.
#[test]
fn views_that_are_not_aligned_agree_with_f64() {
    let device = device();
    for dtype in DTYPES {
        let x = there(&random(1, &[71, 8], dtype), device);
        let w = there(&random(2, &[16, 8], dtype), device);
        let shifted = |t: &Tensor| {
            let n = t.numel();
            let padded = there(&random(3, &[n + 1, 1], dtype), device);
            padded.rows_at(1, n).and_then(|t| t.reshape(&[n / 8, 8])).expect("view")
        };
        let (xs, ws) = (shifted(&x), shifted(&w));
        for (x, w) in [(&xs, &w), (&x, &ws), (&xs, &ws)] {
            check(|| linear::fprop(x, w, None), linear::fprop(&exact(x), &exact(w), None), bound(8, dtype));
        }
        check(|| sum_rows::forward(&xs), sum_rows::forward(&exact(&xs)), sum_bound(71, DType::F32));
    }
}

#[test]
fn row_sums_agree_with_f64() {
    let device = device();
    for dims in
        [&[1][..], &[5], &[3, 7], &[2, 3, 4, 5, 48], &[20_001, 3], &[30_000, 8], &[2, 5000], &[3, 2056], &[0, 4]]
    {
        for dtype in DTYPES {
            let x = random(1, dims, dtype);
            let want = sum_rows::forward(&exact(&x));
            let x = there(&x, device);
            check(|| sum_rows::forward(&x), want, sum_bound(x.numel() / x.channels(), DType::F32));
            assert_eq!(sum_rows::forward(&x).expect("sum").dtype(), DType::F32);
        }
    }
}

#[test]
fn what_they_cannot_do_is_an_error() {
    let device = device();
    let p = params([1; 3], [0; 3]);
    let (x, w) = (random(1, &[1, 2, 2, 2, 8], DType::F32), random(2, &[8, 1, 1, 1, 8], DType::F32));
    let [xc, wc] = [&x, &w].map(|t| there(t, device));
    assert!(conv::fprop(&xc, &w, None, p).is_err_and(|e| e.to_string().contains("cpu")));
    let wide = |t: &Tensor| there(&exact(t), device);
    let error = conv::fprop(&wide(&x), &wide(&w), None, p).expect_err("f64");
    assert_eq!(error, Error::Unsupported { op: "conv3d fprop", dtype: DType::F64, device });
    assert!(sum_rows::forward(&wide(&x)).is_err());
    let half = |t: &Tensor| there(&t.to_dtype(DType::BF16).expect("bf16"), device);
    let bias = there(&random(3, &[8], DType::BF16), device);
    let error = conv::fprop(&half(&x), &half(&w), Some(&bias), p).expect_err("bias").to_string();
    assert!(error.contains("bias must be f32"), "{error}");
    assert!(conv::fprop(&half(&x), &wc, None, p).is_err(), "dtypes");
    let far = params([1; 3], [1 << 31; 3]);
    assert!(conv::fprop(&xc, &wc, None, far).is_err(), "more positions than 31 bits count");
}

use super::*;
use crate::gemm::testing::{
    assert_gradient, assert_near, assert_rounded, definition, eighths, on_every_cpu, values, wide,
};
use crate::simd::{Level, testing::run_at};
use engine::{DType, memory};

/// x, w, params: odd, prime, single, larger than a tile or a block, few and many channels, strides and paddings of all kinds.
fn shapes() -> Vec<([usize; 5], [usize; 5], Params)> {
    let p = |stride, padding| Params { stride, padding };
    vec![
        ([1, 5, 6, 7, 48], [48, 3, 3, 3, 48], p([1; 3], [1; 3])),
        ([2, 3, 5, 4, 12], [13, 3, 3, 3, 12], p([1; 3], [1; 3])),
        ([1, 9, 9, 10, 1], [49, 3, 3, 3, 1], p([1; 3], [1; 3])),
        ([2, 8, 8, 8, 1], [48, 2, 2, 2, 1], p([2; 3], [0; 3])),
        ([2, 7, 8, 9, 1], [37, 1, 3, 3, 1], p([1, 2, 2], [0, 1, 2])),
        ([1, 6, 5, 7, 1], [10, 3, 3, 3, 1], p([2; 3], [3, 0, 2])),
        ([1, 10, 11, 9, 3], [7, 3, 2, 4, 3], p([2, 3, 1], [2, 0, 3])),
        ([3, 2, 2, 2, 300], [50, 3, 3, 3, 300], p([1; 3], [1; 3])),
        ([1, 3, 4, 5, 64], [101, 1, 1, 1, 64], p([1; 3], [0; 3])),
        ([1, 9, 8, 9, 24], [24, 1, 3, 3, 24], p([1; 3], [0, 1, 1])),
        ([1, 7, 5, 6, 50], [31, 3, 3, 3, 50], p([2; 3], [1; 3])),
        ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1], p([1; 3], [0; 3])),
        ([2, 3, 1, 2, 5], [2, 2, 1, 3, 5], p([3, 2, 4], [4, 3, 5])),
        ([1, 9, 12, 11, 17], [9, 2, 2, 2, 17], p([2; 3], [0; 3])),
        ([1, 12, 13, 14, 48], [14, 1, 1, 1, 48], p([1; 3], [0; 3])),
        ([1, 20, 18, 22, 3], [5, 1, 1, 1, 3], p([2; 3], [0; 3])),
        ([1, 2, 2, 3, 2], [3, 1, 1, 2, 2], p([1, 1, 1 << 30], [0, 0, 1 << 30])),
        ([1, 2, 3, 2, 333], [37, 2, 1, 3, 333], p([1; 3], [1, 0, 1])),
        ([1, 7, 8, 9, 40], [130, 1, 3, 1, 40], p([1; 3], [0, 1, 0])),
        ([1, 6, 6, 6, 330], [3, 1, 3, 1, 330], p([1; 3], [0, 1, 0])),
        ([1, 20, 18, 22, 3], [40, 1, 1, 1, 3], p([2; 3], [0; 3])),
        ([1, 1, 1, 200, 3], [4, 1, 1, 2, 3], p([1; 3], [0, 0, 201])),
        ([1, 1, 1, 200, 48], [4, 1, 1, 2, 48], p([1; 3], [0, 0, 201])),
        ([2, 12, 44, 1, 1], [2, 4, 1, 3, 1], p([3, 3, 1], [2, 2, 5])),
        ([2, 1, 18, 1, 130], [12, 3, 3, 1, 130], p([1, 1, 2], [5, 0, 1])),
    ]
}

/// Kernels as long as their stride, which are folded along W: lines of taps in one step, in several, and one each; an input that is not
/// met to its end, and padding along the other axes.
fn patches() -> Vec<([usize; 5], [usize; 5], Params)> {
    let p = |stride, padding| Params { stride, padding };
    vec![
        ([2, 16, 18, 40, 12], [12, 2, 2, 2, 12], p([2; 3], [0; 3])),
        ([1, 16, 16, 32, 20], [24, 2, 2, 2, 20], p([2; 3], [0; 3])),
        ([1, 12, 10, 36, 5], [7, 2, 3, 3, 5], p([2, 3, 3], [0; 3])),
        ([1, 9, 8, 33, 7], [21, 2, 2, 2, 7], p([2; 3], [0; 3])),
        ([1, 8, 8, 42, 3], [21, 3, 2, 2, 3], p([1, 2, 2], [1, 0, 0])),
        ([1, 16, 16, 32, 100], [9, 2, 1, 2, 100], p([2, 1, 2], [0; 3])),
    ]
}

/// Few outputs of long lines, which are computed along W: whole and broken vectors and parts of outputs, one channel and several, lines
/// longer than the rows that are summed at a time, several blocks along both axes, and maps of a stride.
fn few_outputs() -> Vec<([usize; 5], [usize; 5], Params)> {
    let p = |stride, padding| Params { stride: [stride; 3], padding };
    vec![
        ([2, 5, 7, 32, 12], [12, 3, 3, 3, 12], p(1, [1; 3])),
        ([1, 6, 5, 31, 24], [23, 3, 3, 3, 24], p(1, [1; 3])),
        ([1, 9, 4, 30, 1], [11, 3, 3, 3, 1], p(1, [1; 3])),
        ([1, 3, 3, 287, 5], [12, 2, 1, 3, 5], p(1, [1, 0, 0])),
        ([1, 4, 5, 60, 11], [35, 1, 2, 2, 11], p(1, [0, 1, 2])),
        ([1, 20, 20, 29, 12], [12, 3, 3, 3, 12], p(2, [1; 3])),
        ([3, 1, 13, 16, 12], [12, 3, 1, 5, 12], p(1, [1, 0, 2])),
        ([1, 19, 10, 30, 12], [13, 3, 3, 3, 12], p(1, [1; 3])),
        ([2, 9, 13, 31, 7], [9, 3, 2, 3, 7], Params { stride: [2, 3, 1], padding: [1; 3] }),
    ]
}

/// Enough channels and pixels for Winograd's tiles: odd planes, tiles and blocks that edges cut, one to three taps along D, paddings of
/// none to two, more channels than a step and more outputs than a panel.
fn tiles() -> Vec<([usize; 5], [usize; 5], Params)> {
    let p = |padding| Params { stride: [1; 3], padding };
    vec![
        ([2, 9, 15, 17, 48], [53, 3, 3, 3, 48], p([1; 3])),
        ([1, 13, 33, 11, 49], [48, 1, 3, 3, 49], p([0, 1, 1])),
        ([1, 12, 20, 17, 50], [48, 2, 3, 3, 50], p([1, 0, 2])),
        ([1, 10, 18, 23, 48], [100, 1, 3, 3, 48], p([0, 1, 1])),
        ([1, 10, 20, 21, 200], [48, 1, 3, 3, 200], p([0, 1, 1])),
        ([1, 17, 8, 7, 193], [200, 1, 3, 3, 193], p([0, 1, 1])),
    ]
}

#[test]
fn all_three_match_their_definitions() {
    memory::check(true);
    for (x_dims, w_dims, p) in shapes().into_iter().chain(patches()).chain(few_outputs()).chain(tiles()) {
        let (x, w) = (values(&x_dims, 1), values(&w_dims, 2));
        let bias = values(&w_dims[..1], 3);
        let dy = values(&output_dims(&x_dims, &w_dims, p).expect("dims"), 4);
        let want = definition(&x, &w, &dy, p);
        let with_bias: Vec<f64> = {
            let b = bias.to_f64_vec().expect("bias");
            want.y.iter().enumerate().map(|(i, y)| y + b[i % b.len()]).collect()
        };
        let what = format!("x {x_dims:?} w {w_dims:?} {p:?}");
        let near = |name: &str, got: Tensor, want: &[f64], bound: f64| {
            assert_near(&format!("{name} {what}"), &got, want, bound);
        };
        near("fprop", on_every_cpu(&what, || fprop(&x, &w, None, p)), &want.y, 1e-6);
        near("bias", on_every_cpu(&what, || fprop(&x, &w, Some(&bias), p)), &with_bias, 1e-6);
        near("dgrad", on_every_cpu(&what, || dgrad(&dy, &w, &x_dims, p)), &want.dx, 1e-6);
        near("wgrad", on_every_cpu(&what, || wgrad(&x, &dy, &w_dims, p)), &want.dw, 1e-6);

        let [x, w, bias, dy] = [x, w, bias, dy].map(|t| wide(&t));
        near("f64 fprop", fprop(&x, &w, Some(&bias), p).expect("y"), &with_bias, 1e-14);
        near("f64 dgrad", dgrad(&dy, &w, &x_dims, p).expect("dx"), &want.dx, 1e-14);
        near("f64 wgrad", wgrad(&x, &dy, &w_dims, p).expect("dw"), &want.dw, 1e-14);
    }
}

#[test]
fn bf16_is_the_exact_result_rounded_once() {
    memory::check(true);
    for (x_dims, w_dims, p) in shapes().into_iter().chain(patches()).chain(tiles()).chain([
        many_rows(20, 19),
        many_rows(1, 16),
        many_rows(48, 50),
    ]) {
        let (x, w) = (eighths(&x_dims, 1), eighths(&w_dims, 2));
        let bias = eighths(&w_dims[..1], 3).to_dtype(DType::F32).expect("bias");
        let dy = eighths(&output_dims(&x_dims, &w_dims, p).expect("dims"), 4);
        let mut want = definition(&x, &w, &dy, p);
        let what = format!("bf16 x {x_dims:?} w {w_dims:?} {p:?}");
        assert_rounded(&format!("fprop {what}"), &want.y, || fprop(&x, &w, None, p));
        let b = bias.to_f64_vec().expect("bias");
        want.y.iter_mut().enumerate().for_each(|(i, y)| *y += b[i % b.len()]);
        assert_rounded(&format!("bias {what}"), &want.y, || fprop(&x, &w, Some(&bias), p));
        assert_rounded(&format!("dgrad {what}"), &want.dx, || dgrad(&dy, &w, &x_dims, p));
        assert_rounded(&format!("wgrad {what}"), &want.dw, || wgrad(&x, &dy, &w_dims, p));
    }
}

/// Values with all their bits: the sums are f32, so that what is stored in bf16 is off by its own rounding, 2^-8 at most.
#[test]
fn bf16_sums_are_those_of_f32() {
    memory::check(true);
    let (x_dims, w_dims, p) = many_rows(20, 19);
    let half = |t: Tensor| t.to_dtype(DType::BF16).expect("bf16");
    let (x, w) = (half(values(&x_dims, 1)), half(values(&w_dims, 2)));
    let dy = half(values(&output_dims(&x_dims, &w_dims, p).expect("dims"), 3));
    let want = definition(&x, &w, &dy, p);
    for level in Level::ALL {
        let all = || [fprop(&x, &w, None, p), dgrad(&dy, &w, &x_dims, p), wgrad(&x, &dy, &w_dims, p)];
        let [y, dx, dw] = run_at(level, 2, all).map(|t| t.expect("sums"));
        assert_near("fprop", &y, &want.y, 1.0 / 256.0);
        assert_near("dgrad", &dx, &want.dx, 1.0 / 256.0);
        assert_eq!(dw.dtype(), DType::F32);
        assert_near("wgrad", &dw, &want.dw, 1e-6);
    }
}

/// A 3³ convolution with enough rows for several blocks and chunks, and for weights that are packed once.
fn many_rows(inputs: usize, outputs: usize) -> ([usize; 5], [usize; 5], Params) {
    ([2, 11, 13, 17, inputs], [outputs, 3, 3, 3, inputs], Params { stride: [1; 3], padding: [1; 3] })
}

/// Enough rows for several blocks and chunks, and for weights that are packed once.
#[test]
fn many_rows_match_their_definitions() {
    memory::check(true);
    let p = Params { stride: [1; 3], padding: [1; 3] };
    for (x_dims, w_dims) in [([2, 11, 13, 17, 20], [19, 3, 3, 3, 20]), ([1, 13, 14, 15, 1], [16, 3, 3, 3, 1])] {
        let (x, w) = (values(&x_dims, 1), values(&w_dims, 2));
        let dy = values(&output_dims(&x_dims, &w_dims, p).expect("dims"), 3);
        let want = definition(&x, &w, &dy, p);
        assert_near("fprop", &on_every_cpu("fprop", || fprop(&x, &w, None, p)), &want.y, 1e-6);
        assert_near("dgrad", &on_every_cpu("dgrad", || dgrad(&dy, &w, &x_dims, p)), &want.dx, 1e-6);
        assert_near("wgrad", &on_every_cpu("wgrad", || wgrad(&x, &dy, &w_dims, p)), &want.dw, 1e-6);
    }
}

#[test]
fn gradients_match_differences() {
    memory::check(true);
    for (x_dims, w_dims, p) in [
        ([1, 3, 4, 2, 3], [2, 3, 2, 1, 3], Params { stride: [1; 3], padding: [1, 0, 0] }),
        ([2, 3, 3, 4, 1], [3, 2, 2, 2, 1], Params { stride: [2, 1, 3], padding: [0, 1, 2] }),
    ] {
        let [x, w] = [values(&x_dims, 1), values(&w_dims, 2)].map(|t| wide(&t));
        let dy = wide(&values(&output_dims(&x_dims, &w_dims, p).expect("dims"), 3));
        let dx = dgrad(&dy, &w, &x_dims, p).expect("dx");
        assert_gradient("dx", &x, &dy, &dx, |x| fprop(x, &w, None, p));
        let dw = wgrad(&x, &dy, &w_dims, p).expect("dw");
        assert_gradient("dw", &w, &dy, &dw, |w| fprop(&x, w, None, p));
    }
}

#[test]
fn misfits_are_errors() {
    let p = Params { stride: [1; 3], padding: [0; 3] };
    let (x, w) = (values(&[1, 3, 3, 3, 2], 1), values(&[4, 3, 3, 3, 2], 2));
    assert!(fprop(&x, &w, None, p).is_ok());
    assert!(fprop(&values(&[1, 3, 3, 2, 2], 1), &w, None, p).is_err(), "empty output");
    assert!(fprop(&values(&[1, 3, 3, 3, 3], 1), &w, None, p).is_err(), "channels");
    assert!(fprop(&values(&[3, 3, 3, 2], 1), &w, None, p).is_err(), "rank");
    assert!(fprop(&values(&[0, 3, 3, 3, 2], 1), &w, None, p).is_err(), "no samples");
    assert!(fprop(&x, &w, Some(&values(&[3], 3)), p).is_err(), "bias");
    assert!(fprop(&x, &wide(&w), None, p).is_err(), "dtypes");
    assert!(fprop(&x, &w, None, Params { stride: [1, 0, 1], ..p }).is_err(), "stride");
    assert!(fprop(&x, &w, None, Params { padding: [usize::MAX, 0, 0], ..p }).is_err(), "padding");
    assert!(dgrad(&values(&[1, 1, 1, 2, 4], 1), &w, x.dims(), p).is_err(), "dy");
    assert!(wgrad(&x, &values(&[1, 1, 1, 1, 3], 1), w.dims(), p).is_err(), "dy");
    let half = |t: &Tensor| t.to_dtype(DType::BF16).expect("bf16");
    assert!(fprop(&half(&x), &half(&w), Some(&values(&[4], 3)), p).is_ok());
    assert!(fprop(&half(&x), &half(&w), Some(&half(&values(&[4], 3))), p).is_err(), "bias in bf16");
    assert!(fprop(&half(&x), &w, None, p).is_err(), "weights in f32");
}

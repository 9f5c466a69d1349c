use super::*;
use crate::conv3d::Params;
use crate::gemm::testing::{
    assert_gradient, assert_near, assert_rounded, definition, eighths, on_every_cpu, values, wide,
};
use crate::{add, gelu};
use engine::{DType, memory};

/// `[.., C]` as `[1, 1, 1, rows, C]`.
fn pixels(t: &Tensor) -> Tensor {
    t.reshape(&[1, 1, 1, t.rows(), t.channels()]).expect("reshape")
}

#[test]
fn all_three_match_their_definitions() {
    memory::check(true);
    for (rows, inputs, outputs) in [
        (&[1][..], 1, 1),
        (&[2, 7], 5, 3),
        (&[700], 48, 144),
        (&[3, 11, 5], 100, 31),
        (&[9], 1537, 49),
        (&[70], 737, 65),
        (&[7], 131, 403),
        (&[1025], 7, 17),
        (&[], 4, 6),
    ] {
        let dims = |channels: usize| [rows, &[channels]].concat();
        let (x, w, bias) = (values(&dims(inputs), 1), values(&[outputs, inputs], 2), values(&[outputs], 3));
        let dy = values(&dims(outputs), 4);
        let w5 = w.reshape(&[outputs, 1, 1, 1, inputs]).expect("reshape");
        let p = Params { stride: [1; 3], padding: [0; 3] };
        let mut want = definition(&pixels(&x), &w5, &pixels(&dy), p);
        let b = bias.to_f64_vec().expect("bias");
        want.y.iter_mut().enumerate().for_each(|(i, y)| *y += b[i % b.len()]);

        let y = on_every_cpu("fprop", || fprop(&x, &w, Some(&bias)));
        assert_eq!(y.dims(), dims(outputs));
        assert_near("fprop", &y, &want.y, 1e-6);
        let dx = on_every_cpu("dgrad", || dgrad(&dy, &w));
        assert_eq!(dx.dims(), dims(inputs));
        assert_near("dgrad", &dx, &want.dx, 1e-6);
        assert_near("wgrad", &on_every_cpu("wgrad", || wgrad(&x, &dy)), &want.dw, 1e-6);

        let (half_x, half_w) = (eighths(&dims(inputs), 1), eighths(&[outputs, inputs], 2));
        let half_dy = eighths(&dims(outputs), 4);
        let half_w5 = half_w.reshape(&[outputs, 1, 1, 1, inputs]).expect("reshape");
        let exact = definition(&pixels(&half_x), &half_w5, &pixels(&half_dy), p);
        assert_rounded("bf16 fprop", &exact.y, || fprop(&half_x, &half_w, None));
        assert_rounded("bf16 dgrad", &exact.dx, || dgrad(&half_dy, &half_w));
        assert_rounded("bf16 wgrad", &exact.dw, || wgrad(&half_x, &half_dy));

        let [x, w, bias, dy] = [x, w, bias, dy].map(|t| wide(&t));
        assert_near("f64 fprop", &fprop(&x, &w, Some(&bias)).expect("y"), &want.y, 1e-14);
        assert_near("f64 dgrad", &dgrad(&dy, &w).expect("dx"), &want.dx, 1e-14);
        assert_near("f64 wgrad", &wgrad(&x, &dy).expect("dw"), &want.dw, 1e-14);
    }
}

#[test]
fn gradients_match_differences() {
    memory::check(true);
    let [x, w, dy] = [values(&[2, 3, 5], 1), values(&[4, 5], 2), values(&[2, 3, 4], 3)].map(|t| wide(&t));
    assert_gradient("dx", &x, &dy, &dgrad(&dy, &w).expect("dx"), |x| fprop(x, &w, None));
    assert_gradient("dw", &w, &dy, &wgrad(&x, &dy).expect("dw"), |w| fprop(&x, w, None));
}

#[test]
fn with_a_residual_or_gelu_they_are_the_operations_one_after_the_other() {
    memory::check(true);
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        for (rows, inputs, outputs) in [(1, 1, 1), (37, 5, 3), (700, 48, 144)] {
            let of = |dims: [usize; 2], seed| values(&dims, seed).to_dtype(dtype).expect("dtype");
            let (x, w) = (of([rows, inputs], 1), of([outputs, inputs], 2));
            let (dx, back, other) = (of([rows, inputs], 3), of([inputs, outputs], 4), of([rows, outputs], 5));
            let bias = values(&[outputs], 6).to_dtype(sum_dtype(dtype)).expect("dtype");
            let alike = |got: &Tensor, want: &Tensor| {
                assert_eq!(got.dims(), want.dims());
                assert!(got.to_f64_vec() == want.to_f64_vec(), "{dtype} {rows} {inputs} {outputs}");
            };
            let y = fprop(&x, &w, Some(&bias)).expect("fprop");
            let (kept, z) = fprop_gelu(&x, &w, Some(&bias), true).expect("with gelu");
            alike(&kept.expect("kept"), &y);
            alike(&z, &gelu::forward(&y).expect("gelu"));
            let (none, alone) = fprop_gelu(&x, &w, Some(&bias), false).expect("with gelu alone");
            assert!(none.is_none());
            alike(&alone, &z);
            let sum = fprop_add(&x, &w, Some(&bias), &other).expect("with a residual");
            alike(&sum, &add::forward(&y, &other).expect("add"));
            let (dy, z) = dgrad_gelu(&dx, &back, &other).expect("with gelu");
            alike(&dy, &gelu::backward(&dgrad(&dx, &back).expect("dgrad"), &other).expect("backward"));
            alike(&z, &gelu::forward(&other).expect("gelu"));
        }
    }
}

#[test]
fn misfits_are_errors() {
    let (x, w) = (values(&[2, 3], 1), values(&[4, 3], 2));
    assert!(fprop(&values(&[2, 4], 1), &w, None).is_err(), "channels");
    assert!(fprop(&values(&[], 1), &w, None).is_err(), "scalar");
    assert!(fprop(&values(&[0, 3], 1), &w, None).is_err(), "no rows");
    assert!(fprop(&x, &values(&[4, 3, 1], 2), None).is_err(), "rank of w");
    assert!(fprop(&x, &w, Some(&values(&[3], 3))).is_err(), "bias");
    assert!(fprop(&wide(&x), &w, None).is_err(), "dtypes");
    assert!(fprop_gelu(&x, &values(&[4, 2], 2), None, true).is_err(), "with gelu");
    assert!(fprop_add(&x, &w, None, &x).is_err(), "residual");
    assert!(fprop_add(&x, &w, None, &wide(&values(&[2, 4], 1))).is_err(), "dtype of the residual");
    assert!(dgrad(&x, &w).is_err(), "dy");
    assert!(dgrad_gelu(&values(&[2, 4], 1), &w, &values(&[1, 3], 1)).is_err(), "y");
    assert!(wgrad(&x, &values(&[3, 4], 1)).is_err(), "rows");
    assert!(wgrad(&x, &values(&[4], 1)).is_err(), "rank");
}

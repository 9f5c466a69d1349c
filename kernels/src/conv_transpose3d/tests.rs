use super::*;
use crate::conv3d;
use crate::gemm::testing::{
    assert_gradient, assert_near, assert_rounded, definition, eighths, on_every_cpu, values, wide,
};
use engine::memory;

#[test]
fn all_three_match_the_convolution_they_transpose() {
    memory::check(true);
    for (x_dims, w_dims, stride, y_size) in [
        ([2, 3, 4, 5, 48], [48, 2, 2, 2, 24], [2; 3], [6, 8, 10]),
        ([1, 4, 3, 5, 7], [7, 1, 2, 2, 50], [1, 2, 2], [4, 6, 10]),
        ([1, 3, 2, 4, 5], [5, 3, 2, 1, 3], [2, 3, 2], [7, 5, 7]),
        ([1, 9, 10, 8, 16], [16, 2, 2, 2, 12], [2; 3], [18, 20, 16]),
    ] {
        let p = Params { stride };
        let (x, w, bias) = (values(&x_dims, 1), values(&w_dims, 2), values(&w_dims[4..], 3));
        let y_dims = [x_dims[0], y_size[0], y_size[1], y_size[2], w_dims[4]];
        let dy = values(&y_dims, 4);
        let mut want = definition(&dy, &w, &x, conv3d::Params { stride, padding: [0; 3] });
        let b = bias.to_f64_vec().expect("bias");
        want.dx.iter_mut().enumerate().for_each(|(i, y)| *y += b[i % b.len()]);

        let y = on_every_cpu("fprop", || fprop(&x, &w, Some(&bias), p));
        assert_eq!(y.dims(), y_dims);
        assert_near("fprop", &y, &want.dx, 1e-6);
        let dx = on_every_cpu("dgrad", || dgrad(&dy, &w, p));
        assert_eq!(dx.dims(), x_dims);
        assert_near("dgrad", &dx, &want.y, 1e-6);
        assert_near("wgrad", &on_every_cpu("wgrad", || wgrad(&x, &dy, &w_dims, p)), &want.dw, 1e-6);

        let (half_x, half_w, half_dy) = (eighths(&x_dims, 1), eighths(&w_dims, 2), eighths(&y_dims, 4));
        let exact = definition(&half_dy, &half_w, &half_x, conv3d::Params { stride, padding: [0; 3] });
        assert_rounded("bf16 fprop", &exact.dx, || fprop(&half_x, &half_w, None, p));
        assert_rounded("bf16 dgrad", &exact.y, || dgrad(&half_dy, &half_w, p));
        assert_rounded("bf16 wgrad", &exact.dw, || wgrad(&half_x, &half_dy, &w_dims, p));

        let [x, w, bias, dy] = [x, w, bias, dy].map(|t| wide(&t));
        assert_near("f64 fprop", &fprop(&x, &w, Some(&bias), p).expect("y"), &want.dx, 1e-14);
        assert_near("f64 dgrad", &dgrad(&dy, &w, p).expect("dx"), &want.y, 1e-14);
        assert_near("f64 wgrad", &wgrad(&x, &dy, &w_dims, p).expect("dw"), &want.dw, 1e-14);
    }
}

#[test]
fn gradients_match_differences() {
    memory::check(true);
    let p = Params { stride: [2, 1, 3] };
    let (x_dims, w_dims) = ([1, 2, 3, 2, 3], [3, 2, 2, 2, 2]);
    let [x, w] = [values(&x_dims, 1), values(&w_dims, 2)].map(|t| wide(&t));
    let dy = wide(&values(&[1, 4, 4, 5, 2], 3));
    assert_gradient("dx", &x, &dy, &dgrad(&dy, &w, p).expect("dx"), |x| fprop(x, &w, None, p));
    assert_gradient("dw", &w, &dy, &wgrad(&x, &dy, &w_dims, p).expect("dw"), |w| fprop(&x, w, None, p));
}

#[test]
fn misfits_are_errors() {
    let p = Params { stride: [2; 3] };
    let (x, w) = (values(&[1, 2, 2, 2, 3], 1), values(&[3, 2, 2, 2, 4], 2));
    let dy = values(&[1, 4, 4, 4, 4], 3);
    assert!(dgrad(&dy, &w, p).is_ok());
    assert!(fprop(&values(&[1, 2, 2, 2, 4], 1), &w, None, p).is_err(), "channels");
    assert!(fprop(&values(&[1, 0, 2, 2, 3], 1), &w, None, p).is_err(), "empty axis");
    assert!(fprop(&x, &w, Some(&values(&[3], 1)), p).is_err(), "bias");
    assert!(fprop(&x, &wide(&w), None, p).is_err(), "dtypes");
    assert!(fprop(&x, &w, None, Params { stride: [0, 1, 1] }).is_err(), "stride");
    assert!(fprop(&x, &w, None, Params { stride: [usize::MAX; 3] }).is_err(), "stride too large");
    let far = Params { stride: [1 << 31; 3] };
    assert!(fprop(&x, &w, None, far).is_err(), "output too large");
    let single = fprop(&values(&[1, 1, 1, 1, 3], 1), &w, None, far).expect("one pixel has no next one");
    assert_eq!(single.dims(), [1, 2, 2, 2, 4]);
    assert!(dgrad(&values(&[1, 5, 4, 4, 4], 1), &w, p).is_err(), "no output size");
    assert!(dgrad(&values(&[1, 1, 4, 4, 4], 1), &w, p).is_err(), "smaller than the kernel");
    assert!(dgrad(&dy, &w, Params { stride: [0; 3] }).is_err(), "stride");
    assert!(wgrad(&x, &values(&[1, 4, 4, 4, 5], 1), w.dims(), p).is_err(), "dy");
}

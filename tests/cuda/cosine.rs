use super::{assert_close, device, exact, random, same_bits, unit};
use engine::{DType, Device, Tensor};
use kernels::cosine;

/// Sums are in f64, also where they cancel; the result is rounded once.
const BOUND: f64 = 1.01;

/// More rows than a block's warps, fewer; more others than are held at a time; columns of two slabs, of one, one.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (7, 13, 31), (33, 4, 129), (2, 150, 17), (3, 2, 2053), (0, 3, 5)];

#[test]
fn both_directions_agree_with_f64() {
    let device = device();
    let there = |t: &Tensor| t.to_device(device).expect("copy");
    for (n, m, d) in SHAPES {
        let inputs = [(1, n, d), (2, m, d), (3, n, m)].map(|(seed, r, c)| random(seed, &[r, c], DType::F32));
        let [a, b, dy] = &inputs;
        let y = || cosine::forward(&there(a), &there(b)).expect("forward");
        assert_close(&y(), &cosine::forward(&exact(a), &exact(b)).expect("f64"), BOUND * unit(DType::F32));
        let grads = || cosine::backward(&there(dy), &there(a), &there(b)).expect("backward");
        let want = cosine::backward(&exact(dy), &exact(a), &exact(b)).expect("f64");
        // a row of one number has no direction to turn to: nothing is left but the rounding of f64
        if d > 1 {
            assert_close(&grads().0, &want.0, BOUND * unit(DType::F32));
            assert_close(&grads().1, &want.1, BOUND * unit(DType::F32));
        }
        same_bits(&[&y(), &grads().0, &grads().1], &[&y(), &grads().0, &grads().1]);
    }
}

#[test]
fn rows_of_zeros_and_short_rows_are_as_on_the_cpu() {
    let device = device();
    let a = Tensor::from_slice(&[0.0f32, 0.0, 3e-9, 4e-9, 3.0, 4.0], &[3, 2]).expect("a");
    let dy = Tensor::full(&[3, 3], 1.0, DType::F32, Device::Cpu).expect("dy");
    let [a_there, dy_there] = [&a, &dy].map(|t| t.to_device(device).expect("copy"));
    let (x, g) = (exact(&a), exact(&dy));
    let y = cosine::forward(&a_there, &a_there).expect("forward");
    assert_close(&y, &cosine::forward(&x, &x).expect("f64"), BOUND * unit(DType::F32));
    let (da, db) = cosine::backward(&dy_there, &a_there, &a_there).expect("backward");
    let want = cosine::backward(&g, &x, &x).expect("f64");
    assert_close(&da, &want.0, BOUND * unit(DType::F32));
    assert_close(&db, &want.1, BOUND * unit(DType::F32));
}

#[test]
fn inputs_on_two_devices_are_refused() {
    let device = device();
    let a = random(1, &[2, 3], DType::F32);
    let error = cosine::forward(&a.to_device(device).expect("copy"), &a).expect_err("two devices").to_string();
    assert!(error.contains("b is on cpu"), "{error}");
}

use super::*;
use crate::gemm::testing::{assert_near, assert_rounded, eighths, on_every_cpu, values, wide};
use engine::{DType, memory};

#[test]
fn sums_match_the_definition() {
    memory::check(true);
    for dims in [&[1][..], &[5], &[3, 7], &[2, 3, 4, 5, 48], &[70_001, 3], &[2, 100_000], &[0, 4]] {
        let x = values(dims, 1);
        let channels = x.channels();
        let mut want = vec![0.0; channels];
        x.to_f64_vec().expect("values").iter().enumerate().for_each(|(i, v)| want[i % channels] += v);
        let y = on_every_cpu("sum", || forward(&x));
        assert_eq!(y.dims(), [channels]);
        assert_near("sum", &y, &want, 1e-7);
        let half = eighths(dims, 2);
        let mut exact = vec![0.0; channels];
        half.to_f64_vec().expect("values").iter().enumerate().for_each(|(i, v)| exact[i % channels] += v);
        assert_rounded("bf16 sum", &exact, || forward(&half));
        assert_near("f64 sum", &forward(&wide(&x)).expect("sum"), &want, 1e-14);
    }
}

/// Each row counts once: the sum's gradient in x is the cotangent in every row.
#[test]
fn a_step_in_one_element_is_a_step_in_its_channel() {
    let mut data = vec![0.0f64; 6];
    data[4] = 2.0;
    let y = forward(&Tensor::from_slice(&data, &[2, 3]).expect("x")).expect("sum");
    assert_eq!(y.to_vec::<f64>().expect("y"), [0.0, 2.0, 0.0]);
}

#[test]
fn misfits_are_errors() {
    assert!(forward(&values(&[], 1)).is_err(), "scalar");
    assert!(forward(&values(&[2], 1).to_dtype(DType::I32).expect("i32")).is_err(), "dtype");
    assert_eq!(forward(&values(&[3, 0], 1)).expect("no channels").dims(), [0]);
}

use super::{device, random, same_bits, twice};
use engine::{DType, Tensor};
use kernels::cast;

/// Nothing, one, less than 16 bytes, a prime, and more than the threads of a grid with 16 bytes each.
const SIZES: [usize; 5] = [0, 1, 7, 4099, 150_001];

#[test]
fn casts_have_the_hosts_bits_at_every_size_and_address() {
    let device = device();
    for (from, to) in [DType::BF16, DType::F16].into_iter().flat_map(|low| [(DType::F32, low), (low, DType::F32)]) {
        for n in SIZES {
            let here = random(1, &[n + 8], from);
            let there = here.to_device(device).expect("copy");
            // a multiple of 16 bytes, or not: f32 at 4 and 32, the others at 2 and 16
            for start in [0, 1, 8] {
                let part = |t: &Tensor| t.rows_at(start, n).expect("view");
                let ours = twice(|| cast::forward(&part(&there), to));
                assert_eq!((ours.dtype(), ours.device()), (to, device));
                same_bits(&[&ours], &[&cast::forward(&part(&here), to).expect("on the host")]);
            }
        }
    }
}

#[test]
fn ties_go_to_even_and_what_is_no_number_stays_so() {
    let device = device();
    let tiny = f32::MIN_POSITIVE / 4.0;
    let half = 2f32.powi(-25); // of the smallest f16
    let x = [257.0, 259.0, -259.0, 257.001, 2049.0, 2051.0, 65519.0, 65520.0, 3.4e38, tiny, half, 3.0 * half, -0.0];
    let x = [&x[..], &[f32::NEG_INFINITY, f32::NAN]].concat();
    let here = Tensor::from_slice(&x, &[x.len()]).expect("x");
    for dtype in [DType::BF16, DType::F16] {
        let there = here.to_device(device).and_then(|t| cast::forward(&t, dtype)).expect("cast");
        let bits = |t: &Tensor| t.to_f64_vec().expect("values").iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (ours, want) = (bits(&there), bits(&cast::forward(&here, dtype).expect("on the host")));
        let (numbers, nan) = (x.len() - 1, |bits: u64| f64::from_bits(bits).is_nan());
        assert_eq!(ours[..numbers], want[..numbers], "{dtype}");
        assert!(nan(ours[numbers]) && nan(want[numbers]), "{dtype}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = device();
    let x = random(1, &[4], DType::F32).to_device(device).expect("copy");
    assert!(cast::forward(&x, DType::F64).is_err());
    let mut y = Tensor::zeros(&[4], DType::BF16, device).expect("y");
    assert!(cast::into(&random(1, &[4], DType::F32), &mut y).is_err_and(|e| e.to_string().contains("cpu")));
    let view = y.clone();
    assert!(cast::into(&x, &mut y).is_err());
    drop(view);
    cast::into(&x, &mut y).expect("cast");
    same_bits(&[&y], &[&cast::forward(&x, DType::BF16).expect("cast")]);
}

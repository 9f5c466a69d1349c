use super::{device, random, same_bits, twice};
use engine::{DType, Tensor, bf16};
use kernels::cast;

/// Nothing, one, less than 16 bytes, a prime, and more than the threads of a grid with 16 bytes each.
const SIZES: [usize; 5] = [0, 1, 7, 4099, 150_001];

#[test]
fn casts_have_the_hosts_bits_at_every_size_and_address() {
    let Some(device) = device() else { return };
    for (from, to) in [(DType::F32, DType::BF16), (DType::BF16, DType::F32)] {
        for n in SIZES {
            let here = random(1, &[n + 8], from);
            let there = here.to_device(device).expect("copy");
            // a multiple of 16 bytes, or not: f32 at 4 and 32, bf16 at 2 and 16
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
    let Some(device) = device() else { return };
    let x = [257.0, 259.0, -259.0, 257.001, 3.4e38, f32::MIN_POSITIVE / 4.0, f32::NEG_INFINITY, -0.0, f32::NAN];
    let here = Tensor::from_slice(&x, &[x.len()]).expect("x");
    let there = here.to_device(device).and_then(|t| cast::forward(&t, DType::BF16)).expect("cast");
    let (ours, want) = (there.to_vec::<bf16>().expect("ours"), cast::forward(&here, DType::BF16).expect("want"));
    let want = want.to_vec::<bf16>().expect("want");
    assert!(ours[8].is_nan() && want[8].is_nan());
    assert_eq!(
        ours[..8].iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
        want[..8].iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    );
    assert_eq!((ours[0].to_f32(), ours[1].to_f32(), ours[4].to_f32()), (256.0, 260.0, f32::INFINITY));
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(device) = device() else { return };
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

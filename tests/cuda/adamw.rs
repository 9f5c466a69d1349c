use super::{DTYPES, assert_close, device, exact, random, same_bits, unit};
use engine::{DType, Device, Tensor};
use kernels::adamw::{Params, State, update};
use kernels::add;

/// Parameter, m, v and vmax after an update for each of the gradients, which come scaled, and the copy where one is wanted.
fn run(
    device: Device,
    dtype: DType,
    start: &Tensor,
    grads: &[Tensor],
    scale: f64,
    mut copy: Option<&mut Tensor>,
) -> [Tensor; 4] {
    let there = |t: &Tensor| t.to_device(device).expect("copy");
    let own = start.to_f64_vec().and_then(|values| Tensor::from_slice(&values, start.dims())?.to_dtype(dtype));
    let mut param = own.and_then(|t| t.to_device(device)).expect("a copy of its own");
    let [mut m, mut v, mut vmax] = [0; 3].map(|_| Tensor::zeros(start.dims(), dtype, device).expect("zeros"));
    for (grad, step) in grads.iter().zip(1..) {
        let p = Params { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step, scale };
        update(&mut param, copy.as_deref_mut(), &there(grad), State { m: &mut m, v: &mut v, vmax: &mut vmax }, p)
            .expect("update");
    }
    [param, m, v, vmax]
}

#[test]
fn updates_agree_with_f64() {
    let device = device();
    for dtype in DTYPES {
        for dims in [&[3, 5, 7][..], &[1], &[4099], &[0]] {
            let start = random(1, dims, DType::F32);
            // the second gradient is larger than the others, so that vmax and v part in the third step
            let scaled = |seed, by: f64| {
                let values = random(seed, dims, dtype).to_f64_vec().expect("values");
                let values: Vec<f64> = values.iter().map(|v| by * v).collect();
                Tensor::from_slice(&values, dims).and_then(|t| t.to_dtype(dtype)).expect("gradient")
            };
            let grads = [scaled(2, 1.0), scaled(3, 64.0), scaled(4, 0.5)];
            let ours = run(device, DType::F32, &start, &grads, 1.0, None);
            let want = run(Device::Cpu, DType::F64, &exact(&start), &grads.each_ref().map(exact), 1.0, None);
            for (ours, want) in ours.iter().zip(&want) {
                // a step rounds each of its factors once from f64, and its four operations
                assert_close(ours, want, 3.0 * 8.0 * unit(DType::F32));
            }
            same_bits(&ours.each_ref(), &run(device, DType::F32, &start, &grads, 1.0, None).each_ref());
        }
    }
}

#[test]
fn a_nan_stays_in_the_maximum() {
    let start = random(1, &[2], DType::F32);
    let grad = Tensor::from_slice(&[f32::NAN, 1.0], &[2]).expect("gradient");
    let vmax = |device| run(device, DType::F32, &start, &[grad.clone()], 1.0, None)[3].to_vec::<f32>().expect("vmax");
    for top in [vmax(Device::Cpu), vmax(device())] {
        assert!(top[0].is_nan() && top[1].is_finite(), "{top:?}");
    }
}

#[test]
fn a_shared_parameter_is_not_written() {
    let device = device();
    let zeros = || Tensor::zeros(&[4], DType::F32, device).expect("zeros");
    let (mut param, [mut m, mut v, mut vmax]) = (zeros(), [zeros(), zeros(), zeros()]);
    let view = param.rows_at(1, 2).expect("view");
    let state = State { m: &mut m, v: &mut v, vmax: &mut vmax };
    let p = Params { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, scale: 1.0 };
    assert!(update(&mut param, None, &zeros(), state, p).is_err());
    assert_eq!(view.to_vec::<f32>(), Ok(vec![0.0; 2]));
}

#[test]
fn the_copy_is_the_rounded_parameter_and_a_scale_of_the_gradient_changes_no_bit() {
    let device = device();
    for (n, low) in [(1, DType::BF16), (4099, DType::F16), (70_001, DType::BF16)] {
        let (start, grad) = (random(1, &[n], DType::F32), random(2, &[n], DType::F32));
        let plain = run(device, DType::F32, &start, std::slice::from_ref(&grad), 1.0, None);
        let mut copy = Tensor::full(&[n], f64::NAN, low, device).expect("copy");
        let scaled = [add::scale(&grad, 4096.0).expect("scaled")];
        let copied = run(device, DType::F32, &start, &scaled, 4096.0, Some(&mut copy));
        same_bits(&copied.each_ref(), &plain.each_ref());
        same_bits(&[&copy], &[&copied[0].to_dtype(low).expect("rounded")]);
    }
}

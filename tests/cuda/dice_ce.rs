use super::{assert_close, device, exact, random, same_bits, unit};
use engine::{DType, Device, Tensor, random::uniform};
use kernels::dice_ce;

/// Logits spread over 16 or less, so a difference of two is off by 16 units at most, and so is its exponential's logarithm; the
/// exponential (4 units), the sum and the division (4 units) follow. Twice as much where two probabilities meet.
const BOUND: f64 = 24.0;

fn labels(seed: u64, dims: &[usize], classes: usize) -> Tensor {
    let n: usize = dims.iter().product();
    let values: Vec<i32> = (0..n as u64).map(|i| (uniform(seed, i) * classes as f64) as i32).collect();
    Tensor::from_slice(&values, dims).expect("labels")
}

#[test]
fn loss_sums_and_gradient_agree_with_f64() {
    let device = device();
    // one voxel; a ragged tile; more parts than one; more classes than threads; nearly 48 KB of one voxel's; samples of several axes
    let shapes: [&[usize]; 7] =
        [&[1, 1, 2], &[2, 63, 3], &[1, 5, 5, 3, 21], &[3, 700, 5], &[1, 70, 105], &[2, 9, 300], &[1, 2, 12_001]];
    for dims in shapes {
        let outer = &dims[..dims.len() - 1];
        let (logits, labels) = (random(1, dims, DType::F32), labels(2, outer, dims[outer.len()]));
        let dloss = Tensor::scalar(0.7f32).expect("dloss");
        let [x, y, d] = [&logits, &labels, &dloss].map(|t| t.to_device(device).expect("copy"));
        let run = || {
            let out = dice_ce::forward(&x, &y).expect("forward");
            let dx = dice_ce::backward(&d, &x, &y, &out.sums).expect("backward");
            [out.loss, out.sums, dx]
        };
        let [loss, sums, dx] = run();
        let want = dice_ce::forward(&exact(&logits), &labels).expect("f64");
        assert_close(&loss, &want.loss, BOUND * unit(DType::F32));
        assert_close(&sums, &want.sums, BOUND * unit(DType::F32));
        let want = dice_ce::backward(&exact(&dloss), &exact(&logits), &labels, &want.sums).expect("f64");
        assert_close(&dx, &want, 2.0 * BOUND * unit(DType::F32));
        same_bits(&[&loss, &sums, &dx], &run().each_ref());
    }
}

#[test]
fn a_label_that_is_no_class_is_the_error_of_the_cpu() {
    let device = device();
    let logits = random(1, &[2, 600, 3], DType::F32);
    for (at, bad) in [(0, 3), (1100, -1)] {
        let mut labels = labels(2, &[2, 600], 3);
        labels.fill_with(at..at + 1, |_| f64::from(bad)).expect("bad");
        labels.fill_with(1199..1200, |_| 7.0).expect("a later one");
        let here = dice_ce::forward(&logits, &labels).err().expect("cpu");
        let there = |t: &Tensor| t.to_device(device).expect("copy");
        assert_eq!(dice_ce::forward(&there(&logits), &there(&labels)).err(), Some(here));
    }
}

#[test]
fn not_a_number_shows() {
    let device = device();
    let mut logits = random(1, &[1, 9, 3], DType::F32);
    logits.fill_with(4..5, |_| f64::NAN).expect("NaN");
    let (x, y) = (logits.to_device(device).expect("copy"), Tensor::zeros(&[1, 9], DType::I32, device).expect("labels"));
    assert!(dice_ce::forward(&x, &y).and_then(|out| out.loss.item()).expect("loss").is_nan());
    assert_eq!(device, x.device());
    assert_ne!(device, Device::Cpu);
}

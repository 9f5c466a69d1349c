use super::{assert_close, device, exact, random, same_bits, unit};
use engine::{DType, Device, Tensor, random::uniform};
use kernels::info_nce::{self, Params};

/// Roundings in f32, taken as independent. A cosine sums D products of unit rows: it is off by at most √(D + 2) units, its
/// exponent by that over τ, and so is the log-sum-exp. Then come the exponential (4 units), a sum over the other side's rows and
/// the way through the norm (4 units).
fn bound(dim: usize, others: usize, temperature: f64) -> f64 {
    let exponent = ((dim + 2) as f64).sqrt() / temperature;
    (2.0 * exponent + (others as f64).sqrt() + 8.0) * unit(DType::F32)
}

/// How much larger the gradient of x would be if nothing cancelled: its rows' parts add up to `mass`, the derivative by the cosine
/// being dloss / (G S τ), here 1.5 / (n τ), and the way through the norm divides by that.
fn cancelled(x: &Tensor, dx: &Tensor, mass: f64, n: usize, p: Params) -> f64 {
    let values = |t: &Tensor| t.to_f64_vec().expect("values");
    let square = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>();
    let gross: f64 =
        values(x).chunks(x.channels()).map(|row| (mass * 1.5 / (n as f64 * p.temperature)).powi(2) / square(row)).sum();
    (gross / square(&values(dx))).sqrt().max(1.0)
}

/// q, k and targets of which each row sums to 1.
fn inputs(p: Params, rows: usize, columns: usize, dim: usize) -> [Tensor; 3] {
    let n = p.groups * rows;
    let mut targets: Vec<f32> = (0..(n * columns) as u64).map(|i| uniform(3, i) as f32).collect();
    for row in targets.chunks_mut(columns) {
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|t| *t /= sum);
    }
    let targets = Tensor::from_slice(&targets, &[n, columns]).expect("targets");
    [random(1, &[n, dim], DType::F32), random(2, &[p.groups * columns, dim], DType::F32), targets]
}

/// Loss, dq and dk.
fn run(device: Device, dtype: DType, inputs: &[Tensor; 3], p: Params) -> [Tensor; 3] {
    let there = |t: &Tensor| t.to_dtype(dtype).and_then(|t| t.to_device(device)).expect("copy");
    let [q, k, t] = inputs.each_ref().map(there);
    let out = info_nce::forward(&q, &k, &t, p).expect("forward");
    let dloss = Tensor::full(&[], 1.5, dtype, device).expect("dloss");
    let grads = |keys| info_nce::backward(&dloss, &q, &k, &t, &out.lse, p, keys).expect("backward");
    let ((alone, none), (dq, dk)) = (grads(false), grads(true));
    same_bits(&[&alone], &[&dq]);
    let dk = dk.filter(|_| none.is_none()).expect("only where it is wanted");
    [out.loss, dq, dk]
}

#[test]
fn loss_and_gradients_agree_with_f64() {
    let device = device();
    // one row; ragged ends of tiles; several tiles either way; groups smaller than a tile and larger; more columns than a step
    let shapes = [(1, 1, 2, 3), (1, 63, 65, 7), (1, 130, 70, 33), (3, 2, 9, 40), (2, 65, 129, 70), (1, 5, 3, 200)];
    for (groups, rows, columns, dim) in shapes {
        for temperature in [1.0, 0.07] {
            let p = Params { temperature, groups };
            let inputs = inputs(p, rows, columns, dim);
            let ours = run(device, DType::F32, &inputs, p);
            let want = run(Device::Cpu, DType::F64, &inputs.each_ref().map(exact), p);
            let bound = bound(dim, rows.max(columns), temperature);
            let n = groups * rows;
            // softmax and targets add up to 1 each over a row of q, and to as much as there are rows over all of k
            let q = cancelled(&inputs[0], &want[1], 2.0, n, p);
            let k = cancelled(&inputs[1], &want[2], 2.0 * rows as f64 / columns as f64, n, p);
            for ((ours, want), cancelled) in ours.iter().zip(&want).zip([1.0, q, k]) {
                assert_close(ours, want, bound * cancelled);
            }
            same_bits(&ours.each_ref(), &run(device, DType::F32, &inputs, p).each_ref());
        }
    }
}

#[test]
fn rows_of_zeros_and_short_rows_are_as_on_the_cpu() {
    let device = device();
    let p = Params { temperature: 0.5, groups: 1 };
    let [mut q, mut k, targets] = inputs(p, 5, 4, 3);
    q.fill_with(0..3, |_| 0.0).expect("zeros");
    k.fill_with(3..6, |i| 1e-13 * i as f64).expect("short");
    k.fill_with(6..9, |i| 1e20 * (1 + i) as f64).expect("long");
    let inputs = [q, k, targets];
    let ours = run(device, DType::F32, &inputs, p);
    let want = run(Device::Cpu, DType::F64, &inputs.each_ref().map(exact), p);
    for (ours, want) in ours.iter().zip(&want) {
        assert_close(ours, want, bound(3, 5, 0.5));
    }
}

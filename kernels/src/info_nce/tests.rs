use super::*;
use crate::testing::run_on;
use engine::random;

struct Case {
    q: Vec<f64>,
    k: Vec<f64>,
    targets: Vec<f64>,
    rows: usize,
    columns: usize,
    dim: usize,
    p: Params,
}

/// Per group: `rows` of q, `columns` of k.
fn case(groups: usize, rows: usize, columns: usize, dim: usize, temperature: f64) -> Case {
    let values = |n: usize, seed| (0..n).map(|i| random::normal(seed, i as u64)).collect::<Vec<_>>();
    let mut targets: Vec<f64> = (0..groups * rows * columns).map(|i| random::uniform(3, i as u64)).collect();
    for row in targets.chunks_mut(columns) {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|t| *t /= sum);
    }
    let (q, k) = (values(groups * rows * dim, 1), values(groups * columns * dim, 2));
    Case { q, k, targets, rows, columns, dim, p: Params { temperature, groups } }
}

fn tensor(values: &[f64], dims: &[usize], dtype: DType) -> Tensor {
    engine::memory::check(true);
    Tensor::from_slice(values, dims).and_then(|t| t.to_dtype(dtype)).expect("tensor")
}

fn read(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().expect("read")
}

fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    read(a).iter().zip(read(b)).all(|(a, b)| a.to_bits() == b.to_bits())
}

fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (off / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

impl Case {
    fn tensors(&self, dtype: DType) -> [Tensor; 3] {
        let g = self.p.groups;
        [
            tensor(&self.q, &[g * self.rows, self.dim], dtype),
            tensor(&self.k, &[g * self.columns, self.dim], dtype),
            tensor(&self.targets, &[g * self.rows, self.columns], dtype),
        ]
    }

    /// Loss, dq and dk.
    fn run(&self, dloss: f64, dtype: DType) -> [Vec<f64>; 3] {
        let [q, k, t] = self.tensors(dtype);
        let out = forward(&q, &k, &t, self.p).expect("forward");
        let grads =
            |keys| backward(&tensor(&[dloss], &[], dtype), &q, &k, &t, &out.lse, self.p, keys).expect("backward");
        let (dq, dk) = grads(true);
        let alone = grads(false);
        assert!(alone.1.is_none() && same_bits(&alone.0, &dq), "dq without dk");
        [read(&out.loss), read(&dq), read(&dk.expect("dk"))]
    }

    /// Loss, dq and dk from the whole matrix of similarities.
    fn naive(&self, q: &[f64], k: &[f64]) -> [Vec<f64>; 3] {
        let (dim, count) = (self.dim, (self.p.groups * self.rows) as f64);
        let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (mut loss, mut dq, mut dk) = (0.0, vec![0.0; q.len()], vec![0.0; k.len()]);
        for r in 0..self.p.groups * self.rows {
            let first = r / self.rows * self.columns;
            let a = &q[r * dim..][..dim];
            let cosine = |j: usize| {
                let b = &k[(first + j) * dim..][..dim];
                dot(a, b) / norm(a) / norm(b)
            };
            let z: Vec<f64> = (0..self.columns).map(|j| cosine(j) / self.p.temperature).collect();
            let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            let t = &self.targets[r * self.columns..][..self.columns];
            loss += (0..self.columns).map(|j| t[j] * (lse - z[j])).sum::<f64>() / count;
            for j in 0..self.columns {
                let b = &k[(first + j) * dim..][..dim];
                let (cosine, a_norm, b_norm) = (cosine(j), norm(a), norm(b));
                let slope = ((z[j] - lse).exp() * t.iter().sum::<f64>() - t[j]) / count / self.p.temperature;
                for d in 0..dim {
                    let (a_unit, b_unit) = (a[d] / a_norm, b[d] / b_norm);
                    dq[r * dim + d] += slope * (b_unit - cosine * a_unit) / a_norm;
                    dk[(first + j) * dim + d] += slope * (a_unit - cosine * b_unit) / b_norm;
                }
            }
        }
        [vec![loss], dq, dk]
    }
}

#[test]
fn loss_and_gradients_match_the_naive_formulas() {
    // one row; ragged ends of tiles; several tiles either way; groups smaller than a tile and larger; more tiles than are kept
    let shapes = [
        (1, 1, 2, 3),
        (1, 63, 65, 7),
        (1, 130, 70, 33),
        (3, 2, 9, 40),
        (2, 65, 129, 128),
        (1, 5, 3, 200),
        (1100, 1, 2, 3),
        (2, 70, 66, 512),
    ];
    for (groups, rows, columns, dim) in shapes {
        for temperature in [1.0, 0.07] {
            let c = case(groups, rows, columns, dim, temperature);
            let want = c.naive(&c.q, &c.k);
            for (dtype, bound) in [(DType::F64, 1e-12), (DType::F32, 5e-6)] {
                for (got, want) in c.run(1.0, dtype).iter().zip(&want) {
                    let error = distance(got, want);
                    assert!(error < bound, "{groups} {rows} {columns} {dim} {temperature} {dtype}: {error}");
                }
            }
        }
    }
}

#[test]
fn rows_of_one_number_have_no_gradient() {
    let c = case(1, 2, 3, 1, 0.5); // cosines are 1 or -1
    for dtype in [DType::F32, DType::F64] {
        let [loss, dq, dk] = c.run(1.0, dtype);
        assert!((loss[0] - c.naive(&c.q, &c.k)[0][0]).abs() < 1e-6);
        assert!(dq.iter().chain(&dk).all(|v| v.abs() < 1e-6));
    }
}

#[test]
fn gradients_match_central_differences() {
    let mut c = case(2, 3, 4, 5, 0.3);
    c.targets[1] += 0.4; // a row that does not sum to 1
    let numeric = |x: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        let at = |i: usize, h: f64| {
            let mut x = x.to_vec();
            x[i] += h;
            f(&x)
        };
        (0..x.len()).map(|i| 0.7 * (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
    };
    let dq = numeric(&c.q, &|q| c.naive(q, &c.k)[0][0]);
    let dk = numeric(&c.k, &|k| c.naive(&c.q, k)[0][0]);
    let [_, got_q, got_k] = c.run(0.7, DType::F64);
    assert!(distance(&got_q, &dq) < 1e-8 && distance(&got_k, &dk) < 1e-8);
}

#[test]
fn every_width_agrees_and_sharp_temperatures_do_not_overflow() {
    use crate::simd::{Level, testing::run_at};
    let c = case(1, 70, 150, 48, 0.005);
    let want = c.run(1.0, DType::F64);
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        for (got, want) in run_at(level, 2, || c.run(1.0, DType::F32)).iter().zip(&want) {
            // a cosine is right to about 3e-7 of 1, so an exponent to 200 times that
            assert!(distance(got, want) < 6e-5, "{level:?}: {}", distance(got, want));
        }
    }
}

#[test]
fn threads_do_not_change_bits() {
    let c = case(2, 130, 200, 20, 0.1);
    for dtype in [DType::F32, DType::F64] {
        assert!(run_on(1, || c.run(1.0, dtype)) == run_on(3, || c.run(1.0, dtype)), "{dtype}");
    }
}

#[test]
fn nan_shows_and_a_zero_row_has_a_gradient() {
    for dtype in [DType::F32, DType::F64] {
        for at in [0, 80] {
            let mut c = case(1, 6, 90, 3, 0.5);
            c.q[6] = f64::NAN;
            c.k[at * 3] = f64::NAN;
            let [loss, dq, dk] = c.run(1.0, dtype);
            assert!(loss[0].is_nan() && dq.iter().all(|v| v.is_nan()) && dk.iter().all(|v| v.is_nan()));
        }
        let mut c = case(1, 2, 3, 4, 0.5);
        c.q[..4].fill(0.0);
        let [loss, dq, dk] = c.run(1.0, dtype);
        assert!(loss.iter().chain(&dq).chain(&dk).all(|v| v.is_finite()) && dq[..4].iter().any(|v| v.abs() > 1e9));
    }
}

#[test]
fn wrong_input_is_an_error() {
    let [q, k, t] = case(2, 3, 4, 5, 0.1).tensors(DType::F32);
    let p = |groups, temperature| Params { groups, temperature };
    assert!(forward(&q, &k, &t, p(2, 0.1)).is_ok());
    for bad in [p(0, 0.1), p(1, 0.1), p(4, 0.1), p(2, 0.0), p(2, -1.0), p(2, f64::NAN)] {
        assert!(forward(&q, &k, &t, bad).is_err(), "{bad:?}");
    }
    assert!(forward(&q, &k.to_dtype(DType::F64).expect("f64"), &t, p(2, 0.1)).is_err());
    let empty = |dims: &[usize]| Tensor::zeros(dims, DType::F32, Device::Cpu).expect("empty");
    assert!(forward(&empty(&[0, 5]), &k, &empty(&[0, 4]), p(2, 0.1)).is_err());
    assert!(forward(&q, &empty(&[0, 5]), &empty(&[6, 0]), p(2, 0.1)).is_err());
    assert!(backward(&empty(&[]), &q, &k, &t, &empty(&[5]), p(2, 0.1), true).is_err());
}

#[test]
fn a_lone_column_leaves_nothing_to_learn() {
    for dtype in [DType::F32, DType::F64] {
        let q = tensor(&[0.3, -0.5, 2.1], &[1, 3], dtype);
        let (k, t) = (tensor(&[-1.4, 0.9, 0.7], &[1, 3], dtype), tensor(&[1.0], &[1, 1], dtype));
        let p = Params { temperature: 0.1, groups: 1 };
        let out = forward(&q, &k, &t, p).expect("forward");
        assert_eq!(out.loss.item().expect("loss"), 0.0);
        let (dq, dk) = backward(&tensor(&[1.0], &[], dtype), &q, &k, &t, &out.lse, p, true).expect("backward");
        assert!([dq, dk.expect("dk")].iter().all(|d| d.to_f64_vec().expect("gradient").iter().all(|&v| v == 0.0)));
    }
}

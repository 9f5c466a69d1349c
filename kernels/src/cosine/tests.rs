use super::*;
use engine::random;

fn values(n: usize, seed: u64) -> Vec<f64> {
    (0..n).map(|i| random::normal(seed, i as u64)).collect()
}

fn tensor(values: &[f64], rows: usize, dtype: DType) -> Tensor {
    engine::memory::check(true);
    let t = Tensor::from_slice(values, &[rows, values.len() / rows.max(1)]).expect("tensor");
    t.to_dtype(dtype).expect("dtype")
}

fn naive(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &[f64]| x.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-8);
    a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>() / (norm(a) * norm(b))
}

fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (off / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

#[test]
fn similarities_match_the_naive_formula() {
    for (n, m, d) in [(1, 1, 1), (2, 3, 5), (7, 13, 16), (33, 4, 129)] {
        let (a, b) = (values(n * d, 1), values(m * d, 2));
        for (dtype, bound) in [(DType::F64, 1e-14), (DType::F32, 2e-7)] {
            let (ta, tb) = (tensor(&a, n, dtype), tensor(&b, m, dtype));
            let (a, b) = (ta.to_f64_vec().expect("a"), tb.to_f64_vec().expect("b"));
            let want: Vec<f64> =
                a.chunks(d).flat_map(|a| b.chunks(d).map(|b| naive(a, b)).collect::<Vec<_>>()).collect();
            let got = forward(&ta, &tb).expect("forward").to_f64_vec().expect("read");
            assert!(distance(&got, &want) <= bound, "{n} {m} {d} {dtype}");
        }
    }
}

#[test]
fn gradients_match_central_differences() {
    let (n, m, d) = (3, 4, 5);
    let (a, b, dy) = (values(n * d, 3), values(m * d, 4), values(n * m, 5));
    let loss = |a: &[f64], b: &[f64]| -> f64 {
        let y = forward(&tensor(a, n, DType::F64), &tensor(b, m, DType::F64)).expect("forward");
        y.to_f64_vec().expect("read").iter().zip(&dy).map(|(y, dy)| y * dy).sum()
    };
    let numeric = |x: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        let at = |i: usize, h: f64| {
            let mut x = x.to_vec();
            x[i] += h;
            f(&x)
        };
        (0..x.len()).map(|i| (at(i, 1e-5) - at(i, -1e-5)) / 2e-5).collect()
    };
    for (dtype, bound) in [(DType::F64, 1e-8), (DType::F32, 3e-7)] {
        let (da, db) =
            backward(&tensor(&dy, n, dtype), &tensor(&a, n, dtype), &tensor(&b, m, dtype)).expect("backward");
        assert!(distance(&da.to_f64_vec().expect("da"), &numeric(&a, &|a| loss(a, &b))) < bound);
        assert!(distance(&db.to_f64_vec().expect("db"), &numeric(&b, &|b| loss(&a, b))) < bound);
    }
}

#[test]
fn tiny_and_zero_rows_follow_the_clamp() {
    // PyTorch's gradients of the similarity of s·(1, 2, 3) with (2, -1, 0.5), for s under the clamp and for s = 0
    let b = tensor(&[2.0, -1.0, 0.5], 1, DType::F64);
    let dy = tensor(&[1.0], 1, DType::F64);
    let want =
        [(1e-9, [85537520.5638, -47142849.1083, 16572882.4319]), (0.0, [87287156.0944, -43643578.0472, 21821789.0236])];
    for (s, want) in want {
        let a = tensor(&[s, 2.0 * s, 3.0 * s], 1, DType::F64);
        let (da, db) = backward(&dy, &a, &b).expect("backward");
        assert!(distance(&da.to_f64_vec().expect("da"), &want) < 1e-11);
        assert!(s != 0.0 || db.to_f64_vec().expect("db") == [0.0; 3]);
    }
}

#[test]
fn empty_sides_give_empty_or_zero_and_nan_shows() {
    let (a, none) =
        (tensor(&values(6, 1), 2, DType::F32), Tensor::zeros(&[0, 3], DType::F32, Device::Cpu).expect("none"));
    assert_eq!(forward(&a, &none).expect("empty").dims(), [2, 0]);
    assert_eq!(forward(&none, &a).expect("empty").dims(), [0, 2]);
    let dy = Tensor::zeros(&[2, 0], DType::F32, Device::Cpu).expect("dy");
    let (da, db) = backward(&dy, &a, &none).expect("backward");
    assert_eq!((da.to_vec::<f32>().expect("da"), db.dims()), (vec![0.0; 6], &[0, 3][..]));
    let y = forward(&tensor(&[f64::NAN, 1.0], 1, DType::F32), &tensor(&[1.0, 1.0], 1, DType::F32)).expect("forward");
    assert!(y.item().expect("y").is_nan());
}

#[test]
fn wrong_input_is_an_error() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, Device::Cpu).expect("zeros");
    let a = zeros(&[2, 3], DType::F32);
    assert!(forward(&a, &zeros(&[2, 4], DType::F32)).is_err());
    assert!(forward(&a, &zeros(&[3], DType::F32)).is_err());
    assert!(forward(&a, &zeros(&[2, 3], DType::F64)).is_err());
    assert!(forward(&zeros(&[2, 0], DType::F32), &zeros(&[2, 0], DType::F32)).is_err());
    assert!(forward(&zeros(&[2, 3], DType::BF16), &zeros(&[2, 3], DType::BF16)).is_err());
    assert!(backward(&zeros(&[3, 2], DType::F32), &a, &a).is_err());
}

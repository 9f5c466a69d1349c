use super::grid::{PADDING, Window};
use super::*;
use crate::simd::{Level, testing::run_at};
use crate::testing::{assert_bf16, run_on};

fn grid(size: [usize; 3], window: [usize; 3], shift: [usize; 3]) -> Grid {
    Grid::new(size, Params { heads: 1, window, shift })
}

/// Rows of the table for all pairs of the first `n` tokens of a 7x7x7 window.
fn index(n: usize) -> Vec<usize> {
    let grid = grid([7; 3], [7; 3], [0; 3]);
    let centre = (grid.offsets() - 1) / 2;
    (0..n * n).map(|ij| grid.code(ij / n) + centre - grid.code(ij % n)).collect()
}

#[test]
fn index_numbers_offsets_as_monai_does() {
    let all = index(343);
    let at = |i: usize, j: usize| all[i * 343 + j];
    let corners = [at(0, 0), at(0, 1), at(1, 0), at(0, 7), at(0, 49), at(0, 342), at(342, 0), at(100, 200)];
    assert_eq!(corners, [1098, 1097, 1099, 1085, 929, 0, 2196, 758]);
    assert_eq!(all.iter().sum::<usize>(), 129_178_602);
    for (n, distinct, sum) in [(64, 391, 4_497_408), (216, 1415, 51_228_288), (125, 765, 17_156_250), (8, 27, 70_272)] {
        let mut some = index(n);
        assert_eq!(some.iter().sum::<usize>(), sum, "{n}");
        some.sort_unstable();
        some.dedup();
        assert_eq!(some.len(), distinct, "{n}");
    }
}

#[test]
fn masks_are_those_of_monai() {
    let cases = [
        (35, 125, 61, 3_912_264),
        (21, 27, 19, 1_315_656),
        (14, 8, 7, 535_968),
        (28, 64, 37, 2_441_088),
        (49, 343, 127, 7_891_848),
    ];
    for (size, windows, masked, entries) in cases {
        let grid = grid([size; 3], [7; 3], [3; 3]);
        assert_eq!(grid.windows(), windows);
        let mut window = Window::default();
        let (mut divided, mut count) = (0, 0);
        for index in 0..windows {
            window.fill(&grid, 0, index);
            let others = |of: &u8| window.regions.iter().filter(|r| *r != of).count();
            count += window.regions.iter().map(others).sum::<usize>();
            divided += usize::from(window.divided);
        }
        assert_eq!((divided, count), (masked, entries), "{size}");
    }
}

#[test]
fn every_voxel_is_in_one_window() {
    for (size, window, shift) in
        [([5, 8, 13], [7; 3], [3; 3]), ([5, 8, 13], [2, 3, 4], [1, 1, 2]), ([1; 3], [7; 3], [3; 3])]
    {
        let grid = grid(size, window, shift);
        let voxels: usize = size.iter().product();
        let mut seen = vec![0; 2 * voxels];
        let mut window = Window::default();
        for unit in 0..2 * grid.windows() {
            window.fill(&grid, unit / grid.windows(), unit % grid.windows());
            assert_eq!(window.rows.len(), grid.tokens());
            window.queries.iter().for_each(|&t| seen[window.rows[t]] += 1);
            assert_eq!(window.rows.iter().filter(|&&r| r == PADDING).count(), grid.tokens() - window.queries.len());
        }
        assert_eq!(seen, vec![1; 2 * voxels], "{size:?}");
    }
}

/// Sizes of a case: batch, grid, heads, head_dim, window, shift.
type Case = (usize, [usize; 3], usize, usize, [usize; 3], [usize; 3]);

const CASES: [Case; 12] = [
    (1, [1, 1, 1], 1, 1, [7; 3], [3; 3]),
    (2, [1, 1, 1], 3, 5, [1; 3], [0; 3]),
    (1, [5, 8, 13], 2, 4, [7; 3], [3; 3]),
    (2, [5, 8, 13], 1, 5, [2, 3, 4], [1, 1, 2]),
    (1, [4, 9, 7], 3, 16, [7; 3], [3; 3]),
    (1, [7, 7, 7], 1, 32, [7; 3], [0; 3]),
    (2, [4, 4, 4], 2, 64, [7; 3], [3; 3]),
    (1, [3, 5, 2], 1, 64, [2, 3, 4], [1, 1, 2]),
    (1, [2, 3, 19], 2, 7, [2, 2, 17], [0, 1, 5]),
    (1, [3, 4, 5], 1, 20, [2, 3, 4], [0, 0, 0]),
    (1, [9, 8, 10], 1, 1, [7; 3], [0, 3, 0]),
    (1, [6, 5, 3], 2, 33, [4, 4, 2], [2, 0, 1]),
];

/// Inputs of a case, and a gradient to start from.
struct Inputs {
    p: Params,
    qkv: Tensor,
    pad: Tensor,
    table: Tensor,
    dy: Tensor,
}

impl Inputs {
    fn new((b, [d, h, w], heads, head_dim, window, shift): Case, seed: u64) -> Inputs {
        let c = heads * head_dim;
        let rows: usize = window.iter().map(|w| 2 * w - 1).product();
        let mut state = seed;
        let mut tensor = |dims: &[usize]| {
            let value = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                f64::from(((state >> 33) as f32 / (1u64 << 30) as f32 - 1.0) * 1.5)
            };
            let values: Vec<f64> = (0..dims.iter().product()).map(value).collect();
            Tensor::from_slice(&values, dims).expect("values")
        };
        Inputs {
            p: Params { heads, window, shift },
            qkv: tensor(&[b, d, h, w, 3 * c]),
            pad: tensor(&[3 * c]),
            table: tensor(&[rows, heads]),
            dy: tensor(&[b, d, h, w, c]),
        }
    }

    fn to(&self, dtype: DType) -> Inputs {
        let to = |t: &Tensor| t.to_dtype(dtype).expect("dtype");
        Inputs { p: self.p, qkv: to(&self.qkv), pad: to(&self.pad), table: to(&self.table), dy: to(&self.dy) }
    }

    fn forward(&self) -> Output {
        forward(&self.qkv, &self.pad, &self.table, self.p).expect("forward")
    }

    /// y, lse, dqkv, dpad, dtable.
    fn run(&self) -> [Tensor; 5] {
        let Output { y, lse } = self.forward();
        let g = backward(&self.dy, &y, &lse, &self.qkv, &self.pad, &self.table, self.p).expect("backward");
        [y, lse, g.dqkv, g.dpad, g.dtable]
    }

    /// The operation as it is described, one step after the other, on a padded and rolled copy: y and lse.
    fn step_by_step(&self) -> (Vec<f64>, Vec<f64>) {
        let [batch, depth, height, width, wide] = self.qkv.ndhwc("test").expect("qkv");
        let (size, heads, c) = ([depth, height, width], self.p.heads, wide / 3);
        let (qkv, pad) = (values(&self.qkv), values(&self.pad));
        let table = values(&self.table);
        let whole = |a: usize| size[a] <= self.p.window[a];
        let window: [usize; 3] = std::array::from_fn(|a| if whole(a) { size[a] } else { self.p.window[a] });
        let shift: [usize; 3] = std::array::from_fn(|a| if whole(a) { 0 } else { self.p.shift[a] });
        let padded: [usize; 3] = std::array::from_fn(|a| size[a].div_ceil(window[a]) * window[a]);
        let (mut y, mut lse) = (vec![0.0; qkv.len() / 3], vec![0.0; qkv.len() / wide * heads]);
        for b in 0..batch {
            let voxel = |at: [usize; 3]| {
                let from: [usize; 3] = std::array::from_fn(|a| (at[a] + shift[a]) % padded[a]);
                let inside = (0..3).all(|a| from[a] < size[a]);
                inside.then(|| ((b * depth + from[0]) * height + from[1]) * width + from[2])
            };
            let token = |at: [usize; 3]| voxel(at).map_or(&pad[..], |row| &qkv[row * wide..][..wide]);
            let slice = |a: usize, v: usize| match v {
                _ if shift[a] == 0 || v < padded[a] - window[a] => 0,
                _ if v < padded[a] - shift[a] => 1,
                _ => 2,
            };
            let region = |at: [usize; 3]| (slice(0, at[0]), slice(1, at[1]), slice(2, at[2]));
            for query in points(padded) {
                let Some(row) = voxel(query) else { continue };
                let keys: Vec<_> =
                    points(padded).filter(|k| (0..3).all(|a| k[a] / window[a] == query[a] / window[a])).collect();
                let i = keys.iter().position(|k| *k == query).expect("own window");
                for head in 0..heads {
                    let part = |t: &[f64], part: usize| t[part * c + head * c / heads..][..c / heads].to_vec();
                    let q = part(token(query), 0);
                    let score = |(j, key): (usize, &[usize; 3])| {
                        let qk: f64 = q.iter().zip(part(token(*key), 1)).map(|(a, b)| a * b).sum();
                        let mask = if region(query) == region(*key) { 0.0 } else { -100.0 };
                        qk / (q.len() as f64).sqrt() + table[self.table_row(i, j) * heads + head] + mask
                    };
                    let scores: Vec<f64> = keys.iter().enumerate().map(score).collect();
                    let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                    lse[row * heads + head] = sum.ln();
                    for (s, key) in scores.iter().zip(&keys) {
                        for (d, v) in part(token(*key), 2).iter().enumerate() {
                            y[row * c + head * c / heads + d] += s.exp() / sum * v;
                        }
                    }
                }
            }
        }
        (y, lse)
    }

    fn table_row(&self, i: usize, j: usize) -> usize {
        let [a, b, c] = self.p.window;
        let coordinates = |t: usize| [t / (b * c), t / c % b, t % c];
        let ([di, dj, dk], [ei, ej, ek]) = (coordinates(i), coordinates(j));
        ((di + a - 1 - ei) * (2 * b - 1) + dj + b - 1 - ej) * (2 * c - 1) + dk + c - 1 - ek
    }
}

fn points([d, h, w]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..d * h * w).map(move |i| [i / (h * w), i / w % h, i % w])
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().expect("values")
}

/// |got - want| / |want|, or |got| where want is zero. NaN when there is one.
fn error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = want.iter().map(|v| v * v).sum::<f64>().sqrt();
    let distance = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    if norm == 0.0 { distance } else { distance / norm }
}

#[test]
fn f64_is_the_operation_step_by_step() {
    engine::memory::check(true);
    for case in CASES {
        let inputs = Inputs::new(case, 1);
        let (y, lse) = inputs.step_by_step();
        let got = inputs.forward();
        assert!(error(&values(&got.y), &y) < 1e-13, "y of {case:?}");
        assert!(error(&values(&got.lse), &lse) < 1e-13, "lse of {case:?}");
    }
}

/// Central differences of <y, dy> along random directions of qkv, pad and table.
#[test]
fn f64_gradients_are_those_of_differences() {
    engine::memory::check(true);
    for case in CASES {
        let inputs = Inputs::new(case, 2);
        let [.., dqkv, dpad, dtable] = inputs.run();
        let direction = Inputs::new(case, 3);
        let step = 1e-5;
        let moved = |t: &Tensor, along: &Tensor, by: f64| {
            let moved: Vec<f64> = values(t).iter().zip(values(along)).map(|(t, a)| t + by * a).collect();
            Tensor::from_slice(&moved, t.dims()).expect("moved")
        };
        let value = |i: &Inputs| -> f64 { values(&i.forward().y).iter().zip(values(&i.dy)).map(|(a, b)| a * b).sum() };
        for part in 0..3 {
            let at = |by: f64| {
                let mut i = inputs.to(DType::F64);
                match part {
                    0 => i.qkv = moved(&i.qkv, &direction.qkv, by),
                    1 => i.pad = moved(&i.pad, &direction.pad, by),
                    _ => i.table = moved(&i.table, &direction.table, by),
                }
                value(&i)
            };
            let slope = (at(step) - at(-step)) / (2.0 * step);
            let (gradient, along) =
                [(&dqkv, &direction.qkv), (&dpad, &direction.pad), (&dtable, &direction.table)][part];
            let terms = || values(gradient).into_iter().zip(values(along)).map(|(g, a)| g * a);
            let (want, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
            // Differences of second order: an error of about step^2 times the third derivative, and rounding over step.
            assert!((slope - want).abs() < 1e-7 * size + 1e-8, "{case:?} part {part}: {slope} against {want}");
        }
    }
}

/// The bound on f32: sums of at most a few hundred roundings of 6e-8, most of which cancel, and an exp within 2e-7.
#[test]
fn f32_is_f64_at_every_width_whatever_the_threads() {
    engine::memory::check(true);
    for at_most in [Level::Portable, Level::Avx2, Level::Avx512] {
        for case in CASES {
            let inputs = Inputs::new(case, 4);
            let narrow = inputs.to(DType::F32);
            let (got, want) = (run_at(at_most, 2, || narrow.run()), inputs.run());
            for (name, (got, want)) in ["y", "lse", "dqkv", "dpad", "dtable"].iter().zip(got.iter().zip(&want)) {
                let error = error(&values(got), &values(want));
                assert!(error < 2e-6, "{at_most:?} {case:?}: {name} is off by {error}");
            }
        }
    }
    let inputs = Inputs::new((2, [9, 8, 10], 3, 16, [7; 3], [3; 3]), 5).to(DType::F32);
    let run = || inputs.run().map(|t| t.to_vec::<f32>().expect("f32"));
    assert!(run_on(1, run) == run_on(3, run), "results depend on the number of threads");
}

/// Without the windows of one token, where gradients of q and k are zero but for rounding.
#[test]
fn bf16_is_f64_rounded_once() {
    for case in &CASES[2..] {
        let inputs = Inputs::new(*case, 4);
        let half = |t: &Tensor| t.to_dtype(DType::BF16).and_then(|t| t.to_dtype(DType::F64)).expect("bf16");
        let single = |t: &Tensor| t.to_dtype(DType::F32).and_then(|t| t.to_dtype(DType::F64)).expect("f32");
        let wide = Inputs { qkv: half(&inputs.qkv), dy: half(&inputs.dy), ..inputs };
        let Output { y, lse } = wide.forward();
        let saved = [(half(&y), DType::BF16), (single(&lse), DType::F32)];
        let [y, lse] = saved;
        let all = [
            (wide.qkv.clone(), DType::BF16),
            (wide.pad.clone(), DType::F32),
            (wide.table.clone(), DType::F32),
            (wide.dy.clone(), DType::BF16),
            y,
            lse,
        ];
        assert_bf16(&all, 1.0, |t| {
            let out = forward(&t[0], &t[1], &t[2], wide.p)?;
            let g = backward(&t[3], &t[4], &t[5], &t[0], &t[1], &t[2], wide.p)?;
            Ok(vec![out.y, out.lse, g.dqkv, g.dpad, g.dtable])
        });
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    engine::memory::check(true);
    let mut inputs = Inputs::new((1, [9, 4, 5], 1, 4, [4; 3], [1; 3]), 6);
    for t in [&mut inputs.qkv, &mut inputs.pad] {
        t.as_mut_slice::<f64>().expect("f64").iter_mut().for_each(|v| *v *= 8.0);
    }
    let inputs = inputs.to(DType::F32);
    let wide = inputs.to(DType::F64);
    // A padded token's k and v get what is left of sums that cancel where a weight is next to 1, so that dpad is judged as the
    // part of the gradient of qkv that it is.
    let parts = |[y, lse, dqkv, dpad, dtable]: [Tensor; 5]| {
        [values(&y), values(&lse), [values(&dqkv), values(&dpad)].concat(), values(&dtable)]
    };
    for level in [Level::Portable, Level::Avx2, Level::Avx512] {
        for (got, want) in parts(run_at(level, 2, || inputs.run())).iter().zip(&parts(wide.run())) {
            // Scores reach 200 here, so that their rounding, 8e-6 each, shows in the weights; most weights are next to 0 or 1.
            let error = error(got, want);
            assert!(error < 1e-5, "{level:?}: off by {error}");
        }
    }
}

#[test]
fn broken_numbers_show() {
    for (part, bad) in [(0, f32::NAN), (1, f32::NAN), (2, f32::NAN), (0, f32::INFINITY), (1, f32::INFINITY)] {
        let mut inputs = Inputs::new((1, [3, 3, 3], 1, 4, [7; 3], [0; 3]), 7).to(DType::F32);
        inputs.qkv.as_mut_slice::<f32>().expect("qkv")[5 * 12 + part * 4] = bad;
        let [y, lse, dqkv, ..] = inputs.run().map(|t| t.to_vec::<f32>().expect("f32"));
        let rows = if part == 0 { 5..6 } else { 0..27 };
        assert!(rows.clone().all(|r| y[r * 4].is_nan()), "part {part}, {bad}");
        assert!(part == 2 || rows.clone().all(|r| lse[r].is_nan()), "part {part}, {bad}");
        assert!(rows.clone().all(|r| dqkv[r * 12].is_nan()), "part {part}, {bad}");
        assert!(
            part == 2 || (0..27).all(|r| dqkv[r * 12 + 8].is_nan()),
            "part {part}, {bad}: every v counts in each y"
        );
    }
    let clean = Inputs::new((1, [3, 3, 3], 1, 4, [7; 3], [0; 3]), 7).to(DType::F32);
    assert!(clean.run().iter().all(|t| values(t).iter().all(|v| v.is_finite())), "scratch remembers");
}

#[test]
fn empty_is_empty_and_wrong_inputs_are_errors() {
    for dims in [[0, 2, 2, 2, 12], [1, 2, 0, 2, 12]] {
        let p = Params { heads: 2, window: [2; 3], shift: [1; 3] };
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, Device::Cpu).expect("zeros");
        let (qkv, pad, table) = (zeros(&dims), zeros(&[12]), zeros(&[27, 2]));
        let Output { y, lse } = forward(&qkv, &pad, &table, p).expect("forward");
        assert_eq!((y.dims()[4], lse.dims()[4], y.numel()), (4, 2, 0));
        let g = backward(&y, &y, &lse, &qkv, &pad, &table, p).expect("backward");
        assert_eq!((g.dqkv.dims(), g.dpad.to_vec::<f32>().expect("dpad")), (&dims[..], vec![0.0; 12]));
        assert!(values(&g.dtable).iter().all(|&v| v == 0.0));
    }
    let i = Inputs::new((1, [3, 3, 3], 2, 2, [2; 3], [1; 3]), 8);
    let with = |p: Params| forward(&i.qkv, &i.pad, &i.table, p).err();
    assert_eq!(with(i.p), None);
    assert!(with(Params { heads: 0, ..i.p }).is_some());
    assert!(with(Params { heads: 5, ..i.p }).is_some());
    assert!(with(Params { window: [0; 3], ..i.p }).is_some());
    assert!(with(Params { window: [usize::MAX; 3], ..i.p }).is_some());
    assert!(with(Params { shift: [2; 3], ..i.p }).is_some());
    assert!(with(Params { window: [3; 3], ..i.p }).is_some(), "the table does not fit");
    assert!(forward(&i.qkv, &i.pad.to_dtype(DType::F32).expect("f32"), &i.table, i.p).is_err(), "mixed dtypes");
    let whole = i.to(DType::I32);
    assert!(forward(&whole.qkv, &whole.pad, &whole.table, i.p).is_err());
    let o = i.forward();
    assert!(backward(&i.dy, &o.y, &o.y, &i.qkv, &i.pad, &i.table, i.p).is_err(), "lse has heads for channels");
}

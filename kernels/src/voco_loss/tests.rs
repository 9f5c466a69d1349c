use super::*;
use crate::testing::run_on;
use engine::random;

/// Overlap of a crop centred at (cx, cy) with each of the 3 x 3 bases of 64 x 64, as a share of the crop.
fn position_label(cx: i64, cy: i64) -> Vec<f64> {
    let overlap = |c: i64, i: i64| ((64 * (i + 1)).min(c + 32) - (64 * i).max(c - 32)).max(0) as f64;
    (0..9).map(|b| overlap(cx, b / 3) * overlap(cy, b % 3) / 4096.0).collect()
}

fn uniform(n: usize, seed: u64) -> Vec<f64> {
    (0..n).map(|i| 2.0 * random::uniform(seed, i as u64) - 1.0).collect()
}

fn tensor(values: &[f64], dims: &[usize], dtype: DType) -> Tensor {
    engine::memory::check(true);
    Tensor::from_slice(values, dims).and_then(|t| t.to_dtype(dtype)).expect("tensor")
}

fn read(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().expect("read")
}

fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let off: f64 = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum();
    (off / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// A batch whose teacher is near the student, so that cosines spread over (-1, 1) and labels over all cases.
struct Case {
    student: Vec<f64>,
    teacher: Vec<f64>,
    labels: Vec<f64>,
    p: Params,
    dim: usize,
}

impl Case {
    fn new(volumes: usize, crops: usize, bases: usize, dim: usize) -> Case {
        let n = volumes * (crops + bases) * dim;
        let student: Vec<f64> = (0..n).map(|i| random::normal(1, i as u64)).collect();
        let teacher = student.iter().enumerate().map(|(i, s)| 0.7 * s + 0.7 * random::normal(2, i as u64)).collect();
        let label = |i| (2.0 * random::uniform(3, i) - 0.8).clamp(0.0, 1.0);
        let labels = (0..(volumes * crops * bases) as u64).map(label).collect();
        Case { student, teacher, labels, p: Params { volumes, crops, bases, form: Form::Voco }, dim }
    }

    fn tensors(&self, dtype: DType) -> [Tensor; 3] {
        let Params { volumes, crops, bases, .. } = self.p;
        let dims = [volumes * (crops + bases), self.dim];
        [
            tensor(&self.student, &dims, dtype),
            tensor(&self.teacher, &dims, dtype),
            tensor(&self.labels, &[volumes, crops, bases], dtype),
        ]
    }

    fn forward(&self, dtype: DType) -> Output {
        let [s, t, y] = self.tensors(dtype);
        forward(&s, &t, &y, self.p).expect("forward")
    }

    fn backward(&self, dterms: &[f64; 3], dtype: DType) -> Vec<f64> {
        let [s, t, y] = self.tensors(dtype);
        read(&backward(&tensor(dterms, &[3], dtype), &s, &t, &y, self.p).expect("backward"))
    }

    /// The terms once more, loop by loop from the formulas, with `frozen` in place of the student where gradients stop.
    fn naive(&self, student: &[f64], frozen: &[f64]) -> [f64; 3] {
        let Params { volumes, crops, bases, .. } = self.p;
        let row = |x: &[f64], r: usize| x[r * self.dim..(r + 1) * self.dim].to_vec();
        let crop = |x: &[f64], i: usize, s: usize| row(x, i * crops + s);
        let base = |x: &[f64], i: usize, k: usize| row(x, volumes * crops + i * bases + k);
        let similar = |a: Vec<f64>, b: Vec<f64>| {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            (dot(&a, &b) / (dot(&a, &a).sqrt().max(1e-8) * dot(&b, &b).sqrt().max(1e-8))).max(0.0)
        };
        let mut terms = [0.0; 3];
        for i in 0..volumes {
            let j = (i + 1) % volumes;
            let (mut near, mut far, mut mirror) = (vec![], vec![], vec![]);
            let (mut partner, mut predicted) = (vec![], vec![]);
            for s in 0..crops {
                for k in 0..bases {
                    near.push(self.labels[(i * crops + s) * bases + k]);
                    far.push(similar(crop(student, i, s), base(&self.teacher, i, k)));
                    mirror.push(similar(crop(&self.teacher, i, s), base(student, i, k)));
                    partner.push(similar(crop(&self.teacher, i, s), base(&self.teacher, j, k)));
                    predicted.push(similar(crop(student, i, s), base(student, j, k)));
                }
            }
            let both: Vec<f64> = far.iter().zip(&mirror).map(|(a, b)| (a + b) / 2.0).collect();
            let (intra, inter) = match self.p.form {
                Form::Voco => (naive_ce(&near, &far), naive_ce(&partner, &predicted)),
                Form::Cvpr1 => (naive_mean(&near, &far, |_| 1.0), 0.0),
                Form::Cvpr3 => (naive_mean(&near, &both, |y| y), 0.0),
            };
            terms[0] += intra / volumes as f64;
            terms[1] += inter / volumes as f64;
            for a in 0..bases {
                for b in a + 1..bases {
                    let pairs = (bases * (bases - 1) / 2 * volumes) as f64;
                    terms[2] += similar(base(student, i, a), base(frozen, i, b)).powi(2) / pairs;
                }
            }
        }
        terms
    }
}

fn naive_ce(y: &[f64], l: &[f64]) -> f64 {
    let pos: f64 = y.iter().zip(l).map(|(y, l)| -y * (1.0 - (y - l).abs() + 1e-6).ln()).sum();
    let zero = |y: &f64| f64::from(u8::from(*y == 0.0));
    let neg: f64 = y.iter().zip(l).map(|(y, l)| -zero(y) * (1.0 - l + 1e-6).ln()).sum();
    pos / (y.iter().sum::<f64>() + 1e-6) + neg / (y.iter().map(zero).sum::<f64>() + 1e-6)
}

fn naive_mean(y: &[f64], l: &[f64], weight: fn(f64) -> f64) -> f64 {
    let (inside, outside): (Vec<_>, Vec<_>) = y.iter().zip(l).partition(|(y, _)| **y > 0.0);
    let pos: f64 = inside.iter().map(|(y, l)| -weight(**y) * (1.0 - (*y - *l).abs() + 1e-6).ln()).sum();
    let neg: f64 = outside.iter().map(|(_, l)| *l * *l).sum();
    pos / (inside.iter().map(|(y, _)| weight(**y)).sum::<f64>() + 1e-6) + neg / (outside.len() as f64 + 1e-6)
}

/// One volume with two crops of the golden labels, made so that every student-crop, teacher-base cosine is `l`.
fn intra_at(l: f64) -> f64 {
    let labels = [position_label(70, 100), position_label(32, 32)].concat();
    let mut student = vec![0.0; 11 * 2];
    let mut teacher = student.clone();
    for r in 0..2 {
        student[2 * r] = 1.0;
    }
    for r in 2..11 {
        teacher[2 * r..2 * r + 2].copy_from_slice(&[3.0 * l, 3.0 * (1.0 - l * l).sqrt()]);
    }
    let p = Params { volumes: 1, crops: 2, bases: 9, form: Form::Voco };
    let [s, t] = [student, teacher].map(|x| tensor(&x, &[11, 2], DType::F64));
    let out = forward(&s, &t, &tensor(&labels, &[1, 2, 9], DType::F64), p).expect("forward");
    assert!(read(&out.logits).iter().all(|got| (got - l).abs() < 1e-15));
    read(&out.terms)[0]
}

#[test]
fn constant_logits_follow_the_golden_values() {
    let close = |got: f64, want: f64, bound: f64| assert!((got - want).abs() < bound, "{got} {want}");
    close(intra_at(0.1), 1.3860310424767879 + 0.10535939681821313, 1e-8);
    close(intra_at(0.0), 7.226453875460648 - 1e-6, 1e-8); // the negatives give -log(1 + 1e-6)
    close(intra_at(1.0), 0.45462539 + 13.8155, 2e-5); // the goldens have this many digits
}

#[test]
fn regularisation_follows_its_golden_value() {
    let mut student = vec![1.0, 0.0, 0.0];
    student.extend((0..9).map(|i| if i % 4 == 0 { 1.5 } else { 0.5 }));
    let s = tensor(&student, &[4, 3], DType::F64);
    let y = tensor(&[1.0, 0.0, 0.0], &[1, 1, 3], DType::F64);
    let out = forward(&s, &s, &y, Params { volumes: 1, crops: 1, bases: 3, form: Form::Voco }).expect("forward");
    assert!((read(&out.terms)[2] - 0.40495867768595056).abs() < 1e-15);
}

#[test]
fn the_full_case_follows_the_golden_values() {
    // one volume: inter pairs it with itself
    let student = [uniform(16, 11), uniform(72, 13)].concat();
    let teacher = [uniform(16, 12), uniform(72, 14)].concat();
    let labels = [position_label(70, 100), position_label(150, 60)].concat();
    let case =
        Case { student, teacher, labels, p: Params { volumes: 1, crops: 2, bases: 9, form: Form::Voco }, dim: 8 };
    let terms = read(&case.forward(DType::F64).terms);
    // the published code rounds count + 1e-6 to f32, hence 1e-8; without that rounding PyTorch in f64 gives the second column
    let want = [
        [0.5566169536240577, 0.5566169530579421],
        [0.7046067466226692, 0.7046067441145004],
        [0.05999010547484233, 0.05999010547484233],
        [1.3212138057215694, 1.3212138026472849],
    ];
    for (got, [published, exact]) in terms.iter().chain([&terms.iter().sum()]).zip(want) {
        assert!((got - published).abs() < 1e-8 && (got - exact).abs() < 1e-14, "{got} {published} {exact}");
    }
    let dx = case.backward(&[1.0; 3], DType::F64);
    let (crops, bases) = dx.split_at(16);
    let want = [
        [
            -0.07383816258,
            0.04630542291,
            0.1878704991,
            0.01641659458,
            0.09816693384,
            -0.1871696551,
            -0.2447883033,
            -0.2992171396,
        ],
        [
            -0.064874919,
            0.06084678694,
            -0.04184843928,
            -0.03684049167,
            0.06352249197,
            0.09235096394,
            0.07182549596,
            -0.03105865384,
        ],
        [
            0.02657381773,
            -0.01877986262,
            0.01238878516,
            0.02524001628,
            -0.04851243594,
            -0.02729015338,
            -0.03586307222,
            0.02587055292,
        ],
    ];
    for (got, want) in [&crops[..8], &bases[..8], &bases[64..]].iter().zip(&want) {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-8), "{got:?} {want:?}");
    }
    let total = |x: &[f64]| x.iter().map(|v| v.abs()).sum::<f64>();
    let sums = [[1.510705070247525, 1.5107050628970549], [2.694391682432851, 2.6943916675957063]];
    for (got, [published, exact]) in [crops, bases].map(total).iter().zip(sums) {
        assert!((got - published).abs() < 1e-8 * published && (got - exact).abs() < 1e-14, "{got} {published} {exact}");
    }
}

#[test]
fn terms_and_gradients_match_the_naive_formulas() {
    let sizes = [(1, 1, 2, 3), (2, 2, 9, 7), (3, 1, 4, 17), (3, 3, 5, 2)];
    let forms = [Form::Voco, Form::Cvpr1, Form::Cvpr3];
    for ((volumes, crops, bases, dim), form) in sizes.into_iter().flat_map(|s| forms.map(|form| (s, form))) {
        let mut case = Case::new(volumes, crops, bases, dim);
        case.p.form = form;
        let got = read(&case.forward(DType::F64).terms);
        assert!(distance(&got, &case.naive(&case.student, &case.student)) < 1e-13);
        let got = read(&case.forward(DType::F32).terms);
        assert!(distance(&got, &case.naive(&case.student, &case.student)) < 1e-6);

        let dterms = [0.7, -1.3, 2.1];
        let loss = |i: usize, h: f64| -> f64 {
            let mut student = case.student.clone();
            student[i] += h;
            case.naive(&student, &case.student).iter().zip(dterms).map(|(t, d)| t * d).sum()
        };
        let numeric: Vec<f64> = (0..case.student.len()).map(|i| (loss(i, 1e-6) - loss(i, -1e-6)) / 2e-6).collect();
        assert!(distance(&case.backward(&dterms, DType::F64), &numeric) < 1e-7, "{:?}", case.p);
        assert!(distance(&case.backward(&dterms, DType::F32), &numeric) < 3e-6, "{:?}", case.p);
    }
}

#[test]
fn the_relu_and_the_last_base_pass_no_gradient() {
    // crop and teacher bases opposed: intra has no gradient at all; two student bases opposed: nor has reg
    let s = tensor(&[1.0, 0.0, 1.0, 1.0, -1.0, -1.0], &[3, 2], DType::F64);
    let t = tensor(&[1.0, 0.0, -1.0, 0.0, -2.0, 0.0], &[3, 2], DType::F64);
    let y = tensor(&[0.5, 0.5], &[1, 1, 2], DType::F64);
    let p = Params { volumes: 1, crops: 1, bases: 2, form: Form::Voco };
    let dx = |dterms: &[f64], s: &Tensor| {
        read(&backward(&tensor(dterms, &[3], DType::F64), s, &t, &y, p).expect("backward"))
    };
    assert_eq!(dx(&[1.0, 0.0, 1.0], &s), [0.0; 6]);
    let s = tensor(&[1.0, 0.0, 1.0, 1.0, 0.0, 1.0], &[3, 2], DType::F64);
    let dx = dx(&[0.0, 0.0, 1.0], &s);
    assert!(dx[2] != 0.0 && dx[4..] == [0.0; 2]);
}

#[test]
fn the_earlier_forms_take_an_empty_mean_for_zero() {
    let s = tensor(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[3, 2], DType::F64);
    for (form, labels, want) in [
        (Form::Cvpr1, [0.0, 0.0], 0.5), // cosines 1 and 0: the mean of their squares
        (Form::Cvpr3, [0.0, 0.0], 0.5),
        (Form::Cvpr1, [0.5, 0.5], -0.5f64.ln()), // half a label away from both
        (Form::Cvpr3, [0.75, 0.25], -0.75f64.ln()),
        (Form::Cvpr3, [0.75, 0.5], -(0.75 * 0.75f64.ln() + 0.5 * 0.5f64.ln()) / 1.25),
        (Form::Cvpr1, [0.75, 0.5], -(0.75f64.ln() + 0.5f64.ln()) / 2.0),
    ] {
        let y = tensor(&labels, &[1, 1, 2], DType::F64);
        let p = Params { volumes: 1, crops: 1, bases: 2, form };
        let terms = read(&forward(&s, &s, &y, p).expect("forward").terms);
        assert!((terms[0] - want).abs() < 5e-6 && terms[1] == 0.0, "{form:?} {labels:?}: {terms:?}, {want}");
    }
}

#[test]
fn a_logit_equal_to_its_label_has_no_slope() {
    // teacher bases along the crop: the cosine is exactly 1, as is the label
    let s = tensor(&[2.0, 0.0, 1.0, 1.0, -1.0, 1.0], &[3, 2], DType::F64);
    let t = tensor(&[1.0, 0.0, 3.0, 0.0, 0.5, 0.0], &[3, 2], DType::F64);
    let y = tensor(&[1.0, 1.0], &[1, 1, 2], DType::F64);
    let d = tensor(&[1.0, 0.0, 0.0], &[3], DType::F64);
    let dx = backward(&d, &s, &t, &y, Params { volumes: 1, crops: 1, bases: 2, form: Form::Voco }).expect("backward");
    assert_eq!(read(&dx), [0.0; 6]);
}

#[test]
fn threads_do_not_change_bits_and_nan_shows() {
    let mut case = Case::new(4, 2, 9, 33);
    let run = |case: &Case| {
        let out = case.forward(DType::F32);
        [read(&out.terms), read(&out.logits), case.backward(&[1.0; 3], DType::F32)]
    };
    assert!(run_on(1, || run(&case)) == run_on(3, || run(&case)));
    case.student[0] = f64::NAN;
    let [terms, logits, dx] = run(&case);
    assert!(terms[0].is_nan() && terms[1].is_nan() && logits[0].is_nan() && dx[0].is_nan());
}

#[test]
fn wrong_input_is_an_error() {
    let case = Case::new(2, 1, 2, 3);
    let [s, t, y] = case.tensors(DType::F32);
    let with = |f: &dyn Fn(&mut Params)| {
        let mut p = case.p;
        f(&mut p);
        forward(&s, &t, &y, p).err().expect("an error").to_string()
    };
    assert!(with(&|p| p.crops = 0).contains("0 crops"));
    assert!(with(&|p| p.bases = 1).contains("1 bases"));
    assert!(with(&|p| p.volumes = 0).contains("0 volumes"));
    assert!(with(&|p| p.volumes = usize::MAX).contains("labels"));
    assert!(forward(&s, &t.rows_at(0, 5).expect("rows"), &y, case.p).is_err());
    assert!(forward(&s, &t, &y.to_dtype(DType::F64).expect("f64"), case.p).is_err());
    assert!(backward(&tensor(&[1.0; 2], &[2], DType::F32), &s, &t, &y, case.p).is_err());
    assert!(backward(&tensor(&[1.0; 3], &[3], DType::F64), &s, &t, &y, case.p).is_err());
}

use super::{assert_close, device, exact, random, same_bits, unit};
use engine::{DType, Device, Tensor, random::uniform};
use kernels::voco_loss::{self, Form, Params};

/// Everything is in f64 and rounded once.
const BOUND: f64 = 1.01;
const FORMS: [Form; 3] = [Form::Voco, Form::Cvpr1, Form::Cvpr3];

/// Student, a teacher near it, so that cosines spread over (-1, 1), and labels of which many are 0 and some 1.
fn inputs(p: Params, dim: usize) -> [Tensor; 3] {
    let dims = [p.volumes * (p.crops + p.bases), dim];
    let student = random(1, &dims, DType::F32);
    let (s, noise) = (student.to_f64_vec().expect("s"), random(2, &dims, DType::F32).to_f64_vec().expect("noise"));
    let teacher: Vec<f32> = s.iter().zip(&noise).map(|(s, n)| (0.7 * s + 0.7 * n) as f32).collect();
    let count = p.volumes * p.crops * p.bases;
    let labels: Vec<f32> = (0..count as u64).map(|i| (2.0 * uniform(3, i) - 0.8).clamp(0.0, 1.0) as f32).collect();
    let teacher = Tensor::from_slice(&teacher, &dims).expect("teacher");
    [student, teacher, Tensor::from_slice(&labels, &[p.volumes, p.crops, p.bases]).expect("labels")]
}

fn check(device: Device, [s, t, y]: &[Tensor; 3], p: Params) {
    let dterms = Tensor::from_slice(&[0.5f32, 2.0, -1.5], &[3]).expect("dterms");
    let [s_there, t_there, y_there, d_there] = [s, t, y, &dterms].map(|t| t.to_device(device).expect("copy"));
    let run = || {
        let out = voco_loss::forward(&s_there, &t_there, &y_there, p).expect("forward");
        [out.terms, out.logits, voco_loss::backward(&d_there, &s_there, &t_there, &y_there, p).expect("backward")]
    };
    let [terms, logits, ds] = run();
    let (s, t, y) = (exact(s), exact(t), exact(y));
    let want = voco_loss::forward(&s, &t, &y, p).expect("f64");
    assert_close(&terms, &want.terms, BOUND * unit(DType::F32));
    assert_close(&logits, &want.logits, BOUND * unit(DType::F32));
    let want = voco_loss::backward(&exact(&dterms), &s, &t, &y, p).expect("f64");
    assert_close(&ds, &want, BOUND * unit(DType::F32));
    same_bits(&[&terms, &logits, &ds], &run().each_ref());
}

#[test]
fn all_forms_agree_with_f64() {
    let device = device();
    // one volume, its own partner; the paper's; more bases than pulls are held at a time; two slabs of columns; more crops
    let shapes = [(1, 1, 2, 2), (2, 2, 16, 37), (1, 2, 70, 5), (3, 1, 2, 2051), (5, 7, 3, 33)];
    for form in FORMS {
        for (volumes, crops, bases, dim) in shapes {
            let p = Params { volumes, crops, bases, form };
            check(device, &inputs(p, dim), p);
        }
    }
}

#[test]
fn rows_of_zeros_are_as_on_the_cpu() {
    let device = device();
    for form in FORMS {
        let p = Params { volumes: 2, crops: 2, bases: 3, form };
        let [mut s, mut t, y] = inputs(p, 6);
        for row in [0, 5] {
            s.fill_with(row * 6..(row + 1) * 6, |_| 0.0).expect("zeros");
            t.fill_with((row + 1) * 6..(row + 2) * 6, |_| 0.0).expect("zeros");
        }
        check(device, &[s, t, y], p);
    }
}

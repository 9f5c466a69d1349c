//! Whole steps of pre-training: the device's against the CPU's. Later steps in f32 are the reference cases' matter: Adam turns
//! rounding into whole steps where a gradient is near zero, so that two correct runs drift apart.

use super::{device, device_alone};
use engine::cuda::{Output, Repeats};
use engine::{DType, Device, Tensor, random};
use kernels::patch_merging::Order;
use models::voco::{Controls, Loss, Teacher, Values, VocoConfig};
use models::{Batch, SwinUnetrConfig, Voco};
use training::optimizer::{AdamW, AdamWConfig};

const RATE: f64 = 1e-4;
/// The smallest crops that the network takes: their coarsest map has two voxels, whose norm makes everything of rounding.
const SIDES: [usize; 3] = [32, 64, 32];

/// The smallest network, with every part of a step in use.
fn model(loss: Loss, dtype: DType, device: Device) -> Voco {
    let network =
        SwinUnetrConfig { in_channels: 1, feature_size: 12, out_channels: None, patch_merging: Order::Monai13 };
    let config = VocoConfig {
        network,
        hidden: 24,
        out: 20,
        teacher: Teacher::Projector,
        momentum: 0.9,
        row_dropout: 0.2,
        element_dropout: 0.1,
        weights: [1.0, 0.5, 2.0],
        loss,
        recompute: false,
    };
    Voco::new(config, dtype, device, 3).expect("model")
}

/// One volume of one crop and two bases, of noise in [0, 1).
fn batch(dtype: DType, device: Device) -> Batch {
    let Batch { crops, bases, labels } = noise(Device::Cpu, 1, [64; 3]);
    let [crops, bases, labels] = [crops, bases, labels].map(|t| t.to_dtype(dtype).and_then(|t| t.to_device(device)));
    Batch { crops: crops.expect("crops"), bases: bases.expect("bases"), labels: labels.expect("labels") }
}

/// The same in f32 with crops of these sides, and its noise drawn from `seed` on.
fn noise(device: Device, seed: u64, [d, h, w]: [usize; 3]) -> Batch {
    let cubes = |seed: u64, n: usize| {
        let values: Vec<f32> = (0..(n * d * h * w) as u64).map(|i| random::uniform(seed, i) as f32).collect();
        Tensor::from_slice(&values, &[n, d, h, w, 1]).and_then(|t| t.to_device(device)).expect("cubes")
    };
    let labels = Tensor::from_slice(&[0.25f32, 0.75], &[1, 1, 2]).and_then(|t| t.to_device(device)).expect("labels");
    Batch { crops: cubes(seed, 1), bases: cubes(seed + 1, 2), labels }
}

/// What a few steps on one batch gave.
struct Trained {
    /// Of each step: the terms, and the mean cosine of a volume's bases.
    terms: Vec<[f64; 4]>,
    /// Of the first step.
    gradient: Vec<f64>,
    params: Vec<f64>,
    teacher: Vec<f64>,
}

fn train(mut model: Voco, batch: &Batch, steps: u64) -> Trained {
    let values = |t: &Tensor| t.to_f64_vec().expect("values");
    let mut optimizer = AdamW::new(&model.params, AdamWConfig::default()).expect("optimiser");
    let (mut terms, mut gradient) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let done = model.step(batch, step).expect("step");
        optimizer.step(&mut model.params, &done.grads, RATE).expect("update");
        let Values { intra, inter, reg, base_cosine } = done.values().expect("values");
        terms.push([intra, inter, reg, base_cosine]);
        if step == 0 {
            gradient = values(done.grads.slab());
        }
    }
    Trained { terms, gradient, params: values(model.params.slab()), teacher: values(model.teacher_params.slab()) }
}

#[test]
fn a_step_gives_what_the_cpu_gives() {
    let device = device();
    let on = |device, dtype| train(model(Loss::InfoNce { temperature: 0.1 }, dtype, device), &batch(dtype, device), 1);
    let (ours, want, exact) = (on(device, DType::F32), on(Device::Cpu, DType::F32), on(Device::Cpu, DType::F64));
    for (ours, exact) in ours.terms[0].iter().zip(&exact.terms[0]) {
        // the bound of the reference cases for a float32 network's outputs, ten times over behind a temperature of 0.1; the CPU's own
        // float32 is as far from float64, on either side of it
        assert!((ours - exact).abs() <= 1e-4 * exact.abs().max(1e-2), "{ours} {exact}");
    }
    // Batch norm over three rows makes much of rounding, so that its share of the gradient is measured.
    let length = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    let off = |a: &Trained| length(&mut a.gradient.iter().zip(&exact.gradient).map(|(a, b)| a - b));
    assert!(off(&ours) <= 3.0 * off(&want), "{} and {}", off(&ours), off(&want));
    // The first update of Adam moves a parameter by the rate in the direction of its gradient, however small: where rounding
    // decides the sign, two steps are all that can differ.
    let pairs = |a: &Trained, b: &Trained| {
        let [a, b] = [a, b].map(|t| [&t.params[..], &t.teacher].concat());
        a.into_iter().zip(b).collect::<Vec<_>>()
    };
    for (ours, want) in pairs(&ours, &want) {
        assert!((ours - want).abs() <= 2.1 * RATE, "{ours} {want}");
    }
}

/// Of three steps: the terms, and all parameters at the end.
fn steps(device: Device, graphs: bool) -> (Vec<[f64; 4]>, Vec<f64>, Vec<f64>) {
    let mut model = model(Loss::InfoNce { temperature: 0.1 }, DType::F32, device);
    let mut optimizer = AdamW::new(&model.params, AdamWConfig::default()).expect("optimiser");
    let mut repeats = Repeats::new(device, graphs);
    let mut terms = Vec::new();
    for step in 1..=3 {
        let steering = model.steering(step);
        let inputs = |before: Option<(Batch, Controls)>| {
            let batch = noise(device, 10 * step, SIDES);
            let Some((mut kept, mut controls)) = before else {
                return Ok((batch, Controls::new(steering, DType::F32, device)?));
            };
            for (kept, new) in [(&mut kept.crops, batch.crops), (&mut kept.bases, batch.bases)] {
                kept.overwrite(&new.to_vec::<f32>()?)?;
            }
            controls.set(steering)?;
            Ok::<_, models::Error>((kept, controls))
        };
        let done = repeats.run(1, inputs, |(batch, controls)| model.step_with(batch, controls)).expect("step");
        assert_eq!(matches!(done, Output::Repeated(_)), graphs && step > 1);
        let Values { intra, inter, reg, base_cosine } = done.values().expect("values");
        terms.push([intra, inter, reg, base_cosine]);
        optimizer.step(&mut model.params, &done.grads, RATE).expect("update");
    }
    let values = |t: &Tensor| t.to_f64_vec().expect("values");
    (terms, values(model.params.slab()), values(model.teacher_params.slab()))
}

#[test]
fn steps_from_a_graph_give_the_bits_of_steps_as_they_come() {
    let device = device_alone();
    let (graph, plain) = (steps(device, true), steps(device, false));
    assert_eq!(graph.0, plain.0);
    assert!(graph.1 == plain.1 && graph.2 == plain.2);
}

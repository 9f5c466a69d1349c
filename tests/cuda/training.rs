//! A whole step of pre-training: the device's against the CPU's. Later steps are the reference cases' matter: Adam turns rounding
//! into whole steps where a gradient is near zero, so that two correct runs drift apart.

use super::device;
use engine::{DType, Device, Tensor, random};
use kernels::patch_merging::Order;
use models::voco::{Loss, Teacher, VocoConfig};
use models::{Batch, SwinUnetrConfig, Voco};
use training::optimizer::{AdamW, AdamWConfig};

const RATE: f64 = 1e-4;

/// The smallest network, with every part of a step in use.
fn model(loss: Loss, device: Device) -> Voco {
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
    Voco::new(config, DType::F32, device, 3).expect("model")
}

/// One volume of one crop and two bases, of noise in [0, 1).
fn batch(device: Device) -> Batch {
    let cubes = |seed: u64, n: usize| {
        let values: Vec<f32> = (0..(n as u64) << 18).map(|i| random::uniform(seed, i) as f32).collect();
        Tensor::from_slice(&values, &[n, 64, 64, 64, 1]).and_then(|t| t.to_device(device)).expect("cubes")
    };
    let labels = Tensor::from_slice(&[0.25f32, 0.75], &[1, 1, 2]).and_then(|t| t.to_device(device)).expect("labels");
    Batch { crops: cubes(1, 1), bases: cubes(2, 2), labels }
}

/// The terms and the embedding of a volume's bases, and all parameters after the update.
fn train(loss: Loss, device: Device) -> ([f64; 4], Vec<f64>, Vec<f64>) {
    let mut model = model(loss, device);
    let mut optimizer = AdamW::new(&model.params, AdamWConfig::default()).expect("optimiser");
    let done = model.step(&batch(device), 0).expect("step");
    optimizer.step(&mut model.params, &done.grads, RATE).expect("update");
    let values = |t: &Tensor| t.to_f64_vec().expect("values");
    let terms = [done.intra, done.inter, done.reg, done.base_cosine];
    (terms, values(model.params.slab()), values(model.teacher_params.slab()))
}

#[test]
fn a_step_gives_what_the_cpu_gives() {
    let Some(device) = device() else { return };
    let loss = Loss::InfoNce { temperature: 0.1 };
    let (ours, params, teacher) = train(loss, device);
    let (want, there, teacher_there) = train(loss, Device::Cpu);
    for (ours, want) in ours.iter().zip(&want) {
        // ten times the bound of the reference cases for a float32 network's outputs, for both are float32 and stand behind a
        // temperature of 0.1
        assert!((ours - want).abs() <= 1e-4 * want.abs().max(1e-2), "{ours} {want}");
    }
    // The first update of Adam moves a parameter by the rate in the direction of its gradient, however small: where rounding
    // decides the sign, two steps are all that can differ.
    for (ours, want) in params.iter().zip(&there).chain(teacher.iter().zip(&teacher_there)) {
        assert!((ours - want).abs() <= 2.1 * RATE, "{ours} {want}");
    }
}

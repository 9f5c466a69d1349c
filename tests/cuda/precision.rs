//! Mixed precision from crops to updated parameters: a small network in 16 bits against the same one in f32 on the CPU.

use super::{device, unit};
use autograd::{ParamId, ParamStore, ParamStoreBuilder, Tape, Var, ops, precision};
use engine::{DType, Device, Tensor, random};
use kernels::patch_merging::Order;
use kernels::{info_nce, l2_norm, window_attention};
use models::layers::{Conv3d, LayerNorm, Linear, Mlp, ResidualBlock, Scope};
use models::{SwinUnetr, SwinUnetrConfig};
use training::optimizer::{AdamW, AdamWConfig};
use vocoe::verify::made;

const CHANNELS: usize = 12;
const HEADS: usize = 3;
const WINDOW: [usize; 3] = [2; 3];
const CROPS: usize = 2;
const BASES: usize = 4;
const RATE: f64 = 3e-3;

/// How often a value is rounded to the network's dtype on the way from its input to its output.
const DEPTH: f64 = 17.0;

/// Every kind of layer that the encoder has, on a grid of 4³.
struct Network {
    patches: Conv3d,
    block: ResidualBlock,
    norm: LayerNorm,
    mlp: Mlp,
    qkv: Linear,
    table: ParamId,
    proj: Linear,
    head: Linear,
}

impl Network {
    fn new(builder: &mut ParamStoreBuilder) -> Self {
        let mut root = Scope::new(builder, "");
        let table = root.bias_table("table", &[27, HEADS]);
        let mut linear = |name: &str, i, o| Linear::new(root.child(name), i, o, true);
        let (qkv, proj) = (linear("qkv", CHANNELS, 3 * CHANNELS), linear("proj", CHANNELS, CHANNELS));
        let head = linear("head", CHANNELS, 8);
        let mlp = Mlp::new(root.child("mlp"), CHANNELS, 2 * CHANNELS);
        let patches = Conv3d::patches(root.child("patches"), 1, CHANNELS, 2);
        let block = ResidualBlock::new(root.child("block"), CHANNELS, CHANNELS);
        let norm = LayerNorm::new(root.child("norm"), CHANNELS);
        Network { patches, block, norm, mlp, qkv, table, proj, head }
    }

    /// `[N, 8, 8, 8, 1]` -> `[N, 8]`.
    fn forward(&self, tape: &Tape, x: &Var) -> autograd::Result<Var> {
        let x = self.patches.forward(tape, &precision::enter(tape, x)?)?;
        let x = self.block.forward(tape, &x)?;
        let x = self.mlp.forward(tape, &self.norm.forward(tape, &x)?, &x)?;
        let (qkv, pad) = (self.qkv.forward(tape, &x)?, self.qkv.bias(tape)?.expect("a bias"));
        let p = window_attention::Params { heads: HEADS, window: WINDOW, shift: [1; 3] };
        let attended = ops::window_attention(tape, &qkv, &pad, &tape.param(self.table)?, p)?;
        let x = self.proj.forward_add(tape, &attended, &x)?;
        precision::leave(tape, &self.head.forward(tape, &ops::global_avg_pool(tape, &x)?)?)
    }
}

/// What a few steps gave.
struct Trained {
    losses: Vec<f64>,
    /// Of the first step, unscaled.
    gradient: Vec<f64>,
    /// After each step.
    params: Vec<Vec<f64>>,
    scales: Vec<f64>,
    store: ParamStore,
}

/// Steps of InfoNCE at temperature 1, times `weight`, between crops and bases that are mosaics of ever larger cubes.
fn train(dtype: DType, device: Device, steps: usize, weight: f64) -> Trained {
    let mut builder = ParamStoreBuilder::default();
    let network = Network::new(&mut builder);
    let mut store = builder.build(dtype, device, 3).expect("parameters");
    let mut optimizer = AdamW::new(&store, AdamWConfig::default()).expect("optimiser");
    let voxel = |crop: usize, at: usize| {
        let [z, y, x] = [at >> 6, at >> 3 & 7, at & 7].map(|at| at / (crop % 3 + 1));
        random::uniform(crop as u64, (z << 6 | y << 3 | x) as u64) as f32
    };
    let voxels: Vec<f32> = (0..CROPS + BASES).flat_map(|crop| (0..512).map(move |at| voxel(crop, at))).collect();
    let there = |t: engine::Result<Tensor>| t.and_then(|t| t.to_device(device)).expect("copy");
    let x = there(Tensor::from_slice(&voxels, &[CROPS + BASES, 8, 8, 8, 1]));
    let targets = there(Tensor::from_slice(&[0.5f32, 0.5, 0.0, 0.0, 0.0, 0.25, 0.0, 0.75], &[CROPS, BASES]));
    let (mut losses, mut gradient, mut params, mut scales) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for step in 0..steps {
        let tape = Tape::new(&store);
        let y = network.forward(&tape, &tape.constant(x.clone())).expect("forward");
        let rows = |start, len| ops::rows_at(&tape, &y, start, len).expect("rows");
        let (q, k) = (rows(0, CROPS), rows(CROPS, BASES));
        let p = info_nce::Params { temperature: 1.0, groups: 1 };
        let loss = ops::info_nce(&tape, &q, &k, &targets, p).expect("loss");
        losses.push(loss.value().item().expect("loss"));
        let scale = optimizer.loss_scale();
        let cotangent = Tensor::full(&[], weight * scale, DType::F32, device).expect("cotangent");
        drop((y, q, k));
        let grads = tape.backward(&loss, cotangent).expect("backward");
        let norm = l2_norm::forward(grads.slab()).and_then(|norm| norm.item()).expect("norm") / scale;
        optimizer.step_unless_overflowed(&mut store, &grads, norm, RATE).expect("step");
        if step == 0 {
            gradient = grads.slab().to_f64_vec().expect("values").iter().map(|g| g / scale).collect();
        }
        params.push(store.slab().to_f64_vec().expect("values"));
        scales.push(scale);
    }
    Trained { losses, gradient, params, scales, store }
}

/// ‖a − b‖ / ‖b‖.
fn off(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

/// Relative errors of the network's output and of its gradient. Each rounding adds up to half a unit, and as many independent ones
/// add like the root of their number. An input of a LeakyReLU that they carry across zero changes its gradient by all of it: of
/// normal inputs the share 2 e φ(0) = 0.8 e lies within e of zero, in two layers.
fn bounds(dtype: DType) -> (f64, f64) {
    let output = DEPTH.sqrt() * unit(dtype);
    (output, (2.0 * DEPTH).sqrt() * unit(dtype) + (2.0 * 0.8 * output).sqrt())
}

#[test]
fn ten_steps_in_16_bits_follow_those_in_f32() {
    let device = device();
    let want = train(DType::F32, Device::Cpu, 10, 1.0);
    assert!(want.losses[9] < 0.8 * want.losses[0], "{:?}", want.losses);
    for dtype in [DType::BF16, DType::F16] {
        let ours = train(dtype, device, 10, 1.0);
        let (output, gradient) = bounds(dtype);
        let error = off(&ours.gradient, &want.gradient);
        assert!(error <= gradient, "{dtype}: gradient off by {error}");
        for (ours, here) in ours.losses.iter().zip(&want.losses) {
            // A cosine is off by no more than both of its vectors, and a log-sum-exp by no more than its cosines, twice. Steps along
            // a gradient that is off by a share miss that share of what they gain; twice, for Adam enlarges small ones.
            let bound = 4.0 * output + 2.0 * gradient * (want.losses[0] - here).abs();
            assert!((ours - here).abs() <= bound, "{dtype}: {ours} {here}, at most {bound} apart");
        }
        let again = train(dtype, device, 10, 1.0);
        assert!(ours.losses == again.losses && ours.params == again.params, "{dtype}: two runs differ");
        // what the next step would multiply with is what the last one left, rounded
        for id in ours.store.ids() {
            let operand = ours.store.operand(id).expect("operand");
            let rounded = ours.store.value(id).and_then(|t| Ok(t.to_dtype(operand.dtype())?)).expect("rounded");
            assert_eq!(operand.to_f64_vec(), rounded.to_f64_vec(), "{}", ours.store.name(id));
        }
    }
}

#[test]
fn an_overflow_in_f16_changes_nothing_but_the_scale() {
    let device = device();
    let Trained { scales, params, .. } = train(DType::F16, device, 10, 1e4);
    assert_eq!(scales[0], 65536.0);
    let updated = |step: usize| params[step] != params[step - 1];
    for step in 1..9 {
        let fitted = scales[step + 1] == scales[step];
        assert!(updated(step) == fitted && (fitted || scales[step + 1] == scales[step] / 2.0), "{step}: {scales:?}");
    }
    assert!((1..9).any(updated) && !updated(1), "{scales:?}");
    assert!(params.iter().flatten().all(|v| v.is_finite()));
}

/// The smallest encoder's embedding of a crop of 64 x 32 x 32 voxels, with the weights of the reference cases.
fn embedding(dtype: DType, device: Device) -> Vec<f64> {
    let config =
        SwinUnetrConfig { in_channels: 1, feature_size: 12, out_channels: None, patch_merging: Order::Monai13 };
    let mut builder = ParamStoreBuilder::default();
    let network = SwinUnetr::new(&mut builder, "", config).expect("network");
    let mut store = builder.build(dtype, device, 0).expect("parameters");
    made::fill(&mut store).expect("weights");
    let voxels: Vec<f32> = (0..1 << 16).map(|i| random::uniform(5, i) as f32).collect();
    let x = Tensor::from_slice(&voxels, &[1, 64, 32, 32, 1]).and_then(|x| x.to_device(device)).expect("crop");
    let tape = Tape::inference(&store);
    let y = network.embed(&tape, &tape.constant(x)).expect("embedding");
    assert_eq!(y.value().dtype(), DType::F32);
    y.value().to_f64_vec().expect("values")
}

/// Gradients at these weights are noise in bf16, in PyTorch too, whose autocast is off by 97 % in the median parameter.
#[test]
fn the_encoder_loses_at_most_twice_what_pytorch_does() {
    let device = device();
    let want = embedding(DType::F32, Device::Cpu);
    // what tests/reference/autocast.py prints of PyTorch 2.11
    for (dtype, torch) in [(DType::BF16, 6.0e-2), (DType::F16, 6.8e-3)] {
        let error = off(&embedding(dtype, device), &want);
        assert!(error <= 2.0 * torch, "{dtype}: {error}");
    }
}

//! Known values of whole networks: SwinUNETR on parameters and an input that are hashes of names and indices (computed with
//! MONAI in float64, once with its PatchMerging up to 1.4 and once with the one from 1.5), parameter counts, and the names
//! and shapes of a state dict.

use autograd::{ParamStore, ParamStoreBuilder, Tape};
use engine::{DType, Device, Tensor, random};
use kernels::patch_merging::Order;
use models::{Loss, SwinUnetr, SwinUnetrConfig, Teacher, Voco, VocoConfig, state_dict};
use std::collections::BTreeMap;
use vocoe::verify::made;

/// Mean of the absolute values, first, middle and last element, in PyTorch's layout.
type Golden = (&'static str, [f64; 4]);

#[rustfmt::skip]
const EITHER: &[Golden] = &[
    ("h0", [0.842760844, -0.01268119737, -1.488054462, -2.027073575]),
    ("e1", [0.5912918485, 0.1557655791, 0.2264865029, 0.668337114]),
    ("e2", [0.575906062, -0.01217717817, -0.02362966506, -0.01684771538]),
];
#[rustfmt::skip]
const MONAI_13: &[Golden] = &[
    ("h1", [0.8094969708, -0.5172636572, 1.158172885, -0.5902668171]),
    ("h2", [0.8081894934, 0.7296123786, -0.494385472, -0.6537873254]),
    ("h3", [0.8084003451, 0.1524202377, -1.619320665, -0.3895336653]),
    ("h4", [0.8023726567, 0.01469483228, -0.5665017362, -0.3020175312]),
    ("e3", [0.5722903674, -0.004962479517, -0.0006907346128, -0.005389174591]),
    ("e4", [0.5755934864, 0.2046648665, 0.1963621243, 0.1508095801]),
    ("e10", [0.5733283602, -0.01016430419, -0.02153284113, 0.9124434397]),
    ("out", [0.6868378377, -0.2838809299, 0.6145167605, 2.145915328]),
];
#[rustfmt::skip]
const MONAI_15: &[Golden] = &[
    ("h1", [0.8097389003, -0.2535610452, 1.757045106, -0.9261787641]),
    ("h2", [0.8065861322, 1.036094382, -1.778846119, 0.03203259682]),
    ("h3", [0.8029124304, 0.3786846963, -0.1437556635, -0.3503642456]),
    ("h4", [0.8013264343, -1.81993707, -0.3987535468, -1.851496797]),
    ("e3", [0.5708159343, -0.004328540159, 0.3316194627, -0.007523926385]),
    ("e4", [0.5734050984, 0.7178423382, -0.0149821637, 0.8455554683]),
    ("e10", [0.5721255882, -0.02782060512, 0.1029709731, 0.1298570525]),
    ("out", [0.6869866764, -0.2865811979, 0.6848463499, 2.15124183]),
];
/// The embedding: its mean (not of the absolute values), first, middle and last element.
const EMBEDDING: [(Order, [f64; 4]); 2] = [
    (Order::Monai13, [0.5630995169, 0.6167977506, 0.7641545469, 0.3155056882]),
    (Order::Monai15, [0.5618356018, 0.6167977506, 0.893692604, 0.04227375828]),
];

fn network(feature_size: usize, classes: Option<usize>, order: Order, dtype: DType) -> (SwinUnetr, ParamStore) {
    let config = SwinUnetrConfig { in_channels: 1, feature_size, out_channels: classes, patch_merging: order };
    let mut builder = ParamStoreBuilder::default();
    let model = SwinUnetr::new(&mut builder, "", config).expect("model");
    (model, builder.build(dtype, Device::Cpu, 0).expect("parameters"))
}

/// Every golden tensor of a forward pass, in PyTorch's layout.
fn forward(order: Order, dtype: DType) -> BTreeMap<&'static str, Vec<f64>> {
    let (model, mut store) = network(12, Some(3), order, dtype);
    assert_eq!(store.count(), 4_739_037);
    made::fill(&mut store).expect("fill");
    let voxels: Vec<f64> = (0..64 * 64 * 64).map(|i| random::uniform(7, i)).collect();
    let x = Tensor::from_slice(&voxels, &[1, 64, 64, 64, 1]).and_then(|x| x.to_dtype(dtype)).expect("input");
    let tape = Tape::inference(&store);
    let x = tape.constant(x);
    let f = model.encode(&tape, &x).expect("encoder");
    let embedding = model.embed(&tape, &x).expect("embedding");
    let out = model.forward(&tape, &x).expect("decoder");
    let [h0, h1, h2, h3, h4] = &f.hidden;
    let maps = [
        ("h0", h0),
        ("h1", h1),
        ("h2", h2),
        ("h3", h3),
        ("h4", h4),
        ("e1", &f.e1),
        ("e2", &f.e2),
        ("e3", &f.e3),
        ("e4", &f.e4),
        ("e10", &f.e10),
        ("embedding", &embedding),
        ("out", &out),
    ];
    let values =
        |v: &autograd::Var| state_dict::to_pytorch(v.value()).and_then(|t| Ok(t.to_f64_vec()?)).expect("values");
    maps.into_iter().map(|(name, v)| (name, values(v))).collect()
}

/// In f64 relative to the golden value; in f32 to the tensor's mean size where an element is far below it.
fn compare(name: &str, mean: f64, got: &[f64], want: [f64; 4], bound: f64) {
    let got = [mean, got[0], got[got.len() / 2], got[got.len() - 1]];
    for (got, wanted) in got.iter().zip(want) {
        let scale = if bound < 1e-6 { wanted.abs() } else { wanted.abs().max(want[0]) };
        assert!((got - wanted).abs() <= bound * scale, "{name}: {got} instead of {wanted}");
    }
}

fn check(order: Order, goldens: &[Golden], dtype: DType, bound: f64) {
    let got = forward(order, dtype);
    let mean = |name: &str, f: fn(f64) -> f64| got[name].iter().copied().map(f).sum::<f64>() / got[name].len() as f64;
    for (name, want) in EITHER.iter().chain(goldens) {
        compare(name, mean(name, f64::abs), &got[name], *want, bound);
    }
    let want = EMBEDDING.iter().find(|(o, _)| *o == order).expect("embedding").1;
    compare("embedding", mean("embedding", |v| v), &got["embedding"], want, bound);
}

#[test]
fn swin_unetr_in_f64_with_the_merging_of_the_published_weights() {
    check(Order::Monai13, MONAI_13, DType::F64, 1e-9);
}

#[test]
fn swin_unetr_in_f64_with_the_merging_from_monai_15() {
    check(Order::Monai15, MONAI_15, DType::F64, 1e-9);
}

#[test]
fn swin_unetr_in_f32() {
    check(Order::Monai13, MONAI_13, DType::F32, 2e-4);
    check(Order::Monai15, MONAI_15, DType::F32, 2e-4);
}

/// Counts are quadratic in the feature size, so three small models give those of L (96) and H (192) without their memory.
#[test]
fn parameter_counts_of_all_sizes() {
    let full = [12, 24, 48].map(|f| network(f, Some(21), Order::Monai13, DType::F32).1.count());
    assert_eq!(sizes(full), [72_762_999, 290_392_695, 1_160_845_431]);
    let encoder = [12, 24, 48].map(|f| network(f, None, Order::Monai13, DType::F32).1.count());
    assert_eq!(sizes(encoder), [53_164_146, 211_999_362, 847_276_194]);
    let heads = [12, 24, 48].map(|feature_size| {
        let network =
            SwinUnetrConfig { in_channels: 1, feature_size, out_channels: None, patch_merging: Order::Monai13 };
        let config = VocoConfig {
            network,
            hidden: 1024,
            out: 1024,
            teacher: Teacher::Projector,
            momentum: 0.9,
            row_dropout: 0.2,
            element_dropout: 0.0,
            weights: [1.0; 3],
            loss: Loss::Voco,
            recompute: false,
        };
        let voco = Voco::new(config, DType::F32, Device::Cpu, 0).expect("model");
        (voco.params.count() + voco.teacher_params.count(), voco.teacher_params.count())
    });
    assert_eq!(sizes(heads.map(|(all, _)| all)), [59_723_890, 220_918_402, 860_913_826]);
    assert_eq!(sizes(heads.map(|(_, projector)| projector)), [3_279_872, 4_459_520, 6_818_816]);
}

/// B, L and H from the counts at feature sizes 12, 24 and 48.
fn sizes(counts: [usize; 3]) -> [usize; 3] {
    let [p, q, r] = counts.map(|c| c as i64);
    // Lagrange through 1, 2, 4 (in twelves), at 8 and 16
    let at = |x: i64| (2 * p * (x - 2) * (x - 4) - 3 * q * (x - 1) * (x - 4) + r * (x - 1) * (x - 2)) / 6;
    [at(4), at(8), at(16)].map(|c| c as usize)
}

#[test]
fn state_dict_has_monais_names_and_shapes() {
    let listed: BTreeMap<String, String> = include_str!("reference/swin_unetr_b_state_dict.txt")
        .lines()
        .map(|line| {
            line.split_once(' ').map(|(name, rest)| (name.to_string(), rest.to_string())).expect("name, type, shape")
        })
        .collect();
    assert_eq!(listed.len(), 167);
    let store = network(48, Some(21), Order::Monai13, DType::F32).1;
    let mut ours = BTreeMap::new();
    for (name, t) in state_dict::export(&store).expect("export") {
        if let Some(prefix) = name.strip_suffix("relative_position_bias_table") {
            ours.insert(format!("{prefix}relative_position_index"), "i64 343x343".to_string());
        }
        let shape: Vec<String> = t.dims().iter().map(usize::to_string).collect();
        ours.insert(name, format!("f32 {}", shape.join("x")));
    }
    assert_eq!(ours, listed);
}

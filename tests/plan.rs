//! What the meta device counts, against published counts and against a step that is computed.
//!
//! The tests that read the memory pool are one function: the pool is the process's.

use autograd::{ParamStoreBuilder, Tape};
use data::LoaderConfig;
use engine::{DType, Device, Tensor, memory, meta};
use kernels::patch_merging::Order;
use models::{Batch, Loss, SwinUnetr, SwinUnetrConfig, Teacher, Voco, VocoConfig};
use std::process::Command;
use training::optimizer::{AdamW, AdamWConfig};

fn network(feature_size: usize) -> SwinUnetrConfig {
    SwinUnetrConfig { in_channels: 1, feature_size, out_channels: None, patch_merging: Order::Monai13 }
}

/// Floating-point operations of the encoder on one crop, and its parameters.
fn encoder(feature_size: usize, roi: usize) -> (f64, usize) {
    let account = meta::open();
    let mut builder = ParamStoreBuilder::default();
    let encoder = SwinUnetr::new(&mut builder, "", network(feature_size)).expect("network");
    let params = builder.build(DType::F32, Device::Meta, 0).expect("parameters");
    let crop = Tensor::empty(&[1, roi, roi, roi, 1], DType::F32, Device::Meta).expect("crop");
    let tape = Tape::inference(&params);
    encoder.embed(&tape, &tape.constant(crop)).expect("embedding");
    (account.flops() as f64, params.count())
}

/// What MONAI multiplies more: it pads to whole windows before qkv and proj (4 C² weights in all, two blocks a stage), where a
/// padded token here is the bias.
fn padding(feature_size: usize, roi: usize) -> f64 {
    let stage = |i: u32| {
        let (side, channels) = (roi >> (i + 1), (feature_size << i) as f64);
        let padded = if side <= 7 { side } else { side.next_multiple_of(7) };
        (padded.pow(3) - side.pow(3)) as f64 * 2.0 * 2.0 * 4.0 * channels * channels
    };
    (0..4).map(stage).sum()
}

#[test]
fn arithmetic_and_parameters_are_those_counted_in_pytorch() {
    // GFLOP forward of one crop in MONAI, by torch's counter, to the digits given.
    for (feature_size, roi, gflop, digit, parameters) in [
        (48, 64, 82.8, 0.1, 53_164_146),
        (96, 64, 310.5, 0.1, 211_999_362),
        (192, 64, 1201.0, 1.0, 847_276_194),
        (48, 96, 263.8, 0.1, 53_164_146),
        (96, 96, 1004.5, 0.1, 211_999_362),
        (192, 96, 3916.6, 0.1, 847_276_194),
    ] {
        let (ours, count) = encoder(feature_size, roi);
        let monai = (ours + padding(feature_size, roi)) / 1e9;
        assert!((monai - gflop).abs() <= 0.5 * digit, "{feature_size} {roi}: {monai} instead of {gflop}");
        assert_eq!(count, parameters);
    }
}

/// A training step of a tiny model on five crops.
fn step(device: Device, recompute: bool, loss: Loss, teacher: Teacher) {
    let config = VocoConfig {
        network: network(12),
        hidden: 64,
        out: 64,
        teacher,
        momentum: 0.9,
        row_dropout: 0.2,
        element_dropout: 0.1,
        loss,
        weights: [1.0; 3],
        recompute,
    };
    let cubes = |n: usize| Tensor::zeros(&[n, 64, 64, 64, 1], DType::F32, device).expect("crops");
    let labels = Tensor::full(&[1, 1, 4], 0.25, DType::F32, device).expect("labels");
    let mut model = Voco::new(config, DType::F32, device, 3).expect("model");
    let mut optimizer = AdamW::new(&model.params, AdamWConfig::default()).expect("optimiser");
    let batch = Batch { crops: cubes(1), bases: cubes(4), labels };
    let done = model.step(&batch, 1).expect("step");
    optimizer.step(&mut model.params, &done.grads, 1e-4).expect("update");
}

#[test]
fn a_step_takes_the_bytes_that_its_shapes_say() {
    // Scalars that kernels hand over from the host are entered in its pool on either device: a line each.
    const LINES: usize = 8 * 64;
    let of_projector = |recompute, loss| (recompute, loss, Teacher::Projector);
    for (recompute, loss, teacher) in [
        of_projector(false, Loss::Voco),
        of_projector(true, Loss::Voco),
        of_projector(true, Loss::InfoNce { temperature: 0.2 }),
        of_projector(true, Loss::Cvpr1),
        (true, Loss::Cvpr3, Teacher::Whole),
    ] {
        memory::flush();
        memory::reset_peak();
        step(Device::Cpu, recompute, loss, teacher);
        let (taken, account) = (memory::usage(), meta::open());
        step(Device::Meta, recompute, loss, teacher);
        let said = account.usage();
        assert!(said.peak.abs_diff(taken.peak) <= LINES, "recompute {recompute}, {loss:?}: {said:?} {taken:?}");
        assert!(said.held.abs_diff(taken.held) <= LINES, "recompute {recompute}, {loss:?}: {said:?} {taken:?}");
        assert_eq!((said.live, taken.live), (0, 0));
    }
}

/// Exit code, standard output, standard error.
fn vocoe(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vocoe")).args(arguments).output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

fn plan(arguments: &[&str]) -> serde_json::Value {
    let (code, out, error) = vocoe(&[&["plan", "--json"], arguments].concat());
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&out).expect("JSON")
}

#[test]
fn plan_tells_parts_that_add_up_and_needs_neither_data_nor_memory() {
    let huge = plan(&["--size", "H"]);
    assert_eq!(huge["parameters"]["backbone"], 847_276_194);
    assert_eq!(
        (&huge["parameters"]["student"], &huge["parameters"]["teacher"]),
        (&6_818_816.into(), &6_818_816.into())
    );
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "size = \"B\"\nprojection = 2048\n").expect("settings");
    let tiny = |more: &[&str]| plan(&[&["--size", "tiny"], more].concat())["parameters"]["student"].as_u64();
    assert_eq!(
        tiny(&["--config", &file.to_string_lossy()]),
        tiny(&["--projection", "2048"]),
        "a size is not a projection"
    );
    let whole = plan(&["--size", "H", "--teacher", "whole"])["parameters"].clone();
    let parts = ["backbone", "student", "teacher"].map(|part| whole[part].as_u64().expect("count"));
    assert_eq!(parts, [847_276_194, 6_818_816, 847_276_194 + 6_818_816]);
    let memory = huge["memory"].as_object().expect("parts");
    let bytes = |name: &str| memory[name].as_u64().expect("bytes");
    let parts: u64 = memory.keys().filter(|name| *name != "total").map(|name| bytes(name)).sum();
    assert_eq!(parts, bytes("total"));
    // One parameter is four bytes; what is between two of them is less than a line each.
    assert!((bytes("optimizer") as f64 / (12.0 * 854_095_010.0) - 1.0).abs() < 1e-3);
    let batch = 22 * 4 * 64u64.pow(3);
    assert_eq!(bytes("loader"), (LoaderConfig::default().prefetch as u64 + 1) * batch);

    let low = plan(&["--size", "H", "--precision", "bf16"]);
    let share = |part: &str| low["memory"][part].as_f64().expect("bytes") / bytes(part) as f64;
    // beside its master a parameter has a copy of half the bytes; an activation has half, but for statistics and what is f32
    assert_eq!([share("parameters"), share("teacher"), share("gradients"), share("optimizer")], [1.5, 1.5, 1.0, 1.0]);
    assert!((0.5..0.52).contains(&share("activations")), "{}", share("activations"));
    let less = plan(&["--size", "H", "--recompute"]);
    let part = |name: &str| less["memory"][name].as_u64().expect("bytes");
    // One crop's activations in place of those of all 22.
    assert!(part("activations") < bytes("activations") / 10);
    let recomputed = part("total");
    assert!(plan(&["--size", "H", "--volumes", "1"])["memory"]["total"].as_u64() < Some(bytes("total")));
    let (code, table, _) = vocoe(&["plan", "--size", "H"]);
    assert!(code == 0 && table.contains(&format!("with --recompute: {:.2} GB", recomputed as f64 / 1e9)), "{table}");
}

#[test]
fn the_arithmetic_of_what_no_machine_could_compute_is_right_too() {
    let step = |volumes| {
        let planned = plan(&["--feature-size", "12288", "--roi", "1024", "--volumes", volumes]);
        planned["flops"]["step"].as_f64().expect("operations")
    };
    // three times the crops take three times as much
    let (one, three) = (step("1"), step("3"));
    assert!(three > 2.0f64.powi(64) && (three / one - 3.0).abs() < 1e-3, "{three} {one}");
}

#[test]
fn a_run_that_cannot_fit_is_refused_before_data_is_read_with_what_would_help() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (volume, out) = (path("no-volume.nii.gz"), path("run"));
    std::fs::write(&volume, "unreadable").expect("written");
    let train = |more: &[&str]| vocoe(&[&["train", "--data", &volume, "--out", &out], more].concat());
    let (code, printed, error) = train(&["--size", "H", "--volumes", "900"]);
    assert!(code == 1 && printed.is_empty() && !error.contains("can be used"), "{error}");
    for part in ["error: this run needs ", " GB of memory and ", " GB are available; with --recompute"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!folder.path().join("run").exists());
    let (code, _, error) = train(&["--size", "tiny", "--volumes", "1", "--grid", "2", "--recompute"]);
    assert!(code == 1 && error.contains("none of 1 volumes can be used"), "{error}");
    for absurd in
        [["--volumes", "10000"], ["--grid", "99999999999"], ["--roi", "3200000"], ["--feature-size", "120000"]]
    {
        let (code, _, error) = train(&absurd);
        assert!(code == 1 && error.contains("at most 10000 crops") && error.lines().count() == 1, "{error}");
    }
}

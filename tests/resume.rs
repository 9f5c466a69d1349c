//! A run that is stopped, or whose newest checkpoint is damaged, ends with the bits of one that never was.

use data::Geometry;
use engine::random::uniform;
use engine::{Device, Tensor};
use models::{Voco, state_dict};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use training::checkpoint::{self, Best, Saved};
use training::config::{LossKind, Precision, TeacherKind};
use training::metrics::Metrics;
use training::optimizer::AdamW;
use training::pretrain::{self, Outcome, Watch};
use training::{Config, Error, LossScale, Result, file};

const STEPS: u64 = 4;
const ROI: usize = 64;

fn config(out: &Path) -> Config {
    Config {
        demo: true,
        exclude: Vec::new(),
        feature_size: 12,
        weights: None,
        projection: 8,
        steps: STEPS,
        warmup: 1,
        volumes: 1,
        same_region: false,
        crops: 1,
        geometry: Geometry::Voco,
        grid: 2,
        roi: ROI,
        loss: LossKind::Voco,
        lr: 1e-3,
        weight_decay: 0.01,
        teacher: TeacherKind::Projector,
        momentum: 0.9,
        row_dropout: 0.2,
        element_dropout: 0.0,
        intra_weight: 1.0,
        inter_weight: 1.0,
        reg_weight: 1.0,
        seed: 5,
        loader_threads: 1,
        cache: None,
        cache_bits: None,
        cache_size: None,
        bad_share: 0.2,
        device: "cpu".into(),
        precision: Precision::F32,
        recompute: false,
        no_graph: false,
        checkpoint_every: 1,
        keep: 2,
        out: out.to_path_buf(),
        sources: Vec::new(),
    }
}

/// Batch `number` of an endless sequence.
fn batch(number: u64) -> data::Batch {
    let voxels = |seed: u64, crops: usize| (0..(crops * ROI.pow(3)) as u64).map(|i| uniform(seed, i) as f32).collect();
    data::Batch {
        epoch: 0,
        number,
        volumes: 1,
        crops: voxels(2 * number, 1),
        bases: voxels(2 * number + 1, 4),
        labels: vec![0.5, 0.5, 0.0, 0.0],
        centres: vec![[64, 32]],
        names: vec!["noise".into()],
        rejected: Vec::new(),
    }
}

/// Runs until the end, or until after step `until`.
fn train(config: &Config, saved: Option<Saved>, until: u64) -> Result<Outcome> {
    train_recorded(config, saved, until, None)
}

/// As [`train`], with a profile of one step.
fn train_recorded(config: &Config, saved: Option<Saved>, until: u64, profile: Option<&Path>) -> Result<Outcome> {
    let stop = AtomicBool::new(false);
    let first = saved.as_ref().map_or(0, |s| s.step);
    let mut observe = |m: &Metrics| stop.store(m.step >= until, Ordering::Relaxed);
    let resumed = saved.is_some();
    let mut note = |line: String| {
        let whole =
            line.contains(": patch_merging monai-1.3; ") && line.ends_with(" 0 mismatched, 0 missing, 0 unused");
        assert!(resumed && whole, "{line}");
    };
    let mut watch = Watch { observe: &mut observe, note: &mut note, stop: &stop, profile };
    pretrain::run(config, saved, "", &mut (first..).map(|i| Ok(batch(i))), &mut watch)
}

/// Fails at the first step, for which there is no batch.
fn fail(config: &Config) -> Error {
    let stop = AtomicBool::new(false);
    let mut watch = Watch { observe: &mut |_| (), note: &mut |line| panic!("{line}"), stop: &stop, profile: None };
    pretrain::run(config, None, "", &mut std::iter::empty(), &mut watch).expect_err("no more batches")
}

fn losses(outcome: &Outcome) -> Vec<(u64, u64)> {
    outcome.metrics.iter().map(|m| (m.step, m.loss.to_bits())).collect()
}

#[test]
fn a_resumed_run_ends_with_the_bits_of_an_unbroken_one() {
    interrupted(TeacherKind::Projector);
}

#[test]
fn a_teacher_with_a_backbone_is_resumed_too() {
    interrupted(TeacherKind::Whole);
}

fn interrupted(teacher: TeacherKind) {
    let folder = tempfile::tempdir().expect("folder");
    let config = |name: &str| Config { teacher, ..config(&folder.path().join(name)) };
    let (whole, broken) = (config("whole"), config("broken"));
    let want = train(&whole, None, STEPS).expect("whole run");

    let stopped = train(&broken, None, 2).expect("stopped run");
    assert!(stopped.model.is_none() && stopped.metrics.len() == 2);
    let checkpoints = broken.out.join("checkpoints");
    damage(&checkpoint::path(&checkpoints, 2));
    std::fs::write(checkpoint::path(&checkpoints, 3), "cut short").expect("written");
    append(&broken.out.join("metrics.jsonl"), "{\"step\":3,\"lo");

    let mut notes = Vec::new();
    let saved = Saved::newest(&checkpoints, &mut |line| notes.push(line)).expect("an older checkpoint");
    assert_eq!(saved.step, 1);
    assert!(notes.len() == 2 && notes[0].contains("step-0000003") && notes[1].contains("checksum"), "{notes:?}");
    let got = train(&broken, Some(saved), STEPS).expect("resumed run");

    assert_eq!(losses(&got), losses(&want));
    let (got_weights, want_weights) = (weights(&got), weights(&want));
    assert_eq!(got_weights.keys().collect::<Vec<_>>(), want_weights.keys().collect::<Vec<_>>());
    let followed = want_weights.keys().any(|name| name.starts_with("teacher.backbone.swinViT."));
    assert_eq!(followed, teacher == TeacherKind::Whole);
    for (name, want) in &want_weights {
        assert!(got_weights[name] == *want, "{name} differs");
    }
    let lines = std::fs::read_to_string(broken.out.join("metrics.jsonl")).expect("metrics");
    let steps: Vec<u64> = lines.lines().map(|l| serde_json::from_str::<Metrics>(l).expect("line").step).collect();
    assert_eq!(steps, [1, 2, 3, 4]);

    let kept = (1..=STEPS).filter(|&s| checkpoint::path(&checkpoints, s).exists()).collect::<Vec<_>>();
    let mut expected = vec![3, 4];
    expected.extend((got.best.step < 3).then_some(got.best.step));
    expected.sort_unstable();
    assert_eq!(kept, expected, "best: {:?}", got.best);
}

#[test]
fn a_run_that_goes_back_to_an_earlier_step_forgets_the_later_ones() {
    let folder = tempfile::tempdir().expect("folder");
    let config = Config { keep: 1, ..config(folder.path()) };
    train(&Config { keep: 3, ..config.clone() }, None, 3).expect("three steps");
    let checkpoints = config.out.join("checkpoints");
    let saved = Saved::read(&checkpoint::path(&checkpoints, 1)).expect("the first");
    let back = train(&config, Some(saved), 2).expect("one step from there");
    assert!(back.checkpoint.exists() && !checkpoint::path(&checkpoints, 3).exists());
    let saved = Saved::newest(&checkpoints, &mut |line| panic!("{line}")).expect("newest");
    assert_eq!(saved.step, 2);
    assert_eq!(train(&config, Some(saved), STEPS).expect("the rest").metrics.len(), 4);
}

#[test]
fn the_error_that_ended_a_run_is_kept_until_it_goes_on() {
    let folder = tempfile::tempdir().expect("folder");
    let config = Config { steps: 1, ..config(&folder.path().join("run")) };
    let ended = config.out.join("ended.txt");
    let error = fail(&config).to_string();
    let absent = Config { weights: Some(folder.path().join("absent.pt")), ..config.clone() };
    train(&absent, None, 1).expect_err("never began");
    assert_eq!(std::fs::read_to_string(&ended).expect("kept"), error + "\n");
    train(&config, None, 1).expect("a step");
    assert!(!ended.exists());
}

#[test]
fn a_run_that_cannot_begin_leaves_nothing_in_a_folder_of_another_and_no_folder() {
    let folder = tempfile::tempdir().expect("folder");
    let config = config(&folder.path().join("run"));
    let held = file::lock(&config.out).expect("free");
    let error = fail(&config);
    assert!(matches!(&error, Error::Locked { .. }) && !error.to_string().contains("--out"), "{error}");
    assert_eq!(std::fs::read_dir(&config.out).expect("folder").count(), 0);
    drop(held);
    let lost = Config { weights: Some("/no/such.pt".into()), out: folder.path().join("other"), ..config };
    assert!(fail(&lost).to_string().contains("/no/such.pt") && !lost.out.exists());
}

fn weights(outcome: &Outcome) -> BTreeMap<String, Vec<f32>> {
    let tensors = state_dict::load(outcome.model.as_ref().expect("ended")).expect("weights");
    tensors.iter().map(|(name, t)| (name.clone(), t.to_vec().expect("f32"))).collect()
}

/// Flips one bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).expect("checkpoint");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(path, bytes).expect("written");
}

fn append(path: &Path, text: &str) {
    let whole = std::fs::read_to_string(path).expect("file");
    std::fs::write(path, whole + text).expect("written");
}

#[test]
fn weights_or_another_model_are_no_checkpoint_to_resume_from() {
    let folder = tempfile::tempdir().expect("folder");
    let small = config(folder.path());
    let outcome = train(&Config { steps: 1, ..small.clone() }, None, 1).expect("run");
    let error = Saved::read(outcome.model.as_ref().expect("weights")).expect_err("weights alone").to_string();
    assert!(error.contains("no checkpoint of a run"), "{error}");
    let saved = Saved::read(&outcome.checkpoint).expect("checkpoint");
    let wide = Config { projection: 16, ..small };
    let error = train(&wide, Some(saved), 2).expect_err("another width").to_string();
    assert!(error.contains("another shape") && error.contains("step-0000001"), "{error}");
    let none = Saved::newest(&folder.path().join("nowhere"), &mut |_| ()).expect_err("no folder").to_string();
    assert!(none.contains("nowhere"), "{none}");
}

#[test]
fn the_last_files_wait_for_room_and_an_interrupt_says_what_is_lost() {
    let folder = tempfile::tempdir().expect("folder");
    let config = Config { steps: 1, ..config(folder.path()) };
    // a folder of the temporary file's name keeps anybody from writing there, whatever their rights
    let block = |path: &Path| {
        let path = path.with_added_extension("partial");
        std::fs::create_dir_all(&path).expect("folder");
        path
    };
    let model = block(&config.out.join("model.safetensors"));
    let stop = AtomicBool::new(false);
    let mut notes = Vec::new();
    let mut note = |line| {
        notes.push(line);
        std::fs::remove_dir(&model).expect("room");
    };
    let mut watch = Watch { observe: &mut |_| (), note: &mut note, stop: &stop, profile: None };
    let outcome = pretrain::run(&config, None, "", &mut (0..).map(|i| Ok(batch(i))), &mut watch).expect("run");
    assert!(outcome.model.is_some_and(|path| path.exists()));
    assert!(notes.len() == 1 && notes[0].contains("model.safetensors") && notes[0].contains("make room"), "{notes:?}");

    let config = Config { out: folder.path().join("other"), ..config };
    block(&checkpoint::path(&config.out.join("checkpoints"), 1));
    let mut note = |_| stop.store(true, Ordering::Relaxed);
    let mut watch = Watch { observe: &mut |_| (), note: &mut note, stop: &stop, profile: None };
    let error = pretrain::run(&config, None, "", &mut (0..).map(|i| Ok(batch(i))), &mut watch).expect_err("given up");
    let error = error.to_string();
    assert!(
        error.contains("step-0000001") && error.contains("the 1 steps since the last checkpoint are lost"),
        "{error}"
    );
}

/// What a killed process left of a checkpoint is removed by the next.
#[test]
fn remains_of_a_killed_run_are_removed() {
    let folder = tempfile::tempdir().expect("folder");
    let checkpoints = folder.path().join("checkpoints");
    std::fs::create_dir(&checkpoints).expect("folder");
    std::fs::write(checkpoints.join("step-0000009.safetensors.partial"), "half").expect("written");
    train(&Config { steps: 1, ..config(folder.path()) }, None, 1).expect("run");
    let names: Vec<_> =
        std::fs::read_dir(&checkpoints).expect("folder").map(|f| f.expect("file").file_name()).collect();
    assert_eq!(names, ["step-0000001.safetensors"]);
}

#[test]
fn the_second_step_is_recorded_and_nothing_else_changes() {
    let folder = tempfile::tempdir().expect("folder");
    let config = |name: &str| Config { steps: 3, ..config(&folder.path().join(name)) };
    let (plain, recorded, file) = (config("plain"), config("recorded"), folder.path().join("step.json"));
    let want = train(&plain, None, STEPS).expect("run");
    let got = train_recorded(&recorded, None, STEPS, Some(&file)).expect("recorded run");
    assert_eq!(losses(&got), losses(&want));
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).expect("file")).expect("JSON");
    let events = document["traceEvents"].as_array().expect("events");
    let named = |name: &str| events.iter().filter(|e| e["ph"] == "X" && e["name"] == name).collect::<Vec<_>>();
    assert_eq!([named("step").len(), named("wait for data").len(), named("update").len()], [1; 3]);
    let products = named("conv3d wgrad");
    assert!(!products.is_empty() && products.iter().all(|e| e["args"]["FLOP"].as_u64() > Some(0)));
    let backward = named("conv3d").into_iter().find(|e| e["args"]["forward"].is_string()).expect("a rule");
    let forward = backward["args"]["forward"].as_str().expect("place");
    assert!(forward.starts_with("step > forward > backbone.") && forward.ends_with(" > conv3d"), "{forward}");
    // a run that has no step left leaves the file as it is
    let before = std::fs::read(&file).expect("file");
    let complete = Saved::read(&got.checkpoint).expect("checkpoint");
    let again = train_recorded(&recorded, Some(complete), STEPS, Some(&file)).expect("complete");
    assert!(got.has_profile && !again.has_profile && std::fs::read(&file).expect("file") == before);
    // a file that cannot be written is no run
    let nowhere = folder.path().join("absent/step.json");
    let error = train_recorded(&config("none"), None, STEPS, Some(&nowhere)).expect_err("no folder").to_string();
    assert!(error.starts_with(&nowhere.display().to_string()), "{error}");
}

/// What is computed in 16 bits is kept in f32: the file holds the masters, and how the loss is scaled.
#[test]
fn a_checkpoint_in_16_bits_gives_back_masters_rounded_copies_and_the_scale() {
    let folder = tempfile::tempdir().expect("folder");
    for (precision, scaled) in [(Precision::Bf16, false), (Precision::Fp16, true)] {
        let config = Config { precision, ..config(folder.path()) };
        let mut model = Voco::new(config.voco(), precision.dtype(), Device::Cpu, 1).expect("model");
        let shake = |slab: &mut Tensor| {
            let values = slab.as_mut_slice::<f32>()?.iter_mut().zip(0..);
            values.for_each(|(v, i)| *v += 0.1 * uniform(7, i) as f32);
            Ok(())
        };
        model.params.update(shake).expect("other values than those that are drawn");
        let state = [11, 12, 13].map(|seed| {
            let mut slab = model.params.zeros_like().expect("state");
            slab.fill_with(0..slab.numel(), |i| uniform(seed, i as u64)).expect("state");
            slab
        });
        let scaling: Option<LossScale> =
            scaled.then(|| serde_json::from_str(r#"{"scale": 1024.0, "good": 7, "skipped": 6}"#).expect("a scale"));
        let optimizer = AdamW::resume(&model.params, config.adamw(), state, 9, scaling).expect("optimiser");
        let best = Best { step: 9, loss: 0.5 };
        checkpoint::save(folder.path(), &config, &model, &optimizer, best).expect("saved");

        let saved = Saved::read(&checkpoint::path(folder.path(), 9)).expect("read");
        let (restored, resumed) = saved.restore(&config, &mut |_| ()).expect("restored");
        assert_eq!((resumed.scaling(), resumed.steps()), (scaling, 9));
        for (ours, theirs) in resumed.state().iter().zip(optimizer.state()) {
            assert!(ours.to_vec::<f32>() == theirs.to_vec::<f32>());
        }
        for (ours, theirs) in [(&restored.params, &model.params), (&restored.teacher_params, &model.teacher_params)] {
            assert_eq!(ours.dtype(), precision.dtype());
            for id in ours.ids() {
                let read =
                    |t: autograd::Result<Tensor>| t.and_then(|t| Ok((t.dtype(), t.to_f64_vec()?))).expect("read");
                let name = ours.name(id);
                assert!(read(ours.value(id)) == read(theirs.value(id)), "{name}");
                assert!(read(ours.operand(id)) == read(theirs.operand(id)), "{name}");
            }
        }
    }
}

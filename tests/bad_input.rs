//! Input that cannot be used, and places that cannot be written to: one line with the file and what to do, exit 1, nothing left
//! half-written.

mod common;

use common::vocoe;
use models::weights::{RawTensor, Weights};
use safetensors::Dtype;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The last line of standard error, which is the only one that starts with `error:`.
fn refused(arguments: &[&str], mentions: &[&str]) {
    let (code, _, text) = vocoe(arguments);
    let errors: Vec<&str> = text.lines().filter(|l| l.contains("error:") || l.contains("panicked")).collect();
    assert!(code == 1 && errors.len() == 1 && text.lines().last() == Some(errors[0]), "{arguments:?}: {code} {text}");
    assert!(mentions.iter().all(|m| errors[0].contains(m)), "{arguments:?}: {text}");
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("folder")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A NIfTI-1 file: header fields of 32 x 32 x 32 voxels of a type, spoilt by `change`, and the voxels.
fn volume(folder: &Path, name: &str, code: i16, voxels: Vec<u8>, change: impl Fn(&mut [u8])) -> PathBuf {
    let mut header = vec![0; 352];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, &348i32.to_le_bytes());
    [3i16, 32, 32, 32, 1, 1, 1, 1].iter().zip(0..).for_each(|(n, i)| put(40 + 2 * i, &n.to_le_bytes()));
    put(70, &code.to_le_bytes());
    (0..4).for_each(|i| put(76 + 4 * i, &2f32.to_le_bytes()));
    put(108, &352f32.to_le_bytes());
    put(344, b"n+1\0");
    change(&mut header);
    let path = folder.join(name);
    std::fs::write(&path, [header, voxels].concat()).expect("written");
    path
}

const INT16: i16 = 4;
const FLOAT: i16 = 16;

fn soft_tissue() -> Vec<u8> {
    (0..32 * 32 * 32i32).flat_map(|i| ((i % 97) as i16).to_le_bytes()).collect()
}

fn floats(value: f32) -> Vec<u8> {
    value.to_le_bytes().repeat(32 * 32 * 32)
}

#[test]
fn volumes_that_cannot_be_used_are_refused_by_name() {
    let folder = folder();
    let out = text(&folder.path().join("pictures"));
    let set = |at: usize, value: i16| move |h: &mut [u8]| h[at..at + 2].copy_from_slice(&value.to_le_bytes());
    let dims = |n: i16| move |h: &mut [u8]| (0..3).for_each(|i| set(42 + 2 * i, n)(h));
    let none = |_: &mut [u8]| ();
    let large = |h: &mut [u8]| (0..3).for_each(|i| h[80 + 4 * i..84 + 4 * i].copy_from_slice(&500f32.to_le_bytes()));
    let file = |name, code, voxels, change: &dyn Fn(&mut [u8])| volume(folder.path(), name, code, voxels, change);
    let cases = [
        (file("magic.nii", INT16, soft_tissue(), &|h: &mut [u8]| h[344] = b'x'), "not a NIfTI file"),
        (file("size.nii", INT16, soft_tissue(), &|h: &mut [u8]| h[0] = 99), "not a NIfTI file"),
        (file("short.nii", INT16, vec![0; 100], &none), "more than the file can hold"),
        (file("absurd.nii", INT16, soft_tissue(), &dims(i16::MAX)), "more than the file can hold"),
        (file("zero.nii", INT16, soft_tissue(), &set(44, 0)), "axis of 0 voxels"),
        (file("negative.nii", INT16, soft_tissue(), &set(44, -7)), "axis of -7 voxels"),
        (file("axes.nii", INT16, soft_tissue(), &set(40, 99)), "claims 99 axes"),
        (file("offset.nii", INT16, soft_tissue(), &|h: &mut [u8]| h[111] = 0xff), "at byte"),
        (
            file("frames.nii", INT16, soft_tissue(), &|h: &mut [u8]| (set(40, 4)(h), set(48, 5)(h)).0),
            "one file per volume",
        ),
        (file("rgb.nii", 128, vec![0; 3 << 15], &none), "RGB"),
        (file("complex.nii", 32, vec![0; 8 << 15], &none), "magnitude"),
        (file("air.nii", FLOAT, floats(-1000.0), &none), "no voxel above -175 HU"),
        (file("nan.nii", FLOAT, floats(f32::NAN), &none), "no voxel above -175 HU"),
        (file("voxels.nii", INT16, soft_tissue(), &large), "voxel sizes"),
        (folder.path().join("lost.nii.gz"), "check the path"),
        (folder.path().to_path_buf(), "check the path"),
    ];
    for (path, says) in &cases {
        refused(&["inspect", &text(path), "--out", &out], &[&text(path), says]);
    }
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_gzip_file_that_ends_early_is_refused() {
    let folder = folder();
    assert_eq!(vocoe(&["phantom", "--out", &text(folder.path()), "--count", "1"]).0, 0);
    let path = folder.path().join("phantom_000_ct.nii.gz");
    let whole = std::fs::read(&path).expect("phantom");
    for length in [10, whole.len() / 2, whole.len() - 4] {
        std::fs::write(&path, &whole[..length]).expect("written");
        refused(&["inspect", &text(&path), "--out", "x"], &[&text(&path), "cut short or damaged", "again"]);
    }
}

#[test]
fn a_volume_with_some_voxels_that_are_no_numbers_is_used() {
    let folder = folder();
    let mut voxels = floats(40.0);
    for (i, value) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        voxels[400 * i..400 * i + 4].copy_from_slice(&value.to_le_bytes());
    }
    let path = volume(folder.path(), "a.nii", FLOAT, voxels, |_| ());
    let out = text(&folder.path().join("pictures"));
    let (code, _, error) = vocoe(&["inspect", &text(&path), "--out", &out]);
    assert_eq!(code, 0, "{error}");
}

/// A few steps of a model that is as small as can be, on what is in `data`.
fn train(data: &Path, out: &Path, more: &[&str]) -> (i32, String, String) {
    let (data, out) = (text(data), text(out));
    let small =
        ["--size", "tiny", "--projection", "8", "--volumes", "1", "--crops", "1", "--grid", "2", "--steps", "4"];
    vocoe(&[&["train", "--data", &data, "--out", &out], &small[..], more].concat())
}

#[test]
fn bad_volumes_on_the_way_are_named_once_and_too_many_stop_the_run() {
    let folder = folder();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    std::fs::create_dir(&data).expect("folder");
    volume(&data, "a.nii", INT16, soft_tissue(), |_| ());
    std::fs::write(data.join("bad.nii"), "no volume").expect("written");
    let (code, _, error) = train(&data, &out, &["--bad-share", "0.5"]);
    let named = error.lines().filter(|l| l.contains("left out (1 of 2 volumes so far): ") && l.contains("bad.nii"));
    assert!(code == 0 && named.count() == 1 && error.matches("bad.nii").count() == 1, "{code} {error}");
    let out = folder.path().join("stopped");
    let (code, _, error) = train(&data, &out, &["--bad-share", "0.4"]);
    let last = error.lines().rfind(|l| l.starts_with("error: ")).unwrap_or_default();
    assert!(code == 1 && last.contains("1 of 2 volumes") && last.contains("bad.nii"), "{code} {error}");
    assert!(last.contains("--bad-share") && !out.join("model.safetensors").exists(), "{error}");
}

#[test]
fn a_place_that_cannot_be_written_to_is_named() {
    let folder = folder();
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let inside = text(&file.join("out"));
    let volume = text(&volume(folder.path(), "a.nii", INT16, soft_tissue(), |_| ()));
    refused(&["train", "--demo", "--steps", "1", "--out", &inside], &[&inside, "--out that can be written to"]);
    refused(&["phantom", "--count", "1", "--out", &inside], &[&inside]);
    refused(&["inspect", &volume, "--out", &inside], &[&inside]);
    std::fs::write(folder.path().join("metrics.jsonl"), "").expect("written");
    std::fs::create_dir(folder.path().join("report.html.partial")).expect("folder");
    refused(&["report", &text(folder.path())], &["report.html", "allow writing"]);
    assert!(!folder.path().join("report.html").exists());
}

#[test]
fn checkpoints_that_cannot_be_used_are_refused() {
    let folder = folder();
    let path = |name: &str| text(&folder.path().join(name));
    let data = (0..6).flat_map(|i: i32| (i as f32).to_le_bytes()).collect();
    let mut weights = Weights::default();
    weights.tensors.insert("a".into(), RawTensor { dtype: Dtype::F32, shape: vec![2, 3], data });
    weights.save(Path::new(&path("whole.safetensors"))).expect("written");
    let whole = std::fs::read(path("whole.safetensors")).expect("file");
    let mut flipped = whole.clone();
    flipped[whole.len() - 3] ^= 1;
    std::fs::write(path("flipped.safetensors"), flipped).expect("written");
    std::fs::write(path("cut.safetensors"), &whole[..whole.len() - 5]).expect("written");
    let lie = [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat();
    std::fs::write(path("lie.safetensors"), lie).expect("written");
    std::fs::write(path("call.pt"), b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02cos\nsystem\n")
        .expect("written");
    for (name, says) in [
        ("flipped.safetensors", "checksum"),
        ("cut.safetensors", "not a safetensors file"),
        ("lie.safetensors", "not a safetensors file"),
        ("call.pt", "os.system"),
        ("whole.safetensors", "no tensor matches"),
        ("lost.safetensors", "check the path"),
    ] {
        let (input, out) = (path(name), path("out"));
        refused(&["train", "--demo", "--weights", &input, "--out", &out], &[&input, says]);
        if says != "no tensor matches" {
            refused(&["convert", &input, &path("out.safetensors")], &[&input, says]);
            refused(&["train", "--resume", &input], &[&input, says]);
        }
    }
    refused(&["train", "--resume", &path("whole.safetensors")], &["whole.safetensors", "no checkpoint of a run"]);
    assert!(!Path::new(&path("out")).exists() && !Path::new(&path("out.safetensors")).exists());
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let folder = folder();
    let lost = text(&folder.path().join("lost"));
    let checkpoints = text(&folder.path().join("lost/checkpoints"));
    let out = text(&folder.path().join("out"));
    refused(&["train", "--config", &lost], &[&lost, "vocoe config --print-default"]);
    refused(&["train", "--size", "tiny", "--data", &lost, "--out", &out], &[&lost, "name a folder"]);
    // before what is wrong with the machine
    let empty = text(folder.path());
    refused(&["train", "--size", "H", "--roi", "1024", "--data", &lost, "--out", &out], &[&lost, "name a folder"]);
    refused(&["train", "--size", "H", "--roi", "1024", "--data", &empty, "--out", &out], &["holds no image"]);
    refused(&["train", "--resume", "--out", &lost], &[&checkpoints, "the folder of a run"]);
    refused(&["ablate", &lost, "--out", &out], &[&lost, "vocoe help ablate"]);
    refused(&["verify", "--reference", &lost], &[&lost, "name a folder of cases"]);
    refused(&["verify", "--reference", &text(folder.path())], &["no reference case", "tests/reference"]);
    refused(&["report", &lost], &["lost/metrics.jsonl", "the folder of a run"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn numbers_that_cannot_be_are_refused_with_their_flag() {
    for (flag, value) in [
        ("--lr", "-1"),
        ("--lr", "NaN"),
        ("--lr", "1e39"),
        ("--weight-decay", "-0.1"),
        ("--weight-decay", "nan"),
        ("--momentum", "1.5"),
        ("--seed", "9223372036854775808"),
        ("--row-dropout", "1"),
        ("--inter-weight", "inf"),
        ("--bad-share", "-1"),
        ("--volumes", "0"),
        ("--crops", "0"),
        ("--steps", "0"),
        ("--grid", "1"),
        ("--roi", "50"),
        ("--feature-size", "13"),
        ("--projection", "0"),
        ("--projection", "18446744073709551615"),
        ("--keep", "0"),
        ("--loader-threads", "99999"),
    ] {
        refused(&["train", "--demo", flag, value], &[flag]);
    }
    refused(&["train", "--demo", "--data", "x"], &["--demo", "--data"]);
    refused(&["train", "--demo", "--cache-bits", "16"], &["cache_bits", "--cache"]);
    refused(&["train", "--demo", "--cache-size", "5GB"], &["cache_size", "--cache"]);
    assert_eq!(vocoe(&["train", "--resume", "--config", "x.toml", "--out", "x"]).0, 2, "the run has its settings");
    for arguments in [&["train", "--demo", "--threads", "99999"][..], &["phantom", "--out", "x", "--count", "0"]] {
        assert_eq!(vocoe(arguments).0, 2, "{arguments:?}");
    }
}

#[test]
fn a_header_of_safetensors_is_quoted_on_one_line() {
    let folder = folder();
    let path = folder.path().join("lines.safetensors");
    let header = b"{\"a\nb\": \n {\"dtype\": \"F\n32\"}}";
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header].concat()).expect("written");
    let out = text(&folder.path().join("out.safetensors"));
    refused(&["convert", &text(&path), &out], &["lines.safetensors", "not a safetensors file"]);
    let (code, outcome, _) = vocoe(&["verify", "--reference", &text(folder.path())]);
    assert!(code == 1 && outcome.lines().filter(|l| l.starts_with("lines")).count() == 1, "{outcome}");
}

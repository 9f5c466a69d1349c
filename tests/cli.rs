//! The binary, as a user runs it.

use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference");

/// Exit code, standard output, standard error.
fn vocoe(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_vocoe")).args(arguments).output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

/// Errors are one line on standard error, and exit 1.
fn refused(arguments: &[&str], mentions: &[&str]) {
    let (code, out, error) = vocoe(arguments);
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{error}");
    assert!(mentions.iter().all(|m| error.contains(m)), "{error}");
}

/// A case file of f32 tensors.
fn write(folder: &Path, name: &str, kind: &str, attrs: &str, tensors: &[(&str, &[usize], &[f32])]) {
    let blobs: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&blobs).map(|((name, dims, _), blob)| {
        (*name, TensorView::new(Dtype::F32, dims.to_vec(), blob).expect("as many values as the shape has"))
    });
    let metadata = HashMap::from([("kind".to_string(), kind.to_string()), ("attrs".to_string(), attrs.to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata)).expect("serialised");
    std::fs::write(folder.join(format!("{name}.safetensors")), bytes).expect("written");
}

/// y = relu(x) of two elements.
fn relu(folder: &Path, name: &str, y: [f32; 2], dx: [f32; 2]) {
    let tensors: [(&str, &[usize], &[f32]); 4] =
        [("in.x", &[2], &[-1.0, 2.0]), ("cot.y", &[2], &[3.0, 4.0]), ("out.y", &[2], &y), ("grad.x", &[2], &dx)];
    write(folder, name, "relu", "{}", &tensors);
}

/// One case that must fail, with what its line says.
fn fails(kind: &str, attrs: &str, tensors: &[(&str, &[usize], &[f32])], says: &str) {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "broken", kind, attrs, tensors);
    line_fails(folder.path(), says);
}

fn line_fails(folder: &Path, says: &str) {
    let (code, out, error) = vocoe(&["verify", "--reference", &folder.to_string_lossy()]);
    assert_eq!((code, out.lines().count()), (1, 2), "{out}{error}");
    let line = out.lines().next().unwrap_or_default();
    assert!(line.starts_with("broken ") && line.contains(says) && line.contains("FAILED"), "{out}");
    assert!(out.contains("1 cases, 0 ok, 1 failed"), "{out}");
}

#[test]
fn help_names_every_command() {
    let (code, out, _) = vocoe(&["--help"]);
    assert_eq!(code, 0);
    assert!(["verify", "gradcheck", "phantom", "report"].iter().all(|c| out.contains(c)), "{out}");
    for command in ["verify", "gradcheck", "phantom", "report"] {
        assert_eq!(vocoe(&[command, "--help"]).0, 0);
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["fly"][..],
        &[],
        &["verify"],
        &["verify", "--reference", REFERENCE, "--device", "abacus"],
        &["verify", "--reference", REFERENCE, "--threads", "0"],
        &["gradcheck", "--filter"],
        &["phantom", "--out", "x", "--count", "many"],
    ] {
        let (code, _, error) = vocoe(arguments);
        assert!(code == 2 && !error.is_empty(), "{arguments:?}: {code} {error}");
    }
}

#[test]
fn report_writes_a_page_about_a_run_of_any_version() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().to_string_lossy();
    refused(&["report", &path], &["metrics.jsonl", "--out"]);
    let line = r#"{"step":1,"loss":0.9,"intra":0.6,"inter":0.2,"reg":0.1,"lr":0.0,"grad_norm":3.0,"crops_per_s":0.3,
        "data_wait":0.0,"position_top1":0.5}"#;
    std::fs::write(folder.path().join("metrics.jsonl"), line.replace('\n', "") + "\n{\"step\":2,").expect("written");
    let (code, out, error) = vocoe(&["report", &path]);
    assert_eq!((code, out.trim()), (0, &*folder.path().join("report.html").to_string_lossy()), "{error}");
    let page = std::fs::read_to_string(folder.path().join("report.html")).expect("page");
    assert!(page.contains("left out: 1.") && page.contains("<svg"), "{page}");
}

#[test]
fn errors_are_one_line() {
    refused(&["verify", "--reference", "/no/such/folder"], &["/no/such/folder"]);
    refused(&["verify", "--reference", REFERENCE, "--filter", "no such case"], &["no such case"]);
    refused(&["verify", "--reference", REFERENCE, "--device", "cuda"], &["cuda", "--device cpu"]);
    refused(&["gradcheck", "--filter", "no such rule"], &["no such rule", "conv3d"]);
    let empty = tempfile::tempdir().expect("folder");
    refused(&["verify", "--reference", &empty.path().to_string_lossy()], &["no reference case"]);
    let file = empty.path().join("file");
    std::fs::write(&file, "").expect("written");
    refused(&["phantom", "--out", &file.to_string_lossy()], &[&file.to_string_lossy()]);
}

#[test]
fn weights_are_listed_but_are_no_case() {
    let folder = tempfile::tempdir().expect("folder");
    write(folder.path(), "w", "weights", "{}", &[("bias", &[2], &[1.0, 2.0])]);
    let path = folder.path().to_string_lossy();
    let (code, out, error) = vocoe(&["verify", "--reference", &path]);
    assert!(code == 1 && out.contains("weights") && error.contains("no reference case"), "{out}{error}");
    relu(folder.path(), "x", [0.0, 2.0], [0.0, 4.0]);
    let (code, out, _) = vocoe(&["verify", "--reference", &path]);
    assert!(code == 0 && out.contains("1 cases, 1 ok, 0 failed, 1 weight files"), "{out}");
}

#[test]
fn a_case_passes_or_fails_by_its_numbers() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().to_string_lossy();
    relu(folder.path(), "right", [0.0, 2.0], [0.0, 4.0]);
    assert_eq!(vocoe(&["verify", "--reference", &path]).0, 0);
    relu(folder.path(), "wrong", [0.0, 2.0], [0.0, 4.001]);
    let (code, out, _) = vocoe(&["verify", "--reference", &path]);
    assert!(code == 1 && out.contains("2 cases, 1 ok, 1 failed"), "{out}");
    let line = out.lines().find(|l| l.starts_with("wrong")).unwrap_or_default();
    assert!(line.contains("grad.x") && line.contains("2.50e-4") && line.contains("FAILED"), "{out}");
    assert_eq!(vocoe(&["verify", "--reference", &path, "--filter", "right"]).0, 0);
}

#[test]
fn json_gives_one_object_per_line() {
    let folder = tempfile::tempdir().expect("folder");
    relu(folder.path(), "a", [0.0, 2.0], [0.0, 4.0]);
    relu(folder.path(), "b", [0.0, f32::NAN], [0.0, 4.0]);
    let (code, out, _) = vocoe(&["verify", "--json", "--reference", &folder.path().to_string_lossy()]);
    assert_eq!(code, 1);
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[0]["case"], &lines[0]["status"]), (&"a".into(), &"ok".into()));
    assert_eq!((&lines[1]["status"], &lines[1]["tensor"]), (&"failed".into(), &"out.y".into()));
    assert_eq!((&lines[2]["ok"], &lines[2]["failed"]), (&1.into(), &1.into()));
}

#[test]
fn nan_never_passes() {
    let nan = f32::NAN;
    let x: (&str, &[usize], &[f32]) = ("in.x", &[2], &[-1.0, 2.0]);
    let cot: (&str, &[usize], &[f32]) = ("cot.y", &[2], &[3.0, 4.0]);
    fails("relu", "{}", &[x, cot, ("out.y", &[2], &[0.0, nan])], "out.y");
    fails("relu", "{}", &[("in.x", &[2], &[nan, 2.0]), cot, ("out.y", &[2], &[0.0, 2.0])], "out.y");
    fails(
        "relu",
        "{}",
        &[x, ("cot.y", &[2], &[nan, nan]), ("out.y", &[2], &[0.0, 2.0]), ("grad.x", &[2], &[0.0, 4.0])],
        "grad.x",
    );
    let allowance = r#"{"torch_float32_error": {"out.y": NaN}}"#;
    fails("relu", allowance, &[x, cot, ("out.y", &[2], &[0.0, 2.0])], "attrs");
}

#[test]
fn malformed_cases_fail_with_a_line_that_says_why() {
    let x: (&str, &[usize], &[f32]) = ("in.x", &[2], &[-1.0, 2.0]);
    let cot: (&str, &[usize], &[f32]) = ("cot.y", &[2], &[3.0, 4.0]);
    let y: (&str, &[usize], &[f32]) = ("out.y", &[2], &[0.0, 2.0]);
    fails("teleport", "{}", &[x], "unknown kind \"teleport\"");
    fails("relu", "{}", &[cot, y], "in.x");
    fails("relu", "{}", &[x, y], "cot.y");
    fails("relu", "{}", &[x, cot], "expects nothing");
    fails("relu", "{}", &[x, cot, y, ("out.z", &[1], &[1.0])], "out.z");
    fails("relu", "{}", &[x, cot, ("out.y", &[1, 2], &[0.0, 2.0])], "[1, 2]");
    fails("relu", "{}", &[x, ("cot.y", &[3], &[1.0; 3]), y], "[3]");
    fails("relu", "not JSON", &[x, cot, y], "attrs");
    fails("leaky_relu", "{}", &[x, cot, y], "slope");
    fails("linear", "{}", &[x, ("in.weight", &[1, 3], &[1.0; 3]), cot, y], "linear");
    fails("swin_unetr", r#"{"feature_size": 12, "patch_merging": "standard", "weights": "lost"}"#, &[y], "lost");
    fails("swin_unetr", r#"{"feature_size": 13, "patch_merging": "standard", "weights": "lost"}"#, &[y], "13");
    let preprocess =
        r#"{"image": "lost.nii.gz", "label": null, "spacing": [1, 1, 1], "window": [0, 1], "pad": [1, 1, 1]}"#;
    fails("preprocess", preprocess, &[y], "--ct");
}

#[test]
fn unreadable_files_fail_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("broken.safetensors");
    for bytes in [&b""[..], b"junk", &[0xff; 100]] {
        std::fs::write(&path, bytes).expect("written");
        line_fails(folder.path(), "not a readable safetensors file");
    }
    let whole = std::fs::read(Path::new(REFERENCE).join("linear.safetensors")).expect("case");
    std::fs::write(&path, &whole[..whole.len() / 2]).expect("written");
    line_fails(folder.path(), "not a readable safetensors file");
    relu(folder.path(), "right", [0.0, 2.0], [0.0, 4.0]);
    let (code, out, _) = vocoe(&["verify", "--reference", &folder.path().to_string_lossy()]);
    assert!(code == 1 && out.contains("2 cases, 1 ok, 1 failed"), "{out}");
}

#[test]
fn gradcheck_prints_one_line_per_rule() {
    let (code, out, error) = vocoe(&["gradcheck", "--filter", "linear"]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.lines().count() == 3 && out.contains("gradcheck: 2 rules, 2 ok, 0 failed"), "{out}");
}

#[test]
fn phantoms_are_written_and_the_seed_decides() {
    let folder = tempfile::tempdir().expect("folder");
    let write = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        let (code, _, error) = vocoe(&["phantom", "--out", &out.to_string_lossy(), "--count", "1", "--seed", seed]);
        assert_eq!(code, 0, "{error}");
        let mut files: Vec<_> = std::fs::read_dir(out).expect("folder").map(|f| f.expect("file").path()).collect();
        files.sort();
        files
            .iter()
            .map(|f| (f.file_name().map(ToOwned::to_owned), std::fs::read(f).expect("file")))
            .collect::<Vec<_>>()
    };
    let (a, b, c) = (write("a", "3"), write("b", "3"), write("c", "4"));
    assert!(!a.is_empty() && a == b && a != c);
}

#[test]
fn a_matrix_that_cannot_be_compared_is_refused_before_anything_runs() {
    let folder = tempfile::tempdir().expect("folder");
    let matrix = folder.path().join("matrix.toml");
    let out = folder.path().join("out");
    for (text, says) in [
        ("[base]\ndemo = true", "run"),
        ("run = []", "no [[run]]"),
        ("[[run]]\nsteps = 3", "name"),
        ("[[run]]\nname = \"a\"\nseed = 3", "seed"),
        ("[[run]]\nname = \"../a\"", "letters"),
        ("[base]\ndemo = true\n[[run]]\nname = \"a\"\nintra_wait = 0", "intra_wait"),
        ("[base]\ndemo = true\nintra_weight = 0\ninter_weight = 0\n[[run]]\nname = \"a\"\nreg_weight = 0", "weights"),
    ] {
        std::fs::write(&matrix, text).expect("matrix");
        let (code, _, error) = vocoe(&["ablate", &matrix.to_string_lossy(), "--out", &out.to_string_lossy()]);
        assert!(code == 1 && error.contains(says) && error.contains("matrix.toml"), "{text}: {code} {error}");
        assert!(error.lines().count() == 1 && !out.exists(), "{error}");
    }
}

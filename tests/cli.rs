//! The binary, as a user runs it.

mod common;

use common::vocoe;
use models::weights::{RawTensor, Weights};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference");

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
fn help_names_every_command_and_ends_with_examples() {
    let (code, out, _) = vocoe(&["--help"]);
    assert_eq!(code, 0);
    let commands = [
        "train",
        "plan",
        "devices",
        "verify",
        "gradcheck",
        "phantom",
        "inspect",
        "config",
        "completions",
        "man",
        "convert",
        "ablate",
        "bench",
        "report",
        "prepare",
        "conformance",
    ];
    assert!(commands.iter().all(|c| out.contains(c)), "{out}");
    for arguments in commands.iter().map(|&c| vec![c, "--help"]).chain([vec!["--help"], vec!["-h"]]) {
        let (code, out, _) = vocoe(&arguments);
        let (_, examples) = out.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{arguments:?}: {out}"));
        assert_eq!(code, 0);
        assert!(examples.lines().all(|line| line.starts_with("  vocoe ")) && !examples.is_empty(), "{examples}");
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
        &["convert", "in.pt"],
        &["phantom", "--out", "x", "--count", "many"],
        &["inspect"],
        &["config"],
        &["completions", "teletype"],
        &["man", "fly"],
        &["gradcheck", "--quiet", "--verbose"],
        &["inspect", "x.nii.gz", "--out", "x", "--region", "tail"],
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
    refused(&["verify", "--reference", REFERENCE, "--device", "cuda:200"], &["cuda:200", "--device cpu"]);
    refused(&["gradcheck", "--filter", "no such rule"], &["no such rule", "conv3d"]);
    let empty = tempfile::tempdir().expect("folder");
    refused(&["verify", "--reference", &empty.path().to_string_lossy()], &["no reference case"]);
    let file = empty.path().join("file");
    std::fs::write(&file, "").expect("written");
    refused(&["phantom", "--out", &file.to_string_lossy()], &[&file.to_string_lossy()]);
}

#[test]
fn settings_that_exclude_each_other_are_refused() {
    let with = |flags: &[&str], mentions: &[&str]| refused(&[&["train", "--demo"], flags].concat(), mentions);
    with(&["--device", "cpu", "--precision", "fp16"], &["does not compute in f16", "--precision bf16 or f32"]);
    with(&["--geometry", "cvpr", "--grid", "3"], &["geometry cvpr", "not 3 and 64"]);
    with(&["--geometry", "cvpr", "--roi", "96"], &["geometry cvpr", "not 4 and 96"]);
    with(&["--same-region"], &["same_region", "--volumes"]);
    with(&["--loss", "cvpr1", "--teacher", "whole"], &["cvpr1 has no teacher"]);
    with(&["--loss", "cvpr3", "--intra-weight", "0", "--reg-weight", "0"], &["no inter term"]);
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
    assert!(out.lines().count() == 4 && out.contains("gradcheck: 3 rules, 3 ok, 0 failed"), "{out}");
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
    let there = folder.path().join("a").to_string_lossy().into_owned();
    refused(&["phantom", "--out", &there, "--count", "2"], &["phantom_000_ct.nii.gz", "is there already"]);
    assert_eq!(std::fs::read_dir(&there).expect("folder").count(), 2);
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
        ("[[run]]\nname = \"a\"\nsame_region = true", "same_region"),
        ("[[run]]\nname = \"a\"\nout = \"b\"", "give --out"),
        ("[base]\nout = \"b\"\n[[run]]\nname = \"a\"", "give --out"),
        ("[base]\ndemo = true\n[[run]]\nname = \"a\"\n[[run]]\nname = \"b\"\nlr = nan", "run b: lr NaN"),
        ("[[run]]\nname = \"../a\"", "letters"),
        ("[base]\ndemo = true\n[[run]]\nname = \"a\"\nintra_wait = 0", "`intra_wait`; did you mean `intra_weight`?"),
        ("[base]\ndemo = true\nintra_weight = 0\ninter_weight = 0\n[[run]]\nname = \"a\"\nreg_weight = 0", "weights"),
    ] {
        std::fs::write(&matrix, text).expect("matrix");
        let (code, _, error) = vocoe(&["ablate", &matrix.to_string_lossy(), "--out", &out.to_string_lossy()]);
        assert!(code == 1 && error.contains(says) && error.contains("matrix.toml"), "{text}: {code} {error}");
        assert!(error.lines().count() == 1 && !out.exists(), "{error}");
    }
}

#[test]
fn a_matrix_is_run_once_and_its_runs_are_known_again_by_their_settings() {
    let folder = tempfile::tempdir().expect("folder");
    let (matrix, out) = (folder.path().join("matrix.toml"), folder.path().join("out"));
    let ablate = |lr: &str, out: &Path| {
        let base =
            format!("[base]\ndemo = true\nsteps = 2\ngrid = 2\ncrops = 1\nlr = {lr}\nfeature_size = 24\nwarmup = 7\n");
        let runs = "[[run]]\nname = \"whole\"\nsize = \"tiny\"\n[[run]]\nname = \"alone\"\nsize = \"tiny\"\ninter_weight = 0.0\n";
        std::fs::write(&matrix, base + runs).expect("matrix");
        vocoe(&["ablate", &matrix.to_string_lossy(), "--out", &out.to_string_lossy(), "--json"])
    };
    let (code, first, error) = ablate("1e-3", &out);
    assert_eq!(code, 0, "{error}");
    let rows: Vec<serde_json::Value> = first.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(rows.iter().map(|row| &row["name"]).collect::<Vec<_>>(), ["whole", "alone"]);
    // the size of a run replaces the base's width, and where it computed need not be here
    let settings = out.join("whole/config.toml");
    let stored = std::fs::read_to_string(&settings).expect("settings");
    assert!(stored.contains("feature_size = 12\n"), "{stored}");
    std::fs::write(&settings, stored.replace("device = \"cpu\"", "device = \"cuda:7\"")).expect("settings");
    let (code, again, error) = ablate("1e-3", &folder.path().join("./out/../out"));
    assert!(code == 0 && again == first && error.matches("complete already").count() == 2, "{error}");
    let (code, _, error) = ablate("1e-4", &out);
    assert!(code == 1 && error.contains("a run with another lr; remove its folder"), "{error}");
}

#[test]
fn a_run_that_fails_keeps_no_other_of_its_matrix_from_being_run() {
    let folder = tempfile::tempdir().expect("folder");
    let (matrix, out) = (folder.path().join("matrix.toml"), folder.path().join("out"));
    let base = "[base]\ndemo = true\nsteps = 2\ncrops = 1\nprojection = 8\nwarmup = 0\n";
    let runs = "[[run]]\nname = \"bad\"\nlr = 1e30\n[[run]]\nname = \"good\"\n";
    std::fs::write(&matrix, base.to_owned() + runs).expect("matrix");
    let ablate = |more: &[&str]| {
        vocoe(&[&["ablate", &matrix.to_string_lossy(), "--out", &out.to_string_lossy()], more].concat())
    };
    let (code, table, error) = ablate(&["--json"]);
    assert_eq!(code, 1, "{error}");
    let rows: Vec<serde_json::Value> = table.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert_eq!(rows.iter().map(|row| &row["name"]).collect::<Vec<_>>(), ["bad", "good"]);
    let problem = rows[0]["error"].as_str().unwrap_or_default();
    assert!(problem.contains("step 2: the loss is") && rows[0].get("loss").is_none(), "{table}");
    assert!(rows[1]["loss"].is_f64() && rows[1].get("error").is_none(), "{table}");
    assert!(error.contains(&format!("error: run bad: {problem}")), "{error}");

    let report = |run: &str| vocoe(&["report", &out.join(run).to_string_lossy()]);
    assert_eq!((report("bad").0, report("good").0), (0, 0));
    let page = |run: &str| std::fs::read_to_string(out.join(run).join("report.html")).expect("page");
    assert!(page("bad").contains("ended with an error: step 2") && !page("good").contains("ended with an error"));

    let (code, table, error) = ablate(&[]);
    assert!(code == 1 && error.contains("good: complete already"), "{error}");
    assert!(table.contains("\nbad   failed: step 2") && table.contains("\ngood  "), "{table}");
}

/// An interrupt at the end of one run is not lost before the next begins.
#[test]
#[cfg(unix)]
fn a_matrix_ends_at_an_interrupt_that_comes_after_a_runs_last_step() {
    let folder = tempfile::tempdir().expect("folder");
    let (matrix, out) = (folder.path().join("matrix.toml"), folder.path().join("out"));
    let base = "[base]\ndemo = true\nsteps = 1\ncrops = 1\nprojection = 8\n";
    std::fs::write(&matrix, base.to_owned() + "[[run]]\nname = \"a\"\n[[run]]\nname = \"b\"\nsteps = 30\n")
        .expect("matrix");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vocoe"));
    let mut child = command.arg("-q").arg("ablate").arg(&matrix).arg("--out").arg(&out).spawn().expect("started");
    while !std::fs::read_to_string(out.join("a/metrics.jsonl")).is_ok_and(|lines| lines.contains('\n')) {
        assert!(child.try_wait().expect("child").is_none(), "ended before the first step");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let sent = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", child.id())).status().expect("sh");
    assert!(sent.success());
    assert_eq!(child.wait().expect("ended").code(), Some(1));
    assert!(out.join("a/model.safetensors").exists() && !out.join("b/model.safetensors").exists());
}

/// A PyTorch checkpoint of f32 tensors.
fn checkpoint(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let mut weights = Weights::default();
    for (name, dims, values) in tensors {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        weights.tensors.insert(name.to_string(), RawTensor { dtype: Dtype::F32, shape: dims.to_vec(), data });
    }
    weights.save(path).expect("written");
}

#[test]
fn weights_are_converted_both_ways() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    checkpoint(Path::new(&path("a.pth")), &[("module.backbone.x", &[1, 2], &[1.0, 2.0]), ("b", &[], &[3.0])]);
    let (code, out, error) = vocoe(&["convert", &path("a.pth"), &path("b.safetensors")]);
    assert_eq!((code, out.lines().count()), (0, 1), "{error}");
    for part in ["b.safetensors: 2 tensors, 12 bytes", "1 names changed", "monai-1.3 (the file does not say)"] {
        assert!(out.contains(part), "{out}");
    }
    let (code, out, error) = vocoe(&["convert", &path("b.safetensors"), &path("c.pt")]);
    // what the first file did not say stays unsaid
    assert!(
        code == 0 && out.contains("0 names changed, patch_merging monai-1.3 (the file does not say)\n"),
        "{out}{error}"
    );
    let read = |name: &str| {
        let bytes = std::fs::read(path(name)).expect("file");
        let weights = Weights::parse(Path::new(name), &bytes).expect("weights");
        weights.tensors.into_iter().map(|(n, t)| (n, t.shape, t.data.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(read("b.safetensors"), read("c.pt"));
    assert_eq!(read("c.pt").iter().map(|(n, ..)| n.as_str()).collect::<Vec<_>>(), ["b", "x"]);
}

#[test]
fn weights_that_cannot_be_converted_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let out = path("out.safetensors");
    checkpoint(Path::new(&path("good.pt")), &[("a", &[1], &[1.0])]);
    let good = std::fs::read(path("good.pt")).expect("file");
    std::fs::write(path("cut.pt"), &good[..good.len() / 2]).expect("written");
    std::fs::write(path("junk.pt"), "junk").expect("written");
    let calls =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.cposix\nsystem\n.";
    std::fs::write(path("calls.pt"), calls).expect("written");
    checkpoint(Path::new(&path("none.pt")), &[]);
    let mut order = Weights::parse(Path::new("good.pt"), &good).expect("weights");
    order.metadata.insert("patch_merging".into(), "monai-9".into());
    order.save(Path::new(&path("order.pt"))).expect("written");
    checkpoint(Path::new(&path("twice.pt")), &[("a", &[1], &[1.0]), ("module.a", &[1], &[1.0])]);
    for (input, says) in [
        ("lost.pt", "check the path"),
        ("cut.pt", "cut off"),
        ("junk.pt", "not a PyTorch file"),
        ("calls.pt", "posix.system"),
        ("none.pt", "no tensors"),
        ("twice.pt", "\"a\""),
        ("order.pt", "monai-9"),
        ("good.bin", ".safetensors"),
    ] {
        refused(&["convert", &path(input), &out], &[input, says]);
    }
    refused(&["convert", &path("good.pt"), &path("out.onnx")], &["out.onnx", ".safetensors"]);
    refused(&["convert", &path("good.pt"), &path("good.pt")], &["good.pt", "another name"]);
    refused(&["convert", &path("good.pt"), &path("no/such/out.pt")], &["out.pt", "can be written to"]);
    let mut eight = Weights::default();
    let tensor = RawTensor { dtype: Dtype::F8_E4M3, shape: vec![1], data: vec![0].into() };
    eight.tensors.insert("eight".into(), tensor);
    eight.save(Path::new(&path("eight.safetensors"))).expect("written");
    let (code, _, error) = vocoe(&["convert", &path("eight.safetensors"), &path("out.pt")]);
    assert!(code == 1 && error.contains("\"eight\"") && !error.contains("has room"), "{error}");
    let left = std::fs::read_dir(folder.path()).expect("folder").map(|f| f.expect("file").file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("out")));
}

#[test]
fn training_starts_from_weights_and_says_what_it_took() {
    let folder = tempfile::tempdir().expect("folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let train = |weights: &str, out: &str| {
        vocoe(&["train", "--demo", "--steps", "1", "--lr", "0", "--weights", &path(weights), "--out", &path(out)])
    };
    let bias = "swin_vit.patch_embed.proj.bias";
    checkpoint(Path::new(&path("a.pt")), &[(bias, &[12], &[7.0; 12]), ("out.bias", &[2], &[0.0; 2])]);
    let (code, _, error) = train("a.pt", "run");
    assert_eq!(code, 0, "{error}");
    assert!(
        error.contains("a.pt: patch_merging monai-1.3 (the file does not say); 1 tensors loaded, 0 mis"),
        "{error}"
    );
    assert!(error.contains("unused: out.bias"), "{error}");
    assert!(error.contains("missing: backbone.") && !error.contains("student."), "{error}");
    let trained = models::state_dict::load(&folder.path().join("run/model.safetensors")).expect("weights");
    let values = trained["swinViT.patch_embed.proj.bias"].to_vec::<f32>().expect("values");
    assert_eq!(values, [7.0; 12]);
    checkpoint(Path::new(&path("b.pt")), &[(bias, &[13], &[7.0; 13])]);
    let (code, _, error) = train("b.pt", "other");
    assert!(code == 1 && error.contains("no tensor matches") && error.contains("[13]"), "{error}");
    assert!(!folder.path().join("other").exists());

    let mut standard = Weights::default();
    let data = [0; 48].as_slice().into();
    standard.tensors.insert(bias.into(), RawTensor { dtype: Dtype::F32, shape: vec![12], data });
    standard.metadata.insert("patch_merging".into(), "standard".into());
    standard.save(Path::new(&path("c.pt"))).expect("written");
    let (code, _, error) = train("c.pt", "other");
    assert!(code == 1 && error.contains("c.pt") && error.contains("patch_merging standard"), "{error}");
    assert!(error.contains("monai-1.3") && !folder.path().join("other").exists(), "{error}");

    let (volume, model) = (phantom(folder.path()), path("run/model.safetensors"));
    let small = ["--grid", "2", "--crops", "1", "--out", &path("pictures")];
    let (code, _, error) = vocoe(&[&["inspect", &volume, "--checkpoint", &model], &small[..]].concat());
    assert!(code == 0 && error.contains("model.safetensors: patch_merging monai-1.3; "), "{error}");
    assert!(error.contains(" tensors loaded, 0 mismatched, 0 missing, 0 unused"), "{error}");
}

#[test]
fn prepare_fails_where_listed_volumes_are_missing_and_names_them() {
    let folder = tempfile::tempdir().expect("folder");
    let (list, cache) = (folder.path().join("list.txt"), folder.path().join("cache"));
    std::fs::write(&list, phantom(folder.path()) + "\nabsent_1.nii\nabsent_2.nii.gz\n").expect("list");
    let [data, cache] = [&list, &cache].map(|path| path.to_string_lossy());
    let (code, out, error) = vocoe(&["prepare", "--data", &data, "--region", "chest", "--cache", &cache, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, &report["written"]), (1, &serde_json::json!(1)), "{error}");
    assert_eq!(report["missing"].as_array().map(Vec::len), Some(2), "{out}");
    assert!(error.contains("absent_1.nii") && error.contains("absent_2.nii.gz"), "{error}");
}

/// One phantom's image.
fn phantom(folder: &Path) -> String {
    assert_eq!(vocoe(&["phantom", "--out", &folder.to_string_lossy(), "--count", "1"]).0, 0);
    folder.join("phantom_000_ct.nii.gz").to_string_lossy().into_owned()
}

#[test]
fn inspect_draws_a_sample_and_its_labels_are_the_counted_overlaps() {
    let folder = tempfile::tempdir().expect("folder");
    let (volume, out) = (phantom(folder.path()), folder.path().join("pictures"));
    let path = out.to_string_lossy();
    let (code, text, error) = vocoe(&["inspect", &volume, "--out", &path, "--grid", "2", "--crops", "1"]);
    assert_eq!(code, 0, "{error}");
    assert!(["crop", "label", "counted"].iter().all(|word| text.contains(word)), "{text}");
    for name in ["axial", "coronal", "sagittal", "crop-0"] {
        let bytes = std::fs::read(out.join(name).with_extension("png")).expect("picture");
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 1000, "{name}");
    }
    assert_eq!(std::fs::read_dir(&out).expect("folder").count(), 4);
    std::fs::write(out.join("crop-1.png"), "a drawing of the user's own").expect("file");
    refused(&["inspect", &volume, "--out", &path], &["crop-1.png", "name another folder"]);
    std::fs::remove_file(out.join("crop-0.png")).expect("a picture");
    refused(&["inspect", &volume, "--out", &path], &["crop-1.png", "name another folder"]);
    std::fs::remove_file(out.join("crop-1.png")).expect("the drawing");
    labels_are_counted(&["inspect", &volume, "--out", &path, "--region", "headneck", "--roi", "32", "--json"], 9, 32.0);
    labels_are_counted(&["inspect", &volume, "--out", &path, "--geometry", "cvpr", "--json"], 16, 96.0);
}

/// Runs `inspect` on a grid of so many bases, with crops of this side in the volume.
fn labels_are_counted(arguments: &[&str], bases: usize, side: f64) {
    let (code, text, _) = vocoe(arguments);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, report["crops"].as_array().map(Vec::len)), (0, Some(2)));
    for crop in report["crops"].as_array().into_iter().flatten() {
        let numbers = |key: &str| crop[key].as_array().into_iter().flatten().filter_map(|v| v.as_f64());
        assert_eq!(numbers("label").count(), bases);
        let is_share = |(label, n): (f64, f64)| label == f64::from((n / side.powi(3)) as f32);
        assert!(numbers("label").zip(numbers("counted")).all(is_share), "{crop}");
    }
}

#[test]
fn inspect_says_what_is_wrong_in_one_line() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("pictures").to_string_lossy().into_owned();
    refused(&["inspect", "/no/such.nii.gz", "--out", &out], &["/no/such.nii.gz"]);
    refused(&["inspect", "x.nii.gz", "--out", &out, "--roi", "7"], &["7 voxels", "even"]);
    refused(&["inspect", "x.nii.gz", "--out", &out, "--grid", "99999"], &["smaller", "--grid"]);
    let volume = phantom(folder.path());
    refused(&["inspect", &volume, "--out", &out, "--checkpoint", &volume], &[&volume, "safetensors"]);
    let linear = format!("{REFERENCE}/linear.safetensors");
    refused(&["inspect", &volume, "--out", &out, "--checkpoint", &linear], &["model.safetensors", "vocoe train"]);
    let file = folder.path().join("empty.safetensors");
    let sizes = ["swinViT.patch_embed.proj.weight", "student.layer1.0.weight", "student.layer3.0.weight"];
    checkpoint(&file, &sizes.map(|name| (name, &[12 << 40, 0][..], &[][..])));
    let empty = file.to_string_lossy();
    refused(&["inspect", &volume, "--out", &out, "--checkpoint", &empty], &["empty.safetensors", "an empty one"]);
    let mut other = Weights::default();
    let tensor = RawTensor { dtype: Dtype::F32, shape: vec![12], data: [0; 48].as_slice().into() };
    other.tensors.extend(sizes.map(|name| (name.to_string(), tensor.clone())));
    other.metadata.insert("loss".into(), "cvpr9".into());
    other.save(&file).expect("written");
    refused(&["inspect", &volume, "--out", &out, "--checkpoint", &empty], &["empty.safetensors", "\"cvpr9\""]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn the_default_configuration_is_accepted_and_unknown_keys_are_not() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("first.toml");
    let file = path.to_string_lossy();
    let (code, text, error) = vocoe(&["config", "--print-default"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(text.lines().any(|line| line.starts_with('#')), "{text}");
    std::fs::write(&path, &text).expect("written");
    refused(&["train", "--config", &file], &["nothing to train on"]);
    std::fs::write(&path, text.replace("\nsteps =", "\nstep =")).expect("written");
    refused(&["train", "--config", &file], &[&file, "unknown key `step`; did you mean `steps`?"]);
    std::fs::write(&path, "steps = \"many\"").expect("written");
    refused(&["train", "--config", &file], &[&file, "steps"]);
    std::fs::write(&path, "steps = ").expect("written");
    refused(&["train", "--config", &file], &[&file]);
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, error) = vocoe(&["completions", shell]);
        assert!(code == 0 && error.is_empty() && out.contains("gradcheck"), "{shell}: {error}");
    }
    let (code, page, _) = vocoe(&["man"]);
    assert!(code == 0 && page.contains(".TH") && page.contains("inspect"), "{page}");
    let (code, page, _) = vocoe(&["man", "train"]);
    assert!(code == 0 && page.contains("vocoe\\-train") && page.contains("weight"), "{page}");
    let (_, _, error) = vocoe(&["man", "fly"]);
    assert!(
        error.contains("'fly'") && error.contains("no command of this name") && error.contains("gradcheck"),
        "{error}"
    );
}

#[test]
fn quiet_leaves_errors_and_failures_and_verbose_adds_detail() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().to_string_lossy();
    relu(folder.path(), "right", [0.0, 2.0], [0.0, 4.0]);
    let quiet = || vocoe(&["-q", "verify", "--reference", &path]);
    assert_eq!(quiet(), (0, String::new(), String::new()));
    assert_eq!(vocoe(&["gradcheck", "--filter", "linear", "--quiet"]), (0, String::new(), String::new()));
    let (code, _, detail) = vocoe(&["verify", "--reference", &path, "-v"]);
    assert!(code == 0 && detail.contains("grad.x") && detail.contains("out.y"), "{detail}");
    relu(folder.path(), "wrong", [0.0, 2.0], [0.0, 5.0]);
    let (code, out, _) = quiet();
    assert!(code == 1 && out.lines().count() == 1 && out.starts_with("wrong "), "{out}");
    refused(&["verify", "-q", "--reference", "/no/such/folder"], &["/no/such/folder"]);
}

#[test]
fn success_is_0_failure_1_and_wrong_usage_2() {
    let folder = tempfile::tempdir().expect("folder");
    relu(folder.path(), "right", [0.0, 2.0], [0.0, 4.0]);
    let path = folder.path().to_string_lossy();
    let code = |arguments: &[&str]| vocoe(arguments).0;
    for right in [&["--version"][..], &["help"], &["help", "train"], &["verify", "--reference", &path]] {
        assert_eq!(code(right), 0, "{right:?}");
    }
    for failing in [&["train"][..], &["train", "--demo", "--steps", "0"], &["phantom", "--out", "/dev/null/x"]] {
        assert_eq!(code(failing), 1, "{failing:?}");
    }
    for wrong in [&["train", "--steps", "-1"][..], &["train", "--size", "XL"], &["help", "fly"], &["--loud"]] {
        assert_eq!(code(wrong), 2, "{wrong:?}");
    }
}

/// Exit code with pipes that nobody reads any more as standard output and standard error.
fn unread(arguments: &[&str]) -> i32 {
    let pipe = || std::io::pipe().expect("pipe").1;
    let binary = env!("CARGO_BIN_EXE_vocoe");
    let status =
        Command::new(binary).args(arguments).stdout(pipe()).stderr(pipe()).status().expect("the binary starts");
    status.code().expect("no signal")
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for arguments in [
        &["config", "--print-default"][..],
        &["plan", "--size", "tiny"],
        &["plan", "--size", "tiny", "--json"],
        &["devices"],
        &["man", "train"],
        &["completions", "bash"],
        &["--help"],
    ] {
        assert_eq!(unread(arguments), 0, "{arguments:?}");
    }
    assert_eq!(unread(&["gradcheck", "--filter", "no such rule"]), 1);
    assert_eq!(unread(&["fly"]), 2);
}

#[test]
fn training_goes_on_when_nobody_reads_along() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("run");
    let path = out.to_string_lossy();
    let run =
        ["train", "--demo", "--volumes", "1", "--crops", "1", "--projection", "8", "--steps", "1", "--out", &path];
    assert_eq!(unread(&run), 0);
    assert!(out.join("model.safetensors").exists() && out.join("report.html").exists());
}

#[test]
fn a_run_is_resumed_from_its_folder_and_keeps_its_settings() {
    let folder = tempfile::tempdir().expect("folder");
    let out = folder.path().join("run").to_string_lossy().into_owned();
    let begin = ["train", "--demo", "--crops", "1", "--projection", "8", "--steps", "1", "--out", &out];
    let (code, _, error) = vocoe(&begin);
    assert_eq!(code, 0, "{error}");
    for name in ["model.safetensors", "report.html", "pictures/axial.png", "checkpoints/step-0000001.safetensors"] {
        assert!(folder.path().join("run").join(name).exists(), "{name}: {error}");
    }
    refused(&begin, &["holds a run already"]);
    refused(&["train", "--resume"], &["--out"]);
    refused(&["train", "--resume", "--lr", "0.5", "--out", &out], &["lr", "differs"]);
    let checkpoint = format!("{out}/checkpoints/step-0000001.safetensors");
    let elsewhere = folder.path().join("elsewhere").to_string_lossy().into_owned();
    refused(&["train", "--resume", &checkpoint, "--out", &elsewhere], &["goes on there"]);
    assert!(!folder.path().join("elsewhere").exists());
    refused(&["train", "--resume", "/no/such/checkpoint.safetensors"], &["/no/such/checkpoint.safetensors"]);
    let page = Path::new(&out).join("report.html");
    std::fs::remove_file(&page).expect("page");
    let held = training::file::lock(Path::new(&out)).expect("free");
    let (code, _, error) = vocoe(&["train", "--resume", "--out", &out]);
    assert!(code == 1 && error.contains("another run is writing there") && !page.exists(), "{error}");
    drop(held);
    let (code, _, error) = vocoe(&["train", "--resume", "--out", &out]);
    assert!(code == 0 && error.contains("after step 1") && page.exists(), "{error}");
}

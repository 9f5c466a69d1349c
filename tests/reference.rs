//! Every committed reference case, through the library.

use engine::{DType, Device};
use std::path::Path;
use vocoe::verify::{self, Context, Verdict, case};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference");

fn context() -> Context {
    Context { device: Device::Cpu, dtype: DType::F32, folder: FOLDER.into(), ct: "no volumes here".into() }
}

#[test]
fn every_case_stays_within_its_bounds() {
    let mut failures = Vec::new();
    for file in verify::files(Path::new(FOLDER), "").expect("cases") {
        let outcome = verify::check(&file, &context());
        if outcome.failed() {
            failures.push(format!("{outcome:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_kind_that_needs_no_patient_has_a_case() {
    let kinds: Vec<String> = verify::files(Path::new(FOLDER), "")
        .expect("cases")
        .iter()
        .map(|file| case::Case::read(file, DType::F32).expect("case").kind)
        .collect();
    let absent: Vec<&str> = verify::kinds().filter(|k| *k != "preprocess" && !kinds.iter().any(|x| x == k)).collect();
    assert!(absent.is_empty(), "no case of kind {absent:?}");
}

#[test]
fn the_cases_fit_in_the_repository() {
    let size = |file: &std::path::PathBuf| file.metadata().expect("size").len();
    let total: u64 = verify::files(Path::new(FOLDER), "").expect("cases").iter().map(size).sum();
    assert!(total <= 20_000_000, "{total} bytes");
}

/// The name of a passing case's tightest tensor, as `verify` would print it, is one of the case's.
#[test]
fn an_outcome_names_the_tensors_of_its_case() {
    let file = Path::new(FOLDER).join("linear.safetensors");
    let Verdict::Compared(all) = verify::check(&file, &context()).verdict else { panic!("not compared") };
    let names: Vec<&str> = all.iter().map(|c| c.tensor.as_str()).collect();
    assert_eq!(names, ["grad.bias", "grad.weight", "grad.x", "out.y"]);
}
